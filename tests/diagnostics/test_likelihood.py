from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import log_likelihood
from pyro_vae.diagnostics.annealing import ais, bdmc
from pyro_vae.diagnostics.calibration import calibration
from pyro_vae.diagnostics.codes import codes
from pyro_vae.diagnostics.gaps import inference_gap
from pyro_vae.diagnostics.posteriors import posterior_check
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


@pytest.mark.filterwarnings("ignore:the importance weights of")  # of 32 values, which have no tail
@pytest.mark.parametrize("jackknife", [0, 1, 2])
def test_discrete_codes_have_the_likelihood_of_the_sum_over_all_codes(jackknife):
    """32 codes of 5 bits; 40 data, 4,000 samples: 5 errors for each, and 0.02 nats in the mean."""
    generator = torch.Generator().manual_seed(0)
    weight, to_code = torch.randn(5, 8, generator=generator), 0.3 * torch.randn(8, 5, generator=generator)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((5,), 0.3)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z @ weight).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=x @ to_code - 0.5).to_event(1))

    x = torch.bernoulli(torch.full((40, 8), 0.5), generator=generator)
    every = torch.cartesian_prod(*[torch.arange(2.0)] * 5)
    log_prior = dist.Bernoulli(0.3).log_prob(every).sum(-1)
    exact = (dist.Bernoulli(logits=every @ weight).log_prob(x[:, None]).sum(-1) + log_prior).double().logsumexp(-1)
    found = log_likelihood(model, guide, x, samples=4000, per_datum=True, jackknife=jackknife)
    assert ((found.estimate - exact).abs() < 5 * found.standard_error).all()
    assert abs((found.estimate - exact).mean().item()) < 0.02


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


def masked_codes(all_that_depends: bool, at_the_site: bool = True):
    """Codes of positive data that have a mask, which also holds for the data or does not."""

    def mask(x, distribution):
        return distribution if at_the_site else distribution.mask(x[:, 0] > 0)

    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=x[:, 0] > 0) if at_the_site else nullcontext():
                z = pyro.sample("z", mask(x, dist.Normal(torch.zeros(len(x)), 1.0)))
            with poutine.mask(mask=x[:, 0] > 0) if all_that_depends else nullcontext():
                pyro.sample("x", dist.Normal(z[..., None], 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=x[:, 0] > 0) if at_the_site else nullcontext():
            pyro.sample("z", mask(x, dist.Normal(0.7 * x[:, 0], 0.6)))

    return model, guide


SIGNED = torch.linspace(-1, 1, 20)[:, None]


@pytest.mark.parametrize("at_the_site", [True, False])
@pytest.mark.parametrize(
    "measure",
    [
        log_likelihood,
        partial(ais, steps=2),
        partial(bdmc, steps=2),
        partial(inference_gap, steps=2),
        partial(posterior_check, warmup=2, samples=4),
        calibration,
        codes,
    ],
    ids=["log_likelihood", "ais", "bdmc", "inference_gap", "posterior_check", "calibration", "codes"],
)
def test_a_masked_code_on_which_data_depend_has_no_likelihood(measure, at_the_site):
    with pytest.raises(
        ValueError, match=r"site 'z' has a mask where other sites depend on it.*mask what depends on it"
    ):
        measure(*masked_codes(False, at_the_site), SIGNED)


@pytest.mark.parametrize("at_the_site", [True, False])
@pytest.mark.parametrize("measure", [calibration, partial(posterior_check, warmup=2, samples=4), codes])
def test_data_that_are_masked_as_a_whole_have_no_codes(measure, at_the_site):
    """Half of 1,000 data are padding, with codes that the guide draws anywhere: an information of -0.11 for 0.33.

    The sampler would follow a density that is the same everywhere, and not come back.
    """
    with pytest.raises(
        ValueError, match=r"looks at the codes of all data, but site 'z' is masked for some.*leave these"
    ):
        measure(*masked_codes(True, at_the_site), SIGNED)


def test_a_datum_that_is_masked_as_a_whole_has_the_likelihood_1():
    found = log_likelihood(*masked_codes(True), SIGNED, per_datum=True).estimate
    exact = dist.Normal(0.0, 1.25**0.5).log_prob(SIGNED[:, 0]).where(SIGNED[:, 0] > 0, 0.0)
    torch.testing.assert_close(found, exact.double(), rtol=0, atol=0.05)


OF_EACH_DATUM = {
    "likelihood": partial(log_likelihood, per_datum=True, samples=10),
    "ais": partial(ais, steps=5),
    "gap": partial(inference_gap, samples=10, steps=2, starts=1),
    "posteriors": partial(posterior_check, samples=4, warmup=1),
}


@pytest.mark.filterwarnings("ignore:the chains of")
@pytest.mark.parametrize("of_each", OF_EACH_DATUM.values(), ids=OF_EACH_DATUM)
def test_estimates_of_each_datum_follow_the_order_of_the_data(of_each):
    """A loader that shuffles would give those of others, and pair likelihoods with the bounds of others."""
    exact = probabilistic_pca(latent=2, observed=2, count=8)
    programs, rows = (exact.vae.model, exact.vae.guide), TensorDataset(exact.x)
    with pytest.raises(ValueError, match=r"follow the order of the data, which this DataLoader changes: give its data"):
        of_each(*programs, DataLoader(rows, batch_size=4, shuffle=True))
    assert of_each(*programs, DataLoader(rows, batch_size=8))[0].shape == of_each(*programs, exact.x)[0].shape


def test_a_mean_does_not_follow_the_order_of_the_data():
    exact = probabilistic_pca(latent=2, observed=2, count=8)
    shuffled = DataLoader(TensorDataset(exact.x), batch_size=4, shuffle=True)
    found = log_likelihood(exact.vae.model, exact.vae.guide, shuffled, samples=2000)
    assert found == pytest.approx(exact.log_p.mean().item(), abs=0.2)


@pytest.mark.parametrize("measure", [ais, codes, log_likelihood])
def test_a_scale_of_the_programs_own_is_named_with_its_fix(measure):
    exact = probabilistic_pca(latent=2, observed=3, count=20)
    pair = (poutine.scale(program, 2.0) for program in (exact.vae.model, exact.vae.guide))
    with pytest.raises(ValueError, match=r"a scale of 2 at site 'z' .* leave poutine.scale out of the programs$"):
        measure(*pair, exact.x)
