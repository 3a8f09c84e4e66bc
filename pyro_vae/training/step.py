"""One step of stochastic variational inference."""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.data import Rows
from pyro_vae.data.batch import Batch, tensors_of
from pyro_vae.objectives import Beta, Objective, check_beta, terms_and_gradients, trained_by
from pyro_vae.programs.handlers import weigh_kl
from pyro_vae.programs.traces import InPlace, unchanged
from pyro_vae.runtime.precision import layers_in
from pyro_vae.runtime.recording import Recorded
from pyro_vae.runtime.steps import Outputs
from pyro_vae.runtime.whole_step import WholeStep
from pyro_vae.training.guards import Guard, StopAtEndOfEpoch, norm_of
from pyro_vae.training.programs import Programs
from pyro_vae.training.state import State


class Estimator:
    """The minibatch estimator of the bound and of its gradients.

    Arguments:
        loss: the objective.
        programs: the model and the guide.
        plates: names of their plates over the data, which `check_before` finds.
        precision: one of ``pyro_vae.runtime.precision.PRECISIONS``.
    """

    def __init__(self, loss: ELBO, programs: Programs, plates: Collection[str] = (), precision: str = "32") -> None:
        self.loss, self.programs, self.precision = loss, programs, precision
        self.objective = terms_and_gradients(loss, plates)
        programs.others[-1:] = [self.objective]  # which keeps what the loss keeps
        programs.local.shown = trained_by(loss) == "loss_and_grads"

    def __call__(self, batch: Batch, weight: Tensor | float, count: int) -> Outputs:
        """Return the loss and the terms of the bound, summed over the batch, the gradients' norm, and the gradients."""
        pair = weigh_kl(weight, self.programs.model, self.programs.guide)
        with layers_in(self.precision):
            given = batch, weight, lambda: self.programs.parameters, count, self.programs.look
            terms, gradients = self.objective(*pair, *given)
        return *terms, norm_of(gradients), *gradients

    @property
    def blocked(self) -> str:
        """Why the estimator cannot be recorded; empty if it can. All parameters must have been met."""
        if any(each.dtype in (torch.bfloat16, torch.float16) for each in self.programs.parameters):
            return "a replayed sum in 16 bits may be rounded to a neighbouring number"
        in_chunks = isinstance(self.loss, Objective) and self.loss.chunk < self.loss.num_particles
        return "particles are processed in chunks, and a recording would hold all of them at once" if in_chunks else ""

    @property
    def tolerance(self) -> float:
        """How far a compiled estimate may differ from this one, relative to its norm."""
        # The weights of particles magnify the rounding of their logarithms, which may be hundreds of nats.
        weighs = isinstance(self.loss, Objective) and self.loss.num_particles > 1
        return 1e-2 if self.precision != "32" else 1e-3 if weighs else 1e-5


@dataclass
class Step:
    """A step: the gradient of a batch, and the update of the parameters of both programs.

    Arguments:
        estimate: an `Estimator`, or a recording of one.
        state: the state of the training.
        guard: decides what to do when a loss or a gradient is not finite.
        clip_norm: the largest norm of the gradient, or None.
        first: whether the next step is the first one, in which changes in place are looked for.
    """

    estimate: Callable[..., Outputs]
    state: State
    guard: Guard
    clip_norm: float | None = None
    first: bool = True

    def __call__(self, batch: Batch, weight: Tensor | float, count: int) -> Tensor:
        """Take the step, and return its loss in nats per datum."""
        state = self.state
        self.guard.start_step()
        first, self.first = self.first, False  # in which functions see that the programs are trained
        if first and any(part.grad_fn is not None for part in tensors_of(batch)):
            raise ValueError(
                "the transform computes with parameters, which would not be trained: use them in the programs, or"
                " compute with them under torch.no_grad()"
            )
        with unchanged(batch, "the programs change"), InPlace(batch) if first else nullcontext():
            # The loss, its three terms, the norm of the gradients, and these.
            outputs = self.estimate(batch, weight, max(1, count))
        parts = outputs[:5], outputs[5:], state.programs.parameters
        (loss, *terms, norm), gradients, counted = state.ranks.combine(*parts, count, state.late)
        state.meet_new_parameters()
        if first:
            self.guard.check_names()
        self.guard.look_at(gradients)
        where = f"epoch {state.epoch}, step {state.step}"
        if self.guard.allows(loss, norm, counted, batch, gradients, where):
            self.update(gradients)
            state.count(terms, counted)
        return loss.detach() / counted

    def update(self, gradients: Sequence[Tensor | None]) -> None:
        """Have the optimizer change the parameters.

        A parameter without a gradient in this batch is left unchanged if it has never had one; otherwise its gradient
        is 0, so that its momentum continues. So it is in ``pyro.infer.SVI``, if the programs name it in each batch.
        """
        parameters = self.state.programs.parameters
        for parameter, gradient in zip(parameters, gradients, strict=True):
            goes_on = parameter.requires_grad and parameter in self.state.optim.state
            parameter.grad = torch.zeros_like(parameter) if gradient is None and goes_on else gradient
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        self.state.optim.step()
        for parameter in [each for group in self.state.optim.param_groups for each in group["params"]]:
            if parameter.grad is not None:  # SGD without momentum keeps no state by which to know it again
                self.state.optim.state.setdefault(parameter, {})


def as_graph(step: Step) -> Step | WholeStep:
    """Return a step as one CUDA graph if that is possible: compiled, on one GPU, and with a fused optimizer."""
    recorded, guard, state = step.estimate, step.guard, step.state
    if not (isinstance(recorded, Recorded) and recorded.compiled and state.ranks.size == 1):
        return step
    if not isinstance(guard, StopAtEndOfEpoch) or state.schedule.per_step:  # a graph keeps its learning rate
        return step
    changed = [state.totals, guard.failed]
    return WholeStep(step, recorded, state.optim, lambda: [*state.programs.values().values(), *changed])


def as_schedule(beta: Beta, like: Rows) -> Callable[[int], Tensor | float]:
    """Return a function from the step to the KL weight.

    A weight that changes is returned as a tensor, so that a recording can follow it.

    Arguments:
        beta: the KL weight, or a function from the step to it.
        like: the data; the weight has their type and device.
    """
    if not callable(beta):
        return lambda _: check_beta(beta)
    return lambda step: torch.full((), check_beta(beta(step)), dtype=like.dtype, device=like.device)


def begin_at(estimate: Callable[..., Outputs], step: int) -> Callable[[], None]:
    """Tell a recording the number of its first step, and return a function that checks it (or does nothing)."""
    if not isinstance(estimate, Recorded):
        return lambda: None
    estimate.first = step
    return estimate.verify
