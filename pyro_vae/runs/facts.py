"""A run described in words, for its first lines and its report."""

import torch

from pyro_vae.data import Data, are_images, range_of
from pyro_vae.encoders import Delta
from pyro_vae.objectives import BetaTC, FreeBits, InfoVAE, Objective, Renyi
from pyro_vae.runs.config import Config
from pyro_vae.runs.experiment import Experiment
from pyro_vae.runs.parts import OPTIMIZERS


def facts_of(experiment: Experiment, processes: int = 1) -> dict[str, str]:
    """Describe an experiment that is trained by so many processes, in words by name.

    Example:
        >>> facts_of(Experiment(Config(data="digits", latent_dim=2, epochs=3)))["training"]
        '3 epochs, batch 64, Adam 0.001, seed 0, cpu'
    """
    config, data, vae = experiment.config, experiment.data, experiment.vae
    count = sum(parameter.numel() for parameter in vae.parameters())
    shape = "x".join(map(str, experiment.shape))
    grey = ", grey pixels scored by cross-entropy" if getattr(vae.decoder, "grey", False) else ""
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    seen = {"none": "not binarized", "threshold": "binarized at one half", "dynamic": "binarized anew every epoch"}
    return {
        "data": f"{config.data}: {len(data.train)} train, {len(data.test)} test, {shape}",
        "values": f"{values_of(config, data)}; {seen[config.binarize]} (--binarize {config.binarize}){grey}",
        "prior": name_of(vae.prior),
        "encoder": name_of(vae.encoder),
        "decoder": name_of(vae.decoder),
        "latent dimensions": str(config.latent_dim),
        "parameters": f"{count:,}",
        "objective": _objective(experiment),
        "training": f"{epochs}, batch {config.batch_size}, {_optimizing(config)}, seed {config.seed},"
        f" {experiment.device}{f', {processes} processes' if processes > 1 else ''}",
    } | ({"no bound": reason} if (reason := no_bound(experiment)) else {})


def no_bound(experiment: Experiment) -> str:
    """Say why the loss of an experiment is no bound, or nothing if it is one.

    Example:
        >>> no_bound(Experiment(Config(data="digits", encoder="Delta")))
        'a point has no density, so that the KL stands for -log p(z), and the loss is no bound on log p(x)'
    """
    loss, encoder = experiment.loss, experiment.vae.encoder
    if isinstance(getattr(encoder, "encoder", encoder), Delta):  # also the one that another encoder refines
        return "a point has no density, so that the KL stands for -log p(z), and the loss is no bound on log p(x)"
    if isinstance(loss, Renyi) and loss.alpha < 0:
        return "with alpha below 0 this is no lower bound: compare log p(x), which it may exceed"
    return ""


def changes_of(experiment: Experiment) -> list[str]:
    """Say how the loss that training minimizes differs from the negative bound that it reports, if it does.

    Example:
        >>> changes_of(Experiment(Config(data="digits", beta=4.0)))
        ['the KL has the weight 4']
    """
    loss, config, found = experiment.loss, experiment.config, list[str]()
    beta = config.beta * (min(1, config.epochs / config.warm_up) if config.warm_up else 1)
    if isinstance(loss, FreeBits):
        found.append(f"the KL of each dimension counts as at least {loss.floor:g} nats")
    if isinstance(loss, BetaTC) and loss.beta != 1:
        found.append(f"the total correlation of the codes has the weight {loss.beta:g}")
    if isinstance(loss, InfoVAE):
        weights = f"{1 - loss.alpha:g}, and the discrepancy between codes and prior {loss.alpha + loss.scale - 1:g}"
        found.append(f"the KL has the weight {weights}")
    if beta != 1:
        found.append(f"all of this has the weight {beta:g}" if found else f"the KL has the weight {beta:g}")
    return found


def values_of(config: Config, data: Data) -> str:
    """Describe the range of the values of data, and how they were scaled."""
    divided = "as the file has them" if config.scale is None else f"divided by {config.scale:g} (--scale)"
    return range_of(data) + ("pixels in [0, 1]" if are_images(config.data) else divided)


def name_of(module: torch.nn.Module) -> str:
    """Return the name of a part, with its own parameters and its network."""
    own = module.extra_repr()
    network = getattr(module, "network", None)
    return f"{type(module).__name__}({own}){', network ' + type(network).__name__ if network is not None else ''}"


def _optimizing(config: Config) -> str:
    """Return the name of the optimizer, with its settings and the schedule of its learning rate."""
    settings = {"weight decay": config.weight_decay, "eps": config.eps}
    more = [f"{name} {value:g}" for name, value in settings.items() if value is not None]
    more += [f"{config.lr_schedule} schedule"] * bool(config.lr_schedule)
    name = OPTIMIZERS[config.optimizer or "adam"].__name__
    return ", ".join([f"{name} {config.lr:g}", *more])


def _objective(experiment: Experiment) -> str:
    """Return the name of the objective, with its parameters, and the weight of the KL if it has one."""
    loss, config = experiment.loss, experiment.config
    ours = isinstance(loss, Objective)
    given = ", ".join(f"{name}={value}" for name, value in config.options.get("loss", {}).items())
    name = repr(loss) if ours else config.loss + f"({given})" * bool(given)
    if ours and not loss.weighs_kl:
        return name
    return f"{name}, beta {config.beta:g}" + f", from 0 over {config.warm_up} epochs" * bool(config.warm_up)
