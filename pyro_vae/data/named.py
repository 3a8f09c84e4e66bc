"""Data sets with a name: scikit-learn's digits, and some of torchvision's."""

from pathlib import Path
from typing import Any

import torch

from pyro_vae.data.parts import Data, split_into_parts

TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
NAMES = ("digits", *TORCHVISION)


def read_digits() -> Data:
    """Read scikit-learn's digits, with 360 of them as the test part."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.get_default_dtype())[:, None]
    return split_into_parts(
        x, torch.tensor(digits.target), 360
    )  # round(1797 / 5) = 359 would do as well; 360 is customary


def read_torchvision(name: str, root: Path, download: bool) -> Data:
    """Read a data set of torchvision's, from files that are not unpickled."""
    base = getattr(import_torchvision_datasets(), TORCHVISION[name])
    family = type(base.__name__, (base,), {"_check_legacy_exist": lambda _: False})  # whose files would be unpickled
    try:
        parts = [family(root=str(root), train=train, download=download) for train in (True, False)]
        images = [part.data[:, None] for part in parts]
        if any(len(part.data) != len(part.targets) for part in parts):
            raise ValueError("it has different numbers of labels and images")
    except Exception as error:
        if "not found" in str(error):
            hint = "name its folder (--data-root, or the variable PYRO_VAE_DATA), or fetch it (--download)"
            raise ValueError(f"no {name} under {root}: {hint}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = "check the network" if download else "delete it and fetch it again (--download)"
        raise ValueError(f"{name} under {root} cannot be read: {reason}; {hint}") from error
    return Data(images[0], images[1], parts[0].targets, parts[1].targets)


def import_torchvision_datasets() -> Any:
    """Import ``torchvision.datasets``, also where torchvision was built for CUDA and torch was not.

    Such a pair fails on import because torchvision gives meta kernels to two compiled operators that its library,
    which could not be loaded, should have declared. The data sets need neither, so they are declared here.

    Returns:
        The module.
    """
    try:
        import torchvision.datasets
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for operator in ("nms", "qnms"):
            _TORCHVISION_LIBRARY.append(torch.library.Library("torchvision", "FRAGMENT"))
            _TORCHVISION_LIBRARY[-1].define(operator + schema)
        import torchvision.datasets
    return torchvision.datasets


_TORCHVISION_LIBRARY: list[torch.library.Library] = []  # a declaration lasts as long as its library object
