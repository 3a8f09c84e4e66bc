"""Categorical distribution of whole numbers."""

import pyro.distributions as dist
import torch
from torch import Tensor


class Categorical(dist.Categorical):
    """Categorical distribution of the numbers 0 to K - 1 as floats, which have a mean.

    Example:
        >>> Categorical(probs=torch.tensor([0.5, 0.0, 0.5])).mean
        tensor(1.)
    """

    @property
    def mean(self) -> Tensor:
        return self.probs @ self._numbers()

    @property
    def variance(self) -> Tensor:
        return (self.probs * (self._numbers() - self.mean.unsqueeze(-1)) ** 2).sum(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (as torch has it)
        return super().sample(sample_shape).to(self._param.dtype)

    def _numbers(self) -> Tensor:
        return torch.arange(self._num_events, dtype=self._param.dtype, device=self._param.device)
