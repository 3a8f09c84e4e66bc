"""Distributions on the sphere: closed forms against quadrature, and what is left of the digits at the limits."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import quadrature
import torch
from part_cases import array
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy import special
from torch.distributions import kl_divergence

from pyro_vae import VAE, decoders, encoders, fit, priors
from pyro_vae.distributions import HypersphericalUniform, PowerSpherical
from pyro_vae.distributions.sphere import directions

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
CONCENTRATIONS = [1e-6, 1e-3, 0.5, 3.0, 40.0, 1e3, 1e6]


def direction(dim, dtype=torch.float64):
    return directions(torch.linspace(-1, 2, dim, dtype=dtype))


def power_spherical(dim, concentration, dtype=torch.float64):
    return PowerSpherical(direction(dim, dtype), torch.tensor(concentration, dtype=dtype))


def cosine_quadrature(dim, concentration, count=400):
    """Nodes and weights of t = mu x under the density of the power spherical distribution, by Gauss-Jacobi."""
    b = (dim - 1) / 2
    nodes, weights = special.roots_jacobi(count, b - 1, b - 1 + concentration)
    return nodes, weights / weights.sum()


@pytest.mark.parametrize("dim", [2, 3, 11])
def test_the_uniform_density_is_one_over_the_area(dim):
    area = 2 * math.pi ** (dim / 2) / special.gamma(dim / 2)
    uniform = HypersphericalUniform(dim, dtype=torch.float64)
    assert uniform.log_prob(uniform.sample()).item() == pytest.approx(-math.log(area), abs=1e-14)
    assert uniform.entropy().item() == pytest.approx(math.log(area), abs=1e-14)


@pytest.mark.parametrize("dim", [2, 3, 11])
def test_uniform_draws_have_the_moments_of_the_uniform_distribution(dim):
    n = 100_000
    draws = HypersphericalUniform(dim, dtype=torch.float64).sample((n,))
    # A coordinate has mean 0 and square 1 / D; 4.5 standard errors of 100,000 draws.
    assert (draws.mean(0).abs() < 4.5 * math.sqrt(1 / dim / n)).all()
    square = (draws**2).mean(0) - 1 / dim
    assert (square.abs() < 4.5 * (draws**2).std(0) / math.sqrt(n)).all()


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("concentration", [1e-6, 0.5, 3.0, 40.0])
def test_mean_entropy_and_kl_are_those_of_the_density(dim, concentration):
    q = power_spherical(dim, concentration)
    nodes, weights = quadrature.rule(q)
    weights, log_prob = weights * q.log_prob(nodes).exp(), q.log_prob(nodes)
    assert weights.sum().item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(q.mean, weights @ nodes, rtol=0, atol=1e-4)
    assert q.entropy().item() == pytest.approx(-(weights * log_prob).sum().item(), abs=1e-3)
    uniform = HypersphericalUniform(dim, dtype=torch.float64)
    kl = (weights * (log_prob - uniform.log_prob(nodes))).sum().item()
    assert kl_divergence(q, uniform).item() == pytest.approx(kl, abs=1e-3)


@pytest.mark.parametrize("dim", [2, 3, 11, 50])
@pytest.mark.parametrize("concentration", [0.5, 3.0, 40.0])
def test_the_kl_is_that_of_a_quadrature_over_the_cosine(dim, concentration):
    b = (dim - 1) / 2
    t, weights = cosine_quadrature(dim, concentration)
    log_density = concentration * np.log1p(t)
    log_density += special.gammaln(2 * b + concentration) - special.gammaln(b + concentration)
    log_density -= (2 * b + concentration) * math.log(2) + b * math.log(math.pi)
    log_area = math.log(2) + dim / 2 * math.log(math.pi) - special.gammaln(dim / 2)
    kl = kl_divergence(power_spherical(dim, concentration), HypersphericalUniform(dim, dtype=torch.float64))
    # The logarithm at -1 costs the rule for a dimension of 2 some digits.
    assert kl.item() == pytest.approx((weights * (log_density + log_area)).sum(), rel=1e-4)


@pytest.mark.parametrize("dim", [2, 3, 11])
@pytest.mark.parametrize("concentration", CONCENTRATIONS)
def test_float32_keeps_the_digits_of_float64(dim, concentration):
    # Both start from the same float32 numbers, which float64 holds exactly.
    single = power_spherical(dim, concentration, torch.float32)
    double = PowerSpherical(single.loc.double(), single.concentration.double(), validate_args=False)
    draws = single.sample((500,))
    assert single.support.check(draws).all()
    exact = double.log_prob(torch.nn.functional.normalize(draws.double(), dim=-1))
    # A coordinate is rounded by 6e-8, and the density at 1e6 changes within a distance of 1e-3: about 1e-4 of log q.
    torch.testing.assert_close(single.log_prob(draws).double(), exact, rtol=1e-5, atol=2e-3)
    uniform = HypersphericalUniform(dim)
    kl = kl_divergence(single, uniform).double(), kl_divergence(double, HypersphericalUniform(dim, torch.float64))
    torch.testing.assert_close(*kl, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("dim", [2, 3, 11])
def test_without_concentration_it_is_the_uniform_distribution(dim):
    q, p = power_spherical(dim, 1e-9), HypersphericalUniform(dim, dtype=torch.float64)
    x = p.sample((100,))
    torch.testing.assert_close(q.log_prob(x), p.log_prob(x), rtol=0, atol=1e-7)
    assert kl_divergence(q, p).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 11])
@pytest.mark.parametrize("concentration", CONCENTRATIONS)
def test_draws_have_the_moments_of_the_closed_form(dim, concentration):
    n, q = 100_000, power_spherical(dim, concentration)
    draws = q.sample((n,))
    # 4.5 standard errors of 100,000 draws.
    assert ((draws.mean(0) - q.mean).abs() < 4.5 * draws.std(0) / math.sqrt(n) + 1e-12).all()
    distance = ((draws - q.loc) ** 2).sum(-1) / 2  # 1 - t, whose mean keeps its digits
    exact = (dim - 1) / (dim - 1 + concentration)
    assert abs(distance.mean().item() - exact) < 4.5 * distance.std().item() / math.sqrt(n) + 1e-12


@pytest.mark.parametrize("dim", [2, 3, 11])
@pytest.mark.parametrize("concentration", [1e-3, 0.5, 3.0, 40.0, 1e4])
def test_pathwise_gradients_of_the_cosine_are_those_of_its_mean(dim, concentration):
    # E[t] = k / (k + D - 1) has the derivative (D - 1) / (k + D - 1)^2; 4.5 standard errors of 100,000 draws, and
    # torch's derivative of a gamma variable, which is exact to about 1e-3.
    n, mean = 100_000, direction(dim)
    leaf = torch.full((n,), concentration, dtype=torch.float64, requires_grad=True)
    cosine = (PowerSpherical(mean, leaf).rsample() * mean).sum(-1)
    (draws,) = torch.autograd.grad(cosine.sum(), leaf)
    exact = (dim - 1) / (concentration + dim - 1) ** 2
    assert abs(draws.mean().item() - exact) < 4.5 * draws.std().item() / math.sqrt(n) + 1e-3 * exact


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dim", [2, 3, 11])
def test_draws_and_gradients_are_finite_where_the_location_is_the_pole_or_its_opposite(dim, sign):
    loc = torch.zeros(dim)
    loc[0] = sign
    loc.requires_grad_()
    q = PowerSpherical(loc, torch.tensor(5.0))
    draws = q.rsample((1000,))
    assert (draws.detach() @ loc.detach()).mean() > 0.2
    (draws.sin().sum() + q.log_prob(draws).sum()).backward()
    assert loc.grad.isfinite().all()
    assert loc.grad.norm() < 1e5


@DTYPES
def test_at_the_location_and_opposite_to_it_log_prob_and_gradient_are_finite(dtype):
    loc = direction(3, dtype).requires_grad_()
    concentration = torch.tensor(2.0, dtype=dtype, requires_grad=True)
    q = PowerSpherical(loc, concentration)
    log_prob = q.log_prob(torch.stack([loc.detach(), -loc.detach()]))
    assert log_prob.isfinite().all()
    assert log_prob[1] < log_prob[0] - 100
    log_prob.sum().backward()
    assert loc.grad.isfinite().all()
    assert concentration.grad.isfinite()


def test_the_closed_form_serves_the_mean_field_bound():
    pyro.set_rng_seed(0)
    vae = VAE(priors.HypersphericalUniform(4), encoders.PowerSpherical(6, 4), decoders.Normal(4, 6))
    x = torch.rand(5, 6)
    q = vae.encoder(x)
    z = q.sample((10_000,))
    sampled = (q.log_prob(z) - vae.prior().log_prob(z)).mean(0)
    exact = kl_divergence(q.expand((2, 5)), vae.prior().expand((2, 5)))
    assert exact.shape == (2, 5)
    # The log-ratio of an untrained encoder spreads by about 1: 0.05 is 5 standard errors of 10,000 draws.
    torch.testing.assert_close(sampled.expand(2, 5), exact, rtol=0, atol=0.05)
    pair = vae.model, vae.guide
    losses = [
        loss(num_particles=500, vectorize_particles=True).loss(*pair, x) for loss in (Trace_ELBO, TraceMeanField_ELBO)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1.0)


def test_a_vae_on_the_sphere_is_recorded():
    vae = VAE(priors.HypersphericalUniform(4), encoders.PowerSpherical(6, 4), decoders.Normal(4, 6))
    fit(vae.model, vae.guide, torch.rand(40, 6), epochs=2, batch_size=10, engine="recorded")  # a warning is an error


def test_the_kl_has_the_shape_to_which_both_batch_shapes_broadcast():
    q = power_spherical(3, 1.0)
    kl = kl_divergence(q, HypersphericalUniform(3, dtype=torch.float64).expand((4, 1)))
    torch.testing.assert_close(kl, kl_divergence(q, HypersphericalUniform(3, dtype=torch.float64)).expand(4, 1))


def test_spheres_of_different_dimensions_have_no_kl():
    with pytest.raises(ValueError, match="3 and 4 coordinates"):
        kl_divergence(power_spherical(3, 1.0), HypersphericalUniform(4))


def test_arguments_and_values_off_the_sphere_are_refused():
    with pytest.raises(ValueError, match="loc"):
        PowerSpherical(torch.ones(3), torch.tensor(1.0))
    with pytest.raises(ValueError, match="concentration"):
        PowerSpherical(direction(3), torch.tensor(-1.0).double())
    with pytest.raises(ValueError, match="must be at least 2 for a sphere"):
        PowerSpherical(torch.ones(1), torch.tensor(1.0))
    with pytest.raises(ValueError, match="vector"):
        PowerSpherical(torch.tensor(1.0), torch.tensor(1.0))
    for distribution in (power_spherical(3, 1.0), HypersphericalUniform(3)):
        with pytest.raises(ValueError, match="support"):
            distribution.log_prob(torch.ones(3).double())


@pytest.mark.parametrize(
    "make", [HypersphericalUniform, priors.HypersphericalUniform, lambda d: encoders.PowerSpherical(6, d)]
)
def test_a_sphere_needs_two_coordinates(make):
    with pytest.raises(ValueError, match="must be at least 2 for a sphere"):
        make(1)


@DTYPES
def test_directions_of_nothing_are_the_first_axis_with_a_gradient(dtype):
    value = torch.tensor([[0.0, 0.0, 0.0], [1e-30, 1e-30, 0.0], [3.0, 4.0, 0.0]], dtype=dtype, requires_grad=True)
    result = directions(value)
    expected = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.6, 0.8, 0.0]], dtype=dtype)
    torch.testing.assert_close(result, expected)
    result[:, 1].sum().backward()
    assert value.grad.isfinite().all()
    assert (value.grad[:, 1] != 0).all()


def test_they_are_distributions_of_pyro():
    for distribution in (power_spherical(3, 1.0), HypersphericalUniform(3)):
        assert isinstance(distribution, dist.TorchDistribution)
        with pyro.plate("data", 7):
            assert pyro.sample("z", distribution).shape == (7, 3)


@pytest.mark.parametrize("dim", [2, 3, 50])
@pytest.mark.parametrize("concentration", [5e-9, 1e-3, 1.0, 1e3, 2e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_sampled_kl_has_the_closed_form_as_its_mean_at_all_concentrations_of_the_encoder(dim, concentration, dtype):
    """Of 40,000 draws, within 4 standard errors and a rounding of the log-density."""
    torch.manual_seed(6)
    q, p = power_spherical(dim, concentration, dtype), HypersphericalUniform(dim, dtype=dtype)
    z = q.sample((40_000,))
    weights = array((q.log_prob(z) - p.log_prob(z)).double())
    exact = kl_divergence(power_spherical(dim, q.concentration.item()), HypersphericalUniform(dim, dtype=torch.float64))
    rounding = 4 * torch.finfo(dtype).eps * max(1.0, abs(exact.item()))
    assert abs(weights.mean() - exact.item()) < 4 * weights.std() / 200 + rounding
