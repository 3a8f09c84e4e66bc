"""Distributions that Pyro lacks, or has in a form that loses digits."""

from pyro_vae.distributions.counts import NegativeBinomial, Poisson, ZeroInflated
from pyro_vae.distributions.discrete import (
    Categorical,
    DiscretizedLogistic,
    EnumerableIndependent,
    OneHotCategorical,
    bits_per_dimension,
)
from pyro_vae.distributions.flow import ConditionalAutoregressive, ConditionalFlow, ConditionalPlanar, Planar, ZukoFlow
from pyro_vae.distributions.kl import kl_weibull_exponential, kl_weibull_gamma
from pyro_vae.distributions.mixture import MixtureOfNormals
from pyro_vae.distributions.moments import centre_of, mean_of, on_sphere, shown_of
from pyro_vae.distributions.positive import Dirichlet, Gamma, Weibull
from pyro_vae.distributions.relaxed import RelaxedOneHotCategorical, StraightThroughGumbelSoftmax
from pyro_vae.distributions.sphere import HypersphericalUniform, PowerSpherical
from pyro_vae.distributions.stirling import BetaProportion, StudentT
from pyro_vae.distributions.unit import (
    Bernoulli,
    BernoulliVector,
    Beta,
    ContinuousBernoulli,
    GreyBernoulli,
    Kumaraswamy,
    OpenBeta,
)
from pyro_vae.distributions.wrappers import MissingEntries, ScoreFunction

__all__ = [
    "Bernoulli",
    "BernoulliVector",
    "Beta",
    "BetaProportion",
    "Categorical",
    "ConditionalAutoregressive",
    "ConditionalFlow",
    "ConditionalPlanar",
    "ContinuousBernoulli",
    "Dirichlet",
    "DiscretizedLogistic",
    "EnumerableIndependent",
    "Gamma",
    "GreyBernoulli",
    "HypersphericalUniform",
    "Kumaraswamy",
    "MissingEntries",
    "MixtureOfNormals",
    "NegativeBinomial",
    "OneHotCategorical",
    "OpenBeta",
    "Planar",
    "Poisson",
    "PowerSpherical",
    "RelaxedOneHotCategorical",
    "ScoreFunction",
    "StraightThroughGumbelSoftmax",
    "StudentT",
    "Weibull",
    "ZeroInflated",
    "ZukoFlow",
    "bits_per_dimension",
    "centre_of",
    "kl_weibull_exponential",
    "kl_weibull_gamma",
    "mean_of",
    "on_sphere",
    "shown_of",
]
