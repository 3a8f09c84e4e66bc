"""Data sets in .npy and .npz files."""

import difflib
import warnings
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.arrays import from_numpy, shape_of, warn_of_rounding
from pyro_vae.data.conversion import as_stored
from pyro_vae.data.parts import Data, split_into_parts, train_and_test
from pyro_vae.data.rows import MORE, MemoryMapped
from pyro_vae.data.scales import FIX, differ, values_of
from pyro_vae.files import check_regular

ARRAYS = {f"{name}{part}" for name in "xy" for part in ("", "_train", "_test")}  # names of arrays in a .npz file
SUFFIXES = (".npy", ".npz")  # also in capitals
IN_MEMORY = 2**30  # a .npy file that would take more bytes than this in 32 bits stays on the disk


def neighbours(path: Path) -> list[str]:
    """Return the .npy and .npz files in the folder of a path, for suggestions."""
    try:
        return [str(path.with_name(file.name)) for file in path.parent.iterdir() if file.suffix.lower() in SUFFIXES]
    except (OSError, ValueError):
        return []


def _large(path: Path) -> MemoryMapped | None:
    """Return the data of a .npy file that is too large for memory, or None."""
    try:
        mapped = MemoryMapped(path)
    except (TypeError, ValueError):
        return None
    return mapped if 4 * mapped.shape.numel() > IN_MEMORY else None


def _tensors_of(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Return the arrays of a file by their names, and the texts of labels that are words."""
    try:
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            arrays = _zipped(file) if zipped else {"x": _array(file)}
    except FileNotFoundError as error:
        near = difflib.get_close_matches(str(path), neighbours(path), 1)
        fix = f"did you mean {near[0]!r}?" if near else "correct its path"
        raise ValueError(f"no file {path}; {fix}") from error
    except Exception as error:  # numpy, zipfile and zlib have a dozen ways to fail on a damaged file
        reason = "" if "pickle" in str(error) else f": {error}"  # numpy would suggest to allow pickles
        raise ValueError(f"{path} is damaged, or holds Python objects, which are not read{reason}") from error
    if {"format", "shape"} <= set(arrays):
        fix = "save scipy.sparse.load_npz(path).toarray(), by numpy.save"
        raise ValueError(f"{path} holds a sparse matrix of scipy, which is not read: {fix}")
    arrays, names = _numbered(_without_words(path, arrays))
    tensors = {key: _tensor(array, f"{key} in {path}") for key, array in arrays.items()}
    if len(tensors) == 1:
        tensors = {"x": next(iter(tensors.values()))}
    return tensors, names


def read_rows(path: Path) -> Tensor:
    """Read all data of a .npy file, or of a .npz file with one array x, as the file has them and in its order."""
    check_regular(path)
    tensors, _ = _tensors_of(path)
    if "x" not in tensors or {*tensors} - {"x", "y"}:
        raise ValueError(f"{path} holds {', '.join(sorted(tensors)) or 'no numbers'}: save the data as one array x")
    return as_stored(tensors["x"])


def read_numpy(path: Path, scale: float = 1.0) -> Data:
    """Read a .npy or .npz file, with its values divided by a scale, except those of 8 bits or on the disk."""
    if path.suffix.lower() == ".npy" and (large := _large(path)):
        train, test = train_and_test(len(large))
        return Data(MemoryMapped(path, train), MemoryMapped(path, test))
    tensors, names = _tensors_of(path)
    parts = ("_train", "_test") if {"x_train", "x_test"} <= set(tensors) else ("",)
    if not {f"x{part}" for part in parts} <= set(tensors):
        raise ValueError(
            f"{path} needs arrays x_train and x_test, or x, but holds {', '.join(sorted(tensors)) or 'none'}"
        )
    if others := sorted(set(tensors) - {f"{name}{part}" for name in "xy" for part in parts}):
        wanted = ", ".join(f"{name}{part}" for name in "xy" for part in parts)
        raise ValueError(f"{path} also holds {', '.join(others)}, which would be left out: save only {wanted}")
    data = [as_stored(tensors[f"x{part}"]) for part in parts]
    labels = [tensors.get(f"y{part}") for part in parts]
    labels = [y if y is None or y.shape[1:] != (1,) else y[:, 0] for y in labels]  # a column is one label per datum
    labels = [y.double() if y is not None and y.is_floating_point() else y for y in labels]
    for part, x, y in zip(parts, data, labels, strict=True):
        if y is not None and y.dim() != 1:
            raise ValueError(f"y{part} in {path} must hold one label per datum, not shape {shape_of(y)}")
        if y is not None and len(x) != len(y):
            raise ValueError(f"{path} holds {len(x)} x{part} and {len(y)} y{part}; the numbers must be equal")
    if len(parts) == 1:
        return split_into_parts(divided(data[0], scale), labels[0], names=names)
    if data[0].shape[1:] != data[1].shape[1:]:
        raise ValueError(f"x_train and x_test in {path} differ in shape: {shape_of(data[0])} and {shape_of(data[1])}")
    _check_one_scale(path, *data)
    data = [divided(x, scale) for x in data]
    return Data(*data, *labels).with_label_names(names)


def _without_words(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Leave out arrays of text such as names of features, which are neither data nor labels, with a warning."""
    words = sorted(key for key, array in arrays.items() if array.dtype.kind in "OSU" and key not in ARRAYS)
    numbers = {key: array for key, array in arrays.items() if key not in words}
    if words and numbers:
        warnings.warn(f"{path}: {', '.join(words)} hold no numbers, and are left out", UserWarning, stacklevel=2)
    return numbers or arrays


def _numbered(arrays: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Number labels that are text in alphabetical order, with the same numbers in both parts, and return the texts."""
    labels = {key: array for key, array in arrays.items() if key in ARRAYS and key[0] == "y"}
    if not labels or any(array.dtype.kind not in "SU" for array in labels.values()):
        return arrays, None
    names = np.unique(np.concatenate([array.ravel() for array in labels.values()]))
    texts = [name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name) for name in names]
    return arrays | {key: np.searchsorted(names, array) for key, array in labels.items()}, tuple(texts)


def _zipped(file: IO[bytes]) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file, by name in lower case, and refuse a file that holds anything else."""
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
        return np.empty(0, object)  # Python objects are not read
    if file.read(1):
        raise ValueError(MORE)
    return array


def _check_one_scale(path: Path, *parts: Tensor) -> None:
    """Refuse a train and a test part of which only one has been scaled, whatever their types."""
    train, test = map(values_of, parts)
    if differ(train, test):
        raise ValueError(f"{path} holds x_train from {train} and x_test from {test}: {FIX}")


def divided(x: Tensor, scale: float) -> Tensor:
    """Return values divided by a scale before they are rounded to 32 bits, beyond which they may lie; 8 bits stay."""
    if x.dtype == torch.uint8:
        return x
    default = torch.get_default_dtype()
    wide = x.to(torch.promote_types(x.dtype, default))  # 16 bits would lose digits of the quotient
    quotient = wide if scale == 1 else wide / scale
    warn_of_rounding(quotient, default)
    return quotient.to(default)


def multiplied(x: Tensor, scale: float) -> Tensor:
    """Return values that were divided by a scale in the units of their file, in double precision.

    They are rounded to the digits of 32 bits, so that whole numbers come back whole.

    Example:
        >>> divided(torch.tensor([41.0]), 255).double().mul(255), multiplied(divided(torch.tensor([41.0]), 255), 255)
        (tensor([41.0000], dtype=torch.float64), tensor([41.], dtype=torch.float64))
    """
    if scale == 1:
        return x
    mantissa, exponent = (x.double() * scale).frexp()  # the exponents of 32 bits may be too small
    return mantissa.float().double() * 2.0 ** exponent.double()


def _tensor(array: np.ndarray, name: str) -> Tensor:
    try:
        return from_numpy(array)
    except TypeError as error:
        fix = "save numbers by .astype(float), and labels that are text by .astype(str)"
        other = str(error).removeprefix("data must hold real numbers, not ")
        kind = f"Python objects, which are not read: {fix}" if array.dtype == object else other
        raise ValueError(f"{name} must hold numbers, not {kind}") from error
