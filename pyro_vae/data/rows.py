"""Data that are made into batches one at a time: stored in 8 bits, in a file, or in several parts."""

import copy
import os
from collections.abc import Callable, Iterator
from io import FileIO
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import Dataset

from pyro_vae.data.arrays import as_array, as_floats, as_scale, check_dense, from_numpy, is_array, is_numbers
from pyro_vae.data.batch import Batch, count_of, in_words, map_tensors, named

PAGE = 2**12  # bytes: the system reads at least so many from a file
MORE = "more data follow its array: save one array per file, or several arrays as .npz"


class LazyRows(Dataset[Tensor]):
    """Rows that are made or read when they are indexed, with the interface of a tensor that `fit` needs."""

    shape: torch.Size
    device = torch.device("cpu")
    as_given = False  # whether batches are neither moved to a device nor cast

    def __init__(self) -> None:
        self.dtype = torch.get_default_dtype()

    def __len__(self) -> int:
        return self.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        """Return the same rows, which will be moved to a device and cast to a type as they are read."""
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
        """Move a batch to the device and cast it; in a batch of several parts, integers keep their type."""
        if self.as_given:
            return rows
        if isinstance(rows, Tensor):
            return rows.to(self.device, self.dtype)
        return map_tensors(
            lambda part: part.to(self.device, self.dtype if part.is_floating_point() else part.dtype), rows
        )


class EightBit(LazyRows):
    """Data in memory in 8 bits, a quarter of their size in 32 bits; each batch is divided by a scale when it is made.

    Arguments:
        values: a tensor of type uint8, shape (N, ...).
        scale: the values are divided by this, above 0; 255 turns pixels of 8 bits into values in [0, 1].

    Raises:
        TypeError, ValueError: for other values or scales.

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
        check_dense(values[:1])  # which refuses what is no data
        self.values, self.shape, self.device = values, values.shape, values.device
        self.scale = as_scale(scale)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Self:
        """Return the same data on a device, still in 8 bits; batches will be cast to a type."""
        moved = super().to(device, dtype)
        moved.values = self.values.to(device)
        return moved

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        rows = self.values.index_select(0, index) if isinstance(index, Tensor) else self.values[index]
        return self._moved(rows / self.scale)


class MemoryMapped(LazyRows):
    """Data in a ``.npy`` file of any size; only one batch at a time is in memory.

    `fit` and `evaluate` take it like a tensor. Besides the batch they hold 8 bytes for each datum, its index in the
    shuffled order. An array in Fortran order is read more slowly, because its rows are scattered in the file.

    Arguments:
        path: the file, with an array of shape (N, ...), N at least 1. Shape (N,) is only for a part beside others, such
            as labels.
        rows: the rows of the array to use, in this order: integers from 0 to N - 1, shape (n,); None for all.
        scale: the values are divided by this, above 0.

    Raises:
        TypeError, ValueError: for a file that is damaged, or whose array does not hold real numbers of such a shape.
        OSError: when rows are read, if the file is missing or has changed since.

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
        self.path, self.scale = Path(path), as_scale(scale)
        try:
            self.stamp = _stamp(os.stat(self.path))
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)  # for its header
            whole, self.kind, self.start = array.shape, array.dtype, array.offset
            if self.stamp[0] > array.offset + array.nbytes:
                raise ValueError(MORE)
        except Exception as error:  # numpy has a dozen ways to fail on a damaged file
            raise ValueError(f"{self.path} cannot be read as a .npy file: {error}") from error
        few = from_numpy(np.zeros([min(1, size) for size in whole], self.kind))
        check_dense(few, least=1)
        self.dtype = torch.promote_types(as_floats(few).dtype, self.dtype)  # as in memory: 64 bits keep their digits
        self.strides = (array.nbytes // len(array),) if array.flags.c_contiguous else array.strides
        self.rows = torch.arange(whole[0]) if rows is None else _as_rows(rows, whole[0])
        self.shape = torch.Size((len(self.rows), *whole[1:]))

    def __getitem__(self, index: Tensor | slice | int) -> Tensor:
        if isinstance(index, Integral):  # of a torch.utils.data.Subset
            return self[torch.tensor([index])][0]
        rows = self.rows[index.cpu() if isinstance(index, Tensor) else index]
        if not len(rows):  # a batch may have no data left for a rank
            return torch.empty(0, *self.shape[1:], device=self.device, dtype=self.dtype)
        values = as_floats(from_numpy(self._read(rows.numpy())))
        wide = torch.promote_types(values.dtype, torch.get_default_dtype())  # 16 bits would lose digits of the quotient
        return self._moved(values.to(wide) / self.scale)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Read rows by ordinary reads: with a memory map, a file that becomes shorter would kill the process."""
        event = self.shape[1:]
        starts = np.array(self.start)  # of row 0; in Fortran order of each of its entries, which lie apart
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
    """Return spans of rows to read, as (first, number), and the place of each row in what is read.

    Rows that are at most ``apart`` rows apart are read together.
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
    """Return indices of rows in 64 bits, or refuse those that the file does not have."""
    numbers = torch.as_tensor(rows)
    whole = not (numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool)
    places = numbers.long() if whole else numbers  # in fewer bits the comparison with count could overflow
    if not (whole and places.dim() == 1 and places.numel() and 0 <= places.min() <= places.max() < count):
        raise ValueError(f"rows must be whole numbers from 0 to {count - 1}, shape (n,), not {numbers.tolist()!s:.60}")
    return places


def _stamp(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def _read_at(file: FileIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


class Columns(LazyRows):
    """Data of several parts, such as images and their labels, in memory or in files.

    Arguments:
        parts: a tuple or a dict of tensors, arrays, `EightBit` or `MemoryMapped` data, all with the same first
            dimension, which counts the data. It may hold further tuples and dicts, and None for a missing part.
            Integers and booleans keep their types.

    Raises:
        TypeError: for a part that does not hold numbers.
        ValueError: if the parts differ in length, or there are no data.

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
        """Return the same data on a device, with the floating-point parts cast to a type."""
        moved = super().to(device, dtype)
        moved.parts = map_parts(lambda part: _part_to(part, device, moved.dtype), self.parts)
        return moved

    def __getitem__(self, index: Tensor | slice | int) -> Batch:
        return map_parts(lambda part: rows_at(part, index), self.parts)


def _as_parts(parts: Any) -> Batch:
    if isinstance(parts, dict) and not is_array(parts):
        return {name: _as_parts(part) for name, part in parts.items()}
    if isinstance(parts, tuple) or (isinstance(parts, list) and not is_numbers(parts)):
        made = map(_as_parts, parts)
        return type(parts)(*made) if hasattr(parts, "_fields") else tuple(made)  # a named tuple keeps its names
    if parts is None or isinstance(parts, EightBit | MemoryMapped):
        return parts
    if not (isinstance(parts, Tensor | list) or is_array(parts)):
        raise TypeError(f"a part of the data must be a tensor or an array, not a {type(parts).__name__}")
    part = parts if isinstance(parts, Tensor) else from_numpy(as_array(parts))
    check_dense(part, least=1)
    return part


def map_parts(function: Callable[[Any], Any], parts: Batch) -> Batch:
    """Apply a function to each part that is not None."""
    leaves, spec = tree_flatten(parts)
    return tree_unflatten([leaf if leaf is None else function(leaf) for leaf in leaves], spec)


def _part_to(part: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(part, MemoryMapped) and part.kind.kind in "biu" and part.scale == 1:
        return part.to(device, from_numpy(np.empty(0, part.kind)).dtype)
    return part.to(device, part.dtype if isinstance(part, Tensor) and not part.is_floating_point() else dtype)


def rows_at(part: Any, index: Any) -> Tensor:
    """Return the rows of one part at an index."""
    taken: Tensor = (
        part.index_select(0, index) if isinstance(part, Tensor) and isinstance(index, Tensor) else part[index]
    )
    return taken
