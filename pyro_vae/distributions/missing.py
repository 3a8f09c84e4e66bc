"""Distributions of which some entries were not observed."""

import copy
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


class _OrMissing(constraints.Constraint):
    """A constraint that NaN fulfils too."""

    def __init__(self, base_constraint: constraints.Constraint) -> None:
        self.base_constraint = base_constraint
        self.is_discrete, self.event_dim = base_constraint.is_discrete, base_constraint.event_dim

    def check(self, value: Tensor) -> Tensor:
        return value.isnan() | self.base_constraint.check(value)


class MissingEntries(dist.TorchDistribution):
    r"""Distribution of single numbers that scores NaN as not observed: with the log-probability 0.

    .. math:: \log p(x) = 0 \text{ where x is NaN, and that of the base distribution elsewhere.}

    Draws and moments are those of the base: complete.

    Arguments:
        base_dist: a distribution of event shape ().

    Raises:
        ValueError: where the entries of an event are not independent, so that none can be left out by itself.

    Example:
        >>> normal = MissingEntries(dist.Normal(torch.zeros(3), 1.0)).to_event(1)
        >>> normal.log_prob(torch.tensor([0.0, float("nan"), 0.0]))  # two observed: -log(2 pi)
        tensor(-1.8379)

    Reference:
        Nazabal, Olmos, Ghahramani and Valera, 2020, Handling Incomplete Heterogeneous Data using VAEs, equation 2.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as Pyro has it)

    def __init__(self, base_dist: dist.TorchDistribution, validate_args: bool | None = None) -> None:
        if base_dist.event_shape:
            raise ValueError(
                f"entries can be missing only from a distribution of independent ones, not from one of event shape"
                f" {tuple(base_dist.event_shape)}: {base_dist}"
            )
        self.base_dist = copy.copy(base_dist)
        self.base_dist._validate_args = False  # values are checked here, against a support that has NaN
        super().__init__(base_dist.batch_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        return self.base_dist.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return _OrMissing(self.base_dist.support)

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "MissingEntries":
        return MissingEntries(self.base_dist.expand(batch_shape), validate_args=self._validate_args)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (as torch has it)
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (as torch has it)
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # The base scores 1/2, a number amid the support of every distribution here, so that no gradient is NaN.
        missing = value.isnan()
        return self.base_dist.log_prob(value.masked_fill(missing, 0.5)).masked_fill(missing, 0.0)
