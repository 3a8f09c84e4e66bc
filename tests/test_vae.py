import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from all_cases import cases
from part_cases import SHAPE, D
from pyro import poutine
from scipy import stats
from torch import nn
from torch.nn.functional import normalize

from pyro_vae import VAE, decoders, distributions, encoders, fit, priors


def _with_plain_partners():
    """Each part once, the others normal."""
    normal = {case.name: case for case in cases("priors", "encoders", "decoders") if case.name.endswith("-normal")}
    prior, encoder = normal["prior-normal"], normal["encoder-normal"]
    decoder = next(case for case in cases("decoders") if case.name == "decoder-normal-scale-1.0")
    flat = [case for case in cases("priors", "encoders") if case.event(D) == (D,)]
    return [
        *[(case, encoder, decoder) for case in flat if case.kind == "priors"],
        *[(prior, case, decoder) for case in flat if case.kind == "encoders"],
        *[(prior, encoder, case) for case in cases("decoders")],
    ]


every_combination = pytest.mark.parametrize(("prior", "encoder", "decoder"), _with_plain_partners(), ids=repr)


def assembled(prior, encoder, decoder):
    return VAE(prior.make(D), encoder.make(D), decoder.make(encoder.event(D)))


def small_vae(**kwargs):
    return VAE(priors.Normal(D), encoders.Normal(SHAPE, D), decoders.Bernoulli(D, SHAPE, grey=True, **kwargs))


def x(count=5):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


@every_combination
def test_sample_reconstruct_and_interpolate_have_their_shapes(prior, encoder, decoder):
    vae = assembled(prior, encoder, decoder)
    for values, shape in (
        (vae.sample(7), (7, *SHAPE)),
        (vae.sample(1), (1, *SHAPE)),
        (vae.reconstruct(x()), (5, *SHAPE)),
        (vae.reconstruct(x(), mean=False), (5, *SHAPE)),
        (vae.interpolate(x(), 1 - x(), steps=4), (4, 5, *SHAPE)),
        (vae.interpolate(x(), 1 - x()), (10, 5, *SHAPE)),
    ):
        assert values.shape == shape
        assert values.isfinite().all()
        assert not values.requires_grad


@every_combination
def test_the_programs_have_the_sites_of_the_equations(prior, encoder, decoder):
    vae, data = assembled(prior, encoder, decoder), x().round()
    guide = poutine.trace(vae.guide).get_trace(data)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(data)
    assert guide.stochastic_nodes == ["data", "z"]
    assert model.stochastic_nodes == ["data", "z"]
    assert model.observation_nodes == ["x"]
    for site, shape in (("z", (5, *encoder.event(D))), ("x", (5, *SHAPE))):
        assert model.nodes[site]["fn"].batch_shape == (5,)
        assert model.nodes[site]["value"].shape == shape
    assert torch.equal(model.nodes["x"]["value"], data)
    assert guide.nodes["z"]["value"] is model.nodes["z"]["value"]


def test_the_programs_return_the_data_and_the_codes():
    vae, data = small_vae(), x()
    assert vae.model(data) is data
    torch.manual_seed(3)
    z = vae.guide(data)
    torch.manual_seed(3)
    assert torch.equal(z, vae.encoder(data).rsample())


@pytest.mark.usefixtures("float64")
def test_the_log_probabilities_of_the_programs_are_those_of_the_distributions():
    vae = VAE(priors.Normal(D), encoders.Normal(SHAPE, D), decoders.Normal(D, SHAPE, scale=0.5))
    data = x().double()
    guide = poutine.trace(vae.guide).get_trace(data)
    z = guide.nodes["z"]["value"].detach()
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(data)
    mean, log_variance = vae.encoder.network(data).detach().unbind(-2)
    decoded = vae.decoder.network(z).detach()
    expected = stats.norm.logpdf(z).sum() + stats.norm.logpdf(data, decoded, 0.5).sum()
    assert model.log_prob_sum().item() == pytest.approx(expected, rel=1e-12)
    expected = stats.norm.logpdf(z, mean, (log_variance / 2).exp()).sum()
    assert guide.log_prob_sum().item() == pytest.approx(expected, rel=1e-12)


def test_sample_decodes_draws_of_the_prior():
    vae = small_vae()
    torch.manual_seed(3)
    z = torch.randn(7, D)
    torch.manual_seed(3)
    torch.testing.assert_close(vae.sample(7), vae.decoder.network(z).sigmoid())


def test_samples_follow_a_learned_prior():
    n, vae = 100_000, VAE(priors.Normal(1, learned=True), encoders.Normal(1, 1), decoders.Normal(1, 1))
    vae.prior.loc.data += 3
    vae.prior.log_scale.data += math.log(2)
    vae.decoder.network = nn.Identity()
    samples = vae.sample(n)
    # 4 standard errors of 100,000 draws of N(3, 2^2).
    assert abs(samples.mean().item() - 3) < 4 * 2 / math.sqrt(n)
    assert abs(samples.var().item() - 4) < 4 * 4 * math.sqrt(2 / n)


def test_reconstruct_decodes_the_posterior_mean_or_one_draw():
    vae, data = small_vae(), x()
    mean = vae.encoder.network(data)[..., 0, :]
    torch.testing.assert_close(vae.reconstruct(data), vae.decoder.network(mean).sigmoid())
    torch.manual_seed(3)
    z = vae.encoder(data).sample()
    torch.manual_seed(3)
    torch.testing.assert_close(vae.reconstruct(data, mean=False), vae.decoder.network(z).sigmoid())
    assert not torch.equal(vae.reconstruct(data), vae.reconstruct(data, mean=False))


@every_combination
def test_an_interpolation_ends_in_the_reconstructions(prior, encoder, decoder):
    vae, a, b = assembled(prior, encoder, decoder), x(), 1 - x()
    torch.manual_seed(1)  # a flow's mean is an average of draws
    line = vae.interpolate(a, b, steps=3)
    torch.manual_seed(1)
    torch.testing.assert_close(line[0], vae.reconstruct(a))
    torch.testing.assert_close(line[-1], vae.reconstruct(b))
    assert not torch.allclose(line[0], line[-1], atol=1e-4)


def test_an_interpolation_is_a_straight_line_of_codes_in_equal_steps():
    vae, a, b = small_vae(), x(), 1 - x()
    start, end = vae.encoder(a).mean, vae.encoder(b).mean
    line = vae.interpolate(a, b, steps=5)
    for i in range(5):
        torch.testing.assert_close(line[i], vae.decoder((1 - i / 4) * start + i / 4 * end).mean)


def test_an_interpolation_of_two_steps_is_its_two_ends():
    vae, a, b = small_vae(), x(), 1 - x()
    torch.testing.assert_close(vae.interpolate(a, b, steps=2), torch.stack([vae.reconstruct(a), vae.reconstruct(b)]))


@pytest.mark.parametrize("n", [0, -1])
def test_fewer_than_1_sample_is_refused(n):
    with pytest.raises(ValueError, match=f"at least 1, not {n}"):
        small_vae().sample(n)


@pytest.mark.parametrize("steps", [1, 0, -1])
def test_fewer_than_2_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"at least 2, not {steps}"):
        small_vae().interpolate(x(), x(), steps=steps)


def test_ends_of_different_shapes_are_refused_with_both():
    with pytest.raises(ValueError, match=r"\(5, 2, 4, 3\) and \(1, 2, 4, 3\)"):
        small_vae().interpolate(x(5), x(1))


@pytest.mark.parametrize("method", ["reconstruct", "interpolate", "guide"])
def test_data_of_another_shape_are_refused_with_both(method):
    wrong = torch.zeros(5, 24)
    arguments = (wrong, wrong) if method == "interpolate" else (wrong,)
    with pytest.raises(ValueError, match=r"\(\*batch, 2, 4, 3\), but got \(5, 24\)"):
        getattr(small_vae(), method)(*arguments)


@pytest.mark.parametrize("name", ["prior", "encoder", "decoder"])
@pytest.mark.parametrize("value", [lambda: None, "Normal", None, torch.distributions.Normal(0, 1)])
def test_a_part_that_is_no_module_is_refused(name, value):
    parts = {"prior": priors.Normal(D), "encoder": encoders.Normal(SHAPE, D), "decoder": decoders.Normal(D, SHAPE)}
    with pytest.raises(TypeError, match=rf"the {name} must be a torch\.nn\.Module"):
        VAE(**parts | {name: value})


def test_a_class_in_place_of_a_part_is_refused_with_the_fix():
    with pytest.raises(TypeError, match=r"the prior must be .* make one: Normal\(\.\.\.\)"):
        VAE(priors.Normal, encoders.Normal(SHAPE, D), decoders.Normal(D, SHAPE))


def test_the_state_dict_makes_two_vaes_one():
    one, other = small_vae(), small_vae()
    assert not torch.equal(one.reconstruct(x()), other.reconstruct(x()))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.reconstruct(x()), other.reconstruct(x()))


def test_parts_of_ones_own_serve():
    class Gamma(nn.Module):
        def forward(self):
            return dist.Gamma(torch.full((D,), 2.0), torch.ones(D)).to_event(1)

    class LogNormal(encoders.Normal):
        def forward(self, x):
            base = super().forward(x).base_dist
            return dist.LogNormal(base.loc, base.scale).to_event(1)

    vae = VAE(Gamma(), LogNormal(SHAPE, D), decoders.ContinuousBernoulli(D, SHAPE))
    assert vae.sample(4).shape == (4, *SHAPE)
    assert math.isfinite(pyro.infer.Trace_ELBO().loss(vae.model, vae.guide, x()))


def test_tokens_are_shown_as_the_most_probable_and_not_as_a_mean_between_them():
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Categorical(2, 6, categories=9))
    data = torch.randint(0, 9, (5, 6)).float()
    logits = vae.decoder(vae.encoder(data).mean).base_dist.logits
    assert torch.equal(vae.reconstruct(data), logits.argmax(-1).float())
    masked = VAE(vae.prior, vae.encoder, decoders.Masked(vae.decoder))
    assert torch.equal(masked.reconstruct(data), vae.reconstruct(data))
    samples = vae.sample(20)
    assert torch.equal(samples, samples.round())
    assert torch.equal(vae.interpolate(data, data + 0.0)[0], vae.reconstruct(data))


@pytest.mark.parametrize(
    "use",
    [lambda vae, _: vae.sample(3), lambda vae, x: vae.reconstruct(x), lambda vae, x: vae.interpolate(x, x.flip(0))],
)
def test_what_a_vae_makes_is_made_in_evaluation_mode(use):
    """Dropout would make it random, and batch normalization normalize by the few data given, and learn from them."""
    torch.manual_seed(0)
    layers = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2 * 2), nn.Unflatten(-1, (2, 2))
    encoder = encoders.Normal(6, 2, network=lambda *_: nn.Sequential(*layers))
    decoder = decoders.Normal(2, 6, network=lambda *_: nn.Sequential(nn.Linear(2, 6), nn.Dropout(0.5)))
    vae = VAE(priors.Normal(2), encoder, decoder)
    layers[2].eval()  # of whom each keeps its own mode
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    made = []
    for each in (vae, copy.deepcopy(vae).eval()):
        torch.manual_seed(1)
        made.append(use(each, torch.eye(6)))
    assert torch.equal(*made)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert vae.training
    assert layers[1].training
    assert not layers[2].training


class Cauchy(nn.Module):
    """A part of Cauchy distributions, which have no mean, around what comes in."""

    def forward(self, value):
        return dist.Cauchy(value, 1.0).to_event(1)


def test_a_part_without_a_mean_is_refused_where_a_mean_is_shown():
    data = torch.randn(5, 2)
    tails = VAE(priors.Normal(2), encoders.Normal(2, 2), Cauchy())
    for use in (lambda: tails.sample(3), lambda: tails.reconstruct(data), lambda: tails.interpolate(data, -data)):
        with pytest.raises(TypeError, match="Cauchy has no finite mean: take draws"):
            use()
    codes = VAE(priors.Normal(2), Cauchy(), decoders.Normal(2, 2))
    for use in (lambda: codes.reconstruct(data), lambda: codes.interpolate(data, -data)):
        with pytest.raises(TypeError, match=r"reconstruct\(x, mean=False\)"):
            use()
    assert codes.reconstruct(data, mean=False).isfinite().all()
    assert codes.sample(3).isfinite().all()


def test_a_mean_on_several_spheres_has_the_length_1_on_each():
    posterior = distributions.PowerSpherical(normalize(torch.randn(4, 3, 2), dim=-1), torch.ones(4, 3)).to_event(1)
    lengths = distributions.centre_of(posterior).norm(dim=-1)
    assert torch.allclose(lengths, torch.ones(4, 3))


class OfSquares(VAE):
    """Its encoder sees x and its square, its decoder twice the code."""

    def model(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder(2 * z), obs=x)

    def guide(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encoder(torch.cat([x, x**2], -1)))


def test_programs_of_a_subclass_are_trained_and_what_would_not_run_them_is_refused():
    vae = OfSquares(priors.Normal(2), encoders.Normal(6, 2), decoders.Normal(2, 3))
    assert len(fit(vae.model, vae.guide, torch.rand(20, 3), epochs=1)) == 2
    x = torch.rand(20, 3)
    for call, arguments in ((vae.sample, (2,)), (vae.reconstruct, (x,)), (vae.interpolate, (x, x))):
        with pytest.raises(TypeError, match=r"OfSquares has its own model, but .* write a \w+ for it, too"):
            call(*arguments)
