"""Encoders: modules whose ``forward(x)`` returns q(z|x), with batch shape (\\*batch) and event shape (latent_dim,).

Each is built by ``Encoder(shape, latent_dim, network=...)``: the shape of one datum, the number of latent dimensions,
and how to build its network (see `pyro_vae.networks`), to which the encoder says how many numbers it needs.
"""

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae.networks import MLP, Network, as_shape, as_size, check_event_shape, soft_clip


class Normal(nn.Module):
    r"""Normal encoder with a diagonal covariance.

    .. math:: q(z|x) = \prod_d \mathcal{N}(z_d; \mu_d(x), \exp(\ell_d(x)))

    The network gives the mean :math:`\mu` and the log-variance :math:`\ell`; the latter passes through
    `pyro_vae.networks.soft_clip`, so that no output of the network overflows.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2, D).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        ValueError: where x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> Normal((1, 8, 8), 20)(torch.zeros(5, 1, 8, 8)).event_shape
        torch.Size([20])

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, equation 9.
    """

    def __init__(self, shape: int | Sequence[int], latent_dim: int, network: Network = MLP) -> None:
        super().__init__()
        self.shape = as_shape(shape)
        self.network = network(self.shape, (2, as_size(latent_dim, "latent_dim")))

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        check_event_shape(x, self.shape, "encoders.Normal", "x")
        mean, log_variance = self.network(x).unbind(-2)
        return dist.Normal(mean, (soft_clip(log_variance) / 2).exp()).to_event(1)


class Delta(nn.Module):
    r"""Encoder to a single point: with it and a KL weight of 0 the VAE is the classic autoencoder.

    .. math:: q(z|x) = \delta(z - f(x))

    Pyro gives a point the density 1 at itself, so that :math:`\log q = 0` and the "KL" that is reported is
    :math:`-\log p(f(x))`: the bound is then the joint density of a penalized (maximum a posteriori) autoencoder.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (D,).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        ValueError: where x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> bool(Delta(64, 2)(torch.zeros(5, 64)).variance.any())
        False

    Reference:
        Hinton and Salakhutdinov, 2006, Reducing the Dimensionality of Data with Neural Networks.
    """

    def __init__(self, shape: int | Sequence[int], latent_dim: int, network: Network = MLP) -> None:
        super().__init__()
        self.shape = as_shape(shape)
        self.network = network(self.shape, (as_size(latent_dim, "latent_dim"),))

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        check_event_shape(x, self.shape, "encoders.Delta", "x")
        return dist.Delta(self.network(x), event_dim=1)
