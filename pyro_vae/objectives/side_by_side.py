"""Checks that programs can run on particles side by side, in a dimension to the left of that of the data."""

import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from operator import itemgetter
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, TraceTMC_ELBO
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.data.batch import Batch, Count, are_rows, arguments, map_tensors
from pyro_vae.objectives._objective import Objective, Program, copy_of
from pyro_vae.objectives.particles import PARTICLES
from pyro_vae.runtime.changes import Changes
from pyro_vae.runtime.steps import get_random_state, set_random_state

FAIL, SHARED = "programs", "noise"
FIX = "let it count dimensions from the right (softmax(z, -1) and z[..., 0], not softmax(z, 1) and z[:, 0])"


def runs_side_by_side(loss: Any) -> bool:
    """Whether an ELBO may run programs on several particles, or on all values of a site, in one call.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> runs_side_by_side(Trace_ELBO(10)), runs_side_by_side(Trace_ELBO(10, vectorize_particles=True))
        (False, True)
    """
    return isinstance(loss, Objective | TraceEnum_ELBO | TraceTMC_ELBO) or bool(loss.vectorize_particles)


def made_for(loss: Any, model: Program, guide: Program, batches: Iterable[Batch], count: Count) -> Any:
    """Return an objective that can use a model: it runs the model on one particle at a time if several do not work.

    Several do not work if the model fails on particles side by side, or if it mistakes their dimension for another, so
    that each has another density than alone. This is tested with two particles. Torch's random state is restored.

    Arguments:
        loss: an ELBO; one of Pyro is returned as it is.
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        batches: what both are called with, one batch of each structure.
        count: returns the number of data of a batch.

    Raises:
        ValueError: if the guide mistakes the dimension of particles for another; for an ELBO of Pyro that runs the
            programs on particles or on all values of a site side by side, also if the model does so.
    """
    if not runs_side_by_side(loss):
        return loss
    if isinstance(loss, Objective):
        loss = copy_of(loss)
        loss.count_data = count
    random_state, changes = get_random_state(), Changes()
    try:
        with torch.no_grad(), changes:
            for batch in batches:
                (_adapt if isinstance(loss, Objective) else _check)(loss, model, guide, batch, _fewer(batch, count))
    finally:
        changes.undo()
        set_random_state(random_state)
    return loss


def _fewer(batch: Batch, count: Count) -> Batch:
    """Return a batch without its first datum, if possible, as another dimension may be as long as the whole batch."""
    return map_tensors(itemgetter(slice(1, None)), batch) if count(batch) > 1 and are_rows(batch, count) else batch


def _check(loss: Any, model: Program, guide: Program, batch: Batch, fewer: Batch) -> None:
    name, enumerates = type(loss).__name__, isinstance(loss, TraceEnum_ELBO | TraceTMC_ELBO)
    if enumerates and (found := _in_other_plates(model, guide, batch)):
        weighed, plate, site = found
        raise ValueError(
            f"{name} weighs the values of site {weighed!r} within its plate {plate!r}, but site {site!r}, which depends"
            f" on them, stands in no plate of this name: let both programs name it alike, and make it once in each,"
            f" data = pyro.plate({plate!r}, len(x)), for all of its sites"
        )
    sorts = {"particles": loss.vectorize_particles, "all values of a site": enumerates}
    for what in [what for what, side_by_side in sorts.items() if side_by_side]:
        of_all = scored_otherwise(model, guide, batch, enumerated=what != "particles")
        if of_all != FAIL:  # a failure raises its own error later
            of_fewer = of_all or scored_otherwise(model, guide, fewer, enumerated=what != "particles")
            _refuse(name, what, of_fewer.removeprefix(SHARED))


def _in_other_plates(model: Program, guide: Program, batch: Batch) -> tuple[str, str, str] | None:
    """Return a site whose values Pyro weighs in a plate, the plate, and a site that depends on it outside that plate.

    Pyro knows a plate by its name. A site depends on another if its density changes with the other's value.
    """
    with suppress(Exception):  # a program may raise any exception
        of_guide = _scored(batch, guide)
        of_model = _scored(batch, model, of_guide)
        drawn = {name: of_model.nodes[name] for name in of_model.stochastic_nodes}
        drawn |= {name: of_guide.nodes[name] for name in of_guide.stochastic_nodes}
        for weighed, site in drawn.items():
            if site_is_subsample(site) or (site["fn"].has_rsample and not site["infer"].get("enumerate")):
                continue
            plates = _plates_of(site)
            for program, trace in ((guide, of_guide), (model, of_model)):
                ends = [_scored(batch, program, _at(trace, weighed, value)).nodes for value in _two_values(site)]
                for name in [name for name, end in ends[0].items() if "log_prob" in end]:
                    first, last = (end[name]["log_prob"] for end in ends)
                    missing = sorted(plates - _plates_of(trace.nodes[name]))
                    if missing and (name == weighed or not torch.allclose(first, last, equal_nan=True)):
                        return weighed, missing[0], name
    return None


def _plates_of(site: dict[str, Any]) -> set[str]:
    return {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}


def _at(trace: Trace, name: str, value: Tensor) -> Trace:
    """Return a trace with another value at a site."""
    other = trace.copy()
    if name in other:
        other.nodes[name] = other.nodes[name] | {"value": value}
    return other


def _two_values(site: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return two values of a site, in the shape of its draws."""
    value = site["value"]
    if not site["fn"].has_enumerate_support:
        return value, value + 1
    support = site["fn"].enumerate_support(expand=False)
    return support[0].expand_as(value), support[-1].expand_as(value)


def _adapt(loss: Objective, model: Program, guide: Program, batch: Batch, fewer: Batch) -> None:
    reason = _failure(loss, model, guide, batch) or _failure(loss, model, guide, fewer)
    other = "" if reason else scored_otherwise(model, guide, batch).removeprefix(FAIL)
    if other == "guide":
        _refuse(type(loss).__name__, "particles", other)
    if (reason or other) and not loss.one_by_one:
        said = (
            f"fails on particles side by side ({reason})" if reason else "takes the dimension of particles for another"
        )
        fix = "" if reason else f"; {FIX}"
        if other == SHARED:
            said, fix = "draws noise that particles side by side share", "; let it draw as much as z has (z.shape)"
        text = f"the model {said}, and is run on one at a time, which is slower{fix}"
        warnings.warn(f"{type(loss).__name__}: {text}", UserWarning, stacklevel=4)
        loss.one_by_one = True


def _refuse(loss: str, what: str, program: str) -> None:
    if program:
        raise ValueError(
            f"{loss} runs the {program} on {what} side by side, which have other densities there than each alone:"
            f" {FIX}, or take Trace_ELBO()"
        )


def _failure(loss: Objective, model: Program, guide: Program, batch: Batch) -> str:
    """Return why a model fails on two particles side by side, if it works on each alone."""
    args, kwargs = arguments(batch)
    trial = copy_of(loss)
    trial.num_particles = trial.chunk = min(2, loss.num_particles)
    try:
        trial.draws(model, guide, *args, **kwargs)
    except (IndexError, RuntimeError, ValueError) as error:
        trial.one_by_one = True
        with suppress(IndexError, RuntimeError, ValueError):
            trial.draws(model, guide, *args, **kwargs)
            return str(error).partition("\n")[0]
    return ""


def scored_otherwise(model: Program, guide: Program, batch: Batch, *, enumerated: bool = False) -> str:
    """Return which of two programs, if any, gives particles side by side other densities than each alone.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        batch: what both are called with.
        enumerated: instead of particles, use the values of the sites that are summed out.

    Returns:
        "guide" or "model"; "programs" if these fail side by side, but not alone; "noise" if the model draws noise
        outside of sites, and particles share it; otherwise "", also if the programs fail alone, or if each particle
        has noise of its own.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(torch.softmax(z, 1), 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        >>> scored_otherwise(model, guide, torch.zeros(3, 2))
        'model'
    """
    run = partial(_scored, batch)
    with suppress(Exception):  # a program may raise any exception
        of_guide = run(guide)
        plain = {"guide": of_guide, "model": run(model, of_guide)}
        sites = [site for trace in plain.values() for site in trace.nodes.values() if site["type"] == "sample"]
        dims = max([1, *(-frame.dim for site in sites for frame in site["cond_indep_stack"] if frame.dim)])
        summed_out = {site["name"] for site in sites if site["infer"].get("enumerate") == "parallel"}
        together = None
        for name, program in (("guide", guide), ("model", model)):
            try:
                if enumerated:
                    together = run(program, _all_values(plain[name], summed_out, dims, together))
                else:
                    together = run(pyro.plate(PARTICLES, 2, dim=-dims - 1)(program), together)
            except (IndexError, RuntimeError, ValueError):
                return FAIL
            if name == "guide" and len(together.stochastic_nodes) < 2:  # its only site depends only on the data
                continue
            with suppress(Exception):  # such as that of a flow without an inverse
                ones = [_one(together, number, plain[name], dims) for number in range(2)]
                each = [[run(program, one) for _ in range(2)] for one in ones]
                slack = 10 if name == "guide" else 1  # as the inverse of a flow is inexact
                noisy = not all(_alike(once, again, slack) for once, again in each)
                if not (noisy or all(_alike(one, alone, slack) for one, (alone, _) in zip(ones, each, strict=True))):
                    return name
                if noisy and name == "model" and not enumerated:  # each particle needs noise of its own
                    twice = run(pyro.plate(PARTICLES, 2, dim=-dims - 1)(program), _twice_the_first(together, dims))
                    if _alike(_one(twice, 0, plain[name], dims), _one(twice, 1, plain[name], dims), slack):
                        return SHARED
    return ""


def _scored(batch: Batch, program: Program, values: Trace | None = None) -> Trace:
    """Run a program on a batch, at the values of a trace if given, and return its trace with log-probabilities."""
    args, kwargs = arguments(batch)
    trace = poutine.trace(program if values is None else poutine.replay(program, trace=values)).get_trace(
        *args, **kwargs
    )
    trace.compute_log_prob()
    return trace


def _all_values(plain: Trace, summed_out: set[str], dims: int, drawn: Trace | None) -> Trace:
    """Return a trace with the first and the last value of each site that is summed out, in a dimension of their own."""
    values = plain.copy()
    for name in values.stochastic_nodes:
        site = values.nodes[name]
        if drawn is not None and name in drawn:
            values.nodes[name] = site | {"value": drawn.nodes[name]["value"]}
        elif name in summed_out:
            support = site["fn"].enumerate_support(expand=False)[[0, -1]]
            values.nodes[name] = site | {"value": support.reshape(2, *[1] * dims, *site["fn"].event_shape)}
        else:
            del values.nodes[name]  # drawn again, given the sites before it
    return values


def _twice_the_first(trace: Trace, dims: int) -> Trace:
    """Return the trace of two particles with the values of the first for both."""
    twice = trace.copy()
    for name in trace.stochastic_nodes:
        site = trace.nodes[name]
        if not site_is_subsample(site) and site["value"].dim() > dims + site["fn"].event_dim:
            twice.nodes[name] = site | {"value": site["value"][:1].expand_as(site["value"])}
    return twice


def _one(trace: Trace, number: int, plain: Trace, dims: int) -> Trace:
    """Return the trace of one of several particles, with the shapes that its values have when it runs alone."""
    one = trace.copy()
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        log_prob: Tensor = site["log_prob"]
        one.nodes[name] = changed = site | {"log_prob": log_prob[number] if log_prob.dim() > dims else log_prob}
        if not site["is_observed"]:
            value, shape = site["value"], plain.nodes[name]["value"].shape
            value = value[number] if value.dim() > dims + site["fn"].event_dim else value
            changed["value"] = value.reshape(value.shape[max(0, value.dim() - len(shape)) :]).expand(shape)
    return one


def _alike(one: Trace, other: Trace, slack: float) -> bool:
    """Whether two traces have the same densities, up to rounding."""
    names = [name for name, site in one.nodes.items() if "log_prob" in site and "log_prob" in other.nodes.get(name, {})]
    pairs = [torch.broadcast_tensors(one.nodes[name]["log_prob"], other.nodes[name]["log_prob"]) for name in names]
    return all(torch.allclose(a, b, rtol=1e-4 * slack, atol=1e-3 * slack, equal_nan=True) for a, b in pairs)
