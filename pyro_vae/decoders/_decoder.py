"""The base classes of the decoders."""

import math

import torch
from torch import Tensor, nn

from pyro_vae.arguments import as_flag, as_function, held
from pyro_vae.networks import MLP, Network, Sizes, as_shape, check_event_shape
from pyro_vae.networks._part import Part


class _Decoder(Part):
    """A network from z to ``numbers`` per entry of x (one if it is None)."""

    numbers: int | None = None

    def __init__(self, latent_dim: Sizes, shape: Sizes, network: Network = MLP) -> None:
        super().__init__()
        self.latent_shape, self.shape = as_shape(latent_dim, "latent_dim"), as_shape(shape)
        self.network = as_function(network, "network")(
            self.latent_shape, (*([self.numbers] if self.numbers else []), *self.shape)
        )

    def output(self, z: Tensor) -> Tensor:
        """Return the network's output for z, of shape (\\*batch, \\*shape) or (\\*batch, numbers, \\*shape)."""
        check_event_shape(z, self.latent_shape, f"decoders.{type(self).__name__}", "z")
        return self.network(z)

    def outputs(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the ``numbers`` outputs of the network for z, each of shape (\\*batch, \\*shape)."""
        return self.output(z).unbind(-1 - len(self.shape))


class _ScaleDecoder(_Decoder):
    """A network from z to a location per entry of x, and a scale: fixed, learned, or learned per entry."""

    scale: Tensor

    def __init__(
        self,
        latent_dim: Sizes,
        shape: Sizes,
        network: Network = MLP,
        scale: float = 1.0,
        learned: bool = False,
        per_dimension: bool = False,
    ) -> None:
        super().__init__(latent_dim, shape, network)
        name = f"decoders.{type(self).__name__}"
        start = held(scale, 0, f"the scale of {name}", 1e-18, 1e18)  # so that float32 can hold its square too
        self.learned, self.per_dimension = as_flag(learned, "learned"), as_flag(per_dimension, "per_dimension")
        if per_dimension and not learned:
            raise ValueError(f"{name} has a scale per dimension only where it is learned: give learned=True as well")
        if learned:
            size = self.shape if per_dimension else ()
            self.log_scale = nn.Parameter(torch.full(size, math.log(start)))
        else:
            self.register_buffer("scale", torch.tensor(start), persistent=False)

    def scales(self) -> Tensor:
        """Return the scale, of shape () or that of a datum."""
        return self.log_scale.exp() if self.learned else self.scale

    def extra_repr(self) -> str:
        scale = self.scales().detach().mean().item()
        each = ", per_dimension=True" if self.per_dimension else ""
        return f"scale={scale:.4g}, learned={self.learned}{each}"
