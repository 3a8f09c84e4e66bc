"""Moments of distributions, including those without closed forms."""

from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Categorical, Distribution
from torch.nn.functional import normalize

from pyro_vae.distributions.wrappers import family


class NoMeanError(TypeError):
    """A distribution has no finite mean, or the model cannot be evaluated at it."""


def mean_of(distribution: Distribution, draws: int = 100) -> Tensor:
    """Return the mean of a distribution, or the average of draws if it has no closed form.

    Arguments:
        distribution: any distribution.
        draws: number of draws to average, at least 1, if there is no closed form (flows).

    Returns:
        A tensor of the shape of one draw.

    Raises:
        NoMeanError: if the mean is not finite although draws are, as for a Cauchy distribution.

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
    """Return the value to show for a distribution of data: its mean, or the most probable one of categories.

    The mean of the indices of two categories, such as tokens, is the index of an unrelated third one.

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
    """Return the point that represents a distribution: its mean, or on a sphere the direction of its mean.

    The mean of a distribution on a sphere lies inside the sphere, where there are no codes.

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
    """Return a value scaled to length 1 if the distribution's support is a sphere, and unchanged otherwise."""
    support = distribution.support
    while isinstance(support, constraints.independent):  # several spheres
        support = support.base_constraint
    return normalize(value, dim=-1) if support is constraints.sphere else value
