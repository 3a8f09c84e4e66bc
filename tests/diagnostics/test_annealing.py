import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_vae import VAE, decoders, encoders, log_likelihood, priors
from pyro_vae.diagnostics.annealing import ais, bdmc, schedule
from pyro_vae.distributions import HypersphericalUniform, PowerSpherical
from tests.support.linear import in_a_plate, probabilistic_pca

WIDE = {"factor": 1.5, "offset": 0.2}  # an encoder that is far from the posterior


@pytest.mark.parametrize(("start", "steps"), [("encoder", 3), ("prior", 3), ("encoder", 20), ("prior", 20)])
def test_the_mean_weight_is_the_likelihood_however_short_the_chains(start, steps):
    """One datum 2,000 times, 4 chains: the mean of p / p(x) is 1, within 4 standard errors, and so is its inverse."""
    exact = probabilistic_pca(latent=2, observed=3, count=1, **WIDE)
    settings = {"chains": 4, "steps": steps, "leapfrog": 2, "start": start}
    arguments = exact.vae.model, exact.vae.guide, exact.x.expand(2000, -1)
    ratio = (ais(*arguments, **settings).estimate - exact.log_p).exp()
    assert abs(ratio.mean().item() - 1) < 4 * ratio.std().item() / math.sqrt(2000)


@pytest.mark.parametrize(("start", "steps"), [("encoder", 3), ("prior", 3)])
def test_chains_back_from_the_posterior_have_the_inverse_likelihood_as_their_mean_weight(start, steps):
    """2,000 data without codes to infer from: p(x) of each simulated datum is known; 4 chains each."""
    exact = probabilistic_pca(latent=2, observed=3, count=1, scale=2.0, **WIDE)
    settings = {"chains": 4, "steps": steps, "leapfrog": 2, "start": start}
    found = bdmc(exact.vae.model, exact.vae.guide, exact.x.expand(2000, -1), **settings)
    assert (found.upper - found.lower).mean() > 0
    # E[lower] <= E[log p(x)] <= E[upper], and minus the entropy of x is E[log p(x)].
    decode = exact.vae.decoder.network.layers[0].weight.detach()
    mean = -0.5 * torch.logdet(2 * math.pi * math.e * (decode @ decode.T + 4 * torch.eye(3))).item()
    for bound, sign in ((found.lower, 1), (found.upper, -1)):
        assert sign * (mean - bound.mean().item()) > -4 * bound.std().item() / math.sqrt(2000)


@pytest.mark.parametrize("latent", [2, 16])  # the latter takes a minute
def test_annealing_and_both_bounds_are_the_exact_likelihood(latent):
    """Within 0.02 nats in the mean over 20 data, and 5 standard errors for each; the encoder is off by 0.2 nats."""
    exact = probabilistic_pca(latent=latent, observed=latent + 4, count=20, factor=1.1, offset=0.02)
    settings = {"chains": 16, "steps": 50 if latent == 2 else 300, "leapfrog": 5}
    arguments = exact.vae.model, exact.vae.guide, exact.x
    found = ais(*arguments, **settings)
    assert abs((found.estimate - exact.log_p).mean().item()) < 0.02
    assert ((found.estimate - exact.log_p).abs() < 5 * found.standard_error).all()
    lower, upper, lower_error, upper_error = bdmc(*arguments, **settings)
    assert abs((upper - lower).mean().item()) < 0.04
    assert ((upper - lower).abs() < 5 * (lower_error + upper_error)).all()


def test_annealing_finds_what_importance_sampling_misses():
    """The encoder has a third of the posterior's scale: 16 chains of 100 steps beat 5,000 samples."""
    exact = probabilistic_pca(latent=8, observed=12, count=10, factor=1 / 3)
    arguments = exact.vae.model, exact.vae.guide, exact.x
    with pytest.warns(RuntimeWarning, match=r"Pareto k over 0\.7"):
        sampled = log_likelihood(*arguments, per_datum=True).estimate
    annealed = ais(*arguments, steps=100, leapfrog=5).estimate
    assert (annealed - exact.log_p).abs().mean() < 0.5 * (sampled - exact.log_p).abs().mean()


def test_a_plate_of_more_data_than_the_batch_changes_no_likelihood():
    """By hand, the same VAE under a plate of 1,000 data, which Pyro scales up: within 0.1 nats of the exact value."""
    exact = probabilistic_pca(latent=2, observed=3, count=10, **WIDE)

    found = ais(*in_a_plate(exact.vae, 1000), exact.x, chains=8, steps=40, leapfrog=5)
    assert abs((found.estimate - exact.log_p).mean().item()) < 0.1


def program(prior, likelihood, posterior):
    """Return a model and a guide of one site each, and of data that are counts or vectors."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(pyro.sample("z", prior)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior)

    return model, guide


def positive():
    """A gamma rate of a Poisson count: a negative binomial."""
    likelihood, posterior = lambda z: dist.Poisson(z[..., None]).to_event(1), dist.LogNormal(0.5, 0.7)
    pair = program(dist.Gamma(2.0, 1.0), likelihood, posterior)
    x = torch.tensor([[0.0], [1.0], [4.0], [9.0]])
    return *pair, x, stats.nbinom.logpmf(x[:, 0].numpy(), 2, 0.5)


def interval():
    """A beta probability of a binomial count: a beta-binomial."""
    likelihood, posterior = lambda z: dist.Binomial(10, z[..., None]).to_event(1), dist.Beta(1.0, 1.0)
    pair = program(dist.Beta(2.0, 3.0), likelihood, posterior)
    x = torch.tensor([[0.0], [1.0], [5.0], [10.0]])
    return *pair, x, stats.betabinom.logpmf(x[:, 0].numpy(), 10, 2, 3)


def simplex():
    """Dirichlet shares of multinomial counts: a Dirichlet-multinomial."""
    concentration = torch.tensor([1.0, 2.0, 3.0])
    pair = program(dist.Dirichlet(concentration), lambda z: dist.Multinomial(6, z), dist.Dirichlet(torch.ones(3)))
    x = torch.tensor([[6.0, 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 1.0, 5.0]])
    exact = [stats.dirichlet_multinomial.logpmf(row, concentration.numpy(), 6) for row in x.long().numpy()]
    return *pair, x, np.array(exact)


def sphere():
    """A uniform direction with normal noise: the integral over the sphere is sinh(k) / k, with k = |x| / scale^2."""
    scale, loc = 0.5, torch.tensor([0.0, 0.6, 0.8])
    likelihood, posterior = lambda z: dist.Normal(z, scale).to_event(1), PowerSpherical(loc, torch.tensor(1.0))
    pair = program(HypersphericalUniform(3), likelihood, posterior)
    x = torch.tensor([[0.0, 0.6, 0.8], [0.1, 0.0, 0.0], [0.0, -1.0, -1.0]])
    length = x.norm(dim=1).double().numpy()
    k = length / scale**2
    exact = -1.5 * np.log(2 * np.pi * scale**2) - (length**2 + 1) / (2 * scale**2) + np.log(np.sinh(k) / k)
    return *pair, x, exact


@pytest.mark.parametrize("start", ["encoder", "prior"])
@pytest.mark.parametrize("case", [positive, interval, simplex, sphere])
def test_every_support_has_the_exact_likelihood(case, start):
    """16 chains of 60 steps, 10 times: within 4 standard errors of their mean."""
    model, guide, x, exact = case()
    count = 10
    found = ais(model, guide, x.repeat_interleave(count, 0), steps=60, leapfrog=4, start=start)
    ratio = (found.estimate - torch.tensor(exact).repeat_interleave(count)).exp().reshape(len(x), count)
    error = ratio.std(1) / math.sqrt(count) + 1e-4
    assert ((ratio.mean(1) - 1).abs() < 4 * error).all()
    assert ratio.std() < 0.2


def test_a_hierarchy_and_labels_are_taken():
    """Two levels of codes, and labels that the model does not observe, with a normal marginal."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(y.double(), 1.0))
            b = pyro.sample("b", dist.Normal(a, 0.5))
            pyro.sample("x", dist.Normal(b, 0.3), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(x, 0.5))
            pyro.sample("a", dist.Normal((b + y) / 2, 1.0))

    x, y = torch.tensor([0.0, 1.0, 3.0]).double(), torch.tensor([0, 1, 1])
    found = ais(model, guide, (x, y), steps=50)
    exact = stats.norm.logpdf(x.numpy(), y.numpy(), math.sqrt(1 + 0.25 + 0.09))
    assert ((found.estimate - torch.tensor(exact)).abs() < 4 * found.standard_error).all()
    assert (found.standard_error < 0.2).all()
    lower, upper, *_ = bdmc(model, guide, (x.repeat(20), y.repeat(20)), steps=50)
    assert abs((upper - lower).mean().item()) < 0.05


def test_chunks_of_data_and_seeds():
    exact = probabilistic_pca(latent=2, observed=3, count=6, **WIDE)
    arguments = exact.vae.model, exact.vae.guide, exact.x
    first = ais(*arguments, steps=5).estimate
    state = torch.get_rng_state()
    assert torch.equal(ais(*arguments, steps=5).estimate, first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(ais(*arguments, steps=5, seed=1).estimate, first)
    assert ais(*arguments, steps=5, memory="100kB").estimate.shape == (6,)


def test_the_schedule_is_that_of_wu_et_al():
    found = schedule(10)
    sigmoid = 1 / (1 + np.exp(-4 * (2 * np.arange(11) / 10 - 1)))
    assert found == pytest.approx((sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "guide"}, "start is 'encoder' or 'prior', not 'guide'"),
        ({"chains": 0}, "chains must be at least 1, not 0"),
        ({"steps": 1.5}, "steps must be an integer, not 1.5"),
        ({"leapfrog": 0}, "leapfrog must be at least 1, not 0"),
        ({"acceptance": 1.0}, r"acceptance must be between 0 and 1, not 1\.0"),
        ({"memory": 10}, "a memory of 10 bytes is too small for 16 chains of a datum: give more"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    exact = probabilistic_pca(latent=2, observed=3, count=2)
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        ais(exact.vae.model, exact.vae.guide, exact.x, **settings)


def test_codes_without_a_gradient_are_refused_by_name():
    vae = VAE(priors.Bernoulli(3), encoders.Bernoulli(5, 3), decoders.Normal(3, 5))
    with pytest.raises(ValueError, match=r"gradients, which Bernoulli at site 'z' .* such as log_likelihood"):
        ais(vae.model, vae.guide, torch.randn(4, 5))


def test_bounds_that_depend_on_other_codes_are_refused():
    def model(x, _):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(pyro.sample("b", dist.Uniform(0.0, a)), 1.0), obs=x)

    def guide(x, _):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Gamma(2.0, 1.0))
            pyro.sample("b", dist.Uniform(0.0, a))

    with pytest.raises(ValueError, match=r"the bounds of Uniform at site 'b' differ between data, or depend on other"):
        ais(model, guide, (torch.randn(4), torch.zeros(4)))


def test_a_model_that_observes_something_else_cannot_be_simulated():
    exact = probabilistic_pca(latent=2, observed=3, count=4)
    with pytest.raises(ValueError, match=r"site 'x' that the data do not hold as it is, so that no simulated data"):
        bdmc(lambda x: exact.vae.model(2 * x), lambda x: exact.vae.guide(2 * x), exact.x)


@pytest.mark.parametrize("measure", [ais, bdmc])
def test_sites_that_the_guide_alone_draws_and_models_without_codes_are_refused(measure):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x, 1.0).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(a, event_dim=1))

    with pytest.raises(ValueError, match=r"compares what both programs draw, but the guide alone draws site 'a'"):
        measure(model, guide, torch.randn(4, 2), steps=2)

    def without_codes(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"is about codes, and the programs draw none: take evaluate$"):
        measure(without_codes, lambda _: None, torch.randn(4, 2), steps=2)


@pytest.mark.parametrize("measure", [partial(ais, steps=2), partial(bdmc, steps=2), partial(log_likelihood, samples=3)])
def test_a_likelihood_that_is_no_number_is_refused_with_the_datum(measure):
    """The first three data are not observed where the model gives NaN."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            bad = torch.where(x > 5, torch.nan, 1.0)
            pyro.sample("x", dist.Normal(z * bad, 1.0, validate_args=False).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).clamp(max=4)
    x[3] = 6.0
    with pytest.raises(ValueError, match=r"^the log-likelihood of datum 3 is nan at site '[xz]': correct"):
        measure(model, guide, x)


def test_a_model_that_also_uses_its_data_elsewhere_cannot_be_simulated():
    """Each entry depends on the one before, of the given data rather than of those that are drawn."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], -1) + z[..., None]
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(1), 0.5))

    with pytest.raises(ValueError, match=r"observes data at site 'x' that it also uses elsewhere, so that it cannot"):
        bdmc(model, guide, torch.randn(5, 3), steps=2)


def test_angles_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.VonMises(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.VonMises(torch.zeros(len(x)), 1.0))

    with pytest.raises(ValueError, match=r"the angles of VonMises at site 'z' repeat themselves beyond a turn"):
        ais(model, guide, torch.zeros(3, 1), steps=2)


@pytest.mark.parametrize("refined", [True, False])
def test_a_guide_or_a_model_whose_density_changes_from_call_to_call_is_refused(refined):
    """Such as a semi-amortized one: its draws and their densities would be of different distributions.

    One datum 400 times, from the prior: the mean of p / p(x) is 1 within 4 standard errors.
    """
    exact = probabilistic_pca(latent=2, observed=3, count=1)
    vae, x = exact.vae, exact.x.expand(400, -1)
    encoder = encoders.SemiAmortized(encoders.Normal(3, 2).double(), vae.prior, vae.decoder, step_size=0.5)
    refining = VAE(vae.prior, encoder, vae.decoder)

    def noisy(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior())
            pyro.sample("x", vae.decoder(z + 0.3 * torch.randn_like(z)), obs=x)

    model, guide = (vae.model, refining.guide) if refined else (noisy, vae.guide)
    whose = "guide" if refined else "model"
    for found in (ais, bdmc) if refined else (ais,):  # bdmc refuses such a model, as it cannot simulate its data
        with pytest.raises(ValueError, match=f"the {whose} gives another one each time, by noise that it draws beside"):
            found(model, guide, x, chains=4, steps=3, leapfrog=2)
    if refined:
        ratio = (ais(model, guide, x, chains=4, steps=3, leapfrog=2, start="prior").estimate - exact.log_p).exp()
        assert abs(ratio.mean().item() - 1) < 4 * ratio.std().item() / math.sqrt(400)


def test_a_prior_that_is_a_mixture_has_coordinates():
    """Of two gamma distributions and a count of 2: the mean of two negative binomials, within 0.05 nats."""
    weights, concentration = torch.tensor([0.3, 0.7]), torch.tensor([2.0, 9.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(weights), dist.Gamma(concentration, 1.0)))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(x + 3, 2.0))

    exact = math.log(weights.numpy() @ stats.nbinom.pmf(2, concentration.numpy(), 0.5))
    found = ais(model, guide, (torch.full((20,), 2.0),), steps=50, leapfrog=3)
    assert found.estimate.mean().item() == pytest.approx(exact, abs=0.05)
