"""One contract for every part, found by walking the modules, and what only some parts promise."""

import copy
import math

import numpy as np
import pyro.distributions as dist
import pytest
import quadrature
import torch
from all_cases import CASES, cases
from part_cases import SHAPE, D, array, built, event_shape, inputs, public_parts
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae import VAE, decoders, encoders, priors
from pyro_vae.distributions import mean_of

BATCHES = [(), (5,), (4, 5), (2, 4, 5)]
LOGITS = [-40.0, -1.0, -1e-3, 0.0, 1e-3, 0.05, 0.0999, 0.1, 1.0, 16.0, 40.0, 1e3]

all_cases = pytest.mark.parametrize("case", CASES, ids=repr)
conditional_cases = pytest.mark.parametrize("case", cases("encoders", "decoders"), ids=repr)
decoder_cases = pytest.mark.parametrize("case", cases("decoders"), ids=repr)


@pytest.mark.parametrize("family", sorted(public_parts(), key=str))
def test_every_part_is_held_to_the_contract(family):
    known = {case.family for case in CASES}
    assert family in known, f"{family} has no construction: enter it in the CASES of tests/support/part_cases.py"


def test_the_walk_finds_the_parts():
    assert public_parts() >= {
        priors.Normal,
        encoders.Normal,
        encoders.Delta,
        decoders.Bernoulli,
        decoders.ContinuousBernoulli,
        decoders.Normal,
    }


@all_cases
@pytest.mark.parametrize("batch", BATCHES)
def test_returns_a_pyro_distribution_of_the_stated_shapes(case, batch):
    distribution = built(case)(*inputs(case, batch))
    assert isinstance(distribution, TorchDistributionMixin)
    assert distribution.batch_shape == (() if case.kind == "priors" else batch)
    assert distribution.event_shape == event_shape(case)
    assert mean_of(distribution).shape == distribution.shape()
    assert distribution.sample((6,)).shape == (6, *distribution.shape())


@all_cases
def test_draws_lie_in_the_support(case):
    distribution = built(case)(*inputs(case, (50,)))
    assert distribution.support.check(distribution.sample((20,))).all()


@all_cases
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
@pytest.mark.parametrize("batch", BATCHES)
def test_log_prob_is_that_of_an_independent_reference(case, batch, dtype, tolerance):
    part, given = built(case, dtype), inputs(case, batch, dtype)
    distribution = part(*given)
    value = distribution.sample()
    if case.name == "decoder-bernoulli-grey":
        value = torch.rand_like(value)
    log_prob = distribution.log_prob(value)
    assert log_prob.dtype == dtype
    expected = case.log_prob(part, *(given or (None,)), array(value))
    np.testing.assert_allclose(array(log_prob), expected, rtol=tolerance, atol=tolerance)


@conditional_cases
def test_particles_pass_as_they_would_one_by_one(case):
    part, (given,) = built(case), inputs(case, (4, 5))
    together = part(given)
    value = together.sample()
    if case.family is encoders.Delta:
        torch.testing.assert_close(value, torch.stack([part(row).sample() for row in given]))
        return
    one_by_one = torch.stack([part(row).log_prob(draw) for row, draw in zip(given, value, strict=True)])
    torch.testing.assert_close(together.log_prob(value), one_by_one, rtol=1e-10, atol=1e-10)


@all_cases
def test_a_plate_around_it_changes_no_log_prob(case):
    distribution = built(case)(*inputs(case, (5,)))
    expanded = distribution.expand((4, 5))
    assert expanded.batch_shape == (4, 5)
    value = expanded.sample()
    torch.testing.assert_close(
        expanded.log_prob(value), torch.stack([distribution.log_prob(row) for row in value]), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("case", [case for case in CASES if list(case.make(D).parameters())], ids=repr)
def test_gradients_reach_every_parameter(case):
    part = built(case)
    distribution = part(*inputs(case, (5,)))
    value = distribution.rsample() if distribution.has_rsample else distribution.sample()
    (distribution.log_prob(value.detach()).sum() + (value**2).sum()).backward()
    for name, parameter in part.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("case", [case for case in CASES if not list(case.make(D).parameters())], ids=repr)
def test_what_is_not_learned_takes_no_place_among_the_parameters(case):
    assert case.kind == "priors"
    assert not case.make(D).state_dict()


@all_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_follows_the_dtype_it_is_moved_to(case, dtype):
    distribution = built(case, dtype)(*inputs(case, (5,), dtype))
    value = distribution.sample()
    assert value.dtype in (dtype, torch.int64)
    assert mean_of(distribution).dtype == distribution.log_prob(value).dtype == dtype


@all_cases
def test_state_dict_makes_two_parts_one(case):
    one, other, given = built(case, seed=1), built(case, seed=2), inputs(case, (5,))
    value = one(*given).sample()
    if list(one.parameters()):
        assert not torch.equal(one(*given).log_prob(value), other(*given).log_prob(value))
    other.load_state_dict(copy.deepcopy(one.state_dict()), strict=True)
    assert torch.equal(one(*given).log_prob(value), other(*given).log_prob(value))


@all_cases
def test_repr_names_the_class(case):
    assert repr(case.make(D)).startswith(f"{case.family.__name__}(")


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("scale", [1e-3, 0.5, 1e3])
def test_the_repr_of_a_normal_decoder_tells_its_scale(scale, learned):
    decoder = decoders.Normal(D, SHAPE, scale=scale, learned=learned)
    assert f"scale={decoder(torch.zeros(D)).stddev.max().item():.4g}, learned={learned}" in repr(decoder)


def test_reprs_tell_what_is_learned_and_grey():
    assert "latent_dim=3, learned=True" in repr(priors.Normal(3, learned=True))
    assert "latent_dim=3, learned=False" in repr(priors.Normal(3))
    assert "grey=True" in repr(decoders.Bernoulli(D, SHAPE, grey=True))
    assert "grey=False" in repr(decoders.Bernoulli(D, SHAPE))


@conditional_cases
@pytest.mark.parametrize("extra", [(5,), ()])
def test_refuses_another_shape_with_both_shapes_and_its_name(case, extra):
    right = SHAPE if case.kind == "encoders" else (D,)
    wrong = (*extra, *right[:-1], right[-1] + 1)
    part = case.make(D)
    name = type(getattr(part, "encoder", getattr(part, "decoder", part))).__name__  # what is wrapped sees the input
    with pytest.raises(ValueError, match=f"{case.kind}.{name} was built for") as caught:
        part(torch.zeros(wrong))
    assert f"(*batch, {', '.join(map(str, right))})" in str(caught.value)
    assert f"got {wrong}" in str(caught.value)


@pytest.mark.parametrize("case", cases("priors", "encoders"), ids=repr)
def test_refuses_a_latent_dim_of_several_numbers(case):
    with pytest.raises((TypeError, ValueError), match="latent_dim"):
        case.make((2, 3))


@decoder_cases
def test_a_decoder_takes_codes_of_any_shape(case):
    decoder = case.make((2, 3))
    assert decoder(torch.randn(4, 5, 2, 3)).batch_shape == (4, 5)
    with pytest.raises(ValueError, match=r"z of shape \(\*batch, 2, 3\)"):
        decoder(torch.randn(4, 6))


@all_cases
@pytest.mark.parametrize("latent_dim", [0, -1])
def test_refuses_a_latent_dim_below_1(case, latent_dim):
    with pytest.raises(ValueError, match="latent_dim must be at least 1"):
        case.make(latent_dim)


@all_cases
@pytest.mark.parametrize("latent_dim", [2.5, "2", None, True])
def test_refuses_a_latent_dim_that_is_no_integer(case, latent_dim):
    with pytest.raises(TypeError, match="latent_dim must be an integer"):
        case.make(latent_dim)


class Extreme(nn.Module):
    """A network whose outputs are plus and minus 10,000, whatever its input."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        self.dims = len(in_shape)
        signs = torch.arange(math.prod(out_shape)) % 2 * 2.0 - 1
        self.outputs = nn.Parameter(1e4 * signs.reshape(out_shape))

    def forward(self, x):
        return self.outputs.expand(*x.shape[: x.dim() - self.dims], *self.outputs.shape) + 0 * x.sum()


def assert_finite(part, log_prob):
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    for name, parameter in part.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("case", cases("encoders"), ids=repr)
@pytest.mark.parametrize(("network", "size"), [({"network": Extreme}, 1.0), ({}, 1e4)], ids=["outputs", "inputs"])
def test_extreme_outputs_and_data_give_finite_draws_densities_and_gradients_of_encoders(case, network, size):
    part = built(case, torch.float32, **network)
    posterior = part(size * inputs(case, (6,), torch.float32)[0])
    z = posterior.rsample() if posterior.has_rsample else posterior.sample()
    assert z.isfinite().all()
    assert_finite(part, posterior.log_prob(z) + z.flatten(1).sum(-1))


@decoder_cases
@pytest.mark.parametrize(("network", "size"), [({"network": Extreme}, 1.0), ({}, 1e4)], ids=["outputs", "codes"])
def test_extreme_outputs_and_codes_give_finite_densities_and_gradients_of_decoders(case, network, size):
    part = built(case, torch.float32, **network)
    x = built(case, torch.float32)(*inputs(case, (6,), torch.float32)).sample()
    z = size * inputs(case, (6,), torch.float32)[0]
    assert_finite(part, part(z).log_prob(x))


# The mathematics: densities integrate to 1, and pathwise gradients are those of the expectation


def on_a_small_event(case, outputs=None):
    """A distribution of one part whose event is small enough for quadrature, and what it was made by."""
    if case.kind == "priors":
        return built(case, latent_dim=case.dim)()
    if case.kind == "decoders":
        return built(case, shape=1)(torch.randn(D, dtype=torch.float64))
    part = built(case, latent_dim=case.dim, shape=WIDTH, network=FromInput)
    shape = numbers_shape(part)
    x = torch.randn(shape, dtype=torch.float64) if outputs is None else outputs
    return part(torch.nn.functional.pad(x.flatten(x.dim() - len(shape)), (0, WIDTH - math.prod(shape))))


WIDTH = 64


class FromInput(nn.Module):
    """A network whose outputs are the first entries of its input, of shape (\\*batch, 64)."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        self.in_shape, self.out_shape = in_shape, tuple(out_shape)

    def forward(self, x):
        return x[..., : math.prod(self.out_shape)].reshape(*x.shape[:-1], *self.out_shape)


def numbers_shape(part):
    """The shape of what the network gives, also where the part that has it is wrapped."""
    return next(module.out_shape for module in part.modules() if isinstance(module, FromInput))


densities = pytest.mark.parametrize("case", [case for case in CASES if case.density], ids=repr)


@densities
def test_densities_and_probabilities_integrate_to_1(case):
    torch.manual_seed(1)
    distribution = on_a_small_event(case)
    nodes, weights = quadrature.rule(distribution)
    with torch.no_grad():
        total = (weights * distribution.log_prob(nodes).exp()).sum().item()
    assert total == pytest.approx(1, abs=1e-4)


def smooth(z):
    return (z.flatten(1) @ torch.tensor([1.3, 0.7, -0.4, 0.2], dtype=z.dtype)[: z[0].numel()] + 0.4).sin()


@pytest.mark.parametrize("case", [case for case in cases("encoders") if case.density], ids=repr)
def test_pathwise_gradients_are_those_of_the_expectation(case):
    """E[f(z)] by quadrature against 100,000 draws: within 4.5 standard errors, for each output of the network."""
    torch.manual_seed(2)
    part = built(case, latent_dim=case.dim, shape=WIDTH, network=FromInput)
    outputs = 0.5 * torch.randn(numbers_shape(part), dtype=torch.float64)
    if not on_a_small_event(case, outputs).has_rsample or getattr(part, "straight_through", False):
        return  # no pathwise gradient is promised, or one of the relaxed draw (see test_encoders_discrete)
    leaf = outputs.clone().requires_grad_()
    distribution = on_a_small_event(case, leaf)
    nodes, weights = quadrature.rule(distribution)
    (exact,) = torch.autograd.grad((weights * distribution.log_prob(nodes).exp() * smooth(nodes)).sum(), leaf)
    many = outputs.expand(100_000, *outputs.shape).clone().requires_grad_()
    (draws,) = torch.autograd.grad(smooth(on_a_small_event(case, many).rsample()).sum(), many)
    error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - exact).abs() <= 4.5 * error + 1e-6).all(), (draws.mean(0), exact, error)


def test_the_standard_normal_prior_is_one():
    prior = priors.Normal(D)()
    assert torch.equal(prior.mean, torch.zeros(D))
    assert torch.equal(prior.stddev, torch.ones(D))


def test_a_learned_prior_starts_from_the_standard_normal():
    prior = priors.Normal(D, learned=True)()
    assert torch.equal(prior.mean, torch.zeros(D))
    assert torch.equal(prior.stddev, torch.ones(D))


class Constant(nn.Module):
    """A network of one constant output."""

    def __init__(self, outputs, dtype=None):
        super().__init__()
        self.outputs = nn.Parameter(torch.tensor(outputs, dtype=dtype))

    def forward(self, x):
        return self.outputs.expand(len(x), *self.outputs.shape)


@pytest.mark.usefixtures("float64")
def test_pathwise_gradients_of_the_normal_encoder_are_unbiased():
    # f(z) = sum of z^2 has the expectation mu^2 + sigma^2: gradients 2 mu for the mean, sigma^2 for the log-variance.
    n, mean, log_variance = 100_000, np.array([0.5, -1.0, 2.0]), np.array([0.0, -1.0, 1.0])
    network = Constant([mean.tolist(), log_variance.tolist()])
    encoder = encoders.Normal(1, 3, network=lambda *_: network)
    (encoder(torch.zeros(n, 1)).rsample() ** 2).sum(-1).mean().backward()
    variance = np.exp(log_variance)
    exact = np.stack([2 * mean, variance])
    # One draw's gradients 2 z and eps sigma z have the variances below; 4 standard errors of 100,000 draws.
    error = np.sqrt(np.stack([4 * variance, mean**2 * variance + 2 * variance**2]) / n)
    assert (np.abs(array(network.outputs.grad) - exact) < 4 * error).all()


@pytest.mark.usefixtures("float64")
def test_draws_of_the_normal_encoder_have_its_mean_and_variance():
    n = 100_000
    encoder = encoders.Normal(1, 2, network=lambda *_: Constant([[0.5, -1.0], [0.0, 1.0]]))
    z = encoder(torch.zeros(n, 1)).sample()
    variance = np.exp([0.0, 1.0])
    # 4 standard errors of 100,000 draws: of a mean sqrt(v / n), of a variance v sqrt(2 / n).
    assert (np.abs(array(z.mean(0)) - [0.5, -1.0]) < 4 * np.sqrt(variance / n)).all()
    assert (np.abs(array(z.var(0)) - variance) < 4 * variance * math.sqrt(2 / n)).all()


def test_the_normal_encoder_compresses_only_log_variances_below_30_and_above_10():
    outputs = [-1e4, -30.0, -22.0, 10.0, 1e4]
    encoder = encoders.Normal(1, 5, network=lambda *_: Constant([[0.0] * 5, outputs]))
    log_variance = 2 * encoder(torch.zeros(1, 1)).stddev.log()[0]
    expected = torch.tensor([-30 - math.log(9971), -30.0, -22.0, 10.0, 10 + math.log(9991)])
    torch.testing.assert_close(log_variance, expected)


def test_the_delta_encoder_is_its_network():
    encoder = encoders.Delta(SHAPE, D)
    x = torch.rand(5, *SHAPE)
    z = encoder(x)
    assert torch.equal(z.sample(), encoder.network(x))
    assert torch.equal(z.log_prob(encoder.network(x)), torch.zeros(5))
    assert (z.log_prob(encoder.network(x) + 1e-3) == -math.inf).all()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_the_normal_decoder_refuses_a_scale(scale):
    with pytest.raises(ValueError, match=r"scale of decoders\.Normal must be above 0 and finite"):
        decoders.Normal(D, SHAPE, scale=scale)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 1e3])
def test_the_normal_decoder_has_the_scale_it_was_given(scale, learned):
    stddev = decoders.Normal(D, SHAPE, scale=scale, learned=learned)(torch.zeros(5, D)).stddev
    torch.testing.assert_close(stddev, torch.full_like(stddev, scale))


def test_the_bernoulli_decoder_refuses_grey_values_unless_told():
    grey = torch.full(SHAPE, 0.3)
    with pytest.raises(ValueError, match="support"):
        decoders.Bernoulli(D, SHAPE)(torch.zeros(D)).log_prob(grey)
    assert decoders.Bernoulli(D, SHAPE, grey=True)(torch.zeros(D)).log_prob(grey).isfinite()
    with pytest.raises(ValueError, match="support"):
        decoders.Bernoulli(D, SHAPE, grey=True)(torch.zeros(D)).log_prob(4 * grey)


@pytest.mark.parametrize("x", [0.0, 1.0])
def test_grey_and_strict_bernoulli_agree_on_0_and_1(x):
    strict, grey = decoders.Bernoulli(D, SHAPE), decoders.Bernoulli(D, SHAPE, grey=True)
    grey.load_state_dict(strict.state_dict())
    z, value = torch.randn(D), torch.full(SHAPE, x)
    assert torch.equal(strict(z).log_prob(value), grey(z).log_prob(value))


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("logit", [-1e4, -50.0, 50.0, 1e4])
def test_the_bernoulli_log_prob_is_exact_also_where_the_probability_rounds_to_0_or_1(logit, grey):
    decoder = decoders.Bernoulli(1, 1, network=lambda *_: Constant([logit]), grey=grey)
    likelihood = decoder(torch.zeros(2, 1)).log_prob(torch.tensor([[0.0], [1.0]]))
    assert likelihood.tolist() == pytest.approx([min(0.0, -logit), min(0.0, logit)], abs=1e-15)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_the_continuous_bernoulli_decoder_refuses_values_outside_0_and_1(value):
    with pytest.raises(ValueError, match="support"):
        decoders.ContinuousBernoulli(D, SHAPE)(torch.zeros(D)).log_prob(torch.full(SHAPE, value))


def continuous_bernoulli(logit, dtype=torch.float64):
    decoder = decoders.ContinuousBernoulli(1, 1, network=lambda *_: Constant([logit], dtype))
    return decoder(torch.zeros(1, 1))


def unit_interval():
    """Nodes and weights on [0, 1]: Gauss-Legendre of 20 points between breaks that crowd at both ends."""
    half = np.concatenate([[0.0], 2.0 ** np.arange(-25, 0)])
    breaks = np.concatenate([half, 1 - half[-2::-1]])
    nodes, weights = np.polynomial.legendre.leggauss(20)
    width = np.diff(breaks)[:, None]
    return (breaks[:-1, None] + width * (nodes + 1) / 2).ravel(), (width * weights / 2).ravel()


def test_the_quadrature_integrates_what_is_known():
    nodes, weights = unit_interval()
    for rate in (0.0, 1.0, 40.0, 1e3):
        exact = -math.expm1(-rate) / rate if rate else 1.0
        assert (weights * np.exp(-rate * nodes)).sum() == pytest.approx(exact, rel=1e-12)
        assert (weights * np.exp(-rate * (1 - nodes))).sum() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("logit", LOGITS)
def test_the_continuous_bernoulli_density_integrates_to_1(logit):
    nodes, weights = unit_interval()
    density = continuous_bernoulli(logit).log_prob(torch.tensor(nodes)[:, None]).exp()
    assert (weights * array(density)).sum() == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("logit", [*LOGITS, -2e-3, 5e-3, 1e4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_the_continuous_bernoulli_mean_is_that_of_its_density(logit, dtype, tolerance):
    mean = 1 / 2 + logit / 12 if abs(logit) < 1e-2 else -1 / math.expm1(-logit) - 1 / logit
    assert continuous_bernoulli(logit, dtype).mean.item() == pytest.approx(mean, abs=tolerance)
    if abs(logit) <= 1e3:  # where the quadrature is exact
        nodes, weights = unit_interval()
        density = array(continuous_bernoulli(logit).log_prob(torch.tensor(nodes)[:, None]).exp())
        assert (weights * nodes * density).sum() == pytest.approx(mean, abs=1e-8)


@pytest.mark.parametrize("logit", [-0.2, -0.0999, -0.05, -0.01, -1e-3, 1e-3, 0.01, 0.05, 0.0999, 0.1, 0.1001, 0.2])
@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-11)])
def test_the_continuous_bernoulli_matches_its_closed_form_near_a_logit_of_0(logit, x, dtype, tolerance):
    log_prob = continuous_bernoulli(logit, dtype).log_prob(torch.tensor([[x]], dtype=dtype))
    assert log_prob.item() == pytest.approx(logit * x + math.log(logit / math.expm1(logit)), abs=tolerance)


@pytest.mark.parametrize("logit", [0.0, -1e-3, 0.0999, 0.1, 1.0, 40.0, 1e4, 1e20])
@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
def test_the_continuous_bernoulli_gradient_is_x_minus_its_mean(logit, x):
    # d/dl (l x + log(l / (e^l - 1))) = x - (1 / (1 - e^-l) - 1 / l), an exponential family's mean.
    network = Constant([logit])
    decoder = decoders.ContinuousBernoulli(1, 1, network=lambda *_: network)
    decoder(torch.zeros(1, 1)).log_prob(torch.tensor([x])).backward()
    small = abs(logit) < 1e-2
    mean = 1 / 2 + logit / 12 if small else -1 / math.expm1(-logit) - 1 / logit
    assert network.outputs.grad.item() == pytest.approx(x - mean, abs=2e-6)


@pytest.mark.parametrize("logit", [-40.0, -1.0, -0.011, -0.009, 0.0, 1e-5, 0.009, 0.011, 0.1, 1.0, 16.0, 40.0])
def test_the_continuous_bernoulli_quantiles_invert_its_distribution_function(logit):
    u = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)[:, None]
    x = array(continuous_bernoulli(logit).base_dist.icdf(u))
    # F(x) = (e^(l x) - 1) / (e^l - 1), the integral of the density.
    reached = np.expm1(logit * x) / np.expm1(logit) if logit else x
    np.testing.assert_allclose(reached, array(u), rtol=0, atol=1e-7)


@pytest.mark.parametrize("logit", [-1e20, -1e4, -200.0, -40.0, 0.0, 0.005, 40.0, 200.0, 1e4, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_continuous_bernoulli_draws_nothing_outside_0_and_1(logit, dtype):
    # Uniform noise in float32 is exactly 0 once in 16 million draws.
    u = torch.tensor([0.0, 1e-30, 2**-24, 0.5, 1 - 2**-24, 1.0], dtype=dtype)[:, None]
    x = continuous_bernoulli(logit, dtype).base_dist.icdf(u)
    assert ((x >= 0) & (x <= 1)).all()
    assert (x.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("logit", [-5.0, 0.0, 5.0, 40.0])
def test_draws_of_the_continuous_bernoulli_have_the_mean_of_its_density(logit):
    n = 100_000
    draws = array(continuous_bernoulli(logit).sample((n,)))
    mean = 1 / 2 if logit == 0 else -1 / math.expm1(-logit) - 1 / logit
    # 4 standard errors of 100,000 draws.
    assert abs(draws.mean() - mean) < 4 * draws.std() / math.sqrt(n)


def test_a_part_of_ones_own_needs_no_base_class():
    class Laplace(nn.Module):
        def forward(self):
            return dist.Laplace(torch.zeros(D), torch.ones(D)).to_event(1)

    vae = VAE(Laplace(), encoders.Normal(SHAPE, D), decoders.Normal(D, SHAPE))
    assert math.isfinite(Trace_ELBO().loss(vae.model, vae.guide, torch.rand(5, *SHAPE)))
