"""Priors: limits, moments and refusals of their own, and the VampPrior's share in the encoder."""

import copy
import math
from functools import partial

import numpy as np
import pyro
import pytest
import quadrature
import torch
from all_cases import CASES
from part_cases import SHAPE, D, built
from pyro.infer import Trace_ELBO
from torch import nn
from torch.distributions import Distribution

from pyro_vae import VAE, decoders, encoders, fit, priors
from pyro_vae.distributions.flow import ZukoFlow, zuko

REAL = [
    case
    for case in CASES
    if case.kind == "priors"
    and case.family.__name__
    not in (
        "Bernoulli",
        "Beta",
        "Dirichlet",
        "Exponential",
        "Gamma",
        "HypersphericalUniform",
        "OneHotCategorical",
        "RelaxedOneHotCategorical",
    )
]
TRANSFORMS = pytest.mark.parametrize("transform", ["NSF", "MAF", "RealNVP"])


@pytest.mark.parametrize("case", REAL, ids=repr)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_codes_far_out_have_finite_densities_and_gradients(case, size):
    prior = built(case, torch.float32)
    z = torch.full((D,), size, requires_grad=True)
    log_prob = prior().log_prob(z)
    assert log_prob.isfinite()
    log_prob.backward()
    assert z.grad.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in prior.parameters())


@pytest.mark.parametrize(
    "learned",
    [
        priors.Laplace,
        priors.StudentT,
        priors.Exponential,
        priors.Gamma,
        priors.Beta,
        priors.Dirichlet,
        priors.Bernoulli,
        priors.OneHotCategorical,
        priors.RelaxedOneHotCategorical,
    ],
)
def test_learning_starts_from_the_fixed_prior(learned):
    one, other = learned(D)(), learned(D, learned=True)()
    value = one.sample((50,))
    assert torch.equal(one.log_prob(value), other.log_prob(value))
    assert other.log_prob(value).requires_grad
    shown = repr(learned(D, learned=True))
    assert f"(latent_dim={D}, " in shown
    assert shown.endswith("learned=True)")


def test_beta_and_dirichlet_priors_of_1_are_uniform():
    beta, dirichlet = priors.Beta(D)(), priors.Dirichlet(D)()
    assert torch.allclose(beta.log_prob(beta.sample((50,))), torch.zeros(50), atol=1e-6)
    # The simplex of three shares has the area 1/2 in two of them.
    assert torch.allclose(dirichlet.log_prob(dirichlet.sample((50,))), torch.full((50,), math.log(2)), atol=1e-5)


def test_a_gamma_prior_of_1_is_the_exponential_prior():
    z = priors.Exponential(D)().sample((50,))
    torch.testing.assert_close(priors.Gamma(D, concentration=1.0)().log_prob(z), priors.Exponential(D)().log_prob(z))


def test_many_degrees_of_freedom_make_the_t_prior_normal():
    z = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    t = priors.StudentT(1, df=1e8).double()().log_prob(z)
    torch.testing.assert_close(t, priors.Normal(1).double()().log_prob(z), rtol=0, atol=1e-6)


@pytest.mark.parametrize("df", [2.5, 5.0])
def test_the_t_prior_has_the_variance_of_its_density(df):
    prior = priors.StudentT(1, df=df).double()()
    t = torch.arange(-40, 40, 0.01, dtype=torch.float64)  # in sinh: the tails are heavy
    z, weights = t.sinh()[:, None], t.cosh() * 0.01
    variance = (weights * prior.log_prob(z).exp() * z[:, 0] ** 2).sum()
    assert variance.item() == pytest.approx(df / (df - 2), rel=1e-4)
    assert prior.variance.item() == pytest.approx(df / (df - 2))


def test_a_cold_relaxed_prior_draws_near_corners():
    draws = priors.RelaxedOneHotCategorical(D, categories=4, temperature=0.05)().sample((1000,))
    assert draws.max(-1).values.mean() > 0.97
    # One corner as often as another: 4.5 standard errors of 3000 draws.
    share = nn.functional.one_hot(draws.argmax(-1), 4).double().mean((0, 1))
    assert ((share - 1 / 4).abs() < 4.5 * math.sqrt(3 / 16 / 3000)).all()


def test_one_component_makes_a_mixture_normal():
    mixture = priors.MixtureOfNormals(D, components=1)
    normal = priors.Normal(D, learned=True)
    normal.loc.data, normal.log_scale.data = mixture.loc.data[0], mixture.log_scale.data[0]
    z = torch.randn(50, D)
    torch.testing.assert_close(mixture().log_prob(z), normal().log_prob(z))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.StudentT(D, df=2.0), r"degrees of freedom .* must be above 2 and finite, not 2\.0"),
        (lambda: priors.StudentT(D, df=math.nan), "above 2 and finite, not nan"),
        (lambda: priors.Gamma(D, concentration=0.0), r"concentration of priors\.Gamma must be above 0"),
        (lambda: priors.Beta(D, concentration=-1.0), r"concentration of priors\.Beta must be above 0"),
        (lambda: priors.Dirichlet(D, concentration=math.inf), r"concentration of priors\.Dirichlet must be above 0"),
        (lambda: priors.Dirichlet(1), r"latent_dim must be at least 2 for priors\.Dirichlet, not 1"),
        (lambda: priors.HypersphericalUniform(1), "latent_dim must be at least 2 for a sphere"),
        (lambda: priors.OneHotCategorical(D, categories=1), "categories must be at least 2, not 1"),
        (lambda: priors.RelaxedOneHotCategorical(D, categories=1), "categories must be at least 2, not 1"),
        (lambda: priors.RelaxedOneHotCategorical(D, temperature=0.0), "temperature of .* must be above 0"),
        (lambda: priors.MixtureOfNormals(D, components=0), "components must be at least 1"),
        (lambda: priors.Flow(D, "Glow"), "must be one of NSF, MAF, RealNVP, not 'Glow'"),
        (lambda: priors.Flow(D, transforms=0), "transforms must be at least 1"),
        (lambda: priors.Flow(D, hidden=0), "hidden must be at least 1"),
        (lambda: priors.Flow(D, layers=0), "layers must be at least 1"),
    ],
)
def test_what_a_prior_cannot_be_is_refused_with_the_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Flows


@TRANSFORMS
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_of_a_flow_has_the_log_prob_that_came_with_it(transform, latent_dim, dtype):
    distribution = priors.Flow(latent_dim, transform, hidden=16).to(dtype)().expand((4, 5))
    z = distribution.rsample()
    kept, again = distribution.log_prob(z), distribution.log_prob(z.clone())
    assert z.shape == (4, 5, latent_dim)
    assert kept.shape == (4, 5)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(kept, again, rtol=tolerance, atol=tolerance)


def test_a_flow_keeps_no_log_prob_that_has_lost_its_gradient():
    distribution = priors.Flow(D)()
    assert distribution.log_prob(distribution.sample()).requires_grad
    with torch.no_grad():
        z = distribution.rsample()
    assert distribution.log_prob(z).requires_grad


@TRANSFORMS
def test_pathwise_gradients_of_a_flow_are_those_of_the_expectation(transform):
    """E[sin(1.3 z + 0.4)] by quadrature against 20,000 draws in 20 lots: 5 standard errors of the lots' mean."""
    torch.manual_seed(0)
    prior = priors.Flow(1, transform, transforms=2).double()
    nodes, weights = quadrature.product(quadrature.real(), (1,))
    parameters = list(prior.parameters())
    expectation = (weights * prior().log_prob(nodes).exp() * (1.3 * nodes[:, 0] + 0.4).sin()).sum()
    exact = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(expectation, parameters)])
    lots = []
    for _ in range(20):
        loss = (1.3 * prior().rsample((1000,)) + 0.4).sin().mean()
        lots.append(torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)]))
    draws = torch.stack(lots)
    assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / math.sqrt(20) + 1e-6).all()


def test_a_flow_with_a_context_is_a_distribution_of_pyro_per_datum():
    flow, context = zuko().flows.MAF(D, context=2), torch.randn(5, 2)
    together = ZukoFlow(flow(context))
    assert (together.batch_shape, together.event_shape) == ((5,), (D,))
    z = together.expand((4, 5)).sample()
    one_by_one = torch.stack([ZukoFlow(flow(c)).log_prob(row) for c, row in zip(context, z.unbind(1), strict=True)], 1)
    torch.testing.assert_close(together.log_prob(z), one_by_one, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="support"):
        together.log_prob(torch.full((5, D), math.nan))


@pytest.mark.parametrize("validated", [True, False])
def test_importing_zuko_leaves_the_validation_of_distributions_as_it_was(validated):
    before = Distribution._validate_args
    try:
        Distribution.set_default_validate_args(validated)
        zuko()
        assert Distribution._validate_args is validated
    finally:
        Distribution.set_default_validate_args(before)


# The VampPrior


def vamp_vae(**own):
    encoder = encoders.Normal(SHAPE, D)
    return VAE(priors.VampPrior(encoder, components=6, **own), encoder, decoders.Normal(D, SHAPE))


def test_the_vamp_prior_is_the_mean_of_the_posteriors_at_its_pseudo_inputs():
    vae, z = vamp_vae().double(), torch.randn(7, D, dtype=torch.float64)
    posteriors = vae.encoder(vae.prior.pseudo_inputs())
    densities = posteriors.log_prob(z[:, None]).exp().mean(-1)
    torch.testing.assert_close(vae.prior().log_prob(z), densities.log())
    torch.testing.assert_close(vae.prior().mean, posteriors.mean.mean(0))


def test_the_encoder_of_a_vamp_prior_is_counted_and_saved_once():
    vae = vamp_vae()
    assert [name for name, _ in vae.prior.named_parameters()] == ["free"]
    assert list(vae.prior.state_dict()) == ["free"]
    expected = 1 + len(list(vae.encoder.parameters())) + len(list(vae.decoder.parameters()))
    assert len(list(vae.parameters())) == len(vae.state_dict()) == expected


def test_both_pseudo_inputs_and_encoder_learn_from_the_vamp_prior():
    vae = vamp_vae()
    vae.prior().log_prob(torch.randn(5, D)).sum().backward()
    assert all(parameter.grad.any() for parameter in (vae.prior.free, *vae.encoder.parameters()))
    vae.zero_grad()
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, torch.rand(5, *SHAPE)).backward()
    assert all(parameter.grad.any() for parameter in vae.parameters())


def test_a_deep_copy_of_a_vae_has_a_vamp_prior_of_its_own_encoder():
    vae, z = vamp_vae(), torch.randn(5, D)
    before, twin = vae.prior().log_prob(z), copy.deepcopy(vae)
    assert torch.equal(twin.prior().log_prob(z), before)
    for parameter in twin.encoder.parameters():
        parameter.data += 0.1
    assert not torch.allclose(twin.prior().log_prob(z), before)
    assert torch.equal(vae.prior().log_prob(z), before)


def test_a_vamp_prior_follows_the_state_and_the_dtype_of_its_vae(tmp_path):
    one, other, z = vamp_vae(), vamp_vae(), torch.randn(5, D)
    torch.save(one.state_dict(), tmp_path / "vae.pt")
    other.load_state_dict(torch.load(tmp_path / "vae.pt", weights_only=True))
    assert torch.equal(one.prior().log_prob(z), other.prior().log_prob(z))
    other.double()
    torch.testing.assert_close(other.prior().log_prob(z.double()).float(), one.prior().log_prob(z))


def test_a_vamp_prior_is_trained_by_fit():
    pyro.set_rng_seed(0)
    vae, x = vamp_vae(), torch.rand(40, *SHAPE)
    start, encoder = vae.prior.free.detach().clone(), copy.deepcopy(vae.encoder.state_dict())
    fit(vae.model, vae.guide, x, epochs=2, batch_size=20)
    assert not torch.equal(vae.prior.free, start)
    assert all(not torch.equal(value, encoder[name]) for name, value in vae.encoder.state_dict().items())


@pytest.mark.parametrize("unit_interval", [True, False])
def test_pseudo_inputs_start_from_the_first_data(unit_interval):
    data = torch.rand(9, *SHAPE)
    prior = vamp_vae(data=data, unit_interval=unit_interval).prior
    expected = data[:6].clamp(0.01, 0.99) if unit_interval else data[:6]
    np.testing.assert_allclose(prior.pseudo_inputs().detach().numpy(), expected.numpy(), atol=1e-6)
    prior.free.data += 1.0  # the data are copied
    assert (data <= 1).all()


def test_pseudo_inputs_stay_in_the_unit_interval_only_where_they_are_asked_to():
    kept, free = vamp_vae().prior, vamp_vae(unit_interval=False).prior
    for prior in (kept, free):
        assert ((prior.pseudo_inputs() >= 0) & (prior.pseudo_inputs() <= 1)).all()
        prior.free.data += 100.0
    assert (kept.pseudo_inputs() <= 1).all()
    assert (free.pseudo_inputs() > 1).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.rand(5, *SHAPE), r"data of shape \(N, 2, 4, 3\), N >= 6, not \(5, 2, 4, 3\)"),
        (torch.rand(9, 24), r"data of shape \(N, 2, 4, 3\), N >= 6, not \(9, 24\)"),
        (2 + torch.rand(9, *SHAPE), "outside .0, 1.: set unit_interval=False"),
    ],
)
def test_data_that_do_not_serve_as_pseudo_inputs_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        vamp_vae(data=data)


@pytest.mark.parametrize("unit_interval", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_pseudo_inputs_do_not_start_from_what_is_missing(value, unit_interval):
    data = torch.rand(9, *SHAPE)
    data[5, 0, 1] = value
    with pytest.raises(ValueError, match=f"data that are finite, not {value}: fill what is missing"):
        vamp_vae(data=data, unit_interval=unit_interval)


@pytest.mark.parametrize("encoder", [encoders.Normal, 3, nn.Linear(2, 2)])
def test_a_vamp_prior_needs_an_encoder_that_is_built(encoder):
    with pytest.raises(TypeError, match=r"encoder of priors\.VampPrior must be a module that has a shape"):
        priors.VampPrior(encoder)


@pytest.mark.parametrize(
    "family", [encoders.Normal, encoders.PowerSpherical, partial(encoders.Flow, transform="MAF"), encoders.Flow]
)
def test_any_encoder_with_a_log_probability_makes_a_vamp_prior(family):
    encoder = family(SHAPE, D)
    prior = priors.VampPrior(encoder, components=6)
    distribution = prior().expand((4, 5))
    z = distribution.sample()
    of_each = [encoder(u).log_prob(z.flatten(0, 1)) for u in prior.pseudo_inputs()]
    expected = torch.stack(of_each).logsumexp(0).reshape(4, 5) - math.log(6)
    torch.testing.assert_close(distribution.log_prob(z), expected, rtol=1e-4, atol=1e-4)
