"""The callbacks of a training, which may use its programs and must leave them fit for the next step."""

import warnings
from collections.abc import Callable
from typing import Any

from pyro_vae.programs.modules import depends_on_mode
from pyro_vae.training.programs import Programs

Callback = Callable[..., None]


def watched(programs: Programs, **callbacks: Callback | None) -> list[Any]:
    """Return callbacks after which the programs' modules are in training mode again, and their parameters as they were.

    Arguments:
        programs: the model and the guide.
        callbacks: by the names of the arguments of `fit`; None stays None.
    """
    return [callback and _watched(programs, name, callback) for name, callback in callbacks.items()]


def _watched(programs: Programs, name: str, callback: Callback) -> Callback:
    def call(*args: Any) -> None:
        trained = [each for owner in programs.modules for each in owner.modules() if each.training]
        before = [(each, each.dtype, each.device) for each in programs.parameters]
        callback(*args)
        left = [each for each in trained if not each.training]
        for module in left:
            module.training = True
        if matters := [each for each in left if depends_on_mode(each)]:
            text = f"{name} leaves {type(matters[0]).__name__} in evaluation mode, but the steps train in training mode"
            fix = "let it end with train(); to train with a layer in evaluation mode, call eval() in the programs"
            warnings.warn(f"{text}: {fix}", RuntimeWarning, stacklevel=4)
        for each, dtype, device in before:
            if (each.dtype, each.device) != (dtype, device):
                change = f"from {dtype} on {device} to {each.dtype} on {each.device}"
                fix = "convert the programs before the training, or a copy of them (copy.deepcopy) in the callback"
                raise ValueError(f"{name} converts a parameter {change}, which the steps cannot follow: {fix}")

    return call
