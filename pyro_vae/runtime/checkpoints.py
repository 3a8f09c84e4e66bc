"""Files of tensors, written completely or not at all and read without trust, and the checkpoints of a training.

Knows no Pyro program.
"""

import copy
import errno
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from filelock import FileLock, SoftFileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from pyro_vae.data.fingerprints import bytes_of
from pyro_vae.files import check_no_link, check_regular, write_whole

FORMAT = 2  # of the files; a file of another format is refused
SHARE = 0.01  # of the training time goes into checkpoints at the ends of epochs, besides the first and the last
LOCK = ".lock"  # a file in a folder; the system releases the lock when the process that holds it ends
COLUMNS = (
    "epoch",
    "train_loss",
    "train_reconstruction",
    "train_kl",
    "test_loss",
    "test_reconstruction",
    "test_kl",
    "test_loss_at_mean",
    "learning_rate",
    "seconds",
)  # of the history in a checkpoint
ADDED = {"learning_rate"}  # columns that checkpoints of earlier versions do not have
KINDS = {
    **{"epoch": int, "step": int, "batches": int, "seconds": float, "best": float},
    **dict.fromkeys(("history", "frozen", "programs", "parts"), list),
    **dict.fromkeys(("settings", "optimizer", "constraints", "read"), dict),
}  # of the plain values in a checkpoint
Tensors = Mapping[str, Tensor]
UNREADABLE = (OSError, SafetensorError, LookupError, AttributeError, TypeError, ValueError, RuntimeError)


class Stopped(Exception):  # noqa: N818 (no error)
    """A training has ended early because `Checkpoints.stop` asked it to; its checkpoint has been written."""


def save_tensors(path: Path, tensors: Tensors, about: Mapping[str, Any]) -> None:
    """Write tensors and plain values as one safetensors file, with versions and a checksum, by `write_whole`.

    Arguments:
        path: the file.
        tensors: tensors by name, on any device.
        about: plain values that JSON can hold; numbers may be infinite or NaN.

    Raises:
        OSError: as `write_whole`.
    """
    write_whole(path, as_file(tensors, about))


def as_file(tensors: Tensors, about: Mapping[str, Any]) -> bytes:
    """Return the content of the file that `save_tensors` writes.

    Raises:
        TypeError, ValueError: for tensors or values that the file cannot hold.

    Example:
        >>> as_file({"x": torch.zeros(1, dtype=torch.complex128)}, {})
        Traceback (most recent call last):
        ...
        ValueError: a checkpoint cannot hold a tensor of torch.complex128: take another type, or train without one
    """
    kept = {name: tensor.detach().cpu().resolve_conj().contiguous() for name, tensor in tensors.items()}
    places: set[int] = set()
    for name, tensor in kept.items():
        place = tensor.untyped_storage().data_ptr()
        if place in places:  # safetensors refuses two tensors that share memory
            kept[name] = tensor.clone()
        places.add(place)
    head = {"format": FORMAT, **versions(), "about": about}
    head["sha256"] = _digest(kept, head)
    try:
        return save(kept, {"pyro_vae": json.dumps(head)})
    except KeyError as error:  # safetensors does not know the type
        what = f"a tensor of {error}: take another type, or train without one"
        raise ValueError(f"a checkpoint cannot hold {what}") from error


def read_tensors(path: Path, fix: str = "correct its path") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_tensors`. Nothing in it is executed, and a link out of its folder is not followed.

    Arguments:
        path: the file.
        fix: what the error says to do if the file is missing.

    Returns:
        The tensors, on the CPU, and the head: ``format``, ``pyro_vae`` and ``torch`` (versions), ``about``.

    Raises:
        ValueError: if it is missing, damaged, a link out of its folder, or of another format.

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
        ValueError: ...x.safetensors is damaged: its checksum does not match its content
    """
    _check_place(path)
    try:
        content = path.read_bytes()  # no memory map: if the file became shorter, the process would be killed
        tensors = load(content)
        head = json.loads(_header(content)["__metadata__"]["pyro_vae"])
        found, written_by = head["format"], head.get("pyro_vae")
        expected = head.pop("sha256") if found == FORMAT else ""
        same = found != FORMAT or expected == _digest(tensors, head)
    except FileNotFoundError as error:
        raise ValueError(f"no file {path}; {fix}") from error
    except UNREADABLE as error:
        raise _damaged(path, error) from error
    if found != FORMAT:
        made = f"format {_short(found)} (pyro_vae {_short(written_by, str)})"
        raise ValueError(f"{path} has {made}, but this is pyro_vae {versions()['pyro_vae']}, which reads {FORMAT}")
    if not same:
        raise ValueError(f"{path} is damaged: its checksum does not match its content")
    return tensors, head


def read_shapes(path: Path, fix: str = "correct its path") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what a file of `save_tensors` says of itself, but none of its values, which may take much memory.

    Arguments:
        path: the file.
        fix: what the error says to do if the file is missing.

    Returns:
        Tensors of its shapes without values, on the meta device and all of one type, and the head. Both are to be read
        again by `read_tensors`, which compares their checksum.

    Raises:
        ValueError: as `read_tensors`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
        >>> save_tensors(path, {"x": torch.arange(3)}, {"epoch": 1})
        >>> shapes, head = read_shapes(path)
        >>> shapes["x"].shape, head["about"]
        (torch.Size([3]), {'epoch': 1})
    """
    _check_place(path)
    try:
        with safe_open(path, "np") as file:  # which compares the shapes with the length of the file
            sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
            head = json.loads(file.metadata()["pyro_vae"])
        shapes = {name: torch.empty(size, device="meta") for name, size in sizes.items()}
        head["format"], head.get("about")
    except FileNotFoundError as error:
        raise ValueError(f"no file {path}; {fix}") from error
    except UNREADABLE as error:
        raise _damaged(path, error) from error
    return shapes, head


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path} is damaged, or is not a file of pyro_vae: {reason}")


def _check_place(path: Path) -> None:
    if os.path.dirname(real := os.path.realpath(path)) != os.path.realpath(path.parent):
        raise ValueError(f"{path} is a link to {real}, out of its folder, and is not followed")
    check_regular(path)


def _header(content: bytes) -> Any:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # as safetensors lays it out


def _short(value: Any, form: Callable[[Any], str] = repr) -> str:
    text = " ".join(form(value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def versions() -> dict[str, str]:
    """Return the versions of the packages that a file depends on."""
    return {"pyro_vae": version("pyro-vae"), "torch": torch.__version__, "pyro-ppl": version("pyro-ppl")}


def check_same(path: Path, there: Any, here: Mapping[str, Any]) -> None:
    """Refuse a file that belongs to another run.

    Arguments:
        path: the file.
        there: plain values that describe the file's run, as the file has them.
        here: plain values that describe this run.

    Raises:
        ValueError: with the first value that differs.

    Example:
        >>> check_same(Path("last.safetensors"), {"seed": 1}, {"seed": 0})
        Traceback (most recent call last):
        ...
        ValueError: last.safetensors is of another run: it has seed 1, this run has seed 0
    """
    there, here = (there if isinstance(there, dict) else {}), json.loads(json.dumps(here))
    for name in {**here, **there}:
        if there.get(name) != here.get(name):
            known = _short(name, str)
            differ = f"it has {known} {_short(there.get(name))}, this run has {known} {here.get(name)!r}"
            raise ValueError(f"{path} is of another run: {differ}")


def _digest(tensors: Tensors, head: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def take(lock: FileLock, refusal: str) -> Callable[[], None]:
    """Take the lock of a folder, and warn where its disk keeps none, as some of a network do.

    Arguments:
        lock: of a file in it.
        refusal: what is said where another process holds it.

    Returns:
        A function to call before each write. It raises a ValueError if another folder, with a lock of its own, has
        come into the place of this one.

    Raises:
        ValueError: where another process holds it.
    """
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        left = isinstance(lock, SoftFileLock)  # on a disk that frees no lock of a process that was killed elsewhere
        raise ValueError(refusal + f"; if none does, remove {lock.lock_file}" * left) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
        what = f"the disk of {lock.lock_file} keeps no locks ({error})"
        warnings.warn(f"{what}: see to it that nothing else writes to its folder", RuntimeWarning, stacklevel=4)
        return lambda: None
    path = Path(lock.lock_file)
    held = os.stat(path)  # while it is open, no other file gets its number

    def check() -> None:
        if path.exists() and not os.path.samestat(held, os.stat(path)):
            reason = "another one has come into its place, to which nothing is written"
            raise ValueError(f"{path.parent} is not the folder any more in which this training began: {reason}")

    return check


class Checkpoints:
    """The checkpoints of one training in a folder: ``last.safetensors``, from which it is resumed, and the best.

    `fit` writes ``last.safetensors`` at the end of an epoch, but not so often that writing takes more than 1 % of the
    time; within an epoch, after so many minutes; at the end of the training; and after a call of `stop`.
    ``best.safetensors`` holds the parameters with the lowest test loss so far.

    Arguments:
        folder: the folder; it is created if needed.
        minutes: minutes between checkpoints within an epoch, above 0.
        on_save: called after each checkpoint.
        identity: plain values that describe what is trained. A checkpoint with other values is refused.

    Raises:
        TypeError: if the folder is not a path.
        ValueError: if the folder has no name, or ``minutes`` is not a number above 0.

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
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(f"the folder of checkpoints must be a path, not {folder!r}")
        if folder == "" or "\0" in str(folder):  # the first would be the current folder
            raise ValueError(
                f"no folder of checkpoints can be named {folder!r}: give another one, such as 'checkpoints'"
            )
        if not (isinstance(minutes, int | float) and minutes > 0):
            raise ValueError(f"minutes must be above 0, not {minutes!r}")
        self.folder, self.minutes, self.on_save, self.identity = Path(folder), minutes, on_save, identity or {}
        self.stopping = False
        self._written_at, self._took = time.monotonic(), 0.0
        self._best, self._made = math.inf, False
        self._check_folder: Callable[[], None] = lambda: None

    @property
    def last(self) -> Path:
        """The file from which the training is resumed."""
        return self.folder / "last.safetensors"

    @property
    def best(self) -> Path:
        """The file of the parameters with the lowest test loss."""
        return self.folder / "best.safetensors"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder against other trainings; the system releases the lock when this process ends.

        Raises:
            ValueError: if another training holds the lock, or the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = "it is no folder" if self.folder.exists() else f"it cannot be made: {error.strerror}"
            raise ValueError(
                f"no checkpoints can be written to {self.folder}, as {reason}; give another folder"
            ) from error
        self._made, self._best = True, math.inf  # this training has not written a best checkpoint yet
        check_no_link(self.folder / LOCK)
        lock = FileLock(self.folder / LOCK)
        self._check_folder = take(
            lock, f"another training writes to {self.folder}: wait for it, or give another folder"
        )
        try:
            yield
        finally:
            lock.release()

    def stop(self) -> None:
        """Have the training write a checkpoint and end after the current step; safe in a signal handler."""
        self.stopping = True

    def due(self, *, at_end_of_epoch: bool) -> bool:
        """Whether a checkpoint is to be written now."""
        since = time.monotonic() - self._written_at
        return self.stopping or since > 60 * self.minutes or (at_end_of_epoch and SHARE * since >= self._took)

    def read_best(self, loss: float, like: Tensors, settings: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the parameters with the lowest test loss so far.

        Arguments:
            loss: the lowest test loss, as the last checkpoint has it; if it is infinite, there are no best parameters.
            like: tensors of the programs by name; the best parameters must have the same types and shapes.
            settings: the settings of the training, which must be the same.

        Raises:
            ValueError: if they are missing, of another training, or of a higher test loss.
        """
        if loss == math.inf:
            return {}
        fix = "take the one that was written beside the last checkpoint, or leave patience out"
        tensors, head = read_tensors(self.best, fix)
        about = head["about"] if isinstance(head.get("about"), dict) else {}
        if self.identity:
            check_same(self.best, about.get("of"), self.identity)
        check_same(self.best, about.get("settings"), settings)
        found: Any = about.get("test_loss")
        if not (_is(found, float) and found <= loss):  # a lower one is of a later epoch, which will be trained again
            raise ValueError(f"{self.best} has test_loss {_short(found)}, but the lowest one so far is {loss}: {fix}")
        late = {name for name in like if name.startswith("param/") and name not in tensors}
        check_tensors(tensors, {name: tensor for name, tensor in like.items() if name not in late})
        return tensors

    def write(self, tensors: Tensors, about: Mapping[str, Any], best: tuple[float, Tensors]) -> None:
        """Write the last checkpoint, and before it the best one if it has changed.

        Arguments:
            tensors: the tensors of the training's state, by name.
            about: the plain values of the state.
            best: the lowest test loss so far, infinite if there is none, and its parameters.

        Raises:
            OSError: if a file cannot be written; the earlier files are then kept.
            ValueError: if another folder has come into the place of this one since it was locked.
        """
        start = time.monotonic()
        self._check_folder()
        if not self._made:  # a folder that has been removed since is not made again
            self.folder.mkdir(parents=True, exist_ok=True)
            self._made = True
        loss, parameters = best
        if parameters and loss < self._best:
            kept = {"test_loss": loss, "of": self.identity, "settings": about.get("settings")}
            save_tensors(self.best, parameters, kept)
            self._best = loss
        save_tensors(self.last, tensors, {**about, "of": self.identity})
        if self.on_save:
            self.on_save()
        self._written_at = time.monotonic()
        self._took = self._written_at - start

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read the last checkpoint.

        Returns:
            Its tensors and its plain values.

        Raises:
            ValueError: as `read_tensors`; also if the file is not a checkpoint, if it is of another training, or if it
                was written by other versions of pyro_vae, torch or pyro-ppl.
        """
        tensors, head = read_tensors(self.last, "begin a new training")
        for name, here in versions().items():
            if head.get(name) != here:
                made, fix = _short(head.get(name), str), "resume with that version, or begin a new run"
                raise ValueError(f"{self.last} was written by {name} {made}, but this is {here}: {fix}")
        about = head.get("about")
        if not (isinstance(about, dict) and "history" in about):
            raise ValueError(f"{self.last} holds no checkpoint of a training")
        if self.identity:
            check_same(self.last, about.get("of"), self.identity)
        _check_about(about)
        return tensors, about


def _refuse(name: str, value: Any) -> NoReturn:
    if isinstance(value, Tensor):
        value = f"a tensor of {value.dtype} {tuple(value.shape)}"
    fix = "take another checkpoint, or begin a new training"
    raise ValueError(f"the checkpoint's {name} cannot be resumed from: {_short(value, str)}; {fix}")


def _is(value: Any, kind: type) -> bool:
    return type(value) is kind or (kind is float and type(value) is int and abs(value) < 2**63)


def _check_about(about: Mapping[str, Any]) -> None:
    """Refuse plain values that a training cannot have written."""
    for name, kind in KINDS.items():
        if not _is(about.get(name), kind):
            _refuse(name, about.get(name))
    epoch, step, batches, history = (about[name] for name in ("epoch", "step", "batches", "history"))
    if epoch != len(history) or epoch < 1:
        _refuse("epoch", f"{epoch}, with {len(history)} rows of history")
    if not epoch - 1 <= step - batches <= step < 2**53:  # ready batches may be another number in each epoch
        _refuse("step", f"{step}, with {batches} batches of epoch {epoch}")
    for name in ("seconds", "best"):
        if math.isnan(about[name]) or (name == "seconds" and not 0 <= about[name] < math.inf):
            _refuse(name, about[name])
    for number, row in enumerate(history):
        known = isinstance(row, dict) and set(row) | ADDED == set(COLUMNS)
        numbers = known and all(_is(each, float) for each in row.values())
        if not numbers or row["epoch"] != number or not 0 <= row["seconds"] < math.inf:
            _refuse(f"row {number} of the history", row)
    if len(about["programs"]) == 8:
        earlier = "an earlier version, which did not note what the optimizer holds of its own"
        raise ValueError(f"the checkpoint is of {earlier}: resume it with that version, or begin a new training")
    if len(about["programs"]) != 12:  # as they came and as they were last: five that are called, and the optimizer
        _refuse("programs", about["programs"])
    if len(about["parts"]) != 5 or not all(isinstance(each, dict) for each in about["parts"]):
        _refuse("parts", about["parts"])
    state, groups = (about["optimizer"].get(name) for name in ("state", "groups"))
    if not (isinstance(state, dict) and all(isinstance(values, dict) for values in state.values())):
        _refuse("optimizer state", state)
    if not isinstance(groups, list) or not all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    ):
        _refuse("optimizer groups", groups)


def check_tensors(found: Tensors, like: Tensors) -> None:
    """Refuse a checkpoint whose tensors differ in type or shape from the tensors that they replace.

    Arguments:
        found: the tensors of the checkpoint, by name.
        like: the tensors of the training, by name; the checkpoint may hold more.

    Raises:
        ValueError: with the first tensor that differs.

    Example:
        >>> check_tensors({"totals": torch.zeros(3)}, {"totals": torch.zeros(4)})
        Traceback (most recent call last):
        ...
        ValueError: the checkpoint's totals cannot be resumed from: a tensor of torch.float32 (3,); take another...
    """
    for name, tensor in like.items():
        if not _alike(found.get(name), tensor):
            _refuse(name, found.get(name))


def check_random(name: str, state: Tensor, device: torch.device) -> None:
    """Refuse a random state that torch does not accept, or with which torch would read outside of the state.

    A state of a CPU holds the index of the next number and how many numbers are left; the two must fit each other.

    Arguments:
        name: the name of the state in the checkpoint.
        state: the state of the CPU, followed by that of the GPU if the device is one.
        device: the device.

    Raises:
        ValueError: for a state that cannot be used.

    Example:
        >>> check_random("order", torch.Generator().get_state(), torch.device("cpu"))
    """
    size = len(torch.get_rng_state())
    left, place = state[8:12].view(torch.int32).item(), state[16:24].view(torch.int64).item()
    try:
        torch.Generator().set_state(state[:size])
        if device.type == "cuda":
            torch.Generator(device).set_state(state[size:])
    except RuntimeError as error:
        _refuse(name, error)
    if (left, place) != (1, 0) and not (left + place == 625 and 1 <= left <= 624):
        _refuse(name, f"a random state at place {place} of 624 with {left} left")


def check_group(found: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    """Refuse the settings of an optimizer's group whose names or types differ from those of another one.

    Arguments:
        found: the settings in the checkpoint.
        like: the settings of the optimizer.

    Raises:
        ValueError: with the first setting that differs.

    Example:
        >>> check_group({"lr": "high"}, {"lr": 0.1})
        Traceback (most recent call last):
        ...
        ValueError: the checkpoint's optimizer setting lr cannot be resumed from: high; take another checkpoint, or...
    """
    if found.keys() != like.keys():
        _refuse("optimizer groups", found)
    for name, value in like.items():
        alike = _alike(found[name], value, exactly=name == "params") or name == "capturable"
        if not alike or (name == "betas" and max(found[name]) >= 1):  # weights of a running mean are below 1
            _refuse(f"optimizer setting {name}", found[name])


def checked_state(optim: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """Check an optimizer's saved state before ``load_state_dict``, which checks neither shapes nor types itself.

    It is compared with the state that a copy of the optimizer makes in one step. Settings that are numbers, such as the
    learning rate, may differ.

    Arguments:
        optim: the optimizer, new.
        saved: ``state`` by the parameters' numbers, and ``param_groups``.

    Returns:
        The saved state.

    Raises:
        ValueError: with the first value that differs in shape or type.

    Example:
        >>> optim = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
        >>> saved = optim.state_dict() | {"state": {0: {"momentum_buffer": torch.zeros(1)}}}
        >>> checked_state(optim, saved)
        Traceback (most recent call last):
        ...
        ValueError: the checkpoint's optimizer/0/momentum_buffer cannot be resumed from: a tensor...
    """
    like = stepped(optim).state_dict()
    groups, expected = saved["param_groups"], like["param_groups"]
    if len(groups) != len(expected):
        _refuse("optimizer groups", groups)
    for group, other in zip(groups, expected, strict=True):
        check_group(group, other)
    for number, values in saved["state"].items():
        made = like["state"].get(number, {})
        if values.keys() != made.keys():
            _refuse(f"optimizer/{number}", list(values))
        for name, value in values.items():
            if not _alike(value, made[name]):
                _refuse(f"optimizer/{number}/{name}", value)
    return saved


def stepped(optim: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return a copy of an optimizer that has taken a step with gradients of 0, without changing torch's random state.

    Raises:
        ValueError: for an optimizer that a checkpoint cannot hold, because a copy of it cannot take a step.
    """
    trial, devices = copy.deepcopy(optim), set()
    for group in trial.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
            devices |= {parameter.device} if parameter.is_cuda else set()
    try:
        with torch.random.fork_rng(devices):
            type(trial).step(trial)  # a scheduler has put another step on the object, which is that of the optimizer
    except (AttributeError, KeyError) as error:  # a copy of an optimizer has its groups and its state alone
        kind = type(optim).__name__
        raise ValueError(
            f"a checkpoint cannot hold what {kind} has of its own ({error}): keep it in its groups or its state, and"
            " make this in its first step, or train without checkpoints"
        ) from error
    return trial


def _alike(found: Any, like: Any, *, exactly: bool = False) -> bool:
    """Whether a value has the type and shape of another one, or, if ``exactly``, is equal to it."""
    found, like = (each.item() if isinstance(each, np.generic) else each for each in (found, like))
    if isinstance(like, Tensor) and isinstance(found, Tensor):
        return found.shape == like.shape and found.dtype == like.dtype
    if isinstance(like, Tensor) and like.dim() == 0:
        like = like.item()  # a learning rate may be one
    if isinstance(like, list | tuple):
        same = isinstance(found, list) and len(found) == len(like)
        return same and all(_alike(*pair, exactly=exactly) for pair in zip(found, like, strict=True))
    if type(like) in (int, float) and not exactly:
        return _is(found, float) and math.isfinite(found) and (found >= 0 or like < 0)  # 0 may have become 0.1
    return type(found) is type(like) and bool(found == like)
