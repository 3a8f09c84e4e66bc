import pytest
import torch

from pyro_vae import log_likelihood
from pyro_vae.diagnostics.weights import LogLikelihood
from tests.support.linear import probabilistic_pca


@pytest.mark.parametrize("jackknife", [1, 0, 2])
def test_each_estimate_is_the_exact_likelihood_in_16_dimensions(jackknife):
    """50 data, 5,000 samples of weights whose variance is about 1: within 0.02 nats in the mean, 5 errors for each."""
    exact = probabilistic_pca(factor=1.15, offset=0.02)
    settings = {"jackknife": jackknife, "per_datum": True}
    found = log_likelihood(exact.vae.model, exact.vae.guide, exact.x, **settings)
    error = found.estimate - exact.log_p
    assert abs(error.mean().item()) < 0.02
    assert (error.abs() < 5 * found.standard_error).all()
    assert (found.pareto_k < 0.7).all()
    assert (found.effective_sample_size > 500).all()


def test_the_standard_errors_are_right():
    """200 repetitions of 10 data, 400 samples: the errors in units of their standard errors have a variance near 1."""
    exact = probabilistic_pca(latent=4, observed=6, count=10, factor=1.2, offset=0.05)
    repeated = exact.x.repeat(200, 1)
    found = log_likelihood(exact.vae.model, exact.vae.guide, repeated, samples=400, per_datum=True)
    z = (found.estimate - exact.log_p.repeat(200)) / found.standard_error
    assert 0.7 < z.var().item() < 1.4


def test_the_float_is_the_mean_of_the_estimates():
    exact = probabilistic_pca(latent=2, observed=3, count=7, factor=1.3)
    arguments = exact.vae.model, exact.vae.guide, exact.x
    found = log_likelihood(*arguments, samples=60, per_datum=True)
    assert isinstance(found, LogLikelihood)
    assert log_likelihood(*arguments, samples=60) == pytest.approx(found.estimate.mean().item(), rel=1e-12)


def test_at_the_exact_posterior_every_estimate_is_exact_without_a_warning():
    exact = probabilistic_pca()
    found = log_likelihood(exact.vae.model, exact.vae.guide, exact.x, samples=50, per_datum=True, jackknife=2)
    assert torch.allclose(found.estimate, exact.log_p, rtol=1e-8)
    assert (found.standard_error < 1e-9).all()
    assert found.effective_sample_size.tolist() == pytest.approx([50] * 50)


def test_a_guide_that_misses_the_posterior_is_said():
    """Its scale is a third of the posterior's: the weights have no variance."""
    exact = probabilistic_pca(factor=1 / 3)
    with pytest.warns(RuntimeWarning, match=r"of \d+ of 50 data have a Pareto k over 0\.7"):
        found = log_likelihood(exact.vae.model, exact.vae.guide, exact.x, samples=1000, per_datum=True)
    assert (found.estimate < exact.log_p - 0.5).all()
    assert not found.pareto_k.isnan().any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jackknife": 3}, "the order of the jackknife is 0, 1 or 2, not 3"),
        ({"jackknife": 2, "samples": 2}, "a jackknife of order 2 needs at least 3 samples, not 2"),
    ],
)
def test_a_jackknife_that_there_is_not_is_refused(settings, message):
    exact = probabilistic_pca(latent=2, observed=3, count=2)
    with pytest.raises(ValueError, match=f"^{message}$"):
        log_likelihood(exact.vae.model, exact.vae.guide, exact.x, **settings)
