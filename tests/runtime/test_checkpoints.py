import copy
import errno
import json
import math
import os
import pickle
import re
import resource
import shutil
import stat
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import SoftFileLock

from pyro_vae import VAE, decoders, encoders, files, fit, networks, priors
from pyro_vae.files import write_whole
from pyro_vae.runs.config import Config
from pyro_vae.runs.folder import RunFolder, read_moments
from pyro_vae.runtime import checkpoints
from pyro_vae.runtime.checkpoints import COLUMNS, Checkpoints, check_random, checked_state, read_tensors, save_tensors

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7), "none": torch.empty(0, 2)}
ABOUT = {"epoch": 3, "loss": float("inf"), "rows": [{"train": 0.1}]}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, TENSORS, ABOUT)
    return path


def test_what_is_written_is_read(path):
    tensors, head = read_tensors(path)
    assert head["about"] == ABOUT
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_tensors_that_share_their_memory_are_each_kept(tmp_path):
    whole = torch.arange(6.0)
    tensors = {"whole": whole, "same": whole.view(2, 3), "part": whole[2:], "again": whole.detach()}
    save_tensors(tmp_path / "x", tensors, {})
    found, _ = read_tensors(tmp_path / "x")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_every_truncation_is_refused(path):
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"x\.safetensors is damaged|none of pyro_vae's"):
            read_tensors(path)


def test_every_flipped_bit_is_refused(path):
    content = path.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            read_tensors(path)


class Payload:
    """What would make a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def hostile(kind, folder):
    """The bytes of a file that is none of ours."""
    if kind == "pickle":
        return pickle.dumps(Payload(str(folder / "run")))
    if kind == "torch":
        torch.save(Payload(str(folder / "run")), folder / "torch")
        return (folder / "torch").read_bytes()
    if kind == "zip-slip":
        with zipfile.ZipFile(folder / "zip", "w") as archive:
            archive.writestr("../run", "x")
        return (folder / "zip").read_bytes()
    if kind == "header of 2^63 bytes":
        return (2**63 - 1).to_bytes(8, "little") + b"{}"
    if kind == "header of 4 GiB":
        return (2**32).to_bytes(8, "little") + b"{" + b" " * 100
    if kind == "tensor of 2^50 bytes":
        header = json.dumps({"x": {"dtype": "F32", "shape": [2**48], "data_offsets": [0, 2**50]}}).encode()
        return len(header).to_bytes(8, "little") + header
    if kind == "deep":
        header = json.dumps({"__metadata__": {"pyro_vae": "[" * 100_000}}).encode()
        return len(header).to_bytes(8, "little") + header
    if kind == "no head":
        return checkpoints.save({"x": torch.zeros(1)})
    return checkpoints.save({"x": torch.zeros(1)}, {"pyro_vae": kind})


@pytest.mark.parametrize(
    "kind",
    [
        *("pickle", "torch", "zip-slip", "header of 2^63 bytes", "header of 4 GiB", "tensor of 2^50 bytes", "deep"),
        *("no head", "[]", "{}", "1", "null", '{"format": 1}', '{"format": 1, "sha256": null}', "{", ""),
    ],
)
def test_a_hostile_file_is_refused_and_not_run(kind, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(hostile(kind, tmp_path))
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        read_tensors(path)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path.parent / "run").exists()


def test_a_link_out_of_the_folder_is_not_followed(path, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "x.safetensors").symlink_to(path)
    with pytest.raises(ValueError, match=r"is a link to .* out of its folder"):
        read_tensors(tmp_path / "run" / "x.safetensors")
    (tmp_path / "y.safetensors").symlink_to(path)
    assert read_tensors(tmp_path / "y.safetensors")[1]["about"] == ABOUT
    (tmp_path / "other").symlink_to(tmp_path)  # a folder may be one
    assert read_tensors(tmp_path / "other" / "x.safetensors")[1]["about"] == ABOUT


def test_another_format_is_refused_with_both_versions(path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 3)
    monkeypatch.setattr(checkpoints, "versions", lambda: {"pyro_vae": "99", "torch": "99"})
    save_tensors(path, TENSORS, ABOUT)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has format 3 \(pyro_vae 99\), but this is pyro_vae .*, which reads 2"):
        read_tensors(path)


@pytest.mark.parametrize("name", ["pyro_vae", "torch", "pyro-ppl"])
def test_a_training_is_not_resumed_with_another_version(name, tmp_path, monkeypatch):
    here = checkpoints.versions()
    monkeypatch.setattr(checkpoints, "versions", lambda: here | {name: "99"})
    Checkpoints(tmp_path).write(TENSORS, ABOUT, (float("inf"), {}))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=re.escape(f"written by {name} 99, but this is {here[name]}")):
        Checkpoints(tmp_path).read()


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        ({"seed": 1}, {"seed": 0}, "it has seed 1, this run has seed 0"),
        ({"seed": 0}, {"seed": 0, "lr": 0.1}, "it has lr None, this run has lr 0.1"),
        ({"seed": 0, "lr": 0.1}, {"seed": 0}, "it has lr 0.1, this run has lr None"),
        ({}, {"seed": 0}, "it has seed None, this run has seed 0"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(there, here, words, tmp_path):
    row = dict.fromkeys(COLUMNS, 0.0)
    numbers = {"epoch": 1, "step": 0, "batches": 0, "seconds": 0.0, "best": 0.0, "history": [row], "settings": {}}
    about = numbers | {
        "optimizer": {"state": {}, "groups": []},
        "constraints": {},
        "frozen": [],
        "programs": [""] * 12,
        "parts": [{}] * 5,
        "read": {},
    }
    Checkpoints(tmp_path, identity=there).write(TENSORS, about, (1.0, TENSORS))
    Checkpoints(tmp_path, identity=there).read()
    with pytest.raises(ValueError, match=f"is of another run: {words}"):
        Checkpoints(tmp_path, identity=here).read()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the signal is that of another process")
def test_a_file_that_shrinks_while_it_is_read_ends_no_process(path, monkeypatch):
    """A memory map would have it ended by SIGBUS."""
    save_tensors(path, {"x": torch.arange(10_000)}, {})
    loads = json.loads

    def shrink_first(text):
        os.truncate(path, 100)
        return loads(text)

    monkeypatch.setattr(json, "loads", shrink_first)
    child = os.fork()
    if not child:
        same = False
        try:
            same = torch.equal(read_tensors(path)[0]["x"], torch.arange(10_000))
        finally:
            os._exit(0 if same else 1)  # and not on with pytest
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*last\.safetensors"):
        Checkpoints(tmp_path).read()


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(call, path, monkeypatch):
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "open":
        monkeypatch.setattr(files, "open", fail, raising=False)
    else:
        monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*x\.safetensors'"):
        save_tensors(path, {"weight": torch.zeros(3)}, {})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [other.name for other in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("number", "raised"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_disk_that_brings_no_folder_to_itself_takes_files_all_the_same(number, raised, path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, "refused")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"refused: '.*x\.safetensors'") if raised else nullcontext():
        write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_file_whose_writing_is_interrupted_leaves_no_part_behind(tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    (tmp_path / "kept").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "kept", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("kept", b"old")]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EIO])
def test_a_disk_that_keeps_no_locks_takes_a_training_with_a_warning(number, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(number, "refused")

    monkeypatch.setattr("fcntl.flock", flock)
    expected = pytest.raises(OSError, match="refused")
    if number != errno.EIO:
        expected = pytest.warns(
            RuntimeWarning, match=r"disk of .*\.lock keeps no locks \(.*refused\): see to it that noth"
        )
    with expected, Checkpoints(tmp_path).held():
        pass


def test_no_checkpoint_replaces_that_of_another_training_in_a_folder_that_came_into_the_place(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    with checkpoints.held():
        checkpoints.write({}, {}, (math.inf, {}))
        shutil.rmtree(folder)
        with Checkpoints(folder).held():
            save_tensors(folder / "last.safetensors", {}, {"epoch": 9})
        with pytest.raises(ValueError, match="is not the folder any more in which this training began"):
            checkpoints.write({}, {}, (math.inf, {}))
    assert read_tensors(folder / "last.safetensors")[1]["about"] == {"epoch": 9}


def test_a_lock_that_is_left_by_another_machine_is_named(tmp_path, monkeypatch):
    """Where a disk has none of the system's, filelock makes files, of which only their own machine knows the end."""
    monkeypatch.setattr("pyro_vae.runtime.checkpoints.FileLock", SoftFileLock)
    (tmp_path / ".lock").write_text("123\nelsewhere\n")
    refused = pytest.raises(ValueError, match=r"another training writes to .*; if none does, remove .*\.lock$")
    with refused, Checkpoints(tmp_path).held():
        pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_failing_append_names_its_file():
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        files.append(Path("/dev/full"), b"a row")


def test_what_does_not_read_as_it_was_written_is_not_put_in_place(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(type(path), "read_bytes", lambda _: b"other")
    with pytest.raises(OSError, match="does not hold what was written"):
        write_whole(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", [".notes.txt.partial", "notes.txt"])
@pytest.mark.parametrize("target", ["outside.txt", "missing.txt"])
def test_no_file_is_written_through_a_link(name, target, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "outside.txt").write_text("mine")
    (tmp_path / "run" / name).symlink_to(tmp_path / target)
    path = tmp_path / "run" / "notes.txt"
    write_whole(path, b"new")
    assert (path.read_bytes(), path.is_symlink()) == (b"new", False)
    assert (tmp_path / "outside.txt").read_text() == "mine"
    assert sorted(each.name for each in tmp_path.rglob("*.txt*")) == ["notes.txt", "outside.txt"]


def test_no_file_is_appended_to_through_a_link(tmp_path):
    (tmp_path / "outside.txt").write_text("mine")
    for target in ("outside.txt", "missing.txt"):
        (tmp_path / target[0]).symlink_to(tmp_path / target)
        with pytest.raises(OSError, match="symbolic link"):
            files.append(tmp_path / target[0], b"new")
    assert (tmp_path / "outside.txt").read_text() == "mine"
    assert not (tmp_path / "missing.txt").exists()


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_ordinary_file_is_neither_read_nor_replaced(kind, tmp_path):
    path = tmp_path / "x.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/null")
    with pytest.raises(ValueError, match=f"is a {kind}, no ordinary file, and is not read"):
        read_tensors(path)
    with pytest.raises(OSError, match=f"is a {kind}, no file that could be written anew"):
        write_whole(path, b"new")


def test_a_file_that_grows_over_a_real_limit_leaves_the_old_one(tmp_path):
    """A limit of the system on the size of files, as a full disk has it: writes fail half-way."""
    script = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from pyro_vae.runtime.checkpoints import save_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "path = Path(sys.argv[1])\n"
        "save_tensors(path, {'x': torch.zeros(10)}, {})\n"
        "try:\n"
        "    save_tensors(path, {'x': torch.zeros(10_000)}, {})\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    assert resource.RLIMIT_FSIZE is not None
    path = tmp_path / "x.safetensors"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True, timeout=120)
    assert "File too large" in done.stdout
    assert read_tensors(path)[0]["x"].shape == (10,)
    assert [other.name for other in tmp_path.iterdir()] == [path.name]


def test_checkpoints_take_no_more_than_their_share_of_the_time(tmp_path, monkeypatch):
    """With a clock of our own: writing takes a second, and is due at the ends of epochs 100 seconds later."""
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])

    def take_a_second():
        now[0] += 1

    keeper = Checkpoints(tmp_path / "new", minutes=3, on_save=take_a_second)
    assert keeper.due(at_end_of_epoch=True)
    assert not keeper.due(at_end_of_epoch=False)
    keeper.write(TENSORS, ABOUT, (1.0, TENSORS))
    assert not keeper.due(at_end_of_epoch=True)
    now[0] += 99.9
    assert not keeper.due(at_end_of_epoch=True)
    now[0] += 0.2
    assert keeper.due(at_end_of_epoch=True)
    assert not keeper.due(at_end_of_epoch=False)
    now[0] += 80
    assert keeper.due(at_end_of_epoch=False)
    keeper.write(TENSORS, ABOUT, (1.0, TENSORS))
    assert not keeper.due(at_end_of_epoch=False)
    keeper.stop()
    assert keeper.due(at_end_of_epoch=False)


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("file", "no checkpoints can be written to file, as it is no folder; give another"),
        ("", "no folder of checkpoints can be named '': give another one"),
        ("a\0b", r"no folder of checkpoints can be named 'a\\x00b': give another one"),
        ("file/folder", "no checkpoints can be written to file/folder, as it cannot be made: Not a directory; give"),
    ],
)
def test_a_folder_that_cannot_hold_checkpoints_is_refused_in_one_line(folder, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("kept")
    with pytest.raises(ValueError, match=words):
        fit_small(epochs=1, checkpoints=folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_best_is_kept_beside_the_last(tmp_path):
    keeper = Checkpoints(tmp_path)
    for loss, value in ((2.0, 0.0), (1.0, 1.0), (3.0, 2.0)):
        keeper.write({"x": torch.tensor(value)}, {}, (loss, {"x": torch.tensor(value)}))
    assert read_tensors(keeper.last)[0]["x"] == 2
    tensors, head = read_tensors(keeper.best)
    assert (tensors["x"], head["about"]) == (1, {"test_loss": 1.0, "of": {}, "settings": None})


def test_a_folder_that_has_gone_is_not_made_again(tmp_path):
    keeper = Checkpoints(tmp_path / "run" / "checkpoints")
    keeper.write(TENSORS, ABOUT, (1.0, TENSORS))
    (tmp_path / "run").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        keeper.write(TENSORS, ABOUT, (1.0, TENSORS))
    assert not (tmp_path / "run").exists()
    assert read_tensors(tmp_path / "gone" / "checkpoints" / "last.safetensors")[1]["about"] == ABOUT | {"of": {}}


# --- crafted checkpoints: of a valid checksum, with other content -----------------------------------------------------

DATA = torch.rand(12, 4, generator=torch.Generator().manual_seed(0))


def fit_small(**settings):
    torch.manual_seed(0)
    network = partial(networks.MLP, hidden=())
    vae = VAE(priors.Normal(2), encoders.Normal(4, 2, network=network), decoders.Normal(2, 4, network=network))
    return fit(vae.model, vae.guide, DATA, batch_size=4, engine="eager", validation=DATA, **settings)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The content of a checkpoint that is resumed from."""
    keeper = Checkpoints(tmp_path_factory.mktemp("small"))
    fit_small(epochs=2, checkpoints=keeper)
    assert len(fit_small(epochs=3, resume=keeper.folder)) == 4
    return keeper.read()


OTHERS = (..., None, True, -1, 10**18, float("nan"), "x", [1], {"x": 1})  # the ellipsis: the place is missing


def places(value, path=()):
    """Every place in a nest of dictionaries and lists, the last of a list and of the losses' columns."""
    yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in COLUMNS[1:-1]:
                yield from places(inner, (*path, name))
    elif isinstance(value, list) and value:
        yield from places(value[-1], (*path, len(value) - 1))


def changed(value, path, new):
    """Return a nest with another value in one place, None if it is the one that stands there."""
    if not path:
        return [] if new is ... else new
    value = copy.deepcopy(value)
    inner = value
    for name in path[:-1]:
        inner = inner[name]
    if type(inner[path[-1]]) is type(new) and inner[path[-1]] == new:
        return None
    if new is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


@pytest.fixture
def _without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def refusal(folder, tensors, about):
    """Try to resume, and return the error, or None."""
    keeper = Checkpoints(folder)
    save_tensors(keeper.last, tensors, about)
    try:
        fit_small(epochs=2, resume=folder)
    except ValueError as error:
        return str(error)
    return None


def is_own(words):
    starts = ("the checkpoint", "cannot resume", "the programs")
    return words.startswith(starts) or ("last.safetensors" in words and "\n" not in words)


def test_optimizer_state_of_another_shape_is_refused(small, tmp_path):
    """Taken as it is, it would have the optimizer write outside of its memory."""
    tensors, about = small
    for moment in ("exp_avg", "exp_avg_sq"):
        short = {name: torch.zeros(1) if name.endswith(f"/{moment}") else tensor for name, tensor in tensors.items()}
        assert is_own(refusal(tmp_path, short, about))


@pytest.mark.parametrize("betas", [[0.9, 1.0], [2.0, 0.999], [0.9, 1e308]])
def test_weights_of_a_running_mean_stay_below_1(betas, small, tmp_path):
    tensors, about = small
    about = copy.deepcopy(about)
    about["optimizer"]["groups"][0]["betas"] = betas
    assert is_own(refusal(tmp_path, tensors, about))


@pytest.mark.filterwarnings("ignore:the (validation )?data begin with other values")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the (model|guide|transform|beta|optimizer) changes what it holds in Python")
@pytest.mark.usefixtures("_without_waiting_for_the_disk")
def test_whatever_stands_in_a_checkpoint_in_plain_values_is_refused_in_words_of_our_own(small, tmp_path):
    tensors, about = small
    accepted = set()
    for path in places(about):
        for other in filter(None, (changed(about, path, new) for new in OTHERS)):
            words = refusal(tmp_path, tensors, other)
            if words is None:
                accepted.add(path[0] if path[0] in ("programs", "parts", "read") else path[-1])
            else:
                assert is_own(words), (path, words)
    free = {"best", "seconds", "lr", 1, "eps", "weight_decay", "capturable", "of", "read", "parts"}  # 1: of the betas
    free |= {"constraints"}  # of pyro.param, which there is none of
    free |= {"programs"}  # as they began, or as they were at last: one of them must be equal
    # True is 1, and None is unset
    equal = {"clip_norm", "beta", "processes", "transform", "scheduler", "optimizer foreach"}
    assert accepted <= free | equal, accepted


def crafted(tensor):
    """Other tensors in the place of one: of other sizes, shapes and types."""
    flat = tensor.reshape(-1)
    yield from (
        tensor[None],
        torch.cat([flat, flat]),
        flat[: flat.numel() // 2].clone(),
        torch.zeros(0),
        torch.zeros(1),
    )
    yield from (tensor.to(dtype) for dtype in (torch.float64, torch.float16, torch.int64, torch.bool))
    if tensor.dim() == 2:
        yield tensor.t().contiguous()


@pytest.mark.slow
@pytest.mark.usefixtures("_without_waiting_for_the_disk")
def test_whatever_stands_in_a_checkpoint_in_tensors_is_refused_in_words_of_our_own(small, tmp_path):
    tensors, about = small
    for name, tensor in tensors.items():
        for new in crafted(tensor):
            if new.shape != tensor.shape or new.dtype != tensor.dtype:
                words = refusal(tmp_path, {**tensors, name: new}, about)
                assert words, (name, new.shape, new.dtype)
                assert is_own(words), (name, words)
        words = refusal(tmp_path, {other: each for other, each in tensors.items() if other != name}, about)
        assert words, name
        assert is_own(words), (name, words)


@pytest.mark.parametrize(
    "name", ["optimizer/0/more", "optimizer/99/step", "optimizer/x/step", "optimizer/-1/step", "optimizer/"]
)
def test_state_of_no_parameter_is_refused(name, small, tmp_path):
    tensors, about = small
    assert is_own(refusal(tmp_path, {**tensors, name: torch.zeros(())}, about))


@pytest.mark.parametrize("name", ["order", "random/0"])
@pytest.mark.parametrize(("left", "place"), [(624, 624), (0, 0), (1, 1), (-1, 626), (2**31 - 1, 0), (624, 2**62)])
def test_a_random_state_that_points_outside_of_itself_is_refused(name, left, place, small, tmp_path):
    tensors, about = small
    state = tensors[name].clone()
    state[8:12] = torch.tensor([left], dtype=torch.int32).view(torch.uint8)
    state[16:24] = torch.tensor([place], dtype=torch.int64).view(torch.uint8)
    assert is_own(refusal(tmp_path, {**tensors, name: state}, about))


def test_a_random_state_is_taken_wherever_it_stands():
    """How torch 2.13 lays out its state: at the start, and after so many draws."""
    for draws in (0, 1, 2, 623, 624, 625, 1300):
        generator = torch.Generator().manual_seed(3)
        torch.rand(draws, generator=generator)
        torch.randn(3, generator=generator)
        check_random("order", generator.get_state(), torch.device("cpu"))


@pytest.mark.parametrize(
    "optimizer",
    [
        *(torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop),
        *(torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.ASGD, torch.optim.Rprop),
        *(partial(torch.optim.SGD, momentum=0.9), torch.optim.SGD, partial(torch.optim.Adam, amsgrad=True)),
        *(torch.optim.Adafactor, partial(torch.optim.RMSprop, centered=True, momentum=0.1)),
    ],
    ids=lambda optimizer: getattr(optimizer, "__name__", "") or f"{optimizer.func.__name__} {optimizer.keywords}",
)
def test_the_state_of_every_optimizer_is_taken_and_of_another_shape_refused(optimizer):
    def trained(steps):
        parameters = [
            torch.nn.Parameter(torch.ones(2, 3)),
            torch.nn.Parameter(torch.ones(3)),
            torch.nn.Parameter(torch.ones(())),
        ]
        optim = optimizer(parameters, lr=0.01)
        for _ in range(steps):
            for parameter in parameters[:2]:
                parameter.grad = torch.ones_like(parameter)
            optim.step()
        return optim

    saved = json.loads(json.dumps(trained(2).state_dict(), default=lambda _: "tensor"))
    state = {number: dict(values) for number, values in trained(2).state_dict()["state"].items()}
    saved = {"state": state, "param_groups": saved["param_groups"]}
    assert checked_state(trained(0), saved) is saved
    for number, values in state.items():
        for name, value in values.items():
            other = torch.zeros(7) if isinstance(value, torch.Tensor) else "x"
            with pytest.raises(ValueError, match=f"optimizer/{number}/{name} cannot be resumed from"):
                checked_state(trained(0), {**saved, "state": {**state, number: {**values, name: other}}})


@pytest.mark.parametrize(
    "about",
    [
        None,
        [],
        "x",
        {},
        {"shape": 3},
        {"shape": []},
        {"shape": [0]},
        {"shape": [8.5]},
        {"shape": "8"},
        {"shape": [1] * 70},
    ],
)
def test_crafted_weights_are_refused(about, tmp_path):
    save_tensors(tmp_path / "model.safetensors", {}, about)
    for read in (RunFolder(tmp_path).load_vae, RunFolder(tmp_path).load_data):
        with pytest.raises(ValueError, match="holds no weights of a VAE"):
            read(Config())


def test_a_link_to_itself_is_refused(path):
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(ValueError, match=r"x\.safetensors is damaged, or is not a file of pyro_vae: .* symbolic links"):
        read_tensors(path)


@pytest.mark.parametrize("number", ["1" * 5000, "[" * 990 + "]" * 990, '{"format": 2}', '"x"', '{"format": {}}', "NaN"])
def test_a_crafted_head_is_refused(number, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(checkpoints.save({"x": torch.zeros(1)}, {"pyro_vae": number}))
    with pytest.raises(ValueError, match=r"x\.safetensors (is damaged|has format)"):
        read_tensors(path)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"mean": torch.zeros(3, 2)},
        {"mean": torch.zeros(3, 2), "scale": torch.zeros(3, 1)},
        {"mean": torch.zeros(2, 2), "scale": torch.zeros(2, 2)},
        {"mean": torch.zeros(3), "scale": torch.zeros(3)},
        {"mean": torch.zeros(()), "scale": torch.zeros(())},
        {"mean": torch.zeros(3, 2, dtype=torch.int64), "scale": torch.zeros(3, 2, dtype=torch.int64)},
    ],
    ids=range(7),
)
def test_crafted_posteriors_are_refused(tensors, tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"mean": torch.ones(3, 2), "scale": torch.zeros(3, 2)}, {})
    assert read_moments(tmp_path / "x.safetensors", 3)[0].sum() == 6
    save_tensors(tmp_path / "x.safetensors", tensors, {})
    with pytest.raises(ValueError, match="holds no posteriors of 3 data"):
        read_moments(tmp_path / "x.safetensors", 3)
