"""Data that are iterated over: one at a time (`Stream`), or in ready batches (`Ready`)."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SubsetRandomSampler

from pyro_vae.data.arrays import length_of
from pyro_vae.data.batch import PLAIN, Batch, Count, count_of, cut, in_words, tensors_of
from pyro_vae.data.conversion import as_ready, as_tensor, check_no_loader, only_first, say_first
from pyro_vae.data.fingerprints import digest_of_batches
from pyro_vae.data.generators import Sources, drawn, drawn_apart, generators_in
from pyro_vae.data.rows import LazyRows

MOST = 8  # structures of which a batch is kept


class Stream(LazyRows):
    """Data that an iterable data set makes or reads one at a time, in its own order, again in each pass.

    `fit` and `evaluate` use it for every ``torch.utils.data.IterableDataset``. A data set without a length is counted
    in a pass. With several processes, each reads the whole stream and takes its part.

    Arguments:
        dataset: an iterable of tensors, arrays or images of one shape; of items that are tuples the first part is used.
        stack: makes a batch of a list of items; `collated` keeps all parts of each.

    Attributes:
        digest: 16 digits of a hash of the first datum, made with new generators.

    Raises:
        ValueError: if a pass gives no data, or they differ in shape.

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
            raise ValueError(f"the data set gave at least {len(items)} data, but its length is {len(self)}")
        return self._moved(self.stack(items))

    def epoch(self, size: int, order: torch.Generator) -> Iterator[Batch]:
        """Yield the data in their own order, so many at a time, with torch's random state seeded from a generator."""
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=order)))
        return self._checked(drawn(self._lists(size), Sources(torch.default_generator), own.get_state()))

    def split(self, size: int) -> Iterator[Batch]:
        """Yield the data in their own order, so many at a time, without changing the order of the next pass."""
        return self._checked(self._apart(size))

    def _apart(self, size: int, *, anew: bool = False) -> Iterator[list[Any]]:
        """Yield lists of items, and leave torch's random state and the generators of the data set as they were."""
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
            more = "more data than its length" if read > len(self) else f"{read} data in this pass"
            raise ValueError(f"the data set gave {more}, not {len(self)}: each pass must start again and give all data")


class Ready(LazyRows):
    """Ready batches of an iterable, such as a ``torch.utils.data.DataLoader``, used as they come.

    They may differ in structure. A first pass counts the data. Only the passes of the training advance the generator of
    a ``DataLoader``; evaluations and checks leave it as it was.

    Arguments:
        batches: an iterable that starts again at each pass.
        count: returns the number of data of a batch; by default it is the first dimension of the first tensor.
        fits: returns whether the programs can be called with a batch. If they cannot be called with all parts of a
            batch, but with the first one, only the first one is used.

    Attributes:
        counts: the number of data of each batch of the first pass.
        examples: the first batch of each structure, of the first `MOST` structures.
        digest: 16 digits of a hash of the first pass, up to 64 MiB, made with new generators.

    Raises:
        TypeError: for an iterator, which ends for good after one pass, and for batches without a tensor.
        ValueError: if there are no batches, or a pass gives another number of data than the first one.

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
            raise TypeError(
                f"the data must start again at each pass, but a {kind} ends after one: give a DataLoader, or an object"
                " whose __iter__ starts a new pass"
            )
        self.as_given = True
        self.batches, self.given_count, self.fits = batches, count, fits
        self.generators = generators_in(batches)
        self.counts: list[int] = []
        self.examples: dict[Any, Batch] = {}
        self._first: bool | None = None  # whether only the first part of a batch is used
        self._of_another_size: dict[Any, Batch] = {}
        self.digest = digest_of_batches(self._first_pass())
        if not self.counts:
            raise ValueError(f"the {type(batches).__name__} gives no batches: it must give at least one datum")
        self.shape = torch.Size((sum(self.counts),))
        self.device = tensors_of(next(iter(self.examples.values())))[0].device

    def _first_pass(self) -> Iterator[Batch]:
        """Yield the batches, and count them."""
        for batch in self._each(self._apart(anew=True)):
            self.counts.append(self.count(batch))
            structure = kind_of(batch)
            if structure in self.examples or len(self.examples) < MOST:
                first = self.examples.setdefault(structure, batch)
                if structure not in self._of_another_size and self.counts[-1] != self.count(first):
                    self._of_another_size[structure] = batch
            yield batch

    @property
    def total(self) -> int:
        """The number of all data, of which a loader that shuffles may take others in each pass (``drop_last``)."""
        if not isinstance(self.batches, DataLoader):
            return len(self)
        batches: Any = self.batches.batch_sampler or self.batches.sampler
        order = getattr(batches, "sampler", None)
        if not (isinstance(batches, BatchSampler) and isinstance(order, RandomSampler | SubsetRandomSampler)):
            return len(self)
        items = len(batches) * batches.batch_size if batches.drop_last else len(order)
        drawn_from = order.data_source if isinstance(order, RandomSampler) else order.indices
        return len(drawn_from) if items == len(self) else len(self)  # an item may hold several data

    def count(self, batch: Batch) -> int:
        """Return the number of data of a batch, by the user's function if there is one."""
        if self.given_count is None:
            return count_of(batch)
        count = self.given_count(batch)
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
            raise ValueError(f"count must return the number of data of a batch, not {count!r}")
        return int(count)

    def epoch(self, order: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield the batches as they come; if an order is given, with torch's random state seeded from it."""
        if order is None:
            return self._checked(self.batches)
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=order)))
        return self._checked(drawn(self.batches, Sources(torch.default_generator), own.get_state()))

    def split(self, size: int = 0) -> Iterator[Batch]:  # noqa: ARG002 (they have a size of their own)
        """Yield the batches as they come, without changing the order of the next pass."""
        return self._checked(self._apart())

    def _apart(self, *, anew: bool = False) -> Iterator[Batch]:
        """Yield the batches, and leave torch's random state and the generators of the iterable as they were.

        An iterable that draws from torch's random state draws the same numbers each time.
        """
        return drawn_apart(self.batches, self.generators, anew=anew)

    def _checked(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        read = 0
        for batch in self._each(batches):
            self._check_structure(batch)
            read += self.count(batch)
            yield self._moved(batch)
        if read != len(self):
            counts = f"{read} data in this pass, and {len(self)} before"
            raise ValueError(f"the {type(self.batches).__name__} gave {counts}: each pass must give the same number")

    def __getitem__(self, first: slice) -> Batch:
        """Return the first data: the first batch, cut to the size that is asked for if it can be cut."""
        return cut(self._moved(next(iter(self.examples.values()))), first.stop, self.count)

    def structures(self) -> Iterator[Batch]:
        """Yield the first batch of each structure."""
        return map(self._moved, self.examples.values())

    def of_another_size(self, first: Batch) -> Batch:
        """Return a batch whose number of data differs from the first one of its structure, or None if there is none."""
        return self._moved(self._of_another_size.get(kind_of(first)))

    def _check_structure(self, batch: Batch) -> None:
        """Refuse a structure that the first pass did not have, if the programs cannot be called with it."""
        if self.fits is None or kind_of(batch) in self.examples or self.fits(batch):
            return
        first = next(iter(self.examples.values()))
        if self.fits(first):  # otherwise a transform makes batches of another structure
            given = f"{in_words(batch)}, with which the programs cannot be called"
            fix = f"give the same parts in every pass, as {in_words(first)}"
            raise ValueError(f"the {type(self.batches).__name__} gave {given}: {fix}")

    def _each(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if self._first is None:
                self._first = self.fits is not None and only_first(batch, self.fits)
                if self._first:
                    say_first(len(batch))
            ready = as_ready(batch, first=self._first)
            if not self.count(ready):
                raise ValueError(f"the {type(self.batches).__name__} gives a batch without data: leave it out")
            yield ready


def shapes_in(batch: Batch) -> list[tuple[int, ...]]:
    """Return the shape of one datum of each tensor of a batch."""
    return [tuple(tensor.shape[1:]) for tensor in tensors_of(batch)]


def kind_of(batch: Batch) -> tuple[Any, ...]:
    """Return what programs may tell batches apart by: their parts, which of these are None, and other plain values.

    Example:
        >>> x = torch.zeros(3)
        >>> kind_of((x, None)) == kind_of((x, x)), kind_of((x, True)) == kind_of((x[:2], True))
        (False, True)
    """
    leaves, structure = tree_flatten(batch)
    kinds = [
        leaf.dim() if isinstance(leaf, Tensor) else repr(leaf) if isinstance(leaf, PLAIN) else "" for leaf in leaves
    ]
    return structure, *kinds
