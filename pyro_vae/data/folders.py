"""Folders of images, with their subfolders as labels."""

import mimetypes
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import torch

from pyro_vae.data.arrays import shape_of
from pyro_vae.data.images import frames_of, open_image
from pyro_vae.data.parts import Data, split_into_parts

MOST_OTHERS = 100_000  # at most so many other files are accepted in a folder of images
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp"}


def _images_in(path: Path) -> list[Path]:
    """Find the images in a folder; a folder with very many other files, such as a whole disk, is refused."""
    images: list[Path] = []
    hidden: list[str] = []
    others: list[str] = []
    if path.resolve() == Path(path.resolve().anchor):
        raise ValueError(f"{path} is the whole disk: name the folder of the images")
    for folder, folders, names in os.walk(path, onerror=_refuse_unread):
        pictures = {name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES}
        hidden += [os.path.join(folder, name) for name in {*folders, *pictures} if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        found = [Path(folder, name) for name in pictures if not name.startswith(".")]
        _check_none_left_out(folder, folders, {name for name in names if not name.startswith(".")} - pictures)
        images += found
        others += [os.path.join(folder, name) for name in names if name not in pictures and not name.startswith(".")]
        if len(others) > MOST_OTHERS:
            raise ValueError(
                f"{path} holds over {MOST_OTHERS:,} files that are no images: name the folder of the images"
            )
    if images and others:
        text = f"{len(others)} files that are no images are left out, such as {min(others)}"
        one = f"{others[0]} is not an image and is left out"
        warnings.warn(text if len(others) > 1 else one, UserWarning, stacklevel=2)
    if hidden:
        text = f"{len(hidden)} hidden images or folders are left out, such as {min(hidden)}"
        one = f"{hidden[0]} is hidden and is left out"
        warnings.warn(text if len(hidden) > 1 else one, UserWarning, stacklevel=2)
    return sorted(images)


def _refuse_unread(error: OSError) -> NoReturn:
    raise ValueError(f"{error.filename} cannot be searched for images: {error.strerror}")


def _check_none_left_out(folder: str, folders: Iterable[str], others: Iterable[str]) -> None:
    """Refuse a folder with images that would not be read: those behind a link, or in another format."""
    for name in sorted(folders):
        if os.path.islink(os.path.join(folder, name)):
            raise ValueError(f"{os.path.join(folder, name)} is a link to a folder, and is not followed: copy it there")
    for name in sorted(others):
        if (mimetypes.guess_type(name)[0] or "").startswith("image/"):
            fix = "save it as PNG, or take it out of the folder"
            raise ValueError(f"{os.path.join(folder, name)} is an image of a format that is not read: {fix}")


def read_folder(path: Path) -> Data:
    """Read a folder of images; its subfolders, if there are any, are the labels."""
    files, rows, parents = _images_in(path), [], []
    _check_one_part(path, files)
    for file in files:
        try:
            with open_image(file) as image:
                frames = frames_of(image)
        except Exception as error:  # Pillow, too, has many ways to fail on a damaged file
            raise ValueError(f"{file} cannot be read as an image: {error}") from error
        rows += frames
        parents += [file.parent] * len(frames)
        for frame in frames:
            if frame.shape != rows[0].shape:
                sizes = f"{shape_of(rows[0])} and {shape_of(frame)}"
                raise ValueError(
                    f"{files[0]} and {file} differ in (channels, height, width): {sizes}; bring them to one"
                )
    if not rows:
        raise ValueError(f"the folder {path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    folders = sorted(set(parents))
    names = tuple(str(folder.relative_to(path)) for folder in folders) if len(folders) > 1 else None
    labels = torch.tensor([folders.index(parent) for parent in parents]) if names else None
    if any(row.dtype != torch.uint8 for row in rows):
        rows = [row / 255 if row.dtype == torch.uint8 else row for row in rows]
    return split_into_parts(torch.stack(rows), labels, names=names)


def _check_one_part(path: Path, files: list[Path]) -> None:
    """Refuse a folder with a train and a test part, which would be mixed and split again."""
    folders = {file.relative_to(path).parts[0] for file in files}
    others = [name for name in sorted(folders) if name.lower() in ("test", "val", "valid", "validation")]
    if others and "train" in map(str.lower, folders):
        raise ValueError(
            f"{path} holds folders named train and {others[0]}, whose images would be mixed: name the folder of one"
            " part, or save both as x_train and x_test of a .npz file"
        )
