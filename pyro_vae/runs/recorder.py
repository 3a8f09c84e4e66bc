"""Writes the results of a training into the folder of its run."""

import math
from collections.abc import Sequence

from pyro_vae import plots
from pyro_vae.files import write_whole
from pyro_vae.runs.config import Config
from pyro_vae.runs.experiment import SHOWN, Experiment
from pyro_vae.runs.facts import facts_of
from pyro_vae.runs.folder import RunFolder
from pyro_vae.runs.metrics import append_metrics
from pyro_vae.runs.pictures import Moments, draw, posterior_moments, snapshot_epochs
from pyro_vae.runs.report import write_report
from pyro_vae.training import History, Row


class Recorder:
    """Writes rows, weights and posteriors during a training, and at its end the pictures and the report.

    Arguments:
        folder: the folder of the run.
        experiment: the experiment that is trained.
        processes: the number of processes that train it.
    """

    def __init__(self, folder: RunFolder, experiment: Experiment, processes: int = 1) -> None:
        self.folder, self.experiment, self.processes = folder, experiment, processes

    def begin(self) -> None:
        """Begin a new run: create its folder, and write its config and its weights before the first step."""
        self.folder.hold()
        self.folder.check_new()
        self.experiment.config.save(self.folder.config)
        self.folder.save_weights(self.experiment)

    def resume(self, rows: Sequence[Row]) -> None:
        """Continue a run whose checkpoint has these rows."""
        self.folder.hold()
        self.folder.rewrite(self.experiment.config, rows)
        if rows and self._moments(0) is None:  # the VAE still has the weights from the seed
            self._save_moments(0)

    def record(self, row: Row) -> None:
        """Write a row, and the posteriors at the start, at half time and at the end."""
        self.folder.check_place()
        append_metrics(self.folder.metrics, row)
        if row["epoch"] in snapshot_epochs(self.experiment.config.epochs):
            self._save_moments(int(row["epoch"]))

    def finish(self, history: History) -> None:
        """Write the weights, the pictures and the report."""
        experiment, config = self.experiment, self.experiment.config
        self.folder.save_weights(experiment)  # with patience the best ones, not those of the last checkpoint
        row = row_of_weights(config, history)
        snapshots, about = (
            self._snapshots(int(row["epoch"])),
            (experiment.data.test_labels, experiment.data.label_names),
        )
        with experiment.evaluating():
            figures, left_out = draw(experiment.vae, config, history, snapshots, experiment.shown, *about)
        facts = facts_of(experiment, self.processes)
        if "no bound" in facts and "curves" in figures:
            figures["curves"].axes[0].set_title("loss (no bound)")
        for name, figure in figures.items():
            write_whole(self.folder.path / f"{name}.png", plots.png(figure))
        if config.patience:
            best = f"of epoch {row['epoch']:.0f}, which has the lowest test loss, {row['test_loss']:.3f}"
            facts["weights"] = best
        facts |= {f"no {name.replace('_', ' ').replace('kl', 'KL')}": reason for name, reason in left_out.items()}
        write_report(self.folder.path, facts, history, row, list(figures))

    def _save_moments(self, epoch: int) -> None:
        experiment = self.experiment
        with experiment.evaluating():
            moments = posterior_moments(experiment.vae, experiment.shown)
        self.folder.save_moments(epoch, moments, {"epoch": epoch, "of": experiment.identity})

    def _moments(self, epoch: int) -> Moments | None:
        about = {"epoch": epoch, "of": self.experiment.identity}
        return self.folder.load_moments(epoch, min(SHOWN, len(self.experiment.data.test)), about)

    def _snapshots(self, last: int) -> dict[str, Moments]:
        """Return the posteriors at the start, near half time and at the end, by title."""
        if self._moments(last) is None:
            self._save_moments(last)
        kept = {epoch: moments for epoch in range(last + 1) if (moments := self._moments(epoch))}
        middle = min(kept, key=lambda epoch: abs(epoch - last // 2))
        return {f"epoch {epoch}": kept[epoch] for epoch in sorted({min(kept), middle, last})}


def row_of_weights(config: Config, history: History) -> Row:
    """Return the row of the epoch whose weights a run has at its end: with patience the best one."""
    rows = [row for row in history[1:] if not math.isnan(row["test_loss"])] if config.patience else []
    return min(rows or history[-1:], key=lambda row: row["test_loss"])
