"""Whether two data sets have one scale: pixels from 0 to 255 beside pixels from 0 to 1 are found by their sizes."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.data.batch import Batch, named
from pyro_vae.data.fingerprints import HASHED
from pyro_vae.data.rows import Columns, EightBit, MemoryMapped
from pyro_vae.data.streams import Ready, Stream

FIX = "bring both to one scale, such as x / 255 for pixels of 8 bits"
FEW = 4  # fewer data show no scale, unless they are beyond all others


class Values(NamedTuple):
    """The size of the values of data.

    Arguments:
        low: the least value.
        high: the largest one.
        usual: the median, over the data, of the largest absolute value of each.
        signed: whether each datum has a value below 0.
    """

    low: float
    high: float
    usual: float
    signed: bool

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


def values_of(x: Tensor) -> Values:
    """Return the size of the values of data; a missing value, NaN, counts as 0.

    Example:
        >>> print(values_of(torch.tensor([[0.0, 1.0], [-3.0, torch.nan]])))
        -3 to 1
    """
    rows = x.flatten(1)
    low, high = rows.amin(1).double(), rows.amax(1).double()
    if (missing := low.isnan()).any():
        known = rows[missing].double().nan_to_num(0.0, torch.inf, -torch.inf)
        low[missing], high[missing] = known.amin(1), known.amax(1)
    usual = high.maximum(-low).median().item()
    return Values(low.min().item(), high.max().item(), usual, bool((low < 0).all()))


def are_beyond(few: Values, others: Values) -> bool:
    """Whether most of a few data have a value beyond 4 times the largest of the others, as if they were not scaled.

    Example:
        >>> are_beyond(Values(0.0, 255.0, 250.0, False), Values(0.0, 1.0, 0.9, False))
        True
    """
    return 0 < 4 * max(others.high, -others.low) < few.usual < math.inf


def differ(one: Values, other: Values) -> bool:
    """Whether only one of two data sets has been scaled.

    This is so if most data of one have a value beyond 4 times the largest of the other, or if each of them has a value
    below 0, and the other has none.

    Example:
        >>> differ(Values(0.0, 255.0, 250.0, False), Values(0.0, 1.0, 0.9, False))
        True
    """
    return _beyond(one, other) or _beyond(other, one)


def _beyond(one: Values, other: Values) -> bool:
    return are_beyond(one, other) or (one.signed and other.low >= 0 and other.high > 0)


def sizes_of(x: Any, least: int = FEW) -> dict[str, Values]:
    """Return the size of the values of each floating-point part of rows that has more than one dimension, by name.

    Parts of fewer than ``least`` data are left out. Of large data evenly spaced rows are read, and of those that are
    iterated over the first ones.

    Example:
        >>> {name: str(values) for name, values in sizes_of(torch.eye(5)).items()}
        {'': '0 to 1'}
    """
    return {name: values_of(part) for name, part in named(_some(x)) if _is_table(part, least)}


def _is_table(part: Any, least: int) -> bool:
    if not isinstance(part, Tensor) or part.layout is not torch.strided or part.is_nested:
        return False
    return part.is_floating_point() and part.dim() > 1 and part.numel() > 0 and len(part) >= least


def _some(x: Any) -> Batch:
    if isinstance(x, Stream | Ready):
        return x[:100]
    if isinstance(x, Columns):
        return {name: _some(part) for name, part in named(x.parts)}
    if not isinstance(x, EightBit | MemoryMapped):
        return x
    count = min(len(x), max(FEW, HASHED // (4 * x.shape[1:].numel())))
    return x[torch.linspace(0, len(x) - 1, count, dtype=torch.float64).round().long()]


def check_one_scale(data: Any, validation: Any) -> None:
    """Refuse rows of validation data of which only these, or only the data, have been scaled.

    Raises:
        ValueError: with the range of both, and the fix.

    Example:
        >>> check_one_scale(torch.ones(9, 2), torch.zeros(9, 2))
    """
    own, others = sizes_of(data), sizes_of(validation)
    for name in own.keys() & others.keys():
        if differ(own[name], others[name]):
            where = f" of part {name}" if name else ""
            reason = f"the data{where} go from {own[name]}, and the validation data{where} from {others[name]}"
            other = "data that differ on purpose are measured by evaluate(model, guide, validation)"
            raise ValueError(f"{reason}: {FIX}; {other}")
