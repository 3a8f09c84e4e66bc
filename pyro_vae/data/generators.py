"""The random generators that an iterable of batches draws from, so that a run can be resumed."""

import random
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Sources:
    """Random generators whose states are read and set together.

    Example:
        >>> sources = Sources(torch.Generator(), torch.Generator())
        >>> sources.set_state(sources.get_state())
    """

    def __init__(self, *generators: torch.Generator) -> None:
        self.generators = generators

    def get_state(self) -> Tensor:
        """Return the states of all generators, concatenated."""
        return torch.cat([generator.get_state() for generator in self.generators])

    def set_state(self, states: Tensor) -> None:
        """Set the states of all generators."""
        for generator, state in zip(self.generators, states.chunk(len(self.generators)), strict=True):
            generator.set_state(state.clone())


def drawn(items: Iterable[Any], sources: Sources, states: Tensor) -> Iterator[Any]:
    """Yield items that are made while the sources have other states; after each item the sources are as before."""
    rest: Iterator[Any] | None = None
    while True:
        before = sources.get_state()
        sources.set_state(states)
        try:
            rest = iter(items) if rest is None else rest
            item = next(rest)
        except StopIteration:
            return
        finally:
            states = sources.get_state()
            sources.set_state(before)
        yield item


def drawn_apart(items: Iterable[Any], generators: list[torch.Generator], *, anew: bool = False) -> Iterator[Any]:
    """Yield items, and leave torch's random state and the generators as they were.

    Arguments:
        items: the items.
        generators: what they may draw from, beside torch's own random state.
        anew: make the items as if the generators were new, not from the states that they have.
    """
    states = Sources(torch.Generator(), *(torch.Generator() if anew else each for each in generators)).get_state()
    return drawn(items, Sources(torch.default_generator, *generators), states)


def has_lasting_workers(value: Any) -> bool:
    """Whether an iterable holds a loader whose workers, and their random states, persist from pass to pass."""
    return any(getattr(each, "persistent_workers", False) for each in _objects_in(value))


def generators_in(value: Any) -> list[torch.Generator]:
    """Return the generators on the CPU that an iterable holds, itself or in its samplers and data sets."""
    return [each for each in _objects_in(value) if isinstance(each, torch.Generator) and each.device.type == "cpu"]


def numbers_in(value: Any) -> list[Any]:
    """Return what an iterable counts in Python, and the states of the generators of numpy or Python that it holds.

    Example:
        >>> from types import SimpleNamespace
        >>> numbers_in(SimpleNamespace(epoch=3))
        [[3]]
    """
    return [found for each in _objects_in(value) if (found := _numbers_of(each))]


def _numbers_of(value: Any) -> Any:
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    library = type(value).__module__.partition(".")[0] == "torch"  # private counts of torch's loaders do not matter
    own = vars(value).items() if hasattr(value, "__dict__") else ()
    return [each for name, each in own if isinstance(each, int | float | str) and not (library and name[:1] == "_")]


def _objects_in(value: Any) -> list[Any]:
    """Return an iterable and the objects that its attributes hold, and theirs."""
    found, seen, waiting = [], set[int](), [value]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type | ModuleType | FunctionType | Tensor | nn.Module):
            continue
        seen.add(id(each))
        found.append(each)
        waiting += reversed(vars(each).values()) if hasattr(each, "__dict__") else []
    return found
