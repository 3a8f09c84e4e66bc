"""The mathematics that is special to some decoders."""

import math
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from part_cases import SHAPE, D
from scipy import special, stats

from pyro_vae import VAE, data, decoders, distributions, encoders, evaluate, fit, priors
from pyro_vae.distributions import Categorical, DiscretizedLogistic, MissingEntries, OpenBeta, bits_per_dimension
from pyro_vae.networks import MLP, FillMissing
from pyro_vae.programs import check_programs

SCALED = [decoders.Normal, decoders.Laplace, decoders.StudentT]


def check(decoder, x):
    shape = tuple(x.shape[1:])
    vae = VAE(priors.Normal(D), encoders.Normal(shape, D), decoder)
    check_programs(vae.model, vae.guide, x)


# Scales


@pytest.mark.parametrize("family", SCALED)
def test_a_scale_per_dimension_is_learned_for_each_entry_and_starts_as_told(family):
    part = family(D, SHAPE, scale=0.3, learned=True, per_dimension=True)
    assert part.log_scale.shape == SHAPE
    torch.testing.assert_close(part.scales(), torch.full(SHAPE, 0.3))
    assert "per_dimension=True" in repr(part)


@pytest.mark.parametrize("family", SCALED)
def test_a_scale_per_dimension_must_be_learned(family):
    with pytest.raises(ValueError, match=rf"decoders\.{family.__name__} .*learned=True"):
        family(D, SHAPE, learned=False, per_dimension=True)


@pytest.mark.parametrize("family", SCALED)
@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_is_above_0_and_finite(family, scale):
    with pytest.raises(ValueError, match=rf"scale of decoders\.{family.__name__} must be above 0"):
        family(D, SHAPE, scale=scale)


@pytest.mark.parametrize("df", [2.0, 0.0, -1.0, math.inf, math.nan])
def test_degrees_of_freedom_without_a_variance_are_refused(df):
    with pytest.raises(ValueError, match=r"df of decoders\.StudentT, .* must be above 2"):
        decoders.StudentT(D, SHAPE, df=df)


@pytest.mark.usefixtures("float64")
def test_students_t_tends_to_the_normal_likelihood():
    student, normal = decoders.StudentT(D, SHAPE, df=1e7, learned=False), decoders.Normal(D, SHAPE)
    normal.load_state_dict(student.state_dict())
    z, x = torch.randn(5, D), torch.randn(5, *SHAPE)
    torch.testing.assert_close(student(z).log_prob(x), normal(z).log_prob(x), rtol=1e-5, atol=1e-4)


# Beta


@pytest.mark.usefixtures("float64")
def test_the_beta_decoder_has_the_mean_and_variance_of_its_outputs():
    part = decoders.Beta(D, SHAPE)
    z = torch.randn(5, D)
    logits, log_concentration = part.outputs(z)
    mean = logits.sigmoid()
    torch.testing.assert_close(part(z).mean, mean)
    torch.testing.assert_close(part(z).variance, mean * (1 - mean) / (log_concentration.exp() + 1))


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_beta_decoder_refuses_the_ends_with_the_way_out(end):
    with pytest.raises(ValueError, match="support"):
        decoders.Beta(D, SHAPE)(torch.zeros(D)).log_prob(torch.full(SHAPE, end))
    with pytest.raises(ValueError, match=r"hold [01], outside the support \(0, 1\).*ContinuousBernoulli"):
        check(decoders.Beta(D, SHAPE), torch.full((3, *SHAPE), end))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_of_the_beta_keep_off_the_ends(dtype):
    concentration = torch.tensor([1e-6, 1e-3, 1.0, 1e6], dtype=dtype)
    draws = OpenBeta(concentration[:, None], concentration).sample((1000,))
    assert ((draws > 0) & (draws < 1)).all()


# Counts


@pytest.mark.usefixtures("float64")
def test_the_negative_binomial_decoder_has_its_mean_and_variance_and_tends_to_poisson():
    part, poisson = decoders.NegativeBinomial(D, SHAPE, inverse_dispersion=2.5), decoders.Poisson(D, SHAPE)
    poisson.network.load_state_dict(part.network.state_dict())
    z = torch.randn(5, D)
    mean = part.output(z).exp()
    torch.testing.assert_close(part(z).mean, mean)
    torch.testing.assert_close(part(z).variance, mean + mean**2 / 2.5)
    x = poisson(z).sample()
    part.log_inverse_dispersion.data[:] = 10.0
    torch.testing.assert_close(part(z).log_prob(x), poisson(z).log_prob(x), rtol=0, atol=0.05)


@pytest.mark.usefixtures("float64")
def test_a_gate_that_is_shut_leaves_the_negative_binomial():
    part = decoders.ZeroInflatedNegativeBinomial(D, 1, network=lambda *_: Constant([[0.7], [-1e6]]))
    x = torch.arange(20.0)[:, None]
    expected = stats.nbinom.logpmf(np.arange(20), 1, 1 / (1 + np.exp(0.7)))
    np.testing.assert_allclose(part(torch.zeros(D)).log_prob(x).detach(), expected, atol=1e-5)


@pytest.mark.parametrize("family", [decoders.NegativeBinomial, decoders.ZeroInflatedNegativeBinomial])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_an_inverse_dispersion_is_above_0_and_finite(family, value):
    with pytest.raises(ValueError, match=rf"inverse_dispersion of decoders\.{family.__name__}"):
        family(D, SHAPE, inverse_dispersion=value)


@pytest.mark.parametrize("family", [decoders.Poisson, decoders.NegativeBinomial, decoders.ZeroInflatedNegativeBinomial])
@pytest.mark.parametrize("value", [0.5, -1.0])
def test_decoders_of_counts_refuse_what_is_none(family, value):
    with pytest.raises(ValueError, match="support"):
        family(D, SHAPE)(torch.zeros(D)).log_prob(torch.full(SHAPE, value))


class Constant(torch.nn.Module):
    """A network of one constant output."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = torch.nn.Parameter(torch.tensor(outputs))

    def forward(self, z):
        return self.outputs.expand(*z.shape[:-1], *self.outputs.shape)


# Categories


@pytest.mark.usefixtures("float64")
def test_the_categorical_distribution_knows_its_moments_and_draws_floats():
    probs = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.0, 0.5]])
    distribution, numbers = Categorical(probs=probs), np.arange(3)
    mean = probs.numpy() @ numbers
    np.testing.assert_allclose(distribution.mean, mean)
    np.testing.assert_allclose(distribution.variance, probs.numpy() @ numbers**2 - mean**2)
    assert distribution.sample((4,)).dtype == torch.float64
    assert isinstance(distribution.expand((6, 2)), Categorical)


@pytest.mark.parametrize("categories", [1, 0, -3])
def test_fewer_than_two_categories_are_refused(categories):
    with pytest.raises(ValueError, match="categories"):
        decoders.Categorical(D, SHAPE, categories=categories)


@pytest.mark.parametrize("value", [5.0, 0.5, -1.0])
def test_the_categorical_decoder_refuses_what_is_no_category(value):
    with pytest.raises(ValueError, match="support"):
        decoders.Categorical(D, SHAPE, categories=5)(torch.zeros(D)).log_prob(torch.full(SHAPE, value))


# Logistic distributions in bins


def grid(bits, dtype=torch.float32):
    return torch.arange(2**bits, dtype=dtype) / (2**bits - 1)


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-4, 1e-2, 0.1, 1.0, 1e3, 1e8])
@pytest.mark.parametrize("loc", [-1e4, -3.0, 0.0, 1e-3, 0.3, 0.5, 1.0, 1.7, 1e4])
def test_the_probabilities_of_the_bins_sum_to_1_and_have_the_mean(bits, dtype, scale, loc):
    values = grid(bits, dtype)
    logistic = DiscretizedLogistic(torch.tensor(loc, dtype=dtype), torch.tensor(scale, dtype=dtype), bits)
    log_prob = logistic.log_prob(values)
    assert log_prob.isfinite().all()
    probabilities = log_prob.double().exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert logistic.mean.item() == pytest.approx((probabilities * values).sum().item(), abs=1e-5)


def test_a_bin_far_from_the_mean_keeps_its_logarithm():
    # Below the mean, log P = (u + l) / 2 + log(2 sinh((u - l) / 2)) up to terms of e^u.
    logistic = DiscretizedLogistic(torch.tensor(0.9), torch.tensor(0.001))
    upper, lower = (100.5 / 255 - 0.9) / 0.001, (99.5 / 255 - 0.9) / 0.001
    exact = upper + math.log1p(-math.exp(lower - upper))
    assert logistic.log_prob(torch.tensor(100 / 255)).item() == pytest.approx(exact, rel=1e-5)


def test_draws_in_bins_have_their_probabilities():
    n, logistic = 100_000, DiscretizedLogistic(torch.tensor(0.3), torch.tensor(0.15), bits=3)
    draws = logistic.sample((n,))
    assert logistic.support.check(draws).all()
    counts = torch.bincount((draws * 7).round().long(), minlength=8).double() / n
    p = logistic.log_prob(grid(3)).double().exp()
    # 4.5 standard errors of a proportion among 100,000 draws.
    assert ((counts - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all()


def test_the_mean_of_a_mixture_in_bins_is_the_sum_over_them():
    part = decoders.DiscretizedLogistic(D, SHAPE, bits=4, components=3)
    distribution = part(torch.randn(D))
    values = grid(4)
    probabilities = torch.stack([distribution.base_dist.log_prob(value.expand(SHAPE)).exp() for value in values])
    expected = (probabilities * values.reshape(-1, 1, 1, 1)).sum(0)
    torch.testing.assert_close(distribution.mean, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.5, -1 / 255, 256 / 255, math.nan])
def test_values_off_the_grid_are_refused_with_the_way_out(value):
    x = torch.full((3, *SHAPE), value)
    with pytest.raises(ValueError, match="support"):
        decoders.DiscretizedLogistic(D, SHAPE)(torch.zeros(D)).log_prob(x)
    if not math.isnan(value):
        with pytest.raises(ValueError, match=r"multiples of 1/255 in \[0, 1\].*round"):
            check(decoders.DiscretizedLogistic(D, SHAPE), x)


def test_images_as_they_are_loaded_lie_on_the_grid():
    x = torch.arange(256, dtype=torch.uint8) / 255
    assert DiscretizedLogistic(torch.zeros(()), torch.ones(())).support.check(x).all()


@pytest.mark.parametrize(
    ("own", "error"), [({"bits": 0}, ValueError), ({"bits": 9}, ValueError), ({"bits": 8.0}, TypeError)]
)
def test_bits_are_1_to_8(own, error):
    with pytest.raises(error, match="bits"):
        decoders.DiscretizedLogistic(D, SHAPE, **own)


def test_components_are_at_least_1():
    with pytest.raises(ValueError, match="components must be at least 1"):
        decoders.DiscretizedLogistic(D, SHAPE, components=0)


def test_a_uniform_pixel_costs_its_bits():
    assert bits_per_dimension(3 * 32 * 32 * 8 * math.log(2), (3, 32, 32)) == pytest.approx(8)


# What was not observed

FAMILIES = [
    decoders.Bernoulli,
    decoders.Beta,
    partial(decoders.Categorical, categories=5),
    decoders.ContinuousBernoulli,
    decoders.DiscretizedLogistic,
    decoders.Laplace,
    decoders.NegativeBinomial,
    decoders.Normal,
    decoders.Poisson,
    decoders.StudentT,
    decoders.ZeroInflatedNegativeBinomial,
]


def with_missing(x, share=0.3, seed=1):
    return x.masked_fill(torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share, torch.nan)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_a_masked_decoder_scores_the_sum_over_what_is_observed(family):
    part = family(D, SHAPE)
    z = torch.randn(5, D)
    x = part(z).sample()
    y = with_missing(x)
    assert y.isnan().any()
    masked = decoders.Masked(part)(z)
    assert masked.support.check(y).all()
    assert torch.equal(masked.log_prob(x), part(z).log_prob(x))
    expected = (part(z).base_dist.log_prob(x) * ~y.isnan()).flatten(1).sum(1)
    torch.testing.assert_close(masked.log_prob(y), expected)
    torch.testing.assert_close(masked.expand((4, 5)).log_prob(y), expected.expand(4, 5))
    masked.log_prob(y).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in part.parameters())
    assert masked.sample().isfinite().all()
    assert masked.mean.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_what_is_missing_has_no_gradient_also_at_extreme_outputs(family):
    part = decoders.Masked(family(D, SHAPE))
    for parameter in part.parameters():
        parameter.data *= 1e4
    part(torch.randn(5, D)).log_prob(torch.full((5, *SHAPE), torch.nan)).sum().backward()
    assert not any(parameter.grad.any() or parameter.grad.isnan().any() for parameter in part.parameters())


def test_a_masked_decoder_still_refuses_what_is_outside_the_support():
    with pytest.raises(ValueError, match="support"):
        decoders.Masked(decoders.Bernoulli(D, SHAPE))(torch.zeros(D)).log_prob(torch.full(SHAPE, 0.5))


def test_masked_refuses_what_is_no_decoder_and_entries_that_are_not_independent():
    with pytest.raises(TypeError, match="wraps a decoder"):
        decoders.Masked(decoders.Normal)
    with pytest.raises(ValueError, match=r"independent ones, not from one of event shape \(3,\)"):
        MissingEntries(dist.MultivariateNormal(torch.zeros(3), torch.eye(3)))


def digits_vae(masked, latent_dim=10):
    torch.manual_seed(0)
    decoder = decoders.Normal(latent_dim, (1, 8, 8), partial(MLP, hidden=128), scale=0.3, learned=True)
    network = partial(FillMissing, network=partial(MLP, hidden=128))
    encoder = encoders.Normal((1, 8, 8), latent_dim, network)
    return VAE(priors.Normal(latent_dim), encoder, decoders.Masked(decoder) if masked else decoder)


def test_with_nothing_missing_the_losses_are_those_without_a_mask():
    x = data.load("digits").test[:100]
    pairs = [(vae.model, vae.guide) for vae in map(digits_vae, (True, False))]
    assert evaluate(*pairs[0], x) == evaluate(*pairs[1], x)
    histories = [fit(*pair, x, epochs=2, batch_size=50) for pair in pairs]
    assert histories[0].column("train_loss") == histories[1].column("train_loss")


@pytest.mark.slow
def test_a_vae_learns_from_digits_of_which_a_third_is_missing_and_imputes_them():
    images = data.load("digits")
    x, y = with_missing(images.train), with_missing(images.test, seed=2)
    vae = digits_vae(masked=True)
    fit(vae.model, vae.guide, x, epochs=30, batch_size=64)
    missing = y.isnan()
    error = (vae.reconstruct(y) - images.test)[missing].square().mean()
    by_the_mean = (x.nanmean(0) - images.test)[missing].square().mean()
    assert error < 0.8 * by_the_mean, (error, by_the_mean)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_outputs_give_draws_in_the_support_with_finite_densities_and_gradients(family, dtype):
    part = family(D, SHAPE).to(dtype)
    for parameter in part.network.parameters():
        parameter.data *= 1e3
    distribution = part(torch.randn(20, D, dtype=dtype))
    x = distribution.sample()
    assert distribution.support.check(x).all()
    assert distribution.mean.isfinite().all()
    log_prob = distribution.log_prob(x)
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in part.parameters())


@pytest.mark.parametrize("logit", [0.0, 1e-3, -3.0, 15.0, -40.0, 1e4, -1e4])
@pytest.mark.parametrize("grey", [False, True])
def test_the_bernoulli_without_a_gradient_is_that_of_scipy_and_of_torch(logit, grey):
    family = distributions.GreyBernoulli if grey else distributions.Bernoulli
    logits = torch.tensor([[logit], [-logit / 2]], dtype=torch.float64)
    x = torch.tensor([0.0, 1.0] + ([0.3] if grey else []), dtype=torch.float64)
    expected = x.numpy() * special.log_expit(logits.numpy()) + (1 - x.numpy()) * special.log_expit(-logits.numpy())
    leaf = logits.clone().requires_grad_()
    np.testing.assert_allclose(family(logits=logits).log_prob(x), expected, rtol=1e-14, atol=1e-14 * abs(logit))
    by_torch = family(logits=leaf).log_prob(x)
    np.testing.assert_allclose(by_torch.detach(), expected, rtol=1e-14, atol=1e-14 * abs(logit))
    by_torch.sum().backward()
    np.testing.assert_allclose(leaf.grad[:, 0], (x - logits.sigmoid()).sum(-1), atol=1e-14)
    with pytest.raises(ValueError, match="within the support"):
        family(logits=logits).log_prob(torch.tensor(1.5))


@pytest.mark.parametrize("shape", [(1,), (7,), (113,), (112,), (3, 5, 7), (1, 28, 28)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1e-3, 3.0, 1e3])
def test_the_sum_over_bernoulli_variables_without_a_gradient_is_that_of_scipy(shape, dtype, spread):
    """Logits of (K, B, ...) and data of (B, ...)."""
    source = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(3, 2, *shape, generator=source, dtype=dtype)
    logits.view(-1)[0] = 100 * spread
    x = torch.rand(2, *shape, generator=source, dtype=dtype)
    exact, values = logits.double().numpy(), x.double().numpy()
    each = values * special.log_expit(exact) + (1 - values) * special.log_expit(-exact)
    expected = each.reshape(3, 2, -1).sum(-1)
    vector = distributions.GreyBernoulli(logits=logits).to_event(len(shape))
    size = logits[0, 0].numel()
    near = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1.5 * torch.finfo(dtype).eps * size}
    largest = np.abs(each).reshape(3, 2, -1).sum(-1).max()
    near["atol"] += 4 * torch.finfo(dtype).eps * largest
    np.testing.assert_allclose(vector.log_prob(x), expected, **near)
    np.testing.assert_allclose(vector.expand((3, 2)).log_prob(x), expected, **near)
    leaf = logits.clone().requires_grad_()
    by_torch = distributions.GreyBernoulli(logits=leaf).to_event(len(shape)).log_prob(x)
    np.testing.assert_allclose(by_torch.detach(), expected, **near)
    by_torch.sum().backward()
    np.testing.assert_allclose(leaf.grad, x - logits.sigmoid(), atol=2e-6)
    with pytest.raises(ValueError, match="within the support"):
        vector.log_prob(torch.full(shape, 1.5))


def test_the_sum_over_bernoulli_variables_in_half_precision_is_torch_s():
    logits = torch.randn(4, 784, generator=torch.Generator().manual_seed(0)).bfloat16()
    x = torch.ones(784).bfloat16()
    expected = dist.Bernoulli(logits=logits, validate_args=False).log_prob(x).float().sum(-1)
    found = distributions.Bernoulli(logits=logits, validate_args=False).to_event(1).log_prob(x)
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=0)
