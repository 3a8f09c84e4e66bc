"""Steps, comparisons of two steps, and torch's random state."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

Outputs = Sequence[Any]  # tensors, or None for the gradient of a parameter that has none
Step = Callable[..., Outputs]
IN_WORDS = {  # parts of torch's errors
    "value out of a tracing tensor": "it takes a number out of a tensor, as item() or a branch on data does",
    "DynamicOutputShape": "the size of a result depends on the data",
}


def constants_of(recording: GraphModule) -> list[Tensor]:
    """Return the tensors that a recording reads besides its inputs: parameters, buffers and constants."""
    names = dict.fromkeys(node.target for node in recording.graph.nodes if node.op == "get_attr")
    values = (getattr(recording, name) for name in names)
    return [value for value in values if isinstance(value, Tensor)]


def get_random_state() -> list[Tensor]:
    """Return the states of torch's random generators."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def set_random_state(state: list[Tensor]) -> None:
    """Set torch's random generators to states that `get_random_state` has returned."""
    torch.set_rng_state(state[0])
    if state[1:]:
        torch.cuda.set_rng_state_all(state[1:])


def reason_of(error: Exception) -> str:
    """Return why a step fails: in plain words, or by the kind of the error and its first line."""
    reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
    return next((words for sign, words in IN_WORDS.items() if sign in reason), reason)


def same(ones: Outputs, others: Outputs, tolerance: float = 0.0, errors: Sequence[float] = ()) -> bool:
    """Whether two results are equal, within a relative tolerance, or within an absolute error for each tensor."""
    if [one is None for one in ones] != [other is None for other in others]:
        return False
    pairs = [(one, other) for one, other in zip(ones, others, strict=True) if one is not None and other is not None]
    # Scalars are terms of one sum (a KL near 0 may be the difference of large terms), so they share one scale.
    numbers = max((norm_of(one) for one, _ in pairs if not one.dim()), default=0.0) if tolerance else 0.0

    def close(one: Tensor, other: Tensor, error: float) -> bool:
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if not (one.is_floating_point() or one.is_complex()):
            return torch.equal(one, other)
        size = tolerance and tolerance * (norm_of(one) if one.dim() else numbers)
        return torch.allclose(one, other, rtol=0, atol=max(size, error), equal_nan=True)

    return all(close(*pair, error) for pair, error in zip(pairs, errors or [0.0] * len(pairs), strict=True))


class Trial:
    """Compares a replacement for a step with the step itself, from the same state and on the same random numbers.

    The replacement is run first, and its changes are undone; then the step is run, and its changes stay.

    Two ways to compute the same sum differ by rounding, which is a thousand times larger in a sum of terms that cancel,
    such as a gradient near its optimum. The rounding is measured here: the replacement is also run with each parameter
    moved by the distance of two neighbouring numbers. Two correct ways have differed by up to 2.4 times as much.

    Arguments:
        stand_in: the replacement; any error that it raises is a failure.
        step: the step.
        state: returns the tensors that either of them changes in place.
        tolerance: relative to the norm of each tensor.
        parameters: the tensors of this state that are moved to measure rounding; without any, only the tolerance
            counts.

    Attributes:
        outputs: the outputs of the step.
        failure: the error of the replacement, or an empty text.
        same: whether both gave the same outputs and left the same state and, if ``noise``, the same random state.

    Example:
        >>> total = torch.zeros(())
        >>> trial = Trial(lambda: (total.add_(2),), lambda: (total.add_(1),), lambda: [total])
        >>> trial.same, total
        (False, tensor(1.))
    """

    ROUNDINGS = 10  # times the rounding that is measured

    def __init__(
        self,
        stand_in: Callable[[], Outputs],
        step: Callable[[], Outputs],
        state: Callable[[], Sequence[Tensor]],
        tolerance: float = 0.0,
        *,
        parameters: Sequence[Tensor] = (),
        noise: bool = True,
    ) -> None:
        restore, random_state = restorer(state()), get_random_state()

        def run(*moved: Tensor) -> tuple[Outputs, Outputs, list[Tensor]]:
            """Return the replacement's outputs, the state and the random state that it leaves, and restore both."""
            try:
                _move(moved)
                return copies(stand_in()), copies(state()), get_random_state()
            finally:
                restore()
                set_random_state(random_state)

        self.failure = ""
        try:
            outputs, left, random_left = run()
            moved, moved_left, _ = run(*parameters) if parameters else (outputs, left, None)
        except Exception as error:  # such as an error of the compiler, or of one that is missing
            self.failure = reason_of(error)
        self.outputs = step()
        with torch.no_grad():
            self.same = (
                not self.failure
                and same(self.outputs, outputs, tolerance, self._errors(outputs, moved))
                and same(state(), left, tolerance, self._errors(left, moved_left))
                and (not noise or same(random_left, get_random_state()))
            )

    def _errors(self, ones: Outputs, others: Outputs) -> list[float]:
        """Return the error of each tensor that rounding explains, where it is given twice."""
        pairs = [(one, other) for one, other in zip(ones, others, strict=True) if one is not None]
        return [self.ROUNDINGS * distance(one, other) for one, other in pairs]


@torch.no_grad()
def _move(parameters: Sequence[Tensor]) -> None:
    """Multiply each number by 1 + eps or 1 - eps at random, eps being the precision of its type."""
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        signs = 2 * torch.randint(2, parameter.shape, generator=generator) - 1
        parameter.mul_(1 + torch.finfo(parameter.dtype).eps * signs.to(parameter))


def restorer(values: Sequence[Tensor]) -> Callable[[], None]:
    """Return a function that gives tensors the values that they have now."""
    pairs = [(value, value.clone()) for value in values]

    @torch.no_grad()
    def restore() -> None:
        for value, before in pairs:
            if not same([value], [before]):
                value.copy_(before)

    return restore


def copies(values: Outputs) -> Outputs:
    """Return copies that later calls do not write into."""
    return [value if value is None else value.detach().clone() for value in values]


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two tensors' finite numbers."""
    if one is other or not one.numel() or not (one.is_floating_point() or one.is_complex()):
        return 0.0
    return float((one - other).abs().nan_to_num(0.0, 0.0, 0.0).max())


def norm_of(value: Tensor) -> float:
    """Return the norm of a tensor in double precision."""
    return float(torch.linalg.vector_norm(value.double()))


def import_tracers() -> None:
    """Import what torch's optimizers and recordings import at first use, without changing the warnings filters.

    Sympy, which is one of these imports, sets a filter for the whole process.
    """
    with warnings.catch_warnings():
        import torch._dynamo  # noqa: F401 (for its effect)
