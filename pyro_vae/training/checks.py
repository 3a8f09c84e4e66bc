"""Checks before the first step, and what they find out about the programs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, RenyiELBO, TraceGraph_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from torch import Tensor

from pyro_vae.arguments import above, as_function, as_number, as_size
from pyro_vae.data import total_of
from pyro_vae.data.batch import arguments, tensors_of
from pyro_vae.distributions.kl import kl_or_none
from pyro_vae.distributions.wrappers import family
from pyro_vae.objectives import (
    Beta,
    DataPlates,
    Objective,
    check_beta,
    check_per_datum,
    made_for,
    runs_side_by_side,
    trained_by,
    with_plates,
)
from pyro_vae.objectives._objective import copy_of
from pyro_vae.programs import check_points, check_programs, mode, paired_traces, seeded
from pyro_vae.programs.supports import support_of
from pyro_vae.programs.traces import filled, probe, reason_of
from pyro_vae.runtime.changes import Changes
from pyro_vae.runtime.distributed import Ranks
from pyro_vae.runtime.engine import ENGINES
from pyro_vae.runtime.memory import as_bytes
from pyro_vae.runtime.precision import check_precision
from pyro_vae.training.batches import Batches
from pyro_vae.training.descriptions import described_data
from pyro_vae.training.guards import GUARDS
from pyro_vae.training.history import Measure
from pyro_vae.training.optimizers import check_factory
from pyro_vae.training.programs import Programs

REFUSED_LOSSES = (
    *[cls for name, cls in vars(pyro.infer).items() if name.startswith("JitTrace")],  # draw their traces only once
    RenyiELBO,  # a KL weight changes its bound without a word: take objectives.Renyi
)


def check_arguments(
    loss: ELBO, beta: Beta, memory: int | str | None, optimizer: Any, patience: int | None, validation: Any
) -> None:
    """Refuse arguments of `fit` that do not fit each other, before any work.

    Raises:
        TypeError, ValueError: with what was received and the fix.
    """
    check_loss(loss, beta, memory)
    check_factory(optimizer)
    check_patience(patience, validation)


def check_ranks(ranks: Ranks, batches: Batches, test: Any, **settings: Any) -> None:
    """Refuse several processes whose data or settings differ.

    Raises:
        ValueError: with the first difference, on all ranks.
    """
    if ranks.size > 1:
        data = {"data": (described_data(batches.x), batches.digest), "validation": described_data(test)}
        ranks.check_same(settings | data)


def check_loss(loss: ELBO, beta: Beta, memory: int | str | None = None) -> None:
    """Refuse a loss that `fit` cannot minimize with this KL weight and memory limit.

    Raises:
        TypeError, ValueError: with what was received and the fix.
    """
    if not isinstance(loss, ELBO) or isinstance(loss, REFUSED_LOSSES):
        raise TypeError(
            f"loss must be an ELBO such as Trace_ELBO(), objectives.IWAE(5) or objectives.Renyi(0.5), not {loss!r}"
        )
    check_per_datum(loss)
    if callable(beta):
        as_function(beta, "beta", "the step")
    # TraceTMC_ELBO would sum weights to the power of beta, which is another bound.
    weighs_kl = loss.weighs_kl if isinstance(loss, Objective) else not isinstance(loss, TraceTMC_ELBO)
    if not weighs_kl and (callable(beta) or beta != 1):
        raise ValueError(f"{type(loss).__name__} has no KL to weigh: leave beta at 1, or take Trace_ELBO")
    trained_by(loss)  # which refuses what cannot be trained
    if memory is not None and not isinstance(loss, Objective):
        raise ValueError(f"memory limits the particles of objectives such as IWAE, not those of {type(loss).__name__}")
    if memory is not None:
        as_bytes(memory)


TAKEN = {
    "schedule": ["the optimizer"],
    "transform": ["a batch"],
    "count": ["a batch"],
    "on_step": ["the step", "its loss"],
    "on_epoch": ["the row of an epoch"],
}


def check_functions(**functions: Any) -> None:
    """Refuse an optional argument that is not a function, or not one of what it is called with.

    Raises:
        TypeError: with the value received.

    Example:
        >>> check_functions(transform=None, on_step=3)
        Traceback (most recent call last):
        ...
        TypeError: on_step must be a function or a class, not 3
    """
    for name, function in functions.items():
        if function is not None:
            as_function(function, name, *TAKEN.get(name, ()))


def check_patience(patience: int | None, validation: Any) -> None:
    """Refuse a patience that is not a number of epochs, or that comes without validation data.

    Raises:
        TypeError, ValueError: with the fix.

    Example:
        >>> check_patience(3, None)
        Traceback (most recent call last):
        ...
        ValueError: patience needs the test loss: give validation data, or leave patience out
    """
    if patience is not None:
        as_size(patience, "patience")
        if validation is None:
            raise ValueError("patience needs the test loss: give validation data, or leave patience out")


def check_before(
    programs: Programs, batches: Batches, measure: Measure, loss: ELBO, seed: int
) -> tuple[DataPlates, ELBO]:
    """Check that the programs fit each other and all data.

    Arguments:
        programs: the model and the guide.
        batches: the data.
        measure: with the test data, if any.
        loss: the objective.
        seed: of the noise of the checks.

    Returns:
        The programs' plates over the data, and the objective, which now knows how deep the plates are nested.

    Raises:
        TypeError, ValueError: with what does not fit and the fix.
    """
    x, transform = batches.x, batches.transform
    if any(part.requires_grad for part in tensors_of(x[:1])):
        raise ValueError("the data require a gradient, which no step would use: give x.detach()")
    size = max(1, min(batches.size, len(x) // batches.ranks.size))
    with _evaluating(programs, batches, seed):
        plates = check_programs(*programs.given, x, transform, size)
        plates.check_size(total_of(x))
        plates.check_objective(loss)
        check_rounded(programs, batches, loss)
        if isinstance(loss, TraceGraph_ELBO):
            check_baselines(programs, batches, plates)
        if measure.test is not None:
            size = measure.settings["batch_size"]
            check_programs(*programs.given, measure.test, transform, size, " of the validation data")
    with _evaluating(programs, batches, seed), _away_from_0(programs, batches, loss):
        loss = made_for(loss, programs.model, programs.guide, batches.structures(), batches.count)
    with _evaluating(programs, batches, seed):
        loss = with_plates(loss, programs.model, programs.guide, x[: batches.size], transform)
    check_last_batch(programs, batches)
    return plates, loss


def check_rounded(programs: Programs, batches: Batches, loss: ELBO) -> None:
    """Refuse rounded draws that carry a gradient, but whose densities have none: it would leave out the KL.

    Raises:
        ValueError: with the site and the distribution.
    """
    if not getattr(loss, "pathwise", True):
        return  # draws carry no gradient
    with torch.no_grad():  # a transform of the data may do otherwise in training
        pair = probe(*programs.given, batches.transformed(filled(batches.x[: batches.size])))
    for name in pair[1].stochastic_nodes:
        fn, prior = pair[1].nodes[name]["fn"], pair[0].nodes.get(name)
        support = support_of(fn)
        if not (fn.has_rsample and support is not None and support.is_discrete):
            continue
        if isinstance(loss, TraceMeanField_ELBO) and prior and kl_or_none(fn, prior["fn"]) is not None:
            continue
        for site in (trace.nodes[name] for trace in pair if name in trace.nodes):
            value = site["value"].detach().requires_grad_()
            with torch.enable_grad():
                log_prob = site["fn"].log_prob(value).sum()
            if not log_prob.requires_grad or torch.autograd.grad(log_prob, value, allow_unused=True)[0] is None:
                raise ValueError(
                    f"{family(site['fn'])} at site {name!r} has no gradient by its value, so that rounded draws of the"
                    " guide would be trained without the KL: take OneHotCategorical and StraightThroughGumbelSoftmax of"
                    " pyro_vae.distributions, or TraceMeanField_ELBO where the KL has a closed form"
                )


def check_baselines(programs: Programs, batches: Batches, plates: DataPlates) -> None:
    """Refuse batches of several sizes for the running means of ``TraceGraph_ELBO``, one for each place in a batch.

    Raises:
        ValueError: with the site and the sizes.
    """
    sizes = batches.sizes()
    if len(sizes) == 1:
        return
    with torch.no_grad():
        _, guide_trace = probe(*programs.given, batches.transformed(filled(batches.x[: batches.size])))
    for name in guide_trace.stochastic_nodes:
        site = guide_trace.nodes[name]
        averages = site["infer"].get("baseline", {}).get("use_decaying_avg_baseline")
        if averages and plates.names & {frame.name for frame in site["cond_indep_stack"]}:
            raise ValueError(
                f"use_decaying_avg_baseline of site {name!r} has a mean for each place in a batch, so that all batches"
                f" need one size, but {min(sizes)} and {max(sizes)} occur: take a batch_size that divides"
                f" {len(batches.x)}, a DataLoader with drop_last=True, or an nn_baseline"
            )


@contextmanager
def _away_from_0(programs: Programs, batches: Batches, loss: ELBO) -> Iterator[None]:
    """Move parameters that are 0, such as a gate or the last layer of a block: they hide what lies before them."""
    zeros: list[Tensor] = []
    with torch.no_grad():
        if runs_side_by_side(loss):
            args, kwargs = arguments(batches.first())
            paired_traces(programs.model, programs.guide, *args, **kwargs)  # which meets the parameters
            zeros = [each for each in programs.parameters if each.is_floating_point() and not each.any()]
        before = [each.clone() for each in zeros]
        try:
            for each in zeros:
                each.normal_(std=0.1)
            yield
        finally:
            for each, value in zip(zeros, before, strict=True):
                each.copy_(value)


def fit_to_memory(loss: Any, memory: int | str | None, programs: Programs, batches: Batches, seed: int) -> ELBO:
    """Return an objective that takes its particles in chunks that fit the memory, if there is a limit."""
    fitted: ELBO = copy_of(loss)
    if memory is None:
        return fitted
    with seeded(seed, batches.x.device):
        fitted.chunk = loss.chunk_within(as_bytes(memory), programs.model, programs.guide, batches.first())
    return fitted


def meet_parameters(programs: Programs, batches: Batches, seed: int) -> Callable[[], None]:
    """Run the programs once to collect their parameters, and give every rank the values of rank 0.

    Returns:
        A function to call after each epoch. It checks that points which the guide draws, such as those of
        ``AutoDelta``, are still in the model's support.
    """
    with _evaluating(programs, batches, seed), programs.watched(), torch.no_grad():
        first = batches.first()
        for batch in batches.structures():
            args, kwargs = arguments(batch)
            paired_traces(programs.model, programs.guide, *args, **kwargs)
        bounded = check_points(*programs.given, first)
    named = programs.local.names, programs.parameters, "the parameters of their programs"
    batches.ranks.check_parameters(*named, "let each process run the same programs")
    batches.ranks.broadcast(programs.tensors)

    def check() -> None:
        with _evaluating(programs, batches, seed):
            check_points(*programs.given, first)

    return check if bounded else lambda: None


@contextmanager
def _evaluating(programs: Programs, batches: Batches, seed: int) -> Iterator[None]:
    """Draw noise of a seed, with the modules in evaluation mode."""
    with seeded(seed, batches.x.device), mode(False, *programs.given):
        yield


def check_last_batch(programs: Programs, batches: Batches) -> None:
    """Refuse a batch size whose last batch has a single datum, if the programs do not take one.

    They may need its variance, as batch normalization does, or lose a dimension, as by ``squeeze()``.

    Arguments:
        programs: the model and the guide.
        batches: the data.

    Raises:
        ValueError: with the sizes.
    """
    x, whole, last = batches.x, batches.size * batches.ranks.size, min(batches.sizes())
    if last // batches.ranks.size > 1:
        return
    error = _failure(programs, batches, 1)
    if error and not _failure(programs, batches, 2):  # otherwise one datum is not the reason
        fix = f"{len(x)} data in batches of {whole} leave a last batch of {last}: take another batch_size"
        needs_more = "more than 1 value per channel" in str(error)
        reason = "cannot be normalized (BatchNorm in training)" if needs_more else f"fails: {reason_of(error)}"
        raise ValueError(f"a batch of one datum {reason}; {fix}") from error


def _failure(programs: Programs, batches: Batches, count: int) -> Exception | None:
    """Return the error in which the programs end on the first data, if any, and leave no change."""
    x = batches.x
    with seeded(0, x.device), torch.no_grad(), Changes() as changes:
        try:
            for trace in probe(*programs.given, batches.transformed(filled(x[:count]))):
                trace.compute_log_prob()
        except (IndexError, RuntimeError, ValueError) as error:
            return error
        finally:
            changes.undo()
    return None


def check_settings(
    *,
    epochs: int,
    batch_size: int,
    beta: float = 1.0,
    clip_norm: float | None = None,
    lr: float = 1e-3,
    engine: str = "auto",
    precision: str = "32",
    on_nan: str = "stop",
    device: torch.device = torch.device("cpu"),  # noqa: B008 (never changed)
) -> None:
    """Refuse numbers of a training that are out of range.

    Arguments:
        epochs: at least 0.
        batch_size: at least 1.
        beta: at least 0 and finite.
        clip_norm: above 0, or None.
        lr: above 0 and finite.
        engine: one of ``pyro_vae.runtime.engine.ENGINES``.
        precision: one of ``pyro_vae.runtime.precision.PRECISIONS``, which the device has.
        on_nan: one of `pyro_vae.training.guards.GUARDS`.
        device: where the training will be.

    Raises:
        ValueError: with the value received.

    Example:
        >>> check_settings(epochs=1, batch_size=0)
        Traceback (most recent call last):
        ...
        ValueError: batch_size must be at least 1, not 0
    """
    as_size(epochs, "epochs", least=0)
    as_size(batch_size, "batch_size")
    if clip_norm is not None and not as_number(clip_norm, "clip_norm") > 0:
        raise ValueError(f"clip_norm must be above 0, not {clip_norm!r}")
    above(lr, 0, "lr")
    check_beta(beta)
    if engine not in ENGINES:
        raise ValueError(f"engine is one of {', '.join(ENGINES)}, not {engine!r}")
    if on_nan not in tuple(GUARDS):  # a list or a dict has no hash
        raise ValueError(f"on_nan is one of {', '.join(GUARDS)}, not {on_nan!r}")
    check_precision(precision, device)
