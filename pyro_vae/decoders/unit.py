"""Decoders of values in [0, 1]."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import as_flag
from pyro_vae.decoders._decoder import _Decoder
from pyro_vae.networks import MLP, Network, Sizes, soft_clip


class Bernoulli(_Decoder):
    r"""Bernoulli likelihood: the network gives logits, and the log-probability is minus the cross-entropy.

    .. math:: \log p(x|z) = \sum_i x_i \log \pi_i(z) + (1 - x_i) \log (1 - \pi_i(z))

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to ``shape``.
        grey: accept values anywhere in [0, 1], as is customary for grey pixels; the sum above is then not a
            log-probability of x. Without it, x must hold only 0 and 1.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: if z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> Bernoulli(20, (1, 8, 8))(torch.zeros(5, 20)).event_shape
        torch.Size([1, 8, 8])

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, equation 11.
    """

    def __init__(self, latent_dim: Sizes, shape: Sizes, network: Network = MLP, grey: bool = False) -> None:
        super().__init__(latent_dim, shape, network)
        self.grey = as_flag(grey, "grey")

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        family = distributions.GreyBernoulli if self.grey else distributions.Bernoulli
        return family(logits=self.output(z)).to_event(len(self.shape))


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
        ValueError: if z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> ContinuousBernoulli(20, (1, 8, 8))(torch.zeros(5, 20)).event_shape
        torch.Size([1, 8, 8])

    Reference:
        Loaiza-Ganem and Cunningham, 2019, The continuous Bernoulli, equations 6 and 7.
    """

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return distributions.ContinuousBernoulli(logits=self.output(z)).to_event(len(self.shape))


class Beta(_Decoder):
    r"""Beta likelihood by mean and concentration, for proportions strictly inside (0, 1).

    .. math:: p(x|z) = \prod_i \mathrm{Beta}(x_i; m_i c_i, (1 - m_i) c_i), \quad m_i(z) \text{ the mean, }
              c_i(z) \text{ the concentration}

    The density is 0 or infinite at 0 and 1, so that data which contain them are refused. Move such data inside, as by
    ``x * (1 - 2 * e) + e`` with e half the resolution of the data, or use `ContinuousBernoulli`, which accepts 0 and 1.

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to (2, \*shape): logits of the mean and the logarithm of the
            concentration, which both pass through `pyro_vae.networks.soft_clip`.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: if z is not of the shape the decoder was built for.

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
        family = distributions.BetaProportion(soft_clip(logits), soft_clip(log_concentration))
        return family.to_event(len(self.shape))
