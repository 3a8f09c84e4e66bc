"""The planar transformation, with an inverse."""

import math

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.nn.functional import softplus

_STEEPEST = 0.999  # of what -1 would be: the slope along w stays above a thousandth, and its inverse finite


class Planar(Transform):
    r"""Planar transformation: a ridge across the direction w, along the direction u.

    .. math:: f(z) = z + \hat u \tanh(w^\top z + b), \qquad
              \log\left|\det \frac{\partial f}{\partial z}\right| =
              \log\left(1 + w^\top \hat u \, (1 - \tanh^2(w^\top z + b))\right)

    It is invertible where :math:`w^\top \hat u \ge -1`. So :math:`\hat u` is u with its part along w replaced:

    .. math:: \hat u = u + (m(w^\top u) - w^\top u) \frac{w}{\|w\|^2}, \qquad
              m(v) = 0.999 \, (\log(1 + (e - 1) e^v) - 1)

    Unlike the paper's, this m has :math:`m(0) = 0`: where u is 0, f is the identity. The inverse solves one increasing
    equation for :math:`w^\top z` by bisection.

    Arguments:
        w: direction of the input, shape (\*batch, D).
        u: direction of the output before the correction, shape (\*batch, D).
        b: offset, shape (\*batch,).
        cache_size: 1 to keep the last input, so that the inverse of its output is free, 0 not to.

    Example:
        >>> f = Planar(torch.ones(2), torch.ones(2), torch.tensor(0.0))
        >>> f.inv(f(torch.tensor([0.5, -1.0])).clone())
        tensor([ 0.5000, -1.0000])

    Reference:
        Rezende and Mohamed, 2015, Variational Inference with Normalizing Flows, equations 10 to 12 and appendix A.1.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, w: Tensor, u: Tensor, b: Tensor, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        along = (w * u).sum(-1)
        self.slope = _STEEPEST * (softplus(along + math.log(math.e - 1)) - 1)
        square = (w**2).sum(-1).clamp(min=torch.finfo(w.dtype).eps)
        self.w, self.b = w, b
        self.u = u + ((self.slope - along) / square).unsqueeze(-1) * w

    def _call(self, x: Tensor) -> Tensor:
        return x + self.u * self._ridge((self.w * x).sum(-1)).unsqueeze(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        projection = self._solve((self.w * y).sum(-1))
        return y - self.u * self._ridge(projection).unsqueeze(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return (self.slope * (1 - self._ridge((self.w * x).sum(-1)) ** 2)).log1p()

    def _ridge(self, projection: Tensor) -> Tensor:
        return (projection + self.b).tanh()

    def _solve(self, target: Tensor) -> Tensor:
        """Return p with p + slope * tanh(p + b) = target, and the first two derivatives of that equation."""
        with torch.no_grad():
            low, high = target - self.slope.abs(), target + self.slope.abs()
            for _ in range(60):
                middle = (low + high) / 2
                above = middle + self.slope * self._ridge(middle) > target
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            root = (low + high) / 2
        # Newton's steps hardly change the value; one has the first derivative of the root, and two have the second.
        for _ in range(2):
            derivative = 1 + self.slope * (1 - self._ridge(root) ** 2)
            root = root - (root + self.slope * self._ridge(root) - target) / derivative
        return root
