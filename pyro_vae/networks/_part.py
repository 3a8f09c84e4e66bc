"""The representation of a VAE's parts as text, and their training or evaluation mode."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


def kept_arguments(built: object, but: str) -> str:
    """Return as text the constructor arguments that an object keeps under their names, except one of them."""
    names = [name for name in inspect.signature(type(built)).parameters if name in vars(built) and name != but]
    return ", ".join(f"{name}={getattr(built, name)!r}" for name in names)


class Part(nn.Module):
    """A module that shows the arguments it keeps, except the shape of a datum."""

    def extra_repr(self) -> str:
        return kept_arguments(self, but="shape")


@contextmanager
def in_mode(training: bool, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put modules (dropout, batch normalization) in training or evaluation mode, and restore their modes at the end."""
    before = [(module, module.training) for module in modules]
    try:
        for module, _ in before:
            module.training = training
        yield
    finally:
        for module, was_training in before:
            module.training = was_training
