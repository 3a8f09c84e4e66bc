"""Decoders: modules whose ``forward(z)`` returns p(x|z), with batch shape (\\*batch) and event shape that of a datum.

Each is built by ``Decoder(latent_dim, shape, network=...)``: the number of latent dimensions (or the shape of a code),
the shape of one datum, and how to build its network (see `pyro_vae.networks`).
"""

from pyro_vae.decoders.bernoulli import Bernoulli, ContinuousBernoulli
from pyro_vae.decoders.normal import Normal

__all__ = ["Bernoulli", "ContinuousBernoulli", "Normal"]
