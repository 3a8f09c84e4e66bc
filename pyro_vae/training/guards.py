"""Guards: they stop a step whose loss or gradient is not finite, and name the cause."""

import copy
import math
import warnings
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.data.batch import Batch, arguments, tensors_of
from pyro_vae.programs import accepts_nan, modules_of, paired_traces
from pyro_vae.programs.handlers import LocalModules, Program
from pyro_vae.training.baselines import baselines, set_baselines
from pyro_vae.training.programs import Programs
from pyro_vae.vae import VAE

MANY_TIMES = 1000  # a loss that is larger than this many times the median of those before is said to explode
LEAST = 1.0  # nats: a smaller median counts as this, as near a loss of 0 any change is many times the median
LOWER = "lower the learning rate, or give a clip_norm"
Values = dict[str, Tensor]


class Guard:
    """Looks at each step's loss and gradient before they touch a parameter, and decides what happens.

    A loss of over 1,000 times the running median, and over 1,000 nats, warns, once.

    Arguments:
        programs: the model and the guide.
        optim: the optimizer of their parameters.
        resumed: whether steps with gradients have been taken before.
    """

    def __init__(self, programs: Programs, optim: torch.optim.Optimizer, *, resumed: bool = False) -> None:
        self.programs, self.optim = programs, optim
        self._trains = resumed  # whether a step has had a gradient
        self._untrained: set[int] | None = set() if resumed else None  # numbers of parameters that never had one
        self._versions = [None if each.is_inference() else each._version for each in programs.parameters]
        self._recent: deque[float] = deque(maxlen=25)
        self._limit = math.inf

    def start_epoch(self) -> None:
        """Keep what is needed to go back to the start of the epoch."""

    def start_step(self) -> None:
        """Keep what is needed to leave the step out."""

    def check_names(self) -> None:
        """Refuse an optimizer of parameters that the programs compute with, but do not name.

        Raises:
            ValueError: with the first one.
        """
        held = {id(each) for group in self.optim.param_groups for each in group["params"]}
        for each in [each for each in self.programs.unnamed() if id(each) in held]:
            raise ValueError(
                f"the {type(self.optim).__name__} holds a parameter of shape {tuple(each.shape)} that the programs do"
                " not name, so that no step would change it: name its module by pyro.module, or leave it out"
            )

    def look_at(self, gradients: Sequence[Tensor | None]) -> None:
        """Note which parameters have a gradient; not every batch needs to give one to each of them, or to any."""
        without = {number for number, gradient in enumerate(gradients) if gradient is None}
        self._trains |= len(without) < len(gradients)
        self._untrained = without if self._untrained is None else self._untrained & without

    def allows(
        self, loss: Tensor, norm: Tensor, count: int | Tensor, batch: Batch, grads: Sequence[Any], where: str
    ) -> bool:
        """Whether the optimizer may take a step.

        Arguments:
            loss: the sum over the batch.
            norm: of all gradients together.
            count: how many data the batch has.
            batch: what the programs were called with.
            grads: one gradient for each parameter, or None.
            where: words for the step.

        Raises:
            FloatingPointError: if it may not, and the guard is one that stops the training.
        """
        value = float(loss)
        if math.isfinite(value + float(norm)):
            self._look_for_explosion(value / float(count), where)
            return True
        with torch.random.fork_rng([loss.device] if loss.is_cuda else []):  # so that later steps draw the same noise
            where = f"{where}: {first_not_finite(self.programs.model, self.programs.guide, batch, grads)}"
        self.refuse(f"the loss is {value / float(count):.4g}, the norm of its gradient {float(norm):.4g}, in {where}")
        return False

    def refuse(self, what: str) -> None:
        """Handle a step whose loss or gradient is not finite.

        Arguments:
            what: words for the loss, its gradient and the first part that is not finite.
        """
        raise NotImplementedError

    def end_epoch(self, epoch: int, counted: float | Tensor) -> None:
        """Refuse an epoch in which every step was skipped, or none had a gradient.

        Arguments:
            epoch: which one it was.
            counted: how many of its data were in steps that were not skipped.

        Raises:
            FloatingPointError: if every step was skipped.
            ValueError: if no step had a gradient.
        """
        self._check_trains()
        if not counted:
            raise FloatingPointError(f"all steps of epoch {epoch} were skipped, because none was finite; {LOWER}")

    def _check_trains(self) -> None:
        if not self._trains:
            raise ValueError(
                "the loss does not depend on any parameter, in any batch: compute it from parameters of the programs"
            )
        pairs = enumerate(zip(self.programs.parameters, self._versions, strict=False))
        unchanged = {number for number, (each, version) in pairs if each._version == version}  # nor by the programs
        if names := self.programs.in_use(unchanged & (self._untrained or set())):
            shown = ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
            text = (
                f"{shown} had no gradient in the first epoch and may never be trained, although the programs use them"
            )
            fix = (
                "compute with them outside torch.no_grad() and without detach(), or freeze them, requires_grad_(False)"
            )
            warnings.warn(f"{text}: {fix}", RuntimeWarning, stacklevel=5)
        self._untrained = set()  # once
        if unnamed := self.programs.unnamed():
            text = f"no step changes a tensor of shape {tuple(unnamed[0].shape)} that the programs compute with"
            fix = "name it, or its module, by pyro.param or pyro.module, or freeze it, requires_grad_(False)"
            warnings.warn(f"{text}, as they do not name it: {fix}", RuntimeWarning, stacklevel=5)
            self.programs.leaves = []

    def _look_for_explosion(self, loss: float, where: str) -> None:
        if abs(loss) > self._limit:
            text = f"the loss is {loss:.4g} in {where}, over {MANY_TIMES:,} times its running median"
            warnings.warn(f"{text}; lower the learning rate", RuntimeWarning, stacklevel=6)
            self._limit = math.nan  # once
        self._recent.append(abs(loss))
        if len(self._recent) == 25 and not math.isnan(self._limit):
            self._limit = MANY_TIMES * max(median(self._recent), LEAST)
            self._recent.clear()


class Stop(Guard):
    """Raises an error, which names the first part that is not finite; the parameters are those before the step."""

    def refuse(self, what: str) -> None:
        fix = "lower the learning rate, give a clip_norm, or skip such batches (on_nan skip)"
        raise FloatingPointError(f"{what}; {fix}")


class StopAtEndOfEpoch(Guard):
    """Raises an error at the end of the epoch, so that no step has to wait for the GPU.

    From the first step that is not finite, the fused optimizer leaves the parameters unchanged.

    Attributes:
        failed: whether any step has not been finite, as a tensor on the device.
    """

    def __init__(self, programs: Programs, optim: torch.optim.Optimizer, *, resumed: bool = False) -> None:
        super().__init__(programs, optim, resumed=resumed)
        self.failed = torch.zeros((), device=programs.parameters[0].device)

    def allows(self, loss: Tensor, norm: Tensor, *_: Any) -> bool:
        self.failed.copy_(torch.maximum(self.failed, 1 - torch.isfinite(loss + norm).float()))
        self.optim.found_inf = self.failed  # type: ignore[attr-defined]
        return True

    def end_epoch(self, epoch: int, _: float | Tensor) -> None:
        self._check_trains()
        if self.failed:
            raise FloatingPointError(f"a loss or its gradient is not finite in epoch {epoch}; {LOWER}")


class Skip(Guard):
    """Skips the batch, and restores what the programs may have changed themselves: buffers, parameters, baselines."""

    def start_step(self) -> None:
        self._before = {name: value.detach().clone() for name, value in self.programs.values().items()}, baselines()

    def refuse(self, what: str) -> None:
        warnings.warn(f"a step is skipped (skip): {what}", RuntimeWarning, stacklevel=6)
        values, means = self._before
        self.programs.restore(values)
        set_baselines(means)


class Rollback(Guard):
    """Restores the parameters from the start of the epoch, and continues with the next batch.

    The learning rate keeps to its schedule.
    """

    def start_epoch(self) -> None:
        self._good = copy.deepcopy((self.programs.values(), self.optim.state_dict()["state"])), baselines()

    def refuse(self, what: str) -> None:
        warnings.warn(f"a step is skipped (rollback): {what}", RuntimeWarning, stacklevel=6)
        (values, state), means = self._good
        self.programs.restore(values)
        self.optim.load_state_dict(self.optim.state_dict() | {"state": copy.deepcopy(state)})
        set_baselines(means)


GUARDS = {"stop": Stop, "skip": Skip, "rollback": Rollback}


def guard_of(on_nan: str, programs: Programs, optim: torch.optim.Optimizer, *, resumed: bool = False) -> Guard:
    """Return the guard of a name.

    Arguments:
        on_nan: one of `GUARDS`.
        programs: the model and the guide.
        optim: the optimizer of their parameters.
        resumed: whether steps with gradients have been taken before.
    """
    on_device = programs.parameters[0].device.type == "cuda" and getattr(optim, "_step_supports_amp_scaling", False)
    kind = StopAtEndOfEpoch if on_nan == "stop" and on_device else GUARDS[on_nan]
    return kind(programs, optim, resumed=resumed)


def norm_of(gradients: Sequence[Tensor | None]) -> Tensor:
    """Return the norm of all gradients together.

    Example:
        >>> norm_of([torch.tensor([3.0]), None, torch.tensor([[4.0]])])
        tensor(5.)
    """
    found = [gradient for gradient in gradients if gradient is not None]
    given = [(torch.view_as_real(each) if each.is_complex() else each).reshape(-1) for each in found]
    if not given:
        return torch.zeros(())
    return torch.stack([torch.dot(gradient, gradient).to(given[0]) for gradient in given]).sum().sqrt()


@torch.no_grad()
def first_not_finite(model: Program, guide: Program, batch: Batch, gradients: Sequence[Tensor | None]) -> str:
    """Name the first quantity that is not finite in a step.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        batch: the batch of the step, as the programs see it. They are run once more on it, with other noise.
        gradients: the gradients of the step.

    Returns:
        Words such as "the decoder's logits (site 'x' of the model)".

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(torch.tensor(float("nan")), 1.0))
        >>> first_not_finite(guide, guide, torch.zeros(1, 1), [])
        "loc of Normal (site 'z' of the guide)"
    """
    for module in modules_of(model, guide):
        for name, parameter in module.named_parameters():
            if not parameter.isfinite().all():
                return f"the parameter {name}"
    owners = any(isinstance(module, VAE) for module in modules_of(model, guide))
    with pyro.validation_enabled(False):
        args, kwargs = arguments(batch)
        traces = paired_traces(LocalModules()(model), LocalModules()(guide), *args, **kwargs)
    sites = [traces[0].nodes[name] for name in traces[0].observation_nodes]
    missing_is_fine = any(accepts_nan(site) for site in sites)
    parts = tensors_of(batch)
    if any(part.isinf().any() or (part.isnan().any() and not missing_is_fine) for part in parts):
        return "the data"
    for program, trace in zip(("guide", "model"), reversed(traces), strict=True):
        for name in [*trace.stochastic_nodes, *trace.observation_nodes]:
            site = trace.nodes[name]
            place = f"(site {name!r} of the {program})"
            owner = "encoder" if program == "guide" else "decoder" if site["is_observed"] else "prior"
            found = _parameter_not_finite(site["fn"])
            if found:
                return f"the {owner}'s {found[0]} {place}" if owners else f"{found[0]} of {found[1]} {place}"
            if program == "guide" and not site["value"].isfinite().all():
                return f"the {owner}'s draw {place}" if owners else f"the draw {place}"
            if not site["fn"].log_prob(site["value"]).isfinite().all():
                return f"the {owner}'s log-probability {place}" if owners else f"the log-probability {place}"
    if any(gradient is not None and not gradient.isfinite().all() for gradient in gradients):
        return "the gradient"
    return "the loss, on this noise"


def _parameter_not_finite(distribution: Any) -> tuple[str, str] | None:
    """Return the names of a distribution's first parameter that is not finite, and of its class."""
    while distribution is not None:
        for name in getattr(distribution, "arg_constraints", {}):
            value = vars(distribution).get(name)
            if isinstance(value, Tensor) and not value.isfinite().all():
                return name, type(distribution).__name__
        distribution = getattr(distribution, "base_dist", None)
    return None
