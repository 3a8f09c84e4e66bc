"""Decoders for data with missing entries."""

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae.distributions import MissingEntries


class Masked(nn.Module):
    r"""Another decoder, whose likelihood is that of the observed entries of x; NaN marks those that are missing.

    .. math:: \log p(x_\text{observed}|z) = \sum_{i \text{ observed}} \log p(x_i|z)

    The encoder gets the same x, so build it with ``network=FillMissing`` of `pyro_vae.networks`. The bound is then a
    bound for the observed entries, which is the right one if it does not depend on the missing values which entries are
    missing. The mean and the draws of the distribution are complete, so that `pyro_vae.VAE.reconstruct` imputes.

    Arguments:
        decoder: a decoder with independent entries, such as any of this package that is not autoregressive.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns the decoder's distribution with NaN in its support.

    Raises:
        TypeError: if the decoder is not a module.
        ValueError: in ``forward``, if the entries of the decoder's distribution are not independent.

    Example:
        >>> import torch
        >>> from pyro_vae.decoders import Normal
        >>> Masked(Normal(20, 64))(torch.zeros(2, 20)).log_prob(torch.full((2, 64), torch.nan)).tolist()
        [0.0, 0.0]

    Reference:
        Nazabal, Olmos, Ghahramani and Valera, 2020, Handling Incomplete Heterogeneous Data using VAEs, equation 2.
    """

    decoder: Any

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        if not isinstance(decoder, nn.Module):
            raise TypeError(f"decoders.Masked wraps a decoder, a torch.nn.Module, not {decoder!r}")
        self.decoder = decoder

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        complete = self.decoder(z)
        if not isinstance(complete, dist.Independent):
            return MissingEntries(complete)  # a single number; an event of several is refused
        return MissingEntries(complete.base_dist).to_event(complete.reinterpreted_batch_ndims)
