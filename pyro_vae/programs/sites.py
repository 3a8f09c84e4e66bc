"""Checks of the parts of a VAE and of the sites of a pair of programs."""

import re
from collections.abc import Collection
from functools import reduce
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution, TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.data.batch import Batch
from pyro_vae.distributions.wrappers import family, layers, with_density
from pyro_vae.programs.handlers import Program
from pyro_vae.programs.supports import check_same_support, check_values, support_of, without_events
from pyro_vae.programs.traces import OF_TYPES, observed_in, probe
from pyro_vae.vae import VAE

# Pyro marks their draws, which are rounded, with the values before that, by which their own densities are computed.
ROUNDED = dist.RelaxedBernoulliStraightThrough, dist.RelaxedOneHotCategoricalStraightThrough


def check_parts(vae: VAE, x: Tensor) -> None:
    """Refuse parts of a VAE whose shapes or supports do not fit each other or the data."""
    prior = _distribution("the prior", (), vae.prior)
    posterior = _distribution("the encoder", (len(x),), vae.encoder, x)
    if prior.event_shape != posterior.event_shape:
        shapes = f"{tuple(prior.event_shape)} and the encoder's {tuple(posterior.event_shape)}"
        raise ValueError(f"the prior's event shape is {shapes}: give both one latent_dim")
    check_same_support("the prior", prior, "the encoder", posterior)
    likelihood = _distribution("the decoder", (len(x),), vae.decoder, posterior())
    if likelihood.event_shape != x.shape[1:]:
        shapes = f"{tuple(likelihood.event_shape)}, but one datum has shape {tuple(x.shape[1:])}"
        raise ValueError(f"the decoder's event shape is {shapes}: build the decoder for it, or reshape the data")


def _distribution(part: str, batch_shape: tuple[int, ...], module: nn.Module, *args: Tensor) -> TorchDistributionMixin:
    try:
        result = module(*args)
    except (RuntimeError, TypeError) as error:
        shapes = " and ".join(str(tuple(arg.shape)) for arg in args) or "no input"
        raise ValueError(f"{part}, {type(module).__name__}, fails on {shapes}: {error}") from error
    if not isinstance(result, TorchDistributionMixin):
        raise TypeError(f"{part} must return a distribution of pyro.distributions, but returned {kind_of(result)}")
    if tuple(result.batch_shape) != batch_shape:
        extra = len(result.batch_shape) - len(batch_shape)
        whole = "give it data of shape (N, *shape), and take fewer dimensions into its event"
        raise ValueError(
            f"{part} must return a distribution of batch shape {batch_shape}, but returned batch shape"
            f" {tuple(result.batch_shape)} and event shape {tuple(result.event_shape)}:"
            f" {whole if extra < 0 else f'add .to_event({max(1, extra)})'}"
        )
    return result


def kind_of(value: Any) -> str:
    """Return the type of a value in words, for an error."""
    name = f"{type(value).__module__}.{type(value).__name__}"
    plain = isinstance(value, torch.distributions.Distribution)
    return f"a plain {name}; take pyro.distributions.{type(value).__name__}" if plain else f"a {name}"


class PyroDistributions(Messenger):
    """Refuse a sample site whose distribution is not one of Pyro's, before anything is drawn from it."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not isinstance(msg["fn"], TorchDistributionMixin) and type(msg["fn"]).__name__ != "_Subsample":
            raise TypeError(
                f"site {msg['name']!r} must have a distribution of pyro.distributions, not {kind_of(msg['fn'])}"
            )


def check_sites(
    model_trace: Trace, guide_trace: Trace, guide: Program, batch: Batch, *, observing: bool = True
) -> None:
    """Refuse sites of a model and a guide that do not fit each other, or a model that is to observe and does not.

    The traces are those of the programs on the batch.
    """
    observed = observed_in(model_trace)
    if observing and not observed:
        raise ValueError("the model observes nothing: give one of its sample sites obs=x")
    for site in observed:
        _check_observed_shape(site)
    for trace in (model_trace, guide_trace):
        for name in [*trace.stochastic_nodes, *trace.observation_nodes]:
            _check_in_plates(trace.nodes[name])
    _check_both_draw(model_trace, guide_trace)
    _check_drawn_alone(model_trace, guide_trace, guide, batch)
    for name in guide_trace.stochastic_nodes:
        if name in model_trace.nodes:
            prior, posterior = model_trace.nodes[name]["fn"], guide_trace.nodes[name]["fn"]
            if (prior.batch_shape, prior.event_shape) != (posterior.batch_shape, posterior.event_shape):
                shapes = f"{tuple(prior.shape())} in the model and {tuple(posterior.shape())} in the guide"
                events = f"event shape {tuple(prior.event_shape)} and {tuple(posterior.event_shape)}"
                raise ValueError(f"site {name!r} has shape {shapes}, {events}; they must be equal (see .to_event)")
            _check_unrounded(name, prior, posterior, guide_trace.nodes[name]["value"])
            improper = any(isinstance(layer, dist.ImproperUniform) for layer in layers(prior))
            if improper or _is_point(posterior) or support_of(posterior) is None:
                check_values(name, prior, guide_trace.nodes[name]["value"])
            else:
                check_same_support(f"site {name!r} of the model", prior, "of the guide", posterior)
    for site in observed:
        _check_scored(site)
    for site in (model_trace.nodes[name] for name in model_trace.stochastic_nodes):
        if any(hasattr(layer, "transforms") for layer in layers(site["fn"])):
            _check_scored(site)


def _check_unrounded(name: str, prior: Any, posterior: Any, value: Tensor) -> None:
    """Refuse rounded draws of Pyro whose density one program takes unrounded, by Pyro's mark, and the other rounded."""
    ours, theirs = (any(isinstance(layer, ROUNDED) for layer in layers(fn)) for fn in (posterior, prior))
    if ours and not (theirs and hasattr(value, "_unquantize")):
        raise ValueError(
            f"site {name!r} is scored as drawn, before it is rounded, by {family(posterior)} of the guide, and rounded"
            f" by {family(prior)} of the model: take the same class in both, without a transform"
        )


def _check_both_draw(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse sites that only one of the programs draws: their densities would not make up a KL."""
    for site in observed_in(guide_trace):
        if not (
            site["infer"].get("_deterministic") or any(isinstance(layer, dist.Unit) for layer in layers(site["fn"]))
        ):
            raise ValueError(
                f"the guide observes site {site['name']!r}, but only the model may observe: move the site to the model"
            )
    for name in model_trace.stochastic_nodes:
        site, drawn = model_trace.nodes[name], guide_trace.nodes.get(name)
        if drawn is None and site["mask"] is not False and not site["infer"].get("enumerate"):
            raise ValueError(f"the model draws site {name!r}, but the guide does not: let the guide draw it, too")
        if drawn and not _masked_alike(site, drawn):
            raise ValueError(
                f"site {name!r} has different masks in the model and the guide: put the same poutine.mask around both,"
                " or the same .mask() at both distributions"
            )


def _masked_alike(site: dict[str, Any], drawn: dict[str, Any]) -> bool:
    """Whether a site has the same mask in both programs, or no density in one: a flat prior, or a point."""
    is_point = drawn["mask"] is None and _is_point(drawn["fn"]) and not _has_density(drawn["fn"])
    if is_point or any(mask is False for mask, _ in _masks(site)):
        return True
    return torch.equal(*torch.broadcast_tensors(mask_of(site), mask_of(drawn)))


def mask_of(site: dict[str, Any]) -> Tensor:
    """Return the mask of a site, by its program and by its distribution, of a shape that broadcasts to its value's."""
    return reduce(torch.logical_and, (torch.as_tensor(mask)[(..., *[None] * dims)] for mask, dims in _masks(site)))


def _masks(site: dict[str, Any]) -> list[tuple[Tensor | bool, int]]:
    """Return the masks of a site, by its program and by its distribution, each with the dimensions of what it masks."""
    hidden = [layer for layer in layers(site["fn"]) if isinstance(layer, MaskedDistribution)]
    of_program = True if site["mask"] is None else site["mask"]
    return [(of_program, site["fn"].event_dim), *((layer._mask, layer.event_dim) for layer in hidden)]


def _check_drawn_alone(model_trace: Trace, guide_trace: Trace, guide: Program, batch: Batch) -> None:
    """Refuse sites with a density that the guide alone draws, unless points are functions of them."""
    for name in guide_trace.stochastic_nodes:
        site = guide_trace.nodes[name]
        if name in model_trace.stochastic_nodes or site["mask"] is False or _is_point(site["fn"]):
            continue
        observes = name in model_trace.observation_nodes
        points = set() if observes else moved_points([name], guide_trace, guide, batch)
        if not points & {*model_trace.stochastic_nodes}:
            fix = "do not draw it where it is observed" if observes else "let the model draw it, too, or sum it out"
            raise ValueError(
                f"the guide draws site {name!r}, but the model {'observes it' if observes else 'does not'}, so that the"
                f" bound would count its density without a prior: {fix}"
            )


def moved_points(names: Collection[str], guide_trace: Trace, guide: Program, batch: Batch) -> set[str]:
    """Return the points of a guide that move with what it draws at some sites, whose density is then theirs.

    So do the points of automatic guides. Other values of the guide stay as they are. A discrete value moves no point.

    Arguments:
        names: the sites.
        guide_trace: a trace of the guide on the batch.
        guide: the Pyro program of q(z|x).
        batch: what it is called with.
    """
    points = points_of(guide_trace)
    moved = guide_trace.copy()
    for point in points:
        moved.remove_node(point)
    for name in {*names} - points:
        site = guide_trace.nodes[name]
        support = support_of(site["fn"])
        if support is None or not support.is_discrete:
            moved.nodes[name] = site | {"value": site["value"] + 1 if _is_real(site["fn"]) else site["fn"].sample()}
    _, there = probe(lambda *_, **__: None, poutine.replay(guide, trace=moved), batch)
    return {name for name in points if not torch.equal(guide_trace.nodes[name]["value"], there.nodes[name]["value"])}


def points_of(trace: Trace) -> set[str]:
    """Return the latent sites of a trace that are drawn from a ``Delta``."""
    return {name for name in trace.stochastic_nodes if _is_point(trace.nodes[name]["fn"])}


def _is_point(distribution: Any) -> bool:
    return any(isinstance(layer, dist.Delta) for layer in layers(distribution))


def _has_density(distribution: Any) -> bool:
    points = [layer for layer in layers(distribution) if isinstance(layer, dist.Delta)]
    return all(bool((torch.as_tensor(point.log_density) != 0).any()) for point in points)


@torch.no_grad()
def check_points(model: Program, guide: Program, batch: Batch) -> bool:
    """Refuse points of a guide outside the support of the model's site; training may have moved them there.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        batch: the batch that both are called with.

    Returns:
        Whether there are points that training may move out of the support. A point with a density, such as an
        autoguide's, is a transformed draw, and stays within the image of its transform.

    Raises:
        ValueError: with the site and the value.
    """
    model_trace, guide_trace = probe(model, guide, batch)
    bounded = [
        name for name in points_of(guide_trace) if name in model_trace and not _is_real(model_trace.nodes[name]["fn"])
    ]
    for name in bounded:
        check_values(name, model_trace.nodes[name]["fn"], guide_trace.nodes[name]["value"])
    return any(not _has_density(guide_trace.nodes[name]["fn"]) for name in bounded)


def _is_real(distribution: Any) -> bool:
    support = support_of(distribution)
    return support is None or without_events(support) in (constraints.real, constraints.real_vector)


def _check_in_plates(site: dict[str, Any]) -> None:
    """Refuse a site with a batch dimension outside all plates, or with a mask or a scale of more numbers than it has.

    Pyro would not know that numbers outside all plates are independent.
    """
    shape, held = site["fn"].batch_shape, {frame.dim for frame in site["cond_indep_stack"]}
    if site["infer"].get("_deterministic"):
        return
    for kind in ("mask", "scale"):
        of_kind = site[kind].shape if isinstance(site[kind], Tensor) else torch.Size()
        padded = (*[1] * (len(of_kind) - len(shape)), *shape)
        if any(size not in (1, of_batch) for size, of_batch in zip(of_kind[::-1], padded[::-1], strict=False)):
            raise ValueError(
                f"site {site['name']!r} has a {kind} of shape {tuple(of_kind)} beside its batch shape {tuple(shape)},"
                f" by which its numbers would count several times: give the {kind} this shape, as by {kind}[:, 0]"
            )
    for dim in range(-1, -len(shape) - 1, -1):
        if shape[dim] > 1 and dim not in held:
            raise ValueError(
                f"site {site['name']!r} has batch shape {tuple(shape)}, but no plate for its dimension {dim}: put the"
                f" site into a pyro.plate of {shape[dim]}, or move that dimension to the event by .to_event(1)"
            )


def _check_scored(site: dict[str, Any]) -> None:
    """Refuse a site whose distribution cannot score its value, as without an inverse, or in another type."""
    kind, support, value = family(site["fn"]), support_of(site["fn"]), torch.as_tensor(site["value"])
    try:
        with torch.no_grad(), pyro.validation_enabled(False), with_density(f"at site {site['name']!r}", site["fn"]):
            if support is None or support.check(value).all():  # a value outside is refused later, with its place
                site["fn"].log_prob(site["value"])
    except RuntimeError as error:
        if not re.search(OF_TYPES, str(error), re.IGNORECASE):
            raise
        raise ValueError(
            f"{kind} at site {site['name']!r} cannot score a value of {value.dtype} ({error}): give it the type of the"
            " parameters, as by obs=x.float()"
        ) from error


def _check_observed_shape(site: dict[str, Any]) -> None:
    """Refuse an observed value that does not have the shape of its distribution, as numbers would count twice."""
    fn, shape = site["fn"], torch.as_tensor(site["value"]).shape
    batch, event = shape[: len(shape) - len(fn.event_shape)], shape[len(shape) - len(fn.event_shape) :]
    if event != fn.event_shape or batch != fn.batch_shape[len(fn.batch_shape) - len(batch) :]:
        raise ValueError(
            f"site {site['name']!r} observes a value of shape {tuple(shape)} under a distribution of batch shape"
            f" {tuple(fn.batch_shape)} and event shape {tuple(fn.event_shape)}: they must be equal, so that each number"
            " counts once"
        )
