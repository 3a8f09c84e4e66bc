"""Decoders of values strictly inside (0, 1)."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.decoders._decoder import _Decoder
from pyro_vae.distributions import OpenBeta
from pyro_vae.networks import positive, soft_clip


class Beta(_Decoder):
    r"""Beta likelihood by mean and concentration, for proportions strictly inside (0, 1).

    .. math:: p(x|z) = \prod_i \mathrm{Beta}(x_i; m_i c_i, (1 - m_i) c_i), \quad m_i(z) \text{ the mean, }
              c_i(z) \text{ the concentration}

    The density is 0 or infinite at 0 and 1, so that data which hold them are refused. Move them inside, as by
    ``x * (1 - 2 * e) + e`` with e half the resolution of the data, or take `ContinuousBernoulli`, which has the ends.

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to (2, \*shape): logits of the mean and the logarithm of the
            concentration, both through `pyro_vae.networks.soft_clip`.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: where z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> Beta(20, 64)(torch.zeros(5, 20)).event_shape
        torch.Size([64])

    Reference:
        Ferrari and Cribari-Neto, 2004, Beta Regression for Modelling Rates and Proportions, equation 4.
    """

    numbers = 2

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        logits, log_concentration = self.outputs(z)
        logits, concentration = soft_clip(logits), positive(log_concentration)
        return OpenBeta(logits.sigmoid() * concentration, (-logits).sigmoid() * concentration).to_event(len(self.shape))
