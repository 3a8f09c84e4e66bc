"""Runs: a config trained into a folder of its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from pyro_vae.data import located
from pyro_vae.files import check_apart
from pyro_vae.runs.config import Config
from pyro_vae.runs.experiment import Experiment
from pyro_vae.runs.folder import RunFolder
from pyro_vae.runs.parts import check_choice, device_named, load_data
from pyro_vae.runs.pictures import EVALUATE, MAP_NAMES
from pyro_vae.runs.recorder import Recorder
from pyro_vae.runtime.checkpoints import Checkpoints
from pyro_vae.runtime.distributed import Ranks
from pyro_vae.training import History, Row

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Run:
    """A training that is ready to start: its experiment and its folder, checked before anything is written.

    Arguments:
        config: the config.
        folder: the folder of the run, written by rank 0; it must be empty or not exist.
        fabric: a launched Fabric if several processes train.
        resume: continue the run in the folder, with its own config.

    Raises:
        ValueError: for anything in the config, the data or the folder that does not fit.
    """

    def __init__(self, config: Config, folder: Path, fabric: "Fabric | None" = None, *, resume: bool = False) -> None:
        for name, choices in (("evaluate", EVALUATE), ("latent_map", MAP_NAMES)):
            check_choice(name, getattr(config, name), choices)
        config = replace(config, data=located(config.data))
        self.folder, self.fabric, self.ranks, self.resume = RunFolder(folder), fabric, Ranks(fabric), resume
        if self.ranks.rank == 0 and not resume:
            self.folder.check_new()
            check_apart(folder, config.data)
        fix = self.folder.write_cpu if resume else "take --device cpu"
        device = fabric.device if fabric else device_named(config.device, fix)
        data = self.folder.load_data(config) if resume else load_data(config)
        vae = self.folder.first_vae(config, tuple(data.train.shape[1:])) if resume else None
        self.experiment = Experiment(config, data, vae, device)
        written = self.folder.checkpoints, config.checkpoint_minutes, self._save_weights
        self.checkpoints = Checkpoints(*written, identity=self.experiment.identity)
        self.from_checkpoint = resume and self.checkpoints.last.exists()
        if self.from_checkpoint:
            _, about = self.checkpoints.read()
            self.experiment.config = self.folder.with_epochs(config, about["epoch"] - (about["batches"] == 0))
        elif resume:
            self.folder.check_untrained(self.experiment.vae)
        self.experiment.check_training()
        self.recorder = Recorder(self.folder, self.experiment, self.ranks.size)

    def train(
        self, on_epoch: Callable[[Row], None] | None = None, on_step: Callable[[int, Tensor], None] | None = None
    ) -> History:
        """Train, and write the config, metrics and checkpoints, and at the end the pictures and the report.

        The folder is locked against other processes; the lock ends with this process.

        Arguments:
            on_epoch: called with each row of the history, on rank 0.
            on_step: called after each step with its number and loss.

        Returns:
            The history.

        Raises:
            ValueError, ConnectionError, Stopped: as `fit`; ValueError also if another process has locked the folder.
            OSError: if the folder cannot be written.
        """

        def record(row: Row) -> None:
            if row["epoch"] == 0 and not self.resume:  # all checks have passed
                self.recorder.begin()
            self.recorder.record(row)
            if on_epoch:
                on_epoch(row)

        first = self.ranks.rank == 0
        with self.folder.released():
            if self.resume and first:
                self.recorder.resume(self.checkpoints.read()[1]["history"] if self.from_checkpoint else [])
            history = self.experiment.fit(
                self.checkpoints,
                resume=self.from_checkpoint,
                fabric=self.fabric,
                on_step=on_step,
                on_epoch=record if first else None,
            )
            if history.interrupted:  # the run is not finished, and can be resumed from its last checkpoint
                raise KeyboardInterrupt
            if first:
                self.recorder.finish(history)
        return history

    def _save_weights(self) -> None:
        if self.ranks.rank == 0:
            self.folder.save_weights(self.experiment)
