"""Shapes and their checks."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from pyro_vae.arguments import as_size

Shape = tuple[int, ...]
Sizes = int | Sequence[int]  # how a user may give a shape
Network = Callable[[Shape, Shape], nn.Module]


def as_shape(shape: Sizes, name: str = "shape") -> Shape:
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


def as_image_shape(shape: Sizes, network: str) -> Shape:
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


def check_event_shape(value: Tensor, shape: Shape, part: str, what: str) -> None:
    """Refuse a tensor whose last dimensions are not the shape that a part was built for.

    Arguments:
        value: any tensor.
        shape: the shape that its last dimensions must have.
        part: the part's name, for the error.
        what: what the tensor is to that part, for the error.

    Raises:
        TypeError: if the value is not a tensor.
        ValueError: if the shapes differ; the message has both, and the part's name.

    Example:
        >>> import torch
        >>> check_event_shape(torch.zeros(5, 64), (1, 8, 8), "encoders.Normal", "x")
        Traceback (most recent call last):
        ...
        ValueError: encoders.Normal was built for x of shape (*batch, 1, 8, 8), but got (5, 64)
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{part} takes {what} as a tensor, not {value!r}")
    if value.shape[value.dim() - len(shape) :] != shape:
        wanted = ", ".join(["*batch", *map(str, shape)])
        raise ValueError(f"{part} was built for {what} of shape ({wanted}), but got {tuple(value.shape)}")
