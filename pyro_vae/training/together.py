"""The callbacks of several processes, which end together."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_vae.runtime.distributed import BETWEEN_LOOKS, Ranks
from pyro_vae.training.history import OnEpoch, OnStep, Row
from pyro_vae.training.loop import StopTraining


def together(ranks: Ranks, on_step: OnStep | None, on_epoch: OnEpoch | None) -> tuple[OnStep | None, OnEpoch | None]:
    """Return callbacks with which all ranks end if one raises `StopTraining`; a single rank keeps its own."""
    if ranks.size == 1:
        return on_step, on_epoch
    callbacks = _Together(ranks, on_step, on_epoch)
    return callbacks.on_step, callbacks.on_epoch


class _Together:
    """The callbacks of one of several ranks. If one rank raises `StopTraining`, all end at the next look at the others.

    Arguments:
        ranks: the processes of the training.
        on_step: called after each step on this rank.
        on_epoch: called after each epoch on this rank.
    """

    def __init__(self, ranks: Ranks, on_step: OnStep | None, on_epoch: OnEpoch | None) -> None:
        self._ranks, self._on_step, self._on_epoch, self._stopping = ranks, on_step, on_epoch, False

    def on_step(self, step: int, loss: Tensor) -> None:
        """Call this rank's callback, and after every `BETWEEN_LOOKS` steps look at the others."""
        self._call(self._on_step, step, loss)
        if (step + 1) % BETWEEN_LOOKS == 0:
            self._look()

    def on_epoch(self, row: Row) -> None:
        """Call this rank's callback, and look at the others."""
        self._call(self._on_epoch, row)
        self._look()

    def _call(self, callback: Callable[..., None] | None, *args: Any) -> None:
        try:
            if callback:
                callback(*args)
        except StopTraining:
            self._stopping = True

    def _look(self) -> None:
        if self._ranks.any(self._stopping):
            raise StopTraining
