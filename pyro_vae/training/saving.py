"""When checkpoints are written, and how a training stops when it is asked to."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pyro_vae.runtime.checkpoints import Checkpoints, Stopped, Tensors
from pyro_vae.runtime.distributed import BETWEEN_LOOKS, Ranks
from pyro_vae.training.state import State


class NoSaver:
    """Writes no checkpoints."""

    def after_step(self) -> None:
        """Do nothing."""

    def after_epoch(self, *, last: bool) -> None:
        """Do nothing."""

    def after_end(self) -> None:
        """Do nothing."""


class Saver:
    """Writes a checkpoint when one is due, and ends a training that was asked to stop.

    Arguments:
        checkpoints: says when a checkpoint is due, and writes it.
        state: the state of the training.
        ranks: the processes of the training; rank 0 writes.
        verify: called before a checkpoint is written, to check the steps since the last check.
        epochs_only: save the state from the start of the epoch, for data that cannot be resumed in the middle of one.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        state: State,
        ranks: Ranks,
        verify: Callable[[], None],
        *,
        epochs_only: bool = False,
    ) -> None:
        self.checkpoints, self.state, self.ranks, self.verify, self.epochs_only = (
            checkpoints,
            state,
            ranks,
            verify,
            epochs_only,
        )
        self._keep_start()

    def after_step(self) -> None:
        """Write a checkpoint if one is due.

        Raises:
            Stopped: after writing a checkpoint, if the training was asked to stop.
        """
        if self.ranks.size == 1 or self.state.step % BETWEEN_LOOKS == 0:
            within = self.ranks.rank == 0 and not self.epochs_only
            self._save_if(within and self.checkpoints.due(at_end_of_epoch=False))

    def after_epoch(self, *, last: bool) -> None:
        """Write a checkpoint if one is due; after the last epoch one always is.

        Raises:
            Stopped: after writing a checkpoint, if the training was asked to stop.
        """
        self._keep_start()
        self._save_if(last or (self.ranks.rank == 0 and self.checkpoints.due(at_end_of_epoch=True)))

    def after_end(self) -> None:
        """Write a checkpoint of a training that `StopTraining` has ended.

        Raises:
            Stopped: if it was asked to stop, too.
        """
        self._save_if(due=True)

    def _keep_start(self) -> None:
        self._start = copy.deepcopy(self._now()) if self.epochs_only else None

    def _now(self) -> tuple[Tensors, dict[str, Any]]:
        self.verify()
        return self.state.save()

    def _save_if(self, due: bool) -> None:
        if not self.ranks.any(due or self.checkpoints.stopping):
            return
        tensors, about = self._start if self._start and self.state.batches else self._now()
        if self.ranks.rank == 0:
            self.checkpoints.write(tensors, about, self.state.best)
        if self.ranks.any(self.checkpoints.stopping):
            self.checkpoints.stopping = False  # another training may use them, too
            where = f"in epoch {self.state.epoch}, before step {self.state.step}"
            raise Stopped(f"stopped {where}; checkpoint: {self.checkpoints.last}")


def as_checkpoints(checkpoints: Checkpoints | str | Path | None, resume: str | Path | None) -> Checkpoints | None:
    """Return the `Checkpoints` of a training, but refuse a folder that holds those of another training.

    Arguments:
        checkpoints: a folder, a `Checkpoints`, or None.
        resume: the folder of the checkpoint to resume, or None.

    Raises:
        ValueError: with the fix.
    """
    given = resume if checkpoints is None else checkpoints
    found = given if given is None or isinstance(given, Checkpoints) else Checkpoints(given)
    if found and found.last.exists() and (resume is None or found.folder.resolve() != Path(resume).resolve()):
        fix = f"continue it by resume={str(found.folder)!r}, or give another folder"
        raise ValueError(f"{found.folder} already holds the checkpoint of a training: {fix}")
    return found


def checkpoint_of(checkpoints: Checkpoints | None, resume: str | Path | None) -> Checkpoints | None:
    """Return the checkpoint that a training continues from, if any; one that cannot be read is refused at once."""
    if checkpoints is None or resume is None:
        return None
    before = Checkpoints(resume, identity=checkpoints.identity)
    before.read()
    return before


@contextmanager
def held(checkpoints: Checkpoints, ranks: Ranks) -> Iterator[None]:
    """Lock the folder of the checkpoints, on rank 0, so that no other training writes there."""
    with ExitStack() as stack:
        ranks.together(lambda: stack.enter_context(checkpoints.held()) if ranks.rank == 0 else None)
        yield
