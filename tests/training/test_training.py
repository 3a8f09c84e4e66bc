import copy
import math
import subprocess
import sys
import warnings
from functools import partial, wraps
from types import MethodType, SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from all_cases import cases
from partners import accepted
from pyro import poutine
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.util import is_validation_enabled
from torch import nn
from torch.distributions import constraints
from torch.utils.data import TensorDataset

from pyro_vae import VAE, data, decoders, encoders, objectives, priors
from pyro_vae.diagnostics.evaluation import evaluate
from pyro_vae.networks import MLP
from pyro_vae.objectives import linear_warm_up
from pyro_vae.training import COLUMNS, History, State, fit

SMALL = partial(MLP, hidden=(5,))
SGD = partial(torch.optim.SGD, lr=1.0)
STILL = partial(torch.optim.SGD, lr=0.0)  # an optimizer that changes nothing


def small_vae(seed=0, encoder=encoders.Normal, learned=True):
    torch.manual_seed(seed)
    return VAE(
        priors.Normal(2, learned=learned),
        encoder(6, 2, SMALL),
        decoders.Normal(2, 6, SMALL, scale=0.5, learned=learned),
    )


def points(count=50):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1))


def programs(vae):
    return vae.model, vae.guide


def train(vae, x=None, **kwargs):
    x = points() if x is None else x
    return fit(*programs(vae), x, **{"batch_size": 16, "epochs": 2} | kwargs)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def without_seconds(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


# Reproducible, and alone


def test_the_same_seed_gives_the_same_history_and_weights():
    one, other = small_vae(), small_vae()
    histories = []
    for vae in (one, other):
        torch.manual_seed(int(vae is other))
        histories.append(without_seconds(train(vae, validation=points(20), seed=7)))
    assert histories[0] == histories[1]
    assert same(state(one), state(other))


def test_another_seed_gives_another_history_and_other_weights():
    one, other = small_vae(), small_vae()
    assert without_seconds(train(one, seed=7)) != without_seconds(train(other, seed=8))
    assert not same(state(one), state(other))


def test_what_is_measured_and_called_has_no_influence_on_the_training():
    one, other = small_vae(), small_vae()
    train(one)
    train(other, validation=points(20), on_step=lambda *_: torch.rand(0), on_epoch=lambda _: None)
    assert same(state(one), state(other))


def test_fit_leaves_the_random_state_alone():
    vae, x = small_vae(), torch.rand(70, 6)
    before = torch.get_rng_state()
    train(vae, x[:50], transform=data.dynamic, validation=x[50:])
    assert torch.equal(torch.get_rng_state(), before)


def test_fit_leaves_the_parameter_store_empty():
    train(small_vae(), validation=points(20))
    assert not list(pyro.get_param_store().keys())


def validation():
    flags = [pyro.settings.get(f"validate_{what}") for what in ("distributions_pyro", "distributions_torch", "poutine")]
    return *flags, torch.distributions.Distribution._validate_args, is_validation_enabled()


class StopError(Exception):
    """Raised by a test in the middle of a fit."""


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("stops", [True, False])
def test_fit_leaves_validation_flags_random_state_and_mode_alone_also_after_an_error(enabled, stops):
    def stop(*_):
        if stops:
            raise StopError

    vae = small_vae().eval()
    vae.decoder.train()
    modes = [module.training for module in vae.modules()]
    with pyro.validation_enabled(enabled):
        before = validation(), torch.get_rng_state()
        try:
            train(vae, on_step=stop)
        except StopError:
            assert stops
        assert validation() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
    assert [module.training for module in vae.modules()] == modes


def test_two_vaes_in_one_process_both_train_and_share_nothing():
    one, other, alone = small_vae(1), small_vae(2), small_vae(2)
    before = state(one), state(other)
    train(one)
    after = state(one)
    train(other)
    train(alone)
    for now, then in ((state(one), before[0]), (state(other), before[1])):
        assert not any(torch.equal(now[name], then[name]) for name in now)
    assert same(state(one), after)
    assert same(state(other), state(alone))
    assert not {value.data_ptr() for value in one.parameters()} & {value.data_ptr() for value in other.parameters()}


def test_training_mode_in_the_steps_and_evaluation_mode_in_the_measures():
    seen = []

    class Noting(nn.Linear):
        def forward(self, x):
            seen.append((len(x), self.training))
            return super().forward(x)

    vae = VAE(priors.Normal(2), encoders.Delta(6, 2, lambda *_: Noting(6, 2)), decoders.Normal(2, 6)).eval()
    train(vae, validation=points(20))
    assert [count for count, training in seen if training] == 2 * [16, 16, 16, 2]
    assert {count for count, training in seen if not training} >= {50, 20}
    assert not vae.encoder.network.training


@pytest.mark.parametrize("engine", ["eager", "recorded"])
@pytest.mark.parametrize("name", ["on_epoch", "on_step"])
def test_modules_that_a_callback_leaves_in_evaluation_mode_go_on_in_training_mode(name, engine):
    def with_dropout():
        vae = small_vae()
        vae.decoder.network = nn.Sequential(nn.Dropout(0.5), vae.decoder.network)
        return vae

    left, alone = with_dropout(), with_dropout()
    train(alone, engine=engine)
    with pytest.warns(RuntimeWarning, match=f"{name} leaves Dropout in evaluation mode.*train\\(\\)"):
        train(left, engine=engine, **{name: lambda *_: left.eval()})
    assert same(state(left), state(alone))


def test_evaluation_mode_without_a_layer_that_depends_on_it_gives_no_warning():
    left, alone = small_vae(), small_vae()
    train(alone)
    train(left, on_epoch=lambda _: left.eval())
    assert same(state(left), state(alone))
    assert left.training


@pytest.mark.parametrize("name", ["on_epoch", "on_step"])
def test_a_callback_that_converts_the_parameters_is_refused(name):
    vae = small_vae()
    with pytest.raises(ValueError, match=f"{name} converts a parameter from torch.float32 on cpu to torch.float64"):
        train(vae, **{name: lambda *_: vae.double()})


# The same as stochastic variational inference by hand


def svi(model, guide, x, *, epochs, batch_size, seed, lr=1e-3, loss=None):
    """Train a pair of programs as the documentation of Pyro has it, each step on the mean of its batch."""
    optimizer, order = pyro.optim.Adam({"lr": lr}), torch.Generator().manual_seed(seed)
    pyro.set_rng_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=order).split(batch_size):
            scaled = [poutine.scale(program, scale=1 / len(index)) for program in (model, guide)]
            SVI(*scaled, optimizer, loss or Trace_ELBO()).step(x[index])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("optimizer", [{}, {"optimizer": partial(torch.optim.Adam, lr=1e-3)}], ids=["default", "adam"])
@pytest.mark.parametrize("loss", [Trace_ELBO(), Trace_ELBO(num_particles=2), TraceMeanField_ELBO()])
def test_fit_equals_svi_after_100_steps(optimizer, loss):
    ours, theirs, x = small_vae(), small_vae(), points(50)
    # 4 steps an epoch, the last on 2 data.
    fit(*programs(ours), x, epochs=25, batch_size=16, seed=3, loss=loss, validation=points(20), **optimizer)
    svi(*programs(theirs), x, epochs=25, batch_size=16, seed=3, loss=loss)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10, msg=name)
    assert not same(state(ours), state(small_vae()))


class Own:
    """A pair of functions with a module, and params of which one is constrained and one may come late."""

    def __init__(self, late=math.inf):
        torch.manual_seed(0)
        self.encoder, self.steps, self.late = nn.Linear(6, 2), 0, late

    def model(self, x):
        weight = pyro.param("weight", lambda: torch.ones(2, 6))
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        offset = pyro.param("offset", torch.zeros(6)) if self.steps >= self.late else 0
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight + offset, scale).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))

    def programs(self):
        # Plain functions: the module is known to Pyro alone.
        return (lambda x: self.model(x)), (lambda x: self.guide(x))


def store():
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("late", [math.inf, 5])
def test_functions_of_ones_own_are_trained_as_svi_trains_them(late):
    ours, x = Own(late), points(50) + 1

    def count(step, _):
        ours.steps = step + 1

    fit(*ours.programs(), x, epochs=10, batch_size=16, seed=3, on_step=count)
    found = store()
    assert found.keys() == {"weight", "scale"} | ({"offset"} if late < math.inf else set())

    pyro.clear_param_store()
    theirs = Own(late)
    model, guide = theirs.programs()

    def counting(x):  # SVI has no on_step: the guide runs first, then the model, which counts
        model(x)
        theirs.steps += 1

    svi(counting, guide, x, epochs=10, batch_size=16, seed=3)
    for name, value in store().items():
        if "$$$" not in name:
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10, msg=name)
    for one, other in zip(ours.encoder.parameters(), theirs.encoder.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert abs(found["scale"] - 2) > 1e-3
    if late < math.inf:
        assert found["offset"].all()


class InTurn(nn.Module):
    """Of two data in turn, some batches hold both and others one, and do not reach the parameters of the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.first, self.second = nn.Linear(6, 2), nn.Linear(2, 6), nn.Linear(2, 6)

    def model(self, x, y=None):
        pyro.module("in_turn", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.first(z), 1.0).to_event(1), obs=x)
            if y is not None:
                pyro.sample("y", dist.Normal(self.second(z), 1.0).to_event(1), obs=y)

    def guide(self, x, y=None):  # noqa: ARG002
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))

    def batches(self):
        return [(x, None if number in (0, 2) else 1 - x) for number, x in enumerate(points(48).split(8))]


OPTIMIZERS = [(torch.optim.Adam, {"lr": 1e-3}), (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.5})]  # SGD has no state


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_parameters_that_a_batch_does_not_reach_are_trained_as_svi_trains_them(engine, optimizer):
    (kind, settings), ours, theirs = optimizer, InTurn(), InTurn()
    fit(*programs(ours), ours.batches(), epochs=4, seed=3, engine=engine, optimizer=partial(kind, **settings))
    optimizer = pyro.optim.PyroOptim(kind, settings)
    pyro.set_rng_seed(3)
    for batch in 4 * theirs.batches():
        scaled = [poutine.scale(program, scale=1 / 8) for program in programs(theirs)]
        SVI(*scaled, optimizer, Trace_ELBO()).step(*batch)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_that_a_batch_does_not_reach_are_resumed_to_the_last_bit(tmp_path, optimizer):
    whole, resumed, optimizer = InTurn(), InTurn(), partial(optimizer[0], **optimizer[1])
    fit(*programs(whole), whole.batches(), epochs=3, optimizer=optimizer)
    fit(*programs(resumed), resumed.batches(), epochs=1, optimizer=optimizer, checkpoints=tmp_path)
    fit(*programs(resumed), resumed.batches(), epochs=3, optimizer=optimizer, resume=tmp_path)
    assert same(state(whole), state(resumed))


class Classifier(nn.Module):
    """Learns from the batches that have labels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(6, 3)

    def model(self, x, y=None):
        pyro.module("classifier", self)
        with pyro.plate("data", len(x)):
            if y is not None:
                pyro.sample("y", dist.Categorical(logits=self.network(x)), obs=y)

    def guide(self, x, y=None):
        pass

    def batches(self):
        labels = torch.arange(48) % 3
        pairs = zip(points(48).split(8), labels.split(8), strict=True)
        return [(x, y if number in (0, 1, 3) else None) for number, (x, y) in enumerate(pairs)]


@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_batches_that_reach_no_parameter_are_steps_as_by_svi(engine):
    ours, theirs = Classifier(), Classifier()
    history = fit(*programs(ours), ours.batches(), epochs=4, engine=engine)
    svi = SVI(*programs(theirs), pyro.optim.Adam({"lr": 1e-3, "eps": 8e-8}), Trace_ELBO())
    losses = [svi.step(*batch) / 8 for batch in 4 * theirs.batches()]
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
    assert history[-1]["train_loss"] == pytest.approx(sum(losses[-6:]) / 6)


def test_a_training_in_which_no_batch_reaches_a_parameter_is_refused():
    def model(x):
        unused = pyro.param("unused", torch.ones(6))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(unused.detach(), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="the loss does not depend on any parameter, in any batch: compute it from"):
        fit(model, lambda _: None, points())


def test_a_constrained_param_stays_within_its_constraint_and_finds_its_maximum():
    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale).expand([6]).to_event(1), obs=x)

    def guide(_):
        pass

    x = 0.01 * points()
    fit(model, guide, x, epochs=300, batch_size=50, optimizer=partial(torch.optim.Adam, lr=0.1))
    # The maximum of the likelihood is the root of the mean square.
    assert pyro.param("scale").item() == pytest.approx((x**2).mean().sqrt().item(), rel=1e-3)


# What is reported


def test_the_history_has_a_row_for_each_epoch_and_the_stated_columns():
    history = train(small_vae(), epochs=3, validation=points(20))
    assert isinstance(history, History)
    assert history.column("epoch") == [0, 1, 2, 3]
    for row in history:
        assert tuple(row) == COLUMNS
        assert all(math.isfinite(value) for value in row.values())
    assert history.column("seconds")[0] == 0
    assert all(seconds > 0 for seconds in history.column("seconds")[1:])


def test_no_epochs_measure_and_change_nothing():
    vae, before = small_vae(), state(small_vae())
    history = train(vae, epochs=0)
    assert history.column("epoch") == [0]
    assert same(state(vae), before)


def test_the_test_columns_are_nan_without_validation_and_only_they():
    for row in train(small_vae()):
        assert {name for name, value in row.items() if math.isnan(value)} == {c for c in COLUMNS if c[:5] == "test_"}


@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_row_0_is_an_evaluation_before_the_first_step(loss):
    vae, x = small_vae(), points()
    before = evaluate(*programs(vae), x, seed=4, loss=loss)
    row = train(vae, x, seed=4, loss=loss)[0]
    assert (row["train_loss"], row["train_reconstruction"], row["train_kl"]) == before


@pytest.mark.parametrize("transform", [None, torch.sigmoid])
def test_the_test_columns_of_the_last_row_are_evaluations_afterwards(transform):
    vae, held_out = small_vae(), points(20)
    row = train(vae, validation=held_out, seed=4, transform=transform)[-1]
    after = evaluate(*programs(vae), held_out, seed=4, transform=transform)
    assert (row["test_loss"], row["test_reconstruction"], row["test_kl"]) == after
    at_mean = evaluate(*programs(vae), held_out, at="mean", transform=transform)
    assert row["test_loss_at_mean"] == at_mean.loss


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0, linear_warm_up(6), lambda step: step % 2])
@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO(), Trace_ELBO(num_particles=2)])
def test_the_loss_is_reconstruction_plus_kl_in_every_row(beta, loss):
    for row in train(small_vae(), beta=beta, loss=loss, validation=points(20)):
        for part in ("train", "test"):
            terms = row[f"{part}_reconstruction"] + row[f"{part}_kl"]
            assert row[f"{part}_loss"] == pytest.approx(terms, rel=1e-4)


def test_the_loss_is_reconstruction_plus_kl_also_where_a_site_is_summed_out():
    def model(x):
        centres = pyro.param("centres", lambda: torch.randn(3, 6))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(centres[k] + z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

    guide = small_vae().guide
    for row in fit(model, guide, points(), loss=TraceEnum_ELBO(max_plate_nesting=1), epochs=1, batch_size=16):
        assert row["train_loss"] == pytest.approx(row["train_reconstruction"] + row["train_kl"], rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_losses_are_reported_at_weight_1_and_steps_at_beta(beta):
    # The point encoder has no noise: what does not change is measured alike every time.
    vae, x, steps = small_vae(encoder=encoders.Delta), points(48), []
    bound = evaluate(*programs(vae), x)
    history = train(vae, x, beta=beta, optimizer=STILL, on_step=lambda _, loss: steps.append(loss.item()))
    for row in history:
        assert row["train_loss"] == pytest.approx(bound.loss, rel=1e-5)
        assert row["train_reconstruction"] == pytest.approx(bound.reconstruction, rel=1e-5)
        assert row["train_kl"] == pytest.approx(bound.kl, rel=1e-5)
    assert np.mean(steps) == pytest.approx(bound.reconstruction + beta * bound.kl, rel=1e-5)


@pytest.mark.parametrize(("count", "batch_size"), [(50, 16), (50, 49), (50, 50), (3, 2), (1, 1)])
def test_a_smaller_last_batch_counts_by_its_data(count, batch_size):
    vae, x = small_vae(encoder=encoders.Delta), points(count)
    row = train(vae, x, batch_size=batch_size, optimizer=STILL, epochs=1)[1]
    bound = evaluate(*programs(vae), x)
    assert row["train_loss"] == pytest.approx(bound.loss, rel=1e-5)
    assert row["train_reconstruction"] == pytest.approx(bound.reconstruction, rel=1e-5)
    assert row["train_kl"] == pytest.approx(bound.kl, rel=1e-5)


def test_on_step_gets_every_step_and_its_detached_loss_per_datum():
    vae, x, calls = small_vae(encoder=encoders.Delta), points(50), []
    train(vae, x, optimizer=STILL, on_step=lambda *call: calls.append(call))
    assert [step for step, _ in calls] == list(range(2 * 4))
    order = torch.Generator().manual_seed(0)
    batches = [index for _ in range(2) for index in torch.randperm(50, generator=order).split(16)]
    for (_, loss), index in zip(calls, batches, strict=True):
        assert loss.shape == ()
        assert not loss.requires_grad
        assert loss.item() == pytest.approx(evaluate(*programs(vae), x[index]).loss, rel=1e-5)


def test_on_epoch_gets_every_row_as_it_is_measured():
    rows, counts = [], []

    def on_epoch(row):
        rows.append(row)
        counts.append(len(steps))

    steps = []
    history = train(small_vae(), epochs=3, on_epoch=on_epoch, on_step=lambda step, _: steps.append(step))
    assert len(rows) == len(history)
    assert rows == list(history)
    assert counts == [0, 4, 8, 12]


def test_every_epoch_sees_every_datum_once_in_another_order():
    seen = []

    class Noting(VAE):
        def model(self, x):
            if torch.is_grad_enabled():
                seen.append(x[:, 0])
            return super().model(x)

    vae, x = small_vae(), points(50)
    noting = Noting(vae.prior, vae.encoder, vae.decoder)
    train(noting, x)
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert [len(batch) for batch in seen] == 2 * [16, 16, 16, 2]
    assert torch.equal(first.sort().values, x[:, 0].sort().values)
    assert torch.equal(second.sort().values, x[:, 0].sort().values)
    assert not torch.equal(first, second)


# What is trained


@pytest.mark.parametrize("case", cases("decoders"), ids=repr)
def test_the_loss_falls_on_digits_for_every_decoder(case):
    x = data.load("digits").train[:500, 0, :4, :6].reshape(-1, 2, 4, 3)
    network = partial(MLP, hidden=(32,))
    vae = VAE(priors.Normal(3), encoders.Normal(x.shape[1:], 3, network), case.make(3, network=network))
    x = accepted(getattr(vae.decoder, "decoder", vae.decoder), x)
    history = fit(*programs(vae), x[:400], validation=x[400:], epochs=5, batch_size=32)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["test_loss"] < history[0]["test_loss"]


def test_every_parameter_moves():
    vae, before = small_vae(), state(small_vae())
    train(vae)
    for name, value in state(vae).items():
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("learned", [True, False])
def test_a_weight_of_0_and_a_point_encoder_are_an_autoencoder(learned):
    # Least squares by hand: the same network, data and steps, without a prior.
    vae, by_hand = (small_vae(encoder=encoders.Delta, learned=learned) for _ in range(2))
    x = points(50)
    prior = state(vae.prior)
    train(vae, x, beta=0.0, optimizer=partial(torch.optim.SGD, lr=0.01))
    assert same(state(vae.prior), prior)
    order, parameters = torch.Generator().manual_seed(0), [*by_hand.encoder.parameters(), *by_hand.decoder.parameters()]
    for _ in range(2):
        for index in torch.randperm(50, generator=order).split(16):
            (-by_hand.decoder(by_hand.encoder.network(x[index])).log_prob(x[index]).mean()).backward()
            with torch.no_grad():
                for parameter in parameters:
                    parameter -= 0.01 * parameter.grad
                    parameter.grad = None
    for one, other in zip([*vae.encoder.parameters(), *vae.decoder.parameters()], parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("encoder", [encoders.Normal, encoders.Delta])
def test_at_a_weight_of_0_a_learned_prior_gets_no_gradient_and_stays_to_the_last_bit(encoder):
    vae = small_vae(encoder=encoder)
    before = state(vae.prior)
    train(vae, beta=0.0)
    assert same(state(vae.prior), before)
    for parameter in vae.prior.parameters():
        assert parameter.grad is None or not parameter.grad.any()


def test_a_schedule_is_asked_once_for_every_step():
    asked = []

    def schedule(step):
        asked.append(step)
        return linear_warm_up(6)(step)

    train(small_vae(), beta=schedule)
    assert asked == list(range(2 * 4))


def test_a_constant_schedule_is_a_constant():
    one, other = small_vae(), small_vae()
    assert without_seconds(train(one, beta=0.5)) == without_seconds(train(other, beta=lambda _: 0.5))
    assert same(state(one), state(other))


def change(**kwargs):
    """Return the change that one step of gradient descent on all data makes to the parameters, as a vector."""
    vae, x = small_vae(), points(50)
    before = nn.utils.parameters_to_vector(vae.parameters()).detach().clone()
    train(vae, x, epochs=1, batch_size=50, optimizer=SGD, **kwargs)
    return nn.utils.parameters_to_vector(vae.parameters()).detach() - before


def test_a_large_beta_weighs_the_gradient_of_the_kl_linearly():
    base = change(beta=0.0)
    torch.testing.assert_close(change(beta=4.0) - base, 4 * (change(beta=1.0) - base), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("clip_norm", [1e-3, 0.5])
def test_clip_norm_shortens_the_gradient_of_all_parameters_together(clip_norm):
    whole, clipped = change(), change(clip_norm=clip_norm)
    assert whole.norm() > clip_norm
    assert clipped.norm().item() == pytest.approx(clip_norm, rel=1e-5)
    torch.testing.assert_close(clipped / clipped.norm(), whole / whole.norm(), rtol=1e-9, atol=1e-9)


def test_clip_norm_leaves_a_shorter_gradient_alone():
    assert torch.equal(change(clip_norm=1e6), change())


@pytest.mark.usefixtures("float64")
def test_the_step_is_on_the_mean_of_the_batch():
    vae, x = small_vae(encoder=encoders.Delta), points(50)
    loss = Trace_ELBO().differentiable_loss(*programs(vae), x) / 50
    gradients = torch.autograd.grad(loss, list(vae.parameters()))
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    train(vae, x, epochs=1, batch_size=50, optimizer=SGD)
    for parameter, start, gradient in zip(vae.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(start - parameter, gradient, rtol=1e-9, atol=1e-12)


def test_dynamic_binarization_is_drawn_anew_for_every_batch_and_repeats_with_the_seed():
    x, drawn = torch.full((50, 6), 0.5), []

    def transform(batch):
        drawn.append(data.dynamic(batch))
        return drawn[-1]

    def bernoulli_vae():
        torch.manual_seed(0)
        return VAE(priors.Normal(2), encoders.Normal(6, 2, SMALL), decoders.Bernoulli(2, 6, SMALL))

    one, other, third = bernoulli_vae(), bernoulli_vae(), bernoulli_vae()
    histories = [
        without_seconds(train(one, x, transform=transform)),
        without_seconds(train(other, x, transform=data.dynamic)),
        without_seconds(train(third, x, transform=data.dynamic, seed=1)),
    ]
    assert histories[0] == histories[1] != histories[2]
    assert same(state(one), state(other))
    assert not same(state(one), state(third))
    batches = [batch for batch in drawn if len(batch) == 16][-2 * 3 :]  # those of the steps, after those of the checks
    assert len(batches) == 2 * 3
    assert not any(torch.equal(a, b) for i, a in enumerate(batches) for b in batches[:i])


def test_what_is_frozen_stays():
    vae = small_vae()
    for parameter in vae.encoder.parameters():
        parameter.requires_grad_(False)
    before = state(vae)
    with pytest.warns(UserWarning, match="requires_grad=False"):  # Pyro's
        train(vae)
    after = state(vae)
    for name in before:
        assert torch.equal(after[name], before[name]) == name.startswith("encoder"), name


# What is accepted


@pytest.mark.parametrize(
    "wrap", [TensorDataset, lambda x: TensorDataset(x, torch.zeros(len(x))), lambda x: x.numpy(), list]
)
@pytest.mark.filterwarnings("ignore:only the first of the 2 parts")
def test_data_of_any_kind_train_alike(wrap):
    one, other, x = small_vae(), small_vae(), points(50)
    assert without_seconds(train(one, x)) == without_seconds(train(other, wrap(x)))
    assert same(state(one), state(other))


def test_the_programs_may_stand_in_handlers_of_ones_own():
    one, other, x = small_vae(), small_vae(), points(50)
    train(one, x)
    fit(*(poutine.scale(program, scale=1.0) for program in programs(other)), x, epochs=2, batch_size=16)
    assert same(state(one), state(other))


def test_fit_changes_neither_the_data_nor_the_loss_object():
    x, loss = points(50), Trace_ELBO(num_particles=2, vectorize_particles=True)
    before = x.clone(), copy.copy(vars(loss))
    train(small_vae(), x, loss=loss)
    assert torch.equal(x, before[0])
    assert vars(loss) == before[1]


@pytest.mark.parametrize("loss", [Trace_ELBO, RenyiELBO(), JitTrace_ELBO(), "Trace_ELBO", None])
def test_a_loss_that_cannot_serve_is_refused(loss):
    with pytest.raises(TypeError, match=r"loss must be an ELBO such as Trace_ELBO\(\)"):
        train(small_vae(), loss=loss)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"on_step": 3}, "on_step must be a function or a class, not 3"),
        ({"on_epoch": "csv"}, "on_epoch must be a function or a class, not 'csv'"),
        ({"transform": 3}, "transform must be a function or a class, not 3"),
        ({"beta": lambda _, __: 1.0}, "beta must be a function of the step alone: missing a required argument"),
        ({"transform": lambda x, _: x}, "transform must be a function of a batch alone: missing a required argument"),
        ({"on_step": lambda _: None}, "on_step must be a function of the step and its loss alone: too many"),
        ({"on_epoch": lambda: None}, "on_epoch must be a function of the row of an epoch alone: too many"),
        ({"optimizer": lambda: None}, "optimizer must be a function of the parameters alone: too many"),
        ({"schedule": lambda: None}, "schedule must be a function of the optimizer alone: too many"),
        ({"checkpoints": 3}, "the folder of checkpoints must be a path, not 3"),
        ({"fabric": "ddp"}, "fabric must be a launched lightning_fabric.Fabric, not 'ddp'"),
    ],
)
def test_arguments_of_another_kind_are_refused_before_any_work(kwargs, message):
    vae = small_vae()
    with pytest.raises(TypeError, match=message):
        fit(vae.model, vae.guide, points(), **kwargs)


def test_a_part_that_programs_need_and_that_is_none_is_named():
    """Validation data without the labels that the programs add."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal((z + y).unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x, _):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)).expand(len(x)), 1.0))

    x = torch.zeros(8, 1)
    words = r"the programs fail on \(tensor of shape \(8, 1\), None\) \(unsupported .*\): give this part, or let"
    with pytest.raises(TypeError, match=words):
        fit(model, guide, (x, x[:, 0]), validation=(x, None), epochs=1)


def test_a_program_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="guide must be a function or a class, not None"):
        fit(small_vae().model, None, points())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"epochs": -1}, "epochs must be at least 0, not -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": -3}, "batch_size must be at least 1, not -3"),
        ({"clip_norm": 0.0}, r"clip_norm must be above 0, not 0\.0"),
        ({"clip_norm": -1.0}, r"clip_norm must be above 0, not -1\.0"),
        ({"clip_norm": math.nan}, "clip_norm must be above 0, not nan"),
        ({"beta": -0.5}, r"beta must be at least 0 and finite, not -0\.5"),
        ({"beta": math.inf}, "beta must be at least 0 and finite, not inf"),
        ({"beta": math.nan}, "beta must be at least 0 and finite, not nan"),
        ({"beta": lambda step: 1.0 - step}, r"beta must be at least 0 and finite, not -1\.0"),
        ({"validation": torch.zeros(20, 7)}, r"\(\*batch, 6\), but got \(2, 7\)"),
        ({"validation": torch.full((20, 6), math.nan)}, r"the data hold nan at index \(0, 0\) of the validation data;"),
        ({"validation": torch.zeros(0, 6)}, "N at least 1"),
        ({"x": torch.zeros(0, 6)}, "N at least 1"),
        (
            {"x": torch.full((50, 6), math.inf)},
            r"the data hold inf at index \(0, 0\); .* not finite, or are beyond 3.4e\+38",
        ),
        ({"x": torch.zeros(50, 7)}, r"\(\*batch, 6\), but got \(2, 7\)"),
    ],
)
def test_what_is_out_of_range_is_refused_with_what_was_given(kwargs, message):
    with pytest.raises(ValueError, match=message):
        train(small_vae(), **kwargs)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_training_without_gradients_is_refused_with_the_fix(context):
    with context(), pytest.raises(ValueError, match=r"no parameter that is trained: train outside torch\.no_grad\(\)"):
        train(small_vae())


def test_fewer_data_than_a_batch_are_one_batch():
    all_at_once = train(small_vae(), batch_size=50)
    for kwargs in ({"batch_size": 51}, {"batch_size": 2**62}):
        history = train(small_vae(), **kwargs)
        assert [history.column(name) for name in ("train_loss", "train_kl")] == [
            all_at_once.column(name) for name in ("train_loss", "train_kl")
        ]


@pytest.mark.parametrize("kwargs", [{"x": 5}, {"x": "digits"}, {"validation": 5}])
def test_data_of_no_known_kind_are_refused(kwargs):
    with pytest.raises(TypeError, match="must be a tensor, an array or a data set"):
        train(small_vae(), **kwargs)


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")  # Pyro's, beside our error
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_its_step(value):
    vae, states = small_vae(), []

    def transform(batch):
        return value * batch if len(states) == 5 and len(batch) < 50 else batch

    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf), .* in epoch 2, step 5: the data; lower"):
        train(vae, on_step=lambda *_: states.append(state(vae)), transform=transform)
    assert len(states) == 5
    assert same(state(vae), states[-1])


def test_grey_pixels_for_a_strict_bernoulli_are_refused_before_any_step():
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2, SMALL), decoders.Bernoulli(2, 6, SMALL))
    before = state(vae)
    with pytest.raises(ValueError, match="grey=True"):
        train(vae, torch.rand(50, 6))
    assert same(state(vae), before)


def test_what_pyro_refuses_by_its_validation_is_refused_where_that_is_off():
    """Without a word the score function's term would be missing from the gradient."""
    encoder = encoders.ScoreFunction(encoders.Normal(4, 2))
    vae = VAE(priors.Normal(2), encoder, decoders.Normal(2, 4))
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="must be fully reparameterized"):
        fit(vae.model, vae.guide, torch.zeros(8, 4), epochs=1, batch_size=8, loss=TraceMeanField_ELBO())


def test_programs_without_parameters_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], torch.ones(6)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"no parameters to train: name them by pyro\.module or pyro\.param"):
        fit(model, guide, points(), batch_size=16)


def test_a_plain_torch_distribution_is_refused():
    class Plain(priors.Normal):
        def forward(self):
            return torch.distributions.Normal(self.loc, self.log_scale.exp())

    with pytest.raises(TypeError, match=r"prior must return a distribution of pyro\.distributions"):
        train(VAE(Plain(2), encoders.Normal(6, 2), decoders.Normal(2, 6)))


# Objectives of one's own


class Penalized(Trace_ELBO):
    """With a penalty on the weights of the model's decoder that SVI would see."""

    def loss_and_grads(self, model, guide, *args):
        penalty = 1e3 * model.__self__.decoder.network.layers[0].weight.square().sum()
        penalty.backward()
        return super().loss_and_grads(model, guide, *args) + penalty.item()


def one_step(loss, beta=1.0, rate=1e-4, **settings):
    """The row of one step of gradient descent, and the decoder's weights before and after it."""
    torch.manual_seed(0)
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Normal(2, 6))
    weight = vae.decoder.network.layers[0].weight
    before, x = weight.detach().clone(), torch.rand(10, 6)
    descent = partial(torch.optim.SGD, lr=rate)
    history = fit(vae.model, vae.guide, x, loss=loss, epochs=1, batch_size=10, optimizer=descent, beta=beta, **settings)
    return history[1], before, weight.detach().clone()


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_an_elbo_that_adds_to_loss_and_grads_is_trained_and_reported_with_it(beta, engine):
    row, before, after = one_step(Trace_ELBO(), beta)
    own, _, after_own = one_step(Penalized(), beta, engine=engine)
    # the gradient of the mean over 10 data of 1,000 times the sum of squares
    torch.testing.assert_close(after_own, after - 1e-4 * 2e3 * before / 10)
    penalty = 1e3 * before.square().sum().item() / 10
    assert own["train_loss"] == pytest.approx(row["train_loss"] + penalty, rel=1e-5)
    assert own["train_reconstruction"] == pytest.approx(row["train_reconstruction"])
    assert own["train_kl"] == pytest.approx(row["train_kl"], rel=1e-4)


def test_an_objective_of_this_package_with_loss_and_grads_of_ones_own_is_trained_by_it():
    class Doubled(objectives.IWAE):
        def loss_and_grads(self, model, guide, *args, **kwargs):
            value = 2 * self.terms(model, guide, *args, **kwargs).loss
            value.backward()
            return value.item()

    row, before, after = one_step(objectives.IWAE(3))
    own, _, after_own = one_step(Doubled(3))
    torch.testing.assert_close(after_own - before, 2 * (after - before), rtol=1e-3, atol=1e-6)
    assert own["train_loss"] == pytest.approx(2 * row["train_loss"], rel=1e-5)
    assert math.isnan(own["train_kl"])


def test_a_method_that_is_put_on_the_elbo_itself_is_called():
    loss = Trace_ELBO()

    def loss_and_grads(self, model, guide, *args):
        return 3 * Trace_ELBO.loss_and_grads(self, model, guide, *args)

    loss.loss_and_grads = loss_and_grads.__get__(loss)
    assert one_step(loss)[0]["train_loss"] == pytest.approx(3 * one_step(Trace_ELBO())[0]["train_loss"], rel=1e-5)


class ByAnother(Trace_ELBO):
    """Computes the gradients of another ELBO."""

    def loss_and_grads(self, *args):
        return Trace_ELBO().loss_and_grads(*args)


class ByItsParent(Trace_ELBO):
    """Computes its own gradients, and no others."""

    def loss_and_grads(self, *args):
        return super().loss_and_grads(*args)


def on_the_object():
    loss = Trace_ELBO()
    loss.loss_and_grads = MethodType(lambda self, *args: Trace_ELBO.loss_and_grads(self, *args), loss)
    return loss


@pytest.mark.parametrize("engine", ["eager", "recorded"])
@pytest.mark.parametrize("make", [ByAnother, ByItsParent, on_the_object])
def test_an_elbo_that_calls_the_gradients_of_pyro_is_trained_by_them(make, engine):
    _, before, plain = one_step(Trace_ELBO(), rate=1.0)
    _, _, after = one_step(make(), rate=1.0, engine=engine)
    assert (plain - before).abs().max() > 0.01
    torch.testing.assert_close(after, plain)


class OnlyLoss(Trace_ELBO):
    def loss(self, model, guide, *args, **kwargs):
        return 2 * super().loss(model, guide, *args, **kwargs)


class OnlySurrogate(Trace_ELBO):
    def loss_and_surrogate_loss(self, *_):
        return 0.0, 0.0


class OnlyLossOfOurs(objectives.IWAE):
    def loss(self, model, guide, *args, **kwargs):
        return 2 * super().loss(model, guide, *args, **kwargs)


class OnlyDifferentiable(objectives.IWAE):
    def differentiable_loss(self, model, guide, *args, **kwargs):
        return 2 * super().differentiable_loss(model, guide, *args, **kwargs)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (OnlyLoss(), "OnlyLoss overrides loss, which training does not call: override loss_and_grads"),
        (OnlySurrogate(), "OnlySurrogate overrides loss_and_surrogate_loss, which training does not call: override"),
        (OnlyLossOfOurs(2), "OnlyLossOfOurs overrides loss, which training does not call: override terms or loss_and"),
        (OnlyDifferentiable(2), "OnlyDifferentiable overrides differentiable_loss, which training does not call"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, pyro.infer.ELBO) else "",
)
def test_a_value_that_training_would_not_see_is_refused(loss, message):
    with pytest.raises(TypeError, match=message):
        one_step(loss)


def test_evaluate_gives_an_overridden_loss():
    vae, x = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Normal(2, 6)), torch.rand(10, 6)
    for own, base in ((OnlyLoss(), Trace_ELBO()), (OnlyLossOfOurs(2), objectives.IWAE(2))):
        doubled, bound = (evaluate(vae.model, vae.guide, x, loss=loss).loss for loss in (own, base))
        assert doubled == pytest.approx(2 * bound, rel=1e-6)


def test_a_differentiable_loss_of_ones_own_is_trained():
    class Doubled(Trace_ELBO):
        def differentiable_loss(self, model, guide, *args, **kwargs):
            return 2 * super().differentiable_loss(model, guide, *args, **kwargs)

    row, before, after = one_step(Trace_ELBO())
    own, _, after_own = one_step(Doubled())
    torch.testing.assert_close(after_own - before, 2 * (after - before), rtol=1e-3, atol=1e-7)
    assert own["train_loss"] == pytest.approx(2 * row["train_loss"], rel=1e-5)


def test_an_elbo_that_makes_traces_of_its_own_reports_its_loss_and_no_terms():
    class OwnTraces(Trace_ELBO):
        def loss_and_grads(self, model, guide, *args):
            value = sum(Trace_ELBO(num_particles=2).differentiable_loss(model, guide, *args) for _ in range(2)) / 2
            value.backward()
            return value.detach()

    row, *_ = one_step(OwnTraces())
    assert math.isfinite(row["train_loss"])
    assert math.isnan(row["train_reconstruction"])
    assert math.isnan(row["train_kl"])


# Optimizers


def linear(x, embedding=None):
    """A pair of programs around a linear layer, or an embedding."""
    module = embedding or torch.nn.Linear(1, 1)

    def model(batch):
        pyro.module("module", module)
        with pyro.plate("data", len(batch)):
            mean = module(torch.zeros(len(batch), dtype=torch.int64)) if embedding else module(batch)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=batch)

    return model, lambda _: None, x


def test_a_scheduler_from_the_factory_steps_once_an_epoch():
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    make = lambda parameters: torch.optim.lr_scheduler.StepLR(Watched(parameters, lr=0.1), 2, 0.5)  # noqa: E731
    fit(*linear(torch.rand(6, 1)), epochs=5, batch_size=3, optimizer=make)
    assert rates == [0.1] * 4 + [0.05] * 4 + [0.025] * 2


OPTIMIZERS = {
    "a name": ("adam", TypeError, "not 'adam'"),
    "None": (lambda _: None, TypeError, r"as partial\(torch.optim.Adam, lr=1e-3\) does, not None"),
    "a pair": (lambda ps: (torch.optim.SGD(ps), 1), TypeError, "not a tuple"),
    "LBFGS": (torch.optim.LBFGS, ValueError, "LBFGS needs several evaluations of a loss, .*: take torch.optim.Adam"),
    "SparseAdam": (torch.optim.SparseAdam, ValueError, "SparseAdam needs sparse gradients, .*: take torch.optim.Adam"),
    "differentiable": (
        partial(torch.optim.SGD, differentiable=True),
        ValueError,
        r"SGD\(differentiable=True\) cannot change parameters that are trained: give .*SGD, lr=0.001\)$",
    ),
    "capturable": (
        partial(torch.optim.NAdam, capturable=True),
        ValueError,
        r"NAdam\(capturable=True\) takes no parameters on a CPU: give another one, .*NAdam, lr=0.002\)$",
    ),
    "other parameters": (
        lambda _: torch.optim.SGD([torch.zeros(1, requires_grad=True)]),
        ValueError,
        "the SGD holds none of the programs' parameters",
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_no_optimizer_for_fit_is_refused_in_one_line(name):
    optimizer, kind, message = OPTIMIZERS[name]
    with pytest.raises(kind, match=message) as caught:
        fit(*linear(torch.rand(6, 1)), epochs=1, batch_size=3, optimizer=optimizer)
    assert "\n" not in str(caught.value)


def test_sparse_gradients_are_trained_as_dense_ones():
    results = []
    for sparse in (False, True):
        torch.manual_seed(0)
        embedding = torch.nn.Embedding(3, 2, sparse=sparse)
        fit(*linear(torch.ones(6, 2), embedding), epochs=3, batch_size=4, clip_norm=0.5)
        results.append(embedding.weight.detach())
    assert torch.equal(*results)


@pytest.mark.filterwarnings("ignore:.*requires_grad=False")
@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_a_parameter_that_is_frozen_on_the_way_stays_and_the_others_go_on(engine):
    torch.manual_seed(0)
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Normal(2, 6))
    first, last = vae.encoder.network.layers[0].weight, vae.decoder.network.layers[-1].weight
    frozen = []

    def on_step(step, _):
        if step == 9:
            vae.encoder.requires_grad_(False)
            frozen.extend([first.clone(), last.detach().clone()])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the step cannot be recorded")
        fit(vae.model, vae.guide, torch.rand(20, 6), epochs=10, batch_size=10, on_step=on_step, engine=engine)
    assert torch.equal(first, frozen[0])
    assert not torch.equal(last, frozen[1])
    vae.requires_grad_(False)
    with pytest.raises(ValueError, match="have no parameters to train"):
        fit(vae.model, vae.guide, torch.rand(20, 6), epochs=1, batch_size=10)


@pytest.mark.filterwarnings("ignore:.*requires_grad=False")
def test_a_training_without_any_parameter_left_is_refused():
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Normal(2, 6))
    with pytest.raises(ValueError, match="the loss depends on no parameter that is trained: leave requires_grad"):
        fit(vae.model, vae.guide, torch.rand(20, 6), batch_size=10, on_step=lambda *_: vae.requires_grad_(False))


@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_parameters_that_are_used_but_never_have_a_gradient_are_named(engine):
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Normal(2, 6))

    def guide(x):
        pyro.module("guide", vae.encoder)
        with pyro.plate("data", len(x)):
            with torch.no_grad():
                q = vae.encoder(x)
            pyro.sample("z", q)

    before, x = copy.deepcopy(vae.encoder.state_dict()), torch.rand(20, 6)
    with pytest.warns(
        RuntimeWarning, match=r"^guide.network.*weight, .* and \d more had no gradient .*no_grad"
    ) as found:
        fit(vae.model, guide, x, batch_size=10, epochs=3, engine=engine)
    assert sum("had no gradient" in str(each.message) for each in found) == 1
    assert all(torch.equal(value, before[name]) for name, value in vae.encoder.state_dict().items())


class Unnamed(nn.Module):
    """A decoder that the programs do not name, beside an encoder that they name."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder, self.scale = nn.Linear(6, 2), nn.Linear(2, 6), torch.ones(6, requires_grad=True)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


@pytest.mark.parametrize("loss", [TraceGraph_ELBO(), Trace_ELBO(), TraceMeanField_ELBO(), objectives.IWAE(2)])
@pytest.mark.parametrize("engine", ["eager", "recorded"])
@pytest.mark.parametrize("left", ["decoder", "scale"])
def test_what_the_programs_compute_with_but_do_not_name_is_said(left, engine, loss):
    unnamed = Unnamed()
    shape = r"\(6, 2\)" if left == "decoder" else r"\(6,\)"
    (unnamed.scale if left == "decoder" else unnamed.decoder).requires_grad_(False)
    with pytest.warns(RuntimeWarning, match=f"no step changes a tensor of shape {shape}.* pyro.module, or freeze it"):
        fit(*programs(unnamed), points(), epochs=3, loss=loss, engine=engine)
    unnamed.decoder.requires_grad_(False)
    unnamed.scale.requires_grad_(False)
    fit(*programs(unnamed), points(), epochs=3, loss=loss, engine=engine)  # without a warning


@pytest.mark.parametrize("form", [torch.Tensor, list, lambda x: (x,), TensorDataset])
def test_data_that_require_a_gradient_are_refused_as_such(form):
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Normal(2, 6))
    with pytest.raises(ValueError, match=r"^the data require a gradient, which no step would use: give x.detach\(\)"):
        fit(*programs(vae), form(points().requires_grad_()))


def test_an_optimizer_of_parameters_that_the_programs_do_not_name_is_refused():
    unnamed = Unnamed()
    optim = torch.optim.Adam([*unnamed.encoder.parameters(), *unnamed.decoder.parameters()])
    with pytest.raises(ValueError, match=r"Adam holds a parameter of shape \(6, 2\) that the programs do not name"):
        fit(*programs(unnamed), points(), optimizer=optim)


@pytest.mark.filterwarnings("error:.*had no gradient", "ignore:.*requires_grad=False")
@pytest.mark.parametrize(
    "loss", [Trace_ELBO(), objectives.StickingTheLanding(), objectives.DReG(3)], ids=lambda loss: type(loss).__name__
)
def test_parameters_that_are_frozen_or_not_used_may_have_no_gradient(loss):
    """A layer that is never called, and a gradient that the objective itself leaves out."""
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Normal(2, 6))
    vae.spare = nn.Linear(6, 6)
    fit(vae.model, vae.guide, torch.rand(20, 6), batch_size=10, epochs=1, loss=loss)
    vae.decoder.requires_grad_(False)
    fit(vae.model, vae.guide, torch.rand(20, 6), batch_size=10, epochs=1, loss=loss)


class Normalized(torch.nn.Module):
    def __init__(self, _, out_shape):
        super().__init__()
        self.norm, self.layer, self.out_shape = torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 4), out_shape

    def forward(self, x):
        return self.layer(self.norm(x)).unflatten(-1, self.out_shape)


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda x: x / x.std(0), r"site 'x'.* such as nan"),
        (lambda x: x.squeeze()[:, :2], "too many indices"),
    ],
    ids=["divided by a deviation", "squeezed"],
)
def test_programs_that_fail_on_a_last_batch_of_one_are_refused_before_the_first_step(use, words):
    def model(x):
        x = use(x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, None], 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0))

    x = torch.randn(11, 2)
    one_line = rf"^[^\n]*{words}[^\n]*"
    with pytest.raises(ValueError, match=f"{one_line}; 11 data in batches of 5 leave a last batch of 1.*batch_size$"):
        fit(model, guide, x, batch_size=5)
    with pytest.raises(ValueError, match=rf"the programs fail on tensor of shape \(1, 2\) {one_line[1:]}$"):
        evaluate(model, guide, x, batch_size=5)
    assert len(fit(model, guide, x, batch_size=6, epochs=1)) == 2


def test_a_last_batch_of_one_datum_is_refused_before_training_where_it_is_normalized():
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2, Normalized), decoders.Normal(2, 6))
    rows = []
    settings = {"epochs": 1, "on_epoch": rows.append}
    with pytest.raises(
        ValueError, match=r"one datum cannot be normalized .*; 11 data in batches of 5 leave a last batch of 1"
    ):
        fit(vae.model, vae.guide, torch.rand(11, 6), batch_size=5, **settings)
    with pytest.raises(ValueError, match="one datum cannot be normalized"):
        fit(vae.model, vae.guide, torch.rand(4, 6), batch_size=1, **settings)
    assert not rows
    assert vae.encoder.network.norm.num_batches_tracked == 0
    fit(vae.model, vae.guide, torch.rand(12, 6), batch_size=5, **settings)
    pixels = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Flatten())  # of 16 pixels there is a variance
    convolutional = lambda _, out: torch.nn.Sequential(pixels, torch.nn.Linear(16, 4), torch.nn.Unflatten(-1, out))  # noqa: E731
    vae = VAE(priors.Normal(2), encoders.Normal((1, 4, 4), 2, convolutional), decoders.Normal(2, (1, 4, 4)))
    fit(vae.model, vae.guide, torch.rand(11, 1, 4, 4), batch_size=5, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["loss=Trace_ELBO()", "loss=IWAE(2)"])
def test_the_first_training_leaves_the_filters_of_warnings_alone(loss):
    code = """
import warnings
import torch
import pyro_vae
from pyro.infer import Trace_ELBO
from pyro_vae import VAE, decoders, encoders, fit, priors
from pyro_vae.objectives import IWAE
before = list(warnings.filters)
vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Normal(2, 6))
for engine in ("eager", "recorded"):
    fit(vae.model, vae.guide, torch.rand(20, 6), {loss}, epochs=4, batch_size=10, engine=engine)
    assert warnings.filters == before, (engine, [each for each in warnings.filters if each not in before])
"""
    code = code.replace("{loss}", loss)
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)


@pytest.mark.parametrize(
    ("latent", "use"),
    [
        (lambda: dist.Categorical(torch.ones(3)), lambda loc, z: loc[z]),
        (lambda: dist.Cauchy(0.0, 1.0), lambda loc, z: loc[0] * z),
        (lambda: dist.StudentT(1.0, 0.0, 1.0), lambda loc, z: loc[0] * z),
    ],
    ids=["categorical", "cauchy", "student"],
)
def test_a_code_without_a_mean_leaves_its_column_empty_and_evaluate_says_so(latent, use):
    def model(x):
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(use(loc, pyro.sample("z", latent())), 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", latent())

    x = points(20)
    row = fit(model, guide, x, validation=x, epochs=1, batch_size=10)[-1]
    assert math.isfinite(row["test_loss"])
    assert math.isnan(row["test_loss_at_mean"])
    with pytest.raises(TypeError, match=r"site 'z' has no finite mean: .*at='sample'"):
        evaluate(model, guide, x, at="mean")


def test_a_site_that_the_model_sums_out_has_its_terms_at_any_weight():
    means = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])

    def enumerated(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(means[c], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def by_hand(x):
        with pyro.plate("data", len(x)):
            components = dist.Normal(means, 1.0).to_event(1)
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(3) / 3), components))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), scale).to_event(1))

    x, rows = torch.zeros(10, 2), []
    for model, loss in ((enumerated, TraceEnum_ELBO(max_plate_nesting=1)), (by_hand, Trace_ELBO())):
        pyro.clear_param_store()
        row = fit(model, guide, x, validation=x, loss=loss, beta=2.0, epochs=1, batch_size=10)[1]
        rows.append([row[name] for name in COLUMNS if name not in ("seconds", "test_loss_at_mean")])
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_a_site_that_is_summed_out_one_value_after_another_has_the_terms_of_all_at_a_time(beta):
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.arange(3.0))[c], 1.0), obs=x[:, 0])

    def guide(x, how):
        with pyro.plate("data", len(x)):
            logits = pyro.param("slope", torch.arange(3.0)) * x[:, :1]
            pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": how})

    rows = []
    for how in ("parallel", "sequential"):
        pyro.clear_param_store()
        loss = TraceEnum_ELBO(max_plate_nesting=1)
        row = fit(model, partial(guide, how=how), points(20), loss=loss, beta=beta, epochs=2, batch_size=7)[2]
        rows.append([row[name] for name in ("train_loss", "train_reconstruction", "train_kl")])
    assert rows[1] == pytest.approx(rows[0], rel=1e-4)


def test_a_weight_beside_a_likelihood_that_hangs_on_a_summed_site_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.zeros(3))[c], 1.0), obs=x[:, 0])

    with pytest.raises(ValueError, match="leave beta at 1, or sum the site out by hand"):
        fit(model, lambda _: None, points(20), beta=2.0, batch_size=10, loss=TraceEnum_ELBO(max_plate_nesting=1))


@pytest.mark.parametrize("constraint", [constraints.positive, constraints.real], ids=str)
def test_a_point_that_training_takes_out_of_its_support_is_an_error(constraint):
    def model(x):
        rate = pyro.sample("rate", dist.Exponential(1.0))  # whose formula grows without bound below 0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(rate, 100.0), obs=x[:, 0])

    def guide(x):  # noqa: ARG001 (as the model is called)
        pyro.sample("rate", dist.Delta(pyro.param("r", torch.tensor(0.1), constraint=constraint)))

    def run():
        optimizer = partial(torch.optim.SGD, lr=2.0)
        return fit(model, guide, points(20), epochs=5, batch_size=20, optimizer=optimizer)

    if constraint is constraints.real:
        with pytest.raises(ValueError, match=r"site 'rate' of the guide takes the value -.*, outside the support"):
            run()
    else:
        assert run()[-1]["train_loss"] < 6


def test_complex_parameters_are_trained_as_by_hand():
    def program(x, observed):
        filtered = pyro.param("filter", lambda: torch.tensor([1.0 + 1.0j, 0.5 - 2.0j]))
        with pyro.plate("data", len(x)):
            mean = torch.fft.irfft(torch.fft.rfft(x) * filtered, n=3)
            z = pyro.sample("z", dist.Normal(0 * mean if observed else mean, 1.0).to_event(1))
            if observed:
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    pair = partial(program, observed=True), partial(program, observed=False)
    fit(
        *pair,
        x,
        loss=TraceMeanField_ELBO(),
        epochs=1,
        seed=1,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        clip_norm=100.0,
    )
    with pytest.raises(ValueError, match=r"give another one, such as optimizer=partial\(torch.optim.Adam, lr=0.001\)"):
        fit(*pair, x)
    expected = torch.tensor([1.0 + 1.0j, 0.5 - 2.0j], requires_grad=True)
    torch.manual_seed(1)
    mean = torch.fft.irfft(torch.fft.rfft(x) * expected, n=3)
    loss = mean.square().sum() / 2 - dist.Normal(mean + torch.randn(8, 3), 1.0).log_prob(x).sum()
    (gradient,) = torch.autograd.grad(loss / 8, expected)
    torch.testing.assert_close(pyro.param("filter").detach(), (expected - 0.1 * gradient).detach())


def test_data_of_16_bits_are_counted_one_by_one():
    """A bfloat16 holds 300 and 302, but not 301."""
    totals = torch.zeros(4, dtype=torch.float64)
    State.count(SimpleNamespace(totals=totals), [torch.tensor(256.0, dtype=torch.bfloat16)] * 3, 301)
    assert totals.tolist() == [256.0, 256.0, 256.0, 301.0]


def test_a_decorator_may_give_what_it_wraps_other_arguments_than_it_takes():
    vae, seen = VAE(priors.Normal(2), encoders.Normal(3, 2), decoders.Normal(2, 3)), []

    def with_a_list(function):
        @wraps(function)
        def called(row):
            return function(seen, row)

        return called

    @with_a_list
    def note(rows, row):
        rows.append(row["epoch"])

    fit(vae.model, vae.guide, torch.randn(20, 3), epochs=2, on_epoch=note)
    assert seen == [0, 1, 2]
