"""Bad input: a hundred cases of `benchmarks.fuzz`, files cut off at every byte, and files that would run code."""

import os
import pickle
import re
import zipfile
from itertools import islice, pairwise, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from PIL import Image
from torch.utils.data import IterableDataset

from benchmarks import fuzz
from pyro_vae import data
from pyro_vae.cli import main
from pyro_vae.cli.entry import parsed
from pyro_vae.data.images import FORMATS
from pyro_vae.runs.config import Config, plain_yaml


@pytest.fixture
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("examples", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_bad_input_is_refused_in_words_of_its_own(examples):
    @settings(max_examples=examples, derandomize=True, **fuzz.QUIET)
    @given(fuzz.CASES)
    def check(case):
        found = fuzz.outcome(case)
        assert not found.failed, f"{found.verdict}: {case}\n{found.words}"

    check()


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
    monkeypatch.setattr(fuzz, "PATIENCE", 1 if verdict == "hang" else 60)
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
    with pytest.raises(ValueError, match="Python objects, which are not read"):
        data.load(name)
    assert main(["train", f"--data={name}"]) == 2
    assert "Python objects, which are not read" in capsys.readouterr().err
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


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize("form", ["EPS", "PDF", "PPM", "PCX", "TGA", "ICO"])
def test_only_the_formats_of_images_that_are_named_are_opened(form):
    """EPS would reach an outside interpreter; what is saved by Pillow is read by it, also under another name."""
    Path("images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(f"images/{name}", format=form)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image: cannot identify image file"):
        data.load("images")


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize("form", FORMATS)
def test_the_formats_of_images_that_are_named_are_read(form):
    Path("images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 4), 255).save(f"images/{name}", format=form)
    assert data.load("images").train.shape[2:] == (4, 8)


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_an_image_of_an_absurd_size_is_not_decoded(monkeypatch):
    Path("images").mkdir()
    for pixels in (99, 150, 1000):  # Pillow warns of over 100, and refuses over 200
        Image.new("L", (pixels, 1)).save(f"images/{pixels}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("1000", "150"):
        with pytest.raises(ValueError, match=rf"{name}\.png cannot be read as an image: Image size"):
            data.load("images")
        Path(f"images/{name}.png").unlink()


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize(
    "name", ["x.npy", "x.npz", "images/x.png", "c.yaml", "run/config.yaml", "run/model.safetensors"]
)
def test_a_pipe_is_refused_and_nothing_waits_for_it(name, capsys):
    Path(name).parent.mkdir(exist_ok=True)
    Path("run").mkdir(exist_ok=True)
    Path("run/config.yaml").write_text("epochs: 0")
    Path(name).unlink(missing_ok=True)
    os.mkfifo(name)
    if "/" in name or name == "c.yaml":
        command = {"c.yaml": ["train", "--config=c.yaml"], "images/x.png": ["train", "--data=images"]}
    else:
        command = {name: ["train", f"--data={name}"]}
    assert main(command.get(name, ["sample", "run"])) == 2
    assert f"{name} is a pipe, no ordinary file, and is not read" in capsys.readouterr().err


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_a_device_is_refused(capsys):
    assert main(["train", "--config=/dev/zero"]) == 2
    assert "/dev/zero is a device" in capsys.readouterr().err
    Path("x.npy").symlink_to("/dev/zero")
    assert main(["train", "--data=x.npy"]) == 2
    assert "x.npy is a device" in capsys.readouterr().err


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{y}: &{y} [{','.join([f'*{x}'] * 9)}]\n" for x, y in pairwise("abcdefghi")
)


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "it has an alias, [*]a: write the value out"),
        ("a: &a [*a]", "it has an alias"),
        ("a: &a {epochs: 1}\n<<: *a", "it has an alias"),
        ("# \n" * 2**15, "it is larger than 65536 bytes"),
        ("[" * 2**14, "cannot be read"),
        (f"epochs: {'1' * 10_000}", "cannot be read"),
        (f"epochs: {2**64}", "a number of more than 64 bits"),
        (f"decoder: Normal\ndecoder.scale: {2**64}", "a number of more than 64 bits"),
        ("epochs: " + "1:" * 10_000 + "1", "invalid int value: '1:1:"),
    ],
    ids=["bomb", "itself", "merge", "size", "depth", "digits", "64 bits", "of a part", "base 60"],
)
def test_a_config_that_would_grow_is_refused(text, words, capsys):
    Path("c.yaml").write_text(text)
    assert main_code(["train", "--config=c.yaml"]) == 2
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_an_alias_in_a_value_is_refused_too(capsys):
    """A text in quotes, in a config file, stays a text."""
    assert main(["train", "--decoder=Normal", "--decoder.scale=[&a [1, 1], *a]"]) == 2
    assert "takes a plain value" in capsys.readouterr().err
    Path("c.yaml").write_text("decoder: Normal\ndecoder.scale: '[&a [1, 1], *a]'\n")
    assert main(["train", "--config=c.yaml"]) == 2
    assert "takes a value of type float, not '[&a [1, 1], *a]'" in capsys.readouterr().err


def main_code(argv):
    try:
        return main(argv)
    except SystemExit as error:
        return error.code


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("data_root: /elsewhere", "--data-root=/elsewhere"),
        ("data-root: /elsewhere", "--data-root=/elsewhere"),
        ("data_root: 0", "--data-root=0"),
        ("download: true", "--download"),
    ],
)
def test_a_config_file_does_not_say_what_this_machine_reads_or_fetches(line, flag, capsys, monkeypatch):
    def load(*_, **__):
        raise ValueError("loaded")

    monkeypatch.setattr(data, "load", load)
    Path("run").mkdir()
    Path("run/config.yaml").write_text(f"data: mnist\n{line}\n")
    for command in (["train", "--config=run/config.yaml"], ["evaluate", "run"], ["reconstruct", "run"]):
        assert main(command) == 2
        assert f"but only you may set that: if you trust it, add {flag}" in capsys.readouterr().err
    assert main(["train", "--resume=run"]) == 2
    assert f"but only you may set that: if you trust it, add {flag}" in capsys.readouterr().err
    assert main(["train", "--config=run/config.yaml", flag, "--out=other"]) == 2
    assert "loaded" in capsys.readouterr().err
    assert main(["train", "--resume=run", flag]) == 2
    assert "loaded" in capsys.readouterr().err
    assert main(["sample", "run"]) == 2  # which reads no data
    assert "no file run/model.safetensors" in capsys.readouterr().err
    Path("run/config.yaml").write_text("download: false\ndata_root:\n")
    assert main(["train", "--config=run/config.yaml", "--out=other"]) == 2
    assert "loaded" in capsys.readouterr().err


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("download: []", "add --download"),  # no flag of a user's own
        ("data: false", "data takes a value, not False"),  # and not the digits
        ("decoder: off", "decoder takes a value, not False"),  # YAML's word for false
        ("scale: no", "scale takes a value, not False"),
        ("latent_dim: true", "latent_dim takes a value, not True"),
        ("hidden: []", "hidden takes one value, or a list of whole numbers, not []"),
        ("lr: [true]", "lr takes one value, or a list of whole numbers, not [True]"),
        ("device: meta", "no device 'meta' on this machine"),
        ("data:", "data takes a value: write one, or leave the line out"),  # and not the digits
        ("latent_dim: ~", "latent_dim takes a value: write one"),
        ("data: 010", "data takes a name or a path, not 10: write it in quotes"),
        ("data: 1e3", "data takes a name or a path, not 1000.0: write it in quotes"),
        ("decoder: Normal\ndecoder.scale: ~", "--decoder.scale takes a value of type float, not None"),
        ("decoder: Normal\ndecoder.scale: '1'", "--decoder.scale takes a value of type float, not '1'"),
    ],
)
def test_a_value_of_a_config_file_is_taken_as_it_is_or_refused(line, words, capsys):
    Path("config.yaml").write_text(line)
    assert main(["train", "--config=config.yaml", "--out=other"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.usefixtures("_in_an_empty_folder")
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("epochs: 1\nepochs: 2", "epochs"),
        ("batch-size: 4\nbatch_size: 8", "batch_size"),
        ("{lr: 1, seed: 1, 'lr': 2}", "lr"),
        ("decoder.per-dimension: true\ndecoder.per_dimension: false", "decoder.per_dimension"),
        ("epochs: 2\n<<: {epochs: 1}", "epochs"),
    ],
)
def test_a_flag_that_a_config_file_says_twice_is_refused(text, name, capsys):
    Path("config.yaml").write_text(text)
    assert main(["train", "--config=config.yaml", "--out=other"]) == 2
    assert f"config.yaml cannot be read: it says {name} twice: leave one of them out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("010", 10), ("-010", -10), ("0", 0), ("+3", 3), ("1:30", "1:30"), ("1_0", "1_0"), ("0x10", "0x10")],
        *[("1e-3", 0.001), ("1E3", 1000.0), ("-2.5e+3", -2500.0), ("1.", 1.0), (".5", 0.5), ("1.5:30.1", "1.5:30.1")],
        *[(".inf", float("inf")), ("-.INF", -float("inf")), ("1e", "1e"), (".", "."), ("1.2.3", "1.2.3")],
    ],
)
def test_numbers_of_a_config_file_are_those_of_the_flags(text, value):
    """In YAML 1.1, which PyYAML reads, 010 is 8, 1:30 is 90 and 1e-3 is a text."""
    found = plain_yaml(f"x: {text}")["x"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_a_number_of_a_part_may_have_an_exponent():
    Path("config.yaml").write_text("decoder: Normal\ndecoder.scale: 1e-2\ndata: none.npy\n")
    for flags in (["--config=config.yaml"], ["--decoder=Normal", "--decoder.scale=1e-2", "--data=none.npy"]):
        assert parsed(["train", *flags]).config.options["decoder"] == {"scale": 0.01}


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_what_this_machine_reads_is_not_written_into_a_config():
    Config(data="mnist", data_root="/here", download=True).save(Path("c.yaml"))
    assert not {"data_root", "download"} & set(yaml.safe_load(Path("c.yaml").read_text()))


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_files_that_torchvision_would_unpickle_are_not_read():
    """It looks for these before the files of today, and takes them if they are there."""
    folder = Path("root/MNIST/processed")
    folder.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(4, 2, 2, dtype=torch.uint8), torch.zeros(4)), folder / name)
    with pytest.raises(ValueError, match="no mnist under root"):
        data.load("mnist", "root")
    fuzz.mnist("root", train=3, test=2)
    assert len(data.load("mnist", "root").train) == 3


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_a_folder_that_holds_much_else_is_not_searched_to_its_end(monkeypatch):
    with pytest.raises(ValueError, match="/ is the whole disk: name the folder of the images"):
        data.load("/")
    monkeypatch.setattr("pyro_vae.data.folders.MOST_OTHERS", 3)
    Path("images").mkdir()
    for number in range(4):
        Path(f"images/{number}.txt").touch()
        Image.new("L", (2, 2)).save(f"images/{number}.png")
    with pytest.raises(ValueError, match="images holds over 3 files that are no images"):
        data.load("images")
    Path("images/0.txt").unlink()
    with pytest.warns(UserWarning, match="3 files that are no images are left out, such as images/1.txt"):
        assert len(data.load("images").train) == 3


class Endless(IterableDataset):
    def __len__(self):
        return 5

    def __iter__(self):
        return repeat(torch.zeros(2))


class Lengthy:
    def __init__(self, length, count):
        self.length, self.count = length, count

    def __len__(self):
        return self.length

    def __iter__(self):
        return islice(repeat(torch.zeros(2)), self.count)


@pytest.mark.parametrize(("count", "words"), [(None, "more"), (6, "more"), (4, "4 data"), (0, "0 data")])
def test_a_length_that_is_not_that_of_the_data_is_refused(count, words):
    with pytest.raises(ValueError, match=f"has a length of 5, but gives {words}: correct its __len__"):
        data.as_tensor(Lengthy(5, count))
    assert len(data.as_tensor(Lengthy(5, 5))) == 5


@pytest.mark.parametrize("size", [1, 2, 5, 6, 100])
def test_a_stream_that_goes_on_beyond_its_length_is_refused(size):
    stream = data.Stream(Endless())
    with pytest.raises(ValueError, match="gave more data than its length, not 5"):
        list(stream.split(size))
    with pytest.raises(ValueError, match="gave at least 6 data, but its length is 5"):
        stream[:]
    assert len(stream[:3]) == 3
