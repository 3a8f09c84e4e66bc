"""What a training measures: a row for each epoch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro_vae.data import Rows
from pyro_vae.diagnostics.evaluation import Bound, mean_bound
from pyro_vae.distributions.moments import NoMeanError
from pyro_vae.programs.handlers import Program
from pyro_vae.runtime.checkpoints import COLUMNS

Row = dict[str, float]


class History(list[Row]):
    """What `fit` measured: one row per epoch, epoch 0 being the state before the first step.

    Each row has the keys of ``pyro_vae.training.COLUMNS``. Losses are negative bounds in nats per datum, at KL weight
    1; the test columns are NaN without validation data. ``train_...`` are means over the epoch's steps (for epoch 0,
    an evaluation); ``learning_rate`` is that of the optimizer's first group of parameters at the end of the epoch's
    steps; ``seconds`` is the time that they took. ``engine`` says in a line how the steps were
    computed, and why; ``interrupted`` whether Ctrl-C ended the training.

    Example:
        >>> history = History([{"epoch": 0, "train_loss": 45.0}, {"epoch": 1, "train_loss": 30.0}])
        >>> history.column("train_loss")
        [45.0, 30.0]
    """

    engine: str = ""
    interrupted: bool = False

    def column(self, name: str) -> list[float]:
        """Return one column, epoch by epoch."""
        return [row[name] for row in self]


@dataclass
class Measure:
    """Measures the programs after each epoch.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        test: data for the test columns, or None.
        settings: what `pyro_vae.diagnostics.evaluation.mean_bound` is called with.
        check: called after each epoch, before anything is measured.
    """

    model: Program
    guide: Program
    test: Rows | None
    settings: dict[str, Any]
    check: Callable[[], None] = lambda: None

    def bound(self, x: Rows, at: str = "sample") -> Bound:
        """Return the negative bound of data and its parts, in nats per datum."""
        return mean_bound(self.model, self.guide, x, at=at, **self.settings)

    def row(self, epoch: int, train: Bound, rate: float, seconds: float) -> Row:
        """Return the row of an epoch, with the test columns as the programs are now."""
        return dict(zip(COLUMNS, (epoch, *train, *self._test_columns(), rate, seconds), strict=True))

    def _test_columns(self) -> tuple[float, float, float, float]:
        if self.test is None:
            return math.nan, math.nan, math.nan, math.nan
        at_sample = self.bound(self.test)
        try:
            return *at_sample, self.bound(self.test, "mean").loss
        except NoMeanError:
            return *at_sample, math.nan


OnStep = Callable[[int, Any], None]
OnEpoch = Callable[[Row], None]
