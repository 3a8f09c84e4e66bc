"""Arrays of other libraries as tensors: numpy arrays, frames, sparse matrices; and what is refused among them."""

import sys
import warnings
from collections.abc import Mapping, Sized
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

# How to make numbers of arrays of a kind that are none.
NUMBERS = dict.fromkeys("OSU", "; data.astype(float) makes numbers of them") | {
    "c": "; numpy.stack([data.real, data.imag], -1) has two for each",
    "M": "; (data - data.min()) / numpy.timedelta64(1, 'D') makes days of them",
    "m": "; data / numpy.timedelta64(1, 'D') makes days of them",
}


def as_scale(scale: Any) -> float:
    """Return the number that data are divided by, or refuse what is not a number above 0."""
    if isinstance(scale, bool) or not isinstance(scale, int | float | np.number) or not 0 < scale <= sys.float_info.max:
        raise ValueError(f"scale must be a number above 0, such as 255 for pixels of 8 bits, not {scale!r}")
    return float(scale)


def check_dense(data: Tensor, least: int = 2, column: str = "data[:, None]") -> None:
    """Refuse a tensor that is not dense real numbers with at least so many dimensions; ``column`` adds one to a row."""
    if type(data).__name__ == "MaskedTensor":
        raise TypeError("data must not be a MaskedTensor: give data.to_tensor(torch.nan), NaN for what is missing")
    if data.is_quantized:
        raise TypeError("data must not be a quantized tensor: give data.dequantize()")
    if data.layout != torch.strided or data.is_meta or data.is_nested:
        kind = "a nested one" if data.is_nested else f"one of {data.layout} on {data.device}"
        fix = "" if data.is_meta or data.is_nested else "; give data.to_dense()"
        raise TypeError(f"data must be a dense tensor that holds its values, not {kind}{fix}")
    if data.dim() < least or not data.numel():
        fix = f"; {column} makes each number a datum" if data.dim() == 1 and data.numel() else ""
        shape = f"shape (N, ...) with N at least 1{' and one dimension more' * (least > 1)}, not {shape_of(data)}"
        raise ValueError(f"data must have {shape}{fix}")
    if data.is_complex():
        raise TypeError(f"data must hold real numbers, not {data.dtype}; torch.view_as_real(data) has two for each")
    try:
        data[:1].double()
    except NotImplementedError as error:  # numbers of 4 bits and fewer
        raise TypeError(f"data must hold numbers that torch can convert, not {data.dtype}: unpack them") from error


def as_floats(data: Tensor) -> Tensor:
    """Return numbers as floating-point numbers of the same values; 8-bit values stay as they are."""
    if data.is_floating_point() or data.is_complex() or data.dtype == torch.uint8:
        return data
    floats, whole = data.to(torch.get_default_dtype()), data.to(torch.int64)
    if (changed := floats.to(torch.int64) != whole).any():
        fix = "if rounding does no harm, give floating-point numbers, divided by their typical size"
        number = data.flatten()[int(changed.flatten().nonzero()[0])].item()
        raise ValueError(f"data hold the whole number {number}, which {floats.dtype} would round: {fix}")
    return floats


def check_counts(data: Tensor, dtype: torch.dtype) -> None:
    """Refuse whole numbers, such as counts, that programs in 16 bits would round: 257 is not one of bfloat16."""
    if dtype.itemsize > 2 or not data.is_floating_point():
        return
    known = data[~data.isnan()]
    changed = known.to(dtype) != known
    if changed.any() and (known == known.round()).all():
        fix = "take programs in 32 bits (vae.float()), and fit(precision='bf16-mixed') for the speed"
        raise ValueError(f"data hold the whole number {known[changed][0].item():g}, which {dtype} would round: {fix}")


def warn_of_rounding(data: Tensor, dtype: torch.dtype) -> None:
    """Warn if rounding to 32 bits leaves less than 4 digits of the variation of an entry.

    Such entries are times in seconds, and numbers that are so small that they become 0.
    """
    if (data.dtype, dtype) != (torch.float64, torch.float32):
        return
    low, high = data.amin(0), data.amax(0)  # which take a sixth of the time of aminmax
    if low.isnan().any():
        missing = data.isnan()
        low, high = data.masked_fill(missing, torch.inf).amin(0), data.masked_fill(missing, -torch.inf).amax(0)
    spread, size, limits = high - low, torch.maximum(low.abs(), high.abs()), torch.finfo(dtype)
    most = limits.eps / 2 * size.clamp(min=limits.tiny)  # below it, numbers have all one distance
    for entry in ((spread > 0) & (most > 1e-4 * spread)).nonzero().tolist():
        values, varies = data[:, *entry], spread[*entry].item()
        error = (values.to(dtype).double() - values).abs().nan_to_num(0.0).max().item()
        if error > 1e-4 * varies:  # whole numbers may be held as they are
            which = f"entry {', '.join(map(str, entry))} of the data" if entry else "a part of the data"
            fix = "divide it by its size" if size[*entry] < limits.tiny / limits.eps else "subtract its mean"
            fix += ", or take programs in double precision (vae.double())"
            text = f"{which} varies by {varies:.3g}, and {dtype} rounds it by up to {error:.3g}: {fix}"
            warnings.warn(text, UserWarning, stacklevel=3)
            return


def shape_of(data: Any) -> tuple[int, ...]:
    """Return a shape as it is printed."""
    return tuple(data.shape)


def length_of(data: Any) -> int | None:
    """Return the length of data, or None if they have none; a chain of streams finds that only when it is asked."""
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:
        return None


def is_numbers(item: Any) -> bool:
    """Whether an item is a number, or a nested list of numbers."""
    return (
        all(map(is_numbers, item)) if isinstance(item, list) else isinstance(item, int | float | np.number | np.bool_)
    )


def is_array(data: Any) -> bool:
    """Whether data are an array, or can become one: a frame, a sparse matrix or another library's array."""
    if isinstance(data, Tensor) or is_image(data):  # an image is a datum, not an array of data
        return False
    return isinstance(data, np.ndarray | memoryview) or hasattr(data, "toarray") or hasattr(data, "__array__")


def is_image(item: Any) -> bool:
    """Whether an item is an image of Pillow."""
    return hasattr(item, "getbands")  # only images of Pillow have it


def as_array(data: Any) -> np.ndarray:
    """Return a numpy array for another array, a frame of numbers or a sparse matrix."""
    own = columns_of(data)
    try:
        array = np.asanyarray(data.toarray() if callable(getattr(data, "toarray", None)) else data)
    except TypeError:  # of a pyarrow table whose columns have no type in common
        if not own:
            raise
        array = np.empty(0, object)
    except ValueError:  # of nested lists, which the caller explains
        raise
    except Exception as error:  # another library's own, as that of polars for integers of 128 bits
        fix = "cast them to floating-point numbers"
        raise TypeError(f"data cannot become an array of numpy ({str(error).splitlines()[0]}): {fix}") from error
    kinds = data.dtypes if own and hasattr(data, "dtypes") else ()  # a row of pandas has one
    dates = any(getattr(kind, "is_temporal", bool)() for kind in kinds)  # days to polars
    if own and (dates or array.dtype == object):
        columns = {str(name): np.asarray(data[name]) for name in own}
        if len(columns) < len(own):
            raise TypeError(f"columns must differ in their names, but are {', '.join(map(str, own))}")
        if names := [name for name, column in columns.items() if column.dtype.kind not in "biuf"]:
            fix = "drop them, or make them numbers, with NaN for what is missing"
            raise TypeError(f"data must hold real numbers, but the columns {', '.join(names)} do not: {fix}")
        return np.column_stack(list(columns.values()))
    if own and array.dtype.kind == "f":  # as the library makes of integers beside other numbers
        several = data.columns if hasattr(data, "column_names") else [data[name] for name in dict.fromkeys(own)]
        for column in map(np.asarray, several):
            if column.dtype.kind in "iu" and column.size:
                _check_rounding(column.astype(np.longdouble))
    return array


def columns_of(data: Any) -> list[Any]:
    """Return the names of the columns of a frame, none of other data."""
    names = getattr(data, "column_names", None)  # of pyarrow, whose columns are arrays
    return list(names if isinstance(names, list) else getattr(data, "columns", ())) if is_array(data) else []


def check_one_order(first: Any, other: Any) -> None:
    """Refuse data, rows of a frame or frames, whose entries have the same names, but not in one order.

    Raises:
        ValueError: with the first name that has another place.
    """
    own, names = _names_of(first), _names_of(other)
    if names != own and set(names) == set(own):
        moved = next(name for name, there in zip_longest(own, names) if name != there)
        fix = "give all of them the same names in one order, or one frame"
        raise ValueError(f"the entry {moved!r} is not in the same place in all data: {fix}")


def _names_of(item: Any) -> list[Any]:
    """Return the names of the entries of a row of pandas, or of the columns of a frame; none of other data."""
    index = getattr(item, "index", None) if hasattr(item, "to_frame") else None
    return columns_of(item) if index is None or callable(index) else list(index)


def check_columns(data: Any, validation: Any) -> None:
    """Refuse validation data in which a column of the data stands in the place of another one."""
    parts, others = _by_name(data), _by_name(validation)
    for name in [name for name in parts if name in others]:
        own, other = columns_of(parts[name]), columns_of(others[name])
        if moved := [column for column, there in zip_longest(own, other) if column != there and column in other]:
            fix = "give both the same columns in one order, validation[data.columns]"
            raise ValueError(
                f"the column {moved[0]!r} has another place in the validation data than in the data: {fix}"
            )


def _by_name(data: Any) -> Mapping[Any, Any]:
    return data if isinstance(data, dict) else dict(enumerate(data if isinstance(data, tuple) else (data,)))


def from_numpy(array: np.ndarray) -> Tensor:
    """Return a copy of an array of numbers, of any layout, byte order and width; masked entries become NaN."""
    if array.dtype.kind not in "biuf":
        fix = NUMBERS.get(array.dtype.kind, "")
        fix = "; numpy.lib.recfunctions.structured_to_unstructured joins its columns" if array.dtype.names else fix
        raise TypeError(f"data must hold real numbers, not {array.dtype}{fix}")
    if isinstance(array, np.ma.MaskedArray) and np.ma.getmaskarray(array).any():
        known = as_floats(from_numpy(np.ma.filled(array, 0)))
        floats = known if known.is_floating_point() else known.to(torch.get_default_dtype())
        return floats.masked_fill(torch.from_numpy(np.ma.getmaskarray(array).copy()), torch.nan)
    if array.dtype.kind == "u" and array.size and array.max() >= 2**63:
        raise ValueError(f"data hold {array.max()}, beyond whole numbers of 64 bits with a sign: scale them")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8 and array.ndim and array.size:
        _check_rounding(array)
    wide = {"u2": "i8", "u4": "i8", "u8": "i8", "f16": "f8"}
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    return torch.from_numpy(np.array(array, dtype=wide.get(kind, kind.replace("b1", "?")), order="C"))


def _check_rounding(array: np.ndarray) -> None:
    """Refuse numbers of more than 64 bits which 64 bits would round by much of what they vary by, or cannot hold."""
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.fmax.reduce(np.abs(array.astype(np.float64) - array), 0)
        spread = np.fmax.reduce(array, 0) - np.fmin.reduce(array, 0)
        if (lost := (spread > 0) & (error > 1e-4 * spread)).any():
            varies, rounded = (np.format_float_scientific(each[lost][0], 2) for each in (spread, error))
            fix = "subtract its mean, and divide it by its size"
            raise ValueError(f"an entry of the data varies by {varies}, and 64 bits round it by up to {rounded}: {fix}")
