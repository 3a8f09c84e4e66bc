"""Models that do not take particles side by side, such as those of convolutions, are run on one at a time."""

import warnings
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch.nn.functional import normalize

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


KINDS = {  # operations on the dimension behind that of the data, counted from the left, and from the right
    "softmax": (lambda z, _: torch.softmax(z, 1), lambda z, _: torch.softmax(z, -1)),
    "normalize": (lambda z, _: normalize(z), lambda z, _: normalize(z, dim=-1)),
    "index": (lambda z, _: z[:, [1, 0, 2, 3]], lambda z, _: z[..., [1, 0, 2, 3]]),
    "cumsum": (lambda z, _: z.cumsum(1), lambda z, _: z.cumsum(-1)),
    "mean": (lambda z, _: z - z.mean(0), lambda z, _: z - z.mean(-2, keepdim=True)),
    "BatchNorm1d": (lambda z, norm: norm(z), lambda z, norm: norm(z.reshape(-1, 4)).reshape(z.shape)),
}


class Counting(torch.nn.Module):
    """Programs that count the dimensions of z from the left, or from the right."""

    def __init__(self, kind, right):
        super().__init__()
        self.kind, self.right, self.encoder = kind, right, torch.nn.Linear(4, 4)
        torch.nn.init.eye_(self.encoder.weight), torch.nn.init.zeros_(self.encoder.bias)
        self.norm = torch.nn.BatchNorm1d(4, affine=False)
        self.norm.running_mean += torch.arange(4.0)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            means = KINDS[self.kind][self.right](z, self.norm.eval())
            pyro.sample("x", dist.Normal(means, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", [IWAE(3), objectives.FreeBits(0.1), objectives.Thermodynamic(3)], ids=repr)
def test_a_model_that_takes_the_dimension_of_particles_for_another_has_the_numbers_of_each_alone(loss, kind):
    x, results = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), []
    for right in (False, True):
        pair = Counting(kind, right)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append([*evaluate(pair.model, pair.guide, x, loss=loss)])
            results[-1].append(fit(pair.model, pair.guide, x, loss=loss, epochs=2)[-1]["train_loss"])
            results[-1].append(log_likelihood(pair.model, pair.guide, x[:2] if kind == "mean" else x, samples=9))
        said = [str(each.message) for each in caught]
        assert bool(said) != right
        if kind not in ("BatchNorm1d", "index"):  # which fail on another number of data
            assert all("takes the dimension of particles for another" in each for each in said)
    assert results[0] == pytest.approx(results[1], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_pyros_own_particles_side_by_side_are_refused_where_their_dimension_is_taken_for_another(kind):
    x, loss = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), Trace_ELBO(3, vectorize_particles=True)
    for run in (evaluate, fit):
        assert run(Counting(kind, True).model, Counting(kind, True).guide, x, loss=loss)
        pair = Counting(kind, False)
        with pytest.raises(ValueError, match=r"Trace_ELBO runs the model .* other densities .* z\[\.\.\., 0\]"):
            run(pair.model, pair.guide, x, loss=loss)


def test_a_guide_that_takes_the_dimension_of_particles_for_another_is_refused():
    def program(x, right, observed):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            means = torch.softmax(z, -1 if right else 1)
            y = pyro.sample("y", dist.Normal(torch.zeros(4) if observed else means, 1.0).to_event(1))
            if observed:
                pyro.sample("x", dist.Normal(y, 1.0).to_event(1), obs=x)

    x = torch.zeros(3, 4)
    for run in (log_likelihood, lambda *args: evaluate(*args, loss=IWAE(2))):
        assert run(lambda x: program(x, True, True), lambda x: program(x, True, False), x)
        with pytest.raises(ValueError, match=r"runs the guide on particles side by side, .*softmax\(z, -1\)"):
            run(lambda x: program(x, True, True), lambda x: program(x, False, False), x)


def test_a_guide_without_an_inverse_does_not_hide_what_its_model_does():
    flow = dist.transforms.Planar(4)  # whose density is known at its own draws alone

    def model(x, dim=1):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            y = pyro.sample("y", dist.Normal(torch.softmax(z, dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(y, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(x, 1.0).to_event(1), [flow]))
            pyro.sample("y", dist.Normal(x, 1.0).to_event(1))

    with pytest.warns(UserWarning, match="IWAE: the model takes the dimension of particles for another"):
        found = evaluate(model, guide, torch.zeros(3, 4), loss=IWAE(3))
    assert found == pytest.approx(evaluate(lambda x: model(x, -1), guide, torch.zeros(3, 4), loss=IWAE(3)))


def test_a_model_with_noise_of_its_own_is_run_on_particles_side_by_side():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + 0.1 * torch.randn_like(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(model, guide, torch.zeros(3, 2), loss=IWAE(4)).loss > 0


@pytest.mark.parametrize("sides", ["model", "guide"])
def test_values_of_a_site_that_are_summed_out_are_refused_where_their_dimension_is_taken_for_another(sides):
    """Against the sum over the values, written out."""
    codes, x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), torch.zeros(5, 4)
    logits = torch.tensor([0.2, 0.3, 0.5]).log()

    def program(dim, observed):
        def run(x):
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
                means = torch.softmax(codes[y], dim)
                z = pyro.sample("z", dist.Normal(torch.zeros(4) if observed else means, 0.001).to_event(1))
                if observed:
                    pyro.sample("x", dist.Normal(z + means, 1.0).to_event(1), obs=x)

        return run

    loss, means = TraceEnum_ELBO(max_plate_nesting=1), torch.softmax(codes, -1)
    exact = -(logits.exp() * dist.Normal(2 * means, 1.0).log_prob(x[0]).sum(-1)).sum().item()
    model, guide = program(-1, True), program(-1, False)
    assert evaluate(model, guide, x, loss=loss).reconstruction == pytest.approx(exact, abs=0.01)
    wrong = (program(1, True), guide) if sides == "model" else (model, program(1, False))
    with pytest.raises(ValueError, match=rf"runs the {sides} on all values of a site side by side, which have other"):
        evaluate(*wrong, x, loss=loss)


class SometimesLabelled(torch.nn.Module):
    """Programs that see labels in some batches, and take their probabilities over a dimension that may be another."""

    def __init__(self, dim):
        super().__init__()
        self.dim, self.encoder = dim, torch.nn.Linear(3, 3)
        torch.nn.init.eye_(self.encoder.weight), torch.nn.init.zeros_(self.encoder.bias)

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
            if y is not None:
                pyro.sample("y", dist.Normal(torch.softmax(z, self.dim), 0.1).to_event(1), obs=y)

    def guide(self, x, _=None):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


class LabelsLater:
    def __iter__(self):
        x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
        yield x[:4], None
        yield x[4:], torch.ones(5, 3) / 3


def test_batches_of_a_later_structure_are_looked_at_too():
    results, loss = [], IWAE(3)
    for dim in (1, -1):
        pair = SometimesLabelled(dim)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results.append([*evaluate(pair.model, pair.guide, LabelsLater(), loss=loss)])
            results[-1].append(fit(pair.model, pair.guide, LabelsLater(), loss=loss, epochs=2)[-1]["train_loss"])
        assert len(caught) == (2 if dim == 1 else 0)
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    pair, theirs = SometimesLabelled(1), Trace_ELBO(3, vectorize_particles=True)
    for run in (evaluate, fit):
        with pytest.raises(ValueError, match="Trace_ELBO runs the model on particles side by side, which have other"):
            run(pair.model, pair.guide, LabelsLater(), loss=theirs)


class Normalized(torch.nn.Module):
    """A decoder by a batch normalization of as many features as a batch has data."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder, self.norm, self.decoder = (
                torch.nn.Linear(4, 4),
                torch.nn.BatchNorm1d(4, affine=False),
                torch.nn.Linear(4, 4),
            )

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(self.norm(z)), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def test_a_batch_of_as_many_data_as_another_dimension_hides_nothing():
    """At its start a batch normalization changes no number in evaluation mode, whatever dimension it takes."""
    x, results = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), []
    for one_by_one in (False, True):
        pair, loss = Normalized(), IWAE(3)
        loss.one_by_one = one_by_one
        with said_if(not one_by_one):
            history = fit(pair.model, pair.guide, x, loss=loss, batch_size=4, epochs=3)
        results.append([*history.column("train_loss"), *pair.norm.running_mean.tolist()])
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    pair, theirs = Normalized(), Trace_ELBO(3, vectorize_particles=True)
    with pytest.raises(ValueError, match="Trace_ELBO runs the programs on particles side by side"):
        fit(pair.model, pair.guide, x, loss=theirs, batch_size=4)


@pytest.mark.parametrize("stored", [False, True], ids=["of a module", "pyro.param"])
def test_a_layer_or_a_gate_that_begins_at_0_hides_nothing(stored):
    """What it multiplies changes no density before the first step."""
    x, results = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), []
    for right in (False, True):
        pyro.clear_param_store()
        pair, gate = Counting("softmax", right), torch.nn.Linear(4, 4)
        torch.nn.init.zeros_(gate.weight), torch.nn.init.zeros_(gate.bias)

        def model(x, gate=gate, right=right):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
                means = KINDS["softmax"][right](z, None)
                means = pyro.param("gate", torch.tensor(0.0)) * means if stored else pyro.module("gate", gate)(means)
                pyro.sample("x", dist.Normal(means, 1.0).to_event(1), obs=x)

        with (
            nullcontext() if right else pytest.warns(UserWarning, match="takes the dimension of particles for another")
        ):
            history = fit(model, pair.guide, x, loss=IWAE(3), epochs=9)
        results.append(history.column("train_loss"))
    assert results[0] == pytest.approx(results[1], rel=1e-9)


@pytest.mark.parametrize("hidden", [False, True], ids=["torch.randn", "poutine.block"])
def test_noise_of_a_model_is_drawn_for_each_particle(hidden):
    """Else the log-likelihood of more particles tends to that given one draw of the noise, below log p(x)."""
    x = torch.linspace(-1, 1, 6)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).mean().item()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.6))
            noise = pyro.sample("noise", dist.Normal(0.0, 0.8)) if hidden else 0.8 * torch.randn(len(x))
            pyro.sample("x", dist.Normal(z + noise, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * 0.18, 0.55))

    pair = poutine.block(model, hide=["noise"]), guide
    with pytest.warns(UserWarning, match="log_likelihood: the model draws noise that particles side by side share"):
        assert log_likelihood(*pair, (x,), samples=1000) == pytest.approx(exact, abs=0.05)  # 1,000 draws for each datum
    assert evaluate(*pair, (x,), loss=Trace_ELBO(3, vectorize_particles=True)).loss > -exact
