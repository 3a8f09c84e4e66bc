"""Convolutional networks with residual blocks."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyro_vae.networks.convolutional import halved_sizes
from pyro_vae.networks.shapes import as_image_shape, as_shape


class _ResidualBlock(nn.Module):
    """An image and what two 3x3 convolutions make of it, added."""

    def __init__(self, channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        one, other = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.layers = nn.Sequential(activation(), one, activation(), other)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResidualConvEncoder(nn.Module):
    """Convolutions that halve an image, each followed by a residual block, then a linear map.

    Arguments:
        in_shape: shape of one image, (height, width) or (channels, height, width).
        out_shape: shape of one output.
        channels: channels after each 3x3 convolution of stride 2, and in its residual block.
        activation: the module class before each convolution of a block and before the linear map.

    Returns:
        ``forward`` maps (\\*batch, \\*in_shape) to (\\*batch, \\*out_shape).

    Raises:
        ValueError: where ``in_shape`` has no height and width.

    Example:
        >>> import torch
        >>> ResidualConvEncoder((1, 28, 28), (2, 20))(torch.zeros(5, 3, 1, 28, 28)).shape
        torch.Size([5, 3, 2, 20])

    Reference:
        He, Zhang, Ren and Sun, 2016, Identity Mappings in Deep Residual Networks, figure 1b.
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        channels: int | Sequence[int] = (32, 64),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = (
            as_image_shape(in_shape, "ResidualConvEncoder"),
            as_shape(out_shape, "out_shape"),
        )
        self.image_shape = (math.prod(self.in_shape[:-2]), *self.in_shape[-2:])
        maps = (self.image_shape[0], *as_shape(channels, "channels"))
        height, width = halved_sizes(self.in_shape[-2:], len(maps) - 1)[-1]
        layers: list[nn.Module] = []
        for count, next_count in pairwise(maps):
            layers += [nn.Conv2d(count, next_count, 3, stride=2, padding=1), _ResidualBlock(next_count, activation)]
        last = nn.Linear(maps[-1] * height * width, math.prod(self.out_shape))
        self.layers = nn.Sequential(*layers, activation(), nn.Flatten(), last)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.dim() - len(self.in_shape)]
        return self.layers(x.reshape(-1, *self.image_shape)).reshape(*batch, *self.out_shape)


class ResidualConvDecoder(nn.Module):
    """A linear map, then residual blocks and transposed convolutions that double an image.

    Arguments:
        in_shape: shape of one input; its dimensions are flattened.
        out_shape: shape of one output, (..., height, width); the dimensions before height and width are channels.
        channels: channels in each residual block, before its 3x3 transposed convolution of stride 2.
        activation: the module class before each convolution.

    Returns:
        ``forward`` maps (\\*batch, \\*in_shape) to (\\*batch, \\*out_shape).

    Raises:
        ValueError: where ``out_shape`` has no height and width.

    Example:
        >>> import torch
        >>> ResidualConvDecoder(20, (1, 28, 28))(torch.zeros(5, 3, 20)).shape
        torch.Size([5, 3, 1, 28, 28])

    Reference:
        He, Zhang, Ren and Sun, 2016, Identity Mappings in Deep Residual Networks, figure 1b.
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        channels: int | Sequence[int] = (64, 32),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = as_shape(in_shape, "in_shape"), as_image_shape(out_shape, "ResidualConvDecoder")
        maps = (*as_shape(channels, "channels"), math.prod(self.out_shape[:-2]))
        sizes = halved_sizes(self.out_shape[-2:], len(maps) - 1)[::-1]
        start = (maps[0], *sizes[0])
        layers: list[nn.Module] = [nn.Linear(math.prod(self.in_shape), math.prod(start)), nn.Unflatten(1, start)]
        for (count, next_count), (height, width) in zip(pairwise(maps), sizes[1:], strict=True):
            # A stride of 2 gives 2n - 1 rows from n; one row of output padding gives the even sizes.
            padding = (1 - height % 2, 1 - width % 2)
            double = nn.ConvTranspose2d(count, next_count, 3, 2, padding=1, output_padding=padding)
            layers += [_ResidualBlock(count, activation), activation(), double]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        batch = z.shape[: z.dim() - len(self.in_shape)]
        return self.layers(z.reshape(-1, math.prod(self.in_shape))).reshape(*batch, *self.out_shape)
