"""Normal encoders, and the limit of no variance."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.encoders._encoder import _Encoder
from pyro_vae.networks import soft_clip


class Normal(_Encoder):
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

    numbers = 2

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        mean, log_variance = output.unbind(-2)
        return dist.Normal(mean, (soft_clip(log_variance) / 2).exp()).to_event(1)


class Delta(_Encoder):
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

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        return dist.Delta(output, event_dim=1)
