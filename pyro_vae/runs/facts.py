"""What the report of a run says in words."""

from typing import TYPE_CHECKING

import torch

from pyro_vae.data import Data, are_images, range_of
from pyro_vae.runs.config import Config

if TYPE_CHECKING:
    pass


def values_of(config: Config, data: Data) -> str:
    """Say from where to where the values of data go, and what has been done to them, the same to all."""
    divided = "as the file has them" if config.scale is None else f"divided by {config.scale:g} (--scale)"
    return range_of(data) + ("pixels in [0, 1]" if are_images(config.data) else divided)


def name_of(module: torch.nn.Module) -> str:
    """Name a part, its own parameters and its network."""
    own = module.extra_repr()
    network = getattr(module, "network", None)
    return f"{type(module).__name__}({own}){', network ' + type(network).__name__ if network is not None else ''}"
