"""Checks of what programs look up by the indices of a plate, or by the position in the batch."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_vae.data.batch import Batch, map_tensors, tensors_of
from pyro_vae.objectives import DataPlates
from pyro_vae.programs.seeds import seeded


class _Index(Tensor):
    """The indices of a plate; when something is looked up by them, they call ``note`` with its length."""

    note: Callable[[set[tuple[int, ...]]], None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func.__name__ not in ("__len__", "__get__", "size", "numel"):  # these do not read the indices
                tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
                indices = [each for each in tensors if isinstance(each, _Index)]
                for each in indices:
                    each.note({tuple(other.shape[:1]) for other in tensors} - {tuple(each.shape)})
            return func(*args, **(kwargs or {}))


class Indices(Messenger):
    """Notes the lengths of tensors that programs look up by the indices of their plates.

    Arguments:
        parts: the tensors of the batch. If a plate's ``subsample`` is one of them, its indices are right.
    """

    def __init__(self, parts: list[Tensor]) -> None:
        super().__init__()
        self.parts = parts
        self.read: dict[str, set[tuple[int, ...]]] = {}
        self.given: set[str] = set()

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if type(msg["fn"]).__name__ == "_Subsample" and any(msg["value"] is part for part in self.parts):
            self.given.add(msg["name"])

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.given:
            return
        if type(msg["fn"]).__name__ == "_Subsample" and isinstance(msg["value"], Tensor) and not msg["is_observed"]:
            name, index = msg["name"], msg["value"].as_subclass(_Index)
            index.note = lambda lengths: self.read.setdefault(name, set()).update(lengths)
            msg["value"] = index

    def check(self, plates: DataPlates, count: int, total: int) -> None:
        """Refuse programs that look up something by indices that are not those of the data: it would be of others."""
        as_many = {(), (count,)} if count == total else {()}
        for name in plates.names & self.read.keys():
            if plates.size > count or self.read[name] - as_many:
                raise ValueError(
                    f"the programs read the indices of the plate {name!r}, but these are not the indices of the data in"
                    f" a batch: give what they look up as a part of the data, fit(model, guide, (x, values), ...), or"
                    f" {_or_else(count, total)}"
                )


def _or_else(count: int, total: int) -> str:
    if count < total:
        return f"take all data at a time (batch_size={total})"
    return f"let the programs, and their plates, have one for each of these {total} data"


def check_positions(
    pair: tuple[Trace, Trace], later: tuple[Trace, Trace], plates: DataPlates, count: int, total: int
) -> None:
    """Refuse programs that look up observations or parameters by the position in the batch, as batches are shuffled.

    Arguments:
        pair: traces of the model and the guide on a batch.
        later: their traces on the same batch without its first datum.
        plates: the plates over the data.
        count: the number of data of the batch.
        total: the number of all data.

    Raises:
        ValueError: for observed values that did not move with the data, and for parameters that a sequential plate
            numbers.
    """
    fix = f"give them with the data, fit(model, guide, (x, values), ...), or {_or_else(count, total)}"
    here, there = (_observations(traces[0], plates) for traces in (pair, later))
    for name in here.keys() & there.keys():
        before, after = here[name], there[name]
        if len(before) == len(after) + 1 and torch.equal(after, before[:-1]) and not torch.equal(after, before[1:]):
            raise ValueError(
                f"site {name!r} observes the same values for different data, so they do not come from the batch: {fix}"
            )
    for trace, other in zip(pair, later, strict=True) if count < total else ():
        frames = {frame for site in trace.nodes.values() for frame in site.get("cond_indep_stack", ())}
        numbered = sorted({*trace.param_nodes} - {*other.param_nodes})
        if numbered and any(frame.dim is None and frame.name in plates.names for frame in frames):
            raise ValueError(
                f"the parameter {numbered[0]!r} is of a position in the batch, not of a datum: compute it from x or"
                f" take all data at a time (batch_size={total})"
            )


class _Alike(Messenger):
    """Gives all data of a batch the draws of its first datum, which are the same in each run.

    Arguments:
        names: the names of the plates over the data.
    """

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names
        self.draws: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        axes = [frame.dim for frame in msg["cond_indep_stack"] if frame.name in self.names and frame.dim is not None]
        if msg["is_observed"] or not axes or type(msg["fn"]).__name__ == "_Subsample":
            return
        value, axis = msg["value"], axes[0] - msg["fn"].event_dim
        if value.dim() >= -axis:
            msg["value"] = self.draws.setdefault(msg["name"], value.narrow(axis, 0, 1)).expand_as(value).clone()


def check_alike(
    run: Callable[[Batch], tuple[Trace, Trace]], batch: Batch, plates: DataPlates, count: int, total: int
) -> None:
    """Refuse programs that compute something else for each position in the batch, as batches are shuffled.

    Such programs take labels or other values from outside the batch. On copies of one datum, with equal draws, the
    log-probabilities of all data must be equal, unless the programs have noise of their own.

    Arguments:
        run: returns the traces of the model and the guide on a batch.
        batch: some data of a batch, whose tensors all count the data in their first dimension.
        plates: the plates over the data.
        count: the number of data of the batch.
        total: the number of all data.

    Raises:
        ValueError: with the first site whose log-probabilities depend on the position.
    """
    copies = map_tensors(lambda part: part[:1].expand_as(part).clone(), batch)
    try:
        with seeded(0, tensors_of(batch)[0].device), _Alike(plates.names):
            here, again = (_log_probs(run(copies), plates) for _ in range(2))
    except Exception:  # the programs take no equal data, or no other draws, such as those of a flow without an inverse
        return
    for key, found in here.items():
        error = 1e-3 if torch.finfo(found.dtype).bits > 16 else 0.1  # of equal data, by the rounding of their sums
        own_noise = key not in again or not torch.allclose(found, again[key], error, error)
        if found.isfinite().all() and not own_noise and not torch.allclose(found, found[:1], error, error):
            fix = f"fit(model, guide, (x, values), ...), or {_or_else(count, total)}"
            raise ValueError(
                f"site {key[1]!r} has different log-probabilities for equal data at different positions in the batch,"
                f" so labels or other values come from outside the batch: give them with the data, {fix}"
            )


def _log_probs(traces: tuple[Trace, Trace], plates: DataPlates) -> dict[tuple[int, str], Tensor]:
    """Return the log-probabilities of the sites in plates over the data, with the dimension of the plate first."""
    found: dict[tuple[int, str], Tensor] = {}
    for program, trace in enumerate(traces):
        trace.compute_log_prob()
        for name, site in trace.nodes.items():
            for frame in site.get("cond_indep_stack", ()) if "log_prob" in site else ():
                value = site["log_prob"]
                if frame.name in plates.names and frame.dim is not None and value.dim() >= -frame.dim:
                    found[program, name] = value.movedim(frame.dim, 0)
    return found


def _observations(trace: Trace, plates: DataPlates) -> dict[str, Tensor]:
    """Return the observations of the sites in plates over the data, with the dimension of the plate first."""
    found: dict[str, Tensor] = {}
    one_by_one: dict[int, list[tuple[str, Tensor]]] = {}
    for name in trace.observation_nodes:
        site = trace.nodes[name]
        value = torch.as_tensor(site["value"]).nan_to_num(7.0)  # any number, as NaN is not equal to NaN
        for frame in [frame for frame in site["cond_indep_stack"] if frame.name in plates.names]:
            if frame.dim is None:
                one_by_one.setdefault(frame.counter, []).append((name, value))
                continue
            axis = frame.dim - site["fn"].event_dim
            if value.dim() >= -axis and value.shape[axis] == frame.size:
                found[name] = value.movedim(axis, 0)
    for sites in zip(*one_by_one.values(), strict=False):  # the same site of each datum
        if len({value.shape for _, value in sites}) == 1:
            found[sites[0][0]] = torch.stack([value for _, value in sites])
    return found
