"""Closed forms of KL divergences that neither torch nor Pyro has, registered with torch, so that Pyro finds them."""

import math

import torch
from pyro.distributions import Delta, Distribution, FoldedDistribution
from pyro.distributions.torch_distribution import MaskedDistribution, _kl_masked_masked
from torch import Tensor
from torch import distributions as td
from torch.distributions import register_kl
from torch.distributions.kl import _kl_expfamily_expfamily
from torch.nn.functional import logsigmoid

from pyro_vae.distributions._gammas import wide

EULER = 0.5772156649015329


def kl_or_none(q: td.Distribution, p: td.Distribution) -> Tensor | None:
    """Return KL(q || p) in closed form, or None if no closed form is known."""
    try:
        return td.kl_divergence(q, p)
    except NotImplementedError:
        return None


@register_kl(Delta, Distribution)
def _kl_of_point(p: Delta, q: td.Distribution) -> Tensor:
    """Include the log-density of a point, such as the Jacobian of an automatic guide, which Pyro 1.9 leaves out."""
    return p.log_density - q.log_prob(p.v)


@register_kl(td.MultivariateNormal, td.Independent)
@register_kl(td.LowRankMultivariateNormal, td.Independent)
def _kl_to_independent(p: td.Distribution, q: td.Independent) -> Tensor:
    if not isinstance(q.base_dist, td.Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    return -p.entropy() - cross_term(p, q.base_dist).sum(-1)


@register_kl(FoldedDistribution, FoldedDistribution)
@register_kl(FoldedDistribution, td.TransformedDistribution)
@register_kl(td.TransformedDistribution, FoldedDistribution)
def _kl_of_folded(p: td.Distribution, q: td.Distribution) -> Tensor:
    """Refuse the KL that torch 2 returns: it is that of the distributions before folding, which is larger."""
    raise NotImplementedError


@register_kl(MaskedDistribution, MaskedDistribution)
def _kl_of_masked(p: MaskedDistribution, q: MaskedDistribution) -> Tensor:
    """Replace Pyro's KL, which is no tensor where all is masked."""
    return torch.as_tensor(_kl_masked_masked(p, q)).expand(p.batch_shape)


@register_kl(td.Bernoulli, td.Bernoulli)
def _kl_of_bernoulli(p: td.Bernoulli, q: td.Bernoulli) -> Tensor:
    """Replace torch 2's KL, which is infinite even if a probability of q only rounds to 0 or 1, given its logit."""
    terms = []
    for sign, end in ((1, 0), (-1, 1)):
        ours, theirs = sign * p.logits, sign * q.logits
        weight = ours.sigmoid().masked_fill((p.probs == end) & (p.logits.sigmoid() != end), 0.0)
        never = (q.probs == end) & (q.logits.sigmoid() != end)  # given as 0 or 1, not as a logit
        terms.append(_weighted(weight, (logsigmoid(ours) - logsigmoid(theirs)).masked_fill(never, math.inf)))
    return terms[0] + terms[1]


@register_kl(td.Categorical, td.Categorical)
def _kl_of_categorical(p: td.Categorical, q: td.Categorical) -> Tensor:
    """Replace torch 2's KL, which is infinite even if a probability of q only rounds to 0, given its logit."""
    never = (q.probs == 0) & (q.logits.exp() != 0)  # given as 0, not as a logit
    return _weighted(p.probs, (p.logits - q.logits).masked_fill(never, math.inf)).sum(-1)


@register_kl(td.OneHotCategorical, td.OneHotCategorical)
def _kl_of_one_hot(p: td.OneHotCategorical, q: td.OneHotCategorical) -> Tensor:
    return _kl_of_categorical(p._categorical, q._categorical)


def _weighted(weight: Tensor, difference: Tensor) -> Tensor:
    """Return weight * difference, but 0 with gradient 0 where the weight is 0, even if the difference is infinite."""
    return weight * difference.masked_fill(weight == 0, 0.0)


@register_kl(td.Wishart, td.Wishart)
def _kl_of_wishart(p: td.Wishart, q: td.Wishart) -> Tensor:
    """Return torch's KL also without gradients: torch 2 finds it by differentiating the normalizer."""
    with torch.enable_grad():
        divergence: Tensor = _kl_expfamily_expfamily(p, q)
    return divergence if torch.is_grad_enabled() else divergence.detach()


@register_kl(td.StudentT, td.Normal)
def _kl_to_normal(p: td.StudentT, q: td.Normal) -> Tensor:
    return -p.entropy() - cross_term(p, q)


def cross_term(p: td.Distribution, q: td.Normal) -> Tensor:
    """Return the mean of log q under p: log q is a parabola, so only the mean and the variance of p are needed."""
    return q.log_prob(p.mean) - p.variance / (2 * q.variance)


@register_kl(td.Weibull, td.Gamma)
def kl_weibull_gamma(q: td.Weibull, p: td.Gamma) -> Tensor:
    r"""Return KL(q || p) of a Weibull distribution to a gamma distribution.

    .. math:: \mathrm{KL} = \frac{\gamma \alpha}{k} - \alpha \log(\beta \lambda) + \log k
              + \beta \lambda \, \Gamma(1 + 1 / k) - \gamma - 1 + \log \Gamma(\alpha)

    Arguments:
        q: a Weibull distribution with scale :math:`\lambda` and concentration :math:`k`.
        p: a gamma distribution with concentration :math:`\alpha` and rate :math:`\beta`.

    Returns:
        Nats, of the shape to which both batch shapes broadcast.

    Example:
        >>> one = torch.ones(())
        >>> kl_weibull_gamma(td.Weibull(one, one), td.Gamma(one, one)).abs() < 1e-6
        tensor(True)

    Reference:
        Zhang, Chen, Guo and Zhou, 2018, WHAI: Weibull Hybrid Autoencoding Inference for Deep Topic Modeling.
    """
    # In 64 bits, because the terms cancel if the concentration of p is large.
    k, alpha, rate = wide(q.concentration), wide(p.concentration), wide(p.rate) * wide(q.scale)
    entropy = EULER * (1 - 1 / k) - k.log() + 1  # without the logarithm of the scale, which is in the rate
    cross_entropy = alpha.lgamma() - alpha * rate.log() + (alpha - 1) * EULER / k + rate * (1 + 1 / k).lgamma().exp()
    return (cross_entropy - entropy).to(q.scale.dtype)


@register_kl(td.Weibull, td.Exponential)
def kl_weibull_exponential(q: td.Weibull, p: td.Exponential) -> Tensor:
    """Return KL(q || p) of a Weibull distribution to an exponential one, the gamma distribution of concentration 1.

    Arguments:
        q: any Weibull distribution.
        p: any exponential distribution.

    Returns:
        Nats, of the shape to which both batch shapes broadcast.

    Example:
        >>> one = torch.ones(())
        >>> kl_weibull_exponential(td.Weibull(one, one), td.Exponential(one)).abs() < 1e-6
        tensor(True)
    """
    return kl_weibull_gamma(q, td.Gamma(torch.ones_like(p.rate), p.rate))
