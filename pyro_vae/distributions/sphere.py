"""Distributions on the unit sphere, with densities with respect to its surface measure."""

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.kl import register_kl

from pyro_vae.arguments import as_size
from pyro_vae.distributions.wrappers import expanded


def log_area(dim: int) -> float:
    """Return the log of the surface area of the unit sphere in ``dim`` dimensions."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


def sphere_dim(dim: int, name: str) -> int:
    """Return the dimension of the space around a sphere, or refuse one below 2, in which a sphere has no area."""
    if as_size(dim, name) < 2:
        raise ValueError(f"{name} must be at least 2 for a sphere, whose space it is, not {dim}; a circle has 2")
    return dim


class HypersphericalUniform(dist.TorchDistribution):
    r"""Uniform distribution on the unit sphere.

    .. math:: p(x) = \frac{\Gamma(D/2)}{2 \pi^{D/2}}, \qquad x \in \mathbb{R}^D, \; |x| = 1

    Arguments:
        dim: dimension D of the space that holds the sphere, at least 2: its values have D coordinates.
        dtype: type of the values; None for the default type.
        device: device of the values; None for the default device.

    Raises:
        TypeError: if ``dim`` is not an integer.
        ValueError: if ``dim`` is below 2.

    Example:
        >>> HypersphericalUniform(3).log_prob(torch.tensor([0.0, 0.0, 1.0]))  # minus the log of 4 pi
        tensor(-2.5310)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.sphere
    has_rsample = True

    def __init__(
        self,
        dim: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._origin = torch.zeros(sphere_dim(dim, "dim"), dtype=dtype, device=device)
        super().__init__(torch.Size(), torch.Size([dim]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "HypersphericalUniform":
        return expanded(self, batch_shape)

    @property
    def mean(self) -> Tensor:
        return self._origin.expand(self.batch_shape + self.event_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return directions(self._origin.new_empty(self._extended_shape(sample_shape)).normal_())

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        return value.new_full(shape, -log_area(self.event_shape[0]))

    def entropy(self) -> Tensor:
        return self._origin.new_full(self.batch_shape, log_area(self.event_shape[0]))


class PowerSpherical(dist.TorchDistribution):
    r"""Power spherical distribution: concentrated around a direction like von Mises-Fisher, but without rejection.

    .. math:: p(x) = \frac{\Gamma(a + b)}{2^{a + b} \pi^b \, \Gamma(a)} \, (1 + \mu^\top x)^\kappa, \qquad
              b = \frac{D - 1}{2}, \; a = b + \kappa

    A draw is :math:`t \mu + \sqrt{1 - t^2} \, v` with :math:`(1 + t) / 2 \sim \mathrm{Beta}(a, b)` and v uniform among
    the directions orthogonal to :math:`\mu`. Gradients are pathwise. Each difference is computed in a form that loses
    no digits for concentrations from :math:`10^{-6}` to :math:`10^6`, also in float32.

    Arguments:
        loc: the direction :math:`\mu`, shape (\*batch, D), of length 1, D at least 2.
        concentration: :math:`\kappa`, shape (\*batch), above 0; the limit at 0 is the uniform distribution.

    Raises:
        ValueError: if the location is not a unit vector of at least 2 coordinates, or the concentration is not above 0.

    Example:
        >>> PowerSpherical(torch.tensor([0.0, 1.0, 0.0]), torch.tensor(6.0)).mean
        tensor([0.0000, 0.7500, 0.0000])

    Reference:
        De Cao and Aziz, 2020, The Power Spherical Distribution, equations 6 to 8 and algorithm 1.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.sphere,
        "concentration": constraints.positive,
    }
    support = constraints.sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None) -> None:
        if loc.dim() < 1:
            raise ValueError(f"the location of PowerSpherical must be a vector, not {loc!r}")
        sphere_dim(loc.shape[-1], "the last size of the location of PowerSpherical")
        batch_shape = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc, self.concentration = loc.expand(*batch_shape, -1), concentration.expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PowerSpherical":
        loc, concentration = self.loc.expand(*batch_shape, -1), self.concentration.expand(batch_shape)
        return expanded(self, batch_shape, loc=loc, concentration=concentration)

    @property
    def mean(self) -> Tensor:
        return self.loc * (self.concentration / (self.concentration + self.event_shape[0] - 1)).unsqueeze(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape, b = self._extended_shape(sample_shape), (self.event_shape[0] - 1) / 2
        # The beta variable is a ratio of gamma variates, so that it and its complement are both accurate near 0.
        ahead = torch._standard_gamma((self.concentration + b).expand(shape[:-1]))
        behind = torch._standard_gamma(torch.full_like(ahead, b))
        along = (ahead - behind) / (ahead + behind)
        across = 2 * ahead.sqrt() * behind.sqrt() / (ahead + behind)
        aside = directions(torch.randn_like(self.loc[..., 1:].expand(*shape[:-1], -1)))
        return self.turned(along.unsqueeze(-1), across.unsqueeze(-1) * aside)

    def turned(self, along: Tensor, aside: Tensor) -> Tensor:
        """Reflect a draw around a pole (the first axis or its opposite), so that it is around the location."""
        # The pole is the one further from the location, so that the axis of reflection is never short.
        pole = torch.where(self.loc[..., :1] > 0, -1.0, 1.0).to(self.loc)
        axis = torch.cat([pole - self.loc[..., :1], -self.loc[..., 1:]], -1)
        draw = torch.cat([pole * along, aside], -1)
        return draw - 2 * axis * (axis * draw).sum(-1, keepdim=True) / (axis * axis).sum(-1, keepdim=True)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # (1 + mu x) / 2 is one minus a quarter of the squared distance to mu, which is accurate near mu. Near -mu it is
        # computed as a quarter of the squared distance to -mu. Each branch only gets values for which it is finite. At
        # -mu itself the density is 0, but the smallest positive number is taken instead, because minus infinity would
        # spoil a loss and its gradient.
        far = (self.loc * value).sum(-1) < 0
        square = (torch.where(far.unsqueeze(-1), self.loc + value, self.loc - value) ** 2).sum(-1) / 4
        near_part = torch.where(far, torch.zeros_like(square), square).neg().log1p()
        far_part = torch.where(far, square, torch.ones_like(square)).clamp(min=torch.finfo(square.dtype).tiny).log()
        return self.concentration * torch.where(far, far_part, near_part) + self._log_density_at_loc()

    def _log_density_at_loc(self) -> Tensor:
        # In float64, because the terms that are subtracted are as large as the concentration times its logarithm.
        b = (self.event_shape[0] - 1) / 2
        a = self.concentration.double() + b
        return ((a + b).lgamma() - a.lgamma() - b * math.log(4 * math.pi)).to(self.concentration)

    def entropy(self) -> Tensor:
        b = (self.event_shape[0] - 1) / 2
        a = self.concentration.double() + b
        mean_log = (self.concentration.double() * (a.digamma() - (a + b).digamma())).to(self.concentration)
        return -mean_log - self._log_density_at_loc()


def directions(value: Tensor) -> Tensor:
    """Return vectors divided by their length; the first axis is added to those of length 0, so that all are finite."""
    short = torch.linalg.vector_norm(value.detach(), dim=-1, keepdim=True) < 1e-12
    value = value + short * torch.eye(1, value.shape[-1], dtype=value.dtype, device=value.device)[0]
    return value / torch.linalg.vector_norm(value, dim=-1, keepdim=True)


@register_kl(PowerSpherical, HypersphericalUniform)
def _kl_power_spherical_uniform(p: PowerSpherical, q: HypersphericalUniform) -> Tensor:
    if p.event_shape != q.event_shape:
        raise ValueError(f"the spheres differ: the values have {p.event_shape[0]} and {q.event_shape[0]} coordinates")
    return log_area(p.event_shape[0]) - p.entropy() + p.loc.new_zeros(q.batch_shape)
