"""Convolutional networks."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pyro_vae.arguments import as_flag, as_function
from pyro_vae.networks._network import _Network
from pyro_vae.networks.shapes import Shape, Sizes, as_image_shape, as_shape


class ConvEncoder(_Network):
    """Convolutions that halve an image, one per entry of ``channels``, residual or not, then a linear map.

    Arguments:
        in_shape: shape of one image, (height, width) or (channels, height, width).
        out_shape: shape of one output.
        channels: channels after each 3x3 convolution of stride 2.
        activation: the module class after each convolution.
        residual: follow each convolution by a residual block, two more 3x3 convolutions whose result is added.

    Returns:
        ``forward`` maps (\\*batch, \\*in_shape) to (\\*batch, \\*out_shape).

    Raises:
        ValueError: if ``in_shape`` has no height and width.

    Example:
        >>> import torch
        >>> ConvEncoder((1, 28, 28), (2, 20))(torch.zeros(5, 3, 1, 28, 28)).shape
        torch.Size([5, 3, 2, 20])

    Reference:
        Of the residual blocks: He, Zhang, Ren and Sun, 2016, Identity Mappings in Deep Residual Networks, figure 1b.
    """

    def __init__(
        self,
        in_shape: Sizes,
        out_shape: Sizes,
        channels: Sizes = (32, 64),
        activation: type[nn.Module] = nn.ReLU,
        residual: bool = False,
    ) -> None:
        super().__init__(as_image_shape(in_shape, "ConvEncoder"), out_shape)
        self.inner = math.prod(self.in_shape[:-2]), *self.in_shape[-2:]
        as_function(activation, "activation"), as_flag(residual, "residual")
        maps = (self.inner[0], *as_shape(channels, "channels"))
        height, width = halved_sizes(self.inner[1:], len(maps) - 1)[-1]
        layers: list[nn.Module] = []
        for count, next_count in pairwise(maps):
            layers += [nn.Conv2d(count, next_count, 3, stride=2, padding=1)]
            layers += [_ResidualBlock(next_count, activation), activation()] if residual else [activation()]
        last = nn.Linear(maps[-1] * height * width, math.prod(self.out_shape))
        self.layers = nn.Sequential(*layers, nn.Flatten(), last)


class ConvDecoder(_Network):
    """A linear map, then transposed convolutions that double an image: `ConvEncoder` backwards.

    Arguments:
        in_shape: shape of one input; its dimensions are flattened.
        out_shape: shape of one output, (..., height, width); the dimensions before height and width are channels.
        channels: channels before each 3x3 transposed convolution of stride 2.
        activation: the module class before each transposed convolution.
        residual: precede each of these by a residual block, two 3x3 convolutions whose result is added.

    Returns:
        ``forward`` maps (\\*batch, \\*in_shape) to (\\*batch, \\*out_shape).

    Raises:
        ValueError: if ``out_shape`` has no height and width.

    Example:
        >>> import torch
        >>> ConvDecoder(20, (1, 28, 28))(torch.zeros(5, 3, 20)).shape
        torch.Size([5, 3, 1, 28, 28])

    Reference:
        Of the residual blocks: He, Zhang, Ren and Sun, 2016, Identity Mappings in Deep Residual Networks, figure 1b.
    """

    def __init__(
        self,
        in_shape: Sizes,
        out_shape: Sizes,
        channels: Sizes = (64, 32),
        activation: type[nn.Module] = nn.ReLU,
        residual: bool = False,
    ) -> None:
        super().__init__(in_shape, as_image_shape(out_shape, "ConvDecoder"))
        as_function(activation, "activation"), as_flag(residual, "residual")
        maps = (*as_shape(channels, "channels"), math.prod(self.out_shape[:-2]))
        sizes = halved_sizes(self.out_shape[-2:], len(maps) - 1)[::-1]
        start = (maps[0], *sizes[0])
        layers: list[nn.Module] = [nn.Linear(math.prod(self.in_shape), math.prod(start)), nn.Unflatten(1, start)]
        for (count, next_count), (height, width) in zip(pairwise(maps), sizes[1:], strict=True):
            # A stride of 2 gives 2n - 1 rows from n; one row of output padding gives the even sizes.
            padding = (1 - height % 2, 1 - width % 2)
            layers += [_ResidualBlock(count, activation)] if residual else []
            layers += [activation(), nn.ConvTranspose2d(count, next_count, 3, 2, padding=1, output_padding=padding)]
        self.layers = nn.Sequential(*layers)


class _ResidualBlock(nn.Module):
    """The sum of an image and the output of two 3x3 convolutions of it."""

    def __init__(self, channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        one, other = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.layers = nn.Sequential(activation(), one, activation(), other)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def halved_sizes(size: Sequence[int], times: int) -> list[Shape]:
    """Return an image size, and the sizes after each of several convolutions of stride 2.

    Arguments:
        size: (height, width).
        times: number of halvings, at least 0.

    Returns:
        ``times + 1`` sizes, the first as given; odd sizes are rounded up.

    Example:
        >>> halved_sizes((28, 28), 3)
        [(28, 28), (14, 14), (7, 7), (4, 4)]
    """
    sizes = [tuple(size)]
    for _ in range(times):
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    return sizes
