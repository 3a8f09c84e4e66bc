"""Closed forms of KL divergences, against integrals."""

import math

import mpmath
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import special
from scipy.integrate import quad

from pyro_vae import distributions, evaluate
from pyro_vae.distributions.kl import kl_or_none


def integral(p, q, low, high):
    def density(value):
        value = torch.tensor(value, dtype=torch.float64)
        return (p.log_prob(value).exp() * (p.log_prob(value) - q.log_prob(value))).item()

    return quad(density, low, high)[0]


@pytest.mark.parametrize("logit", [-3.0, 0.0, 0.7])
def test_the_kl_between_a_continuous_bernoulli_and_a_uniform_distribution(logit):
    """Torch gives infinity."""
    logit, zero = torch.tensor(logit, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    bernoulli, uniform = dist.ContinuousBernoulli(logits=logit), dist.Uniform(zero, zero + 1)
    within = dist.Uniform(zero + 0.2, zero + 0.7)
    for p, q, ends in ((bernoulli, uniform, (0, 1)), (uniform, bernoulli, (0, 1)), (within, bernoulli, (0.2, 0.7))):
        assert kl_or_none(p, q).item() == pytest.approx(integral(p, q, *ends), abs=1e-8)
    assert kl_or_none(bernoulli, within).item() == math.inf
    assert kl_or_none(dist.Uniform(zero, zero + 2), bernoulli).item() == math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kl_between_two_continuous_bernoulli_distributions(dtype):
    """Torch's is below 0 at logits that its clamped probabilities do not reach: -0.67 for 1.047."""
    logits = [-200.0, -30.0, -17.0, -1e-3, 0.0, 0.05, 5.0, 30.0, 200.0]
    for one in logits:
        for other in logits:
            p, q = (dist.ContinuousBernoulli(logits=torch.tensor(each, dtype=dtype)) for each in (one, other))

            def normalizer(logit):
                return -mpmath.log(mpmath.expm1(logit) / logit) if logit else mpmath.mpf(0)

            mean = mpmath.mpf("0.5") if not one else 1 / (1 - mpmath.exp(-one)) - 1 / mpmath.mpf(one)
            exact = (mpmath.mpf(one) - other) * mean + normalizer(one) - normalizer(other)
            assert kl_or_none(p, q).item() == pytest.approx(
                float(exact), rel=1e-5, abs=3e-6 if dtype is torch.float32 else 1e-9
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kl_between_two_variables_of_sure_probabilities(dtype):
    """Torch's is infinite where a probability rounds to 1, from logits of 17 on in 32 bits; 9.31 is right from 0."""
    logits = [-200.0, -90.0, -40.0, -20.0, -5.0, 0.0, 1e-3, 5.0, 20.0, 40.0, 90.0, 200.0]
    for one in logits:
        for other in logits:
            exact = mpmath.mpf(0)
            for p, q in ((one, other), (-one, -other)):
                gain = mpmath.log1p(mpmath.exp(-mpmath.mpf(q))) - mpmath.log1p(mpmath.exp(-mpmath.mpf(p)))
                exact += gain / (1 + mpmath.exp(-mpmath.mpf(p)))
            p, q = (torch.tensor([each, 0.0], dtype=dtype) for each in (one, other))
            pairs = [
                [dist.Bernoulli(logits=logit[0]) for logit in (p, q)],
                [dist.Categorical(logits=logit) for logit in (p, q)],
                [distributions.OneHotCategorical(logits=logit) for logit in (p, q)],
            ]
            tolerance = {"rel": 1e-5, "abs": 1e-6} if dtype is torch.float32 else {"rel": 1e-10, "abs": 1e-14}
            for pair in pairs:
                assert kl_or_none(*pair).item() == pytest.approx(float(exact), **tolerance)


def test_the_kl_to_what_is_impossible_is_infinite():
    zero, half, one = (torch.tensor(each) for each in (0.0, 0.5, 1.0))
    sure, never = dist.Bernoulli(one), dist.Bernoulli(zero)
    assert sure.logits.item() != never.logits.item()  # which torch keeps, and clamps
    for p, q, right in ((half, one, math.inf), (one, half, math.log(2)), (one, one, 0), (one, zero, math.inf)):
        of_bernoulli = kl_or_none(dist.Bernoulli(p), dist.Bernoulli(q))
        of_categories = kl_or_none(*(dist.Categorical(torch.stack([1 - each, each])) for each in (p, q)))
        assert of_bernoulli.item() == pytest.approx(right, abs=1e-6)
        assert of_categories.item() == pytest.approx(right, abs=1e-6)
    assert kl_or_none(dist.Bernoulli(half), sure).item() == kl_or_none(dist.Bernoulli(half), never).item() == math.inf
    logits = torch.tensor([0.0, 1.0, -math.inf], requires_grad=True)  # of a category that is left out
    kl = kl_or_none(dist.Categorical(logits=logits), dist.Categorical(logits=torch.tensor([0.0, 0.0, -math.inf])))
    kl.backward()
    assert kl.item() == pytest.approx(math.log(2) - dist.Categorical(logits=logits).entropy().item())
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("logit", [-200.0, -30.0, 0.0, 5.0, 200.0])
def test_the_kl_of_others_from_and_to_a_continuous_bernoulli_distribution(logit):
    """Against integrals of 30 digits: torch's clamp the probability, and are off by 9 nats at a logit of 200."""
    bernoulli, two = dist.ContinuousBernoulli(logits=torch.tensor(logit)), torch.tensor(2.0)
    one = torch.ones(())
    log_normalizer = -mpmath.log(mpmath.expm1(logit) / logit) if logit else mpmath.mpf(0)

    def log_p(x):
        return log_normalizer + logit * x

    log_beta = mpmath.log(mpmath.beta(2, 3))
    others = {
        dist.Beta(two, two + 1): lambda x: mpmath.log(x) + 2 * mpmath.log(1 - x) - log_beta,
        dist.Uniform(0 * one, one): lambda x: 0 * x,
        dist.Exponential(two): lambda x: mpmath.log(2) - 2 * x,
        dist.Normal(two, one): lambda x: -((x - 2) ** 2 + mpmath.log(2 * mpmath.pi)) / 2,
    }
    ends = [0, 0.01, 0.1, 0.5, 0.9, 0.99, 1]
    for other, log_q in others.items():
        to_other = mpmath.quad(lambda x, log_q=log_q: mpmath.exp(log_p(x)) * (log_p(x) - log_q(x)), ends)
        if not isinstance(other, dist.Beta):
            assert kl_or_none(bernoulli, other).item() == pytest.approx(float(to_other), rel=1e-5, abs=1e-5)
        if isinstance(other, dist.Beta | dist.Uniform):
            of_other = mpmath.quad(lambda x, log_q=log_q: mpmath.exp(log_q(x)) * (log_q(x) - log_p(x)), ends)
            assert kl_or_none(other, bernoulli).item() == pytest.approx(float(of_other), rel=1e-5, abs=1e-5)


def test_the_kl_of_a_folded_distribution_is_not_that_of_what_is_folded():
    """Of a normal distribution and its mirror image, which are one when they are folded."""

    def folded(x, sign):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.FoldedDistribution(dist.Normal(torch.full((len(x),), sign), 1.0)))

    def model(x):
        z = folded(x, 1.0)
        with pyro.plate("observed", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    bound = evaluate(model, lambda x: folded(x, -1.0), torch.ones(20, 1), loss=TraceMeanField_ELBO())
    assert bound.kl == pytest.approx(0.0, abs=1e-6)


def test_the_kl_between_two_wishart_distributions_needs_no_gradients():
    """Torch's own ended in a RuntimeError without them, and so did an evaluation by TraceMeanField_ELBO."""
    a, b = torch.diag(torch.tensor([0.3, 0.5, 1.0])).double(), torch.eye(3).double() + 0.2
    q, p = dist.Wishart(torch.tensor(8.0).double(), a), dist.Wishart(torch.tensor(5.0).double(), b)
    normalizers = [special.multigammaln(n / 2, 3) for n in (5, 8)]
    digamma = sum(special.psi((8 - j) / 2) for j in range(3))
    expected = 2.5 * (b.logdet() - a.logdet()) + 4 * ((b.inverse() @ a).trace() - 3)
    expected = expected + normalizers[0] - normalizers[1] + 1.5 * digamma
    with torch.no_grad():
        assert kl_or_none(q, p).item() == pytest.approx(expected.item(), rel=1e-9)
    assert kl_or_none(dist.Wishart(q.df.clone().requires_grad_(), a), p).requires_grad
