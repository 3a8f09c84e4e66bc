"""Decoders of values in {0, 1} and in [0, 1], by logits."""

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.decoders._decoder import _Decoder
from pyro_vae.distributions import Bernoulli as BernoulliDistribution
from pyro_vae.distributions import ContinuousBernoulli as ContinuousBernoulliDistribution
from pyro_vae.distributions import GreyBernoulli
from pyro_vae.networks import MLP, Network


class Bernoulli(_Decoder):
    r"""Bernoulli likelihood: the network gives logits, and the log-probability is minus the cross-entropy.

    .. math:: \log p(x|z) = \sum_i x_i \log \pi_i(z) + (1 - x_i) \log (1 - \pi_i(z))

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to ``shape``.
        grey: accept values anywhere in [0, 1], as is customary for grey pixels; the sum above is then no
            log-probability of x. Without it, x holds only 0 and 1.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: where z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> Bernoulli(20, (1, 8, 8))(torch.zeros(5, 20)).event_shape
        torch.Size([1, 8, 8])

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, equation 11.
    """

    def __init__(
        self, latent_dim: int | Sequence[int], shape: int | Sequence[int], network: Network = MLP, grey: bool = False
    ) -> None:
        super().__init__(latent_dim, shape, network)
        self.grey = grey

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        family = GreyBernoulli if self.grey else BernoulliDistribution
        return family(logits=self.output(z)).to_event(len(self.shape))

    def extra_repr(self) -> str:
        return f"grey={self.grey}"


class ContinuousBernoulli(_Decoder):
    r"""Continuous Bernoulli likelihood: a normalized density for values anywhere in [0, 1].

    .. math:: \log p(x|z) = \sum_i x_i \lambda_i(z) - \log(1 + e^{\lambda_i(z)})
              + \log \frac{\lambda_i(z)}{\tanh (\lambda_i(z) / 2)}, \quad \lambda \text{ the logits.}

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to ``shape``.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: where z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> ContinuousBernoulli(20, (1, 8, 8))(torch.zeros(5, 20)).event_shape
        torch.Size([1, 8, 8])

    Reference:
        Loaiza-Ganem and Cunningham, 2019, The continuous Bernoulli, equations 6 and 7.
    """

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return ContinuousBernoulliDistribution(logits=self.output(z)).to_event(len(self.shape))
