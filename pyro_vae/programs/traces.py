"""Runs of a pair of programs, and what they observed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_vae.data.batch import Batch, arguments, in_words, map_tensors, tensors_of
from pyro_vae.programs.handlers import LocalModules, Program
from pyro_vae.programs.modules import modules_of


def paired_traces(model: Program, guide: Program, *args: Any, **kwargs: Any) -> tuple[Trace, Trace]:
    """Run the guide, then the model at the guide's sample.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        args: what both are called with.
        kwargs: likewise, by name.

    Returns:
        The traces of model and guide, without their plates' own sites.

    Example:
        >>> from pyro_vae import VAE, decoders, encoders, priors
        >>> vae = VAE(priors.Normal(2), encoders.Normal(64, 2), decoders.Normal(2, 64))
        >>> model_trace, guide_trace = paired_traces(vae.model, vae.guide, torch.zeros(5, 64))
        >>> model_trace.stochastic_nodes, model_trace.observation_nodes
        (['z'], ['x'])
    """
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)


def filled(batch: Batch, but: Tensor | None = None) -> Batch:
    """Fill in what is missing, but not in one part."""
    return map_tensors(
        lambda part: part.nan_to_num(0.5) if part.is_floating_point() and part is not but else part, batch
    )


def probe(model: Program, guide: Program, batch: Batch) -> tuple[Trace, Trace]:
    """Run a pair of programs on a copy of the parameter store: what they add to it is sized for this batch.

    A guide that makes its parameters now is to make its own, and not to find those of another module.
    """
    store, local = pyro.get_param_store(), LocalModules()
    own = {id(parameter) for module in modules_of(model, guide) for parameter in module.parameters()}
    state = store.get_state()
    state["params"] = {
        name: value
        for name, value in state["params"].items()
        if not isinstance(value, nn.Parameter) or id(value) in own
    }
    with unchanged(batch, "the programs change"), store.scope(state):
        args, kwargs = arguments(batch)
        try:
            return paired_traces(local(model), local(guide), *args, **kwargs)
        except (IndexError, RuntimeError) as error:
            if isinstance(batch, Tensor) or isinstance(error, torch.OutOfMemoryError | NotImplementedError):
                raise
            reason = str(error).partition("\n")[0]  # behind which Pyro lists the shapes of the trace
            fix = "give parts that fit each other and the programs"
            if "type" in reason and not all(part.is_floating_point() for part in tensors_of(batch)):
                fix = "whole numbers of data of several parts keep their type: give those as floats, x.float()"
            raise ValueError(f"the programs fail on {in_words(batch)} ({reason}): {fix}") from error


@contextmanager
def unchanged(batch: Batch, words: str) -> Iterator[None]:
    """Refuse what changes a batch in place, as it may be a part of the user's own tensor."""
    parts = [part for part in tensors_of(batch) if not part.is_inference()]
    before = [part._version for part in parts]
    yield
    if [part._version for part in parts] != before:
        raise ValueError(
            f"{words} the batch in place, and so the data: begin with x = x.clone(), and take no layer with"
            " inplace=True"
        )


def observed_in(model_trace: Trace) -> list[dict[str, Any]]:
    """Return the sites by which data count in the bound: observed, with a density, and not masked as a whole."""
    sites = [model_trace.nodes[name] for name in model_trace.observation_nodes]
    return [site for site in sites if not (site["mask"] is False or getattr(site["fn"], "_mask", None) is False)]
