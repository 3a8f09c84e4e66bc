"""Data sets, in memory or read a batch at a time, one datum per row. Knows no model.

Numbers keep their values, whatever their type: bytes of a tensor, an array or a file of numpy's are not divided by 255
unless you say so (``scale=255``, or `EightBit`). Only pictures become values in [0, 1], as their formats say what the
largest value is: image files, images of Pillow's, and the named data sets.
"""

import copy
import difflib
import hashlib
import mimetypes
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from io import FileIO
from itertools import islice
from numbers import Integral
from operator import itemgetter
from pathlib import Path
from types import FunctionType, ModuleType
from typing import IO, Any, NamedTuple, NoReturn, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_leaves, tree_structure, tree_unflatten
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from pyro_vae.batch import Batch, Count, are_rows, count_of, in_words, map_tensors, named, tensors_of
from pyro_vae.files import check_regular

TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
NAMES = ("digits", *TORCHVISION)
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # of images; others of Pillow's start other programs
COLOURS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "F")  # and greys of 16 bits
ARRAYS = {f"{name}{part}" for name in "xy" for part in ("", "_train", "_test")}  # of a .npz file
MORE = "more follows its array: save one array a file, or several as .npz"
MOST_OTHERS = 100_000  # files that are no images, in a folder of images
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


PAGE = 2**12  # bytes of a file that the system reads in any case
IN_MEMORY = 2**30  # bytes in 32 bits, from which on a .npy file stays where it is
HASHED = 2**26  # bytes of each part that a fingerprint reads at most


class _Rows(Dataset[Tensor]):
    """Rows that are made or read when they are asked for, with what `fit` and `evaluate` ask of a tensor."""

    shape: torch.Size
    device = torch.device("cpu")
    as_given = False  # whether the data have not been brought anywhere

    def __init__(self) -> None:
        self.dtype = torch.get_default_dtype()

    def __len__(self) -> int:
        return self.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        """Return the same rows, to be brought to a device and a precision as they are read."""
        moved = copy.copy(self)
        moved.device, moved.dtype, moved.as_given = device, dtype or self.dtype, False
        return moved

    def split(self, size: int) -> Iterator[Batch]:
        """Yield the rows in order, so many at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def __getitem__(self, index: Any) -> Batch:
        raise NotImplementedError

    def count(self, batch: Batch) -> int:
        """Return the number of data of a batch."""
        return count_of(batch)

    def _moved(self, rows: Batch) -> Batch:
        """Bring a tensor to the device and the precision; of several parts whole numbers keep their type."""
        if self.as_given:
            return rows
        if isinstance(rows, Tensor):
            return rows.to(self.device, self.dtype)
        return map_tensors(
            lambda part: part.to(self.device, self.dtype if part.is_floating_point() else part.dtype), rows
        )


class EightBit(_Rows):
    """Data in memory in 8 bits, a quarter of what they take in 32, of which a batch at a time becomes x / scale.

    Arguments:
        values: of type uint8, shape (N, ...).
        scale: what the values are divided by, above 0; 255 makes pixels of 8 bits values in [0, 1].

    Raises:
        TypeError, ValueError: where they are not.

    Example:
        >>> x = EightBit(torch.tensor([[0], [51], [255]], dtype=torch.uint8))
        >>> x[torch.tensor([2, 1])]
        tensor([[1.0000],
                [0.2000]])
    """

    def __init__(self, values: Tensor, scale: float = 255.0) -> None:
        super().__init__()
        if not isinstance(values, Tensor) or values.dtype != torch.uint8:
            raise TypeError(f"values must be a tensor of torch.uint8, not {getattr(values, 'dtype', type(values))}")
        as_tensor(values[:1])  # which refuses what is no data
        self.values, self.shape, self.device = values, values.shape, values.device
        self.scale = _as_scale(scale)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        """Return the same data on a device, still in 8 bits, for batches in a precision."""
        moved = super().to(device, dtype)
        moved.values = self.values.to(device)
        return moved

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        rows = self.values.index_select(0, index) if isinstance(index, Tensor) else self.values[index]
        return self._moved(rows / self.scale)


class MemoryMapped(_Rows):
    """Data in a ``.npy`` file of any size, of which a batch at a time is in memory.

    `fit` and `evaluate` take it in place of a tensor. They hold 8 bytes for each datum, its place in the shuffled
    epoch, beside the batch. An array in Fortran order, whose rows lie scattered, is read more slowly.

    Arguments:
        path: the file: an array of shape (N, ...), N at least 1; of shape (N,) only beside others, as labels are.
        rows: which of the array's rows, in which order: whole numbers from 0 to N - 1, shape (n,); None for all.
        scale: what the values are divided by, above 0.

    Raises:
        TypeError, ValueError: for a file that is damaged, or whose array holds no real numbers or has no such shape.
        OSError: when rows are read, if the file is gone or has changed since.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x.npy"
        >>> np.save(path, np.arange(6).reshape(3, 2))
        >>> MemoryMapped(path)[torch.tensor([2, 0])]
        tensor([[4., 5.],
                [0., 1.]])
    """

    def __init__(self, path: str | Path, rows: Tensor | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.path, self.scale = Path(path), _as_scale(scale)
        try:
            self.stamp = _stamp(os.stat(self.path))
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)  # for its header
            whole, self.kind, self.start = array.shape, array.dtype, array.offset
            if self.stamp[0] > array.offset + array.nbytes:
                raise ValueError(MORE)
        except Exception as error:  # numpy has a dozen ways to fail on a damaged file
            raise ValueError(f"{self.path} cannot be read as a .npy file: {error}") from error
        _check_dense(_from_numpy(np.zeros([min(1, size) for size in whole], self.kind)), least=1)
        self.strides = (array.nbytes // len(array),) if array.flags.c_contiguous else array.strides
        self.rows = torch.arange(whole[0]) if rows is None else _as_rows(rows, whole[0])
        self.shape = torch.Size((len(self.rows), *whole[1:]))

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        if isinstance(index, Integral):  # of a torch.utils.data.Subset
            return self[torch.tensor([index])][0]
        rows = self.rows[index.cpu() if isinstance(index, Tensor) else index]
        if not len(rows):  # the part of a rank for which a batch had no data left
            return torch.empty(0, *self.shape[1:], device=self.device, dtype=self.dtype)
        values = _from_numpy(self._read(rows.numpy()))
        floats = values.to(torch.get_default_dtype()) if values.dtype == torch.uint8 else _kept(values)
        return self._moved(floats / self.scale)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Read rows by ordinary reads: a memory map would end the process by a signal if its file became shorter."""
        event = self.shape[1:]
        starts = np.array(self.start)  # of row 0; of each of its entries where they lie apart, in Fortran order
        for size, stride in zip(event, self.strides[1:], strict=False):
            starts = starts[..., None] + stride * np.arange(size)
        each = self.strides[0]  # bytes: of a row, or of the entry of one
        spans, places = _spans(rows, 1 + PAGE // each)
        found = np.empty((starts.size, len(rows)), f"V{each}")
        with open(self.path, "rb", buffering=0) as file:
            unchanged = _stamp(os.fstat(file.fileno())) == self.stamp
            for row, start in zip(found, starts.flat, strict=True):
                content = b"".join([_read_at(file, start + each * first, each * count) for first, count in spans])
                if not unchanged or len(content) != each * sum(count for _, count in spans):
                    fix = "restore it, or start again with the new file"
                    raise OSError(f"{self.path} has changed while it was in use: {fix}")
                row[:] = np.frombuffer(content, found.dtype)[places]
        values = found.view(self.kind).reshape(*starts.shape, len(rows), *event[starts.ndim :])
        return np.moveaxis(values, starts.ndim, 0)


def _spans(rows: np.ndarray, apart: int) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Return the first and the number of rows to read at a time, in their order, and where among them each row is.

    Those that are at most so many rows apart are read together.
    """
    order = np.argsort(rows)
    runs = np.split(order, np.flatnonzero(np.diff(rows[order]) > apart) + 1)
    spans = [(int(rows[run[0]]), int(rows[run[-1]] - rows[run[0]]) + 1) for run in runs]
    places, read = np.empty_like(rows), 0
    for run, (first, count) in zip(runs, spans, strict=True):
        places[run] = rows[run] - first + read
        read += count
    return spans, places


def _as_rows(rows: Any, count: int) -> Tensor:
    """Return the numbers of rows in 64 bits, or refuse what names none: they say where in a file is read."""
    numbers = torch.as_tensor(rows)
    whole = not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)
    places = numbers.long() if whole else numbers  # in fewer bits even the comparison with count goes wrong
    if not (whole and places.dim() == 1 and places.numel() and 0 <= places.min() <= places.max() < count):
        raise ValueError(f"rows must be whole numbers from 0 to {count - 1}, shape (n,), not {numbers.tolist()!s:.60}")
    return places


def _stamp(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def _read_at(file: FileIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


class Stream(_Rows):
    """Data that an iterable data set makes or reads one by one, anew and in its own order at each pass.

    `fit` and `evaluate` make it of every ``torch.utils.data.IterableDataset``. What has no length is counted by one
    pass. Several processes each read the whole stream, and take their parts of it.

    Arguments:
        dataset: an iterable of tensors, arrays or images of one shape; of an item that is a tuple the first counts.
        stack: makes a batch of a list of items; `collated` keeps all parts of each.

    Raises:
        ValueError: where there are no data, in any pass, or they differ in shape.

    Example:
        >>> [rows.tolist() for rows in Stream([torch.zeros(1), torch.ones(1), torch.ones(1)]).split(2)]
        [[[0.0], [1.0]], [[1.0]]]
    """

    def __init__(self, dataset: Iterable[Any], stack: "Callable[[list[Any]], Batch] | None" = None) -> None:
        super().__init__()
        self.as_given = True
        _check_no_loader(dataset)
        self.dataset, self.stack = dataset, stack or as_tensor
        self.generators = _generators(dataset)
        length = _length(dataset)
        count = sum(map(len, self._apart(1000))) if length is None else length
        self.shape = torch.Size((count, *_shapes(self[:1])[0]))

    def __getitem__(self, first: slice) -> Batch:
        stop = len(self) + 1 if first.stop is None else first.stop
        items = next(self._apart(stop), [])
        if first.stop is None and len(items) != len(self):
            raise ValueError(f"the data set gave {len(items)} data, at least, not {len(self)}, which is its length")
        return self._moved(self.stack(items))

    def epoch(self, size: int, order: torch.Generator) -> Iterator[Batch]:
        """Yield the data in their own order, so many at a time, by random numbers that follow from a generator."""
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=order)))
        return self._checked(_drawn(self._lists(size), Sources(torch.default_generator), own.get_state()))

    def split(self, size: int) -> Iterator[Batch]:
        """Yield the data in their own order, so many at a time, and leave that of the next pass as it is."""
        return self._checked(self._apart(size))

    def _apart(self, size: int) -> Iterator[list[Any]]:
        """Yield lists of items without a trace in torch's random state and the generators of the data set."""
        states = Sources(torch.Generator(), *self.generators).get_state()
        return _drawn(self._lists(size), Sources(torch.default_generator, *self.generators), states)

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
            shapes = shapes or _shapes(batch)
            if _shapes(batch) != shapes or shapes[0] != tuple(self.shape[1:]):
                raise ValueError(f"the data differ in shape: {_shapes(batch)[0]} and {tuple(self.shape[1:])}")
            yield self._moved(batch)
        if read != len(self):
            more = "more than its length" if read > len(self) else f"{read} data in this pass"
            raise ValueError(f"the data set gave {more}, not {len(self)}: each pass must begin anew and end there")


class Columns(_Rows):
    """Data of several parts, such as images and their labels, in memory or in files.

    Arguments:
        parts: a tuple or a dict of tensors, of arrays, or of `EightBit` and `MemoryMapped` data, all with one first
            dimension, which counts the data. It may hold further tuples and dicts, and None for what is not there.
            Whole numbers and truth values keep their types.

    Raises:
        TypeError: for a part that holds no numbers.
        ValueError: where the parts differ in length, or there are no data.

    Example:
        >>> Columns({"x": torch.zeros(3, 2), "label": [0, 1, 2]})[torch.tensor([2, 0])]["label"]
        tensor([2, 0])
    """

    def __init__(self, parts: Batch) -> None:
        super().__init__()
        self.parts: Batch = _as_parts(parts)
        lengths = [(name, len(part)) for name, part in named(self.parts) if part is not None]
        if not lengths or not lengths[0][1]:
            raise ValueError(f"the data must hold a tensor of at least one datum, not {in_words(parts)}")
        for name, length in lengths:
            if length != lengths[0][1]:
                both = f"part {lengths[0][0]} has {lengths[0][1]} data, and part {name} {length}"
                raise ValueError(
                    f"the parts of the data differ in length: {both}; give all of them one first dimension"
                )
        self.shape = torch.Size((lengths[0][1],))

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        """Return the same data on a device, and the floating-point parts in a precision."""
        moved = super().to(device, dtype)
        moved.parts = _each_part(lambda part: _part_to(part, device, moved.dtype), self.parts)
        return moved

    def __getitem__(self, index: Tensor | slice | int) -> Batch:
        return _each_part(lambda part: _taken(part, index), self.parts)


class Ready(_Rows):
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

    Raises:
        TypeError: for an iterator, which ends for good after one pass, and batches without a tensor.
        ValueError: where there are no batches, or another number of data than in the first pass.

    Example:
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
        self.generators = _generators(batches)
        self.counts: list[int] = []
        self.examples: dict[Any, Batch] = {}
        self._of_another_size: Batch = None
        for batch in self._each(self._apart()):
            self.counts.append(self.count(batch))
            self.examples.setdefault(tree_structure(batch), batch)
            if self._of_another_size is None and self.counts[-1] != self.counts[0]:
                self._of_another_size = batch
        if not self.counts:
            raise ValueError(f"the {type(batches).__name__} gives no batches: at least one datum is needed")
        self.shape = torch.Size((sum(self.counts),))
        self.device = tensors_of(next(iter(self.examples.values())))[0].device

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
        return self._checked(_drawn(self.batches, Sources(torch.default_generator), own.get_state()))

    def split(self, size: int = 0) -> Iterator[Batch]:  # noqa: ARG002 (they have a size of their own)
        """Yield the batches as they come, and leave the order of the next pass as it would have been."""
        return self._checked(self._apart())

    def _apart(self) -> Iterator[Batch]:
        """Yield the batches without a trace in torch's random state and the generators of the iterable.

        Where it draws from torch's, it does so as in a new process.
        """
        states = Sources(torch.Generator(), *self.generators).get_state()
        return _drawn(self.batches, Sources(torch.default_generator, *self.generators), states)

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
                first = self.fits is not None and _only_first(batch, self.fits)
                if first and not self.counts:
                    _say_first(len(batch))
            ready = _as_ready(batch, first=first)
            if not self.count(ready):
                raise ValueError(f"the {type(self.batches).__name__} gives a batch without data: leave it out")
            yield ready


class Sources:
    """Sources of random numbers, whose states are read and set as one.

    Example:
        >>> sources = Sources(torch.Generator(), torch.Generator())
        >>> sources.set_state(sources.get_state())
    """

    def __init__(self, *generators: torch.Generator) -> None:
        self.generators = generators

    def get_state(self) -> Tensor:
        """Return the states, one behind another."""
        return torch.cat([generator.get_state() for generator in self.generators])

    def set_state(self, states: Tensor) -> None:
        """Set all of them."""
        for generator, state in zip(self.generators, states.chunk(len(self.generators)), strict=True):
            generator.set_state(state.clone())


def _drawn(items: Iterable[Any], sources: Sources, states: Tensor) -> Iterator[Any]:
    """Yield items that draw from sources in other states, which are as before whenever an item has been made."""
    rest: Iterator[Any] | None = None
    while True:
        before = sources.get_state()
        sources.set_state(states)
        try:
            rest = iter(items) if rest is None else rest
            item = next(rest)
        except StopIteration:
            return
        finally:
            states = sources.get_state()
            sources.set_state(before)
        yield item


def _generators(value: Any) -> list[torch.Generator]:
    """Return the generators on the CPU that an iterable holds, itself or in its samplers and data sets."""
    found, seen, waiting = [], set[int](), [value]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type | ModuleType | FunctionType | Tensor | nn.Module):
            continue
        seen.add(id(each))
        if isinstance(each, torch.Generator):
            found += [each] if each.device.type == "cpu" else []
        waiting += reversed(vars(each).values()) if hasattr(each, "__dict__") else []
    return found


Rows = Tensor | EightBit | MemoryMapped | Stream | Columns | Ready


def cut(batch: Batch, size: int | None, count: Count = count_of) -> Batch:
    """Return the first data of a batch; all of them where its tensors' first dimensions do not count them.

    Example:
        >>> cut((torch.zeros(3, 2), None), 2)
        (tensor([[0., 0.],
                [0., 0.]]), None)
    """
    fits = size is not None and size < count(batch) and are_rows(batch, count)
    return map_tensors(lambda part: part[:size], batch) if fits else batch


def pieces(batch: Batch, size: int, count: Count = count_of) -> Iterator[Batch]:
    """Yield a batch so many data at a time, or whole where it cannot be cut.

    Example:
        >>> [x.tolist() for x, _ in pieces((torch.arange(3), None), 2)]
        [[0, 1], [2]]
    """
    if count(batch) <= size or not are_rows(batch, count):
        yield batch
        return
    for start in range(0, count(batch), size):
        yield map_tensors(itemgetter(slice(start, start + size)), batch)


def count_in(x: Rows) -> Count:
    """Return what counts the data of a batch of some rows."""
    return count_of if isinstance(x, Tensor) else x.count


def as_rows(data: Any, fits: Callable[[Batch], bool], count: Count | None = None) -> Rows:
    """Return data as rows that can be taken in batches, with as many parts as what they are for can be called with.

    Arguments:
        data: a tensor, or what `as_tensor` makes one of; a tuple or a dict of these; a data set of either; a
            ``DataLoader``, or another iterable of ready batches.
        fits: whether a batch is what the programs can be called with.
        count: returns the number of data of a ready batch.

    Returns:
        The rows. Of a data set or a loader of tuples the first part alone where that fits and all parts do not.

    Raises:
        TypeError, ValueError: for data that are none of these.

    Example:
        >>> as_rows((torch.zeros(3, 2), torch.arange(3)), lambda batch: True)[:1]
        (tensor([[0., 0.]]), tensor([0]))
    """
    ready = _is_ready(data)
    if count is not None and not ready:
        raise ValueError(
            f"count is for ready batches, as of a DataLoader, not for a {type(data).__name__}: leave it out"
        )
    if ready:
        return Ready(data, count, fits)
    data = dict(data) if isinstance(data, Mapping) else data
    if isinstance(data, Data):
        raise TypeError("the data have a train and a test part: give data.train, and validation=data.test")
    if isinstance(data, dict | tuple) or (isinstance(data, list) and _are_columns(data, fits)):
        return Columns(data)
    if isinstance(data, IterableDataset):
        return _as_stream(data, fits)
    if _is_data_set(data) and _has_parts(data[0]) and not _only_first(data[0], fits):
        if type(data) is TensorDataset:
            return Columns(data.tensors)
        return Columns(collated([data[index] for index in range(len(data))]))
    if isinstance(data, Rows) and not isinstance(data, Tensor):
        if len(data.shape) < 2 and not isinstance(data, Columns):
            raise ValueError(f"data must have shape (N, ...) with one dimension more, not {tuple(data.shape)}")
        return data
    x = as_stored(data)
    return EightBit(x, scale=1) if x.dtype == torch.uint8 else x


def _is_ready(data: Any) -> bool:
    """Whether data are batches already: of a loader, or of what can be iterated over and has no places."""
    if isinstance(data, DataLoader | _BaseDataLoaderIter) or (isinstance(data, list) and _are_batches(data)):
        return True
    kinds = Dataset | str | bytes | dict | set | frozenset | Tensor | Ready
    return isinstance(data, Iterable) and not isinstance(data, kinds) and not hasattr(data, "__getitem__")


def _are_batches(data: list[Any]) -> bool:
    """Whether a list holds batches of several parts, which differ in size or in structure, and not data one by one."""
    if not (data and all(map(_has_parts, data)) and all(map(_may_be_batch, data))):
        return False
    if len({in_words(item) for item in data}) > 1:
        return True
    raise ValueError(
        f"a list of {in_words(data[0])} may hold data or ready batches: give DataLoader(data, batch_size=None) if they"
        " are batches, and a tuple of stacked tensors, or a Dataset, if each is a datum"
    )


def _may_be_batch(item: Any) -> bool:
    """Whether all parts of an item have one first dimension, as those of a batch do."""
    leaves = [leaf for leaf in tree_leaves(item) if leaf is not None]
    lengths = {len(leaf) if isinstance(leaf, Tensor) and leaf.dim() else 0 for leaf in leaves}
    return len(lengths) == 1 and lengths != {0}


def _is_data_set(data: Any) -> bool:
    """Whether data have a length and places, as a ``Dataset``, but are no array."""
    if isinstance(data, _Rows | Tensor) or _is_array(data) or _is_image(data):
        return False
    return hasattr(data, "__getitem__") and bool(_length(data))


def _has_parts(item: Any) -> bool:
    if isinstance(item, list):
        return len(item) > 1 and not _is_numbers(item)
    return isinstance(item, dict) or (isinstance(item, tuple) and len(item) > 1)


def _only_first(item: Any, fits: Callable[[Batch], bool]) -> bool:
    """Whether programs take the first part of a datum or a batch, and not all of them."""
    if isinstance(item, dict | PackedSequence) or not _has_parts(item):
        return False
    return not fits(tuple(item)) and fits((item[0],))


def _say_first(count: int) -> None:
    text = f"only the first of the {count} parts of each datum is used: the rest, such as labels, is left out"
    warnings.warn(text, UserWarning, stacklevel=3)


def _are_columns(data: list[Any], fits: Callable[[Batch], bool]) -> bool:
    """Whether a list holds the parts of the data, and not the data one by one."""
    tensors = len(data) > 1 and all(isinstance(part, _Rows | Tensor) or _is_array(part) for part in data)
    return tensors and fits(tuple(data))


def _as_stream(data: Any, fits: Callable[[Batch], bool]) -> Stream:
    item = next(iter(data), None)
    return Stream(data, collated if _has_parts(item) and not _only_first(item, fits) else None)


def collated(items: Sequence[Any]) -> Batch:
    """Stack data of several parts, each part by itself.

    Arguments:
        items: tuples or dicts of tensors, arrays, images and numbers, all of one structure.

    Returns:
        A tuple or a dict of tensors, whose first dimension counts the data; None where a part is None in all data.

    Raises:
        TypeError: for a part that is none of these.
        ValueError: where the data differ in structure or in shape.

    Example:
        >>> collated([(torch.zeros(2), 7), (torch.ones(2), 8)])
        (tensor([[0., 0.],
                [1., 1.]]), tensor([7, 8]))
    """
    flat = [tree_flatten(item, is_leaf=_is_leaf) for item in items]
    spec = flat[0][1]
    for _, other in flat:
        if other != spec:
            raise ValueError(f"the data differ in structure: {in_words(items[0])} and others; give each the same parts")
    batch = tree_unflatten([_stacked(part) for part in zip(*(leaves for leaves, _ in flat), strict=True)], spec)
    return tuple(batch) if isinstance(batch, list) else batch


def _is_leaf(value: Any) -> bool:
    return not isinstance(value, tuple | list | dict) or (isinstance(value, list) and _is_numbers(value))


def _stacked(parts: Sequence[Any]) -> Tensor | None:
    """Stack one part of all data."""
    missing = sum(part is None for part in parts)
    if missing:
        if missing < len(parts):
            fix = "give batches with and without it ready-made, by a DataLoader, or NaN for what is missing"
            raise ValueError(f"a part of the data is None in {missing} of {len(parts)}: {fix}")
        return None
    if all(isinstance(part, bool | int | float) for part in parts):
        return torch.from_numpy(np.array(parts))  # in double precision, as they are
    rows = [_row(part) for part in parts]
    shapes = sorted({tuple(row.shape) for row in rows})
    if len(shapes) > 1:
        fix = "bring them to one, or give batches of your own by a DataLoader"
        raise ValueError(f"the data differ in shape: {shapes[0]} and {shapes[1]}; {fix}")
    return torch.stack(rows)


def _as_ready(batch: Batch, *, first: bool) -> Batch:
    """Return a batch of an iterable's as programs are called with it: arrays as tensors, a list as a tuple."""
    if isinstance(batch, PackedSequence):
        raise TypeError("a batch must not be a PackedSequence: give the padded tensor and the lengths")
    if isinstance(batch, list | tuple) and (first or len(batch) == 1):
        batch = batch[0]
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    if isinstance(batch, Tensor) or _is_array(batch):
        return as_tensor(batch)
    if not isinstance(batch, list | tuple | dict):
        raise TypeError(f"a batch must be a tensor, a tuple or a dict, not a {type(batch).__name__}")
    whole = _each_part(
        lambda part: _from_numpy(part) if isinstance(part, np.ndarray) and part.dtype.kind in "biuf" else part, batch
    )
    return tuple(whole) if isinstance(whole, list) else whole


def _as_parts(parts: Any) -> Batch:
    if isinstance(parts, dict):
        return {name: _as_parts(part) for name, part in parts.items()}
    if isinstance(parts, tuple) or (isinstance(parts, list) and not _is_numbers(parts)):
        made = map(_as_parts, parts)
        return type(parts)(*made) if hasattr(parts, "_fields") else tuple(made)  # of a named tuple with its names
    if parts is None or isinstance(parts, EightBit | MemoryMapped):
        return parts
    if not (isinstance(parts, Tensor | list) or _is_array(parts)):
        raise TypeError(f"a part of the data must be a tensor or an array, not a {type(parts).__name__}")
    part = parts if isinstance(parts, Tensor) else _from_numpy(_as_array(parts))
    _check_dense(part, least=1)
    return part


def _each_part(function: Callable[[Any], Any], parts: Batch) -> Batch:
    leaves, spec = tree_flatten(parts)
    return tree_unflatten([leaf if leaf is None else function(leaf) for leaf in leaves], spec)


def _part_to(part: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(part, MemoryMapped) and part.kind.kind in "biu" and part.scale == 1:
        return part.to(device, _from_numpy(np.empty(0, part.kind)).dtype)
    return part.to(device, part.dtype if isinstance(part, Tensor) and not part.is_floating_point() else dtype)


def _taken(part: Any, index: Any) -> Tensor:
    taken: Tensor = (
        part.index_select(0, index) if isinstance(part, Tensor) and isinstance(index, Tensor) else part[index]
    )
    return taken


def _shapes(batch: Batch) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape[1:]) for tensor in tensors_of(batch)]


class Data(NamedTuple):
    """A data set in fixed train and test parts; the labels are None where there are none."""

    train: Tensor | EightBit | MemoryMapped
    test: Tensor | EightBit | MemoryMapped
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None


def load(
    source: str | Path,
    root: str | Path | None = None,
    download: bool = False,
    *,
    eight_bit: bool = False,
    scale: float | None = None,
) -> Data:
    """Load a data set by name, or from a file or folder.

    Arguments:
        source: "digits" (1,797 handwritten digits of 8x8 pixels, part of scikit-learn), "mnist", "fashion-mnist",
            "kmnist"; or the path of a ``.npy`` or ``.npz`` file, or of a folder of images. An ``.npz`` file holds
            ``x_train`` and ``x_test`` (and, if known, ``y_train`` and ``y_test``), or one array ``x`` (and ``y``), and
            nothing else of numbers; labels that are text are numbered in alphabetical order. In a folder, the names of
            sub-folders are the labels, the pictures of a TIFF stack are data each, hidden images are left out, as a
            warning says, images of other formats, links to folders, and folders of a train and a test part side by side
            are refused, and so are pictures that do not follow from the file: transparent pixels, CMYK, 32-bit
            integers, floating-point values outside [0, 1]; colours of 16 bits are read in 8. What comes in one part is
            split 4 to 1, always in the same way.
        root: the folder that holds torchvision's data sets; else the environment variable ``PYRO_VAE_DATA``, else
            ``data``.
        download: fetch one of torchvision's data sets where it is missing.
        eight_bit: keep 8-bit values in a quarter of the memory, as `EightBit`, which `fit` and `evaluate` take in place
            of a tensor.
        scale: what all values of a ``.npy`` or ``.npz`` file are divided by, above 0, such as 255 for pixels of 8 bits;
            None leaves them as the file has them, whatever their type.

    Returns:
        Images of shape (N, channels, height, width) with values in [0, 1], or the rows of a file of numpy's.
        A ``.npy`` file that would take more than 1 GiB in 32 bits stays on disk, as `MemoryMapped`.

    Raises:
        ValueError: for an unknown name, and files that are missing, damaged or do not fit together; for a scale beside
            images, whose values are in [0, 1] already.

    Example:
        >>> digits = load("digits")
        >>> digits.train.shape, digits.test.shape, digits.train.max()
        (torch.Size([1437, 1, 8, 8]), torch.Size([360, 1, 8, 8]), tensor(1.))
    """
    name = str(source)
    if are_images(name) and scale is not None:
        raise ValueError(
            f"{name} has values in [0, 1]: leave out the scale, {scale!r}, which is for .npy and .npz files"
        )
    divisor = None if are_images(name) else _as_scale(1.0 if scale is None else scale)
    found = _load(name, root, download)
    return found._replace(**{part: _scaled(getattr(found, part), divisor, eight_bit) for part in ("train", "test")})


def fingerprint(data: Data) -> str:
    """Return in a line how many data there are, of which shape, and a hash of their values: what tells files apart.

    Example:
        >>> fingerprint(Data(torch.zeros(3, 2), torch.ones(1, 2)))
        '3 train and 1 test data of shape (2,), sha256 898b56ec687d2c02'
    """
    counts = f"{len(data.train)} train and {len(data.test)} test data"
    return f"{counts} of shape {_shape(data.train)[1:]}, sha256 {digest_of(data.train, data.test)}"


def digest_of(*parts: Any) -> str:
    """Return 16 digits of a hash of the values of data.

    Of a part of more than 64 MiB, evenly spaced rows are hashed that take as much, the first and the last among them.

    Example:
        >>> digest_of(torch.zeros(3, 2))
        '9d908ecfb6b256de'
    """
    digest = hashlib.sha256()
    for part in [each for whole in parts for _, each in named(whole.parts if isinstance(whole, Columns) else whole)]:
        if part is None:
            continue
        rows = part.values if isinstance(part, EightBit) else part
        size = part.shape[1:].numel() * (1 if isinstance(part, EightBit) else part.dtype.itemsize)
        count = min(len(part), max(2, HASHED // size))
        index = torch.linspace(0, len(part) - 1, count, dtype=torch.float64).round().long()
        for chunk in index.split(max(1, 2**20 // size)):
            digest.update(rows[chunk].cpu().contiguous().view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
    return digest.hexdigest()[:16]


def range_of(data: Data) -> str:
    """Say from where to where the values go, of each part where the parts differ; "" where they are on the disk.

    Example:
        >>> range_of(Data(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]])))
        '0 to 1, '
    """
    if isinstance(data.train, MemoryMapped):
        return ""
    train, test = (_range(part) for part in data[:2])
    return f"{train}, " if train == test else f"{train} (test: {test}), "


def _range(x: Any) -> str:
    values, scale = (x.values, x.scale) if isinstance(x, EightBit) else (x[~x.isnan()], 1.0)
    return f"{values.min().item() / scale:.4g} to {values.max().item() / scale:.4g}" if values.numel() else "all NaN"


def are_images(source: str) -> bool:
    """Whether a data set has pixels, whose largest value is known: a named data set, or a folder of images.

    Example:
        >>> are_images("digits"), are_images("x.npy")
        (True, False)
    """
    return source in NAMES or bool(source and os.path.isdir(source))  # False for whatever is no path


def located(source: str) -> str:
    """Return the absolute path of a file or folder that is there, so that it is the same from every folder.

    Example:
        >>> located("digits"), Path(located(".")).is_absolute()
        ('digits', True)
    """
    return os.path.abspath(source) if source not in NAMES and os.path.exists(source) else source


def _as_scale(scale: Any) -> float:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale <= sys.float_info.max:
        raise ValueError(f"scale must be a number above 0, such as 255 for pixels of 8 bits, not {scale!r}")
    return float(scale)


def _scaled(x: Any, scale: float | None, eight_bit: bool) -> Any:
    """Return one part of the data divided by a scale, None being that of pixels: 255 for 8 bits, else 1."""
    if isinstance(x, MemoryMapped):
        return MemoryMapped(x.path, x.rows, scale or 1.0)
    if x.dtype == torch.uint8:
        stored = EightBit(x, scale or 255.0)
        return stored if eight_bit else stored[:]
    return x if scale in (None, 1.0) else x / scale


def _load(name: str, root: str | Path | None, download: bool) -> Data:
    if name == "digits":
        return _digits()
    if name in TORCHVISION:
        return _torchvision(
            name, Path(os.environ.get("PYRO_VAE_DATA") or "data" if root in (None, "") else root), download
        )
    path = Path(name)
    if are_images(name):
        return _folder(path)
    if path.suffix in (".npy", ".npz"):
        check_regular(path)
        return _numpy(path)
    if os.path.exists(name):
        raise ValueError(
            f"{name} is no file that is read: give a .npy or .npz file (of a table, its numbers without the header, by"
            " numpy.save), or the folder of the images"
        )
    near = difflib.get_close_matches(name.lower(), [*NAMES, *_neighbours(path)], 1)
    hint = f"did you mean {near[0]!r}? Known" if near else "known"
    raise ValueError(f"no data set or file {name!r}; {hint} are {', '.join(NAMES)}, .npy and .npz files, image folders")


def _neighbours(path: Path) -> list[str]:
    """Return the files beside a path that could be data, as the path would name them."""
    try:
        return [str(path.with_name(file.name)) for file in path.parent.iterdir() if file.suffix in (".npy", ".npz")]
    except (OSError, ValueError):
        return []


def threshold(x: Tensor) -> Tensor:
    """Binarize: 1 where a value in [0, 1] is at least one half, 0 below; NaN, a missing entry, stays NaN.

    Raises:
        ValueError: for values outside [0, 1].

    Example:
        >>> threshold(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0., 1., 1.])
    """
    if ((x < 0) | (x > 1)).any():
        raise ValueError(f"the threshold takes {_outside(x)}")
    return torch.where(x.isnan(), x, (x >= 0.5).to(x.dtype))


def _outside(x: Tensor) -> str:
    bounds = f"{x.min().item():.6g} to {x.max().item():.6g}"
    return f"values in [0, 1], but the data hold {bounds}: scale them (8-bit pixels: x / 255, or --scale 255)"


def dynamic(x: Tensor) -> Tensor:
    """Binarize by chance: each value in [0, 1] is the probability of a 1.

    As a ``transform`` of `fit` it is drawn anew for every batch of every epoch, from the run's seed.

    Raises:
        ValueError: for values outside [0, 1].

    Example:
        >>> dynamic(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])

    Reference:
        Salakhutdinov and Murray, 2008, On the Quantitative Analysis of Deep Belief Networks, section 6.
    """
    try:
        return torch.bernoulli(x)
    except RuntimeError as error:
        raise ValueError(f"dynamic binarization takes {_outside(x)}") from error


BINARIZE: dict[str, Callable[[Tensor], Tensor] | None] = {"none": None, "threshold": threshold, "dynamic": dynamic}


def as_tensor(data: Any) -> Tensor:
    """Return data as one tensor in memory.

    Arguments:
        data: a tensor; an array of numpy's, its masked entries becoming NaN, or what becomes one, such as a frame of
            numbers or a sparse matrix; or a ``torch.utils.data.Dataset`` or other iterable of tensors, arrays, images
            or nested lists of numbers; of an item that is a tuple, such as (image, label), the first counts, as a
            warning says.

    Returns:
        A floating-point tensor whose first dimension counts the data. Numbers keep their values, whatever their type;
        images of Pillow's become values in [0, 1].

    Raises:
        TypeError: where the data are none of these, such as a ``DataLoader``, whose data set is wanted.
        ValueError: where there are no data, or items differ in shape.

    Example:
        >>> as_tensor(np.array([[0, 255]], dtype=np.uint8))
        tensor([[  0., 255.]])
    """
    if isinstance(data, _Rows):
        return data[:]
    stored = as_stored(data)
    return stored.to(torch.get_default_dtype()) if stored.dtype == torch.uint8 else stored


def as_stored(data: Any) -> Tensor:
    """Do what `as_tensor` does, but leave 8-bit values in 8 bits."""
    if _is_array(data):
        data = _from_numpy(_as_array(data))
    if not isinstance(data, Tensor):
        data = _stack(_items(data))
    _check_dense(data)
    return _kept(data)


def _check_dense(data: Tensor, least: int = 2) -> None:
    """Refuse a tensor that holds no data: real numbers, dense, with so many dimensions at least."""
    if type(data).__name__ == "MaskedTensor":
        raise TypeError("data must not be a MaskedTensor: give data.to_tensor(torch.nan), NaN for what is missing")
    if data.layout != torch.strided or data.is_meta or data.is_nested:
        kind = "a nested one" if data.is_nested else f"one of {data.layout} on {data.device}"
        fix = "" if data.is_meta or data.is_nested else "; give data.to_dense()"
        raise TypeError(f"data must be a dense tensor that holds its values, not {kind}{fix}")
    if data.dim() < least or not data.numel():
        fix = "; data[:, None] makes each number a datum" if data.dim() == 1 and data.numel() else ""
        shape = f"shape (N, ...) with N at least 1{' and one dimension more' * (least > 1)}, not {_shape(data)}"
        raise ValueError(f"data must have {shape}{fix}")
    if data.is_complex():
        raise TypeError(f"data must hold real numbers, not {data.dtype}")


def _kept(data: Tensor) -> Tensor:
    """Return numbers as floating-point ones of the same values; bytes stay as they are."""
    if data.is_floating_point() or data.is_complex() or data.dtype == torch.uint8:
        return data
    floats, whole = data.to(torch.get_default_dtype()), data.to(torch.int64)
    if (changed := floats.to(torch.int64) != whole).any():
        fix = "give them as floating-point numbers, divided by their size, where rounding does no harm"
        number = data.flatten()[int(changed.flatten().nonzero()[0])].item()
        raise ValueError(f"data hold the whole number {number}, which {floats.dtype} would round: {fix}")
    return floats


def _all(rows: Batch) -> Batch:
    return rows


def shuffled_batches(
    x: Rows, batch_size: int, order: torch.Generator, part: Callable[[Batch], Batch] = _all
) -> Iterator[Batch]:
    """Yield the data once in random order, in batches; the last may be smaller.

    A stream has an order of its own. A batch of all data keeps their order.

    Arguments:
        x: data, whose first dimension counts them.
        batch_size: data per batch, at least 1.
        order: the source of the order, on the CPU, so that it is one order on every device.
        part: takes from the rows of a batch those that are wanted, such as `pyro_vae.distributed.Ranks.part`.

    Yields:
        Batches of x, or what is wanted of them.

    Example:
        >>> batches = shuffled_batches(torch.arange(5), 2, torch.Generator().manual_seed(0))
        >>> sorted(torch.cat(list(batches)).tolist())
        [0, 1, 2, 3, 4]
    """
    if isinstance(x, Stream):
        yield from map(part, x.epoch(batch_size, order))
        return
    permutation = torch.randperm(len(x), generator=order)
    if batch_size >= len(x):
        permutation = permutation.sort().values  # parameters of a program for each datum stay with it
    if not isinstance(x, MemoryMapped):
        permutation = permutation.to(x.device)  # once, as each copy waits for the device
    for index in map(part, permutation.split(batch_size)):
        yield _taken(x, index)  # of a tensor by index_select, which is twice as fast as x[index]


def _shape(data: Any) -> tuple[int, ...]:
    return tuple(data.shape)


def _items(data: Any) -> Iterable[Any]:
    """Iterate over a data set, also over one that has only a length and an index."""
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__"):
        return (data[index] for index in range(len(data)))
    _check_no_loader(data)
    if isinstance(data, tuple | dict):
        raise TypeError(
            f"data must be one tensor, but this is a {type(data).__name__} of {len(data)}: give one of its parts, or"
            " join them in one tensor, which the programs take apart; of a tuple of data make a list"
        )
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise TypeError(f"data must be a tensor, an array or a data set, not {type(data).__name__}")
    return data if _length(data) is None else _as_many_as_it_says(data)


def _length(data: Any) -> int | None:
    """Return the length of data, or None where they have none, as a chain of streams finds when it is asked."""
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:
        return None


def _check_no_loader(data: Any) -> None:
    if isinstance(data, DataLoader | _BaseDataLoaderIter):  # whose batches would be taken for data
        raise TypeError("data must not be a DataLoader: give its data set, loader.dataset, and batch_size")


def _as_many_as_it_says(data: Any) -> list[Any]:
    items = list(islice(data, len(data) + 1))  # and no more, as it might never end
    if len(items) != len(data):
        count = f"{len(items)} data" if len(items) < len(data) else "more"
        raise ValueError(f"the data set has a length of {len(data)}, but gives {count}: correct its __len__")
    return items


def _stack(items: Iterable[Any]) -> Tensor:
    rows, parts, images = [], 1, 0
    for item in items:
        datum = _datum(item)
        if isinstance(datum, tuple | dict):
            fix = "give one tensor or array for each, in which the parts are joined"
            raise TypeError(f"a datum is a {type(datum).__name__} of {len(datum)}: {fix}")
        parts = parts if datum is item else max(parts, len(item))
        images += _is_image(datum)
        rows.append(_kept(_row(datum)))
    if 0 < images < len(rows):
        reason = f"{images} of {len(rows)} data are images, whose values go from 0 to 1, and the others keep theirs"
        raise TypeError(f"{reason}: give all as images, or all as arrays")
    if parts > 1:
        _say_first(parts)
    shapes = sorted({tuple(row.shape) for row in rows})
    if len(shapes) > 1:
        raise ValueError(f"the data differ in shape: {shapes[0]} and {shapes[1]}; bring them to one")
    return torch.stack(rows) if rows else torch.empty(0, 0)


def _datum(item: Any) -> Any:
    """Return what counts of an item: the first of a pair such as (image, label), but all of a list of numbers."""
    if not isinstance(item, tuple | list) or not item or (isinstance(item, list) and _is_numbers(item)):
        return item
    shapes = {_size(each) for each in item} if isinstance(item, list) else set()
    if len(item) > 1 and len(shapes) == 1 and len(shapes.pop()):
        reason = f"an item is a list of {len(item)} arrays of one shape"
        raise TypeError(f"{reason}: stack them into one, or give a tuple (datum, label), of which the first counts")
    if item[0] is None or isinstance(item[0], str) or (_is_numbers(item[0]) and not isinstance(item[0], list)):
        fix = "of rows of a table make an array, np.array(data, dtype=float)"
        raise TypeError(f"a datum is a {type(item).__name__} that begins with {item[0]!r}, not with an array: {fix}")
    return item[0]


def _size(item: Any) -> tuple[int, ...]:
    """Return the shape of an array, the size of an image, or the length of a list of numbers."""
    return (len(item),) if isinstance(item, tuple | list) else tuple(getattr(item, "shape", getattr(item, "size", ())))


def _is_numbers(item: Any) -> bool:
    return (
        all(map(_is_numbers, item)) if isinstance(item, list) else isinstance(item, int | float | np.number | np.bool_)
    )


def _is_array(data: Any) -> bool:
    """Whether data are an array, or a frame, a sparse matrix or another library's array, which can become one."""
    if isinstance(data, Tensor) or _is_image(data):  # which is no array of data
        return False
    return isinstance(data, np.ndarray | memoryview) or hasattr(data, "toarray") or hasattr(data, "__array__")


def _is_image(item: Any) -> bool:
    return hasattr(item, "getbands")  # of Pillow's images alone


def _as_array(data: Any) -> np.ndarray:
    array = np.asanyarray(data.toarray() if hasattr(data, "toarray") else data)
    if array.dtype == object and hasattr(data, "columns"):
        columns = {str(name): np.asarray(data[name]) for name in data.columns}
        if len(columns) < len(data.columns):
            raise TypeError(f"columns must differ in their names, but are {', '.join(map(str, data.columns))}")
        if names := [name for name, column in columns.items() if column.dtype.kind not in "biuf"]:
            fix = "drop them, or make them numbers, with NaN for what is missing"
            raise TypeError(f"data must hold real numbers, but the columns {', '.join(names)} do not: {fix}")
        return np.column_stack(list(columns.values()))
    return array


def _row(item: Any) -> Tensor:
    if isinstance(item, Tensor):
        return item
    if _is_image(item):
        if getattr(item, "n_frames", 1) > 1:
            raise ValueError(f"an image holds {item.n_frames} pictures: give each frame as frame.copy()")
        pixels = _pixels(item)
        return pixels / 255 if pixels.dtype == torch.uint8 else pixels
    try:
        return _from_numpy(_as_array(item))
    except ValueError as error:
        if not isinstance(item, list):
            raise
        raise ValueError(
            f"nested lists must be of equal lengths, and pairs (datum, label) be tuples: {error}"
        ) from error


def _from_numpy(array: np.ndarray) -> Tensor:
    """Return a copy of an array of numbers, whatever its layout, byte order and width; what is masked becomes NaN."""
    if array.dtype.kind not in "biuf":
        fix = "; data.astype(float) makes numbers of them" if array.dtype.kind in "OSU" else ""
        fix = "; numpy.lib.recfunctions.structured_to_unstructured joins its columns" if array.dtype.names else fix
        raise TypeError(f"data must hold real numbers, not {array.dtype}{fix}")
    if isinstance(array, np.ma.MaskedArray) and np.ma.getmaskarray(array).any():
        known = _kept(_from_numpy(np.ma.filled(array, 0)))
        floats = known if known.is_floating_point() else known.to(torch.get_default_dtype())
        return floats.masked_fill(torch.from_numpy(np.ma.getmaskarray(array).copy()), torch.nan)
    if array.dtype.kind == "u" and array.size and array.max() >= 2**63:
        raise ValueError(f"data hold {array.max()}, beyond whole numbers of 64 bits with a sign: scale them")
    wide = {"u2": "i8", "u4": "i8", "u8": "i8", "f16": "f8"}
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    return torch.from_numpy(np.array(array, dtype=wide.get(kind, kind.replace("b1", "?")), order="C"))


def _split(x: Tensor, y: Tensor | None = None, count: int | None = None) -> Data:
    """Cut a test part off, of one fifth unless told otherwise, always in the same way."""
    if len(x) < 2:
        raise ValueError(f"at least 2 data are needed for a train and a test part, not {len(x)}")
    parts = _parts(len(x), count)
    return Data(*[x[part] for part in parts], *[None if y is None else y[part] for part in parts])


def _parts(size: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    count = count or max(1, round(size / 5))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    return order[count:], order[:count]


def _digits() -> Data:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.get_default_dtype())[:, None]
    return _split(x, torch.tensor(digits.target), 360)  # round(1797 / 5) = 359 would do as well; 360 is customary


def _torchvision(name: str, root: Path, download: bool) -> Data:
    base = getattr(import_torchvision_datasets(), TORCHVISION[name])
    family = type(base.__name__, (base,), {"_check_legacy_exist": lambda _: False})  # whose files would be unpickled
    try:
        parts = [family(root=str(root), train=train, download=download) for train in (True, False)]
        images = [part.data[:, None] for part in parts]
        if any(len(part.data) != len(part.targets) for part in parts):
            raise ValueError("it has not as many labels as images")
    except Exception as error:
        if "not found" in str(error):
            hint = "name its folder (--data-root, or the variable PYRO_VAE_DATA), or fetch it (--download)"
            raise ValueError(f"no {name} under {root}: {hint}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = "check the network" if download else "delete it and fetch it again (--download)"
        raise ValueError(f"{name} under {root} cannot be had: {reason}; {hint}") from error
    return Data(images[0], images[1], parts[0].targets, parts[1].targets)


def import_torchvision_datasets() -> Any:
    """Import ``torchvision.datasets``, also where torchvision was built for CUDA and torch was not.

    Such a pair fails on import because torchvision gives meta kernels to two compiled operators that its library,
    which could not be loaded, should have declared. The data sets need neither, so they are declared here.

    Returns:
        The module.
    """
    try:
        import torchvision.datasets
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for operator in ("nms", "qnms"):
            _TORCHVISION_LIBRARY.append(torch.library.Library("torchvision", "FRAGMENT"))
            _TORCHVISION_LIBRARY[-1].define(operator + schema)
        import torchvision.datasets
    return torchvision.datasets


_TORCHVISION_LIBRARY: list[torch.library.Library] = []  # a declaration lasts as long as its library object


def _large(path: Path) -> MemoryMapped | None:
    """Return the data of a .npy file that is too large for memory, or None."""
    try:
        mapped = MemoryMapped(path)
    except (TypeError, ValueError):
        return None
    return mapped if 4 * mapped.shape.numel() > IN_MEMORY else None


def _numpy(path: Path) -> Data:
    if path.suffix == ".npy" and (large := _large(path)):
        train, test = _parts(len(large))
        return Data(MemoryMapped(path, train), MemoryMapped(path, test))
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            arrays = _zipped(file) if zipped else {"x": _array(file)}
    except FileNotFoundError as error:
        near = difflib.get_close_matches(str(path), _neighbours(path), 1)
        fix = f"did you mean {near[0]!r}?" if near else "correct its path"
        raise ValueError(f"no file {path}; {fix}") from error
    except Exception as error:  # numpy, zipfile and zlib have a dozen ways to fail on a damaged file
        reason = "" if "pickle" in str(error) else f": {error}"  # numpy would advise to unpickle what it cannot read
        raise ValueError(f"{path} is damaged, or holds Python objects, which are not read{reason}") from error
    arrays = _numbered(_without_words(path, arrays))
    tensors = {key: _tensor(array, f"{key} in {path}") for key, array in arrays.items()}
    if len(tensors) == 1:
        tensors = {"x": next(iter(tensors.values()))}
    parts = ("_train", "_test") if {"x_train", "x_test"} <= set(tensors) else ("",)
    if not {f"x{part}" for part in parts} <= set(tensors):
        raise ValueError(
            f"{path} needs arrays x_train and x_test, or x, but holds {', '.join(sorted(tensors)) or 'none'}"
        )
    if others := sorted(set(tensors) - {f"{name}{part}" for name in "xy" for part in parts}):
        wanted = ", ".join(f"{name}{part}" for name in "xy" for part in parts)
        raise ValueError(f"{path} holds {', '.join(others)}, too, which would be left out: save {wanted} alone")
    data = [as_stored(tensors[f"x{part}"]) for part in parts]
    labels = [tensors.get(f"y{part}") for part in parts]
    labels = [y if y is None or y.shape[1:] != (1,) else y[:, 0] for y in labels]  # a column has one per datum, too
    for part, x, y in zip(parts, data, labels, strict=True):
        if y is not None and y.dim() != 1:
            raise ValueError(f"y{part} in {path} must hold one label per datum, not shape {_shape(y)}")
        if y is not None and len(x) != len(y):
            raise ValueError(f"{path} holds {len(x)} x{part} and {len(y)} y{part}; they must be as many")
    if len(parts) == 1:
        return _split(data[0], labels[0])
    if data[0].shape[1:] != data[1].shape[1:]:
        raise ValueError(f"x_train and x_test in {path} differ in shape: {_shape(data[0])} and {_shape(data[1])}")
    _check_one_scale(path, tensors["x_train"], tensors["x_test"])
    return Data(*data, *labels)


def _without_words(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leave out names of features and the like, which are neither data nor labels, and say so."""
    words = sorted(key for key, array in arrays.items() if array.dtype.kind in "OSU" and key not in ARRAYS)
    numbers = {key: array for key, array in arrays.items() if key not in words}
    if words and numbers:
        warnings.warn(f"{path}: {', '.join(words)} hold no numbers, and are left out", UserWarning, stacklevel=2)
    return numbers or arrays


def _numbered(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Number labels that are text in alphabetical order, those of both parts alike."""
    labels = {key: array for key, array in arrays.items() if key in ARRAYS and key[0] == "y"}
    if not labels or any(array.dtype.kind not in "SU" for array in labels.values()):
        return arrays
    names = np.unique(np.concatenate([array.ravel() for array in labels.values()]))
    return arrays | {key: np.searchsorted(names, array) for key, array in labels.items()}


def _zipped(file: IO[bytes]) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file by name in lower case, and refuse what else it holds."""
    with zipfile.ZipFile(file) as archive:
        names = [name.lower() for name in archive.namelist()]
        if strange := [name for name in names if not name.endswith(".npy") or names.count(name) > 1]:
            raise ValueError(f"{strange[0]} in it is {'there twice' if names.count(strange[0]) > 1 else 'no array'}")
        found = {}
        for name, entry in zip(names, archive.infolist(), strict=True):
            with archive.open(entry) as member:
                found[name.removesuffix(".npy")] = _array(member)
        return found


def _array(file: IO[bytes]) -> np.ndarray:
    try:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        return np.empty(0, object)  # whose objects stay where they are
    if file.read(1):
        raise ValueError(MORE)
    return array


def _check_one_scale(path: Path, train: Tensor, test: Tensor) -> None:
    """Refuse parts of which one has been brought to [0, 1] and the other still holds whole numbers."""
    largest = [part[~part.isnan()].max().item() if not part.isnan().all() else 1 for part in (train, test)]
    if train.is_floating_point() != test.is_floating_point() and min(largest) <= 1 < max(largest):
        found = [
            f"{name} of {part.dtype} up to {most:g}"
            for name, part, most in zip(("x_train", "x_test"), (train, test), largest, strict=True)
        ]
        raise ValueError(f"{path} holds {' and '.join(found)}: bring both to one scale")


def _tensor(array: np.ndarray, name: str) -> Tensor:
    try:
        tensor = _from_numpy(array)
    except TypeError as error:
        kind = "Python objects, which are not read" if array.dtype == object else array.dtype
        raise ValueError(f"{name} must hold numbers, not {kind}") from error
    return tensor.float() if tensor.is_floating_point() else tensor


def _images_in(path: Path) -> list[Path]:
    """Find the images in a folder; one that holds much else, such as a whole disk, is refused before it is searched."""
    images: list[Path] = []
    hidden: list[str] = []
    others = 0
    if path.resolve() == Path(path.resolve().anchor):
        raise ValueError(f"{path} is the whole disk: name the folder of the images")
    for folder, folders, names in os.walk(path, onerror=_refuse_unread):
        pictures = {name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES}
        hidden += [os.path.join(folder, name) for name in {*folders, *pictures} if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        found = [Path(folder, name) for name in pictures if not name.startswith(".")]
        _check_none_left_out(folder, folders, {name for name in names if not name.startswith(".")} - pictures)
        images += found
        others += len(names) - len(found)
        if others > MOST_OTHERS:
            raise ValueError(
                f"{path} holds over {MOST_OTHERS:,} files that are no images: name the folder of the images"
            )
    if hidden:
        text = f"{len(hidden)} hidden images or folders are left out, such as {min(hidden)}"
        warnings.warn(text if len(hidden) > 1 else f"{hidden[0]} is hidden, and left out", UserWarning, stacklevel=2)
    return sorted(images)


def _refuse_unread(error: OSError) -> NoReturn:
    raise ValueError(f"{error.filename} cannot be searched for images: {error.strerror}")


def _check_none_left_out(folder: str, folders: Iterable[str], others: Iterable[str]) -> None:
    """Refuse a folder whose images would not all be read: some behind a link, or in another format."""
    for name in sorted(folders):
        if os.path.islink(os.path.join(folder, name)):
            raise ValueError(f"{os.path.join(folder, name)} is a link to a folder, and is not followed: copy it there")
    for name in sorted(others):
        if (mimetypes.guess_type(name)[0] or "").startswith("image/"):
            fix = "save it as PNG, or take it out of the folder"
            raise ValueError(f"{os.path.join(folder, name)} is an image of a format that is not read: {fix}")


@contextmanager
def open_image(path: Path) -> Iterator[Any]:
    """Open an image of one of `FORMATS`, whatever its name says, and of a size that Pillow thinks safe.

    Raises:
        ValueError: for what is no ordinary file.
        OSError, PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError: as Pillow.
    """
    from PIL import Image

    check_regular(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # A file, not its path: Pillow maps an uncompressed TIFF into memory before it has turned it.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            yield image


def _folder(path: Path) -> Data:
    files, rows, parents = _images_in(path), [], []
    _check_one_part(path, files)
    for file in files:
        try:
            with open_image(file) as image:
                frames = _frames(image)
        except Exception as error:  # Pillow, too, has many ways to fail on a damaged file
            raise ValueError(f"{file} cannot be read as an image: {error}") from error
        rows += frames
        parents += [file.parent] * len(frames)
        for frame in frames:
            if frame.shape != rows[0].shape:
                sizes = f"{_shape(rows[0])} and {_shape(frame)}"
                raise ValueError(
                    f"{files[0]} and {file} differ in (channels, height, width): {sizes}; bring them to one"
                )
    if not rows:
        raise ValueError(f"the folder {path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    folders = sorted(set(parents))
    labels = torch.tensor([folders.index(parent) for parent in parents]) if len(folders) > 1 else None
    if any(row.dtype != torch.uint8 for row in rows):
        rows = [row / 255 if row.dtype == torch.uint8 else row for row in rows]
    return _split(torch.stack(rows), labels)


def _check_one_part(path: Path, files: list[Path]) -> None:
    """Refuse a folder whose parts would be mixed, and split anew."""
    folders = {file.relative_to(path).parts[0] for file in files}
    others = [name for name in sorted(folders) if name.lower() in ("test", "val", "valid", "validation")]
    if others and "train" in map(str.lower, folders):
        raise ValueError(
            f"{path} holds folders named train and {others[0]}, whose images would be mixed: name the folder of one"
            " part, or save both as x_train and x_test of a .npz file"
        )


def _frames(image: Any) -> list[Tensor]:
    """Return the pictures of an image file: those of a TIFF stack are data each."""
    from PIL import ImageSequence

    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "TIFF":
        raise ValueError(f"it holds {count} pictures: save each of them in a file of its own")
    return [_pixels(frame) for frame in ImageSequence.Iterator(image)] if count > 1 else [_pixels(image)]


def _pixels(image: Any) -> Tensor:
    """Return an image of Pillow's as (channels, height, width), upright: in 8 bits, or greys of more bits in [0, 1].

    Raises:
        ValueError: where no value in [0, 1] follows from the file.
    """
    from PIL import ImageOps

    _check_colours(image)
    deep = image.mode.startswith("I")
    upright = ImageOps.exif_transpose(image)
    if deep:
        return _from_numpy(np.asarray(upright))[None].to(torch.get_default_dtype()) / 65535
    if upright.mode == "F":
        return _unit(_from_numpy(np.asarray(upright))[None])
    grey = upright.mode in ("1", "L", "LA")
    pixels = _from_numpy(np.asarray(upright.convert("L" if grey else "RGB")))
    return pixels[None] if grey else pixels.permute(2, 0, 1)  # Pillow has the channels last


def _check_colours(image: Any) -> None:
    mode, tags = image.mode, getattr(image, "tag_v2", {})
    if mode == "L" and 2 in tags.get(339, ()):  # the sample format; Pillow takes -1 for 255
        raise ValueError("its whole numbers have a sign: save it in 8 or 16 bits without one, 0 for black")
    if mode == "I" and image.format != "PNG":  # Pillow has had PNG files of 16 bits as those of 32
        raise ValueError("it holds 32-bit integers, whose largest value is not known: save it in 8 or 16 bits")
    if mode not in COLOURS and not mode.startswith("I"):
        raise ValueError(f"its colours are {mode}: convert it to RGB")
    if mode == "F" or mode.startswith("I"):
        if tags.get(262) == 0 or (mode != "F" and tags.get(258, (16,)) != (16,)):  # which Pillow leaves as they are
            raise ValueError("its greys are inverted, or not of 16 bits: save it as greys of 8 or 16 bits, 0 for black")
        transparent = "transparency" in image.info
    else:
        has_alpha = mode[-1:] in "Aa" or "transparency" in image.info
        transparent = has_alpha and image.convert("RGBA").getchannel("A").getextrema()[0] < 255
    if transparent:
        raise ValueError("it has transparent pixels, whose colours nobody sees: put it on a background")


def _unit(values: Tensor) -> Tensor:
    """Return floating-point greys, which must lie in [0, 1], as no file says what their largest value is."""
    known = values[~values.isnan()]
    if not known.numel():
        raise ValueError("all its values are NaN")
    if known.min() < 0 or known.max() > 1:
        reason = f"its values go from {known.min().item():.6g} to {known.max().item():.6g}, not from 0 to 1"
        raise ValueError(f"{reason}: scale them, or save the arrays as .npy and give --scale")
    return values
