"""Semi-amortized inference: where it ends, that its gradients are exact, and what it refuses."""

import contextlib
import copy
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from all_cases import cases
from part_cases import array, built, inputs
from partners import vae_around
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy import stats
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae import VAE, data, decoders, encoders, evaluate, fit, log_likelihood, priors
from pyro_vae.encoders import wrappers
from pyro_vae.networks import MLP, FillMissing
from pyro_vae.objectives import IWAE

SHAPE = (1, 8, 8)
LINEAR, SMALL = partial(MLP, hidden=()), partial(MLP, hidden=(16,))
LOSS_NAMES = ["Trace_ELBO", "TraceMeanField_ELBO", "IWAE", "IWAE in chunks"]
WRAPPERS = (encoders.ScoreFunction, encoders.SemiAmortized)
WRAPPED = [case for case in cases("encoders") if case.family not in WRAPPERS]
REFUSED = {
    encoders.Bernoulli,
    encoders.Beta,
    encoders.Delta,
    encoders.Dirichlet,
    encoders.Gamma,
    encoders.MixtureOfNormals,
    encoders.OneHotCategorical,
    encoders.PowerSpherical,
}


def refining(prior, encoder, decoder, **own):
    """A VAE of a semi-amortized encoder, which refines by the VAE's own prior and decoder."""
    return VAE(prior, encoders.SemiAmortized(encoder, prior, decoder, **own), decoder)


def small_vae(shape=SHAPE, **own):
    torch.manual_seed(0)
    parts = priors.Normal(3, learned=True), encoders.Normal(shape, 3, SMALL), decoders.Normal(3, shape, SMALL)
    return refining(*parts, **own)


def digits(count=50):
    return data.load("digits").train[:count]


def bound_of(vae, x):
    """A sampled bound of each datum, its KL in closed form where there is one."""
    posterior, prior = vae.encoder(x), vae.prior()
    z = posterior.rsample()
    try:
        kl = kl_divergence(posterior, prior)
    except NotImplementedError:
        kl = posterior.log_prob(z) - prior.log_prob(z)
    return vae.decoder(z).log_prob(x) - kl


# Where the steps lead


def linear_vae(seed, scale=0.7, **own):
    """A linear VAE whose encoder starts anywhere."""
    torch.manual_seed(seed)
    parts = priors.Normal(2), encoders.Normal(3, 2, LINEAR), decoders.Normal(2, 3, LINEAR, scale=scale)
    nn.init.normal_(parts[1].network.layers[0].weight, std=0.5)
    return refining(*parts, **own), *map(array, parts[2].network.layers[0].parameters())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_small_steps_reach_the_exact_posterior_of_a_linear_model(seed):
    """p(z|x) = N(A^-1 W^T (x - b) / s^2, A^-1), A = I + W^T W / s^2; the best diagonal covariance is 1 / diag(A).

    The outputs vary around the optimum by about the root of half a step size, 0.1; the mean over 200 refinements of a
    datum by 0.007.
    """
    vae, weight, bias = linear_vae(seed, steps=1000, step_size=0.02, clip_norm=math.inf)
    x = torch.randn(10, 3)
    with torch.no_grad():
        posterior = vae.encoder(x.expand(200, 10, 3))
    precision = np.eye(2) + weight.T @ weight / 0.7**2
    exact = (array(x) - bias) @ weight / 0.7**2 @ np.linalg.inv(precision)
    start = vae.encoder.encoder(x)
    assert np.abs(array(start.mean) - exact).max() > 0.5
    np.testing.assert_allclose(array(posterior.mean.mean(0)), exact, atol=0.03)
    log_variance = array(posterior.variance.log().mean(0))
    np.testing.assert_allclose(log_variance, np.broadcast_to(-np.log(np.diag(precision)), (10, 2)), atol=0.03)


@pytest.mark.usefixtures("float64")
def test_the_log_likelihood_by_a_refined_guide_is_the_exact_one():
    vae, weight, bias = linear_vae(seed=1, steps=10)
    x = torch.randn(5, 3)
    exact = stats.multivariate_normal.logpdf(array(x), bias, weight @ weight.T + 0.7**2 * np.eye(3)).mean()
    assert log_likelihood(vae.model, vae.guide, x, samples=4000) == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("epochs", [0, 3])
@pytest.mark.parametrize("likelihood", ["cross-entropy", "normal"])
def test_the_default_steps_better_the_bound_of_digits(likelihood, epochs):
    """By more than 4 standard errors of the mean over 200 test images of 20 draws each."""
    torch.manual_seed(0)
    decoder = {
        "cross-entropy": partial(decoders.Bernoulli, grey=True),
        "normal": partial(decoders.Normal, scale=0.1),
    }[likelihood](10, SHAPE)
    before = VAE(priors.Normal(10), encoders.Normal(SHAPE, 10, SMALL), decoder)
    fit(before.model, before.guide, digits(None), epochs=epochs, batch_size=64)
    after = refining(before.prior, before.encoder, decoder)
    x = data.load("digits").test[:200]
    with torch.no_grad():
        gain = (bound_of(after, x.expand(20, *x.shape)) - bound_of(before, x.expand(20, *x.shape))).mean(0)
    assert gain.mean() > 4 * gain.std() / math.sqrt(len(x))


def test_a_step_is_no_longer_than_it_may_be():
    vae = small_vae(steps=1, step_size=0.3, clip_norm=0.5)
    x = 10 * torch.rand(5, *SHAPE)
    before, after = vae.encoder.encoder(x), vae.encoder(x)
    moved = torch.stack([after.mean - before.mean, 2 * (after.stddev.log() - before.stddev.log())])
    torch.testing.assert_close(moved.square().sum((0, 2)).sqrt(), torch.full((5,), 0.15))


def test_each_step_draws_noise_of_its_own():
    vae, x = small_vae(), digits(5)
    torch.manual_seed(1)
    vae.encoder(x)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    for _ in range(vae.encoder.steps):
        torch.normal(torch.zeros(5, 3), torch.ones(5, 3))
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(vae.encoder(x).mean, vae.encoder(x).mean)


# Gradients


def worst_difference(vae, loss):
    """The largest relative error of a loss's derivative in a direction of each part's parameters."""
    start = copy.deepcopy(vae.state_dict())

    def value():
        torch.manual_seed(3)
        return loss()

    def moved(direction, by):
        with torch.no_grad():
            vae.load_state_dict(
                {name: t + by * direction[name] if name in direction else t for name, t in start.items()}
            )
            return value().item()

    errors = []
    for part in (vae.prior, vae.encoder, vae.decoder):
        wanted = {name: p for name, p in vae.named_parameters() if any(p is other for other in part.parameters())}
        if not wanted:
            continue
        vae.load_state_dict(start)
        gradients = dict(zip(wanted, torch.autograd.grad(value(), list(wanted.values())), strict=True))
        torch.manual_seed(4)
        direction = {name: torch.randn_like(p) for name, p in wanted.items()}
        slope = sum((gradients[name] * direction[name]).sum().item() for name in wanted)
        numeric = (moved(direction, 1e-6) - moved(direction, -1e-6)) / 2e-6
        errors.append(abs(slope - numeric) / (1e-2 + abs(numeric)))
    return max(errors)


def refined_case(case):
    vae, x = vae_around(case)
    for parameter in vae.parameters():  # also those that start from 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    return refining(vae.prior, vae.encoder, vae.decoder, steps=2), x[:3]


@pytest.mark.parametrize("case", WRAPPED, ids=repr)
def test_gradients_are_those_of_the_final_bound_or_the_encoder_is_refused(case):
    vae, x = refined_case(case)
    if case.family in REFUSED or getattr(vae.encoder.encoder, "straight_through", False):
        with pytest.raises(ValueError, match=rf"differentiates draws twice, .* {case.family.__name__}"):
            vae.encoder(x)
    else:
        assert worst_difference(vae, lambda: bound_of(vae, x).sum()) < 1e-4


@pytest.mark.parametrize("case", [case for case in WRAPPED if case.family in REFUSED - {encoders.Delta}], ids=repr)
def test_what_is_refused_would_have_no_gradient_or_a_wrong_one(case, monkeypatch):
    monkeypatch.setattr(wrappers, "_check_draws", lambda *_: None)
    vae, x = refined_case(case)
    with contextlib.suppress(NotImplementedError):  # torch says so itself
        assert worst_difference(vae, lambda: bound_of(vae, x).sum()) > 1e-2


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", cases("priors", "decoders"), ids=repr)
def test_every_prior_and_decoder_has_the_second_derivatives_that_the_steps_take(case):
    part = built(case)
    z = part().sample((4,)) if case.kind == "priors" else inputs(case, (4,))[0]
    x, direction = z if case.kind == "priors" else part(z).sample(), torch.randn_like(z)
    if not z.is_floating_point() or (case.kind == "priors" and part().support.is_discrete):
        return  # no encoder of such codes has a pathwise sampler
    z = z.requires_grad_()

    def slope(create_graph=False):
        with pyro.validation_enabled(False):  # a proportion that moves leaves the simplex
            log_prob = part().log_prob(z) if case.kind == "priors" else part(z).log_prob(x)
        (gradient,) = torch.autograd.grad(log_prob.sum() + 0 * z.sum(), z, create_graph=create_graph)
        return (gradient * direction).sum()

    total = slope(create_graph=True)
    for value in [z, *part.parameters()] if total.requires_grad else []:
        (second,) = torch.autograd.grad(total, value, retain_graph=True, allow_unused=True, materialize_grads=True)
        start, along = value.data, 1e-6 * torch.randn_like(value) * (value.detach() if value is z else 1)
        ends = []
        for sign in (1, -1):
            value.data = start + sign * along
            ends.append(slope().item())
        value.data = start
        numeric = (ends[0] - ends[1]) / 2e-6
        assert (second * along).sum().item() / 1e-6 == pytest.approx(numeric, rel=1e-4, abs=1e-4)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO(), IWAE(4), IWAE(4, chunk=2)], ids=LOSS_NAMES)
def test_gradients_of_an_objective_are_exact(loss):
    vae, x = small_vae(), digits(5).double()
    assert worst_difference(vae, lambda: loss.differentiable_loss(vae.model, vae.guide, x)) < 1e-4


def test_evaluation_leaves_nothing_behind():
    vae, x = small_vae(), digits(5)
    for parameter in vae.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.no_grad():
        posterior = vae.encoder(x)
        assert not torch.is_grad_enabled()
    assert not any(t.requires_grad for t in (posterior.mean, posterior.stddev))
    assert posterior.mean.grad_fn is None
    assert not torch.equal(posterior.mean, vae.encoder.encoder(x).mean)
    assert all((parameter.grad == 1).all() for parameter in vae.parameters())
    first, second = (evaluate(vae.model, vae.guide, x) for _ in range(2))
    assert first == second


def test_a_frozen_encoder_is_refined_and_the_decoder_learns():
    vae, x = small_vae(), digits(5)
    vae.encoder.requires_grad_(False)
    bound_of(vae, x).sum().backward()
    assert all(parameter.grad is None for parameter in vae.encoder.parameters())
    assert all(parameter.grad.any() for parameter in vae.decoder.parameters())


# Around it


@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO(), IWAE(3), IWAE(4, chunk=2)], ids=LOSS_NAMES)
def test_training_lowers_the_loss(loss):
    vae = small_vae()
    history = fit(vae.model, vae.guide, digits(200), validation=digits(50), loss=loss, epochs=3, batch_size=50)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert evaluate(vae.model, vae.guide, digits(50), at="mean").loss < math.inf


def test_missing_entries_are_left_out_of_the_steps():
    torch.manual_seed(0)
    x = digits(60).round()
    x = torch.where(torch.rand_like(x) < 0.3, torch.nan, x)
    decoder = decoders.Masked(decoders.Bernoulli(3, SHAPE, SMALL))
    network = partial(FillMissing, network=SMALL)
    vae = refining(priors.Normal(3), encoders.Normal(SHAPE, 3, network), decoder)
    history = fit(vae.model, vae.guide, x, epochs=3, batch_size=20)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert math.isfinite(log_likelihood(vae.model, vae.guide, x, samples=20))


def test_prior_and_decoder_are_counted_and_saved_once(tmp_path):
    vae = small_vae()
    assert {name.split(".")[0] for name in vae.encoder.state_dict()} == {"encoder"}
    plain = VAE(vae.prior, vae.encoder.encoder, vae.decoder)
    assert sum(p.numel() for p in vae.parameters()) == sum(p.numel() for p in plain.parameters())
    torch.save(vae.state_dict(), tmp_path / "weights.pt")
    other = small_vae()
    for parameter in other.parameters():
        parameter.data += 1
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert evaluate(other.model, other.guide, digits()) == evaluate(vae.model, vae.guide, digits())


def test_a_copy_refines_by_its_own_prior_and_decoder_and_a_moved_one_follows():
    vae = small_vae()
    double = copy.deepcopy(vae).to(torch.float64)
    assert double.encoder._model[0] is double.prior
    assert double.encoder._model[1] is double.decoder
    assert double.encoder(digits().double()).mean.dtype == torch.float64
    assert vae.encoder(digits()).mean.dtype == torch.float32


def test_a_vamp_prior_mixes_the_encoder_that_is_refined():
    torch.manual_seed(0)
    encoder, decoder = encoders.Normal(SHAPE, 3, SMALL), decoders.Bernoulli(3, SHAPE, SMALL, grey=True)
    vae = refining(priors.VampPrior(encoder, components=5), encoder, decoder)
    history = fit(vae.model, vae.guide, digits(200), epochs=3, batch_size=50)
    assert history[-1]["train_loss"] < history[0]["train_loss"]


class Own(nn.Module):
    """An encoder of one's own, with the two halves that the refinement takes."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(3))

    def output(self, x):
        return x.flatten(-3)[..., :3]

    def posterior(self, output):
        return dist.Normal(output, self.log_scale.exp()).to_event(1)


def test_an_encoder_of_ones_own_is_refined():
    torch.manual_seed(0)
    own, x = Own(), digits(5)
    vae = refining(priors.Normal(3), own, decoders.Normal(3, SHAPE, SMALL))
    assert not torch.equal(vae.encoder(x).mean, own.output(x))
    bound_of(vae, x).sum().backward()
    assert own.log_scale.grad.any()


# What is refused


def test_an_encoder_without_its_two_halves_is_refused():
    prior, decoder = priors.Normal(3), decoders.Normal(3, SHAPE, SMALL)
    score = encoders.ScoreFunction(encoders.Normal(SHAPE, 3, SMALL))
    for encoder, name in ((score, "ScoreFunction"), (nn.Linear(3, 2), "Linear")):
        with pytest.raises(TypeError, match=rf"encoder\.output\(x\) .* which {name} has not"):
            encoders.SemiAmortized(encoder, prior, decoder)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_part_that_is_no_module_is_refused(place):
    parts = [encoders.Normal(SHAPE, 3, SMALL), priors.Normal(3), decoders.Normal(3, SHAPE, SMALL)]
    parts[place] = type(parts[place])
    with pytest.raises(TypeError, match=f"the {('encoder', 'prior', 'decoder')[place]} of encoders.SemiAmortized must"):
        encoders.SemiAmortized(*parts)


@pytest.mark.parametrize(
    ("own", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, not 0"),
        ({"steps": 2.0}, TypeError, "steps must be an integer"),
        ({"step_size": 0.0}, ValueError, "step_size .* not 0.0"),
        ({"step_size": math.inf}, ValueError, "step_size .* not inf"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm above 0, not 0.1 and 0.0"),
        ({"clip_norm": math.nan}, ValueError, "clip_norm above 0, not 0.1 and nan"),
    ],
)
def test_numbers_out_of_range_are_refused(own, error, words):
    with pytest.raises(error, match=words):
        small_vae(**own)
