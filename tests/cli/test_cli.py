"""The command line as a user meets it: whole runs, their files, and one clear line for everything that is wrong."""

import csv
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyro_vae
from pyro_vae import VAE, data, decoders, encoders, objectives, plots, priors
from pyro_vae.cli import main
from pyro_vae.cli.flags import config_of_run
from pyro_vae.diagnostics.local_test import LocalTest
from pyro_vae.runs import measures
from pyro_vae.runs import parts as config
from pyro_vae.runs import run as runs
from pyro_vae.runs.config import Config
from pyro_vae.runs.experiment import Experiment, seeded_vae
from pyro_vae.runs.facts import facts_of
from pyro_vae.runs.folder import RunFolder
from pyro_vae.runs.pictures import _two, grid_figure, posterior_moments
from pyro_vae.runtime import checkpoints
from pyro_vae.runtime.checkpoints import read_tensors, save_tensors
from pyro_vae.training import COLUMNS

pytestmark = pytest.mark.usefixtures("blank_pictures")
QUICK = ["--epochs", "2", "--latent-dim", "3", "--hidden", "16"]
PICTURES = [
    "curves",
    "interpolation",
    "kl_per_dimension",
    "latent_map",
    "posterior_cloud",
    "reconstructions",
    "samples",
]


PRIORS_OF_A_PLANE = (priors.Normal, priors.Exponential)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(*flags, out="run"):
    assert main(["train", *QUICK, *flags, "--out", out]) == 0
    return Path(out)


def metrics(run):
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def without_seconds(run):
    return [{**row, "seconds": None} for row in metrics(run)]


@pytest.mark.pictures
def test_a_run_holds_config_metrics_weights_pictures_and_report(capsys):
    run = train()
    assert sorted(path.name for path in run.iterdir()) == sorted(
        [
            *(".lock", "checkpoints", "config.yaml", "metrics.csv", "model.safetensors", "report.html"),
            *(f"{name}.png" for name in PICTURES),
        ]
    )
    assert list(metrics(run)[0]) == list(COLUMNS)
    assert [row["epoch"] for row in metrics(run)] == ["0", "1", "2"]
    output = capsys.readouterr()
    assert str(run) in output.out
    assert "nats per datum" in output.err
    for name in PICTURES:
        with Image.open(run / f"{name}.png") as image:
            assert min(image.size) > 100


def test_the_loss_in_metrics_is_reconstruction_plus_kl_and_falls():
    rows = metrics(train())
    for row in rows:
        for part in ("train", "test"):
            total = float(row[f"{part}_reconstruction"]) + float(row[f"{part}_kl"])
            assert float(row[f"{part}_loss"]) == pytest.approx(total, abs=1e-3)
    assert float(rows[2]["test_loss"]) < float(rows[0]["test_loss"]) - 2


def test_the_default_run_is_named_after_its_data_in_runs():
    assert main(["train", *QUICK]) == 0
    (run,) = Path("runs").iterdir()
    assert re.fullmatch(r"digits-\d{8}-\d{6}", run.name)


@pytest.mark.slow
def test_the_same_config_and_seed_give_the_same_metrics_to_the_last_digit():
    first = train("--binarize", "dynamic", "--seed", "3", out="first")
    assert main(["train", "--config", str(first / "config.yaml"), "--out", "second"]) == 0
    assert without_seconds(Path("second")) == without_seconds(first)
    weights, again = load_file(first / "model.safetensors"), load_file(Path("second/model.safetensors"))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    third = train("--binarize", "dynamic", "--seed", "4", out="third")
    assert without_seconds(third) != without_seconds(first)


@pytest.mark.slow
def test_config_holds_what_was_asked_for_and_flags_beside_it_take_precedence():
    run = train("--decoder", "Normal", "--decoder.scale", "0.2", "--decoder.learned=true", "--prior.learned", "true")
    flags = yaml.safe_load((run / "config.yaml").read_text())
    assert (flags["decoder.scale"], flags["decoder.learned"], flags["prior.learned"]) == (0.2, True, True)
    assert flags["hidden"] == [16]
    assert main(["train", "--config", str(run / "config.yaml"), "--decoder.scale", "0.5", "--out", "other"]) == 0
    other = yaml.safe_load(Path("other/config.yaml").read_text())
    assert other == {**flags, "decoder.scale": 0.5}


def test_the_preset_is_the_recipe_of_the_practicum():
    assert main(["train", "--preset", "practicum", "--epochs", "0", "--out", "run"]) == 0
    flags = yaml.safe_load(Path("run/config.yaml").read_text())
    recipe = {"hidden": [400], "latent_dim": 20, "lr": 1e-3, "batch_size": 256, "beta": 1.0, "binarize": "none"}
    assert {name: flags[name] for name in recipe} == recipe
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file("run/model.safetensors").items()}
    assert shapes["encoder.network.layers.0.weight"] == (400, 64)
    assert shapes["encoder.network.layers.2.weight"] == (2 * 20, 400)


@pytest.mark.parametrize(
    "flags",
    [
        ["--encoder", "Delta", "--beta", "0"],
        ["--decoder", "ContinuousBernoulli"],
        ["--decoder", "Normal", "--decoder.learned", "true"],
        ["--prior.learned", "true", "--loss", "TraceMeanField_ELBO"],
        ["--network", "Conv", "--channels", "4", "8"],
        ["--network", "Conv", "--channels", "4", "8", "--network.residual", "true"],
        ["--precision", "bf16-mixed"],
        ["--network.gated", "true"],
        ["--binarize", "threshold", "--warm-up", "1", "--clip-norm", "1"],
        ["--latent-dim", "2", "--evaluate", "sample"],
        ["--latent-dim", "1", "--latent-map", "first"],
        ["--latent-map", "tsne"],
        ["--epochs", "0"],
    ],
)
@pytest.mark.usefixtures("bfloat16")
def test_parts_and_settings_are_swapped_by_flags(flags):
    run = train(*flags)
    assert all(np.isfinite(float(value)) for row in metrics(run) for value in row.values())
    assert (run / "decoded_grid.png").exists() == ("2" in flags)


@pytest.mark.parametrize(
    ("flags", "left_out"),
    [
        (["--prior", "HypersphericalUniform", "--encoder", "PowerSpherical"], "KL per dimension"),
        (["--prior", "HypersphericalUniform", "--encoder", "PowerSpherical", "--latent-dim", "2"], "decoded grid"),
        (["--prior", "Bernoulli", "--encoder", "Bernoulli", "--loss", "VIMCO", "--latent-dim", "2"], "decoded grid"),
        (["--prior", "OneHotCategorical", "--encoder", "OneHotCategorical", "--loss", "VIMCO"], "KL per dimension"),
        (["--prior", "RelaxedOneHotCategorical", "--encoder", "RelaxedOneHotCategorical"], "KL per dimension"),
        (["--encoder", "Flow", "--encoder.transform", "IAF"], "KL per dimension"),
    ],
)
def test_codes_of_any_kind_have_their_pictures_and_the_report_says_what_is_left_out(flags, left_out):
    run = train(*flags)
    assert all(np.isfinite(float(value)) for row in metrics(run) for value in row.values())
    assert {f"{name}.png" for name in PICTURES} - {path.name for path in run.iterdir()} == {"kl_per_dimension.png"}
    assert f"no {left_out}" in (run / "report.html").read_text()


def test_the_decoded_grid_reaches_as_far_as_the_prior():
    normal, positive = (VAE(prior(2), encoders.Normal(4, 2), decoders.Normal(2, 4)) for prior in PRIORS_OF_A_PLANE)
    (axes,) = grid_figure(normal).axes
    assert axes.get_xlim() == pytest.approx((-3 - 3 / 19, 3 + 3 / 19), abs=0.2)  # half a cell around the last points
    (axes,) = grid_figure(positive).axes
    # -log(0.00135) = 6.6, where the 1 in 740 largest draws of an exponential begin
    assert axes.get_xlim() == pytest.approx((-3.3 / 19, 6.6 + 3.3 / 19), abs=0.3)


def test_looking_at_the_codes_changes_neither_the_noise_nor_the_temperature():
    relaxed = ["--encoder", "RelaxedOneHotCategorical", "--prior", "RelaxedOneHotCategorical"]
    run = train(*relaxed, "--encoder.final_temperature", "0.4", "--encoder.anneal_steps", "1000")
    assert load_file(run / "model.safetensors")["encoder.calls"].item() == 2 * 23  # 1,437 digits in batches of 64


def test_the_centre_of_a_posterior_on_the_sphere_lies_on_it():
    vae = VAE(priors.HypersphericalUniform(3), encoders.PowerSpherical(4, 3), decoders.Normal(3, 4))
    seen = []
    vae.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    a, b = torch.rand(2, 5, 4)
    vae.reconstruct(a)
    vae.interpolate(a, b, 7)
    for codes in seen:
        torch.testing.assert_close(codes.norm(dim=-1), torch.ones(codes.shape[:-1]))


def test_a_users_own_class_is_taken_by_its_import_path():
    Path("own_parts.py").write_text(
        "import pyro.distributions as dist, torch\n"
        "class Wide(torch.nn.Module):\n"
        "    def __init__(self, latent_dim, width: float = 1.0):\n"
        "        super().__init__()\n"
        "        self.register_buffer('scale', torch.full((latent_dim,), width))\n"
        "    def forward(self):\n"
        "        return dist.Laplace(torch.zeros_like(self.scale), self.scale).to_event(1)\n"
    )
    run = train("--prior", "own_parts.Wide", "--prior.width", "2.5")
    assert load_file(run / "model.safetensors")["prior.scale"].tolist() == [2.5] * 3


@pytest.fixture
def stranger():
    """Names a prior in a module that leaves a file behind when it is imported."""
    Path("stranger.py").write_text(
        "import pathlib, pyro_vae.priors\n"
        "pathlib.Path('sprung').touch()\n"
        "class Prior(pyro_vae.priors.Normal):\n"
        "    pass\n"
    )
    yield "stranger.Prior"
    sys.modules.pop("stranger", None)


def test_a_config_file_names_no_class_of_a_module_that_is_not_allowed(stranger, capsys):
    Path("c.yaml").write_text(f"prior: {stranger}\nepochs: 1\nhidden: [2]\n")
    line = refused(capsys, "train", "--config", "c.yaml", "--out", "run")
    assert "c.yaml names 'stranger.Prior' as its prior" in line
    assert "if you trust it, add --allow stranger" in line
    for other in ("pyro_vae", "strange", "stranger.Prior", ""):
        assert "--allow stranger" in refused(capsys, "train", "--config", "c.yaml", f"--allow={other}", "--out", "run")
    assert not Path("sprung").exists()
    assert main(["train", "--config", "c.yaml", "--allow", "stranger", "--out", "run"]) == 0
    assert Path("sprung").exists()


@pytest.mark.slow
def test_a_class_on_the_command_line_needs_no_leave_but_that_of_its_run_does(stranger, capsys):
    run = train("--prior", stranger)
    sys.modules.pop("stranger")
    Path("sprung").unlink()
    capsys.readouterr()
    for argv in (["sample", "run"], ["reconstruct", "run"], ["evaluate", "run"], ["train", "--resume", "run"]):
        assert "--allow stranger" in refused(capsys, *argv)
        assert not Path("sprung").exists()
    assert main(["sample", "run", "--n", "4", "--allow", "stranger"]) == 0
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 3"))
    assert main(["train", "--resume", "run", "--allow", "stranger"]) == 0
    assert len(metrics(run)) == 4


@pytest.mark.parametrize(
    "text",
    [
        "hidden: ['2', '--prior=stranger.Prior']",
        "hidden: ['2', '--allow=stranger']\nprior: stranger.Prior",
        "epochs: ['1', '--prior=stranger.Prior']",
        "prior=stranger.Prior: true",
        "prior=stranger.Prior:",
        "allow: stranger\nprior: stranger.Prior",
        "prior: [stranger.Prior]",
        "loss: stranger.Prior",
        "network: stranger.Prior",
    ],
)
@pytest.mark.usefixtures("stranger")
def test_no_config_file_finds_a_way_around(text, capsys):
    Path("c.yaml").write_text(text)
    refused(capsys, "train", "--config", "c.yaml", "--out", "run")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("name", ["out", "resume", "config", "preset", "debug"])
def test_a_config_file_holds_only_what_a_run_keeps(name, capsys):
    Path("c.yaml").write_text(f"{name}: elsewhere")
    assert f"c.yaml: unknown argument --{name}" in refused(capsys, "train", "--config", "c.yaml", "--out", "run")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--scale", "255"], "0 to 1, divided by 255 (--scale); not binarized (--binarize none)"),
        (["--decoder", "Normal"], "0 to 255, as the file has them; not binarized"),
        (["--scale", "255", "--binarize", "threshold"], "0 to 1, divided by 255 (--scale); binarized at one half"),
    ],
)
def test_the_first_lines_say_what_was_done_to_the_values(flags, words, capsys):
    np.save("x.npy", np.tile(np.array([0, 128, 255], np.uint8), (40, 20)))
    flags = ["--epochs", "0", "--hidden", "2", "--batch-size", "8", "--data", "x.npy", *flags, "--out", "run"]
    assert main(["train", *flags]) == 0
    assert words in capsys.readouterr().out.splitlines()[1]
    assert yaml.safe_load(Path("run/config.yaml").read_text()).get("scale") == (255 if "--scale" in flags else None)


def test_rows_that_are_no_images_are_drawn_as_curves():
    np.save("rows.npy", np.random.default_rng(0).normal(size=(60, 5)))
    run = train("--data", "rows.npy", "--decoder", "Normal", "--batch-size", "20")
    assert (run / "reconstructions.png").exists()


def test_labels_that_are_sorted_or_missing_have_their_pictures():
    """More data of the first label than are shown; labels that are NaN, none of which is that of another datum."""
    x, y = np.random.default_rng(0).random((1010, 3)), np.arange(1010) >= 1005
    np.savez("rows.npz", x_train=x[:9], x_test=x, y_train=y[:9], y_test=y)
    assert (train("--data", "rows.npz", "--epochs", "0") / "interpolation.png").exists()
    assert _two(torch.full((3,), torch.nan)) == _two(torch.tensor([5, 4, 5])) == [0, 1]
    assert _two(torch.tensor([5, 5, 4])) == [0, 2]


def test_labels_that_are_text_are_named_in_the_pictures(monkeypatch):
    shown = []
    draw = plots.latent_map
    monkeypatch.setattr(plots, "latent_map", lambda panels, labels, **k: shown.extend(labels) or draw(panels, **k))
    x, y = np.random.default_rng(0).random((9, 3)), [*"aabbccdda"]
    np.savez("rows.npz", x_train=x, x_test=x, y_train=y, y_test=y)
    train("--data", "rows.npz", "--epochs", "0")
    assert shown == y


def test_sequences_are_read_by_a_recurrent_network_of_its_own_parameters():
    np.save("rows.npy", np.random.default_rng(0).normal(size=(60, 5, 2)))
    flags = ["--network", "GRU", "--network.hidden", "6", "--network.time", "-2", "--decoder", "Normal"]
    run = train("--data", "rows.npy", "--batch-size", "20", *flags)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(run / "model.safetensors").items()}
    assert shapes["encoder.network.recurrent.weight_ih_l0"] == (3 * 6, 2)
    assert shapes["decoder.network.last.weight"] == (2, 6)
    assert yaml.safe_load((run / "config.yaml").read_text())["network.time"] == -2
    assert main(["sample", str(run), "--n", "4"]) == 0


@pytest.mark.pictures
def test_the_report_holds_every_picture_and_the_last_numbers_and_refers_to_nothing_outside():
    run = train()
    html = (run / "report.html").read_text()
    assert html.count("data:image/png;base64,") == len(PICTURES)
    assert f"{float(metrics(run)[-1]['test_loss']):.2f}" in html
    assert not re.search(r'(src|href)="(?!data:)', html)


@pytest.mark.pictures
def test_sample_writes_as_many_pictures_as_asked_and_follows_its_seed(capsys):
    run = train()
    for seed in ("0", "1"):
        assert main(["sample", str(run), "--n", "4", "--seed", seed, "--out", f"{seed}.png"]) == 0
    assert Path("0.png").read_bytes() != Path("1.png").read_bytes()
    first = Path("0.png").read_bytes()
    assert main(["sample", str(run), "--n", "4", "--seed", "0", "--out", "again.png"]) == 0
    assert Path("again.png").read_bytes() == first
    assert "again.png" in capsys.readouterr().out


STARTS = {"png": b"\x89PNG", "jpg": b"\xff\xd8", "PDF": b"%PDF", "svg": b"<?xml"}


@pytest.mark.slow
@pytest.mark.pictures
def test_out_is_written_as_what_its_name_says(capsys):
    run = train()
    for suffix, start in STARTS.items():
        for command in ("sample", "reconstruct"):
            assert main([command, str(run), "--n", "4", "--out", f"{command}.{suffix}"]) == 0
            assert Path(f"{command}.{suffix}").read_bytes().startswith(start)
    for suffix in ("npy", "csv"):
        assert main(["sample", str(run), "--n", "4", "--out", f"x.{suffix}"]) == 0
    x = np.load("x.npy")
    assert x.shape == (4, 1, 8, 8)
    np.testing.assert_allclose(np.loadtxt("x.csv", delimiter=","), x.reshape(4, 64), rtol=1e-6)
    capsys.readouterr()
    for argv in (
        ["sample", "run", "--out", "x.xlsx"],
        ["sample", "run", "--out", "x"],
        ["reconstruct", "run", "--out=x.np"],
    ):
        assert "must end in .png, .jpg, .pdf, .svg" in refused(capsys, *argv)
    assert "--out rows.csv must end in .png" in refused(capsys, "gradients", "--out", "rows.csv")


def test_sample_does_not_need_the_data_and_reconstruct_says_that_it_does(capsys):
    np.save("rows.npy", np.random.default_rng(0).random((60, 5)))
    run = train("--data", "rows.npy", "--batch-size", "20")
    Path("rows.npy").unlink()
    assert main(["sample", str(run), "--n", "4"]) == 0
    capsys.readouterr()
    for argv in (["reconstruct", "run"], ["evaluate", "run"], ["train", "--resume", "run"]):
        line = refused(capsys, *argv)
        assert (
            f"run was trained on {Path('rows.npy').absolute()}, which does not exist: name the file with --data" in line
        )


ROWS = np.random.default_rng(0).random((60, 5)).astype(np.float32)
CHANGED = {
    "one value": np.concatenate([ROWS[:-1], ROWS[-1:] + 1e-6]),
    "the order": ROWS[::-1],
    "the number": ROWS[:-1],
    "the type": (255 * ROWS).astype(np.uint8),
}


def same_name(folder, array):
    """Save an array as rows.npy in a new folder, to which the commands are to go."""
    Path(folder).mkdir()
    np.save(f"{folder}/rows.npy", array)


def test_a_run_knows_its_file_from_every_folder(capsys, monkeypatch):
    np.save("rows.npy", ROWS)
    train("--data", "rows.npy", "--batch-size", "20", "--decoder", "Normal")
    assert yaml.safe_load(Path("run/config.yaml").read_text())["data"] == str(Path("rows.npy").absolute())
    capsys.readouterr()
    assert main(["evaluate", "run", "--samples", "2"]) == 0
    expected = capsys.readouterr().out
    same_name("elsewhere", 9 + ROWS)
    monkeypatch.chdir("elsewhere")
    assert main(["evaluate", "../run", "--samples", "2"]) == 0
    assert capsys.readouterr().out == expected
    named = ["--data", "rows.npy", "--scale", "1"]  # whose values are larger
    assert main(["evaluate", "../run", "--samples", "2", *named, "--json", "found.json"]) == 0
    assert json.loads(Path("found.json").read_text())["elbo"] < -100
    assert main(["reconstruct", "../run", *named]) == 0


@pytest.mark.parametrize("change", CHANGED)
def test_other_data_in_the_place_of_those_of_a_run_are_refused(change, capsys):
    np.save("rows.npy", ROWS)
    run = train("--data", "rows.npy", "--batch-size", "20", "--decoder", "Normal")
    capsys.readouterr()
    np.save("rows.npy", CHANGED[change])
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 3"))
    for argv in (["reconstruct", "run"], ["evaluate", "run"], ["train", "--resume", "run"]):
        line = refused(capsys, *argv)
        assert re.search(
            r"run was trained on 48 .*sha256 \w+, but /.*/rows.npy holds .* sha256 \w+: name .*--data", line
        )
    for argv in (["reconstruct", "run", "--data", "rows.npy", "--scale", "1"], ["sample", "run"]):
        assert main(argv) == 0
    capsys.readouterr()
    np.save("moved.npy", ROWS)
    assert "is of another run" not in refused(capsys, "train", "--resume", "run", "--data", "rows.npy")
    assert main(["train", "--resume", "run", "--data", "moved.npy"]) == 0
    assert len(metrics(run)) == 4
    assert main(["evaluate", "run", "--samples=2"]) == 0  # which finds them where they are now


def test_named_data_of_another_shape_are_refused_and_take_a_scale_of_their_own(capsys):
    np.save("rows.npy", ROWS)
    np.save("wide.npy", np.zeros((9, 6)))
    np.save("bytes.npy", (255 * ROWS).astype(np.uint8))
    train("--data", "rows.npy", "--batch-size", "20")
    capsys.readouterr()
    assert "wide.npy has data of shape [6], but run was trained on [5]" in refused(
        capsys, "reconstruct", "run", "--data", "wide.npy"
    )
    assert "--scale goes with --data FILE" in refused(capsys, "reconstruct", "run", "--scale", "2")
    assert "give --scale X" in refused(capsys, "evaluate", "run", "--data", "bytes.npy")
    assert main(["reconstruct", "run", "--data", "bytes.npy", "--scale", "255"]) == 0


def test_what_is_done_to_the_values_of_named_data_is_said(capsys):
    np.save("rows.npy", ROWS)
    np.save("bytes.npy", (255 * ROWS).astype(np.uint8))
    train("--data", "rows.npy", "--batch-size", "20", "--decoder", "Normal", "--epochs", "0")
    for argv in (["evaluate", "run", "--samples=2"], ["reconstruct", "run"]):
        capsys.readouterr()
        assert main([*argv, "--data", "bytes.npy", "--scale", "1"]) == 0
        assert re.search(r"^values: \d to 25\d .*divided by 1 \(--scale\)$", capsys.readouterr().out, re.MULTILINE)
        assert main([*argv, "--data", "bytes.npy", "--scale", "255"]) == 0
        assert "divided by 255 (--scale)" in capsys.readouterr().out
        assert main(argv) == 0
        assert "values:" not in capsys.readouterr().out


@pytest.mark.parametrize("command", [["evaluate", "--samples=2"], ["reconstruct"]])
@pytest.mark.parametrize("scale", [[], ["--scale", "255"]])
def test_named_data_of_another_scale_are_refused_with_the_fix(command, scale, capsys):
    """Divided by 255 twice, or never: both have a bound, but not that of pixels in [0, 1]."""
    pixels = (255 * ROWS).astype(np.uint8)
    own, other = (pixels, pixels / 255) if scale else (pixels / 255, pixels)
    np.save("own.npy", own)
    np.save("other.npy", other)
    train("--data", "own.npy", "--batch-size", "20", "--decoder", "Normal", "--epochs", "0", *scale)
    capsys.readouterr()
    text = refused(capsys, command[0], "run", *command[1:], "--data", "other.npy")
    assert "run was trained on 0" in text
    assert "give --scale X to divide its values by X, 1 to keep them" in text
    right = "1" if scale else "255"
    numbers = []
    for flags in (["--data", "other.npy", "--scale", right], []):
        assert main([command[0], "run", *command[1:], *flags]) == 0
        numbers.append(re.findall(r"-?\d+\.\d\d+", capsys.readouterr().out)[-3:])
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("values", [[0, 1, 2, 3], "0 to 1", [0.0, 1.0, float("nan")], None])
def test_weights_that_do_not_say_the_size_of_their_data_are_read(values):
    np.save("rows.npy", ROWS)
    train("--data", "rows.npy", "--batch-size", "20", "--epochs", "0")
    weights, head = read_tensors(Path("run/model.safetensors"))
    save_tensors(Path("run/model.safetensors"), weights, {**head["about"], "values": values})
    assert main(["evaluate", "run", "--samples=2", "--data", "rows.npy"]) == 0


def test_a_run_on_scaled_data_scales_those_that_take_their_place(capsys):
    np.save("bytes.npy", (255 * ROWS).astype(np.uint8))
    train("--data", "bytes.npy", "--scale", "255", "--batch-size", "20")
    Path("bytes.npy").rename("moved.npy")
    capsys.readouterr()
    assert main(["reconstruct", "run", "--data", "moved.npy"]) == 0


def test_reconstruct_names_what_it_evaluates_at(capsys):
    run = train()
    last = metrics(run)[-1]
    for evaluate, column, kind in (("mean", "test_loss_at_mean", "no bound"), ("sample", "test_loss", "a bound")):
        assert main(["reconstruct", str(run), "--evaluate", evaluate]) == 0
        output = capsys.readouterr().out
        assert f"evaluate={evaluate} ({kind})" in output
        assert f"loss {float(last[column]):.2f}," in output
        assert (run / f"reconstruct-{evaluate}.png").exists()


def test_evaluate_measures_a_run_on_its_test_data(capsys):
    run = train("--binarize", "dynamic")
    last = metrics(run)[-1]
    capsys.readouterr()
    assert main(["evaluate", "run", "--samples", "20", "--memory", "100MB", "--json", "found.json"]) == 0
    output, found = capsys.readouterr().out, json.loads(Path("found.json").read_text())
    assert "nats per datum" in output
    for name in ("elbo", "reconstruction", "elbo_at_mean", "log_likelihood", "jackknife"):
        assert f"{found[name]:.2f}" in output
    assert found["elbo"] == pytest.approx(found["reconstruction"] - found["kl"], rel=1e-6)
    assert found["elbo"] == pytest.approx(-float(last["test_loss"]), rel=0.05)  # of another noise
    assert found["jackknife"] > found["log_likelihood"] > found["elbo"]
    assert 0 < found["standard_error"] < 1
    assert "log p(x), 20 samples" in output
    assert "not log-probabilities" not in output
    first = (output, found)
    assert main(["evaluate", "run", "--samples", "20", "--memory", "100MB", "--json", "found.json"]) == 0
    assert (capsys.readouterr().out, json.loads(Path("found.json").read_text())) == first


KEYS = (
    "log_likelihood standard_error elbo jackknife pareto_k_over_0_7 active_units ais_log_likelihood bdmc_lower"
    " bdmc_upper approximation_gap amortization_gap calibration_p tarp mmd accuracy"
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the importance weights of", "ignore:the chains of")
def test_evaluate_all_measures_everything(monkeypatch, capsys):
    few = partial(measures.posterior_check, samples=50, warmup=30)
    monkeypatch.setattr(measures, "posterior_check", few)
    train("--binarize", "dynamic", "--latent-dim", "2")
    capsys.readouterr()
    assert main(["evaluate", "run", "--all", "--samples", "200", "--images", "5", "--json", "found.json"]) == 0
    output, found = capsys.readouterr().out, json.loads(Path("found.json").read_text())
    assert {*KEYS.split()} <= {*found}
    assert abs(found["bdmc_upper"] - found["bdmc_lower"]) < 0.5
    for name in ("ais_log_likelihood", "bdmc_lower", "bdmc_upper", "approximation_gap", "amortization_gap"):
        digits = 2 if abs(found[name]) >= 1 else 4
        assert f"{found[name]:.{digits}f}" in output


def test_evaluate_all_leaves_out_what_does_not_fit_and_says_why(monkeypatch, capsys):
    """Discrete codes have no gradients; asked for by name, it is an error. One of 3 posteriors is found wrong."""
    local = LocalTest(torch.zeros(3), torch.tensor([0.3, 1 / 20, 2 / 20], dtype=torch.float64))
    monkeypatch.setattr(measures, "local_test", lambda *_, **__: local)
    train("--prior", "Bernoulli", "--encoder", "Bernoulli")
    capsys.readouterr()
    assert main(["evaluate", "run", "--all", "--samples", "20", "--images", "3", "--json", "found.json"]) == 0
    output, found = capsys.readouterr().out, json.loads(Path("found.json").read_text())
    for name in ("ais", "gaps", "nuts"):
        assert f"--{name} is left out: " in output
    assert {"active_units", "calibration_p"} <= {*found}
    assert found["local_rejected"] == pytest.approx(1 / 3)
    assert "pareto_k_over_0_7" not in found  # 20 weights have no tail
    assert found["grey"]
    assert "gradients, which" in refused(capsys, "evaluate", "run", "--ais", "--samples", "20")


def test_evaluate_says_that_grey_pixels_have_no_log_probability(capsys):
    train()
    assert main(["evaluate", "run", "--samples", "2"]) == 0
    output = capsys.readouterr().out
    assert "not log-probabilities" in output
    assert "importance-weighted bound, 2 samples" in output
    assert "log p(" not in output


def test_the_json_says_how_many_data_the_slow_measures_took(capsys):
    train("--epochs", "0")
    np.save("few.npy", np.zeros((7, 1, 8, 8), np.float32))
    assert main(["evaluate", "run", "--samples", "2", "--data", "few.npy", "--json", "found.json"]) == 0
    found = json.loads(Path("found.json").read_text())
    assert (found["test_data"], found["images"]) == (1, 1)  # one of seven is tested, and not 100
    capsys.readouterr()


def test_no_number_of_grey_pixels_is_called_a_likelihood(monkeypatch, capsys):
    for name in ("ais", "bdmc"):
        monkeypatch.setattr(measures, name, partial(getattr(measures, name), chains=2, steps=2, leapfrog=1))
    train("--epochs", "0")
    assert main(["evaluate", "run", "--samples", "20", "--ais", "--images", "2", "--json", "found.json"]) == 0
    found = json.loads(Path("found.json").read_text())
    assert not [name for name in found if "likelihood" in name or "log" in name]
    assert {"elbo", "importance_weighted_bound", "ais_bound"} <= {*found}
    assert "log p(" not in capsys.readouterr().out


def test_the_command_that_continues_a_run_can_be_typed_whatever_its_name(capsys):
    run = train("--epochs", "1", out="./-run")
    (run / "model.safetensors").unlink()
    capsys.readouterr()
    fix = refused(capsys, "sample", "./-run").partition("continue with ")[2]
    assert fix.endswith("pyro-vae train --resume ./-run")
    assert main(shlex.split(fix)[1:]) == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["evaluate", "--", "-run", "--samples", "10"], "unknown argument --samples after --: give flags before it"),
        (["evaluate", "--", "-run", "--samples=10"], "unknown argument --samples=10 after --"),
        (["train", "--", "--epochs", "3"], "unknown argument --: leave it out"),
        (["gradients", "--ais"], "unknown argument --ais"),
    ],
)
def test_a_flag_in_a_place_where_it_is_none_is_named(argv, words, capsys):
    assert words in refused(capsys, *argv)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--samples", "0"], "--samples must be at least 1, not 0"),
        (["--images", "0"], "--images must be at least 1, not 0"),
        (["--memory", "2QB"], "one with a unit, as '512MB' or '2GiB': '2QB'"),
        (["--memory", "1kB"], "too small for 5000 samples"),
        (["--json", "no/folder.json"], "its folder does not exist"),
        (["--json", "run/config.yaml"], "must end in .json"),
        (["--sample", "3"], "did you mean --samples?"),
        (["--resume"], "there is nothing to continue: leave out --resume"),
    ],
)
def test_evaluate_refuses_in_one_line(flags, words, capsys):
    train()
    capsys.readouterr()
    assert words in refused(capsys, "evaluate", "run", *flags)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_names_the_flag_that_lowers_it(error, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    train()
    monkeypatch.setattr(measures, "log_likelihood", fail)
    capsys.readouterr()
    assert main(["evaluate", "run"]) == 2
    assert "out of memory; lower --memory" in capsys.readouterr().err
    monkeypatch.setattr(runs, "load_data", fail)
    assert "out of memory; lower --batch-size" in refused(capsys, "train", *QUICK, "--out", "other")


def test_compare_prints_a_table_and_writes_pictures_and_json(capsys):
    flags = ["--steps", "3", "--draws", "5", "--rounds", "1", "--hidden", "8", "--json", "found.json", "--out", "run"]
    assert main(["compare", *flags]) == 0
    assert "controls: twins spoiled on purpose" in capsys.readouterr().out
    found = json.loads(Path("found.json").read_text())
    assert found["identity"]["sampled KL"]["max_gradient_relative_difference"] < 1e-10
    assert all(control["detected"] for control in found["controls"].values())
    names = sorted(path.name for path in Path("run").iterdir())
    assert names == ["comparison.json", "gradients.png", "trajectory.png"]


def test_compare_takes_the_preset(capsys):
    flags = ["--steps", "2", "--draws", "3", "--rounds", "1", "--preset", "practicum"]
    assert main(["compare", *flags]) == 0
    assert "identity" in capsys.readouterr().out


# --- what is wrong ----------------------------------------------------------------------------------------------------


def files():
    """Return what lies in the current folder, but for what Python compiles of a module there."""
    return sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts)


def refused(capsys, *argv):
    """Run argv and return the one line it was refused with."""
    before = files()
    try:
        code = main(list(argv))
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert files() == before
    found = capsys.readouterr()
    assert found.out == ""
    lines = found.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("pyro-vae")
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prior", "Norml"], "unknown prior 'Norml'; did you mean 'Normal'?"),
        (["--encoder", "Dleta"], "did you mean 'Delta'?"),
        (["--decoder", "no.such.Part"], "cannot be imported"),
        (["--decoder", "pyro_vae.networks.Shape"], "must be a class of torch.nn.Module"),
        (["--prior", "pyro.nn.PyroModule"], "PyroModule must return a distribution when it is called"),
        (["--network", "Cnov"], "did you mean 'Conv'?"),
        (["--loss", "TraceMeanfield_ELBO"], "did you mean 'TraceMeanField_ELBO'?"),
        (["--binarize", "dynamc"], "did you mean 'dynamic'?"),
        (["--evaluate", "median"], "Known: mean, sample"),
        (["--latent-map", "umap"], "Known: first, pca, tsne"),
        (["--data", "digit"], "no data set or file 'digit'; did you mean 'digits'? Known are digits, mnist,"),
        (["--data", "MNSIT"], "did you mean 'mnist'?"),
        (["--data", "mnist", "--data-root", "nowhere"], "--data-root"),
        (["--data", "missing.npy"], "no file missing.npy; correct its path"),
        (["--loss", "Renyi", "--memory", "2QB"], "one with a unit, as '512MB' or '2GiB': '2QB'"),
        (["--loss", "IWAE", "--beta", "2"], "IWAE has no KL to weigh: leave beta at 1"),
        (["--loss", "IWAE", "--warm-up", "2"], "IWAE has no KL to weigh: leave beta at 1"),
        (["--loss.num_particles", "0"], "num_particles must be at least 1, not 0"),
        (["--memory", "2GB"], "memory limits the particles of objectives such as IWAE, not"),
        (["--scale", "255"], "digits has values in [0, 1]: leave out the scale"),
        (["--latent-dim", "0"], "latent_dim must be at least 1"),
        (["--latent-dim", "two"], "invalid int value: 'two'"),
        (["--hidden", "0"], "hidden must be at least 1"),
        (["--batch-size", "0"], "batch_size must be at least 1, not 0"),
        (["--epochs", "-1"], "epochs must be at least 0"),
        (["--lr", "-1"], "lr must be above 0"),
        (["--beta", "-1"], "beta must be at least 0"),
        (["--clip-norm", "0"], "clip_norm must be above 0"),
        (["--warm-up", "-1"], "warm_up must be at least 0"),
        (["--device", "nonsense"], "take --device cpu"),
        (["--out", "/dev/null/run"], "cannot be written"),
        (["--epoch", "3"], "did you mean --epochs?"),
        (["--decoder.scale", "3"], "unknown parameter of the decoder Bernoulli: 'scale'"),
        (["--decoder", "Normal", "--decoder.scal", "3"], "did you mean 'scale'?"),
        (["--decoder", "Normal", "--decoder.scale", "wide"], "takes a value of type float"),
        (["--decoder", "Normal", "--decoder.scale", "-1"], "must be above 0 and finite"),
        (["--decoder", "Normal", "--decoder.scale"], "takes a value"),
        (["--decoder.grey", "false"], "grey=True"),
        (["--network", "GRU"], "GRUEncoder needs sequences"),
        (["--network.hidden", "3"], "unknown parameter of the network MLP: 'hidden'"),
        (["--config", "none.yaml"], "none.yaml cannot be read"),
        (["--preset", "nope"], "invalid choice: 'nope'"),
        (["--prior", "Exponential"], "they must match"),
        (["--encoder", "ScoreFunction"], "build it in Python, not by a flag"),
        (["--decoder", "Masked"], "build it in Python, not by a flag"),
        (["--decoder", "Normal", "--decoder.per_dimension", "true"], "give learned=True as well"),
        (["--encoder", "OneHotCategorical"], "the prior's event shape is (10,) and the encoder's (10, 10)"),
    ],
)
def test_a_wrong_flag_gets_one_line_that_names_the_fix(flags, words, capsys):
    assert words in refused(capsys, "train", *flags)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: [1", "cannot be read"),
        ("- 1", "must hold lines"),
        ("epochs: many", "invalid int value"),
        ("a: 1", "--a"),
    ],
)
def test_a_wrong_config_gets_one_line(text, words, capsys):
    Path("bad.yaml").write_text(text)
    said = refused(capsys, "train", "--config", "bad.yaml")
    assert words in said
    assert "bad.yaml" in said


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[0.5, np.nan]] * 10), "the data hold nan at index"),
        (np.array([[0.5, np.inf]] * 10), "the data hold inf at index"),
        (np.array([[0.5, 255.0]] * 10), "scale the data to [0, 1]"),
        (np.array([["a", "b"]] * 10), "must hold numbers"),
        (np.zeros((0, 2)), "N at least 1"),
        (np.zeros((1, 2)), "at least 2 data"),
        (np.array(1.0), "must have shape (N, ...)"),
    ],
)
def test_wrong_data_get_one_line(array, words, capsys):
    np.save("bad.npy", array)
    assert words in refused(capsys, "train", "--data", "bad.npy", "--batch-size", "2")


@pytest.mark.parametrize("value", [np.nan, 1e39])
def test_the_place_of_a_value_is_that_in_its_part_and_not_in_the_file(value, capsys):
    """As the rows of a file are shuffled before they are cut into parts."""
    array = np.random.default_rng(0).random((40, 3))
    array[7, 2] = value
    np.save("rows.npy", array)
    line = refused(capsys, "train", "--data", "rows.npy", "--decoder", "Normal")
    row, column, path, part = re.search(r"at index \((\d+), (\d+)\) of data.load\('(.*)'\).(\w+);", line).groups()
    assert not getattr(data.load(path), part)[int(row), int(column)].isfinite()
    assert ("beyond 3.4e+38" in line) is (value == 1e39)


@pytest.mark.parametrize("command", ["reconstruct", "evaluate"])
def test_data_that_a_run_does_not_take_are_refused_by_their_place(command, capsys):
    np.save("rows.npy", np.random.default_rng(0).random((9, 3)))
    train("--data", "rows.npy", "--decoder", "Normal", "--epochs", "0")
    capsys.readouterr()
    np.save("gaps.npy", np.where(np.arange(27).reshape(9, 3) % 3 == 1, np.nan, 0.5))
    line = refused(capsys, command, "run", "--data", "gaps.npy")
    assert "the data hold nan at index (0, 1) of data.load('gaps.npy').test; remove or fill" in line


def test_what_is_no_flag_is_not_likened_to_one(capsys):
    assert "unknown argument run2; see --help" in refused(capsys, "sample", "run", "run2")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Config(prior="Flow", options={"prior": {"transform": "MAF"}}), "Flow(latent_dim=10, transform='MAF')"),
        (Config(loss="IWAE", options={"loss": {"num_particles": 5}}), "IWAE(num_particles=5)"),
        (Config(options={"loss": {"num_particles": 2}}), "Trace_ELBO(num_particles=2), beta 1"),
        (Config(beta=4, warm_up=10), "Trace_ELBO, beta 4, from 0 over 10 epochs"),
        (Config(epochs=1), "1 epoch, batch 64, Adam 0.001, seed 0, cpu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_first_lines_say_what_was_asked_for(config, words):
    assert words in facts_of(runs.Run(config, Path("run")).experiment).values()


@pytest.mark.slow
def test_a_finished_run_is_extended(capsys):
    """With the same bytes as if it had had as many epochs from the start; but a cosine ends where it ends."""
    slow = ["--lr-schedule", "exponential", "--optimizer", "adamw", "--weight-decay", "0.1", "--eps", "1e-6"]
    for out, epochs in (("short", 1), ("long", 3)):
        assert main(["train", *QUICK, *slow, "--epochs", str(epochs), "--out", out]) == 0
    assert main(["train", "--resume", "short", "--epochs", "3"]) == 0
    assert Path("short/model.safetensors").read_bytes() == Path("long/model.safetensors").read_bytes()
    assert float(metrics(Path("short"))[-1]["learning_rate"]) == pytest.approx(1e-3 * 0.95**2, rel=1e-5)
    assert "AdamW 0.001, weight decay 0.1, eps 1e-06, exponential schedule" in capsys.readouterr().out
    assert "epochs: 3" in Path("short/config.yaml").read_text()
    assert main(["train", *QUICK, "--lr-schedule", "cosine", "--epochs", "1", "--out", "round"]) == 0
    capsys.readouterr()
    words = "the cosine schedule of this run ends at epoch 1, not 2: train again"
    assert words in refused(capsys, "train", "--resume", "round", "--epochs", "2")


def test_trained_weights_without_their_checkpoint_are_not_overwritten(capsys):
    """As of a run that was copied without its checkpoints; one that was killed before the first one begins anew."""
    run = train()
    capsys.readouterr()
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    before = [(run / name).read_bytes() for name in ("model.safetensors", "metrics.csv")]
    words = "run holds trained weights, but no checkpoints/last.safetensors to resume from: copy it there, or train"
    assert words in refused(capsys, "train", "--resume", "run")
    assert [(run / name).read_bytes() for name in ("model.safetensors", "metrics.csv")] == before


def test_patience_leaves_the_best_weights(capsys):
    """At this rate the test loss rises soon."""
    flags = ["--optimizer", "sgd", "--lr", "0.02", "--patience", "2", "--epochs", "40"]
    x = np.random.default_rng(0).normal(size=(40, 3))
    np.savez("x.npz", x_train=x, x_test=x[:8] + 2.0)
    assert main(["train", *QUICK, "--data", "x.npz", "--decoder", "Normal", *flags, "--out", "run"]) == 0
    losses = [float(row["test_loss"]) for row in metrics(Path("run"))][1:]
    assert len(losses) == losses.index(min(losses)) + 3 < 40
    best = losses.index(min(losses)) + 1
    assert f"epoch {best}: train_loss" in capsys.readouterr().out.splitlines()[-2]
    assert f"of epoch {best}, which has the lowest test loss, {min(losses):.3f}" in Path("run/report.html").read_text()
    assert f"<b>{min(losses):.2f}</b><span>negative bound, test</span>" in Path("run/report.html").read_text()
    held = read_tensors(Path(f"run/checkpoints/posteriors-{best}.safetensors"))[0]["mean"]
    vae = RunFolder(Path("run")).load_vae(config_of_run(Path("run"), []))
    assert torch.equal(held, posterior_moments(vae, torch.from_numpy(x[:8] + 2.0).float())[0])
    evaluated = []
    for best in ([], ["--best"]):
        assert main(["evaluate", "run", *best]) == 0
        evaluated.append(capsys.readouterr().out)
    assert evaluated[0] == evaluated[1]


def test_a_bound_that_is_summed_over_codes_is_evaluated_as_in_training():
    x = np.random.default_rng(0).random((40, 3)).round()
    np.savez("x.npz", x_train=x, x_test=x[:8])
    flags = ["--prior", "Bernoulli", "--encoder", "Bernoulli", "--loss", "TraceEnum_ELBO", "--epochs", "1"]
    assert main(["train", *QUICK, "--data", "x.npz", *flags, "--out", "run"]) == 0
    assert main(["evaluate", "run", "--samples", "5", "--seed", "3", "--json", "x.json"]) == 0  # other noise
    last, found = metrics(Path("run"))[-1], json.loads(Path("x.json").read_text())
    for name, column in (("elbo", "test_loss"), ("reconstruction", "test_reconstruction")):
        assert found[name] == pytest.approx(-float(last[column]), abs=1e-5)
    assert found["kl"] == pytest.approx(float(last["test_kl"]), abs=1e-5)


WRONG_OPTIMIZING = {
    "--optimizer lion": "unknown optimizer 'lion'",
    "--optimizer sgd --eps 1e-3": "the optimizer sgd has no eps: leave --eps out",
    "--eps 0": "eps must be above 0 and finite, not 0.0",
    "--weight-decay -1": "weight_decay must be at least 0 and finite, not -1.0",
    "--lr-schedule linear": "'linear'; did you mean 'cosine'? Known: cosine, exponential, plateau, step",
    "--patience 0": "patience must be at least 1, not 0",
}


@pytest.mark.parametrize("flags", WRONG_OPTIMIZING)
def test_a_wrong_optimizer_schedule_or_patience_is_named(capsys, flags):
    assert WRONG_OPTIMIZING[flags] in refused(capsys, "train", *flags.split())


@pytest.mark.filterwarnings("default:.*hold no numbers")
def test_fewer_data_than_a_batch_are_trained_and_what_is_left_out_of_a_file_is_said_in_a_line(capsys):
    np.savez("x.npz", X=np.random.default_rng(0).normal(size=(20, 3)), y=["a", "b"] * 10, names=["p", "q", "r"])
    assert main(["train", "--data", "x.npz", "--decoder", "Normal", *QUICK, "--out", "run"]) == 0
    printed = capsys.readouterr()
    assert "16 train, 4 test, 3" in printed.out
    assert "pyro-vae: x.npz: names hold no numbers, and are left out" in printed.err.replace(os.getcwd() + os.sep, "")
    assert ".py:" not in printed.err


def test_parts_that_do_not_fit_are_named(capsys):
    Path("misfits.py").write_text(
        "import pyro.distributions as dist, torch\n"
        "class Part(torch.nn.Module):\n"
        "    def __init__(self, latent_dim):\n"
        "        super().__init__()\n"
        "        self.zeros = torch.zeros(latent_dim)\n"
        "class Plain(Part):\n"
        "    def forward(self):\n"
        "        return torch.distributions.Normal(self.zeros, 1.0)\n"
        "class NoEvent(Part):\n"
        "    def forward(self):\n"
        "        return dist.Normal(self.zeros, 1.0)\n"
        "class Positive(Part):\n"
        "    def forward(self):\n"
        "        return dist.Exponential(self.zeros + 1).to_event(1)\n"
    )
    assert "a plain torch.distributions.normal.Normal" in refused(capsys, "train", "--prior", "misfits.Plain")
    assert "add .to_event(1)" in refused(capsys, "train", "--prior", "misfits.NoEvent")
    assert "they must match" in refused(capsys, "train", "--prior", "misfits.Positive")


def test_a_folder_that_holds_a_run_is_left_as_it_is(capsys):
    run = train()
    before = (run / "metrics.csv").read_bytes()
    capsys.readouterr()
    assert "already holds a run" in refused(capsys, "train", *QUICK, "--out", "run")
    assert (run / "metrics.csv").read_bytes() == before


def test_a_folder_with_other_files_is_refused(capsys):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    assert "not an empty folder" in refused(capsys, "train", "--out", "full")


def test_nothing_is_written_among_the_data_or_in_their_place(capsys, monkeypatch):
    np.save("x.npy", before := np.random.default_rng(0).random((40, 1, 6, 6), dtype=np.float32))
    Path("pictures").mkdir()
    for number, pixels in enumerate(before):
        Image.fromarray(np.uint8(255 * pixels[0])).save(f"pictures/{number}.png")
    for command in ("train", "compare"):
        assert "lies in the data" in refused(capsys, command, "--data", "pictures", "--out", "pictures/run")
    monkeypatch.chdir("pictures")
    assert "lies in the data" in refused(capsys, "train", "--data", ".")
    monkeypatch.chdir("..")
    run = train("--data", "x.npy")
    capsys.readouterr()
    assert "x.npy lies in the data" in refused(capsys, "sample", "run", "--out", "x.npy")
    for command, flag in (("reconstruct", "--out=pictures/x.png"), ("evaluate", "--json=pictures/x.json")):
        assert "lies in the data" in refused(capsys, command, "run", "--data=pictures", flag)
    assert np.array_equal(np.load("x.npy"), before)
    assert len(list(Path("pictures").iterdir())) == 40
    assert run.exists()


def test_a_run_of_another_machines_device_says_where_to_write_that_of_this_one(capsys):
    path = train("--epochs", "0") / "config.yaml"
    capsys.readouterr()
    written = path.read_text()
    path.write_text(written.replace("device: cpu", "device: cuda:99"))
    for argv in (["train", "--resume"], ["sample"], ["reconstruct"], ["evaluate"]):
        assert "no device 'cuda:99'" in (line := refused(capsys, *argv, "run"))
        assert line.endswith("; write 'device: cpu' into run/config.yaml")
    path.write_text(written.replace("epochs: 0", "epochs: -1"))
    assert "epochs must be at least 0, not -1" in refused(capsys, "train", "--resume", "run")


def test_what_a_killed_process_left_as_it_began_is_in_nobodys_way():
    """Killed at any moment, it leaves its lock, a part of its config, or both."""
    Path("run").mkdir()
    for name in (".lock", ".config.yaml.partial"):
        Path("run", name).write_text("da")
    train("--epochs", "0")
    assert not Path("run/.config.yaml.partial").exists()


def test_weights_that_are_missing_are_refused_with_the_fix(capsys):
    run = train("--epochs", "0")
    (run / "checkpoints/best.safetensors").unlink(missing_ok=True)
    capsys.readouterr()
    assert "no file run/checkpoints/best.safetensors; leave out --best" in refused(capsys, "sample", "run", "--best")
    (run / "model.safetensors").unlink()
    fix = "continue with pyro-vae train --resume run"
    assert f"no file run/model.safetensors; {fix}" in refused(capsys, "evaluate", "run")


@pytest.mark.parametrize("command", ["sample", "reconstruct", "evaluate"])
def test_a_folder_that_is_no_run_is_refused(command, capsys):
    assert "holds no config.yaml" in refused(capsys, command, "nowhere")


@pytest.mark.parametrize("size", [0, 7, 100])
def test_truncated_weights_are_refused(size, capsys):
    weights = train() / "model.safetensors"
    capsys.readouterr()
    weights.write_bytes(weights.read_bytes()[:size])
    assert "is damaged" in refused(capsys, "sample", "run")


def test_weights_of_another_config_are_refused(capsys):
    run = train()
    capsys.readouterr()
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("latent_dim: 3", "latent_dim: 4"))
    assert "is of another run: it has latent_dim 3, this run has latent_dim 4" in refused(capsys, "sample", "run")


@pytest.mark.parametrize(("command", "left"), [("sample", 3), ("train", 1), ("train", 2), ("train", 3)])
def test_a_config_of_a_vae_that_is_much_larger_than_its_weights_is_refused_before_it_takes_memory(
    command, left, capsys
):
    run = train("--epochs=1")
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("hidden:\n- 16", "hidden: [1000000, 1000000]"))
    names = ["model.safetensors", "checkpoints/last.safetensors", "checkpoints/best.safetensors"]
    for number, name in enumerate(names):
        tensors, head = read_tensors(run / name)
        head["about"]["of"]["hidden"] = [1_000_000, 1_000_000]  # as anyone could write there
        save_tensors(run / name, tensors, head["about"])
        if not left & 2**number:
            (run / name).unlink()
    capsys.readouterr()
    said = refused(capsys, *(["sample", "run"] if command == "sample" else ["train", "--resume", "run"]))
    assert (
        said == "pyro-vae: error: config.yaml makes a VAE that is much larger than the run's weights: correct its sizes"
    )


@pytest.mark.parametrize("command", [["sample", "run"], ["evaluate", "run"], ["impute", "run", "--hide", "0.5"]])
def test_weights_that_are_much_larger_than_their_config_are_refused_before_they_are_read(command, capsys, monkeypatch):
    run = train("--epochs=1")
    path, size = run / "model.safetensors", 20 * 10**9
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    end = len(content) - begin
    header["more"] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [end, end + size]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + content[begin:])
        file.truncate(8 + len(text) + end + size)  # with a hole on the disk
    capsys.readouterr()
    monkeypatch.setattr(checkpoints, "load", None)
    assert "does not fit the run's config.yaml: more is of shape (5000000000,), not missing" in refused(
        capsys, *command
    )


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made in memory."""

    numbers = 0

    def __torch_dispatch__(self, function, _, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(made) if isinstance(each, torch.Tensor) and not each.is_meta]
        self.numbers = max([self.numbers, *(each.numel() for each in tensors)])
        return made


@pytest.mark.parametrize("kind", ["prior", "encoder"])
def test_a_flow_that_is_much_larger_than_its_weights_is_refused_before_it_takes_memory(kind):
    """Its masks are made before its weights."""
    of_flow = Config(latent_dim=4, hidden=[16], **{kind: "Flow"})
    weights = seeded_vae(of_flow, (1, 8, 8)).state_dict()
    again = seeded_vae(of_flow, (1, 8, 8), weights).state_dict()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    of_flow.options[kind] = {"hidden": 6000}
    with (
        pytest.raises(ValueError, match=r"makes a VAE that is much larger than the run's weights"),
        Largest() as largest,
    ):
        seeded_vae(of_flow, (1, 8, 8), weights)
    assert largest.numbers < 10**6


def test_weights_that_are_not_those_of_their_config_are_refused(capsys):
    path = train() / "model.safetensors"
    capsys.readouterr()
    tensors, head = read_tensors(path)
    tensors.popitem()
    save_tensors(path, tensors, head["about"])
    assert "does not fit" in refused(capsys, "sample", "run")


def test_weights_of_another_type_or_that_are_not_finite_are_refused(capsys):
    path = train("--epochs", "0") / "model.safetensors"
    tensors, head = read_tensors(path)
    name = "decoder.network.layers.0.weight"
    shape = tuple(tensors[name].shape)
    crafted = {
        f"of torch.float64 {shape}, not of torch.float32 {shape}": tensors[name].double(),
        f"of shape {shape[::-1]}, not of shape {shape}": tensors[name].t(),
        "with values that are not finite": tensors[name] / 0,
    }
    capsys.readouterr()
    for words, tensor in crafted.items():
        save_tensors(path, {**tensors, name: tensor}, head["about"])
        assert words in refused(capsys, "sample", "run")
    save_tensors(path, {**tensors, "more": tensors[name].clone()}, head["about"])
    assert "more is of shape" in refused(capsys, "sample", "run")


@pytest.mark.filterwarnings("error:Encountered")  # Pyro's of NaN
def test_results_that_are_no_numbers_are_refused(capsys):
    """Finite weights may be so large that what they give is not."""
    np.save("rows.npy", np.random.default_rng(0).random((9, 3)))
    path = train("--data", "rows.npy", "--batch-size", "4", "--epochs", "0") / "model.safetensors"
    tensors, head = read_tensors(path)
    save_tensors(path, {name: torch.full_like(tensor, -1e38) for name, tensor in tensors.items()}, head["about"])
    capsys.readouterr()
    for argv, name in (
        (["evaluate", "run", "--samples=2", "--json=x.json"], "the bound"),
        (["reconstruct", "run"], "loss"),
    ):
        assert f"the weights of this run give {name} as NaN: take --best, or train again" in refused(capsys, *argv)
    assert not Path("x.json").exists()
    assert not Path("run/reconstruct-mean.png").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--loss", "IWAE", "--memory", "1"], "a memory of 1 bytes is too small"),
        (["--loss", "BetaTC", "--encoder", "FullRankNormal"], "BetaTC needs independent latent dimensions"),
        (["--loss", "DReG", *(f"--{part}=OneHotCategorical" for part in ("prior", "encoder"))], "a pathwise sampler"),
    ],
)
def test_what_does_not_fit_the_objective_is_refused_before_anything_is_printed(flags, words, capsys):
    assert main(["train", *QUICK, *flags, "--out", "run"]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert not printed.out
    assert printed.err.startswith("pyro-vae: error: ")
    assert not Path("run").exists()


def test_an_objective_of_many_particles_is_checked_with_few(monkeypatch):
    seen = []
    monkeypatch.setattr(objectives.PIWAE, "of_draws", lambda _, draws: seen.append(draws.kl.shape) or fail())
    experiment = Experiment(Config(loss="PIWAE", options={"loss": {"groups": 3, "num_particles": 10**9}}))
    with pytest.raises(InterruptedError):
        experiment.check_training()
    assert seen == [(6, 2)]


def fail():
    raise InterruptedError


def test_an_infinite_result_is_printed_and_null_in_json(capsys):
    np.save("rows.npy", np.random.default_rng(0).random((9, 3)))
    path = train("--data", "rows.npy", "--decoder", "Normal", "--epochs", "0") / "model.safetensors"
    tensors, head = read_tensors(path)
    (last,) = (name for name, tensor in tensors.items() if name.startswith("decoder") and tensor.shape == (3,))
    save_tensors(path, {**tensors, last: torch.full((3,), 1e30)}, head["about"])
    capsys.readouterr()
    assert main(["evaluate", "run", "--samples=2", "--json=x.json"]) == 0
    assert f"{'bound (Trace_ELBO)':<40}{'-inf':>12}" in capsys.readouterr().out
    found = json.loads(Path("x.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["elbo"] is found["log_likelihood"] is None
    assert found["kl"] > 0


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_written(capsys):
    assert main(["train", *QUICK, "--lr", "1e12", "--out", "run"]) == 2
    assert "lower the learning rate" in capsys.readouterr().err.splitlines()[-1]
    assert [row["epoch"] for row in metrics(Path("run"))] == ["0"]
    assert all(tensor.isfinite().all() for tensor in load_file("run/model.safetensors").values())


@pytest.mark.parametrize("argv", [["list"], ["train", "--out", "run"]])
def test_what_is_interrupted_before_it_saves_anything_does_not_say_that_it_has(argv, monkeypatch, capsys):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "catalogue", interrupted)
    monkeypatch.setattr(runs, "load_data", interrupted)
    assert main(argv) == 130
    assert capsys.readouterr() == ("", "pyro-vae: stopped\n")
    assert not Path("run").exists()


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="unknown prior"):
        main(["train", "--prior", "Norml", "--debug"])


def test_no_command_is_refused(capsys):
    assert "required: COMMAND" in refused(capsys)


def test_help_names_every_part_with_its_own_parameters(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    output = capsys.readouterr().out
    assert "--decoder ContinuousBernoulli" in output
    for name in ("Masked", "ScoreFunction", "SemiAmortized"):  # which take other parts
        assert name not in output
    assert "--decoder.scale float, default 1.0" in output
    assert "--network.time int, default -1" in output


def test_every_summary_of_the_help_is_a_whole_sentence_on_lines_of_its_own(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    lines = capsys.readouterr().out.partition("parts and their own parameters:")[2].splitlines()
    flags = [number for number, line in enumerate(lines) if re.fullmatch(r"  --\w+ \w+", line)]
    assert len(flags) > 50
    for number in flags:
        summary = "".join(itertools.takewhile(lambda line: not line.lstrip().startswith("--"), lines[number + 1 :]))
        assert summary.strip().endswith((".", ")"))
    assert max(map(len, lines)) <= 120


def test_the_nearest_file_is_named_where_one_is_missing(capsys):
    np.save("rows.npy", ROWS)
    assert "no file row.npy; did you mean 'rows.npy'?" in refused(capsys, "train", "--data", "row.npy")
    assert "did you mean 'rows.npy'?" in refused(capsys, "train", "--data", "rows.np")
    assert "Known: Bernoulli" in refused(capsys, "train", "--decoder", "Bernuolli")
    assert "Masked" not in refused(capsys, "train", "--decoder", "Bernuolli")


def test_completion_shows_every_public_name():
    found = subprocess.run(
        [sys.executable, "-c", "import pyro_vae; print(*dir(pyro_vae))"], capture_output=True, text=True
    )
    assert {"VAE", "fit", "evaluate", "decoders", "plots", "__version__"} <= set(found.stdout.split())


def test_the_first_help_does_not_import_torch():
    code = (
        "import sys, pyro_vae.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "False"
    assert "compare" in found.stdout


def test_the_module_is_the_command():
    found = subprocess.run([sys.executable, "-m", "pyro_vae", "sample", "nowhere"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (2, "")
    assert "Traceback" not in found.stderr


def test_config_fields_and_flags_are_the_same_names():
    config = Config(options={"prior": {"learned": True}, "encoder": {}, "decoder": {}})
    assert config.flat()["prior.learned"] is True
    assert "clip_norm" not in config.flat()


def test_real_mnist_by_name():
    mnist_root = os.environ.get("PYRO_VAE_DATA")
    if not mnist_root or not (Path(mnist_root) / "MNIST" / "raw").is_dir():
        pytest.skip(f"PYRO_VAE_DATA must name the folder that holds MNIST; it is {mnist_root}")
    flags = ["--data", "mnist", "--data-root", str(mnist_root), "--epochs", "0", "--hidden", "8"]
    run = train(*flags)
    assert float(metrics(run)[0]["test_loss"]) == pytest.approx(28 * 28 * np.log(2), rel=0.05)
    assert data.load("mnist", mnist_root).test.shape == (10_000, 1, 28, 28)


# --- what a received folder may do ------------------------------------------------------------------------------------


@pytest.fixture
def forget():
    """Forget the modules that a test imports."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if not name.startswith(("torch", "pyro", "sklearn", "numpy", "scipy", "matplotlib")):
            del sys.modules[name]


MINE = "import pyro_vae.priors\nclass Mine(pyro_vae.priors.Normal):\n    pass\n"


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize("name", ["mine_alone", "mine_folder/__init__", "mine_package/parts", "mine_package/sub/parts"])
def test_of_the_current_folder_only_the_module_that_is_named_is_imported(name):
    path = Path(f"{name}.py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MINE)
    Path("planted.py").write_text("")
    before = list(sys.path)
    assert config.part("prior", f"{name.removesuffix('/__init__').replace('/', '.')}.Mine").__name__ == "Mine"
    assert config.part("prior", "pyro_vae.priors.Normal") is priors.Normal
    assert sys.path == before
    with pytest.raises(ModuleNotFoundError):
        import_module("planted")


@pytest.mark.usefixtures("forget")
def test_what_lies_beside_a_named_module_is_not_imported_and_the_fix_is_named():
    Path("mine_with_help.py").write_text(f"import planted\n{MINE}")
    Path("planted.py").write_text("import pathlib; pathlib.Path('sprung').touch()")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"No module named 'planted'; .*name its folder in PYTHONPATH"):
            config.part("prior", "mine_with_help.Mine")
    assert not Path("sprung").exists()


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize("name", ["yaml.Mine", "wave.Mine", "pyro.planted.Mine", "pyro_vae.planted.Mine"])
def test_an_installed_module_is_never_taken_from_the_current_folder(name):
    for path in ("yaml.py", "wave.py", "pyro.py", "pyro/planted.py", "pyro_vae/planted.py", "expecttest_.py"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text("import pathlib; pathlib.Path('sprung').touch()")
    with pytest.raises(ValueError, match="cannot be imported"):
        config.part("prior", name)
    assert not Path("sprung").exists()
    with pytest.raises(ValueError, match="cannot be imported"):
        config.part("prior", "expecttest_.Mine")
    assert Path("sprung").exists()  # what a module that is not installed does


@pytest.mark.parametrize(
    "name",
    [
        *("torch.os.system", "torch.hub.load", "pyro_vae.cli.sys", "pyro_vae.__main__.main", "torch.nn._reduction.F"),
        *(
            "pyro_vae.runs.parts._import",
            "pyro_vae.cli.launch.train",
            "pyro_vae.cli.subprocess.Popen",
            "torch.nn.Module.x",
        ),
        *("torch.utils.data.DataLoader", "pyro_vae.vae.__dict__.VAE", "torch..nn.Linear", ".torch.nn", "torch.", "."),
        *("torch.testing._internal.common_utils.TestCase", "pyro.infer.svi.SVI", "pyro.infer.Trace_ELBO"),
    ],
)
def test_a_trusted_name_gives_public_classes_of_its_kind_and_nothing_else(name, capsys):
    Path("c.yaml").write_text(f"prior: {name}\nepochs: 0\n")
    assert "the prior " in refused(capsys, "train", "--config", "c.yaml", "--out", "run")


def test_a_class_that_a_trusted_package_has_from_elsewhere_is_refused(monkeypatch):
    monkeypatch.setattr(priors, "Foreign", type("Foreign", (torch.nn.Module,), {"__module__": "elsewhere"}), False)
    with pytest.raises(ValueError, match="is defined in elsewhere: name it there"):
        config.part("prior", "pyro_vae.priors.Foreign")


COMMANDS = {
    "evaluate": ["evaluate", ".", "--samples", "2"],
    "sample": ["sample", "."],
    "reconstruct": ["reconstruct", "."],
    "resume": ["train", "--resume", "."],
    "train": ["train", "--config", "config.yaml", "--out", "again"],
    "processes": ["train", "--config", "config.yaml", "--out", "two", "--devices", "2"],
}
LATE = ("sklearn", "getpass", "expecttest", "torch", "matplotlib", "evil", "filelock", "lightning_fabric")
EARLY = ("argparse", "json", "multiprocessing", "pickle", "struct", "typing", "yaml")


def received():
    """A run as a stranger might send it: its config names a class by its path, and modules lie beside it."""
    run = train("--prior", "pyro_vae.priors.Normal", "--epochs", "0")
    for name in LATE:
        (run / f"{name}.py").write_text(f"print('payload {name}')")
    (run / "matplotlibrc").write_text("backend: module://evil")
    return run


def assert_nothing_foreign_runs(run, *arguments, path=""):
    own = str(Path(pyro_vae.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=run,
        env=os.environ | {"PYTHONPATH": own + path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "payload" not in done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("commands", [["evaluate"], [*COMMANDS]], ids=len)
def test_no_module_of_a_received_folder_is_run_by_a_script(commands):
    """Also where PYTHONPATH has an empty entry, which is the current folder; one command behind the other."""
    script = (
        "import sys; sys.path.remove(''); from pyro_vae.cli import main\n"
        f"for command in {[COMMANDS[name] for name in commands]}:\n"
        "    sys.argv[1:] = command\n"
        "    assert main() == 0"
    )
    assert_nothing_foreign_runs(received(), "-c", script, path=os.pathsep)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_module_of_a_received_folder_is_run(command):
    run = received()
    for name in EARLY:
        (run / f"{name}.py").write_text(f"print('payload {name}')")
    assert_nothing_foreign_runs(run, "-m", "pyro_vae", *COMMANDS[command])


def test_a_matplotlibrc_in_the_current_folder_is_not_read():
    Path("matplotlibrc").write_text("lines.linewidth: 99")
    script = "import sys, pyro_vae.plots; print(sys.modules['matplotlib'].rcParams['lines.linewidth'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() != "99.0"


@pytest.mark.parametrize("name", ["noise", "handlers", "evaluation", "laboratory", "comparison"])
def test_a_public_module_is_found_where_it_lies_under_its_own_name_alone(name):
    own = (
        f"import pyro_vae.{name} as one, pyro_vae, importlib; from pyro_vae import {name} as other;"
        f" assert one is other is pyro_vae.{name} and one.__spec__.name == one.__name__ != 'pyro_vae.{name}';"
        f" importlib.reload(one)"
    )
    foreign = f"import pyro_vae, importlib.util; assert importlib.util.find_spec('{name}') is None"
    for script in (own, foreign):
        subprocess.run([sys.executable, "-c", script], check=True)


def test_a_path_may_begin_with_the_home_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert main(["train", *QUICK, "--out=~/run"]) == 0
    assert (tmp_path / "home/run/model.safetensors").exists()
    assert not Path("~").exists()
    capsys.readouterr()
    assert "no data set or file ''" in refused(capsys, "train", "--resume=~/run", "--data", "")


def test_own_parameters_of_every_kind_are_read_back_from_the_config_of_a_run():
    """As they were given: a text that looks like a number, a list, no value."""
    own = {"name": "1e1", "word": "no", "sizes": [8, 8], "rate": float("inf"), "nothing": None}
    config = Config(options={**Config().options, "prior": own})
    config.save(Path("config.yaml"))
    assert config_of_run(Path(), []).options["prior"] == own
