"""Distributions of counts."""

import pyro.distributions as dist
from torch import Tensor


class ZeroInflated(dist.ZeroInflatedDistribution):
    """A distribution of counts with further zeros, exact for every logit of the gate.

    Once it has drawn or given its mean, Pyro's (seen in 1.9.2) works from the gate's probability, whose logarithm has
    no gradient where it rounds to 1. This one does not keep that probability, and goes on from the logit.

    Example:
        >>> import torch
        >>> gate = torch.tensor(20.0, requires_grad=True)
        >>> counts = ZeroInflated(dist.Poisson(torch.tensor(1.0)), gate_logits=gate)
        >>> counts.log_prob(counts.sample()).backward()
        >>> bool(gate.grad.isfinite())
        True
    """

    @property
    def gate(self) -> Tensor:
        return self.gate_logits.sigmoid()
