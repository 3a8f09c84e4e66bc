"""Normal priors."""

import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae.networks import as_size


class Normal(nn.Module):
    r"""Normal prior with independent dimensions, standard or with learned location and scale.

    .. math:: p(z) = \prod_d \mathcal{N}(z_d; \mu_d, \sigma_d^2), \qquad \mu = 0, \sigma = 1 \text{ unless learned.}

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        learned: learn the location and the scale, starting from the standard normal distribution.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: where ``latent_dim`` is not an integer.
        ValueError: where ``latent_dim`` is below 1.

    Example:
        >>> Normal(20)().event_shape
        torch.Size([20])

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, section 3.
    """

    def __init__(self, latent_dim: int, learned: bool = False) -> None:
        super().__init__()
        self.learned = learned
        zeros = torch.zeros(as_size(latent_dim, "latent_dim"))
        if learned:
            self.loc, self.log_scale = nn.Parameter(zeros), nn.Parameter(zeros.clone())
        else:
            self.register_buffer("loc", zeros, persistent=False)
            self.register_buffer("scale", torch.ones_like(zeros), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        scale = self.log_scale.exp() if self.learned else self.scale
        return dist.Normal(self.loc, scale).to_event(1)

    def extra_repr(self) -> str:
        return f"latent_dim={len(self.loc)}, learned={self.learned}"
