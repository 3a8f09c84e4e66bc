"""Stochastic variational inference on a pair of Pyro programs."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from pyro.optim import PyroOptim

from pyro_vae.data import Ready
from pyro_vae.data.arrays import check_columns
from pyro_vae.data.batch import Count
from pyro_vae.data.scales import check_one_scale
from pyro_vae.objectives import Beta
from pyro_vae.programs import Program, Transform, as_input, as_seed, mode, seeded
from pyro_vae.runtime.checkpoints import Checkpoints
from pyro_vae.runtime.distributed import Ranks
from pyro_vae.runtime.engine import chosen
from pyro_vae.training.baselines import own_baselines
from pyro_vae.training.batches import Batches
from pyro_vae.training.callbacks import watched
from pyro_vae.training.checks import (
    check_arguments,
    check_before,
    check_functions,
    check_ranks,
    check_settings,
    fit_to_memory,
    meet_parameters,
)
from pyro_vae.training.descriptions import described, described_data, described_loss
from pyro_vae.training.guards import guard_of
from pyro_vae.training.history import History, Measure, OnEpoch, OnStep
from pyro_vae.training.loggers import Progress, both
from pyro_vae.training.loop import goes_on, interruptible, train
from pyro_vae.training.optimizers import (
    Groups,
    Optimizer,
    described_optimizer,
    made_by,
)
from pyro_vae.training.programs import Programs
from pyro_vae.training.saving import NoSaver, Saver, as_checkpoints, checkpoint_of, held
from pyro_vae.training.schedules import Factory, schedule_of
from pyro_vae.training.state import State
from pyro_vae.training.step import Estimator, Step, as_graph, as_schedule, begin_at
from pyro_vae.training.together import together

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fit(
    model: Program,
    guide: Program,
    data: Any,
    *,
    loss: ELBO = Trace_ELBO(),  # noqa: B008 (never changed)
    optimizer: Optimizer | Groups | PyroOptim | torch.optim.Optimizer = partial(  # noqa: B008
        torch.optim.Adam, lr=1e-3, fused=True
    ),
    epochs: int = 10,
    batch_size: int = 128,
    seed: int = 0,
    validation: Any = None,
    beta: Beta = 1.0,
    schedule: Factory | None = None,
    patience: int | None = None,
    clip_norm: float | None = None,
    transform: Transform | None = None,
    count: Count | None = None,
    engine: str = "auto",
    precision: str = "32",
    memory: int | str | None = None,
    fabric: "Fabric | None" = None,
    on_nan: str = "stop",
    checkpoints: Checkpoints | str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = False,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> History:
    r"""Train a pair of Pyro programs on data by stochastic variational inference.

    .. math:: \min \; \frac{1}{N} \sum_n \mathbb{E}_{q(z|x_n)} [-\log p(x_n|z)]
              + \beta \, \mathrm{KL}(q(z|x_n) \,\|\, p(z))

    The parameters are those that the programs name by ``pyro.module`` and ``pyro.param``. A module keeps its own; those
    of ``pyro.param`` are in Pyro's parameter store afterwards. Data move to the device of the programs' modules, and
    stay there. Each step takes the mean over its batch, so that a learning rate does not depend on the batch size.
    Torch's random state is as before when `fit` returns.

    Arguments:
        model: the Pyro program of p(x, z), called with a batch; for a ``VAE``, ``vae.model``.
        guide: the Pyro program of q(z|x), called with a batch; for a ``VAE``, ``vae.guide``.
        data: what the programs are called with, a batch at a time. With a tensor ``x``, whose first dimension counts
            the data, they are called as ``model(x)``; with a tuple or a list of tensors, such as ``(x, y)``, as
            ``model(x, y)``; with a dict, such as ``{"x": x, "y": y}``, as ``model(x=x, y=y)``. A data set of any of
            these is read into memory once; an ``IterableDataset`` is read one batch at a time, in its own order. A
            ``DataLoader``, or another iterable of ready batches, is used as it comes, and ``batch_size`` has no effect
            on it. If a data set or a loader gives several parts, such as (image, label), but the programs take one
            argument, only the first part is used, and a warning says so. A tensor by itself is cast to the type of the
            programs; of several parts, integers keep their type and floating-point parts are cast.
        loss: the objective, an ELBO of Pyro's or one of `pyro_vae.objectives`.
        optimizer: a class of ``torch.optim``, or another function that makes a torch optimizer from the parameters;
            `pyro_vae.training.Groups`, whose settings depend on the parameters' names; an optimizer that you have made
            from parameters of the programs, which trains only these; or an optimizer of ``pyro.optim``, whose class,
            settings and clipping are used. The gradient is that of the mean over the batch (``pyro.infer.SVI`` takes
            the sum).
        epochs: number of passes over the data, at least 0.
        batch_size: number of data per step and process, at least 1. The last batch of an epoch may be smaller; if there
            are fewer data than this, all of them are one batch.
        seed: random seed for shuffling and sampling.
        validation: data on which the bound is measured after each epoch, for the test columns of the history.
        beta: the KL weight, at least 0, or a function from the step to it, such as
            `pyro_vae.objectives.linear_warm_up`.

    Other Arguments:
        schedule: a function from the optimizer to a scheduler of ``torch.optim.lr_scheduler``, such as
            ``partial(CosineAnnealingLR, T_max=10)``. It steps after each epoch; ``OneCycleLR``, ``CyclicLR`` and a
            `pyro_vae.training.PerStep` step after each step. ``ReduceLROnPlateau`` gets the test loss, or the training
            loss if there is no validation data.
        patience: stop after this many epochs without a lower test loss, at least 1, and restore the parameters of the
            best epoch; needs ``validation``.
        clip_norm: if the norm of the gradient of all parameters together is larger than this, the gradient is scaled
            down to it; above 0.
        transform: a function that is applied to each batch before both programs see it, such as
            `pyro_vae.data.dynamic`.
        count: a function that returns the number of data of a ready batch; by default it is the first dimension of the
            batch's first tensor.
        engine: "eager" runs the programs at every step. "recorded" runs them a few times and then replays their
            arithmetic, with the same result to the last bit, as long as the programs do the same at every step (see
            `pyro_vae.runtime.recording.Recorded`). A step that cannot be recorded runs eagerly, with a warning.
            "compiled" lets ``torch.compile`` fuse the recorded operations, which takes some seconds once; each gradient
            agrees to rounding, that is within 1e-5 of its norm (1e-3 for objectives that weigh particles), or more
            where its terms cancel (see `pyro_vae.runtime.steps.Trial`). "auto" records, without a warning, where that
            saves time and the programs consist of parts of this package and of torch; it never changes a digit.
            Programs and networks of your own may count or have schedules, so "auto" runs them eagerly.
        precision: "32", or "bf16-mixed", which computes the linear and convolutional layers of each step in bfloat16,
            and everything else, including evaluations, in 32 bits (see `pyro_vae.runtime.precision.BFloat16Layers`).
        memory: limit for the particles of a step, as a number of bytes or a text such as "2GB". Particles of the
            objectives of this package are processed in chunks that fit; such steps run eagerly. The results differ only
            by rounding, and by the noise of a model that draws random numbers itself.
        fabric: a launched ``lightning_fabric.Fabric``, for training on several processes: each calls `fit` with the
            same arguments, its programs on its own device. R processes split each batch of R times ``batch_size`` among
            them, draw noise of their own, and end with the same parameters and the same history as one process with
            the whole batch. What programs change by themselves, such as the running means of a batch normalization,
            follows each process's part of the data; after every 100 steps and each epoch, all take that of rank 0.
        on_nan: what to do when a loss or a gradient is not finite. It never changes a parameter: "stop" raises an error
            that names the step and the first part that is not finite; "skip" skips the batch; "rollback" restores the
            parameters from the start of the epoch, and continues with the next batch.
        checkpoints: a folder for checkpoints, or `pyro_vae.runtime.checkpoints.Checkpoints`, which says when one is
            written. A folder that holds the checkpoint of a training is refused unless ``resume`` names it, and so is
            a folder that another training writes to.
        resume: a folder that holds a checkpoint of a training with the same programs, data and arguments. The training
            continues as if it had never been stopped, to the last bit on the same machine unless the engine is
            "compiled". ``epochs`` may be larger than before, but not smaller than the number of epochs already begun.
            Ready batches begin again at the start of their epoch. Checkpoints are written to the same folder, unless
            ``checkpoints`` names another one.
        progress: show a progress bar.
        on_step: called after each step with its number and its loss, a tensor in nats per datum.
        on_epoch: called with each row of the history as it is measured. `pyro_vae.training.loggers` has functions for
            ``on_step`` and ``on_epoch``. Either may raise `pyro_vae.training.StopTraining` to end the training; if
            one of several processes does, all of them end, after at most 100 more steps. Modules that a callback leaves
            in evaluation mode are put back into training mode, with a warning if this matters to one of them.

    Returns:
        The history: a row for epoch 0, evaluated before the first step, and a row for each epoch. After Ctrl-C or
        `StopTraining` it ends with the last complete epoch.

    Raises:
        TypeError: if the loss is not an ELBO, or a program samples from a plain torch distribution.
        ValueError: for numbers out of range, data that are not finite or outside the support of the model, and
            programs whose sites do not fit each other or the data; for a validation frame whose columns have another
            order than those of the data; for data and validation data of which only one part has been scaled.
        FloatingPointError: if a step's loss or gradient is not finite; the parameters are those before the step.
            On a GPU with a fused optimizer this is found at the end of the epoch.
        ValueError: also if engine "recorded" or "compiled" finds that steps since its last check may be wrong; the
            checkpoint, if any, is from before these steps.
        Stopped: after a call of `Checkpoints.stop`.
        ConnectionError: if another process has ended, or has not answered for 5 minutes.

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
    check_arguments(loss, beta, memory, optimizer, patience, validation)
    check_functions(schedule=schedule, transform=transform, count=count, on_step=on_step, on_epoch=on_epoch)
    checkpoints = as_checkpoints(checkpoints, resume)
    before = checkpoint_of(checkpoints, resume)
    programs, ranks = Programs(model, guide, transform, beta, loss), Ranks(fabric)
    given: dict[str, Any] = {"count": count, "transform": transform}
    x = as_input(data, programs.model, programs.guide, **given)
    check_columns(data, validation)
    test = None if validation is None else as_input(validation, programs.model, programs.guide, **given)
    check_one_scale(x, test)
    numbers: dict[str, Any] = {"batch_size": batch_size, "clip_norm": clip_norm, "precision": precision}
    others: dict[str, Any] = {"engine": engine, "on_nan": on_nan, "beta": 1.0 if callable(beta) else beta}
    check_settings(epochs=epochs, device=x.device, **numbers, **others)
    numbers["batch_size"] = batch_size = max(x.counts) if isinstance(x, Ready) else min(batch_size, len(x))
    batches = Batches(x, batch_size, transform, ranks, torch.Generator().manual_seed(as_seed(seed)))
    given = {"seed": seed, "loss": described_loss(loss), "beta": described(beta), "transform": described(transform)}
    as_given = programs.described() if checkpoints else []
    history = History()
    check_ranks(ranks, batches, test, seed=seed, epochs=epochs, **numbers)
    on_step, on_epoch = together(ranks, *watched(programs, on_step=on_step, on_epoch=on_epoch))

    with ExitStack() as stack, seeded(ranks.seed(seed), x.device), mode(True, model, guide), own_baselines():
        with pyro.validation_enabled():  # of all data and every distribution, so that the steps below need none
            settings = {"seed": seed, "transform": transform, "ranks": ranks, "batch_size": max(1000, batch_size)}
            measure = Measure(programs.model, programs.guide, test, settings)
            plates, loss = check_before(programs, batches, measure, loss, seed)
            loss = fit_to_memory(loss, memory, programs, batches, seed)
            measure.settings |= {"plates": plates.names, "loss": loss}
            measure.check = meet_parameters(programs, batches, seed)
            estimator, steps = Estimator(loss, programs, plates.names, precision), epochs * len(batches)
            estimate, how = chosen(estimator, engine, steps, tolerance=estimator.tolerance, blocked=estimator.blocked)
            described_first, parts = (programs.described(), programs.parts()) if checkpoints else ([], [])
            made = made_by(optimizer, programs.parameters, programs.local.names, programs.values().values())
            rates, given["frozen"] = schedule_of(schedule, made.optim, made.scheduler), programs.frozen()
            state = State(programs, made.optim, batches, history, rates, settings_by_name=made.settings, test=test)
            if resume is None:
                history.append(measure.row(0, measure.bound(x), state.rate, 0.0))
        given["frozen"] = programs.frozen()  # before a callback freezes or thaws some
        if resume is None and not goes_on(on_epoch, history[-1]):
            epochs = 0
        if checkpoints:
            stack.enter_context(held(checkpoints, ranks))
            as_checkpoints(checkpoints, resume)  # once more, as another training may have ended there meanwhile
            given |= {"data": described_data(x), "validation": described_data(test)}
            given |= numbers | {"processes": ranks.size, **described_optimizer(made.optim, rates)}
            state.begin(given, as_given, described_first, parts)
        if before:
            ranks.together(lambda: state.resume(before, epochs, patience))
        verify, guard = begin_at(estimate, state.step), guard_of(on_nan, programs, made.optim, resumed=state.step > 0)
        step = as_graph(Step(estimate, state, guard, clip_norm))
        saver = Saver(checkpoints, state, ranks, verify, epochs_only=isinstance(x, Ready)) if checkpoints else NoSaver()
        if progress:
            bar = stack.enter_context(Progress(epochs, len(batches), shown=ranks.rank == 0))
            on_step, on_epoch = both(bar.on_step, on_step), both(bar.on_epoch, on_epoch)
        weights, called = as_schedule(beta, x), (on_step, on_epoch)
        with interruptible(state, saver):
            train(state, batches, step, guard, measure, epochs, weights, saver, *called, patience=patience)
        verify()
        if patience is not None:
            state.restore_best()
    history.engine = how()
    return history
