"""Mixture priors."""

import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae.networks import as_size, positive


class MixtureOfNormals(nn.Module):
    r"""Mixture of normal distributions with diagonal covariances and learned weights, locations and scales.

    .. math:: p(z) = \sum_k \pi_k \prod_d \mathcal{N}(z_d; \mu_{kd}, \sigma_{kd}^2)

    The weights start equal, the locations from standard normal draws and the scales from 1.

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        components: number of components K, at least 1.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,). It has no pathwise sampler.

    Raises:
        TypeError: where ``latent_dim`` or ``components`` is not an integer.
        ValueError: where one of them is below 1.

    Example:
        >>> MixtureOfNormals(20, components=10)().event_shape
        torch.Size([20])

    Reference:
        Dilokthanakul et al., 2016, Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders.
        Tomczak and Welling, 2018, VAE with a VampPrior, section 5 (where it is called MoG).
    """

    def __init__(self, latent_dim: int, components: int = 10) -> None:
        super().__init__()
        shape = as_size(components, "components"), as_size(latent_dim, "latent_dim")
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))

    def forward(self) -> dist.TorchDistribution:
        normals = dist.Normal(self.loc, positive(self.log_scale)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), normals)

    def extra_repr(self) -> str:
        return f"latent_dim={self.loc.shape[1]}, components={self.loc.shape[0]}"
