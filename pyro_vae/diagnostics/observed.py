"""Programs that condition on the observed entries of incomplete data alone."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.arguments import as_function
from pyro_vae.data import Columns, count_in
from pyro_vae.data.batch import Batch, Count, arguments, map_tensors, tensors_of, with_tensors
from pyro_vae.diagnostics.particles import parts_in
from pyro_vae.diagnostics.vectors import check_in_order, joined
from pyro_vae.distributions.wrappers import family
from pyro_vae.programs import Program, as_input, mode, seeded
from pyro_vae.programs.handlers import LocalModules
from pyro_vae.programs.traces import in_one_line


class LeftOut(Messenger):
    """Leaves the missing entries of parts of the data out of the likelihood of the sites that observe these parts.

    Missing entries have another value while the program runs: for a guide the mean of the observed ones, for a model,
    whose likelihood may take only certain values, one of those that are observed.

    Arguments:
        fill: for each part of the data the values in the place of NaN, of the shape of a datum, or None.
    """

    def __init__(self, fill: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.fill = fill
        self.parts: list[Tensor] = []  # of the last call, as is the next
        self.masks: list[Tensor | None] = []
        self.numbers: dict[str, int] = {}  # of the parts, by the sites that observe them

    def around(self, program: Program) -> Program:
        """Return a program that gets data with NaN."""
        return partial(_run_on_observed, self, program)  # in which the program's modules are found

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"] or msg["infer"].get("_deterministic"):
            return
        equal = parts_in(msg["value"], self.parts)
        for number in [number for number in equal if self.parts[number] is msg["value"]] or equal:
            if (mask := self.masks[number]) is not None:
                self.numbers[msg["name"]] = number
                base, dims = msg["fn"], 0
                while isinstance(base, Independent | ExpandedDistribution):
                    dims += base.reinterpreted_batch_ndims if isinstance(base, Independent) else 0
                    base = base.base_dist
                if base.event_shape:
                    raise ValueError(
                        f"entries of site {msg['name']!r} cannot be missing, as those of {family(base)} depend on each"
                        " other: let the model observe independent entries (.to_event(1))"
                    )
                shape = msg["fn"].batch_shape + msg["fn"].event_shape
                msg["fn"] = base.expand(shape).mask(mask).to_event(dims)


def _run_on_observed(left_out: LeftOut, program: Program, *args: Any, **kwargs: Any) -> Any:
    batch: Any = (args, kwargs)
    pairs = list(zip(tensors_of(batch), left_out.fill, strict=True))
    left_out.parts = [x if value is None else torch.where(x.isnan(), value.to(x), x) for x, value in pairs]
    left_out.masks = [None if value is None else ~x.isnan() for x, value in pairs]
    args, kwargs = with_tensors(batch, left_out.parts)
    with left_out:
        return program(*args, **kwargs)


def on_observed(model: Program, guide: Program, data: Any, *, count: Count | None = None) -> tuple[Program, Program]:
    r"""Return programs that take data with missing entries (NaN), and condition on the observed ones alone.

    .. math:: p(x_o, z) = p(z) \prod_{d \in o} p(x_d|z)

    All that takes programs takes these: `log_likelihood` estimates :math:`\log p(x_o)`, and the difference of two such
    estimates is the log-likelihood of entries given others.

    Arguments:
        model: a Pyro program whose observed sites are parts of the data as they are, with independent entries.
        guide: its guide. If its draws are finite where x has NaN (`pyro_vae.networks.FillMissing`), it gets x as it is,
            otherwise with the means of the observed entries.
        data: what `fit` takes, all of which must fit into memory; NaN marks what is missing.
        count: returns the number of data of a ready batch.

    Returns:
        Both programs.

    Raises:
        TypeError, ValueError: as for `log_likelihood`; for a loader that shuffles, batches of different structures, and
            a part of the data that has no observed entry; when it is run, for a site whose entries are not
            independent.

    Example:
        >>> from pyro_vae import log_likelihood
        >>> from pyro_vae.diagnostics.estimators import linear_gaussian
        >>> vae, x = linear_gaussian()
        >>> x[:, 0] = torch.nan
        >>> bool(torch.tensor(log_likelihood(*on_observed(vae.model, vae.guide, x), x)).isfinite())
        True

    Reference:
        Nazabal, Olmos, Ghahramani and Valera, 2020, Handling Incomplete Heterogeneous Data using VAEs, equation 2.
    """
    return programs_on_observed(model, guide, in_memory(data, model, guide, count))[:2]


def in_memory(data: Any, model: Program, guide: Program, count: Count | None) -> Any:
    """Return data as tensors in memory; tensors, alone or in a tuple or a dict, are returned as they are."""
    as_function(model, "model"), as_function(guide, "guide")
    check_in_order(data, "the completed data")
    x = as_input(data, model, guide, count=count)
    if isinstance(x, Tensor | Columns):
        return data
    return joined(list(x.split(len(x))), count_in(x), "data with missing entries are completed together")


def programs_on_observed(model: Program, guide: Program, data: Any) -> tuple[Program, Program, LeftOut]:
    """Return what `on_observed` does, and the handler of the model."""
    whole = as_input(data, model, guide)[:]  # in the precision of the programs
    batch = whole if isinstance(whole, dict | tuple) else (whole,)
    seen, others, means = zip(*map(_fill_of, tensors_of(batch)), strict=True)
    left_out = LeftOut(seen)
    observed, completing = left_out.around(model), guide
    if not takes_nan(guide, map_tensors(with_gaps, batch)):
        completing = LeftOut(means).around(guide)
    _check_used_once(observed, LeftOut(others).around(model), completing, left_out, batch)
    return observed, completing, left_out


def _check_used_once(observed: Program, other: Program, guide: Program, left_out: LeftOut, batch: Batch) -> None:
    """Refuse a model that does not observe incomplete data as they are, or that also uses them elsewhere.

    What stands in the place of missing entries would then count: two different values must give the same densities.
    """
    some = are_incomplete(batch).nonzero()[:10, 0]
    if not len(some):
        return
    args, kwargs = arguments(map_tensors(partial(with_gaps, rows=some), batch))
    local = LocalModules()
    unchecked = pyro.validation_enabled(False)
    with in_one_line(batch), torch.no_grad(), unchecked, seeded(0, some.device), mode(False, observed, guide):
        drawn = poutine.trace(local(guide)).get_trace(*args, **kwargs)
        traces = [
            poutine.trace(poutine.replay(local(program), trace=drawn)).get_trace(*args, **kwargs)
            for program in (observed, other)
        ]
    for trace in traces:
        trace.compute_log_prob()
    missing = [number for number, mask in enumerate(left_out.masks) if mask is not None and not mask.all()]
    densities = ([site["log_prob"] for site in trace.nodes.values() if "log_prob" in site] for trace in traces)
    pairs = zip(*densities, strict=True)
    alike = all(torch.allclose(one, two, rtol=1e-4, atol=1e-4, equal_nan=True) for one, two in pairs)
    if not alike or not {*missing} <= {*left_out.numbers.values()}:
        raise ValueError(
            "the model must observe incomplete data as they are (obs=x), and use them nowhere else: what stands in the"
            " place of missing entries would change its densities"
        )


def are_incomplete(batch: Batch) -> Tensor:
    """Whether an entry of each datum is missing, shape (B,)."""
    return torch.stack([x.isnan().reshape(len(x), -1).any(1) for x in tensors_of(batch)]).any(0)


def _fill_of(x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return for each entry the smallest and the largest observed value, and their mean, if some are missing."""
    if not (x.is_floating_point() and x.isnan().any()):
        return None, None, None
    if x.isnan().all():
        raise ValueError("a part of the data has no observed entry: leave it out, or give some")
    known, all_values = ~x.isnan(), x[~x.isnan()]
    least, most = x.nan_to_num(nan=math.inf).amin(0), x.nan_to_num(nan=-math.inf).amax(0)
    pairs = (least, all_values.min()), (most, all_values.max()), (x.nanmean(0), all_values.mean())
    least, most, mean = (value.where(known.any(0), otherwise) for value, otherwise in pairs)
    return least, most, mean


def with_gaps(x: Tensor, rows: slice | Tensor = slice(2)) -> Tensor:
    """Return some rows of data without each entry that is missing from any row, as another batch may miss it."""
    return x[rows].masked_fill(x.isnan().any(0), torch.nan) if x.is_floating_point() else x[rows]


def takes_nan(guide: Program, batch: Batch) -> bool:
    """Whether a guide takes a batch with missing entries (NaN), and draws finite values."""
    args, kwargs = arguments(batch)
    try:
        with torch.no_grad(), pyro.validation_enabled(False), seeded(0, torch.device("cpu")), mode(False, guide):
            trace = poutine.trace(LocalModules()(guide)).get_trace(*args, **kwargs)
            trace.compute_log_prob()  # as gamma variates are finite even where their parameters are not
    except (IndexError, RuntimeError, ValueError):
        return False
    sites = [trace.nodes[name] for name in trace.stochastic_nodes]
    return all(bool(site["value"].isfinite().all() and site["log_prob"].isfinite().all()) for site in sites)
