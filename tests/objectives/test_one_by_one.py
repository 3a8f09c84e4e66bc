"""Models that do not take particles side by side, such as those of convolutions, are run on one at a time."""

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import evaluate, fit, objectives
from pyro_vae.diagnostics.evaluation import log_likelihood
from pyro_vae.objectives import IWAE

pytestmark = pytest.mark.usefixtures("float64")


class Convolutional(torch.nn.Module):
    """A decoder by transposed convolutions, which take four dimensions and no more."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder = torch.nn.Linear(16, 6)
            self.first, self.last = torch.nn.Linear(3, 8), torch.nn.ConvTranspose2d(2, 1, 2, stride=2)

    def images(self, z):
        """Of any number of particles."""
        flat = self.last(self.first(z).reshape(-1, 2, 2, 2))
        return flat.reshape(*z.shape[:-1], 1, 4, 4)

    def model(self, x, images=None):
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            means = self.images(z) if images else self.last(self.first(z).reshape(len(x), 2, 2, 2))
            pyro.sample("x", dist.Normal(means, 0.5).to_event(3), obs=x)

    def broadcasting(self, x):
        self.model(x, images=True)

    def guide(self, x):
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x.flatten(1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


SIDE_BY_SIDE = [
    *(IWAE(4), IWAE(4, chunk=3), objectives.MIWAE(2, 2), objectives.CIWAE(0.5, 4), objectives.PIWAE(2, 2)),
    *(objectives.DReG(4), objectives.VIMCO(4), objectives.Renyi(0.5, 4), objectives.Thermodynamic(4)),
    *(objectives.StickingTheLanding(3), objectives.FreeBits(0.1, 3), objectives.BetaTC(40, num_particles=3)),
]


def said_if(fails):
    words = r"the model fails on particles side by side .* run on one at a time"
    return pytest.warns(UserWarning, match=words) if fails else nullcontext()


@pytest.mark.parametrize("loss", SIDE_BY_SIDE, ids=repr)
def test_a_model_that_takes_no_particles_side_by_side_has_the_same_numbers(loss):
    x = torch.rand(5, 1, 4, 4)
    results = []
    for name in ("broadcasting", "model"):
        pair = Convolutional()
        with said_if(name == "model"):
            bound = evaluate(getattr(pair, name), pair.guide, x, loss=loss, seed=1)
        with said_if(name == "model"):
            history = fit(getattr(pair, name), pair.guide, x, loss=loss, epochs=3, seed=1)
        results.append([*bound, *history.column("train_loss"), *[p.sum().item() for p in pair.parameters()]])
    assert results[0] == pytest.approx(results[1], rel=1e-5, abs=1e-6)


def test_the_log_likelihood_of_a_model_that_takes_no_particles_side_by_side_is_the_same():
    x, pair = torch.rand(5, 1, 4, 4), Convolutional()
    expected = log_likelihood(pair.broadcasting, pair.guide, x, samples=50)
    with pytest.warns(UserWarning, match="log_likelihood: the model fails on particles side by side"):
        found = log_likelihood(pair.model, pair.guide, x, samples=50)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_memory_holds_for_one_particle_at_a_time():
    x, pair = torch.rand(5, 1, 4, 4), Convolutional()
    with pytest.warns(UserWarning, match="run on one at a time"):
        fit(pair.model, pair.guide, x, loss=IWAE(8), epochs=1, memory="1MB")
    other = Convolutional()
    with pytest.warns(UserWarning, match="run on one at a time"):
        fit(other.model, other.guide, x, loss=IWAE(8), epochs=1)
    for mine, theirs in zip(pair.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_two_particles_tell_whether_a_model_takes_several(monkeypatch):
    """Not all of them, which may be more than fit into memory."""
    pair, shapes = Convolutional(), []
    monkeypatch.setattr(pair, "images", lambda z: shapes.append(tuple(z.shape)) or Convolutional.images(pair, z))
    fit(pair.broadcasting, pair.guide, torch.rand(5, 1, 4, 4), loss=IWAE(1000, chunk=10), epochs=1)
    assert max(shape[0] for shape in shapes if len(shape) == 3) == 10
