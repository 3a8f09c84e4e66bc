"""Seeds, and contexts of random numbers that leave the random state of the process as it was."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from numbers import Integral

import numpy as np
import torch
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK

_TURN = threading.RLock()


def as_seed(seed: int) -> int:
    """Return a seed, or refuse what torch does not accept as one.

    Raises:
        TypeError, ValueError: with the value received.

    Example:
        >>> as_seed(-1)
        -1
    """
    if not isinstance(seed, Integral):
        raise TypeError(f"seed must be an integer, not {seed!r}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be from -2^63 to 2^64 - 1, not {seed!r}")
    return int(seed)


def _wait_for_short_locks() -> None:
    """Wait until another thread that trains has ended its draw or import; a forked process could never end them."""
    if _TURN.acquire(blocking=False):
        _TURN.release()
        return
    for name, module in list(sys.modules.items()):
        if getattr(getattr(module, "__spec__", None), "_initializing", False):
            with suppress(ImportError):
                import_module(name)  # returns when the other thread's import has ended; torch imports much lazily
    torch.default_generator.get_state()


def _take_turns_anew() -> None:
    """Remove what a training in another thread has left in a forked process, to which the thread does not belong.

    Its lock would be held for ever, and its handlers and plates would be around the programs of this process.
    """
    global _TURN
    if _TURN.acquire(blocking=False):
        _TURN.release()
    else:
        _TURN = threading.RLock()
        _PYRO_STACK.clear()
        _DIM_ALLOCATOR._stack.clear()


def noise_seed(seed: int) -> int:
    """Return the seed of an evaluation's noise, which differs from that of ``torch.manual_seed(seed)``.

    Otherwise data that were made after ``torch.manual_seed(seed)`` would meet the same noise again.

    Example:
        >>> noise_seed(0) == noise_seed(0) != noise_seed(1)
        True
    """
    return int(np.random.SeedSequence(as_seed(seed) % 2**64).generate_state(1)[0])


if hasattr(os, "register_at_fork"):  # where processes can be forked
    os.register_at_fork(before=_wait_for_short_locks, after_in_child=_take_turns_anew)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random state on the CPU and on a device, and restore both at the end.

    Both belong to the whole process, and so does Pyro's stack of handlers; so only one thread at a time is let in.
    """
    cuda = device.type == "cuda"
    seed = as_seed(seed)
    with _TURN, torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
