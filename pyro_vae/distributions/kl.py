"""Closed forms of the KL divergence to a diagonal normal, of pairs that neither torch nor Pyro knows."""

import torch.distributions as td
from torch import Tensor
from torch.distributions import Distribution, register_kl


@register_kl(td.MultivariateNormal, td.Independent)
@register_kl(td.LowRankMultivariateNormal, td.Independent)
def _kl_to_independent(p: Distribution, q: td.Independent) -> Tensor:
    if not isinstance(q.base_dist, td.Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    return -p.entropy() - _cross_term(p, q.base_dist).sum(-1)


@register_kl(td.StudentT, td.Normal)
def _kl_to_normal(p: td.StudentT, q: td.Normal) -> Tensor:
    return -p.entropy() - _cross_term(p, q)


def _cross_term(p: Distribution, q: td.Normal) -> Tensor:
    """Return the mean of log q under p: log q is a parabola, so it takes the mean and the variance of p alone."""
    return q.log_prob(p.mean) - p.variance / (2 * q.variance)
