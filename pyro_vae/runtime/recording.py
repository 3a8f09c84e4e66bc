"""Recordings of a step: made once, checked, and replayed instead of the programs."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.infer
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.fx import GraphModule
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode

from pyro_vae.data.batch import structure_of, tensors_of, with_tensors
from pyro_vae.runtime.changes import Changes
from pyro_vae.runtime.compiling import compiled, kept_on_device
from pyro_vae.runtime.held import Held
from pyro_vae.runtime.steps import (
    Outputs,
    Step,
    Trial,
    constants_of,
    get_random_state,
    import_tracers,
    reason_of,
    restorer,
    set_random_state,
)

AGAIN = 100  # calls: a further structure of inputs is recorded once it has been seen so often
MOST = 8  # structures that are recorded at most
CHANGED = "what the programs hold in Python changes from step to step"


class _OneHot(TorchFunctionMode):
    """Make one-hot codes without reading the labels in Python, as torch's own does, which cannot be recorded."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        return (_one_hot if func is one_hot else func)(*args, **(kwargs or {}))


def _one_hot(input: Tensor, num_classes: int = -1) -> Tensor:  # noqa: A002 (torch's name)
    if num_classes == -1:  # the number of classes depends on the data, so this cannot be recorded
        return one_hot(input)
    return input.new_zeros(*input.shape, num_classes).scatter(-1, input[..., None], 1)


class Recorded:
    """A step that runs its programs a few times, and from then on replays the arithmetic that they did.

    The first call runs the step itself, so that lazy initialization happens before recording. The second call records
    every tensor operation of the step, including the gradients, by ``make_fx``. At the third call, and whenever the
    number of calls has doubled since, the step and its recording are both run on the same random numbers, and must give
    the same outputs to the last bit; all other calls only run the recording. If it is compiled or runs on a GPU, where
    sums have another order, the outputs must agree within a relative ``tolerance``, or within what rounding explains
    (scalars are compared with the largest scalar).
    Parameters and buffers are the programs' own, not copies, and every call draws new noise.

    Each structure of the inputs (shapes, types, strides, and Python's numbers among them) has its own recording. With
    inputs that hold other objects, the step itself is run. Structures other than the first, such as the smaller batch
    at the end of an epoch, are recorded once they have been seen `AGAIN` times, up to `MOST` structures in all.

    A recording that cannot be compiled, or gives other numbers when compiled, is replayed as it is. The step runs
    eagerly from then on if it cannot be recorded (it branches on data in Python), if it differs from its recording at
    the first check, or if something that it holds in Python has changed (see `Held`). A difference at a later check is
    an error, because the steps since the check before were replayed.

    Arguments:
        step: a function of a batch, and of further tensors and numbers, to tensors or None.
        compiled: have ``torch.compile`` fuse operations into kernels. This takes some seconds, once.
        quiet: do not warn if the step cannot be recorded.
        tolerance: the relative tolerance for compiled steps, and for steps on a GPU.
        graphs: on a GPU, have the compiler replay its kernels as a CUDA graph; not if a `WholeStep` captures one.

    Raises:
        ValueError: in a call or in `verify`, if a check finds that replayed steps may have been wrong.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> step = Recorded(lambda x: torch.autograd.grad((weight * x).sin().sum(), weight))
        >>> for number in range(4):
        ...     gradient, = step(torch.full((2,), float(number)))
        >>> torch.equal(gradient, 3 * torch.full((2,), 3.0).cos()), step.replayed
        (True, 1)
    """

    def __init__(
        self,
        step: Step,
        *,
        compiled: bool = False,
        quiet: bool = False,
        tolerance: float = 1e-5,
        graphs: bool = True,
    ) -> None:
        self.step, self.compiled, self.quiet, self.tolerance, self.graphs = step, compiled, quiet, tolerance, graphs
        self.calls = self.replayed = 0
        self.first = 0  # the number of the first call's step
        self.reason = ""
        self._held: Held | None = None
        self._recordings: dict[Any, _Recording] = {}  # by the structure of their inputs

    def __call__(self, *inputs: Any) -> Outputs:
        """Return the step's outputs."""
        self.calls += 1
        own = None if self.reason else self._recording_of(inputs)
        if own is None:
            return self.step(*inputs)
        own.calls += 1
        if own.graph is None:
            return self._record(own, inputs) if own.calls > own.eager else self.step(*inputs)
        if not self._is_current():
            self._fall_back(CHANGED)
            return self.step(*inputs)
        if own.calls >= own.check_at:
            own.check_at = 2 * own.calls
            return self._check(own, inputs)
        self._count_replay(own, inputs)
        with torch.no_grad():
            return own.replay(*tensors_of(inputs))

    def _recording_of(self, inputs: tuple[Any, ...]) -> "_Recording | None":
        structure = structure_of(inputs)
        if structure not in self._recordings:
            if structure is None or len(self._recordings) == MOST:
                return None
            self._recordings[structure] = _Recording(eager=AGAIN if self._recordings else 1)
        return self._recordings[structure]

    def replays(self, *inputs: Any) -> bool:
        """Whether a call with these inputs, of the first structure, would run its recording alone."""
        own = next(iter(self._recordings.values()), None)
        if own is None or own.graph is None or self._recordings.get(structure_of(inputs)) is not own:
            return False
        return own.calls + 1 < own.check_at and self._is_current()

    def count_replay(self, *inputs: Any) -> None:
        """Count a replay of a recording on these inputs that was made from outside."""
        own = self._recordings[structure_of(inputs)]
        self.calls, own.calls = self.calls + 1, own.calls + 1
        self._count_replay(own, inputs)

    def uncounted(self) -> AbstractContextManager[None]:
        """Return a context in which calls are not counted."""
        return _restored([self, *self._recordings.values()], "calls", "replayed", "replayed_at", "unchecked")

    def _count_replay(self, own: "_Recording", inputs: tuple[Any, ...]) -> None:
        self.replayed += 1
        own.replayed_at, own.unchecked = self.calls, inputs

    def verify(self) -> None:
        """Check each recording now, on the inputs that were replayed last, unless it has been checked since.

        All tensors and the random state are restored. Programs that have changed are not checked, because they are no
        longer those that were recorded; the next call will notice the change.

        Raises:
            ValueError: if the programs no longer do what was recorded.
        """
        for own in self._recordings.values():
            if own.unchecked and own.graph is not None and self._is_current():
                random_state, restore = get_random_state(), restorer(constants_of(own.graph))
                with Changes() as changes:
                    self._check(own, own.unchecked)
                changes.undo()
                restore()  # what compiled kernels have changed, which `Changes` does not see
                set_random_state(random_state)

    def _is_current(self) -> bool:
        return self._held is not None and self._held.unchanged()

    def __str__(self) -> str:
        if self.reason:
            return f"eager: the step cannot be recorded ({self.reason})"
        line = f"{self.replayed} of {self.calls} steps were replayed"
        if failures := [own.uncompiled for own in self._recordings.values() if own.uncompiled]:
            return f"recorded: {line}; the step cannot be compiled ({failures[0]})"
        return f"{'compiled' if self.compiled else 'recorded'}: {line}"

    def _record(self, own: "_Recording", inputs: tuple[Any, ...]) -> Outputs:
        import_tracers()
        from torch.fx.experimental.proxy_tensor import make_fx

        outputs: Outputs = ()

        def step(*tensors: Tensor) -> Outputs:
            nonlocal outputs
            outputs = self.step(*with_tensors(inputs, tensors))
            return outputs

        random_state, before = get_random_state(), self._hold()
        try:
            with Changes() as changes, kept_on_device(), _OneHot():
                own.graph = make_fx(step)(*tensors_of(inputs))
        except Exception as error:  # any program may stand here, and fail in any way
            changes.undo()
            set_random_state(random_state)
            before.put_back()
            if not before.unchanged():  # a change of something else, such as a global name, cannot be undone
                raise ValueError(f"the step cannot be recorded ({reason_of(error)}): take engine='eager'") from error
            self._fall_back(reason_of(error))
            return self.step(*inputs)
        own.replay, self._held, own.checked_at = own.graph, self._hold(), self.calls
        if not before.unchanged():
            self._fall_back(CHANGED)
        return outputs

    def _hold(self) -> Held:
        return Held(self.step, pyro.get_param_store())

    def _check(self, own: "_Recording", inputs: tuple[Any, ...]) -> Outputs:
        graph: Any = own.graph  # it has been made before
        tensors, compiles = tensors_of(inputs), self.compiled and not own.uncompiled

        @torch.no_grad()
        def replay() -> Outputs:
            if compiles and own.replay is own.graph:
                own.replay = compiled(graph, self.graphs, *tensors)
            return own.replay(*tensors)

        state = constants_of(graph)  # such as the running mean of a batch normalization, or a codebook
        tolerance = self.tolerance if compiles or tensors[0].device.type != "cpu" else 0.0
        parameters = [value for value in state if value.requires_grad] if tolerance else []
        trial = Trial(replay, lambda: self.step(*inputs), lambda: state, tolerance, parameters=parameters)
        failure = "" if trial.same else trial.failure or "the programs' arithmetic is not the same at every step"
        if failure and compiles and not own.unchecked:
            self._leave_uncompiled(own, trial.failure or "compiled, it gives other numbers")
        elif failure and own.unchecked:
            first, last = self.first + own.checked_at, self.first + own.replayed_at - 1
            raise ValueError(
                f"the programs no longer do what was recorded ({failure}): steps {first} to {last}, replayed since the"
                f" last check, cannot be trusted; train, or resume the checkpoint from before, with engine='eager'"
            )
        elif failure:
            self._fall_back(failure)
        own.checked_at, own.unchecked = self.calls, ()
        return trial.outputs

    def _leave_uncompiled(self, own: "_Recording", reason: str) -> None:
        own.replay, own.uncompiled = own.graph or tuple, reason
        own.check_at = own.calls + 1  # the recording has not been checked as it is
        if not self.quiet:
            warnings.warn(f"the step cannot be compiled and is recorded ({reason})", RuntimeWarning, stacklevel=4)

    def _fall_back(self, reason: str) -> None:
        self.reason = reason
        self._held = None
        self._recordings.clear()
        if not self.quiet:
            warnings.warn(f"the step cannot be recorded and is run eagerly ({reason})", RuntimeWarning, stacklevel=4)


@dataclass
class _Recording:
    """A recording of one structure of inputs, and when it was made, checked and replayed."""

    eager: int  # number of calls that run the step before it is recorded
    graph: GraphModule | None = None
    replay: Step = tuple
    uncompiled: str = ""  # why it cannot be compiled, if it cannot
    calls: int = 0
    check_at: int = 0
    checked_at: int = 0  # counted over all structures, as is the next
    replayed_at: int = 0
    unchecked: tuple[Any, ...] = ()  # the inputs of the last call that was replayed since the last check


@contextmanager
def _restored(owners: Sequence[Any], *names: str) -> Iterator[None]:
    """Put attributes back to what they are now."""
    before = [(owner, name, getattr(owner, name)) for owner in owners for name in names if hasattr(owner, name)]
    yield
    for owner, name, value in before:
        setattr(owner, name, value)


def kept_tensors() -> saved_tensors_hooks:
    """Return a context in which a torch checkpoint keeps what gradients need, instead of computing it again."""
    return saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
