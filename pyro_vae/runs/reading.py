"""Reads a run back: its weights, its posteriors and its data."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Data, are_images, fingerprint
from pyro_vae.files import check_no_link
from pyro_vae.networks import Shape
from pyro_vae.programs import seeded
from pyro_vae.runs.config import Config
from pyro_vae.runs.parts import build, device_named, load_data
from pyro_vae.runs.pictures import Moments
from pyro_vae.runtime.checkpoints import check_same, read_tensors
from pyro_vae.vae import VAE

WEIGHTS = "model.safetensors"
MOST_DIMENSIONS = 60  # of a datum; torch takes 64, those of particles and data among them


def read_moments(path: Path, count: int, about: Mapping[str, Any] | None = None) -> Moments:
    """Read the posteriors' means and scales of so many data, as `posterior_moments` gives them.

    Raises:
        ValueError: as `read_tensors`; where the file holds something else, or says other things about it.
    """
    tensors, head = read_tensors(path)
    if about is not None:
        check_same(path, head.get("about"), about)
    mean, scale = (tensors.get(name, torch.tensor(0)) for name in ("mean", "scale"))
    fits = mean.dim() == 2 and scale.dim() in (2, 3) and mean.shape == scale.shape[:2] and len(mean) == count
    if not fits or not (mean.is_floating_point() and scale.is_floating_point()):
        raise ValueError(f"{path} holds no posteriors of {count} data")
    return mean, scale


def seeded_vae(config: Config, shape: Shape) -> VAE:
    """Build a config's VAE with weights drawn from its seed, leaving torch's random state alone."""
    with seeded(config.seed, torch.device("cpu")):
        return build(config, shape)


def find_data(folder: Path, config: Config) -> Data:
    """Load the data of a run, or name the fix where they are not there."""
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
    found = load_data(config) if named else find_data(folder, config)
    check_data(folder, config, found, only_shape=named)
    return found


def check_data(folder: Path, config: Config, found: Data, *, only_shape: bool = False) -> None:
    """Refuse data that are not those a run was trained on, or that have another shape."""
    _, trained_on, of = read_weights(folder / WEIGHTS)
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
    weights, shape, of = read_weights(path)
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
    return vae.to(device_named(config.device, write_cpu(folder)))


def write_cpu(folder: Path) -> str:
    """Return the fix for a run whose device is not there."""
    return f"write 'device: cpu' into {folder / 'config.yaml'}"


def read_weights(path: Path) -> tuple[dict[str, Tensor], list[int], dict[str, Any]]:
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
