"""What the priors share."""

import math

import torch
from torch import Tensor, nn

from pyro_vae.networks import as_size


class _Prior(nn.Module):
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

    def extra_repr(self) -> str:
        return f"latent_dim={self.latent_dim}, learned={self.learned}"


def above(value: float, least: float, name: str) -> float:
    """Return a number, or refuse one that is not above the least and finite."""
    if not (least < value < math.inf):
        raise ValueError(f"{name} must be above {least:g} and finite, not {value!r}")
    return float(value)
