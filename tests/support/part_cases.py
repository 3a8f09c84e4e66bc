"""One construction or more of every part, each with an independent reference for its log-probability.

A new part is entered in a file ``cases_*.py``, and `test_parts.py` then holds it to the contract; without an entry it
fails.
"""

import importlib
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from pyro_vae import decoders, encoders, priors

D = 3  # latent dimensions
SHAPE = (2, 4, 3)  # of one datum


class Case(NamedTuple):
    """A part to test.

    ``make(latent_dim)`` builds it; an encoder or a decoder also takes ``shape=`` and ``network=``.
    ``log_prob(part, input, value)`` is an independent reference, of numpy arrays. ``event(latent_dim)`` is the event
    shape of a prior or an encoder. ``density`` says that its log-probability is one, and not a customary substitute or
    that of a point: it is then integrated. ``dim`` is the number of latent dimensions at which quadrature is done.
    """

    name: str
    kind: str
    family: type[nn.Module]
    make: Callable[..., nn.Module]
    log_prob: Callable[..., np.ndarray]
    event: Callable[[int], tuple[int, ...]] = lambda latent_dim: (latent_dim,)
    density: bool = True
    dim: int = 1

    def __repr__(self):
        return self.name


def prior_case(name, family, log_prob, *, event=lambda d: (d,), density=True, dim=1, **own):
    return Case(f"prior-{name}", "priors", family, partial(family, **own), log_prob, event, density, dim)


def encoder_case(name, family, log_prob, *, event=lambda d: (d,), density=True, dim=1, **own):
    def make(latent_dim, *, shape=SHAPE, **kwargs):
        return family(shape, latent_dim, **own, **kwargs)

    return Case(f"encoder-{name}", "encoders", family, make, log_prob, event, density, dim)


def decoder_case(name, family, log_prob, *, density=True, **own):
    def make(latent_dim, *, shape=SHAPE, **kwargs):
        return family(latent_dim, shape, **own, **kwargs)

    return Case(f"decoder-{name}", "decoders", family, make, log_prob, density=density)


def array(tensor):
    return tensor.detach().double().numpy()


def event_sum(log_prob, dims=3):
    return log_prob.sum(tuple(range(-dims, 0)))


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


def inputs(case, batch, dtype=torch.float64, latent_dim=D):
    """Return what a part is called with: nothing, data or codes."""
    if case.kind == "priors":
        return ()
    if case.kind == "encoders":
        return (torch.rand(*batch, *SHAPE, dtype=dtype),)
    return (torch.randn(*batch, latent_dim, dtype=dtype),)


def event_shape(case, latent_dim=D):
    return SHAPE if case.kind == "decoders" else case.event(latent_dim)
