import array
import itertools
import runpy
import shutil
import warnings
from collections import deque
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor
from all_cases import CASES
from partners import vae_around
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, trace_elbo
from torch import nn
from torch.nn.functional import one_hot
from torch.nn.modules.module import register_module_forward_hook

from pyro_vae import VAE, data, decoders, encoders, fit, priors
from pyro_vae.networks import MLP
from pyro_vae.objectives import IWAE, linear_warm_up
from pyro_vae.runtime import recording, whole_step
from pyro_vae.runtime.changes import Changes
from pyro_vae.runtime.checkpoints import Checkpoints
from pyro_vae.runtime.engine import ENGINES, chosen
from pyro_vae.runtime.recording import Recorded
from pyro_vae.runtime.steps import Trial, same
from pyro_vae.runtime.whole_step import WholeStep

SMALL = partial(MLP, hidden=(5,))
ELBO = partial(Trace_ELBO, num_particles=3)
VECTORIZED = {"vectorize_particles": True}


def points(count=40, seed=1):
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(seed))


def small_vae(encoder=encoders.Normal, decoder=decoders.Normal, **own):
    torch.manual_seed(0)
    return VAE(priors.Normal(2, learned=True), encoder(6, 2, SMALL), decoder(2, 6, SMALL, **own))


def trained(make, engine, x=None, **settings):
    """The history without its times, every parameter and buffer, and the line on the engine, of 33 steps."""
    model, guide, state = make()
    settings = {"epochs": 11, "batch_size": 16, "seed": 3, "validation": points(8, 2)} | settings
    history = fit(model, guide, points() if x is None else x, engine=engine, **settings)
    rows = [[row[name] for name in row if name != "seconds"] for row in history]
    return torch.tensor(rows), [value.detach().clone() for value in state()], history.engine


def of_vae(**own):
    def make():
        vae = small_vae(**own)
        return vae.model, vae.guide, lambda: vae.state_dict().values()

    return make


def assert_recorded_is_eager(make, **settings):
    rows, state, _ = trained(make, "eager", **settings)
    recorded_rows, recorded_state, line = trained(make, "recorded", **settings)
    assert line.startswith("recorded: ")
    assert torch.equal(rows.nan_to_num(-1.0), recorded_rows.nan_to_num(-1.0))
    assert all(map(torch.equal, state, recorded_state))
    return line


# The same to the last bit


SETTINGS = {
    "Trace_ELBO": {},
    "closed-form KL": {"loss": TraceMeanField_ELBO()},
    "3 particles": {"loss": ELBO()},
    "3 particles, closed-form KL": {"loss": TraceMeanField_ELBO(num_particles=3)},
    "3 particles, vectorized": {"loss": ELBO(max_plate_nesting=1, **VECTORIZED)},
    "3 particles, vectorized, plates to be guessed": {"loss": ELBO(**VECTORIZED)},
    "beta": {"beta": 0.3},
    "no KL": {"beta": 0.0},
    "warm-up": {"beta": linear_warm_up(20)},
    "warm-up, closed-form KL": {"beta": linear_warm_up(20), "loss": TraceMeanField_ELBO()},
    "clipping": {"clip_norm": 0.1},
    "dynamic binarization": {"transform": data.dynamic},
    "SGD": {"optimizer": partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1)},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_recorded_training_is_the_eager_one_to_the_last_bit(name):
    line = assert_recorded_is_eager(of_vae(learned=True), **SETTINGS[name])
    # Of 33 steps 11 have the smaller batch; of the others 1 runs first, 2 is recorded, and 3, 6 and 12 are checked.
    assert line == "recorded: 17 of 33 steps were replayed"


SLOW_TO_RECORD = {"prior-flow-nsf", "prior-flow-nsf-2d", "prior-flow-maf", "encoder-flow-IAF-1d"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow) if repr(case) in SLOW_TO_RECORD else case for case in CASES],
    ids=repr,
)
def test_every_part_is_recorded_to_the_last_bit(case):
    vae, x = vae_around(case)
    start = {name: value.clone() for name, value in vae.state_dict().items()}

    def make():
        vae.load_state_dict(start)
        return vae.model, vae.guide, lambda: vae.state_dict().values()

    beta = 0.0 if case.family is encoders.Delta else 1.0
    assert_recorded_is_eager(make, x=x, validation=None, beta=beta, epochs=6)


def test_parameters_of_the_store_are_recorded_also_two_that_share_their_gradient():
    def make():
        pyro.clear_param_store()
        torch.manual_seed(0)

        def model(x):
            mean = pyro.param("a", torch.zeros(6)) + pyro.param("b", torch.ones(6))
            scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
                pyro.sample("x", dist.Normal(mean + z, scale).to_event(1), obs=x)

        def guide(x):
            shift = pyro.param("shift", torch.zeros(6))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x + shift, 0.3).to_event(1))

        return model, guide, lambda: [value for _, value in sorted(pyro.get_param_store().items())]

    assert_recorded_is_eager(make, clip_norm=0.1)
    store = pyro.get_param_store()
    assert torch.allclose(store["b"] - store["a"], torch.ones(6))  # clipped once each, not twice


def test_dropout_and_the_running_moments_of_a_batch_normalization_are_recorded():
    class Normalized(nn.Sequential):
        def __init__(self, in_shape, out_shape):
            super().__init__(nn.BatchNorm1d(6), nn.Dropout(0.5), SMALL(in_shape, out_shape))

    def make():
        torch.manual_seed(0)
        vae = VAE(priors.Normal(2), encoders.Normal(6, 2, Normalized), decoders.Normal(2, 6, SMALL))
        return vae.model, vae.guide, lambda: vae.state_dict().values()

    assert_recorded_is_eager(make)
    _, state, _ = trained(make, "recorded")
    assert any(value.dtype == torch.int64 and value == 33 for value in state)  # num_batches_tracked


def test_the_programs_are_not_run_at_the_replayed_steps():
    runs = itertools.count()

    def make():
        vae = small_vae()

        def model(x):
            next(runs)
            return vae.model(x)

        return model, vae.guide, vae.parameters

    trained(make, "eager", validation=None)
    eager = next(runs)
    _, _, line = trained(make, "recorded", validation=None)
    assert eager - (next(runs) - eager - 1) == 17 - 1  # the last of which is checked at the end
    assert line == "recorded: 17 of 33 steps were replayed"


# Noise


def test_noise_is_drawn_anew_at_every_replayed_step_and_follows_the_seed():
    step = Recorded(lambda x: (x + torch.randn(3),))

    def draws(seed):
        torch.manual_seed(seed)
        return torch.cat([step(torch.zeros(3))[0] for _ in range(40)])

    first = draws(0)
    assert step.replayed > 20
    assert len(first.unique()) == 120
    again = draws(0)
    assert torch.equal(first, again)
    assert not torch.equal(again, draws(1))


def test_noise_that_became_a_constant_is_caught():
    def step(x):
        return (x + torch.from_numpy(torch.randn(3).numpy()),)  # what passes through numpy leaves the recording

    recorded = Recorded(step)
    torch.manual_seed(0)
    with pytest.warns(RuntimeWarning, match="not the same at every step"):
        found = [recorded(torch.zeros(3))[0] for _ in range(10)]
    torch.manual_seed(0)
    assert torch.equal(torch.stack(found), torch.stack([torch.randn(3) for _ in range(10)]))
    assert recorded.replayed == 0


def test_a_step_that_draws_another_number_of_random_numbers_each_time_is_caught():
    counts = iter(range(1, 100))

    def step(x):
        torch.randn(next(counts))
        return (x,)

    recorded = Recorded(step)
    with pytest.warns(RuntimeWarning, match="not the same at every step"):
        [recorded(torch.zeros(3)) for _ in range(3)]


# What cannot be recorded


def branching(x):
    return (x * 2,) if x.sum() > 0 else (x * 3,)


def with_item(x):
    return (x * x.sum().item(),)


@pytest.mark.parametrize("step", [branching, with_item])
def test_a_branch_or_a_number_taken_from_data_leads_to_eager_steps_with_one_warning(step):
    recorded = Recorded(step)
    inputs = torch.randn(8, 5)
    with pytest.warns(RuntimeWarning, match="the step cannot be recorded and is run eagerly") as warned:
        found = [recorded(x)[0] for x in inputs]
    assert len(warned) == 1
    assert all(torch.equal(value, step(x)[0]) for value, x in zip(found, inputs, strict=True))
    assert str(recorded).startswith("eager: the step cannot be recorded (")


def test_a_branch_on_the_batch_in_a_program_is_trained_as_without_a_recording():
    def make():
        vae = small_vae()

        def model(x):
            with pyro.poutine.scale(scale=2.0 if x.mean() > 0.5 else 1.0):
                return vae.model(x)

        return model, vae.guide, vae.parameters

    rows, state, _ = trained(make, "eager", validation=None)
    with pytest.warns(RuntimeWarning, match="cannot be recorded"):
        recorded_rows, recorded_state, line = trained(make, "recorded", validation=None)
    assert line.startswith("eager: the step cannot be recorded")
    assert torch.equal(rows.nan_to_num(), recorded_rows.nan_to_num())
    assert all(map(torch.equal, state, recorded_state))


# Programs that change in Python


@pytest.fixture
def early(monkeypatch):
    """Engine "auto" records also short trainings."""
    monkeypatch.setattr("pyro_vae.runtime.engine.WORTHWHILE", 10)


def scheduled(kind):
    """A mean that is trained under a program's own schedule, kept in a list, in a module or out of sight."""

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.calls = nn.Parameter(torch.zeros(())), 0

        def factor(self):
            return 3.0 if self.calls > 20 else 1.0

        def model(self, x):
            self.calls += 1
            pyro.module("program", self)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.factor() * self.weight, 1.0).expand([6]).to_event(1), obs=x)

    def make():
        program = Program()
        calls = itertools.count()
        if kind == "list":
            factors = [1.0] * 20
            program.factor = lambda: factors.pop() if factors else 3.0
        if kind == "iterator":
            program.factor = lambda: 3.0 if next(calls) > 20 else 1.0
        return program.model, lambda _: None, program.parameters

    return make


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("kind", ["list", "module", "iterator"])
def test_a_schedule_of_ones_own_is_followed_under_auto(kind):
    settings = {"validation": None, "optimizer": partial(torch.optim.SGD, lr=0.01)}
    rows, state, _ = trained(scheduled(kind), "eager", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        auto_rows, auto_state, line = trained(scheduled(kind), "auto", **settings)
    assert torch.equal(rows.nan_to_num(), auto_rows.nan_to_num())
    assert torch.equal(state[0], auto_state[0])
    assert line.startswith("eager: the ")
    assert "may do something else at each step; if it does not, engine='recorded' saves" in line


@pytest.mark.parametrize("kind", ["list", "module"])
def test_a_schedule_in_sight_is_followed_under_recorded_with_a_warning(kind):
    settings = {"validation": None, "optimizer": partial(torch.optim.SGD, lr=0.01)}
    _, state, _ = trained(scheduled(kind), "eager", **settings)
    with pytest.warns(RuntimeWarning, match="what the programs hold in Python changes from step to step"):
        _, recorded_state, _ = trained(scheduled(kind), "recorded", **settings)
    assert torch.equal(state[0], recorded_state[0])


class Doubling(nn.Module):
    """A layer that counts its calls, and doubles from the 20th on."""

    def __init__(self, *shapes):
        super().__init__()
        self.network, self.calls = SMALL(*shapes), itertools.count()

    def forward(self, x):
        return self.network(x) * (2 if next(self.calls) > 20 else 1)


class Halving(pyro.poutine.messenger.Messenger):
    """A handler that halves the scales of latent sites from its 20th use on."""

    uses = 0

    def _pyro_sample(self, msg):
        self.uses += 1
        msg["scale"] = msg["scale"] * (0.5 if self.uses > 20 else 1.0)


class Annealed(IWAE):
    """An objective with a weight that falls at each step."""

    steps = 0

    def estimate(self, draws):
        self.steps += 1
        return super().estimate(draws) / self.steps


def with_hook(vae):
    calls = itertools.count()
    vae.decoder.network.register_forward_hook(lambda *io: io[-1] * (2 if next(calls) > 20 else 1))


def with_gradient_hook(vae):
    calls = itertools.count()
    next(vae.decoder.parameters()).register_hook(lambda gradient: gradient * (2 if next(calls) > 20 else 1))


def with_another_forward(vae):
    forward, calls = vae.decoder.forward, itertools.count()
    vae.decoder.forward = lambda z: forward(z * (2 if next(calls) > 20 else 1))


FOREIGN = {
    "a network": lambda: (VAE(priors.Normal(2), encoders.Normal(6, 2, Doubling), decoders.Normal(2, 6, SMALL)), {}),
    "a hook": lambda: (small_vae(), {"change": with_hook}),
    "a hook of a gradient": lambda: (small_vae(), {"change": with_gradient_hook}),
    "a method": lambda: (small_vae(), {"change": with_another_forward}),
    "a handler": lambda: (small_vae(), {"handler": Halving()}),
    "an objective": lambda: (small_vae(), {"loss": Annealed(2)}),
}


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_of_this_package_runs_eagerly_under_auto(name):
    def run(engine):
        torch.manual_seed(0)
        vae, more = FOREIGN[name]()
        more.get("change", lambda _: None)(vae)
        guide = more["handler"](vae.guide) if "handler" in more else vae.guide
        settings = {"loss": more["loss"]} if "loss" in more else {}
        return trained(lambda: (vae.model, guide, vae.parameters), engine, validation=None, **settings)

    (rows, state, _), (auto_rows, auto_state, line) = run("eager"), run("auto")
    assert line.startswith("eager: the ")
    assert torch.equal(rows.nan_to_num(), auto_rows.nan_to_num())
    assert all(map(torch.equal, state, auto_state))


@pytest.mark.usefixtures("early")
@pytest.mark.parametrize("cls", [nn.Linear, nn.Module, encoders.Normal])
def test_a_method_that_is_put_on_a_class_of_others_runs_eagerly_under_auto(cls, monkeypatch):
    monkeypatch.setattr(cls, "of_my_own", lambda self: self, raising=False)
    *_, line = trained(of_vae(), "auto")
    assert line.startswith("eager: the function ")


@pytest.mark.usefixtures("early")
def test_a_hook_on_all_modules_runs_eagerly_under_auto():
    def run(engine):
        torch.manual_seed(0)
        vae, calls = small_vae(), itertools.count()
        hook = register_module_forward_hook(
            lambda module, _, out: out * (2 if next(calls) > 20 else 1) if isinstance(module, nn.Linear) else None
        )
        try:
            return trained(lambda: (vae.model, vae.guide, vae.parameters), engine, validation=None)
        finally:
            hook.remove()

    (rows, _, _), (auto_rows, _, line) = run("eager"), run("auto")
    assert line.startswith("eager: the function ")
    assert torch.equal(rows.nan_to_num(), auto_rows.nan_to_num())


def set_rate(vae):
    vae.encoder.network.layers[1].p = 0.9


def freeze(vae):
    vae.decoder.requires_grad_(False)


def exchange(vae):
    vae.decoder.network.layers[0] = nn.Linear(2, 5)


def exchange_parameter(vae):
    vae.decoder.network.layers[0].weight = nn.Parameter(vae.decoder.network.layers[0].weight.detach() / 2)


def exchange_buffer(vae):
    vae.decoder.scale = 2 * vae.decoder.scale


CHANGES = [set_rate, freeze, exchange, exchange_parameter, exchange_buffer]


@pytest.mark.usefixtures("early")
@pytest.mark.filterwarnings("ignore:.*requires_grad=False")
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_callback_changes_in_our_parts_is_seen_at_the_next_step_under_auto(change):
    def run(engine):
        torch.manual_seed(0)
        vae = VAE(priors.Normal(2), encoders.Normal(6, 2, partial(MLP, hidden=(5,))), decoders.Normal(2, 6, SMALL))
        vae.encoder.network.layers.insert(1, nn.Dropout(0.2))

        def on_step(step, _):
            if step == 18:
                change(vae)

        make = lambda: (vae.model, vae.guide, vae.state_dict().values)  # noqa: E731
        return trained(make, engine, validation=None, on_step=on_step)

    (rows, state, _), (auto_rows, auto_state, line) = run("eager"), run("auto")
    assert line == "eager: the step cannot be recorded (what the programs hold in Python changes from step to step)"
    assert torch.equal(rows.nan_to_num(), auto_rows.nan_to_num())
    assert all(map(torch.equal, state, auto_state))


def test_a_number_that_changes_in_sight_is_seen_at_the_next_call():
    temperature = [1.0]
    recorded = Recorded(lambda x: (x / temperature[0],))
    for _ in range(10):
        recorded(torch.ones(1))
    assert recorded.replayed
    temperature[0] = 0.5
    with pytest.warns(RuntimeWarning, match="what the programs hold in Python changes"):
        assert recorded(torch.ones(1))[0] == 2.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [
        "recorded",
        pytest.param(
            "compiled",
            marks=pytest.mark.skipif(
                not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here"
            ),
        ),
    ],
)
def test_a_number_that_changes_out_of_sight_is_an_error_at_the_next_check(engine):
    temperature = array.array("d", [1.0])
    recorded = Recorded(lambda x: (x / temperature[0],), compiled=engine == "compiled")
    for _ in range(10):  # numbers 3 and 6 are checks
        recorded(torch.ones(1))
    temperature[0] = 0.5
    recorded(torch.ones(1))
    with pytest.raises(ValueError, match=r"steps 6 to 10, replayed since the last check, cannot be trusted; train, or"):
        recorded(torch.ones(1))


def test_what_changed_since_the_last_check_is_found_when_it_is_asked_and_nothing_is_left_behind():
    temperature, total = array.array("d", [1.0]), torch.zeros(())

    def step(x):
        total.add_(1)
        return (x / temperature[0] + torch.randn(1),)

    recorded = Recorded(step)
    for _ in range(10):
        recorded(torch.ones(1))
    state = torch.get_rng_state()
    recorded.verify()
    assert total == 10
    assert torch.equal(state, torch.get_rng_state())
    recorded(torch.ones(1))
    temperature[0] = 0.5
    with pytest.raises(ValueError, match="steps 10 to 10, replayed since the last check, cannot be trusted"):
        recorded.verify()


def hidden(after):
    """A program with a factor that a callback changes out of sight, after so many steps."""
    pyro.clear_param_store()
    factor = array.array("d", [1.0])

    def model(x):
        weight = pyro.param("weight", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(factor[0] * weight, 1.0).expand([6]).to_event(1), obs=x)

    def on_step(step, _):
        factor[0] = 3.0 if step + 1 >= after else 1.0

    return {"model": model, "guide": lambda _: None, "on_step": on_step, "batch_size": 20, "epochs": 20}


@pytest.mark.parametrize("after", [20, 38])
def test_recorded_by_name_stops_behind_the_checkpoint_of_the_last_check(after, tmp_path):
    """40 steps; those after which the factor changes are not checked by themselves until the 64th."""
    with pytest.raises(ValueError, match=r"steps \d+ to \d+, replayed since the last check, cannot be trusted"):
        fit(data=points(), engine="recorded", checkpoints=Checkpoints(tmp_path, minutes=1e-9), **hidden(after))
    _, about = Checkpoints(tmp_path).read()
    assert after - 2 <= about["step"] <= after
    fit(data=points(), engine="eager", resume=tmp_path, **hidden(after))
    resumed = pyro.param("weight").item()
    fit(data=points(), engine="eager", **hidden(after))
    assert pyro.param("weight").item() == resumed


def test_recorded_by_name_does_not_end_with_steps_that_were_not_checked():
    with pytest.raises(ValueError, match=r"steps 24 to 39, replayed since the last check, cannot be trusted"):
        fit(data=points(), engine="recorded", **hidden(35))


# Recordings that fail


@pytest.mark.parametrize("shape", [(2, 3), (3, 3)])
def test_what_is_transposed_or_resized_in_place_is_put_back(shape):
    value = torch.rand(shape)
    before = value.clone()
    for change in (torch.Tensor.t_, lambda x: x.resize_(7).zero_(), lambda x: torch.ones(9, out=x.resize_(9))):
        with Changes() as changes:
            change(value)
        changes.undo()
        assert torch.equal(value, before)


def test_tensors_that_a_failed_recording_has_changed_are_put_back():
    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.out = nn.BatchNorm1d(6), nn.Linear(6, 6)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
            self.register_buffer("means", torch.zeros(2, 6))

        def model(self, x):
            pyro.module("program", self)
            self.calls += 1
            self.means[1].lerp_(x.mean(0), 0.1)
            int(self.norm(x).sum())  # a number taken from the data, behind the changes
            with pyro.plate("data", len(x)):
                mean = self.out(self.norm(x)) + self.means[1] + seen
                pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)
            torch._foreach_add_([seen], 0.01)

    results = []
    for engine in ("eager", "recorded"):
        seen, program = torch.zeros(6), Program()
        make = lambda program=program, seen=seen: (  # noqa: E731
            program.model,
            lambda _: None,
            lambda: [*program.state_dict().values(), seen],
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the step cannot be recorded")
            results.append(trained(make, engine))
    (rows, state, _), (recorded_rows, recorded_state, line) = results
    assert line.startswith("eager: the step cannot be recorded (it takes a number out of a tensor")
    assert torch.equal(rows.nan_to_num(), recorded_rows.nan_to_num())
    assert all(map(torch.equal, state, recorded_state))


def test_a_codebook_that_a_program_itself_updates_in_place_moves_once_a_step():
    def make():
        pyro.clear_param_store()

        def guide(x):
            codebook = pyro.param("codebook", torch.zeros(6))
            with torch.no_grad():
                codebook.lerp_(x.mean(0), 0.1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(codebook.detach() + pyro.param("a", torch.zeros(6)), 1.0).to_event(1))

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        return model, guide, lambda: [pyro.param("codebook")]

    assert_recorded_is_eager(make)


def test_what_a_failed_recording_has_changed_in_python_is_put_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls, self.seen, self.last, self.kinds = 0, [], {}, set()

    counting, count, waiting = Counting(), 0, deque([1, 2])

    def step(x):
        nonlocal count
        count += 1
        counting.calls += 1
        counting.seen.append(count)
        counting.last["x"] = count
        counting.kinds.add(count)
        counting.new = count
        waiting.rotate()
        return branching(x)

    recorded = Recorded(step, quiet=True)
    for calls in (1, 2, 3):
        recorded(torch.ones(2))
        assert bool(recorded.reason) == (calls > 1)
        assert (count, counting.calls, counting.new, counting.last) == (calls, calls, calls, {"x": calls})
        assert (len(counting.seen), len(counting.kinds), waiting[0]) == (calls, calls, 1 + calls % 2)


def test_a_count_in_python_that_cannot_be_put_back_after_a_failed_recording_is_an_error():
    calls = np.zeros(1)

    def step(x):
        calls[0] += 1
        return branching(x)

    recorded = Recorded(step)
    recorded(torch.ones(2))
    with pytest.raises(ValueError, match=r"the step cannot be recorded \(.*\): take engine='eager'"):
        recorded(torch.ones(2))


def test_random_numbers_are_as_without_a_recording_after_one_has_failed():
    def step(x):
        noise = torch.randn(3)
        return (noise * float(x.sum()),)

    recorded = Recorded(step, quiet=True)
    torch.manual_seed(0)
    found = torch.stack([recorded(torch.ones(1))[0] for _ in range(4)])
    torch.manual_seed(0)
    assert torch.equal(found, torch.stack([torch.randn(3) for _ in range(4)]))


def test_no_function_of_pyro_stays_changed_also_after_a_failure():
    before = trace_elbo.torch_item, trace_elbo.warn_if_nan
    during = SimpleQueue()  # which nothing puts back

    def step(x):
        during.put(trace_elbo.torch_item)
        if during.qsize() == 2:
            raise RuntimeError("in the recording")
        return (x,)

    recorded = Recorded(step, quiet=True)
    recorded(torch.ones(1))
    recorded(torch.ones(1))
    assert str(recorded) == "eager: the step cannot be recorded (RuntimeError: in the recording)"
    assert [during.get() is before[0] for _ in range(3)] == [True, False, True]  # the change was there
    assert (trace_elbo.torch_item, trace_elbo.warn_if_nan) == before


# Compiled


needs_a_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here"
)


@needs_a_compiler
@pytest.mark.slow
def test_a_compiled_training_draws_the_same_noise_and_agrees_with_the_eager_one():
    settings = {"beta": linear_warm_up(20), "transform": data.dynamic}
    rows, state, _ = trained(of_vae(learned=True), "eager", **settings)
    compiled_rows, compiled_state, line = trained(of_vae(learned=True), "compiled", **settings)
    assert line == "compiled: 17 of 33 steps were replayed"
    assert torch.allclose(rows, compiled_rows, rtol=1e-5, atol=1e-5)
    for value, compiled in zip(state, compiled_state, strict=True):
        assert (value - compiled).norm() < 1e-4 * value.norm()  # after 33 steps of Adam, which amplifies


@pytest.mark.slow
@needs_a_compiler
def test_the_check_before_a_checkpoint_moves_no_running_mean_of_a_compiled_step():
    norm, weight = torch.nn.BatchNorm1d(2), torch.ones(2, requires_grad=True)
    step = Recorded(lambda x: torch.autograd.grad((norm(x) * weight).sin().sum(), weight), compiled=True)
    inputs = torch.randn(4, 5, 2)
    for x in inputs:
        step(x)
    assert str(step) == "compiled: 1 of 4 steps were replayed"
    step.verify()
    assert norm.num_batches_tracked == 4
    expected = sum(0.1 * 0.9 ** (3 - k) * x.mean(0) for k, x in enumerate(inputs))
    assert torch.allclose(norm.running_mean, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@needs_a_compiler
def test_weights_of_particles_are_compiled_though_they_magnify_rounding():
    """Log-weights of some 500 nats are rounded by 3e-5: so much are the weights, in the eager steps as well."""
    torch.manual_seed(0)
    encoder, decoder = encoders.Normal(784, 2, SMALL), decoders.Bernoulli(2, 784, SMALL, grey=True)
    vae, x = VAE(priors.Normal(2), encoder, decoder), torch.rand(64, 784)
    history = fit(vae.model, vae.guide, x, loss=IWAE(8), engine="compiled", epochs=2, batch_size=16)
    assert history.engine == "compiled: 4 of 8 steps were replayed"


def test_rounding_that_a_sum_of_terms_that_cancel_magnifies_is_no_failure_and_a_larger_difference_is():
    torch.manual_seed(0)
    weights, x = torch.full((4096,), 3.0, requires_grad=True), torch.randn(4096)
    x -= x.mean()  # the sum is some 1e-4, of terms of 3

    def tried(stand_in, parameters):
        step = lambda: ((weights.detach() * x).sum(),)  # noqa: E731
        trial = Trial(lambda: (stand_in(),), step, lambda: [weights], 1e-5, parameters=parameters)
        assert torch.equal(weights.detach(), torch.full((4096,), 3.0))
        return trial.same

    def another_order():
        return (weights.detach() * x).cumsum(0)[-1]

    assert not tried(another_order, [])
    assert tried(another_order, [weights])
    rounding = torch.finfo(torch.float32).eps * float((weights.detach() * x).norm())  # of a sum of these terms
    assert not tried(lambda: another_order() + 100 * rounding, [weights])


@pytest.mark.slow
@needs_a_compiler
def test_a_compiled_training_goes_on_near_the_optimum_where_its_gradients_cancel():
    """Differences of 4e-4 of a gradient's norm at its 800th step ended it."""
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "two_level_vae.py"))
    torch.manual_seed(0)
    programs = example["Programs"]()
    x = example["batches"]()
    history = fit(programs.model, programs.guide, x, epochs=100, batch_size=128, engine="compiled", seed=3)
    assert history.engine == "compiled: 789 of 800 steps were replayed"


@needs_a_compiler
def test_the_terms_of_a_sum_are_compared_at_the_size_of_the_largest():
    """A KL near 0 is a difference of large sums, which a compiler may add in another order."""
    sum_and_difference = torch.tensor(1e4), torch.tensor(0.1)
    assert same(sum_and_difference, (torch.tensor(1e4), torch.tensor(0.15)), 1e-5)
    assert not same(sum_and_difference, (torch.tensor(1e4), torch.tensor(0.25)), 1e-5)
    assert not same(sum_and_difference[1:], (torch.tensor(0.10001),), 1e-5)
    assert not same(sum_and_difference, (torch.tensor(1e4), torch.tensor(0.1000001)))


@pytest.mark.parametrize("failing", ["raises", "gives other numbers"])
def test_a_step_that_cannot_be_compiled_is_recorded_and_one_that_cannot_be_recorded_either_runs_eagerly(
    failing, monkeypatch
):
    def compiled(graph, *_):
        if failing == "raises":
            raise RuntimeError("no such kernel")
        return lambda *tensors: tuple(output + 1 for output in graph(*tensors))

    monkeypatch.setattr(recording, "compiled", compiled)
    reason = "RuntimeError: no such kernel" if failing == "raises" else "compiled, it gives other numbers"
    recorded, inputs = Recorded(lambda x: (x.exp() + torch.randn(3),), compiled=True), torch.randn(7, 3)
    torch.manual_seed(0)
    with pytest.warns(RuntimeWarning, match=f"^the step cannot be compiled and is recorded .{reason}.$") as caught:
        found = [recorded(x)[0] for x in inputs]
    assert len(caught) == 1
    torch.manual_seed(0)
    assert all(torch.equal(value, x.exp() + torch.randn(3)) for value, x in zip(found, inputs, strict=True))
    line = f"recorded: 3 of 7 steps were replayed; the step cannot be compiled ({reason})"  # calls 5 to 7
    assert str(recorded) == line

    counts = itertools.count()
    recorded = Recorded(lambda x: (x * next(counts),), compiled=True)
    with pytest.warns(RuntimeWarning) as caught:
        found = [recorded(x)[0] for x in inputs]
    starts = ["the step cannot be compiled and is recorded", "the step cannot be recorded and is run eagerly"]
    assert [str(each.message).split(" (")[0] for each in caught] == starts
    assert all(torch.equal(value, x * number) for number, (value, x) in enumerate(zip(found, inputs, strict=True)))


@pytest.mark.slow
@needs_a_compiler
def test_places_of_a_mask_are_compiled_and_those_of_data_are_not():
    """How many there are hangs on values: of a constant they are found once."""
    mask = torch.tensor([True, False, True])
    recorded = Recorded(lambda x: (x[:, mask.nonzero().squeeze(-1)].exp() + torch.randn(4, 2),), compiled=True)
    inputs = torch.randn(6, 4, 3)
    torch.manual_seed(0)
    found = [recorded(x)[0] for x in inputs]
    assert str(recorded) == "compiled: 2 of 6 steps were replayed"
    torch.manual_seed(0)
    for value, x in zip(found, inputs, strict=True):
        torch.testing.assert_close(value, x[:, [0, 2]].exp() + torch.randn(4, 2))
    recorded = Recorded(lambda x: (x[x > 0].sum(),), compiled=True)
    with pytest.warns(RuntimeWarning, match="cannot be compiled and is recorded"):
        found = [recorded(x)[0] for x in inputs]
    assert all(value == x[x > 0].sum() for value, x in zip(found, inputs, strict=True))


@pytest.mark.slow
def test_a_compiled_step_that_is_not_the_eager_one_is_caught(monkeypatch):
    def spoiled(recording, *_, **__):
        return lambda *inputs: [value * (1 + 1e-4) for value in recording(*inputs)]

    monkeypatch.setattr(torch._inductor, "compile", spoiled)
    recorded = Recorded(lambda x: (x * 2,), compiled=True)
    with pytest.warns(RuntimeWarning, match="is recorded .compiled, it gives other numbers"):
        found = [recorded(torch.ones(3))[0] for _ in range(4)]
    assert all(torch.equal(value, torch.full((3,), 2.0)) for value in found)


@pytest.mark.slow
def test_a_compiler_that_fails_leads_to_recorded_steps_with_one_warning(monkeypatch):
    def without_compiler(*_, **__):
        def fail(*_):
            torch.randn(5)  # a failure in the middle of a replay has drawn some noise
            raise RuntimeError("no C++ compiler found\nmore")

        return fail

    monkeypatch.setattr(torch._inductor, "compile", without_compiler)
    recorded = Recorded(lambda x: (x + torch.randn(3),), compiled=True)
    torch.manual_seed(0)
    with pytest.warns(RuntimeWarning, match=r"is recorded \(RuntimeError: no C\+\+ compiler found\)"):
        found = [recorded(torch.zeros(3))[0] for _ in range(4)]
    torch.manual_seed(0)
    assert torch.equal(torch.stack(found), torch.stack([torch.randn(3) for _ in range(4)]))


# Which engine


def test_auto_records_long_trainings_and_says_so_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, _, short = trained(of_vae(), "auto", validation=None)
        _, _, long = trained(of_vae(), "auto", validation=None, epochs=140)
    assert short == "eager: 33 steps are too few to gain from a recording"
    assert long.startswith("recorded: ")


def test_auto_falls_back_without_a_warning(monkeypatch):
    monkeypatch.setattr(branching, "__module__", "pyro_vae.of_this_package")
    compute, how = chosen(branching, "auto", steps=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            compute(torch.ones(2))
    assert how().startswith("eager: the step cannot be recorded")


def test_eager_is_the_step_itself():
    compute, how = chosen(branching, "eager", steps=1000)
    assert (compute, how()) == (branching, "eager, as asked")


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="engine is one of auto, eager, recorded, compiled, not 'fast'"):
        trained(of_vae(), "fast")
    assert ENGINES[0] == "auto"


@pytest.mark.slow
def test_an_enumerated_model_is_trained_as_without_a_recording():
    def make():
        torch.manual_seed(0)
        logits = nn.Parameter(torch.zeros(2))
        means = nn.Parameter(torch.randn(2, 6))

        @pyro.infer.config_enumerate
        def model(x):
            pyro.param("logits", logits), pyro.param("means", means)
            with pyro.plate("data", len(x)):
                code = pyro.sample("code", dist.Categorical(logits=pyro.param("logits")))
                pyro.sample("x", dist.Normal(pyro.param("means")[code], 0.5).to_event(1), obs=x)

        return model, lambda _: None, lambda: [value for _, value in sorted(pyro.get_param_store().items())]

    settings = {"loss": TraceEnum_ELBO(max_plate_nesting=1), "validation": None}
    results = []
    for engine in ("eager", "auto"):
        pyro.clear_param_store()
        results.append(trained(make, engine, epochs=140, **settings))
    assert torch.equal(results[0][0].nan_to_num(), results[1][0].nan_to_num())
    assert all(map(torch.equal, results[0][1], results[1][1]))


# A whole step as a CUDA graph: its logic on a CPU, with functions in the place of graphs, and the graph on a GPU


def loss_and_gradient(weight, x, scale, count):
    loss = scale * ((x + torch.randn_like(x)) @ weight).square().sum() / count
    return loss, *torch.autograd.grad(loss, [weight])


class Training:
    """Linear regression with noise, by a step that changes its weight, its optimizer and a total in place."""

    def __init__(self, whole):
        torch.manual_seed(0)
        self.weight = torch.ones(3, requires_grad=True)
        self.optim = torch.optim.Adam([self.weight], lr=0.1, fused=True)
        self.total = torch.zeros(())
        self.recorded = Recorded(partial(loss_and_gradient, self.weight))
        self.step = self.take_step
        if whole:
            self.step = WholeStep(self.take_step, self.recorded, self.optim, lambda: [self.weight, self.total])

    def take_step(self, x, scale, count):
        loss, self.weight.grad = self.recorded(x, scale, count)
        self.optim.step()
        with torch.no_grad():
            self.total += loss * count
        return loss.detach().clone()

    def run(self, *, lengths=(5,) * 40, rates=(0.1,) * 40):
        source = torch.Generator().manual_seed(1)
        losses = []
        for number, (length, rate) in enumerate(zip(lengths, rates, strict=True)):
            self.optim.param_groups[0]["lr"] = rate
            x = torch.randn(length, 3, generator=source)
            losses.append(self.step(x, torch.tensor(1 + number / 40), length))
        return torch.stack([*losses, self.total, *self.weight.detach()])


def test_a_whole_step_is_the_step_to_the_last_bit(monkeypatch):
    captured = []
    monkeypatch.setattr(whole_step, "_on_one_graph", lambda function: captured.append(0) or function)
    for settings in ({}, {"lengths": [5] * 19 + [2] + [5] * 20}, {"rates": [0.1] * 20 + [0.01] * 20}):
        captured.clear()
        whole = Training(whole=True)
        assert torch.equal(whole.run(**settings), Training(whole=False).run(**settings))
        assert whole.step.launched > 25
        assert len(captured) == 1 + ("rates" in settings)
        assert whole.optim.param_groups[0]["capturable"]
        assert not whole.recorded.graphs


def test_a_step_is_captured_anew_where_one_more_parameter_has_an_optimizers_state(monkeypatch):
    captured = []
    monkeypatch.setattr(whole_step, "_on_one_graph", lambda function: captured.append(0) or function)
    whole, late = Training(whole=True), torch.ones(1, requires_grad=True)
    whole.optim.add_param_group({"params": [late]})
    whole.run()
    late.grad = torch.ones(1)
    whole.optim.step()  # as after a batch of another structure
    whole.run()
    assert len(captured) == 2


def test_a_graph_that_does_not_what_the_step_does_is_not_launched(monkeypatch):
    """It leaves the optimizer out."""
    monkeypatch.setattr(whole_step, "_on_one_graph", lambda _: lambda: torch.zeros(()))
    whole = Training(whole=True)
    with pytest.warns(RuntimeWarning, match=r"CUDA graph disabled: its result differs from the ordinary step"):
        losses = whole.run()
    assert torch.equal(losses, Training(whole=False).run())
    assert whole.step.launched == 0


def test_a_capture_that_fails_half_way_leaves_the_steps_as_they_were(monkeypatch):
    def capture(function):
        function()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(whole_step, "_on_one_graph", capture)
    whole = Training(whole=True)
    with pytest.warns(RuntimeWarning, match="operation not permitted"):
        losses = whole.run()
    assert torch.equal(losses, Training(whole=False).run())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CUDA graphs are not run")
def test_a_training_on_a_gpu_is_one_graph_a_step(monkeypatch):
    launched = []
    made = WholeStep.__init__
    monkeypatch.setattr(WholeStep, "__init__", lambda self, *args: launched.append(self) or made(self, *args))
    results = []
    for name in ("eager", "compiled"):
        vae = small_vae().to("cuda")
        history = fit(vae.model, vae.guide, points(400), engine=name, epochs=20, batch_size=16)
        results.append(history.column("train_loss"))
    assert results[1] == pytest.approx(results[0], rel=1e-3)
    assert launched[0].launched > 200


@pytest.mark.parametrize(
    "code",
    [
        lambda labels: one_hot(labels, 4),
        lambda labels: one_hot(labels, num_classes=4),
        lambda labels: one_hot(num_classes=4, input=labels),
    ],
    ids=["places", "a name", "names"],
)
def test_one_hot_codes_are_recorded(code):
    weight = torch.randn(4, requires_grad=True)
    step = Recorded(lambda labels: torch.autograd.grad((code(labels) * weight).square().sum(), weight))
    for seed in range(5):
        labels = torch.randint(0, 4, (3, 2), generator=torch.Generator().manual_seed(seed))
        (gradient,) = step(labels)
        assert torch.equal(gradient, 2 * one_hot(labels, 4).sum((0, 1)) * weight.detach())
    assert step.replayed == 2
    with pytest.raises(RuntimeError):  # as torch does, where a label is no class
        step(torch.full((3, 2), 9))


def test_programs_in_16_bits_run_eagerly():
    """A replayed loss differed by one rounding, 32.5 and 32.375, and the check of a recording ended the training."""
    vae = VAE(priors.Normal(2), encoders.Normal((3,), 2), decoders.Normal(2, (3,))).bfloat16()
    with pytest.warns(RuntimeWarning, match="is run eagerly .a replayed sum in 16 bits may be rounded"):
        history = fit(vae.model, vae.guide, torch.rand(8, 3), epochs=1, engine="recorded")
    assert history.engine.startswith("eager: a replayed sum in 16 bits")
