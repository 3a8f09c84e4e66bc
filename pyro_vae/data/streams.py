"""Data that are iterated over: one by one (`Stream`), or in batches of their own (`Ready`)."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from numbers import Integral
from typing import Any

import torch
from torch.utils._pytree import tree_structure

from pyro_vae.data.arrays import length_of
from pyro_vae.data.batch import Batch, Count, count_of, cut, tensors_of
from pyro_vae.data.conversion import as_ready, as_tensor, check_no_loader, only_first, say_first
from pyro_vae.data.fingerprints import digest_of_batches
from pyro_vae.data.generators import Sources, drawn, drawn_apart, generators_in
from pyro_vae.data.rows import LazyRows


class Stream(LazyRows):
    """Data that an iterable data set makes or reads one by one, anew and in its own order at each pass.

    `fit` and `evaluate` make it of every ``torch.utils.data.IterableDataset``. What has no length is counted by one
    pass. Several processes each read the whole stream, and take their parts of it.

    Arguments:
        dataset: an iterable of tensors, arrays or images of one shape; of an item that is a tuple the first counts.
        stack: makes a batch of a list of items; `collated` keeps all parts of each.

    Attributes:
        digest: 16 digits of a hash of the first of them, by generators that are new.

    Raises:
        ValueError: where there are no data, in any pass, or they differ in shape.

    Example:
        >>> [rows.tolist() for rows in Stream([torch.zeros(1), torch.ones(1), torch.ones(1)]).split(2)]
        [[[0.0], [1.0]], [[1.0]]]
    """

    def __init__(self, dataset: Iterable[Any], stack: "Callable[[list[Any]], Batch] | None" = None) -> None:
        super().__init__()
        self.as_given = True
        check_no_loader(dataset)
        self.dataset, self.stack = dataset, stack or as_tensor
        self.generators = generators_in(dataset)
        length = length_of(dataset)
        count = sum(map(len, self._apart(1000))) if length is None else length
        first = self.stack(next(self._apart(1, anew=True), []))
        self.shape, self.digest = torch.Size((count, *shapes_in(first)[0])), digest_of_batches([first])

    def __getitem__(self, first: slice) -> Batch:
        stop = len(self) + 1 if first.stop is None else first.stop
        items = next(self._apart(stop), [])
        if first.stop is None and len(items) != len(self):
            raise ValueError(f"the data set gave {len(items)} data, at least, not {len(self)}, which is its length")
        return self._moved(self.stack(items))

    def epoch(self, size: int, order: torch.Generator) -> Iterator[Batch]:
        """Yield the data in their own order, so many at a time, by random numbers that follow from a generator."""
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=order)))
        return self._checked(drawn(self._lists(size), Sources(torch.default_generator), own.get_state()))

    def split(self, size: int) -> Iterator[Batch]:
        """Yield the data in their own order, so many at a time, and leave that of the next pass as it is."""
        return self._checked(self._apart(size))

    def _apart(self, size: int, *, anew: bool = False) -> Iterator[list[Any]]:
        """Yield lists of items without a trace in torch's random state and the generators of the data set."""
        return drawn_apart(self._lists(size), self.generators, anew=anew)

    def _lists(self, size: int) -> Iterator[list[Any]]:
        items = iter(self.dataset)
        while rows := list(islice(items, size)):
            yield rows

    def _checked(self, lists: Iterable[list[Any]]) -> Iterator[Batch]:
        read, shapes = 0, None
        for rows in lists:
            batch, read = self.stack(rows), read + len(rows)
            if read > len(self):  # at once, as it might never end
                break
            shapes = shapes or shapes_in(batch)
            if shapes_in(batch) != shapes or shapes[0] != tuple(self.shape[1:]):
                raise ValueError(f"the data differ in shape: {shapes_in(batch)[0]} and {tuple(self.shape[1:])}")
            yield self._moved(batch)
        if read != len(self):
            more = "more than its length" if read > len(self) else f"{read} data in this pass"
            raise ValueError(f"the data set gave {more}, not {len(self)}: each pass must begin anew and end there")


class Ready(LazyRows):
    """Batches that an iterable makes itself, used as they come, such as those of a ``torch.utils.data.DataLoader``.

    They may differ in structure. A first pass counts them. Passes other than those of the training leave the generator
    of a ``DataLoader`` as it was.

    Arguments:
        batches: an iterable that begins anew at each pass.
        count: returns the number of data of a batch; by default its first tensor's first dimension.
        fits: whether a batch is what the programs can be called with; of several parts that do not fit the first alone
            is given, if that does.

    Attributes:
        counts: the number of data of each batch of the first pass.
        examples: the first batch of each structure.
        digest: 16 digits of a hash of the first pass, which is by generators that are new, up to 64 MiB.

    Raises:
        TypeError: for an iterator, which ends for good after one pass, and batches without a tensor.
        ValueError: where there are no batches, or another number of data than in the first pass.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> ready = Ready(DataLoader(TensorDataset(torch.zeros(5, 2), torch.arange(5)), batch_size=2))
        >>> len(ready), [label.tolist() for _, label in ready.split()]
        (5, [[0, 1], [2, 3], [4]])
    """

    def __init__(
        self, batches: Iterable[Batch], count: Count | None = None, fits: Callable[[Batch], bool] | None = None
    ) -> None:
        super().__init__()
        if isinstance(batches, Iterator):
            kind = type(batches).__name__
            raise TypeError(f"the data must begin anew at each pass, as a DataLoader does, which a {kind} does not")
        self.as_given = True
        self.batches, self.given_count, self.fits = batches, count, fits
        self.generators = generators_in(batches)
        self.counts: list[int] = []
        self.examples: dict[Any, Batch] = {}
        self._of_another_size: Batch = None
        self.digest = digest_of_batches(self._first_pass())
        if not self.counts:
            raise ValueError(f"the {type(batches).__name__} gives no batches: at least one datum is needed")
        self.shape = torch.Size((sum(self.counts),))
        self.device = tensors_of(next(iter(self.examples.values())))[0].device

    def _first_pass(self) -> Iterator[Batch]:
        """Yield the batches, and count them."""
        for batch in self._each(self._apart(anew=True)):
            self.counts.append(self.count(batch))
            self.examples.setdefault(tree_structure(batch), batch)
            if self._of_another_size is None and self.counts[-1] != self.counts[0]:
                self._of_another_size = batch
            yield batch

    def count(self, batch: Batch) -> int:
        """Return the number of data of a batch, by the user's function where there is one."""
        if self.given_count is None:
            return count_of(batch)
        count = self.given_count(batch)
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
            raise ValueError(f"count must return the number of data of a batch, not {count!r}")
        return int(count)

    def epoch(self, order: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield the batches as they come; where an order is given, by random numbers that follow from it alone."""
        if order is None:
            return self._checked(self.batches)
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=order)))
        return self._checked(drawn(self.batches, Sources(torch.default_generator), own.get_state()))

    def split(self, size: int = 0) -> Iterator[Batch]:  # noqa: ARG002 (they have a size of their own)
        """Yield the batches as they come, and leave the order of the next pass as it would have been."""
        return self._checked(self._apart())

    def _apart(self, *, anew: bool = False) -> Iterator[Batch]:
        """Yield the batches without a trace in torch's random state and the generators of the iterable.

        Where it draws from torch's, it does so as in a new process.
        """
        return drawn_apart(self.batches, self.generators, anew=anew)

    def _checked(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        read = 0
        for batch in self._each(batches):
            read += self.count(batch)
            yield self._moved(batch)
        if read != len(self):
            counts = f"{read} data in this pass, and {len(self)} before"
            raise ValueError(f"the {type(self.batches).__name__} gave {counts}: each pass must give as many")

    def __getitem__(self, first: slice) -> Batch:
        """Return the first data: the first batch, of which the rest is cut off where that is possible."""
        return cut(self._moved(next(iter(self.examples.values()))), first.stop, self.count)

    def structures(self) -> Iterator[Batch]:
        """Yield the first batch of each structure."""
        return map(self._moved, self.examples.values())

    def of_another_size(self) -> Batch:
        """Return a batch with another number of data than the first, or None where there is none."""
        return self._moved(self._of_another_size)

    def _each(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        first = None
        for batch in batches:
            if first is None:
                first = self.fits is not None and only_first(batch, self.fits)
                if first and not self.counts:
                    say_first(len(batch))
            ready = as_ready(batch, first=first)
            if not self.count(ready):
                raise ValueError(f"the {type(self.batches).__name__} gives a batch without data: leave it out")
            yield ready


def shapes_in(batch: Batch) -> list[tuple[int, ...]]:
    """Return the shape of one datum of each tensor of a batch."""
    return [tuple(tensor.shape[1:]) for tensor in tensors_of(batch)]
