"""Distributions that Pyro lacks, or has in a form that loses digits."""

from pyro_vae.distributions.bernoulli import ContinuousBernoulli, GreyBernoulli
from pyro_vae.distributions.mixture import MixtureOfNormals
from pyro_vae.distributions.moments import mean_of

__all__ = ["ContinuousBernoulli", "GreyBernoulli", "MixtureOfNormals", "mean_of"]
