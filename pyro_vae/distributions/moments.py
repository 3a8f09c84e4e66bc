"""Moments of distributions that may not know them."""

from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Categorical, Distribution
from torch.nn.functional import normalize

from pyro_vae.distributions.wrappers import family


class NoMeanError(TypeError):
    """A distribution has no finite mean, or the model does not take it."""


def mean_of(distribution: Distribution, draws: int = 100) -> Tensor:
    """Return the mean of a distribution, or the average of draws where it has no closed form.

    Arguments:
        distribution: any distribution.
        draws: how many are averaged, at least 1, where there is no closed form (flows).

    Returns:
        A tensor of the shape of one draw.

    Raises:
        NoMeanError: where the mean is not finite, though the draws are, as of a Cauchy distribution.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> mean_of(dist.Gamma(torch.tensor([2.0]), 1.0))
        tensor([2.])
    """
    try:
        mean = distribution.mean
    except NotImplementedError:
        return distribution.sample((draws,)).mean(0)
    if not mean.isfinite().all() and distribution.sample().isfinite().all():
        fix = "take draws: vae.decoder(z).sample() of a decoder, reconstruct(x, mean=False) for an encoder"
        raise NoMeanError(f"{family(distribution)} has no finite mean: {fix}")
    return mean


def shown_of(distribution: Distribution) -> Tensor:
    """Return what a distribution of data is drawn as: its mean, but of categories, such as tokens, the most probable.

    The mean of the numbers of two tokens is the number of a third one.

    Arguments:
        distribution: any distribution.

    Returns:
        A tensor of the shape of one draw.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import Categorical
        >>> shown_of(Categorical(probs=torch.tensor([0.6, 0.0, 0.4])))
        tensor(0.)
    """
    inner = distribution
    while hasattr(inner, "base_dist"):
        inner = inner.base_dist
    return inner.mode if isinstance(inner, Categorical) else mean_of(distribution)


def centre_of(distribution: Distribution) -> Tensor:
    """Return the point of a distribution's space that stands for it: its mean, or on a sphere the mean's direction.

    A mean on a sphere lies inside of it, where no code ever is.

    Arguments:
        distribution: any distribution.

    Returns:
        A tensor of the shape of one draw.

    Example:
        >>> import torch
        >>> from pyro_vae.distributions import PowerSpherical
        >>> centre_of(PowerSpherical(torch.tensor([0.0, 1.0]), torch.tensor(2.0)))
        tensor([0., 1.])
    """
    return on_sphere(distribution, mean_of(distribution))


def on_sphere(distribution: Distribution, value: Tensor) -> Tensor:
    """Return a value at length 1 where a distribution lives on a sphere, and elsewhere as it is."""
    support = distribution.support
    while isinstance(support, constraints.independent):  # several spheres
        support = support.base_constraint
    return normalize(value, dim=-1) if support is constraints.sphere else value
