"""Mixtures of normals that all rows share, against differences in 64 bits, however small the scales."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.distributions import MixtureOfNormals
from pyro_vae.distributions.mixture import squared_distances, weighted_squares


def by_differences(logits, loc, scale, value):
    of_components = dist.Normal(loc, scale, validate_args=False).log_prob(value.unsqueeze(-2)).sum(-1)
    return (logits.log_softmax(-1) + of_components).logsumexp(-1)


def near_its_components(size, dims, dtype):
    """Logits, means, scales, and values near the means; the second component lies upon the first."""
    torch.manual_seed(0)
    logits, loc, scale = torch.randn(4), torch.randn(4, dims), size * (torch.rand(4, dims) + 0.5)
    loc[1] = loc[0] + size
    value = torch.cat([loc + 1.3 * scale * torch.randn(4, dims), torch.randn(1, dims)])
    return [t.to(dtype).requires_grad_() for t in (logits, loc, scale, value)]


def value_and_gradients(log_prob, tensors):
    value = log_prob(*tensors)
    return value, *torch.autograd.grad(value.sum(), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dims", [1, 20, 1000])
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-4, 1e-6, 1e-9])
def test_shared_components_have_their_digits_at_every_scale(size, dims, dtype):
    tensors = near_its_components(size, dims, dtype)
    got = value_and_gradients(lambda *t: MixtureOfNormals(*t[:3]).log_prob(t[3]), tensors)
    right = value_and_gradients(by_differences, [t.detach().double().requires_grad_() for t in tensors])
    for ours, exact in zip(got, right, strict=True):
        np.testing.assert_allclose(
            ours.detach().double(), exact.detach(), rtol=1e-5, atol=1e-5 * exact.abs().max().item()
        )


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_components_of_each_row_are_those_that_all_share(size):
    logits, loc, scale, value = near_its_components(size, 20, torch.float32)
    of_rows = MixtureOfNormals(logits, loc.expand(5, 4, 20), scale).log_prob(value)
    torch.testing.assert_close(MixtureOfNormals(logits, loc, scale).log_prob(value), of_rows, rtol=1e-5, atol=1e-5)


def test_a_scale_whose_square_underflows_is_no_infinite_density():
    loc, scale = torch.zeros(3, 1, 2), torch.full((3, 1, 2), 1e-25)
    log_prob = MixtureOfNormals(torch.zeros(3, 1), loc, scale).log_prob(loc.squeeze(-2))
    torch.testing.assert_close(log_prob, torch.full((3,), 2 * (25 * np.log(10) - np.log(2 * np.pi) / 2)))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_values_of_every_batch_shape_are_scored(shape):
    mixture = MixtureOfNormals(torch.zeros(4), torch.randn(4, 2), torch.ones(4, 2))
    assert mixture.log_prob(torch.zeros(*shape, 2)).shape == shape


def test_derivatives_of_squared_distances_are_those_of_differences():
    value, loc, precision, weights = (torch.rand(s).double().requires_grad_() for s in ((4, 3), (2, 3), (2, 3), (4, 2)))
    for function, last in ((squared_distances, precision), (weighted_squares, weights)):
        assert torch.autograd.gradcheck(function, (value, loc, last))
        assert torch.autograd.gradgradcheck(function, (value, loc, last))


def test_a_recording_of_well_separated_components_is_right_for_narrow_ones_too():
    wide, narrow = (near_its_components(size, 20, torch.float32) for size in (1.0, 1e-6))

    def step(*tensors):
        return value_and_gradients(lambda *t: MixtureOfNormals(*t[:3], validate_args=False).log_prob(t[3]), tensors)

    recording = make_fx(step)(*wide)
    for tensors in (wide, narrow):
        assert all(map(torch.equal, recording(*tensors), step(*tensors)))
