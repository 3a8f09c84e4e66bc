"""The mathematics of the encoders on R^D: limits, closed forms, estimators, and what they refuse."""

import copy
import math
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import quadrature
import torch
from part_cases import SHAPE, D, array
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae import VAE, decoders, distributions, encoders, priors

KINDS = ["IAF", "MAF", "NSF", "planar"]


class Given(nn.Module):
    """A network whose outputs are a parameter, a row per datum or one for all."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = nn.Parameter(
            torch.as_tensor(outputs, dtype=torch.float64).clone(memory_format=torch.contiguous_format)
        )

    def forward(self, x):  # noqa: ARG002
        return self.outputs


def with_outputs(family, outputs, latent_dim=D, shape=1, **own):
    network = Given(outputs)
    return family(shape, latent_dim, network=lambda *_: network, **own), network


def perturbed(part, scale=0.3):
    for parameter in part.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    return part


# One bump


def test_student_t_has_its_variance_and_nears_the_normal():
    outputs, z = torch.randn(1, 2, D), torch.randn(1, D, dtype=torch.float64)
    wide, _ = with_outputs(encoders.StudentT, outputs, df=3.0)
    scale = outputs[:, 1].double().exp()
    torch.testing.assert_close(wide(torch.zeros(1, 1)).variance, 3 * scale**2)
    near, _ = with_outputs(encoders.StudentT, outputs, df=1e9)
    normal = dist.Normal(outputs[:, 0].double(), scale).to_event(1)
    torch.testing.assert_close(near(torch.zeros(1, 1)).log_prob(z), normal.log_prob(z), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("df", [2, 2.0, 0.0, -1.0, math.inf, math.nan])
def test_student_t_refuses_degrees_of_freedom(df):
    with pytest.raises(ValueError, match=r"df of encoders\.StudentT must be above 2 and finite, not"):
        encoders.StudentT(SHAPE, D, df=df)


def test_full_and_low_rank_without_correlation_are_the_normal_encoder():
    mean, log_variance = torch.randn(2, 4, D, dtype=torch.float64)
    x, z = torch.zeros(4, 1), torch.randn(4, D, dtype=torch.float64)
    normal, _ = with_outputs(encoders.Normal, torch.stack([mean, log_variance], -2))
    full, _ = with_outputs(encoders.FullRankNormal, torch.cat([mean, log_variance, 0 * mean], -1))
    low, _ = with_outputs(encoders.LowRankNormal, torch.stack([mean, log_variance, 0 * mean, 0 * mean], -2))
    torch.testing.assert_close(full(x).log_prob(z), normal(x).log_prob(z))
    torch.testing.assert_close(low(x).log_prob(z), normal(x).log_prob(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", [encoders.FullRankNormal, encoders.LowRankNormal])
def test_extremes_of_many_correlated_dimensions_stay_finite(family, dtype):
    for signs in (1, -1, "random"):
        encoder = family(1, 10, network=lambda _, shape: nn.Unflatten(-1, shape) if len(shape) > 1 else nn.Identity())
        size = 65 if family is encoders.FullRankNormal else 40
        encoder.shape = (size,)
        draws = torch.randint(0, 2, (5, size)) * 2 - 1 if signs == "random" else signs * torch.ones(5, size)
        outputs = (1e4 * draws).to(dtype).requires_grad_()
        posterior = encoder(outputs)
        z = posterior.rsample()
        (posterior.log_prob(z) + z.sum(-1)).sum().backward()
        assert z.isfinite().all()
        assert outputs.grad.isfinite().all()


@pytest.mark.parametrize(("rank", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_low_rank_refuses_a_rank(rank, error):
    with pytest.raises(error, match="rank must be"):
        encoders.LowRankNormal(SHAPE, D, rank=rank)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("family", [encoders.FullRankNormal, encoders.LowRankNormal, encoders.StudentT])
def test_the_closed_form_of_the_kl_to_a_diagonal_normal_is_the_mean_of_draws(family):
    n, q = 100_000, family(SHAPE, D)(torch.rand(5, *SHAPE))
    p = dist.Normal(torch.randn(D), torch.rand(D) + 0.5).to_event(1).expand((5,))
    z = q.sample((n,))
    differences = array(q.log_prob(z) - p.log_prob(z))
    # 4 standard errors of 100,000 draws.
    error = differences.std(0) / math.sqrt(n)
    assert (np.abs(array(kl_divergence(q, p)) - differences.mean(0)) < 4 * error).all()


def test_the_closed_forms_come_with_the_package():
    found = "import sys, pyro_vae.encoders; sys.exit('pyro_vae.distributions.kl' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", found], check=False).returncode == 0


def test_a_full_covariance_has_no_closed_form_to_what_is_no_normal():
    q = encoders.FullRankNormal(SHAPE, D)(torch.rand(5, *SHAPE))
    with pytest.raises(NotImplementedError):
        kl_divergence(q, dist.Laplace(torch.zeros(5, D), torch.ones(5, D)).to_event(1))


# Mixtures


def test_one_component_is_the_normal_and_its_pathwise_gradient():
    loc, log_scale = torch.randn(2, 6, D, dtype=torch.float64).requires_grad_().unbind(0)
    scale = log_scale.exp()
    mixture = distributions.MixtureOfNormals(torch.zeros(6, 1), loc.unsqueeze(-2), scale.unsqueeze(-2))
    z = mixture.rsample()
    into_loc, into_scale = torch.autograd.grad(z.sum(), (loc, scale))
    torch.testing.assert_close(into_loc, torch.ones_like(loc))
    torch.testing.assert_close(into_scale, ((z - loc) / scale).detach())
    value = torch.randn(6, D, dtype=torch.float64)
    torch.testing.assert_close(mixture.log_prob(value), dist.Normal(loc, scale).to_event(1).log_prob(value))


def test_the_gradient_of_a_draw_is_the_same_for_equal_components():
    # With K equal components z = mu + sigma eps whichever was drawn; the weights then have no gradient.
    logits, loc = torch.randn(4, dtype=torch.float64, requires_grad=True), torch.randn(D, dtype=torch.float64)
    loc.requires_grad_()
    z = distributions.MixtureOfNormals(logits, loc.expand(4, D), torch.ones(4, D)).rsample((7,))
    into_logits, into_loc = torch.autograd.grad(z.sum(), (logits, loc))
    torch.testing.assert_close(into_logits, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(into_loc, torch.full((D,), 7.0, dtype=torch.float64))


def test_draws_of_a_mixture_have_its_mean_and_variance():
    n = 100_000
    logits, loc, scale = torch.randn(3), 2 * torch.randn(3, 2), torch.rand(3, 2) + 0.1
    mixture = distributions.MixtureOfNormals(logits, loc, scale)
    z = array(mixture.sample((n,)))
    squares = (z - z.mean(0)) ** 2
    # 4 standard errors of 100,000 draws.
    assert (np.abs(z.mean(0) - array(mixture.mean)) < 4 * z.std(0) / math.sqrt(n)).all()
    assert (np.abs(squares.mean(0) - array(mixture.variance)) < 4 * squares.std(0) / math.sqrt(n)).all()


def test_components_that_all_rows_share_are_as_exact_as_those_of_each_row():
    """Small scales: multiplied out in 32 bits, the square would be off by whole nats."""
    logits, loc, scale = torch.randn(6), torch.randn(6, D).requires_grad_(), torch.rand(6, D).mul(1e-3).add(1e-4)
    z = (loc[:4].detach() + 2 * scale[:4]).requires_grad_()
    shared = distributions.MixtureOfNormals(logits, loc, scale).expand((4,))
    of_rows = distributions.MixtureOfNormals(logits, loc.double().expand(4, 6, D), scale.double())
    values = shared.log_prob(z), of_rows.log_prob(z.double())
    torch.testing.assert_close(values[0], values[1].float(), rtol=1e-6, atol=1e-5)
    for got, exact in zip(*(torch.autograd.grad(value.sum(), (z, loc)) for value in values), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-2)  # of slopes as large as 1e4


def test_a_mixture_draws_components_anew_for_each_row():
    mixture = distributions.MixtureOfNormals(torch.zeros(2), torch.tensor([[-9.0], [9.0]]), torch.ones(2, 1))
    positive = (mixture.expand((2, 1000)).sample() > 0).double().mean((-2, -1))
    # 4 standard errors of 1,000 draws.
    assert ((positive - 0.5).abs() < 4 * 0.5 / math.sqrt(1000)).all()


@pytest.mark.parametrize(("components", "error"), [(0, ValueError), (2.0, TypeError)])
def test_the_mixture_refuses_a_number_of_components(components, error):
    with pytest.raises(error, match="components must be"):
        encoders.MixtureOfNormals(SHAPE, D, components=components)


# Flows


@pytest.mark.parametrize("latent_dim", [1, D])
@pytest.mark.parametrize("transform", KINDS)
def test_a_flow_starts_as_its_normal_base(transform, latent_dim):
    encoder, x = encoders.Flow(SHAPE, latent_dim, transform=transform).double(), torch.rand(5, *SHAPE).double()
    mean, log_variance = encoder.network(x)[..., : 2 * latent_dim].split(latent_dim, -1)
    z = torch.randn(7, 5, latent_dim, dtype=torch.float64)
    normal = dist.Normal(mean, (log_variance / 2).exp()).to_event(1)
    torch.testing.assert_close(encoder(x).log_prob(z), normal.log_prob(z), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("transform", KINDS)
def test_the_log_prob_of_a_draw_is_that_of_its_copy_and_so_is_its_gradient(transform):
    encoder = perturbed(encoders.Flow(SHAPE, D, transform=transform))
    x = torch.rand(5, *SHAPE)
    posterior = encoder(x)
    z = posterior.rsample()
    torch.testing.assert_close(posterior.log_prob(z), encoder(x).log_prob(z.detach()))
    for draw in (posterior.sample(), z.detach()):
        gradients = [
            torch.autograd.grad(q.log_prob(value).sum(), list(encoder.parameters()), retain_graph=True)
            for q, value in ((posterior, draw), (encoder(x), draw.clone()))
        ]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("transform", ["IAF", "NSF"])
def test_a_draw_and_its_log_prob_take_one_pass_of_each_masked_network(transform):
    encoder, passes = encoders.Flow(SHAPE, D, transform=transform), []
    for layer in encoder.transforms:
        layer.layer.hyper.register_forward_hook(lambda *_: passes.append(1))
    posterior = encoder(torch.rand(5, *SHAPE)).expand((4, 5))
    posterior.log_prob(posterior.rsample())
    assert len(passes) == len(encoder.transforms)
    posterior.log_prob(torch.zeros(D))
    assert len(passes) > len(encoder.transforms)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("transform", KINDS)
def test_the_determinant_of_a_flow_is_that_of_its_jacobian(transform):
    encoder = perturbed(encoders.Flow(SHAPE, D, transform=transform, transforms=3))
    for f in encoder(torch.rand(*SHAPE)).transforms:
        x = torch.randn(D)
        jacobian = torch.autograd.functional.jacobian(f, x)
        torch.testing.assert_close(f.log_abs_det_jacobian(x, f(x)), jacobian.det().abs().log())
        torch.testing.assert_close(f.inv(f(x).clone()), x)


@pytest.mark.usefixtures("float64")
def test_a_spline_flow_of_two_dimensions_integrates_to_1():
    outputs = torch.randn(2 * 2 + 4, dtype=torch.float64)
    flow, _ = with_outputs(encoders.Flow, outputs, 2, transform="NSF", hidden=8, context=4)
    perturbed(flow)
    with torch.no_grad():
        distribution = flow(torch.zeros(1))
        nodes, weights = quadrature.product(quadrature.real(0.02, 4.5), (2,))
        rows = zip(nodes.split(50_000), weights.split(50_000), strict=True)
        total = sum((weight * distribution.log_prob(node).exp()).sum().item() for node, weight in rows)
    assert total == pytest.approx(1, abs=1e-3)  # the narrow bins want a finer grid for more digits


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [0.1, 3.0, 30.0])
def test_the_planar_transformation_is_inverted_with_its_gradient_however_steep(size):
    w, u, b, y = size * torch.randn(100, D), size * torch.randn(100, D), torch.randn(100), torch.randn(100, D)
    assert (distributions.Planar(w, u, b).slope > -1).all()
    x = distributions.Planar(w, u, b).inv(y)
    torch.testing.assert_close(distributions.Planar(w, u, b)(x), y, rtol=1e-9, atol=1e-9)
    leaves = [leaf[:3].clone().requires_grad_() for leaf in (w, u, b, y)]
    if size < 30:
        assert torch.autograd.gradcheck(lambda w, u, b, y: distributions.Planar(w, u, b).inv(y), leaves, atol=1e-4)


def test_building_a_flow_leaves_the_validation_of_arguments_as_it_was():
    for flag in (True, False):
        torch.distributions.Distribution.set_default_validate_args(flag)
        encoders.Flow(SHAPE, D)
        assert torch.distributions.Distribution._validate_args is flag
    torch.distributions.Distribution.set_default_validate_args(True)


def test_flows_refuse_what_they_cannot_be():
    with pytest.raises(
        ValueError, match=r"transform of encoders\.Flow must be one of IAF, MAF, NSF, planar, not 'iaf'"
    ):
        encoders.Flow(SHAPE, D, transform="iaf")
    for name in ("transforms", "hidden", "context"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            encoders.Flow(SHAPE, D, **{name: 0})


@pytest.mark.parametrize("transform", KINDS)
def test_a_flow_is_trained_by_pyro_and_copied(transform):
    vae = VAE(priors.Normal(D), encoders.Flow(SHAPE, D, transform=transform), decoders.Normal(D, SHAPE))
    for own in (vae, copy.deepcopy(vae)):
        pyro.clear_param_store()
        loss = Trace_ELBO(num_particles=3, vectorize_particles=True).differentiable_loss(
            own.model, own.guide, torch.rand(5, *SHAPE)
        )
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in own.parameters() if parameter.grad is not None)


# Score functions


def elbo_gradients(wrap, x, outputs):
    """Gradients of each datum's loss, with respect to the outputs of the encoder's network for it."""
    torch.manual_seed(1)
    pyro.clear_param_store()
    encoder, network = with_outputs(encoders.Normal, outputs.expand(len(x), *outputs.shape), 2, shape=3)
    linear = nn.Linear(2, 3, bias=False)
    linear.weight.data = torch.tensor([[1.0, 0.5], [-0.3, 0.2], [0.4, 0.9]], dtype=x.dtype)
    vae = VAE(priors.Normal(2).double(), wrap(encoder), decoders.Normal(2, 3, network=lambda *_: linear).double())
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, x).backward()
    return array(network.outputs.grad)


def test_score_function_gradients_are_unbiased():
    n = 100_000
    x = torch.tensor([0.3, -0.2, 0.8], dtype=torch.float64).expand(n, 3)
    outputs = torch.tensor([[0.2, -0.4], [-1.0, -2.0]])
    pathwise = elbo_gradients(lambda encoder: encoder, x, outputs)
    score = elbo_gradients(encoders.ScoreFunction, x, outputs)
    # 4 standard errors of the difference of two averages of 100,000 draws.
    error = np.sqrt((pathwise.var(0) + score.var(0)) / n)
    assert (np.abs(pathwise.mean(0) - score.mean(0)) < 4 * error).all()
    assert (score.var(0) > pathwise.var(0)).all()


@pytest.mark.parametrize("family", [encoders.Normal, encoders.LowRankNormal, encoders.Flow, encoders.MixtureOfNormals])
def test_draws_without_gradient_stay_so_through_plates_and_events(family):
    posterior = encoders.ScoreFunction(family(SHAPE, D))(torch.rand(5, *SHAPE))
    for q in (
        posterior,
        posterior.expand((4, 5)),
        posterior.expand_by((3,)),
        posterior.to_event(1),
        posterior.mask(True),
    ):
        assert not q.has_rsample
        assert q().grad_fn is None
        assert q.log_prob(q()).requires_grad
    vae = VAE(priors.Normal(D), encoders.ScoreFunction(family(SHAPE, D)), decoders.Normal(D, SHAPE))
    z = pyro.poutine.trace(vae.guide).get_trace(torch.rand(5, *SHAPE)).nodes["z"]
    assert z["value"].grad_fn is None
    assert not z["fn"].has_rsample


def test_the_closed_form_of_the_kl_is_still_found():
    encoder, prior = encoders.Normal(SHAPE, D), priors.Normal(D)()
    x = torch.rand(5, *SHAPE)
    kl = kl_divergence(encoders.ScoreFunction(encoder)(x).expand((4, 5)), prior.expand((4, 5)))
    torch.testing.assert_close(kl, kl_divergence(encoder(x), prior.expand((5,))).expand(4, 5))


def test_an_elbo_without_a_score_function_term_refuses_it():
    vae = VAE(priors.Normal(D), encoders.ScoreFunction(encoders.Normal(SHAPE, D)), decoders.Normal(D, SHAPE))
    with pyro.validation_enabled(True), pytest.raises(NotImplementedError):
        TraceMeanField_ELBO().differentiable_loss(vae.model, vae.guide, torch.rand(5, *SHAPE))


def test_enumeration_passes_through():
    base = dist.Categorical(logits=torch.zeros(5, 3))
    q = distributions.ScoreFunction(base)
    assert q.has_enumerate_support
    assert torch.equal(q.enumerate_support(expand=False), base.enumerate_support(expand=False))


def test_a_score_function_wraps_modules_only():
    with pytest.raises(TypeError, match=r"encoders\.ScoreFunction takes an encoder"):
        encoders.ScoreFunction(encoders.Normal)


@pytest.mark.parametrize("shape", [(3,), (), (4, 1), (2, 5), (-1,)])
@pytest.mark.parametrize("name", ["MixtureOfNormals", "HypersphericalUniform"])
def test_a_distribution_is_not_expanded_to_a_shape_that_does_not_fit(name, shape):
    if name == "MixtureOfNormals":
        fn = distributions.MixtureOfNormals(torch.zeros(4, 2), torch.zeros(4, 2, 3), torch.ones(4, 2, 3))
    else:
        fn = distributions.HypersphericalUniform(3).expand((4,))
    with pytest.raises(ValueError, match=rf"{name} of batch shape \(4,\) cannot be expanded to"):
        fn.expand(shape)
    assert fn.expand((5, 4)).expand((2, 5, 4)).sample().shape == (2, 5, 4, 3)
