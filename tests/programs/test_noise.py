import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from all_cases import cases
from pyro import poutine
from pyro.contrib.zuko import ZukoToPyro
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from scipy import stats

from pyro_vae import VAE, data, decoders, distributions, encoders, evaluate, fit, objectives, priors
from pyro_vae.distributions.wrappers import family
from pyro_vae.programs import modules_of, noise

KINDS = {
    "fixed": lambda: noise.Fixed(0),
    "antithetic": noise.Antithetic,
    "latin hypercube": noise.LatinHypercube,
    "sobol": noise.Sobol,
}
COUPLED = ["antithetic", "latin hypercube", "sobol"]
PARTICLES = "num_particles_vectorized"


def uniforms(handler, particles, batch, event):
    """Draw a site of uniform distributions: its value is the noise itself."""
    fn = dist.Uniform(torch.zeros(event), torch.ones(event)).to_event(len(event))
    with pyro.plate(PARTICLES, particles, dim=-2), handler, pyro.plate("data", batch, dim=-1):
        return pyro.sample("z", fn)


def vectorized(particles):
    return Trace_ELBO(num_particles=particles, vectorize_particles=True)


class LinearNormal:
    """z ~ N(0, I) in two dimensions, x ~ N(Wz, 1), and a normal guide: programs with a quadratic bound."""

    def __init__(self):
        self.weight = torch.tensor([[1.0, 0.5], [-0.7, 1.2], [0.3, 0.9]])
        self.x = torch.tensor([[1.0, -2.0, 0.5], [0.2, 0.4, 1.5]])
        self.loc = torch.tensor([[0.3, -0.4], [0.8, 0.1]], requires_grad=True)
        self.log_scale = torch.full((2, 2), -0.5, requires_grad=True)

    def model(self):
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T, 1.0).to_event(1), obs=self.x)

    def guide(self):
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))

    def gradients(self, handler, particles, repetitions):
        """Return gradients of the bound, one row a repetition."""
        elbo, guide = vectorized(particles), handler(self.guide) if handler else self.guide
        rows = []
        for _ in range(repetitions):
            loss = elbo.differentiable_loss(self.model, guide)
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [self.loc, self.log_scale])]))
        return torch.stack(rows)

    def exact_gradients(self):
        r"""E|x - W(m + s e)|^2 / 2 + KL has the gradients -W'(x - Wm) + m and s^2 (diag(W'W) + 1) - 1."""
        loc, variance = self.loc.detach(), (2 * self.log_scale.detach()).exp()
        by_loc = -(self.x - loc @ self.weight.T) @ self.weight + loc
        return torch.cat([by_loc.flatten(), (variance * (self.weight.square().sum(0) + 1) - 1).flatten()])


@pytest.mark.parametrize("kind", COUPLED)
@pytest.mark.parametrize("particles", [2, 5, 8])
def test_gradients_keep_their_expectation(kind, particles):
    program = LinearNormal()
    gradients = program.gradients(KINDS[kind](), particles, 400)  # repetitions
    error = gradients.std(0) / 400**0.5
    assert ((gradients.mean(0) - program.exact_gradients()).abs() < 4 * error + 1e-6).all()


@pytest.mark.parametrize("kind", COUPLED)
def test_16_particles_have_less_variance_than_with_plain_noise(kind):
    program = LinearNormal()
    plain, coupled = (program.gradients(handler, 16, 200).var(0) for handler in (None, KINDS[kind]()))
    assert plain[:4].sum() > 5 * coupled[:4].sum()  # of the locations, linear in the noise
    if kind != "antithetic":  # the scales' gradients are even in part, which mirrored noise makes no better
        assert plain.sum() > 1.5 * coupled.sum()


def test_mirrored_noise_leaves_nothing_of_what_is_linear_in_it():
    gradients = LinearNormal().gradients(noise.Antithetic(), 2, 20)[:, :4]
    torch.testing.assert_close(gradients, gradients[:1].expand_as(gradients), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", COUPLED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_particles_noise_is_uniform(kind, dtype):
    torch.set_default_dtype(dtype)
    try:
        value = uniforms(KINDS[kind](), 4, 3000, (2,))
    finally:
        torch.set_default_dtype(torch.float32)
    assert value.dtype == dtype
    assert ((value > 0) & (value < 1)).all()
    for particle in value.double():
        for column in particle.T:
            assert stats.kstest(column, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_noise_stays_within_0_and_1_and_mirrors_exactly(dtype):
    ends = torch.tensor([0.0, 1e-300, 0.3, 1 - 2**-53, 1.0], dtype=torch.float64)
    u = noise._open(ends, torch.zeros((), dtype=dtype))
    assert u.dtype == dtype
    assert ((u > 0) & (u < 1)).all()
    assert torch.equal(1 - (1 - u), u)
    assert u[0] == 1 - u[-1]


@pytest.mark.parametrize("kind", COUPLED)
def test_data_and_dimensions_have_noise_of_their_own(kind):
    value = uniforms(KINDS[kind](), 8, 3000, (2,))
    pairs = [(value[0, ::2, 0], value[0, 1::2, 0]), (value[0, ::2, 0], value[5, 1::2, 0])]
    pairs += [(value[0, :, 0], value[0, :, 1])]
    for one, other in pairs:
        assert stats.pearsonr(one, other).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_antithetic_pairs_mirror_to_the_last_bit(dtype):
    fn = dist.Normal(torch.zeros(3, dtype=dtype), torch.ones((), dtype=dtype)).to_event(1)
    with pyro.plate(PARTICLES, 6, dim=-2), noise.Antithetic(), pyro.plate("data", 1000, dim=-1):
        z = pyro.sample("z", fn)
    assert z.shape == (6, 1000, 3)
    assert torch.equal(z[:3], -z[3:])


def test_an_odd_particle_has_no_mirror_image():
    value = uniforms(noise.Antithetic(), 5, 7, (2,))
    assert torch.equal(value[3:], 1 - value[:2])
    assert not (value[2] == 1 - value[:2]).any()


@pytest.mark.parametrize("particles", [2, 5, 16])
def test_a_latin_hypercube_meets_every_stratum_of_every_dimension_once(particles):
    value = uniforms(noise.LatinHypercube(), particles, 20, (3,)).double()
    strata = (value * particles).floor().sort(0).values
    assert (strata == torch.arange(particles).reshape(-1, 1, 1)).all()


def test_sobol_points_fill_the_square_evenly_for_every_datum():
    value = uniforms(noise.Sobol(), 16, 20, (2,))
    for rows, columns in [(16, 1), (8, 2), (4, 4), (2, 8), (1, 16)]:
        cells = (value * torch.tensor([rows, columns])).floor() @ torch.tensor([1.0, rows])
        assert (cells.sort(0).values == torch.arange(16).reshape(-1, 1)).all()


def test_sobol_sites_of_one_run_share_one_sequence_and_a_new_run_starts_again():
    def program():
        return torch.stack([pyro.sample(name, dist.Uniform(0.0, 1.0)) for name in ("a", "b")], -1)

    for _ in range(2):
        with pyro.plate(PARTICLES, 16), noise.Sobol():
            value = program()
        cells = (value * 4).floor() @ torch.tensor([1.0, 4.0])
        assert (cells.sort().values == torch.arange(16)).all()


def test_fixed_noise_is_the_same_at_every_call_to_the_last_bit_and_another_for_another_seed():
    torch.manual_seed(0)
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Bernoulli(2, 6))
    x = torch.rand(5, 6).round()
    guide = noise.Fixed(3)(vae.guide)
    assert torch.equal(guide(x), guide(x))
    assert torch.equal(guide(x), noise.Fixed(3)(vae.guide)(x))
    assert not torch.isclose(guide(x), noise.Fixed(4)(vae.guide)(x)).any()
    assert not torch.isclose(guide(x)[0] - vae.encoder(x).mean[0], guide(x)[1] - vae.encoder(x).mean[1]).any()
    elbo = vectorized(4)
    assert elbo.loss(vae.model, guide, x) == elbo.loss(vae.model, guide, x)
    trace = poutine.trace(guide).get_trace(x)
    torch.testing.assert_close(trace.log_prob_sum(), vae.encoder(x).log_prob(guide(x)).sum())


def test_fixed_noise_differs_from_site_to_site_and_may_reach_any_seed():
    def program():
        return [pyro.sample(name, dist.Normal(torch.zeros(4), 1.0).to_event(1)) for name in ("a", "b")]

    for seed in (0, 2**40, -1):
        one, other = noise.Fixed(seed)(program)()
        assert not torch.isclose(one, other).any()


def test_fixed_noise_is_what_was_passed():
    u = torch.tensor([0.1, 0.5, 0.9])
    with noise.Fixed(u), pyro.plate("data", 2):
        z = pyro.sample("z", dist.Normal(torch.tensor([1.0, 2.0, 3.0]), 2.0).to_event(1))
    expected = torch.as_tensor(stats.norm(loc=[1, 2, 3], scale=2).ppf(u), dtype=torch.float32)
    torch.testing.assert_close(z, expected.expand(2, 3))
    assert torch.isfinite(noise.Fixed(1 - torch.tensor(1e-12).double())(dist.Normal(0.0, 1.0))()).all()


@pytest.mark.parametrize(
    ("argument", "error", "words"),
    [
        ("a", TypeError, "an integer"),
        (0.5, TypeError, "an integer"),
        (torch.tensor([0.0, 0.5]), ValueError, "from 0 to 0.5"),
        (torch.tensor([1.0]), ValueError, r"must lie in \(0, 1\)"),
    ],
)
def test_fixed_refuses_what_is_no_noise(argument, error, words):
    with pytest.raises(error, match=words):
        noise.Fixed(argument)


def test_fixed_refuses_noise_of_another_shape():
    with pytest.raises(ValueError, match=r"shape \(4,\) does not fit: a site needs \(3,\)"):
        noise.Fixed(torch.full((4,), 0.5))(lambda: pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1)))()


def covariance(p):
    factor = torch.diag_embed(1 + p.square()) + 0.3 * p.unsqueeze(-1) * p.unsqueeze(-2)
    return factor @ factor.mT


def autoregressive(p):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transform = dist.transforms.affine_autoregressive(2, hidden_dims=[4]).double()
    return dist.TransformedDistribution(dist.Normal(p, 1.0).to_event(1), [transform])


FAMILIES = {
    "Normal": lambda p: dist.Normal(p, p.exp()).to_event(1),
    "Laplace": lambda p: dist.Laplace(p, p.exp()).to_event(1),
    "Uniform": lambda p: dist.Uniform(p, p + p.exp()).to_event(1),
    "Exponential": lambda p: dist.Exponential(p.exp()).to_event(1),
    "Cauchy": lambda p: dist.Cauchy(p, p.exp()).to_event(1),
    "Gumbel": lambda p: dist.Gumbel(p, p.exp()).to_event(1),
    "HalfNormal": lambda p: dist.HalfNormal(p.exp()).to_event(1),
    "HalfCauchy": lambda p: dist.HalfCauchy(p.exp()).to_event(1),
    "Logistic": lambda p: dist.Logistic(p, p.exp()).to_event(1),
    "SoftLaplace": lambda p: dist.SoftLaplace(p, p.exp()).to_event(1),
    "Pareto": lambda p: dist.Pareto(p.exp(), 1 + p.exp()).to_event(1),
    "LogNormal": lambda p: dist.LogNormal(p, p.exp()).to_event(1),
    "Weibull": lambda p: dist.Weibull(p.exp(), 1 + p.exp()).to_event(1),
    "Kumaraswamy": lambda p: dist.Kumaraswamy(p.exp(), 1 + p.exp()).to_event(1),
    "ContinuousBernoulli": lambda p: dist.ContinuousBernoulli(logits=2 + p).to_event(1),
    "LogisticNormal": lambda p: dist.LogisticNormal(p, p.exp()),
    "RelaxedBernoulli": lambda p: dist.RelaxedBernoulli(p.new_tensor(0.7), logits=p).to_event(1),
    "RelaxedOneHotCategorical": lambda p: dist.RelaxedOneHotCategorical(p.new_tensor(0.7), logits=p),
    "MultivariateNormal": lambda p: dist.MultivariateNormal(p, covariance(p)),
    "LowRankMultivariateNormal": lambda p: dist.LowRankMultivariateNormal(p, p.sin().unsqueeze(-1), p.exp()),
    "Gamma": lambda p: dist.Gamma(p.exp(), 1 + p.exp()).to_event(1),
    "InverseGamma": lambda p: dist.InverseGamma(3 + p.exp(), p.exp()).to_event(1),
    "Chi2": lambda p: dist.Chi2(p.exp()).to_event(1),
    "Beta": lambda p: dist.Beta(p.exp(), 1 + p.exp()).to_event(1),
    "Dirichlet": lambda p: dist.Dirichlet(torch.cat([p, p[:1]]).exp()),
    "StudentT": lambda p: dist.StudentT(2 + p.exp(), p, p.exp()).to_event(1),
    "Kumaraswamy by logarithms": lambda p: distributions.Kumaraswamy(p.exp(), 1 + p.exp()).to_event(1),
    "relaxed": lambda p: distributions.RelaxedOneHotCategorical(p.new_tensor(0.7), logits=p),
    "circle": lambda p: distributions.PowerSpherical(p / p.norm(), p[0].exp()),
    "sphere": lambda p: distributions.PowerSpherical(torch.cat([p, p[:1]]) / (p.norm() ** 2 + p[0] ** 2).sqrt(), p[0]),
    "mixture": lambda p: distributions.MixtureOfNormals(p, torch.stack([p, 1 - p]), torch.stack([p.exp(), 1 + p**2])),
    "expanded": lambda p: dist.TorchDistribution.expand(dist.Normal(p, p.exp()).to_event(1), (1,)),
    "a flow": autoregressive,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_draws_are_its_own(name):
    fn = FAMILIES[name](torch.tensor([0.3, -0.5], dtype=torch.float64))
    with noise.Fixed(1), pyro.plate("data", 5000):
        ours = pyro.sample("z", fn)
    with pyro.plate("data", 5000):
        theirs = pyro.sample("z", fn)
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach(), theirs.detach()
    weight = torch.linspace(0.4, 1.0, ours.shape[-1], dtype=torch.float64)
    for one, other in [(ours[:, 0], theirs[:, 0]), (ours[:, -1], theirs[:, -1]), (ours @ weight, theirs @ weight)]:
        assert stats.ks_2samp(one, other).pvalue > 1e-3


QUANTILES = {
    "Normal": lambda p, u: stats.norm(p, np.exp(p)).ppf(u),
    "Laplace": lambda p, u: stats.laplace(p, np.exp(p)).ppf(u),
    "StudentT": lambda p, u: stats.t(2 + np.exp(p), p, np.exp(p)).ppf(u),
    "HalfNormal": lambda p, u: stats.halfnorm(scale=np.exp(p)).ppf(u),
    "HalfCauchy": lambda p, u: stats.halfcauchy(scale=np.exp(p)).ppf(u),
    "Weibull": lambda p, u: stats.weibull_min(1 + np.exp(p), scale=np.exp(p)).ppf(u),
    "Gamma": lambda p, u: stats.gamma(np.exp(p), scale=1 / (1 + np.exp(p))).ppf(u),
    "Chi2": lambda p, u: stats.chi2(np.exp(p)).ppf(u),
    "Beta": lambda p, u: stats.beta(np.exp(p), 1 + np.exp(p)).ppf(u),
    "Kumaraswamy by logarithms": lambda p, u: (1 - (1 - u) ** (1 / (1 + np.exp(p)))) ** np.exp(-p),
}


@pytest.mark.parametrize("name", QUANTILES)
def test_a_draw_of_one_number_is_the_quantile_of_its_noise(name):
    """Any map of uniform noise to the family has its law; only the increasing one keeps how evenly noise is spread."""
    p, u = torch.tensor([0.3, -0.5]).double(), torch.tensor([[0.01], [0.3], [0.5], [0.8], [0.999]]).double()
    with noise.Fixed(u), pyro.plate("data", 5):
        z = pyro.sample("z", FAMILIES[name](p))
    np.testing.assert_allclose(z, QUANTILES[name](p.numpy(), u.numpy()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_draws_are_differentiable_in_its_parameters(name):
    def draw(p):
        with noise.Fixed(0), pyro.plate("data", 3):
            return pyro.sample("z", FAMILIES[name](p))

    point = torch.tensor([0.3, -0.5], dtype=torch.float64, requires_grad=True)
    of_beta = name in ("Beta", "Dirichlet")  # whose derivative torch has to about a part in a thousand
    assert torch.autograd.gradcheck(draw, point, atol=1e-3 if of_beta else 1e-5)
    assert torch.autograd.grad(draw(point)[..., 0].sum(), point)[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_draws_are_finite_at_both_ends_of_the_noise(name, dtype):
    fn = FAMILIES[name](torch.tensor([0.3, -0.5], dtype=dtype)) if name != "a flow" else dist.Normal(0.0, 1.0)
    for end in (1e-300, 1 - 1e-16):
        with noise.Fixed(torch.tensor(end, dtype=torch.float64)):
            z = pyro.sample("z", fn)
        assert z.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_of_zuko_takes_its_noise_at_its_base(kind):
    before = torch.distributions.Distribution._validate_args
    zuko = pytest.importorskip("zuko")
    torch.distributions.Distribution.set_default_validate_args(before)  # zuko turns it off for the whole process
    flow = zuko.flows.NSF(2, context=1, hidden_features=(4,)).double()
    context = torch.randn(5, 1, dtype=torch.float64)
    with pyro.plate(PARTICLES, 4, dim=-2), KINDS[kind](), pyro.plate("data", 5):
        z = pyro.sample("z", ZukoToPyro(flow(context)))
    assert z.shape == (4, 5, 2)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(z.sum(), list(flow.parameters())))
    u = torch.distributions.Normal(0.0, 1.0).cdf(flow(context).transform(z))
    assert ((u > 0) & (u < 1)).all()
    if kind == "antithetic":
        torch.testing.assert_close(u[:2], 1 - u[2:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (dist.FisherSnedecor(torch.ones(2), 3.0).to_event(1), r"'z' \(FisherSnedecor\): FisherSnedecor has no inverse"),
        (dist.Bernoulli(torch.full((2,), 0.5)).to_event(1), "no pathwise sampler"),
        (dist.VonMises(torch.zeros(2), 1.0).to_event(1), "no pathwise sampler"),
        (dist.RelaxedBernoulliStraightThrough(torch.tensor(1.0), torch.full((2,), 0.5)).to_event(1), "its own"),
    ],
    ids=lambda value: "" if isinstance(value, str) else family(value),
)
def test_a_site_that_is_no_function_of_uniform_noise_is_refused_by_name(kind, fn, words):
    with pytest.raises(ValueError, match=words) as error:
        KINDS[kind]()(lambda: pyro.sample("z", fn))()
    assert "What works: distributions with an icdf, Gamma" in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", cases("encoders"), ids=repr)
def test_every_encoder_with_a_pathwise_sampler_takes_every_noise(case, kind):
    """Each particle keeps its distribution: means of 4 x 1,000 draws within 5 standard errors of 4,000 plain ones."""
    posterior = case.make(3, shape=(6,))(torch.randn(1, 6))
    plate = pyro.plate("data", 1000, dim=-1)

    def draws():
        with pyro.plate(PARTICLES, 4, dim=-2), KINDS[kind](), plate:
            return pyro.sample("z", posterior).detach().flatten(0, 1).flatten(1).double()

    if not posterior.has_rsample:
        with pytest.raises(ValueError, match="no pathwise sampler"):
            draws()
        return
    ours, theirs = draws(), posterior.sample((4000,)).detach().flatten(1).double()
    for transform in (torch.tanh, torch.cos):
        one, other = transform(ours), transform(theirs)
        error = (one.var(0) / 1000 + other.var(0) / 4000).sqrt()  # of 4 draws that depend on each other
        assert ((one.mean(0) - other.mean(0)).abs() <= 5 * error + 1e-6).all()


@pytest.mark.parametrize("kind", COUPLED)
def test_sites_outside_the_plate_of_data_have_one_noise_for_all_data(kind):
    def guide():
        w = pyro.sample("w", dist.Uniform(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 5):
            return w, pyro.sample("z", dist.Normal(w.sum(-1), 1.0))

    with pyro.plate(PARTICLES, 4, dim=-2):
        trace = poutine.trace(KINDS[kind]()(guide)).get_trace()
    assert trace.nodes["w"]["value"].shape == (4, 1, 3)
    assert trace.nodes["z"]["value"].shape == (4, 5)
    trace.compute_log_prob()
    assert trace.nodes["z"]["log_prob"].shape == (4, 5)
    if kind != "antithetic":
        strata = (4 * trace.nodes["w"]["value"][:, 0]).floor().sort(0).values
        assert (strata == torch.arange(4).unsqueeze(-1)).all()


def test_a_point_takes_no_noise_and_observed_sites_none():
    with noise.Sobol(), pyro.plate("data", 3):
        assert torch.equal(pyro.sample("z", dist.Delta(torch.ones(2), event_dim=1)), torch.ones(3, 2))
        assert pyro.sample("x", dist.Gamma(1.0, 1.0), obs=torch.ones(3)).eq(1).all()


def test_a_subsample_of_a_plate_stays_with_chance():
    def program():
        with pyro.plate("data", 100, subsample_size=3) as rows:
            pyro.sample("z", dist.Normal(0.0, 1.0))
        return tuple(rows.tolist())

    assert len({noise.Fixed(0)(program)() for _ in range(5)}) == 5


@pytest.mark.parametrize("kind", COUPLED)
def test_one_draw_has_plain_noise(kind):
    values = torch.stack([KINDS[kind]()(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))() for _ in range(2000)])
    assert stats.kstest(values, "norm").pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_fit_takes_a_guide_with_its_noise(kind, engine):
    torch.manual_seed(0)
    x = data.load("digits").train[:256]
    vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
    guide = KINDS[kind]()(vae.guide)
    assert modules_of(guide) == [vae]
    losses = [Trace_ELBO, TraceMeanField_ELBO]
    for loss in [make(num_particles=4, vectorize_particles=True) for make in losses]:
        history = fit(vae.model, guide, x, loss=loss, epochs=3, batch_size=64, validation=x, engine=engine)
        assert history[-1]["train_loss"] < history[0]["train_loss"]
        if engine == "recorded":
            assert history.engine.startswith("recorded: 7 of 12")
    assert evaluate(vae.model, guide, x).loss == pytest.approx(evaluate(vae.model, vae.guide, x).loss, rel=0.05)


def test_fit_refuses_a_guide_without_such_noise_before_its_first_step():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        rate = pyro.param("rate", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.FisherSnedecor(torch.ones(2), rate).to_event(1))

    with pytest.raises(ValueError, match=r"noise.Sobol cannot drive site 'z' \(FisherSnedecor\)"):
        fit(model, noise.Sobol()(guide), torch.ones(8, 2), batch_size=4)


# Objectives whose particles depend on each other


NEEDS = {
    "DReG": (lambda: objectives.DReG(2), KINDS),
    "VIMCO": (lambda: objectives.VIMCO(2), KINDS),
    "Thermodynamic": (lambda: objectives.Thermodynamic(4), KINDS),
    "Thermodynamic of one partition": (lambda: objectives.Thermodynamic(4, 1), KINDS),
    "StickingTheLanding": (lambda: objectives.StickingTheLanding(4), ["fixed"]),
}


class OneNumber:
    """z ~ N(0, 1) and x ~ N(w z, 0.6^2), seen at 1.5; the guide is N(a x, e^(2 c))."""

    def __init__(self):
        values = (0.9, -0.2, 1.2)
        self.parameters = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]
        self.x = torch.tensor(1.5, dtype=torch.float64)

    def model(self, x):
        w = self.parameters[2]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(w), 1.0))
            pyro.sample("x", dist.Normal(w * z, 0.6), obs=x)

    def guide(self, x):
        a, c, _ = self.parameters
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(a * x, c.exp()))

    def log_weight(self, noise):
        a, c, w = self.parameters
        z = a * self.x + c.exp() * noise
        log_q = -(noise**2) / 2 - c
        return -(z**2) / 2 - ((self.x - w * z) / 0.6) ** 2 / 2 - np.log(0.6 * (2 * np.pi) ** 0.5) - log_q

    def bound(self, kind):
        """The bound of two particles whose noise mirrors, or stands in the two halves of the line, by quadrature."""
        nodes, weights = (torch.as_tensor(array) for array in np.polynomial.legendre.leggauss(200))
        half = 4.5 * (nodes + 1)
        mass = 9 * weights / (2 * np.pi) ** 0.5 * (-(half**2) / 2).exp()  # of the upper half: together 1
        up, down = self.log_weight(half), self.log_weight(-half)
        if kind == "antithetic":
            return (mass * torch.logaddexp(up, down)).sum() - np.log(2)
        pairs = torch.logaddexp(up[:, None], down)
        return (mass[:, None] * mass * pairs).sum() - np.log(2)


@pytest.mark.parametrize("kind", COUPLED)
@pytest.mark.parametrize("make", [lambda: objectives.IWAE(2), lambda: objectives.PIWAE(1, 2)], ids=["IWAE", "PIWAE"])
def test_weighed_particles_of_coupled_noise_have_the_exact_bound_and_gradient_of_such_particles(make, kind):
    """20 x 4,000 draws of two particles, within 4.5 standard errors."""
    programs, found = OneNumber(), []
    exact = programs.bound(kind)
    expected = torch.stack([exact, *torch.autograd.grad(exact, programs.parameters)])
    guide, x = KINDS[kind]()(programs.guide), programs.x.expand(4000)
    for _ in range(20):
        value = -make().differentiable_loss(programs.model, guide, x) / len(x)
        found.append(torch.stack([value, *torch.autograd.grad(value, programs.parameters)]).detach())
    found = torch.stack(found)
    assert ((found.mean(0) - expected).abs() < 4.5 * found.std(0) / 20**0.5).all()
    evidence = stats.norm.logpdf(1.5, 0, (1.2**2 + 0.6**2) ** 0.5)
    assert exact < evidence


@pytest.mark.parametrize("kind", COUPLED)
def test_sticking_the_landing_keeps_its_expectation_under_coupled_noise(kind):
    """The bound is quadratic: E log w is known. 20 x 2,000 draws of 4 particles, within 4.5 standard errors."""
    programs, found = OneNumber(), []
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    exact = (torch.as_tensor(weights / weights.sum()) * programs.log_weight(torch.as_tensor(nodes))).sum()
    expected = torch.stack(torch.autograd.grad(exact, programs.parameters))
    guide, x = KINDS[kind]()(programs.guide), programs.x.expand(2000)
    for _ in range(20):
        value = -objectives.StickingTheLanding(4).differentiable_loss(programs.model, guide, x) / len(x)
        found.append(torch.stack(torch.autograd.grad(value, programs.parameters)))
    found = torch.stack(found)
    assert ((found.mean(0) - expected).abs() < 4.5 * found.std(0) / 20**0.5 + 1e-9).all()


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, (_, kinds) in NEEDS.items() for kind in kinds])
def test_objectives_that_need_other_noise_refuse_a_handler_by_name(name, kind):
    programs, loss = OneNumber(), NEEDS[name][0]()
    lacking = "new noise at every step" if kind == "fixed" else "independent particles"
    words = rf"the gradient of {type(loss).__name__} needs {lacking}, which noise\.\w+ at site 'z' does not give: take"
    for run in (loss.loss, loss.differentiable_loss):
        with pytest.raises(ValueError, match=words):
            run(programs.model, KINDS[kind]()(programs.guide), programs.x.expand(3))


def test_fit_refuses_such_a_pair_before_its_first_step():
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Normal(2, 6))
    with pytest.raises(ValueError, match=r"DReG needs independent particles, which noise\.Sobol"):
        fit(vae.model, noise.Sobol()(vae.guide), torch.randn(8, 6), loss=objectives.DReG(2), batch_size=4)


def test_a_handler_inside_a_guide_is_seen_too_and_one_around_other_sites_is_not():
    programs = OneNumber()

    def guide(x):
        with noise.Antithetic():
            programs.guide(x)

    with pytest.raises(ValueError, match="VIMCO needs independent particles"):
        objectives.VIMCO(2).loss(programs.model, guide, programs.x.expand(3))
    assert objectives.VIMCO(2).loss(programs.model, programs.guide, programs.x.expand(3)) > 0
