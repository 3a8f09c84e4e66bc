"""Distributions with gamma functions of large arguments, against 80 digits."""

import mpmath
import numpy as np
import pytest
import torch
from test_counts import Constant, assert_relative, columns, exact

from pyro_vae import decoders
from pyro_vae.distributions import BetaProportion, StudentT, kl
from pyro_vae.distributions._gammas import stirling_remainder
from pyro_vae.networks import soft_clip

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def test_what_stirlings_formula_leaves_and_its_derivatives():
    t = torch.logspace(-8, 12, 60, dtype=torch.float64).requires_grad_()
    value = stirling_remainder(t)
    (slope,) = torch.autograd.grad(value.sum(), t)

    def reference(t):
        value = mpmath.loggamma(t) - (t - 0.5) * mpmath.log(t) + t - mpmath.log(2 * mpmath.pi) / 2
        return value, mpmath.digamma(t) - mpmath.log(t) + 1 / (2 * t)

    for got, right in zip((value, slope), exact(reference, t.detach()), strict=True):
        assert_relative(got, right, 1e-10)


def beta(x, logit, log_c):
    """The log-density and its derivatives to the logit of the mean and to the logarithm of the concentration."""
    m, n, c = 1 / (1 + mpmath.exp(-logit)), 1 / (1 + mpmath.exp(logit)), mpmath.exp(log_c)
    value = mpmath.loggamma(c) - mpmath.loggamma(m * c) - mpmath.loggamma(n * c)
    value += (m * c - 1) * mpmath.log(x) + (n * c - 1) * mpmath.log1p(-x)
    by_one, by_zero = mpmath.log(x) - mpmath.digamma(m * c), mpmath.log1p(-x) - mpmath.digamma(n * c)
    return value, c * m * n * (by_one - by_zero), c * (mpmath.digamma(c) + m * by_one + n * by_zero)


@DTYPES
@pytest.mark.parametrize("concentration", [1e-8, 1e-4, 0.3, 3.0, 200.0, 1e5, 2e7, 2e8])
def test_the_beta_distribution_has_its_digits_in_values_and_gradients(concentration, dtype):
    x, logits = columns(dtype, [1e-30, 1e-7, 0.2, 0.5, 0.999, 1 - 1e-7], [-19.0, -4.0, -0.3, 0.0, 2.0, 19.0])
    logits = torch.cat([logits, x.logit() + 1e-4]).requires_grad_()  # and means near the value
    x = torch.cat([x, x])
    log_c = torch.full_like(x, concentration).log().requires_grad_()
    log_prob = BetaProportion(logits, log_c).log_prob(x)
    gradients = torch.autograd.grad(log_prob.sum(), (logits, log_c))
    values, *slopes = exact(beta, x, logits.detach(), log_c.detach())
    values = np.array([float(v) for v in values])
    np.testing.assert_allclose(log_prob.detach().double(), values, rtol=1e-5, atol=1e-5)  # a log-density passes 0
    for got, right in zip(gradients, slopes, strict=True):
        assert_relative(got, right)


@pytest.mark.parametrize("concentration", [30.0, 1e4, 2e7])
def test_the_beta_decoder_scores_as_it_does_in_64_bits(concentration):
    x = torch.linspace(0.05, 0.95, 30)
    outputs = torch.stack([x.logit() + 1e-4, torch.full((30,), concentration).log()])
    log_prob = decoders.Beta(1, 30, network=lambda *_: Constant(outputs))(torch.zeros(1)).log_prob(x)
    values, *_ = exact(beta, x, *soft_clip(outputs).double())
    assert log_prob.item() == pytest.approx(float(sum(values)), rel=1e-5)


def test_the_beta_by_proportion_is_the_beta_distribution():
    logits, log_c = torch.randn(2, 4, 3, dtype=torch.float64).unbind(0)
    ours = BetaProportion(logits, log_c).expand((2, 4, 3))
    theirs = torch.distributions.Beta(logits.sigmoid() * log_c.exp(), (-logits).sigmoid() * log_c.exp())
    x = torch.rand(2, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(ours.mean, theirs.mean.expand(2, 4, 3))
    torch.testing.assert_close(ours.variance, theirs.variance.expand(2, 4, 3))
    assert ours.sample().shape == (2, 4, 3)


@DTYPES
@pytest.mark.parametrize("df", [1e-3, 0.5, 2.5, 30.0, 1e3, 1e5, 1e7, 1e12, 1e30])
def test_students_t_has_its_digits_for_all_degrees_of_freedom(df, dtype):
    df = torch.tensor(df, dtype=dtype)
    x = torch.tensor([0.0, 0.7, 30.0, 1e22], dtype=dtype).requires_grad_()  # whose square 32 bits do not hold
    student = StudentT(df)
    log_prob = student.log_prob(x)
    (slope,) = torch.autograd.grad(log_prob.sum(), x)

    def reference(x, nu):
        half = nu / 2
        gammas = mpmath.loggamma(half + 0.5) - mpmath.loggamma(half) - mpmath.log(nu * mpmath.pi) / 2
        entropy = (half + 0.5) * (mpmath.digamma(half + 0.5) - mpmath.digamma(half)) - gammas
        return gammas - (half + 0.5) * mpmath.log1p(x**2 / nu), -(nu + 1) * x / (nu + x**2), entropy

    right = exact(reference, x.detach(), df.expand(4))
    for got, values in zip((log_prob, slope, student.entropy().expand(4)), right, strict=True):
        assert_relative(got, values)


@pytest.mark.parametrize("df", [3.0, 1e5, 1e8])
def test_decoders_of_students_t_score_as_they_do_in_64_bits(df):
    x = torch.linspace(-2, 2, 784)
    log_prob = decoders.StudentT(1, 784, network=lambda *_: Constant(torch.zeros(784)), df=df)(torch.zeros(1)).log_prob(
        x
    )
    right = torch.distributions.StudentT(torch.tensor(df).double()).log_prob(x.double()).sum()
    assert log_prob.item() == pytest.approx(right.item(), rel=1e-5)


def test_students_t_is_expanded_with_its_degrees_of_freedom_and_keeps_its_kl():
    df, loc = torch.tensor([3.0, 40.0]), torch.tensor([0.5, -1.0])
    student, theirs = StudentT(df, loc, 2.0), torch.distributions.StudentT(df, loc, 2.0)
    x = torch.randn(5, 2)
    torch.testing.assert_close(student.expand((5, 2)).log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(student.entropy(), theirs.entropy())
    normal = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    torch.testing.assert_close(kl.kl_or_none(student, normal), kl.kl_or_none(theirs, normal))
