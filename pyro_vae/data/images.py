"""Pictures as tensors of values in [0, 1]."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.arrays import from_numpy
from pyro_vae.files import check_regular

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")  # some other formats of Pillow start other programs
COLOURS = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "F")  # and greys of 16 bits
MOST = (281, 341)  # tags of a TIFF file: MaxSampleValue and SMaxSampleValue, such as 4095 of a camera of 12 bits


@contextmanager
def open_image(path: Path) -> Iterator[Any]:
    """Open an image in one of `FORMATS`, whatever its file name, if its size is one that Pillow considers safe.

    Raises:
        ValueError: for a pipe, a device or anything else that is not an ordinary file.
        OSError, PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError: as Pillow raises them.
    """
    from PIL import Image

    check_regular(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # A file, not its path: Pillow maps an uncompressed TIFF into memory before it has turned it.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            yield image


def frames_of(image: Any) -> list[Tensor]:
    """Return the pictures of an image file; each picture of a TIFF stack is a datum."""
    from PIL import ImageSequence

    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "TIFF":
        raise ValueError(f"it holds {count} pictures: save each of them in a file of its own")
    return [pixels_of(frame) for frame in ImageSequence.Iterator(image)] if count > 1 else [pixels_of(image)]


def pixels_of(image: Any) -> Tensor:
    """Return an image of Pillow as (channels, height, width), upright: in 8 bits, or greys of more bits in [0, 1].

    Raises:
        ValueError: if the file does not determine values in [0, 1].
    """
    from PIL import ImageOps

    _check_colours(image)
    deep = image.mode.startswith("I")
    upright = ImageOps.exif_transpose(image)
    if deep:
        return from_numpy(np.asarray(upright))[None].to(torch.get_default_dtype()) / 65535
    if upright.mode == "F":
        return _unit(from_numpy(np.asarray(upright))[None])
    grey = upright.mode in ("1", "L", "LA")
    pixels = from_numpy(np.asarray(upright.convert("L" if grey else "RGB")))
    return pixels[None] if grey else pixels.permute(2, 0, 1)  # Pillow has the channels last


def _check_colours(image: Any) -> None:
    mode, tags = image.mode, getattr(image, "tag_v2", {})
    # Pillow before 10.4 calls a sample X if it is not a colour.
    read = sum(band != "X" for band in image.getbands())
    if tags.get(277, 1) > read:
        raise ValueError(f"its pixels have {tags[277]} samples, of which {read} would be read: save them all as .npy")
    if mode == "L" and 2 in tags.get(339, ()):  # the sample format; Pillow takes -1 for 255
        raise ValueError("its whole numbers have a sign: save it in 8 or 16 bits without one, 0 for black")
    if mode == "I" and image.format != "PNG":  # Pillow has had PNG files of 16 bits as those of 32
        raise ValueError("it holds 32-bit integers, whose largest value is not known: save it in 8 or 16 bits")
    if mode not in COLOURS and not mode.startswith("I"):
        raise ValueError(f"its colours are {mode}: convert it to RGB")
    if mode == "F" or mode.startswith("I"):
        if tags.get(262) == 0 or (mode != "F" and tags.get(258, (16,)) != (16,)):  # which Pillow leaves as they are
            raise ValueError("its greys are inverted, or not of 16 bits: save it as greys of 8 or 16 bits, 0 for black")
        if most := [tags[tag] for tag in MOST if mode != "F" and max(tags.get(tag, (65535,))) < 65535]:
            reason = f"its tag says that its largest value is {max(most[0]):.6g}, so that it is not known what white is"
            raise ValueError(f"{reason}: save it with white as 65535, or save the arrays as .npy and give --scale")
        transparent = "transparency" in image.info and (np.asarray(image) == image.info["transparency"]).any()
    else:
        has_alpha = mode[-1:] in "Aa" or "transparency" in image.info
        transparent = has_alpha and image.convert("RGBA").getchannel("A").getextrema()[0] < 255
    if transparent:
        raise ValueError("it has transparent pixels, whose colours are not visible: put it on a background")


def _unit(values: Tensor) -> Tensor:
    """Return floating-point greys, which must lie in [0, 1], because the file does not say what white is."""
    known = values[~values.isnan()]
    if not known.numel():
        raise ValueError("all its values are NaN")
    if known.min() < 0 or known.max() > 1:
        reason = f"its values go from {known.min().item():.6g} to {known.max().item():.6g}, not from 0 to 1"
        raise ValueError(f"{reason}: scale them, or save the arrays as .npy and give --scale")
    return values
