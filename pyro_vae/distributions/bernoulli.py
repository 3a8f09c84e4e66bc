"""Distributions of values in [0, 1], by logits."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid, softplus


class Bernoulli(dist.Bernoulli):
    """Bernoulli whose log-probability takes half the time where it has no gradient.

    Torch's, whose gradient is fast, goes over its values twice as often, and not in their order where x is broadcast.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (self.logits.requires_grad or value.requires_grad):
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        logits, lack = broadcast_all(self.logits, value - 1)
        return logsigmoid(logits).addcmul_(lack.to(logits), logits)


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
