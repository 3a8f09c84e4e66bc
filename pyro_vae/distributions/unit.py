"""Distributions of values in [0, 1]."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints, kl_divergence, register_kl
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from pyro_vae.distributions._gammas import wide
from pyro_vae.distributions.kl import EULER, cross_term
from pyro_vae.distributions.positive import shares


class Bernoulli(dist.Bernoulli):
    """Bernoulli whose log-probability takes half the time if it has no gradient, and even less if it is summed.

    Torch's version has a fast gradient, but reads its values twice as often, and not in memory order if x is broadcast.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self.has_gradient(value):
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        logits, lack = broadcast_all(self.logits, value - 1)
        return logsigmoid(logits).addcmul_(lack.to(logits), logits)

    @property
    def variance(self) -> Tensor:
        return self.probs * self._lack()

    def entropy(self) -> Tensor:
        return -torch.special.xlogy(self.probs, self.probs) - torch.special.xlogy(self._lack(), self._lack())

    def _lack(self) -> Tensor:
        # The probability of 0; as 1 - probs it would be rounded to 0 for a large logit.
        return (-self.logits).sigmoid() if "logits" in vars(self) else 1 - self.probs

    def has_gradient(self, value: Tensor) -> bool:
        """Whether the log-probability of a value has a gradient."""
        return torch.is_grad_enabled() and (self.logits.requires_grad or value.requires_grad)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> dist.TorchDistribution:
        independent = super().to_event(reinterpreted_batch_ndims)
        return independent if independent is self else BernoulliVector(self, independent.reinterpreted_batch_ndims)


class BernoulliVector(dist.Independent):
    r"""Independent Bernoulli variables, whose log-probability needs only one logarithm for many of them.

    .. math:: \log p(x) = \sum_d \left[\min(l_d, 0) - (1 - x_d) \, l_d\right] - \log \prod_d (1 + e^{-|l_d|})

    The factors are between 1 and 2, so that a product of 112 stays below the largest float32. Rounding changes the
    result by at most 1.2e-7 nats for each factor.
    """

    MOST = 112  # factors in a product

    def log_prob(self, value: Tensor) -> Tensor:
        if self.base_dist.has_gradient(value) or self.base_dist.logits.dtype not in (torch.float32, torch.float64):
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        logits, lack = broadcast_all(self.base_dist.logits, value - 1)
        kept = logits.clamp(max=0).addcmul_(lack.to(logits), logits).flatten(-self.reinterpreted_batch_ndims)
        factors = logits.abs().neg_().exp_().add_(1).flatten(-self.reinterpreted_batch_ndims)
        count = factors.shape[-1]
        many = max((size for size in range(1, self.MOST + 1) if count % size == 0), default=1)
        return kept.sum(-1) - factors.unflatten(-1, (count // many, many)).prod(-1).log().sum(-1)


class GreyBernoulli(Bernoulli):
    """Bernoulli whose log-probability is the cross-entropy, also for values between 0 and 1."""

    support = constraints.unit_interval


class ContinuousBernoulli(dist.ContinuousBernoulli):
    r"""Continuous Bernoulli that is exact for every logit.

    .. math:: p(x) = \frac{\lambda e^{\lambda x}}{e^\lambda - 1}, \qquad \lambda \text{ the logit}, \; 0 \le x \le 1

    Torch computes with clamped probabilities: it loses digits near a logit of 0, and beyond a logit of about 16 its
    results no longer change. Here everything is a function of the logit. Near 0, where the closed forms cancel, it is a
    power series in the logit, with coefficients from the Bernoulli numbers, :math:`b_k = B_{2k} / (2k)!`. Elsewhere it
    is a function of the logit's absolute value and of the distance from the end where the density is largest.

    Example:
        >>> ContinuousBernoulli(logits=torch.tensor(0.0)).variance  # 1/12, of the uniform distribution
        tensor(0.0833)

    Reference:
        Loaiza-Ganem and Cunningham, 2019, The continuous Bernoulli, equations 6 to 9.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits, value = broadcast_all(self.logits, value)
        small, size = self._small_and_size(0.1)
        normalizer = _powers(small, [b / (2 * k) for k, b in _B[:4]]) * small**2
        near = (value - 0.5) * small - normalizer
        distance = torch.where(logits > 0, 1 - value, value)
        far = size.log() - (-(-size).exp()).log1p() - size * distance
        return torch.where(logits.abs() < 0.1, near, far)

    @property
    def mean(self) -> Tensor:
        small, size = self._small_and_size(1.0)
        near = 0.5 + small * _powers(small, [b for _, b in _B])
        distance = 1 / size - (-size).exp() / -(-size).expm1()
        far = torch.where(self.logits > 0, 1 - distance, distance)
        return torch.where(self.logits.abs() < 1, near, far)

    @property
    def variance(self) -> Tensor:
        small, size = self._small_and_size(1.0)
        near = _powers(small, [(2 * k - 1) * b for k, b in _B])
        far = size**-2 - (-size).exp() / (-size).expm1() ** 2
        return torch.where(self.logits.abs() < 1, near, far)

    def entropy(self) -> Tensor:
        small, size = self._small_and_size(1.0)
        near = -(small**2) * _powers(small, [(1 - 1 / (2 * k)) * b for k, b in _B])
        far = 1 - size * (-size).exp() / -(-size).expm1() - size.log() + (-(-size).exp()).log1p()
        return torch.where(self.logits.abs() < 1, near, far)

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits, x = broadcast_all(self.logits, value.clamp(0, 1))
        small, size = self._small_and_size(0.001)
        both = x * (1 - x)
        near = x - small * both / 2 * (1 - small * (1 - 2 * x) / 6)
        far = (-size * x).expm1() / (-size).expm1() * torch.where(logits > 0, -size * (1 - x), 0 * size).exp()
        return torch.where(logits.abs() < 0.001, near, far)

    def icdf(self, value: Tensor) -> Tensor:
        logits, u = broadcast_all(self.logits, value)
        small, size = self._small_and_size(0.03)
        # Cumulants of a Bernoulli variable with probability u, whose generating function is the logarithm below.
        second, skew = u * (1 - u), 1 - 2 * u
        later = skew / 6 + small * ((1 - 6 * second) / 24 + small * skew * (1 - 12 * second) / 120)
        near = u + small * second * (0.5 + small * later)
        signed = torch.where(logits > 0, size, -size)
        far = torch.logaddexp((-u).log1p(), u.log() + signed) / signed
        return torch.where(logits.abs() < 0.03, near, far).clamp(0, 1)

    def _small_and_size(self, edge: float) -> tuple[Tensor, Tensor]:
        # Each branch only gets values in its range, so that the one not taken, and its gradient, stay finite.
        return self.logits.clamp(-edge, edge), self.logits.abs().clamp(min=edge)


# (k, B_2k / (2k)!): for a logit below 1 the first omitted term is less than 1e-14.
_B = [
    (k, b / math.factorial(2 * k))
    for k, b in enumerate((1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510), 1)
]


def _powers(x: Tensor, coefficients: list[float]) -> Tensor:
    """Return the polynomial in the square of x with these coefficients, the constant one first."""
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * x**2 + coefficient
    return total


# Torch's divergences from and to a continuous Bernoulli distribution clamp its probability, and are wrong for logits
# beyond 16. Its log-density is linear, so that the mean of that under another distribution is its value at one point,
# the other distribution's mean.


def _exact(distribution: td.ContinuousBernoulli, sign: Tensor | int = 1) -> ContinuousBernoulli:
    return ContinuousBernoulli(logits=sign * distribution.logits, validate_args=False)


@register_kl(td.ContinuousBernoulli, td.ContinuousBernoulli)
def _kl_of_continuous_bernoulli(p: td.ContinuousBernoulli, q: td.ContinuousBernoulli) -> Tensor:
    sign = torch.where(p.logits > 0, -1.0, 1.0).to(p.logits)  # mirrored, the mean is near 0, where it is accurate
    one, other = _exact(p, sign), _exact(q, sign)
    return one.log_prob(one.mean) - other.log_prob(one.mean)


@register_kl(td.ContinuousBernoulli, td.Uniform)
def _kl_to_uniform(p: td.ContinuousBernoulli, q: td.Uniform) -> Tensor:
    """Replace torch 2's KL, which is infinite even if q covers [0, 1]."""
    return ((q.high - q.low).log() - _exact(p).entropy()).masked_fill((q.low > 0) | (q.high < 1), torch.inf)


@register_kl(td.Uniform, td.ContinuousBernoulli)
def _kl_of_uniform(p: td.Uniform, q: td.ContinuousBernoulli) -> Tensor:
    """Replace torch 2's KL, which is infinite even if p is within [0, 1]."""
    divergence = -p.entropy() - _exact(q).log_prob(p.mean.clamp(0, 1))
    return divergence.masked_fill((p.low < 0) | (p.high > 1), torch.inf)


@register_kl(td.Beta, td.ContinuousBernoulli)
def _kl_of_beta(p: td.Beta, q: td.ContinuousBernoulli) -> Tensor:
    return -p.entropy() - _exact(q).log_prob(p.mean)


@register_kl(td.ContinuousBernoulli, td.Exponential)
def _kl_to_exponential(p: td.ContinuousBernoulli, q: td.Exponential) -> Tensor:
    return -_exact(p).entropy() - q.log_prob(_exact(p).mean)


@register_kl(td.ContinuousBernoulli, td.Normal)
def _kl_to_normal(p: td.ContinuousBernoulli, q: td.Normal) -> Tensor:
    return -_exact(p).entropy() - cross_term(_exact(p), q)


class _OpenUnitInterval(constraints.interval):
    """The numbers strictly between 0 and 1."""

    hint = "move the data off 0 and 1 (x * (1 - 2 * e) + e, with e small), or take decoders.ContinuousBernoulli"

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "(0, 1)"


class Beta(dist.Beta):
    """Beta scored in 64 bits: in float32 cancellation leads to an error of 0.1 at concentrations of 100,000.

    Draws without a gradient are right for small concentrations too (`positive.shares`). All draws lie strictly between
    0 and 1: those that round to 0 or 1 are moved inside. A KL that is estimated from draws is accurate in float32 for
    concentrations from 0.75 to 1,000.

    Example:
        >>> Beta(torch.tensor(1e6), torch.tensor(1e6)).log_prob(torch.tensor(0.5))
        tensor(7.0285)
    """

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (as torch has it)
        both = torch.stack([self.concentration1, self.concentration0], -1)
        if both.requires_grad:  # use torch's draws, whose gradients vary less
            return _inside(super().rsample(sample_shape))
        return _inside(shares(both.expand(*self._extended_shape(sample_shape), 2))[..., 0])

    def wide(self) -> dist.Beta:
        """Return the same distribution in 64 bits."""
        return dist.Beta(wide(self.concentration1), wide(self.concentration0), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.wide().log_prob(wide(value)).to(self.concentration1.dtype)

    @property
    def mode(self) -> Tensor:
        """The most probable value; NaN if the density is largest at 0 or 1, or is constant."""
        above_one, above_zero = self.concentration1 - 1, self.concentration0 - 1
        inside = (above_one > 0) & (above_zero > 0)
        return (above_one / (above_one + above_zero)).where(inside, torch.nan)

    def entropy(self) -> Tensor:
        return self.wide().entropy().to(self.concentration1.dtype)


@register_kl(Beta, Beta)
def _kl(p: Beta, q: Beta) -> Tensor:
    return kl_divergence(p.wide(), q.wide()).to(p.concentration1.dtype)


class OpenBeta(Beta):
    """Beta whose support excludes 0 and 1, where its density is 0 or infinite.

    Example:
        >>> bool(OpenBeta(torch.tensor(0.5), torch.tensor(0.5)).support.check(torch.tensor(0.0)))
        False
    """

    support = _OpenUnitInterval()


class Kumaraswamy(dist.Kumaraswamy):
    r"""Kumaraswamy distribution whose draws and densities are accurate near 0 and 1.

    .. math:: p(z) = a b z^{a - 1} (1 - z^a)^{b - 1}, \qquad
              z = \exp \left( \log(1 - e^{-t / b}) / a \right), \quad t \sim \mathrm{Exponential}(1)

    Torch computes with powers of a uniform variate: where :math:`z^a` is small or near 1, all digits of
    :math:`1 - u^{1/b}` or :math:`1 - z^a` cancel, and draws of exactly 0 or 1 have no finite log-density. Here both are
    computed from logarithms. Draws lie strictly between 0 and 1: those that round to 0 or 1 are moved inside. A KL that
    is estimated from draws is accurate in float32 for concentrations from 0.75 to 1,000.

    Arguments:
        concentration1: a, above 0.
        concentration0: b, above 0.

    Returns:
        A distribution of the shape to which both broadcast.

    Example:
        >>> Kumaraswamy(torch.tensor(2.0), torch.tensor(1.0)).log_prob(torch.tensor(0.5)).exp()
        tensor(1.)

    Reference:
        Kumaraswamy, 1980, A generalized probability density function for double-bounded random processes.
    """

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self._of(self.concentration1.new_empty(self._extended_shape(sample_shape)).exponential_())

    def icdf(self, value: Tensor) -> Tensor:
        return self._of(-(-value).log1p())

    def _of(self, t: Tensor) -> Tensor:
        z = (_log_1_minus_exp(t / self.concentration0) / self.concentration1).exp()
        # z itself is not clamped, so that a draw at an edge keeps its gradient.
        return z + (_inside(z) - z).detach()

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        one, zero, log_z = self.concentration1, self.concentration0, _inside(value).log()
        constant = (one * zero).log()
        inside = constant + (one - 1) * log_z + (zero - 1) * _log_1_minus_exp(-one * log_z)
        nearest = torch.where(value < 0.5, one, zero)  # the concentration that determines the density at this end
        at_end = constant.masked_fill(nearest > 1, -torch.inf).masked_fill(nearest < 1, torch.inf)
        return torch.where((value > 0) & (value < 1), inside, at_end)

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_above = _log_1_minus_exp(-self.concentration1 * value.clamp(min=0).log())
        return (-(self.concentration0 * log_above).expm1()).where(value < 1, 1.0)

    @property
    def mean(self) -> Tensor:
        return self._log_moment(1).exp().to(self.concentration1.dtype)

    @property
    def variance(self) -> Tensor:
        second = self._log_moment(2)
        excess = second - 2 * self._log_moment(1)  # the logarithm of E[z^2] / E[z]^2
        step, series = 1 / wide(self.concentration1), torch.zeros_like(second)
        for order in range(10, 1, -1):
            slope = torch.polygamma(order - 1, torch.ones_like(step)) - torch.polygamma(
                order - 1, 1 + wide(self.concentration0)
            )
            series = series + (2**order - 2) * slope * step**order / math.factorial(order)
        excess = torch.where(step < 0.02, series, excess)
        return (second.exp() * -(-excess).expm1()).to(self.concentration1.dtype)

    @property
    def mode(self) -> Tensor:
        """The most probable value; NaN if the density is infinite at 0 or 1, or is constant."""
        one, zero = wide(self.concentration1), wide(self.concentration0)
        mode = (((one - 1) / (one * zero - 1)).log() / one).exp()
        return mode.where((one >= 1) & (zero >= 1), torch.nan).to(self.concentration1.dtype)

    def entropy(self) -> Tensor:
        one, zero = wide(self.concentration1), wide(self.concentration0)
        mean_log = (zero + 1).digamma() + EULER
        entropy = 1 - 1 / zero + (1 - 1 / one) * mean_log - one.log() - zero.log()
        return entropy.to(self.concentration1.dtype)

    def _log_moment(self, power: int) -> Tensor:
        # The logarithm of b B(1 + n / a, b), in 64 bits because its terms cancel.
        first, zero = 1 + power / wide(self.concentration1), wide(self.concentration0)
        return zero.log() + first.lgamma() + zero.lgamma() - (first + zero).lgamma()


def _inside(z: Tensor) -> Tensor:
    limits = torch.finfo(z.dtype)
    return z.clamp(limits.tiny, 1 - limits.eps / 2)


def _log_1_minus_exp(t: Tensor) -> Tensor:
    # log(1 - exp(-t)) for t >= 0, accurate for small and for large t; each branch only gets values in its range.
    t = t.clamp(min=torch.finfo(t.dtype).tiny)
    near, far = t.clamp(max=1), t.clamp(min=0.5)
    return torch.where(t < math.log(2), (-(-near).expm1()).log(), (-(-far).exp()).log1p())
