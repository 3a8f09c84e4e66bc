"""How the parts of a VAE show themselves, and the mode that they are in."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


def kept_arguments(built: object, but: str) -> str:
    """Return the arguments of a constructor that its object keeps under their names, but for one of them."""
    names = [name for name in inspect.signature(type(built)).parameters if name in vars(built) and name != but]
    return ", ".join(f"{name}={getattr(built, name)!r}" for name in names)


class Part(nn.Module):
    """A module that shows the arguments it keeps, but for the shape of a datum."""

    def extra_repr(self) -> str:
        return kept_arguments(self, but="shape")


@contextmanager
def in_mode(training: bool, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put modules (dropout, batch normalization) in training or evaluation mode, and each back into its own."""
    before = [(module, module.training) for module in modules]
    try:
        for module, _ in before:
            module.training = training
        yield
    finally:
        for module, was_training in before:
            module.training = was_training
