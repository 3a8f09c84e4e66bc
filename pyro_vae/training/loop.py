"""The training loop."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
from torch import Tensor

from pyro_vae.runtime.whole_step import WholeStep
from pyro_vae.training.batches import Batches
from pyro_vae.training.guards import Guard
from pyro_vae.training.history import Measure, OnEpoch, OnStep, Row
from pyro_vae.training.saving import NoSaver, Saver
from pyro_vae.training.state import State
from pyro_vae.training.step import Step


class StopTraining(Exception):  # noqa: N818 (no error)
    """Raised by ``on_step`` or ``on_epoch`` to end a training, which then returns what it has measured so far."""


def goes_on(on_epoch: OnEpoch | None, first: Row) -> bool:
    """Call ``on_epoch`` with the row from before the first step, and return whether the training continues."""
    try:
        if on_epoch:
            on_epoch(dict(first))  # a copy, which it may change
    except StopTraining:
        return False
    return True


@contextmanager
def interruptible(state: State, saver: Saver | NoSaver) -> Iterator[None]:
    """End a training on `StopTraining`, after writing a checkpoint, or on Ctrl-C, which may come within a step."""
    try:
        yield
    except StopTraining:
        saver.after_end()
    except KeyboardInterrupt:
        state.history.interrupted = True
        where = f"in epoch {state.epoch}, before step {state.step + 1}"
        warnings.warn(f"the training was interrupted {where}; the history ends there", RuntimeWarning, stacklevel=4)


def train(
    state: State,
    batches: Batches,
    step: Step | WholeStep,
    guard: Guard,
    measure: Measure,
    epochs: int,
    weight_at: Callable[[int], Tensor | float] = lambda _: 1.0,
    saver: Saver | NoSaver = NoSaver(),  # noqa: B008 (never changed)
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
    patience: int | None = None,
) -> None:
    """Train until all epochs are done: algorithm 1 of Kingma and Welling (2014).

    Arguments:
        state: the state of the training: a new one, or one loaded from a checkpoint.
        batches: the data, in random order.
        step: computes the gradient of a batch, and updates the parameters.
        guard: decides what to do when a loss or a gradient is not finite.
        measure: makes the row of each epoch.
        epochs: the number of the last epoch.
        weight_at: returns the KL weight of a step.
        saver: writes checkpoints.
        on_step: called after each step with its number and its loss, in nats per datum.
        on_epoch: called with the row of each epoch.
        patience: stop after this many epochs without a lower test loss.

    Example:
        Training by hand, from the objects that `pyro_vae.fit` makes:

        >>> import torch
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro_vae import VAE, data, decoders, encoders, priors
        >>> from pyro_vae.training import History, State, Step
        >>> from pyro_vae.training.checks import meet_parameters
        >>> from pyro_vae.training.guards import Stop
        >>> from pyro_vae.training.programs import Programs
        >>> from pyro_vae.training.step import Estimator
        >>> x = data.load("digits").train
        >>> vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
        >>> programs, batches = Programs(vae.model, vae.guide), Batches(x, size=64)
        >>> measure = Measure(vae.model, vae.guide, None, {"loss": Trace_ELBO()})
        >>> measure.check = meet_parameters(programs, batches, seed=0)
        >>> optim = torch.optim.Adam(programs.parameters)
        >>> state, guard = State(programs, optim, batches, History()), Stop(programs, optim)
        >>> step = Step(Estimator(Trace_ELBO(), programs), state, guard)
        >>> train(state, batches, step, guard, measure, epochs=2)
        >>> state.history[1]["train_loss"] < state.history[0]["train_loss"]
        True

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, algorithm 1.
    """
    while state.epoch <= epochs and not state.has_waited(patience):
        with pyro.validation_enabled(False):  # all data and every site were checked before the first step
            state.start_epoch()
            guard.start_epoch()
            for batch, count in batches.after(state.batches):  # a random minibatch
                loss = step(batch, weight_at(state.step), count)  # noise, gradient, update
                state.end_step()
                if on_step:
                    on_step(state.step - 1, loss)
                saver.after_step()
            guard.end_epoch(state.epoch, state.totals[3])
            state.end_epoch(measure)
        if on_epoch:
            on_epoch(dict(state.history[-1]))
        saver.after_epoch(last=state.epoch > epochs or state.has_waited(patience))
