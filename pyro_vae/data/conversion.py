"""Data sets and lists as tensors, and data of several parts as batches."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from pyro_vae.data.arrays import (
    as_array,
    as_floats,
    check_dense,
    check_one_order,
    from_numpy,
    is_array,
    is_image,
    is_numbers,
    length_of,
)
from pyro_vae.data.batch import Batch, in_words
from pyro_vae.data.images import pixels_of
from pyro_vae.data.rows import LazyRows, map_parts


def has_parts(item: Any) -> bool:
    """Whether an item is a dict, or a tuple or list of several parts that are not all numbers."""
    if isinstance(item, list):
        return len(item) > 1 and not is_numbers(item)
    return isinstance(item, dict) or (isinstance(item, tuple) and len(item) > 1)


def only_first(item: Any, fits: Callable[[Batch], bool]) -> bool:
    """Whether programs take the first part of a datum or a batch, and not all of them."""
    if isinstance(item, dict | PackedSequence) or not has_parts(item):
        return False
    return not fits(tuple(item)) and fits((item[0],))


def say_first(count: int) -> None:
    """Warn that only the first part of each datum is used."""
    text = f"only the first of the {count} parts of each datum is used: the rest, such as labels, is left out"
    warnings.warn(text, UserWarning, stacklevel=3)


def collated(items: Sequence[Any]) -> Batch:
    """Stack data of several parts, each part by itself.

    Arguments:
        items: tuples or dicts of tensors, arrays, images and numbers, all of one structure.

    Returns:
        A tuple or a dict of tensors, whose first dimension counts the data; a part that is None in all data stays None.

    Raises:
        TypeError: for a part of any other type.
        ValueError: if the data differ in structure or in shape.

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
    return not isinstance(value, tuple | list | dict) or (isinstance(value, list) and is_numbers(value))


def _stacked(parts: Sequence[Any]) -> Tensor | None:
    """Stack one part of all data."""
    missing = sum(part is None for part in parts)
    if missing:
        if missing < len(parts):
            fix = "use NaN for what is missing, or a DataLoader whose batches either have this part or have None for it"
            raise ValueError(f"a part of the data is None in {missing} of {len(parts)}: {fix}")
        return None
    if all(isinstance(part, bool | int | float) for part in parts):
        return from_numpy(np.array(parts))  # in double precision, as Python's own numbers
    for part in parts:
        check_one_order(parts[0], part)
    rows = [_row(part) for part in parts]
    shapes = sorted({tuple(row.shape) for row in rows})
    if len(shapes) > 1:
        fix = "give all data one shape, or make the batches yourself by a DataLoader"
        raise ValueError(f"the data differ in shape: {shapes[0]} and {shapes[1]}; {fix}")
    return torch.stack(rows)


def as_ready(batch: Batch, *, first: bool) -> Batch:
    """Return a ready batch in the form in which programs are called with it: arrays as tensors, a list as a tuple."""
    if isinstance(batch, PackedSequence):
        raise TypeError("a batch must not be a PackedSequence: give the padded tensor and the lengths")
    if isinstance(batch, list | tuple) and (first or len(batch) == 1):
        batch = batch[0]
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    if isinstance(batch, Tensor) or is_array(batch):
        return as_tensor(batch)
    if not isinstance(batch, list | tuple | dict):
        raise TypeError(f"a batch must be a tensor, a tuple or a dict, not a {type(batch).__name__}")
    whole = map_parts(
        lambda part: from_numpy(part) if isinstance(part, np.ndarray) and part.dtype.kind in "biuf" else part, batch
    )
    return tuple(whole) if isinstance(whole, list) else whole


def as_tensor(data: Any) -> Tensor:
    """Return data as one tensor in memory.

    Arguments:
        data: a tensor; a numpy array, whose masked entries become NaN, or what converts to one, such as a frame of
            numbers or a sparse matrix; or a data set (anything with a length and an index, such as a
            ``torch.utils.data.Dataset``) or another iterable of tensors, arrays, images or nested lists of numbers. If
            its items are tuples, such as (image, label), only the first parts are used, and a warning says so.

    Returns:
        A floating-point tensor whose first dimension counts the data. Numbers keep their values, whatever their type;
        images of Pillow become values in [0, 1].

    Raises:
        TypeError: for any other data, such as a ``DataLoader``: give its data set.
        ValueError: if there are no data, or items differ in shape.

    Example:
        >>> as_tensor(np.array([[0, 255]], dtype=np.uint8))
        tensor([[  0., 255.]])
    """
    if isinstance(data, LazyRows):
        return data[:]
    stored = as_stored(data)
    return stored.to(torch.get_default_dtype()) if stored.dtype == torch.uint8 else stored


def as_stored(data: Any) -> Tensor:
    """Return what `as_tensor` does, but keep 8-bit values in 8 bits."""
    found = from_numpy(as_array(data)) if is_array(data) else data
    found = found if isinstance(found, Tensor) else _stack(_items(found))
    check_dense(found, column=_column_of(data))
    return as_floats(found)


def _column_of(data: Any) -> str:
    """Return the code that makes a column of numbers in a row, which not every kind of row has an index for."""
    if isinstance(data, Tensor | np.ndarray):
        return "data[:, None]"
    return "data.to_frame()" if hasattr(data, "to_frame") else "np.asarray(data)[:, None]"


def _items(data: Any) -> Iterable[Any]:
    """Return the items of a data set, which may have only a length and an index."""
    iterated = isinstance(data, IterableDataset) or (isinstance(data, Iterable) and not isinstance(data, Dataset))
    if not iterated and hasattr(data, "__getitem__") and length_of(data) is not None:
        return (item_at(data, index) for index in range(len(data)))
    check_no_loader(data)
    if isinstance(data, tuple | dict):
        raise TypeError(
            f"data must be one tensor, but this is a {type(data).__name__} of {len(data)}: give one of its parts, or"
            " join them in one tensor, which the programs split; if each part is a datum, give a list of them"
        )
    if isinstance(data, str | PathLike):
        fix = f"give data.load({str(data)!r}).train"
        raise TypeError(f"data must be a tensor, an array or a data set, not a name: {fix}")
    if not isinstance(data, Iterable):
        raise TypeError(f"data must be a tensor, an array or a data set, not {type(data).__name__}")
    return data if length_of(data) is None else _as_many_as_it_says(data)


def item_at(data: Any, index: int) -> Any:
    """Return the datum of a data set at an index, which its length promises."""
    try:
        return data[index]
    except LookupError as error:
        reason = f"the {type(data).__name__} has a length of {len(data)}, but no datum {index} ({error!r})"
        raise ValueError(f"{reason}: correct its __len__ or __getitem__, or give an array") from error


def check_no_loader(data: Any) -> None:
    """Refuse a ``DataLoader`` where single data are expected."""
    if isinstance(data, DataLoader | _BaseDataLoaderIter):  # whose batches would be taken for data
        raise TypeError("data must not be a DataLoader: give its data set, loader.dataset, and batch_size")


def _as_many_as_it_says(data: Any) -> list[Any]:
    items = list(islice(data, len(data) + 1))  # and no more, as it might never end
    if len(items) != len(data):
        count = f"{len(items)} data" if len(items) < len(data) else "more"
        raise ValueError(f"the data set has a length of {len(data)}, but gives {count}: correct its __len__")
    return items


def _stack(items: Iterable[Any]) -> Tensor:
    rows, parts, images, first = [], 1, 0, None
    for item in items:
        datum = _datum(item)
        first = datum if first is None else first
        check_one_order(first, datum)
        if isinstance(datum, tuple | dict):
            fix = "give each as one tensor or array, in which the parts are joined"
            raise TypeError(f"a datum is a {type(datum).__name__} of {len(datum)}: {fix}")
        parts = parts if datum is item else max(parts, len(item))
        images += is_image(datum)
        rows.append(as_floats(_row(datum)))
    if 0 < images < len(rows):
        reason = f"{images} of {len(rows)} data are images, with values from 0 to 1, and the others keep their values"
        raise TypeError(f"{reason}: give all as images, or all as arrays")
    if parts > 1:
        say_first(parts)
    shapes = sorted({tuple(row.shape) for row in rows})
    if len(shapes) > 1:
        raise ValueError(f"the data differ in shape: {shapes[0]} and {shapes[1]}; give all of them one shape")
    return torch.stack(rows) if rows else torch.empty(0, 0)


def _datum(item: Any) -> Any:
    """Return the datum of an item: the first part of a pair such as (image, label), but a whole list of numbers."""
    if not isinstance(item, tuple | list) or not item or (isinstance(item, list) and is_numbers(item)):
        return item
    shapes = {_size(each) for each in item} if isinstance(item, list) else set()
    if len(item) > 1 and len(shapes) == 1 and len(shapes.pop()):
        reason = f"an item is a list of {len(item)} arrays of one shape"
        raise TypeError(f"{reason}: stack them into one, or give a tuple (datum, label), whose first part is used")
    if item[0] is None or isinstance(item[0], str) or (is_numbers(item[0]) and not isinstance(item[0], list)):
        fix = "give the rows of a table as an array, np.array(data, dtype=float)"
        raise TypeError(f"a datum is a {type(item).__name__} that begins with {item[0]!r}, not with an array: {fix}")
    return item[0]


def _size(item: Any) -> tuple[int, ...]:
    """Return the shape of an array, the size of an image, or the length of a list of numbers."""
    return (len(item),) if isinstance(item, tuple | list) else tuple(getattr(item, "shape", getattr(item, "size", ())))


def _row(item: Any) -> Tensor:
    if isinstance(item, Tensor):
        return item
    if is_image(item):
        if getattr(item, "n_frames", 1) > 1:
            raise ValueError(f"an image holds {item.n_frames} pictures: give each frame as frame.copy()")
        pixels = pixels_of(item)
        return pixels / 255 if pixels.dtype == torch.uint8 else pixels
    try:
        return from_numpy(as_array(item))
    except ValueError as error:
        if not isinstance(item, list):
            raise
        raise ValueError(
            f"nested lists must be of equal lengths, and pairs (datum, label) be tuples: {error}"
        ) from error
