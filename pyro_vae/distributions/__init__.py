"""Distributions that Pyro lacks, or has in a form that loses digits."""

from pyro_vae.distributions.bernoulli import ContinuousBernoulli, GreyBernoulli
from pyro_vae.distributions.discrete import EnumerableIndependent, OneHotCategorical
from pyro_vae.distributions.divergences import kl_weibull_exponential, kl_weibull_gamma
from pyro_vae.distributions.kumaraswamy import Kumaraswamy
from pyro_vae.distributions.moments import mean_of
from pyro_vae.distributions.relaxed import RelaxedOneHotCategorical, RelaxedOneHotCategoricalStraightThrough

__all__ = [
    "ContinuousBernoulli",
    "EnumerableIndependent",
    "GreyBernoulli",
    "Kumaraswamy",
    "OneHotCategorical",
    "RelaxedOneHotCategorical",
    "RelaxedOneHotCategoricalStraightThrough",
    "kl_weibull_exponential",
    "kl_weibull_gamma",
    "mean_of",
]
