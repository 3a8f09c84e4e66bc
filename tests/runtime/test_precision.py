from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn import functional

from pyro_vae import VAE, data, decoders, encoders, fit, priors
from pyro_vae.networks import MLP, ConvDecoder, ConvEncoder
from pyro_vae.runtime import precision
from pyro_vae.runtime.precision import BETWEEN_FLUSHES, FLUSHED, BFloat16Layers, check_precision, flush_subnormal

CPU = torch.device("cpu")


def bfloat16(value):
    """Round to 8 significant bits, half to even, by hand."""
    mantissa, exponent = torch.frexp(value.double())
    return torch.ldexp((mantissa * 2**8).round(), exponent - 8)


def test_a_layer_rounds_its_factors_and_its_result_and_adds_without_loss():
    """300 summands: added in bfloat16, they would be off by more than a last bit."""
    x, weight, bias = torch.randn(7, 300), torch.randn(5, 300), torch.randn(5)
    with BFloat16Layers():
        result = functional.linear(x, weight, bias)
    exact = bfloat16(x) @ bfloat16(weight).mT + bfloat16(bias)
    assert result.dtype == torch.float32
    assert torch.equal(bfloat16(result), result.double())
    assert ((result - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


def test_a_layer_called_by_keywords_is_rounded_as_well():
    x, weight, bias = torch.randn(7, 300), torch.randn(5, 300), torch.randn(5)
    with BFloat16Layers():
        by_keyword = functional.linear(bias=bias, weight=weight, input=x)
        assert torch.equal(by_keyword, functional.linear(x, weight, bias))
    assert not torch.equal(by_keyword, functional.linear(x, weight, bias))


def test_its_gradients_are_those_of_the_rounded_factors():
    x, weight = torch.randn(7, 300, requires_grad=True), torch.randn(5, 300, requires_grad=True)
    slope = torch.randn(7, 5)
    with BFloat16Layers():
        result = functional.linear(x, weight)
    got = torch.autograd.grad(result, (x, weight), slope)
    exact = bfloat16(slope) @ bfloat16(weight.detach()), bfloat16(slope).mT @ bfloat16(x.detach())
    for gradient, value in zip(got, exact, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - value).norm() < 2**-8 * value.norm()


@pytest.mark.parametrize("make", [ConvEncoder, ConvDecoder, partial(ConvEncoder, residual=True)])
def test_convolutions_are_layers(make):
    network, x = make((1, 8, 8), (1, 8, 8)), torch.randn(4, 1, 8, 8)
    exact = network(x)
    with BFloat16Layers():
        rounded = network(x)
    assert rounded.dtype == torch.float32
    assert 1e-4 * exact.norm() < (rounded - exact).norm() < 2e-2 * exact.norm()


def test_nothing_but_layers_is_touched():
    z, factor = torch.randn(5, 3), torch.randn(3, 2)
    normal = dist.LowRankMultivariateNormal(torch.zeros(3), factor, torch.ones(3))
    exact = normal.log_prob(z), z @ factor, nn.Linear(3, 2).double()
    with BFloat16Layers():
        assert torch.equal(normal.log_prob(z), exact[0])
        assert torch.equal(z @ factor, exact[1])
        assert exact[2](z.double()).dtype == torch.float64


def trained(**settings):
    torch.manual_seed(0)
    network = partial(MLP, hidden=(64,))
    decoder = decoders.Bernoulli(3, (1, 8, 8), network, grey=True)
    vae = VAE(priors.Flow(3), encoders.Normal((1, 8, 8), 3, network), decoder)
    x = data.load("digits")
    history = fit(vae.model, vae.guide, x.train[:512], validation=x.test, epochs=6, batch_size=32, **settings)
    return history, [parameter.detach() for parameter in vae.parameters()]


@pytest.mark.slow
@pytest.mark.usefixtures("bfloat16")
def test_a_training_in_bfloat16_comes_to_a_bound_like_the_one_in_32_bits():
    exact, _ = trained()
    rounded, parameters = trained(precision="bf16-mixed")
    assert all(parameter.dtype == torch.float32 for parameter in parameters)
    assert exact[0]["test_loss"] == rounded[0]["test_loss"]  # evaluated in 32 bits
    assert 0 < abs(exact[-1]["test_loss"] - rounded[-1]["test_loss"]) < 0.3
    assert exact[-1]["test_loss"] < exact[0]["test_loss"] - 5


@pytest.mark.slow
@pytest.mark.usefixtures("bfloat16")
def test_recorded_in_bfloat16_is_eager_in_bfloat16_to_the_last_bit():
    _, eager = trained(precision="bf16-mixed", engine="eager")
    history, recorded = trained(precision="bf16-mixed", engine="recorded")
    assert history.engine.startswith("recorded: ")
    assert all(map(torch.equal, eager, recorded))


@pytest.mark.slow
@pytest.mark.usefixtures("bfloat16")
def test_compiled_in_bfloat16_is_kept():
    history, _ = trained(precision="bf16-mixed", engine="compiled")
    assert history.engine.startswith("compiled: ")


def test_a_precision_that_is_none_is_refused():
    with pytest.raises(ValueError, match="precision is one of 32, bf16-mixed, not 'half'"):
        trained(precision="half")


def test_a_machine_without_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(precision, "_has_bfloat16", lambda _: False)
    check_precision("32", CPU)
    with pytest.raises(ValueError, match="which this cpu does not have: take 32"):
        check_precision("bf16-mixed", CPU)


def subnormal(adam):
    """Count what is not 0 and below the smallest normal number in the moments."""
    moments = torch.cat([state[name].flatten() for state in adam.state.values() for name in ("exp_avg", "exp_avg_sq")])
    return int(((moments != 0) & (moments.abs() < torch.finfo(moments.dtype).tiny)).sum())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flushing_moments_changes_no_parameter_and_leaves_none_subnormal(dtype):
    """The gradient of one weight is 0 after the first step; 10,000 steps take even a double below 1e-308."""
    adams, weights = [], []
    for flushed in (False, True):
        weight = torch.ones(2, dtype=dtype, requires_grad=True)
        adam = torch.optim.Adam([weight], fused=True)
        for step in range(10_000):
            weight.grad = torch.tensor([float(step == 0), (-1.0) ** step], dtype=dtype)
            adam.step()
            if flushed and step % BETWEEN_FLUSHES == 0:
                flush_subnormal(adam)
                assert subnormal(adam) == 0
        adams.append(adam)
        weights.append(weight)
    assert torch.equal(*weights)
    assert subnormal(adams[0]) == 1
    # Even what decays like Adam's first moment from just above what is flushed is normal at the next flush.
    assert FLUSHED * 0.9**BETWEEN_FLUSHES > 1


@pytest.mark.slow
def test_no_moment_of_a_training_is_subnormal():
    """A pixel that is never on again after the first step."""
    x, adams = torch.rand(64, 1, 4, 4), []
    vae = VAE(priors.Normal(2), encoders.Normal((1, 4, 4), 2), decoders.Bernoulli(2, (1, 4, 4), grey=True))

    def optimizer(parameters):
        adams.append(torch.optim.Adam(parameters, fused=True))
        return adams[0]

    def on_step(step, _):
        if step == 0:
            x[:, 0, 0, 0] = 0.0

    fit(vae.model, vae.guide, x, epochs=300, batch_size=16, optimizer=optimizer, on_step=on_step)
    of_weights = adams[0].state[next(vae.encoder.parameters())]["exp_avg"]
    assert (of_weights[:, 0] == 0).all()
    assert (of_weights[:, 1:] != 0).any()
    assert subnormal(adams[0]) == 0
