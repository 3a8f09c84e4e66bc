import errno
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import zipfile

import pytest
import torch

from pyro_vae import checkpoints, files
from pyro_vae.checkpoints import Checkpoints, read_tensors, save_tensors
from pyro_vae.files import write_whole

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
    monkeypatch.setattr(checkpoints, "FORMAT", 2)
    monkeypatch.setattr(checkpoints, "versions", lambda: {"pyro_vae": "99", "torch": "99"})
    save_tensors(path, TENSORS, ABOUT)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has format 2 \(pyro_vae 99\), but this is pyro_vae .*, which reads 1"):
        read_tensors(path)


@pytest.mark.parametrize("name", ["pyro_vae", "torch"])
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
        ({"seed": 1}, {"seed": 0}, "with seed 1, not 0"),
        ({"seed": 0}, {"seed": 0, "lr": 0.1}, "with lr None, not 0.1"),
        ({"seed": 0, "lr": 0.1}, {"seed": 0}, "with lr 0.1, not None"),
        ({}, {"seed": 0}, "with seed None, not 0"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(there, here, words, tmp_path):
    Checkpoints(tmp_path, of=there).write(TENSORS, {"history": []}, (1.0, TENSORS))
    Checkpoints(tmp_path, of=there).read()
    with pytest.raises(ValueError, match=f"is of another run, {words}"):
        Checkpoints(tmp_path, of=here).read()


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
    with pytest.raises(OSError, match="No space left"):
        save_tensors(path, {"weight": torch.zeros(3)}, {})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_what_does_not_read_as_it_was_written_is_not_put_in_place(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(type(path), "read_bytes", lambda _: b"other")
    with pytest.raises(OSError, match="does not hold what was written"):
        write_whole(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_a_file_that_grows_over_a_real_limit_leaves_the_old_one(tmp_path):
    """A limit of the system on the size of files, as a full disk has it: writes fail half-way."""
    script = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from pyro_vae.checkpoints import save_tensors\n"
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


def test_the_best_is_kept_beside_the_last(tmp_path):
    keeper = Checkpoints(tmp_path)
    for loss, value in ((2.0, 0.0), (1.0, 1.0), (3.0, 2.0)):
        keeper.write({"x": torch.tensor(value)}, {}, (loss, {"x": torch.tensor(value)}))
    assert read_tensors(keeper.last)[0]["x"] == 2
    tensors, head = read_tensors(keeper.best)
    assert (tensors["x"], head["about"]) == (1, {"test_loss": 1.0, "of": {}})


def test_a_folder_that_has_gone_is_not_made_again(tmp_path):
    keeper = Checkpoints(tmp_path / "run" / "checkpoints")
    keeper.write(TENSORS, ABOUT, (1.0, TENSORS))
    (tmp_path / "run").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        keeper.write(TENSORS, ABOUT, (1.0, TENSORS))
    assert not (tmp_path / "run").exists()
    assert read_tensors(tmp_path / "gone" / "checkpoints" / "last.safetensors")[1]["about"] == ABOUT | {"of": {}}
