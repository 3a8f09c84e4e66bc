"""Priors: modules whose ``forward()`` returns p(z), with batch shape () and event shape (latent_dim,).

For categorical variables the event shape is (latent_dim, categories).
"""

from pyro_vae.priors.bounded import Beta, Dirichlet, Exponential, Gamma, HypersphericalUniform
from pyro_vae.priors.discrete import Bernoulli, OneHotCategorical, RelaxedOneHotCategorical
from pyro_vae.priors.flow import Flow
from pyro_vae.priors.mixture import MixtureOfNormals, VampPrior
from pyro_vae.priors.real import Laplace, Normal, StudentT

__all__ = [
    "Bernoulli",
    "Beta",
    "Dirichlet",
    "Exponential",
    "Flow",
    "Gamma",
    "HypersphericalUniform",
    "Laplace",
    "MixtureOfNormals",
    "Normal",
    "OneHotCategorical",
    "RelaxedOneHotCategorical",
    "StudentT",
    "VampPrior",
]
