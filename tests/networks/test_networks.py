import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from pyro_vae.networks import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    FillMissing,
    GRUDecoder,
    GRUEncoder,
    as_image_shape,
    as_shape,
    check_event_shape,
    clip_log_variance,
    deviation,
    halved_sizes,
    soft_clip,
    with_output_bias,
)

IMAGES = [(7, 9), (28, 28), (1, 28, 28), (3, 28, 28), (3, 7, 9), (2, 3, 8, 5), (1, 1, 1)]
NETWORKS = [
    *[(MLP, in_shape, out_shape) for in_shape, out_shape in [(7, 4), ((1, 5, 4), (2, 3)), ((2, 3), (1, 5, 4))]],
    *[(partial(MLP, hidden=hidden), 7, (2, 3)) for hidden in [(), 5, (5, 6), (5, 6, 7)]],
    *[(ConvEncoder, shape, (2, 3)) for shape in IMAGES],
    *[(ConvDecoder, (5,), shape) for shape in IMAGES],
    (partial(ConvEncoder, channels=4), (1, 7, 9), 3),
    (partial(ConvEncoder, channels=(2, 3, 4)), (1, 28, 28), 3),
    (partial(ConvDecoder, channels=4), (2, 3), (1, 7, 9)),
    (partial(ConvDecoder, channels=(4, 3, 2)), 3, (1, 28, 28)),
    *[(partial(MLP, gated=True, hidden=hidden), (2, 3), (2, 3)) for hidden in [(), 5, (5, 6)]],
    *[(partial(ConvEncoder, channels=channels, residual=True), (2, 7, 9), (2, 3)) for channels in [4, (4, 3)]],
    *[(partial(ConvDecoder, channels=channels, residual=True), (2, 3), (2, 7, 9)) for channels in [4, (4, 3)]],
    (partial(ConvEncoder, residual=True), (8, 8), 3),
    (partial(ConvDecoder, residual=True), 3, (8, 8)),
]
# Without an activation to choose.
OTHERS = [
    *[(partial(FillMissing, mask=mask), (1, 4, 4), (2, 3)) for mask in (True, False)],
    (partial(FillMissing, network=ConvEncoder, mask=True), (1, 8, 8), (2, 3)),
    (with_output_bias(MLP, torch.ones(2, 3)), 4, (2, 3)),
    *[(partial(GRUEncoder, hidden=6), in_shape, (2, 3)) for in_shape in [7, (7,), (7, 2)]],
    (partial(GRUDecoder, hidden=6), (2, 2), (4, 7)),
    (partial(GRUDecoder, hidden=6), 3, 7),
    *[(partial(GRUDecoder, hidden=6, time=time), 3, (2, 7, 4)) for time in (-3, -2, -1, 0, 1, 2)],
]


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (1, 1)])
@pytest.mark.parametrize(("network", "in_shape", "out_shape"), NETWORKS + OTHERS)
def test_networks_keep_every_leading_dimension(network, in_shape, out_shape, batch):
    x = torch.zeros(*batch, *as_shape(in_shape))
    assert network(in_shape, out_shape)(x).shape == (*batch, *as_shape(out_shape))


@pytest.mark.parametrize(("network", "in_shape", "out_shape"), NETWORKS + OTHERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_reach_every_parameter_in_either_precision(network, in_shape, out_shape, dtype):
    built = network(in_shape, out_shape).to(dtype)
    output = built(torch.randn(20, *as_shape(in_shape), dtype=dtype))
    assert output.dtype == dtype
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("network", "in_shape", "out_shape"), NETWORKS + OTHERS)
def test_a_batched_call_is_the_calls_one_by_one(network, in_shape, out_shape):
    built = network(in_shape, out_shape)
    x = torch.randn(2, 3, *as_shape(in_shape))
    one_by_one = torch.stack([torch.stack([built(datum) for datum in row]) for row in x])
    torch.testing.assert_close(built(x), one_by_one, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("network", "in_shape", "out_shape"), NETWORKS)
def test_every_output_depends_on_the_input_and_every_input_matters(network, in_shape, out_shape):
    built = network(in_shape, out_shape, activation=nn.Tanh)
    jacobian = torch.autograd.functional.jacobian(built, torch.randn(as_shape(in_shape)))
    jacobian = jacobian.reshape(math.prod(as_shape(out_shape)), -1)
    assert jacobian.any(1).all()
    assert jacobian.any(0).all()


@pytest.mark.parametrize(
    ("in_shape", "out_shape", "hidden", "count"),
    [
        (784, (2, 20), (400,), 785 * 400 + 401 * 40),
        ((1, 28, 28), 3, (50, 20), 785 * 50 + 51 * 20 + 21 * 3),
        (20, (1, 28, 28), 400, 21 * 400 + 401 * 784),
        (5, 3, (), 6 * 3),
    ],
)
def test_mlp_has_the_parameters_of_its_layers(in_shape, out_shape, hidden, count):
    assert parameter_count(MLP(in_shape, out_shape, hidden=hidden)) == count


def test_mlp_has_one_hidden_layer_of_400_unless_told():
    assert parameter_count(MLP(784, 10)) == 785 * 400 + 401 * 10


def test_conv_networks_have_the_parameters_of_their_layers():
    # 7x9 halves to 4x5; a 3x3 convolution has 9 weights for each pair of channels, and a bias.
    assert parameter_count(ConvEncoder((1, 7, 9), 3, channels=4)) == (9 * 4 + 4) + (4 * 4 * 5 + 1) * 3
    assert parameter_count(ConvDecoder(3, (1, 7, 9), channels=4)) == 4 * (4 * 4 * 5) + (9 * 4 + 1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("hidden", [(), []])
def test_mlp_without_hidden_layers_is_linear(hidden):
    network = MLP((2, 3), (4,), hidden=hidden)
    a, b = torch.randn(2, 5, 2, 3)
    torch.testing.assert_close(network(0.3 * a + 0.7 * b), 0.3 * network(a) + 0.7 * network(b), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_mlp_is_matrix_products_with_the_activation_between():
    network = MLP((2, 3), (2, 2), hidden=(5, 4), activation=nn.Tanh)
    weights = [parameter.detach().numpy() for parameter in network.parameters()]
    x = torch.randn(7, 2, 3)
    expected = x.flatten(1).numpy()
    for weight, bias in [weights[0:2], weights[2:4]]:
        expected = np.tanh(expected @ weight.T + bias)
    expected = (expected @ weights[4].T + weights[5]).reshape(7, 2, 2)
    np.testing.assert_allclose(network(x).detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("network", [MLP, ConvEncoder, ConvDecoder])
@pytest.mark.parametrize(
    ("in_shape", "out_shape"), [((1, 8, 8), 2.5), (2.5, (1, 8, 8)), ((1, 8, True), (1, 8, 8)), ((1, 8, 8), (1, 8, "8"))]
)
def test_networks_refuse_sizes_that_are_no_integers(network, in_shape, out_shape):
    with pytest.raises(TypeError):
        network(in_shape, out_shape)


@pytest.mark.parametrize("network", [MLP, ConvEncoder, ConvDecoder])
@pytest.mark.parametrize(("in_shape", "out_shape"), [((1, 8, 8), 0), ((1, 0, 8), (1, 8, 8)), ((1, 8, 8), (-1, 8, 8))])
def test_networks_refuse_sizes_below_1(network, in_shape, out_shape):
    with pytest.raises(ValueError, match="at least 1"):
        network(in_shape, out_shape)


@pytest.mark.parametrize("hidden", [0, (4, -1), (0,)])
def test_mlp_refuses_a_width_below_1(hidden):
    with pytest.raises(ValueError, match="hidden must be at least 1"):
        MLP(3, 2, hidden=hidden)


@pytest.mark.parametrize("hidden", [4.0, (4, 2.5), "44"])
def test_mlp_refuses_a_width_that_is_no_integer(hidden):
    with pytest.raises(TypeError, match="hidden must be an integer"):
        MLP(3, 2, hidden=hidden)


def test_conv_networks_refuse_vectors_and_name_the_way_out():
    with pytest.raises(ValueError, match=r"ConvEncoder needs images.*\(784,\).*MLP"):
        ConvEncoder(784, 2)
    with pytest.raises(ValueError, match=r"ConvDecoder needs images.*\(784,\).*MLP"):
        ConvDecoder(2, 784)


def test_soft_clip_is_the_identity_within_the_bound():
    inside = torch.linspace(-10, 10, 2001)
    assert torch.equal(soft_clip(inside), inside)
    assert torch.equal(soft_clip(inside / 5, bound=2.0), inside / 5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("bound", [2.0, 10.0])
def test_soft_clip_grows_as_the_logarithm_beyond_the_bound(bound):
    size = np.geomspace(bound, 1e6, 200)
    expected = bound + np.log1p(size - bound)
    np.testing.assert_allclose(soft_clip(torch.tensor(size), bound), expected, rtol=1e-14)
    np.testing.assert_allclose(soft_clip(torch.tensor(-size), bound), -expected, rtol=1e-14)


@pytest.mark.usefixtures("float64")
def test_soft_clip_increases():
    grid = torch.cat([torch.linspace(-1e3, 1e3, 20_001), torch.logspace(3.1, 30, 100)])
    assert (soft_clip(grid).diff() > 0).all()
    assert (soft_clip(-grid.flip(0)).diff() > 0).all()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("side", [-1.0, 1.0])
@pytest.mark.parametrize(("step", "slope"), [(-1e-9, 1.0), (0.0, 1.0), (1e-9, 1.0), (1.0, 1 / 2), (3.0, 1 / 4)])
def test_soft_clip_has_a_continuous_slope_at_the_bound(side, step, slope):
    value = torch.tensor(side * (10 + step), requires_grad=True)
    (gradient,) = torch.autograd.grad(soft_clip(value), value)
    assert gradient.item() == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("size", [0.0, 1.0, 10.0, 11.0, 1e4, 1e30])
def test_soft_clip_neither_overflows_nor_loses_the_gradient_in_float32(size):
    value = torch.tensor([-size, size], requires_grad=True)
    clipped = soft_clip(value)
    (gradient,) = torch.autograd.grad(clipped.sum(), value)
    assert clipped.isfinite().all()
    assert clipped.exp().isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient > 0).all()


@pytest.mark.usefixtures("float64")
def test_log_variances_are_clipped_below_30_and_above_10():
    inside = torch.linspace(-30, 10, 2001)
    assert torch.equal(clip_log_variance(inside), inside)
    beyond = torch.tensor([-1e4, -33.0, 12.0, 1e4])
    expected = torch.tensor([-30 - math.log(9971), -30 - math.log(4), 10 + math.log(3), 10 + math.log(9991)])
    torch.testing.assert_close(clip_log_variance(beyond), expected)
    torch.testing.assert_close(deviation(beyond), (expected / 2).exp())


@pytest.mark.parametrize("size", [-1e6, -1e4, -30.0, -20.0, 0.0, 1e4, 1e30])
def test_the_square_of_a_deviation_fits_float32_and_has_a_gradient(size):
    output = torch.tensor(size, requires_grad=True)
    variance = deviation(output) ** 2
    (gradient,) = torch.autograd.grad(variance.log(), output)
    assert torch.finfo(torch.float32).tiny < variance.item() < math.inf
    assert 0 < gradient.item() <= 1.001


def test_a_confident_encoder_is_reached_as_fast_as_without_clipping():
    """Minimize the bound's part in a log-variance, (p e^l - l) / 2, where p = 1e10: the optimum is -23."""
    excess = {}
    for name, clip in (("clipped", clip_log_variance), ("free", lambda value: value)):
        output = torch.zeros((), requires_grad=True)
        optimizer = torch.optim.Adam([output], lr=0.05, betas=(0.9, 0.9))
        for _ in range(1200):
            optimizer.zero_grad()
            ((1e10 * clip(output).exp() - clip(output)) / 2).backward()
            optimizer.step()
        excess[name] = (1e10 * clip(output).exp() - clip(output) - 1 - math.log(1e10)).item() / 2
    assert excess["clipped"] == excess["free"]
    assert excess["clipped"] < 0.05


@pytest.mark.parametrize(
    ("shape", "sizes"), [(7, (7,)), ((7,), (7,)), ([1, 2, 3], (1, 2, 3)), (torch.Size([4, 5]), (4, 5))]
)
def test_as_shape_is_a_tuple(shape, sizes):
    assert as_shape(shape) == sizes
    assert type(as_shape(shape)) is tuple


@pytest.mark.parametrize("shape", [2.5, (2.0,), True, (1, True), "ab", None])
def test_as_shape_refuses_what_is_no_integer_by_its_name(shape):
    with pytest.raises(TypeError, match="latent_dim must be an integer"):
        as_shape(shape, "latent_dim")


@pytest.mark.parametrize("shape", [(), [], 0, -1, (3, 0)])
def test_as_shape_refuses_sizes_below_1_by_its_name(shape):
    with pytest.raises(ValueError, match=r"latent_dim must (be at least 1|have at least one size)"):
        as_shape(shape, "latent_dim")


@pytest.mark.parametrize("shape", [7, (7,), [7]])
def test_as_image_shape_refuses_fewer_than_two_dimensions(shape):
    with pytest.raises(ValueError, match="ConvEncoder needs images"):
        as_image_shape(shape, "ConvEncoder")


@pytest.mark.parametrize("batch", [(), (5,), (3, 5)])
def test_check_event_shape_accepts_any_leading_dimensions(batch):
    check_event_shape(torch.zeros(*batch, 1, 8, 8), (1, 8, 8), "encoders.Normal", "x")


@pytest.mark.parametrize("shape", [(), (8,), (8, 8), (64,), (5, 64), (1, 8, 9), (2, 1, 8, 1, 8)])
def test_check_event_shape_refuses_any_other_with_both_shapes(shape):
    with pytest.raises(ValueError, match=r"encoders.Normal was built for x of shape \(\*batch, 1, 8, 8\)") as caught:
        check_event_shape(torch.zeros(shape), (1, 8, 8), "encoders.Normal", "x")
    assert f"got {shape}" in str(caught.value)


@pytest.mark.parametrize("times", [0, 1, 2, 4])
@pytest.mark.parametrize("size", [(1, 2), (7, 9), (28, 28), (3, 32)])
def test_halved_sizes_are_those_of_convolutions_of_stride_2(size, times):
    image, sizes = torch.zeros(1, 1, *size), [size]
    for _ in range(times):
        image = nn.functional.conv2d(image, torch.zeros(1, 1, 3, 3), stride=2, padding=1)
        sizes.append(tuple(image.shape[-2:]))
    assert halved_sizes(size, times) == sizes


@pytest.mark.usefixtures("float64")
def test_gated_layers_are_a_linear_map_times_the_sigmoid_of_another():
    network = MLP((2, 3), 2, hidden=5, gated=True)
    weight, bias, last, last_bias = [parameter.detach().numpy() for parameter in network.parameters()]
    x = torch.randn(7, 2, 3)
    a, b = np.split(x.flatten(1).numpy() @ weight.T + bias, 2, axis=1)
    expected = (a / (1 + np.exp(-b))) @ last.T + last_bias
    np.testing.assert_allclose(network(x).detach(), expected, rtol=0, atol=1e-12)


def test_an_output_bias_is_added_and_learned_from_a_copy():
    bias = torch.randn(2, 3)
    network = with_output_bias(MLP, bias)(4, (2, 3))
    x = torch.randn(5, 4)
    torch.testing.assert_close(network(x), network.network(x) + bias)
    network.bias.data += 1
    assert not torch.equal(network.bias, bias)
    assert isinstance(network.bias, nn.Parameter)


@pytest.mark.parametrize(("shape", "bias"), [(3, torch.ones(3)), ([2, 3], torch.ones(2, 3))])
def test_an_output_bias_takes_shapes_as_its_network_does(shape, bias):
    network = with_output_bias(partial(MLP, hidden=()), bias)(4, shape)
    x = torch.randn(5, 4)
    torch.testing.assert_close(network(x) - network.network(x), bias.expand(5, *bias.shape))


def test_an_output_bias_of_another_shape_is_refused_with_both():
    with pytest.raises(ValueError, match=r"output has shape \(2, 3\), but its bias \(3,\)"):
        with_output_bias(MLP, torch.zeros(3))(4, (2, 3))


@pytest.mark.parametrize("mask", [True, False])
def test_what_is_missing_is_filled_with_0_and_told_where_wished(mask):
    network = FillMissing(6, 3, mask=mask)
    x = torch.randn(5, 6)
    observed = torch.rand(5, 6) < 0.6
    filled = torch.where(observed, x, 0.0)
    given = torch.stack([filled, observed.float()], -2) if mask else filled
    torch.testing.assert_close(network(x.masked_fill(~observed, math.nan)), network.network(given))


@pytest.mark.parametrize("network", [ConvEncoder, ConvDecoder])
def test_a_residual_network_without_its_blocks_is_the_plain_one(network):
    residual = network((1, 7, 9), (1, 7, 9), channels=4, residual=True)
    plain = network((1, 7, 9), (1, 7, 9), channels=4)
    block = next(layer for layer in residual.layers if hasattr(layer, "layers"))
    nn.init.zeros_(block.layers[-1].weight)
    nn.init.zeros_(block.layers[-1].bias)
    outer = [parameter for name, parameter in residual.named_parameters() if name.count("layers") == 1]
    for one, other in zip(plain.parameters(), outer, strict=True):
        one.data = other.data
    x = torch.randn(5, 1, 7, 9)
    torch.testing.assert_close(residual(x), plain(x))


def test_gru_encoder_reads_tokens_by_their_number_and_in_their_order():
    network = GRUEncoder(4, 3, categories=10)
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 9.0]])
    y = network(x)
    assert (y[0] != y[1]).all()
    assert (y[0] != y[2]).all()
    assert all(parameter.requires_grad for parameter in network.embedding.parameters())
    assert network(x.reshape(3, 1, 4)).shape == (3, 1, 3)


def test_gru_decoder_puts_the_length_where_told():
    first, last = GRUDecoder(3, (7, 2), time=-2), GRUDecoder(3, (2, 7))
    last.load_state_dict(first.state_dict())
    z = torch.randn(5, 3)
    torch.testing.assert_close(first(z), last(z).transpose(1, 2))


def test_gru_decoder_is_causal_in_nothing_but_its_state():
    short, long = GRUDecoder(3, (2, 4)), GRUDecoder(3, (2, 9))
    long.load_state_dict(short.state_dict())
    z = torch.randn(5, 3)
    torch.testing.assert_close(long(z)[..., :4], short(z))


def test_gru_networks_refuse_what_is_no_sequence():
    with pytest.raises(ValueError, match=r"\(length,\) or \(length, features\), not \(1, 8, 8\)"):
        GRUEncoder((1, 8, 8), 3)
    with pytest.raises(ValueError, match=r"\(length,\) for tokens, not \(8, 2\)"):
        GRUEncoder((8, 2), 3, categories=5)
    with pytest.raises(ValueError, match="categories must be at least 1"):
        GRUEncoder(8, 3, categories=-1)
    with pytest.raises(ValueError, match=r"has no dimension 2"):
        GRUDecoder(3, (2, 7), time=2)
    with pytest.raises(TypeError, match=r"time must be an integer, not 0\.5"):
        GRUDecoder(3, (2, 7), time=0.5)


@pytest.mark.parametrize("network", [GRUEncoder, GRUDecoder])
def test_gru_networks_refuse_sizes_that_are_none(network):
    with pytest.raises(ValueError, match="hidden must be at least 1"):
        network(3, 7, hidden=0)
    with pytest.raises(TypeError, match="hidden must be an integer"):
        network(3, 7, hidden=2.5)


@pytest.mark.parametrize("token", [-1.0, 5.0])
def test_a_gru_encoder_refuses_tokens_that_are_none_of_its_categories(token):
    x = torch.tensor([[0.0, 4.0, 2.0], [1.0, token, 3.0]])
    found = f"{min(0, token):g} to {max(4, token):g}"
    with pytest.raises(ValueError, match=rf"takes tokens from 0 to 4, not {found}: number them from 0, or give more"):
        GRUEncoder(3, 2, categories=5)(x)
