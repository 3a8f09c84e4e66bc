"""Whether programs take particles side by side, in a dimension to the left of that of the data."""

import copy
import warnings
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.data.batch import Batch, Count, arguments
from pyro_vae.objectives._objective import Objective, Program
from pyro_vae.objectives.particles import PARTICLES
from pyro_vae.runtime.changes import Changes

FIX = "let it count dimensions from the right (softmax(z, -1) and z[..., 0], not softmax(z, 1) and z[:, 0])"


def made_for(loss: Any, model: Program, guide: Program, batch: Batch, count: Count) -> Any:
    """Return an objective that takes a model: one that runs it on one particle at a time, where several do not go.

    That is where the model fails on particles side by side, and where it takes their dimension for another, so that
    they have other densities than each alone. Two particles tell. Torch's random state is as before.

    Arguments:
        loss: an ELBO; one of Pyro's is returned as it is.
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        batch: what both are called with.
        count: returns the number of data of a batch.

    Raises:
        ValueError: where the guide, or a model that Pyro is to run on particles side by side, takes their dimension
            for another.
    """
    if not isinstance(loss, Objective) and not loss.vectorize_particles:
        return loss
    state, changes = torch.get_rng_state(), Changes()
    try:
        with torch.no_grad(), changes:
            return _made_for(loss, model, guide, batch, count)
    finally:
        changes.undo()
        torch.set_rng_state(state)


def _made_for(loss: Any, model: Program, guide: Program, batch: Batch, count: Count) -> Any:
    reason = "" if not isinstance(loss, Objective) else _failure(loss, model, guide, batch, count)
    other = "" if reason else scored_otherwise(model, guide, batch)
    if other == "guide" or (other and not isinstance(loss, Objective)):
        raise ValueError(
            f"{type(loss).__name__} runs the {other} on particles side by side, which have other densities there than"
            f" each alone: {FIX}, or take Trace_ELBO(num_particles)"
        )
    if not isinstance(loss, Objective):
        return loss
    loss = copy.copy(loss)
    loss.count_data = count
    if reason or other:
        said = (
            f"fails on particles side by side ({reason})" if reason else "takes the dimension of particles for another"
        )
        fix = "" if reason else f"; {FIX}"
        text = f"the model {said}, and is run on one at a time, which is slower{fix}"
        warnings.warn(f"{type(loss).__name__}: {text}", UserWarning, stacklevel=5)
        loss.one_by_one = True
    return loss


def _failure(loss: Objective, model: Program, guide: Program, batch: Batch, count: Count) -> str:
    """Return why a model fails on two particles side by side, if it takes each alone."""
    args, kwargs = arguments(batch)
    trial = copy.copy(loss)
    trial.count_data = count
    trial.num_particles = trial.chunk = min(2, loss.num_particles)
    try:
        trial.draws(model, guide, *args, **kwargs)
    except (IndexError, RuntimeError, ValueError) as error:
        trial.one_by_one = True
        with suppress(IndexError, RuntimeError, ValueError):
            trial.draws(model, guide, *args, **kwargs)
            return str(error).partition("\n")[0]
    return ""


def scored_otherwise(model: Program, guide: Program, batch: Batch) -> str:
    """Return which of two programs gives particles side by side other densities than each alone, if one does.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        batch: what both are called with.

    Returns:
        "guide", "model", or nothing: also where they fail, which they will say themselves, and where they draw noise
        that is no site.

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
    args, kwargs = arguments(batch)

    def run(program: Program, values: Trace | None = None) -> Trace:
        program = program if values is None else poutine.replay(program, trace=values)
        trace = poutine.trace(program).get_trace(*args, **kwargs)
        trace.compute_log_prob()
        return trace

    with suppress(Exception):  # of any program
        plain = run(guide)
        plain = [plain, run(model, plain)]
        dims = max([1, *(-frame.dim for trace in plain for frame in _frames(trace))])
        together = run(pyro.plate(PARTICLES, 2, dim=-dims - 1)(guide))
        for name, program in (("guide", guide), ("model", model)):
            if name == "model":
                together = run(pyro.plate(PARTICLES, 2, dim=-dims - 1)(model), together)
            elif len(together.stochastic_nodes) < 2:  # its only site hangs on the data alone
                continue
            each = [[run(program, _one(together, number)) for _ in range(2)] for number in range(2)]
            slack = 10 if name == "guide" else 1  # for the inverse of a flow
            if not all(_alike(twice[0], twice[1], slack) for twice in each):
                continue  # with noise of its own
            if not all(_alike(_one(together, number), each[number][0], slack) for number in range(2)):
                return name
    return ""


def _frames(trace: Trace) -> list[Any]:
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    return [frame for site in sites for frame in site["cond_indep_stack"] if frame.dim is not None]


def _one(trace: Trace, number: int) -> Trace:
    """Return the trace of one of several particles, with its values in the shapes that they have without others."""
    one = trace.copy()
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        one.nodes[name] = changed = site | {"log_prob": site["log_prob"][number]}
        if not site["is_observed"]:
            plates = [-frame.dim for frame in site["cond_indep_stack"] if frame.dim and frame.name != PARTICLES]
            value: Tensor = site["value"][number]
            changed["value"] = value.reshape(value.shape[value.dim() - site["fn"].event_dim - max(plates, default=0) :])
    return one


def _alike(one: Trace, other: Trace, slack: float) -> bool:
    """Whether two traces have the same densities, but for rounding."""
    names = [name for name, site in one.nodes.items() if "log_prob" in site and "log_prob" in other.nodes.get(name, {})]
    pairs = [torch.broadcast_tensors(one.nodes[name]["log_prob"], other.nodes[name]["log_prob"]) for name in names]
    return all(torch.allclose(a, b, rtol=1e-4 * slack, atol=1e-3 * slack, equal_nan=True) for a, b in pairs)
