"""Data of any kind as rows, and rows in batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from pyro_vae.data.arrays import is_array, is_image, length_of
from pyro_vae.data.batch import Batch, Count, count_of, in_words
from pyro_vae.data.conversion import as_stored, collated, has_parts, item_at, only_first
from pyro_vae.data.parts import Data
from pyro_vae.data.rows import Columns, EightBit, LazyRows, MemoryMapped, rows_at
from pyro_vae.data.streams import Ready, Stream

Rows = Tensor | EightBit | MemoryMapped | Stream | Columns | Ready


def count_in(x: Rows) -> Count:
    """Return the function that counts the data of a batch of these rows."""
    return count_of if isinstance(x, Tensor) else x.count


def total_of(x: Rows) -> int:
    """Return the number of all data; a pass over a loader may take only some of them."""
    return x.total if isinstance(x, Ready) else len(x)


def as_rows(data: Any, fits: Callable[[Batch], bool], count: Count | None = None) -> Rows:
    """Return data as rows that can be taken in batches which the programs can be called with.

    Arguments:
        data: a tensor, or what `as_tensor` turns into one; a tuple or a dict of these; a data set of either; a
            ``DataLoader``, or another iterable of ready batches.
        fits: returns whether the programs can be called with a batch.
        count: returns the number of data of a ready batch.

    Returns:
        The rows. For a data set or a loader of tuples, only the first parts if these fit and all parts do not.

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
    data = dict(data) if isinstance(data, Mapping) and not is_array(data) else data
    if isinstance(data, Data):
        raise TypeError("the data have a train and a test part: give data.train, and validation=data.test")
    if (isinstance(data, dict | tuple) and not is_array(data)) or (isinstance(data, list) and _are_columns(data, fits)):
        return Columns(data)
    if isinstance(data, IterableDataset):
        return _as_stream(data, fits)
    if _is_data_set(data) and has_parts(first := item_at(data, 0)) and not only_first(first, fits):
        if type(data) is TensorDataset:
            return Columns(data.tensors)
        return Columns(collated([item_at(data, index) for index in range(len(data))]))
    if isinstance(data, Rows) and not isinstance(data, Tensor):
        if len(data.shape) < 2 and not isinstance(data, Columns):
            raise ValueError(f"data must have shape (N, ...) with one dimension more, not {tuple(data.shape)}")
        return data
    x = as_stored(data)
    return EightBit(x, scale=1) if x.dtype == torch.uint8 else x


def _is_ready(data: Any) -> bool:
    """Whether data are batches already: those of a loader, or of another iterable without an index."""
    if isinstance(data, DataLoader | _BaseDataLoaderIter) or (isinstance(data, list) and _are_batches(data)):
        return True
    if is_array(data):  # some of scipy's sparse matrices cannot be indexed, and one is a dict
        return False
    kinds = Dataset | str | bytes | dict | set | frozenset | Tensor | Ready
    return isinstance(data, Iterable) and not isinstance(data, kinds) and not hasattr(data, "__getitem__")


def _are_batches(data: list[Any]) -> bool:
    """Whether a list holds batches of several parts, which differ in size or structure, rather than single data."""
    if not (data and all(map(has_parts, data)) and all(map(_may_be_batch, data))):
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
    """Whether data have a length and an index, as a ``Dataset``, but are not an array."""
    if isinstance(data, LazyRows | Tensor) or is_array(data) or is_image(data):
        return False
    return hasattr(data, "__getitem__") and bool(length_of(data))


def _are_columns(data: list[Any], fits: Callable[[Batch], bool]) -> bool:
    """Whether a list holds the parts of the data, rather than single data."""
    tensors = len(data) > 1 and all(isinstance(part, LazyRows | Tensor) or is_array(part) for part in data)
    return tensors and fits(tuple(data))


def _as_stream(data: Any, fits: Callable[[Batch], bool]) -> Stream:
    item = next(iter(data), None)
    return Stream(data, collated if has_parts(item) and not only_first(item, fits) else None)


def _all(rows: Batch) -> Batch:
    return rows


def shuffled_batches(
    x: Rows, batch_size: int, order: torch.Generator, part: Callable[[Batch], Batch] = _all
) -> Iterator[Batch]:
    """Yield the data once in random order, in batches; the last may be smaller.

    A stream keeps its own order. If all data are one batch, they keep their order.

    Arguments:
        x: data, whose first dimension counts them.
        batch_size: data per batch, at least 1.
        order: random generator of the order, on the CPU, so that the order is the same on every device.
        part: selects some rows of a batch, such as `pyro_vae.runtime.distributed.Ranks.part`.

    Yields:
        Batches of x, or the selected parts of them.

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
        permutation = permutation.sort().values  # so that parameters for each datum stay with their datum
    if not isinstance(x, MemoryMapped):
        permutation = permutation.to(x.device)  # all at once, as each copy waits for the device
    for index in map(part, permutation.split(batch_size)):
        yield rows_at(x, index)  # by index_select for a tensor, which is twice as fast as x[index]
