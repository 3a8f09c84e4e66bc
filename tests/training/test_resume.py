import operator
import random
import time
import warnings
from datetime import datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from threading import Lock
from types import FunctionType
from uuid import uuid4

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, autoguide
from pyro.optim.adagrad_rmsprop import AdagradRMSProp
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, ExponentialLR, LambdaLR, SequentialLR

from pyro_vae import VAE, decoders, encoders, fit, networks, objectives, priors
from pyro_vae.data import EightBit
from pyro_vae.programs import noise
from pyro_vae.runtime.checkpoints import Checkpoints, Stopped, read_tensors, save_tensors
from pyro_vae.training import COLUMNS, StopTraining
from pyro_vae.training.descriptions import described
from pyro_vae.training.programs import Programs
from pyro_vae.training.state import State

SHAPE, COUNT, BATCH, EPOCHS = (1, 8, 8), 70, 16, 4  # 5 steps to an epoch, the last of 6 data
STEPS = 5 * EPOCHS


def normal():
    return VAE(priors.Normal(2), encoders.Normal(SHAPE, 2), decoders.Bernoulli(2, SHAPE, grey=True))


def batch_norm():
    """Buffers that change."""

    class Network(torch.nn.Sequential):
        def __init__(self, _, out_shape):
            size = torch.Size(out_shape).numel()
            super().__init__(
                torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, size)
            )
            self.out_shape = out_shape

        def forward(self, x):
            return super().forward(x).unflatten(-1, self.out_shape)

    return VAE(
        priors.VampPrior(encoder := encoders.Normal(SHAPE, 2, network=Network), 3),
        encoder,
        decoders.Bernoulli(2, SHAPE, grey=True),
    )


def annealed():
    """A temperature that falls from step to step."""
    encoder = encoders.RelaxedOneHotCategorical(
        SHAPE, 3, temperature=1.0, final_temperature=0.3, anneal_steps=12, straight_through=True
    )
    return VAE(priors.OneHotCategorical(3), encoder, decoders.Bernoulli((3, 10), SHAPE, grey=True))


def dropout():
    """Noise of the networks beside that of the sites."""
    network = lambda in_shape, out_shape: torch.nn.Sequential(torch.nn.Dropout(0.5), networks.MLP(in_shape, out_shape))  # noqa: E731
    encoder = encoders.Normal(SHAPE, 2, network=network)
    return VAE(priors.Normal(2), encoder, decoders.Bernoulli(2, SHAPE, grey=True))


CASES = {
    "normal": (normal, {}),
    "buffers": (batch_norm, {}),
    "temperature": (annealed, {}),
    "dropout": (dropout, {}),
    "warm-up and clipping": (normal, {"beta": objectives.linear_warm_up(12), "clip_norm": 1.0}),
    "bits drawn anew": (normal, {"transform": torch.bernoulli}),
    "plain Adam": (normal, {"optimizer": partial(torch.optim.Adam, lr=1e-2)}),
    "momentum": (normal, {"optimizer": partial(torch.optim.SGD, lr=1e-4, momentum=0.9, nesterov=True)}),
    "RMSprop": (normal, {"optimizer": partial(torch.optim.RMSprop, lr=1e-3, centered=True)}),
    "IWAE": (normal, {"loss": objectives.IWAE(3)}),
}


def pair(make):
    torch.manual_seed(0)
    return make(), torch.rand(COUNT, *SHAPE, generator=torch.Generator().manual_seed(0))


def train(make, **settings):
    """Train, and return all that a training leaves."""
    vae, x = pair(make)
    optims = []
    given = settings.pop("optimizer", partial(torch.optim.Adam, lr=1e-3, fused=True))

    def optimizer(parameters):
        optims.append(given(parameters))
        return optims[0]

    how = {"epochs": EPOCHS, "batch_size": BATCH, "validation": x[:20], "seed": 5} | settings
    history = fit(vae.model, vae.guide, x, optimizer=optimizer, **how)
    rows = [[row[name] for name in COLUMNS if name != "seconds"] for row in history]
    return rows, vae.state_dict(), optims[0].state_dict()["state"]


def same(one, other):
    """Whether two trainings are one, to the last bit."""
    (rows, weights, state), (rows_2, weights_2, state_2) = one, other
    assert rows == rows_2
    assert weights.keys() == weights_2.keys()
    assert all(torch.equal(weights[name], weights_2[name]) for name in weights)
    assert state.keys() == state_2.keys()
    for number, values in state.items():
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(state_2[number][name])), name


def stopped(make, folder, after, **settings):
    """Train until so many steps have been done."""
    keeper = Checkpoints(folder)

    def on_step(step, _):
        if step + 1 == after:
            keeper.stop()

    with pytest.raises(Stopped, match=f"before step {after}; checkpoint: .*last.safetensors"):
        train(make, checkpoints=keeper, on_step=on_step, **settings)


@pytest.mark.parametrize("engine", ["eager", "recorded"])
@pytest.mark.parametrize("name", CASES)
def test_a_resumed_training_is_the_one_that_was_never_stopped(name, engine, tmp_path):
    make, settings = CASES[name]
    settings = settings | {"engine": engine}
    whole = train(make, **settings)
    for after in (1, 7, 10, STEPS):  # within epochs, and at the end of one
        folder = tmp_path / str(after)
        stopped(make, folder, after, **settings)
        same(whole, train(make, resume=folder, **settings))


def test_a_training_stopped_twice_and_by_another_engine(tmp_path):
    whole = train(normal)
    stopped(normal, tmp_path, 3, engine="eager")
    stopped(normal, tmp_path, 12, engine="recorded", resume=tmp_path)
    same(whole, train(normal, resume=tmp_path, engine="eager"))


def test_a_finished_training_can_go_on_for_more_epochs(tmp_path):
    finished = train(normal, checkpoints=tmp_path)
    same(finished, train(normal, resume=tmp_path))
    same(train(normal, epochs=EPOCHS + 2), train(normal, resume=tmp_path, epochs=EPOCHS + 2))


def test_parameters_of_the_store_are_resumed(tmp_path):
    x = torch.randn(40, 3)

    def model(batch):
        scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
        with pyro.plate("data", len(batch)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, scale).to_event(1), obs=batch)

    def guide(batch):
        slope = pyro.param("slope", torch.ones(3))
        with pyro.plate("data", len(batch)):
            pyro.sample("z", dist.Normal(batch * slope, 0.5).to_event(1))

    def trained(**settings):
        pyro.clear_param_store()
        fit(model, guide, x, epochs=3, batch_size=8, **settings)
        return [pyro.param(name).detach().clone() for name in ("scale", "slope")]

    whole = trained()
    keeper = Checkpoints(tmp_path)
    with pytest.raises(Stopped):
        trained(checkpoints=keeper, on_step=lambda step, _: keeper.stop() if step == 6 else None)
    assert all(torch.equal(*values) for values in zip(whole, trained(resume=tmp_path), strict=True))
    pyro.clear_param_store()


# Programs of one's own, whose parameters stand in the store


class Store:
    """A model whose parameters stand in the store, and a guide with one of them; ``more`` runs in both."""

    training = True

    def __init__(self, names=("a", "b"), more=lambda _: 0.0, constraint=dist.constraints.real):
        self.names, self.more, self.constraint = names, more, constraint

    def model(self, batch):
        for name in self.names:  # the order of first use
            pyro.param(name, torch.ones(3), constraint=self.constraint)
        extra = self.more(self)
        with pyro.plate("data", len(batch)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            mean = 2 * pyro.param("a") - pyro.param("b") * z + extra
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=batch)

    def guide(self, batch):
        with pyro.plate("data", len(batch)):
            pyro.sample("z", dist.Normal(batch * pyro.param("slope", torch.ones(3)), 0.5).to_event(1))


def train_store(program, **settings):
    """Train from an empty store, and return all rows and parameters."""
    pyro.clear_param_store()
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    settings = {
        "epochs": 3,
        "batch_size": 8,
        "validation": x[:9],
        "optimizer": partial(torch.optim.Adam, lr=0.1),
    } | settings
    history = fit(program.model, program.guide, settings.pop("x", x), **settings)
    rows = [[row[name] for name in COLUMNS if name != "seconds"] for row in history]
    return rows, {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def stop_store(program, folder, after=7, **settings):
    keeper = Checkpoints(folder)
    with pytest.raises(Stopped):
        train_store(
            program,
            checkpoints=keeper,
            on_step=lambda step, _: keeper.stop() if step + 1 == after else None,
            **settings,
        )


def assert_same_store(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(value, other[1][name]) for name, value in one[1].items())


def only_in_training(_):
    """A parameter that is drawn where it is first met, in training mode alone."""
    if torch.is_grad_enabled():
        return pyro.param("late", lambda: torch.randn(3), constraint=dist.constraints.positive)
    return 0.0


def conditional(self):
    self.runs = getattr(self, "runs", 0) + 1
    return pyro.param("late", torch.zeros(3)) if self.runs > 25 else 0.0


def named_by_digits(_):
    return pyro.param("0", torch.zeros(3)) + pyro.param("1/exp_avg", torch.zeros(3))


@pytest.mark.parametrize("more", [lambda _: 0.0, only_in_training, named_by_digits], ids=["none", "training", "digits"])
def test_programs_with_parameters_of_the_store_are_resumed_to_the_last_bit(more, tmp_path):
    whole = train_store(Store(more=more))
    for after in (1, 7):
        stop_store(Store(more=more), tmp_path / str(after), after)
        assert_same_store(whole, train_store(Store(more=more), resume=tmp_path / str(after)))
    stop_store(Store(more=more), tmp_path / "twice", 3)
    stop_store(Store(more=more), tmp_path / "twice", 8, resume=tmp_path / "twice")
    assert_same_store(whole, train_store(Store(more=more), resume=tmp_path / "twice"))


@pytest.fixture
def any_programs(monkeypatch):
    """Programs are not compared."""
    monkeypatch.setattr(Programs, "described", lambda _: [""] * 5)


@pytest.mark.usefixtures("any_programs")
def test_parameters_of_one_shape_are_matched_by_name_whatever_the_order_of_their_first_use(tmp_path):
    whole = train_store(Store())
    stop_store(Store(), tmp_path)
    assert_same_store(whole, train_store(Store(names=("b", "a")), resume=tmp_path))


@pytest.mark.usefixtures("any_programs")
def test_a_parameter_that_is_met_late_is_in_its_own_checkpoint(tmp_path):
    """The program counts its runs from 0 again: the parameter keeps its value until it is met."""
    _, values = train_store(Store(more=conditional), checkpoints=tmp_path)
    assert not torch.equal(values["late"], torch.zeros(3))
    train_store(Store(more=conditional), resume=tmp_path, epochs=3)
    tensors, about = Checkpoints(tmp_path).read()
    assert torch.equal(tensors["param/late"], values["late"])
    assert {"optimizer/param/late/exp_avg", "optimizer/param/late/step"} <= set(tensors)
    assert about["constraints"]["late"] == "Real()"
    train_store(Store(more=lambda _: pyro.param("late", torch.ones(3))), resume=tmp_path, epochs=3)
    assert torch.equal(pyro.param("late"), values["late"])


@pytest.mark.usefixtures("any_programs")
@pytest.mark.parametrize(
    ("name", "value"),
    [("exp_avg", torch.zeros(())), ("exp_avg_sq", torch.zeros(1)), ("step", torch.zeros(3)), ("step", None)],
    ids=["no dimension", "one number", "a number for each", "missing"],
)
def test_the_state_of_a_parameter_that_is_met_late_is_held_against_it(name, value, tmp_path):
    """A fused optimizer would read and write outside of its memory."""
    optimizer = partial(torch.optim.Adam, lr=0.1, fused=True)
    train_store(Store(more=conditional), checkpoints=tmp_path, optimizer=optimizer)
    tensors, about = Checkpoints(tmp_path).read()
    crafted = tensors | {f"optimizer/param/late/{name}": value}
    save_tensors(Checkpoints(tmp_path).last, {key: each for key, each in crafted.items() if each is not None}, about)
    with pytest.raises(ValueError, match=r"the checkpoint's optimizer/0(/.*)? cannot be resumed from"):
        train_store(Store(more=conditional), resume=tmp_path, epochs=9, optimizer=optimizer)


def test_another_constraint_is_refused(tmp_path):
    stop_store(Store(), tmp_path)
    message = r"parameter 'a' has constraint Real\(\) there, and GreaterThan\(lower_bound=0.0\) here"
    with pytest.raises(ValueError, match=message):
        train_store(Store(constraint=dist.constraints.positive), resume=tmp_path)


def test_other_names_are_refused_by_name(tmp_path):
    stop_store(Store(), tmp_path)
    with pytest.raises(ValueError, match="the programs hold param/0, and the checkpoint does not"):
        train_store(Store(more=named_by_digits), resume=tmp_path)


@pytest.mark.parametrize(
    "loss",
    [
        partial(Trace_ELBO, num_particles=3, vectorize_particles=True),
        partial(TraceEnum_ELBO),
        partial(TraceMeanField_ELBO, num_particles=2, vectorize_particles=True),
    ],
    ids=["vectorized", "enumerated", "mean field"],
)
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_an_elbo_that_guesses_its_plates_is_resumed_to_the_last_bit(loss, tmp_path):
    whole = train_store(Store(), loss=loss())
    stop_store(Store(), tmp_path, loss=loss())
    assert_same_store(whole, train_store(Store(), resume=tmp_path, loss=loss()))


def test_the_running_means_of_a_baseline_are_resumed(tmp_path):
    """Of TraceGraph_ELBO, which keeps them in the store, out of the programs' sight."""

    class Bernoulli:
        def model(self, batch):
            with pyro.plate("data", len(batch)):
                z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
                pyro.sample("x", dist.Normal(z * pyro.param("a", torch.ones(3)), 1.0).to_event(1), obs=batch)

        def guide(self, batch):
            infer = {"baseline": {"use_decaying_avg_baseline": True}}
            with pyro.plate("data", len(batch)):
                logits = batch * pyro.param("slope", torch.ones(3))
                pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1), infer=infer)

    settings = {"loss": TraceGraph_ELBO(), "validation": None}
    names = []
    whole = train_store(Bernoulli(), on_step=lambda *_: names.extend(pyro.get_param_store()), **settings)
    stop_store(Bernoulli(), tmp_path, **settings)
    resumed = train_store(Bernoulli(), resume=tmp_path, **settings)
    assert any(name.startswith("__baseline") for name in names)
    assert str(whole) == str(resumed)  # rows hold NaN
    assert_same_store((0, whole[1]), (0, resumed[1]))


@pytest.mark.filterwarnings("ignore:.*requires_grad=False")
@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_what_is_frozen_or_thawed_on_the_way_is_resumed(engine, tmp_path):
    def run(**settings):
        vae, x = pair(normal)
        vae.encoder.network.layers[0].requires_grad_(False)
        keeper = settings.get("checkpoints")

        def on_step(step, _):
            if step == 3:
                vae.decoder.requires_grad_(False)
                vae.encoder.network.layers[0].requires_grad_(True)
            if step == 8 and keeper:
                keeper.stop()

        fit(vae.model, vae.guide, x, epochs=4, batch_size=BATCH, on_step=on_step, engine=engine, **settings)
        return vae.state_dict()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the step cannot be recorded")
        whole = run()
        with pytest.raises(Stopped):
            run(checkpoints=Checkpoints(tmp_path))
        resumed = run(resume=tmp_path)
    start, _ = pair(normal)
    first = "encoder.network.layers.0.weight"
    assert not torch.equal(whole[first], start.state_dict()[first])
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def noisy(scale):
    return lambda x: x + scale * torch.randn_like(x)


OTHERS = {
    "learning rate": (
        {"optimizer": partial(torch.optim.Adam, lr=0.2)},
        r"optimizer lr=0\.1, this call has optimizer lr=0\.2",
    ),
    "momenta": (
        {"optimizer": partial(torch.optim.Adam, lr=0.1, betas=(0.5, 0.9))},
        r"optimizer betas=\[0\.9, 0\.999\], this",
    ),
    "class": ({"optimizer": partial(torch.optim.AdamW, lr=0.1)}, "optimizer='Adam', this call has optimizer='AdamW'"),
    "scheduler": (
        {"optimizer": lambda ps: ExponentialLR(torch.optim.Adam(ps, lr=0.1), 0.5)},
        "scheduler=None, this call has scheduler='Exp",
    ),
    "transform": ({"transform": torch.sigmoid}, "transform=None, this call has transform='sigmoid"),
    "schedule": ({"beta": objectives.linear_warm_up(5)}, "beta=1.0, this call has beta='linear_warm_up.<locals>"),
    "data": ({"x": torch.zeros(40, 3)}, r"data='40 x \(3,\), sha256 \w+', this call has data='40 x \(3,\), sha256"),
    "validation": ({"validation": torch.zeros(9, 3)}, r"validation='9 x \(3,\), sha256 \w+', this call has"),
    "no validation": ({"validation": None}, r"this call has validation=None"),
    "particles": (
        {"loss": Trace_ELBO(num_particles=2)},
        r"loss='Trace_ELBO\(1\) .*', this call has loss='Trace_ELBO\(2\)",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_all_that_changes_the_numbers_is_compared(name, tmp_path):
    change, message = OTHERS[name]
    stop_store(Store(), tmp_path)
    with pytest.raises(
        ValueError, match=f"^cannot resume: the checkpoint has {message}" if "=" in message[:12] else message
    ):
        train_store(Store(), resume=tmp_path, **change)


class Slots:
    """A transform without a dictionary."""

    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return self.scale * x


def called(call):
    """An object whose class has this code."""
    return type("Transform", (), {"__call__": call, "__module__": "theirs"})()


def again(x):
    return again(x) if x is None else x


MADE = {
    "slots": (lambda: Slots(1.0), lambda: Slots(2.0)),
    "method of a builtin type": (lambda: torch.ones(3).mul, lambda: torch.full((3,), 2.0).mul),
    "class": (lambda: called(lambda _, x: x), lambda: called(lambda _, x: 2 * x)),
    "pickled": (lambda: operator.itemgetter(slice(1)), lambda: operator.itemgetter(slice(2))),
    "no module": (lambda: partial(torch.Tensor.mul, other=1.0), lambda: partial(torch.Tensor.mul, other=2.0)),
    "several": (lambda: [noisy(k) for k in range(50)], lambda: [noisy(min(k, 48)) for k in range(50)]),
}


@pytest.mark.parametrize("name", MADE)
def test_objects_of_one_class_are_told_apart_by_what_they_hold(name):
    one, other = MADE[name]
    assert described(one()) == described(one())
    assert described(one()) != described(other())


def test_a_module_with_a_hook_is_the_same_whatever_the_number_of_hooks_before():
    def hooked():
        layer = torch.nn.Linear(2, 2)
        layer.register_forward_hook(again)
        layer.register_forward_pre_hook(again)
        return layer

    def digest():
        torch.manual_seed(0)
        return described(hooked())

    assert digest() == digest()


def test_a_description_names_no_address():
    known = described([again, again]), described(again)
    code = again.__code__
    globals_of_another = {"again": None}
    another = FunctionType(code, globals_of_another, "again")
    another.__module__, globals_of_another["again"] = again.__module__, another
    assert (described([another, another]), described(another)) == known


def test_functions_of_one_name_are_told_apart_by_their_code_and_what_they_close_over(tmp_path):
    stop_store(Store(), tmp_path, transform=noisy(0.1), beta=objectives.linear_warm_up(5))
    with pytest.raises(ValueError, match=r"transform='noisy.<locals>.<lambda> .*', this call has transform='noisy"):
        train_store(Store(), resume=tmp_path, transform=noisy(0.2), beta=objectives.linear_warm_up(5))
    with pytest.raises(ValueError, match=r"beta='linear_warm_up.<locals>.<lambda> .*', this call has beta='linear"):
        train_store(Store(), resume=tmp_path, transform=noisy(0.1), beta=objectives.linear_warm_up(6))
    train_store(Store(), resume=tmp_path, transform=noisy(0.1), beta=objectives.linear_warm_up(5))


SCHEDULES = {
    "exponential": lambda ps: ExponentialLR(torch.optim.Adam(ps, lr=0.1), 0.5),
    "lambda": lambda ps: LambdaLR(torch.optim.SGD(ps, lr=1e-3, momentum=0.9), lambda epoch: 1 / (1 + epoch)),
    "cosine": lambda ps: CosineAnnealingLR(torch.optim.Adam(ps, lr=0.1), 4),
    "one after another": lambda ps: SequentialLR(
        optim := torch.optim.Adam(ps, lr=0.1), [ConstantLR(optim, 0.1, 1), ExponentialLR(optim, 0.5)], [1]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_the_learning_rate_is_resumed_to_the_last_bit(name, tmp_path):
    whole = train_store(Store(), optimizer=SCHEDULES[name])
    for after in (3, 10, 12):
        stop_store(Store(), tmp_path / str(after), after, optimizer=SCHEDULES[name])
        assert_same_store(whole, train_store(Store(), resume=tmp_path / str(after), optimizer=SCHEDULES[name]))


def test_a_learning_rate_that_is_a_tensor_is_resumed_as_one(tmp_path):
    made = []

    def optimizer(parameters):
        rates = {"lr": torch.tensor(0.02), "betas": (torch.tensor(0.9), torch.tensor(0.99))}
        made.append(torch.optim.Adam(parameters, **rates, foreach=False))
        return made[-1]

    whole = train_store(Store(), optimizer=optimizer)
    stop_store(Store(), tmp_path, optimizer=optimizer)
    assert_same_store(whole, train_store(Store(), resume=tmp_path, optimizer=optimizer))
    for optim in made:
        assert str([optim.param_groups[0]["lr"], *optim.param_groups[0]["betas"]]) == (
            "[tensor(0.0200), tensor(0.9000), tensor(0.9900)]"
        )


@pytest.mark.parametrize("settings", [{"lr": 0.3}, {"amsgrad": True}, {"name": "first"}], ids=str)
def test_groups_of_an_optimizer_are_resumed(settings, tmp_path):
    """They may differ in what is no number, and one may have settings that others lack."""

    def optimizer(parameters):
        first, *rest = parameters
        return torch.optim.Adam([{"params": rest}, {"params": [first], **settings}], lr=0.01)

    whole = train_store(Store(more=only_in_training), optimizer=optimizer)
    stop_store(Store(more=only_in_training), tmp_path, optimizer=optimizer)
    assert_same_store(whole, train_store(Store(more=only_in_training), resume=tmp_path, optimizer=optimizer))


def test_two_parameters_of_one_name_are_refused_where_they_are_kept(tmp_path):
    def on_step(step, _):
        if step == 2:  # makes another tensor of it
            pyro.get_param_store()["a"] = torch.zeros(3)

    train_store(Store(), on_step=on_step)
    with pytest.raises(ValueError, match=r"two parameters of the programs are called 'a': give each a name of its own"):
        train_store(Store(), on_step=on_step, checkpoints=tmp_path)


# The folder


def test_a_new_training_over_an_old_one_is_refused(tmp_path):
    train_store(Store(), checkpoints=tmp_path / "old")
    with pytest.raises(
        ValueError, match=r"old already holds the checkpoint of a training: continue it by resume='.*old'"
    ):
        train_store(Store(), checkpoints=tmp_path / "old")
    train_store(Store(), checkpoints=tmp_path / "new")
    with pytest.raises(ValueError, match="new already holds the checkpoint of a training"):
        train_store(Store(), checkpoints=tmp_path / "new", resume=tmp_path / "old")
    train_store(Store(), checkpoints=tmp_path / "old", resume=tmp_path / "old")


def test_two_trainings_do_not_write_to_one_folder(tmp_path):
    def second(_):
        with pytest.raises(ValueError, match=r"another training writes to .*: wait for it, or give another folder"):
            train_store(Store(), checkpoints=tmp_path, epochs=1)
        raise StopTraining

    train(normal, checkpoints=tmp_path, on_step=lambda step, _: second(step))
    train(normal, checkpoints=tmp_path, resume=tmp_path, epochs=1)  # the lock has gone with the first one


def test_fewer_epochs_than_a_checkpoint_has_begun_are_refused(tmp_path):
    """The programs are behind them, and a history of as many rows would not be theirs."""
    stopped(normal, tmp_path, 12)  # in epoch 3
    for epochs in (0, 2):
        with pytest.raises(ValueError, match=f"has begun epoch 3: epochs must be at least 3, not {epochs}"):
            train(normal, resume=tmp_path, epochs=epochs)
    rows, *_ = train(normal, resume=tmp_path, epochs=3)
    assert len(rows) == 4


def test_a_checkpoint_that_says_it_is_of_something_else_is_not_resumed(tmp_path):
    stopped(normal, tmp_path, 3)
    train(normal, epochs=1, checkpoints=Checkpoints(tmp_path / "of", identity={"fold": 1}))
    with pytest.raises(ValueError, match=r"last.safetensors is of another run: it has fold 1, this run has fold 2"):
        train(normal, checkpoints=Checkpoints(tmp_path / "of", identity={"fold": 2}), resume=tmp_path / "of")


def waiting(**settings):
    """Train with patience, at a rate so large that the test loss rises again."""
    return train(normal, optimizer=partial(torch.optim.Adam, lr=0.3), epochs=9, patience=3, **settings)


@pytest.mark.parametrize(
    "what", ["as it was", "missing", "of another shape", "of another training", "of a higher test loss"]
)
def test_the_best_parameters_that_patience_goes_back_to_are_those_of_the_checkpoint(what, tmp_path):
    whole = waiting()
    keeper, last = Checkpoints(tmp_path), 5 * (len(whole[0]) - 1)
    with pytest.raises(Stopped):
        waiting(checkpoints=keeper, on_step=lambda step, _: step + 2 == last and keeper.stop())
    if what == "as it was":
        same(waiting(resume=tmp_path), whole)
        return
    tensors, head = read_tensors(keeper.best)
    if what == "missing":
        keeper.best.unlink()
    elif what == "of another shape":
        save_tensors(keeper.best, {name: tensor[..., :1] for name, tensor in tensors.items()}, head["about"])
    elif what == "of another training":
        waiting(checkpoints=tmp_path / "other", seed=7)
        Checkpoints(tmp_path / "other").best.rename(keeper.best)
    else:
        save_tensors(keeper.best, tensors, head["about"] | {"test_loss": 1e9})
    words = {
        "missing": "no file .*best.safetensors; take the one",
        "of another shape": "cannot be resumed from",
        "of another training": "best.safetensors is of another run: it has seed 7, this run has seed 5",
    }
    with pytest.raises(ValueError, match=words.get(what, "has test_loss 1000000000.0, but the lowest one so far is")):
        waiting(resume=tmp_path)


def test_what_keeps_one_training_keeps_the_next(tmp_path):
    """It has been asked to stop once, and its best parameters are those of each training."""
    keeper, whole = Checkpoints(tmp_path / "one"), train(normal)
    with pytest.raises(Stopped):
        train(normal, checkpoints=keeper, on_step=lambda step, _: step == 7 and keeper.stop())
    same(train(normal, checkpoints=keeper, resume=keeper.folder), whole)
    rmtree(keeper.folder)
    train(normal, checkpoints=keeper, optimizer=partial(torch.optim.Adam, lr=1e-5))  # which remains at a higher loss
    assert keeper.best.exists()


@pytest.mark.parametrize(("of", "at"), [("on_epoch", 2), ("on_step", 12)])
def test_a_training_that_ends_by_itself_is_kept_as_it_is(of, at, tmp_path):
    def end(number, *_):
        if (number["epoch"] if of == "on_epoch" else number + 1) == at:
            raise StopTraining

    keeper = Checkpoints(tmp_path, minutes=1e9)
    keeper.due = lambda **_: False
    _, weights, _ = train(normal, checkpoints=keeper, **{of: end})
    tensors, _ = read_tensors(keeper.last)
    assert all(torch.equal(tensors[f"parameter/{name}"], weights[name]) for name in weights)
    same(train(normal, resume=tmp_path), train(normal))


def test_the_best_parameters_are_those_of_the_best_row(tmp_path):
    """The learning rate is so large that the test loss rises again."""
    settings = {"optimizer": partial(torch.optim.Adam, lr=0.3), "epochs": 8}
    rows, *_ = train(normal, checkpoints=tmp_path, **settings)
    losses = [row[COLUMNS.index("test_loss")] for row in rows]
    best = min(range(1, 9), key=losses.__getitem__)
    assert 0 < best < 8
    tensors, head = read_tensors(tmp_path / "best.safetensors")
    assert (head["about"]["test_loss"], head["about"]["of"]) == (losses[best], {})
    _, weights, _ = train(normal, **settings | {"epochs": best})
    assert all(torch.equal(tensors[f"parameter/{name}"], weights[name]) for name in weights)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 8}, "checkpoint has batch_size=16, this call has batch_size=8"),
        ({"seed": 6}, "^cannot resume: the checkpoint has seed=5, this call has seed=6$"),
        ({"clip_norm": 1.0}, "has clip_norm=None, this call has clip_norm=1.0"),
        ({"beta": 2.0}, "has beta=1.0, this call has beta=2.0"),
        ({"loss": objectives.IWAE(2)}, r"has loss='Trace_ELBO\(1\) .*', this call has loss='IWAE"),
        ({"precision": "bf16-mixed"}, "has precision='32', this call has precision='bf16-mixed'"),
        ({"optimizer": torch.optim.Adagrad}, "has optimizer='Adam', this call has optimizer='Adagrad'"),
    ],
)
def test_another_training_is_refused_by_what_differs(change, message, tmp_path):
    stopped(normal, tmp_path, 3)
    with pytest.raises(ValueError, match=message):
        train(normal, resume=tmp_path, **change)


def test_another_default_precision_is_refused(tmp_path, request):
    stopped(normal, tmp_path, 3)
    vae, x = pair(normal)
    request.getfixturevalue("float64")
    with pytest.raises(ValueError, match=r"has default_dtype='torch.float32', this call has .*'torch.float64'"):
        fit(vae.model, vae.guide, x, batch_size=BATCH, validation=x[:20], seed=5, resume=tmp_path)


def test_other_programs_are_refused_by_what_differs(tmp_path):
    stopped(normal, tmp_path, 3)

    def wider():
        encoder = encoders.Normal(SHAPE, 2, network=partial(networks.MLP, hidden=[5]))
        return VAE(priors.Normal(2), encoder, decoders.Bernoulli(2, SHAPE, grey=True))

    with pytest.raises(ValueError, match=r"checkpoint's parameter/encoder.* differ: torch.float32 \(400"):
        train(wider, resume=tmp_path)
    with pytest.raises(ValueError, match=r"the checkpoint holds buffer/prior.loc, and the programs do not"):
        train(batch_norm, resume=tmp_path)


def test_a_checkpoint_changes_nothing(tmp_path):
    same(train(normal), train(normal, checkpoints=Checkpoints(tmp_path, minutes=1e-9)))


def test_modules_in_closures_are_resumed_with_their_buffers(tmp_path):
    def run(epochs, **kwargs):
        vae, x = pair(batch_norm)
        fit(lambda x: vae.model(x), lambda x: vae.guide(x), x, epochs=epochs, batch_size=BATCH, **kwargs)
        return vae.state_dict()

    whole = run(4)
    run(2, checkpoints=tmp_path)
    resumed = run(4, resume=tmp_path)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_another_scale_of_the_same_bytes_is_refused(tmp_path):
    values = torch.arange(60, dtype=torch.uint8).reshape(20, 3)
    vae = VAE(priors.Normal(2), encoders.Normal(3, 2), decoders.Normal(2, 3))
    fit(vae.model, vae.guide, EightBit(values), epochs=1, batch_size=20, checkpoints=tmp_path)
    for other in (EightBit(values, 254.5), values):
        with pytest.raises(ValueError, match=r"data='20 x \(3,\) / 255.0, sha256 (\w+)', this call has data=.* \1'"):
            fit(vae.model, vae.guide, other, epochs=2, batch_size=20, resume=tmp_path)


@pytest.mark.parametrize("resume", [False, True])
def test_a_training_that_ends_while_another_begins_is_not_overwritten(resume, tmp_path, monkeypatch):
    """Between a training's first look at a folder and its lock there is all that it checks."""
    module = import_module("pyro_vae.training.fit")
    held, x = module.held, torch.zeros(8, 3)
    vae = VAE(priors.Normal(2), encoders.Normal(3, 2), decoders.Normal(2, 3))
    how = {"batch_size": 4, "engine": "eager"}
    if resume:
        fit(vae.model, vae.guide, x, epochs=1, checkpoints=tmp_path, **how)

    def after_another(*given):
        monkeypatch.setattr(module, "held", held)
        fit(vae.model, vae.guide, x, epochs=5, **{"resume" if resume else "checkpoints": tmp_path}, **how)
        return held(*given)

    monkeypatch.setattr(module, "held", after_another)
    if resume:
        with pytest.raises(ValueError, match="has begun epoch 5: epochs must be at least 5, not 2"):
            fit(vae.model, vae.guide, x, epochs=2, resume=tmp_path, **how)
    else:
        with pytest.raises(ValueError, match="already holds the checkpoint of a training"):
            fit(vae.model, vae.guide, x, epochs=2, checkpoints=tmp_path, **how)
    assert read_tensors(tmp_path / "last.safetensors")[1]["about"]["epoch"] == 6


# Programs that compute something else


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, z):
        return self.scale * z


def program(prior=None, decode=lambda z: z, default=1.0, constant=None):
    """A model that holds its parts in a closure, a default and a tensor, and its guide."""
    prior, constant = prior or dist.Normal(torch.zeros(3), 1.0), torch.ones(3) if constant is None else constant

    def model(x, scale=default):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior.to_event(1))
            mean = decode(z) + constant * pyro.param("a", torch.zeros(3))
            pyro.sample("x", dist.Normal(mean, scale).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * pyro.param("b", torch.ones(3)), 0.5).to_event(1))

    return model, guide


def cached(scale):
    return dist.transforms.AffineTransform(0.0, float(scale), cache_size=1)


def scaled(scale):
    model, guide = program()
    return poutine.scale(model, scale), guide


def dropped(p):
    return program(decode=torch.nn.Dropout(p))


def fixed(seed):
    model, guide = program()
    return model, noise.Fixed(seed)(guide)


PROGRAMS = {
    "distribution": lambda k: program(prior=dist.Normal(torch.zeros(3), k)),
    "closure": lambda k: program(decode=(lambda scale: lambda z: scale * z)(k)),
    "code": lambda k: program(decode=(lambda z: z + 1) if k == 1 else (lambda z: z - 1)),
    "attribute": lambda k: program(decode=Scaled(k)),
    "module": lambda k: dropped(0.1 * k),
    "default": lambda k: program(default=k),
    "tensor": lambda k: program(constant=torch.full((3,), float(k))),
    "partial": lambda k: (partial(program()[0], scale=float(k)), program()[1]),
    "scale": scaled,
    "noise": fixed,
    "list": lambda k: program(decode=(lambda scales: lambda z: scales[1] * z)([1.0, k])),
    "cached": lambda k: program(prior=dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0), [cached(k)])),
}


def fit_programs(programs, epochs, clear=True, **settings):
    if clear:
        pyro.clear_param_store()
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    return fit(*programs, x, epochs=epochs, batch_size=10, **settings)


@pytest.mark.parametrize("kind", PROGRAMS)
def test_programs_that_compute_something_else_are_refused_and_equal_ones_resumed(kind, tmp_path):
    make = PROGRAMS[kind]
    fit_programs(make(1.0 if kind != "noise" else 1), 1, checkpoints=tmp_path)
    what = r"('(\w+\.)*\w+', which it holds,|its code, or a value that it holds,) differs"
    with pytest.raises(ValueError, match=rf"cannot resume: the (model|guide) is not the checkpoint's: {what}"):
        fit_programs(make(2), 2, resume=tmp_path)
    fit_programs(make(1.0 if kind != "noise" else 1), 2, resume=tmp_path)


@pytest.mark.parametrize(
    ("held", "name"),
    [
        (lambda: {"started": time.time()}, "decode.about.started"),
        (lambda: {"runs": {"at": datetime.now()}}, "decode.about.runs"),
        (lambda: {"run": uuid4()}, "decode.about.run"),
        (lambda: {"folder": hashed(Path("here")), "function": lambda x: x, "lock": Lock()}, None),
    ],
    ids=["a time", "a date", "an identifier", "no number"],
)
def test_a_value_that_differs_is_named_and_what_changes_no_number_is_left_alone(held, name, tmp_path):
    def make(held):
        scaled = Scaled(2.0)
        scaled.about = held
        return program(decode=scaled)

    fit_programs(make(held()), 1, checkpoints=tmp_path)
    if name is None:
        fit_programs(make(held()), 2, resume=tmp_path)
    else:
        with pytest.raises(
            ValueError, match=f"the model is not the checkpoint's: '{name}', which it holds, differs; g"
        ):
            fit_programs(make(held()), 2, resume=tmp_path)


def hashed(path):
    """Return a path that has kept the hash of its text, which differs from process to process."""
    hash(path)
    return path


@pytest.mark.parametrize(
    "name", ["AutoNormal", "AutoMultivariateNormal", "AutoIAFNormal", "AutoDelta", "AutoLowRankMultivariateNormal"]
)
def test_guides_that_are_made_on_the_way_are_resumed(name, tmp_path):
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", 20, subsample=x):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def made():
        torch.manual_seed(3)
        return model, getattr(autoguide, name)(model)

    whole = fit_programs(made(), 3)
    fit_programs(programs := made(), 2, checkpoints=tmp_path)
    assert fit_programs(programs, 3, resume=tmp_path, clear=False)[3]["train_loss"] == whole[3]["train_loss"]


def test_a_name_that_is_only_an_attributes_is_none_of_the_module(monkeypatch):
    class Part:
        history = 1.0

        def __call__(self, x):
            return self.history * x

    known = described(Part())
    monkeypatch.setitem(globals(), "history", [1, 2, 3])
    assert described(Part()) == known


def test_what_a_program_counts_in_python_is_said_to_be_lost(tmp_path):
    def counted():
        count = []
        return program(decode=lambda z: count.append(1) or len(count) * z)

    programs = counted()
    fit_programs(programs, 1, checkpoints=tmp_path)
    with pytest.warns(RuntimeWarning, match="the model changes what it holds in Python, such as a count"):
        fit_programs(programs, 2, resume=tmp_path)  # whose checks have counted, too
    with pytest.warns(RuntimeWarning, match="the model changes what it holds in Python, such as a count"):
        fit_programs(counted(), 3, resume=tmp_path)


class Doubled(Trace_ELBO):
    def loss_and_grads(self, *args):
        return super().loss_and_grads(*args)


class Halved(objectives.IWAE):
    def estimate(self, draws):
        return super().estimate(draws)


class Descent(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


def in_turns(k):
    def make(parameters):
        optim = torch.optim.SGD(parameters, lr=1e-3)
        return SequentialLR(optim, [LambdaLR(optim, lambda epoch: k * epoch), LambdaLR(optim, lambda _: 1.0)], [2])

    return make


@pytest.mark.parametrize(
    ("cls", "name", "setting"),
    [
        (Doubled, "loss_and_grads", lambda: {"loss": Doubled()}),
        (Halved, "estimate", lambda: {"loss": Halved(2)}),
        (Descent, "step", lambda: {"optimizer": partial(Descent, lr=1e-3)}),
    ],
    ids=["an ELBO", "an objective", "an optimizer"],
)
def test_code_of_ones_own_is_compared(cls, name, setting, tmp_path, monkeypatch):
    fit_programs(program(), 1, checkpoints=tmp_path, **setting())
    fit_programs(program(), 1, resume=tmp_path, **setting())
    before = getattr(cls, name)
    monkeypatch.setattr(cls, name, lambda self, *args, **kwargs: before(self, *args, **kwargs))
    with pytest.raises(ValueError, match=f"cannot resume: the checkpoint has (loss|optimizer)='{cls.__name__}"):
        fit_programs(program(), 2, resume=tmp_path, **setting())


class Counting(torch.optim.SGD):
    """Descent that counts its steps in an attribute."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=1e-3)
        self.count = 0

    def step(self):
        self.count += 1
        super().step()


@pytest.mark.parametrize(
    ("optimizer", "own"),
    [(Counting, "Counting has of its own (.*'count')"), (AdagradRMSProp, "AdagradRMSProp has of its own ('step')")],
)
def test_an_optimizer_that_could_not_be_resumed_is_refused_before_the_first_step(optimizer, own, tmp_path):
    """Of one, an attribute counts the steps; the other makes its state before its first step."""
    steps, own = [], own.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=f"a checkpoint cannot hold what {own}: keep it"):
        fit_programs(program(), 1, checkpoints=tmp_path, optimizer=optimizer, on_step=lambda *_: steps.append(1))
    assert not steps
    fit_programs(program(), 1, optimizer=optimizer)


class Listing(torch.optim.SGD):
    """Descent that keeps a list of tensors in its state."""

    def step(self):
        super().step()
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter].setdefault("before", []).append(parameter.detach().clone())


class Growing(torch.optim.SGD):
    """Descent whose state has more parts, or larger ones, after some steps."""

    def __init__(self, parameters, how, **settings):
        super().__init__(parameters, **settings)
        self.param_groups[0]["how"] = how

    def step(self):
        super().step()
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["count"] = state.get("count", 0) + 1
            if self.param_groups[0]["how"] == "longer":
                state["losses"] = torch.zeros(state["count"])
            elif state["count"] > 1:
                state["average"] = torch.zeros_like(parameter)


@pytest.mark.parametrize("how", ["longer", "more"])
def test_an_optimizer_whose_state_grows_is_refused_at_its_first_checkpoint(how, tmp_path):
    optimizer, steps = partial(Growing, how=how, lr=1e-3), []
    words = "a checkpoint cannot hold what Growing has made of its state or its groups since its first step"
    with pytest.raises(ValueError, match=words):
        fit_programs(program(), 9, checkpoints=tmp_path, optimizer=optimizer, on_step=lambda *_: steps.append(1))
    assert len(steps) == 2
    fit_programs(program(), 9, optimizer=optimizer)


class Noisy(torch.optim.SGD):
    """Descent that draws."""

    def step(self):
        super().step()
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter += 0.01 * torch.randn_like(parameter)


def test_a_checkpoint_changes_nothing_for_an_optimizer_that_draws(tmp_path):
    optimizer = partial(Noisy, lr=1e-3)
    without = fit_programs(program(), 3, optimizer=optimizer)
    kept = fit_programs(program(), 3, optimizer=optimizer, checkpoints=tmp_path)
    assert kept.column("train_loss") == without.column("train_loss")


def complex_guide():
    model, guide = program()

    def with_another(x):
        pyro.param("c", torch.ones(3, dtype=torch.complex128))
        guide(x)

    return model, with_another


@pytest.mark.parametrize(
    ("make", "optimizer", "words"),
    [
        (program, partial(Listing, lr=1e-3), "a checkpoint cannot hold the optimizer's state 'before', a Tensor"),
        (complex_guide, torch.optim.Adam, "a checkpoint cannot hold a tensor of torch.complex128: take another type"),
    ],
    ids=["state", "parameter"],
)
def test_what_a_checkpoint_cannot_hold_is_refused_before_the_first_step(make, optimizer, words, tmp_path):
    steps, programs = [], make()
    with pytest.raises((TypeError, ValueError), match=words):
        fit_programs(programs, 1, checkpoints=tmp_path, optimizer=optimizer, on_step=lambda *_: steps.append(1))
    assert not steps


NUMBERS = {
    "rate of 64 bits": {"optimizer": partial(torch.optim.Adam, lr=np.float64(0.02))},
    "rate of 32 bits": {"optimizer": partial(torch.optim.Adam, lr=np.float32(0.02))},
    "schedule": {
        "optimizer": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
        "schedule": partial(LambdaLR, lr_lambda=lambda epoch: np.cos(0.1 * epoch)),
    },
    "others": {"seed": np.int64(3), "clip_norm": np.float32(1.0), "beta": np.float32(0.5)},
    "a tensor": {"clip_norm": torch.tensor(1.0)},
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_numpy_are_resumed_as_others_are(name, tmp_path):
    whole = fit_programs(program(), 3, **NUMBERS[name])
    after = {key: value.clone() for key, value in pyro.get_param_store().items()}
    fit_programs(program(), 1, checkpoints=tmp_path, **NUMBERS[name])
    resumed = fit_programs(program(), 3, resume=tmp_path, **NUMBERS[name])
    assert whole.column("train_loss") == resumed.column("train_loss")
    assert all(torch.equal(value, pyro.get_param_store()[key]) for key, value in after.items())


def test_a_setting_that_was_a_whole_number_is_resumed_as_a_fraction(tmp_path):
    """Such as a weight decay that begins at 0, and that a function of the user's raises."""
    made = []

    def optimizer(parameters):
        made.append(torch.optim.Adam(parameters, lr=1e-3, weight_decay=0))
        return made[-1]

    def raised(*_):
        made[-1].param_groups[0]["weight_decay"] = 0.1

    fit_programs(program(), 1, checkpoints=tmp_path, optimizer=optimizer, on_step=raised)
    fit_programs(program(), 2, resume=tmp_path, optimizer=optimizer)
    assert made[-1].param_groups[0]["weight_decay"] == 0.1


CONSTANTS = {
    "expanded": lambda: torch.ones(1).expand(3),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "complex": lambda: torch.ones(3, dtype=torch.complex128),
    "conjugated": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "meta": lambda: torch.ones(3, device="meta"),
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_buffers_that_no_file_holds_or_that_cannot_be_set_are_constants(kind, tmp_path):
    """They stand in the way of no checkpoint, no patience and no rollback, and others are refused on resuming."""
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))

    def made(times=1):
        torch.manual_seed(0)
        vae = VAE(priors.Normal(2), encoders.Normal(3, 2), decoders.Normal(2, 3))
        vae.register_buffer("constant", times * CONSTANTS[kind]() if times != 1 else CONSTANTS[kind]())
        return vae

    def trained(vae, **settings):
        fit(vae.model, vae.guide, x, batch_size=10, validation=x, patience=4, on_nan="rollback", **settings)
        return vae.encoder.state_dict()

    whole = trained(made(), epochs=2)
    trained(made(), epochs=1, checkpoints=tmp_path)
    resumed = trained(made(), epochs=2, resume=tmp_path)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    if kind in ("sparse", "complex"):
        with pytest.raises(ValueError, match="cannot resume: the model is not the checkpoint's"):
            trained(made(times=2), epochs=3, resume=tmp_path)


@pytest.mark.parametrize("kind", ["prior", "buffer", "parameter", "param"])
def test_single_numbers_that_are_expanded_are_kept(kind, tmp_path):
    """As in ``PyroSample(dist.Normal(0.0, 1.0).expand([1]))``; their stride is 0."""

    def made():
        one = torch.tensor(1.0).expand(1)
        prior = dist.Normal(0.0, 1.0).expand([1]) if kind == "prior" else dist.Normal(torch.zeros(1), 1.0)
        layer = torch.nn.Linear(1, 3)
        if kind == "buffer":
            layer.register_buffer("shift", one)
        elif kind == "parameter":
            layer.shift = torch.nn.Parameter(torch.tensor(1.0).expand(1))

        def model(x):
            pyro.module("layer", layer)
            scale = pyro.param("scale", one, constraint=dist.constraints.positive) if kind == "param" else one
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior.expand([len(x), 1]).to_event(1))
                pyro.sample("x", dist.Normal(layer(z) + getattr(layer, "shift", 0.0), scale).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, :1] * pyro.param("b", torch.ones(1)), 0.5).to_event(1))

        torch.nn.init.ones_(layer.weight)
        torch.nn.init.ones_(layer.bias)
        return model, guide

    whole = fit_programs(made(), 3)
    fit_programs(made(), 2, checkpoints=tmp_path)
    assert fit_programs(made(), 3, resume=tmp_path)[-1]["train_loss"] == whole[-1]["train_loss"]


@pytest.mark.parametrize("when", ["within an epoch", "after an epoch"])
@pytest.mark.parametrize("how", ["load_state_dict", "set"])
def test_parameters_that_others_replace_in_their_module_are_resumed_as_the_others(how, when, tmp_path):
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))

    def trained(epochs, replacing=True, **settings):
        torch.manual_seed(0)
        vae = VAE(priors.Normal(2), encoders.Normal(3, 2), decoders.Normal(2, 3))
        weight = vae.decoder.network.layers[-1].weight

        def replace(reached, _=None):
            if reached not in ((0, 2) if when == "within an epoch" else ({"epoch": 1}, {"epoch": 2})):
                return
            if how == "set":
                vae.decoder.network.layers[-1].weight = torch.nn.Parameter(torch.zeros_like(weight))
            else:
                zeros = {name: torch.zeros_like(value) for name, value in vae.state_dict().items()}
                vae.load_state_dict(zeros, assign=True)

        if replacing and when == "within an epoch":
            settings["on_step"] = replace
        elif replacing:
            settings["on_epoch"] = lambda row: replace({"epoch": row["epoch"]})
        optimizer = partial(torch.optim.Adam, lr=0.1)
        history = fit(vae.model, vae.guide, x, epochs=epochs, batch_size=10, optimizer=optimizer, **settings)
        return history[-1]["train_loss"], vae.state_dict()

    loss, state = trained(4)
    trained(2, checkpoints=tmp_path)
    resumed_loss, resumed = trained(4, replacing=False, resume=tmp_path)
    assert resumed_loss == loss
    assert all(torch.equal(value, resumed[name]) for name, value in state.items())


@pytest.mark.parametrize("counts", [True, False])
def test_what_a_hook_of_an_optimizer_counts_in_python_is_said_to_be_lost(counts, tmp_path):
    def optimizer(parameters):
        count, optim = [], torch.optim.SGD(parameters, lr=1e-3)
        optim.register_step_pre_hook(lambda *_: count.append(1) if counts else None)
        return ExponentialLR(optim, 0.5)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_programs(program(), 2, checkpoints=tmp_path, optimizer=optimizer)
    assert any("the optimizer changes what it holds in Python" in str(each.message) for each in caught) == counts


def clipping(norm):
    def optimizer(parameters):
        parameters = list(parameters)
        optim = torch.optim.SGD(parameters, lr=1e-3)
        optim.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_norm_(parameters, norm) and None)
        return optim

    return optimizer


def of_pyro(norm):
    return pyro.optim.Adam({"lr": 1e-3}, {"clip_norm": norm})


@pytest.mark.parametrize("make", [clipping, of_pyro])
def test_another_hook_of_an_optimizer_is_refused(make, tmp_path):
    fit_programs(program(), 1, checkpoints=tmp_path, optimizer=make(1.0))
    with pytest.raises(ValueError, match="cannot resume: the optimizer is not the checkpoint's"):
        fit_programs(program(), 2, resume=tmp_path, optimizer=make(0.01))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_programs(program(), 2, resume=tmp_path, optimizer=make(1.0))


DRAW = {
    "numpy": lambda x: x + 0.1 * float(np.random.normal()),
    "Python": lambda x: x + 0.1 * random.random(),  # noqa: S311
    "torch": lambda x: x + 0.1 * torch.rand(()),
}


@pytest.mark.parametrize("source", DRAW)
def test_numbers_that_torch_did_not_draw_are_said_to_be_lost(source, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_programs(program(), 1, checkpoints=tmp_path, transform=DRAW[source])
    assert any("from numpy's or Python's random state" in str(each.message) for each in caught) == (source != "torch")


def test_another_learning_rate_under_the_same_schedule_is_named_as_such(tmp_path):
    decaying = {"schedule": partial(ExponentialLR, gamma=0.5)}
    fit_programs(program(), 1, checkpoints=tmp_path, optimizer=partial(torch.optim.Adam, lr=0.1), **decaying)
    with pytest.raises(ValueError, match=r"has optimizer initial_lr=0\.1, this call has optimizer initial_lr=0\.2"):
        fit_programs(program(), 2, resume=tmp_path, optimizer=partial(torch.optim.Adam, lr=0.2), **decaying)
    decaying = {"schedule": partial(ExponentialLR, gamma=0.6)}
    with pytest.raises(ValueError, match="has scheduler='ExponentialLR"):
        fit_programs(program(), 2, resume=tmp_path, optimizer=partial(torch.optim.Adam, lr=0.1), **decaying)


def test_schedules_within_a_schedule_are_compared(tmp_path):
    fit_programs(program(), 1, checkpoints=tmp_path, optimizer=in_turns(1))
    with pytest.raises(ValueError, match="cannot resume: the checkpoint has scheduler='SequentialLR"):
        fit_programs(program(), 2, resume=tmp_path, optimizer=in_turns(2))


def counting():
    """A schedule that counts its steps itself."""
    count = []
    return lambda _: count.append(1) or 0.1 * len(count)


def noisy_by_itself():
    """A transform that draws from a source of its own."""
    source = torch.Generator().manual_seed(0)
    return lambda x: x + torch.randn(x.shape, generator=source)


class WithMean(Trace_ELBO):
    """An ELBO whose gradient depends on the mean of its losses, which it keeps itself."""

    mean = 0.0

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        self.mean = 0.9 * self.mean + 0.1 * loss.item()
        (loss * (1 + self.mean)).backward()
        return loss.item()


@pytest.mark.parametrize(("name", "make"), [("loss", WithMean), ("beta", counting), ("transform", noisy_by_itself)])
def test_what_a_schedule_or_a_transform_counts_in_python_is_said_to_be_lost(name, make, tmp_path):
    fit_programs(program(), 1, checkpoints=tmp_path, **{name: make()})
    with pytest.warns(RuntimeWarning, match=f"the {name} changes what it holds in Python, such as a count"):
        fit_programs(program(), 2, resume=tmp_path, **{name: make()})


class Ordered:
    """Ready batches in an order of their own, anew in each pass, by what ``kind`` makes."""

    def __init__(self, kind):
        self.source, self.epoch = kind(), 0

    def __len__(self):
        return 4

    def __iter__(self):
        if isinstance(self.source, torch.Generator):
            order = torch.randperm(40, generator=self.source)
        elif self.source is None:
            order = torch.randperm(40, generator=torch.Generator().manual_seed(self.epoch))
            self.epoch += 1
        elif isinstance(self.source, random.Random):
            order = torch.tensor(self.source.sample(range(40), 40))
        else:
            order = torch.from_numpy(self.source.permutation(40))
        yield from torch.linspace(-1.0, 1.0, 120).reshape(40, 3)[order].split(10)


GENERATORS = {
    "torch": lambda: torch.Generator().manual_seed(0),
    "numpy": lambda: np.random.default_rng(0),
    "numpy's older": lambda: np.random.RandomState(0),
    "Python's": lambda: random.Random(0),  # noqa: S311
    "a count": lambda: None,
}


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("held", ["itself", "by a sampler"])
def test_an_order_that_no_checkpoint_keeps_is_said_to_be_lost(kind, held, tmp_path):
    data = Ordered(GENERATORS[kind])
    if held == "by a sampler":
        data = torch.utils.data.DataLoader(torch.zeros(4, 3), sampler=Indices(data), batch_size=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(*program(), data, epochs=2, checkpoints=tmp_path)
    assert any("the data count in Python, or draw" in str(each.message) for each in caught) == (kind != "torch")


ITERATED = {
    "a loader": lambda x: torch.utils.data.DataLoader(x, batch_size=4, shuffle=True),
    "a loader with a generator": lambda x: torch.utils.data.DataLoader(
        x, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0)
    ),
    "batches": lambda x: Iterated(x.split(4)),
    "a stream": lambda x: Streamed(x),
}


class Iterated:
    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


class Streamed(Iterated, torch.utils.data.IterableDataset):
    """Data one by one."""


@pytest.mark.parametrize("kind", ITERATED)
def test_data_that_are_iterated_over_and_begin_with_others_are_said_to_be_others(kind, tmp_path):
    x = torch.rand(12, 3, generator=torch.Generator().manual_seed(0))
    data = ITERATED[kind](x)
    fit(*program(), data, epochs=1, batch_size=4, checkpoints=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(*program(), data, epochs=2, batch_size=4, resume=tmp_path)
    with pytest.warns(RuntimeWarning, match="the data begin with other values than those that the checkpoint was"):
        fit(*program(), ITERATED[kind](x + 1), epochs=3, batch_size=4, resume=tmp_path)


@pytest.mark.parametrize("kind", ITERATED)
def test_validation_data_that_are_iterated_over_and_begin_with_others_are_said_to_be_others(kind, tmp_path):
    x = torch.rand(12, 3, generator=torch.Generator().manual_seed(0))
    how = {"batch_size": 4, "patience": 5}
    fit(*program(), x, epochs=1, validation=ITERATED[kind](x), checkpoints=tmp_path, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(*program(), x, epochs=2, validation=ITERATED[kind](x), resume=tmp_path, **how)
    with pytest.warns(RuntimeWarning, match="the validation data begin with other values than those that the checkp"):
        fit(*program(), x, epochs=3, validation=ITERATED[kind](x + 1), resume=tmp_path, **how)


def test_what_a_process_holds_of_its_own_is_compared_by_the_first_alone(tmp_path, monkeypatch):
    """Such as its rank and device, in closures and attributes of its programs: a checkpoint has those of rank 0."""
    x = torch.rand(12, 3, generator=torch.Generator().manual_seed(0))
    fit(*program(), x, epochs=1, checkpoints=tmp_path)
    tensors, head = read_tensors(tmp_path / "last.safetensors")
    save_tensors(tmp_path / "last.safetensors", {**tensors, "random/1": tensors["random/0"]}, head["about"])
    with pytest.raises(ValueError, match="cannot resume: the model is not the checkpoint's"):
        fit(*program(constant=torch.zeros(3)), x, epochs=2, resume=tmp_path)
    load = State.load

    def as_second(state, *content):
        state.ranks.rank = 1
        load(state, *content)
        state.ranks.rank = 0

    monkeypatch.setattr(State, "load", as_second)
    assert len(fit(*program(constant=torch.zeros(3)), x, epochs=2, resume=tmp_path)) == 3


class Bucketed(Iterated):
    """Ready batches, of which each pass has two or three."""

    def __iter__(self):
        return iter(self.x.split(4 if torch.rand(()) < 0.5 else 6))


def test_epochs_of_unequal_numbers_of_batches_are_resumed(tmp_path):
    data = Bucketed(torch.rand(12, 3, generator=torch.Generator().manual_seed(0)))
    steps = []
    whole = fit(*program(), data, epochs=5, on_step=lambda *_: steps.append(1))
    assert len(steps) % 5
    pyro.clear_param_store()
    fit(*program(), data, epochs=3, checkpoints=tmp_path)
    again = fit(*program(), data, epochs=5, resume=tmp_path)
    assert again.column("train_loss") == whole.column("train_loss")


@pytest.mark.parametrize("lasting", [True, False])
def test_workers_that_last_are_said_to_lose_their_random_numbers(lasting, tmp_path):
    data = torch.utils.data.DataLoader(torch.rand(8, 3), batch_size=4, num_workers=1, persistent_workers=lasting)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(*program(), data, epochs=1, checkpoints=tmp_path)
    assert any("the loader has persistent workers" in str(each.message) for each in caught) is lasting


class Indices(torch.utils.data.Sampler):
    def __init__(self, ordered):
        self.ordered = ordered

    def __len__(self):
        return 4

    def __iter__(self):
        next(iter(self.ordered))
        return iter(range(4))


class Moving(torch.nn.Module):
    """A layer of data minus a buffer of one or more running means, which has no value before the first step."""

    def __init__(self, kind, first=None):
        super().__init__()
        self.kind, self.layer = kind, torch.nn.Linear(3, 3)
        self.register_buffer("means", first)

    def forward(self, x):
        if self.training:
            mean = x.detach().mean(0, keepdim=True)
            if self.means is None:
                self.means = mean
            elif self.kind == "replaced":
                self.means = torch.lerp(self.means, mean, 0.1)
            elif self.kind == "grown":
                self.means = torch.cat([self.means, mean])
            else:
                self.means.lerp_(mean, 0.1)
        return self.layer(x) if self.means is None else self.layer(x - self.means.mean(0))


def with_moving_means(kind, first=None):
    torch.manual_seed(0)
    network = lambda *_: torch.nn.Sequential(Moving(kind, first), networks.MLP((3,), (2, 2), (4,)))  # noqa: E731
    return VAE(priors.Normal(2), encoders.Normal((3,), 2, network=network), decoders.Normal(2, (3,)))


@pytest.mark.parametrize("kind", ["changed in place", "replaced", "grown"])
def test_a_buffer_that_has_a_value_from_the_first_step_on_is_resumed(kind, tmp_path):
    def run(**settings):
        vae = with_moving_means(kind)
        x = torch.rand(12, 3, generator=torch.Generator().manual_seed(0))
        how = {"epochs": 3, "batch_size": 4, "validation": x, "on_step": stop} | settings
        return fit(vae.model, vae.guide, x, **how).column("test_loss"), vae.state_dict()

    keeper = Checkpoints(tmp_path)
    stop = lambda step, _: keeper.stop() if step == 4 else None  # noqa: E731
    losses, values = run(on_step=None)
    with pytest.raises(Stopped):
        run(checkpoints=keeper)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses_2, values_2 = run(resume=tmp_path, on_step=None)
    assert losses == losses_2
    assert values.keys() == values_2.keys()
    assert all(torch.equal(value, values_2[name]) for name, value in values.items())


def test_modules_that_get_their_sizes_from_the_first_batch_are_resumed(tmp_path):
    def lazy():
        network = lambda *_: torch.nn.Sequential(  # noqa: E731
            torch.nn.LazyLinear(4), torch.nn.LazyBatchNorm1d(), networks.MLP((4,), (2, 2), (4,))
        )
        return VAE(priors.Normal(2), encoders.Normal(SHAPE, 2, network=lambda *_: flat(network())), decoder())

    decoder = lambda: decoders.Bernoulli(2, SHAPE, grey=True)  # noqa: E731
    flat = lambda network: torch.nn.Sequential(torch.nn.Flatten(), network)  # noqa: E731
    whole = train(lazy)
    stopped(lazy, tmp_path, 7)
    same(whole, train(lazy, resume=tmp_path))


def test_a_buffer_whose_shape_changes_is_refused_while_nothing_is_lost(tmp_path):
    vae = with_moving_means("grown", first=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"whose shape is \(1, 3\) before, and \(4, 3\) now: let the buffer be None"):
        fit(vae.model, vae.guide, torch.rand(12, 3), epochs=1, batch_size=4, checkpoints=tmp_path)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_skipped_first_step_leaves_a_buffer_without_a_value():
    vae = with_moving_means("changed in place")
    spoiled = lambda batch: batch / 0 if vae.training else batch  # noqa: E731
    how = {"transform": spoiled, "on_nan": "skip", "epochs": 1}
    with pytest.warns(RuntimeWarning, match="a step is skipped"), pytest.raises(FloatingPointError, match="all steps"):
        fit(vae.model, vae.guide, torch.rand(8, 3), **how)
    assert vae.encoder.network[0].means is None


@pytest.mark.filterwarnings("ignore:.*requires_grad=False")
def test_what_a_callback_freezes_before_the_first_step_is_resumed(tmp_path):
    def run(**settings):
        vae, x = pair(normal)
        thaw = lambda row: vae.decoder.requires_grad_(row["epoch"] >= 2)  # noqa: E731
        history = fit(vae.model, vae.guide, x, batch_size=BATCH, on_epoch=thaw, **{"epochs": 4} | settings)
        return history.column("train_loss"), vae.state_dict()

    losses, values = run()
    run(checkpoints=tmp_path, epochs=1)
    losses_2, values_2 = run(resume=tmp_path)
    assert losses == losses_2
    assert all(torch.equal(value, values_2[name]) for name, value in values.items())
