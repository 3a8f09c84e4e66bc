"""Decoders of real values, normal."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.decoders._decoder import _ScaleDecoder


class Normal(_ScaleDecoder):
    r"""Normal likelihood: squared error in units of a variance, fixed or learned, shared by all entries of x or not.

    .. math:: \log p(x|z) = \sum_i \log \mathcal{N}(x_i; \mu_i(z), \sigma_i^2)

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to ``shape``.
        scale: the standard deviation, above 0; where the learning starts, if it is learned.
        learned: learn the scale.
        per_dimension: learn one scale for each entry of x, not one for all; it needs ``learned``.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: where the scale is not above 0, it is per dimension but not learned, or z is not of the shape the
            decoder was built for.

    Example:
        >>> import torch
        >>> Normal(20, 64, scale=0.1)(torch.zeros(5, 20)).stddev[0, 0]
        tensor(0.1000)

    Reference:
        Rybkin, Daniilidis and Levine, 2021, Simple and Effective VAE Training with Calibrated Decoders, section 3.
    """

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.output(z), self.scales()).to_event(len(self.shape))
