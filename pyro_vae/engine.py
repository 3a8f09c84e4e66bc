"""How a step is computed: by running the Pyro programs, or by replaying a recording of their arithmetic."""

import dis
import functools
import sys
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.infer
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.batch import Batch, map_tensors, structure_of, tensors_of, with_tensors

ENGINES = ("auto", "eager", "recorded", "compiled")
PARTICLES = "num_particles_vectorized"  # the plate of pyro.infer.ELBO; seen in Pyro 1.9.2
NOISE = "noise"  # in a site's "infer": the handler of `pyro_vae.noise` that has drawn it, and which of these it lacks
INDEPENDENT, FRESH = "independent particles", "new noise at every step"
AGAIN = 100  # calls with inputs of another structure than the first, from which on it pays to record them, too
MOST = 8  # structures that are recorded
WORTHWHILE = 400  # steps: a recording and its checks take as long as about 200 steps save
TRUSTED = {
    "pyro_vae",
    "torch",
    "pyro",
    "zuko",
    "functools",
    "collections",
    "enum",
    "builtins",
}  # do the same at every step
LIBRARIES = {*sys.stdlib_module_names, "pyro", "pyro_vae", "torch"} - {"__main__"}
GLOBAL, ATTRIBUTE = ("LOAD_GLOBAL", "LOAD_NAME"), ("LOAD_ATTR", "LOAD_METHOD")  # operations of Python
MANY = 1000  # elements: of a longer list or array, only the length is watched
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, types.ModuleType)
HOOKS = [each for name, each in vars(torch.nn.modules.module).items() if name.startswith("_global_")]  # on all modules
CHANGED = "what the programs hold in Python changes from step to step"
Outputs = Sequence[Any]  # tensors, or None for the gradient of a parameter that has none
Step = Callable[..., Outputs]


class Held:
    """What Python objects hold: all attributes, elements, closures and the globals that functions of others read.

    A recording knows numbers of Python and which tensors it reads only as they were when it was made.

    Arguments:
        roots: where to begin.

    Attributes:
        foreign: words for the first function or class found that is neither of this package nor of one in `TRUSTED`,
            which may do something else at every step; empty where there is none.

    Example:
        >>> layer = torch.nn.Dropout(0.5)
        >>> held = Held(layer)
        >>> held.unchanged(), held.foreign
        (True, '')
        >>> layer.p = 0.1
        >>> held.unchanged()
        False
    """

    def __init__(self, *roots: Any) -> None:
        self.foreign = ""
        self._seen: dict[int, Any] = {}  # which keeps all objects, and so their identities
        self._reads: list[tuple[Callable[[Any], Any], Any, Any]] = []
        self._empty: list[Any] = []  # what is empty, as most dictionaries of a module are: looked at together
        self._tensors: list[Tensor] = []
        waiting = [*roots, *HOOKS]
        while waiting:
            value = waiting.pop()
            if not isinstance(value, PLAIN) and id(value) not in self._seen:
                self._seen[id(value)] = value
                waiting += self._inside(value)
        self._flags = self._tensor_flags()

    def unchanged(self) -> bool:
        """Whether all objects hold what they held."""
        return (
            not any(self._empty)
            and all(read(container) == before for read, container, before in self._reads)
            and self._tensor_flags() == self._flags
        )

    def _tensor_flags(self) -> list[Any]:
        return [(tensor.requires_grad, len(tensor._backward_hooks or ())) for tensor in self._tensors]

    def _inside(self, value: Any) -> list[Any]:
        """Watch an object, and return what it holds."""
        if isinstance(value, dict):
            return self._watch(_of_dict, value, list(value.values()))
        if isinstance(value, list | set | deque):
            return self._watch(_of_elements if len(value) <= MANY else len, value, list(value)[:MANY])
        if isinstance(value, tuple | frozenset):
            return list(value)
        if isinstance(value, np.ndarray):
            return self._watch(np.ndarray.tobytes if value.size <= MANY else len, value, [])
        if isinstance(value, types.CellType):
            return self._watch(lambda cell: _of_elements(held_in(cell)), value, held_in(value))
        if isinstance(value, types.MethodType):
            return [value.__self__, value.__func__]
        self._look_for_foreign(value)
        if isinstance(value, Tensor):
            self._tensors.append(value)
            return list((value._backward_hooks or {}).values())
        parts: list[Any] = [vars(value)] if hasattr(value, "__dict__") and not isinstance(value, type) else []
        if isinstance(value, functools.partial):
            return [*parts, value.func, value.args, value.keywords]
        if isinstance(value, types.FunctionType):
            if root_of(value) not in TRUSTED:
                parts += self._watch(lambda function: _of_elements(read_globals(function)), value, read_globals(value))
            return [*parts, value.__defaults__, value.__kwdefaults__, *(value.__closure__ or ())]
        return parts

    def _watch(self, read: Callable[[Any], Any], container: Any, inside: list[Any]) -> list[Any]:
        if read in (_of_dict, _of_elements) and not container:
            self._empty.append(container)
        else:
            self._reads.append((read, container, read(container)))
        self._seen |= {id(each): each for each in inside if isinstance(each, PLAIN)}
        return inside

    def _look_for_foreign(self, value: Any) -> None:
        described = value if isinstance(value, type | types.FunctionType) else type(value)
        for each in (described, *_methods_of(described)):  # a method may have been put on a class of torch
            if not self.foreign and root_of(each) not in TRUSTED:
                kind = "function" if isinstance(each, types.FunctionType) else "class"
                self.foreign = f"the {kind} {each.__qualname__} of {each.__module__}"


def slots_of(value: Any) -> list[str]:
    """Return the names of an object's slots.

    Example:
        >>> slots_of(1), slots_of(type("Point", (), {"__slots__": ("x", "y")})())
        ([], ['x', 'y'])
    """
    slots = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
    names = [name for each in slots for name in ([each] if isinstance(each, str) else each)]
    return [name for name in names if not name.startswith("__")]


def _methods_of(described: Any) -> list[types.FunctionType]:
    classes = [cls for cls in getattr(described, "__mro__", ()) if root_of(cls) in TRUSTED]
    return [each for cls in classes for each in vars(cls).values() if isinstance(each, types.FunctionType)]


def root_of(described: Any) -> str:
    """Return the name of the package that a function or class is of."""
    return str(getattr(described, "__module__", None) or "builtins").partition(".")[0]


def _of_dict(value: dict[Any, Any]) -> list[Any]:
    return [*value, *map(id, value.values())]


def _of_elements(value: Any) -> list[int]:
    return list(map(id, value))


def held_in(cell: Any) -> list[Any]:
    """Return what a closure's cell holds, if anything, in a list."""
    try:
        return [cell.cell_contents]
    except ValueError:  # nothing is in it yet
        return []


def read_globals(function: types.FunctionType) -> list[Any]:
    """Return the values that a function reads from the names of its module, and from modules of the user's own.

    Example:
        >>> def area(circle):
        ...     return pi * circle.radius**2
        >>> pi, radius = 3.0, 1.0
        >>> read_globals(area)  # radius is an attribute
        [3.0]
    """
    values, code = function.__globals__, function.__code__
    read = [values[name] for name in _names(code, GLOBAL) if name in values]
    modules = _own_modules(read)
    for module in modules:  # which grows by the modules within modules
        held = [vars(module)[name] for name in _names(code, ATTRIBUTE) if name in vars(module)]
        read += held
        modules += [each for each in _own_modules(held) if each not in modules]
    return read


def _own_modules(values: list[Any]) -> list[types.ModuleType]:
    return [each for each in values if isinstance(each, types.ModuleType) and not of_library(each.__name__)]


def of_library(module: str) -> bool:
    """Whether a module, by name, is none of the user's, but of Python or of an installed package.

    Example:
        >>> of_library("math"), of_library("torch.nn"), of_library("theirs")
        (True, True, False)
    """
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return module.partition(".")[0] in LIBRARIES or "site-packages" in file or "dist-packages" in file


@functools.lru_cache(10_000)  # a recording asks at every step
def _names(code: types.CodeType, operations: tuple[str, ...]) -> list[str]:
    """Return the names that a function's code, and the code within it, looks up by some operations."""
    names = {each.argval for each in dis.get_instructions(code) if each.opname in operations}
    within = [_names(each, operations) for each in code.co_consts if isinstance(each, types.CodeType)]
    return sorted(names.union(*within))


class Changes(TorchDispatchMode):
    """Keeps what tensors are before an operation changes them in place, such as running means.

    Example:
        >>> count = torch.zeros(1)
        >>> with Changes() as changes:
        ...     _ = count.add_(1)
        >>> changes.undo()
        >>> count
        tensor([0.])
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        arguments = func._schema.arguments
        named = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
        for argument in arguments:
            # The schema of a batch normalization does not say that it changes its running moments.
            if argument.name.startswith("running_") or (argument.alias_info and argument.alias_info.is_write):
                values = named.get(argument.name)
                for value in values if isinstance(values, list | tuple) else [values]:
                    if isinstance(value, Tensor) and id(value) not in self._before:
                        self._before[id(value)] = value, value.clone()
        return func(*args, **kwargs)

    @torch.no_grad()
    def undo(self) -> None:
        """Put back what they were."""
        for value, before in reversed(self._before.values()):
            if value.shape == before.shape:
                value.copy_(before)
            else:  # it was transposed in place, or given another size
                value.data = before


class _OneHot(TorchFunctionMode):
    """Make one-hot codes without a look at the labels, as torch's own takes one, which no recording can replay."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        return (_one_hot if func is one_hot else func)(*args, **(kwargs or {}))


def _one_hot(input: Tensor, num_classes: int = -1) -> Tensor:  # noqa: A002 (torch's name)
    if num_classes == -1:  # as many as there are in the data, which a recording does not know
        return one_hot(input)
    return input.new_zeros(*input.shape, num_classes).scatter(-1, input[..., None], 1)


class Recorded:
    """A step that runs its programs a few times, and from then on replays the arithmetic that they did.

    The first call runs the step itself, so that lazy initialization happens before recording. The second one records
    every tensor operation of the step, gradients included, by ``make_fx``. At the third, and whenever the number of
    calls has doubled since, the recording is run beside the step, on the same random numbers, and must give the same
    outputs to the last bit (within a relative ``tolerance`` where it is compiled or runs on a GPU, whose sums have
    another order; single numbers are compared with the largest of them); all other calls run the recording alone.
    Parameters and buffers are the programs' own, not copies, and noise is drawn anew at every call.

    Each structure of the inputs (shapes, types, strides, and the numbers of Python among them) has a recording of its
    own; inputs that hold other objects are left to the step.
    Structures other than the first, such as the smaller batch at the end of an epoch, are recorded once they have been
    met `AGAIN` times; those beyond the first `MOST` never are. Everything is left to the step where it cannot be
    recorded (a branch of Python on data), differs from its recording at the first check, or where something that the
    step holds in Python has changed (see `Held`). A difference that a later check finds is an
    error, as the steps since the check before it were replayed.

    Arguments:
        step: a function of a batch, and of further tensors and numbers, to tensors or None.
        compiled: have ``torch.compile`` make one kernel of many operations. This takes seconds, once.
        quiet: do not warn where the step cannot be recorded.
        tolerance: of what is compiled, or runs on a GPU.
        graphs: on a GPU, have the compiler replay its kernels as a CUDA graph; not where a `WholeStep` is one.

    Raises:
        ValueError: by a call or by `verify`, where a check finds that replayed steps may have been wrong.

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
        """Keep in mind that a recording has been replayed on these inputs, by a call from outside."""
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

        All tensors and the random state are put back. Programs in which something has changed, which the next call will
        notice, are not checked: they no longer are those that were recorded.

        Raises:
            ValueError: where the programs do not do what was recorded.
        """
        for own in self._recordings.values():
            if own.unchecked and own.graph is not None and self._is_current():
                random_state = _random_state()
                with Changes() as changes:
                    self._check(own, own.unchecked)
                changes.undo()
                _set_random_state(random_state)

    def _is_current(self) -> bool:
        return self._held is not None and self._held.unchanged()

    def __str__(self) -> str:
        if self.reason:
            return f"eager: the step cannot be recorded ({self.reason})"
        return f"{'compiled' if self.compiled else 'recorded'}: {self.replayed} of {self.calls} steps were replayed"

    def _record(self, own: "_Recording", inputs: tuple[Any, ...]) -> Outputs:
        import_tracers()
        from torch.fx.experimental.proxy_tensor import make_fx

        outputs: Outputs = ()

        def step(*tensors: Tensor) -> Outputs:
            nonlocal outputs
            outputs = self.step(*with_tensors(inputs, tensors))
            return outputs

        random_state, before = _random_state(), self._hold()
        try:
            with Changes() as changes, _kept_on_device(), _OneHot():
                own.graph = make_fx(step)(*tensors_of(inputs))
        except Exception as error:  # any program may stand here, and fail in any way
            changes.undo()
            _set_random_state(random_state)
            if not before.unchanged():  # what Python holds cannot be put back
                raise ValueError(f"the step cannot be recorded ({_reason(error)}): take engine='eager'") from error
            self._fall_back(_reason(error))
            return self.step(*inputs)
        own.replay, self._held, own.checked_at = own.graph, self._hold(), self.calls
        if not before.unchanged():
            self._fall_back(CHANGED)
        return outputs

    def _hold(self) -> Held:
        return Held(self.step, pyro.get_param_store())

    def _check(self, own: "_Recording", inputs: tuple[Any, ...]) -> Outputs:
        graph: Any = own.graph  # which has been made
        tensors = tensors_of(inputs)
        state = [(value, value.clone()) for value in _constants(graph)]  # programs may change any, and parameters
        random_state = _random_state()
        failure = ""
        replayed: Outputs = ()
        with torch.no_grad():
            try:
                if self.compiled and not own.compiled:
                    own.replay, own.compiled = _compiled(graph, self.graphs, *tensors), True
                replayed = own.replay(*tensors)
            except Exception as error:  # of the compiler, or where there is none
                failure = _reason(error)
            for value, before in state:  # such as the running mean of a batch normalization, or a codebook
                if not _same([value], [before]):
                    value.copy_(before)
        after = _random_state()
        _set_random_state(random_state)
        outputs = self.step(*inputs)
        tolerance = self.tolerance if self.compiled or tensors[0].device.type != "cpu" else 0.0
        if not (failure or (_same(outputs, replayed, tolerance) and _same(after, _random_state()))):
            failure = "the programs' arithmetic is not the same at every step"
        if failure and own.unchecked:
            first, last = self.first + own.checked_at, self.first + own.replayed_at - 1
            raise ValueError(
                f"the programs no longer do what was recorded ({failure}): steps {first} to {last}, replayed since the"
                f" last check, cannot be trusted; train, or resume the checkpoint from before, with engine='eager'"
            )
        if failure:
            self._fall_back(failure)
        own.checked_at, own.unchecked = self.calls, ()
        return outputs

    def _fall_back(self, reason: str) -> None:
        self.reason = reason
        self._held = None
        self._recordings.clear()
        if not self.quiet:
            warnings.warn(f"the step cannot be recorded and is run eagerly ({reason})", RuntimeWarning, stacklevel=4)


@dataclass
class _Recording:
    """A recording of one structure of inputs, and when it was made, checked and replayed."""

    eager: int  # calls that the step takes before it is recorded
    graph: GraphModule | None = None
    replay: Step = tuple
    compiled: bool = False
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


class WholeStep:
    """A step on a GPU, its optimizer included, that is captured as one CUDA graph, and then launched by a single call.

    It is captured once its recording has been replayed a few times. Before the graph is trusted it is run beside the
    step, from the same state and on the same random numbers, and must change the state alike, to the recording's
    tolerance. Batches of another structure than the first, and the calls at which the recording is checked, are left to
    the step; an optimizer whose settings change, such as its learning rate, has the step captured anew.

    Arguments:
        step: a function of a batch, a KL weight and the number of data to a tensor. It changes tensors in place, never
            waits for the device, and computes by ``recorded``.
        recorded: the recording of the step's arithmetic.
        optim: the optimizer, a fused one.
        state: returns all tensors that the step changes, but for the optimizer's own.
    """

    WARM = 3  # replays of the recording, after which nothing is made lazily any more

    def __init__(
        self,
        step: Callable[[Batch, Tensor | float, int], Tensor],
        recorded: Recorded,
        optim: torch.optim.Optimizer,
        state: Callable[[], Sequence[Tensor]],
    ) -> None:
        self.step, self.recorded, self.optim, self.state = step, recorded, optim, state
        recorded.graphs = False
        for group in optim.param_groups:
            group |= {"capturable": True} if "capturable" in group else {}
        self.launched = 0
        self.reason = ""
        self._launch: Callable[[], Tensor] | None = None
        self._inputs: list[Tensor] = []
        self._captured_with: list[Any] = []

    def __call__(self, batch: Batch, weight: Tensor | float, count: int) -> Tensor:
        """Return what the step returns."""
        recorded = self.recorded
        ready = recorded.replayed >= self.WARM and recorded.replays(batch, weight, count)
        if self.reason or not ready:
            return self.step(batch, weight, count)
        if self._launch is None or self._captured_with != self._settings():
            return self._capture(batch, weight, count)
        for own, value in zip(self._inputs, tensors_of((batch, weight)), strict=True):
            own.copy_(value)
        recorded.count_replay(batch, weight, count)
        self.launched += 1
        return self._launch()

    def _capture(self, batch: Batch, weight: Tensor | float, count: int) -> Tensor:
        own_batch, own_weight = map_tensors(Tensor.clone, (batch, weight))
        self._inputs = tensors_of((own_batch, own_weight))
        self._captured_with = self._settings()
        before, random_state = [value.clone() for value in self._state()], _random_state()
        launched: list[Tensor] = []
        with self.recorded.uncounted():
            try:
                self._launch = _on_one_graph(lambda: self.step(own_batch, own_weight, count))
                self._launch()
                launched = [value.clone() for value in self._state()]
            except RuntimeError as error:  # of CUDA, at what waits for the device or cannot be captured
                self.reason = _reason(error)
        with torch.no_grad():
            for value, value_before in zip(self._state(), before, strict=True):
                value.copy_(value_before)
        _set_random_state(random_state)
        output = self.step(batch, weight, count)
        with torch.no_grad():
            if not (self.reason or _same(self._state(), launched, self.recorded.tolerance)):
                self.reason = "its result differs from the ordinary step"
        if self.reason:
            self._launch = None
            warnings.warn(f"CUDA graph disabled: {self.reason}", RuntimeWarning, stacklevel=3)
        return output

    def _state(self) -> list[Tensor]:
        own = [value for values in self.optim.state.values() for value in values.values() if isinstance(value, Tensor)]
        return [*self.state(), *own]

    def _settings(self) -> list[Any]:
        groups = self.optim.param_groups
        return [[value for name, value in group.items() if name != "params"] for group in groups]


def _on_one_graph(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture a function's work on the GPU, without doing it, and return what does it and returns its result."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()

    def launch() -> Tensor:
        graph.replay()
        return result.clone()  # the next launch writes there again

    return launch


def chosen(
    step: Step, engine: str, steps: int, *, tolerance: float = 1e-5, unless: str = ""
) -> tuple[Step, Callable[[], str]]:
    """Return what computes a step, and what says in a line, when all is done, how that was and why.

    Arguments:
        step: what `Recorded` takes.
        engine: one of `ENGINES`.
        steps: how many there will be.
        tolerance: of what is compiled, or runs on a GPU.
        unless: words for what keeps the step from being recorded, if anything does.

    Returns:
        A function with the step's arguments and results, and one that returns the line.

    Example:
        >>> compute, how = chosen(lambda x: (x + 1,), "auto", steps=10)
        >>> compute(torch.zeros(1)), how()
        ((tensor([1.]),), 'eager: 10 steps are too few to gain from a recording')
    """
    if engine == "eager":
        return step, lambda: "eager, as asked"
    if unless:
        if engine != "auto":
            warnings.warn(f"the step is not recorded, and run eagerly ({unless})", RuntimeWarning, stacklevel=3)
        return step, lambda: f"eager: {unless}"
    if engine == "auto" and steps < WORTHWHILE:
        count = "1 step is" if steps == 1 else f"{steps} steps are"
        return step, lambda: f"eager: {count} too few to gain from a recording"
    if engine == "auto" and (foreign := Held(step).foreign):
        fix = "if it does not, engine='recorded' saves the time that Pyro takes in each step"
        return step, lambda: f"eager: {foreign} may do something else at each step; {fix}"
    recorded = Recorded(step, compiled=engine == "compiled", quiet=engine == "auto", tolerance=tolerance)
    return recorded, lambda: str(recorded)


def import_tracers() -> None:
    """Import what torch's optimizers and recordings import when they are first used, without a trace in the filters.

    Sympy, which is among it, sets a filter of the process's warnings.
    """
    with warnings.catch_warnings():
        import torch._dynamo  # noqa: F401 (for its effect)


def kept_tensors() -> saved_tensors_hooks:
    """Return the context in which a checkpoint around it keeps what the gradients need, and does not run it again."""
    return saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


def _constants(recording: GraphModule) -> list[Tensor]:
    """Return the tensors from outside that a recording reads: parameters, buffers and numbers of the programs."""
    names = dict.fromkeys(node.target for node in recording.graph.nodes if node.op == "get_attr")
    values = (getattr(recording, name) for name in names)
    return [value for value in values if isinstance(value, Tensor)]


def _compiled(recording: GraphModule, graphs: bool, *inputs: Tensor) -> Step:
    """Have torch's compiler make kernels of a recording, without the checks of ``torch.compile`` at every call."""
    import torch._inductor

    # What the recording reads from outside becomes its first inputs: a constant might be built into a kernel. So does
    # what no compiler takes, as its shape hangs on values, if these are not of the data: the places of a mask's ones.
    read = {node: getattr(recording, node.target) for node in recording.graph.nodes if node.op == "get_attr"}
    found = {node: _value(node, read) for node in recording.graph.nodes if _has_open_shape(node) and _is_fixed(node)}
    by_identity = {id(value): value for value in (read | found).values()}
    graph, constants = Graph(), list(by_identity.values())
    given = {name: graph.placeholder(f"constant_{number}") for number, name in enumerate(by_identity)}
    copies: dict[Node, Node] = {node: given[id(value)] for node, value in (read | found).items()}
    for node in recording.graph.nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.get)
    examples: list[Any] = [*constants, *inputs]
    on_gpu = any(isinstance(example, Tensor) and example.is_cuda for example in examples)
    # Random numbers are those of the uncompiled recording.
    options = {"fallback_random": True, "triton.cudagraphs": on_gpu and graphs}
    kernels = torch._inductor.compile(GraphModule({}, graph), examples, options=options)
    return lambda *inputs: kernels(*constants, *inputs)


def _is_fixed(node: Node) -> bool:
    """Whether a node hangs on no input, and on no random number."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return node.op == "get_attr" or (
        node.op == "call_function" and not random and all(map(_is_fixed, node.all_input_nodes))
    )


def _has_open_shape(node: Node) -> bool:
    return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())


def _value(node: Node, read: dict[Node, Tensor]) -> Any:
    """Compute a fixed node."""
    if node in read:
        return read[node]
    args, kwargs = map_arg((node.args, node.kwargs), lambda argument: _value(argument, read))
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def _set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if state[1:]:
        torch.cuda.set_rng_state_all(state[1:])


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


def _same(ones: Outputs, others: Outputs, tolerance: float = 0.0) -> bool:
    if [one is None for one in ones] != [other is None for other in others]:
        return False
    pairs = [(one, other) for one, other in zip(ones, others, strict=True) if one is not None and other is not None]
    # Numbers are terms of one sum, such as a KL near 0 that is a difference of large ones: they have one norm.
    numbers = max((_norm(one) for one, _ in pairs if not one.dim()), default=0.0) if tolerance else 0.0

    def close(one: Tensor, other: Tensor) -> bool:
        size = tolerance and tolerance * (_norm(one) if one.dim() else numbers)
        return torch.allclose(one, other, rtol=0, atol=size, equal_nan=True)

    return all(one.shape == other.shape and one.dtype == other.dtype and close(one, other) for one, other in pairs)


def _norm(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value.double()))


@contextmanager
def _kept_on_device() -> Iterator[None]:
    """Have Pyro's ELBOs (seen in 1.9) neither turn tensors into numbers nor branch on them, and put all back."""
    without = {
        "torch_item": lambda x: x.detach().double() if isinstance(x, Tensor) else x,  # numbers of Python are double
        "warn_if_nan": lambda *_, **__: None,  # `fit` stops at what is not finite
    }
    modules = [
        pyro.infer.trace_elbo,
        pyro.infer.trace_mean_field_elbo,
        pyro.infer.tracegraph_elbo,
        pyro.infer.traceenum_elbo,
    ]
    before = [(module, name, getattr(module, name)) for module in modules for name in without if hasattr(module, name)]
    try:
        for module, name, _ in before:
            setattr(module, name, without[name])
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)
