"""What `fit` trains for a row, and on what: from a config of `pyro-vae train`, or from a Python file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyro_vae import fit
from pyro_vae.cli.entry import parsed
from pyro_vae.programs import Program
from pyro_vae.runs.config import Config
from pyro_vae.runs.experiment import Experiment
from pyro_vae.runs.parts import beta_of, optimizer_of, schedule_of

FOLDER, PARTS = Path(__file__).parent, "benchmarks.published.parts"
Load = Callable[[str], Any]  # from a data set's name to its data


class Recipe(NamedTuple):
    """A pair of programs, their training data, the data that are measured afterwards, and how `fit` trains them."""

    model: Program
    guide: Program
    train: Any
    judged: torch.Tensor
    epochs: int
    settings: dict[str, Any]

    def fit(self, **others):
        return fit(self.model, self.guide, others.pop("train", self.train), **self.settings | others)


def read(name: str) -> Config:
    """Return the config of a row, as `pyro-vae train --config` reads it."""
    return parsed(["train", f"--config={FOLDER / name}.yaml", f"--allow={PARTS}"]).config


def shortened(config: Config, epochs: int) -> Config:
    """Return a config with fewer epochs, over which the warm-up and a falling temperature are spread likewise."""
    share, encoder = epochs / config.epochs, dict(config.options["encoder"])
    if "anneal_steps" in encoder:
        encoder["anneal_steps"] = max(1, round(share * encoder["anneal_steps"]))
    options = config.options | {"encoder": encoder}
    return replace(config, epochs=epochs, warm_up=round(share * config.warm_up), options=options)


def of_config(name, load, epochs=None, seed=None, schedule=None, part="test"):
    """Return the recipe of a config.

    Arguments:
        name: the name of the file, without its suffix.
        load: returns the data of a name.
        epochs: the number of epochs; by default that of the config.
        seed: the random seed; by default that of the config.
        schedule: from a number of epochs to a schedule of the learning rate, if no flag says it.
        part: what is measured, the "test" or the "train" data.
    """
    config = read(name)
    config = shortened(config, epochs or config.epochs)
    config = config if seed is None else replace(config, seed=seed)
    experiment = Experiment(config, load(config.data))
    measured = getattr(experiment.data, part)
    order = torch.randperm(len(measured), generator=torch.Generator().manual_seed(0))[:10_000]  # a fair sample
    settings = {
        "loss": experiment.loss,
        "optimizer": optimizer_of(config),
        "schedule": schedule(config.epochs) if schedule else schedule_of(config),
        "beta": beta_of(config, experiment.steps_per_epoch()),
        "transform": experiment.transform,
        **{each: getattr(config, each) for each in ("epochs", "batch_size", "seed", "engine", "clip_norm")},
    }
    programs = experiment.vae.model, experiment.guide
    return Recipe(*programs, experiment.data.train, experiment.as_seen(measured[order]), config.epochs, settings)
