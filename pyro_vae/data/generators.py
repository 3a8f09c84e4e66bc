"""The random generators that an iterable of batches draws from, so that a run can be resumed."""

from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn


class Sources:
    """Sources of random numbers, whose states are read and set as one.

    Example:
        >>> sources = Sources(torch.Generator(), torch.Generator())
        >>> sources.set_state(sources.get_state())
    """

    def __init__(self, *generators: torch.Generator) -> None:
        self.generators = generators

    def get_state(self) -> Tensor:
        """Return the states, one behind another."""
        return torch.cat([generator.get_state() for generator in self.generators])

    def set_state(self, states: Tensor) -> None:
        """Set all of them."""
        for generator, state in zip(self.generators, states.chunk(len(self.generators)), strict=True):
            generator.set_state(state.clone())


def drawn(items: Iterable[Any], sources: Sources, states: Tensor) -> Iterator[Any]:
    """Yield items that draw from sources in other states, which are as before whenever an item has been made."""
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


def generators_in(value: Any) -> list[torch.Generator]:
    """Return the generators on the CPU that an iterable holds, itself or in its samplers and data sets."""
    found, seen, waiting = [], set[int](), [value]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type | ModuleType | FunctionType | Tensor | nn.Module):
            continue
        seen.add(id(each))
        if isinstance(each, torch.Generator):
            found += [each] if each.device.type == "cpu" else []
        waiting += reversed(vars(each).values()) if hasattr(each, "__dict__") else []
    return found
