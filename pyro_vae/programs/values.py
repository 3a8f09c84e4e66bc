"""Checks of the values of the data against the programs."""

from collections.abc import Iterable
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.data.batch import Batch, Count, are_rows, map_tensors, named
from pyro_vae.programs.calls import Transform, check_calls, transformed
from pyro_vae.programs.handlers import Program
from pyro_vae.programs.supports import accepts_nan, check_support, support_of, without_events
from pyro_vae.programs.traces import filled, observed_in, probe

FINITE = "remove or fill values that are not finite"
SCORE_THE_REST = (  # a mask alone does not do: the gradient of a masked NaN is NaN
    "score only the rest: decoders.Masked, or in a model of your own obs=torch.where(mask, x, 1) with obs_mask=mask,"
    " where 1 stands for any value in the support"
)
LARGEST_CHUNK = 2**20  # numbers that are checked together


def site_of_batch(model_trace: Trace, batch: Batch) -> dict[str, Any] | None:
    """Return the site that observes the batch itself, if it is the only observed site and has a constant support."""
    if not isinstance(batch, Tensor):
        return None
    sites = observed_in(model_trace)
    value, support = sites[0]["value"], without_events(support_of(sites[0]["fn"]))
    as_it_is = isinstance(value, Tensor) and value.shape == batch.shape and value.data_ptr() == batch.data_ptr()
    constant = support is without_events(support_of(sites[0]["fn"]))  # a new object if it depends on parameters
    return sites[0] if len(sites) == 1 and as_it_is and value.stride() == batch.stride() and constant else None


def check_data(
    model: Program,
    guide: Program,
    chunks: Iterable[Batch],
    transform: Transform | None,
    holds: dict[str, Any] | None,
    count: Count,
    of: str,
) -> None:
    """Refuse data that are not finite, or outside the support of a site that observes them.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        chunks: all data, so many at a time.
        transform: a function that is applied to a batch before the programs see it, or None.
        holds: the site that observes the batch itself; if it is None, the programs are run on all data.
        count: returns the number of data of a batch.
        of: a text for errors that says which data these are.
    """
    start, checked = 0, set[str]()
    for rows in chunks:
        refuse_infinite(rows, start, of)
        for name, part in named(rows):
            missing = part.isnan() if isinstance(part, Tensor) and part.is_floating_point() else None
            if name not in checked and missing is not None and missing.any():
                checked.add(name)
                some = missing.flatten(1).any(1) if part.dim() > 1 else missing
                incomplete = transformed(_where(filled(rows, part), some, count), transform, count)
                if not _takes_missing(model, guide, incomplete):
                    _refuse(part, missing, f"{FINITE}, or {SCORE_THE_REST}", start, _of_part(name, of))
                _check_guide_of_missing(guide, incomplete)
        value = transformed(rows, transform, count)
        if holds:
            check_support(holds, value)
        else:
            check_calls(value, model, guide)
            for site in observed_in(probe(model, guide, value)[0]):
                check_support(site, site["value"])
        start += count(rows)


def _where(rows: Batch, some: Tensor, count: Count) -> Batch:
    """Return two of the selected data, or the whole batch if it cannot be cut."""
    return map_tensors(lambda part: part[some][:2], rows) if are_rows(rows, count) else rows


def refuse_infinite(batch: Batch, start: int, of: str) -> None:
    """Refuse data that are infinite, with the index."""
    for name, part in named(batch):
        if isinstance(part, Tensor) and part.is_floating_point():
            fix = f"{FINITE}, or are beyond {torch.finfo(part.dtype).max:.3g}"
            _refuse(part, part.isinf(), fix, start, _of_part(name, of))


def _of_part(name: str, of: str) -> str:
    return f" of part {name}{of}" if name else of


def _refuse(x: Tensor, bad: Tensor, fix: str, start: int, of: str) -> None:
    if bad.any():
        index, *rest = bad.nonzero()[0].tolist()
        raise ValueError(f"the data hold {x[index, *rest].item()} at index {(start + index, *rest)}{of}; {fix}")


def _takes_missing(model: Program, guide: Program, batch: Batch) -> bool:
    """Whether programs accept missing entries, by the support of a site or by leaving them out themselves."""
    observed = observed_in(probe(model, guide, filled(batch))[0])
    if any(accepts_nan(site) for site in observed):
        _check_guide_of_missing(guide, batch)
    try:
        trace = probe(model, guide, batch)[0]
        trace.compute_log_prob(lambda _, site: site["is_observed"])
    except (IndexError, RuntimeError, ValueError):
        return False
    return not any(site["log_prob"].isnan().any() for site in observed_in(trace))  # -inf is of a value far off


def _check_guide_of_missing(guide: Program, batch: Batch) -> None:
    fix = "build the encoder with network=networks.FillMissing"
    try:
        _, trace = probe(lambda *_, **__: None, guide, batch)
    except (IndexError, RuntimeError, ValueError) as error:  # an embedding raises an IndexError
        raise ValueError(f"the guide fails on data with missing entries: {fix}") from error
    for name in trace.stochastic_nodes:
        if not trace.nodes[name]["value"].isfinite().all():
            raise ValueError(f"the guide's site {name!r} is not finite on data with missing entries: {fix}")
