"""Distributions that Pyro lacks, or has in a form that loses digits."""

from pyro_vae.distributions.bernoulli import ContinuousBernoulli, GreyBernoulli
from pyro_vae.distributions.flow import ZukoFlow
from pyro_vae.distributions.moments import mean_of
from pyro_vae.distributions.sphere import HypersphericalUniform, PowerSpherical

__all__ = ["ContinuousBernoulli", "GreyBernoulli", "HypersphericalUniform", "PowerSpherical", "ZukoFlow", "mean_of"]
