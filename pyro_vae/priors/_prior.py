"""What the priors share."""

import math

import torch
from torch import Tensor, nn

from pyro_vae.arguments import as_size
from pyro_vae.networks._part import Part


class _Prior(Part):
    """A prior of ``latent_dim`` dimensions whose numbers are learned, or fixed and then in no ``state_dict``."""

    zeros: tuple[str, ...] = ()  # what has one number per dimension, which starts at 0

    def __init__(self, latent_dim: int, learned: bool = False) -> None:
        super().__init__()
        self.latent_dim, self.learned = as_size(latent_dim, "latent_dim"), learned
        for name in self.zeros:
            self.hold(name, torch.zeros(latent_dim))

    def hold(self, name: str, value: Tensor) -> None:
        """Keep a tensor under a name, as a parameter if it is to be learned."""
        if self.learned:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value, persistent=False)

    def hold_positive(self, name: str, value: float, *shape: int) -> None:
        """Keep a positive number as it is, or its logarithm if it is to be learned."""
        if self.learned:
            self.register_parameter(f"log_{name}", nn.Parameter(torch.full(shape, math.log(value))))
        else:
            self.register_buffer(name, torch.full(shape, value), persistent=False)

    def positive(self, name: str) -> Tensor:
        """Return what `hold_positive` keeps. It is no output of a network, and is not clipped."""
        number: Tensor = getattr(self, f"log_{name}").exp() if self.learned else getattr(self, name)
        return number
