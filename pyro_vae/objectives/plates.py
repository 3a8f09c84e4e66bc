"""The plates over the data of a pair of programs, and the sites outside them."""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO
from pyro.poutine.trace_struct import Trace

from pyro_vae.objectives._objective import Objective

Pair = tuple[Trace, Trace]


class DataPlates(NamedTuple):
    """The plates over the data of a pair of programs: their names, their size, and the sites outside them."""

    names: frozenset[str]
    size: int
    outside: tuple[str, ...]

    def joined(self, other: "DataPlates") -> "DataPlates":
        """Return these plates together with those of batches of another structure.

        Example:
            >>> labelled = DataPlates(frozenset({"labelled"}), 100, ("weights",))
            >>> DataPlates(frozenset({"data"}), 1000, ()).joined(labelled).size
            100
        """
        size = self.size if self.outside else other.size
        return DataPlates(self.names | other.names, size, tuple({*self.outside, *other.outside}))

    def check_size(self, total: int) -> None:
        """Refuse a number of data other than the size of the plates, if sites outside count once for all data.

        Raises:
            ValueError: for such a number; the message has both.

        Example:
            >>> DataPlates(frozenset({"data"}), 1000, ()).check_size(999)
        """
        if self.outside and self.size != total:
            raise ValueError(
                f"the plate over the data has size {self.size}, but there are {total} data, and site"
                f" {self.outside[0]!r} outside it counts once for all of them: give the plate the size {total}"
            )

    def check_objective(self, loss: ELBO) -> None:
        """Refuse an objective that weighs each datum of a batch, if the programs themselves take a part of the batch.

        Raises:
            ValueError: for such a pair; the message has the plate to take.

        Example:
            >>> from pyro.infer import Trace_ELBO
            >>> DataPlates(frozenset(), 1000, ()).check_objective(Trace_ELBO())
        """
        if isinstance(loss, Objective) and not self.names:
            raise ValueError(
                f"{type(loss).__name__} weighs each datum of a batch, but no plate of the programs holds them all: take"
                " pyro.plate('data', N, subsample_size=len(x)) in both programs, and batches of fit's (batch_size)"
            )


def share_of(traces: Sequence[Pair], count: int, plates: Collection[str]) -> float:
    """Return the batch's share of the data of the programs; an ELBO's value times this share is that of the batch.

    Under ``pyro.plate("data", N, subsample_size=B)`` Pyro scales the batch up to all N data, and counts sites outside
    the plate once for all N data.

    Arguments:
        traces: pairs of model trace and guide trace.
        count: B, the number of data of the batch.
        plates: names of the plates over the data.

    Returns:
        B / N; 1 if the plates are as large as the batch, or if there are none.

    Raises:
        ValueError: if the plates over the data differ in size.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro import poutine
        >>> def model():
        ...     with pyro.plate("data", 1000, subsample_size=10):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> trace = poutine.trace(model).get_trace()
        >>> share_of([(trace, trace)], 10, {"data"})
        0.01
    """
    return count / _size(traces, count, plates)


def _size(traces: Sequence[Pair], count: int, plates: Collection[str]) -> int:
    sites = [site for pair in traces for trace in pair for site in trace.nodes.values() if site["type"] == "sample"]
    sizes = {frame.full_size: site for site in sites for frame in site["cond_indep_stack"] if frame.name in plates}
    if len(sizes) > 1:
        (one, a), (other, b) = list(sizes.items())[:2]
        raise ValueError(
            f"the plates over the data must have one size, but that of site {a['name']!r} has {one} and that of site"
            f" {b['name']!r} {other}: take pyro.plate(..., {max(one, other)}, subsample_size=len(x)) in both programs"
        )
    return next(iter(sizes), count)


def data_plates(pair: Pair, count: int, other: Pair | None, other_count: int, total: int) -> DataPlates:
    """Find the plates over the data, which are those that are as long as any batch, and check the sites outside them.

    Arguments:
        pair: traces of the model and the guide on a batch.
        count: the size of the batch.
        other: their traces on a batch of another size; None if they take only all data together.
        other_count: the size of that batch.
        total: the number of all data.

    Returns:
        The plates, and the sites outside that do not grow with the batch.

    Raises:
        ValueError: if the plates differ in size; for sites that would count once per batch, sites outside a scaled
            plate that hold the batch, and scales in a program that depend on the batch size.
    """
    sites, others = _with_density(pair), _with_density(other or pair)
    alone = _of_length(sites, count)
    names = alone & _of_length(others, other_count) if other else alone
    if alone and not names and count < total:
        raise ValueError(
            f"the plate {min(alone)!r} has size {count} also on {other_count} data: let it have the size len(x), or"
            f" take all data at a time (batch_size={total})"
        )
    names = names or alone
    size = _size([pair], count, names)
    outside = {key: site for key, site in sites.items() if not names & {f.name for f in site["cond_indep_stack"]}}
    grown = {name for (program, name), site in outside.items() if _shape(site) != _shape(others.get((program, name)))}
    if other and grown and size != count:
        raise ValueError(
            f"site {min(grown)!r} holds the data of a batch, but stands outside the plate over the data, which has size"
            f" {size}: put it inside"
        )
    constant = sorted({name for _, name in outside} - (grown if other else set()))
    if constant and size == count < total:
        raise ValueError(
            f"site {constant[0]!r} stands outside the plate over the data, so that it would count once for each batch"
            f" of {count}, not once for all {total} data: take pyro.plate({min(names, default='data')!r}, {total},"
            " subsample_size=len(x)) in both programs"
        )
    if count < total:
        _check_scales(sites, count, others, other_count, total)
    return DataPlates(frozenset(names), size, tuple(constant))


def _check_scales(
    sites: dict[tuple[int, str], Any], count: int, others: dict[tuple[int, str], Any], other_count: int, total: int
) -> None:
    """Refuse scales that a program computes from the batch size; scales may change otherwise, as by a schedule."""
    for key in sorted(sites.keys() & others.keys()):
        here, there = _own_scale(sites[key]), _own_scale(others[key])
        if here != there and math.isclose(here * count, there * other_count, rel_tol=1e-5):
            raise ValueError(
                f"site {key[1]!r} has a scale of its own of {here:g} in a batch of {count}, and of {there:g} in one of"
                f" {other_count}, so that the bound would depend on the batch size: take pyro.plate(..., {total},"
                " subsample_size=len(x)) in both programs"
            )


def _own_scale(site: dict[str, Any]) -> float:
    """Return the factor by which a program scales a site, without that of its plates; NaN for one factor per datum."""
    scale = torch.as_tensor(site["scale"])
    by_plates = math.prod(frame.full_size / frame.size for frame in site["cond_indep_stack"])
    return scale.item() / by_plates if scale.numel() == 1 else math.nan


def _with_density(pair: Pair) -> dict[tuple[int, str], dict[str, Any]]:
    """Return the sites of a model and a guide that have a density, by program and name."""
    return {
        (program, name): trace.nodes[name]
        for program, trace in enumerate(pair)
        for name in [*trace.stochastic_nodes, *trace.observation_nodes]
        if not trace.nodes[name]["infer"].get("_deterministic")
    }


def _of_length(sites: dict[tuple[int, str], dict[str, Any]], count: int) -> set[str]:
    """Return the names of the plates of length ``count`` that contain sites."""
    return {frame.name for site in sites.values() for frame in site["cond_indep_stack"] if frame.size == count}


def _shape(site: dict[str, Any] | None) -> Any:
    return site and (site["fn"].batch_shape, torch.as_tensor(site["value"]).shape)
