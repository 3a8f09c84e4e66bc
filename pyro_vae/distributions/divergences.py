"""Closed forms of KL(q || p) that torch lacks, registered with ``torch.distributions.kl_divergence``.

``pyro.infer.TraceMeanField_ELBO`` then finds them.
"""

import torch
from torch import Tensor
from torch.distributions import Exponential, Gamma, Weibull, register_kl

EULER = 0.5772156649015329


@register_kl(Weibull, Gamma)
def kl_weibull_gamma(q: Weibull, p: Gamma) -> Tensor:
    r"""Return KL(q || p) of a Weibull distribution to a gamma distribution.

    .. math:: \mathrm{KL} = \frac{\gamma \alpha}{k} - \alpha \log(\beta \lambda) + \log k
              + \beta \lambda \, \Gamma(1 + 1 / k) - \gamma - 1 + \log \Gamma(\alpha)

    Arguments:
        q: of scale :math:`\lambda` and concentration :math:`k`.
        p: of concentration :math:`\alpha` and rate :math:`\beta`.

    Returns:
        Nats, of the shape to which both batch shapes broadcast.

    Example:
        >>> one = torch.ones(())
        >>> kl_weibull_gamma(Weibull(one, one), Gamma(one, one)).abs() < 1e-6
        tensor(True)

    Reference:
        Zhang, Chen, Guo and Zhou, 2018, WHAI: Weibull Hybrid Autoencoding Inference for Deep Topic Modeling.
    """
    k, alpha, rate = q.concentration, p.concentration, p.rate * q.scale
    entropy = EULER * (1 - 1 / k) - k.log() + 1  # less the logarithm of the scale, which is in the rate
    cross_entropy = alpha.lgamma() - alpha * rate.log() + (alpha - 1) * EULER / k + rate * (1 + 1 / k).lgamma().exp()
    return cross_entropy - entropy


@register_kl(Weibull, Exponential)
def kl_weibull_exponential(q: Weibull, p: Exponential) -> Tensor:
    """Return KL(q || p) of a Weibull distribution to an exponential one, the gamma distribution of concentration 1.

    Arguments:
        q: any Weibull distribution.
        p: any exponential distribution.

    Returns:
        Nats, of the shape to which both batch shapes broadcast.

    Example:
        >>> one = torch.ones(())
        >>> kl_weibull_exponential(Weibull(one, one), Exponential(one)).abs() < 1e-6
        tensor(True)
    """
    return kl_weibull_gamma(q, Gamma(torch.ones_like(p.rate), p.rate))
