"""Decoders of one of several categories."""

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.decoders._decoder import _Decoder
from pyro_vae.distributions import Categorical as CategoricalDistribution
from pyro_vae.networks import MLP, Network, as_size


class Categorical(_Decoder):
    r"""Categorical likelihood of tokens or of the 256 values of a pixel, each a number of its own.

    .. math:: \log p(x|z) = \sum_i \log \mathrm{softmax}(\ell_i(z))_{x_i}, \quad x_i \in \{0, \dots, K - 1\}

    Data are floats that hold whole numbers; for images in [0, 1] of 8 bits that is ``(255 * x).round()``.

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to (K, \*shape).
        categories: their number K, at least 2.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        TypeError: where the number of categories is no integer.
        ValueError: where it is below 2 or z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> Categorical(20, 7, categories=10)(torch.zeros(5, 20)).sample().shape
        torch.Size([5, 7])

    Reference:
        van den Oord, Kalchbrenner and Kavukcuoglu, 2016, Pixel Recurrent Neural Networks, section 2.2.
    """

    def __init__(
        self,
        latent_dim: int | Sequence[int],
        shape: int | Sequence[int],
        network: Network = MLP,
        categories: int = 256,
    ) -> None:
        if as_size(categories, "categories") < 2:
            raise ValueError(f"the categories of decoders.Categorical must be at least 2, not {categories}")
        self.numbers = categories
        super().__init__(latent_dim, shape, network)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        logits = self.output(z).movedim(-1 - len(self.shape), -1)
        return CategoricalDistribution(logits=logits).to_event(len(self.shape))

    def extra_repr(self) -> str:
        return f"categories={self.numbers}"
