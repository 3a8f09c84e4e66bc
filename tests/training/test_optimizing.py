"""Optimizers, schedules of the learning rate, patience and loggers, against torch's and Pyro's own loops."""

import csv
import math
import sys
import threading
import types
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from pyro_vae import fit
from pyro_vae.runtime.checkpoints import Checkpoints, Stopped
from pyro_vae.training import Groups, PerStep, StopTraining, loggers

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
EPOCHS, STEPS = 6, 3


class Linear(nn.Module):
    """A model without latent sites, so that its loss has no noise; ``scale`` is a parameter of Pyro's."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            self.decoder, self.other = nn.Linear(1, 3), nn.Linear(1, 3)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.3)

    def model(self, x):
        pyro.module("vae", self)
        scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
        one = torch.ones(len(x), 1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.decoder(one) + self.other(one), scale).to_event(1), obs=x)

    def guide(self, x):
        pass


SGD = partial(torch.optim.SGD, lr=0.1)


def trained(optimizer=SGD, **how):
    pyro.clear_param_store()
    pair = Linear()
    history = fit(pair.model, pair.guide, X, **{"epochs": EPOCHS, "batch_size": 8} | how, optimizer=optimizer)
    return history, [*pair.parameters(), pyro.param("scale")]


def by_hand(optimizer, after_step=lambda *_: None, after_epoch=lambda *_: None, epochs=EPOCHS):
    """Train by torch alone: returns the parameters, and the rate and the mean loss of each epoch."""
    pyro.clear_param_store()
    pair, rows, order = Linear(), [], torch.Generator().manual_seed(0)
    scale = torch.zeros(3, requires_grad=True)  # of its logarithm
    named = dict(pair.named_parameters()) | {"scale": scale}
    optim, one = optimizer(named), torch.ones(8, 1)
    for _ in range(epochs):
        losses = []
        for rows_of in torch.randperm(len(X), generator=order).split(8):
            mean = pair.decoder(one) + pair.other(one)
            loss = -dist.Normal(mean, scale.exp()).log_prob(X[rows_of]).sum() / 8
            optim.zero_grad()
            loss.backward()
            optim.step()
            losses.append(loss.item())
            after_step(optim)
        rows.append((optim.param_groups[0]["lr"], sum(losses) / len(losses)))
        after_epoch(optim, rows[-1][1])
    return [*pair.parameters(), scale.exp()], rows


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-6)


# Optimizers


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adamax])
def test_a_class_of_torch_is_a_factory(kind):
    assert_same(trained(kind)[1], by_hand(lambda named: kind(named.values()))[0])


def test_an_optimizer_that_a_user_made_trains_its_parameters_alone():
    pair = Linear()
    optim = torch.optim.Adam(pair.decoder.parameters(), lr=0.1)
    before = [parameter.clone() for parameter in pair.other.parameters()]
    fit(pair.model, pair.guide, X, epochs=2, optimizer=optim)
    assert all(map(torch.equal, before, pair.other.parameters()))
    assert torch.equal(pyro.param("scale"), torch.ones(3))
    other = Linear()
    pyro.clear_param_store()
    fit(other.model, other.guide, X, epochs=2, optimizer=lambda _: torch.optim.Adam(other.decoder.parameters(), lr=0.1))
    assert all(map(torch.equal, pair.parameters(), other.parameters()))
    fit(pair.model, pair.guide, X, epochs=1, optimizer=optim)
    assert optim.state[pair.decoder.bias]["step"] == 3  # it goes on where it stood


def test_groups_have_settings_by_the_names_of_parameters():
    names = []

    def settings(name):
        names.append(name)
        return {"lr": 0.5} if name.startswith("vae.decoder") else {"lr": 0.02} if name == "scale" else {}

    def hand(named):
        fast = [value for name, value in named.items() if name.startswith("decoder")]
        slow = [value for name, value in named.items() if name.startswith("other")]
        return torch.optim.SGD(
            [{"params": fast, "lr": 0.5}, {"params": slow}, {"params": [named["scale"]], "lr": 0.02}], lr=0.1
        )

    ours = trained(Groups(partial(torch.optim.SGD, lr=0.1), settings))[1]
    assert names == ["vae.decoder.weight", "vae.decoder.bias", "vae.other.weight", "vae.other.bias", "scale"]
    assert_same(ours, by_hand(hand)[0])
    with pytest.raises(TypeError, match=r"the settings of a parameter must be a dict, such as .*, not 0\.1"):
        trained(Groups(torch.optim.SGD, lambda _: 0.1))


PYRO = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.1, "betas": (0.5, 0.9)}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.1, "clip_norm": 0.3, "lrd": 0.8, "weight_decay": 0.1}),
    "AdagradRMSProp": lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
    "clip_args": lambda: pyro.optim.SGD({"lr": 0.1}, {"clip_norm": 0.2, "clip_value": 0.05}),
    "by name": lambda: pyro.optim.SGD(lambda name: {"lr": 0.2 if name.endswith("bias") else 0.01}),
    "by module and name": lambda: pyro.optim.SGD(lambda module, name: {"lr": RATES.get((module, name), 0.01)}),
}
RATES = {("vae", "decoder.bias"): 0.2, ("scale", "scale"): 0.05}  # by what Pyro calls module and parameter


@pytest.mark.parametrize("name", PYRO)
def test_an_optimizer_of_pyro_trains_as_in_svi(name):
    """Programs that are scaled by 1 / B have SVI see the gradient of the mean, as fit does."""
    ours = trained(PYRO[name]())[1]
    pyro.clear_param_store()
    pair, order = Linear(), torch.Generator().manual_seed(0)
    svi = SVI(pyro.poutine.scale(pair.model, 1 / 8), pair.guide, PYRO[name](), Trace_ELBO())
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(X), generator=order).split(8):
            svi.step(X[rows])
    assert_same(ours, [*pair.parameters(), pyro.param("scale")])


def test_a_scheduler_of_pyro_steps_after_each_epoch():
    make = lambda: {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.2}, "gamma": 0.5}  # noqa: E731
    history, ours = trained(pyro.optim.ExponentialLR(make()))
    assert history.column("learning_rate") == [0.2, *(0.2 * 0.5**epoch for epoch in range(EPOCHS))]
    theirs, _ = by_hand(
        lambda named: torch.optim.SGD(named.values(), lr=0.2),
        after_epoch=lambda optim, _: optim.param_groups[0].update(lr=0.5 * optim.param_groups[0]["lr"]),
    )
    assert_same(ours, theirs)


REFUSED = {
    "other parameters": (torch.optim.SGD([torch.zeros(1, requires_grad=True)]), "holds none of the programs'"),
    "several optimizers": (pyro.optim.multi.MultiOptimizer(), "not <pyro.optim.multi.MultiOptimizer"),
    "clip_args": (pyro.optim.SGD({"lr": 0.1}, lambda *_: {}), "the clip_args of pyro.optim must be a dict"),
    "a name": ("adam", "optimizer must be a function or a class, not 'adam'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_optimizer_is_refused(name):
    optimizer, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        trained(optimizer)
    assert "\n" not in str(caught.value)


def test_an_optimizer_with_parameters_of_others_is_refused():
    pair = Linear()
    strange = torch.zeros(7, requires_grad=True)
    with pytest.raises(ValueError, match=r"holds 1 of 5 parameters that are not the programs', .* shape \(7,\)"):
        fit(pair.model, pair.guide, X, optimizer=torch.optim.SGD([*pair.parameters(), strange]))


def test_hooks_of_parameters_change_their_gradients_or_are_refused():
    """By the first kind, the only step takes off a tenth of 2; the second kind is called by backward alone."""
    pair = Linear()
    hook = pair.decoder.bias.register_hook(lambda gradient: torch.full_like(gradient, 2.0))
    how = {"epochs": 1, "optimizer": SGD}
    fit(pair.model, pair.guide, X, **how)
    torch.testing.assert_close(pair.decoder.bias.detach(), torch.full((3,), 0.1))
    hook.remove()
    pair.decoder.bias.register_post_accumulate_grad_hook(lambda _: None)
    with pytest.raises(ValueError, match=r"shape \(3,\) has a hook .* would not be called: .* by register_hook"):
        fit(pair.model, pair.guide, X, **how)


# Schedules

SCHEDULES = {
    "cosine": partial(CosineAnnealingLR, T_max=EPOCHS),
    "step": partial(StepLR, step_size=2, gamma=0.1),
    "exponential": partial(ExponentialLR, gamma=0.5),
    "per step": PerStep(partial(LinearLR, total_iters=EPOCHS * STEPS)),
    "one cycle": partial(OneCycleLR, max_lr=0.3, total_steps=EPOCHS * STEPS, cycle_momentum=False),
    "cyclic": partial(CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=4, cycle_momentum=False),
    "plateau": partial(ReduceLROnPlateau, factor=0.5, patience=0, threshold=0.1),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_steps_as_by_hand(name):
    made = []

    def sgd(named):
        optim = torch.optim.SGD(named.values(), lr=0.1)
        made[:] = [SCHEDULES[name](optim)]
        return optim

    each_step = name in ("per step", "one cycle", "cyclic")
    after_step = (lambda _: made[0].step()) if each_step else (lambda _: None)
    step = (lambda _, loss: made[0].step(loss)) if name == "plateau" else (lambda *_: made[0].step())
    theirs, rows = by_hand(sgd, after_step, (lambda *_: None) if each_step else step)
    history, ours = trained(schedule=SCHEDULES[name])
    assert_same(ours, theirs)
    torch.testing.assert_close(history.column("learning_rate")[1:], [rate for rate, _ in rows])
    assert len({round(rate, 9) for rate, _ in rows}) > 2


def test_a_plateau_is_one_of_the_test_loss_where_there_is_one():
    """The rates of the column are those that the rows' own test losses give."""
    history, _ = trained(partial(torch.optim.SGD, lr=0.4), schedule=SCHEDULES["plateau"], validation=X[:5], epochs=9)
    optim = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    scheduler, rates = SCHEDULES["plateau"](optim), []
    for row in history[1:]:
        rates.append(optim.param_groups[0]["lr"])
        scheduler.step(row["test_loss"])
    assert history.column("learning_rate")[1:] == rates
    assert rates[-1] < rates[0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_resumed_to_the_last_bit(name, tmp_path):
    whole, expected = trained(schedule=SCHEDULES[name], validation=X[:5])
    for after in (4, 9):
        keeper = Checkpoints(tmp_path / str(after))

        def stop(step, _, keeper=keeper, after=after):
            if step + 1 == after:
                keeper.stop()

        with pytest.raises(Stopped):
            trained(schedule=SCHEDULES[name], validation=X[:5], checkpoints=keeper, on_step=stop)
        history, ours = trained(schedule=SCHEDULES[name], validation=X[:5], resume=keeper.folder)
        assert all(map(torch.equal, ours, expected))
        assert history.column("learning_rate") == whole.column("learning_rate")
    with pytest.raises(ValueError, match="cannot resume: the checkpoint has scheduler="):
        trained(validation=X[:5], resume=keeper.folder)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_parameter_that_is_met_late_has_the_schedule_of_the_others(name):
    pyro.clear_param_store()
    pair, runs, made = Linear(), [], []

    def model(x):
        runs.append(1)
        scale = pyro.param("late", torch.ones(3)) if len(runs) > 15 else 1.0
        pair.model(x * scale)

    def sgd(parameters):
        made.append(torch.optim.SGD(parameters, lr=0.1))
        return made[0]

    fit(model, pair.guide, X, epochs=EPOCHS, batch_size=8, optimizer=sgd, schedule=SCHEDULES[name], engine="eager")
    (group,) = made[0].param_groups
    assert any(parameter is pyro.param("late").unconstrained() for parameter in group["params"])


def meet_late(optimizer, schedule=None, after=0):
    """Train with a module that is first used after so many runs in training, and return it with its first weight."""
    torch.manual_seed(0)
    pair, late, runs = Linear(), torch.nn.Linear(3, 3), []
    before = late.weight.detach().clone()

    def model(x):
        runs.extend([1] * torch.is_grad_enabled())
        if len(runs) > after:
            pyro.module("late", late)
        pair.model(late(x) if len(runs) > after else x)

    made = optimizer([*pair.parameters(), *late.parameters()])
    fit(model, pair.guide, X[:16], epochs=3, batch_size=8, optimizer=made, schedule=schedule, engine="eager")
    return late, before


HALVED = partial(StepLR, step_size=1, gamma=0.5)


@pytest.mark.parametrize(
    ("schedule", "share"), [(None, 1), (HALVED, 1 / 8), (partial(LambdaLR, lr_lambda=lambda epoch: 0.5**epoch), 1 / 8)]
)
def test_a_parameter_that_is_met_late_is_in_the_group_with_its_settings(schedule, share):
    """In epoch 2, after the rates have changed once."""
    made = []

    def sgd(groups):
        made.append(torch.optim.SGD(groups, lr=0.01))
        return made[0]

    groups = Groups(sgd, lambda name: {"lr": 0.02} if name == "scale" else {})
    meet_late(lambda _: groups, schedule, after=3)
    rates = {
        len(group["params"]): group["lr"] for group in made[0].param_groups
    }  # four of the module and two late ones
    assert rates == pytest.approx({6: 0.01 * share, 1: 0.02 * share})


def of_two_groups(_):
    return lambda parameters: torch.optim.SGD([{"params": [each], "lr": 0.01 * len(each)} for each in parameters])


@pytest.mark.parametrize(
    ("optimizer", "schedule", "message"),
    [
        (
            of_two_groups,
            None,
            "the SGD has . groups: use the parameter from the first batch on, or give pyro_vae.train",
        ),
        (
            lambda _: Groups(torch.optim.SGD, lambda name: {"lr": 1e-3 + ("late" in name)}),
            HALVED,
            "the schedule does not",
        ),
    ],
)
def test_a_parameter_that_is_met_late_and_belongs_to_no_group_is_refused(optimizer, schedule, message):
    with pytest.raises(ValueError, match=f"parameter 'late.weight' is first used in step 2, and {message}"):
        meet_late(optimizer, schedule, after=2)


@pytest.mark.parametrize("given", [False, True])
def test_a_parameter_that_is_met_late_and_that_the_optimizer_holds_is_trained_once_a_step(given):
    def sgd(parameters):
        optim = torch.optim.SGD(parameters, lr=0.01)
        return optim if given else lambda _: optim

    (early, start), (late, _) = meet_late(sgd, after=-1), meet_late(sgd)
    assert not torch.equal(early.weight, start)
    torch.testing.assert_close(late.weight, early.weight)


BAD_SCHEDULES = {
    "no fit": (partial(CyclicLR, base_lr=0.1, max_lr=0.2), "the schedule does not fit Adagrad: .*momentum"),
    "no schedule": (lambda _: 0.1, r"schedule must make a scheduler of the optimizer, as partial\(StepLR"),
    "a name": ("cosine", "schedule must be a function or a class, not 'cosine'"),
    "another's": (
        lambda _: StepLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), 1),
        "the schedule made a StepLR of another optimizer: use the optimizer",
    ),
    "too short": (
        partial(OneCycleLR, max_lr=0.1, total_steps=4, cycle_momentum=False),
        "the schedule ends before the training: Tried to step 5 times",
    ),
    "plateau per step": (
        PerStep(ReduceLROnPlateau),
        "ReduceLROnPlateau needs the loss of an epoch, not of a step: give it without PerStep",
    ),
}


@pytest.mark.parametrize("name", BAD_SCHEDULES)
def test_a_schedule_that_does_not_fit_is_refused(name):
    schedule, words = BAD_SCHEDULES[name]
    with pytest.raises((TypeError, ValueError), match=words):
        trained(torch.optim.Adagrad, schedule=schedule)


def test_two_schedules_are_refused():
    with pytest.raises(ValueError, match="the optimizer comes with a scheduler, StepLR: leave out one of the two"):
        trained(lambda ps: StepLR(torch.optim.SGD(ps, lr=0.1), 1), schedule=SCHEDULES["step"])


# Patience, and ends before the end


def test_patience_ends_behind_the_best_epoch_and_restores_it():
    """The test data are others, so that their loss falls, and then rises."""
    grows = partial(torch.optim.SGD, lr=0.3)
    history, ours = trained(grows, epochs=60, validation=X[:5] + 0.8, patience=3)
    losses = history.column("test_loss")[1:]
    best = losses.index(min(losses)) + 1
    assert len(history) - 1 == best + 3 < 60
    assert all(map(torch.equal, ours, trained(grows, epochs=best, validation=X[:5] + 0.8)[1]))
    with pytest.raises(ValueError, match="patience needs the test loss: give validation data"):
        trained(patience=2)
    with pytest.raises(ValueError, match="patience must be at least 1, not 0"):
        trained(patience=0, validation=X)


def test_patience_is_resumed(tmp_path):
    grows = partial(torch.optim.SGD, lr=0.3)
    settings = {"validation": X[:5] + 0.8, "patience": 3}
    history, expected = trained(grows, epochs=60, **settings)
    for epochs in (1, len(history) - 2):
        trained(grows, epochs=epochs, checkpoints=tmp_path / str(epochs), **settings)
        again, ours = trained(grows, epochs=60, resume=tmp_path / str(epochs), **settings)
        assert all(map(torch.equal, ours, expected))
        assert again.column("test_loss") == history.column("test_loss")
        after, ours = trained(grows, epochs=90, resume=tmp_path / str(epochs), **settings)
        assert len(after) == len(history)  # it has waited already
        assert all(map(torch.equal, ours, expected))


@pytest.mark.parametrize("where", ["on_step", "on_epoch"])
def test_a_callback_stops_a_training_which_returns_its_history(where):
    def stop(number, *_):
        if (number if where == "on_step" else number["epoch"]) == 4:
            raise StopTraining

    state = torch.get_rng_state()
    history, ours = trained(**{where: stop})
    assert [row["epoch"] for row in history] == list(range(2 if where == "on_step" else 5))
    assert torch.equal(torch.get_rng_state(), state)
    if where == "on_epoch":
        assert_same(ours, trained(epochs=4)[1])


def test_a_callback_may_stop_a_training_before_its_first_step():
    def stop(_):
        raise StopTraining

    history, ours = trained(on_epoch=stop)
    assert len(history) == 1
    assert_same(ours, trained(epochs=0)[1])


def test_a_callback_may_change_its_row(tmp_path):
    def on_epoch(row):
        row["mine"] = row.pop("epoch")

    trained(epochs=2, checkpoints=tmp_path, on_epoch=on_epoch)
    history, ours = trained(resume=tmp_path, on_epoch=on_epoch)
    assert history.column("epoch") == list(range(EPOCHS + 1))
    assert all(map(torch.equal, ours, trained()[1]))


def test_an_interrupted_training_returns_its_history():
    def interrupt(step, _):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.warns(RuntimeWarning, match=r"the training was interrupted in epoch 3, before step 9"):
        history, _ = trained(on_step=interrupt)
    assert [row["epoch"] for row in history] == [0, 1, 2]


# Loggers


def test_a_csv_file_holds_the_history(tmp_path):
    log = loggers.CSV(tmp_path / "history.csv")
    history, _ = trained(on_epoch=log.on_epoch)
    with open(tmp_path / "history.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows[0].keys() == history[0].keys()
    for row, expected in zip(rows, history, strict=True):
        assert all(value == expected[name] or math.isnan(value) for name, value in row.items())
    more = loggers.CSV(tmp_path / "history.csv", append=True)
    more.on_epoch(history[-1] | {"epoch": len(history)})
    assert len((tmp_path / "history.csv").read_text().splitlines()) == len(history) + 2


def test_a_csv_file_of_a_resumed_training_has_each_epoch_once(tmp_path):
    """Also after a crash, which comes later than the last checkpoint, perhaps in the middle of a line."""
    path = tmp_path / "history.csv"
    for epoch in range(4):
        loggers.CSV(path, append=True).on_epoch({"epoch": epoch, "train_loss": 9.0})
    with open(path, "a") as file:
        file.write("4")
    more = loggers.CSV(path, append=True)
    for epoch in (2, 3):
        more.on_epoch({"epoch": epoch, "train_loss": 1.0})
    assert path.read_text().split() == ["epoch,train_loss", "0,9.0", "1,9.0", "2,1.0", "3,1.0"]
    with pytest.raises(ValueError, match=r"history.csv has the columns \['epoch', 'train_loss'\], not \['epoch'\]"):
        loggers.CSV(path, append=True).on_epoch({"epoch": 4})


def test_tensorboard_and_mlflow_get_what_has_a_value(monkeypatch):
    """Stand-ins have the methods of each, as their documentation gives them."""
    seen = []

    class SummaryWriter:
        def __init__(self, folder):
            seen.append(folder)

        def add_scalar(self, tag, value, step):
            seen.append((tag, value, step))

        def flush(self):
            pass

    mlflow = types.SimpleNamespace(
        log_metrics=lambda metrics, step: seen.append((sorted(metrics), step)),
        log_metric=lambda name, value, step: seen.append((name, value, step)),
    )
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    for log in (loggers.TensorBoard("logs", every=5), loggers.MLflow(every=5)):
        seen.clear()
        history, _ = trained(on_epoch=log.on_epoch, on_step=log.on_step)
        known = [name for name in history[0] if name != "epoch" and not name.startswith("test")]
        if isinstance(log, loggers.TensorBoard):
            epochs = [each for each in seen if each[0].startswith("epoch/")]
            assert [tag for tag, _, step in epochs if step == 2] == [f"epoch/{name}" for name in known]
        else:
            assert [each for each in seen if isinstance(each[0], list)][2] == (sorted(known), 2)
        steps = [each for each in seen if each[0] in ("step/loss", "step_loss")]
        assert [step for *_, step in steps] == [0, 5, 10, 15]


@pytest.mark.parametrize("name", ["TensorBoard", "MLflow"])
def test_a_logger_that_is_not_installed_names_the_line(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-vae\[(tensorboard|mlflow)\]'"):
        getattr(loggers, name)(*["logs"] * (name == "TensorBoard"))


def test_progress_is_shown_where_it_is_asked_for(capsys):
    trained()
    assert capsys.readouterr().err == ""
    seen = []
    threads = threading.enumerate()
    trained(progress=True, on_step=lambda step, _: seen.append(step), on_epoch=lambda row: seen.append(row["epoch"]))
    assert threading.enumerate() == threads
    assert "epoch 6/6, train" in (shown := capsys.readouterr().err)
    assert "18/18" in shown
    assert len(seen) == 18 + 7


def test_a_comparison_and_a_run_that_are_interrupted_end_there(monkeypatch, tmp_path):
    """`fit` returns what it has measured; what is made of a whole training must not be made of a part."""
    from pathlib import Path

    from pyro_vae.diagnostics import comparison
    from pyro_vae.runs import run as runs
    from pyro_vae.runs.config import Config

    steps, step = [], torch.optim.Adam.step

    def interrupted(self, closure=None):
        steps.append(1)
        if len(steps) % 4 == 0:
            raise KeyboardInterrupt
        return step(self, closure)

    monkeypatch.chdir(tmp_path)
    run = runs.Run(Config(epochs=2, latent_dim=2, hidden=[4]), Path("run"))
    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    for whole in (run.train, lambda: comparison._time_fit(run.experiment.vae, run.experiment.data.train, 100, 0)):
        with pytest.warns(RuntimeWarning, match="the training was interrupted"), pytest.raises(KeyboardInterrupt):
            whole()
    assert not Path("run/report.html").exists()
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    runs.Run(Config(epochs=2, latent_dim=2, hidden=[4]), Path("run"), resume=True).train()
    assert Path("run/report.html").exists()
