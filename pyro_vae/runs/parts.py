"""Checks a config against the signatures of the parts, and builds its VAE, objective, optimizer and schedule."""

import difflib
import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler, ReduceLROnPlateau, StepLR

from pyro_vae import data, decoders, encoders, networks, objectives, priors
from pyro_vae.networks import Network, Shape
from pyro_vae.programs import Transform
from pyro_vae.runs.config import TRUSTED, Config
from pyro_vae.vae import VAE

KINDS = {"prior": priors, "encoder": encoders, "decoder": decoders, "loss": objectives}
NETWORKS = {
    "MLP": (networks.MLP, networks.MLP),
    "Conv": (networks.ConvEncoder, networks.ConvDecoder),
    "GRU": (networks.GRUEncoder, networks.GRUDecoder),
}
PYRO_LOSSES = {cls.__name__: cls for cls in (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO)}
PYRO_LOSS_SUMMARIES = {
    "Trace_ELBO": (
        "The evidence lower bound, with a sampled KL; pathwise gradients, or the score function if need be.",
        "Kingma and Welling, 2014, Auto-Encoding Variational Bayes, equation 6.",
    ),
    "TraceMeanField_ELBO": (
        "The evidence lower bound, with the KL in closed form if there is one.",
        "Kingma and Welling, 2014, Auto-Encoding Variational Bayes, equation 7.",
    ),
    "TraceGraph_ELBO": (
        "The evidence lower bound, with Rao-Blackwellization and baselines for its score function.",
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
GIVEN = ("shape", "latent_dim", "network", "out_shape", "encoder", "prior", "decoder", "data")  # these have no flags
PLAIN = (bool, int, float, str)


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
    """Return the package's classes of one kind of part, by name; for "loss" also those of Pyro.

    Example:
        >>> "Normal" in parts("encoder"), "IWAE" in parts("loss"), "Trace_ELBO" in parts("loss")
        (True, True, True)
    """
    if kind == "network":
        return {name: encoder for name, (encoder, _) in NETWORKS.items()}
    base = ELBO if kind == "loss" else nn.Module
    classes = {name: cls for name, cls in vars(KINDS[kind]).items() if inspect.isclass(cls) and issubclass(cls, base)}
    classes.pop("Objective", None)  # the base class of the others
    return {**PYRO_LOSSES, **classes} if kind == "loss" else classes


def parts_by_flag(kind: str) -> dict[str, type[Any]]:
    """Return the classes of one kind that a flag can name; those that take other parts must be built in Python.

    Example:
        >>> "Masked" in parts("decoder"), "Masked" in parts_by_flag("decoder")
        (True, False)
    """
    wrapped = {"prior", "encoder", "decoder"} - ({"encoder"} if kind == "prior" else set())  # a prior may take it
    classes = parts(kind)
    return {name: cls for name, cls in classes.items() if not wrapped & set(inspect.signature(cls).parameters)}


def summary_of(cls: type[Any]) -> str:
    """Return the first sentence of a part's documentation, in one line."""
    text = " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())
    return PYRO_LOSS_SUMMARIES.get(cls.__name__, (text,))[0]


def part(kind: str, name: str) -> type[Any]:
    """Return a part's class by its name, or a user's own by its import path.

    Arguments:
        kind: "prior", "encoder", "decoder", "network" or "loss".
        name: the name of one of the package's classes, or "package.module.Class" of an installed package or of a
            module in the current folder (nothing else is imported from there).

    Returns:
        The class.

    Raises:
        ValueError: if there is no such class, with the nearest known name.

    Example:
        >>> part("prior", "Normal").__module__
        'pyro_vae.priors.real'
    """
    if "." not in name:
        if name not in parts(kind):
            raise ValueError(nearest(name, parts_by_flag(kind), kind))
        return parts(kind)[name]
    module_name, class_name = name.rsplit(".", 1)
    trusted = name.partition(".")[0] in TRUSTED
    if trusted and any(each.startswith("_") for each in name.split(".")):
        raise ValueError(f"the {kind} {name!r} is a private name of a package: name a public class")
    try:
        found = getattr(_import(module_name), class_name)
    except (Exception, SystemExit) as error:  # any module may stand there, and fail in any way
        raise ValueError(f"the {kind} {name!r} cannot be imported: {_reason(error)}") from error
    base, called = (ELBO, "pyro.infer.ELBO") if kind == "loss" else (nn.Module, "torch.nn.Module")
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ValueError(f"the {kind} {name!r} must be a class of {called}, not {found!r}")
    if trusted and found.__module__.partition(".")[0] not in TRUSTED:
        raise ValueError(f"the {kind} {name!r} is defined in {found.__module__}: name it there")
    return found


def _import(name: str) -> ModuleType:
    """Import a module. A top-level module that is not installed is loaded from the current folder.

    The current folder is not added to the path, so that other modules there are not found, which might have the name of
    a module that a library imports later.
    """
    root = name.partition(".")[0]
    if root not in sys.modules and find_spec(root) is None:
        spec = PathFinder.find_spec(root, [os.getcwd()])
        if spec is None:
            raise ModuleNotFoundError(f"No module named {root!r}", name=root)
        sys.modules[root] = module_from_spec(spec)
        try:
            if spec.loader:  # a folder without __init__.py has none
                spec.loader.exec_module(sys.modules[root])
        except BaseException:
            del sys.modules[root]
            raise
    return importlib.import_module(name)


def _reason(error: BaseException) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    hint = "; only the named module is imported from the current folder: install the other one, or name its folder"
    beside = missing and PathFinder.find_spec(missing.partition(".")[0], [os.getcwd()])
    return (str(error) or type(error).__name__) + (f"{hint} in PYTHONPATH" if beside else "")


def own_parameters(cls: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a part's constructor that have flags: all except the shapes and the network.

    Example:
        >>> list(own_parameters(decoders.Normal))
        ['scale', 'learned', 'per_dimension']
    """
    if cls in PYRO_LOSSES.values():
        return PYRO_LOSS_PARAMETERS
    pair = next((pair for pair in NETWORKS.values() if cls in pair), ())
    accepted = {name: value for each in pair or (cls,) for name, value in inspect.signature(each).parameters.items()}
    own = {name: value for name, value in accepted.items() if name not in GIVEN}
    return {name: value for name, value in own.items() if not pair or value.annotation in PLAIN}


def catalogue() -> list[tuple[str, str, str, str]]:
    """Return the kind, name, summary and reference of every part and objective.

    Example:
        >>> [row for row in catalogue() if row[:2] == ("loss", "IWAE")][0][2]
        'The importance-weighted bound of K particles.'
    """
    rows = []
    for kind in KINDS:
        for name, cls in sorted(parts(kind).items()):
            _, _, reference = (inspect.getdoc(cls) or "").partition("Reference:\n")
            about = PYRO_LOSS_SUMMARIES.get(name, (summary_of(cls), " ".join(reference.split())))
            rows.append((kind, name, *about))
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
    own = _own_values("network", config, NETWORKS[config.network][0])
    encoder_network, decoder_network = (
        _network(cls, own, {"hidden": config.hidden[::turn], "channels": config.channels[::turn]})
        for cls, turn in zip(NETWORKS[config.network], (1, -1), strict=True)
    )
    given = {"shape": shape, "latent_dim": config.latent_dim}
    encoder = _construct("encoder", config, {**given, "network": encoder_network})
    prior = _construct("prior", config, {**given, "encoder": encoder})
    try:
        event = tuple(getattr(prior(), "event_shape", ()))  # (D,), or (D, categories) for one-hot codes
    except (TypeError, NotImplementedError) as error:  # the second is of a module without forward
        raise ValueError(f"the prior {config.prior} must return a distribution when it is called: {error}") from error
    code = event if len(event) > 1 else config.latent_dim
    of_codes = {**given, "latent_dim": code, "network": decoder_network}
    return VAE(prior, encoder, _construct("decoder", config, of_codes))


def _network(cls: type[nn.Module], own: dict[str, Any], sizes: dict[str, list[int]]) -> Network:
    """Return a network with all its arguments set except the two shapes."""
    accepted, plain = inspect.signature(cls).parameters, own_parameters(cls)
    fixed = {name: tuple(value) for name, value in sizes.items() if name in accepted and name not in plain}
    return partial(cls, **fixed, **{name: value for name, value in own.items() if name in accepted})


OPTIMIZERS = {
    cls.__name__.lower(): cls
    for cls in (
        *(torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam),
        *(torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.SGD),
    )
}


def optimizer_of(config: Config) -> Callable[[Any], torch.optim.Optimizer]:
    """Return a function that makes the optimizer of a config.

    Raises:
        ValueError: for an unknown name, numbers out of range, and settings that the optimizer does not have.

    Example:
        >>> optimizer_of(Config(optimizer="sgd", lr=0.1))([torch.zeros(1)]).param_groups[0]["lr"]
        0.1
    """
    name = config.optimizer or "adam"
    check_choice("optimizer", name, OPTIMIZERS)
    cls: Any = OPTIMIZERS[name]
    accepted = inspect.signature(cls).parameters
    settings: dict[str, Any] = {"lr": config.lr}
    for flag, above in (("weight_decay", False), ("eps", True)):
        value = getattr(config, flag)
        if value is None:
            continue
        if flag not in accepted:
            raise ValueError(f"the optimizer {name} has no {flag}: leave --{flag.replace('_', '-')} out")
        if not (0 < value < math.inf if above else 0 <= value < math.inf):
            raise ValueError(f"{flag} must be {'above' if above else 'at least'} 0 and finite, not {value!r}")
        settings[flag] = value
    fused = {"fused": True} if name in ("adam", "adamw", "sgd") else {}  # these have a fused version on every device
    return partial(cls, **settings, **fused)


def schedule_of(config: Config) -> Callable[[torch.optim.Optimizer], LRScheduler] | None:
    """Return a function that makes the schedule of a config's learning rate, or None if the rate is constant.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> schedule_of(Config(lr_schedule="step")).keywords
        {'step_size': 30, 'gamma': 0.1}
    """
    schedules: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
        "cosine": partial(CosineAnnealingLR, T_max=max(1, config.epochs)),
        "step": partial(StepLR, step_size=30, gamma=0.1),
        "exponential": partial(ExponentialLR, gamma=0.95),
        "plateau": partial(ReduceLROnPlateau, factor=0.1, patience=10),
    }
    if config.lr_schedule is None:
        return None
    check_choice("lr_schedule", config.lr_schedule, schedules)
    return schedules[config.lr_schedule]


def build_loss(config: Config, size: int) -> ELBO:
    """Build the objective of a config.

    Arguments:
        config: the config.
        size: the number of training data, which `pyro_vae.objectives.BetaTC` takes.

    Returns:
        The objective.

    Raises:
        ValueError: for unknown names, and values that the objective does not accept.

    Example:
        >>> build_loss(Config(loss="IWAE", options={"loss": {"num_particles": 5}}), 1000)
        IWAE(num_particles=5)
    """
    return _construct("loss", config, {"size": size, "max_plate_nesting": 1})


def _construct(kind: str, config: Config, given: dict[str, Any]) -> Any:
    cls = part(kind, getattr(config, kind))
    accepted = inspect.signature(cls).parameters
    missing = [name for name, value in accepted.items() if value.default is value.empty and name not in given]
    if missing:
        raise ValueError(f"the {kind} {cls.__name__} takes {', '.join(missing)}: build it in Python, not by a flag")
    values = {name: value for name, value in given.items() if name in accepted}
    return cls(**{**values, **_own_values(kind, config, cls)})


def _own_values(kind: str, config: Config, cls: type[Any]) -> dict[str, Any]:
    values, own = dict(config.options.get(kind, {})), own_parameters(cls)
    if "grey" in own:  # --binarize none asks for grey values
        values.setdefault("grey", config.binarize == "none")
    for name, value in values.items():
        check_choice(f"parameter of the {kind} {cls.__name__}:", name, own)
        values[name] = _typed(f"{kind}.{name}", value, own[name].annotation)
    return values


def _typed(name: str, value: Any, annotation: Any) -> Any:
    if annotation is float and type(value) is int:
        return networks.as_number(value, f"--{name}")
    if annotation in PLAIN and type(value) is not annotation:
        raise ValueError(f"--{name} takes a value of type {annotation.__name__}, not {value!r}")
    return value


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of the choices, with the nearest one."""
    if value not in choices:
        raise ValueError(nearest(value, choices, name))


def beta_of(config: Config, steps_per_epoch: int) -> objectives.Beta:
    """Return the KL weight of a config: a number, or a linear warm-up over its epochs."""
    if config.warm_up < 0:
        raise ValueError(f"warm_up must be at least 0 epochs, not {config.warm_up}")
    if config.warm_up == 0:
        return config.beta
    return objectives.linear_warm_up(config.warm_up * steps_per_epoch, config.beta)


def transform_of(config: Config) -> Transform | None:
    """Return the function that binarizes each batch, or None."""
    check_choice("binarize", config.binarize, data.BINARIZE)
    return data.BINARIZE[config.binarize]


def device_named(name: str, fix: str = "take --device cpu") -> torch.device:
    """Return a torch device that this machine has.

    Arguments:
        name: the name of the device, such as "cuda:1".
        fix: what the error says to do if the machine does not have it.

    Raises:
        ValueError: for a name that torch does not know, or a device that this machine does not have.

    Example:
        >>> device_named("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device).tolist()  # fails on a device without values, such as "meta"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:60]
        raise ValueError(f"no device {name!r} on this machine ({reason}); {fix}") from error
    return device


def load_data(config: Config) -> data.Data:
    """Load the data set of a config."""
    return data.load(config.data, config.data_root, config.download, eight_bit=True, scale=config.scale)
