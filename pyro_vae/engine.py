"""How a step is computed: by running the Pyro programs, or by replaying a recording of their arithmetic."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro.infer
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

ENGINES = ("auto", "eager", "recorded", "compiled")
PARTICLES = "num_particles_vectorized"  # the plate of pyro.infer.ELBO; seen in Pyro 1.9.2
NOISE = "noise"  # in a site's "infer": the handler of `pyro_vae.noise` that has drawn it, and which of these it lacks
INDEPENDENT, FRESH = "independent particles", "new noise at every step"
WORTHWHILE = 400  # steps: a recording and its checks take as long as about 200 steps save
Outputs = Sequence[Any]  # tensors, or None for the gradient of a parameter that has none
Step = Callable[..., Outputs]


class Recorded:
    """A step that runs its programs a few times, and from then on replays the arithmetic that they did.

    The first call runs the step itself, so that whatever is made lazily is made. The second one records every tensor
    operation of the step, gradients included, by ``make_fx``. At the third, and whenever the number of calls has
    doubled since, the recording is run beside the step, on the same random numbers, and must give the same outputs to
    the last bit (compiled, or on a GPU, where sums have another order, to ``tolerance`` times their norm, that of the
    largest for all numbers); all other calls run the recording alone. Parameters and buffers are the programs' own, not
    copies, and noise is drawn anew at every call.

    A batch of another shape than the first, such as the last one of an epoch, is left to the step. So is everything
    from where a step cannot be recorded (a branch of Python on data), or differs from its recording.

    Arguments:
        step: a function of tensors, and of numbers that never change, to tensors or None.
        compiled: have ``torch.compile`` make one kernel of many operations. This takes seconds, once.
        quiet: do not warn where the step cannot be recorded.
        tolerance: of what is compiled, or runs on a GPU.
        graphs: on a GPU, have the compiler replay its kernels as a CUDA graph; not where a `WholeStep` is one.

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
        self.reason = ""
        self._check_at = 0
        self.shape = torch.Size()  # of the first batch
        self._recording: GraphModule | None = None
        self._replay: Step = step

    def __call__(self, batch: Tensor, *inputs: Tensor | float) -> Outputs:
        """Return the step's outputs."""
        self.calls += 1
        if self.calls == 1:
            self.shape = batch.shape
        if self.calls == 1 or self.reason or batch.shape != self.shape:
            return self.step(batch, *inputs)
        if self._recording is None:
            return self._record(batch, *inputs)
        if self.calls >= self._check_at:
            return self._check(self._recording, batch, *inputs)
        self.replayed += 1
        with torch.no_grad():
            return self._replay(batch, *inputs)

    @property
    def replays_next(self) -> bool:
        """Whether the next call, with a batch of the first one's shape, runs the recording alone."""
        return self._recording is not None and self.calls + 1 < self._check_at

    def __str__(self) -> str:
        if self.reason:
            return f"eager: the step cannot be recorded ({self.reason})"
        return f"{'compiled' if self.compiled else 'recorded'}: {self.replayed} of {self.calls} steps were replayed"

    def _record(self, *inputs: Tensor | float) -> Outputs:
        from torch.fx.experimental.proxy_tensor import make_fx

        outputs: Outputs = ()

        def step(*args: Tensor | float) -> Outputs:
            nonlocal outputs
            outputs = self.step(*args)
            return outputs

        random_state = _random_state()
        try:
            with _kept_on_device():
                self._recording = make_fx(step)(*inputs)
        except Exception as error:  # any program may stand here, and fail in any way
            self._fall_back(_reason(error))
            _set_random_state(random_state)
            return self.step(*inputs)
        self._replay = self._recording
        return outputs

    def _check(self, recording: GraphModule, batch: Tensor, *inputs: Tensor | float) -> Outputs:
        self._check_at = 2 * self.calls
        changing = [value for value in _constants(recording) if not (value.is_leaf and value.requires_grad)]
        state = [(value, value.clone()) for value in changing]
        random_state = _random_state()
        failure = ""
        replayed: Outputs = ()
        with torch.no_grad():
            try:
                if self.compiled and self._replay is recording:
                    self._replay = _compiled(recording, self.graphs, batch, *inputs)
                replayed = self._replay(batch, *inputs)
            except Exception as error:  # of the compiler, or where there is none
                failure = _reason(error)
            for value, before in state:  # such as the running mean of a batch normalization
                if not _same([value], [before]):
                    value.copy_(before)
        after = _random_state()
        _set_random_state(random_state)
        outputs = self.step(batch, *inputs)
        tolerance = self.tolerance if self.compiled or batch.device.type != "cpu" else 0.0
        if failure:
            self._fall_back(failure)
        elif not (_same(outputs, replayed, tolerance) and _same(after, _random_state())):
            self._fall_back("the programs' arithmetic is not the same at every step")
        return outputs

    def _fall_back(self, reason: str) -> None:
        self.reason = reason
        self._recording = None
        if not self.quiet:
            warnings.warn(f"the step cannot be recorded and is run eagerly ({reason})", RuntimeWarning, stacklevel=4)


class WholeStep:
    """A step on a GPU, its optimizer included, that is captured as one CUDA graph, and then launched by a single call.

    It is captured once its recording has been replayed a few times. Before the graph is trusted it is run beside the
    step, from the same state and on the same random numbers, and must change the state alike, to the recording's
    tolerance. Batches of another shape, and the calls at which the recording is checked, are left to the step; an
    optimizer whose settings change, such as its learning rate, has the step captured anew.

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
        step: Callable[[Tensor, Tensor | float, int], Tensor],
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
        self._inputs: tuple[Any, ...] = ()
        self._captured_with: list[Any] = []

    def __call__(self, batch: Tensor, weight: Tensor | float, count: int) -> Tensor:
        """Return what the step returns."""
        recorded = self.recorded
        ready = recorded.replays_next and recorded.replayed >= self.WARM and batch.shape == recorded.shape
        if self.reason or not ready:
            return self.step(batch, weight, count)
        if self._launch is None or self._captured_with != self._settings():
            return self._capture(batch, weight, count)
        for own, value in zip(self._inputs, (batch, weight), strict=True):
            if isinstance(value, Tensor):
                own.copy_(value)
        recorded.calls += 1
        recorded.replayed += 1
        self.launched += 1
        return self._launch()

    def _capture(self, batch: Tensor, weight: Tensor | float, count: int) -> Tensor:
        own_batch, own_weight = batch.clone(), weight.clone() if isinstance(weight, Tensor) else weight
        self._inputs = own_batch, own_weight
        self._captured_with = self._settings()
        counted = self.recorded.calls, self.recorded.replayed
        before, random_state = [value.clone() for value in self._state()], _random_state()
        launched: list[Tensor] = []
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
        self.recorded.calls, self.recorded.replayed = counted
        output = self.step(batch, weight, count)
        with torch.no_grad():
            if not (self.reason or _same(self._state(), launched, self.recorded.tolerance)):
                self.reason = "it does not do what the step does"
        if self.reason:
            self._launch = None
            warnings.warn(f"the step does not become a CUDA graph ({self.reason})", RuntimeWarning, stacklevel=3)
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
        return step, lambda: f"eager: {steps} steps are too few to gain from a recording"
    recorded = Recorded(step, compiled=engine == "compiled", quiet=engine == "auto", tolerance=tolerance)
    return recorded, lambda: str(recorded)


def kept_tensors() -> saved_tensors_hooks:
    """Return the context in which a checkpoint around it keeps what the gradients need, and does not run it again."""
    return saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


def _constants(recording: GraphModule) -> list[Tensor]:
    """Return the tensors from outside that a recording reads: parameters, buffers and numbers of the programs."""
    names = dict.fromkeys(node.target for node in recording.graph.nodes if node.op == "get_attr")
    values = (getattr(recording, name) for name in names)
    return [value for value in values if isinstance(value, Tensor)]


def _compiled(recording: GraphModule, graphs: bool, *inputs: Tensor | float) -> Step:
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
