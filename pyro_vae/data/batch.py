"""Batches. A batch is what both programs are called with: a tensor, or a tuple or a dict of tensors.

============== ====================
batch          call
============== ====================
tensor ``x``   ``model(x)``
tuple or list  ``model(*batch)``
dict           ``model(**batch)``
============== ====================

Parts may be of any type, such as None for unknown labels, and may hold further parts. Knows no model.
"""

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

Batch = Any
PLAIN = bool | int | float | complex | str | bytes | None  # never change
Count = Callable[[Batch], int]


def arguments(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a program is called with, ``program(*args, **kwargs)``.

    Example:
        >>> arguments(1), arguments((1, 2)), arguments({"x": 1})
        (((1,), {}), ((1, 2), {}), ((), {'x': 1}))
    """
    if isinstance(batch, dict):
        return (), batch
    return (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), {}


def tensors_of(batch: Batch) -> list[Tensor]:
    """Return the tensors of a batch, in order.

    Example:
        >>> import torch
        >>> tensors_of({"x": torch.zeros(1), "y": None})
        [tensor([0.])]
    """
    return [batch] if isinstance(batch, Tensor) else [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


def map_tensors(function: Callable[[Tensor], Any], batch: Batch) -> Batch:
    """Return a batch with a function applied to each of its tensors.

    Example:
        >>> import torch
        >>> map_tensors(torch.neg, (torch.ones(1), None))
        (tensor([-1.]), None)
    """
    return function(batch) if isinstance(batch, Tensor) else tree_map_only(Tensor, function, batch)


def count_of(batch: Batch) -> int:
    """Return the number of data of a batch: the first dimension of its first tensor.

    Raises:
        TypeError: if its first tensor has no such dimension, or it has no tensor.

    Example:
        >>> import torch
        >>> count_of({"x": torch.zeros(3, 2), "y": None})
        3
    """
    tensors = tensors_of(batch)
    if not (tensors and tensors[0].dim()):
        raise TypeError(f"a batch must begin with a tensor that has a dimension for its data, not {in_words(batch)}")
    return len(tensors[0])


def are_rows(batch: Batch, count: Count = count_of) -> bool:
    """Whether the first dimension of each tensor of a batch counts the data, so that some of them can be taken out.

    Arguments:
        batch: the batch.
        count: returns its number of data, also after one is removed.

    Example:
        >>> import torch
        >>> are_rows((torch.zeros(3, 2), torch.zeros(3))), are_rows((torch.zeros(3, 2), torch.zeros(2)))
        (True, False)
        >>> are_rows(torch.zeros(3, 3, 2), lambda sequences: sequences.shape[1])  # time comes first
        False
    """
    size = count(batch)
    if not all(tensor.dim() and len(tensor) == size for tensor in tensors_of(batch)):
        return False
    return count is count_of or count(map_tensors(itemgetter(slice(size - 1)), batch)) == size - 1


def structure_of(batch: Batch) -> tuple[Any, ...] | None:
    """Return the structure, shapes, types and strides of a batch, which are equal if batches differ only in numbers.

    None if a part is neither a tensor nor a plain value, as such parts cannot be compared.

    Example:
        >>> import torch
        >>> structure_of((torch.zeros(3), None)) == structure_of((torch.ones(3), None))
        True
    """
    try:
        return _structure(batch)
    except TypeError:
        return None


def _structure(batch: Batch) -> tuple[Any, ...]:
    if isinstance(batch, Tensor):
        return batch.shape, batch.dtype, batch.stride()
    if isinstance(batch, tuple | list):
        return type(batch), *map(_structure, batch)
    if isinstance(batch, dict):
        return dict, *batch, *map(_structure, batch.values())
    if not isinstance(batch, PLAIN):
        raise TypeError
    return type(batch), repr(batch)


def cut(batch: Batch, size: int | None, count: Count = count_of) -> Batch:
    """Return the first data of a batch; all of them if the tensors' first dimensions do not count the data.

    Example:
        >>> import torch
        >>> cut((torch.zeros(3, 2), None), 2)
        (tensor([[0., 0.],
                [0., 0.]]), None)
    """
    fits = size is not None and size < count(batch) and are_rows(batch, count)
    return map_tensors(lambda part: part[:size], batch) if fits else batch


def pieces(batch: Batch, size: int, count: Count = count_of) -> Iterator[Batch]:
    """Yield the data of a batch so many at a time, or the whole batch if it cannot be cut.

    Example:
        >>> import torch
        >>> [x.tolist() for x, _ in pieces((torch.arange(3), None), 2)]
        [[0, 1], [2]]
    """
    if count(batch) <= size or not are_rows(batch, count):
        yield batch
        return
    for start in range(0, count(batch), size):
        yield map_tensors(itemgetter(slice(start, start + size)), batch)


def with_tensors(batch: Batch, tensors: Sequence[Tensor]) -> Batch:
    """Return a batch whose tensors are replaced by others.

    Example:
        >>> import torch
        >>> with_tensors((torch.zeros(1), None), [torch.ones(1)])
        (tensor([1.]), None)
    """
    each = iter(tensors)
    return map_tensors(lambda _: next(each), batch)


def in_words(batch: Batch) -> str:
    """Describe a batch in a few words.

    Example:
        >>> import torch
        >>> in_words((torch.zeros(3, 2), {"y": None}))
        '(tensor of shape (3, 2), {y: None})'
    """
    if isinstance(batch, Tensor):
        return f"tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{name}: {in_words(part)}" for name, part in batch.items()) + "}"
    if isinstance(batch, tuple | list):
        return "(" + ", ".join(map(in_words, batch)) + ("," if len(batch) == 1 else "") + ")"
    return repr(batch) if batch is None or isinstance(batch, bool | int | float) else type(batch).__name__


def named(batch: Batch, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the parts of a batch with their names; the name of a batch that is one tensor is "".

    Example:
        >>> list(named({"x": 1, "masks": (2, None)}))
        [('x', 1), ('masks.0', 2), ('masks.1', None)]
    """
    if not isinstance(batch, tuple | list | dict):
        yield name, batch
        return
    for key, part in batch.items() if isinstance(batch, dict) else enumerate(batch):
        yield from named(part, f"{name}.{key}" if name else str(key))
