"""Beta distribution on the open interval."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints


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
        draw = super().rsample(sample_shape)
        limits = torch.finfo(draw.dtype)
        return draw.clamp(limits.tiny, 1 - limits.eps / 2)
