"""Decoders of data of which some entries were not observed."""

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae.distributions import MissingEntries


class Masked(nn.Module):
    r"""Another decoder, whose likelihood is that of the observed entries of x; NaN marks those that are missing.

    .. math:: \log p(x_\text{observed}|z) = \sum_{i \text{ observed}} \log p(x_i|z)

    The encoder sees the same x: build it with ``network=FillMissing`` of `pyro_vae.networks`. The bound is then one on
    the observed entries, and it is the right one where their absence does not depend on the missing values. The mean
    and the draws of the distribution are complete: `pyro_vae.VAE.reconstruct` imputes.

    Arguments:
        decoder: a decoder of independent entries, such as any of this package that is not autoregressive.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns the decoder's distribution with NaN in its support.

    Raises:
        TypeError: where the decoder is no module.
        ValueError: in ``forward``, where the entries of the decoder's distribution are not independent.

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
            return MissingEntries(complete)  # one number, or refused
        return MissingEntries(complete.base_dist).to_event(complete.reinterpreted_batch_ndims)
