"""Small pictures of which every factor is known: shape, scale and place."""

from typing import NamedTuple

import torch
from torch import Tensor

SIZE = 16  # pixels of a side
VALUES = (3, 4, 8, 8)  # how many each factor has
LARGEST = 4  # pixels from the centre to the side; the centre stays as far from the border


class Sprites(NamedTuple):
    """Pictures and what they were made from.

    Attributes:
        images: N pictures of zeros and ones, shape (N, 1, 16, 16).
        factors: the number of each factor's value, from 0, shape (N, 4).
        names: the names of the factors.
    """

    images: Tensor
    factors: Tensor
    names: tuple[str, ...]


def sprites(seed: int = 0) -> Sprites:
    """Make pictures of one white shape on black, of every combination of the factors, each once.

    The factors are independent: 3 shapes (square, disc, triangle), 4 scales (3, 5, 7 and 9 pixels wide), and 8 places
    of the centre along x and along y.

    Arguments:
        seed: random seed of the order.

    Returns:
        All 768 pictures, no two of which are alike, their factors, and the factors' names.

    Example:
        >>> images, factors, names = sprites()
        >>> images.shape, names
        (torch.Size([768, 1, 16, 16]), ('shape', 'scale', 'x', 'y'))
        >>> factors.max(0).values
        tensor([2, 3, 7, 7])

    Reference:
        A small relative of dSprites: Matthey, Higgins, Hassabis and Lerchner, 2017, dSprites: Disentanglement Testing
        Sprites Dataset.
    """
    factors = torch.cartesian_prod(*map(torch.arange, VALUES))
    factors = factors[torch.randperm(len(factors), generator=torch.Generator().manual_seed(seed))]
    shape, scale, x, y = factors.T[..., None, None]
    pixel = torch.arange(SIZE) - LARGEST
    shapes = _shapes(pixel - x, pixel[:, None] - y, 1 + scale)
    images = shapes[shape.flatten(), torch.arange(len(factors)), None].to(torch.get_default_dtype())
    return Sprites(images, factors, ("shape", "scale", "x", "y"))


def _shapes(across: Tensor, down: Tensor, radius: Tensor) -> Tensor:
    """Whether pixels are inside a square, a disc and a triangle, by their place relative to the centre."""
    square = (across.abs() <= radius) & (down.abs() <= radius)
    disc = across**2 + down**2 <= radius**2
    triangle = square & (2 * across.abs() <= down + radius)
    return torch.stack([square, disc, triangle])
