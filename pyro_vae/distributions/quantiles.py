"""Quantiles of gamma and beta variables, which torch lacks, with the derivatives that torch uses for their draws.

They are custom operations of torch, so that a step which uses them can be recorded (`pyro_vae.runtime.engine`).
"""

from collections.abc import Callable
from typing import Any

import torch
from scipy import special
from torch import Tensor


@torch.library.custom_op("pyro_vae::gamma_quantile", mutates_args=())
def gamma_quantile(concentration: Tensor, uniform: Tensor) -> Tensor:
    r"""Return the quantile of a gamma distribution of rate 1.

    .. math:: z: \; \frac{1}{\Gamma(\alpha)} \int_0^z t^{\alpha - 1} e^{-t} \, dt = u, \qquad
              \frac{dz}{d\alpha} = -\frac{\partial F / \partial \alpha}{p(z)}

    Arguments:
        concentration: :math:`\alpha`, above 0, in 64 bits.
        uniform: u in (0, 1), of the same shape.

    Returns:
        z, above 0, with a gradient for the concentration only.

    Example:
        >>> gamma_quantile(torch.ones(1).double(), torch.tensor([0.5]).double())  # the log of 2
        tensor([0.6931], dtype=torch.float64)

    Reference:
        Figurnov, Mohamed and Mnih, 2018, Implicit Reparameterization Gradients, equation 7.
    """
    return _by_scipy(special.gammaincinv, concentration, uniform)


@torch.library.custom_op("pyro_vae::beta_quantile", mutates_args=())
def beta_quantile(a: Tensor, b: Tensor, uniform: Tensor) -> Tensor:
    r"""Return the quantile of a beta distribution.

    .. math:: z: \; \frac{1}{B(a, b)} \int_0^z t^{a - 1} (1 - t)^{b - 1} \, dt = u

    Arguments:
        a: first concentration, above 0, in 64 bits.
        b: second concentration, above 0, of the same shape.
        uniform: u in (0, 1), of the same shape.

    Returns:
        z in [0, 1], with gradients for a and b only, by the formula of `gamma_quantile`; torch's approximation of them
        is accurate to about a part in a thousand.

    Example:
        >>> beta_quantile(torch.ones(1).double(), torch.full((1,), 2.0).double(), torch.tensor([0.75]).double())
        tensor([0.5000], dtype=torch.float64)

    Reference:
        Figurnov, Mohamed and Mnih, 2018, Implicit Reparameterization Gradients, equation 7.
    """
    return _by_scipy(special.betaincinv, a, b, uniform)


def _by_scipy(function: Callable[..., Any], *values: Tensor) -> Tensor:
    result = function(*(value.detach().cpu().numpy() for value in values))
    return torch.as_tensor(result, dtype=values[0].dtype, device=values[0].device)


@gamma_quantile.register_fake
def _(concentration: Tensor, uniform: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(concentration)


@beta_quantile.register_fake
def _(a: Tensor, b: Tensor, uniform: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(a)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:-1], output)


def _gamma_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    concentration, z = ctx.saved_tensors
    return gradient * torch._standard_gamma_grad(concentration, z), None


def _beta_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    a, b, z = ctx.saved_tensors
    by_a = (1 - z) * torch._dirichlet_grad(z, a, a + b)
    by_b = -z * torch._dirichlet_grad(1 - z, b, a + b)
    return gradient * by_a, gradient * by_b, None


gamma_quantile.register_autograd(_gamma_backward, setup_context=_keep)
beta_quantile.register_autograd(_beta_backward, setup_context=_keep)
