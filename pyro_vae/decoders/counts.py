"""Decoders of counts: 0, 1, 2 and so on, as floats."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.decoders._decoder import _Decoder
from pyro_vae.distributions import ZeroInflated
from pyro_vae.networks import MLP, Network, Sizes, positive, soft_clip


class Poisson(_Decoder):
    r"""Poisson likelihood: the network gives the logarithm of the rate, the mean and variance of a count.

    .. math:: \log p(x|z) = \sum_i x_i \log \lambda_i(z) - \lambda_i(z) - \log x_i!

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to ``shape``; its output passes through `pyro_vae.networks.soft_clip`.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: where z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> x = Poisson(20, 64)(torch.zeros(5, 20)).sample()
        >>> bool((x == x.round()).all())
        True

    Reference:
        Liang, Krishnan, Hoffman and Jebara, 2018, Variational Autoencoders for Collaborative Filtering, section 2.2.
    """

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(positive(self.output(z))).to_event(len(self.shape))


class _DispersedDecoder(_Decoder):
    """A decoder of counts with one learned inverse dispersion per entry of x."""

    def __init__(
        self, latent_dim: Sizes, shape: Sizes, network: Network = MLP, inverse_dispersion: float = 1.0
    ) -> None:
        super().__init__(latent_dim, shape, network)
        if not (0 < inverse_dispersion < math.inf):
            name = f"decoders.{type(self).__name__}"
            raise ValueError(f"the inverse_dispersion of {name} must be above 0 and finite, not {inverse_dispersion!r}")
        self.log_inverse_dispersion = nn.Parameter(torch.full(self.shape, math.log(inverse_dispersion)))

    def counts_and_logits(self, log_mean: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number of failures and the logits of a success that give the mean."""
        log_count = soft_clip(self.log_inverse_dispersion)
        return log_count.exp(), soft_clip(log_mean) - log_count

    def extra_repr(self) -> str:
        return f"inverse_dispersion={positive(self.log_inverse_dispersion.detach()).mean().item():.4g}"


class NegativeBinomial(_DispersedDecoder):
    r"""Negative binomial likelihood by mean and inverse dispersion: counts whose variance exceeds their mean.

    .. math:: p(x|z) = \prod_i \frac{\Gamma(x_i + \theta_i)}{x_i! \, \Gamma(\theta_i)}
              \left( \frac{\theta_i}{\theta_i + \mu_i(z)} \right)^{\theta_i}
              \left( \frac{\mu_i(z)}{\theta_i + \mu_i(z)} \right)^{x_i},

    of mean :math:`\mu_i` and variance :math:`\mu_i + \mu_i^2 / \theta_i`. It tends to `Poisson` as
    :math:`\theta \to \infty`.

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to ``shape``: the logarithm of the mean.
        inverse_dispersion: where the learning of :math:`\theta` starts, above 0; each entry of x has its own.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: where the inverse dispersion is not above 0 or z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> NegativeBinomial(20, 64)(torch.zeros(5, 20)).event_shape
        torch.Size([64])

    Reference:
        Lopez, Regier, Cole, Jordan and Yosef, 2018, Deep generative modeling for single-cell transcriptomics, methods.
    """

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        count, logits = self.counts_and_logits(self.output(z))
        return dist.NegativeBinomial(count, logits=logits).to_event(len(self.shape))


class ZeroInflatedNegativeBinomial(_DispersedDecoder):
    r"""Negative binomial likelihood with further zeros, of counts that were lost.

    .. math:: p(x|z) = \prod_i \pi_i(z) \, 1[x_i = 0] + (1 - \pi_i(z)) \,
              \mathrm{NB}(x_i; \mu_i(z), \theta_i), \quad \text{NB as in `NegativeBinomial`.}

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to (2, \*shape): the logarithm of the mean and the logits of the gate
            :math:`\pi`, both through `pyro_vae.networks.soft_clip`.
        inverse_dispersion: where the learning of :math:`\theta` starts, above 0; each entry of x has its own.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: where the inverse dispersion is not above 0 or z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> ZeroInflatedNegativeBinomial(20, 64)(torch.zeros(5, 20)).event_shape
        torch.Size([64])

    Reference:
        Lopez, Regier, Cole, Jordan and Yosef, 2018, Deep generative modeling for single-cell transcriptomics, methods.
    """

    numbers = 2

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        log_mean, gate = self.outputs(z)
        count, logits = self.counts_and_logits(log_mean)
        # Not dist.ZeroInflatedNegativeBinomial, which refuses logits beyond 17, whose probability rounds to 1.
        counts = dist.NegativeBinomial(count, logits=logits, validate_args=False)  # values are checked outside
        return ZeroInflated(counts, gate_logits=soft_clip(gate)).to_event(len(self.shape))
