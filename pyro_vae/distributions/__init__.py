"""Distributions that Pyro lacks, or has in a form that loses digits."""

from pyro_vae.distributions.bernoulli import ContinuousBernoulli, GreyBernoulli
from pyro_vae.distributions.kumaraswamy import Kumaraswamy
from pyro_vae.distributions.moments import mean_of

__all__ = ["ContinuousBernoulli", "GreyBernoulli", "Kumaraswamy", "mean_of"]
