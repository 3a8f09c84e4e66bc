"""Hashes of data, to tell one data set from another, and the range of their values."""

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.arrays import shape_of
from pyro_vae.data.batch import Batch, named, tensors_of
from pyro_vae.data.parts import Data
from pyro_vae.data.rows import Columns, EightBit, MemoryMapped

HASHED = 2**26  # bytes of each part that a fingerprint reads at most


def fingerprint(data: Data) -> str:
    """Return in one line the number of data, their shape, and a hash of their values.

    Example:
        >>> fingerprint(Data(torch.zeros(3, 2), torch.ones(1, 2)))
        '3 train and 1 test data of shape (2,), sha256 898b56ec687d2c02'
    """
    counts = f"{len(data.train)} train and {len(data.test)} test data"
    return f"{counts} of shape {shape_of(data.train)[1:]}, sha256 {digest_of(data.train, data.test)}"


def digest_of(*parts: Any) -> str:
    """Return 16 digits of a hash of the values of data.

    If a part takes more than 64 MiB, only evenly spaced rows of that size are hashed, including the first and the last.

    Example:
        >>> digest_of(torch.zeros(3, 2))
        '9d908ecfb6b256de'
    """
    digest = hashlib.sha256()
    for part in [each for whole in parts for _, each in named(whole.parts if isinstance(whole, Columns) else whole)]:
        if part is None:
            continue
        rows = part.values if isinstance(part, EightBit) else part
        size = part.shape[1:].numel() * (1 if isinstance(part, EightBit) else part.dtype.itemsize)
        count = min(len(part), max(2, HASHED // size))
        index = torch.linspace(0, len(part) - 1, count, dtype=torch.float64).round().long()
        for chunk in index.split(max(1, 2**20 // size)):
            digest.update(bytes_of(rows[chunk]))
    return digest.hexdigest()[:16]


def bytes_of(tensor: Tensor) -> memoryview | bytes:
    """Return the bytes of a tensor's numbers, row by row.

    Example:
        >>> bytes(bytes_of(torch.tensor(1.0).expand(1)))
        b'\\x00\\x00\\x80?'
    """
    values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if not values.numel():
        return b""
    # A single number that was expanded counts as contiguous with a stride of 0. Numpy has no bfloat16.
    return values.as_strided((values.numel(),), (1,)).view(torch.uint8).numpy().data


def digest_of_batches(batches: Iterable[Batch]) -> str:
    """Return 16 digits of a hash of the values of batches, up to about 64 MiB.

    Example:
        >>> digest_of_batches([(torch.zeros(3, 2), None)])
        '9d908ecfb6b256de'
    """
    digest, left = hashlib.sha256(), HASHED
    for batch in batches:
        for tensor in tensors_of(batch) if left > 0 else ():
            if tensor.layout is torch.strided and not tensor.is_nested:
                digest.update(bytes_of(tensor))
                left -= tensor.nbytes
    return digest.hexdigest()[:16]


def range_of(data: Data) -> str:
    """Describe the range of the values, for each part if the parts differ; "" if the data are on the disk.

    Example:
        >>> range_of(Data(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]])))
        '0 to 1, '
    """
    if isinstance(data.train, MemoryMapped):
        return ""
    train, test = (_range(part) for part in data[:2])
    return f"{train}, " if train == test else f"{train} (test: {test}), "


def _range(x: Any) -> str:
    values, scale = (x.values, x.scale) if isinstance(x, EightBit) else (x[~x.isnan()], 1.0)
    return f"{values.min().item() / scale:.4g} to {values.max().item() / scale:.4g}" if values.numel() else "all NaN"
