"""Discrete encoders and their relaxation: temperatures, enumeration, and gradients by the score function."""

import copy
import itertools
import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from part_cases import array
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from scipy import special
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae import VAE, decoders, encoders, fit, log_likelihood, noise, priors
from pyro_vae.distributions import (
    EnumerableIndependent,
    OneHotCategorical,
    RelaxedOneHotCategorical,
    StraightThroughGumbelSoftmax,
)
from pyro_vae.networks import MLP
from pyro_vae.objectives import CIWAE, IWAE, VIMCO

DTYPES = [torch.float32, torch.float64]
Linear = partial(MLP, hidden=())
adam = partial(torch.optim.Adam, lr=0.05)


def identity(*_):
    return nn.Identity()


# Relaxed


@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("temperature", [0.01, 0.67, 5.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_relaxed_codes_and_their_gradients_are_finite_at_outputs_of_10000(temperature, dtype, straight_through):
    encoder = encoders.RelaxedOneHotCategorical(
        (2, 40), 2, network=identity, categories=40, temperature=temperature, straight_through=straight_through
    )
    size = torch.tensor([1e4, 1.0, 0.0], dtype=dtype)[:, None, None, None]
    outputs = (size * torch.randn(3, 1000, 2, 40, dtype=dtype).sign()).requires_grad_()
    q = encoder(outputs)
    z = q.rsample()
    ones, logits = torch.ones((), dtype=dtype), torch.zeros(2, 40, dtype=dtype)
    prior = (OneHotCategorical if straight_through else partial(RelaxedOneHotCategorical, 0.5 * ones))(logits=logits)
    torch.testing.assert_close(z.sum(-1), ones.expand(3, 1000, 2))
    assert (z > 0).all() or straight_through
    terms = q.log_prob(z) - prior.to_event(1).log_prob(z)
    assert terms.isfinite().all()
    (gradient,) = torch.autograd.grad((terms + z[..., 0].sum(-1)).sum(), outputs)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_the_largest_entry_of_a_relaxed_code_is_distributed_as_the_categorical(temperature):
    """Maddison et al., proposition 1(b): 100,000 draws, 4 standard errors."""
    n, probs = 100_000, np.array([0.1, 0.2, 0.3, 0.4])
    q = RelaxedOneHotCategorical(torch.tensor(temperature), probs=torch.tensor(probs))
    found = np.bincount(q.sample((n,)).argmax(-1), minlength=4) / n
    assert (np.abs(found - probs) < 4 * np.sqrt(probs * (1 - probs) / n)).all()


def test_straight_through_draws_are_rounded_and_have_the_gradient_of_the_relaxed():
    logits = torch.randn(50, 12, dtype=torch.float64)
    results = []
    for family in (RelaxedOneHotCategorical, StraightThroughGumbelSoftmax):
        torch.manual_seed(1)
        leaf = logits.clone().requires_grad_()
        z = family(torch.tensor(0.5, dtype=torch.float64), logits=leaf).rsample()
        (gradient,) = torch.autograd.grad((z * logits).sum(), leaf)
        results.append((z.detach(), gradient))
    (soft, soft_gradient), (hard, hard_gradient) = results
    assert torch.equal(hard, nn.functional.one_hot(soft.argmax(-1), 12).double())
    torch.testing.assert_close(soft_gradient, hard_gradient)


@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_straight_through_draws_are_those_of_the_categorical(temperature):
    """Jang et al., equation 1: 100,000 draws, 4 standard errors, also where a plate expands."""
    n, probs = 100_000, np.array([0.1, 0.2, 0.3, 0.4])
    q = StraightThroughGumbelSoftmax(torch.tensor(temperature), torch.tensor(probs).log())
    for draws in (q.rsample((n,)), q.expand((n,)).rsample()):
        found = array(draws).mean(0)
        assert (np.abs(found - probs) < 4 * np.sqrt(probs * (1 - probs) / n)).all()


def discrete_vae(encoder):
    torch.manual_seed(0)
    decoder = decoders.Bernoulli((2, 4), 6, network=Linear)
    return VAE(priors.OneHotCategorical(2, categories=4), encoder, decoder).double()


@pytest.mark.parametrize(("objective", "least"), [(IWAE(5), 0.9), (VIMCO(5), 0.98), (IWAE(1), 0.9)])
def test_gradients_of_straight_through_codes_point_where_the_exact_ones_do(objective, least):
    """The median cosine with the gradient of the sum over all codes, of 9 models, each by 4,000 copies of a datum."""
    torch.manual_seed(1)
    particles, cosines = objective.num_particles, []
    x = torch.ones(4000)
    for _ in range(9):
        logits, weights = torch.randn(4, requires_grad=True), torch.randn(4) / 3

        def model(x, weights=weights):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", OneHotCategorical(torch.full((4,), 0.25)))
                pyro.sample("x", dist.Normal(z @ weights, 1.0), obs=x)

        def guide(x, logits=logits):
            with pyro.plate("data", len(x)):
                pyro.sample("z", StraightThroughGumbelSoftmax(torch.tensor(1.0), logits.expand(len(x), 4)))

        found = torch.autograd.grad(objective.differentiable_loss(model, guide, x), logits)[0]
        log_q = logits.log_softmax(-1)
        log_weights = dist.Normal(weights, 1.0).log_prob(torch.tensor(1.0)) - math.log(4) - log_q
        codes = torch.cartesian_prod(*[torch.arange(4)] * particles).reshape(-1, particles)
        bound = (log_q[codes].sum(-1).exp() * (log_weights[codes].logsumexp(-1) - math.log(particles))).sum()
        cosines.append(torch.cosine_similarity(found, torch.autograd.grad(-bound, logits)[0], dim=0).item())
    assert np.median(cosines) > least


@pytest.mark.slow
@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO()], ids=["sampled", "closed form"])
def test_the_straight_through_bound_is_that_of_the_discrete_model(loss):
    """Within 4 standard errors of the sum over all 16 codes, over 4,000 draws; the closed-form KL is exact."""
    encoder = encoders.RelaxedOneHotCategorical(6, 2, Linear, categories=4, straight_through=True)
    vae, x = discrete_vae(encoder), (torch.rand(3, 6) < 0.5).double()
    exact = discrete_vae(encoders.OneHotCategorical(6, 2, Linear, categories=4))
    exact.load_state_dict(vae.state_dict())
    enumerated = TraceEnum_ELBO(max_plate_nesting=1).loss(exact.model, config_enumerate(exact.guide), x)
    draws = np.array([loss.loss(vae.model, vae.guide, x) for _ in range(4000)])
    assert abs(draws.mean() - enumerated) < 4 * draws.std() / math.sqrt(len(draws))
    q, p = vae.encoder(x), vae.prior()
    weights = special.softmax(array(encoder.network(x)), -1)
    kl = (weights * np.log(4 * weights)).sum((-1, -2))
    np.testing.assert_allclose(array(kl_divergence(q, p)), kl, rtol=1e-12)


def test_the_log_likelihood_by_a_straight_through_encoder_is_that_of_the_discrete_model():
    """Of 20,000 draws, within 4 standard errors, by the delta method."""
    encoder = encoders.RelaxedOneHotCategorical(6, 2, Linear, categories=4, straight_through=True)
    vae, x = discrete_vae(encoder), (torch.rand(1, 6) < 0.5).double()
    codes = EnumerableIndependent(vae.prior().base_dist, 1).enumerate_support()
    joint = vae.decoder(codes).log_prob(x) - 2 * math.log(4)
    exact = joint.logsumexp(0).item()
    log_weights = joint - vae.encoder(x).log_prob(codes)
    variance = ((joint + log_weights).logsumexp(0).exp() / math.exp(2 * exact) - 1).item()
    found = log_likelihood(vae.model, vae.guide, x, samples=20_000)
    assert abs(found - exact) < 4 * math.sqrt(variance / 20_000)


@pytest.mark.parametrize(
    ("prior", "posterior", "named"),
    [
        (dist.OneHotCategorical, partial(StraightThroughGumbelSoftmax, torch.tensor(1.0)), "OneHotCategorical"),
        (OneHotCategorical, dist.OneHotCategoricalStraightThrough, "OneHotCategoricalStraightThrough"),
    ],
)
def test_rounded_draws_whose_density_has_no_gradient_are_refused_in_training_alone(prior, posterior, named):
    """`TraceMeanField_ELBO` trains with the KL: to a posterior that is the prior."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(logits=torch.tensor([2.0, 1.0, 0.0])))
            pyro.sample("x", dist.Normal(0 * z[..., 0], 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(logits=logits.expand(len(x), 3)))

    x = (torch.zeros(8),)
    pyro.clear_param_store()
    log_likelihood(model, guide, x)
    with pytest.raises(ValueError, match=rf"^{named} at site 'z' has no gradient by its value, .*: take OneHot"):
        fit(model, guide, x, epochs=1, optimizer=adam)
    fit(model, guide, x, epochs=200, optimizer=adam, loss=TraceMeanField_ELBO())
    trained = pyro.param("logits").detach()
    assert torch.allclose(trained - trained.mean(), torch.tensor([1.0, 0.0, -1.0]), atol=0.05)


def test_rounded_draws_whose_density_has_no_gradient_are_refused_where_no_kl_has_a_closed_form():
    """As to a mixture: the prior would have no part in the gradient, although `TraceMeanField_ELBO` takes it."""

    def model(x):
        with pyro.plate("data", len(x)):
            parts = dist.OneHotCategorical(logits=torch.tensor([[2.0, 1.0, 0.0], [0.0, 2.0, 0.0]]))
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))
            pyro.sample("x", dist.Normal(0 * z[..., 0], 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategoricalStraightThrough(logits=logits.expand(len(x), 3)))

    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"^MixtureSameFamily at site 'z' has no gradient|StraightThrough at site 'z'"):
        fit(model, guide, (torch.zeros(8),), epochs=1, loss=TraceMeanField_ELBO())


def test_straight_through_codes_and_a_relaxed_prior_are_refused():
    encoder = encoders.RelaxedOneHotCategorical(6, 2, Linear, categories=4, straight_through=True)
    vae = VAE(priors.RelaxedOneHotCategorical(2, 4), encoder, decoders.Bernoulli((2, 4), 6, network=Linear))
    with pytest.raises(ValueError, match=r"the prior has support the simplex .*, the encoder OneHot"):
        fit(vae.model, vae.guide, torch.zeros(5, 6), epochs=1, batch_size=5)


def annealed(**own):
    return encoders.RelaxedOneHotCategorical(
        3, 2, categories=4, temperature=2.0, final_temperature=0.5, anneal_steps=8, **own
    )


def temperature_of(encoder):
    return encoder(torch.zeros(5, 3)).base_dist.temperature.item()


def test_the_temperature_falls_exponentially_over_calls_in_training_mode_alone():
    encoder = annealed()
    for call in range(10):
        encoder.eval()
        assert temperature_of(encoder) == pytest.approx(2 * 0.25 ** min(call / 8, 1))
        encoder.train()
        assert temperature_of(encoder) == pytest.approx(2 * 0.25 ** min(call / 8, 1))
    assert encoder.calls == 10


def test_the_temperature_is_saved_with_the_weights_and_has_their_dtype():
    encoder, other = annealed(), annealed()
    for _ in range(5):
        encoder(torch.zeros(5, 3))
    other.load_state_dict(copy.deepcopy(encoder.state_dict()))
    assert temperature_of(other) == pytest.approx(2 * 0.25 ** (5 / 8))
    assert encoder.double()(torch.zeros(5, 3).double()).base_dist.temperature.dtype == torch.float64
    assert "calls" not in encoders.RelaxedOneHotCategorical(3, 2).state_dict()


@pytest.mark.parametrize("straight_through", [False, True])
def test_a_recording_of_a_step_counts_as_the_step_does(straight_through):
    prior = priors.OneHotCategorical if straight_through else priors.RelaxedOneHotCategorical
    results = []
    for engine in ("eager", "recorded"):
        torch.manual_seed(0)
        vae = VAE(prior(2, 4), annealed(straight_through=straight_through), decoders.Normal((2, 4), 3))
        history = fit(vae.model, vae.guide, torch.rand(20, 3), epochs=12, batch_size=20, engine=engine)
        results.append((vae.state_dict(), history))
    (eager, _), (recorded, history) = results
    assert history.engine.startswith("recorded: "), history.engine
    assert recorded["encoder.calls"] == eager["encoder.calls"] >= 12
    assert all(torch.equal(recorded[name], eager[name]) for name in eager)


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature of encoders.RelaxedOneHotCategorical must be above 0"),
        (
            {"temperature": 9e-4},
            ValueError,
            "of encoders.RelaxedOneHotCategorical must be from 0.001 to 1000, not 0.0009",
        ),
        ({"temperature": math.nan}, ValueError, "must be above 0 and finite, not nan"),
        ({"final_temperature": -1.0, "anneal_steps": 3}, ValueError, "must be above 0 and finite, not -1.0"),
        ({"final_temperature": 0.5}, ValueError, "anneal_steps .* must be at least 1, not 0"),
        ({"final_temperature": 0.5, "anneal_steps": 2.5}, TypeError, "anneal_steps .* must be an integer"),
        ({"anneal_steps": 3}, ValueError, "anneal_steps .* must be 0 without a final_temperature, not 3"),
        ({"categories": 0}, ValueError, "categories must be at least 1"),
    ],
)
def test_the_relaxed_encoder_refuses(own, error, message):
    with pytest.raises(error, match=message):
        encoders.RelaxedOneHotCategorical(3, 2, **own)


def test_reprs_tell_the_categories_and_temperatures():
    assert "categories=4, temperature=2 to 0.5 in 8 steps, straight_through=True" in repr(
        annealed(straight_through=True)
    )
    assert "categories=7" in repr(encoders.OneHotCategorical(3, 2, categories=7))


@pytest.mark.parametrize("categories", [0, -1])
def test_the_one_hot_encoder_refuses_fewer_categories_than_1(categories):
    with pytest.raises(ValueError, match="categories must be at least 1"):
        encoders.OneHotCategorical(3, 2, categories=categories)


# Enumerated


def bernoulli(latent_dim):
    return encoders.Bernoulli(4, latent_dim, network=Linear), latent_dim


def one_hot(latent_dim):
    return encoders.OneHotCategorical(4, latent_dim, network=Linear, categories=3), (latent_dim, 3)


both = pytest.mark.parametrize("make", [bernoulli, one_hot])


@both
@pytest.mark.parametrize("latent_dim", [1, 3])
@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_all_joint_codes_are_enumerated_once(make, latent_dim, batch):
    encoder, _ = make(latent_dim)
    q = encoder(torch.rand(*batch, 4))
    codes = q.enumerate_support()
    count = (2 if make is bernoulli else 3) ** latent_dim
    assert codes.shape == (count, *batch, *q.event_shape)
    assert q.enumerate_support(expand=False).shape == (count, *[1 for _ in batch], *q.event_shape)
    assert len({tuple(code.flatten().tolist()) for code in q.enumerate_support(expand=False)}) == count
    torch.testing.assert_close(q.log_prob(codes).exp().sum(0), torch.ones(batch))
    assert torch.equal(q.expand((7, *batch)).enumerate_support()[:, 0], codes)


def test_codes_are_enumerated_up_to_4096():
    assert len(encoders.Bernoulli(4, 12)(torch.zeros(4)).enumerate_support()) == 4096
    with pytest.raises(NotImplementedError, match="13 variables of 2 values have 8192 joint values"):
        encoders.Bernoulli(4, 13)(torch.zeros(4)).enumerate_support()
    assert len(encoders.OneHotCategorical(4, 3, categories=16)(torch.zeros(4)).enumerate_support()) == 4096
    with pytest.raises(NotImplementedError, match="4 variables of 10 values have 10000 joint values"):
        encoders.OneHotCategorical(4, 4)(torch.zeros(4)).enumerate_support()


def test_a_closed_form_kl_is_still_found():
    p, q = torch.tensor([0.2, 0.7]), torch.tensor([0.5, 0.4])
    kl = dist.kl.kl_divergence(EnumerableIndependent(dist.Bernoulli(p), 1), dist.Bernoulli(q).to_event(1))
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(kl, expected.sum())


class Prior(nn.Module):
    """A prior of codes that are not equally probable, of the encoder's distribution class or of Pyro's."""

    def __init__(self, make, latent_dim, plain=False):
        super().__init__()
        shape = (latent_dim,) if make is bernoulli else (latent_dim, 3)
        self.family = dist.Bernoulli if make is bernoulli else dist.OneHotCategorical
        self.plain = plain
        self.logits = nn.Parameter(torch.randn(shape))

    def forward(self):
        codes = self.family(logits=self.logits)
        return codes.to_event(1) if self.plain else EnumerableIndependent(codes, 1)


def small_vae(make, latent_dim=2, plain=False):
    encoder, code_shape = make(latent_dim)
    return VAE(Prior(make, latent_dim, plain), encoder, decoders.Bernoulli(code_shape, 4, network=Linear))


def log_probability(make, logits, codes):
    """Of codes of shape (N, *event), given logits of shape (*batch, *event): an array of shape (N, *batch)."""
    codes = codes.reshape(len(codes), *[1] * (logits.ndim - codes.ndim + 1), *codes.shape[1:])
    if make is bernoulli:
        return (codes * special.log_expit(logits) + (1 - codes) * special.log_expit(-logits)).sum(-1)
    return (codes * special.log_softmax(logits, -1)).sum((-2, -1))


def elbo_by_hand(make, vae, x, latent_dim=2):
    """The sum over all codes of q(z|x) (log p(x|z) + log p(z) - log q(z|x)), summed over data, in numpy."""
    values = np.eye(2)[:, 1:] if make is bernoulli else np.eye(3)
    codes = np.array([values[list(choice)] for choice in itertools.product(range(len(values)), repeat=latent_dim)])
    codes = codes.reshape(len(codes), *vae.prior.logits.shape)
    (weight, bias), (back_weight, back_bias) = (
        map(array, part.network.layers[0].parameters()) for part in (vae.encoder, vae.decoder)
    )
    logits = (array(x) @ weight.T + bias).reshape(len(x), *codes.shape[1:])
    log_q = log_probability(make, logits, codes)
    log_prior = log_probability(make, array(vae.prior.logits), codes)[:, None]
    means = (codes.reshape(len(codes), -1) @ back_weight.T + back_bias)[:, None]
    log_likelihood = (array(x) * special.log_expit(means) + (1 - array(x)) * special.log_expit(-means)).sum(-1)
    return (np.exp(log_q) * (log_likelihood + log_prior - log_q)).sum()


@both
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.usefixtures("float64")
def test_pyros_enumeration_gives_the_sum_over_all_codes(make, plain):
    vae, x = small_vae(make, plain=plain), torch.rand(5, 4).round()
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(vae.model, config_enumerate(vae.guide), x)
    assert loss == pytest.approx(-elbo_by_hand(make, vae, x), abs=1e-6)


@both
@pytest.mark.usefixtures("float64")
def test_a_guide_may_ask_for_enumeration_site_by_site(make):
    vae, x = small_vae(make), torch.rand(5, 4).round()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", vae.encoder(x), infer={"enumerate": "parallel"})

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(vae.model, guide, x)
    assert loss == pytest.approx(-elbo_by_hand(make, vae, x), abs=1e-6)


@both
@pytest.mark.parametrize("estimator", [Trace_ELBO, TraceGraph_ELBO])
@pytest.mark.usefixtures("float64")
def test_gradients_by_the_score_function_are_unbiased(make, estimator):
    """20,000 data that are one and the same, each with logits of its own: 20,000 draws, 4 standard errors."""
    n, vae = 20_000, small_vae(make)
    vae.encoder.network = nn.Identity()
    outputs = torch.randn(vae.prior.logits.shape)
    vae.encoder.shape = tuple(outputs.shape)
    x = torch.tensor([1.0, 0.0, 1.0, 1.0])

    def gradients(elbo, n, enumerate_):
        leaf = outputs.expand(n, *outputs.shape).clone().requires_grad_()

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", vae.encoder(leaf), infer={"enumerate": enumerate_})

        elbo.loss_and_grads(vae.model, guide, x.expand(n, 4))
        return leaf.grad

    exact = gradients(TraceEnum_ELBO(max_plate_nesting=1), 1, "parallel")[0]
    draws = gradients(estimator(), n, None)
    error = draws.std(0) / math.sqrt(n)
    assert exact.any()
    assert ((draws.mean(0) - exact).abs() < 4 * error).all(), (draws.mean(0), exact, error)


@both
def test_discrete_codes_train_by_the_score_function_and_by_enumeration(make):
    assert not make(2)[0](torch.zeros(4)).has_rsample
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]).repeat(25, 1)
    for loss, wrap in ((Trace_ELBO(), lambda guide: guide), (TraceEnum_ELBO(max_plate_nesting=1), config_enumerate)):
        vae = small_vae(make, plain=True)
        before = elbo_by_hand(make, vae, x)
        fit(vae.model, wrap(vae.guide), x, loss=loss, epochs=40, batch_size=50, optimizer=adam)
        assert elbo_by_hand(make, vae, x) > before + len(x) * 0.1  # nats


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_a_saturated_logit_keeps_a_gradient(logit):
    leaf = torch.full((1, 2), logit, requires_grad=True)
    q = encoders.Bernoulli(2, 2, network=identity)(leaf)
    (gradient,) = torch.autograd.grad(q.base_dist.logits.sum(), leaf)
    assert (gradient > 0).all()


@pytest.mark.parametrize(
    "loss", [Trace_ELBO(), IWAE(1), TraceGraph_ELBO(), CIWAE(0.5, 1)], ids=lambda each: type(each).__name__
)
def test_a_learned_straight_through_prior_is_trained_by_its_logits(loss):
    """Their gradient is softmax(prior) - softmax(posterior), by 20,000 draws; the draws carry gradients, too."""
    prior, posterior = torch.tensor([0.5, 0.0, -1.0]), torch.tensor([2.0, 0.0, 1.0])

    def program(x, name, logits):
        logits = pyro.param(name, logits)
        with pyro.plate("data", len(x)):
            pyro.sample("z", StraightThroughGumbelSoftmax(torch.tensor(1.0), logits.expand(len(x), 3)))
            if name == "prior":
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    pyro.clear_param_store()
    model, guide = (partial(program, name=name, logits=at) for name, at in (("prior", prior), ("posterior", posterior)))
    loss.loss_and_grads(model, guide, torch.zeros(20_000))
    found, share = pyro.param("prior").grad / 20_000, posterior.softmax(-1)
    errors = (share * (1 - share) / 20_000).sqrt()
    assert ((found - (prior.softmax(-1) - share)).abs() < 4 * errors).all()


def test_pseudo_inputs_of_a_straight_through_encoder_are_trained():
    """By the gradient of -log 1/K sum_k q(z|u_k), written out at the codes that are drawn."""
    torch.manual_seed(0)
    encoder = encoders.RelaxedOneHotCategorical(6, 2, Linear, categories=4, straight_through=True)
    prior = priors.VampPrior(encoder, components=3)
    z = encoder(torch.rand(50, 6))()
    (found,) = torch.autograd.grad(prior().log_prob(z).sum(), prior.free)
    log_q = encoder.network(prior.free.sigmoid()).log_softmax(-1)
    mixture = (z.detach().unsqueeze(1) * log_q).sum((-1, -2)).logsumexp(1)
    torch.testing.assert_close(found, torch.autograd.grad(mixture.sum(), prior.free)[0])


@pytest.mark.parametrize("handler", [noise.Antithetic(), nullcontext()], ids=["noise", "plain"])
def test_the_density_of_straight_through_draws_has_their_gradient_alone(handler):
    """Also in a plate, where a handler draws them: sum_k dz_k/dl log q_k, without the part dlog q/dl at fixed z."""
    logits = torch.randn(4, requires_grad=True)
    with handler, pyro.plate("data", 5):
        site = pyro.poutine.trace(lambda: pyro.sample("z", StraightThroughGumbelSoftmax(torch.tensor(1.0), logits)))
        site = site.get_trace().nodes["z"]
    (found,) = torch.autograd.grad(site["fn"].log_prob(site["value"]).sum(), logits, retain_graph=True)
    along = (site["value"] * logits.detach().log_softmax(-1)).sum()
    torch.testing.assert_close(found, torch.autograd.grad(along, logits)[0])
