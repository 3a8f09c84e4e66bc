"""Every objective on latent sites of any event shape, against its formula written out with torch's autograd.

The programs have parameters of the model (w, m) and of the guide (a, c); their codes are numbers, vectors or matrices,
on the reals or above 0, at one site or at two of which the second follows the first.
"""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.distributions.util import sum_rightmost
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch.distributions import AffineTransform

from pyro_vae import VAE, decoders, encoders, evaluate, fit, log_likelihood, objectives, priors
from pyro_vae.distributions.wrappers import ScoreFunction, _Wrapper
from pyro_vae.objectives import terms_and_gradients

pytestmark = pytest.mark.usefixtures("float64")
K = 4
EVENTS = [(), (1,), (3,), (2, 3)]
SHARES = torch.tensor([0.5, 1.0, 1.5, 2.0])


class Programs:
    """Codes z, of which x = w sum(z) + noise is seen."""

    def __init__(self, event, positive=False, sites=1):
        self.event, self.sites = event, sites
        self.family = dist.LogNormal if positive else dist.Normal
        self.w, self.m, self.a, self.c = (torch.tensor(v, requires_grad=True) for v in (0.8, 0.1, 0.3, -0.4))
        self.theta, self.phi = (self.w, self.m), (self.a, self.c)

    def prior(self, m):
        return self.family(m + torch.zeros(self.event), 1.2).to_event(len(self.event))

    def posterior(self, x, before, a, c):
        ones = [1] * len(self.event)
        apart = 0.1 * torch.arange(math.prod(self.event)).reshape(self.event)
        loc = (a * x + 0.2 * before).reshape(*torch.broadcast_shapes(x.shape, before.shape), *ones) + apart
        return self.family(loc, c.exp() * (1 + apart)).to_event(len(self.event))

    def total(self, z):
        return sum_rightmost(z, len(self.event))

    def model(self, x):
        with pyro.plate("data", len(x)):
            codes = [pyro.sample(f"z{site}", self.prior(self.m)) for site in range(self.sites)]
            pyro.sample("x", dist.Normal(self.w * sum(map(self.total, codes)), 0.6), obs=x)

    def guide(self, x):
        before = torch.zeros(())
        with pyro.plate("data", len(x)):
            for site in range(self.sites):
                before = self.total(pyro.sample(f"z{site}", self.posterior(x, before, self.a, self.c)))

    def draw(self, x, count, a, c):
        """The codes of some particles, from the noise that the guide draws after the same seed."""
        torch.manual_seed(0)
        codes, before = [], torch.zeros(count, len(x))
        for _ in range(self.sites):
            codes.append(self.posterior(x, before, a, c).rsample())
            before = self.total(codes[-1])
        return codes

    def log_q(self, x, codes, a, c):
        before = [torch.zeros(len(codes[0]), len(x)), *map(self.total, codes[:-1])]
        return sum(self.posterior(x, b, a, c).log_prob(z) for b, z in zip(before, codes, strict=True))

    def log_p(self, x, codes, w, m):
        seen = dist.Normal(w * sum(map(self.total, codes)), 0.6).log_prob(x)
        return seen + sum(self.prior(m).log_prob(z) for z in codes)


def mean_exp(v, dim=0):
    return v.logsumexp(dim) - math.log(v.shape[dim])


def pathwise(bound):
    """The plain gradient of a bound that is a function of the log-weights, all of it through the draws."""

    def loss(programs, x):
        codes = programs.draw(x, K, *programs.phi)
        log_w = programs.log_p(x, codes, *programs.theta) - programs.log_q(x, codes, *programs.phi)
        return {programs.theta + programs.phi: -bound(log_w).sum()}

    return loss


def held(values):
    return [value.detach() for value in values]


def sticking(programs, x):
    codes = programs.draw(x, K, *programs.phi)
    log_w = programs.log_p(x, codes, *programs.theta) - programs.log_q(x, codes, *held(programs.phi))
    return {programs.theta + programs.phi: -log_w.mean(0).sum()}


def doubly(programs, x):
    fixed = held(programs.draw(x, K, *programs.phi))
    log_w = programs.log_p(x, fixed, *programs.theta) - programs.log_q(x, fixed, *held(programs.phi))
    squares = log_w.softmax(0).detach() ** 2
    codes = programs.draw(x, K, *programs.phi)
    along = programs.log_p(x, codes, *held(programs.theta)) - programs.log_q(x, codes, *held(programs.phi))
    return {programs.theta: -mean_exp(log_w).sum(), programs.phi: -(squares * along).sum()}


def in_groups(programs, x):
    iwae, miwae = (
        next(iter(pathwise(bound)(programs, x).values())) for bound in (mean_exp, lambda v: grouped(v).mean(0))
    )
    return {programs.theta: iwae, programs.phi: miwae}


def grouped(v):
    return mean_exp(v.reshape(2, 2, -1), 1)


def vimco(programs, x):
    codes = held(programs.draw(x, K, *programs.phi))
    log_q = programs.log_q(x, codes, *programs.phi)
    log_w = programs.log_p(x, codes, *programs.theta) - log_q
    total = mean_exp(log_w).sum()
    for k in range(K):
        others = torch.cat([log_w[:k], log_w[k + 1 :]]).detach()
        without = mean_exp(torch.cat([others, others.mean(0, keepdim=True)]))
        total = total + ((mean_exp(log_w).detach() - without) * log_q[k]).sum()
    return {programs.theta + programs.phi: -total}


def thermodynamic(programs, x):
    codes, total = held(programs.draw(x, K, *programs.phi)), 0.0
    log_q, log_p = programs.log_q(x, codes, *programs.phi), programs.log_p(x, codes, *programs.theta)
    log_w = log_p - log_q
    for beta, following in itertools.pairwise((0.0, 0.1, 0.1**0.5, 1.0)):
        weights = (beta * log_w).softmax(0).detach()
        path = beta * log_p + (1 - beta) * log_q  # log of the unnormalized density between q and p
        mean = (weights * log_w.detach()).sum(0)
        covariance = (weights * (log_w.detach() - mean) * path).sum(0) * K / (K - 1)
        total = total + (following - beta) * ((weights * log_w).sum(0) + covariance)
    return {programs.theta + programs.phi: -total.sum()}


def entries(programs, x):
    """Codes, the log-densities of q and p apart for each of their entries, shape (K, B, D), and the reconstruction."""
    (z,) = programs.draw(x, K, *programs.phi)
    q, p = programs.posterior(x, torch.zeros(()), *programs.phi), programs.prior(programs.m)
    bare = [getattr(fn, "base_dist", fn) if programs.event else fn for fn in (q, p)]
    log_q, log_p = (fn.log_prob(z).reshape(K, len(x), -1) for fn in bare)
    seen = dist.Normal(programs.w * programs.total(z), 0.6).log_prob(x).mean(0).sum()
    return z, log_q, log_p, bare[0], seen


def free_bits(programs, x):
    _, log_q, log_p, _, seen = entries(programs, x)
    floors = torch.maximum((log_q - log_p).mean((0, 1)), torch.tensor(0.1))
    return {programs.theta + programs.phi: len(x) * floors.sum() - seen}


def info_vae(programs, x):
    z, log_q, log_p, _, seen = entries(programs, x)
    z, count, total = z.reshape(K, len(x), -1), len(x), 0.0
    b = programs.prior(programs.m).expand((K, count)).rsample().reshape(z.shape)
    width = 2 * z.shape[-1]

    def kernel(one, other):
        return sum(width * s / (width * s + ((one - other) ** 2).sum()) for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0))

    for k, i, j in itertools.product(range(K), range(count), range(count)):
        if i != j:
            total = total + (kernel(z[k, i], z[k, j]) + kernel(b[k, i], b[k, j])) / (count * (count - 1))
        total = total - 2 * kernel(z[k, i], b[k, j]) / count**2
    kl = (log_q - log_p).sum(-1).mean(0).sum()
    return {programs.theta + programs.phi: 0.5 * kl + (0.5 + 2.0 - 1) * count * total / K - seen}


def beta_tc(programs, x):
    z, log_q, log_p, q, seen = entries(programs, x)
    total, count, size = 0.0, len(x), math.log(100 * len(x))
    for k, i in itertools.product(range(K), range(count)):
        pairs = torch.stack([q.expand((count, *programs.event)).log_prob(z[k, i])[j].flatten() for j in range(count)])
        total = total + (pairs.sum(-1).logsumexp(0) - size) - (pairs.logsumexp(0) - size).sum()
    return {programs.theta + programs.phi: (log_q - log_p).sum(-1).mean(0).sum() + 2 * total / K - seen}


ONE_SITE = {
    objectives.StickingTheLanding(K): sticking,
    objectives.DReG(K): doubly,
    objectives.PIWAE(2, 2): in_groups,
    objectives.FreeBits(0.1, K): free_bits,
    objectives.InfoVAE(0.5, 2.0, K): info_vae,
    objectives.BetaTC(3.0, 100, K): beta_tc,
}
ANY_SITES = {
    objectives.IWAE(K): pathwise(mean_exp),
    objectives.MIWAE(2, 2): pathwise(lambda v: grouped(v).mean(0)),
    objectives.CIWAE(0.3, K): pathwise(lambda v: 0.3 * v.mean(0) + 0.7 * mean_exp(v)),
    objectives.Renyi(0.5, K): pathwise(lambda v: 2 * mean_exp(v / 2)),
    objectives.VIMCO(K): vimco,
    objectives.Thermodynamic(K, 3, 0.1): thermodynamic,
}
CASES = [(loss, formula, 1) for loss, formula in (ONE_SITE | ANY_SITES).items()]
CASES += [(loss, formula, 2) for loss, formula in ANY_SITES.items()]


@pytest.mark.parametrize("positive", [False, True], ids=["real", "positive"])
@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize(
    ("loss", "formula", "sites"), CASES, ids=[f"{type(loss).__name__}-{n}" for loss, _, n in CASES]
)
def test_gradients_on_sites_of_any_shape_are_those_of_the_formula(loss, formula, sites, event, positive):
    programs, x = Programs(event, positive, sites), torch.tensor([1.5, -0.5, 0.7])
    expected = {}
    for parameters, value in formula(programs, x).items():
        expected |= zip(parameters, torch.autograd.grad(value, parameters, retain_graph=True), strict=True)
    parameters = programs.theta + programs.phi
    for chunk in [K] if formula is info_vae else [K, 3]:  # chunks draw other noise from a prior
        loss.chunk = chunk
        torch.manual_seed(0)
        found = loss.differentiable_loss(programs.model, programs.guide, x)
        if formula not in (doubly, in_groups, vimco, thermodynamic):  # of which the surrogate alone has the gradient
            assert found.item() == pytest.approx(value.item(), rel=1e-12)
        for parameter, gradient in zip(parameters, torch.autograd.grad(found, parameters), strict=True):
            torch.testing.assert_close(gradient, expected[parameter], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "loss", [objectives.StickingTheLanding(), objectives.DReG(2), objectives.PIWAE(2, 2), objectives.IWAE(2)], ids=repr
)
def test_training_on_a_code_that_is_one_number_ends_at_the_exact_posterior(loss):
    """z ~ N(0, 1), x ~ N(z, 0.6^2): the posterior is N(x / 1.36, 0.36 / 1.36), and the evidence that of N(0, 1.36)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.6), obs=x[:, 0])

    def guide(x):
        a = pyro.param("a", torch.tensor(0.3))
        s = pyro.param("s", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(a * x[:, 0], s))

    x = 1.36**0.5 * torch.randn(512, 1, generator=torch.Generator().manual_seed(0))
    optimizer = partial(torch.optim.Adam, lr=2e-2)
    with pyro.get_param_store().scope() as store:
        history = fit(model, guide, x, loss=loss, epochs=40, batch_size=128, optimizer=optimizer)
    assert store["params"]["a"].item() == pytest.approx(1 / 1.36, abs=0.03)
    assert math.exp(store["params"]["s"].item()) == pytest.approx((0.36 / 1.36) ** 0.5, abs=0.03)
    evidence = dist.Normal(0.0, 1.36**0.5).log_prob(x).mean().item()
    assert history[-1]["train_loss"] == pytest.approx(-evidence, abs=0.01)  # 512 draws


@pytest.mark.parametrize("name", ["FreeBits", "BetaTC", "InfoVAE"])
def test_a_penalty_takes_events_that_are_nested_vectors(name):
    """One event of two dimensions, or a vector of vectors: the same distribution."""
    x, found = torch.tensor([1.5, -0.5, 0.7]), []
    for nested in (False, True):
        programs = Programs((2, 3))
        if nested:
            programs.posterior = lambda *args: Programs.posterior(programs, *args).base_dist.to_event(1).to_event(1)  # noqa: B023
        torch.manual_seed(0)
        loss = getattr(objectives, name)().differentiable_loss(programs.model, programs.guide, x)
        found.append([loss, *torch.autograd.grad(loss, programs.phi)])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def seen(x, fn, event_dim=0):
    """Programs of one code, with a posterior that is given."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand(fn().event_shape).to_event(event_dim))
            pyro.sample("x", dist.Normal(sum_rightmost(z, event_dim), 0.6), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn())

    return model, guide, x


@pytest.mark.parametrize("name", ["StickingTheLanding", "DReG"])
def test_a_support_that_moves_with_parameters_is_refused_where_the_score_is_left_out(name):
    """Its score has a mean that is not 0: that of a uniform distribution's width is minus one over it."""
    width = torch.tensor(1.5, requires_grad=True)
    for fn in (lambda: dist.Pareto(width, 3.0), lambda: dist.Pareto(width.expand(2), 3.0).to_event(1)):
        with pytest.raises(ValueError, match=f"{name} leaves out the score.*Pareto at site 'z' moves: take IWAE"):
            getattr(objectives, name)().differentiable_loss(*seen(torch.ones(3), fn, len(fn().event_shape)))
    fixed = seen(torch.ones(3), lambda: dist.Pareto(1.5, 2 * width))
    assert getattr(objectives, name)().differentiable_loss(*fixed).isfinite()


@pytest.mark.parametrize(
    ("loss", "wrapper"),
    [(objectives.VIMCO(4), None), (objectives.Thermodynamic(4), ScoreFunction), (Trace_ELBO(), ScoreFunction)],
    ids=lambda each: type(each).__name__,
)
def test_a_support_that_moves_with_parameters_is_refused_where_the_score_function_is_taken(loss, wrapper):
    """With log p(x|z) = -8 z^2 and a width w of 0.9, the bound's slope is 1 / w - 16 w / 3 = -3.69.

    The score is -1 / w everywhere: times the bound, -3.18, it has the mean 3.54.
    """
    width, wrapped = torch.tensor(0.9, requires_grad=True), wrapper or (lambda distribution: distribution)
    model, guide, x = seen(torch.ones(3), lambda: wrapped(dist.Uniform(0.0, width)))
    compute = terms_and_gradients(loss)
    with pytest.raises(ValueError, match=f"^{type(loss).__name__} takes the score function at site 'z', .* moves"):
        compute(model, guide, x, 1.0, lambda: [width])
    fixed = seen(torch.ones(3), lambda: wrapped(dist.Beta(width, 1.0)))
    assert compute(*fixed, 1.0, lambda: [width])[1][0].isfinite()


@pytest.mark.parametrize(
    "loss", [Trace_ELBO(), objectives.VIMCO(4), objectives.Thermodynamic(4)], ids=lambda each: type(each).__name__
)
@pytest.mark.parametrize("kind", ["wrapped", "mixture"])
def test_the_score_is_that_of_a_transform_which_remembers_its_input(loss, kind):
    """With the gradients of the same draws from a normal distribution, or from a mixture, without a transform."""
    a, c, x = torch.tensor(0.3, requires_grad=True), torch.tensor(-0.4, requires_grad=True), torch.ones(5)

    def of(loc, scale):
        mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(loc + scale * apart, scale))
        return mixture if kind == "mixture" else ScoreFunction(dist.Normal(loc, scale))

    def gradients(fn):
        torch.manual_seed(0)
        model, guide, _ = seen(x, fn)
        return terms_and_gradients(loss)(model, guide, x, 1.0, lambda: [a, c])[1]

    apart = torch.tensor([-0.5, 0.5])

    def transformed():
        base = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(apart, 1.0))
        base = base if kind == "mixture" else dist.Normal(0.0, 1.0)
        q = dist.TransformedDistribution(base, [AffineTransform(a, c.exp(), cache_size=1)])
        return q if kind == "mixture" else ScoreFunction(q)

    torch.testing.assert_close(gradients(transformed), gradients(lambda: of(a, c.exp())))


def test_the_score_of_a_transform_without_an_inverse_is_refused():
    planar, x = pyro.distributions.transforms.Planar(2), torch.ones(5)
    model, guide, _ = seen(
        x, lambda: ScoreFunction(dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), planar)), 1
    )
    with pytest.raises(ValueError, match="the density of score-function draws is known at its own draws alone"):
        terms_and_gradients(Trace_ELBO())(model, guide, x, 1.0, lambda: list(planar.parameters()))


class ByRejection(dist.Rejector):
    """A normal distribution whose draws are those of N(0, 1.5) that are accepted; only the acceptance knows a."""

    support = constraints.real

    def __init__(self, a, scale):
        self.target, wide = dist.Normal(a, scale), dist.Normal(torch.zeros_like(a), 1.5)
        top = a * 2.25 / (2.25 - scale**2)  # where the ratio of the densities is largest
        most = self.target.log_prob(top) - wide.log_prob(top)
        super().__init__(wide, lambda z: self.target.log_prob(z) - wide.log_prob(z) - most, -most)

    def expand(self, batch_shape, _instance=None):
        return ByRejection(self.target.loc.expand(batch_shape), self.target.scale.expand(batch_shape))


def rejected(wrap=lambda q: q, event=()):
    """The parameter a, and programs on 20,000 data 1 with these draws."""
    a, x = torch.tensor(0.3, requires_grad=True), torch.ones(20_000)
    return a, seen(x, lambda: wrap(ByRejection(a.expand(*x.shape, *event), torch.tensor(0.6))), len(event))


@pytest.mark.parametrize(
    ("wrap", "event"),
    [(ScoreFunction, ()), (lambda q: ScoreFunction(q.to_event(1)), (1,)), (lambda q: q, ())],
    ids=["wrapped", "vector", "plain"],
)
def test_draws_by_rejection_have_their_score(wrap, event):
    """The slope of the bound by a is a + (a - 1) / 0.36 = -1.64; without the score of the acceptance it is 0."""
    a, programs = rejected(wrap, event)
    (gradient,) = terms_and_gradients(Trace_ELBO())(*programs, 1.0, lambda: [a])[1]
    assert gradient.item() == pytest.approx(-1.644, abs=0.15)


@pytest.mark.parametrize(
    "loss",
    [objectives.IWAE(2), TraceGraph_ELBO(), objectives.StickingTheLanding(), objectives.FreeBits(), Trace_ELBO()],
    ids=lambda each: type(each).__name__,
)
def test_draws_by_rejection_are_refused_where_their_score_is_left_out(loss):
    wrap, event = (lambda q: q.to_event(1), (1,)) if isinstance(loss, Trace_ELBO) else (lambda q: q, ())
    a, programs = rejected(wrap, event)
    with pytest.raises(ValueError, match=rf"^{type(loss).__name__} leaves out the score .* ByRejection at site 'z'"):
        terms_and_gradients(loss)(*programs, 1.0, lambda: [a])
    with torch.no_grad():
        assert math.isfinite(loss.loss(*programs))


class Together(_Wrapper):
    """A vector whose entries have a support each."""

    has_rsample = True
    parts = constraints.stack

    @property
    def support(self):
        return type(self).parts([constraints.greater_than(self.base_dist.base_dist.scale)] * 2)

    def rsample(self, sample_shape=()):
        return self.base_dist.rsample(torch.Size(sample_shape))

    def log_prob(self, value):
        return self.base_dist.log_prob(value)


class InARow(Together):
    parts = constraints.cat


@pytest.mark.parametrize("kind", [InARow, Together])
def test_a_support_of_several_parts_that_move_is_refused_too(kind):
    width = torch.full((2,), 1.5, requires_grad=True)
    programs = seen(torch.ones(3), lambda: kind(dist.Pareto(width, 3.0).to_event(1)), 1)
    with pytest.raises(ValueError, match="StickingTheLanding leaves out the score"):
        objectives.StickingTheLanding().differentiable_loss(*programs)


def test_a_support_that_a_transform_moves_is_refused_and_one_that_it_scales_is_not():
    """Torch takes both for the real line. The score of the shift has the mean of the rate, that of the scale 0."""
    shift, scale = (torch.tensor(v, requires_grad=True) for v in (0.3, 0.8))

    def code(loc):
        return dist.TransformedDistribution(dist.Exponential(2.0), [dist.transforms.AffineTransform(loc, scale)])

    for fn in (lambda: code(shift), lambda: code(shift.expand(2)).to_event(1)):
        with pytest.raises(ValueError, match=r"leaves out the score.*TransformedDistribution at site 'z' moves"):
            objectives.StickingTheLanding().differentiable_loss(*seen(torch.ones(3), fn, len(fn().event_shape)))
    gradients = []
    for loss in (Trace_ELBO(), objectives.StickingTheLanding()):
        torch.manual_seed(0)
        value = loss.differentiable_loss(*seen(torch.full((40_000,), 0.5), lambda: code(0.1))) / 40_000
        gradients.append(torch.autograd.grad(value, scale)[0].item())
    assert gradients[1] == pytest.approx(gradients[0], abs=0.05)  # 5 standard errors


@pytest.mark.parametrize("name", ["StickingTheLanding", "DReG", "PIWAE"])
def test_a_density_without_a_slope_is_refused_by_name(name):
    width = torch.tensor(1.5, requires_grad=True)
    with pytest.raises(ValueError, match=f"{name} .*Uniform at site 'z' .*: take IWAE or Trace_ELBO"):
        getattr(objectives, name)().differentiable_loss(*seen(torch.ones(3), lambda: dist.Uniform(0.0, width)))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", ["StickingTheLanding", "DReG", "PIWAE"])
def test_straight_through_codes_are_refused_by_name(name, gradients):
    encoder = encoders.RelaxedOneHotCategorical(1, 3, straight_through=True)
    programs = seen(torch.ones(2), lambda: encoder(torch.ones(2, 1)), 2)
    words = f"{name} needs a density .* StraightThroughGumbelSoftmax at site 'z' has not: take IWAE or Trace_ELBO"
    with pytest.raises(ValueError, match=words), torch.set_grad_enabled(gradients):
        getattr(objectives, name)().terms(*programs)


@pytest.mark.parametrize("loss", [*ONE_SITE, *ANY_SITES], ids=repr)
def test_draws_that_pyro_rounds_and_scores_as_they_were_before_are_refused_by_name(loss):
    logit = torch.zeros((), requires_grad=True)
    programs = seen(torch.ones(2), lambda: dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), logits=logit))
    with pytest.raises(ValueError, match=r"scores .* RelaxedBernoulliStraightThrough at site 'z' scores others: take"):
        loss.differentiable_loss(*programs)


@pytest.mark.parametrize("family", ["OneHotCategorical", "Bernoulli"])
def test_draws_that_pyro_rounds_need_a_prior_that_scores_them_as_they_were_before(family):
    """To the relaxed prior of the same parameters the KL was -21.5 nats, at rounded values; it is 0."""
    logits, x = torch.tensor([0.3, 0.0, -1.0]), torch.zeros(50)
    relaxed, rounded = (getattr(dist, f"Relaxed{family}{end}") for end in ("", "StraightThrough"))

    def program(x, kind, observed=None):
        with pyro.plate("data", len(x)):
            z = kind(torch.tensor(0.5), logits=logits)
            pyro.sample("z", z.to_event(1 - len(z.event_shape)))
            if observed:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    guide, model = (partial(program, kind=rounded, observed=observed) for observed in (False, True))
    assert evaluate(model, guide, (x,)).kl == pytest.approx(0, abs=1e-5)
    with pytest.raises(
        ValueError, match=rf"^site 'z' is scored as drawn, .* and rounded by Relaxed{family} of the model"
    ):
        evaluate(partial(program, kind=relaxed, observed=True), guide, (x,))


# No part is left untrained


def vae_of(prior=None, encoder=None):
    torch.manual_seed(0)
    return VAE(prior or priors.Normal(2), encoder or encoders.Normal(3, 2), decoders.Normal(2, 3))


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (objectives.VIMCO(3), "VIMCO trains a guide by its density, which a Delta at site 'z' has not: take IWAE"),
        (objectives.Thermodynamic(3), "Thermodynamic trains a guide by its density, which a Delta at site 'z' has not"),
        (objectives.DReG(3), "DReG weighs draws by their density, which Delta at site 'z' has not: take IWAE"),
    ],
    ids=["VIMCO", "Thermodynamic", "DReG"],
)
def test_an_encoder_of_points_is_refused_by_what_trains_by_densities(loss, words):
    vae = vae_of(encoder=encoders.Delta(3, 2))
    with pytest.raises(ValueError, match=words):
        fit(vae.model, vae.guide, torch.randn(8, 3), loss=loss, epochs=1, batch_size=4)
    assert math.isfinite(loss.loss(vae.model, vae.guide, torch.randn(8, 3)))  # its value is right


def test_a_score_function_of_points_is_refused():
    vae = vae_of(encoder=encoders.ScoreFunction(encoders.Delta(3, 2)))
    with pytest.raises(ValueError, match="a Delta has no density, by which a score function could train it"):
        vae.guide(torch.randn(4, 3))


def test_a_point_that_follows_a_draw_alone_is_no_encoder_of_points():
    """As Pyro's autoguides have it: the draw u is scored, and z is a function of it without parameters."""
    a = torch.tensor(0.3, requires_grad=True)

    def programs(through):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 0.6), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                if not through:
                    return pyro.sample("z", dist.LogNormal(a * x, 0.5))
                u = pyro.sample("u", dist.Normal(a * x, 0.5), infer={"is_auxiliary": True})
                return pyro.sample("z", dist.Delta(u.exp(), log_density=-u))

        return model, guide

    found = []
    for through in (False, True):
        torch.manual_seed(0)
        found.append(torch.autograd.grad(objectives.VIMCO(4).differentiable_loss(*programs(through), torch.ones(5)), a))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_info_vae_trains_a_learned_prior(alpha):
    vae, x = vae_of(priors.Normal(2, learned=True)), torch.randn(64, 3)
    with torch.no_grad():
        vae.prior.loc.fill_(4.0)
    loss = objectives.InfoVAE(alpha=alpha).differentiable_loss(vae.model, vae.guide, x)
    assert all(gradient.any() for gradient in torch.autograd.grad(loss, list(vae.parameters())))
    fit(vae.model, vae.guide, x, loss=objectives.InfoVAE(alpha=alpha), epochs=20, batch_size=32)
    assert (vae.prior.loc < 3.99).all()  # towards the codes, which are near 0


def test_info_vae_refuses_a_learned_prior_whose_transform_remembers_its_draws():
    loc = torch.zeros((), requires_grad=True)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.ones(2), 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.TransformedDistribution(mixture, [AffineTransform(loc, 1.0, cache_size=1)]))
            pyro.sample("x", dist.Normal(z, 0.6), obs=x)

    _, guide, x = seen(torch.ones(3), lambda: dist.Normal(loc, 1.0))
    with pytest.raises(
        ValueError, match="InfoVAE trains a prior by its draws, and TransformedDistribution at site 'z'"
    ):
        objectives.InfoVAE().differentiable_loss(model, guide, x)


def test_info_vae_refuses_a_learned_prior_that_has_no_pathwise_draws():
    encoder = encoders.Laplace(3, 2)
    vae = vae_of(priors.VampPrior(encoder, components=4), encoder)
    with pytest.raises(
        ValueError, match="InfoVAE trains a prior by its draws, and MixtureSameFamily at site 'z' has no"
    ):
        objectives.InfoVAE().differentiable_loss(vae.model, vae.guide, torch.rand(8, 3))
    without_discrepancy = objectives.InfoVAE(alpha=0.0, scale=1.0)
    assert without_discrepancy.differentiable_loss(vae.model, vae.guide, torch.rand(8, 3)).isfinite()


class _OneWay(torch.nn.Module):
    """A linear Gaussian model with a flow of Pyro's that has no inverse, in the guide or in the prior."""

    def __init__(self, where):
        super().__init__()
        torch.manual_seed(0)
        self.where, self.flow = where, pyro.distributions.transforms.planar(2)
        self.encoder, self.decoder = torch.nn.Linear(3, 2), torch.nn.Linear(2, 3)
        torch.nn.init.zeros_(self.encoder.weight)

    def code(self, where, loc):
        normal = dist.Normal(loc, 1.2 if where == "guide" else 1.0).expand([len(loc), 2]).to_event(1)
        return dist.TransformedDistribution(normal, [self.flow]) if where == self.where else normal

    def model(self, x):
        pyro.module("programs", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.code("prior", torch.zeros(len(x), 1)))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("programs", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.code("guide", self.encoder(x)))


def test_the_log_likelihood_of_a_guide_by_a_flow_without_an_inverse_is_right():
    programs, x = _OneWay("guide"), torch.randn(4, 3)
    weight = programs.decoder.weight.detach()
    exact = dist.MultivariateNormal(programs.decoder.bias.detach(), weight @ weight.T + torch.eye(3)).log_prob(x).mean()
    estimate = log_likelihood(programs.model, programs.guide, x, samples=20_000)
    assert abs(estimate - exact) < 0.02  # its standard error is about 0.002


@pytest.mark.parametrize("loss", ["StickingTheLanding", "DReG", "PIWAE", "VIMCO", "Thermodynamic"])
def test_a_flow_without_an_inverse_is_refused_where_its_density_is_taken_anew(loss):
    programs, x = _OneWay("guide"), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"site 'z' is known at its own draws alone.*\(Planar\) has no inverse.*IWAE"):
        fit(programs.model, programs.guide, x, loss=getattr(objectives, loss)(), epochs=1)
    assert math.isfinite(fit(programs.model, programs.guide, x, loss=objectives.IWAE(3), epochs=1)[-1]["train_loss"])


def test_a_prior_by_a_flow_without_an_inverse_is_refused():
    programs, x = _OneWay("prior"), torch.randn(4, 3)
    for run in (fit, evaluate, log_likelihood):
        with pytest.raises(ValueError, match=r"site 'z' is known at its own draws alone.*priors\.Flow"):
            run(programs.model, programs.guide, x)
