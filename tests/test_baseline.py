"""The hand-coded twin against closed forms and independent references."""

import math
import subprocess
import sys

import pytest
import torch
from scipy import stats

from pyro_vae import baseline
from pyro_vae.networks import MLP


@pytest.fixture
def moments():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance, eps = (torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in range(3))
    return mean, log_variance, eps


def test_closed_form_kl_is_that_of_torch(moments):
    mean, log_variance, _ = moments
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(baseline.kl_closed_form(mean, log_variance), expected, rtol=1e-12, atol=0)


def test_sampled_kl_is_the_difference_of_scipy_log_densities(moments):
    mean, log_variance, eps = moments
    z = mean + (log_variance / 2).exp() * eps
    log_q = stats.norm.logpdf(z, mean, (log_variance / 2).exp()).sum(-1)
    expected = log_q - stats.norm.logpdf(z).sum(-1)
    torch.testing.assert_close(baseline.kl_sampled(mean, log_variance, z), torch.tensor(expected), rtol=1e-12, atol=0)


def test_sampled_kl_averages_to_the_closed_form(moments):
    mean, log_variance, _ = moments
    draws = 100_000
    generator = torch.Generator().manual_seed(1)
    z = mean[0] + (log_variance[0] / 2).exp() * torch.randn(draws, 3, dtype=torch.float64, generator=generator)
    sampled = baseline.kl_sampled(mean[0], log_variance[0], z)
    expected = baseline.kl_closed_form(mean[:1], log_variance[:1])[0]
    assert (sampled.mean() - expected).abs() < 4 * sampled.std() / math.sqrt(draws)


def test_cross_entropy_is_minus_the_bernoulli_log_probability():
    logits = torch.tensor([[0.3, -2.0, 5.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    expected = -stats.bernoulli.logpmf(x, torch.sigmoid(logits)).sum()
    assert baseline.cross_entropy(x, logits).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_squared_error_is_minus_the_normal_log_density(scale):
    mean, x = torch.tensor([[0.3, -2.0]], dtype=torch.float64), torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    expected = -stats.norm.logpdf(x, mean, scale).sum()
    assert baseline.squared_error(scale)(x, mean).item() == pytest.approx(expected, rel=1e-12)


def test_reparameterized_noise_has_the_posterior_moments(moments):
    mean, log_variance, _ = moments
    draws = 100_000
    eps = torch.randn(draws, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    vae = baseline.VAE(MLP(4, (2, 3)), MLP(3, 4))
    z = vae.reparameterize(mean, log_variance, eps)
    deviation = (log_variance / 2).exp()
    assert ((z.mean(0) - mean).abs() < 4 * deviation / math.sqrt(draws)).all()
    # The standard error of a normal sample's standard deviation is sigma / sqrt(2 n).
    assert ((z.std(0) - deviation).abs() < 4 * deviation / math.sqrt(2 * draws)).all()


def test_loss_is_the_mean_over_the_batch_of_error_plus_beta_kl():
    torch.manual_seed(0)
    vae = baseline.VAE(MLP(4, (2, 3)), MLP(3, 4)).double()
    x, eps = torch.rand(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    mean, log_variance = vae.encode(x)
    error = baseline.cross_entropy(x, vae.decoder(mean + (log_variance / 2).exp() * eps))
    expected = (error + 0.7 * baseline.kl_closed_form(mean, log_variance)).sum() / 6
    assert vae.negative_elbo(x, eps, closed_form=True, beta=0.7).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_step_of_gradient_descent_moves_along_the_gradient():
    torch.manual_seed(0)
    vae = baseline.VAE(MLP(4, (2, 3)), MLP(3, 4)).double()
    x, eps = torch.rand(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    gradients = torch.autograd.grad(vae.negative_elbo(x, eps), list(vae.parameters()))
    vae.step(torch.optim.SGD(vae.parameters(), lr=0.5), x, eps)
    for parameter, old, gradient in zip(vae.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.5 * gradient)


def test_the_twin_never_imports_pyro():
    code = "import sys, pyro_vae.baseline; print(sorted(name for name in sys.modules if name.split('.')[0] == 'pyro'))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
