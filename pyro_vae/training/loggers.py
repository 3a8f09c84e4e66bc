"""Loggers: objects whose ``on_epoch`` and ``on_step`` `fit` calls.

log = loggers.TensorBoard("logs")
fit(vae.model, vae.guide, x, on_epoch=log.on_epoch, on_step=log.on_step)
"""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from pyro_vae.runtime.progress import bar

Row = dict[str, float]


class CSV:
    """Writes each row of the history into a file, with a header.

    Arguments:
        path: the file.
        append: keep the rows that the file holds, for a resumed training; otherwise the file is overwritten. Rows of
            epochs that are trained again, as after a crash, are replaced.

    Example:
        >>> import tempfile
        >>> log = CSV(Path(tempfile.mkdtemp()) / "history.csv")
        >>> log.on_epoch({"epoch": 0, "train_loss": 45.5})
        >>> log.path.read_text().split()
        ['epoch,train_loss', '0,45.5']
    """

    def __init__(self, path: str | Path, *, append: bool = False) -> None:
        self.path = Path(path)
        self._append, self._begun = append, False

    def on_epoch(self, row: Row) -> None:
        """Write a row."""
        kept = [] if self._begun else self._rows_before(row)
        with open(self.path, "a" if self._begun else "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not self._begun:
                writer.writerow(row)
            writer.writerows([*kept, row.values()])
        self._begun = True

    def _rows_before(self, row: Row) -> list[list[str]]:
        """Return the complete rows of earlier epochs that the file holds, if rows are appended to it."""
        if not (self._append and self.path.exists()):
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            header, *rows = [*csv.reader(file)] or [[]]
        if header and header != list(row):
            raise ValueError(f"{self.path} has the columns {header}, not {list(row)}: give another file")
        return [each for each in rows if len(each) == len(row) and float(each[header.index("epoch")]) < row["epoch"]]


class TensorBoard:
    """Writes the history, and each ``every``-th step's loss, for TensorBoard.

    Arguments:
        folder: the folder for TensorBoard's files.
        every: log the loss of every so many steps, at least 1; reading a loss waits for the GPU.

    Raises:
        ImportError: if tensorboard is not installed.

    Example:
        >>> log = TensorBoard("logs")  # doctest: +SKIP
        >>> fit(vae.model, vae.guide, x, on_epoch=log.on_epoch, on_step=log.on_step)  # doctest: +SKIP
    """

    def __init__(self, folder: str | Path, every: int = 100) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("this logger needs tensorboard: pip install 'pyro-vae[tensorboard]'") from error
        self.every, self._writer = every, SummaryWriter(str(folder))

    def on_epoch(self, row: Row) -> None:
        """Write the columns of a row that have a value, by epoch."""
        for name, value in _known(row).items():
            self._writer.add_scalar(f"epoch/{name}", value, int(row["epoch"]))
        self._writer.flush()

    def on_step(self, step: int, loss: Tensor) -> None:
        """Write the loss of a step."""
        if step % self.every == 0:
            self._writer.add_scalar("step/loss", float(loss), step)


class MLflow:
    """Logs the history, and each ``every``-th step's loss, into MLflow's active run.

    Arguments:
        every: log the loss of every so many steps, at least 1; reading a loss waits for the GPU.

    Raises:
        ImportError: if mlflow is not installed.

    Example:
        >>> log = MLflow()  # doctest: +SKIP
        >>> with mlflow.start_run():  # doctest: +SKIP
        ...     fit(vae.model, vae.guide, x, on_epoch=log.on_epoch, on_step=log.on_step)
    """

    def __init__(self, every: int = 100) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise ImportError("this logger needs mlflow: pip install 'pyro-vae[mlflow]'") from error
        self.every, self._mlflow = every, mlflow

    def on_epoch(self, row: Row) -> None:
        """Log the columns of a row that have a value, by epoch."""
        self._mlflow.log_metrics(_known(row), step=int(row["epoch"]))

    def on_step(self, step: int, loss: Tensor) -> None:
        """Log the loss of a step."""
        if step % self.every == 0:
            self._mlflow.log_metric("step_loss", float(loss), step=step)


def _known(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "epoch" and not math.isnan(value)}


class Progress:
    """A progress bar with the epoch and the loss; in a notebook, a notebook's bar.

    Arguments:
        epochs: number of epochs.
        steps: number of steps in each epoch.
        shown: whether to show it; with several processes, only the first one does.
    """

    def __init__(self, epochs: int, steps: int, *, shown: bool = True) -> None:
        self.epochs, self.steps = epochs, steps
        self.bar: Any = bar(epochs * steps, "step", shown=shown)

    def on_step(self, step: int, loss: Tensor) -> None:
        """Advance the bar after a step."""
        self.bar.initial = self.bar.initial or step - self.bar.n  # of a training that is resumed
        if self.bar.update(step + 1 - self.bar.n):  # the bar is drawn: read the loss only then, as this waits for a GPU
            text = f"epoch {step // self.steps + 1}/{self.epochs}, {loss.item():.2f} nats per datum"
            self.bar.set_description(text, refresh=False)

    def on_epoch(self, row: Row) -> None:
        """Show the losses of an epoch."""
        test = "" if math.isnan(row["test_loss"]) else f", test {row['test_loss']:.2f}"
        text = f"train {row['train_loss']:.2f}{test} nats per datum"
        self.bar.set_description(f"epoch {row['epoch']:.0f}/{self.epochs}, {text}", refresh=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


def both(ours: Callable[..., None], theirs: Callable[..., None] | None) -> Callable[..., None]:
    """Return a function that calls both functions, or only the first if the second is None."""

    def call(*args: Any) -> None:
        ours(*args)
        if theirs:
            theirs(*args)

    return call
