"""The mathematics of the encoders on constrained and discrete supports, beyond the contract of `test_parts.py`."""

import math

import mpmath
import numpy as np
import pyro.distributions as dist
import pytest
import quadrature
import torch
from part_cases import array
from pyro.infer import TraceMeanField_ELBO
from scipy import integrate, special, stats
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae import VAE, decoders, encoders
from pyro_vae.distributions import Beta, Dirichlet, Kumaraswamy, Weibull

CONTINUOUS = [
    encoders.Exponential,
    encoders.Gamma,
    encoders.Weibull,
    encoders.Beta,
    encoders.Kumaraswamy,
    encoders.Dirichlet,
]
DTYPES = [torch.float32, torch.float64]


class Output(nn.Module):
    """A network that gives the same numbers for every datum."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, x):
        return self.value.expand(len(x), *self.value.shape)


def posterior(family, value, n, **own):
    """Return an encoder's distribution for n data, and what its network gives."""
    network = Output(value)
    encoder = family(1, value.shape[-1] if not own else value.shape[-2], network=lambda *_: network, **own)
    return encoder(torch.zeros(n, 1)), network.value


def signs(shape, dtype):
    """All combinations of plus and minus 10,000, one per column, of the rows of an output."""
    rows = shape[0] if len(shape) > 1 else 1
    columns = torch.tensor([[(i >> row) & 1 for i in range(2**rows)] for row in range(rows)], dtype=dtype)
    value = 1e4 * (2 * columns - 1)
    return value if len(shape) > 1 else value[0]


@pytest.mark.parametrize("family", CONTINUOUS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_at_outputs_of_10000_draws_lie_strictly_inside_and_all_is_finite(family, dtype):
    value = signs((2, 1) if family.numbers else (1,), dtype)
    q, leaf = posterior(family, value, 10_000)
    z = q.rsample()
    assert (z > 0).all()
    assert (z < 1).all() or family not in (encoders.Beta, encoders.Kumaraswamy)
    log_prob = q.log_prob(z)
    assert log_prob.isfinite().all()
    (gradient,) = torch.autograd.grad((log_prob + z.sum(-1)).sum(), leaf)
    assert gradient.isfinite().all()


MODERATE = {
    encoders.Exponential: lambda v: stats.expon(scale=np.exp(-v[0])),
    encoders.Gamma: lambda v: stats.gamma(bounded(v[0], 0.15), scale=np.exp(-v[1])),
    encoders.Weibull: lambda v: stats.weibull_min(bounded(v[1], 0.25), scale=np.exp(v[0])),
    encoders.Beta: lambda v: stats.beta(bounded(v[0], 0.75), bounded(v[1], 0.75)),
}


def bounded(v, floor):
    return floor + np.exp(v / np.sqrt(1 + (v / np.log(1000)) ** 2))


@pytest.mark.parametrize("family", MODERATE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("v", [(-4.0, 3.0), (0.0, -4.0), (2.0, 8.0)])
def test_draws_follow_scipys_distribution_and_minus_log_prob_has_its_entropy(family, dtype, v):
    """20,000 draws: Kolmogorov-Smirnov at a level of 1e-4, and the entropy within 4 standard errors."""
    value = torch.tensor(v, dtype=dtype)[:, None] if family.numbers else torch.tensor(v[:1], dtype=dtype)
    q, _ = posterior(family, value, 20_000)
    z = q.sample()
    reference = MODERATE[family](v)
    assert stats.kstest(array(z)[:, 0], reference.cdf).pvalue > 1e-4
    surprise = -array(q.log_prob(z))
    assert abs(surprise.mean() - reference.entropy()) < 4 * surprise.std() / math.sqrt(len(z)) + 1e-3


@pytest.mark.parametrize("family", CONTINUOUS)
def test_the_mean_is_that_of_the_draws(family):
    """50,000 draws, 4 standard errors."""
    value = torch.tensor([[0.5, -1.0, 2.0], [0.3, 1.0, -0.5]], dtype=torch.float64)
    q, _ = posterior(family, value if family.numbers else value[0], 50_000)
    z = q.sample()
    assert ((z.mean(0) - q.mean[0]).abs() < 4 * z.std(0) / math.sqrt(len(z))).all()


def kumaraswamy_log_prob(a, b, z):
    return np.log(a * b) + (a - 1) * np.log(z) + (b - 1) * np.log1p(-(z**a))


@pytest.mark.parametrize("a", [0.5, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("b", [0.5, 1.0, 30.0, 1e3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kumaraswamy_keeps_its_digits(a, b, dtype):
    """20,000 draws: Kolmogorov-Smirnov at a level of 1e-4 of z^a, a beta variate of (1, b)."""
    distribution = Kumaraswamy(torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype))
    z = distribution.sample((20_000,))
    assert ((z > 0) & (z < 1)).all()
    assert distribution.log_prob(z).isfinite().all()
    power = np.exp(a * np.log(array(z)))
    assert stats.kstest(power, lambda y: -np.expm1(b * np.log1p(-y))).pvalue > 1e-4
    inner = torch.tensor([1e-6, 0.1, 0.5, 0.9], dtype=dtype)
    np.testing.assert_allclose(
        array(distribution.log_prob(inner)), kumaraswamy_log_prob(a, b, array(inner)), rtol=1e-5, atol=1e-4
    )
    assert distribution.mean.item() == pytest.approx(b * special.beta(1 + 1 / a, b), rel=1e-5)


def test_a_kumaraswamy_draw_that_rounds_to_1_keeps_its_gradient():
    gradients = []
    for dtype in (torch.float32, torch.float64):
        a, u = torch.tensor(1000.0, dtype=dtype, requires_grad=True), torch.tensor(0.9999).to(dtype)
        z = Kumaraswamy(a, torch.tensor(0.5, dtype=dtype)).icdf(u)
        gradients.append(torch.autograd.grad(z, a)[0].double())
        assert z == 1 - 2**-24 if dtype == torch.float32 else 1 - 2**-24 < z < 1
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kumaraswamy_ends_as_the_beta_distribution_does(dtype):
    """At 0 as z^(a - 1), at 1 as (1 - z)^(b - 1), with the same factors where the concentration is 1."""
    a, b = torch.cartesian_prod(*[torch.tensor([1e-3, 0.7, 1.0, 1.5, 1e4], dtype=dtype)] * 2).unbind(-1)
    ends = torch.tensor([[0.0], [1.0]], dtype=dtype)
    ours = Kumaraswamy(a.requires_grad_(), b.requires_grad_()).log_prob(ends)
    torch.testing.assert_close(ours, Beta(a, b).log_prob(ends))
    gradients = torch.autograd.grad(ours[ours.isfinite()].sum(), (a, b))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_kumaraswamy_is_uniform_at_concentrations_of_1_edges_included():
    one = torch.ones(())
    edges = torch.tensor([0.0, 0.3, 1.0])
    torch.testing.assert_close(Kumaraswamy(one, one).log_prob(edges), torch.zeros(3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kumaraswamy_gradients_are_those_of_its_closed_form(dtype):
    # z = (1 - y)^(1/a), y = u^(1/b) = 1 - z^a: dz/da = -z log(z) / a, dz/db = z^(1-a) y log(y) / (a b).
    a = torch.full((2000,), 1.7, dtype=dtype, requires_grad=True)
    b = torch.full((2000,), 2.4, dtype=dtype, requires_grad=True)
    z = Kumaraswamy(a, b).rsample()
    by_a, by_b = torch.autograd.grad(z.sum(), (a, b))
    value = array(z)
    y = 1 - value**1.7
    np.testing.assert_allclose(array(by_a), -value * np.log(value) / 1.7, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(array(by_b), value**-0.7 * y * np.log(y) / (1.7 * 2.4), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", [0.3, 2.0])
@pytest.mark.parametrize("k", [0.6, 1.0, 4.0])
@pytest.mark.parametrize("rate", [0.5, 3.0])
@pytest.mark.parametrize("alpha", [0.2, 1.0, 6.0])
def test_the_kl_of_weibull_to_gamma_is_that_of_quadrature(scale, k, alpha, rate):
    q, p = stats.weibull_min(k, scale=scale), stats.gamma(alpha, scale=1 / rate)
    nodes, weights = map(array, quadrature.positive())
    nodes, weights = nodes[q.logpdf(nodes) > -700], weights[q.logpdf(nodes) > -700]
    expected = (weights * q.pdf(nodes) * (q.logpdf(nodes) - p.logpdf(nodes))).sum()
    weibull = dist.Weibull(*torch.tensor([scale, k], dtype=torch.float64))
    rates = torch.tensor([rate], dtype=torch.float64)
    assert kl_divergence(weibull, dist.Gamma(alpha, rates)).item() == pytest.approx(expected, abs=1e-7)
    if alpha == 1:
        assert kl_divergence(weibull, dist.Exponential(rates)).item() == pytest.approx(expected, abs=1e-7)


class GammaPrior(nn.Module):
    """Gamma distributions of concentration 2 and rate 3."""

    def forward(self):
        return dist.Gamma(2 * torch.ones(3), 3 * torch.ones(3)).to_event(1)


def test_pyros_mean_field_elbo_finds_the_kl_of_weibull_to_gamma():
    vae, x = VAE(GammaPrior(), encoders.Weibull(4, 3), decoders.Normal(3, 4)), torch.rand(5, 4)
    torch.manual_seed(1)
    loss = TraceMeanField_ELBO().loss(vae.model, vae.guide, x)
    torch.manual_seed(1)
    q = vae.encoder(x)
    expected = kl_divergence(q, vae.prior().expand((5,))).sum() - vae.decoder(q.rsample()).log_prob(x).sum()
    assert loss == pytest.approx(expected.item(), rel=1e-5)


# The sampled KL at the ends of what a network reaches: no draw underflows or rounds to an edge often enough to be seen.


def rate(v):
    return np.exp(np.sign(v) * (10 + np.log1p(abs(v) - 10))) if abs(v) > 10 else np.exp(v)


def log_beta_function(*numbers):
    return sum(map(special.gammaln, numbers)) - special.gammaln(sum(numbers))


def kl_gamma(v):
    """To Gamma(2, 1): log p = log z - z, and the mean of log z is digamma(a) - log b."""
    a, b = bounded(v[0], 0.15), rate(v[1])
    return -stats.gamma(a, scale=1 / b).entropy() - (special.digamma(a) - np.log(b)) + a / b


def kl_exponential(v):
    b = rate(v[0])
    return np.log(b) - 1 - (-np.euler_gamma - np.log(b)) + 1 / b


def kl_weibull(v):
    """To Gamma(2, 1): the mean of log z is log(scale) - gamma / k, and that of z is scale * Gamma(1 + 1 / k)."""
    scale, k = rate(v[0]), bounded(v[1], 0.25)
    entropy = np.euler_gamma * (1 - 1 / k) + np.log(scale / k) + 1
    return -entropy - (np.log(scale) - np.euler_gamma / k) + scale * special.gamma(1 + 1 / k)


def kl_beta(v):
    """To Beta(2, 3)."""
    a, b = (bounded(value, 0.75) for value in v)
    of_log = (a - 2) * special.digamma(a) + (b - 3) * special.digamma(b) - (a + b - 5) * special.digamma(a + b)
    return of_log - log_beta_function(a, b) + log_beta_function(2, 3)


def kl_kumaraswamy(v):
    """To Beta(2, 3), the mean of log(1 - z) by quadrature of z = (1 - e^(-t / b))^(1 / a), t ~ Exponential(1)."""
    a, b = (bounded(value, 0.75) for value in v)
    entropy = 1 - 1 / b + (1 - 1 / a) * (special.digamma(b + 1) + np.euler_gamma) - np.log(a * b)
    mean_log = -(special.digamma(b + 1) + np.euler_gamma) / a

    def of_rest(s):  # t = e^s, where the integrand is smooth
        t = np.exp(s) / b
        log_z = (np.log(-np.expm1(-t)) if t < 1 else np.log1p(-np.exp(-t))) / a
        return np.log(-np.expm1(log_z)) * np.exp(s - np.exp(s))

    mean_log_rest = integrate.quad(of_rest, -40, 4, limit=1000, epsabs=1e-10)[0]
    return -entropy - (mean_log + 2 * mean_log_rest) + log_beta_function(2, 3)


def kl_dirichlet(v):
    """To Dirichlet(2, ..., 2)."""
    alpha = bounded(np.array(v), 0.15)
    total, prior = alpha.sum(), [2.0] * len(alpha)
    of_log = ((alpha - 2) * (special.digamma(alpha) - special.digamma(total))).sum()
    return of_log - log_beta_function(*alpha) + log_beta_function(*prior)


def to_gamma(two):
    return dist.Gamma(two, two / 2).to_event(1)


def to_beta(two):
    return dist.Beta(two, 1.5 * two).to_event(1)


def to_dirichlet(two):
    return dist.Dirichlet(two.expand(3))


SAMPLED = [
    (encoders.Gamma, kl_gamma, to_gamma),
    (encoders.Exponential, kl_exponential, to_gamma),
    (encoders.Weibull, kl_weibull, to_gamma),
    (encoders.Beta, kl_beta, to_beta),
    (encoders.Kumaraswamy, kl_kumaraswamy, to_beta),
    (encoders.Dirichlet, kl_dirichlet, to_dirichlet),
]
OUTPUTS = [(-1e4, -1e4), (-1e4, 1e4), (1e4, -1e4), (1e4, 1e4), (0.0, 0.0)]


@pytest.mark.parametrize(("family", "exact", "prior"), SAMPLED, ids=[family.__name__ for family, *_ in SAMPLED])
@pytest.mark.parametrize("outputs", OUTPUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sampled_kl_has_the_exact_one_as_its_mean(family, exact, prior, outputs, dtype):
    """Within 4 standard errors and what float32 leaves of a sum: in float32 of 200,000 draws, on (0, 1) of 500,000."""
    if family is encoders.Weibull and outputs[1] < 0 < outputs[0]:
        pytest.skip("the fourth power of an exponential variate, times 2e8: the KL has no standard error to speak of")
    torch.manual_seed(4)
    many = 500_000 if prior is to_beta else 200_000
    n = many if dtype == torch.float32 else 50_000
    v = (*outputs, 0.0) if family is encoders.Dirichlet else outputs
    value = torch.tensor(v, dtype=dtype)
    value = value[:, None] if family.numbers else value if family is encoders.Dirichlet else value[:1]
    q, _ = posterior(family, value, n)
    z, p = q.sample(), prior(torch.full((1,), 2.0, dtype=dtype))
    weights = array((q.log_prob(z) - p.log_prob(z)).double())
    error = 4 * weights.std() / math.sqrt(n) + 1e-6 * np.abs(weights).max()
    assert abs(weights.mean() - exact(v)) < error


@pytest.mark.parametrize("concentration", [1e-6, 1e-3, 0.1, 5.0])
@pytest.mark.parametrize(
    "make", [lambda a: Beta(a, 3 * a), lambda a: Dirichlet(a.expand(4))], ids=["Beta", "Dirichlet"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_draws_of_small_concentrations_have_the_right_probabilities(concentration, make, dtype):
    """Of 20,000 draws, within 4 standard errors; the first of four shares is a beta variate of (a, 3 a)."""
    torch.manual_seed(7)
    z = array(make(torch.tensor(concentration, dtype=dtype)).sample((20_000,)).double())
    z = z[:, 0] if z.ndim == 2 else z
    exact = stats.beta(concentration, 3 * concentration)
    for low, high in ((0.1, 0.9), (0.9, 1.0)):
        p = exact.cdf(high) - exact.cdf(low)
        assert abs(((z > low) & (z <= high)).mean() - p) < 4 * math.sqrt(p * (1 - p) / len(z)) + 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [1e-30, 3e-7, 1e-6, 1.1e-6, 1e-5])
def test_the_weibull_density_is_right_where_powers_of_a_value_underflow(value, dtype):
    """As at the draws of another posterior, which mixtures of posteriors (VampPrior) are scored at."""
    scale, k, x = (torch.tensor(each, dtype=dtype) for each in (1e-6, 30.0, value))
    log_prob = Weibull(scale, k).log_prob(x.requires_grad_())
    right = stats.weibull_min(k.item(), scale=scale.item())
    assert log_prob.item() == pytest.approx(right.logpdf(x.item()), rel=2e-6 if dtype == torch.float32 else 1e-12)
    (slope,) = torch.autograd.grad(log_prob, x)
    ratio = mpmath.mpf(x.item()) / mpmath.mpf(scale.item())
    assert slope.item() == pytest.approx(float((29 - 30 * ratio**30) / x.item()), rel=1e-5)
