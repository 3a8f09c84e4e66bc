"""Bad input: a hundred cases of `benchmarks.fuzz`, files cut off at every byte, and files that would run code."""

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings

from benchmarks import fuzz
from pyro_vae import data
from pyro_vae.cli import main


@pytest.fixture
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@settings(max_examples=100, derandomize=True, **fuzz.QUIET)
@given(fuzz.CASES)
def test_bad_input_is_refused_in_words_of_its_own(case):
    found = fuzz.outcome(case)
    assert not found.failed, f"{found.verdict}: {case}\n{found.words}"


@pytest.mark.parametrize(
    ("call", "verdict"),
    [
        ("main(['list'])", "accepted"),
        ("main(['train', '--epochs=-1'])", "refused"),
        ("main(['train', '--x'])", "refused"),
        ("main(['list', '--debug', '--x'])", "traceback"),
        ("1 / 0", "traceback"),
        ("fit()", "not in its own words"),
        ("data.load('x')", "refused"),
        ("[0 for _ in iter(int, 1)]", "hang"),
        ("bytes(2**40)", "refused"),
    ],
)
def test_a_case_is_judged(call, verdict, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 1 if verdict == "hang" else 10)
    assert fuzz.outcome(fuzz.Case("", (), call)).verdict == verdict


@pytest.mark.parametrize(
    ("code", "said", "verdict"),
    [
        (0, "", "accepted"),
        (1, "pyro-vae: error: x", "traceback"),
        (2, "pyro-vae: error: x", "refused"),
        (2, "pyro-vae train: error: x", "refused"),
        (2, "", "not in its own words"),
        (2, "pyro-vae: error: ", "not in its own words"),
        (2, "x\npyro-vae: error: x", "not in its own words"),
        (2, "pyro-vae: error: KeyError: 'x' (--debug shows where)", "not in its own words"),
        (2, "pyro-vae: error: mat1 and mat2 shapes cannot be multiplied", "not in its own words"),
    ],
)
def test_a_command_is_judged(code, said, verdict):
    assert fuzz.of_command(code, None, said, {}, {}).verdict == verdict


def test_what_a_refused_command_leaves_is_seen():
    said = "pyro-vae: error: x"
    assert fuzz.of_command(2, None, said, {}, {"run/config.yaml": b""}).verdict == "half-written"
    assert fuzz.of_command(2, None, said, {"x": b"1"}, {"x": b"2"}).verdict == "half-written"
    assert fuzz.of_command(2, None, said, {"x": b"1"}, {}).verdict == "half-written"
    assert fuzz.of_command(0, None, "", {}, {"run/metrics.csv": b""}).verdict == "half-written"
    assert fuzz.of_command(0, None, "", {}, {"run/metrics.csv": b"", "run/report.html": b""}).verdict == "accepted"


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
def test_every_truncation_of_idx_files_is_refused(part, kind):
    fuzz.mnist("root", train=1, test=1)
    path = Path(f"root/MNIST/raw/{part}-{kind}-ubyte")
    whole = path.read_bytes()
    data.load("mnist", "root")
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="mnist under root"):
            data.load("mnist", "root")


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_every_truncation_of_numpy_files_is_refused(name):
    (fuzz.save if name == "x.npy" else fuzz.savez)(name, np.arange(12.0).reshape(4, 3))
    whole = Path(name).read_bytes()
    data.load(name)
    for end in range(len(whole)):
        Path(name).write_bytes(whole[:end])
        with pytest.raises(ValueError, match=name):
            data.load(name)


class Payload:
    """An object whose unpickling would make a folder."""

    def __reduce__(self):
        return os.makedirs, ("sprung", 0o777, True)


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_a_tag_of_python_in_a_config_is_not_run(capsys):
    text = "epochs: !!python/object/apply:os.mkdir [sprung]"
    Path("c.yaml").write_text(text)
    assert main(["train", "--config=c.yaml"]) == 2
    assert "c.yaml cannot be read" in capsys.readouterr().err
    assert main(["train", "--decoder=Normal", "--decoder.scale=!!python/object/apply:os.mkdir [sprung]"]) == 2
    assert "takes a plain value" in capsys.readouterr().err
    assert not Path("sprung").exists()
    yaml.unsafe_load(text)
    assert Path("sprung").exists()  # what is refused would have run


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("form", ["array", "pickle"])
def test_pickled_objects_in_data_are_not_run(name, form, capsys):
    objects = np.array([[Payload()], [Payload()]], dtype=object)
    if form == "pickle":
        Path(name).write_bytes(pickle.dumps(objects))
    else:
        (fuzz.save if name == "x.npy" else fuzz.savez)(name, objects)
    with pytest.raises(ValueError, match="holds Python objects, which are not read"):
        data.load(name)
    assert main(["train", f"--data={name}"]) == 2
    assert "holds Python objects, which are not read" in capsys.readouterr().err
    assert not Path("sprung").exists()
    with open(name, "rb") as file:
        loaded = np.load(file, allow_pickle=True)
        list(loaded.values() if hasattr(loaded, "files") else loaded)
    assert Path("sprung").exists()  # what is refused would have run


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("shape", [(2**60,), (2**60, 2), (2**40, 2**40), (2**33, 4), (2**62, 2**62, 0)])
def test_an_absurd_shape_takes_no_memory(name, shape, monkeypatch):
    header = str({"descr": "<f8", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
    if name == "x.npy":
        Path(name).write_bytes(content)
    else:
        with zipfile.ZipFile(name, "w") as file:
            file.writestr("x.npy", content)
    monkeypatch.setattr(fuzz, "MEMORY", 2**28)
    with fuzz.within_limits(), pytest.raises(ValueError, match=name):
        data.load(name)


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize("inside", ["../x.npy", "/x.npy", "a/../../x.npy"])
def test_a_path_inside_an_archive_writes_nothing(inside):
    fuzz.save("y.npy", np.zeros((4, 2)))
    Path("folder").mkdir()
    with zipfile.ZipFile("folder/x.npz", "w") as file:
        file.write("y.npy", inside)
    before = fuzz.tree()
    assert len(data.load("folder/x.npz").train) == 3
    assert fuzz.tree() == before
    assert not Path("/x.npy").exists()
