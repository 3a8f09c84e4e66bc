"""Distributions that Pyro lacks, or has in a form that loses digits."""

from pyro_vae.distributions.bernoulli import ContinuousBernoulli, GreyBernoulli
from pyro_vae.distributions.beta import OpenBeta
from pyro_vae.distributions.categorical import Categorical
from pyro_vae.distributions.counts import ZeroInflated
from pyro_vae.distributions.logistic import DiscretizedLogistic, bits_per_dimension
from pyro_vae.distributions.missing import MissingEntries
from pyro_vae.distributions.moments import mean_of

__all__ = [
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "GreyBernoulli",
    "MissingEntries",
    "OpenBeta",
    "ZeroInflated",
    "bits_per_dimension",
    "mean_of",
]
