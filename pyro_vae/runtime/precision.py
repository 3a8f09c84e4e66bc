"""The precision in which the layers of the networks are computed."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PRECISIONS = ("32", "bf16-mixed")
BETWEEN_FLUSHES = 100  # steps: in so few, no moment decays from `FLUSHED` times the smallest normal number to below it
FLUSHED = 2.0**28
LAYERS = {
    functional.linear,
    *(functional.conv1d, functional.conv2d, functional.conv3d),
    *(functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
}


class BFloat16Layers(TorchFunctionMode):
    r"""Compute linear and convolutional layers in bfloat16, and nothing else.

    .. math:: \mathrm{float} (\mathrm{bf}(x) \, \mathrm{bf}(W)^\top + \mathrm{bf}(b))

    The sums within a product are kept in 32 bits; its factors and its result are rounded to 8 significant bits, and so
    are those of its gradient. Parameters, activations, distributions, log-probabilities, sums and the optimizer keep
    their precision, in any Pyro program; ``torch.autocast`` would pass bfloat16 on to the distributions.

    Example:
        >>> with BFloat16Layers():
        ...     functional.linear(torch.tensor([1.0]), torch.tensor([[1 + 2**-8]])), torch.ones(1) * (1 + 2**-8)
        (tensor([1.]), tensor([1.0039]))

    Reference:
        Micikevicius et al., 2018, Mixed Precision Training, section 3.1; Kalamkar et al., 2019, A Study of BFLOAT16 for
        Deep Learning Training.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in LAYERS or (args[0] if args else kwargs["input"]).dtype != torch.float32:
            return func(*args, **kwargs)
        args = [_rounded(value) for value in args]
        return func(*args, **{name: _rounded(value) for name, value in kwargs.items()}).float()


def _rounded(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) else value


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse an unknown precision, or one that the device does not have.

    Arguments:
        precision: one of `PRECISIONS`.
        device: where the networks are.

    Raises:
        ValueError: with the value received.

    Example:
        >>> check_precision("16", torch.device("cpu"))
        Traceback (most recent call last):
        ...
        ValueError: precision is one of 32, bf16-mixed, not '16'
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision != "32" and not _has_bfloat16(device):
        raise ValueError(f"precision {precision} needs bfloat16, which this {device.type} does not have: take 32")


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def layers_in(precision: str) -> AbstractContextManager[Any]:
    """Return a context in which layers are computed in a precision.

    Arguments:
        precision: one of `PRECISIONS`.

    Returns:
        A context manager.

    Example:
        >>> with layers_in("bf16-mixed"):
        ...     torch.nn.Linear(2, 3)(torch.zeros(2)).dtype
        torch.float32
    """
    return nullcontext() if precision == "32" else BFloat16Layers()


@torch.no_grad()
def flush_subnormal(optimizer: torch.optim.Optimizer) -> None:
    r"""Set values that are almost 0 to 0 in an optimizer's state on a CPU.

    If a gradient stays 0, as for a dead unit or a pixel that is rarely on, Adam's mean of it decays by 0.9 in each
    step. After some 800 steps it is below the smallest normal number (1e-38 in 32 bits), and it stays there, because
    0.9 times such a number rounds to itself. A CPU computes many times slower with such numbers. So values below
    :math:`2^{28}` times the smallest normal number, 3e-30, are set to 0; they could only affect parameters below 1e-17.

    Arguments:
        optimizer: any of torch's.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> adam = torch.optim.Adam([weight])
        >>> weight.grad = torch.tensor([1e-30, 1.0])
        >>> adam.step()
        >>> flush_subnormal(adam)
        >>> adam.state[weight]["exp_avg"]
        tensor([0.0000, 0.1000])
    """
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.is_floating_point() and value.device.type == "cpu":
                value.masked_fill_(value.abs() < FLUSHED * torch.finfo(value.dtype).tiny, 0)
