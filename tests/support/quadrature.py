"""Sums over a whole support: nodes and weights, by the trapezoidal rule in a coordinate that has no edges."""

import itertools
import math

import torch
from torch.distributions import constraints

from pyro_vae.distributions.relaxed import with_logarithm


def line(start, stop, step):
    return torch.arange(start, stop + step / 2, step, dtype=torch.float64)


def real(step=0.005, stop=10.0):
    t = line(-stop, stop, step)
    return t.sinh(), t.cosh() * step


def positive(step=0.005):
    t = line(-40.0, 14.0, step)
    return t.exp(), t.exp() * step


def unit_interval(step=0.005):
    t = line(-33.0, 33.0, step)
    return t.sigmoid(), t.sigmoid() * (-t).sigmoid() * step


def simplex():
    """Of two coordinates; the density is one of the first."""
    t = line(-33.0, 33.0, 0.005)
    return torch.stack([t.sigmoid(), (-t).sigmoid()], -1), t.sigmoid() * (-t).sigmoid() * 0.005


def sphere(dim, count=2000):
    if dim == 2:
        angle = line(0, 2 * math.pi - math.pi / count, 2 * math.pi / count)
        return torch.stack([angle.cos(), angle.sin()], -1), torch.full_like(angle, 2 * math.pi / count)
    assert dim == 3
    angle = line(0, 2 * math.pi - math.pi / 200, 2 * math.pi / 200)
    height = torch.cos(line(0.5, 499.5, 1.0) * math.pi / 500)
    edges = torch.cos(line(0, 500, 1.0) * math.pi / 500)
    radius = (1 - height**2).sqrt()
    nodes = torch.stack(
        [
            radius[:, None] * angle.cos(),
            radius[:, None] * angle.sin(),
            height[:, None].expand(-1, len(angle)),
        ],
        -1,
    )
    weights = (edges[:-1] - edges[1:])[:, None].expand(-1, len(angle)) * 2 * math.pi / 200
    return nodes.reshape(-1, 3), weights.reshape(-1)


def counts(stop=3000):
    nodes = torch.arange(stop, dtype=torch.float64)
    return nodes, torch.ones_like(nodes)


def product(rule, event_shape):
    """The tensor product of a rule for one number, over an event of few numbers."""
    (nodes, weights), size = rule, math.prod(event_shape)
    grids = torch.stack(torch.meshgrid(*[nodes] * size, indexing="ij"), -1).reshape(-1, *event_shape)
    all_weights = torch.stack(torch.meshgrid(*[weights] * size, indexing="ij"), -1).reshape(-1, size).prod(-1)
    return grids, all_weights


def one_hot(event_shape):
    variables, categories = math.prod(event_shape[:-1]), event_shape[-1]
    codes = torch.tensor(list(itertools.product(range(categories), repeat=variables)))
    nodes = torch.nn.functional.one_hot(codes, categories).double().reshape(-1, *event_shape)
    return nodes, torch.ones(len(nodes), dtype=torch.float64)


def rule(distribution):
    """Return nodes of shape (N, *event_shape) and weights of shape (N,) for a distribution's support."""
    support = distribution.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    event, name = tuple(distribution.event_shape), type(support).__name__
    if "Sphere" in name:
        return sphere(event[-1])
    if support is constraints.simplex or name == "KeptLogarithms":
        assert math.prod(event) == 2
        nodes, weights = simplex()
        nodes = with_logarithm(nodes.log()) if name == "KeptLogarithms" else nodes
        return nodes.reshape(-1, *event), weights
    if support is constraints.one_hot:
        return one_hot(event)
    if support is constraints.boolean:
        return product((torch.tensor([0.0, 1.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)), event)
    if support is constraints.nonnegative_integer:
        return product(counts(), event)
    if isinstance(support, constraints.integer_interval):
        nodes = torch.arange(float(support.lower_bound), float(support.upper_bound) + 1, dtype=torch.float64)
        return product((nodes, torch.ones_like(nodes)), event)
    if "Grid" in name:
        nodes = torch.arange(support.steps + 1, dtype=torch.float64) / support.steps
        return product((nodes, torch.ones_like(nodes)), event)
    coarse = math.prod(event) > 1
    if isinstance(support, constraints.greater_than | constraints.greater_than_eq):
        return product(positive(), event)
    if isinstance(support, constraints.interval):
        return product(unit_interval(), event)
    assert support in (constraints.real, constraints.real_vector), support
    return product(real(0.02, 4.5) if coarse else real(), event)
