"""Distributions of counts, whose log-probabilities are accurate however large the counts and the parameters are."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from pyro_vae.distributions._gammas import log1p_less, stirling_series, wide
from pyro_vae.distributions.wrappers import expanded

_FAR = 100.0  # from this inverse dispersion on, logarithms of gamma functions are computed by Stirling's series


class Poisson(dist.Poisson):
    r"""Poisson distribution, parameterized by the logarithm of its rate and scored in 64 bits.

    .. math:: \log p(x) = x \ell - e^\ell - \log x!

    At a rate of a million the three terms are as large as ten million, and their sum is about -8: in 32 bits the sum
    would be off by a nat.

    Arguments:
        log_rate: the logarithm :math:`\ell` of the rate.

    Example:
        >>> million = torch.tensor(1e6)
        >>> Poisson(million.log()).log_prob(million)
        tensor(-7.8267)

    Reference:
        Johnson, Kemp and Kotz, 2005, Univariate Discrete Distributions, equation 4.1.
    """

    def __init__(self, log_rate: Tensor, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.exp(), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "Poisson":
        log_rate, rate = (t.expand(batch_shape) for t in (self.log_rate, self.rate))
        return expanded(self, batch_shape, log_rate=log_rate, rate=rate)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        count, log_rate = wide(value), wide(self.log_rate)
        return (count * log_rate - log_rate.exp() - (count + 1).lgamma()).to(self.log_rate.dtype)


class NegativeBinomial(dist.TorchDistribution):
    r"""Negative binomial distribution, parameterized by the logarithms of its mean and of its inverse dispersion.

    .. math:: p(x) = \frac{\Gamma(x + \theta)}{x! \, \Gamma(\theta)}
              \left( \frac{\theta}{\theta + \mu} \right)^\theta \left( \frac{\mu}{\theta + \mu} \right)^x,

    with mean :math:`\mu` and variance :math:`\mu + \mu^2 / \theta`. For large :math:`\theta` the gamma functions nearly
    cancel each other, and the rest nearly cancels the powers. The terms are therefore rearranged as follows, and
    computed in 64 bits:

    .. math:: \log p(x) = x (\log \mu - 1) + (x + \theta) \log \frac{x + \theta}{\mu + \theta} - \log x!
              - \tfrac{1}{2} \log \frac{x + \theta}{\theta} + r(x + \theta) - r(\theta),

    where r is the remainder of Stirling's formula (Abramowitz and Stegun, 1964, equation 6.1.41). Values and gradients
    are accurate to a part in :math:`10^6` in 32 bits, even if the distribution is nearly a Poisson distribution.

    Arguments:
        log_mean: :math:`\log \mu`.
        log_inverse_dispersion: :math:`\log \theta`.

    Returns:
        A distribution of the shape to which both broadcast.

    Example:
        >>> counts = NegativeBinomial(torch.tensor(0.0), torch.tensor(0.0))  # the geometric distribution of mean 1
        >>> counts.log_prob(torch.tensor([0.0, 1.0, 2.0])).exp()
        tensor([0.5000, 0.2500, 0.1250])

    Reference:
        Loader, 2000, Fast and Accurate Computation of Binomial Probabilities; Lopez, Regier, Cole, Jordan and Yosef,
        2018, Deep generative modeling for single-cell transcriptomics, methods.
    """

    arg_constraints: ClassVar = {"log_mean": constraints.real, "log_inverse_dispersion": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(self, log_mean: Tensor, log_inverse_dispersion: Tensor, validate_args: bool | None = None) -> None:
        self.log_mean, self.log_inverse_dispersion = log_mean, log_inverse_dispersion
        shape = torch.broadcast_shapes(log_mean.shape, log_inverse_dispersion.shape)
        super().__init__(shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "NegativeBinomial":
        return expanded(self, batch_shape)  # the tensors are broadcast where they are used

    @property
    def mean(self) -> Tensor:
        return self.log_mean.exp().expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        return self.mean + (2 * self.log_mean - self.log_inverse_dispersion).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        count = wide(value.expand(torch.broadcast_shapes(value.shape, self.batch_shape)))
        log_mean, log_theta = wide(self.log_mean), wide(self.log_inverse_dispersion)
        powers: Tensor = _Powers.apply(count, log_mean, log_theta)
        return (powers + _gammas(count, log_theta) - (count + 1).lgamma()).to(self.log_mean.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (as torch has it)
        theta = self.log_inverse_dispersion.exp().expand(self._extended_shape(sample_shape))
        return torch.poisson(torch._standard_gamma(theta) * (self.log_mean - self.log_inverse_dispersion).exp())


class _Powers(torch.autograd.Function):
    r"""The terms of a negative binomial log-probability that depend on its mean.

    .. math:: f(x, \log \mu, \log \theta) = x (\log \mu - 1) + (x + \theta) \log \frac{x + \theta}{\mu + \theta}, \qquad
              \frac{\partial f}{\partial \log \mu} = \frac{\theta (x - \mu)}{\theta + \mu}, \quad
              \frac{\partial f}{\partial \log \theta} = \theta (\log (1 + u) - u), \; u = \frac{x - \mu}{\theta + \mu}

    The derivatives are written out, because those of the single terms nearly cancel.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(count: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
        return count * (log_mean - 1) + (count + log_theta.exp()) * _log_ratio(count, log_mean, log_theta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        of_inputs = zip(_slopes(*ctx.saved_tensors), ctx.saved_tensors, strict=True)
        return tuple((gradient * slope).sum_to_size(value.shape) for slope, value in of_inputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        slopes = zip(_slopes(*ctx.saved_tensors), tangents, strict=True)
        return sum((slope * tangent for slope, tangent in slopes if tangent is not None), torch.zeros(()))


def _slopes(count: Tensor, log_mean: Tensor, log_theta: Tensor) -> tuple[Tensor, ...]:
    mean, theta, log_ratio = log_mean.exp(), log_theta.exp(), _log_ratio(count, log_mean, log_theta)
    excess = (count - mean) / (theta + mean)
    return log_mean + log_ratio, theta * excess, theta * log1p_less(excess, log_ratio)


def _log_ratio(count: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
    """Return the logarithm of (x + theta) / (mu + theta)."""
    return (count / log_theta.exp()).log1p() - (log_mean - log_theta).exp().log1p()


def _gammas(count: Tensor, log_theta: Tensor) -> Tensor:
    """Return the terms of a negative binomial log-probability that depend on its inverse dispersion, not its mean."""
    theta = log_theta.exp()
    total, log_growth = count + theta, (count / theta).log1p()
    near = total.lgamma() - theta.lgamma() - count * log_theta - total * log_growth + count
    far = stirling_series(total.clamp(min=_FAR)) - stirling_series(theta.clamp(min=_FAR)) - log_growth / 2
    return torch.where(theta < _FAR, near, far)


class ZeroInflated(dist.ZeroInflatedDistribution):
    r"""A distribution of counts with additional zeros, exact for every logit of the gate.

    .. math:: \log p(0) = \log \left(\pi + (1 - \pi) \, q(0)\right) = \log \left(1 - (1 - \pi) (1 - q(0))\right), \qquad
              \log p(x) = \log (1 - \pi) + \log q(x)

    Pyro's class (seen in 1.9.2) caches the gate's probability when it draws or returns its mean, and from then on
    computes with it. But the logarithm of that probability has no gradient where it rounds to 1. This class always
    computes with the logit. Of the two forms of :math:`\log p(0)` it uses the one that loses no digits.

    Arguments:
        base_dist: a distribution of counts, of event shape ().
        gate: the probability :math:`\pi` of an additional zero, in [0, 1]; or
        gate_logits: the logits of that probability, any numbers.

    Raises:
        ValueError: if neither or both of the gate's arguments are given, if ``gate`` is out of its range, or if the
            counts have an event shape.

    Example:
        >>> import torch
        >>> gate = torch.tensor(20.0, requires_grad=True)
        >>> counts = ZeroInflated(dist.Poisson(torch.tensor(1.0)), gate_logits=gate)
        >>> counts.log_prob(counts.sample()).backward()
        >>> bool(gate.grad.isfinite())
        True
    """

    def __init__(
        self,
        base_dist: dist.TorchDistribution,
        *,
        gate: Tensor | float | None = None,
        gate_logits: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if (gate is None) == (gate_logits is None):
            raise ValueError("give one of gate, a probability, and gate_logits, and not both")
        if gate is not None:
            probability = torch.as_tensor(gate)
            if not ((probability >= 0) & (probability <= 1)).all():
                raise ValueError(f"gate is a probability, from 0 to 1, not {gate!s:.60}; or give gate_logits")
            gate_logits = probability.logit()
        super().__init__(base_dist, gate_logits=torch.as_tensor(gate_logits), validate_args=validate_args)

    @property
    def gate(self) -> Tensor:
        """The probability of an additional zero."""
        return self.gate_logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        return (-self.gate_logits).sigmoid() * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        # A sum of positive terms, which cannot cancel: one for the counts, and one for whether the gate lets them pass.
        return (-self.gate_logits).sigmoid() * (self.base_dist.variance + self.gate * self.base_dist.mean**2)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        gate, value = broadcast_all(self.gate_logits, value)
        base = self.base_dist.log_prob(value)
        shut = logsigmoid(-gate)
        others, lack = shut + base, shut.exp() * base.expm1()  # p(0) - 1, whose gradient is accurate in this form
        at_zero = torch.where(lack > -0.5, lack.clamp(min=-0.5).log1p(), torch.logaddexp(logsigmoid(gate), others))
        return torch.where(value == 0, at_zero, others)
