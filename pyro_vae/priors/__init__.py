"""Priors: modules whose ``forward()`` returns p(z), with batch shape () and event shape (latent_dim,)."""

from pyro_vae.priors.normal import Normal
from pyro_vae.priors.sphere import HypersphericalUniform

__all__ = ["HypersphericalUniform", "Normal"]
