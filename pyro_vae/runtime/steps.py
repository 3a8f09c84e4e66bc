"""What a step is, whether another does the same, and the random state behind them."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

Outputs = Sequence[Any]  # tensors, or None for the gradient of a parameter that has none
Step = Callable[..., Outputs]


def constants_of(recording: GraphModule) -> list[Tensor]:
    """Return the tensors from outside that a recording reads: parameters, buffers and numbers of the programs."""
    names = dict.fromkeys(node.target for node in recording.graph.nodes if node.op == "get_attr")
    values = (getattr(recording, name) for name in names)
    return [value for value in values if isinstance(value, Tensor)]


def get_random_state() -> list[Tensor]:
    """Return the states of torch's random generators."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def set_random_state(state: list[Tensor]) -> None:
    """Set torch's random generators to states that were returned before."""
    torch.set_rng_state(state[0])
    if state[1:]:
        torch.cuda.set_rng_state_all(state[1:])


def reason_of(error: Exception) -> str:
    """Return the kind and the first line of an error."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


def same(ones: Outputs, others: Outputs, tolerance: float = 0.0, errors: Sequence[float] = ()) -> bool:
    """Whether two results are equal, within a relative tolerance, or within an absolute error for each tensor."""
    if [one is None for one in ones] != [other is None for other in others]:
        return False
    pairs = [(one, other) for one, other in zip(ones, others, strict=True) if one is not None and other is not None]
    # Numbers are terms of one sum, such as a KL near 0 that is a difference of large ones: they have one norm.
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
    """Runs a stand-in for a step, and then the step itself, from the same state and on the same random numbers.

    What the step has done stays, and what the stand-in has done does not.

    Two ways to compute the same sum differ by rounding, which a sum of terms that cancel, such as a gradient near its
    optimum, shows a thousandfold. How much it is here is measured: the stand-in is also run with each parameter moved
    by the distance of two neighbouring numbers. Two correct ways have been seen up to 2.4 times as far apart as that.

    Arguments:
        stand_in: what is on trial; whatever it raises is a failure.
        step: what it stands for.
        state: returns the tensors that either changes in place.
        tolerance: relative to each tensor's norm.
        parameters: what is moved in order to measure rounding; without any, the tolerance alone counts.

    Attributes:
        outputs: the step's.
        failure: why the stand-in failed, if it raised something.
        same: whether both gave the same outputs, and left the same state and, if ``noise`` is compared, generators.

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
        before, random_state = [(value, value.clone()) for value in [*state(), *parameters]], get_random_state()

        def run() -> tuple[Outputs, Outputs, list[Tensor]]:
            """Return what the stand-in gives, the state and the random state that it leaves, and put both back."""
            try:
                return copies(stand_in()), copies(state()), get_random_state()
            finally:
                with torch.no_grad():
                    for value, value_before in before:
                        if not same([value], [value_before]):
                            value.copy_(value_before)
                set_random_state(random_state)

        self.failure = ""
        try:
            outputs, left, random_left = run()
            moved, moved_left = outputs, left
            if parameters:
                _move(parameters)
                moved, moved_left, _ = run()
        except Exception as error:  # such as of the compiler, or where there is none
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
    """Import what torch's optimizers and recordings import when they are first used, without a trace in the filters.

    Sympy, which is among it, sets a filter of the process's warnings.
    """
    with warnings.catch_warnings():
        import torch._dynamo  # noqa: F401 (for its effect)
