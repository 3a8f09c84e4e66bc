"""Data sets by a name or a path."""

import difflib
import os
from pathlib import Path
from typing import Any

import torch

from pyro_vae.data.arrays import as_scale
from pyro_vae.data.folders import read_folder
from pyro_vae.data.named import NAMES, TORCHVISION, read_digits, read_torchvision
from pyro_vae.data.numpy_files import SUFFIXES, neighbours, read_numpy
from pyro_vae.data.parts import Data
from pyro_vae.data.rows import EightBit, MemoryMapped
from pyro_vae.files import check_regular


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
            no other numbers; labels that are text are numbered in alphabetical order. In a folder of images, the names
            of sub-folders are the labels (`Data.label_names` has the texts), and each picture of a TIFF stack is a
            datum. Hidden images and other files are left out, with a warning. Refused are images of other formats,
            links to folders, a train and a test folder side by side, and images that do not determine values in [0, 1]:
            those with transparent pixels, CMYK, 32-bit integers, floating-point values outside [0, 1]. Colours of 16
            bits are read in 8 bits. Data without a test part are split 4 to 1, always in the same way.
        root: the folder of torchvision's data sets; by default the environment variable ``PYRO_VAE_DATA``, or else
            ``data``.
        download: download a data set of torchvision's if it is missing.
        eight_bit: keep 8-bit values in 8 bits, as `EightBit`, which takes a quarter of the memory. `fit` and `evaluate`
            take it like a tensor.
        scale: divide all values of a ``.npy`` or ``.npz`` file by this, above 0, such as 255 for pixels of 8 bits; with
            None they keep the values in the file, whatever their type.

    Returns:
        Images of shape (N, channels, height, width) with values in [0, 1], or the rows of a numpy file.
        A ``.npy`` file that would take more than 1 GiB in 32 bits stays on disk, as `MemoryMapped`.

    Raises:
        ValueError: for an unknown name, for files that are missing, damaged or do not fit together, for a train and a
            test part of which only one has been scaled, and for a scale with images, whose values are in [0, 1]
            already.

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
    divisor = None if are_images(name) else as_scale(1.0 if scale is None else scale)
    found = _load(name, root, download, divisor or 1.0)
    scaled = {part: _scaled(getattr(found, part), divisor, eight_bit) for part in ("train", "test")}
    return found._replace(**scaled).with_label_names(found.label_names)


def are_images(source: str) -> bool:
    """Whether a data set has pixels, whose largest value is known: a named data set, or a folder of images.

    Example:
        >>> are_images("digits"), are_images("x.npy")
        (True, False)
    """
    return source in NAMES or bool(source and os.path.isdir(source))  # False for a text that cannot be a path


def located(source: str) -> str:
    """Return the absolute path of a file or folder that exists; any other text as it is.

    Example:
        >>> located("digits"), Path(located(".")).is_absolute()
        ('digits', True)
    """
    return os.path.abspath(source) if source not in NAMES and os.path.exists(source) else source


def _scaled(x: Any, scale: float | None, eight_bit: bool) -> Any:
    """Return one part with its values of 8 bits, and those on the disk, divided by a scale, 255 for None."""
    if isinstance(x, MemoryMapped):
        return MemoryMapped(x.path, x.rows, scale or 1.0).to(x.device, torch.get_default_dtype())
    if x.dtype == torch.uint8:
        stored = EightBit(x, scale or 255.0)
        return stored if eight_bit else stored[:]
    return x


def _load(name: str, root: str | Path | None, download: bool, scale: float) -> Data:
    if name == "digits":
        return read_digits()
    if name in TORCHVISION:
        return read_torchvision(
            name, Path(os.environ.get("PYRO_VAE_DATA") or "data" if root in (None, "") else root), download
        )
    path = Path(name)
    if are_images(name):
        return read_folder(path)
    if path.suffix.lower() in SUFFIXES:
        check_regular(path)
        return read_numpy(path, scale)
    if os.path.exists(name):
        raise ValueError(
            f"{name} is not a file that can be read: give a .npy or .npz file (save tables by numpy.save), or a"
            " folder of images"
        )
    near = difflib.get_close_matches(name.lower(), [*NAMES, *neighbours(path)], 1)
    hint = f"did you mean {near[0]!r}? Known" if near else "known"
    raise ValueError(f"no data set or file {name!r}; {hint} are {', '.join(NAMES)}, .npy and .npz files, image folders")
