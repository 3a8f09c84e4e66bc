"""A distribution without pathwise gradients."""

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, kl_divergence, register_kl

_ONE = torch.Size()  # the shape of one draw


class ScoreFunction(dist.TorchDistribution):
    """Another distribution, whose draws carry no gradient: Pyro then estimates with the score function.

    Pyro's ``has_rsample_(False)`` fails on ``Independent`` and is lost where a plate expands; this holds in both.

    Arguments:
        base_dist: the distribution.

    Example:
        >>> q = ScoreFunction(dist.Normal(torch.zeros(3, requires_grad=True), 1.0).to_event(1))
        >>> q.has_rsample, q.expand((4,)).has_rsample, q().requires_grad
        (False, False, False)

    Reference:
        Williams, 1992, Simple Statistical Gradient-Following Algorithms; Ranganath, Gerrish and Blei, 2014,
        Black Box Variational Inference, equations 2 and 3.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    has_rsample = False

    def __init__(self, base_dist: dist.TorchDistribution) -> None:
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "ScoreFunction":
        return ScoreFunction(self.base_dist.expand(torch.Size(batch_shape)))

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self.base_dist.support

    @property
    def has_enumerate_support(self) -> bool:
        return self.base_dist.has_enumerate_support

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = _ONE) -> Tensor:
        return self.base_dist.sample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base_dist.log_prob(value)

    def entropy(self) -> Tensor:
        return self.base_dist.entropy()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self.base_dist.enumerate_support(expand=expand)


@register_kl(ScoreFunction, Distribution)
def _kl(p: ScoreFunction, q: Distribution) -> Tensor:
    return kl_divergence(p.base_dist, q)
