"""Runs: a config trained into a folder of its own, and read back from it."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor

from pyro_vae import plots
from pyro_vae.checkpoints import LOCK, Checkpoints, check_same, read_tensors, save_tensors
from pyro_vae.config import (
    OPTIMIZERS,
    Config,
    beta_of,
    build,
    build_loss,
    check_choice,
    device_named,
    load_data,
    optimizer_of,
    schedule_of,
    transform_of,
)
from pyro_vae.data import Data, are_images, fingerprint, located, range_of
from pyro_vae.distributed import Ranks
from pyro_vae.files import append, check_no_link, partial_of, takes_files, write_whole
from pyro_vae.networks import Shape
from pyro_vae.objectives import Objective
from pyro_vae.pictures import EVALUATE, MAP_NAMES, Moments, draw, posterior_moments, snapshot_epochs
from pyro_vae.programs import check_programs, mode, seeded
from pyro_vae.report import write_report
from pyro_vae.settings import read_flags
from pyro_vae.training import COLUMNS, History, Row, check_loss, check_settings, fit
from pyro_vae.training.checks import check_patience
from pyro_vae.vae import VAE

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SHOWN = 1000  # test data in the pictures
WEIGHTS = "model.safetensors"
MOST_DIMENSIONS = 60  # of a datum; torch takes 64, those of particles and data among them


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
        fix = _write_cpu(folder) if resume else "take --device cpu"
        self.device = fabric.device if fabric else device_named(config.device, fix)
        self.transform = transform_of(config)
        self.data = _find_data(folder, config) if resume else load_data(config)
        self.of = config.identity() | {"data": fingerprint(self.data)}
        if resume and (folder / WEIGHTS).exists():
            _check_data(folder, config, self.data)
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
        snapshots = self._snapshots(len(history) - 1)
        with seeded(config.seed, self.device), mode(False, self.vae):
            figures, left_out = draw(self.vae, config, history, snapshots, self.shown, self.data.test_labels)
        for name, figure in figures.items():
            write_whole(self.folder / f"{name}.png", plots.png(figure))
        without = {f"no {name.replace('_', ' ').replace('kl', 'KL')}": reason for name, reason in left_out.items()}
        write_report(self.folder, {**self.facts(), **without}, history, list(figures))
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
            "prior": _name(self.vae.prior),
            "encoder": _name(self.vae.encoder),
            "decoder": _name(self.vae.decoder),
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


def values_of(config: Config, data: Data) -> str:
    """Say from where to where the values of data go, and what has been done to them, the same to all."""
    divided = "as the file has them" if config.scale is None else f"divided by {config.scale:g} (--scale)"
    return range_of(data) + ("pixels in [0, 1]" if are_images(config.data) else divided)


def read_moments(path: Path, count: int, about: Mapping[str, Any] | None = None) -> Moments:
    """Read the posteriors' means and standard deviations of so many data, as `posterior_moments` gives them.

    Raises:
        ValueError: as `read_tensors`; where the file holds something else, or says other things about it.
    """
    tensors, head = read_tensors(path)
    if about is not None:
        check_same(path, head.get("about"), about)
    found = [tensors[name] for name in ("mean", "scale") if name in tensors]
    shapes = {tuple(moment.shape) if moment.is_floating_point() else () for moment in found}
    if len(found) < 2 or len(shapes) > 1 or [len(shape) for shape in shapes] != [2] or min(shapes)[0] != count:
        raise ValueError(f"{path} holds no posteriors of {count} data")
    return found[0], found[1]


def _name(module: torch.nn.Module) -> str:
    own = module.extra_repr()
    network = getattr(module, "network", None)
    return f"{type(module).__name__}({own}){', network ' + type(network).__name__ if network is not None else ''}"


def seeded_vae(config: Config, shape: Shape) -> VAE:
    """Build a config's VAE with weights drawn from its seed, leaving torch's random state alone."""
    with seeded(config.seed, torch.device("cpu")):
        return build(config, shape)


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


def write_metrics(path: Path, rows: Sequence[Row]) -> None:
    """Write metrics.csv anew, with these rows and no others; without rows, there is no file."""
    if rows:
        write_whole(path, "\n".join([",".join(COLUMNS), *map(_line, rows), ""]).encode())
    else:
        path.unlink(missing_ok=True)


def _line(row: Row) -> str:
    forms = {"epoch": ".0f", "seconds": ".3f", "learning_rate": ".6g"}
    return ",".join(f"{row[name]:{forms.get(name, '.6f')}}" for name in COLUMNS)


def append_metrics(path: Path, row: Row) -> None:
    """Append a row to metrics.csv, with its header first, in one write.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> append_metrics(path, dict.fromkeys(COLUMNS, 1.0))
        >>> print(path.read_text().splitlines()[1])
        1,1.000000,1.000000,1.000000,1.000000,1.000000,1.000000,1.000000,1,1.000
    """
    header = [] if path.exists() else [",".join(COLUMNS)]
    append(path, "\n".join([*header, _line(row), ""]).encode())


def what_stands(folder: Path) -> str:
    """Say what a run that ended before its time has left."""
    if not (folder / "config.yaml").exists():
        return "nothing had been written"
    return f"progress is saved; continue with: pyro-vae train --resume {shlex.quote(str(folder))}"


def _find_data(folder: Path, config: Config) -> Data:
    try:
        return load_data(config)
    except ValueError as error:
        if are_images(config.data) or Path(config.data).exists():
            raise
        reason = f"{folder} was trained on {config.data}, which is not there"
        raise ValueError(f"{reason}: name the file with --data FILE if it has moved") from error


def load_data_of(folder: Path, config: Config, *, named: bool = False) -> Data:
    """Load the data of a run, and refuse others that stand in their place.

    Arguments:
        folder: the run's folder.
        config: the run's config.
        named: the user has named these data in the place of the run's; they may be others of the same shape.

    Returns:
        The data.

    Raises:
        ValueError: where they are not there, not those that the run was trained on, or of another shape.
    """
    found = load_data(config) if named else _find_data(folder, config)
    _check_data(folder, config, found, only_shape=named)
    return found


def _check_data(folder: Path, config: Config, found: Data, *, only_shape: bool = False) -> None:
    _, trained_on, of = _read_weights(folder / WEIGHTS)
    shape = list(found.train.shape[1:])
    if shape != trained_on:
        raise ValueError(f"{config.data} has data of shape {shape}, but {folder} was trained on {trained_on}")
    there, here = of.get("data"), fingerprint(found)
    if not only_shape and here != there:
        reason = f"{folder} was trained on {there}, but {config.data} holds {here}"
        raise ValueError(f"{reason}: name the right file with --data FILE")


def load_vae(folder: Path, config: Config, *, best: bool = False) -> VAE:
    """Read a run's weights into the VAE of its config. Its data need not be there.

    Arguments:
        folder: the run's folder.
        config: the run's config.
        best: those with the lowest test loss, in place of the last ones.

    Returns:
        The VAE, on the config's device.

    Raises:
        ValueError: for weights that are missing, damaged or of another config.
    """
    path = folder / WEIGHTS
    weights, shape, of = _read_weights(path)
    check_same(path, of, config.identity() | {"data": of.get("data")})  # the data need not be there
    vae = seeded_vae(config, tuple(shape))
    if best:
        check_no_link(folder / "checkpoints")
        path = folder / "checkpoints" / "best.safetensors"
        tensors, head = read_tensors(path, "leave out --best")
        if not (isinstance(head.get("about"), dict) and "test_loss" in head["about"]):
            raise ValueError(f"{path} holds no best weights of a run")
        check_same(path, head["about"].get("of"), of)
        values = {name.partition("/")[2]: tensor for name, tensor in tensors.items()}
        weights = {name: values[name] for name in weights if name in values}
    _check_weights(path, weights, vae)
    vae.load_state_dict(weights)
    return vae.to(device_named(config.device, _write_cpu(folder)))


def _write_cpu(folder: Path) -> str:
    return f"write 'device: cpu' into {folder / 'config.yaml'}"


def _read_weights(path: Path) -> tuple[dict[str, Tensor], list[int], dict[str, Any]]:
    """Read weights, the shape of a datum, and the plain values that say what they are of."""
    weights, head = read_tensors(path, f"go on with pyro-vae train --resume {shlex.quote(str(path.parent))}")
    about = head["about"] if isinstance(head.get("about"), dict) else {}
    shape = about.get("shape")
    sizes = shape if isinstance(shape, list) and len(shape) < MOST_DIMENSIONS else []
    if not sizes or not all(type(size) is int and size >= 1 for size in sizes):
        raise ValueError(f"{path} holds no weights of a VAE")
    return weights, sizes, about["of"] if isinstance(about.get("of"), dict) else {}


def _check_weights(path: Path, weights: Mapping[str, Tensor], vae: VAE) -> None:
    """Refuse weights that are not those of a VAE, or that no training leaves."""
    own = vae.state_dict()
    for name in sorted({*own, *weights}):
        there, here = (
            None if each is None else (each.dtype, *each.shape) for each in (weights.get(name), own.get(name))
        )
        if there != here:
            raise ValueError(f"{path} does not fit the run's config.yaml: {name} is {_kind(there)}, not {_kind(here)}")
    for name, _ in vae.named_parameters():
        if not weights[name].isfinite().all():
            raise ValueError(f"{path} holds {name} with values that are not finite: take --best, or train anew")


def _kind(tensor: tuple[Any, ...] | None) -> str:
    return "missing" if tensor is None else f"of {tensor[0]} {tensor[1:]}"
