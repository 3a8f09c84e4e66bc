"""Distributions that Pyro lacks, or has in a form that loses digits."""

from pyro_vae.distributions.bernoulli import ContinuousBernoulli, GreyBernoulli
from pyro_vae.distributions.conditional_flow import ConditionalAutoregressive, ConditionalFlow, ConditionalPlanar
from pyro_vae.distributions.flow import ZukoFlow
from pyro_vae.distributions.mixture import MixtureOfNormals
from pyro_vae.distributions.moments import mean_of
from pyro_vae.distributions.planar import Planar
from pyro_vae.distributions.sphere import HypersphericalUniform, PowerSpherical

__all__ = [
    "ConditionalAutoregressive",
    "ConditionalFlow",
    "ConditionalPlanar",
    "ContinuousBernoulli",
    "GreyBernoulli",
    "HypersphericalUniform",
    "MixtureOfNormals",
    "Planar",
    "PowerSpherical",
    "ZukoFlow",
    "mean_of",
]
