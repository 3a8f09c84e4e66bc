"""What the networks share."""

import math
from typing import Any

from torch import Tensor, nn

from pyro_vae.networks.shapes import Shape, Sizes, as_shape


class _Network(nn.Module):
    """Layers between two shapes, for any leading dimensions. They get data of shape ``inner``, flat by default."""

    layers: Any  # a module, or a method: from (N, *inner) to N outputs

    def __init__(self, in_shape: Sizes, out_shape: Sizes) -> None:
        super().__init__()
        self.in_shape, self.out_shape = as_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        self.inner: Shape = (math.prod(self.in_shape),)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.dim() - len(self.in_shape)]
        return self.layers(x.reshape(-1, *self.inner)).reshape(*batch, *self.out_shape)
