"""The data of a training, a batch at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from pyro_vae.data import Ready, Rows, Stream, count_in, shuffled_batches
from pyro_vae.data.batch import Batch
from pyro_vae.data.generators import Sources, has_lasting_workers, numbers_in
from pyro_vae.programs import Transform, transformed
from pyro_vae.runtime.distributed import Ranks


@dataclass
class Batches:
    """Random minibatches of the data, of which each rank takes its part.

    Arguments:
        x: data, whose first dimension counts them, or ready batches, which are used as they come.
        size: data per batch and rank.
        transform: a function that is applied to a batch before the programs see it, or None.
        ranks: the processes of the training.
        order: random generator for shuffling.
    """

    x: Rows
    size: int
    transform: Transform | None = None
    ranks: Ranks = field(default_factory=Ranks)
    order: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        self.count = count_in(self.x)
        # Their states belong to the state of a training.
        self.sources = Sources(self.order, *(self.x.generators if isinstance(self.x, Ready | Stream) else ()))

    def numbers(self) -> list[Any]:
        """Return what an iterable of data counts in Python, and the states of its generators of numpy or Python."""
        return numbers_in(self._iterable)

    @property
    def digest(self) -> str | None:
        """A hash of the first data of an iterable, by which other data are noticed on resuming."""
        return getattr(self.x, "digest", None)

    @property
    def has_lasting_workers(self) -> bool:
        """Whether worker processes make the data and persist from epoch to epoch."""
        return has_lasting_workers(self._iterable)

    @property
    def _iterable(self) -> Any:
        return getattr(self.x, {Ready: "batches", Stream: "dataset"}.get(type(self.x), ""), None)

    def __len__(self) -> int:
        if isinstance(self.x, Ready):
            return len(self.x.counts)
        return math.ceil(len(self.x) / (self.size * self.ranks.size))

    def sizes(self) -> set[int]:
        """Return the sizes of the batches of an epoch, of all ranks together; the last one may be smaller."""
        if isinstance(self.x, Ready):
            return set(self.x.counts)
        whole = min(len(self.x), self.size * self.ranks.size)
        return {whole, (len(self.x) - 1) % whole + 1}

    def after(self, done: int) -> Iterator[tuple[Batch, int]]:
        """Yield the batches of an epoch that follow the first ``done`` ones, each with its number of data."""
        any_row = self.x[:1]
        for rows in islice(self._epoch(), done, None):
            count = self.count(rows)  # all ranks take each step; a rank without data takes it with weight 0
            yield self.transformed(rows if count else any_row), count

    def _epoch(self) -> Iterator[Batch]:
        if isinstance(self.x, Ready):  # all ranks get the same batch, although each draws its own noise
            whole = self.x.epoch(None if self.ranks.size == 1 else self.order)
            return (self.ranks.part_of(batch, self.count) for batch in whole)
        return shuffled_batches(self.x, self.size * self.ranks.size, self.order, self.ranks.part_of)

    def first(self) -> Batch:
        """Return the first data as a batch, not shuffled."""
        return self.transformed(self.x[: self.size])

    def structures(self) -> Iterator[Batch]:
        """Yield the first data; for ready batches also the first batch of each further structure."""
        yield self.first()
        for rows in islice(self.x.structures(), 1, None) if isinstance(self.x, Ready) else ():
            yield self.transformed(rows)

    def transformed(self, rows: Batch) -> Batch:
        """Return a batch as the programs see it."""
        return transformed(rows, self.transform, self.count)
