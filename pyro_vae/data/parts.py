"""Data sets with a train and a test part."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from pyro_vae.data.rows import EightBit, MemoryMapped


class _Parts(NamedTuple):
    train: Tensor | EightBit | MemoryMapped
    test: Tensor | EightBit | MemoryMapped
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None


class Data(_Parts):
    """A data set with fixed train and test parts; the labels are None if there are none.

    Labels that are texts, such as the names of folders, are numbers here: label k is ``label_names[k]``. The names are
    an attribute, not an item of the tuple.
    """

    label_names: tuple[str, ...] | None = None

    def with_label_names(self, names: tuple[str, ...] | None) -> Self:
        """Set the texts of the labels, and return the data."""
        self.label_names = names
        return self


def split_into_parts(
    x: Tensor, y: Tensor | None = None, count: int | None = None, names: tuple[str, ...] | None = None
) -> Data:
    """Split off a test part of ``count`` data, by default one fifth, always in the same way."""
    if len(x) < 2:
        raise ValueError(f"at least 2 data are needed for a train and a test part, not {len(x)}")
    parts = train_and_test(len(x), count)
    labels = [None if y is None else y[part] for part in parts]
    return Data(x[parts[0]], x[parts[1]], *labels).with_label_names(names)


def train_and_test(size: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the indices of the data for training and for the test, always the same for one size."""
    count = count or max(1, round(size / 5))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    return order[count:], order[:count]
