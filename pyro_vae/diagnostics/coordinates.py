"""Unconstrained coordinates for the latent sites of a program, in which gradients can move them freely."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from pyro.distributions import SineBivariateVonMises, VonMises, constraints
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae.distributions.relaxed import KeptLogarithms
from pyro_vae.distributions.wrappers import family, layers
from pyro_vae.programs.supports import bounds_of, support_of, without_events

CIRCULAR = (VonMises, SineBivariateVonMises)  # their support is said to be all real numbers


class _Map(Protocol):
    """A map between values of a support and unconstrained coordinates, both with batch dimensions (K, B)."""

    def coordinates(self, value: Tensor) -> Tensor: ...

    def value(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value, and the logarithm of the density of u against that of the value, shape (K, B)."""
        ...


class _Bijection:
    """Pyro's bijection of a support."""

    def __init__(self, support: Any) -> None:
        self.transform = biject_to(support)

    def coordinates(self, value: Tensor) -> Tensor:
        return self.transform.inv(value)

    def value(self, u: Tensor) -> tuple[Tensor, Tensor]:
        value = self.transform(u)
        log_density = self.transform.log_abs_det_jacobian(u, value)
        return value, sum_rightmost(log_density, log_density.dim() - 2)


class _Direction:
    """A direction, and a length with the density of that of a standard normal vector, which is independent of it."""

    def coordinates(self, value: Tensor) -> Tensor:
        return value * torch.linalg.vector_norm(torch.randn_like(value), dim=-1, keepdim=True)

    def value(self, u: Tensor) -> tuple[Tensor, Tensor]:
        length, half = torch.linalg.vector_norm(u, dim=-1, keepdim=True), u.shape[-1] / 2
        constant = (half - 1) * math.log(2) + math.lgamma(half)
        return u / length, -length.squeeze(-1).square() / 2 - constant


class Coordinates:
    r"""Unconstrained coordinates u of the values z of several sites, one vector for each particle of each datum.

    Each support has its bijection: :math:`z = e^u` for positive values, stick breaking for a simplex, and so on. On the
    unit sphere :math:`z = u / |u|`; the length of u is a variable of its own, with the density of the length of a
    standard normal vector, which changes no density of z.

    Arguments:
        sites: the sites of a model's or a guide's trace, with particles and data as batch dimensions (K, B).

    Raises:
        ValueError: for a site that has no gradient, or whose support has bounds that differ between data or particles.

    Example:
        >>> import pyro.distributions as dist
        >>> value = torch.ones(5, 3, 2)
        >>> site = {"name": "z", "fn": dist.Exponential(value).to_event(1), "value": value}
        >>> coordinates = Coordinates([site])
        >>> u = coordinates.of([value])
        >>> u.shape, coordinates.values(u)[1][0, 0]  # the logarithm of the determinant of exp at 0
        (torch.Size([5, 3, 2]), tensor(0.))
    """

    def __init__(self, sites: Sequence[dict[str, Any]]) -> None:
        self._maps = [_map_of(site) for site in sites]
        self._shapes = [each.coordinates(site["value"]).shape[2:] for each, site in zip(self._maps, sites, strict=True)]

    def of(self, values: Sequence[Tensor]) -> Tensor:
        """Return the coordinates of values, shape (K, B, D)."""
        parts = [each.coordinates(value) for each, value in zip(self._maps, values, strict=True)]
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], -1)

    def values(self, u: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the values, and the logarithm of the density of u against that of the values, shape (K, B)."""
        parts = u.split([math.prod(shape) for shape in self._shapes], -1)
        shaped = [part.reshape(*u.shape[:2], *shape) for part, shape in zip(parts, self._shapes, strict=True)]
        mapped = [each.value(part) for each, part in zip(self._maps, shaped, strict=True)]
        return [value for value, _ in mapped], sum((each for _, each in mapped), torch.zeros_like(u[..., 0]))


def _map_of(site: dict[str, Any]) -> _Map:
    fn, name = site["fn"], site["name"]
    support = support_of(fn)
    if support is None:  # such as a flow of zuko's, which is a density of real numbers
        support = constraints.independent(constraints.real, fn.event_dim)
    inner = without_events(support)
    if inner.is_discrete or isinstance(inner, KeptLogarithms):
        raise ValueError(
            f"codes move along gradients, which {family(fn)} at site {name!r} has not: take what needs none, such as"
            " log_likelihood or impute(by='gibbs')"
        )
    if any(isinstance(layer, CIRCULAR) for layer in layers(fn)):
        raise ValueError(
            f"the angles of {family(fn)} at site {name!r} repeat themselves beyond a turn, where annealing would count"
            " them again: take log_likelihood, or directions (ProjectedNormal, PowerSpherical)"
        )
    if any(isinstance(bound, Tensor) and (bound != bound.flatten()[0]).any() for bound in bounds_of(fn)):
        raise ValueError(
            f"the bounds of {family(fn)} at site {name!r} differ between data, or depend on other codes: let the"
            " model draw from fixed bounds, and scale what it draws"
        )
    if inner is constraints.sphere:
        return _Direction()
    return _Bijection(_of_components(support))


def _of_components(support: Any) -> Any:
    """Return a support in which that of a mixture is the support of its components."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return _of_components(support.base_constraint)
    if isinstance(support, constraints.independent):
        return constraints.independent(_of_components(support.base_constraint), support.reinterpreted_batch_ndims)
    return support
