"""Stochastic variational inference: one loop over a pair of Pyro programs."""

import copy
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceTMC_ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import Dataset

from pyro_vae.checkpoints import COLUMNS, Checkpoints, Stopped
from pyro_vae.data import Rows, shuffled_batches
from pyro_vae.distributed import Ranks
from pyro_vae.engine import (
    ENGINES,
    TRUSTED,
    Changes,
    Outputs,
    Recorded,
    WholeStep,
    chosen,
    import_tracers,
    root_of,
)
from pyro_vae.evaluation import Bound, mean_bound
from pyro_vae.finite import ON_NAN, Guard, norm_of
from pyro_vae.handlers import LocalModules, NoMeanError, weigh_kl
from pyro_vae.memory import as_bytes
from pyro_vae.networks import above, as_function, as_number, as_size
from pyro_vae.objectives import (
    Beta,
    Objective,
    check_beta,
    check_per_datum,
    terms_and_gradients,
    trained_by,
    with_plates,
)
from pyro_vae.precision import BETWEEN_FLUSHES, check_precision, flush_subnormal, layers_in
from pyro_vae.programs import (
    Program,
    Transform,
    as_input,
    as_seed,
    check_points,
    check_programs,
    mode,
    modules_of,
    paired_traces,
    seeded,
    transformed,
)
from pyro_vae.progress import Progress, described, described_data, described_programs, settings_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BETWEEN_LOOKS = 100  # steps of several processes, until each hears whether another is to stop
REFUSED_LOSSES = (
    *[cls for name, cls in vars(pyro.infer).items() if name.startswith("JitTrace")],  # draw their traces only once
    RenyiELBO,  # a KL weight changes its bound without a word: take objectives.Renyi
)
NOT_BY_EPOCH = (CyclicLR, OneCycleLR, ReduceLROnPlateau)  # by batch, or by a measure
Row = dict[str, float]
Optimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer | LRScheduler]


class History(list[Row]):
    """What `fit` measured: one row per epoch, epoch 0 being the state before the first step.

    Each row has the keys of ``pyro_vae.training.COLUMNS``. Losses are negative bounds in nats per datum, at KL weight
    1; the test columns are NaN without validation data. ``train_...`` are means over the epoch's steps (for epoch 0,
    an evaluation); ``seconds`` is the time that the epoch's steps took. ``engine`` says in a line how the steps were
    computed, and why.

    Example:
        >>> history = History([{"epoch": 0, "train_loss": 45.0}, {"epoch": 1, "train_loss": 30.0}])
        >>> history.column("train_loss")
        [45.0, 30.0]
    """

    engine: str = ""

    def column(self, name: str) -> list[float]:
        """Return one column, epoch by epoch."""
        return [row[name] for row in self]


def fit(
    model: Program,
    guide: Program,
    data: Tensor | Dataset[Any],
    *,
    loss: ELBO = Trace_ELBO(),  # noqa: B008 (never changed)
    optimizer: Optimizer = partial(torch.optim.Adam, lr=1e-3, fused=True),  # noqa: B008
    epochs: int = 10,
    batch_size: int = 128,
    seed: int = 0,
    validation: Tensor | Dataset[Any] | None = None,
    beta: Beta = 1.0,
    clip_norm: float | None = None,
    transform: Transform | None = None,
    engine: str = "auto",
    precision: str = "32",
    memory: int | str | None = None,
    fabric: "Fabric | None" = None,
    on_nan: str = "stop",
    checkpoints: Checkpoints | str | Path | None = None,
    resume: str | Path | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    on_epoch: Callable[[Row], None] | None = None,
) -> History:
    r"""Train a pair of Pyro programs on data by stochastic variational inference.

    .. math:: \min \; \frac{1}{N} \sum_n \mathbb{E}_{q(z|x_n)} [-\log p(x_n|z)]
              + \beta \, \mathrm{KL}(q(z|x_n) \,\|\, p(z))

    The parameters are those that the programs name by ``pyro.module`` and ``pyro.param``. A module's stay with the
    module; those of ``pyro.param`` stand in Pyro's parameter store afterwards. Data move to the device of the
    programs' module, and stay there; every step takes the mean over its batch, so that a learning rate does not
    depend on the batch size. Torch's random state is as before when `fit` returns.

    Arguments:
        model: the Pyro program of p(x, z), called with a batch; for a ``VAE``, ``vae.model``.
        guide: the Pyro program of q(z|x), called with a batch; for a ``VAE``, ``vae.guide``.
        data: a tensor whose first dimension counts the data, or a data set, which is read into memory once. A
            `pyro_vae.data.MemoryMapped` and an ``IterableDataset`` are read a batch at a time; the latter has its own
            order, and is not shuffled.
        loss: the objective, an ELBO of Pyro's or one of `pyro_vae.objectives`.
        optimizer: makes a torch optimizer from the parameters, or a scheduler of one, which steps after each epoch.
        epochs: passes over the data, at least 0.
        batch_size: data per step and process, at least 1; the last batch of an epoch may be smaller, and fewer data are
            one batch.
        seed: of the order of the data and of all noise.
        validation: data for the test columns.
        beta: the KL weight, at least 0, or a function from the step to it, such as
            `pyro_vae.objectives.linear_warm_up`.
        clip_norm: the largest norm of the gradient of all parameters together, above 0.
        transform: what is done to a batch before both programs see it, such as `pyro_vae.data.dynamic`.
        engine: "eager" runs the programs at every step. "recorded" runs them a few times and then replays their
            arithmetic, with the same result to the last bit, as long as the programs do the same at every step (see
            `pyro_vae.engine.Recorded`); it warns where a step cannot be recorded, and runs that eagerly. "compiled" has
            ``torch.compile`` make one kernel of many operations, which takes seconds, once, and agrees to a part in
            100,000; in 1,000 where particles are weighed, as their weights magnify rounding. "auto" records, without a
            warning, where that saves time and the programs consist of parts of this package and of torch, and never
            changes a digit. Programs and networks of your own may count or have schedules: they run eagerly under
            "auto".
        precision: "32", or "bf16-mixed", which computes the linear and convolutional layers of each step in bfloat16,
            all else and the evaluations in 32 bits (see `pyro_vae.precision.BFloat16Layers`).
        memory: how much the particles of a step may take, as a number of bytes or a text such as "2GB": from it the
            ``chunk`` of an objective of this package is chosen, which changes nothing but rounding, and the noise of a
            model that has its own. Chunks are not recorded.
        fabric: a launched ``lightning_fabric.Fabric``, for training on several processes: each calls `fit` with the
            same arguments, its programs on its own device. R processes cut each batch of R times ``batch_size`` into
            one part each, draw noise of their own, and end with the same parameters and the same history, that of
            one process with the whole batch. The buffers, such as the running means of a batch normalization, follow
            each rank's own parts, and are those of rank 0 from the end of each epoch.
        on_nan: what to do where a loss or a gradient is not finite, before it touches a parameter. "stop" raises an
            error that names the step and the first part that is not finite; "skip" leaves the batch out; "rollback"
            goes back to the parameters from the start of the epoch, and on with the next batch.
        checkpoints: a folder for checkpoints, or `pyro_vae.checkpoints.Checkpoints`, which says when one is written. A
            folder that holds the checkpoint of a training is refused, unless ``resume`` names it; so is one that
            another training writes to.
        resume: a folder that holds a checkpoint of a training with the same arguments, which is continued as if it had
            never been stopped, to the last bit on the same machine where the engine is not "compiled"; ``epochs`` may
            be more. Goes on writing checkpoints there, unless ``checkpoints`` names another folder.
        on_step: called after each step with its number and its loss, a tensor in nats per datum.
        on_epoch: called with each row of the history as it is measured.

    Returns:
        The history, from epoch 0, evaluated before the first step, to the last.

    Raises:
        TypeError: for a loss that is no ELBO, or a program that samples from a plain torch distribution.
        ValueError: for numbers out of range, data that are not finite or outside the support of the model, and
            programs whose sites do not fit each other or the data.
        FloatingPointError: where a step's loss or gradient is not finite; the parameters are those before the step.
            On a GPU this is found at the end of the epoch, if the optimizer is a fused one.
        ValueError: also where engine "recorded" or "compiled" finds that steps since its last check may be wrong; the
            checkpoint, if any, is of before.
        Stopped: after `Checkpoints.stop`.
        ConnectionError: where another process has ended, or has not answered for 5 minutes.

    Example:
        >>> from pyro_vae import VAE, data, decoders, encoders, priors
        >>> x = data.load("digits").train
        >>> vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
        >>> history = fit(vae.model, vae.guide, x, epochs=2)
        >>> history[2]["train_loss"] < history[0]["train_loss"]
        True

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, algorithm 1.
    """
    if not isinstance(loss, ELBO) or isinstance(loss, REFUSED_LOSSES):
        raise TypeError(
            f"loss must be an ELBO such as Trace_ELBO(), objectives.IWAE(5) or objectives.Renyi(0.5), not {loss!r}"
        )
    check_per_datum(loss)
    _check_factory(optimizer)
    saved = None if resume is None else Checkpoints(resume).read()
    keeper = _keeper(checkpoints, resume)
    ranks, local = Ranks(fabric), LocalModules()
    programs = model, guide
    model, guide = local(model), local(guide)
    beta_at = beta if callable(beta) else lambda _: beta
    x = as_input(data, model, guide)
    test = None if validation is None else as_input(validation, model, guide)
    # TraceTMC_ELBO would sum weights to the power of beta, which is another bound.
    weighs_kl = loss.weighs_kl if isinstance(loss, Objective) else not isinstance(loss, TraceTMC_ELBO)
    if not weighs_kl and (callable(beta) or beta != 1):
        raise ValueError(f"{type(loss).__name__} has no KL to weigh: leave beta at 1, or take Trace_ELBO")
    fixed = 1.0 if callable(beta) else beta
    check_settings(
        epochs=epochs,
        batch_size=batch_size,
        beta=fixed,
        clip_norm=clip_norm,
        engine=engine,
        precision=precision,
        on_nan=on_nan,
        device=x.device,
    )
    batch_size = min(batch_size, len(x))
    if memory is not None:
        if not isinstance(loss, Objective):
            raise ValueError(f"memory is for the particles of objectives such as IWAE, not {type(loss).__name__}'s")
        loss = copy.copy(loss)  # whose chunk is found below
    trained_by(loss)  # which refuses what cannot be trained

    def compute_eagerly(batch: Tensor, weight: Tensor | float) -> Outputs:
        with layers_in(precision):
            terms, gradients = objective(*weigh_kl(weight, model, guide), batch, weight, lambda: local.parameters)
        return *terms, norm_of(gradients), *gradients

    steps = epochs * math.ceil(len(x) / (batch_size * ranks.size))
    order = torch.Generator().manual_seed(as_seed(seed))
    history = History()
    buffers = [buffer for module in modules_of(model, guide) for buffer in module.buffers()]
    same = {
        "batch_size": batch_size,
        "seed": seed,
        "loss": _described_loss(loss),
        "beta": described(beta),
        "clip_norm": clip_norm,
        "transform": described(transform),
        "precision": precision,
        "processes": ranks.size,
    }
    called = *programs, transform, beta
    progress = Progress(history, modules_of(model, guide), local, order, x.device, ranks, same, called)
    if keeper:
        progress.as_given = described_programs(called, progress.values())

    with ExitStack() as stack, seeded(ranks.seed(seed), x.device), mode(True, model, guide):
        settings = {"loss": loss, "seed": seed, "transform": transform, "ranks": ranks}
        settings["batch_size"] = max(1000, batch_size)
        measure = partial(_test_columns, model, guide, test, settings)
        with pyro.validation_enabled():  # of all data and every distribution, so that the steps below need none
            with seeded(seed, x.device), mode(False, model, guide):
                plates = check_programs(*programs, x, transform, max(1, min(batch_size, len(x) // ranks.size)))
                plates.check_size(len(x))
                plates.check_objective(loss)
                if test is not None:
                    check_programs(*programs, test, transform, settings["batch_size"])
            settings["plates"] = plates.names
            with seeded(seed, x.device), mode(False, model, guide):
                loss = settings["loss"] = with_plates(loss, model, guide, x[:batch_size], transform)
            objective = terms_and_gradients(loss, plates.names)
            check_last_batch(model, guide, x, transform, batch_size, ranks)
            if memory is not None:
                rows = x[:batch_size]
                with seeded(seed, x.device):
                    batch = transformed(rows, transform)
                    loss.chunk = loss.chunk_within(as_bytes(memory), model, guide, batch)
            in_chunks = isinstance(loss, Objective) and loss.chunk < loss.num_particles
            unless = "the particles come in chunks, and a recording would hold them all" if in_chunks else ""
            # Weights of particles magnify the rounding of their logarithms, which are of hundreds of nats.
            weighs = isinstance(loss, Objective) and loss.num_particles > 1
            tolerance = 1e-2 if precision != "32" else 1e-3 if weighs else 1e-5
            compute, how = chosen(compute_eagerly, engine, steps, tolerance=tolerance, unless=unless)
            with seeded(seed, x.device), mode(False, model, guide), torch.no_grad():
                first = transformed(x[:batch_size], transform)
                paired_traces(model, guide, first)  # which meets the parameters
                bounded = check_points(*programs, first)
            ranks.broadcast([*local.parameters, *buffers])
            if keeper:
                progress.as_begun = described_programs(called, progress.values())
            if saved is None:
                history.append(_row(0, mean_bound(model, guide, x, **settings), measure(), 0.0))
        if on_epoch and saved is None:
            on_epoch(history[-1])
        if not local.parameters:
            raise ValueError("the programs have no parameters to train: name them by pyro.module or pyro.param")
        parameters = local.parameters
        optim, scheduler = made_by(optimizer, parameters)
        verify = compute.verify if isinstance(compute, Recorded) else lambda: None
        if keeper:
            stack.enter_context(_held(keeper, ranks))
            _keeper(checkpoints, resume)  # once more, as another training may have ended there meanwhile
            same |= {"data": described_data(x), "validation": described_data(test), "frozen": progress.frozen()}
            same |= _described_optimizer(optim, scheduler)
        if saved is not None and resume is not None:
            saved = Checkpoints(resume).read()  # once more, as above
            _step_by_epoch(scheduler, saved[1]["epoch"] - 1)
            progress.load(*saved, optim)
        if isinstance(compute, Recorded):
            compute.first = progress.step
        any_row = x[:1]
        guard = Guard(on_nan, model, guide, progress.values, optim, x.device)

        def save(keeper: Checkpoints) -> None:
            verify()
            state = progress.save(optim)
            if ranks.rank == 0:
                keeper.write(*state, progress.best)
            if ranks.any(keeper.stopping):
                raise Stopped(
                    f"stopped in epoch {progress.epoch}, before step {progress.step}; checkpoint: {keeper.last}"
                )

        def take_step(batch: Tensor, weight: Tensor | float, count: int) -> Tensor:
            nonlocal parameters
            outputs = compute(batch, weight)
            (value, *terms, norm), gradients, counted = ranks.combine(outputs[:5], outputs[5:], local.parameters, count)
            if len(local.parameters) > len(parameters):  # a program has met a new pyro.param
                ranks.broadcast(local.parameters[len(parameters) :])
                progress.add(local.parameters[len(parameters) :], optim)
                parameters = local.parameters
            where = f"epoch {progress.epoch}, step {progress.step}"
            if guard.passes(value, norm, counted, batch, gradients, where):
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                if clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
                optim.step()
                progress.count(terms, counted)
            return value.detach() / counted

        step: Callable[[Tensor, Tensor | float, int], Tensor] = take_step
        if isinstance(compute, Recorded) and compute.compiled and guard.failed is not None and ranks.size == 1:
            changed = [progress.totals, guard.failed]
            step = WholeStep(take_step, compute, optim, lambda: [*progress.values().values(), *changed])

        while progress.epoch <= epochs:
            start = time.perf_counter() - progress.seconds
            guard.begin_epoch()
            with pyro.validation_enabled(False):
                batches = shuffled_batches(x, batch_size * ranks.size, order, ranks.part)
                for rows in islice(batches, progress.batches, None):
                    count = len(rows)
                    rows = rows if count else any_row  # a step like those of the other ranks, which counts for nothing
                    batch = transformed(rows, transform)
                    weight = check_beta(beta_at(progress.step))
                    input_weight = torch.full((), weight, dtype=x.dtype, device=x.device) if callable(beta) else weight
                    guard.begin_step()
                    mean_loss = step(batch, input_weight, count)
                    progress.step += 1
                    progress.batches += 1
                    if progress.step % BETWEEN_FLUSHES == 0:
                        flush_subnormal(optim)
                    if on_step:
                        on_step(progress.step - 1, mean_loss)
                    if keeper and (ranks.size == 1 or progress.step % BETWEEN_LOOKS == 0):
                        due = ranks.rank == 0 and keeper.due(at_end_of_epoch=False)
                        if ranks.any(due or keeper.stopping):
                            progress.seconds = time.perf_counter() - start
                            save(keeper)
                guard.end_epoch(progress.epoch, progress.totals[3])
                if bounded:
                    with seeded(seed, x.device), mode(False, model, guide):
                        check_points(*programs, first)
                ranks.broadcast(buffers)
                seconds = time.perf_counter() - start
                history.append(_row(progress.epoch, Bound(*progress.means()), measure(), seconds))
            progress.keep_best()
            progress.begin_epoch()
            _step_by_epoch(scheduler, 1)
            if on_epoch:
                on_epoch(history[-1])
            if keeper:
                due = ranks.rank == 0 and keeper.due(at_end_of_epoch=True)
                if ranks.any(due or keeper.stopping or progress.epoch > epochs):
                    save(keeper)
        verify()
    history.engine = how()
    return history


def _keeper(checkpoints: Checkpoints | str | Path | None, resume: str | Path | None) -> Checkpoints | None:
    """Return where checkpoints go, but refuse a folder that holds those of another training."""
    given = resume if checkpoints is None else checkpoints
    keeper = given if given is None or isinstance(given, Checkpoints) else Checkpoints(given)
    if keeper and keeper.last.exists() and (resume is None or keeper.folder.resolve() != Path(resume).resolve()):
        fix = f"continue it by resume={str(keeper.folder)!r}, or give another folder"
        raise ValueError(f"{keeper.folder} already holds the checkpoint of a training: {fix}")
    return keeper


@contextmanager
def _held(keeper: Checkpoints, ranks: Ranks) -> Iterator[None]:
    """Keep other trainings from the folder of the checkpoints, by rank 0."""
    with ExitStack() as stack:
        ranks.together(lambda: stack.enter_context(keeper.held()) if ranks.rank == 0 else None)
        yield


def check_last_batch(
    model: Program, guide: Program, x: Rows, transform: Transform | None, batch_size: int, ranks: Ranks
) -> None:
    """Refuse a batch size that leaves a batch normalization a single datum, of which there is no variance.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        x: all data.
        transform: what is done to a batch before the programs see it.
        batch_size: data per step and process.
        ranks: the processes.

    Raises:
        ValueError: with the sizes.
    """
    whole = batch_size * ranks.size
    last = (len(x) - 1) % whole + 1
    modules = [module for owner in modules_of(model, guide) for module in owner.modules()]
    if last // ranks.size > 1 or not any(isinstance(module, _BatchNorm) for module in modules):
        return
    with seeded(0, x.device), torch.no_grad(), Changes() as changes:
        try:
            paired_traces(model, guide, transformed(x[:1], transform))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            fix = f"{len(x)} data in batches of {whole} leave a last one of {last}: take another batch_size"
            raise ValueError(f"a batch of one datum cannot be normalized (BatchNorm in training); {fix}") from error
        finally:
            changes.undo()


def _check_factory(optimizer: Any) -> None:
    if isinstance(optimizer, PyroOptim | torch.optim.Optimizer | LRScheduler):
        named = getattr(optimizer, "pt_optim_constructor", type(optimizer))
        kind = f"{'one of pyro.optim: ' if isinstance(optimizer, PyroOptim) else 'a made '}{named.__name__}"
        such = "a torch optimizer from the parameters, such as partial(torch.optim.Adam, lr=1e-3)"
        raise TypeError(f"optimizer must be a function that makes {such}, not {kind}")
    as_function(optimizer, "optimizer")


def made_by(optimizer: Optimizer, parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
    """Have a torch optimizer, and its scheduler if any, made from the parameters, or refuse what `fit` cannot use.

    Arguments:
        optimizer: what `fit` takes.
        parameters: what it is to train.

    Returns:
        The optimizer, and the scheduler or None.

    Raises:
        TypeError, ValueError: with what was received and the fix.

    Example:
        >>> made_by(lambda parameters: None, [torch.zeros(1, requires_grad=True)])
        Traceback (most recent call last):
        ...
        TypeError: optimizer must return a torch optimizer, as partial(torch.optim.Adam, lr=1e-3) does, not None
    """
    such = "a torch optimizer, as partial(torch.optim.Adam, lr=1e-3) does"
    import_tracers()
    made = optimizer(parameters)
    scheduler = made if isinstance(made, LRScheduler) else None
    optim = scheduler.optimizer if scheduler else made
    name = type(scheduler or optim).__name__
    if not isinstance(optim, torch.optim.Optimizer):
        raise TypeError(f"optimizer must return {such}, not {'None' if made is None else f'a {name}'}")
    if isinstance(scheduler, NOT_BY_EPOCH):
        raise ValueError(f"{name} does not step once an epoch, as fit does: take LambdaLR, or set the rate in on_step")
    closure = inspect.signature(optim.step).parameters.get("closure")
    if isinstance(optim, torch.optim.SparseAdam) or (closure and closure.default is closure.empty):
        needs = "sparse gradients" if isinstance(optim, torch.optim.SparseAdam) else "several evaluations of a loss"
        raise ValueError(f"{name} needs {needs}, which a step here does not give: take torch.optim.Adam")
    own = {id(parameter) for group in optim.param_groups for parameter in group["params"]}
    if own.isdisjoint(map(id, parameters)):
        raise ValueError(
            f"the {name} holds none of the programs' parameters: make it from those that it is called with"
        )
    return optim, scheduler


def _step_by_epoch(scheduler: LRScheduler | None, epochs: int) -> None:
    """Bring a scheduler, if there is one, to where it is so many epochs later."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of")  # of a resumed training: its steps were taken before
        for _ in range(epochs if scheduler else 0):
            scheduler.step()  # type: ignore[union-attr]


def _described_loss(loss: ELBO) -> str:
    name = type(loss).__name__
    if isinstance(loss, Objective) and root_of(type(loss)) in TRUSTED:
        return repr(loss)
    return f"{name}({loss.num_particles}) {described(loss).removeprefix(f'{type(loss).__qualname__} ')}"


def _described_optimizer(optim: torch.optim.Optimizer, scheduler: LRScheduler | None) -> dict[str, Any]:
    """Return the settings of an optimizer and its scheduler as they begin, one by one."""
    groups = [settings_of(group) for group in optim.param_groups]
    values = {f"optimizer {name}": [group.get(name) for group in groups] for name in groups[0]}
    same = {name: value[0] if len(value) == 1 else value for name, value in values.items()}
    schedule = described(_schedule(scheduler)).replace("list", type(scheduler).__name__) if scheduler else None
    kind = type(optim).__name__ if root_of(type(optim)) in TRUSTED else described(type(optim))
    return {"optimizer": kind, "scheduler": schedule, **same}


def _schedule(scheduler: LRScheduler) -> list[Any]:
    """Return what a scheduler computes with, and what those that it is made of do."""
    parts = map(_schedule, getattr(scheduler, "_schedulers", ()))
    return [type(scheduler), scheduler.state_dict(), getattr(scheduler, "lr_lambdas", None), *parts]


def _test_columns(
    model: Program, guide: Program, test: Rows | None, settings: dict[str, Any]
) -> tuple[float, float, float, float]:
    if test is None:
        return math.nan, math.nan, math.nan, math.nan
    at_sample = mean_bound(model, guide, test, **settings)
    try:
        return *at_sample, mean_bound(model, guide, test, at="mean", **settings).loss
    except NoMeanError:
        return *at_sample, math.nan


def _row(epoch: int, train: Bound, test: tuple[float, float, float, float], seconds: float) -> Row:
    return dict(zip(COLUMNS, (epoch, *train, *test, seconds), strict=True))


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
        engine: one of ``pyro_vae.engine.ENGINES``.
        precision: one of ``pyro_vae.precision.PRECISIONS``, which the device has.
        on_nan: one of `ON_NAN`.
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
    if on_nan not in ON_NAN:
        raise ValueError(f"on_nan is one of {', '.join(ON_NAN)}, not {on_nan!r}")
    check_precision(precision, device)
