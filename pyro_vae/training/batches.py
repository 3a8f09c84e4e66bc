"""The data of a training, a batch at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from pyro_vae.data import Rows, shuffled_batches
from pyro_vae.distributed import Ranks
from pyro_vae.programs import Transform, transformed


@dataclass
class Batches:
    """Random minibatches of data, each rank its part.

    Arguments:
        x: data, whose first dimension counts them.
        size: data per batch and rank.
        transform: what is done to a batch before the programs see it.
        ranks: the processes of the training.
        order: random generator for shuffling.
    """

    x: Rows
    size: int
    transform: Transform | None = None
    ranks: Ranks = field(default_factory=Ranks)
    order: torch.Generator = field(default_factory=torch.Generator)

    def __len__(self) -> int:
        return math.ceil(len(self.x) / (self.size * self.ranks.size))

    def after(self, done: int) -> Iterator[tuple[Tensor, int]]:
        """Yield the batches of an epoch, but not the first ones, which are done, each with its number of data."""
        any_row = self.x[:1]
        batches = shuffled_batches(self.x, self.size * self.ranks.size, self.order, self.ranks.part)
        for rows in islice(batches, done, None):
            count = len(rows)
            yield (
                self.transformed(rows if count else any_row),
                count,
            )  # all ranks take each step; some count for nothing

    def first(self) -> Tensor:
        """Return the first data as a batch, in the order in which they lie."""
        return self.transformed(self.x[: self.size])

    def transformed(self, rows: Tensor) -> Tensor:
        """Return a batch as the programs see it."""
        return transformed(rows, self.transform)
