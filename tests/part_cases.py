"""One construction or more of every part, each with an independent reference for its log-probability.

A new part is entered here, and `test_parts.py` then holds it to the contract; without an entry it fails.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import nn

from pyro_vae import decoders, encoders, priors

D = 3  # latent dimensions
SHAPE = (2, 4, 3)  # of one datum


class Case(NamedTuple):
    """A part to test: how to build it for a number of latent dimensions, and log_prob(part, input, value)."""

    name: str
    kind: str
    family: type[nn.Module]
    make: Callable[..., nn.Module]
    log_prob: Callable[..., np.ndarray]

    def __repr__(self):
        return self.name


def array(tensor):
    return tensor.detach().double().numpy()


def event_sum(log_prob, dims=3):
    return log_prob.sum(tuple(range(-dims, 0)))


def standard_normal(_part, _, z):
    return event_sum(stats.norm.logpdf(z), 1)


def learned_normal(part, _, z):
    return event_sum(stats.norm.logpdf(z, array(part.loc), np.exp(array(part.log_scale))), 1)


def encoder_normal(part, x, z):
    mean, log_variance = np.moveaxis(array(part.network(x)), -2, 0)
    return event_sum(stats.norm.logpdf(z, mean, np.exp(log_variance / 2)), 1)


def encoder_delta(part, x, z):
    return np.where((array(part.network(x)) == z).all(-1), 0.0, -np.inf)


def bernoulli(part, z, x):
    return event_sum(stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-array(part.network(z))))))


def cross_entropy(part, z, x):
    p = 1 / (1 + np.exp(-array(part.network(z))))
    return event_sum(x * np.log(p) + (1 - x) * np.log1p(-p))


def continuous_bernoulli(part, z, x):
    logits = array(part.network(z))
    return event_sum(logits * x + np.log(logits / np.expm1(logits)))


def decoder_normal(scale):
    return lambda part, z, x: event_sum(stats.norm.logpdf(x, array(part.network(z)), scale))


def decoder_learned_normal(part, z, x):
    return event_sum(stats.norm.logpdf(x, array(part.network(z)), np.exp(array(part.log_scale))))


CASES = [
    Case("prior-normal", "priors", priors.Normal, priors.Normal, standard_normal),
    Case("prior-normal-learned", "priors", priors.Normal, lambda d: priors.Normal(d, learned=True), learned_normal),
    Case(
        "encoder-normal",
        "encoders",
        encoders.Normal,
        lambda d, **kwargs: encoders.Normal(SHAPE, d, **kwargs),
        encoder_normal,
    ),
    Case(
        "encoder-delta",
        "encoders",
        encoders.Delta,
        lambda d, **kwargs: encoders.Delta(SHAPE, d, **kwargs),
        encoder_delta,
    ),
    Case(
        "decoder-bernoulli",
        "decoders",
        decoders.Bernoulli,
        lambda d, **kwargs: decoders.Bernoulli(d, SHAPE, **kwargs),
        bernoulli,
    ),
    Case(
        "decoder-bernoulli-grey",
        "decoders",
        decoders.Bernoulli,
        lambda d, **kwargs: decoders.Bernoulli(d, SHAPE, grey=True, **kwargs),
        cross_entropy,
    ),
    Case(
        "decoder-continuous-bernoulli",
        "decoders",
        decoders.ContinuousBernoulli,
        lambda d, **kwargs: decoders.ContinuousBernoulli(d, SHAPE, **kwargs),
        continuous_bernoulli,
    ),
    *[
        Case(
            f"decoder-normal-scale-{scale}",
            "decoders",
            decoders.Normal,
            lambda d, scale=scale, **kwargs: decoders.Normal(d, SHAPE, scale=scale, **kwargs),
            decoder_normal(scale),
        )
        for scale in (1e-3, 0.1, 1.0, 1e3)
    ],
    Case(
        "decoder-normal-learned",
        "decoders",
        decoders.Normal,
        lambda d, **kwargs: decoders.Normal(d, SHAPE, scale=0.5, learned=True, **kwargs),
        decoder_learned_normal,
    ),
]


def cases(*kinds):
    return [case for case in CASES if case.kind in kinds]


def modules_in(package):
    """Return a module, and where it is a folder the modules in it."""
    names = [info.name for info in pkgutil.iter_modules(getattr(package, "__path__", []))]
    return [package, *(importlib.import_module(f"{package.__name__}.{name}") for name in names)]


def public_parts():
    """Return every public module class that is defined among the priors, encoders and decoders."""
    return {
        value
        for package in (priors, encoders, decoders)
        for module in modules_in(package)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module)
        if not name.startswith("_") and value.__module__.startswith(package.__name__)
    }


def built(case, dtype=torch.float64, seed=0, latent_dim=D, **kwargs):
    """Build a part with parameters drawn at random, also those that start from zeros."""
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        part = case.make(latent_dim, **kwargs)
    finally:
        torch.set_default_dtype(before)
    for parameter in part.parameters():
        if not parameter.any() or parameter.dim() == 0:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return part


def inputs(case, batch, dtype=torch.float64):
    """Return what a part is called with: nothing, data or codes."""
    if case.kind == "priors":
        return ()
    return (
        (torch.rand(*batch, *SHAPE, dtype=dtype),)
        if case.kind == "encoders"
        else (torch.randn(*batch, D, dtype=dtype),)
    )


def event_shape(case):
    return SHAPE if case.kind == "decoders" else (D,)
