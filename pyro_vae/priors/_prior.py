"""The base class of the priors."""

import math

import torch
from torch import Tensor, nn

from pyro_vae.arguments import as_flag, as_size
from pyro_vae.networks._part import Part


class _Prior(Part):
    """A prior of ``latent_dim`` dimensions, with learned parameters, or fixed ones that no ``state_dict`` holds."""

    zeros: tuple[str, ...] = ()  # names of parameters with one number per dimension, which starts at 0

    def __init__(self, latent_dim: int, learned: bool = False) -> None:
        super().__init__()
        self.latent_dim, self.learned = as_size(latent_dim, "latent_dim"), as_flag(learned, "learned")
        for name in self.zeros:
            self.hold(name, torch.zeros(latent_dim))

    def hold(self, name: str, value: Tensor) -> None:
        """Keep a tensor under a name: as a parameter if it is learned, else as a buffer."""
        if self.learned:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value, persistent=False)

    def hold_positive(self, name: str, value: float, *shape: int) -> None:
        """Keep a positive number if it is fixed, or its logarithm if it is learned."""
        if self.learned:
            self.register_parameter(f"log_{name}", nn.Parameter(torch.full(shape, math.log(value))))
        else:
            self.register_buffer(name, torch.full(shape, value), persistent=False)

    def positive(self, name: str) -> Tensor:
        """Return the number that `hold_positive` keeps. It is not clipped, because it is not a network's output."""
        number: Tensor = getattr(self, f"log_{name}").exp() if self.learned else getattr(self, name)
        return number
