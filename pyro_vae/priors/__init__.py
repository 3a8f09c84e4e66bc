"""Priors: modules whose ``forward()`` returns p(z), with batch shape () and event shape (latent_dim,).

Those of categorical variables have the event shape (latent_dim, categories).
"""

from pyro_vae.priors.bounded import Beta, Dirichlet
from pyro_vae.priors.discrete import Bernoulli, OneHotCategorical, RelaxedOneHotCategorical
from pyro_vae.priors.flow import Flow
from pyro_vae.priors.mixture import MixtureOfNormals, VampPrior
from pyro_vae.priors.positive import Exponential, Gamma
from pyro_vae.priors.real import Laplace, Normal, StudentT
from pyro_vae.priors.sphere import HypersphericalUniform

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
