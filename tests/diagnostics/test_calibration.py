import math
import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_vae import VAE, decoders, encoders, priors
from pyro_vae.diagnostics.calibration import band, calibration, gamma, uniform_p
from tests.support.linear import probabilistic_pca


def posterior(exact, kind):
    """Return a guide: the exact posterior of a linear-Gaussian model, or one that is wrong in one respect."""
    tril, deviations = torch.linalg.cholesky(exact.covariance), exact.covariance.diagonal().sqrt()
    to_mean = exact.vae.encoder.weight.detach()
    kinds = {
        "exact": lambda mean: dist.MultivariateNormal(mean, scale_tril=tril),
        "narrow": lambda mean: dist.MultivariateNormal(mean, scale_tril=0.7 * tril),
        "wide": lambda mean: dist.MultivariateNormal(mean, scale_tril=1.5 * tril),
        "shifted": lambda mean: dist.MultivariateNormal(mean + 0.15, scale_tril=tril),
        "uncorrelated": lambda mean: dist.Normal(mean, deviations).to_event(1),  # its marginals are exact
    }

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", kinds[kind](x @ to_mean.T))

    return guide


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("uncorrelated", "the posteriors are wrong: (coverage, )?classifier"),
        ("exact", "no failure is seen"),
        ("narrow", r"the posteriors are wrong: ranks of 4 of 4 dimensions \(too narrow\), coverage, classifier"),
        ("wide", r"the posteriors are wrong: ranks of 4 of 4 dimensions \(too wide\), coverage, classifier"),
        ("shifted", r"the posteriors are wrong: ranks of 4 of 4 dimensions \(shifted\), .*classifier"),
    ],
)
def test_the_verdict_names_what_is_wrong(kind, verdict):
    """1,000 simulated data: the exact posterior passes; a scale, a mean and correlations alone are seen."""
    exact = probabilistic_pca(latent=4, observed=6, count=1000)
    found = calibration(exact.vae.model, posterior(exact, kind), exact.x)
    assert (found.p < 0.01) == (kind != "exact")
    assert re.fullmatch(verdict, found.verdict)


@pytest.mark.slow
def test_exact_posteriors_fail_as_rarely_as_the_p_values_say():
    """40 seeds of 200 data: each p-value is uniform (Kolmogorov and Smirnov at 0.001)."""
    exact = probabilistic_pca(latent=2, observed=3, count=200)
    found = [calibration(exact.vae.model, exact.vae.guide, exact.x, seed=seed) for seed in range(40)]
    for values in ([each.coverage_p for each in found], [each.rank_p[0].item() for each in found]):
        assert stats.kstest(values, "uniform").pvalue > 0.001
    assert stats.binomtest(sum(each.classifier_p < 0.2 for each in found), 40, 0.2).pvalue > 0.001


def test_gamma_is_the_probability_of_the_most_unlikely_count():
    """By its definition, one point after the other."""
    ranks, draws = np.array([0, 3, 3, 1, 5, 5, 5]), 5
    expected = []
    for i in range(1, draws + 1):
        count, share = (ranks < i).sum(), i / (draws + 1)
        low = sum(math.comb(7, k) * share**k * (1 - share) ** (7 - k) for k in range(count + 1))
        high = sum(math.comb(7, k) * share**k * (1 - share) ** (7 - k) for k in range(count, 8))
        expected.append(2 * min(low, high))
    assert gamma(ranks, draws) == pytest.approx(min(expected))


def test_the_p_value_of_uniform_ranks_is_uniform():
    """2,000 columns of 50 uniform ranks: the share of p-values below 0.05 is 0.05, within 4 standard errors."""
    ranks = torch.randint(0, 20, (50, 2000), generator=torch.Generator().manual_seed(1))
    share = (uniform_p(ranks, 19) <= 0.05).double().mean().item()
    assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_discrete_codes_are_ranked_with_random_ties():
    """The prior itself as the encoder of codes that the data do not depend on: it is exact."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.3)).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.3)).to_event(1))

    assert calibration(model, guide, torch.zeros(400, 2)).p > 0.01


def test_few_data_are_refused_and_vaes_are_taken():
    vae, x = VAE(priors.Normal(2), encoders.Normal(5, 2), decoders.Normal(2, 5)), torch.randn(30, 5)
    assert calibration(vae.model, vae.guide, x).ranks.shape == (30, 2)
    with pytest.raises(ValueError, match=r"^calibration needs at least 20 data to simulate as many, not 10"):
        calibration(vae.model, vae.guide, x[:10])


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_ranks_leave_the_band_where_their_p_value_is_below_one_in_a_hundred(scale):
    """100 sets of 80 ranks, each in its own dimension."""
    draws, low, high = 20, *band(80, 20)
    codes = torch.randn(80, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = torch.randn(draws, 80, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * scale
    ranks = (drawn < codes).sum(0)
    below = np.stack([(ranks.numpy() < rank).mean(0) for rank in range(1, draws + 1)], 1)
    outside = ((below < low) | (below > high)).any(1)
    p = uniform_p(ranks, draws).numpy()
    assert (outside == (p < 0.01))[abs(p - 0.01) > 0.002].all()
    assert outside.mean() > 0.9 if scale < 1 else outside.mean() < 0.05
