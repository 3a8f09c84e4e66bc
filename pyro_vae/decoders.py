"""Decoders: modules whose ``forward(z)`` returns p(x|z), with batch shape (\\*batch) and event shape that of a datum.

Each is built by ``Decoder(latent_dim, shape, network=...)``: the number of latent dimensions, the shape of one datum,
and how to build its network (see `pyro_vae.networks`).
"""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyro_vae.networks import MLP, Network, as_shape, as_size, check_event_shape


class _Decoder(nn.Module):
    """What every decoder here shares: a network from z to one number per entry of x."""

    def __init__(self, latent_dim: int, shape: int | Sequence[int], network: Network = MLP) -> None:
        super().__init__()
        self.latent_shape, self.shape = (as_size(latent_dim, "latent_dim"),), as_shape(shape)
        self.network = network(self.latent_shape, self.shape)

    def output(self, z: Tensor) -> Tensor:
        """Return the network's output for z, of shape (\\*batch, \\*shape)."""
        check_event_shape(z, self.latent_shape, f"decoders.{type(self).__name__}", "z")
        return self.network(z)


class _GreyBernoulli(dist.Bernoulli):
    """Bernoulli whose log-probability is the cross-entropy, also for values between 0 and 1."""

    support = constraints.unit_interval


class Bernoulli(_Decoder):
    r"""Bernoulli likelihood: the network gives logits, and the log-probability is minus the cross-entropy.

    .. math:: \log p(x|z) = \sum_i x_i \log \pi_i(z) + (1 - x_i) \log (1 - \pi_i(z))

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
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
        >>> Bernoulli(20, (1, 8, 8))(torch.zeros(5, 20)).event_shape
        torch.Size([1, 8, 8])

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, equation 11.
    """

    def __init__(self, latent_dim: int, shape: int | Sequence[int], network: Network = MLP, grey: bool = False) -> None:
        super().__init__(latent_dim, shape, network)
        self.grey = grey

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        family = _GreyBernoulli if self.grey else dist.Bernoulli
        return family(logits=self.output(z)).to_event(len(self.shape))

    def extra_repr(self) -> str:
        return f"grey={self.grey}"


class _ContinuousBernoulli(dist.ContinuousBernoulli):
    """Continuous Bernoulli that is exact for every logit.

    Torch works from probabilities, which it clamps: it loses digits of the normalizer near a logit of 0, and beyond one
    of about 16 its normalizer, mean and samples no longer move. Here all three are functions of the logit, by a series
    near 0, where the closed forms cancel.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits, small, size = self.logits, *self._small_and_size(0.1)
        near = math.log(2) + small**2 / 12 - 7 * small**4 / 1440 + 31 * small**6 / 90720
        far = (size / (size / 2).tanh()).log()
        return value * logits - softplus(logits) + torch.where(logits.abs() < 0.1, near, far)

    @property
    def mean(self) -> Tensor:
        small, size = self._small_and_size(0.1)
        near = small / 6 - small**3 / 360 + small**5 / 15120
        far = (1 / (size / 2).tanh() - 2 / size) * self.logits.sign()
        return (1 + torch.where(self.logits.abs() < 0.1, near, far)) / 2

    def icdf(self, value: Tensor) -> Tensor:
        small, size = self._small_and_size(0.01)
        near = value + small * value * (1 - value) * (1 / 2 + small * (1 - 2 * value) / 6)
        upper = torch.where(self.logits > 0, value, 1 - value)
        below_one = (-(upper + (1 - upper) * (-size).exp()).log() / size).clamp(0, 1)
        far = torch.where(self.logits > 0, 1 - below_one, below_one)
        return torch.where(self.logits.abs() < 0.01, near, far)

    def _small_and_size(self, edge: float) -> tuple[Tensor, Tensor]:
        # Each branch gets what it can digest, so that the one not taken, and its gradient, stay finite.
        return self.logits.clamp(-edge, edge), self.logits.abs().clamp(min=edge)


class ContinuousBernoulli(_Decoder):
    r"""Continuous Bernoulli likelihood: a normalized density for values anywhere in [0, 1].

    .. math:: \log p(x|z) = \sum_i x_i \lambda_i(z) - \log(1 + e^{\lambda_i(z)})
              + \log \frac{\lambda_i(z)}{\tanh (\lambda_i(z) / 2)}, \quad \lambda \text{ the logits.}

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        shape: shape of one datum.
        network: builds the network from (D,) to ``shape``.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: where z is not of the shape the decoder was built for.

    Example:
        >>> ContinuousBernoulli(20, (1, 8, 8))(torch.zeros(5, 20)).event_shape
        torch.Size([1, 8, 8])

    Reference:
        Loaiza-Ganem and Cunningham, 2019, The continuous Bernoulli, equations 6 and 7.
    """

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return _ContinuousBernoulli(logits=self.output(z)).to_event(len(self.shape))


class Normal(_Decoder):
    r"""Normal likelihood: squared error in units of a variance, fixed or learned, shared by all entries of x.

    .. math:: \log p(x|z) = \sum_i \log \mathcal{N}(x_i; \mu_i(z), \sigma^2)

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        shape: shape of one datum.
        network: builds the network from (D,) to ``shape``.
        scale: the standard deviation, above 0; where the learning starts, if it is learned.
        learned: learn the scale.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: where the scale is not above 0 or z is not of the shape the decoder was built for.

    Example:
        >>> Normal(20, 64, scale=0.1)(torch.zeros(5, 20)).stddev[0, 0]
        tensor(0.1000)

    Reference:
        Rybkin, Daniilidis and Levine, 2021, Simple and Effective VAE Training with Calibrated Decoders, section 3.
    """

    scale: Tensor

    def __init__(
        self,
        latent_dim: int,
        shape: int | Sequence[int],
        network: Network = MLP,
        scale: float = 1.0,
        learned: bool = False,
    ) -> None:
        super().__init__(latent_dim, shape, network)
        if not (0 < scale < math.inf):
            raise ValueError(f"the scale of decoders.Normal must be above 0 and finite, not {scale!r}")
        self.learned = learned
        if learned:
            self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        else:
            self.register_buffer("scale", torch.tensor(float(scale)), persistent=False)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        scale = self.log_scale.exp() if self.learned else self.scale
        return dist.Normal(self.output(z), scale).to_event(len(self.shape))

    def extra_repr(self) -> str:
        scale = self.log_scale.exp() if self.learned else self.scale
        return f"scale={scale.item():.4g}, learned={self.learned}"
