import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE, decoders, encoders, priors
from pyro_vae.diagnostics.posteriors import posterior_check
from tests.support.linear import probabilistic_pca


def test_moments_of_both_posteriors_are_those_in_closed_form():
    """Means within 5 standard errors of as many independent draws as the chains are worth; deviations within 25 %."""
    exact = probabilistic_pca(latent=2, observed=3, count=1, factor=1.5, offset=0.4)
    found = posterior_check(exact.vae.model, exact.vae.guide, exact.x, samples=150, warmup=100)
    deviation = exact.covariance.diagonal().sqrt()
    error = deviation / found.effective_sample_size.sqrt()
    assert ((found.mean[1] - exact.mean).abs() < 5 * error).all()
    assert ((found.mean[0] - exact.mean - 0.4).abs() < 5 * 1.5 * deviation / 300**0.5).all()
    assert torch.allclose(found.deviation[1], deviation[None], rtol=0.25)
    assert torch.allclose(found.deviation[0], 1.5 * deviation[None], rtol=0.25)
    correlation = exact.covariance[0, 1] / deviation.prod()
    assert torch.allclose(found.correlation[:, 0, 0, 1], correlation.expand(2), atol=0.3)
    assert (found.r_hat < 1.1).all()
    assert found.exact.shape == (300, 1, 2)


@pytest.mark.slow
def test_positive_codes_have_the_gamma_posterior():
    """A gamma rate of a Poisson count of 4: the posterior is Gamma(6, 2), with mean 3 and variance 1.5."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(z[..., None]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(torch.zeros(len(x)), 1.0))

    found = posterior_check(model, guide, torch.tensor([[4.0]]), samples=400, warmup=200)
    assert abs(found.mean[1].item() - 3) < 5 * (1.5 / found.effective_sample_size.item()) ** 0.5
    assert found.deviation[1].item() == pytest.approx(1.5**0.5, rel=0.2)


def test_chains_that_have_not_mixed_are_said():
    exact = probabilistic_pca(latent=2, observed=3, count=1, factor=30.0)
    with pytest.warns(RuntimeWarning, match=r"^the chains of 1 of 1 data have not mixed \(R-hat over 1\.05\)"):
        posterior_check(exact.vae.model, exact.vae.guide, exact.x, samples=4, warmup=1)


def test_discrete_codes_and_single_chains_are_refused():
    vae, x = VAE(priors.Bernoulli(2), encoders.Bernoulli(3, 2), decoders.Normal(2, 3)), torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"gradients, which Bernoulli at site 'z' .* such as log_likelihood"):
        posterior_check(vae.model, vae.guide, x)
    with pytest.raises(ValueError, match=r"^chains must be at least 2, not 1$"):
        posterior_check(vae.model, vae.guide, x, chains=1)


def test_a_model_that_draws_noise_beside_its_sites_is_refused():
    exact = probabilistic_pca(latent=2, observed=3, count=2)

    def noisy(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", exact.vae.prior())
            pyro.sample("x", exact.vae.decoder(z + torch.randn_like(z)), obs=x)

    with pytest.raises(ValueError, match=r"^posterior_check needs the density .* model gives another one each time"):
        posterior_check(noisy, exact.vae.guide, exact.x, samples=4, warmup=1)


def test_a_point_is_refused_in_one_line():
    vae = VAE(priors.Normal(2), encoders.Delta(3, 2), decoders.Normal(2, 3))
    with pytest.raises(
        ValueError, match=r"^posterior_check weighs draws by their density, .* take an encoder that h.*$"
    ):
        posterior_check(vae.model, vae.guide, torch.randn(2, 3), samples=4, warmup=1)
