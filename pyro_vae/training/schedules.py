"""Schedules of the learning rate: torch's schedulers, stepped after each epoch or after each step."""

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from pyro_vae.arguments import as_function
from pyro_vae.training.descriptions import described

Row = dict[str, float]
Factory = Callable[[torch.optim.Optimizer], LRScheduler]


class PerStep:
    """A schedule that advances after each step of the training, instead of after each epoch.

    ``OneCycleLR`` and ``CyclicLR`` do so without it.

    Arguments:
        schedule: makes a scheduler of an optimizer.

    Example:
        >>> from functools import partial
        >>> schedule = PerStep(partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.999))
        >>> type(schedule(torch.optim.SGD([torch.zeros(1)], lr=0.1))).__name__
        'ExponentialLR'
    """

    def __init__(self, schedule: Factory) -> None:
        self.schedule = as_function(schedule, "schedule")

    def __call__(self, optim: torch.optim.Optimizer) -> LRScheduler:
        return self.schedule(optim)


class Schedule:
    """The schedule of a training's learning rate.

    Arguments:
        scheduler: one of torch's, or None for a constant rate.
        per_step: step it after each step, not after each epoch.
    """

    def __init__(self, scheduler: LRScheduler | None = None, *, per_step: bool = False) -> None:
        self.scheduler, self.per_step = scheduler, per_step or isinstance(scheduler, OneCycleLR | CyclicLR)

    def after_step(self) -> None:
        """Advance a schedule per step."""
        if self.scheduler and self.per_step:
            with _too_long():
                self.scheduler.step()

    def after_epoch(self, row: Row) -> None:
        """Advance a schedule per epoch; ``ReduceLROnPlateau`` gets the test loss, or without one the training loss."""
        if self.scheduler and not self.per_step:
            if isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step(row["train_loss"] if math.isnan(row["test_loss"]) else row["test_loss"])
            else:
                self.scheduler.step()

    def go_to(self, rows: Sequence[Row], steps: int) -> None:
        """Advance a new schedule by the epochs of these rows of the history, or by so many steps."""
        if self.scheduler and steps:
            self.scheduler.optimizer._opt_called = True  # type: ignore[attr-defined]  # as steps were taken before
        for row in rows if not self.per_step else ():
            self.after_epoch(row)
        for _ in range(steps if self.per_step and self.scheduler else 0):
            self.after_step()

    def described(self) -> str | None:
        """Describe the schedule as it begins, for comparison on resuming."""
        if self.scheduler is None:
            return None
        per_step = " after each step" if self.per_step else ""
        return described(_parts(self.scheduler)).replace("list", type(self.scheduler).__name__) + per_step


def schedule_of(schedule: Factory | None, optim: torch.optim.Optimizer, own: LRScheduler | None) -> Schedule:
    """Make the schedule of an optimizer.

    Arguments:
        schedule: the argument of `fit`.
        optim: the optimizer.
        own: the scheduler that the optimizer came with, if any.

    Raises:
        TypeError, ValueError: with what was received and the fix.

    Example:
        >>> optim = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> schedule_of(lambda optim: None, optim, None)
        Traceback (most recent call last):
        ...
        TypeError: schedule must make a scheduler of the optimizer, as partial(StepLR, step_size=10) does, not None
    """
    if schedule is None:
        return Schedule(own)
    if own is not None:
        raise ValueError(f"the optimizer comes with a scheduler, {type(own).__name__}: leave out one of the two")
    as_function(schedule, "schedule")
    try:
        made = schedule(optim)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"the schedule does not fit {type(optim).__name__}: {error}") from error
    if not isinstance(made, LRScheduler):
        such = "as partial(StepLR, step_size=10) does"
        raise TypeError(f"schedule must make a scheduler of the optimizer, {such}, not {made!r}")
    if made.optimizer is not optim:
        fix = "use the optimizer that the schedule is called with"
        raise ValueError(f"the schedule made a {type(made).__name__} of another optimizer: {fix}")
    if isinstance(schedule, PerStep) and isinstance(made, ReduceLROnPlateau):
        raise ValueError("ReduceLROnPlateau needs the loss of an epoch, not of a step: give it without PerStep")
    return Schedule(made, per_step=isinstance(schedule, PerStep))


@contextmanager
def _too_long() -> Any:
    try:
        yield
    except ValueError as error:
        fix = "let it last for epochs times the steps of an epoch"
        raise ValueError(f"the schedule ends before the training: {error}; {fix}") from error


def _parts(scheduler: LRScheduler) -> list[Any]:
    """Return the settings of a scheduler, and of the schedulers within it."""
    parts = map(_parts, getattr(scheduler, "_schedulers", ()))
    return [type(scheduler), scheduler.state_dict(), getattr(scheduler, "lr_lambdas", None), *parts]
