"""The uniform prior on the unit sphere."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.distributions.sphere import sphere_dim


class HypersphericalUniform(nn.Module):
    r"""Uniform prior on the unit sphere.

    .. math:: p(z) = \frac{\Gamma(D/2)}{2 \pi^{D/2}}, \qquad |z| = 1

    Arguments:
        latent_dim: number of latent coordinates D, at least 2: the sphere lies in D dimensions and has D - 1.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,), whose density is one with respect
        to the surface measure.

    Raises:
        TypeError: where ``latent_dim`` is not an integer.
        ValueError: where ``latent_dim`` is below 2.

    Example:
        >>> HypersphericalUniform(11)().event_shape
        torch.Size([11])

    Reference:
        Davidson et al., 2018, Hyperspherical Variational Auto-Encoders, section 3.
    """

    origin: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("origin", torch.zeros(sphere_dim(latent_dim, "latent_dim")), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        return distributions.HypersphericalUniform(len(self.origin), self.origin.dtype, self.origin.device)

    def extra_repr(self) -> str:
        return f"latent_dim={len(self.origin)}"
