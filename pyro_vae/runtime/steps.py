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


def same(ones: Outputs, others: Outputs, tolerance: float = 0.0) -> bool:
    """Whether two results are equal, or within a relative tolerance."""
    if [one is None for one in ones] != [other is None for other in others]:
        return False
    pairs = [(one, other) for one, other in zip(ones, others, strict=True) if one is not None and other is not None]
    # Numbers are terms of one sum, such as a KL near 0 that is a difference of large ones: they have one norm.
    numbers = max((norm_of(one) for one, _ in pairs if not one.dim()), default=0.0) if tolerance else 0.0

    def close(one: Tensor, other: Tensor) -> bool:
        if not (one.is_floating_point() or one.is_complex()):
            return torch.equal(one, other)
        size = tolerance and tolerance * (norm_of(one) if one.dim() else numbers)
        return torch.allclose(one, other, rtol=0, atol=size, equal_nan=True)

    return all(one.shape == other.shape and one.dtype == other.dtype and close(one, other) for one, other in pairs)


class Trial:
    """Runs a stand-in for a step, and then the step itself, from the same state and on the same random numbers.

    What the step has done stays, and what the stand-in has done does not.

    Arguments:
        stand_in: what is on trial; whatever it raises is a failure.
        step: what it stands for.
        state: returns the tensors that either changes in place.
        tolerance: relative to each tensor's norm.

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

    def __init__(
        self,
        stand_in: Callable[[], Outputs],
        step: Callable[[], Outputs],
        state: Callable[[], Sequence[Tensor]],
        tolerance: float = 0.0,
        *,
        noise: bool = True,
    ) -> None:
        before, random_state = [(value, value.clone()) for value in state()], get_random_state()
        self.failure = ""
        outputs: Outputs = ()
        try:
            outputs = stand_in()
        except Exception as error:  # such as of the compiler, or where there is none
            self.failure = reason_of(error)
        with torch.no_grad():
            left, random_left = [value.clone() for value in state()], get_random_state()
            for value, value_before in before:
                if not same([value], [value_before]):
                    value.copy_(value_before)
        set_random_state(random_state)
        self.outputs = step()
        with torch.no_grad():
            self.same = (
                not self.failure
                and same(self.outputs, outputs, tolerance)
                and same(state(), left, tolerance)
                and (not noise or same(random_left, get_random_state()))
            )


def norm_of(value: Tensor) -> float:
    """Return the norm of a tensor in double precision."""
    return float(torch.linalg.vector_norm(value.double()))


def import_tracers() -> None:
    """Import what torch's optimizers and recordings import when they are first used, without a trace in the filters.

    Sympy, which is among it, sets a filter of the process's warnings.
    """
    with warnings.catch_warnings():
        import torch._dynamo  # noqa: F401 (for its effect)
