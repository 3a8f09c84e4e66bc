"""Relaxed one-hot codes, whose entries underflow at low temperatures: densities and KLs by their logarithms."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from part_cases import array
from pyro.infer import Trace_ELBO
from scipy import special

from pyro_vae import VAE, data, decoders, encoders, evaluate, fit, log_likelihood, priors
from pyro_vae.distributions import RelaxedOneHotCategorical, ScoreFunction
from pyro_vae.distributions.relaxed import logarithm_of, with_logarithm
from pyro_vae.objectives import IWAE

DTYPES = [torch.float32, torch.float64]
TEMPERATURES = [0.001, 0.01, 0.05, 0.67, 1000.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logarithms_of_any_size_are_kept_by_numbers_that_are_the_exponentials_where_these_are_large(dtype):
    y = -torch.logspace(-3, 6, 1000, dtype=dtype)
    torch.testing.assert_close(logarithm_of(with_logarithm(y)), y)
    assert ((with_logarithm(y) - y.exp()).abs() < 1e-9).all()
    assert (with_logarithm(y).diff() < 0).all()


def log_density(log_z, temperature, logits):
    """Maddison, Mnih and Teh, 2017, definition 1, of the logarithm of z."""
    k = logits.shape[-1]
    each = logits - (temperature + 1) * log_z
    total = special.logsumexp(logits - temperature * log_z, -1)
    return special.gammaln(k) + (k - 1) * np.log(temperature) + each.sum(-1) - k * total


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("of_prior", [0.001, 0.5])
def test_log_weights_are_those_of_the_logarithms(dtype, temperature, of_prior):
    """To within what float32 leaves of the sum of the logarithms: the weight is a difference of such sums."""
    generator = torch.Generator().manual_seed(1)
    logits, other, noise = (5 * torch.randn(*size, 12, generator=generator) for size in ((), (), (100,)))
    q, p = (
        RelaxedOneHotCategorical(torch.tensor(t, dtype=dtype), logits=values.to(dtype))
        for t, values in ((temperature, logits), (of_prior, other))
    )
    z = q.draw_of((logits + noise).to(dtype) / temperature)
    log_z = special.log_softmax(array((logits + noise).double() / temperature), -1)
    expected = log_density(log_z, temperature, array(logits.double())) - log_density(
        log_z, of_prior, array(other.double())
    )
    found = array((q.log_prob(z) - p.log_prob(z)).double())
    scale = torch.finfo(dtype).eps * (
        np.abs(log_z).sum(-1) + 12 * (1 + np.abs(log_z).max() * of_prior) + 12 * temperature
    )
    assert (np.abs(found - expected) < 10 * scale + 1e-9).all()


def exact_kl(count):
    """From (5, -5, ..., -5) to equal weights, at one temperature, whatever it is.

    With E ~ Exponential(1), both densities depend on sums of E alone: KL = sum(l) - K psi(K) + K E[log sum(e^-l E)],
    whose mean is 5 + psi(K - 1) + e^-10 / (K - 2), to the first order in e^-10.
    """
    mean_log = 5 + special.digamma(count - 1) + np.exp(-10) / (count - 2)
    return 5 - 5 * (count - 1) - count * special.digamma(count) + count * mean_log


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    "wrap", [lambda q: q, ScoreFunction, lambda q: q.expand((40_000,))], ids=["plain", "score", "plate"]
)
def test_the_sampled_kl_has_the_exact_one_as_its_mean(dtype, temperature, wrap):
    """Of 40,000 draws, within 4 standard errors; the KL of 20 categories is 8.947 nats."""
    torch.manual_seed(2)
    logits = torch.tensor([5.0, *[-5.0] * 19], dtype=dtype)
    q, p = (
        RelaxedOneHotCategorical(torch.tensor(temperature, dtype=dtype), logits=values)
        for values in (logits, torch.zeros_like(logits))
    )
    q = wrap(q)
    z = q.sample(() if q.batch_shape else (40_000,))
    weights = array((q.log_prob(z) - p.log_prob(z)).double())
    assert abs(weights.mean() - exact_kl(20)) < 4 * weights.std() / 200


@pytest.mark.parametrize("temperature", [0.001, 0.1])
def test_the_gradient_of_the_sampled_kl_is_that_of_the_exact_one(temperature):
    """Of 100,000 draws in float32, within 4 standard errors; the KL of two categories is a function of their logits.

    With p of equal weights, KL = l_1 + l_2 - 2 psi(2) + 2 E[log(e^-l_1 E_1 + e^-l_2 E_2)], and the logarithm of
    a E_1 + b E_2 has the mean (a log a - b log b) / (a - b) + psi(1).
    """
    torch.manual_seed(3)
    exact_logits = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    a, b = (-exact_logits).exp()
    kl = exact_logits.sum() + 2 * (a * a.log() - b * b.log()) / (a - b)
    (expected,) = torch.autograd.grad(kl, exact_logits)
    logits = torch.tensor([2.0, -1.0]).expand(100_000, 2).clone().requires_grad_()
    t = torch.tensor(temperature)
    q, p = RelaxedOneHotCategorical(t, logits=logits), RelaxedOneHotCategorical(t, logits=torch.zeros(2))
    z = q.rsample()
    (gradients,) = torch.autograd.grad((q.log_prob(z) - p.log_prob(z)).sum(), logits)
    error = gradients.std(0) / len(gradients) ** 0.5
    assert ((gradients.mean(0) - expected).abs() < 4 * error).all()


def test_a_code_may_be_converted_to_another_precision():
    logits = torch.tensor([3.0, 0.0, -4.0, 1.0])
    q = RelaxedOneHotCategorical(torch.tensor(0.01), logits=logits)
    wide = RelaxedOneHotCategorical(torch.tensor(0.01).double(), logits=logits.double())
    z = q.sample((100,))
    torch.testing.assert_close(q.log_prob(z).double(), wide.log_prob(z.double()), rtol=1e-5, atol=1e-3)
    z = wide.sample((100,))
    torch.testing.assert_close(q.log_prob(z.float()).double(), wide.log_prob(z), rtol=1e-5, atol=1e-3)


def cold(temperature, categories=20):
    torch.manual_seed(0)
    own = {"categories": categories, "temperature": temperature}
    return VAE(
        priors.RelaxedOneHotCategorical(3, **own),
        encoders.RelaxedOneHotCategorical((1, 8, 8), 3, **own),
        decoders.Bernoulli((3, categories), (1, 8, 8), grey=True),
    )


@pytest.mark.parametrize("temperature", [0.001, 0.05])
def test_training_at_a_low_temperature_finds_no_bound_above_the_log_likelihood(temperature):
    x, vae = data.load("digits").train[:301], cold(temperature)
    fit(vae.model, vae.guide, x, epochs=12, batch_size=50, optimizer=partial(torch.optim.Adam, lr=1e-2))
    bound = evaluate(vae.model, vae.guide, x)
    assert 15 < bound.loss < 35
    assert bound.kl > -0.1
    assert -35 < log_likelihood(vae.model, vae.guide, x[:50], samples=500) < -15


@pytest.mark.parametrize(("particles", "chunk"), [(1, None), (6, 6), (6, 2)], ids=["one", "whole", "chunks"])
def test_the_log_weights_of_a_program_in_float32_are_those_in_float64(particles, chunk):
    """One set of draws, which the model reads from the guide's trace: replayed, and in chunks."""
    vae, x = cold(0.01), data.load("digits").train[:20]
    torch.manual_seed(1)
    with torch.no_grad():
        vae.encoder.network.layers[-1].bias.normal_(0, 5)  # far from the prior
    bounds = []
    for dtype in DTYPES:
        noise = torch.Generator().manual_seed(5)
        values = torch.randn(particles, 20, 3, 20, generator=noise, dtype=torch.float64).to(dtype)
        drawn, of_dtype = vae.to(dtype).encoder, x.to(dtype)

        def guide(x, drawn=drawn, values=values):
            q = drawn(x)
            z = q.base_dist.draw_of((q.base_dist.logits + values) / q.base_dist.temperature)
            with pyro.plate("data", len(x)):
                z = z if len(z) > 1 else z[0]
                pyro.sample("z", _Given(q, z))

        bounds.append(IWAE(num_particles=particles, chunk=chunk).loss(vae.model, guide, of_dtype) / len(x))
    assert bounds[0] == pytest.approx(bounds[1], abs=0.02)


class _Given(ScoreFunction):
    """A distribution whose draw is given."""

    has_rsample = True

    def __init__(self, base_dist, value):
        super().__init__(base_dist)
        self.value = value

    def expand(self, batch_shape, _instance=None):
        return _Given(self.base_dist.expand(batch_shape), self.value)

    def rsample(self, sample_shape=()):
        assert sample_shape == ()
        return self.value.expand(self.batch_shape + self.event_shape)


@pytest.mark.parametrize(
    ("temperature", "message"),
    [(torch.tensor(1e-4), "from 0.001 to 1000"), (torch.tensor(2e3), "from 0.001"), (torch.ones(3), "without dim")],
    ids=["cold", "warm", "several"],
)
def test_temperatures_that_it_cannot_hold_are_refused(temperature, message):
    with pytest.raises(ValueError, match=message):
        RelaxedOneHotCategorical(temperature, logits=torch.zeros(3))


@pytest.mark.parametrize(
    "prior",
    [
        lambda k: dist.Dirichlet(torch.ones(k)),
        lambda k: dist.RelaxedOneHotCategorical(torch.tensor(0.5), torch.ones(k)),
    ],
    ids=["Dirichlet", "Pyro's own"],
)
def test_a_prior_that_would_misread_the_codes_is_refused(prior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(4))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", RelaxedOneHotCategorical(torch.tensor(0.1), logits=torch.zeros(4)))

    with pytest.raises(ValueError, match="of the guide the simplex of pyro_vae"):
        evaluate(model, guide, torch.zeros(10, 1), loss=Trace_ELBO())
