"""`pyro-vae impute`: files are filled in, in their own units and order, and hidden entries compared with the truth."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_vae import VAE, decoders, encoders, impute, plots, priors
from pyro_vae.cli import main
from pyro_vae.cli.flags import config_of_run
from pyro_vae.data import dynamic
from pyro_vae.data.numpy_files import multiplied
from pyro_vae.networks import MLP, FillMissing
from pyro_vae.programs import seeded
from pyro_vae.programs.seeds import noise_seed
from pyro_vae.runs.completion import Completion, hidden
from pyro_vae.runs.folder import RunFolder

pytestmark = [
    pytest.mark.usefixtures("blank_pictures"),
    pytest.mark.filterwarnings("ignore:the importance weights"),
]
FILLING = ["--encoder", "tests.runs.test_completion.FillingNormal"]
COVARIANCE = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 0.25]])
MEAN = np.array([0.0, 1.0, 2.0])


class MaskedNormal(decoders.Masked):
    def __init__(self, latent_dim, shape, network=MLP):
        super().__init__(decoders.Normal(latent_dim, shape, network))


class FillingNormal(encoders.Normal):
    def __init__(self, shape, latent_dim, network=MLP):
        super().__init__(shape, latent_dim, partial(FillMissing, network=network))


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def table(count=400, seed=0):
    return np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, count)


def train(x, *flags):
    np.save("table.npy", x)
    flags = ["--decoder", "Normal", "--latent-dim", "2", "--hidden", "32", *flags]
    assert main(["train", "--data", "table.npy", *flags, "--out", "run"]) == 0


def loaded():
    run = Path("run")
    return RunFolder(run).load_vae(config_of_run(run, []))


def refused(capsys, *flags):
    capsys.readouterr()
    assert main(["impute", "run", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def with_gaps(x):
    gaps = x.copy()
    gaps[::3, 0] = np.nan
    gaps[1::3, 1] = np.nan
    return gaps


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_a_file_is_filled_in_its_own_units_and_order(scale, capsys):
    """The mean of column 0 given column 1 is 0.9 (column 1 - 1)."""
    x = table() * scale
    train(x, "--epochs", "60", "--lr", "0.01", "--scale", str(scale))
    gaps = with_gaps(table(60, seed=1) * scale)
    np.save("gaps.npy", gaps)
    capsys.readouterr()
    assert main(["impute", "run", "--data", "gaps.npy", "--out", "filled.npz"]) == 0
    assert "gaps.npy: 60 data, 22.2% of their entries missing" in capsys.readouterr().out
    filled, missing = np.load("filled.npz"), np.isnan(gaps)
    for each in (filled["mean"], *filled["draws"]):
        np.testing.assert_array_equal(each[~missing], gaps[~missing])  # as in the file, in double precision
    assert filled["draws"].shape == (20, 60, 3)
    np.testing.assert_array_equal(filled["deviation"][~missing], 0)
    vae = loaded()
    found = impute(vae.model, vae.guide, torch.tensor(gaps / scale).float())
    np.testing.assert_allclose(filled["mean"][missing], found.mean[0].numpy()[missing] * scale, rtol=1e-6)
    np.testing.assert_allclose(filled["draws"][:, missing], found.draws[0].numpy()[:, missing] * scale, rtol=1e-6)
    np.testing.assert_allclose(filled["deviation"][missing], found.deviation[0].numpy()[missing] * scale, rtol=1e-6)
    wanted = 0.9 * (gaps[::3, 1] / scale - 1)
    assert np.corrcoef(filled["mean"][::3, 0], wanted)[0, 1] > 0.8
    for name in ("filled.npy", "filled.csv"):
        assert main(["impute", "run", "--data", "gaps.npy", "--out", name]) == 0
    np.testing.assert_array_equal(np.load("filled.npy"), filled["mean"])
    np.testing.assert_allclose(np.loadtxt("filled.csv", delimiter=","), filled["mean"], rtol=1e-6)
    assert main(["impute", "run", "--data", "gaps.npy"]) == 0
    np.testing.assert_array_equal(np.load("gaps-completed.npy"), filled["mean"])


def test_hidden_entries_are_measured_against_what_they_were(capsys):
    train(table(), "--epochs", "60", "--lr", "0.01")
    capsys.readouterr()
    assert main(["impute", "run", "--hide", "0.4", "--n", "40", "--out", "shown.png"]) == 0
    output = capsys.readouterr().out
    found = {name: float(value) for name, value in re.findall(r"^ *(.*?) +(-?[0-9.]+)$", output, re.MULTILINE)}
    error, plain = (found[name] for name in ("mean squared error of the means", "of the mean of the training data"))
    assert error < plain
    assert 0.3 < plain < 1.2  # the mean variance is 0.75
    vae, x = loaded(), torch.tensor(np.load("table.npy")).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:40]
    gone = hidden(x[order], "0.4", 0).isnan()
    decoded = vae.decoder(vae.prior().sample((100_000,))).base_dist  # a brute-force estimate, from the prior
    each = torch.stack([decoded.log_prob(row) for row in x[order]])
    whole, seen = (terms.sum(-1).double().logsumexp(-1) for terms in (each, each.masked_fill(gone[:, None], 0.0)))
    difference = (whole - seen).mean().item()
    assert found["log p(hidden | observed), nats per datum"] == pytest.approx(difference, abs=0.03)
    assert Path("shown.png").read_bytes()[1:4] == b"PNG"


def test_an_encoder_that_fills_in_missing_entries_itself_gets_them_as_they_are():
    torch.manual_seed(0)
    for network, itself in ((MLP, False), (FillMissing, True)):
        vae = VAE(priors.Normal(2), encoders.Normal(3, 2, network), decoders.Normal(2, 3))
        x = torch.tensor(with_gaps(table(30))).float()
        with_mean = Completion(by="encoder").of(vae, x, torch.full((3,), 5.0)).mean[0]
        assert torch.equal(with_mean, impute(vae.model, vae.guide, x, by="encoder").mean[0]) == itself


def test_entries_that_are_missing_in_the_test_data_are_not_measured(capsys):
    """A third of column 0 and of column 1 is missing in the run's own data."""
    train(with_gaps(table(60)), "--epochs", "1", "--decoder", "tests.runs.test_completion.MaskedNormal", *FILLING)
    capsys.readouterr()
    assert main(["impute", "run", "--hide", "0.5", "--n", "12", "--allow", "tests.runs.test_completion"]) == 0
    output = capsys.readouterr().out
    assert "nan" not in output
    assert "mean squared error of the means" in output


def test_halves_of_pictures_are_hidden():
    x = torch.zeros(2, 1, 4, 6)
    for what, (rows, columns) in {
        "upper": (slice(2), slice(None)),
        "lower": (slice(2, None), slice(None)),
        "left": (slice(None), slice(3)),
        "right": (slice(None), slice(3, None)),
    }.items():
        gone = hidden(x, what, seed=0).isnan()
        assert gone[:, :, rows, columns].all()
        assert gone.sum() == 24
    with pytest.raises(ValueError, match=r"shape \(4, 6, 3\) are no pictures with halves: .*channels first"):
        hidden(torch.zeros(2, 4, 6, 3), "left", seed=0)  # it would hide the first channel
    share = hidden(torch.zeros(1000, 10), "0.3", seed=1).isnan().double().mean().item()
    assert abs(share - 0.3) < 4 * (0.21 / 10_000) ** 0.5


def test_what_is_hidden_does_not_depend_on_the_values():
    """Fair pixels, made with the seed by which entries are hidden: half of the hidden ones are 1, as of the others."""
    grey = torch.full((100, 200), 0.5)
    with seeded(0, grey.device):
        made = [dynamic(grey), torch.rand_like(grey).round()]
    with seeded(noise_seed(0), grey.device):
        made += [dynamic(grey)]
    for x in made:
        gone = hidden(x, "0.5", seed=0).isnan()
        assert abs(x[gone].mean() - x[~gone].mean()).item() < 4 * (2 * 0.25 / 10_000) ** 0.5


def test_what_cannot_be_imputed_is_refused_in_one_line(capsys):
    train(table(40), "--epochs", "1")
    np.save("whole.npy", table(5))
    np.save("narrow.npy", np.full((4, 2), np.nan))
    np.save("empty.npy", np.full((4, 3), np.nan))
    np.savez("parts.npz", x_train=with_gaps(table(5)), x_test=table(5))
    np.save("gaps.npy", with_gaps(table(5)))
    for flags, words in {
        (): "give --data FILE with missing entries (NaN), or --hide lower to hide some of the test data",
        ("--data", "whole.npy"): "no entry of whole.npy is missing (NaN): --hide hides some",
        ("--data", "narrow.npy"): "has data of shape [2], but the run was trained on [3]",
        ("--data", "empty.npy"): "a part of the data has no observed entry",
        ("--data", "parts.npz"): "parts.npz holds x_test, x_train: save the data as one array x",
        ("--data", "digits"): "digits cannot have missing entries: give a .npy or .npz file",
        ("--data", "no.npy"): "no file no.npy",
        ("--data", "gaps.npy", "--out", "x.txt"): "--out x.txt must end in .npy, .npz, .csv, .png",
        ("--data", "gaps.npy", "--out", "gaps.npy"): "gaps.npy",
        ("--data", "gaps.npy", "--by", "magic"): "importance",
        ("--data", "gaps.npy", "--draws", "1"): "--draws must be at least 2, not 1",
        ("--data", "gaps.npy", "--samples", "3"): "--samples must be at least 20, not 3",
        ("--hide", "lower"): "are no pictures with halves: hide a share, such as 0.5",
        ("--hide", "1"): "is upper, lower, left, right, or a share above 0 and below 1, not '1'",
        ("--hide", "most"): "or a share above 0 and below 1, not 'most'",
        ("--hide", "nan"): "or a share above 0 and below 1, not 'nan'",
        ("--hide", "0.5", "--n", "0"): "--n must be at least 1, not 0",
        ("--hide", "0.5", "--out", "x.npy"): "must end in .png",
    }.items():
        assert words in refused(capsys, *flags), flags


def test_completions_are_drawn_in_columns():
    x = torch.linspace(0, 1, 3 * 16).reshape(3, 1, 4, 4)
    figure = plots.completions(x, x / 2, [x / 4] * 2, originals=1 - x)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    expected = torch.cat([1 - x, x, x / 2, x / 4, x / 4], -1)[:, 0].reshape(12, 20)
    np.testing.assert_allclose(shown, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"must have one shape \(n, \*shape\)"):
        plots.completions(x, x[:2], [x])


@pytest.mark.filterwarnings("ignore:the importance weights")
def test_a_file_of_another_scale_and_of_double_precision_keeps_its_observed_values(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(100, 2))
    np.save("train.npy", 100 * x)
    np.save("other.npy", np.where(np.arange(200).reshape(100, 2) % 7 == 0, np.nan, 10 * x))
    flags = ["--decoder", "Normal", "--latent-dim", "1", "--hidden", "8", "--epochs", "1", "--out", "run"]
    assert main(["train", "--data", "train.npy", "--scale", "100", *flags]) == 0
    flags = ["--data", "other.npy", "--scale", "10", "--samples", "30", "--draws", "2", "--out", "completed.csv"]
    assert main(["impute", "run", *flags]) == 0
    assert main(["impute", "run", *flags, "--scale", "0"]) == 2
    incomplete, completed = np.load("other.npy"), np.loadtxt("completed.csv", delimiter=",")
    assert np.isfinite(completed).all()
    assert (completed == incomplete)[~np.isnan(incomplete)].all()


def test_what_is_filled_in_has_more_digits_than_a_file_in_16_bits():
    """Its whole numbers are those of a file in 32 bits; a mean of 70,000 would be infinite in 16."""
    train(table(40), "--epochs", "1")
    whole = with_gaps(table(5)).round()
    for dtype in (np.float16, np.float32):
        np.save("gaps.npy", whole.astype(dtype))
        assert main(["impute", "run", "--data", "gaps.npy", "--samples", "30", "--out", f"{dtype.__name__}.npy"]) == 0
    half, single = np.load("float16.npy"), np.load("float32.npy")
    assert half.dtype == np.float32
    assert np.array_equal(half, single)


def test_a_single_datum_of_another_scale_is_refused(capsys):
    train(table(40), "--epochs", "1")
    np.save("one.npy", np.array([[255.0, np.nan, 100.0]]))
    assert "one.npy has values from 0 to 255, but run was trained on" in refused(capsys, "--data", "one.npy")
    np.save("one.npy", np.array([[0.01, np.nan, np.nan]]))  # which may be as small by chance
    assert main(["impute", "run", "--data", "one.npy", "--samples", "30"]) == 0


def test_an_infinite_entry_is_refused_in_one_line(capsys):
    train(table(40), "--epochs", "1")
    x = with_gaps(table(5))
    x[1] = np.inf
    np.save("gaps.npy", x)
    assert "the data hold inf at index (1, 0)" in refused(capsys, "--data", "gaps.npy")


def test_data_that_are_no_pictures_are_measured_without_one(capsys):
    """And the mean that they are compared with is named: it is that of named data, not of the training data."""
    x = np.random.default_rng(0).normal(size=(20, 2, 4, 4))
    train(x, "--epochs", "1")
    np.save("other.npy", x[:10] + 1)
    capsys.readouterr()
    assert main(["impute", "run", "--hide", "0.5", "--n", "2", "--samples", "30"]) == 0
    output = capsys.readouterr().out
    assert "  of the mean of the training data  " in output
    assert output.splitlines()[-1].startswith("no picture: data must have shape")
    assert "no picture" not in refused(capsys, "--hide", "0.5", "--samples", "30", "--out", "x.png")
    assert main(["impute", "run", "--data", "other.npy", "--hide", "0.5", "--samples", "30"]) == 0
    assert "  of the mean of their train part  " in capsys.readouterr().out


def test_a_completed_file_is_not_replaced_unless_it_is_named(capsys):
    train(table(60), "--epochs", "0")
    np.save("gaps.npy", with_gaps(table(6)))
    flags = ["--data", "gaps.npy", "--samples", "20", "--scale", "1"]
    assert main(["impute", "run", *flags]) == 0
    before = Path("gaps-completed.npy").read_bytes()
    assert "gaps-completed.npy exists, and would be replaced: name the file" in refused(capsys, *flags, "--seed", "1")
    assert Path("gaps-completed.npy").read_bytes() == before
    assert main(["impute", "run", *flags, "--seed", "1", "--out", "gaps-completed.npy"]) == 0
    assert Path("gaps-completed.npy").read_bytes() != before


def test_samples_have_the_units_of_the_data(capsys):
    """And are data of the run, which `evaluate --data` divides by its scale."""
    train(table() * 1000, "--epochs", "60", "--lr", "0.01", "--scale", "1000")
    for name in ("drawn.npy", "drawn.csv"):
        assert main(["sample", "run", "--n", "2000", "--out", name]) == 0
    drawn = np.load("drawn.npy")
    np.testing.assert_allclose(drawn.mean(0), 1000 * MEAN, atol=150)
    np.testing.assert_array_equal(np.loadtxt("drawn.csv", delimiter=","), drawn)
    capsys.readouterr()
    assert main(["evaluate", "run", "--data", "drawn.npy", "--samples", "30"]) == 0
    assert float(re.findall(r"bound .* (-[0-9.]+)$", capsys.readouterr().out, re.MULTILINE)[0]) > -4


def test_imputed_whole_numbers_are_whole_in_the_units_of_the_file():
    """Multiplied in double precision, 41/255 in single precision gives 41.0000006."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 20)).astype(float)
    np.save("gaps.npy", np.where(np.arange(20) % 2 == 0, np.nan, pixels))
    train(pixels, "--epochs", "1", "--decoder", "DiscretizedLogistic", "--scale", "255")
    assert main(["impute", "run", "--data", "gaps.npy", "--out", "filled.npz", "--by", "encoder"]) == 0
    draws = np.load("filled.npz")["draws"]
    np.testing.assert_array_equal(draws, draws.round())
    every = torch.arange(256) / torch.tensor(255.0)
    assert torch.equal(multiplied(every, 255), torch.arange(256).double())
    np.testing.assert_allclose(multiplied(torch.tensor([0.5, -2.0]), 1e300), [0.5e300, -2e300], rtol=1e-7)
    np.testing.assert_allclose(multiplied(torch.tensor([0.5, -2.0]), 1e-300), [0.5e-300, -2e-300], rtol=1e-7)


@pytest.mark.parametrize(
    ("flags", "lost"),
    [
        (["impute", "run", "--data", "gaps.npy", "--out", "table.npy"], "table.npy"),
        (["impute", "run", "--data", "gaps.npy", "--out", "run/metrics.csv"], "run/metrics.csv"),
        (["sample", "run", "--out", "run/metrics.csv"], "run/metrics.csv"),
        (["evaluate", "run", "--json", "run/evaluation.json"], "run/evaluation.json"),
    ],
)
def test_no_result_is_written_over_the_data_and_the_numbers_of_the_run(flags, lost, capsys):
    """Although `impute` reads other data, and the run's own are not read."""
    train(table(40), "--epochs", "1")
    np.save("gaps.npy", with_gaps(table(5)))
    Path("run/evaluation.json").write_text("{}")
    before = Path(lost).read_bytes()
    capsys.readouterr()
    assert main(flags) == 2
    assert "give another place" in capsys.readouterr().err
    assert Path(lost).read_bytes() == before


def test_no_picture_of_named_data_is_written_among_the_images_of_the_run(capsys):
    for folder in ("own", "named"):
        Path(folder).mkdir()
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 256, (4, 4), np.uint8)
            Image.fromarray(pixels).save(Path(folder, f"{number}.png"))
    flags = ["--binarize", "none", "--latent-dim", "1", "--hidden", "4", "--epochs", "1", "--out", "run"]
    assert main(["train", "--data", "own", *flags]) == 0
    assert main(["reconstruct", "run", "--data", "named", "--out", "own/picture.png"]) == 2
    assert "lies in the data" in capsys.readouterr().err
    assert len(list(Path("own").iterdir())) == 10
