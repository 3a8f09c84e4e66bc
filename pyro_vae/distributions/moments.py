"""Moments of distributions that may not know them."""

from torch import Tensor
from torch.distributions import Distribution


def mean_of(distribution: Distribution, draws: int = 100) -> Tensor:
    """Return the mean of a distribution, or the average of draws where it has no closed form.

    Arguments:
        distribution: any distribution.
        draws: how many are averaged, at least 1, where there is no closed form (flows).

    Returns:
        A tensor of the shape of one draw.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> mean_of(dist.Gamma(torch.tensor([2.0]), 1.0))
        tensor([2.])
    """
    try:
        mean: Tensor = distribution.mean
    except NotImplementedError:
        mean = distribution.sample((draws,)).mean(0)
    return mean
