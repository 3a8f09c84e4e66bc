"""`python -m benchmarks.published`: every config is read, every row starts, and a budget shortens the schedule."""

import sys
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.published import imputation, measures, run
from benchmarks.published.__main__ import main
from benchmarks.published.parts import in_stages
from benchmarks.published.recipe import FOLDER, Recipe, read, shortened
from benchmarks.published.rows import ROWS
from pyro_vae.data import Data
from pyro_vae.training import History

CONFIGS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
FEW = {  # what makes each measure quick
    measures.likelihood: {"samples": 2},
    measures.jackknife: {"samples": 4},
    measures.gap: {"samples": 2, "steps": 2, "starts": 1},
    measures.annealed: {"chains": 2, "steps": 2, "samples": 2},
    measures.bracket: {"chains": 2, "steps": 2},
    measures.imputation: {"samples": 10, "draws": 5},
}


def few_images(_):
    """Images of MNIST's shape, which are noise: enough for 3 steps of 200."""
    x = torch.rand(600, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return Data(x, x[:4].clone(), torch.arange(600) % 10, torch.arange(4))


def few(row):
    """Return a row whose measure takes few samples and data."""
    function = getattr(row.measure, "func", row.measure)
    return replace(row, measure=partial(function, **FEW.get(function, {})), most=4)


def test_every_config_is_read_and_belongs_to_a_row():
    assert {name for name, row in ROWS.items() if row.make is None} == {*CONFIGS}
    for name in CONFIGS:
        config = read(name)
        assert config.epochs >= 10
        assert config.data in ("mnist", "fashion-mnist")


@pytest.mark.parametrize("name", ["imputation", *(name for name in ROWS if name != "imputation")])
def test_a_row_starts_trains_and_is_measured(name):
    row = few(ROWS[name])
    recipe = row.recipe(name, few_images, epochs=1)
    recipe = recipe._replace(train=recipe.train[:20], settings=recipe.settings | {"batch_size": 10, "engine": "eager"})
    parameters = [value for module in modules_of(recipe) for value in module.parameters()]
    before = [value.detach().clone() for value in parameters]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # two samples say little of a likelihood
        history = recipe.fit()
        found, count = run.measured(row, recipe, history, deadline=0.0)
    assert not all(map(torch.equal, before, parameters))
    assert count == min(4, len(recipe.judged))
    assert all(values.isfinite().all() for values in found.values())
    assert row.key in found


def modules_of(recipe):
    return {id(program.__self__): program.__self__ for program in (recipe.model, recipe.guide)}.values()


def test_a_budget_shortens_the_epochs_and_the_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "ROWS", {"short-iwae-1": few(ROWS["short-iwae-1"])})
    monkeypatch.setattr(run, "seconds_per_epoch", lambda _: 60.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        line = run.run("short-iwae-1", few_images, minutes=4.1)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert len(cells) == len(run.HEADER)
    assert cells[5] == "3 of 667 epochs; 4 of 4 data measured"
    assert "missed by" in cells[3]  # noise is no MNIST
    assert cells[6] == "4.1 min"
    table = tmp_path / "table.md"
    for _ in range(2):
        run.append(table, line)
    assert table.read_text().splitlines()[2:] == [line, line]
    assert table.read_text().startswith("| row | number | published |")


def test_a_training_that_is_interrupted_adds_no_line(monkeypatch, tmp_path, capsys):
    def interrupted(_, **__):
        history = History()
        history.interrupted = True
        return history

    monkeypatch.setattr(run, "ROWS", {"imputation": few(ROWS["imputation"])})
    monkeypatch.setattr(run, "seconds_per_epoch", lambda _: 60.0)
    monkeypatch.setattr(Recipe, "fit", interrupted)
    monkeypatch.setattr(sys, "argv", ["published", "imputation", "--out", str(tmp_path / "table.md")])
    with pytest.raises(SystemExit) as exit_code:
        main()
    assert exit_code.value.code == 130
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "table.md").exists()


def test_a_trial_times_an_epoch():
    recipe = ROWS["practicum"].recipe("practicum", few_images)
    few_steps = recipe._replace(train=recipe.train[:8], settings=recipe.settings | {"batch_size": 2})
    assert 0 < run.seconds_per_epoch(few_steps) < 5


def test_measuring_ends_with_the_time():
    row = replace(few(ROWS["practicum"]), chunk=1, measure=lambda *_: {"test": torch.ones(1)})
    recipe = ROWS["practicum"].recipe("practicum", few_images)
    for deadline, count in ((0.0, 1), (float("inf"), 4)):
        assert run.measured(row, recipe, [], deadline)[1] == count


def test_a_shorter_schedule_has_a_shorter_warm_up_and_a_faster_fall_of_the_temperature():
    assert shortened(read("vampprior"), 50).warm_up == 5
    assert shortened(read("gumbel-20x10"), 5).options["encoder"]["anneal_steps"] == 3000
    assert shortened(read("gumbel-20x10"), 5).epochs == 5


def test_the_rate_falls_in_stages_that_are_three_times_as_long_as_the_ones_before():
    """Burda, Grosse and Salakhutdinov, 2016, section 5: 3^i epochs at 0.001 * 10^(-i/7), for i = 0 to 7."""
    rates = [0.001 * 10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.001)
    (factor,) = in_stages(3280)(optimizer).lr_lambdas
    assert [0.001 * factor(epoch) for epoch in range(3280)] == pytest.approx(rates)
    (factor,) = in_stages(328)(torch.optim.SGD([torch.zeros(1)], lr=0.001)).lr_lambdas
    assert [0.001 * factor(epoch) for epoch in range(328)] == pytest.approx(rates[::10])


def test_half_of_the_breast_cancer_data_is_missing_as_published():
    """Errors in the mean, by the standardized mean of the observed entries: 1.028, as measured with scikit-learn."""
    incomplete, complete = imputation.incomplete_and_complete().unbind(1)
    missing = incomplete.isnan()
    assert missing.sum() == 569 * 30 // 2
    assert torch.equal(incomplete[~missing], complete[~missing])
    means = np.broadcast_to(np.nanmean(incomplete.numpy(), 0), complete.shape)
    assert np.square(means - complete.numpy())[missing.numpy()].mean() == pytest.approx(1.028, abs=5e-4)


def test_a_published_number_is_reached_or_missed():
    row = ROWS["sphere"]
    assert run.held_against(row, {"-log p(x)": torch.tensor([93.0, 93.2])}) == "-log p(x) at most 93.16: reached"
    assert run.held_against(row, {"-log p(x)": torch.tensor([95.16])}) == "-log p(x) at most 93.16: missed by 2"
    assert run.in_words({"gap": torch.tensor([1.0, 3.0])}) == "gap 2.00 ± 1"


def test_data_that_are_missing_are_one_line(tmp_path, monkeypatch, capsys):
    command = ["published", "sphere", "--data-root", str(tmp_path / "none"), "--out", str(tmp_path / "table.md")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as exit_code:
        main()
    assert exit_code.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("sphere: no mnist under")
    assert error.count("\n") == 1
    assert not (tmp_path / "table.md").exists()


@pytest.mark.parametrize("arguments", [["sphere", "--all"], [], ["spher"], ["sphere", "--budget", "0"]])
def test_a_row_is_named_or_all(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["published", *arguments])
    with pytest.raises(SystemExit) as exit_code:
        main()
    assert exit_code.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m benchmarks.published: error: ")
