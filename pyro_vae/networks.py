"""Plain torch networks from one shape to another. No Pyro here.

A network is built by a call ``network(in_shape, out_shape)``, and maps ``(*batch, *in_shape)`` to
``(*batch, *out_shape)``: every leading dimension is batch, so that several particles per datum pass through at once.
Parts (`pyro_vae.encoders`, `pyro_vae.decoders`) make that call, because only they know how many numbers their
distribution needs. To set a width, hand them ``functools.partial(MLP, hidden=(256, 128))``.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

Shape = tuple[int, ...]
Network = Callable[[Shape, Shape], nn.Module]


def as_shape(shape: int | Sequence[int], name: str = "shape") -> Shape:
    """Return a shape as a tuple of positive integers.

    Arguments:
        shape: one size, or a sequence of sizes, each at least 1.
        name: what the shape is called in the error.

    Returns:
        The sizes as a tuple.

    Raises:
        TypeError: for sizes that are not integers.
        ValueError: for an empty shape or a size below 1.

    Example:
        >>> as_shape(784), as_shape([1, 28, 28])
        ((784,), (1, 28, 28))
    """
    sizes = (shape,) if isinstance(shape, int) or not isinstance(shape, Sequence) else tuple(shape)
    if not sizes:
        raise ValueError(f"{name} must have at least one size, not {shape!r}")
    return tuple(as_size(size, name) for size in sizes)


def as_size(size: int, name: str = "size") -> int:
    """Return a size, or refuse what is none.

    Arguments:
        size: an integer, at least 1.
        name: what the size is called in the error.

    Returns:
        The size.

    Raises:
        TypeError: where it is no integer.
        ValueError: where it is below 1.

    Example:
        >>> as_size(20)
        20
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name} must be an integer, not {size!r}")
    if size < 1:
        raise ValueError(f"{name} must be at least 1, not {size!r}")
    return size


def check_event_shape(value: Tensor, shape: Shape, part: str, what: str) -> None:
    """Refuse a tensor whose last dimensions are not the shape that a part was built for.

    Arguments:
        value: any tensor.
        shape: the shape that its last dimensions must have.
        part: the part's name, for the error.
        what: what the tensor is to that part, for the error.

    Raises:
        ValueError: with both shapes and the part's name.

    Example:
        >>> import torch
        >>> check_event_shape(torch.zeros(5, 64), (1, 8, 8), "encoders.Normal", "x")
        Traceback (most recent call last):
        ...
        ValueError: encoders.Normal was built for x of shape (*batch, 1, 8, 8), but got (5, 64)
    """
    if value.shape[value.dim() - len(shape) :] != shape:
        wanted = ", ".join(["*batch", *map(str, shape)])
        raise ValueError(f"{part} was built for {what} of shape ({wanted}), but got {tuple(value.shape)}")


def soft_clip(value: Tensor, bound: float = 10.0) -> Tensor:
    r"""Compress a tensor beyond a bound, and leave it as it is within.

    .. math:: f(v) = v \text{ for } |v| \le b, \qquad
              f(v) = \operatorname{sign}(v) \, (b + \log(1 + |v| - b)) \text{ beyond.}

    The log-variances of this package pass through it. The function is increasing and its slope is continuous and
    never zero, so that no variance is out of reach and no gradient dies, as it does with a clamp; yet an output of
    :math:`\pm 10^4` becomes :math:`\pm 19.2`, whose exponential float32 holds.

    Arguments:
        value: any tensor.
        bound: where the compression starts, above 0.

    Returns:
        A tensor of the same shape.

    Example:
        >>> import torch
        >>> soft_clip(torch.tensor([-1e4, 3.0, 1e4]))
        tensor([-19.2094,   3.0000,  19.2094])
    """
    excess = (value.abs() - bound).relu()
    return value.clamp(-bound, bound) + value.sign() * excess.log1p()


def positive(value: Tensor) -> Tensor:
    r"""Return a positive number for any output of a network: the exponential of `soft_clip`.

    .. math:: f(v) = e^v \text{ for } |v| \le 10, \text{ and polynomial beyond, from } 5 \cdot 10^{-9} \text{ to }
              2 \cdot 10^8 \text{ for } |v| \le 10^4

    Arguments:
        value: any tensor.

    Returns:
        A tensor of the same shape.

    Example:
        >>> import torch
        >>> positive(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 2.7183])
    """
    return soft_clip(value).exp()


class MLP(nn.Module):
    """Fully connected network with one activation between its layers.

    Arguments:
        in_shape: shape of one input; its dimensions are flattened.
        out_shape: shape of one output.
        hidden: width of each hidden layer, each at least 1; empty for a linear map.
        activation: the module class between the layers.

    Returns:
        ``forward`` maps (\\*batch, \\*in_shape) to (\\*batch, \\*out_shape).

    Raises:
        TypeError: for sizes that are not integers.
        ValueError: for a size below 1.

    Example:
        >>> import torch
        >>> MLP((1, 28, 28), (2, 20), hidden=(400,))(torch.zeros(5, 3, 1, 28, 28)).shape
        torch.Size([5, 3, 2, 20])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        hidden: int | Sequence[int] = (400,),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = as_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        self.hidden = () if hidden in ((), []) else as_shape(hidden, "hidden")
        widths = (math.prod(self.in_shape), *self.hidden, math.prod(self.out_shape))
        layers: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            layers += [nn.Linear(width, next_width), activation()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.dim() - len(self.in_shape)]
        return self.layers(x.reshape(*batch, -1)).reshape(*batch, *self.out_shape)


class ConvEncoder(nn.Module):
    """Convolutions that halve an image, one per entry of ``channels``, then a linear map.

    Arguments:
        in_shape: shape of one image, (height, width) or (channels, height, width).
        out_shape: shape of one output.
        channels: channels after each 3x3 convolution of stride 2.
        activation: the module class after each convolution.

    Returns:
        ``forward`` maps (\\*batch, \\*in_shape) to (\\*batch, \\*out_shape).

    Raises:
        ValueError: where ``in_shape`` has no height and width.

    Example:
        >>> import torch
        >>> ConvEncoder((1, 28, 28), (2, 20))(torch.zeros(5, 3, 1, 28, 28)).shape
        torch.Size([5, 3, 2, 20])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        channels: int | Sequence[int] = (32, 64),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = as_image_shape(in_shape, "ConvEncoder"), as_shape(out_shape, "out_shape")
        self.image_shape = (math.prod(self.in_shape[:-2]), *self.in_shape[-2:])
        maps = (self.image_shape[0], *as_shape(channels, "channels"))
        height, width = halved_sizes(self.in_shape[-2:], len(maps) - 1)[-1]
        layers: list[nn.Module] = []
        for count, next_count in pairwise(maps):
            layers += [nn.Conv2d(count, next_count, 3, stride=2, padding=1), activation()]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(maps[-1] * height * width, math.prod(self.out_shape))
        )

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[: x.dim() - len(self.in_shape)]
        return self.layers(x.reshape(-1, *self.image_shape)).reshape(*batch, *self.out_shape)


class ConvDecoder(nn.Module):
    """A linear map, then transposed convolutions that double an image: `ConvEncoder` backwards.

    Arguments:
        in_shape: shape of one input; its dimensions are flattened.
        out_shape: shape of one output, (..., height, width); the dimensions before height and width are channels.
        channels: channels before each 3x3 transposed convolution of stride 2.
        activation: the module class before each transposed convolution.

    Returns:
        ``forward`` maps (\\*batch, \\*in_shape) to (\\*batch, \\*out_shape).

    Raises:
        ValueError: where ``out_shape`` has no height and width.

    Example:
        >>> import torch
        >>> ConvDecoder(20, (1, 28, 28))(torch.zeros(5, 3, 20)).shape
        torch.Size([5, 3, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        channels: int | Sequence[int] = (64, 32),
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = as_shape(in_shape, "in_shape"), as_image_shape(out_shape, "ConvDecoder")
        maps = (*as_shape(channels, "channels"), math.prod(self.out_shape[:-2]))
        sizes = halved_sizes(self.out_shape[-2:], len(maps) - 1)[::-1]
        start = (maps[0], *sizes[0])
        layers: list[nn.Module] = [nn.Linear(math.prod(self.in_shape), math.prod(start)), nn.Unflatten(1, start)]
        for (count, next_count), (height, width) in zip(pairwise(maps), sizes[1:], strict=True):
            # A stride of 2 gives 2n - 1 rows from n; one row of output padding gives the even sizes.
            padding = (1 - height % 2, 1 - width % 2)
            layers += [activation(), nn.ConvTranspose2d(count, next_count, 3, 2, padding=1, output_padding=padding)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        batch = z.shape[: z.dim() - len(self.in_shape)]
        return self.layers(z.reshape(-1, math.prod(self.in_shape))).reshape(*batch, *self.out_shape)


def as_image_shape(shape: int | Sequence[int], network: str) -> Shape:
    """Return a shape that ends in height and width.

    Arguments:
        shape: the shape of an image, (..., height, width).
        network: the network's name, for the error.

    Returns:
        The sizes as a tuple of at least two.

    Raises:
        ValueError: for fewer than two dimensions.

    Example:
        >>> as_image_shape((1, 28, 28), "ConvEncoder")
        (1, 28, 28)
    """
    sizes = as_shape(shape)
    if len(sizes) < 2:
        raise ValueError(f"{network} needs images of shape (channels, height, width), not {sizes}; use MLP for vectors")
    return sizes


def halved_sizes(size: Sequence[int], times: int) -> list[Shape]:
    """Return an image size and what each of several convolutions of stride 2 makes of it.

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
