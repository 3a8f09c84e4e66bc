"""What a run is made of, in plain values: checked against the parts' own signatures, and built into a VAE."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae import data, decoders, encoders, networks, objectives, priors
from pyro_vae.networks import Network, Shape
from pyro_vae.vae import VAE

KINDS = {"prior": priors, "encoder": encoders, "decoder": decoders, "loss": objectives}
NETWORKS = ("MLP", "Conv")
PYRO_LOSSES = {cls.__name__: cls for cls in (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO)}
PYRO_LOSS_SUMMARIES = {
    "Trace_ELBO": (
        "The evidence lower bound, its KL sampled; pathwise, or by the score function where there is no other way.",
        "Kingma and Welling, 2014, Auto-Encoding Variational Bayes, equation 6.",
    ),
    "TraceMeanField_ELBO": (
        "The evidence lower bound, its KL in closed form where there is one.",
        "Kingma and Welling, 2014, Auto-Encoding Variational Bayes, equation 7.",
    ),
    "TraceGraph_ELBO": (
        "The evidence lower bound, its score function with Rao-Blackwellization and baselines.",
        "Schulman et al., 2015, Gradient Estimation Using Stochastic Computation Graphs, theorem 1.",
    ),
    "TraceEnum_ELBO": (
        "The evidence lower bound, summed over discrete sites that are marked for enumeration.",
        "Obermeyer et al., 2019, Tensor Variable Elimination for Plated Factor Graphs, section 5.",
    ),
}
PYRO_LOSS_PARAMETERS = {
    name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=type(default))
    for name, default in (("num_particles", 1), ("vectorize_particles", False))
}
GIVEN = ("shape", "latent_dim", "network", "out_shape", "encoder", "prior", "decoder", "data")  # not by flags
Options = dict[str, dict[str, Any]]


@dataclass
class Config:
    """Everything needed to repeat a run: one field per flag of ``pyro-vae train``, by the same name.

    ``options`` holds the parts' own parameters, such as ``{"decoder": {"scale": 0.1}}`` for ``--decoder.scale 0.1``.
    """

    data: str = "digits"
    data_root: str | None = None
    download: bool = False
    binarize: str = "none"
    prior: str = "Normal"
    encoder: str = "Normal"
    decoder: str = "Bernoulli"
    network: str = "MLP"
    hidden: list[int] = field(default_factory=lambda: [400])
    channels: list[int] = field(default_factory=lambda: [32, 64])
    latent_dim: int = 10
    loss: str = "Trace_ELBO"
    beta: float = 1.0
    warm_up: int = 0
    epochs: int = 100
    batch_size: int = 64
    lr: float = 1e-3
    clip_norm: float | None = None
    engine: str = "auto"
    seed: int = 0
    device: str = "cpu"
    evaluate: str = "mean"
    latent_map: str = "pca"
    options: Options = field(default_factory=lambda: {kind: {} for kind in KINDS})

    @staticmethod
    def flags() -> list[str]:
        """Return the names of the fields that are flags: all but the parts' own ``options``."""
        return [f.name for f in fields(Config) if f.name != "options"]

    def flat(self) -> dict[str, Any]:
        """Return the flags that say the same: ``decoder.scale`` for a part's own parameter, none for unset ones."""
        plain = {name: getattr(self, name) for name in self.flags()}
        own = {f"{kind}.{name}": value for kind, values in self.options.items() for name, value in values.items()}
        return {name: value for name, value in {**plain, **own}.items() if value is not None}

    def save(self, path: Path) -> None:
        """Write the flags as YAML, with the versions they ran with as a comment."""
        versions = f"# torch {torch.__version__}, pyro-ppl {importlib.metadata.version('pyro-ppl')}\n"
        path.write_text(versions + yaml.safe_dump(self.flat(), sort_keys=False), encoding="utf-8")


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """Say that a name is unknown, with the nearest known one.

    Example:
        >>> nearest("Norml", ["Normal", "Delta"], "encoder")
        "unknown encoder 'Norml'; did you mean 'Normal'? Known: Delta, Normal"
    """
    matches = difflib.get_close_matches(name, list(known), 1, cutoff=0.5)
    hint = f"did you mean {matches[0]!r}? " if matches else ""
    return f"unknown {what} {name!r}; {hint}Known: {', '.join(sorted(known))}"


def parts(kind: str) -> dict[str, type[Any]]:
    """Return the classes of one kind of part that the package has, by name; for "loss" also Pyro's own.

    Example:
        >>> "Normal" in parts("encoder"), "IWAE" in parts("loss"), "Trace_ELBO" in parts("loss")
        (True, True, True)
    """
    module = KINDS[kind]
    classes = {name: value for name, value in vars(module).items() if inspect.isclass(value)}
    if kind == "loss":
        concrete = {name: value for name, value in classes.items() if issubclass(value, ELBO)}
        return {**PYRO_LOSSES, **{name: value for name, value in concrete.items() if name != "Objective"}}
    own = {name: value for name, value in classes.items() if value.__module__.startswith(module.__name__)}
    return {name: value for name, value in own.items() if issubclass(value, nn.Module) and not name.startswith("_")}


def part(kind: str, name: str) -> type[Any]:
    """Return a part's class by its name, or a user's own by its import path.

    Arguments:
        kind: "prior", "encoder" or "decoder".
        name: the name of one of the package's classes, or "package.module.Class".

    Returns:
        The class.

    Raises:
        ValueError: where there is no such class, with the nearest known name.

    Example:
        >>> part("prior", "Normal").__module__
        'pyro_vae.priors.normal'
    """
    if "." not in name:
        if name not in parts(kind):
            raise ValueError(nearest(name, parts(kind), kind))
        return parts(kind)[name]
    module_name, class_name = name.rsplit(".", 1)
    if "" not in sys.path:
        sys.path.insert(0, "")  # a user's module in the current folder, as with python -m
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the {kind} {name!r} cannot be imported: {error}") from error
    base, base_name = (ELBO, "pyro.infer.ELBO") if kind == "loss" else (nn.Module, "torch.nn.Module")
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ValueError(f"the {kind} {name!r} must be a class of {base_name}, not {found!r}")
    return found


def own_parameters(cls: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a part's constructor that are its own: all but the shapes and the network.

    Example:
        >>> list(own_parameters(decoders.Normal))
        ['scale', 'learned', 'per_dimension']
    """
    if cls in PYRO_LOSSES.values():
        return PYRO_LOSS_PARAMETERS
    return {name: value for name, value in inspect.signature(cls).parameters.items() if name not in GIVEN}


def catalogue() -> list[tuple[str, str, str, str]]:
    """Return kind, name, summary and reference of every part and objective, the last two from its docstring.

    Example:
        >>> [row for row in catalogue() if row[:2] == ("loss", "IWAE")][0][2]
        'The importance-weighted bound of K particles.'
    """
    rows = []
    for kind in KINDS:
        for name, cls in sorted(parts(kind).items()):
            text = inspect.getdoc(cls) or ""
            summary = " ".join(text.partition("\n\n")[0].split())
            _, _, reference = text.partition("Reference:\n")
            rows.append((kind, name, *PYRO_LOSS_SUMMARIES.get(name, (summary, " ".join(reference.split())))))
    return rows


def build(config: Config, shape: Shape) -> VAE:
    """Build the VAE of a config for data of one shape.

    Arguments:
        config: the config.
        shape: the shape of one datum.

    Returns:
        The VAE, its weights drawn from torch's random state.

    Raises:
        ValueError: for unknown names and values that a part does not take.

    Example:
        >>> build(Config(latent_dim=2), (1, 8, 8)).prior
        Normal(latent_dim=2, learned=False)
    """
    check_choice("network", config.network, NETWORKS)
    encoder_network: Network = partial(networks.MLP, hidden=tuple(config.hidden))
    decoder_network: Network = partial(networks.MLP, hidden=tuple(config.hidden[::-1]))
    if config.network == "Conv":
        encoder_network = partial(networks.ConvEncoder, channels=tuple(config.channels))
        decoder_network = partial(networks.ConvDecoder, channels=tuple(config.channels[::-1]))
    given = {"shape": shape, "latent_dim": config.latent_dim}
    encoder = _construct("encoder", config, {**given, "network": encoder_network})
    prior = _construct("prior", config, {**given, "encoder": encoder})
    event = tuple(prior().event_shape)
    of_codes = {**given, "latent_dim": event if len(event) > 1 else event[0], "network": decoder_network}
    return VAE(prior, encoder, _construct("decoder", config, of_codes))


def build_loss(config: Config, size: int) -> ELBO:
    """Build the objective of a config.

    Arguments:
        config: the config.
        size: the number of training data, which `pyro_vae.objectives.BetaTC` takes.

    Returns:
        The objective.

    Raises:
        ValueError: for unknown names and values that it does not take.

    Example:
        >>> build_loss(Config(loss="IWAE", options={"loss": {"num_particles": 5}}), 1000)
        IWAE(num_particles=5)
    """
    loss: ELBO = _construct("loss", config, {"size": size})
    return loss


def _construct(kind: str, config: Config, given: dict[str, Any]) -> Any:
    cls = part(kind, getattr(config, kind))
    accepted, own = inspect.signature(cls).parameters, own_parameters(cls)
    missing = [name for name, value in accepted.items() if value.default is value.empty and name not in given]
    if missing:
        raise ValueError(f"the {kind} {cls.__name__} takes {', '.join(missing)}: build it in Python, not by a flag")
    values = dict(config.options.get(kind, {}))
    if "grey" in own:  # what --binarize none says by name
        values.setdefault("grey", config.binarize == "none")
    for name, value in values.items():
        if name not in own:
            raise ValueError(nearest(name, own, f"parameter of the {kind} {cls.__name__}:"))
        values[name] = _typed(f"{kind}.{name}", value, own[name].annotation)
    return cls(**{name: value for name, value in given.items() if name in accepted}, **values)


def _typed(name: str, value: Any, annotation: Any) -> Any:
    if annotation is float and type(value) is int:
        return float(value)
    if annotation in (bool, int, float, str) and type(value) is not annotation:
        raise ValueError(f"--{name} takes a value of type {annotation.__name__}, not {value!r}")
    return value


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices, with the nearest one."""
    if value not in choices:
        raise ValueError(nearest(value, choices, name))


def beta_of(config: Config, steps_per_epoch: int) -> objectives.Beta:
    """Return the KL weight of a config: a number, or a linear warm-up over its epochs."""
    objectives.check_beta(config.beta)
    if config.warm_up < 0:
        raise ValueError(f"warm_up must be at least 0 epochs, not {config.warm_up}")
    if config.warm_up == 0:
        return config.beta
    return objectives.linear_warm_up(config.warm_up * steps_per_epoch, config.beta)


def device_named(name: str) -> torch.device:
    """Return a torch device that is there.

    Raises:
        ValueError: for a name torch does not know, or a device this machine does not have.

    Example:
        >>> device_named("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:60]
        raise ValueError(f"no device {name!r} on this machine ({reason}); take --device cpu") from error
    return device


def load_data(config: Config) -> data.Data:
    """Load the data set of a config."""
    return data.load(config.data, config.data_root, config.download)
