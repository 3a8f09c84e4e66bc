"""Distributions that Pyro lacks, or has in a form that loses digits."""

from pyro_vae.distributions import kl  # noqa: F401 (what it knows is registered with torch)
from pyro_vae.distributions.bernoulli import Bernoulli, ContinuousBernoulli, GreyBernoulli
from pyro_vae.distributions.beta import OpenBeta
from pyro_vae.distributions.categorical import Categorical
from pyro_vae.distributions.conditional_flow import ConditionalAutoregressive, ConditionalFlow, ConditionalPlanar
from pyro_vae.distributions.counts import ZeroInflated
from pyro_vae.distributions.discrete import EnumerableIndependent, OneHotCategorical
from pyro_vae.distributions.divergences import kl_weibull_exponential, kl_weibull_gamma
from pyro_vae.distributions.flow import ZukoFlow
from pyro_vae.distributions.kumaraswamy import Kumaraswamy
from pyro_vae.distributions.logistic import DiscretizedLogistic, bits_per_dimension
from pyro_vae.distributions.missing import MissingEntries
from pyro_vae.distributions.mixture import MixtureOfNormals
from pyro_vae.distributions.moments import centre_of, mean_of, on_sphere
from pyro_vae.distributions.planar import Planar
from pyro_vae.distributions.relaxed import RelaxedOneHotCategorical, StraightThroughGumbelSoftmax
from pyro_vae.distributions.score_function import ScoreFunction
from pyro_vae.distributions.sphere import HypersphericalUniform, PowerSpherical

__all__ = [
    "Bernoulli",
    "Categorical",
    "ConditionalAutoregressive",
    "ConditionalFlow",
    "ConditionalPlanar",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "EnumerableIndependent",
    "GreyBernoulli",
    "HypersphericalUniform",
    "Kumaraswamy",
    "MissingEntries",
    "MixtureOfNormals",
    "OneHotCategorical",
    "OpenBeta",
    "Planar",
    "PowerSpherical",
    "RelaxedOneHotCategorical",
    "ScoreFunction",
    "StraightThroughGumbelSoftmax",
    "ZeroInflated",
    "ZukoFlow",
    "bits_per_dimension",
    "centre_of",
    "kl_weibull_exponential",
    "kl_weibull_gamma",
    "mean_of",
    "on_sphere",
]
