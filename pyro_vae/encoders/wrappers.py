"""Encoders made of another encoder."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae import distributions


class ScoreFunction(nn.Module):
    r"""Any encoder, with score-function gradients in place of pathwise ones.

    .. math:: \nabla_\phi \mathbb{E}_{q_\phi(z|x)} [f(z)] =
              \mathbb{E}_{q_\phi(z|x)} [f(z) \, \nabla_\phi \log q_\phi(z|x)]

    The gradient is unbiased and of a much larger variance. Use ``Trace_ELBO`` or another objective that takes such
    sites; ``TraceMeanField_ELBO`` has no score-function term and refuses them while validation is on.

    Arguments:
        encoder: the encoder, a module that returns a distribution.

    Returns:
        ``forward(x)`` returns a distribution equal to the encoder's, with ``has_rsample`` False.

    Raises:
        TypeError: where the encoder is not a module.

    Example:
        >>> import torch
        >>> from pyro_vae import encoders
        >>> encoders.ScoreFunction(encoders.Normal(64, 2))(torch.zeros(5, 64))().requires_grad
        False

    Reference:
        Ranganath, Gerrish and Blei, 2014, Black Box Variational Inference, equations 2 and 3; Mnih and Gregor, 2014,
        Neural Variational Inference and Learning in Belief Networks.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoders.ScoreFunction takes an encoder, a torch.nn.Module, not {encoder!r}")
        self.encoder = encoder
        if hasattr(encoder, "shape"):
            self.shape = encoder.shape

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        return distributions.ScoreFunction(self.encoder(x))
