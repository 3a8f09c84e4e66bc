"""Normalizing flows of zuko as distributions of Pyro."""

from types import ModuleType
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Distribution


def zuko() -> ModuleType:
    """Return the package zuko.

    Raises:
        ImportError: with the line that installs it.

    Example:
        >>> zuko().flows.MAF(3)().event_shape
        torch.Size([3])
    """
    # Importing zuko switches the validation of all distributions of the process off; it is put back at once.
    validated = Distribution._validate_args
    try:
        import zuko
    except ImportError as error:
        raise ImportError("flows need the package zuko: python -m pip install zuko") from error
    finally:
        Distribution.set_default_validate_args(validated)
    return zuko


class ZukoFlow(dist.TorchDistribution):
    r"""A flow of zuko, as a distribution of Pyro on :math:`\mathbb{R}^D`.

    .. math:: \log p(x) = \log p_0(f(x)) + \log \left| \det \frac{\partial f(x)}{\partial x} \right|

    A draw and its log-probability come out of one pass; the last ones are kept, so that scoring a draw, as an ELBO does
    with those of the guide, takes no second pass, which some flows make slowly. Build one at each call.

    Arguments:
        flow: what a flow of zuko returns when it is called, with a context or without one.

    Example:
        >>> ZukoFlow(zuko().flows.NSF(3, context=2)(torch.zeros(5, 2))).sample().shape
        torch.Size([5, 3])

    Reference:
        Rozet et al., 2022, Zuko: Normalizing Flows in PyTorch.
        Papamakarios et al., 2021, Normalizing Flows for Probabilistic Modeling and Inference, equation 2.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: Distribution, validate_args: bool | None = None) -> None:
        self._flow = flow
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(flow.batch_shape, flow.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ZukoFlow":
        new = self._get_checked_instance(ZukoFlow, _instance)
        new._flow, new._drawn = self._flow.expand(torch.Size(batch_shape)), None
        super(ZukoFlow, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        value, log_prob = self._flow.rsample_and_log_prob(torch.Size(sample_shape))  # type: ignore[attr-defined]
        # Under no_grad, as in `sample`, the log-probability has no gradient, and is not to be had without one later.
        self._drawn = (value, log_prob) if torch.is_grad_enabled() else None
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        return self._flow.log_prob(value)
