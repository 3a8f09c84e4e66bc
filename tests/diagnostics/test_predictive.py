"""Posterior predictive checks against the normal distributions of a linear-Gaussian model."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_vae import VAE, bdmc, decoders, encoders, predictive_check, priors
from pyro_vae.diagnostics.calibration import calibration
from pyro_vae.networks import FillMissing
from tests.support.linear import probabilistic_pca

DRAWS = 400
SOME = torch.linspace(0.5, 1.5, 80).reshape(40, 2)
SOME[3, 1] = torch.nan


@pytest.mark.parametrize("codes", ["posterior", "prior"])
def test_simulated_data_have_the_moments_of_the_predictive_distribution(codes):
    """400 draws of 20 data: means within 4 standard errors, variances by a chi-squared test with p above 1e-4."""
    exact = probabilistic_pca(latent=3, observed=4, count=20)
    weight = exact.vae.decoder.network.layers[0].weight.detach()
    covariance = exact.covariance if codes == "posterior" else torch.eye(3).double()
    mean = exact.mean @ weight.T if codes == "posterior" else torch.zeros(20, 4).double()
    variance = (weight @ covariance @ weight.T).diagonal() + 0.25
    found = predictive_check(exact.vae.model, exact.vae.guide, exact.x, lambda x: x, codes=codes, draws=DRAWS)
    z = (found.simulated.mean(0) - mean) / (variance / DRAWS).sqrt()
    assert z.abs().max() < 4
    for dimension in range(4):
        total = ((found.simulated[..., dimension] - mean[:, dimension]).square().sum() / variance[dimension]).item()
        assert 1e-4 < stats.chi2.cdf(total, DRAWS * 20) < 1 - 1e-4
    torch.testing.assert_close(found.observed, exact.x)


def test_the_share_above_counts_equal_ones_as_one_half():
    exact = probabilistic_pca(latent=2, observed=3, count=10)
    found = predictive_check(exact.vae.model, exact.vae.guide, exact.x, lambda _: torch.tensor(3), draws=10)
    assert found.p == 0.5
    found = predictive_check(exact.vae.model, exact.vae.guide, exact.x, lambda x: x.std() / 100 * len(x), draws=10)
    assert found.p == (found.simulated > found.observed).double().mean()


def counts():
    """A model of counts without extra zeros, with labels as a part of the data or without."""

    def model(x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            rate = (0.1 * z + (0.0 if y is None else y)).exp() + 3
            pyro.sample("x", dist.Poisson(rate.unsqueeze(-1)).to_event(1), obs=x)

    def guide(x, _=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    return model, guide


@pytest.mark.parametrize("labels", [False, True])
def test_data_that_the_model_cannot_draw_are_seen(labels):
    """A third of the counts are 0, of which the model draws at most exp(-3) = 5 %."""
    torch.manual_seed(0)
    x = torch.poisson(torch.full((300, 1), 4.0)) * (torch.arange(300) % 3 > 0)[:, None]
    data = (x, torch.zeros(300)) if labels else x
    found = predictive_check(*counts(), data, lambda x, *_: (x == 0).double().mean(), draws=50)
    assert found.p == 0
    assert found.simulated.max() < 0.1 < 0.33 < found.observed


def test_what_cannot_be_checked_is_refused():
    exact = probabilistic_pca(latent=2, observed=3, count=10)
    programs = exact.vae.model, exact.vae.guide
    with pytest.raises(TypeError, match=r"^statistic must return a tensor, such as x.mean\(\), not float"):
        predictive_check(*programs, exact.x, lambda _: 1.0)
    with pytest.raises(TypeError, match="statistic"):
        predictive_check(*programs, exact.x, "mean")
    with pytest.raises(ValueError, match="codes are from the posterior or the prior, not from 'data'"):
        predictive_check(*programs, exact.x, lambda x: x.mean(), codes="data")
    with pytest.raises(ValueError, match="draws must be at least 1, not 0"):
        predictive_check(*programs, exact.x, lambda x: x.mean(), draws=0)

    def twice(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", exact.vae.prior())
            pyro.sample("x", exact.vae.decoder(z), obs=2 * x)

    with pytest.raises(ValueError, match="observes something at site 'x' that the data do not hold as it is"):
        predictive_check(twice, exact.vae.guide, exact.x, lambda x: x.mean())


@pytest.mark.parametrize(
    ("statistic", "message"),
    [
        (lambda x: x.mean(), r"^the statistic of the data is nan, .* leave out what is missing \(x.nanmean\(\)\)"),
        (lambda x: x[x > 0], r"^the statistic of simulated data has shape \(\d+,\), and that of the data \(\d+,\)"),
        (lambda x: x.nan_to_num(1.0).amin().log(), r"^the statistic of simulated data is nan"),
    ],
)
def test_a_statistic_that_cannot_be_compared_is_refused(statistic, message):
    """With p = 0 for nan, a missing entry would say that the model never draws such data."""
    x = SOME.clone()
    vae = VAE(priors.Normal(2), encoders.Normal(2, 2, FillMissing), decoders.Masked(decoders.Normal(2, 2)))
    with pytest.raises(ValueError, match=message):
        predictive_check(vae.model, vae.guide, x, statistic, draws=5)
    assert predictive_check(vae.model, vae.guide, x, lambda x: x.nanmean(), draws=5).observed == x.nanmean()


def test_labels_that_equal_the_data_by_chance_stay_as_they_are():
    """All counts and all labels are 0; the model draws other counts."""

    def model(x, label):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z + 10 * label), obs=x)

    def guide(x, _):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    zeros = torch.zeros(40), torch.zeros(40)
    found = predictive_check(model, guide, zeros, lambda x, label: torch.stack([x.mean(), label.mean()]), draws=10)
    assert found.simulated[:, 0].mean().item() == pytest.approx(0.5, abs=0.1)
    assert (found.simulated[:, 1] == 0).all()


def test_a_value_that_is_computed_is_that_of_the_simulated_codes():
    """x is N(2 z, 1) with a computed 2 z, so that its mean over 40 data is N(0, 5 / 40) with new codes."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            twice = pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(twice.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.4 * x[:, 0], 0.2**0.5))

    x = torch.linspace(-4, 4, 40)[:, None]
    found = predictive_check(model, guide, x, lambda x: x, codes="prior", draws=DRAWS)
    assert found.simulated.shape == (DRAWS, 40, 1)
    assert 1e-4 < stats.chi2.cdf(40 * found.simulated.mean((1, 2)).square().sum().item() / 5, DRAWS) < 1 - 1e-4
    lower, upper, *_ = bdmc(model, guide, x, steps=10)
    assert abs(upper.mean() - lower.mean()) < 0.05  # the guide is exact
    assert calibration(model, guide, x).verdict == "no failure is seen"


def test_labels_that_equal_a_few_data_by_chance_are_not_simulated():
    """The last batch of two data has labels that are equal to them; the model observes the data alone."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z + 3.0 * y), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x - y, 1.0))

    def sums(x, y):
        return torch.stack((x.sum(), y.sum()))

    x, y = torch.tensor([0.0, 1.0]).repeat(6), torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(3)
    y[-2:] = x[-2:]
    check = predictive_check(model, guide, [(x[:10], y[:10]), (x[10:], y[10:])], sums, draws=5)
    assert check.simulated[:, 1].eq(y.sum()).all()


def test_a_statistic_that_changes_its_data_in_place_leaves_the_data_alone():
    """It doubled the user's data, and p was 1.0 for 0.5, as the simulated data then followed the doubled ones."""
    exact = probabilistic_pca(latent=2, observed=3, count=300)
    before = exact.x.clone()
    found, expected = (
        predictive_check(exact.vae.model, exact.vae.guide, exact.x, statistic, draws=20)
        for statistic in (lambda x: x.mul_(2).std(), lambda x: (2 * x).std())
    )
    assert torch.equal(exact.x, before)
    torch.testing.assert_close(found, expected)
