"""The folder of a run: its files, its lock, and what the files hold."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from pyro_vae.arguments import as_size
from pyro_vae.data import Data, are_images, fingerprint, located
from pyro_vae.data.scales import FEW, Values, are_beyond, differ, sizes_of
from pyro_vae.files import as_word, check_apart, check_no_link, partial_of, takes_files
from pyro_vae.networks import Shape
from pyro_vae.runs.config import Config, read_flags
from pyro_vae.runs.experiment import Experiment, seeded_vae
from pyro_vae.runs.metrics import write_metrics
from pyro_vae.runs.parts import device_named, load_data
from pyro_vae.runs.pictures import Moments
from pyro_vae.runtime.checkpoints import LOCK, Checkpoints, check_same, read_shapes, read_tensors, save_tensors, take
from pyro_vae.training import Row
from pyro_vae.vae import VAE

MOST_DIMENSIONS = 60  # of a datum; torch takes 64, including those of particles and data


class RunFolder:
    """The folder of one run.

    Arguments:
        path: the folder; it does not need to exist.

    Example:
        >>> RunFolder(Path("runs/digits")).weights.as_posix()
        'runs/digits/model.safetensors'
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.weights = path / "config.yaml", path / "model.safetensors"
        self.metrics, self.checkpoints = path / "metrics.csv", path / "checkpoints"
        self.evaluation = path / "evaluation.json"
        self._lock = FileLock(path / LOCK)
        self.check_place: Callable[[], None] = lambda: None  # which refuses another folder in the place of the held one

    # Who may write

    def check_new(self) -> None:
        """Refuse a folder that is not empty, or cannot be written.

        Raises:
            ValueError: with the fix.
        """
        folder = self.path
        if "\0" in str(folder):
            raise ValueError(f"no folder can be named {str(folder)!r}; give --out another one")
        if not folder.exists():
            check_no_link(folder)
        if self.config.exists():
            raise ValueError(f"{folder} already holds a run; give --out another folder")
        left = {folder / LOCK, partial_of(self.config)}  # files of a process that was killed at its start
        if folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - left):
            raise ValueError(f"{folder} exists and is not an empty folder; give --out another one")
        parent = next(path for path in (folder, *folder.parents) if path.exists())
        if not takes_files(parent):
            raise ValueError(
                f"{folder} cannot be written: {parent} is not a folder that you can write to; give --out another one"
            )

    def check_result(self, path: Path, *data: str) -> None:
        """Refuse to write a result over the numbers that the run's folder holds, or among the data.

        Raises:
            ValueError: with the fix.
        """
        for source in data:
            check_apart(path, located(source))
        if path.resolve() in {own.resolve() for own in (self.metrics, self.evaluation)}:
            raise ValueError(f"{path} holds numbers of the run, which would be lost: give another place")

    def hold(self) -> None:
        """Create the folder if needed, and lock it against other processes; the lock ends with this process.

        Raises:
            ValueError: if another process holds the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (LOCK, "checkpoints"):
            check_no_link(self.path / name)
        self.check_place = take(self._lock, f"another process is training in {self.path}: wait for it, or give --out")

    @contextmanager
    def released(self) -> Iterator[None]:
        """Release the lock at the end, if this process holds it."""
        try:
            yield
        finally:
            self._lock.release()

    def what_stands(self) -> str:
        """Say what a run that was interrupted has saved, and how to continue it."""
        if not self.config.exists():
            return "nothing had been written"
        return f"progress is saved; continue with: pyro-vae train --resume {as_word(self.path)}"

    # What it is resumed from

    def rewrite(self, config: Config, rows: Sequence[Row]) -> None:
        """Write the metrics of a checkpoint, and the config if its data have moved or its epochs have changed."""
        write_metrics(self.metrics, rows)
        saved = read_flags(self.config)
        if (saved.get("data"), saved.get("epochs")) != (config.data, config.epochs):
            config.save(self.config)

    def with_epochs(self, config: Config, begun: int) -> Config:
        """Return a config with at least as many epochs as have begun, because these cannot be undone."""
        config = replace(config, epochs=max(as_size(config.epochs, "epochs", least=0), begun))
        planned = read_flags(self.config).get("epochs", config.epochs)
        if config.lr_schedule == "cosine" and config.epochs != planned:
            fix = "train again, or take another schedule from the start"
            raise ValueError(f"the cosine schedule of this run ends at epoch {planned}, not {config.epochs}: {fix}")
        return config

    def check_untrained(self, vae: VAE) -> None:
        """Refuse to start again over trained weights, if their checkpoint is missing from the folder."""
        if not self.weights.exists():
            return
        here, shapes = vae.state_dict(), read_shapes(self.weights)[0]
        alike = {name: each.shape for name, each in shapes.items()} == {name: each.shape for name, each in here.items()}
        there = read_tensors(self.weights)[0] if alike else {}
        if not (alike and all(torch.equal(there[name], here[name].cpu()) for name in here)):
            anew = f"pyro-vae train --config {as_word(self.config)} --out DIR"
            reason = f"{self.path} holds trained weights, but no checkpoints/last.safetensors to resume from"
            raise ValueError(f"{reason}: copy it there, or train again by {anew}")

    # Its data and its weights

    @property
    def write_cpu(self) -> str:
        """The fix for a run whose device this machine does not have."""
        return f"write 'device: cpu' into {self.config}"

    def load_data(self, config: Config, *, named: bool = False) -> Data:
        """Load the data of the run, and refuse other data in their place.

        Arguments:
            config: the run's config.
            named: whether the user has named other data; then only their shape must be that of the run's.

        Returns:
            The data.

        Raises:
            ValueError: if they do not exist, have another shape, or are not those that the run was trained on.
        """
        found = load_data(config) if named else self._find_data(config)
        if self.weights.exists():
            self._check_data(config, found, only_shape=named)
        return found

    def _find_data(self, config: Config) -> Data:
        try:
            return load_data(config)
        except ValueError as error:
            if are_images(config.data) or Path(config.data).exists():
                raise
            reason = f"{self.path} was trained on {config.data}, which does not exist"
            raise ValueError(f"{reason}: name the file with --data FILE if it has moved") from error

    def _check_data(self, config: Config, found: Data, *, only_shape: bool) -> None:
        _, trained_on, of = read_weights(self.weights, read_shapes)
        shape = list(found.train.shape[1:])
        if shape != trained_on:
            raise ValueError(f"{config.data} has data of shape {shape}, but {self.path} was trained on {trained_on}")
        there, here = of.get("data"), fingerprint(found)
        if not only_shape and here != there:
            reason = f"{self.path} was trained on {there}, but {config.data} holds {here}"
            raise ValueError(f"{reason}: name the right file with --data FILE")

    def check_scale(self, config: Config, found: Data) -> None:
        """Refuse named data whose values are far larger or smaller than those that the run was trained on.

        Raises:
            ValueError: with both ranges, and the fix.
        """
        there = _sizes_in(read_shapes(self.weights)[1])
        if there is None:
            return
        for count, here in [(len(part), sizes) for part in found[:2] for sizes in sizes_of(part, 1).values()]:
            if differ(there, here) if count >= FEW else are_beyond(here, there):
                divided = "" if config.scale is None else f", divided by {config.scale:g} as those of the run"
                reason = f"{config.data} has values from {here}{divided}, but {self.path} was trained on {there}"
                other = "save its pixels as .npy, and give --scale X to divide them"
                fix = other if are_images(config.data) else "give --scale X to divide its values by X, 1 to keep them"
                raise ValueError(f"{reason}: {fix}")

    def save_weights(self, experiment: Experiment) -> None:
        """Write the current weights."""
        self.check_place()
        about = {"shape": list(experiment.shape), "of": experiment.identity, "values": experiment.sizes}
        save_tensors(self.weights, experiment.vae.state_dict(), about)

    def load_vae(self, config: Config, *, best: bool = False) -> VAE:
        """Read the weights into the VAE of the run's config. The run's data are not needed.

        Arguments:
            config: the run's config.
            best: read the weights with the lowest test loss instead of the last ones.

        Returns:
            The VAE, on the config's device.

        Raises:
            ValueError: for weights that are missing, damaged or of another config.
        """
        path = self.weights
        shapes, shape, of = read_weights(path, read_shapes)  # a received file may be larger than its config says
        check_same(path, of, config.identity() | {"data": of.get("data")})  # the data are not compared
        vae = seeded_vae(config, tuple(shape), shapes)
        _check_alike(path, shapes, vae, "of shape {1}")
        weights, _, of = read_weights(path)
        if best:
            path = Checkpoints(self.checkpoints).best
            weights = _best_weights(path, of, weights)
        _check_weights(path, weights, vae)
        vae.load_state_dict(weights)
        return vae.to(device_named(config.device, self.write_cpu))

    def first_vae(self, config: Config, shape: Shape) -> VAE:
        """Return the VAE that the run began with; it must not be much larger than the weights in the folder."""
        files = [path for path in (self.weights, Checkpoints(self.checkpoints).last) if path.exists()]
        return seeded_vae(config, shape, read_shapes(files[0])[0] if files else None)

    def load(self, config: Config, *, best: bool = False, named: bool = False) -> Experiment:
        """Return the run's experiment, with its weights: as `load_vae` and `load_data`."""
        vae = self.load_vae(config, best=best)
        return Experiment(config, self.load_data(config, named=named), vae)

    # The posteriors of its pictures

    def save_moments(self, epoch: int, moments: Moments, about: Mapping[str, Any]) -> None:
        """Write the posteriors of an epoch."""
        self.checkpoints.mkdir(exist_ok=True)
        save_tensors(self._moments(epoch), dict(zip(("mean", "scale"), moments, strict=True)), about)

    def load_moments(self, epoch: int, count: int, about: Mapping[str, Any]) -> Moments | None:
        """Return the posteriors of an epoch, or None if no file of this run holds them."""
        with suppress(ValueError):
            return read_moments(self._moments(epoch), count, about)
        return None

    def _moments(self, epoch: int) -> Path:
        return self.checkpoints / f"posteriors-{epoch}.safetensors"


def read_moments(path: Path, count: int, about: Mapping[str, Any] | None = None) -> Moments:
    """Read the posteriors' means and scales of ``count`` data, as `posterior_moments` returns them.

    Raises:
        ValueError: as `read_tensors`; also if the file holds something else, or posteriors of another run or epoch.
    """
    tensors, head = read_tensors(path)
    if about is not None:
        check_same(path, head.get("about"), about)
    mean, scale = (tensors.get(name, torch.tensor(0)) for name in ("mean", "scale"))
    fits = mean.dim() == 2 and scale.dim() in (2, 3) and mean.shape == scale.shape[:2] and len(mean) == count
    if not fits or not (mean.is_floating_point() and scale.is_floating_point()):
        raise ValueError(f"{path} holds no posteriors of {count} data")
    return mean, scale


def read_weights(
    path: Path, read: Callable[..., tuple[dict[str, Tensor], dict[str, Any]]] = read_tensors
) -> tuple[dict[str, Tensor], list[int], dict[str, Any]]:
    """Read weights, or by `read_shapes` only their shapes, the shape of a datum, and what describes the run."""
    weights, head = read(path, f"continue with pyro-vae train --resume {as_word(path.parent)}")
    about = head["about"] if isinstance(head.get("about"), dict) else {}
    shape = about.get("shape")
    sizes = shape if isinstance(shape, list) and len(shape) < MOST_DIMENSIONS else []
    if not sizes or not all(type(size) is int and size >= 1 for size in sizes):
        raise ValueError(f"{path} holds no weights of a VAE")
    return weights, sizes, about["of"] if isinstance(about.get("of"), dict) else {}


def _sizes_in(head: Mapping[str, Any]) -> Values | None:
    """Return the size of the values that weights were trained on, or None if their file does not say it."""
    match head.get("about"):
        case {"values": [float(low), float(high), float(usual), bool(signed)]}:
            return Values(low, high, usual, signed)
    return None


def _best_weights(path: Path, of: dict[str, Any], names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the best parameters of a checkpoint, by the names of the weights."""
    check_no_link(path.parent)
    tensors, head = read_tensors(path, "leave out --best")
    if not (isinstance(head.get("about"), dict) and "test_loss" in head["about"]):
        raise ValueError(f"{path} holds no best weights of a run")
    check_same(path, head["about"].get("of"), of)
    values = {name.partition("/")[2]: tensor for name, tensor in tensors.items()}
    return {name: values[name] for name in names if name in values}


def _check_weights(path: Path, weights: Mapping[str, Tensor], vae: VAE) -> None:
    """Refuse weights that do not fit the VAE, or are not finite."""
    _check_alike(path, weights, vae, "of {0} {1}")
    for name, _ in vae.named_parameters():
        if not weights[name].isfinite().all():
            raise ValueError(f"{path} holds {name} with values that are not finite: take --best, or train again")


def _check_alike(path: Path, weights: Mapping[str, Tensor], vae: VAE, kind: str) -> None:
    """Refuse weights whose names differ from those of the VAE, or of which one has another kind, as it is printed."""
    own = vae.state_dict()
    for name in sorted({*own, *weights}):
        there, here = (
            kind.format(tensors[name].dtype, tuple(tensors[name].shape)) if name in tensors else "missing"
            for tensors in (weights, own)
        )
        if there != here:
            raise ValueError(f"{path} does not fit the run's config.yaml: {name} is {there}, not {here}")
