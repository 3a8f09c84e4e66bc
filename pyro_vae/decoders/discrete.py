"""Decoders of discrete values: pixel values, categories and counts."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.arguments import as_size, held
from pyro_vae.decoders._decoder import _Decoder
from pyro_vae.networks import MLP, Network, Sizes, positive, soft_clip


class DiscretizedLogistic(_Decoder):
    r"""Mixture of logistic distributions in bins: probabilities of the :math:`2^b` values of a pixel.

    .. math:: p(x|z) = \prod_i \sum_k w_{ik} \left[ \sigma \left( \frac{x_i + \delta - \mu_{ik}}{s_{ik}} \right) -
              \sigma \left( \frac{x_i - \delta - \mu_{ik}}{s_{ik}} \right) \right],
              \quad \delta = \frac{1}{2 (2^b - 1)},

    where the bin of 0 has no lower end and the bin of 1 no upper end. Data must be multiples of :math:`1 / (2^b - 1)`
    in [0, 1], as images are when they are loaded. `pyro_vae.distributions.bits_per_dimension` converts nats to the
    customary unit.

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to (3 K - 1, \*shape): K means :math:`\mu`, K logarithms of scales s, both
            in units of x, and the logits of the weights w except the first, which is 0.
        bits: number of bits b of a value, from 1 to 8.
        components: number of components K, at least 1.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        TypeError: if ``bits`` or ``components`` is not an integer.
        ValueError: if one of them is out of its range or z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> DiscretizedLogistic(20, (1, 8, 8), components=5)(torch.zeros(3, 20)).sample().shape
        torch.Size([3, 1, 8, 8])

    Reference:
        Kingma et al., 2016, Improved Variational Inference with Inverse Autoregressive Flow, appendix; Salimans,
        Karpathy, Chen and Kingma, 2017, PixelCNN++, equation 2.
    """

    def __init__(
        self, latent_dim: Sizes, shape: Sizes, network: Network = MLP, bits: int = 8, components: int = 1
    ) -> None:
        if as_size(bits, "bits") > 8:
            raise ValueError(f"the bits of decoders.DiscretizedLogistic must be from 1 to 8, not {bits}")
        self.bits, self.components = bits, as_size(components, "components")
        self.numbers = 3 * components - 1
        super().__init__(latent_dim, shape, network)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        outputs = self.output(z).movedim(-1 - len(self.shape), -1)
        mean, log_scale, logits = outputs.split([self.components, self.components, self.components - 1], -1)
        # The mixture checks the values, so that its components need not.
        family = distributions.DiscretizedLogistic(mean, positive(log_scale), self.bits, validate_args=False)
        weights = dist.Categorical(logits=torch.cat([torch.zeros_like(mean[..., :1]), logits], -1))
        return dist.MixtureSameFamily(weights, family).to_event(len(self.shape))


class Categorical(_Decoder):
    r"""Categorical likelihood of tokens or of the 256 values of a pixel, each a number of its own.

    .. math:: \log p(x|z) = \sum_i \log \mathrm{softmax}(\ell_i(z))_{x_i}, \quad x_i \in \{0, \dots, K - 1\}

    Data must be floats with integer values; for 8-bit images x in [0, 1], use ``(255 * x).round()``.

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to (K, \*shape).
        categories: number of categories K, at least 2.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        TypeError: if ``categories`` is not an integer.
        ValueError: if it is below 2 or z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> Categorical(20, 7, categories=10)(torch.zeros(5, 20)).sample().shape
        torch.Size([5, 7])

    Reference:
        van den Oord, Kalchbrenner and Kavukcuoglu, 2016, Pixel Recurrent Neural Networks, section 2.2.
    """

    def __init__(self, latent_dim: Sizes, shape: Sizes, network: Network = MLP, categories: int = 256) -> None:
        if as_size(categories, "categories") < 2:
            raise ValueError(f"the categories of decoders.Categorical must be at least 2, not {categories}")
        self.numbers = self.categories = categories
        super().__init__(latent_dim, shape, network)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        logits = self.output(z).movedim(-1 - len(self.shape), -1)
        return distributions.Categorical(logits=logits).to_event(len(self.shape))


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
        ValueError: if z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> x = Poisson(20, 64)(torch.zeros(5, 20)).sample()
        >>> bool((x == x.round()).all())
        True

    Reference:
        Liang, Krishnan, Hoffman and Jebara, 2018, Variational Autoencoders for Collaborative Filtering, section 2.2.
    """

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return distributions.Poisson(soft_clip(self.output(z))).to_event(len(self.shape))


class _DispersedDecoder(_Decoder):
    """A decoder of counts with one learned inverse dispersion per entry of x."""

    def __init__(
        self, latent_dim: Sizes, shape: Sizes, network: Network = MLP, inverse_dispersion: float = 1.0
    ) -> None:
        super().__init__(latent_dim, shape, network)
        start = held(inverse_dispersion, 0, f"the inverse_dispersion of decoders.{type(self).__name__}")
        self.log_inverse_dispersion = nn.Parameter(torch.full(self.shape, math.log(start)))

    def counts(self, log_mean: Tensor, validate_args: bool | None = None) -> dist.TorchDistribution:
        """Return the distribution of the counts for the network's logarithm of the mean."""
        return distributions.NegativeBinomial(soft_clip(log_mean), self.log_inverse_dispersion, validate_args)

    def extra_repr(self) -> str:
        return f"inverse_dispersion={self.log_inverse_dispersion.detach().exp().mean().item():.4g}"


class NegativeBinomial(_DispersedDecoder):
    r"""Negative binomial likelihood by mean and inverse dispersion: counts whose variance exceeds their mean.

    .. math:: p(x|z) = \prod_i \frac{\Gamma(x_i + \theta_i)}{x_i! \, \Gamma(\theta_i)}
              \left( \frac{\theta_i}{\theta_i + \mu_i(z)} \right)^{\theta_i}
              \left( \frac{\mu_i(z)}{\theta_i + \mu_i(z)} \right)^{x_i},

    with mean :math:`\mu_i` and variance :math:`\mu_i + \mu_i^2 / \theta_i`. It tends to `Poisson` as
    :math:`\theta \to \infty`.

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to ``shape``: the logarithm of the mean.
        inverse_dispersion: initial value of the learned :math:`\theta` of each entry of x, from 1e-30 to 1e30.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: if the inverse dispersion is out of its range or z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> NegativeBinomial(20, 64)(torch.zeros(5, 20)).event_shape
        torch.Size([64])

    Reference:
        Lopez, Regier, Cole, Jordan and Yosef, 2018, Deep generative modeling for single-cell transcriptomics, methods.
    """

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return self.counts(self.output(z)).to_event(len(self.shape))


class ZeroInflatedNegativeBinomial(_DispersedDecoder):
    r"""Negative binomial likelihood with further zeros, of counts that were lost.

    .. math:: p(x|z) = \prod_i \pi_i(z) \, 1[x_i = 0] + (1 - \pi_i(z)) \,
              \mathrm{NB}(x_i; \mu_i(z), \theta_i), \quad \text{NB as in `NegativeBinomial`.}

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to (2, \*shape): the logarithm of the mean and the logits of the gate
            :math:`\pi`, which both pass through `pyro_vae.networks.soft_clip`.
        inverse_dispersion: initial value of the learned :math:`\theta` of each entry of x, from 1e-30 to 1e30.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: if the inverse dispersion is out of its range or z is not of the shape the decoder was built for.

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
        counts = self.counts(log_mean, validate_args=False)  # the ZeroInflated below checks the values
        return distributions.ZeroInflated(counts, gate_logits=soft_clip(gate)).to_event(len(self.shape))
