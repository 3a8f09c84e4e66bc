"""Encoders: modules whose ``forward(x)`` returns q(z|x), with batch shape (\\*batch) and event shape (latent_dim,).

The event shape of one-hot codes is (latent_dim, categories).

Each is built by ``Encoder(shape, latent_dim, network=...)``: the shape of one datum, the number of latent dimensions,
and a function that builds its network (see `pyro_vae.networks`), to which the encoder passes the output shape that it
needs. `ScoreFunction` takes another encoder instead, and `SemiAmortized` also the prior and the decoder.
"""

from pyro_vae.encoders.bounded import Beta, Exponential, Gamma, Kumaraswamy, PowerSpherical, Weibull
from pyro_vae.encoders.discrete import Bernoulli, OneHotCategorical
from pyro_vae.encoders.flow import Flow
from pyro_vae.encoders.real import (
    Delta,
    FullRankNormal,
    Laplace,
    LogNormal,
    LowRankNormal,
    MixtureOfNormals,
    Normal,
    StudentT,
)
from pyro_vae.encoders.simplex import Dirichlet, RelaxedOneHotCategorical
from pyro_vae.encoders.wrappers import ScoreFunction, SemiAmortized

__all__ = [
    "Bernoulli",
    "Beta",
    "Delta",
    "Dirichlet",
    "Exponential",
    "Flow",
    "FullRankNormal",
    "Gamma",
    "Kumaraswamy",
    "Laplace",
    "LogNormal",
    "LowRankNormal",
    "MixtureOfNormals",
    "Normal",
    "OneHotCategorical",
    "PowerSpherical",
    "RelaxedOneHotCategorical",
    "ScoreFunction",
    "SemiAmortized",
    "StudentT",
    "Weibull",
]
