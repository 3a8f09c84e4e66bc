"""Runs: a config trained into a folder of its own, and read back from it."""

import math
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from pyro_vae import plots
from pyro_vae.data import Data, fingerprint, located
from pyro_vae.files import check_no_link, partial_of, takes_files, write_whole
from pyro_vae.objectives import Objective
from pyro_vae.programs import check_programs, mode, seeded
from pyro_vae.runs.config import Config, read_flags
from pyro_vae.runs.parts import (
    OPTIMIZERS,
    beta_of,
    build_loss,
    check_choice,
    device_named,
    load_data,
    optimizer_of,
    schedule_of,
    transform_of,
)
from pyro_vae.runs.pictures import EVALUATE, MAP_NAMES, Moments, draw, posterior_moments, snapshot_epochs
from pyro_vae.runs.report import write_report
from pyro_vae.runtime.checkpoints import LOCK, Checkpoints, read_tensors, save_tensors
from pyro_vae.runtime.distributed import Ranks
from pyro_vae.training import History, Row, check_loss, check_settings, fit
from pyro_vae.training.checks import check_patience
from pyro_vae.vae import VAE

if TYPE_CHECKING:
    from lightning_fabric import Fabric
from pyro_vae.runs.facts import name_of, values_of
from pyro_vae.runs.metrics import append_metrics, write_metrics
from pyro_vae.runs.reading import WEIGHTS, check_data, find_data, read_moments, seeded_vae, write_cpu

SHOWN = 1000  # test data in the pictures


class Run:
    """A config made ready to train: its data, its VAE and its folder, all checked before anything is written.

    Arguments:
        config: the config.
        folder: where the run will be written, by rank 0; it must not exist, or be empty.
        fabric: a launched Fabric, where several processes train.
        resume: continue the run that the folder holds, with its own config.

    Raises:
        ValueError: for anything in the config, the data or the folder that does not fit.
    """

    def __init__(self, config: Config, folder: Path, fabric: "Fabric | None" = None, *, resume: bool = False) -> None:
        for name, choices in (("evaluate", EVALUATE), ("latent_map", MAP_NAMES)):
            check_choice(name, getattr(config, name), choices)
        config = replace(config, data=located(config.data))
        self.config, self.folder, self.fabric, self.ranks = config, folder, fabric, Ranks(fabric)
        self.resume, self.lock = resume, FileLock(folder / LOCK)
        if self.ranks.rank == 0 and not resume:
            check_folder(folder)
        fix = write_cpu(folder) if resume else "take --device cpu"
        self.device = fabric.device if fabric else device_named(config.device, fix)
        self.transform = transform_of(config)
        self.data = find_data(folder, config) if resume else load_data(config)
        self.of = config.identity() | {"data": fingerprint(self.data)}
        if resume and (folder / WEIGHTS).exists():
            check_data(folder, config, self.data)
        on_save = self.save_weights if self.ranks.rank == 0 else None
        self.checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint_minutes, on_save, self.of)
        self.resumed = resume and self.checkpoints.last.exists()
        passed_on = ("epochs", "batch_size", "clip_norm", "engine", "precision", "on_nan")
        self.settings: dict[str, Any] = {name: getattr(config, name) for name in passed_on}
        check_settings(beta=config.beta, lr=config.lr, device=self.device, **self.settings)
        self.optimizer, self.schedule = optimizer_of(config), schedule_of(config)
        check_patience(config.patience, self.data.test)
        if self.resumed:  # an epoch that was begun is not undone
            _, about = self.checkpoints.read()
            begun = about["epoch"] - (about["batches"] == 0)
            self.config = config = replace(config, epochs=max(config.epochs, begun))
            self.settings["epochs"] = config.epochs
            planned = read_flags(folder / "config.yaml").get("epochs", config.epochs)
            if config.lr_schedule == "cosine" and config.epochs != planned:
                fix = "train anew, or take another schedule from the start"
                raise ValueError(f"the cosine schedule of this run ends at epoch {planned}, not {config.epochs}: {fix}")
        self.loss = build_loss(config, len(self.data.train))
        check_loss(self.loss, beta_of(config, steps_per_epoch=1), config.memory)
        self.shape = tuple(self.data.train.shape[1:])
        self.vae = seeded_vae(config, self.shape).to(self.device)
        if resume and not self.resumed and (folder / WEIGHTS).exists():
            self._check_untrained()
        for name in ("train", "test"):
            check_part(self.vae, config, self.data, name, self.device)

    @property
    def steps_per_epoch(self) -> int:
        """How many batches, of all ranks together, an epoch has."""
        return -(-len(self.data.train) // (self.config.batch_size * self.ranks.size))

    def train(
        self, on_epoch: Callable[[Row], None] | None = None, on_step: Callable[[int, Tensor], None] | None = None
    ) -> History:
        """Train, writing config, metrics and checkpoints as they come, then the pictures and the report.

        A lock, which dies with this process, keeps others from the folder.

        Arguments:
            on_epoch: called with each row of the history, on rank 0.
            on_step: called after each step with its number and loss.

        Returns:
            The history.

        Raises:
            ValueError, ConnectionError, Stopped: as `fit`; where another process holds the folder.
            OSError: where the folder cannot be written.
        """
        try:
            return self._train(on_epoch, on_step)
        finally:
            self.lock.release()

    def _hold_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (LOCK, "checkpoints"):
            check_no_link(self.folder / name)
        try:
            self.lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"another process is training in {self.folder}: wait for it, or give --out") from error
        if not self.resume:
            check_folder(self.folder)

    def _check_untrained(self) -> None:
        """Refuse to begin anew over weights that were trained: their checkpoint has not come with the folder."""
        there, here = read_tensors(self.folder / WEIGHTS)[0], self.vae.state_dict()
        if there.keys() != here.keys() or not all(torch.equal(there[name], here[name].cpu()) for name in here):
            anew = f"pyro-vae train --config {shlex.quote(str(self.folder / 'config.yaml'))} --out DIR"
            reason = f"{self.folder} holds trained weights, but no checkpoints/last.safetensors to go on from"
            raise ValueError(f"{reason}: copy it there, or train anew by {anew}")

    def save_weights(self) -> None:
        """Write the weights as they are."""
        about = {"shape": list(self.shape), "of": self.of}
        save_tensors(self.folder / WEIGHTS, self.vae.state_dict(), about)

    def _train(self, on_epoch: Callable[[Row], None] | None, on_step: Callable[[int, Tensor], None] | None) -> History:
        config = self.config
        watched = snapshot_epochs(config.epochs)
        if self.resume and self.ranks.rank == 0:
            self._hold_folder()
            _, about = self.checkpoints.read() if self.resumed else ({}, {"history": []})
            write_metrics(self.folder / "metrics.csv", about["history"])
            saved = read_flags(self.folder / "config.yaml")
            if (saved.get("data"), saved.get("epochs")) != (config.data, config.epochs):  # moved, or extended
                config.save(self.folder / "config.yaml")
            if self.resumed and self._read_snapshot(0) is None:  # of the weights from the seed, which stand here still
                self._save_snapshot(0)

        def record(row: Row) -> None:
            if row["epoch"] == 0 and not self.resume:  # all that could be refused has passed
                self._hold_folder()
                config.save(self.folder / "config.yaml")
                self.save_weights()
            append_metrics(self.folder / "metrics.csv", row)
            if row["epoch"] in watched:
                self._save_snapshot(int(row["epoch"]))
            if on_epoch:
                on_epoch(row)

        history = fit(
            self.vae.model,
            config_enumerate(self.vae.guide) if isinstance(self.loss, TraceEnum_ELBO) else self.vae.guide,
            self.data.train,
            loss=self.loss,
            optimizer=self.optimizer,
            schedule=self.schedule,
            patience=config.patience,
            seed=config.seed,
            validation=self.data.test,
            beta=beta_of(config, self.steps_per_epoch),
            memory=config.memory,
            transform=self.transform,
            fabric=self.fabric,
            checkpoints=self.checkpoints,
            resume=self.checkpoints.folder if self.resumed else None,
            on_step=on_step,
            on_epoch=record if self.ranks.rank == 0 else None,
            **self.settings,
        )
        if history.interrupted:  # a run is finished, or goes on from its last checkpoint
            raise KeyboardInterrupt
        if self.ranks.rank:
            return history
        if self.resumed or config.patience:  # it may have been stopped between a checkpoint and these; the best ones
            self.save_weights()
        row = row_of_weights(config, history)
        snapshots = self._snapshots(int(row["epoch"]))
        with seeded(config.seed, self.device), mode(False, self.vae):
            figures, left_out = draw(self.vae, config, history, snapshots, self.shown, self.data.test_labels)
        for name, figure in figures.items():
            write_whole(self.folder / f"{name}.png", plots.png(figure))
        without = {f"no {name.replace('_', ' ').replace('kl', 'KL')}": reason for name, reason in left_out.items()}
        best = f"of epoch {row['epoch']:.0f}, the trained one with the lowest test loss, {row['test_loss']:.3f}"
        weights = {"weights": best} if config.patience else {}
        write_report(self.folder, {**self.facts(), **weights, **without}, history, list(figures))
        return history

    def _snapshot(self, epoch: int) -> Path:
        return self.checkpoints.folder / f"posteriors-{epoch}.safetensors"

    def _save_snapshot(self, epoch: int) -> None:
        """Write the posteriors of the weights as they are."""
        self.checkpoints.folder.mkdir(exist_ok=True)
        about = {"epoch": epoch, "of": self.of}
        with seeded(self.config.seed, self.device), mode(False, self.vae):  # what is looked at stays as it is
            mean, scale = posterior_moments(self.vae, self.shown)
        save_tensors(self._snapshot(epoch), {"mean": mean, "scale": scale}, about)

    def _read_snapshot(self, epoch: int) -> Moments | None:
        """Return the posteriors of an epoch, or None where there is no file of this run's that holds them."""
        about = {"epoch": epoch, "of": self.of}
        with suppress(ValueError):
            return read_moments(self._snapshot(epoch), min(SHOWN, len(self.data.test)), about)
        return None

    def _snapshots(self, last: int) -> dict[str, Moments]:
        """Return the posteriors at the start, as near to half time as there are some, and at the end, by title."""
        if self._read_snapshot(last) is None:
            self._save_snapshot(last)
        kept = {epoch: moments for epoch in range(last + 1) if (moments := self._read_snapshot(epoch))}
        middle = min(kept, key=lambda epoch: abs(epoch - last // 2))
        return {f"epoch {epoch}": kept[epoch] for epoch in sorted({min(kept), middle, last})}

    @property
    def shown(self) -> Tensor:
        """The test data that the pictures show, at most `SHOWN`, as the encoder sees them."""
        return as_seen(self.config, self.data.test[:SHOWN].to(self.device))

    def facts(self) -> dict[str, str]:
        """What the report says of the run in words."""
        count = sum(parameter.numel() for parameter in self.vae.parameters())
        shape = "x".join(map(str, self.shape))
        grey = ", grey pixels scored by cross-entropy" if getattr(self.vae.decoder, "grey", False) else ""
        epochs = "1 epoch" if self.config.epochs == 1 else f"{self.config.epochs} epochs"
        seen = {"none": "not binarized", "threshold": "binarized at one half", "dynamic": "binarized anew every epoch"}
        return {
            "data": f"{self.config.data}: {len(self.data.train)} train, {len(self.data.test)} test, {shape}",
            "values": f"{values_of(self.config, self.data)}; {seen[self.config.binarize]}"
            f" (--binarize {self.config.binarize}){grey}",
            "prior": name_of(self.vae.prior),
            "encoder": name_of(self.vae.encoder),
            "decoder": name_of(self.vae.decoder),
            "latent dimensions": str(self.config.latent_dim),
            "parameters": f"{count:,}",
            "objective": self._objective(),
            "training": f"{epochs}, batch {self.config.batch_size}, {self._optimizing()},"
            f" seed {self.config.seed}, {self.device}{f', {self.ranks.size} processes' if self.ranks.size > 1 else ''}",
        }

    def _optimizing(self) -> str:
        """Name the optimizer, its settings and the schedule of its learning rate."""
        config = self.config
        settings = {"weight decay": config.weight_decay, "eps": config.eps}
        more = [f"{name} {value:g}" for name, value in settings.items() if value is not None]
        more += [f"{config.lr_schedule} schedule"] * bool(config.lr_schedule)
        name = OPTIMIZERS[config.optimizer or "adam"].__name__
        return ", ".join([f"{name} {config.lr:g}", *more])

    def _objective(self) -> str:
        """Name the objective, with its parameters, and the weight of the KL where there is one."""
        ours, config = isinstance(self.loss, Objective), self.config
        given = ", ".join(f"{name}={value}" for name, value in config.options.get("loss", {}).items())
        name = repr(self.loss) if ours else config.loss + f"({given})" * bool(given)
        if ours and not self.loss.weighs_kl:
            return name
        return f"{name}, beta {config.beta:g}" + f", from 0 over {config.warm_up} epochs" * bool(config.warm_up)


def row_of_weights(config: Config, history: History) -> Row:
    """Return the row of the epoch whose weights a run has at its end: with patience, that of the lowest test loss."""
    rows = [row for row in history[1:] if not math.isnan(row["test_loss"])] if config.patience else []
    return min(rows or history[-1:], key=lambda row: row["test_loss"])


def as_seen(config: Config, x: Tensor) -> Tensor:
    """Return data as the programs see them: binarized, by the config's seed, where it says so."""
    transform = transform_of(config)
    with seeded(config.seed, x.device):
        return transform(x) if transform else x


def check_part(vae: VAE, config: Config, data: Data, name: str, device: torch.device) -> None:
    """Refuse the "train" or the "test" part of data that a VAE does not take, as `check_programs` does."""
    of = f" of data.load({config.data!r}).{name}"  # a file of one part is split in another order
    with seeded(config.seed, device), mode(False, vae):
        check_programs(vae.model, vae.guide, getattr(data, name).to(device), transform_of(config), of=of)


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything, or cannot be written.

    Raises:
        ValueError: with the fix.
    """
    if "\0" in str(folder):
        raise ValueError(f"no folder can be named {str(folder)!r}; give --out another one")
    if not folder.exists():
        check_no_link(folder)
    if (folder / "config.yaml").exists():
        raise ValueError(f"{folder} already holds a run; give --out another folder")
    left = {folder / LOCK, partial_of(folder / "config.yaml")}  # by a process that was killed as it began
    if folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - left):
        raise ValueError(f"{folder} exists and is not an empty folder; give --out another one")
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not takes_files(parent):
        raise ValueError(
            f"{folder} cannot be written: {parent} is not a folder that you can write to; give --out another one"
        )


def what_stands(folder: Path) -> str:
    """Say what a run that ended before its time has left."""
    if not (folder / "config.yaml").exists():
        return "nothing had been written"
    return f"progress is saved; continue with: pyro-vae train --resume {shlex.quote(str(folder))}"
