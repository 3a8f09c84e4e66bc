"""How much of a computation fits into a number of bytes. Depends on torch only."""

import re
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KEPT = 2**25  # bytes: freed blocks smaller than this may be kept for reuse, up to twice as many bytes in all


def as_bytes(memory: int | str) -> int:
    """Return an amount of memory in bytes, or refuse what is not one.

    Arguments:
        memory: a number of bytes, at least 1, or a number with a unit: "512MB", "1.5 GB", "2GiB". MB is 10^6 bytes and
            MiB 2^20, and likewise the others, up to T.

    Returns:
        The bytes.

    Raises:
        TypeError: if it is neither an integer nor a text.
        ValueError: if it is below 1 byte, or has another unit.

    Example:
        >>> as_bytes("512MB"), as_bytes("2 GiB"), as_bytes(1000)
        (512000000, 2147483648, 1000)
    """
    if isinstance(memory, bool) or not isinstance(memory, int | str):
        raise TypeError(f"memory must be a number of bytes or a text such as '2GB', not {memory!r}")
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(?:([KMGT]?)(I?)B)?\s*", memory, re.IGNORECASE)
        if not found:
            raise ValueError(f"memory must be a number of bytes, or one with a unit, as '512MB' or '2GiB': {memory!r}")
        number, prefix, binary = found.groups(default="")
        size = float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " ")
        amount = int(min(size, 2**63))  # more than any machine has
    else:
        amount = memory
    if amount < 1:
        raise ValueError(f"memory must be at least 1 byte, not {memory!r}")
    return amount


class _Peak(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, from when they are made until they are freed."""

    now = peak = 0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        known = {storage._cdata for storage in _storages((args, kwargs))}  # what is returned may be a view of it
        for storage in _storages(outputs):
            if storage._cdata not in known:
                known.add(storage._cdata)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return outputs

    def _add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def peak_of(run: Callable[[], Any]) -> int:
    """Estimate the peak memory of a computation, in bytes.

    It is twice the peak of the tensors that are alive, because operations may use as much again internally.

    Arguments:
        run: the computation.

    Returns:
        The bytes.

    Example:
        >>> peak_of(lambda: torch.ones(100) + torch.ones(100))  # three tensors of float32
        2400
    """
    with _Peak() as mode:
        run()
    return max(1, 2 * mode.peak)


def most_within(memory: int, peak: Callable[[int], int], most: int) -> int:
    """Return how many rows of a computation fit into memory, by measuring it with a few numbers of rows.

    The peak grows at most in proportion to the rows, so scaling up from a number that was measured is safe. If a part
    of the peak does not grow with the rows, the next measurement finds room for more.

    Arguments:
        memory: the memory, in bytes.
        peak: returns the peak of the computation, in bytes, for a number of rows.
        most: the largest number of rows that is wanted.

    Returns:
        The number of rows; 0 if not even one fits.

    Example:
        >>> most_within(2000, lambda rows: 400 + 10 * rows, 1000)
        157
    """
    rows = 1
    for _ in range(6):
        rows = min(most, rows * memory // peak(rows))
        if rows in (0, most):
            break
    return rows


def keep_freed_memory() -> None:
    """Have the C library of Linux keep the memory of freed tensors for reuse, up to twice `KEPT`.

    Otherwise it returns large blocks to the system, and their pages must be mapped again, which takes longer than the
    arithmetic on them. A block is large if it is larger than any block that was freed before, up to 32 MiB (mallopt(3),
    M_MMAP_THRESHOLD). So one block of that size is made and freed here.
    """
    torch.empty(KEPT - 2**16, dtype=torch.uint8)
