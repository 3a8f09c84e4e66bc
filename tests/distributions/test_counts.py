"""Distributions of counts, against 60 digits or more, for counts and parameters of every size."""

import itertools
import math

import mpmath
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae import decoders, distributions
from pyro_vae.distributions import NegativeBinomial, Poisson, ZeroInflated

COUNTS = [0, 1, 2, 7, 50, 12_345, 10**6]
MEANS = [1e-6, 0.03, 1.1, 54.0, 3e3, 1e8]
INVERSE_DISPERSIONS = [1e-6, 3e-3, 0.7, 30.0, 130.0, 1e4, 1e7, 1e10, 1e20, 1e30]


class Constant(nn.Module):
    """A network of one constant output."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, z):
        return self.outputs.expand(*z.shape[:-1], *self.outputs.shape)


def columns(dtype, *axes):
    """All combinations of numbers, a tensor for each axis."""
    return [torch.tensor(column, dtype=dtype) for column in zip(*itertools.product(*axes), strict=True)]


def assert_relative(got, exact, tolerance=1e-5):
    exact = np.array([float(value) for value in exact])
    kept = np.abs(exact) > 1e-30  # what 32 bits hold with all digits
    np.testing.assert_allclose(got.detach().double().numpy()[kept], exact[kept], rtol=tolerance)


def negative_binomial(x, log_mean, log_theta):
    """The log-probability and its derivatives to both logarithms."""
    x, mu, theta = mpmath.mpf(x), mpmath.exp(log_mean), mpmath.exp(log_theta)
    value = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
    value += theta * mpmath.log(theta / (theta + mu)) + x * mpmath.log(mu / (theta + mu))
    growth = mpmath.digamma(x + theta) - mpmath.digamma(theta) + mpmath.log(theta / (theta + mu))
    return value, theta * (x - mu) / (theta + mu), theta * (growth + 1 - (x + theta) / (theta + mu))


def poisson(x, log_rate):
    rate = mpmath.exp(log_rate)
    return x * log_rate - rate - mpmath.loggamma(mpmath.mpf(x) + 1), x - rate


def exact(function, *tensors):
    with mpmath.workdps(100):
        rows = zip(*(t.tolist() for t in tensors), strict=True)
        return zip(*[function(*map(mpmath.mpf, row)) for row in rows], strict=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("theta", INVERSE_DISPERSIONS)
def test_the_negative_binomial_has_its_digits_in_values_and_gradients(theta, dtype):
    x, mean = columns(dtype, COUNTS, MEANS)
    x = torch.cat([x, x])
    log_mean = torch.cat(
        [mean.log(), x[: len(x) // 2].clamp(min=1).log() + 1e-3]
    ).requires_grad_()  # and near the count
    log_theta = torch.full_like(x, math.log(theta)).requires_grad_()
    log_prob = NegativeBinomial(log_mean, log_theta).log_prob(x)
    gradients = torch.autograd.grad(log_prob.sum(), (log_mean, log_theta))
    for got, right in zip(
        (log_prob, *gradients), exact(negative_binomial, x, log_mean.detach(), log_theta.detach()), strict=True
    ):
        assert_relative(got, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_poisson_distribution_has_its_digits(dtype):
    x, rate = columns(dtype, COUNTS, [*MEANS, 50.3, 12_000.0, 1.001e6])
    log_rate = rate.log().requires_grad_()
    log_prob = Poisson(log_rate).log_prob(x)
    (gradient,) = torch.autograd.grad(log_prob.sum(), log_rate)
    for got, right in zip((log_prob, gradient), exact(poisson, x, log_rate.detach()), strict=True):
        assert_relative(got, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gate", [-16.0, -3.0, 0.5, 12.0, 19.0])
def test_the_zero_inflated_distribution_has_its_digits(gate, dtype):
    x, mean, theta = columns(dtype, [0, 1, 50], [1e-6, 0.03, 1.1, 3e3], [1e-3, 0.7, 1e4, 1e10])
    inputs = [mean.log(), theta.log(), torch.full_like(x, gate)]
    leaves = [t.requires_grad_() for t in inputs]
    log_prob = ZeroInflated(NegativeBinomial(*leaves[:2]), gate_logits=leaves[2]).log_prob(x)
    gradients = torch.autograd.grad(log_prob.sum(), leaves)

    def reference(x, log_mean, log_theta, gate):
        log_p, by_mean, by_theta = negative_binomial(x, log_mean, log_theta)
        open_, shut = 1 / (1 + mpmath.exp(-gate)), 1 / (1 + mpmath.exp(gate))
        others, total = shut * mpmath.exp(log_p), shut * mpmath.exp(log_p) + (open_ if x == 0 else 0)
        if x != 0:
            return mpmath.log(shut) + log_p, by_mean, by_theta, -open_
        by_gate = open_ * shut * (1 - mpmath.exp(log_p)) / total
        return mpmath.log(total), others / total * by_mean, others / total * by_theta, by_gate

    right = exact(reference, x, *(t.detach() for t in inputs))
    for got, values in zip((log_prob, *gradients), right, strict=True):
        assert_relative(got, values)


@pytest.mark.parametrize("theta", [1e4, 1e5, 1e7, 1e10])
@pytest.mark.parametrize("family", [decoders.NegativeBinomial, decoders.ZeroInflatedNegativeBinomial])
def test_decoders_of_counts_score_as_they_do_in_64_bits(family, theta):
    outputs = torch.linspace(-3, 8, 20)
    outputs = outputs if family.numbers is None else torch.stack([outputs, torch.full((20,), -30.0)])
    decoder = family(1, 20, network=lambda *_: Constant(outputs), inverse_dispersion=theta)
    x = torch.poisson(torch.linspace(-3, 8, 20).exp())
    mean = np.exp(np.linspace(-3, 8, 20).astype(np.float32).astype(float))
    log_prob = decoder(torch.zeros(1)).log_prob(x)
    right = (
        stats.nbinom.logpmf(x.numpy(), theta, theta / (theta + mean)) if theta < 1e9 else stats.poisson.logpmf(x, mean)
    )
    assert log_prob.item() == pytest.approx(right.sum(), rel=1e-5)


def test_moments_and_draws_of_the_negative_binomial():
    n, mean, theta = 100_000, torch.tensor([0.5, 20.0]), torch.tensor([3.0, 0.5])
    counts = NegativeBinomial(mean.log(), theta.log())
    torch.testing.assert_close(counts.mean, mean)
    torch.testing.assert_close(counts.variance, mean + mean**2 / theta)
    draws = counts.sample((n,)).double()
    # 4 standard errors of 100,000 draws.
    assert ((draws.mean(0) - mean).abs() < 4 * (counts.variance / n).sqrt()).all()
    pmf = stats.nbinom.pmf(np.arange(5)[:, None], theta.numpy(), (theta / (theta + mean)).numpy())
    seen = np.stack([(draws == k).double().mean(0) for k in range(5)])
    assert (np.abs(seen - pmf) < 4 * np.sqrt(pmf * (1 - pmf) / n)).all()


def test_a_plate_around_counts_draws_and_scores_for_each_row():
    for counts in (NegativeBinomial(torch.zeros(3), torch.zeros(())), Poisson(torch.zeros(3))):
        expanded = counts.expand((4, 3))
        assert expanded.sample().shape == expanded.mean.shape == expanded.variance.shape == (4, 3)
        torch.testing.assert_close(expanded.log_prob(torch.ones(3)), counts.log_prob(torch.ones(3)).expand(4, 3))


def test_derivatives_of_the_negative_binomial_are_those_of_differences():
    x = torch.tensor([0.0, 3.0, 80.0], dtype=torch.float64)
    leaves = [torch.tensor(v, dtype=torch.float64).requires_grad_() for v in ([0.3, 1.0, 4.0], [0.5, 6.0, 2.0])]

    def log_prob(log_mean, log_theta):
        return NegativeBinomial(log_mean, log_theta, validate_args=False).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(log_prob, leaves)


def test_a_step_on_counts_can_be_recorded():
    x = torch.poisson(torch.full((4, 3), 2.0))

    def step(log_mean, log_theta):
        counts = ZeroInflated(NegativeBinomial(log_mean, log_theta, False), gate_logits=log_mean, validate_args=False)
        total = counts.log_prob(x).sum() + Poisson(log_mean, False).log_prob(x).sum()
        return total, *torch.autograd.grad(total, (log_mean, log_theta))

    leaves = [torch.randn(4, 3, requires_grad=True), torch.randn(3, requires_grad=True)]
    assert all(map(torch.equal, make_fx(step)(*leaves)(*leaves), step(*leaves)))


def test_zero_inflated_scores_other_counts_as_pyro_does():
    gate, rate, x = torch.tensor([-2.0, 0.3]), torch.tensor([0.5, 4.0]), torch.tensor([0.0, 3.0])
    ours = distributions.ZeroInflated(dist.Poisson(rate), gate_logits=gate)
    torch.testing.assert_close(ours.log_prob(x), dist.ZeroInflatedPoisson(rate, gate_logits=gate).log_prob(x))


@pytest.mark.parametrize("gate", [0.0, 0.3, 1.0, torch.tensor([0.2, 0.7])])
def test_a_gate_is_given_as_a_probability_or_as_its_logits(gate):
    x, counts = torch.tensor([[0.0, 0.0], [3.0, 3.0]]), dist.Poisson(torch.tensor(2.0))
    zero_inflated, given = ZeroInflated(counts, gate=gate), torch.as_tensor(gate)
    exact = (torch.where(x == 0, given, 0.0) + (1 - given) * counts.log_prob(x).exp()).log()
    torch.testing.assert_close(zero_inflated.log_prob(x), exact)
    torch.testing.assert_close(zero_inflated.expand((2,)).mean, (2 * (1 - given)).expand(2))
    of_logits = ZeroInflated(counts, gate_logits=given.logit())
    assert torch.equal(of_logits.log_prob(x), zero_inflated.log_prob(x))


@pytest.mark.parametrize(
    ("gate", "named"),
    [
        ({"gate": 1.3}, "not 1.3; or give gate_logits"),
        ({"gate": torch.tensor([math.nan])}, r"not tensor\(\[nan\]\)"),
        ({}, "give one of gate"),
        ({"gate": 0.3, "gate_logits": 0.0}, "give one of gate"),
    ],
)
def test_what_is_no_gate_is_refused(gate, named):
    with pytest.raises(ValueError, match=named):
        ZeroInflated(dist.Poisson(torch.tensor(2.0)), **gate)
