from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE, decoders, encoders, fit, networks, objectives, priors
from pyro_vae.checkpoints import Checkpoints, Stopped, read_tensors
from pyro_vae.training import COLUMNS

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
    return make(), torch.rand(COUNT, *SHAPE)


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


def test_the_best_parameters_are_those_of_the_best_row(tmp_path):
    """The learning rate is so large that the test loss rises again."""
    settings = {"optimizer": partial(torch.optim.Adam, lr=0.3), "epochs": 8}
    rows, *_ = train(normal, checkpoints=tmp_path, **settings)
    losses = [row[COLUMNS.index("test_loss")] for row in rows]
    best = min(range(1, 9), key=losses.__getitem__)
    assert 0 < best < 8
    tensors, head = read_tensors(tmp_path / "best.safetensors")
    assert head["about"] == {"test_loss": losses[best], "of": {}}
    _, weights, _ = train(normal, **settings | {"epochs": best})
    assert all(torch.equal(tensors[f"parameter/{name}"], weights[name]) for name in weights)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 8}, "with batch_size 16, not 8"),
        ({"seed": 6}, "with seed 5, not 6"),
        ({"clip_norm": 1.0}, "with clip_norm None, not 1.0"),
        ({"beta": 2.0}, r"with beta 1.0, not 2\.0"),
        ({"loss": objectives.IWAE(2)}, r"with loss 'Trace_ELBO\(1\)', not 'IWAE"),
        ({"precision": "bf16-mixed"}, "with precision '32', not 'bf16-mixed'"),
        ({"optimizer": torch.optim.Adagrad}, "is of the optimizer Adam, not Adagrad"),
    ],
)
def test_another_training_is_refused_by_what_differs(change, message, tmp_path):
    stopped(normal, tmp_path, 3)
    with pytest.raises(ValueError, match=message):
        train(normal, resume=tmp_path, **change)


def test_other_programs_are_refused_by_what_differs(tmp_path):
    stopped(normal, tmp_path, 3)

    def wider():
        encoder = encoders.Normal(SHAPE, 2, network=partial(networks.MLP, hidden=[5]))
        return VAE(priors.Normal(2), encoder, decoders.Bernoulli(2, SHAPE, grey=True))

    with pytest.raises(ValueError, match=r"checkpoint's parameter/encoder.* differ: torch.float32 \(400"):
        train(wider, resume=tmp_path)
    with pytest.raises(ValueError, match=r"holds \d+ parameters and buffers, the programs \d+"):
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
