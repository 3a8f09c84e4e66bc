"""Evaluations that are kept in the folder of their run: interrupted, continued, and shown in its report."""

import json
import math
import os
import re
import shutil
import signal
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from pyro_vae.cli import main
from pyro_vae.diagnostics.likelihood import log_likelihood
from pyro_vae.runs import evaluation, measures
from pyro_vae.runs.report import PLACE
from pyro_vae.runtime.checkpoints import read_tensors, save_tensors

pytestmark = pytest.mark.usefixtures("blank_pictures")
TRAIN = ["train", "--epochs", "2", "--latent-dim", "3", "--hidden", "16", "--binarize", "dynamic", "--out", "run"]
EVALUATE = ["evaluate", "run", "--samples", "30", "--images", "3"]


@pytest.fixture(autouse=True)
def _run_in_an_empty_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(TRAIN) == 0
    capsys.readouterr()


def evaluated(capsys, *flags):
    """Return what an evaluation prints."""
    assert main([*EVALUATE, *flags]) == 0
    return capsys.readouterr().out


def refused(capsys, *flags):
    """Return the line in which an evaluation is refused."""
    assert main([*EVALUATE, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def kept():
    return json.loads(Path("run/evaluation.json").read_text())["measures"]


FEWER = {
    **{key: {"chains": 2, "steps": 5} for key in ("ais", "bdmc")},
    "inference_gap": {"samples": 30, "steps": 5, "starts": 1},
    "posterior_check": {"samples": 20, "warmup": 10},
}


def stop(*_, **__):
    raise KeyboardInterrupt


SIGNALS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130}


@pytest.fixture
def default_signals():
    """Handle signals as a new process does; under nohup, SIGHUP would be ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.filterwarnings("ignore:the importance weights")
@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_signal_stops_an_evaluation_in_one_line_and_what_is_measured_is_kept(number, code, capsys, monkeypatch):
    monkeypatch.setattr(measures.Measures, "codes", lambda _: os.kill(os.getpid(), number))
    assert main([*EVALUATE, "--codes"]) == code
    assert capsys.readouterr().err == "pyro-vae: stopped\n"
    assert [*kept()] == ["bound", "likelihood"]
    assert signal.getsignal(number) == signal.SIG_DFL
    main_in_thread = Thread(target=main, args=(["sample", "run"],))  # where signals cannot be handled
    main_in_thread.start(), main_in_thread.join()
    assert Path("run/sample-seed0.png").exists()


@pytest.mark.filterwarnings("ignore:the importance weights", "ignore:the chains of")
@pytest.mark.parametrize("flags", [["--codes"], ["--codes", "--ais", "--gaps", "--calibration", "--nuts"]])
def test_an_interrupted_evaluation_continues_to_the_same_numbers(flags, capsys, monkeypatch):
    for name, fewer in FEWER.items():
        monkeypatch.setattr(measures, name, partial(getattr(measures, name), **fewer))
    with monkeypatch.context() as patch:
        patch.setattr(measures.Measures, "gaps" if "--gaps" in flags else "codes", stop)
        assert main([*EVALUATE, *flags]) == 130
    begun = ["bound", "likelihood", "codes", "ais"] if "--gaps" in flags else ["bound", "likelihood"]
    assert [*kept()] == begun
    capsys.readouterr()
    with monkeypatch.context() as patch:
        for name in ("evaluate", "log_likelihood", "ais"):  # which have been measured
            patch.setattr(measures, name, stop)
        continued = evaluated(capsys, *flags, "--resume", "--json", "continued.json")
    assert continued == evaluated(capsys, *flags, "--json", "anew.json")
    assert Path("continued.json").read_text() == Path("anew.json").read_text()
    if "--gaps" in flags:
        found = json.loads(Path("anew.json").read_text())
        assert found["approximation_gap_error"] > found["ais_standard_error"] > 0  # it contains that of AIS


@pytest.mark.filterwarnings("ignore:the importance weights", "default:what was measured")
def test_what_was_measured_before_stays_if_weights_data_and_settings_are_the_same(capsys):
    evaluated(capsys, "--codes")
    evaluated(capsys)
    assert [*kept()] == ["bound", "likelihood", "codes"]
    evaluated(capsys, "--seed", "1")
    assert [*kept()] == ["bound", "likelihood"]
    assert "is of other seed, so that there is nothing to continue: leave out --resume" in refused(capsys, "--resume")
    assert main([*TRAIN[:1], "--resume", "run", "--epochs", "3"]) == 0
    capsys.readouterr()
    assert "is of other weights, so that" in refused(capsys, "--seed", "1", "--resume")


@pytest.mark.filterwarnings("ignore:the importance weights", "default:what was measured")
def test_what_took_long_is_set_aside_for_an_evaluation_with_other_settings(capsys):
    evaluated(capsys, "--codes")
    content = Path("run/evaluation.json").read_text()
    for number in (1, 2):
        assert main([*EVALUATE, "--seed", str(number)]) == 0
        (line,) = capsys.readouterr().err.splitlines()[:1]
        assert line == f"pyro-vae: what was measured with other seed is kept in run/evaluation-{number}.json"
        assert Path(f"run/evaluation-{number}.json").read_text() == content
        assert [*kept()] == ["bound", "likelihood"]  # which takes seconds, and is replaced
        os.replace(f"run/evaluation-{number}.json", "run/evaluation.json")
        assert "labels by a linear map" in evaluated(capsys, "--resume", "--codes")
        Path(f"run/evaluation-{number}.json").touch()


@pytest.mark.filterwarnings("ignore:the importance weights")
def test_a_file_that_is_too_large_is_not_read(capsys):
    evaluated(capsys)
    with open("run/evaluation.json", "ab") as file:
        file.write(b" " * 2**26)  # which changes nothing of its meaning
    assert "is no evaluation that could be continued" in refused(capsys, "--resume")


def entry(**other):
    good = {"figures": {"elbo": -1.0}, "words": "w", "each": {}, "pictures": []}
    return {"about": {}, "measures": {"bound": good | other}}


def save_labelled(name, labels):
    x = np.random.default_rng(0).integers(0, 256, (100, 2)).astype("u1")
    np.savez(name, x=x, y=labels(x))


@pytest.mark.filterwarnings("ignore:the importance weights")
def test_an_evaluation_of_other_labels_or_another_scale_is_not_continued(capsys):
    """Bytes are divided by the scale when a batch is made, and only codes are compared with labels."""
    save_labelled("first.npz", lambda x: x[:, 0] > 127)
    save_labelled("second.npz", lambda x: x[:, 1] > 127)
    train = ["--latent-dim", "1", "--hidden", "8", "--decoder", "Normal", "--epochs", "1", "--out", "labelled"]
    assert main(["train", "--data", "first.npz", "--scale", "255", *train]) == 0
    flags = ["evaluate", "labelled", "--samples", "30", "--data", "first.npz", "--scale", "255"]
    assert main(flags) == 0
    for other in (["--data", "second.npz"], ["--scale", "250"]):
        capsys.readouterr()
        assert main([*flags, *other, "--resume"]) == 2
        assert "is of other data, so that there is nothing to continue: leave out --resume" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:the importance weights")
def test_an_evaluation_of_other_best_weights_is_not_continued(capsys):
    """They may change while the last ones do not."""
    evaluated(capsys, "--best")
    path = Path("run/checkpoints/best.safetensors")
    tensors, head = read_tensors(path)
    save_tensors(path, {name: tensor + 0.01 for name, tensor in tensors.items()}, head["about"])
    assert "is of other weights, so that" in refused(capsys, "--best", "--resume")
    assert "with the weights of the lowest test loss" in Path("run/report.html").read_text()


@pytest.mark.filterwarnings("ignore:the importance weights", "default:what was measured")
def test_what_another_process_measures_meanwhile_is_kept(capsys, monkeypatch):
    evaluated(capsys, "--codes")
    other = Path("run/evaluation.json").read_text()
    evaluated(capsys, "--seed", "1")

    def after_the_other(*arguments, **settings):
        Path("run/evaluation.json").write_text(other)
        return log_likelihood(*arguments, **settings)

    monkeypatch.setattr(measures, "log_likelihood", after_the_other)
    evaluated(capsys)
    assert [*kept()] == ["bound", "likelihood", "codes"]


@pytest.mark.filterwarnings("ignore:the importance weights")
@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", "nonsense", "[" * 100_000, '{"about": 1, "measures": []}', '{"about": {}, "measures": 3}'),
        *map(
            json.dumps,
            [
                entry(figures={"elbo": "<script>"}),
                entry(figures={"elbo": True}),
                entry(figures=[1]),
                entry(words=3),
                entry(verdict=3),
                entry(pictures=[{}]),
                entry(pictures=3),
                entry(each={"estimate": 3}),
                entry(each={"estimate": ["x"]}),
                entry(more=3),
                entry(figures={"unknown": 1.0}),
                entry(figures={"elbo": 10**400}),
                entry(figures={}),
                entry(figures={"elbo": math.nan}),
                entry() | {"about": None},
                entry() | {"about": [1]},
            ],
        ),
    ],
)
def test_a_file_of_another_form_is_refused_or_replaced(content, capsys):
    path = Path("run/evaluation.json")
    path.write_text(content)
    assert "is no evaluation that could be continued: leave out --resume" in refused(capsys, "--resume")
    evaluated(capsys)
    assert [*kept()] == ["bound", "likelihood"]


@pytest.mark.parametrize("flag", ["codes", "draws", "calibration", "beside=run"])
def test_too_few_data_for_a_measure_are_refused_before_any_is_made(flag, capsys):
    np.save("few.npy", np.zeros((7, 1, 8, 8), np.float32))
    assert "at least 20" in refused(capsys, "--data", "few.npy", f"--{flag}")
    assert not Path("run/evaluation.json").exists()


def test_nothing_to_continue_is_said(capsys):
    assert "does not exist, so that there is nothing to continue: leave out --resume" in refused(capsys, "--resume")


@pytest.mark.filterwarnings("ignore:the importance weights")
def test_the_report_shows_each_measure_once_with_its_words(capsys):
    for flags in ([], ["--codes"], ["--codes", "--draws"]):
        evaluated(capsys, *flags)
    html = Path("run/report.html").read_text()
    headings = re.findall("<h3>(.*?)</h3>", html)
    assert headings == [evaluation.HEADINGS[name] for name in ("bound", "likelihood", "codes", "draws")]
    for name, found in kept().items():
        assert found["words"] in html.replace("&#x27;", "'"), name
        for value in found["figures"].values():
            assert f"<td>{evaluation.written(value)}</td>" in html
    assert html.index("Can these numbers be trusted?") < html.index("All epochs")
    assert main(["train", "--resume", "run", "--epochs", "3"]) == 0
    assert "<h3>" not in Path("run/report.html").read_text()  # as the weights are others


@pytest.mark.filterwarnings("ignore:the importance weights")
def test_a_folder_that_takes_no_files_is_evaluated_all_the_same(capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "takes_files", lambda _: False)
    before = Path("run/report.html").read_text()
    assert "log p(x), 30 samples" in evaluated(capsys)
    assert not Path("run/evaluation.json").exists()
    assert Path("run/report.html").read_text() == before


@pytest.mark.filterwarnings("ignore:the importance weights")
def test_links_in_the_folder_are_not_followed(capsys):
    for name in ("evaluation.json", "report.html"):
        Path(f"outside-{name}").write_text(f"of others {PLACE}")
        Path(f"run/{name}").unlink(missing_ok=True)
        Path(f"run/{name}").symlink_to(Path(f"outside-{name}").absolute())
    evaluated(capsys)
    for name in ("evaluation.json", "report.html"):
        assert Path(f"outside-{name}").read_text().startswith("of others")
    assert not Path("run/evaluation.json").is_symlink()


@pytest.mark.filterwarnings("ignore:the importance weights")
def test_a_datum_that_a_flow_sends_far_away_is_named(capsys):
    """Test datum 7 is 1e4 times as large as others; the network of the encoder is linear there."""
    x = np.random.default_rng(0).normal(size=(50, 2))
    flags = ["--decoder", "Normal", "--encoder", "Flow", "--latent-dim", "2", "--hidden", "8", "--epochs", "1"]
    for name, factor in (("usual", 1.0), ("strange", 1e4)):
        x[7] *= factor
        np.savez(f"{name}.npz", x_train=x[10:], x_test=x[:10])
        assert main(["train", "--data", f"{name}.npz", *flags, "--out", name]) == 0
        capsys.readouterr()
        assert main(["evaluate", name, "--samples", "5"]) == 0
        assert ("the flow sends test datum 7 to codes as far as" in capsys.readouterr().out) == (name == "strange")
    assert "The flow sends test datum 7" in Path("strange/report.html").read_text()


@pytest.mark.filterwarnings("ignore:the importance weights")
def test_codes_are_compared_with_those_of_another_run(capsys):
    """The means of another run are turned, which a linear map finds, and single dimensions do not show.

    In a third run one dimension has collapsed, and is left out.
    """
    train = [*TRAIN[:1], "--epochs", "20", "--latent-dim", "2", "--hidden", "32", "--lr", "0.003"]
    assert main([*train, "--out", "plain"]) == 0
    angle = math.pi / 4
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    for other, change in (("turned", turn), ("half", torch.diag(torch.tensor([1.0, 0.0])))):
        shutil.copytree("plain", other)
        tensors, head = read_tensors(path := Path(other) / "model.safetensors")
        for name in ("encoder.network.layers.2.weight", "encoder.network.layers.2.bias"):
            tensors[name][:2] = change @ tensors[name][:2]
        save_tensors(path, tensors, head["about"])
    flags, found = ["evaluate", "plain", "--samples", "2", "--json", "found.json"], {}
    for other in ("plain", "turned", "half"):
        assert main([*flags, "--beside", other]) == 0
        found[other] = json.loads(Path("found.json").read_text())
    assert found["plain"]["r_squared"] == pytest.approx(1, abs=1e-12)
    assert found["plain"]["mcc"] == pytest.approx(1, abs=1e-12)
    assert found["turned"]["r_squared"] > 0.98  # the means of 50 draws are noisy
    assert found["turned"]["mcc"] < 0.9
    assert found["half"]["r_squared"] > 0.98
    assert "The codes of the run half on the same data are predicted" in Path("plain/report.html").read_text()
    assert main([*train, "--beta", "100", "--out", "collapsed"]) == 0
    capsys.readouterr()
    assert main([*flags, "--beside", "collapsed"]) == 2
    assert "the other run has none" in capsys.readouterr().err
    np.save("other.npy", np.zeros((50, 1, 8, 8), "f4"))
    assert main([*TRAIN[:1], "--data", "other.npy", "--epochs", "1", "--out", "other"]) == 0
    capsys.readouterr()
    assert main([*flags, "--beside", "other"]) == 2
    assert "--beside takes a run on the same test data" in capsys.readouterr().err


def test_which_gap_is_larger_is_said_only_if_the_data_tell():
    """The mean of 0.5 to 1.5 is 3.5 standard errors from 0, that of -1 to 3 only 1.7."""
    assert measures._larger_gap(torch.linspace(0.5, 1.5, 3)).startswith("the network loses more: a larger one")
    assert measures._larger_gap(-torch.linspace(0.5, 1.5, 3)).startswith("the family loses more: another one")
    for unclear in (torch.linspace(-1, 3, 3), torch.ones(1)):
        assert "cannot be told from" in measures._larger_gap(unclear)


@pytest.mark.filterwarnings("ignore:the importance weights")
def test_a_renyi_bound_of_negative_order_is_not_called_a_lower_bound(capsys):
    """It lies above log p(x), of which the report said that no bound exceeds it."""
    assert main([*TRAIN, "--loss", "Renyi", "--loss.alpha", "-5", "--loss.num_particles", "50", "--out", "renyi"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "renyi", "--samples", "200", "--json", "found.json"]) == 0
    assert (
        "  with alpha below 0 this is no lower bound: compare log p(x), which it may exceed" in capsys.readouterr().out
    )
    report, found = Path("renyi/report.html").read_text(), json.loads(Path("found.json").read_text())
    assert found["loss"] == "Renyi"
    assert found["elbo"] > found["log_likelihood"]
    assert "never exceeds" not in report
    assert "compare log p(x), which it may exceed" in report


CHANGES = {
    (): "Training makes the bound as large as it can. It never exceeds log p(x) in the mean; the difference is how far",
    ("--beta", "4"): "the loss that it minimizes, the KL has the weight 4. It never exceeds log p(x) in the mean; the",
    ("--warm-up", "8"): "the loss that it minimizes, the KL has the weight 0.25. It",
    ("--loss", "FreeBits"): "the loss that it minimizes, the KL of each dimension counts as at least 0.1 nats. It",
    ("--loss", "BetaTC"): "the loss that it minimizes, the total correlation of the codes has the weight 6. It",
    ("--loss", "InfoVAE", "--beta", "2"): (
        "the loss that it minimizes, the KL has the weight 1, and the discrepancy between codes and prior 9, and all of"
        " this has the weight 2. It"
    ),
    ("--loss", "IWAE", "--loss.num_particles", "5"): (
        "Training makes this bound, that of IWAE(num_particles=5), as large as it can. It never exceeds log p(x) in the"
        " mean."
    ),
}


@pytest.mark.parametrize("flags", CHANGES, ids=lambda flags: flags[1] if flags else "elbo")
def test_the_words_about_the_bound_are_true_for_the_objective(flags, capsys):
    """\"Training makes the bound as large as it can\" was said of all of them."""
    assert main([*TRAIN[:-2], *flags, "--out", "other"]) == 0
    assert main(["evaluate", "other", "--samples", "10"]) == 0
    (words,) = re.findall("<h3>The bound</h3><p>(.*?)</p>", Path("other/report.html").read_text())
    assert CHANGES[flags] in words
    assert ("Training does not make it as large as it can" in words) == ("the loss that it" in CHANGES[flags])
    capsys.readouterr()


def test_points_have_no_bound(capsys):
    """A loss of -log p(x|z) - log p(z) was called a negative bound by the report, and a bound by reconstruct."""
    assert main([*TRAIN[:-2], "--encoder", "Delta", "--beta", "0", "--out", "points"]) == 0
    reason = "a point has no density, so that the KL stands for -log p(z), and the loss is no bound on log p(x)"
    assert reason in capsys.readouterr().out
    report = Path("points/report.html").read_text()
    assert reason in report
    assert "<span>loss, test</span>" in report
    assert "negative bound" not in report
    assert main(["reconstruct", "points", "--evaluate", "sample"]) == 0
    assert "evaluate=sample (no bound)" in capsys.readouterr().out
    assert main(["evaluate", "points"]) == 2
    assert "or the reconstruction alone (pyro_vae.evaluate, pyro-vae reconstruct)" in capsys.readouterr().err
