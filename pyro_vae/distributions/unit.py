"""Distributions of values in [0, 1]."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid, softplus


class Bernoulli(dist.Bernoulli):
    """Bernoulli whose log-probability takes half the time where it has no gradient, and less where it is summed.

    Torch's, whose gradient is fast, goes over its values twice as often, and not in their order where x is broadcast.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self.has_gradient(value):
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        logits, lack = broadcast_all(self.logits, value - 1)
        return logsigmoid(logits).addcmul_(lack.to(logits), logits)

    def has_gradient(self, value: Tensor) -> bool:
        """Whether the log-probability of a value has one."""
        return torch.is_grad_enabled() and (self.logits.requires_grad or value.requires_grad)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> dist.TorchDistribution:
        independent = super().to_event(reinterpreted_batch_ndims)
        return independent if independent is self else BernoulliVector(self, independent.reinterpreted_batch_ndims)


class BernoulliVector(dist.Independent):
    r"""Independent Bernoulli variables, whose log-probability takes one logarithm for many of them.

    .. math:: \log p(x) = \sum_d \left[\min(l_d, 0) - (1 - x_d) \, l_d\right] - \log \prod_d (1 + e^{-|l_d|})

    The factors are between 1 and 2: a product of 112 stays below the largest number of 32 bits. Rounding costs at most
    1.2e-7 nats for each.
    """

    MOST = 112  # factors to a product

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


class _OpenUnitInterval(constraints.interval):
    """The numbers strictly between 0 and 1."""

    hint = "move the data off 0 and 1 (x * (1 - 2 * e) + e, with e small), or take decoders.ContinuousBernoulli"

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "(0, 1)"


class OpenBeta(dist.Beta):
    """Beta whose support leaves out 0 and 1, where its density is 0 or infinite, and whose draws keep off them.

    Example:
        >>> bool(OpenBeta(torch.tensor(0.5), torch.tensor(0.5)).support.check(torch.tensor(0.0)))
        False
    """

    support = _OpenUnitInterval()

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (as torch has it)
        return _inside(super().rsample(sample_shape))


class Kumaraswamy(dist.Kumaraswamy):
    r"""Kumaraswamy distribution whose draws and densities keep their digits near 0 and 1.

    .. math:: p(z) = a b z^{a - 1} (1 - z^a)^{b - 1}, \qquad
              z = \exp \left( \log(1 - e^{-t / b}) / a \right), \quad t \sim \mathrm{Exponential}(1)

    Torch works from powers of a uniform variate: where :math:`z^a` is small or near 1, all digits of
    :math:`1 - u^{1/b}` or :math:`1 - z^a` cancel, and draws of exactly 0 or 1 have no finite log-density. Here both are
    functions of logarithms, and draws lie strictly between 0 and 1.

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
        # Not a clamp of z itself: a draw at an edge keeps its gradient.
        return z + (_inside(z) - z).detach()

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        one, zero, log_z = self.concentration1, self.concentration0, _inside(value).log()
        return (one * zero).log() + (one - 1) * log_z + (zero - 1) * _log_1_minus_exp(-one * log_z)

    @property
    def mean(self) -> Tensor:
        # b B(1 + 1 / a, b), whose logarithms cancel: in double precision.
        first, zero = 1 + 1 / self.concentration1.double(), self.concentration0.double()
        log_mean = zero.log() + first.lgamma() + zero.lgamma() - (first + zero).lgamma()
        return log_mean.exp().to(self.concentration1.dtype)


def _inside(z: Tensor) -> Tensor:
    limits = torch.finfo(z.dtype)
    return z.clamp(limits.tiny, 1 - limits.eps / 2)


def _log_1_minus_exp(t: Tensor) -> Tensor:
    # log(1 - exp(-t)) for t >= 0, with all digits on both sides; each branch gets only what it can digest.
    t = t.clamp(min=torch.finfo(t.dtype).tiny)
    near, far = t.clamp(max=1), t.clamp(min=0.5)
    return torch.where(t < math.log(2), (-(-near).expm1()).log(), (-(-far).exp()).log1p())
