"""The objectives of several particles, on a model whose posterior and evidence are known."""

import itertools
import math
from functools import partial

import mpmath
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceGraph_ELBO
from scipy import stats
from scipy.special import logsumexp
from torch import nn

from pyro_vae import VAE, data, decoders, encoders, evaluate, fit, objectives, priors
from pyro_vae.networks import MLP
from pyro_vae.objectives.bounds import maximum_mean_discrepancy
from pyro_vae.objectives.importance import _leave_one_out
from pyro_vae.programs import noise
from pyro_vae.programs.handlers import weigh_kl
from pyro_vae.programs.seeds import noise_seed
from pyro_vae.runtime.memory import peak_of

pytestmark = pytest.mark.usefixtures("float64")
SMALL = partial(MLP, hidden=())
PATHWISE = {
    "IWAE": objectives.IWAE(6),
    "DReG": objectives.DReG(6),
    "Renyi": objectives.Renyi(0.5, 6),
    "VR-max": objectives.Renyi(-math.inf, 6),
    "CIWAE": objectives.CIWAE(0.3, 6),
    "MIWAE": objectives.MIWAE(3, 2),
    "PIWAE": objectives.PIWAE(3, 2),
    "StickingTheLanding": objectives.StickingTheLanding(6),
}
ANY = {"VIMCO": objectives.VIMCO(6), "Thermodynamic": objectives.Thermodynamic(6, 3, 0.1)}
PENALIZED = {
    "FreeBits": objectives.FreeBits(0.1),
    "InfoVAE": objectives.InfoVAE(0.5, 2.0),
    "BetaTC": objectives.BetaTC(3.0, 100),
}
ALL = PATHWISE | ANY | PENALIZED
every_objective = pytest.mark.parametrize("name", ALL)


class LinearGaussian(nn.Module):
    """z ~ N(0, I), x ~ N(W z, s^2 I): q is the posterior itself, plus an offset of its mean, times a scale."""

    def __init__(self, offset=0.3, factor=1.2, dim=2):
        super().__init__()
        torch.manual_seed(3)
        self.weight, self.noise = nn.Parameter(torch.randn(3, dim)), 0.7
        precision = torch.eye(dim) + self.weight.T @ self.weight / self.noise**2
        covariance = torch.linalg.inv(precision.detach())
        self.gain = nn.Parameter(covariance @ self.weight.detach().T / self.noise**2)
        self.offset = nn.Parameter(torch.full((dim,), float(offset)))
        self.tril = nn.Parameter(factor * torch.linalg.cholesky(covariance))

    def model(self, x):
        pyro.module("linear", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T, self.noise).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("linear", self)
        with pyro.plate("data", len(x)):
            q = dist.MultivariateNormal(x @ self.gain.T + self.offset, scale_tril=self.tril.tril())
            return pyro.sample("z", q)

    def evidence(self, x):
        weight = self.weight.detach().numpy()
        covariance = weight @ weight.T + self.noise**2 * np.eye(3)
        return stats.multivariate_normal.logpdf(x.numpy(), np.zeros(3), covariance)


def points(count=4):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(5))


def gradients(loss, programs, x, seed=None):
    if seed is not None:
        torch.manual_seed(seed)
    value = loss.differentiable_loss(programs.model, programs.guide, x)
    found = torch.autograd.grad(value, list(programs.parameters()), allow_unused=True)
    names = [name for name, _ in programs.named_parameters()]
    return {name: g if g is not None else torch.zeros(1) for name, g in zip(names, found, strict=True)}


def log_weights(programs, x, count, seed):
    """By scipy, from the same draws."""
    torch.manual_seed(seed)
    with pyro.plate("particles", count, dim=-2):
        z = programs.guide(x).detach().numpy()
    mean = (x @ programs.gain.T + programs.offset).detach().numpy()
    tril = programs.tril.detach().tril().numpy()
    log_q = [[stats.multivariate_normal.logpdf(row, m, tril @ tril.T) for row, m in zip(k, mean)] for k in z]  # noqa: B905
    log_p = stats.norm.logpdf(z).sum(-1)
    decoded = z @ programs.weight.detach().numpy().T
    return stats.norm.logpdf(x.numpy(), decoded, programs.noise).sum(-1) + log_p - np.array(log_q)


def mean_exp(v, axis=0):
    return logsumexp(v, axis) - math.log(v.shape[axis])


def thermodynamic(v, steps):
    total = 0
    for beta, following in itertools.pairwise(steps):
        weights = np.exp(beta * v - logsumexp(beta * v, 0))
        total = total + (following - beta) * (weights * v).sum(0)
    return total


FORMULAS = {
    "IWAE": mean_exp,
    "DReG": mean_exp,
    "VIMCO": mean_exp,
    "PIWAE": mean_exp,
    "Renyi": lambda v: mean_exp(0.5 * v) / 0.5,
    "VR-max": lambda v: v.max(0),
    "CIWAE": lambda v: 0.3 * v.mean(0) + 0.7 * mean_exp(v),
    "MIWAE": lambda v: mean_exp(v.reshape(3, 2, -1), 1).mean(0),
    "StickingTheLanding": lambda v: v.mean(0),
    "Thermodynamic": lambda v: thermodynamic(v, [0.0, 0.1, math.sqrt(0.1), 1.0]),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_an_objective_is_its_formula_of_the_log_weights(name):
    programs, x = LinearGaussian(), points()
    expected = -FORMULAS[name](log_weights(programs, x, 6, seed=7)).sum()
    torch.manual_seed(7)
    assert ALL[name].loss(programs.model, programs.guide, x) == pytest.approx(expected, rel=1e-12)
    torch.manual_seed(7)
    assert ALL[name].differentiable_loss(programs.model, programs.guide, x).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("alpha", [1 + 1e-14, 1 - 2**-53, 1 - 1e-7, 1 + 1e-7])
def test_the_renyi_bound_tends_to_the_elbo_in_float32_too(alpha):
    programs, x = LinearGaussian().float(), points().float()
    torch.set_default_dtype(torch.float32)
    bounds = []
    for order in (alpha, 1):
        torch.manual_seed(7)
        bounds.append(objectives.Renyi(order, 6).loss(programs.model, programs.guide, x))
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-5)


@pytest.mark.parametrize("name", PATHWISE | ANY)
def test_at_the_true_posterior_every_bound_is_the_evidence_whatever_the_noise(name):
    programs, x = LinearGaussian(offset=0, factor=1), points()
    assert ALL[name].loss(programs.model, programs.guide, x) == pytest.approx(-programs.evidence(x).sum(), rel=1e-10)


def test_bounds_rise_with_the_number_of_particles():
    programs, x = LinearGaussian(), points().repeat(2000, 1)
    bounds = [-objectives.IWAE(k).loss(programs.model, programs.guide, x) / len(x) for k in (1, 2, 8, 64)]
    assert bounds == sorted(bounds)
    assert bounds[-1] < programs.evidence(x).mean()
    assert bounds[-1] == pytest.approx(programs.evidence(x).mean(), abs=0.02)  # 8,000 data, 64 particles each


# Gradients


def assert_same_mean(one, other, programs, x, draws, names=None):
    """Two estimators agree in the mean over some draws, of 50 a sum, within 4.5 standard errors of each entry."""
    many = x.repeat(50, 1)
    samples = [
        [torch.cat([v.flatten() for n, v in gradients(loss, programs, many).items() if names is None or n in names])
         for _ in range(draws // 50)]
        for loss in (one, other)
    ]  # fmt: skip
    first, second = (torch.stack(found) for found in samples)
    error = ((first.var(0) + second.var(0)) / len(first)).sqrt()
    assert ((first.mean(0) - second.mean(0)).abs() <= 4.5 * error + 1e-12).all()
    return first.var(0).sum(), second.var(0).sum()


GUIDE = ("gain", "offset", "tril")


def test_dreg_has_the_gradient_of_iwae_with_less_variance():
    programs, x = LinearGaussian(), points()
    dreg, iwae = assert_same_mean(objectives.DReG(8), objectives.IWAE(8), programs, x, 1500, GUIDE)
    assert dreg < iwae


def test_dreg_and_iwae_give_one_gradient_to_the_model():
    programs, x = LinearGaussian(), points()
    one, other = (gradients(loss, programs, x, seed=1)["weight"] for loss in (objectives.DReG(8), objectives.IWAE(8)))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_sticking_the_landing_has_the_gradient_of_the_elbo():
    programs, x = LinearGaussian(), points()
    assert_same_mean(objectives.StickingTheLanding(2), Trace_ELBO(num_particles=2), programs, x, 1500)


def test_sticking_the_landing_has_no_variance_at_the_true_posterior():
    programs, x = LinearGaussian(offset=0, factor=1), points()
    sticking = gradients(objectives.StickingTheLanding(), programs, x, seed=0)
    plain = gradients(Trace_ELBO(), programs, x, seed=0)
    for name in GUIDE:
        assert sticking[name].abs().max() < 1e-10
        assert plain[name].abs().max() > 0.1


def test_piwae_gives_the_model_the_gradient_of_iwae_and_the_guide_that_of_miwae():
    programs, x = LinearGaussian(), points()
    both = gradients(objectives.PIWAE(3, 2), programs, x, seed=4)
    torch.testing.assert_close(both["weight"], gradients(objectives.IWAE(6), programs, x, seed=4)["weight"])
    for name in GUIDE:
        torch.testing.assert_close(both[name], gradients(objectives.MIWAE(3, 2), programs, x, seed=4)[name])


def test_piwae_is_finite_where_one_weight_is_all():
    programs, x = LinearGaussian(offset=30.0), points()
    assert all(value.isfinite().all() for value in gradients(objectives.PIWAE(3, 2), programs, x).values())


def test_with_pathwise_codes_vimco_has_the_gradient_of_iwae():
    programs, x = LinearGaussian(), points(1)
    assert_same_mean(objectives.VIMCO(4), objectives.IWAE(4), programs, x, 4000)


def test_a_thermodynamic_bound_of_one_partition_has_the_gradient_of_the_elbo():
    programs, x = LinearGaussian(), points(1)
    assert_same_mean(objectives.Thermodynamic(4, 1), Trace_ELBO(num_particles=4), programs, x, 4000)


class Discrete(nn.Module):
    """One code of 0 or 1, and one number."""

    def __init__(self):
        super().__init__()
        self.prior, self.posterior = nn.Parameter(torch.tensor(0.4)), nn.Parameter(torch.tensor(-0.7))
        self.means = nn.Parameter(torch.tensor([-0.5, 1.5]))

    def model(self, x):
        pyro.module("discrete", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior))
            pyro.sample("x", dist.Normal(self.means[0] + z * (self.means[1] - self.means[0]), 0.8), obs=x)

    def guide(self, x):
        pyro.module("discrete", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.posterior))

    def bound(self, x, count):
        """The importance-weighted bound exactly, over all codes of all particles."""
        codes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * count).reshape(-1, count)
        log_q = dist.Bernoulli(logits=self.posterior).log_prob(codes)
        means = self.means[0] + codes * (self.means[1] - self.means[0])
        log_p = dist.Normal(means, 0.8).log_prob(x) + dist.Bernoulli(logits=self.prior).log_prob(codes)
        return (log_q.sum(1).exp() * ((log_p - log_q).logsumexp(1) - math.log(count))).sum()

    def thermodynamic(self, x, steps):
        """The bound of all particles exactly: the expectations are sums over the two codes."""
        codes = torch.tensor([0.0, 1.0])
        log_q = dist.Bernoulli(logits=self.posterior).log_prob(codes)
        log_p = dist.Normal(self.means, 0.8).log_prob(x) + dist.Bernoulli(logits=self.prior).log_prob(codes)
        log_w = log_p - log_q
        parts = [((log_q + beta * log_w).softmax(0) * log_w).sum() for beta in steps[:-1]]
        return sum((after - before) * part for before, after, part in zip(steps, steps[1:], parts, strict=False))


def test_vimco_weighs_each_score_by_what_its_particle_adds_to_the_bound():
    """Any baseline that leaves a particle out is without bias: this one holds it to the formula."""
    v, zeros = torch.randn(4, 3), torch.zeros(4, 3)
    log_q = torch.zeros(4, 3, requires_grad=True)
    objectives.VIMCO(4).estimate(objectives.Draws(v, zeros, log_q, zeros, (log_q,))).sum().backward()
    without = []
    for k in range(4):
        replaced = v.numpy().copy()
        replaced[k] = np.delete(replaced, k, 0).mean(0)
        without.append(mean_exp(replaced))
    expected = mean_exp(v.numpy()) - np.stack(without) - v.softmax(0).numpy()
    np.testing.assert_allclose(log_q.grad, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "values",
    [[0.0, 1.0, 2.0], [1000.0, 0.0, 0.0, 0.0], [-1e6, 0.0, 1.0], [1e5, -1e5, 3.0, 4.0], [0.0, -math.inf, 1.0]],
    ids=str,
)
def test_vimcos_baselines_keep_their_digits_where_one_weight_is_all_or_nothing(values):
    expected = []
    for k in range(len(values)):
        others = [mpmath.mpf(value) for value in values[:k] + values[k + 1 :]]
        others.append(sum(others) / len(others))
        expected.append(float(mpmath.log(sum(map(mpmath.exp, others)) / len(values))))
    for dtype, digits in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        found = _leave_one_out(torch.tensor(values, dtype=dtype)[:, None])[:, 0]
        np.testing.assert_allclose(found, expected, rtol=digits, atol=digits)


def test_vimcos_baselines_take_memory_in_proportion_to_the_particles():
    one, other = (peak_of(partial(_leave_one_out, torch.zeros(count, 10))) for count in (100, 1000))
    assert other < 11 * one
    assert other < 20 * 1000 * 10 * 8  # bytes


@pytest.mark.parametrize("count", [2, 3])
def test_vimco_is_unbiased_on_discrete_codes(count):
    programs, x, draws = Discrete(), torch.tensor(0.9), 20_000
    exact = torch.autograd.grad(-programs.bound(x, count), list(programs.parameters()))
    many = x.expand(draws)  # the plate holds as many independent draws
    loss = objectives.VIMCO(count)
    sums = []
    for part in many.split(200):
        value = loss.differentiable_loss(programs.model, programs.guide, part)
        sums.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(programs.parameters()))]) / 200)
    found = torch.stack(sums)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - torch.cat([g.flatten() for g in exact])).abs() < 4.5 * error).all()  # 20,000 draws


@pytest.mark.parametrize("partitions", [3, 4, 5])
def test_a_thermodynamic_bound_has_the_exact_gradient_on_discrete_codes(partitions):
    programs, x = Discrete(), torch.tensor(0.9)
    loss = objectives.Thermodynamic(2000, partitions, 0.1)
    exact = torch.autograd.grad(-programs.thermodynamic(x, loss.steps), list(programs.parameters()))
    samples = [torch.cat([g.flatten() for g in gradients(loss, programs, x[None]).values()]) for _ in range(100)]
    found = torch.stack(samples)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - torch.cat([g.flatten() for g in exact])).abs() < 4.5 * error).all()  # 200,000 draws
    assert (error < 0.01 * found.mean(0).abs().max()).all()


# Penalties


def assert_same_loss_and_gradients(one, other, programs, x):
    losses = []
    for loss in (one, other):
        torch.manual_seed(2)
        losses.append(loss.loss(programs.model, programs.guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    first, second = (gradients(loss, programs, x, seed=2) for loss in (one, other))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-10, atol=1e-10)


def small_vae():
    torch.manual_seed(0)
    return VAE(priors.Normal(2), encoders.Normal(3, 2, SMALL), decoders.Normal(2, 3, SMALL))


@pytest.mark.parametrize(
    "loss", [objectives.FreeBits(0.0), objectives.InfoVAE(0.0, 1.0), objectives.BetaTC(1.0, 4)], ids=repr
)
def test_penalties_at_their_neutral_setting_are_the_elbo(loss):
    vae = small_vae()
    if isinstance(loss, objectives.FreeBits):  # no KL of a dimension is below 0 in the mean
        with torch.no_grad():
            vae.encoder.network.layers[0].bias[:2] += 5
    assert_same_loss_and_gradients(loss, Trace_ELBO(), vae, points())


def test_free_bits_below_the_floor_cost_the_floor_and_give_no_gradient():
    vae, x = small_vae(), points()
    terms = objectives.FreeBits(50.0).terms(vae.model, vae.guide, x)
    assert terms.loss.item() == pytest.approx((terms.reconstruction + 2 * 50.0 * len(x)).item())
    assert terms.negative_bound.item() == pytest.approx((terms.reconstruction + terms.kl).item())


def test_beta_tc_is_its_formula():
    vae, x = small_vae(), points()
    torch.manual_seed(8)
    terms = objectives.BetaTC(3.0, 50).terms(vae.model, vae.guide, x)
    torch.manual_seed(8)
    with pyro.plate("particles", 1, dim=-2):
        z = vae.guide(x)[0].detach().numpy()
    q = vae.encoder(x)
    log_q = stats.norm.logpdf(z[:, None], q.mean.detach().numpy(), q.stddev.detach().numpy())  # i, j, d
    log_z = logsumexp(log_q.sum(-1), 1) - math.log(50 * len(x))
    log_z_d = (logsumexp(log_q, 1) - math.log(50 * len(x))).sum(-1)
    own = np.einsum("iid->i", log_q)
    penalty = (own - log_z) + 3 * (log_z - log_z_d) + (log_z_d - stats.norm.logpdf(z).sum(-1))
    assert terms.loss.item() == pytest.approx(terms.reconstruction.item() + penalty.sum(), rel=1e-10)


def test_info_vae_is_its_formula():
    vae, x, alpha, weight = small_vae(), points(), 0.3, 2.0
    torch.manual_seed(8)
    terms = objectives.InfoVAE(alpha, weight).terms(vae.model, vae.guide, x)
    torch.manual_seed(8)
    z = vae.encoder(x).sample()
    a, b, count = z.numpy(), vae.prior().sample((len(x),)).numpy(), len(x)

    def kernel(one, other):
        distance = ((one[:, None] - other) ** 2).sum(-1)
        return sum(2 * 2 * s / (2 * 2 * s + distance) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    within = (kernel(a, a) + kernel(b, b))[~np.eye(count, dtype=bool)].mean()
    discrepancy = within - 2 * kernel(a, b).mean()
    expected = terms.reconstruction + (1 - alpha) * terms.kl + (alpha + weight - 1) * count * discrepancy
    assert terms.loss.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "share"),
    [
        (objectives.StickingTheLanding(6), 1.0),
        (objectives.FreeBits(0.0), 1.0),
        (objectives.InfoVAE(0.3, 2.0), 0.7),
        (objectives.BetaTC(3.0, 100), 1.0),
    ],
    ids=repr,
)
def test_a_kl_weight_is_that_of_the_kl_and_of_nothing_else(loss, share):
    vae, x = small_vae(), points()
    with torch.no_grad():  # no KL of a dimension is below 0 in the mean
        vae.encoder.network.layers[0].bias[:2] += 5
    found = []
    for weight in (1.0, 0.4):
        torch.manual_seed(2)
        found.append(loss.terms(*weigh_kl(weight, vae.model, vae.guide), x))
    plain, weighed = found
    assert weighed.loss.item() == pytest.approx((plain.loss - 0.6 * share * plain.kl).item(), rel=1e-12)


def test_the_discrepancy_of_one_distribution_is_0_in_the_mean_and_of_two_is_not():
    draws = torch.stack([maximum_mean_discrepancy(torch.randn(20, 2), torch.randn(20, 2)) for _ in range(2000)])
    assert draws.mean().abs() < 4 * draws.std() / math.sqrt(2000)  # 2,000 draws
    assert maximum_mean_discrepancy(torch.randn(200, 2), 1 + torch.randn(200, 2)) > 0.1


def test_a_discrepancy_loses_few_digits_though_its_terms_nearly_cancel():
    for pair in torch.randn(20, 2, 512, 2, dtype=torch.float32):
        exact = maximum_mean_discrepancy(*pair.double())
        assert (maximum_mean_discrepancy(*pair) - exact).abs() < 2e-7  # of terms of 10


# Particles in chunks


CHUNKED = {
    "IWAE": partial(objectives.IWAE, 5),
    "DReG": partial(objectives.DReG, 5),
    "Renyi": partial(objectives.Renyi, 0.5, 5),
    "CIWAE": partial(objectives.CIWAE, 0.3, 5),
    "MIWAE": partial(objectives.MIWAE, 2, 3),
    "PIWAE": partial(objectives.PIWAE, 2, 3),
    "VIMCO": partial(objectives.VIMCO, 5),
    "Thermodynamic": partial(objectives.Thermodynamic, 5, 3, 0.1),
    "StickingTheLanding": partial(objectives.StickingTheLanding, 5),
    "FreeBits": partial(objectives.FreeBits, 0.1, 5),
    "InfoVAE": partial(objectives.InfoVAE, 0.5, 2.0, 5),
    "BetaTC": partial(objectives.BetaTC, 3.0, 100, 5),
}


class ByParticle(noise._Noise):
    """Draws the noise of one particle after the other, so that it does not depend on the chunks."""

    def uniform(self, particles, batch, event, like):
        return torch.stack([torch.rand(batch + event, dtype=like.dtype) for _ in range(particles)])


class OneSample(dist.Normal):
    """A prior whose draws are its quantiles, the same for every particle."""

    def rsample(self, sample_shape=()):
        shape = torch.Size(sample_shape) + self.batch_shape
        levels = (torch.arange(shape[-2:].numel()) + 0.5) / shape[-2:].numel()
        return self.icdf(levels.reshape(shape[-2:])).expand(shape)


class Watched(nn.Module):
    """The programs of a small VAE on noise that does not depend on the chunks, and how many particles it decodes."""

    def __init__(self):
        super().__init__()
        self.vae, self.decoded = small_vae(), []
        self.vae.prior.forward = lambda: OneSample(torch.zeros(2), 1.0).to_event(1)
        self.vae.decoder.register_forward_pre_hook(lambda _, codes: self.decoded.append(len(codes[0])))
        self.model, self.guide = self.vae.model, ByParticle()(self.vae.guide)


def test_all_objectives_are_held_to_their_chunks():
    assert {type(loss).__name__ for loss in ALL.values()} == set(CHUNKED)


@pytest.mark.parametrize("chunk", [1, 2, 4])
@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_change_neither_value_nor_gradient_and_hold_no_more_than_their_particles(name, chunk):
    programs, x = Watched(), points()
    whole, parts = CHUNKED[name](), CHUNKED[name](chunk=chunk)
    sizes = [min(chunk, whole.num_particles - start) for start in range(0, whole.num_particles, chunk)]
    values = []
    for loss in (whole, parts):
        torch.manual_seed(1)
        values.append(loss.terms(programs.model, programs.guide, x))
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)
    expected = gradients(whole, programs, x, seed=1)
    programs.decoded.clear()
    found = gradients(parts, programs, x, seed=1)
    assert programs.decoded == [*sizes, *sizes[::-1]]  # forward, and back again
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-10, atol=1e-10)
        assert value.any()


@pytest.mark.parametrize("name", ["InfoVAE", "BetaTC"])
def test_a_loss_of_several_particles_is_the_mean_of_those_of_one(name):
    programs, x, own = Watched(), points(), CHUNKED[name].args[:2]
    losses = []
    for count in (1, 5):
        torch.manual_seed(1)
        loss = CHUNKED[name].func(*own, count)
        losses.append(torch.stack([loss.terms(programs.model, programs.guide, x).loss for _ in range(5 // count)]))
    torch.testing.assert_close(losses[0].mean(0, keepdim=True), losses[1])


# In training


@every_objective
def test_every_objective_trains_by_fit_and_by_svi(name):
    loss, x = ALL[name], data.load("digits").train[:200].double()
    vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
    history = fit(vae.model, vae.guide, x, loss=loss, epochs=2, batch_size=50, validation=x[:20])
    assert history[2]["train_loss"] < history[0]["train_loss"]
    pyro.clear_param_store()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    before = svi.evaluate_loss(x)
    for _ in range(5):
        svi.step(x)
    assert svi.evaluate_loss(x) < before


@every_objective
def test_a_recorded_training_is_the_eager_one(name):
    x = points(40)
    found = []
    for engine in ("eager", "recorded"):
        vae = small_vae()
        history = fit(vae.model, vae.guide, x, loss=ALL[name], epochs=6, batch_size=20, engine=engine)
        found.append(torch.cat([value.flatten() for value in vae.parameters()]))
        assert engine == "eager" or history.engine.startswith("recorded")
    assert torch.equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "recorded", "compiled"])
def test_a_training_in_chunks_is_not_recorded_and_says_why(engine):
    """A recording would hold all chunks at once."""
    found = []
    for how in ("eager", engine):
        vae = small_vae()
        train = partial(fit, vae.model, vae.guide, points(40), loss=objectives.DReG(5, chunk=2), epochs=3, engine=how)
        if how in ("eager", "auto"):
            history = train(batch_size=20)
        else:
            with pytest.warns(RuntimeWarning, match="particles are processed in chunks, and a recording would"):
                history = train(batch_size=20)
        assert history.engine.startswith("eager, as asked" if how == "eager" else "eager: particles are processed")
        found.append(torch.cat([value.flatten() for value in vae.parameters()]))
    assert torch.equal(*found)


class Counted(nn.Module):
    """An encoder that hands out another scale at every call, as one whose temperature falls."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.calls = encoder, 0

    def forward(self, x):
        self.calls += 1
        normal = self.encoder(x).base_dist
        return dist.Normal(normal.loc, normal.scale / self.calls).to_event(1)


@pytest.mark.parametrize("name", CHUNKED)
def test_the_encoder_is_run_once_a_step_whatever_the_chunks(name):
    found = []
    for chunk in (None, 2):
        vae = small_vae()
        vae.encoder = Counted(vae.encoder)
        loss, programs = CHUNKED[name](chunk=chunk), Watched()
        programs.vae.encoder = vae.encoder
        torch.manual_seed(1)
        loss.loss_and_grads(programs.model, programs.guide, points())
        assert vae.encoder.calls == 1
        found.append(torch.cat([value.grad.flatten() for value in vae.encoder.parameters()]))
        assert found[-1].any()
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_trace_graph_trains_by_fit_as_the_elbo_does_where_all_is_pathwise():
    found = []
    for loss in (Trace_ELBO(), TraceGraph_ELBO()):
        vae = small_vae()
        fit(vae.model, vae.guide, points(40), loss=loss, epochs=2, batch_size=20)
        found.append(torch.cat([value.flatten() for value in vae.parameters()]))
    torch.testing.assert_close(*found)


def test_an_elbo_that_accumulates_its_gradients_gives_those_of_the_mean_too():
    vae, x, found = small_vae(), points(), []
    for loss in (Trace_ELBO(), TraceGraph_ELBO()):
        compute = objectives.terms_and_gradients(loss)
        torch.manual_seed(0)
        terms, gradient = compute(vae.model, vae.guide, x, 1.0, lambda: list(vae.parameters()))
        found.append([*terms, *gradient])
    torch.testing.assert_close(*found)


@every_objective
def test_reconstruction_and_kl_are_reported_as_means_over_the_particles(name):
    loss, vae, x = ALL[name], small_vae(), points()
    torch.manual_seed(0)
    terms = loss.terms(vae.model, vae.guide, x)
    torch.manual_seed(0)
    posterior = vae.encoder(x)
    z = posterior.sample((loss.num_particles,))
    reconstruction = -vae.decoder(z).log_prob(x).mean(0).sum().item()
    kl = (posterior.log_prob(z) - vae.prior().log_prob(z)).mean(0).sum().item()
    assert (terms.reconstruction.item(), terms.kl.item()) == pytest.approx((reconstruction, kl), rel=1e-12)
    bound = reconstruction + kl if loss.weighs_kl else terms.loss.item()
    assert terms.negative_bound.item() == pytest.approx(bound, rel=1e-12)


@every_objective
def test_reconstruction_and_kl_are_reported_without_the_weight(name):
    loss, vae, x = ALL[name], small_vae(), points()
    torch.manual_seed(noise_seed(0))
    plain = loss.terms(vae.model, vae.guide, x)
    bound = evaluate(vae.model, vae.guide, x, loss=loss, seed=0)
    assert bound == pytest.approx([term.item() / len(x) for term in plain[1:]])
    if loss.weighs_kl:
        torch.manual_seed(noise_seed(0))
        weighed = loss.terms(*weigh_kl(0.0, vae.model, vae.guide), x)
        assert weighed[1:] == plain[1:]
        assert weighed.loss != plain.loss
        fit(vae.model, vae.guide, x, loss=loss, epochs=1, batch_size=4, beta=0.5)


@pytest.mark.parametrize("name", [name for name in ALL if ALL[name].weighs_kl])
@pytest.mark.parametrize("size", [100, None])
def test_a_scale_of_the_programs_own_counts_in_the_kl_that_is_reported(name, size):
    loss, vae, x = ALL[name], small_vae(), points()

    def programs(scale):
        def model(x):
            with pyro.plate("data", size or len(x), subsample_size=len(x)):
                with poutine.scale(scale=scale):
                    z = pyro.sample("z", vae.prior())
                pyro.sample("x", vae.decoder(z), obs=x)

        def guide(x):
            with pyro.plate("data", size or len(x), subsample_size=len(x)), poutine.scale(scale=scale):
                pyro.sample("z", vae.encoder(x))

        return model, guide

    torch.manual_seed(0)
    plain = loss.terms(*programs(1.0), x)
    torch.manual_seed(0)
    terms = loss.terms(*weigh_kl(0.5, *programs(3.0)), x)
    assert terms.kl.item() == pytest.approx(3 * plain.kl.item(), rel=1e-12)
    assert terms.negative_bound.item() == pytest.approx(plain.reconstruction.item() + 3 * plain.kl.item(), rel=1e-12)


# Refused


@pytest.mark.parametrize("name", [name for name in ALL if not ALL[name].weighs_kl])
@pytest.mark.parametrize("beta", [0.5, objectives.linear_warm_up(3)])
def test_a_kl_weight_on_an_importance_weighted_bound_is_refused(name, beta):
    vae = small_vae()
    with pytest.raises(ValueError, match="has no KL to weigh"):
        fit(vae.model, vae.guide, points(), loss=ALL[name], epochs=1, batch_size=4, beta=beta)
    with pytest.raises(ValueError, match=r"has no KL to weigh: a scale of 0\.5 at site '[xz]'"):
        ALL[name].loss(poutine.scale(vae.model, 0.5), poutine.scale(vae.guide, 0.5), points())


@pytest.mark.parametrize("name", PATHWISE | PENALIZED)
def test_codes_without_a_pathwise_sampler_are_refused_by_name(name):
    programs = Discrete()
    with pytest.raises(ValueError, match="needs a pathwise sampler, which Bernoulli at site 'z' has not: take VIMCO"):
        ALL[name].loss(programs.model, programs.guide, torch.zeros(3))


@every_objective
def test_a_site_outside_the_plate_is_refused_by_name(name):
    def model(x):
        pyro.sample("global", dist.Normal(0.0, 1.0))
        small_vae().model(x)

    def guide(x):
        pyro.sample("global", dist.Normal(0.0, 1.0))
        small_vae().guide(x)

    with pytest.raises(ValueError, match=r"every site must stand in one plate.*site 'global' stands in 0"):
        ALL[name].loss(model, guide, points())


@every_objective
def test_a_site_that_one_program_alone_draws_is_refused_by_name(name):
    """Its density would be a factor of the weights that belongs to no variable of the other program."""
    vae = small_vae()

    def nothing(x):
        pass

    def other(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", vae.encoder(x))

    for guide, sites in ((nothing, "z"), (other, "y, z")):
        with pytest.raises(ValueError, match=f"draw the same sites, but only one of them draws {sites}:"):
            ALL[name].loss(vae.model, guide, points())


def test_an_auxiliary_site_of_the_guide_makes_no_other_weights():
    """A normal code as a point at a function of noise, whose log-density the point carries: as Pyro's autoguides."""
    vae, x = small_vae(), points()

    def guide(x):
        normal = vae.encoder(x).base_dist
        with pyro.plate("data", len(x)):
            noise = dist.Normal(torch.zeros_like(normal.loc), 1.0).to_event(1)
            u = pyro.sample("u", noise, infer={"is_auxiliary": True})
            log_density = -normal.scale.log().sum(-1)
            pyro.sample("z", dist.Delta(normal.loc + normal.scale * u, log_density=log_density, event_dim=1))

    values = []
    for program in (vae.guide, guide):
        torch.manual_seed(0)
        values.append(objectives.IWAE(6).loss(vae.model, program, x))
    assert values[0] == pytest.approx(values[1], rel=1e-12)


@every_objective
def test_a_deterministic_site_has_no_part_in_the_weights_wherever_it_stands(name):
    vae, x, values = small_vae(), points(), []

    def model(x):
        pyro.deterministic("scale", torch.tensor(3.0))
        return vae.model(x)

    for program in (vae.model, model):
        torch.manual_seed(0)
        values.append(ALL[name].loss(program, vae.guide, x))
    assert values[0] == values[1]


@pytest.mark.parametrize("name", ["DReG", "PIWAE", "StickingTheLanding", *PENALIZED])
def test_a_guide_of_two_sites_is_refused_where_one_is_needed(name):
    def program(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            return pyro.sample("b", dist.Normal(z, 1.0).to_event(1))

    def model(x):
        z = program(x)
        with pyro.plate("again", len(x)):
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x[:, :1])

    with pytest.raises(ValueError, match="takes a guide of one latent site, not of 2"):
        ALL[name].loss(model, program, points())


@pytest.mark.parametrize("name", ["FreeBits", "BetaTC"])
def test_dependent_dimensions_are_refused_where_they_are_taken_apart(name):
    programs = LinearGaussian()
    with pytest.raises(ValueError, match="needs independent latent dimensions, which MultivariateNormal at site 'z'"):
        ALL[name].loss(programs.model, programs.guide, points())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objectives.IWAE(0), "num_particles must be at least 1, not 0"),
        (lambda: objectives.IWAE(2, chunk=0), "chunk must be at least 1, not 0"),
        (lambda: objectives.MIWAE(-2, -3), "groups must be at least 1, not -2"),
        (lambda: objectives.PIWAE(2, 0), "num_particles must be at least 1, not 0"),
        (lambda: objectives.VIMCO(1), "VIMCO takes at least 2 particles, not 1"),
        (lambda: objectives.Renyi(math.nan), "alpha must be a number or -inf, not nan"),
        (lambda: objectives.CIWAE(1.5), r"the beta of CIWAE must be from 0 to 1, not 1\.5"),
        (lambda: objectives.FreeBits(-1), "the floor of FreeBits must be at least 0 and finite, not -1"),
        (lambda: objectives.InfoVAE(math.inf), "alpha and scale must be finite, not inf"),
        (lambda: objectives.BetaTC(-1), "beta must be at least 0"),
        (lambda: objectives.Thermodynamic(first=1.0), r"0 < first < 1: .*first=1\.0"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
