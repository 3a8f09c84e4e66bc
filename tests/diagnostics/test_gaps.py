import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import optimize, special, stats

from pyro_vae import VAE, data, decoders, encoders, priors
from pyro_vae.diagnostics.gaps import inference_gap
from pyro_vae.diagnostics.weights import LogLikelihood
from pyro_vae.distributions import Beta, HypersphericalUniform, Kumaraswamy, PowerSpherical
from tests.support.linear import probabilistic_pca


def known(log_p):
    """Return a log-likelihood without noise."""
    none = torch.zeros_like(log_p)
    return LogLikelihood(log_p, log_p, none, none, none)


def test_both_gaps_of_a_normal_posterior_are_those_in_closed_form():
    """Independent normals on a correlated posterior of precision P: the best have its mean, and variances 1 / P_ii."""
    exact = probabilistic_pca(latent=4, observed=6, count=40)
    precision, offset, scale = torch.linalg.inv(exact.covariance), 0.3, 0.5
    to_mean = exact.vae.encoder.weight.detach()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ to_mean.T + offset, scale).to_event(1))

    def kl(mean, variances):
        quadratic = (precision @ torch.diag(variances)).trace() + mean @ precision @ mean
        return ((quadratic - 4 - precision.logdet() - variances.log().sum()) / 2).item()

    zeros = torch.zeros(4, dtype=torch.double)
    least, own = kl(zeros, 1 / precision.diagonal()), kl(zeros + offset, zeros + scale**2)
    found = inference_gap(exact.vae.model, guide, exact.x, likelihood=known(exact.log_p), starts=2, steps=400)
    for gap, error, expected in (
        (found.approximation, found.approximation_error, least),
        (found.amortization, found.amortization_error, own - least),
    ):
        mean_error = error.square().sum().sqrt().item() / len(error)
        assert abs(gap.mean().item() - expected) < 4 * mean_error + 0.01
        assert ((gap - expected).abs() < 5 * error + 0.05).all()
    assert torch.allclose(found.log_likelihood - found.bound, found.approximation + found.amortization)


def conjugate():
    """A gamma posterior of a Poisson rate, in the family of the guide."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(z[..., None]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(torch.ones(len(x)), 1.0))

    x = torch.tensor([[0.0], [2.0], [7.0]])
    return model, guide, x, torch.tensor(stats.nbinom.logpmf(x[:, 0].numpy(), 2, 0.5))


def direction():
    """A power spherical posterior, in the family of the guide: a likelihood (1 + m z)^5 with z on the circle."""
    loc, power = torch.tensor([0.6, 0.8]), torch.tensor(5.0)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", HypersphericalUniform(2))
            logits = power * ((1 + (z * loc).sum(-1)) / 2).log()
            pyro.sample("x", dist.Bernoulli(probs=logits.exp()[..., None].clamp(max=1)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", PowerSpherical(torch.tensor([1.0, 0.0]).expand(len(x), 2), torch.ones(len(x))))

    # The mean of cos(t / 2)^10 over the circle is the central binomial coefficient of 10 over 2^10.
    return model, guide, torch.ones(3, 1), torch.full((3,), math.log(math.comb(10, 5) / 2**10))


@pytest.mark.parametrize("case", [conjugate, direction])
def test_a_family_that_holds_the_posterior_has_no_approximation_gap(case):
    model, guide, x, log_p = case()
    found = inference_gap(model, guide, x, likelihood=known(log_p.double()), steps=700, starts=1)
    assert (found.approximation.abs() < 4 * found.approximation_error + 0.02).all()
    assert (found.amortization > 0.1).all()


def of_counts(prior, log_likelihood, log_p):
    """Programs of counts whose posteriors are in the guide's family, which begins at the prior."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior(len(x)))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(len(x)))
            pyro.factor("x", log_likelihood(x, z))
            pyro.sample("seen", dist.Normal(torch.zeros(len(x)), 1.0), obs=torch.zeros(len(x)))

    return model, guide, log_p - math.log(2 * math.pi) / 2


def gamma_rates():
    x = torch.tensor([[3.0], [40.0], [4000.0]])
    shape = x[:, 0].double() + 1
    return x, of_counts(
        lambda n: dist.Gamma(torch.ones(n), 1.0),
        lambda x, z: x[:, 0] * z.log() - z,
        shape.lgamma() - shape * math.log(2),
    )


def beta_shares():
    x = torch.tensor([[2.0, 40.0], [4000.0, 3.0], [3000.0, 4000.0]])
    return x, of_counts(
        lambda n: dist.Beta(torch.ones(n), torch.ones(n)),
        lambda x, z: x[:, 0] * z.log() + x[:, 1] * torch.log1p(-z),
        torch.tensor(special.betaln(*(1 + x.double().numpy().T))),
    )


def dirichlet_shares():
    x = torch.tensor([[10.0, 20.0, 30.0], [1000.0, 20.0, 3.0], [0.0, 4000.0, 3000.0]])
    alpha = x.double() + 1
    return x, of_counts(
        lambda n: dist.Dirichlet(torch.ones(n, 3)),
        lambda x, z: torch.special.xlogy(x, z).sum(-1),
        alpha.lgamma().sum(-1) - alpha.sum(-1).lgamma() + math.log(2),
    )


@pytest.mark.parametrize("case", [dirichlet_shares, gamma_rates, beta_shares])
def test_concentrated_posteriors_of_counts_are_found_from_the_prior(case):
    x, (model, guide, log_p) = case()
    found = inference_gap(model, guide, x, likelihood=known(log_p), starts=1)
    assert (found.approximation.abs() < 4 * found.approximation_error + 0.015).all()
    assert (found.amortization > 0.1).all()


@pytest.mark.slow
def test_the_best_kumaraswamy_is_found():
    """On beta posteriors, where the least divergence is that of a search by Nelder and Mead, with quadrature."""
    x, (model, _, log_p) = beta_shares()
    x, log_p = torch.cat([x[:1], x[2:] / 10]), log_p[[0, 2]]
    log_p[1] = special.betaln(301, 401) - math.log(2 * math.pi) / 2
    nodes, weights = np.polynomial.legendre.leggauss(300)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Kumaraswamy(torch.ones(len(x)), torch.ones(len(x))))

    def divergence(logarithms, counts):
        a, b = np.exp(logarithms)
        to_b = np.log1p(-(nodes + 1) / 2) / b  # of the quantiles, 1 - z^a
        log_z = np.log(-np.expm1(to_b)) / a
        log_q = np.log(a * b) + (a - 1) * log_z + (b - 1) * to_b
        log_posterior = counts @ [log_z, np.log(-np.expm1(log_z))] - special.betaln(*(counts + 1))
        return weights @ (log_q - log_posterior) / 2

    least = [
        min(optimize.minimize(divergence, start, (counts,), "Nelder-Mead").fun for start in ([0, 0], np.log1p(counts)))
        for counts in x.double().numpy()
    ]
    found = inference_gap(model, guide, x, likelihood=known(log_p), starts=1)
    assert np.all(np.abs(found.approximation.numpy() - least) < 4 * found.approximation_error.numpy() + 0.01)


def test_starts_that_end_apart_are_said():
    model, guide, log_p = gamma_rates()[1]
    with pytest.warns(RuntimeWarning, match=r"two best starts of the search for q\* end .* nats apart in the mean"):
        inference_gap(model, guide, torch.tensor([[40.0]]), likelihood=known(log_p[1:2]), steps=5, starts=2)


@pytest.mark.parametrize(("slope", "scale", "x"), [(3.0, 0.05, 3.0), (1.0, 0.1, -20.0), (3.0, 0.005, 3.0)])
def test_the_best_posterior_is_found_from_far_away(slope, scale, x):
    """Of p(z) = N(0, 1) and p(x|z) = N(slope z, scale), from the prior: the posterior is normal, so the gap is 0."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(slope * z, scale), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    of_data = torch.tensor([x, x / 2])
    log_p = dist.Normal(0.0, math.hypot(slope, scale)).log_prob(of_data).double()
    found = inference_gap(model, guide, (of_data,), likelihood=known(log_p), starts=1)
    assert (found.approximation.abs() < 0.03).all()
    assert (found.amortization > 100).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_search_keeps_to_concentrations_whose_draws_are_exact(dtype):
    """Of a Beta(0.1, 0.1) prior and 4 of 4: the posterior is Beta(4.1, 0.1), of which 20 % round to 1 in 32 bits."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Beta(torch.tensor(0.1, dtype=dtype), torch.tensor(0.1, dtype=dtype)))
            pyro.sample("x", dist.Binomial(4, z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Beta(torch.full((len(x),), 0.8, dtype=dtype), torch.full((len(x),), 0.8, dtype=dtype)))

    x = torch.tensor([4.0, 4.0], dtype=dtype)
    log_p = torch.tensor(stats.betabinom.logpmf(x.numpy(), 4, 0.1, 0.1))
    posterior, others = dist.Beta(4.1, 0.1), dist.Beta(torch.linspace(0.75, 60, 5000), 0.75)
    least = torch.distributions.kl_divergence(others, posterior).min().item()  # the floor of encoders.Beta is 0.75
    least = least if dtype == torch.float32 else 0.0
    found = inference_gap(model, guide, (x,), likelihood=known(log_p), starts=1, steps=600)
    assert ((found.approximation - least).abs() < 4 * found.approximation_error + 0.03).all()


def test_errors_contain_the_noise_that_a_guide_draws_beside_its_sites():
    """Such as that of a semi-amortized one. Of means that are off by 0.5 e, e standard normal, the KL is known."""
    exact = probabilistic_pca(latent=2, observed=3, count=100)
    factor = torch.linalg.cholesky(exact.covariance)

    def guide(x):
        with pyro.plate("data", len(x)):
            mean = exact.vae.encoder(x).loc.detach()
            pyro.sample("z", dist.MultivariateNormal(mean + 0.5 * torch.randn_like(mean), scale_tril=factor))

    kl = 0.5**2 / 2 * torch.linalg.inv(exact.covariance).trace().item()
    found = inference_gap(exact.vae.model, guide, exact.x, likelihood=known(exact.log_p), starts=1, steps=200)
    scores = (found.amortization - kl) / found.amortization_error
    assert scores.square().mean().sqrt() < 1.4
    assert abs(found.amortization.mean().item() - kl) < 0.2 * kl


def test_the_search_takes_vaes_and_keeps_their_parameters():
    x = data.load("digits").test[:20]
    vae = VAE(priors.Normal(2), encoders.FullRankNormal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    found = inference_gap(vae.model, vae.guide, x, steps=50, starts=1, samples=100)
    assert found.amortization.mean() > 0
    assert found.bound.shape == (20,)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            encoders.Flow(5, 2),
            "frees the parameters of each site, which ConditionalFlow at site 'z' has not: take a guide",
        ),
        (encoders.Delta(5, 2), "Delta at site 'z' has not: take"),
        (
            encoders.ScoreFunction(encoders.Normal(5, 2)),
            "needs draws with a gradient, .* ScoreFunction .*log_likelihood",
        ),
        (
            encoders.Bernoulli(5, 2),
            "needs draws with a gradient, which Bernoulli at site 'z' has not: take a guide of co",
        ),
    ],
)
def test_what_has_no_parameters_to_free_is_refused(encoder, message):
    prior = priors.Bernoulli(2) if isinstance(encoder, encoders.Bernoulli) else priors.Normal(2)
    vae = VAE(prior, encoder, decoders.Normal(2, 5))
    with pytest.raises(ValueError, match=message):
        inference_gap(vae.model, vae.guide, torch.randn(4, 5), samples=2, likelihood=known(torch.zeros(4)))


def test_a_transformed_distribution_has_no_parameters_to_free():
    """Its support is fixed, so that this is not the reason."""

    def guide(x):
        with pyro.plate("data", len(x)):
            normal = dist.Normal(x, 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(normal, [dist.transforms.ExpTransform()]))

    vae = VAE(priors.Gamma(5), encoders.Gamma(5, 5), decoders.Normal(5, 5))
    with pytest.raises(
        ValueError, match=r"frees the parameters of each site, which TransformedDistribution .* has not: take"
    ):
        inference_gap(vae.model, guide, torch.randn(4, 5), samples=2, likelihood=known(torch.zeros(4)))


def test_sites_that_depend_on_each_other_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x[:, 0], 1.0))
            pyro.sample("b", dist.Normal(a, 1.0))

    with pytest.raises(ValueError, match=r"those at site 'b' have shape .*depend on the data alone"):
        inference_gap(model, guide, torch.randn(4, 1), likelihood=known(torch.zeros(4)))


def test_a_likelihood_of_other_data_is_refused():
    exact = probabilistic_pca(latent=2, observed=3, count=4)
    with pytest.raises(ValueError, match=r"^the likelihood is of 4 data, not of these 3"):
        inference_gap(exact.vae.model, exact.vae.guide, exact.x[:3], likelihood=known(exact.log_p))


def test_a_support_that_moves_with_its_parameters_is_refused_and_temperatures_stay():
    def model(x, prior):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    def guide(x, make):
        with pyro.plate("data", len(x)):
            pyro.sample("z", make(torch.full((len(x),), 0.5)))

    x, half = torch.rand(4, 1), torch.tensor(0.5)
    pair = partial(model, prior=dist.Uniform(0.0, 1.0)), partial(guide, make=lambda p: dist.Uniform(0.0 * p, 1.0))
    numbers = partial(guide, make=lambda _: dist.Uniform(0.0, 1.0))
    for own in (pair[1], numbers):
        with pytest.raises(ValueError, match=r"and that of Uniform at site 'z' moves with its parameters"):
            inference_gap(pair[0], own, x, likelihood=known(torch.zeros(4)), steps=2)
    relaxed = partial(model, prior=dist.RelaxedBernoulli(half, half))
    own = partial(guide, make=lambda p: dist.RelaxedBernoulli(half, p))
    found = inference_gap(relaxed, own, x, likelihood=known(torch.zeros(4)), steps=20, starts=1, samples=200)
    assert (found.amortization > -4 * found.amortization_error).all()


def test_a_likelihood_that_is_below_a_bound_is_said():
    exact = probabilistic_pca(latent=2, observed=3, count=10)
    with pytest.warns(RuntimeWarning, match=r"^the log-likelihood is (0\.9|1)\S* nats below a bound on it, so that"):
        inference_gap(exact.vae.model, exact.vae.guide, exact.x, likelihood=known(exact.log_p - 1), steps=300, starts=1)
