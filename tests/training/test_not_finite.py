import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

from pyro_vae import VAE, decoders, encoders, fit, priors
from pyro_vae.training import PerStep

pytestmark = pytest.mark.filterwarnings("ignore:Encountered")  # by Pyro, which says less
SHAPE, COUNT, BATCH = (1, 4, 4), 40, 8  # 5 steps to an epoch


def normal(decoder=decoders.Bernoulli, **settings):
    torch.manual_seed(0)
    settings = settings or {"grey": True}
    return VAE(priors.Normal(2), encoders.Normal(SHAPE, 2), decoder(2, SHAPE, **settings))


def watched(vae):
    """Copies of the parameters after each step."""
    seen = [[parameter.detach().clone() for parameter in vae.parameters()]]
    return seen, lambda *_: seen.append([parameter.detach().clone() for parameter in vae.parameters()])


def equal(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def spoil(x, step, value=math.inf):
    """Return a callback that spoils all data after a step, and mends them after the next."""
    before = x.clone()

    def on_step(number, _):
        x.copy_(torch.full_like(x, value) if number == step else before)

    return on_step


class Spoiled:
    """A transform that spoils every batch of a training, and none of an evaluation."""

    def __call__(self, x):
        return x * math.inf if torch.is_grad_enabled() else x


def train(vae, x, at=6, value=math.inf, **settings):
    seen, watch = watched(vae)
    spoiling = spoil(x, at, value)

    def on_step(number, loss):
        watch()
        spoiling(number, loss)

    settings = {"epochs": 3, "batch_size": BATCH, "on_step": on_step} | settings
    try:
        return seen, fit(vae.model, vae.guide, x, **settings)
    except FloatingPointError as error:
        return seen, error


@pytest.mark.parametrize("engine", ["eager", "recorded"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_training_stops_before_the_parameters_are_touched(engine, value):
    vae = normal()
    seen, error = train(vae, torch.rand(COUNT, *SHAPE), value=value, engine=engine)
    assert isinstance(error, FloatingPointError)
    assert "in epoch 2, step 7: the data; lower the learning rate" in str(error)
    assert len(seen) == 1 + 7
    assert equal(seen[-1], vae.parameters())
    assert all(parameter.isfinite().all() for parameter in vae.parameters())


@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_a_batch_is_skipped(engine):
    vae = normal()
    with pytest.warns(RuntimeWarning, match=r"a step is skipped \(skip\): the loss is .* in epoch 2, step 7: the data"):
        seen, history = train(vae, torch.rand(COUNT, *SHAPE), on_nan="skip", engine=engine)
    assert equal(seen[8], seen[7])
    assert not equal(seen[9], seen[8])
    assert len(seen) == 1 + 15
    assert all(math.isfinite(value) for value in history.column("train_loss"))
    # The mean is over the data that counted: without the skipped batch it would be a fifth too low.
    assert history[2]["train_loss"] > 0.9 * history[3]["train_loss"]


def test_a_skipped_batch_leaves_no_trace_in_running_means():
    class Network(torch.nn.Module):
        def __init__(self, _, out_shape):
            super().__init__()
            self.norm, self.layer, self.out_shape = torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 4), out_shape

        def forward(self, x):
            return self.layer(self.norm(x.flatten(1))).unflatten(-1, self.out_shape)

    vae = VAE(priors.Normal(2), encoders.Normal(SHAPE, 2, network=Network), decoders.Bernoulli(2, SHAPE, grey=True))
    with pytest.warns(RuntimeWarning, match="a step is skipped"):
        train(vae, torch.rand(COUNT, *SHAPE), on_nan="skip")
    norm = vae.encoder.network.norm
    assert norm.running_mean.isfinite().all()
    assert norm.num_batches_tracked == 14


@pytest.mark.parametrize("on_nan", ["skip", "rollback"])
def test_a_skipped_batch_does_not_change_the_noise_of_later_steps(on_nan):
    """The programs run once more to find the cause, with noise of their own."""
    states = []
    for value in (0.5, math.nan):
        seen = []

        def transform(batch, value=value, seen=seen):
            if torch.is_grad_enabled():
                seen.append(torch.get_rng_state())
            return torch.where(torch.tensor(len(seen) == 3 and torch.is_grad_enabled()), value, batch)

        vae = normal()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit(vae.model, vae.guide, torch.rand(COUNT, *SHAPE), batch_size=BATCH, transform=transform, on_nan=on_nan)
        states.append(seen)
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_a_rollback_goes_to_the_start_of_the_epoch_and_on():
    vae = normal()
    with pytest.warns(
        RuntimeWarning, match=r"a step is skipped \(rollback\): the loss is .* in epoch 2, step 7: the data"
    ):
        seen, history = train(vae, torch.rand(COUNT, *SHAPE), on_nan="rollback")
    assert equal(seen[8], seen[5])
    assert not equal(seen[9], seen[8])
    assert math.isfinite(history[-1]["train_loss"])


def test_what_is_not_finite_is_named():
    x = torch.rand(COUNT, *SHAPE)

    def broken(find, value):
        vae = normal()

        def on_step(step, _):
            if step == 2:
                with torch.no_grad():
                    find(vae).fill_(value)

        with pytest.raises(FloatingPointError) as caught:
            fit(vae.model, vae.guide, x, epochs=1, batch_size=BATCH, on_step=on_step)
        return str(caught.value)

    assert "step 3: the parameter decoder.network" in broken(lambda vae: vae.decoder.network.layers[0].weight, math.nan)
    # Weights of 3e38 are finite; what they make is not.
    message = broken(lambda vae: vae.encoder.network.layers[-1].weight, 3e38)
    assert "step 3: the encoder's loc (site 'z' of the guide); lower" in message
    message = broken(lambda vae: vae.decoder.network.layers[-1].weight, 3e38)
    assert "step 3: the decoder's logits (site 'x' of the model); lower" in message
    # A mean of 3e38 is finite as well; its square is not.
    message = broken(lambda vae: vae.encoder.network.layers[-1].bias, 3e38)
    assert "step 3: the prior's log-probability (site 'z' of the model); lower" in message


def test_a_gradient_that_is_not_finite_stops_at_a_loss_that_is():
    """The square root has an infinite slope at 0."""
    x = torch.randn(10, 2)

    def model(batch):
        with pyro.plate("data", len(batch)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=batch)

    def guide(batch):
        slope = pyro.param("slope", torch.zeros(2))
        with pyro.plate("data", len(batch)):
            pyro.sample("z", dist.Normal(batch + slope.sqrt(), 1.0).to_event(1))

    pyro.clear_param_store()
    with pytest.raises(FloatingPointError, match="epoch 1, step 0: the gradient; lower"):
        fit(model, guide, x, epochs=1, batch_size=5)
    assert torch.equal(pyro.param("slope"), torch.zeros(2))
    pyro.clear_param_store()


def test_a_loss_that_explodes_warns_once():
    x = torch.rand(COUNT, *SHAPE)
    vae = normal(decoders.Normal, scale=1.0)
    spoiling = spoil(x, 60, 1e6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(vae.model, vae.guide, x, epochs=20, batch_size=BATCH, on_step=spoiling)
    texts = [str(warning.message) for warning in caught if "over 1,000 times" in str(warning.message)]
    assert len(texts) == 1
    assert "step 61, over 1,000 times its running median; lower the learning rate" in texts[0]


def test_a_loss_of_either_sign_that_stays_small_does_not_warn():
    x = torch.full((COUNT, *SHAPE), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae = normal(decoders.Normal, scale=0.05)
        fit(vae.model, vae.guide, x, epochs=20, batch_size=BATCH)


def test_an_unknown_way_is_refused():
    vae = normal()
    for way, said in (("ignore", "'ignore'"), ([], r"\[\]"), ({"stop": 1}, "{'stop': 1}")):
        with pytest.raises(ValueError, match=f"on_nan is one of stop, skip, rollback, not {said}"):
            fit(vae.model, vae.guide, torch.rand(COUNT, *SHAPE), batch_size=8, on_nan=way)


def test_an_epoch_of_which_no_step_was_finite_is_no_epoch():
    vae = normal()
    with (
        pytest.warns(RuntimeWarning, match="a step is skipped"),
        pytest.raises(FloatingPointError, match="all steps of epoch 1 were skipped, because none was finite; lower"),
    ):
        fit(vae.model, vae.guide, torch.rand(COUNT, *SHAPE), transform=Spoiled(), batch_size=BATCH, on_nan="skip")


def test_a_loss_near_0_does_not_warn_where_it_moves():
    """A median of 1e-5 nats, and a step of 3: over 1,000 times as much, and no explosion."""

    def model(batch):
        with pyro.plate("data", len(batch)):
            weight = pyro.param("weight", torch.zeros(()))
            noise = dist.Normal(0 * weight, 1 / math.sqrt(2 * math.pi))  # of density 1 at 0
            pyro.sample("x", noise, obs=batch[:, 0])

    x = torch.full((40, 1), 1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, lambda _: None, x, epochs=20, batch_size=8, on_step=spoil(x, 60, 1.0))


def test_a_rollback_leaves_the_schedule_of_the_learning_rate_alone():
    vae = normal()
    settings = {"schedule": PerStep(partial(ExponentialLR, gamma=0.9)), "optimizer": partial(torch.optim.SGD, lr=1e-3)}
    with pytest.warns(RuntimeWarning, match="rollback"):
        _, history = train(vae, torch.rand(COUNT, *SHAPE), on_nan="rollback", **settings)
    assert history.column("learning_rate") == pytest.approx([1e-3 * 0.9 ** (5 * epoch) for epoch in range(4)])


def of_one_code(weight, shift):
    """A pair of programs that change the weight themselves, or call for a parameter late."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z * pyro.param("w", torch.tensor(1.0)) + shift(x), 1.0), obs=x[:, 0])

    def guide(x):
        pyro.module("weight", weight)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(weight.mean + pyro.param("m", torch.zeros(())), 1.0))

    return model, guide


class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(()), requires_grad=False)


@pytest.mark.filterwarnings("ignore:mean was not registered")
def test_a_skipped_batch_leaves_no_trace_in_parameters_that_programs_change():
    pyro.clear_param_store()
    weight, means = Mean(), []

    def running(x):
        if torch.is_grad_enabled():
            means.append(weight.mean.item())
            weight.mean.data.mul_(0.9).add_(0.1 * x.mean())
        return 0.0

    x = torch.rand(COUNT, 1)
    with pytest.warns(RuntimeWarning, match="a step is skipped"):
        fit(*of_one_code(weight, running), x, epochs=3, batch_size=BATCH, on_nan="skip", on_step=spoil(x, 6))
    assert weight.mean.isfinite()
    assert means[8] == means[7]  # the step that was left out changed it, and it was put back


@pytest.mark.filterwarnings("ignore:mean was not registered")
def test_a_rollback_takes_parameters_that_were_met_meanwhile():
    pyro.clear_param_store()
    steps = []

    def late(_):
        steps.extend([0] * torch.is_grad_enabled())
        return pyro.param("late", torch.tensor(0.1)) if len(steps) > 6 else 0.0

    x = torch.rand(COUNT, 1)
    with pytest.warns(RuntimeWarning, match="rollback"):
        history = fit(*of_one_code(Mean(), late), x, epochs=3, batch_size=BATCH, on_nan="rollback", on_step=spoil(x, 7))
    assert math.isfinite(history[-1]["train_loss"])
