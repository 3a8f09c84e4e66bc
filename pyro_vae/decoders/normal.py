"""Decoders of real values, normal."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.decoders._decoder import _Decoder
from pyro_vae.networks import MLP, Network


class Normal(_Decoder):
    r"""Normal likelihood: squared error in units of a variance, fixed or learned, shared by all entries of x.

    .. math:: \log p(x|z) = \sum_i \log \mathcal{N}(x_i; \mu_i(z), \sigma^2)

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to ``shape``.
        scale: the standard deviation, above 0; where the learning starts, if it is learned.
        learned: learn the scale.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: where the scale is not above 0 or z is not of the shape the decoder was built for.

    Example:
        >>> Normal(20, 64, scale=0.1)(torch.zeros(5, 20)).stddev[0, 0]
        tensor(0.1000)

    Reference:
        Rybkin, Daniilidis and Levine, 2021, Simple and Effective VAE Training with Calibrated Decoders, section 3.
    """

    scale: Tensor

    def __init__(
        self,
        latent_dim: int | Sequence[int],
        shape: int | Sequence[int],
        network: Network = MLP,
        scale: float = 1.0,
        learned: bool = False,
    ) -> None:
        super().__init__(latent_dim, shape, network)
        if not (0 < scale < math.inf):
            raise ValueError(f"the scale of decoders.Normal must be above 0 and finite, not {scale!r}")
        self.learned = learned
        if learned:
            self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        else:
            self.register_buffer("scale", torch.tensor(float(scale)), persistent=False)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        scale = self.log_scale.exp() if self.learned else self.scale
        return dist.Normal(self.output(z), scale).to_event(len(self.shape))

    def extra_repr(self) -> str:
        scale = self.log_scale.exp() if self.learned else self.scale
        return f"scale={scale.item():.4g}, learned={self.learned}"
