import inspect
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.gp.kernels import RBF
from pyro.infer import (
    ELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from scipy import stats
from torch import nn

from pyro_vae import VAE, decoders, encoders, evaluate, fit, objectives, priors
from pyro_vae.networks import MLP
from pyro_vae.objectives import check_beta, kl, linear_warm_up, reconstruction, recording, terms_of
from pyro_vae.programs import paired_traces
from pyro_vae.programs.handlers import weigh_kl

SCALE = 0.7
BETAS = [0.0, 0.3, 1.0, 4.0]

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def x(float64):  # noqa: ARG001 (the dtype of what is drawn)
    return torch.randn(5, 6)


@pytest.fixture
def vae(float64):  # noqa: ARG001
    network = partial(MLP, hidden=(7,))
    built = VAE(
        priors.Normal(3, learned=True), encoders.Normal(6, 3, network), decoders.Normal(3, 6, network, scale=SCALE)
    )
    nn.init.normal_(built.prior.loc, std=0.3)
    nn.init.normal_(built.prior.log_scale, std=0.3)
    return built


def posterior(vae, x):
    mean, log_variance = vae.encoder.network(x).detach().numpy().swapaxes(0, 1)
    return mean, np.exp(log_variance / 2)


def by_hand(vae, x, z):
    """Return reconstruction, sampled KL and closed-form KL, summed over the batch, for one z per datum."""
    z, (mean, deviation) = z.detach(), posterior(vae, x)
    prior_mean, prior_deviation = vae.prior.loc.detach().numpy(), vae.prior.log_scale.detach().exp().numpy()
    decoded = vae.decoder.network(z).detach().numpy()
    error = -stats.norm.logpdf(x, decoded, SCALE).sum()
    sampled = (stats.norm.logpdf(z, mean, deviation) - stats.norm.logpdf(z, prior_mean, prior_deviation)).sum()
    ratio = deviation / prior_deviation
    closed = ((ratio**2 + ((mean - prior_mean) / prior_deviation) ** 2 - 1) / 2 - np.log(ratio)).sum()
    return np.array([error, sampled, closed])


def draws(vae, x, *sizes):
    """Return one batch of codes for each particle, from the noise that follows the seed 3."""
    torch.manual_seed(3)
    return [vae.encoder(x).rsample(size) for size in sizes or [()]]


def test_linear_warm_up_rises_linearly_and_stays():
    schedule = linear_warm_up(8, beta=2.0)
    assert [schedule(step) for step in range(11)] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2, 2]
    assert linear_warm_up(1)(0) == 0
    assert linear_warm_up(1)(1) == linear_warm_up(1)(10**9) == 1
    assert linear_warm_up(3, beta=0.0)(2) == 0


@pytest.mark.parametrize("steps", [0, -1])
def test_linear_warm_up_refuses_fewer_than_1_step(steps):
    with pytest.raises(ValueError, match=f"at least 1 step, not {steps}"):
        linear_warm_up(steps)


@pytest.mark.parametrize("beta", [-0.1, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("check", [check_beta, partial(linear_warm_up, 3)])
def test_a_beta_that_is_negative_or_not_finite_is_refused(check, beta):
    with pytest.raises(ValueError, match=f"beta must be at least 0 and finite, not {beta}"):
        check(beta)


@pytest.mark.parametrize("beta", [0, 0.0, 1e-30, 1, 4.0])
def test_any_other_beta_is_returned(beta):
    assert check_beta(beta) == beta


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("elbo", "term"), [(Trace_ELBO, 1), (TraceMeanField_ELBO, 2)])
def test_an_elbo_of_weighed_programs_is_reconstruction_and_beta_times_kl(vae, x, beta, elbo, term):
    (z,) = draws(vae, x)
    terms = by_hand(vae, x, z)
    torch.manual_seed(3)
    loss = elbo().differentiable_loss(*weigh_kl(beta, vae.model, vae.guide), x)
    assert loss.item() == pytest.approx(terms[0] + beta * terms[term], rel=1e-12)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_its_gradient_is_that_of_the_same_sum(vae, x, beta, elbo):
    (z,) = draws(vae, x)
    q, p = vae.encoder(x), vae.prior()
    divergence = torch.distributions.kl_divergence(q.base_dist, p.base_dist).sum()
    if elbo is Trace_ELBO:
        divergence = (q.log_prob(z) - p.log_prob(z)).sum()
    expected = torch.autograd.grad(-vae.decoder(z).log_prob(x).sum() + beta * divergence, list(vae.parameters()))
    torch.manual_seed(3)
    elbo().differentiable_loss(*weigh_kl(beta, vae.model, vae.guide), x).backward()
    for (name, parameter), gradient in zip(vae.named_parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("elbo", "term"), [(Trace_ELBO, 1), (TraceMeanField_ELBO, 2)])
@pytest.mark.parametrize("method", ["loss", "differentiable_loss"])
def test_terms_of_are_at_weight_1_whatever_beta(vae, x, beta, elbo, term, method):
    (z,) = draws(vae, x)
    terms = by_hand(vae, x, z)
    torch.manual_seed(3)
    loss, traces = recording(elbo())
    getattr(loss, method)(*weigh_kl(beta, vae.model, vae.guide), x)
    found = terms_of(loss, traces, beta)
    assert found[0].item() == pytest.approx(terms[0], rel=1e-12)
    assert found[1].item() == pytest.approx(terms[term], rel=1e-12)
    assert not any(value.requires_grad for value in found)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("elbo", "term"), [(Trace_ELBO, 1), (TraceMeanField_ELBO, 2)])
@pytest.mark.parametrize("vectorize", [False, True])
def test_terms_of_average_over_the_particles(vae, x, beta, elbo, term, vectorize):
    particles = draws(vae, x, (3,))[0] if vectorize else draws(vae, x, (), (), ())
    terms = np.mean([by_hand(vae, x, z) for z in particles], 0)
    torch.manual_seed(3)
    loss, traces = recording(elbo(num_particles=3, vectorize_particles=vectorize, max_plate_nesting=1))
    value = loss.differentiable_loss(*weigh_kl(beta, vae.model, vae.guide), x)
    found = terms_of(loss, traces, beta)
    assert found[0].item() == pytest.approx(terms[0], rel=1e-12)
    assert found[1].item() == pytest.approx(terms[term], rel=1e-12)
    assert value.item() == pytest.approx(terms[0] + beta * terms[term], rel=1e-12)


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_terms_of_guessed_plate_nesting_add_up(vae, x, elbo, vectorize):
    loss, traces = recording(elbo(num_particles=3, vectorize_particles=vectorize))
    value = loss.loss(vae.model, vae.guide, x)
    assert sum(terms_of(loss, traces)).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(("vectorize", "pairs"), [(False, 3), (True, 1)])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_recording_takes_its_traces_from_get_traces_of_pyro_1_9(vae, x, elbo, vectorize, pairs):
    # Pyro 1.9: every ELBO draws its traces through ELBO._get_traces, one pair a particle, or one for all if vectorized.
    assert callable(ELBO._get_traces)
    theirs = elbo(num_particles=3, vectorize_particles=vectorize)
    before = dict(vars(theirs))
    torch.manual_seed(3)
    value = elbo(num_particles=3, vectorize_particles=vectorize).loss(vae.model, vae.guide, x)
    torch.manual_seed(3)
    loss, traces = recording(theirs)
    assert loss.loss(vae.model, vae.guide, x) == value
    assert len(traces) == pairs
    assert all("log_prob_sum" in model.nodes["x"] and "log_prob_sum" in guide.nodes["z"] for model, guide in traces)
    assert vars(theirs) == before
    assert theirs._get_traces.__func__ is elbo._get_traces
    assert type(loss) is elbo


def scaled(vae, latent, observed):
    """The programs of a VAE with scales of their own."""

    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=latent):
                z = pyro.sample("z", vae.prior())
            with poutine.scale(scale=observed):
                pyro.sample("x", vae.decoder(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=latent):
            pyro.sample("z", vae.encoder(x))

    return model, guide


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
@pytest.mark.parametrize(("elbo", "term"), [(Trace_ELBO, 1), (TraceMeanField_ELBO, 2)])
def test_terms_of_respect_the_programs_own_scales(vae, x, beta, elbo, term):
    (z,) = draws(vae, x)
    terms = by_hand(vae, x, z)
    torch.manual_seed(3)
    loss, traces = recording(elbo())
    value = loss.differentiable_loss(*weigh_kl(beta, *scaled(vae, latent=3.0, observed=0.5)), x)
    found = terms_of(loss, traces, beta)
    assert found[0].item() == pytest.approx(0.5 * terms[0], rel=1e-12)
    assert found[1].item() == pytest.approx(3 * terms[term], rel=1e-12)
    assert value.item() == pytest.approx(0.5 * terms[0] + beta * 3 * terms[term], rel=1e-12)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize(("elbo", "term"), [(Trace_ELBO, 1), (TraceMeanField_ELBO, 2)])
def test_terms_of_respect_the_programs_own_masks(vae, x, beta, elbo, term):
    mask = torch.tensor([True, False, True, True, False])
    (z,) = draws(vae, x)
    terms = by_hand(vae, x[mask], z[mask])

    def masked(program):
        return poutine.mask(program, mask=mask)

    torch.manual_seed(3)
    loss, traces = recording(elbo())
    value = loss.differentiable_loss(*weigh_kl(beta, masked(vae.model), masked(vae.guide)), x)
    found = terms_of(loss, traces, beta)
    assert found[0].item() == pytest.approx(terms[0], rel=1e-12)
    assert found[1].item() == pytest.approx(terms[term], rel=1e-12)
    assert value.item() == pytest.approx(terms[0] + beta * terms[term], rel=1e-12)


def no_closed_form(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.StudentT(torch.tensor(4.0)).expand([len(x), 3]).to_event(1))
        pyro.sample("x", dist.Normal(torch.zeros(6), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("beta", BETAS)
def test_without_a_closed_form_the_kl_is_sampled(vae, x, beta):
    (z,) = draws(vae, x)
    expected = vae.encoder(x).log_prob(z).sum().item() - stats.t.logpdf(z.detach(), 4).sum()
    torch.manual_seed(3)
    loss, traces = recording(TraceMeanField_ELBO())
    loss.differentiable_loss(*weigh_kl(beta, no_closed_form, vae.guide), x)
    assert terms_of(loss, traces, beta)[1].item() == pytest.approx(expected, rel=1e-12)


def test_the_kl_counts_latent_sites_that_only_one_program_has():
    def model():
        pyro.sample("both", dist.Normal(0.0, 1.0))
        pyro.sample("extra", dist.Normal(0.0, 2.0))

    def guide():
        pyro.sample("both", dist.Normal(1.0, 1.0))
        pyro.sample("auxiliary", dist.Normal(0.0, 3.0), infer={"is_auxiliary": True})

    model_trace, guide_trace = paired_traces(model, guide)
    both, extra = model_trace.nodes["both"]["value"], model_trace.nodes["extra"]["value"]
    auxiliary = guide_trace.nodes["auxiliary"]["value"]
    expected = stats.norm.logpdf(both, 1) + stats.norm.logpdf(auxiliary, 0, 3)
    expected -= stats.norm.logpdf(both) + stats.norm.logpdf(extra, 0, 2)
    assert kl(model_trace, guide_trace).item() == pytest.approx(expected, rel=1e-12)
    expected += 0.5 - stats.norm.logpdf(both, 1) + stats.norm.logpdf(both)
    assert kl(model_trace, guide_trace, closed_form=True).item() == pytest.approx(expected, rel=1e-12)


def test_the_reconstruction_sums_all_observed_sites():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Normal(0.0, 1.0), obs=torch.tensor(2.0))
        pyro.sample("b", dist.Normal(0.0, 3.0), obs=torch.tensor(1.0))

    expected = -stats.norm.logpdf(2) - stats.norm.logpdf(1, 0, 3)
    assert reconstruction(poutine.trace(model).get_trace()).item() == pytest.approx(expected, rel=1e-12)


def test_the_delta_encoders_kl_is_minus_the_log_prior(x):
    vae = VAE(priors.Normal(3), encoders.Delta(6, 3), decoders.Normal(3, 6))
    expected = -stats.norm.logpdf(vae.encoder.network(x).detach()).sum()
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        loss, traces = recording(elbo)
        loss.loss(vae.model, vae.guide, x)
        assert terms_of(loss, traces)[1].item() == pytest.approx(expected, rel=1e-12)


def summing(sums_guide, kind="parallel"):
    """A pair with a switch k of two states, summed out in the model, or in both."""
    infer = {"enumerate": kind}

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            k = pyro.sample("k", dist.Bernoulli(0.3), infer={} if sums_guide else infer)
            pyro.sample("x", dist.Normal(z + 2 * k, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5))
            if sums_guide:
                pyro.sample("k", dist.Bernoulli(0.5), infer=infer)

    return model, guide


def test_a_site_that_the_model_sums_out_belongs_to_the_likelihood():
    x = torch.tensor([0.5, 2.0, -1.0])
    loss, traces = recording(TraceEnum_ELBO(max_plate_nesting=1))
    value = loss.loss(*summing(False), x)
    z = traces[0][1].nodes["z"]["value"].numpy()
    mixture = 0.7 * stats.norm.pdf(x, z, 0.5) + 0.3 * stats.norm.pdf(x, z + 2, 0.5)
    divergence = (stats.norm.logpdf(z, x / 2, 0.5) - stats.norm.logpdf(z)).sum()
    assert [term.item() for term in terms_of(loss, traces, value=value)] == pytest.approx(
        [-np.log(mixture).sum(), divergence], rel=1e-12
    )


def test_a_site_that_the_guide_sums_out_counts_by_its_probabilities():
    x = torch.tensor([0.5, 2.0, -1.0])
    loss, traces = recording(TraceEnum_ELBO(max_plate_nesting=1))
    value = loss.loss(*summing(True), x)
    z = traces[0][1].nodes["z"]["value"].numpy()
    expected = -(stats.norm.logpdf(x, z, 0.5) + stats.norm.logpdf(x, z + 2, 0.5)).sum() / 2
    divergence = (stats.norm.logpdf(z, x / 2, 0.5) - stats.norm.logpdf(z)).sum()
    divergence += len(x) * (np.log(0.5 / 0.7) + np.log(0.5 / 0.3)) / 2
    found = [term.item() for term in terms_of(loss, traces, value=value)]
    assert found == pytest.approx([expected, divergence], rel=1e-6)


def test_a_site_that_the_guide_sums_out_one_value_after_another_counts_by_its_probabilities():
    x = torch.tensor([2.0])
    loss, traces = recording(TraceEnum_ELBO(max_plate_nesting=1))
    value = loss.loss(*summing(True, "sequential"), x)
    assert len(traces) == 2
    expected = np.zeros(2)
    for model, guide in traces:
        z, k = guide.nodes["z"]["value"].numpy(), guide.nodes["k"]["value"].numpy()
        kl_of_k = np.log(0.5) - stats.bernoulli.logpmf(k, 0.3)
        divergence = stats.norm.logpdf(z, x / 2, 0.5) - stats.norm.logpdf(z) + kl_of_k
        expected += [-stats.norm.logpdf(x, z + 2 * k, 0.5).sum() / 2, divergence.sum() / 2]
        assert model.nodes["k"]["value"] is guide.nodes["k"]["value"]
    found = [term.item() for term in terms_of(loss, traces, value=value)]
    assert found == pytest.approx(expected, rel=1e-6)


def mixture_of_three(x):
    """A prior of z that is a mixture, whose component c the model sums out; x hangs on c, too."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(PROBS), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(MEANS[c], 0.7))
        pyro.sample("x", dist.Normal(z + MEANS[c], 0.5), obs=x)


def guide_of_three(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5))


PROBS, MEANS = torch.tensor([[0.2, 0.3, 0.5], [-1.0, 0.0, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize("particles", [1, 2])
def test_where_the_model_sums_out_a_component_the_kl_is_that_from_the_mixture(particles):
    x = torch.tensor([0.5, 2.0, -1.0])
    loss, traces = recording(TraceEnum_ELBO(max_plate_nesting=1, num_particles=particles))
    value = loss.loss(mixture_of_three, guide_of_three, x)
    expected = []
    for _, guide in traces:
        z = guide.nodes["z"]["value"].numpy()
        of_c = PROBS.log().numpy() + stats.norm.logpdf(z[:, None], MEANS, 0.7)
        prior = np.logaddexp.reduce(of_c, -1)
        joint = np.logaddexp.reduce(of_c + stats.norm.logpdf(x[:, None], z[:, None] + MEANS.numpy(), 0.5), -1)
        expected.append([-(joint - prior).sum(), (stats.norm.logpdf(z, x / 2, 0.5) - prior).sum()])
    found = [term.item() for term in terms_of(loss, traces, value=value)]
    assert found == pytest.approx(np.mean(expected, 0), rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 3.0, torch.tensor(2.0), torch.tensor(0.0)], ids=str)
@pytest.mark.parametrize(("elbo", "term"), [(Trace_ELBO, 1), (TraceMeanField_ELBO, 2)])
def test_terms_at_weight_1_keep_the_scales_of_plates_also_at_beta_0(vae, x, beta, elbo, term):
    (z,) = draws(vae, x)
    expected = [20 * value for value in by_hand(vae, x, z)]
    torch.manual_seed(3)
    loss, traces = recording(elbo())
    loss.loss(*weigh_kl(beta, *scaled(vae, latent=20.0, observed=20.0)), x)
    assert [value.item() for value in terms_of(loss, traces, beta)] == pytest.approx(
        [expected[0], expected[term]], rel=1e-12
    )


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_the_sampled_and_the_closed_form_kl_agree_on_average(vae, x, elbo):
    n = 20_000
    loss, traces = recording(elbo(num_particles=n, vectorize_particles=True, max_plate_nesting=1))
    with torch.no_grad():
        loss.loss(vae.model, vae.guide, x)
    closed = by_hand(vae, x, vae.encoder(x).mean)[2]
    z = traces[0][1].nodes["z"]["value"]
    one_draw = (vae.encoder(x).log_prob(z) - vae.prior().log_prob(z)).sum(-1)
    # 4 standard errors of 20,000 draws; the closed form has no error.
    error = 4 * one_draw.std().item() / math.sqrt(n) if elbo is Trace_ELBO else 1e-9
    assert abs(terms_of(loss, traces)[1].item() - closed) < error


@pytest.mark.parametrize(
    ("make", "instead"),
    [
        (lambda: Trace_MMD(RBF(3, lengthscale=torch.ones(()))), "InfoVAE"),
        (ReweightedWakeSleep, "VIMCO"),
        (lambda: TraceTailAdaptive_ELBO(num_particles=2, vectorize_particles=True), "Renyi"),
    ],
    ids=["Trace_MMD", "ReweightedWakeSleep", "TraceTailAdaptive_ELBO"],
)
def test_an_objective_that_takes_a_batch_for_one_datum_is_refused_by_name(vae, x, make, instead):
    for run in (fit, partial(fit, beta=0.5), evaluate):
        with pytest.raises(TypeError, match=rf"takes the data of a batch for one datum.*: take objectives\.{instead}"):
            run(vae.model, vae.guide, x, loss=make())


@pytest.mark.parametrize("count", [0, -1])
def test_an_objective_of_no_particles_is_refused(vae, x, count):
    for run in (fit, evaluate):
        with pytest.raises(ValueError, match=f"^num_particles must be at least 1, not {count}$"):
            run(vae.model, vae.guide, x, loss=Trace_ELBO(num_particles=count))


@pytest.mark.parametrize("beta", [0.5, linear_warm_up(3)])
def test_a_sum_of_weights_has_no_kl_to_weigh(vae, x, beta):
    """Pyro's tensor Monte Carlo would sum them to the power of beta."""
    with pytest.raises(ValueError, match=r"^TraceTMC_ELBO has no KL to weigh: leave beta at 1, or take Trace_ELBO$"):
        fit(vae.model, vae.guide, x, loss=TraceTMC_ELBO(), epochs=1, batch_size=len(x), beta=beta)


OF_STATES, OF_NORMALS = (0.2, 0.3, 0.5), (-1.0, 0.0, 2.0)


def switch(infer, x, plate="data"):
    with pyro.plate(plate, len(x)):
        pyro.sample("switch", dist.Categorical(torch.tensor([0.6, 0.3, 0.1])), infer=infer)


def of_switch(x, infer=None, plate=None):
    """A mixture of normals; its observations stand in a plate of another name, if one is given."""
    data, means = pyro.plate("data", len(x)), pyro.param("means", torch.tensor(OF_NORMALS))
    with data:
        which = pyro.sample("switch", dist.Categorical(torch.tensor(OF_STATES)), infer=infer or {})
    with pyro.plate(plate, len(x)) if plate else data:
        pyro.sample("x", dist.Normal(means[which], 1.0), obs=x[:, 0])


PARALLEL = {"enumerate": "parallel"}


@pytest.mark.filterwarnings("ignore:.*ound ")
def test_the_prior_of_a_site_that_the_model_sums_out_counts_once():
    """Pyro's tensor Monte Carlo has its square, unless the guide sums the site out."""
    x = torch.linspace(-1, 2, 5)[:, None]
    log_joint = torch.tensor(OF_STATES).log() + dist.Normal(torch.tensor(OF_NORMALS), 1.0).log_prob(x)
    exact = pytest.approx(-log_joint.logsumexp(-1).mean().item(), rel=1e-6)
    assert evaluate(of_switch, partial(switch, PARALLEL), x, loss=TraceTMC_ELBO()).loss == exact
    in_model = partial(of_switch, infer=PARALLEL), lambda _: None
    assert evaluate(*in_model, x, loss=TraceEnum_ELBO()).loss == exact
    for run in (partial(fit, epochs=1), evaluate):
        with pytest.raises(ValueError, match=r"count the prior of site 'switch', .* twice: take TraceEnum_ELBO$"):
            run(*in_model, x, loss=TraceTMC_ELBO())


@pytest.mark.filterwarnings("ignore:.*ound ")  # Pyro's, of plates and sites of one program alone
@pytest.mark.parametrize("loss", [TraceEnum_ELBO(), TraceTMC_ELBO()], ids=["TraceEnum", "TraceTMC"])
@pytest.mark.parametrize("infer", [PARALLEL, {"enumerate": "sequential"}, {}], ids=["parallel", "sequential", "drawn"])
def test_a_plate_has_one_name_where_discrete_values_are_weighed(loss, infer):
    """Pyro would sum over all data at once (9.31 nats instead of 2.80), or weigh draws by them."""
    x, other = torch.linspace(-1, 2, 5)[:, None], partial(of_switch, plate="other")
    pairs = [(of_switch, partial(switch, infer, plate="other")), (other, partial(switch, infer))]
    if infer is PARALLEL:
        pairs.append((partial(other, infer=infer), lambda _: None))
    for model, guide in pairs:
        with pytest.raises(
            ValueError, match=r"the values of site 'switch' within its plate '(data|other)', .* name it alike"
        ):
            evaluate(model, guide, x, loss=loss)


@pytest.mark.filterwarnings("ignore:.*ound ")
@pytest.mark.parametrize("infer", [PARALLEL, {"enumerate": "sequential"}], ids=["parallel", "sequential"])
def test_plates_of_several_names_are_taken_where_no_site_depends_on_one_in_another(infer):
    """Labelled and unlabelled data, say, each with a discrete value of its own."""
    x, q = torch.linspace(-1, 2, 5)[:, None], torch.tensor([0.6, 0.3, 0.1])

    def both(of_each):
        def program(x):
            for name in ("one", "other"):
                with pyro.plate(name, len(x)):
                    of_each(name, x)

        return program

    def model(name, x):
        which = pyro.sample(f"switch of {name}", dist.Categorical(torch.tensor(OF_STATES)))
        pyro.sample(f"x of {name}", dist.Normal(torch.tensor(OF_NORMALS)[which], 1.0), obs=x[:, 0])

    def guide(name, _):
        pyro.sample(f"switch of {name}", dist.Categorical(q), infer=infer)

    log_joint = torch.tensor(OF_STATES).log() + dist.Normal(torch.tensor(OF_NORMALS), 1.0).log_prob(x)
    exact = -2 * (q * (log_joint - q.log())).sum(-1).mean().item()
    assert evaluate(both(model), both(guide), x, loss=TraceEnum_ELBO()).loss == pytest.approx(exact, rel=1e-6)


def test_a_scale_of_the_prior_alone_has_no_closed_form():
    """The KL is then the mean of log q - 2 log p, but Pyro's closed form scales it as the guide does."""

    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=2.0):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.5)), 0.8))

    x = torch.zeros(20_000, 1)
    expected = 2 * (0.5**2 + 0.8**2 + math.log(2 * math.pi)) / 2 - math.log(0.8) - (1 + math.log(2 * math.pi)) / 2
    for at in ("sample", "mean"):
        assert evaluate(model, guide, x, at=at).kl == pytest.approx(expected, abs=0.03)
    for run in (fit, evaluate):
        with pytest.raises(ValueError, match=r"KL of site 'z' as the guide does, .*: put the same poutine"):
            run(model, guide, x, loss=TraceMeanField_ELBO())


def of_the_package():
    classes = [cls for cls in vars(objectives).values() if isinstance(cls, type)]
    return [cls for cls in classes if issubclass(cls, objectives.Objective) and cls is not objectives.Objective]


@pytest.mark.parametrize("cls", of_the_package())
def test_an_objective_shows_all_that_it_computes_with(cls):
    """By this a checkpoint knows it."""
    defaults = {each.name: each.default for each in inspect.signature(cls).parameters.values() if each.name != "chunk"}
    assert repr(cls()) == f"{cls.__name__}({', '.join(f'{name}={value!r}' for name, value in defaults.items())})"
