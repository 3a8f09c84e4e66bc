import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import VAE, data, decoders, encoders, priors
from pyro_vae.diagnostics.consistency import consistency
from pyro_vae.diagnostics.disentanglement import disentanglement
from pyro_vae.diagnostics.encoding import code_means
from tests.support.linear import probabilistic_pca


def normal(count, size, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


@pytest.mark.parametrize("degrees", [30, 70])
def test_turned_codes_are_linear_maps_of_each_other_but_not_each_others_dimensions(degrees):
    """Of a turn by an angle a, each dimension correlates cos a and sin a with the others: the MCC is the larger one."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    codes = normal(4000, 2)
    found = consistency(codes, codes @ torch.tensor([[cos, -sin], [sin, cos]]).double() + 3)
    assert found.r_squared.tolist() == pytest.approx([1.0, 1.0], abs=1e-10)
    assert found.mean_r_squared == pytest.approx(1.0, abs=1e-10)
    assert found.mcc == pytest.approx(max(cos, sin), abs=4 * min(cos, sin) / math.sqrt(2000))


def test_other_orders_signs_and_scales_are_the_same_codes():
    codes = normal(100, 3)
    others = codes[:, [2, 0, 1]] * torch.tensor([-1e-20, 1.0, 1e20])
    for found in (consistency(codes, others), consistency(others, codes)):
        assert found.mcc == pytest.approx(1.0, abs=1e-10)
        assert found.mean_r_squared == pytest.approx(1.0, abs=1e-10)


def test_noise_lowers_both_measures_by_what_it_adds_to_the_variance():
    """w = z + s noise: R^2 = 1 / (1 + s^2) and the correlation is its root; 10,000 data, within 0.03."""
    codes, deviations = normal(10_000, 3), torch.tensor([0.0, 0.5, 2.0]).double()
    found = consistency(codes, codes + deviations * normal(10_000, 3, seed=1))
    expected = 1 / (1 + deviations**2)
    torch.testing.assert_close(found.r_squared, expected, rtol=0, atol=0.03)
    assert found.mean_r_squared == pytest.approx(expected.mean().item(), abs=0.03)
    assert found.mcc == pytest.approx(expected.sqrt().mean().item(), abs=0.03)


def test_codes_that_have_nothing_in_common_give_0():
    """300 repetitions: R^2 is -2 (D + 2) / N and the MCC 0 in the mean, within 4 standard errors; N = 400, D = 4."""
    found = [consistency(normal(400, 4, 2 * k), normal(400, 4, 2 * k + 1), seed=k) for k in range(300)]
    for values, expected, bound in (
        ([each.mean_r_squared for each in found], -2 * 6 / 400, 0.1),
        ([each.mcc for each in found], 0.0, 4 * math.sqrt(2 / (400 * 4))),
    ):
        assert abs(np.mean(values) - expected) < 4 * np.std(values) / math.sqrt(300)
        assert max(map(abs, values)) < bound


def test_codes_of_any_kind_are_taken():
    codes = normal(100, 2).float()
    read_only = codes.numpy().astype(">f4")
    read_only.flags.writeable = False
    for others in (codes.numpy(), codes.tolist(), codes.clone().requires_grad_(), read_only, list(codes)):
        assert consistency(codes, others).mcc == pytest.approx(1.0)


def test_fewer_dimensions_predict_what_they_hold():
    codes = normal(2000, 2)
    found = consistency(codes[:, :1], codes)
    assert found.r_squared[0].item() == pytest.approx(1.0, abs=1e-10)
    assert abs(found.r_squared[1].item()) < 0.02
    assert found.mcc == pytest.approx(1.0, abs=1e-10)  # of the one pair
    assert consistency(codes, codes[:, :1]).mean_r_squared == pytest.approx(1.0, abs=1e-10)


def test_constant_and_repeated_dimensions():
    """A constant has no variance to predict, and is left out of the means."""
    codes = normal(200, 2)
    dead = torch.cat([codes, torch.full((200, 1), 0.1).double()], -1)
    found = consistency(dead, dead)
    assert found.r_squared[2].isnan()
    assert (found.mean_r_squared, found.mcc) == pytest.approx((1.0, 1.0), abs=1e-10)
    twice = torch.cat([codes, codes], -1)
    assert consistency(twice, codes).mean_r_squared == pytest.approx(1.0, abs=1e-10)
    with pytest.raises(ValueError, match=r"^no dimension of the codes differs between data in each half: train longer"):
        consistency(codes, torch.zeros(200, 2))


@pytest.mark.parametrize(
    ("codes", "others", "message"),
    [
        (torch.zeros(20, 2), torch.zeros(19, 2), "must be of the same data in the same order, not of 20 and 19 data"),
        (torch.zeros(11, 2), torch.zeros(11, 2), "at least 12 data are needed, not 11: give more"),
        (torch.tensor([[1.0]] * 9 + [[math.nan]]), torch.zeros(10, 1), "finite, .*those of datum 9 are not: leave it"),
        (torch.tensor(1.0), torch.zeros(10, 1), r"the codes: data must have shape"),
    ],
)
def test_codes_that_cannot_be_compared_are_refused(codes, others, message):
    with pytest.raises(ValueError, match=message):
        consistency(codes, others)
    for wrong in (
        "digits",
        [["a"]],
        None,
        3,
        torch.zeros(20),
        torch.zeros(0, 2),
        torch.zeros(20, 2, dtype=torch.cfloat),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^the other codes(:| must be)"):
            consistency(torch.zeros(20, 2), wrong)


def test_the_codes_of_data_are_the_means_of_their_posteriors():
    """Within 5 standard errors of 50 draws, of each of 700 data; ready batches keep their order."""
    exact = probabilistic_pca(latent=3, observed=4, count=700)
    error = (exact.covariance.diagonal() / 50).sqrt()
    pair = exact.vae.model, exact.vae.guide
    for given in (exact.x, DataLoader(TensorDataset(exact.x), batch_size=600)):
        means = code_means(*pair, given)
        assert ((means - exact.mean).abs() < 5 * error).all()
        assert ((means - exact.mean) / error).std().item() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(code_means(*pair, exact.x), code_means(*pair, exact.x))
    again = consistency(code_means(*pair, exact.x), code_means(*pair, exact.x, seed=1))
    assert again.mcc > 0.9


def test_two_vaes_on_digits():
    x = data.load("digits").test
    means = []
    for seed in range(2):
        torch.manual_seed(seed)
        vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
        means.append(code_means(vae.model, vae.guide, x))
    assert consistency(*means).r_squared.shape == (2,)


def test_codes_that_are_points_or_discrete_are_encoded():
    """A point is its own mean; the mean of binary codes is their probability, within 5 standard errors of 400 draws."""
    x = normal(30, 5).float()
    for encoder, prior, size in (
        (encoders.Delta(5, 2), priors.Normal(2), 2),
        (encoders.Bernoulli(5, 3), priors.Bernoulli(3), 3),
    ):
        vae = VAE(prior, encoder, decoders.Normal(size, 5))
        with torch.no_grad():
            expected = encoder(x).mean.double()
        error = 5 * 0.5 / math.sqrt(400) if size == 3 else 1e-6
        torch.testing.assert_close(code_means(vae.model, vae.guide, x, draws=400), expected, rtol=0, atol=error)


def test_programs_whose_codes_are_not_the_models_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"^code_means is about codes, and the programs draw none"):
        code_means(model, lambda _: None, torch.zeros(30, 2))
    vae = VAE(priors.Normal(2), encoders.Normal(5, 2), decoders.Normal(2, 5))
    with pytest.raises(ValueError, match=r"^draws must be at least 1, not 0"):
        code_means(vae.model, vae.guide, torch.zeros(30, 5), draws=0)


@pytest.mark.parametrize("scale", [1e-200, 1e-310])
def test_codes_whose_differences_have_no_square_are_as_good_as_constant(scale):
    codes = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^no dimension of the codes differs"):
        consistency(scale * codes, codes)
    with pytest.raises(ValueError, match=r"^all data have the same code"):
        disentanglement(scale * codes, torch.arange(200).reshape(100, 2) % 3)
