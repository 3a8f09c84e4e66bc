"""Decoders: modules whose ``forward(z)`` returns p(x|z), with batch shape (\\*batch) and event shape that of a datum.

Each is built by ``Decoder(latent_dim, shape, network=...)``: the number of latent dimensions (or the shape of a code),
the shape of one datum, and a function that builds its network (see `pyro_vae.networks`).
"""

from pyro_vae.decoders.discrete import (
    Categorical,
    DiscretizedLogistic,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from pyro_vae.decoders.masked import Masked
from pyro_vae.decoders.real import Laplace, Normal, StudentT
from pyro_vae.decoders.unit import Bernoulli, Beta, ContinuousBernoulli

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Laplace",
    "Masked",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
]
