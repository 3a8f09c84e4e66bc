"""Files of tensors, written whole or not at all and read without trust, and when a training writes them. No Pyro."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pyro_vae.files import write_whole

FORMAT = 1  # of the files; one with another number is refused
SHARE = 0.01  # of the training time for checkpoints at the ends of epochs, but for the first and the last
Tensors = Mapping[str, Tensor]


class Stopped(Exception):  # noqa: N818 (no error)
    """A training has ended early because `Checkpoints.stop` asked it to; its checkpoint stands."""


def save_tensors(path: Path, tensors: Tensors, about: Mapping[str, Any]) -> None:
    """Write tensors and plain values as one safetensors file, with versions and a checksum, by `write_whole`.

    Arguments:
        path: the file.
        tensors: by name, on any device.
        about: what JSON can hold, numbers that are not finite too.

    Raises:
        OSError: as `write_whole`.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    head = {"format": FORMAT, **versions(), "about": about}
    head["sha256"] = _digest(kept, head)
    write_whole(path, save(kept, {"pyro_vae": json.dumps(head)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_tensors`. Nothing in it is run, or followed out of its folder.

    Arguments:
        path: the file.

    Returns:
        The tensors, on the CPU, and the head: ``format``, ``pyro_vae`` and ``torch`` (versions), ``about``.

    Raises:
        ValueError: where it is missing, damaged, a link that leads elsewhere, or of another format.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
        >>> save_tensors(path, {"x": torch.arange(3)}, {"epoch": 1})
        >>> tensors, head = read_tensors(path)
        >>> tensors["x"], head["about"]
        (tensor([0, 1, 2]), {'epoch': 1})
        >>> content = bytearray(path.read_bytes())
        >>> content[-1] ^= 1
        >>> _ = path.write_bytes(content)
        >>> read_tensors(path)
        Traceback (most recent call last):
        ...
        ValueError: ...x.safetensors is damaged: its checksum is not that of its content
    """
    if path.resolve().parent != path.parent.resolve():
        raise ValueError(f"{path} is a link to {path.resolve()}, out of its folder, and is not followed")
    try:
        with safe_open(path, "pt") as file:
            head = json.loads((file.metadata() or {})["pyro_vae"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        found = head.pop("format")
        if found != FORMAT:
            made = f"format {found!r} (pyro_vae {head.get('pyro_vae')})"
            raise ValueError(f"{path} has {made}, but this is pyro_vae {versions()['pyro_vae']}, which reads {FORMAT}")
        expected = head.pop("sha256")
    except FileNotFoundError as error:
        raise ValueError(f"no file {path}") from error
    except (
        OSError,
        SafetensorError,
        KeyError,
        AttributeError,
        TypeError,
        json.JSONDecodeError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is damaged, or none of pyro_vae's files: {reason}") from error
    head = {"format": found, **head}
    if expected != _digest(tensors, head):
        raise ValueError(f"{path} is damaged: its checksum is not that of its content")
    return tensors, head


def versions() -> dict[str, str]:
    """Return the versions of what a file is written and read by."""
    return {"pyro_vae": version("pyro-vae"), "torch": torch.__version__}


def check_same(path: Path, there: Any, here: Mapping[str, Any]) -> None:
    """Refuse a file that is of something else.

    Arguments:
        path: the file.
        there: the plain values that it says it is of.
        here: those that it must be of.

    Raises:
        ValueError: with the first one that differs.

    Example:
        >>> check_same(Path("last.safetensors"), {"seed": 1}, {"seed": 0})
        Traceback (most recent call last):
        ...
        ValueError: last.safetensors is of another run, with seed 1, not 0
    """
    there, here = (there if isinstance(there, dict) else {}), json.loads(json.dumps(here))
    for name in {**here, **there}:
        if there.get(name) != here.get(name):
            differ = f"{name} {there.get(name)!r}, not {here.get(name)!r}"
            raise ValueError(f"{path} is of another run, with {differ}")


def _digest(tensors: Tensors, head: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of one training in a folder: ``last.safetensors``, from which it is resumed, and the best.

    `fit` writes the last one at the end of an epoch, unless less than 100 times as long as writing took has passed
    since the one before, so that 1 % of the time goes there; within an epoch, after so many minutes; at its end; and
    where `stop` asks for it. ``best.safetensors`` holds the parameters with the lowest test loss so far.

    Arguments:
        folder: where to; it is made if need be.
        minutes: between checkpoints within an epoch, above 0.
        on_save: called after each checkpoint.
        of: plain values that say what is trained; they are written, and a checkpoint of others is not read.

    Raises:
        ValueError: for minutes that are no number above 0.

    Example:
        >>> Checkpoints("here", minutes=0)
        Traceback (most recent call last):
        ...
        ValueError: minutes must be above 0, not 0
    """

    def __init__(
        self,
        folder: str | Path,
        minutes: float = 5.0,
        on_save: Callable[[], None] | None = None,
        of: Mapping[str, Any] | None = None,
    ) -> None:
        if not (isinstance(minutes, int | float) and minutes > 0):
            raise ValueError(f"minutes must be above 0, not {minutes!r}")
        self.folder, self.minutes, self.on_save, self.of = Path(folder), minutes, on_save, of or {}
        self.stopping = False
        self._written_at, self._took = time.monotonic(), 0.0
        self._best, self._made = math.inf, False

    @property
    def last(self) -> Path:
        """The file from which the training is resumed."""
        return self.folder / "last.safetensors"

    @property
    def best(self) -> Path:
        """The file of the parameters with the lowest test loss."""
        return self.folder / "best.safetensors"

    def stop(self) -> None:
        """Have the training end after the step under way, its checkpoint written; safe in a signal handler."""
        self.stopping = True

    def due(self, *, at_end_of_epoch: bool) -> bool:
        """Whether a checkpoint is to be written now."""
        since = time.monotonic() - self._written_at
        return self.stopping or since > 60 * self.minutes or (at_end_of_epoch and SHARE * since >= self._took)

    def write(self, tensors: Tensors, about: Mapping[str, Any], best: tuple[float, Tensors]) -> None:
        """Write the last checkpoint, and the best one before it where it is a new one.

        Arguments:
            tensors: where the training stands, by name.
            about: the same, in plain values.
            best: the lowest test loss so far, infinite if there is none, and the parameters that it is of.

        Raises:
            OSError: where a file cannot be written; those from before then stand.
        """
        start = time.monotonic()
        if not self._made:  # a folder that has gone since is not made again
            self.folder.mkdir(parents=True, exist_ok=True)
            self._made = True
        loss, parameters = best
        if parameters and loss < self._best:
            save_tensors(self.best, parameters, {"test_loss": loss, "of": self.of})
            self._best = loss
        save_tensors(self.last, tensors, {**about, "of": self.of})
        if self.on_save:
            self.on_save()
        self._written_at = time.monotonic()
        self._took = self._written_at - start

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the last checkpoint.

        Returns:
            Its tensors, and what it says of them.

        Raises:
            ValueError: as `read_tensors`; where it is no checkpoint, one of another training, or other versions of
                pyro_vae or torch wrote it.
        """
        tensors, head = read_tensors(self.last)
        for name, here in versions().items():
            if head[name] != here:
                fix = "resume with that version, or begin a new run"
                raise ValueError(f"{self.last} was written by {name} {head[name]}, but this is {here}: {fix}")
        if not (isinstance(head.get("about"), dict) and isinstance(head["about"].get("history"), list)):
            raise ValueError(f"{self.last} holds no checkpoint of a training")
        if self.of:
            check_same(self.last, head["about"].get("of"), self.of)
        return tensors, head["about"]
