"""Checks whether the programs of a pair fit each other and the data."""

from itertools import islice

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import as_function
from pyro_vae.data import Ready, Rows, count_in, total_of
from pyro_vae.data.batch import Batch, are_rows, map_tensors, tensors_of
from pyro_vae.objectives import DataPlates, data_plates
from pyro_vae.programs.calls import Transform, check_calls, transformed
from pyro_vae.programs.handlers import Program
from pyro_vae.programs.indices import Indices, check_alike, check_positions
from pyro_vae.programs.modules import hold_longer, modules_of, reached
from pyro_vae.programs.sites import PyroDistributions, check_parts, check_sites
from pyro_vae.programs.traces import filled, in_one_line, probe, unchanged
from pyro_vae.programs.values import LARGEST_CHUNK, check_data, refuse_infinite, site_of_batch
from pyro_vae.vae import VAE

ALIKE = 100  # data at most in a check that all positions in a batch are treated alike


@torch.no_grad()
def check_programs(
    model: Program, guide: Program, x: Rows, transform: Transform | None = None, batch_size: int = 2, where: str = ""
) -> DataPlates:
    """Refuse programs that do not fit each other or the data, with the part and the fix.

    The programs run on a copy of the parameter store, so that the store itself does not change.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        x: all data, shape (N, \\*shape). NaN is accepted where the support of the model's site for x has it, as a
            missing entry (`pyro_vae.decoders.Masked`), and where the programs themselves leave it out.
        transform: a function that is applied to a batch before the programs see it, or None.
        batch_size: the number of data that the programs will see at a time.
        where: a text that follows the index of a datum in an error, such as " of the validation data".

    Returns:
        The programs' plates over the data.

    Raises:
        TypeError: for a part or a site that is a plain torch distribution, or no distribution.
        ValueError: for data that are not finite or outside the model's support, shapes that do not fit, a prior and an
            encoder on different supports, and sites or parameters that depend on how the data are split into batches.
    """
    for program in (model, guide):
        if isinstance(poutine.unwrap(program), VAE):
            raise TypeError("a VAE is not a program but holds two: give vae.model and vae.guide")
        if isinstance(poutine.unwrap(program), GuideMessenger):
            kind = type(poutine.unwrap(program)).__name__
            raise TypeError(
                f"{kind} runs the model itself and cannot be used as a guide here: take AutoNormal or another guide"
            )
    count_rows = count_in(x)
    first = x[:batch_size]
    count = count_rows(first)
    refuse_infinite(first, 0, where)
    first = filled(first)  # without missing entries, which some networks cannot take; they are checked below
    if transform is not None:
        as_function(transform, "transform", "a batch")
    with unchanged(first, "the transform changes"):
        batch = transformed(first, transform, count_rows)
    check_calls(batch, model, guide)
    called = {getattr(poutine.unwrap(program), "__func__", None) for program in (model, guide)}
    if called == {VAE.model, VAE.guide} and isinstance(batch, Tensor):  # others may use the parts in another way
        for vae in (module for module in modules_of(model, guide) if isinstance(module, VAE)):
            check_parts(vae, batch[:2])
    _check_names(model, guide)
    with pyro.validation_enabled(), PyroDistributions(), reached(model, guide):
        pair, other_pair, plates = _check_batch(model, guide, first, batch, x, transform)
        holds = site_of_batch(pair[0], batch)
        size = max(1, sum(part.numel() for part in tensors_of(first)) // count)
        most = max(1, min(10_000 if holds else 1_000, LARGEST_CHUNK // size))
        if not holds and (other_pair is None or plates.size > count):
            most = count  # the programs take no other number of data, or not more than their plate holds
        check_data(model, guide, x.split(most), transform, holds, count_rows, where)
        for rows in islice(x.structures(), 1, None) if isinstance(x, Ready) else ():
            further = transformed(filled(rows), transform, count_rows)
            found = _check_batch(model, guide, rows, further, x, transform, observing=False)
            plates = plates.joined(found[2])
    return plates


def _check_batch(
    model: Program,
    guide: Program,
    rows: Batch,
    batch: Batch,
    x: Rows,
    transform: Transform | None,
    *,
    observing: bool = True,
) -> tuple[tuple[Trace, Trace], tuple[Trace, Trace] | None, DataPlates]:
    """Check the programs on some rows, as the batch that they see; return their traces there and on another size."""
    count_rows = count_in(x)
    count, total = count_rows(batch), total_of(x)
    with Indices(tensors_of(batch)) as indices:
        pair = _first_traces(model, guide, batch, count)
    _check_names(model, guide)  # also of parameters that have just been made
    with in_one_line(batch):  # a prior that draws from the type of the batch
        check_sites(*pair, guide, batch, observing=observing)
    other, other_count = _of_another_size(x, rows, batch, transform)
    other_pair = None if other is None else _on_another_size(model, guide, other, count, other_count, total)
    plates = data_plates(pair, count, other_pair, other_count, total)
    if count < total:
        named_by_data = plates.size == count or plates.names <= indices.given
        _check_parameters(pair, other_pair or pair, 0 if named_by_data else plates.size, total)
    if are_rows(batch, count_rows) and count > 1 and (count < total or hold_longer(count, model, guide)):
        check_positions(pair, other_pair or pair, plates, count, total)  # the other one has no first datum
        few = map_tensors(lambda part: part[:ALIKE], batch)
        check_alike(lambda each: probe(model, guide, each), few, plates, count, total)
    indices.check(plates, count, total)
    return pair, other_pair, plates


def _of_another_size(x: Rows, rows: Batch, batch: Batch, transform: Transform | None) -> tuple[Batch, int]:
    """Return a batch with another number of data, and this number; None if there is none.

    It is the batch without its first datum, or a single datum twice. Ready batches can only be cut if the first
    dimension of all their tensors counts the data.
    """
    count = count_in(x)(batch)
    if are_rows(batch, count_in(x)):
        if count > 1:
            return map_tensors(lambda part: part[1:], batch), count - 1
        return map_tensors(lambda part: torch.cat([part, part]), batch), 2
    if isinstance(x, Ready) and (other := x.of_another_size(rows)) is not None:
        return transformed(other, transform, x.count), x.count(other)
    return None, count


def _check_names(*programs: Program) -> None:
    """Refuse parameters of a ``PyroModule`` that have the name of another parameter, because Pyro would join the two.

    The module would then use and train the other one's value, or never train its own.
    """
    if pyro.settings.get("module_local_params"):  # then Pyro does not join them
        return
    held = {name: value.unconstrained() for name, value in pyro.get_param_store().items()}
    for module in [module for owner in modules_of(*programs) for module in owner.modules()]:
        for name, parameter in module._parameters.items() if isinstance(module, PyroModule) else ():
            full_name = f"{module._pyro_name}.{name}".removeprefix(".").removesuffix("_unconstrained")
            if held.setdefault(full_name, parameter) is not parameter:
                kind = type(module).__name__
                stored = full_name in pyro.get_param_store()
                fix = "call pyro.clear_param_store() first" if stored else "name each, super().__init__('the name')"
                where = "in Pyro's parameter store, of another module or training" if stored else "in another module"
                raise ValueError(f"Pyro would join the parameter {full_name!r} of {kind} with that {where}: {fix}")


def _first_traces(model: Program, guide: Program, batch: Batch, count: int) -> tuple[Trace, Trace]:
    try:
        return probe(model, guide, batch)
    except ValueError as error:
        if "subsample_size does not match" not in str(error):
            raise
        raise ValueError(
            f"a plate of the programs does not have the size of its batch, {count}: give it the number of all data and"
            " subsample_size=len(x) in both programs, or lower the batch size"
        ) from error


def _on_another_size(
    model: Program, guide: Program, batch: Batch, count: int, other: int, total: int
) -> tuple[Trace, Trace] | None:
    """Run a pair of programs on a batch of another size; return None if they fail but get all data in one batch."""
    try:
        return probe(model, guide, batch)
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        if count == total:
            return None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the programs run on {count} data, but fail on {other} ({reason}): let them take any number, or all"
            f" {total} data at a time (batch_size={total})"
        ) from error


def _check_parameters(pair: tuple[Trace, Trace], other: tuple[Trace, Trace], size: int, total: int) -> None:
    """Refuse parameters for each datum of a batch, or of a scaled plate, where the next batch holds other data."""
    for trace, another in zip(pair, other, strict=True):
        for name in sorted({*trace.param_nodes} & {*another.param_nodes}):
            shapes = [each.nodes[name]["value"].shape for each in (trace, another)]
            if shapes[0] != shapes[1] or size in shapes[0][:1]:
                raise ValueError(
                    f"the parameter {name!r} of shape {tuple(shapes[0])} has an entry for each datum, but each batch"
                    f" holds other data, in any order: take all of them (batch_size={total}), compute it from x, or let"
                    f" the data hold the index of each datum, i, and give it to the plate, subsample=i"
                )
