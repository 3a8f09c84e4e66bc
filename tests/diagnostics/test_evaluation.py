import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from scipy import integrate, stats
from torch import nn
from torch.utils.data import TensorDataset

from pyro_vae import VAE, data, decoders, encoders, priors
from pyro_vae.diagnostics import particles
from pyro_vae.diagnostics.estimators import discrete, exact_bound, linear_gaussian
from pyro_vae.diagnostics.evaluation import Bound, evaluate, kl_parts, log_likelihood
from pyro_vae.networks import MLP
from pyro_vae.objectives import IWAE
from pyro_vae.training import fit

SCALE = 0.5
LINEAR = partial(MLP, hidden=())


class Linear:
    """Probabilistic principal components: x = W z + b + noise, whose posterior is normal and here diagonal.

    Reference:
        Tipping and Bishop, 1999, Probabilistic Principal Component Analysis, equations 2 to 8.
    """

    def __init__(self, latent_dim=2, dim=4):
        generator = np.random.default_rng(0)
        # Orthogonal columns make the posterior's covariance diagonal, as the encoder's is.
        self.w = np.linalg.qr(generator.standard_normal((dim, latent_dim)))[0] * np.linspace(1, 2, latent_dim)
        self.b = generator.standard_normal(dim)
        self.x = torch.tensor(generator.standard_normal((20, dim)) @ np.diag(np.linspace(0.5, 2, dim)))
        self.covariance = np.diag(1 / (1 + (self.w**2).sum(0) / SCALE**2))
        self.to_mean = self.covariance @ self.w.T / SCALE**2

    @property
    def log_prob(self):
        marginal = stats.multivariate_normal(self.b, self.w @ self.w.T + SCALE**2 * np.eye(len(self.b)))
        return marginal.logpdf(self.x)

    def vae(self):
        """Return the model as a VAE with its exact posterior for an encoder."""
        dim, latent_dim = self.w.shape
        vae = VAE(
            priors.Normal(latent_dim),
            encoders.Normal(dim, latent_dim, LINEAR),
            decoders.Normal(latent_dim, dim, LINEAR, scale=SCALE),
        )
        (decode,), (encode,) = vae.decoder.network.layers, vae.encoder.network.layers
        with torch.no_grad():
            decode.weight[:], decode.bias[:] = torch.tensor(self.w), torch.tensor(self.b)
            encode.weight[:], encode.bias[:] = 0, 0
            encode.weight[:latent_dim] = torch.tensor(self.to_mean)
            encode.bias[:latent_dim] = torch.tensor(-self.to_mean @ self.b)
            encode.bias[latent_dim:] = torch.tensor(np.log(np.diag(self.covariance)))
        return vae

    def posterior_mean(self):
        return (self.x.numpy() - self.b) @ self.to_mean.T

    def reconstruction(self, z):
        return -stats.norm.logpdf(self.x.numpy(), z @ self.w.T + self.b, SCALE).sum(-1)

    def kl(self):
        variance = np.diag(self.covariance)
        return ((variance - 1 - np.log(variance) + self.posterior_mean() ** 2) / 2).sum(-1)


@pytest.fixture
def linear(float64):  # noqa: ARG001 (the dtype of the networks)
    return Linear()


def programs(vae):
    return vae.model, vae.guide


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("particles", [1, 3])
def test_at_the_exact_posterior_one_sample_gives_the_exact_log_likelihood(linear, seed, particles):
    # log p(x, z) - log q(z|x) is log p(x) for every z: the estimate has no variance.
    bound = evaluate(*programs(linear.vae()), linear.x, loss=Trace_ELBO(num_particles=particles), seed=seed)
    assert bound.loss == pytest.approx(-linear.log_prob.mean(), rel=1e-9)
    assert bound.reconstruction + bound.kl == pytest.approx(bound.loss, rel=1e-12)


def test_the_linear_models_own_marginal_agrees_with_monte_carlo(linear):
    # The reference itself: log p(x) as a mean over 100,000 draws of the prior, within 4 standard errors.
    n = 100_000
    z = np.random.default_rng(0).standard_normal((n, 2))
    for x, exact in zip(linear.x.numpy()[:3], linear.log_prob, strict=False):
        weight = np.exp(stats.norm.logpdf(x, z @ linear.w.T + linear.b, SCALE).sum(-1))
        assert abs(weight.mean() - math.exp(exact)) < 4 * weight.std() / math.sqrt(n)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_the_terms_are_unbiased(linear, loss):
    # The exact terms: E over q of the squared error adds tr(W S W') / (2 s^2) to that at the mean.
    error = linear.reconstruction(linear.posterior_mean()) + np.trace(linear.w @ linear.covariance @ linear.w.T) / (
        2 * SCALE**2
    )
    found = np.array([evaluate(*programs(linear.vae()), linear.x, loss=loss, seed=seed)[1:] for seed in range(400)])
    # 4 standard errors of 400 seeds.
    margin = 4 * found.std(0) / math.sqrt(len(found)) + 1e-9
    assert (np.abs(found.mean(0) - [error.mean(), linear.kl().mean()]) < margin).all()
    assert (found[:, 1].std() < 1e-12) == isinstance(loss, TraceMeanField_ELBO)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.5, 1.0])
def test_another_posterior_costs_its_kl_from_the_exact_one(linear, shift):
    vae = linear.vae()
    vae.encoder.network.layers[0].bias.data[:2] += shift
    gap = (shift**2 / np.diag(linear.covariance)).sum() / 2
    elbos = np.array(
        [evaluate(*programs(vae), linear.x, loss=TraceMeanField_ELBO(), seed=seed).loss for seed in range(400)]
    )
    # 4 standard errors of 400 seeds.
    assert abs(elbos.mean() + linear.log_prob.mean() - gap) < 4 * elbos.std() / math.sqrt(len(elbos))


@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO()])
@pytest.mark.parametrize("seed", [0, 1])
def test_at_mean_is_the_reconstruction_there_and_the_kl_in_closed_form(linear, loss, seed):
    bound = evaluate(*programs(linear.vae()), linear.x, loss=loss, at="mean", seed=seed)
    assert bound.reconstruction == pytest.approx(linear.reconstruction(linear.posterior_mean()).mean(), rel=1e-12)
    assert bound.kl == pytest.approx(linear.kl().mean(), rel=1e-12)
    assert bound.loss == pytest.approx(bound.reconstruction + bound.kl, rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 3, 19, 20, 1000])
def test_the_batch_size_changes_nothing_that_has_no_noise(linear, batch_size):
    vae = linear.vae()
    for kwargs in ({"at": "mean"}, {"loss": Trace_ELBO()}):  # at the exact posterior the bound has no noise
        whole = evaluate(*programs(vae), linear.x, batch_size=20, **kwargs)
        assert evaluate(*programs(vae), linear.x, batch_size=batch_size, **kwargs).loss == pytest.approx(
            whole.loss, rel=1e-12
        )


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_1_is_refused(linear, batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {batch_size}"):
        evaluate(*programs(linear.vae()), linear.x, batch_size=batch_size)


@pytest.mark.parametrize("loss", [Trace_ELBO, "elbo", None])
def test_a_loss_that_is_no_elbo_is_refused(linear, loss):
    with pytest.raises(TypeError, match="loss must be an ELBO"):
        evaluate(*programs(linear.vae()), linear.x, loss=loss)


def test_what_pyro_refuses_by_its_validation_is_refused_where_that_is_off():
    vae = VAE(priors.Normal(2), encoders.ScoreFunction(encoders.Normal(4, 2)), decoders.Normal(2, 4))
    with pyro.validation_enabled(False), pytest.raises(ValueError, match="must be fully reparameterized"):
        evaluate(*programs(vae), torch.zeros(8, 4), loss=TraceMeanField_ELBO())


@pytest.mark.parametrize("at", ["mode", "", None, "Mean"])
def test_an_unknown_at_is_refused(linear, at):
    with pytest.raises(ValueError, match=f"'sample' or 'mean', not {at!r}"):
        evaluate(*programs(linear.vae()), linear.x, at=at)


def test_the_same_seed_gives_the_same_bound_and_another_another(linear):
    vae = linear.vae()
    bounds = [evaluate(*programs(vae), linear.x, seed=seed) for seed in (1, 1, 2)]
    assert isinstance(bounds[0], Bound)
    assert bounds[0] == bounds[1]
    assert bounds[0].kl != bounds[2].kl


@pytest.mark.parametrize("at", ["sample", "mean"])
def test_evaluate_leaves_the_random_state_alone(linear, at):
    vae = linear.vae()
    before = torch.get_rng_state()
    evaluate(*programs(vae), linear.x, at=at)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("at", ["sample", "mean"])
def test_evaluate_leaves_the_parameter_store_empty(linear, at):
    evaluate(*programs(linear.vae()), linear.x, at=at)
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("at", ["sample", "mean"])
def test_evaluate_leaves_parameters_and_gradients_alone(linear, at):
    vae = linear.vae()
    before = {name: parameter.clone() for name, parameter in vae.named_parameters()}
    evaluate(*programs(vae), linear.x, at=at)
    for name, parameter in vae.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


class Modes(nn.Module):
    """A linear map that notes the mode it is called in."""

    def __init__(self, in_shape, out_shape):
        super().__init__()
        self.map, self.dropout, self.seen = LINEAR(in_shape, out_shape), nn.Dropout(0.5), set()

    def forward(self, x):
        self.seen.add((self.training, self.dropout.training))
        return self.dropout(self.map(x))


def with_modes():
    return VAE(priors.Normal(2), encoders.Normal(4, 2, Modes), decoders.Normal(2, 4, Modes))


@pytest.mark.parametrize("at", ["sample", "mean"])
def test_networks_are_in_evaluation_mode_meanwhile_and_then_as_before(at):
    vae, x = with_modes(), torch.randn(20, 4)
    vae.decoder.network.dropout.eval()
    vae.decoder.network.map.eval()
    before = [module.training for module in vae.modules()]
    evaluate(*programs(vae), x, at=at)
    assert vae.encoder.network.seen == vae.decoder.network.seen == {(False, False)}
    assert [module.training for module in vae.modules()] == before
    assert set(before) == {True, False}


def test_dropout_is_off():
    vae, x = with_modes(), torch.randn(20, 4)
    assert evaluate(*programs(vae), x, at="mean", seed=0) == evaluate(*programs(vae), x, at="mean", seed=1)


def test_the_mode_and_the_random_state_are_restored_after_an_error():
    vae, x = with_modes(), torch.randn(20, 5)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="was built for"):
        evaluate(*programs(vae), x)
    assert vae.encoder.network.dropout.training
    assert torch.equal(torch.get_rng_state(), before)


def test_the_transform_comes_before_both_programs():
    vae = VAE(priors.Normal(2), encoders.Normal(4, 2), decoders.Bernoulli(2, 4))
    x = torch.rand(20, 4)
    for at in ("sample", "mean"):
        expected = evaluate(*programs(vae), data.threshold(x), at=at)
        assert evaluate(*programs(vae), x, at=at, transform=data.threshold) == expected


@pytest.mark.parametrize("wrap", [lambda x: TensorDataset(x, torch.zeros(len(x))), lambda x: x.numpy(), list])
@pytest.mark.filterwarnings("ignore:only the first of the 2 parts")
def test_data_of_any_kind_give_the_same_bound(linear, wrap):
    vae = linear.vae()
    assert evaluate(*programs(vae), wrap(linear.x)) == evaluate(*programs(vae), linear.x)


def test_another_bound_of_pyros_can_be_evaluated(linear):
    # At the exact posterior every importance weight is p(x): the Renyi bound is log p(x) of the whole batch.
    bound = evaluate(*programs(linear.vae()), linear.x, loss=RenyiELBO(alpha=0, num_particles=3))
    assert bound.loss == pytest.approx(-linear.log_prob.mean(), rel=1e-9)


def test_programs_of_ones_own_are_evaluated(linear):
    w, b = torch.tensor(linear.w), torch.tensor(linear.b)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.T + b, SCALE).to_event(1), obs=x)

    def guide(x):
        scale = torch.tensor(np.sqrt(np.diag(linear.covariance)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - b) @ torch.tensor(linear.to_mean).T, scale).to_event(1))

    assert evaluate(model, guide, linear.x).loss == pytest.approx(-linear.log_prob.mean(), rel=1e-9)


def test_kl_parts_add_up_to_the_kl_of_torch(linear):
    vae = VAE(priors.Normal(2, learned=True), encoders.Normal(4, 2), decoders.Normal(2, 4))
    with torch.no_grad():
        vae.prior.loc += torch.tensor([0.5, -1.0])
        vae.prior.log_scale += torch.tensor([0.3, -0.2])
        posterior, prior = vae.encoder(linear.x), vae.prior()
        of_variance, of_mean = kl_parts(posterior, prior)
        expected = torch.distributions.kl_divergence(posterior.base_dist, prior.base_dist.expand((20, 2))).mean(0)
    torch.testing.assert_close(of_variance + of_mean, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(of_mean, (((posterior.mean - prior.mean) / prior.stddev) ** 2).mean(0) / 2)


def test_kl_parts_are_for_normal_distributions_alone(linear):
    prior = priors.Normal(2)()
    assert kl_parts(encoders.Delta(4, 2)(linear.x), prior) is None
    assert kl_parts(prior, dist.Laplace(torch.zeros(2), 1.0).to_event(1)) is None
    moved = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0), [dist.transforms.AffineTransform(5.0, 2.0)])
    for made_of_a_normal in (moved, dist.LogNormal(torch.zeros(2), 1.0), prior.base_dist.mask(False)):
        assert kl_parts(prior, made_of_a_normal) is None


def test_at_the_mean_a_kl_without_a_closed_form_is_the_kl_all_the_same():
    class StudentT(nn.Module):
        def forward(self):
            return dist.StudentT(torch.tensor([4.0]), 0.0, 1.0).to_event(1)

    count = 20_000  # one draw for each of as many copies of a datum
    vae = VAE(StudentT(), encoders.Normal(3, 1), decoders.Normal(1, 3))
    x = torch.full((1, 3), 0.5)
    q = vae.encoder(x)
    mean, scale = q.mean.item(), q.stddev.item()

    def log_ratio(z):
        return stats.norm.logpdf(z, mean, scale) - stats.t.logpdf(z, 4)

    expected, _ = integrate.quad(lambda z: stats.norm.pdf(z, mean, scale) * log_ratio(z), mean - 12, mean + 12)
    draws = log_ratio(stats.norm.rvs(mean, scale, size=count, random_state=0))
    found = evaluate(vae.model, vae.guide, x.expand(count, 3), at="mean")
    assert abs(found.kl - expected) < 4 * draws.std() / count**0.5


def evidence(vae, x, scale):
    """Return the mean log-evidence of a linear-Gaussian VAE, whose marginal is normal."""
    decode = vae.decoder.network.layers[0]
    w, b = decode.weight.detach().numpy(), decode.bias.detach().numpy()
    return stats.multivariate_normal(b, w @ w.T + scale**2 * np.eye(len(b))).logpdf(x.numpy()).mean()


@pytest.fixture
def sizes(monkeypatch):
    """Fix for how many data log_likelihood draws, and how many particles it weighs, at a time."""

    def fix(batch_size, chunk):
        def fixed(*_):
            return batch_size, chunk

        fixed.__module__ = particles.__name__  # with what is no part of this package nothing is replayed
        monkeypatch.setattr(particles.Particles, "sizes", fixed)

    return fix


@pytest.mark.parametrize("settings", [{"samples": 1}, {"samples": 7}, {"samples": 100, "memory": "40kB"}])
def test_with_the_exact_posterior_any_number_of_samples_gives_the_evidence(settings):
    vae, x = linear_gaussian(offset=0.0, factor=1.0)
    exact = evidence(vae, x, vae.decoder.scale.item())
    assert log_likelihood(*programs(vae), x, **settings) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("memory", [5_000_000, "20MB", "2GB"])
def test_the_log_likelihood_is_the_evidence_whatever_the_memory(memory):
    vae, x = linear_gaussian()
    found = log_likelihood(*programs(vae), x, memory=memory)
    # A weight's relative deviation is about 1 here: the estimate's is 1 / sqrt(samples len(x)), and is taken 5 times.
    assert abs(found - evidence(vae, x, vae.decoder.scale.item())) < 5 / math.sqrt(5000 * len(x))


@pytest.mark.parametrize(("samples", "chunk"), [(101, 1), (101, 7), (101, 50), (101, 100), (1, 1)])
def test_chunks_change_the_log_likelihood_by_rounding_alone(sizes, samples, chunk):
    vae, x = linear_gaussian()
    sizes(3, samples)
    whole = log_likelihood(*programs(vae), x, samples=samples)
    sizes(3, chunk)
    assert log_likelihood(*programs(vae), x, samples=samples) == pytest.approx(whole, rel=1e-10)


def test_a_replayed_chunk_changes_nothing(sizes, monkeypatch):
    vae, x = linear_gaussian()
    sizes(len(x), 200)
    run = partial(log_likelihood, *programs(vae), x, samples=1000)
    expected = run()
    sizes(len(x), 2)
    assert run() == pytest.approx(expected, rel=1e-10)
    seen, kind = [], type(vae.decoder)
    forward = kind.forward

    def counted(self, z):
        seen.append(1)
        return forward(self, z)

    counted.__module__ = kind.__module__
    monkeypatch.setattr(kind, "forward", counted)
    run()
    assert len(seen) < 30  # of 500 chunks: the others are replayed


def test_weights_that_underflow_add_up_all_the_same(sizes):
    vae, x = linear_gaussian()
    sizes(len(x), 3)
    far = x + 1e3  # log-weights of minus many thousands, whose exponentials are 0
    assert evidence(vae, far, vae.decoder.scale.item()) < -1e4
    assert math.isfinite(log_likelihood(*programs(vae), far, samples=10))


def test_the_encoder_sees_each_datum_once(sizes):
    vae, x = linear_gaussian()
    seen, rows = [], []
    vae.encoder.register_forward_hook(lambda _, inputs, __: seen.extend(inputs[0].tolist()))
    vae.decoder.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    sizes(2, 30)
    log_likelihood(*programs(vae), x, samples=100)
    by_itself = 100 * 2  # rows of the decoder for a pair of data
    assert seen[-len(x) :] == x.tolist()
    assert len(seen) <= len(x) + 30  # and a few of the checks before
    pairs = len(x) // 2
    assert rows[-4 * pairs :] == pairs * [60, 60, 60, 20]
    assert sum(rows[-4 * pairs :]) == by_itself * pairs


def test_the_trials_of_the_memory_take_no_noise_from_the_estimate():
    vae, x = linear_gaussian()
    found = {log_likelihood(*programs(vae), x, samples=50, memory=memory) for memory in ("1GB", "1.1GB", "3GB")}
    assert len(found) == 1


@pytest.mark.parametrize("memory", [1, "1kB"])
def test_a_memory_that_is_too_small_for_a_datum_is_refused(memory):
    vae, x = linear_gaussian()
    with pytest.raises(ValueError, match="too small for 5000 samples of a datum: give more, or take fewer samples"):
        log_likelihood(*programs(vae), x, memory=memory)


def test_the_log_likelihood_grows_with_the_samples_as_the_exact_bound_does():
    vae, x = linear_gaussian(offset=1.0, factor=0.7)
    many = x.repeat(2000, 1)
    with torch.no_grad():
        exact = [exact_bound(vae, x, samples).mean().item() for samples in (1, 2, 8)]
    found = [log_likelihood(*programs(vae), many, samples=samples) for samples in (1, 2, 8)]
    assert exact == sorted(exact)
    assert exact[-1] < evidence(vae, x, vae.decoder.scale.item())
    np.testing.assert_allclose(found, exact, atol=0.08)


def test_the_log_likelihood_of_discrete_codes_needs_no_pathwise_sampler():
    vae, x = discrete()
    codes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=x.dtype)] * 3)[:, None]
    with torch.no_grad():
        exact = (vae.decoder(codes).log_prob(x) + vae.prior().log_prob(codes)).logsumexp(0).mean().item()
    assert log_likelihood(*programs(vae), x.repeat(10, 1), samples=20_000) == pytest.approx(exact, abs=0.02)


def test_a_hierarchy_in_one_plate_is_weighed_as_a_whole(float64):  # noqa: ARG001 (the dtype of the draws)
    def model(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(top, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(x[:, 0] / 3, 1.0))
            pyro.sample("z", dist.Normal((top + x[:, 0]) / 2, 0.8))

    x = torch.tensor([[-1.0], [0.0], [2.0]])
    exact = stats.norm(0, math.sqrt(3)).logpdf(x.numpy()).mean()
    assert log_likelihood(model, guide, x, samples=20_000) == pytest.approx(exact, abs=0.02)


def test_the_log_likelihood_leaves_no_trace():
    vae, x = linear_gaussian()
    vae.train()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = log_likelihood(*programs(vae), x, samples=3)
    assert torch.equal(torch.rand(1), expected)
    assert vae.training
    assert not len(pyro.get_param_store())
    assert log_likelihood(*programs(vae), x, samples=3) == first
    assert log_likelihood(*programs(vae), x, samples=3, seed=1) != first


def test_the_log_likelihood_of_a_model_without_latent_sites_is_exact():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(1.0, 2.0).expand([3]).to_event(1), obs=x)

    x = torch.randn(7, 3)
    expected = stats.norm(1, 2).logpdf(x.numpy()).sum(1).mean()
    assert log_likelihood(model, lambda _: None, x, samples=5) == pytest.approx(expected, rel=1e-5)


def test_a_log_likelihood_of_no_samples_or_memory_is_refused():
    vae, x = linear_gaussian()
    with pytest.raises(ValueError, match="samples must be at least 1, not 0"):
        log_likelihood(*programs(vae), x, samples=0)
    with pytest.raises(ValueError, match="at least 1 byte, not 0"):
        log_likelihood(*programs(vae), x, memory=0)


def test_a_site_that_one_program_alone_draws_is_refused_by_the_log_likelihood():
    vae, x = linear_gaussian()
    with pytest.raises(ValueError, match="the model draws site 'z', but the guide does not"):
        log_likelihood(vae.model, lambda _: None, x)


def test_an_encoder_of_points_is_refused_by_the_log_likelihood():
    """It has no density to divide by: log p(x, z) at the point would be taken for log p(x)."""
    vae = VAE(priors.Normal(2), encoders.Delta(5, 2), decoders.Normal(2, 5))
    with pytest.raises(ValueError, match="weighs draws by their density, which a Delta at site 'z' has not"):
        log_likelihood(vae.model, vae.guide, torch.randn(4, 5), samples=3)


def test_a_point_beside_one_that_has_a_density_is_refused_by_the_log_likelihood():
    """With z at a point, the weights would be of p(x, z), not of p(x)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            w = pyro.sample("w", dist.LogNormal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x[:, 0])

    def guide(of_z, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", of_z(x[:, 0] / 5))
            u = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0), infer={"is_auxiliary": True})
            pyro.sample("w", dist.Delta(u.exp(), log_density=-u))

    x = torch.tensor([[0.5], [-1.2], [2.0]])
    with pytest.raises(ValueError, match=r"by their density, which a Delta at site 'z' has not"):
        log_likelihood(model, partial(guide, dist.Delta), x, samples=10)

    def joint(u, x):
        return stats.norm.pdf(u) * stats.norm.pdf(x, np.exp(u), math.sqrt(2))

    exact = [math.log(integrate.quad(joint, -8, 8, args=(value,))[0]) for value in x[:, 0].tolist()]
    of_density = partial(guide, lambda mean: dist.Normal(mean, 1.0))
    assert log_likelihood(model, of_density, x, samples=100_000) == pytest.approx(np.mean(exact), abs=0.01)


def test_a_scale_in_the_programs_is_refused_by_the_log_likelihood():
    vae, x = linear_gaussian()
    model, guide = (pyro.poutine.scale(program, 0.5) for program in programs(vae))
    with pytest.raises(ValueError, match=r"^log_likelihood has no KL to weigh: a scale of 0\.5"):
        log_likelihood(model, guide, x)


class OfTwo(nn.Module):
    """Programs of two arguments, to be called within functions of one."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
        self.decode = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 6))

    def model(self, x, y):
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z) + y, 1.0).to_event(1), obs=x)

    def guide(self, x, _):
        loc, log_scale = self.encode(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Paired(nn.Module):
    """The same programs as methods of one argument."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def model(self, both):
        return self.net.model(both[:, 0], both[:, 1])

    def guide(self, both):
        return self.net.guide(both[:, 0], both[:, 1])


@pytest.mark.parametrize("call", [evaluate, log_likelihood])
def test_modules_in_closures_are_evaluated_in_evaluation_mode(call):
    net, both = OfTwo(), torch.randn(20, 2, 6)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pair = Paired(net)
    expected = call(pair.model, pair.guide, both)
    functions = lambda b: net.model(b[:, 0], b[:, 1]), lambda b: net.guide(b[:, 0], b[:, 1])
    assert call(*functions, both) == expected
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training


def normal_pair(shift=0.0):
    """A code of each datum under N(0, 1), and a guide of it."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(1) + shift, 0.5))

    return model, guide


def with_factor(guide):
    def changed(x):
        guide(x)
        with pyro.plate("data again", len(x)):
            pyro.factor("f", torch.full((len(x),), 2.0), has_rsample=True)

    return changed


@pytest.mark.parametrize("at", ["sample", "mean"])
@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO(), TraceEnum_ELBO(max_plate_nesting=1)])
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites", "ignore:Found plate statements in guide")
def test_a_factor_of_a_guide_is_a_part_of_the_bound_and_none_of_its_kl(loss, at):
    """As in ``pyro.infer.SVI``: scANVI's loss of a classifier is one."""
    model, guide = normal_pair()
    found = evaluate(model, with_factor(guide), torch.zeros(4, 1), loss=loss, at=at)
    plain = evaluate(model, guide, torch.zeros(4, 1), loss=loss, at=at)
    assert found == pytest.approx((plain.loss + 2, plain.reconstruction + 2, plain.kl), abs=1e-5)


@pytest.mark.parametrize("measure", [log_likelihood, partial(evaluate, loss=IWAE(2))])
def test_a_factor_of_a_guide_is_refused_where_draws_are_weighed_by_their_density(measure):
    model, guide = normal_pair()
    with pytest.raises(ValueError, match="the guide has a factor, at site 'f', by which its draws have no density: ta"):
        measure(model, with_factor(guide), torch.zeros(4, 1))


def test_a_site_that_a_guide_observes_is_refused():
    model, guide = normal_pair()

    def observing(x):
        guide(x)
        with pyro.plate("data again", len(x)):
            pyro.sample("x", dist.Normal(x, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="the guide observes site 'x', but only the model may observe: move the site"):
        evaluate(model, observing, torch.zeros(4, 1))


@pytest.mark.filterwarnings("ignore:Found vars in model but not guide")
def test_a_site_that_the_model_alone_draws_is_refused_unless_it_is_summed_out_or_masked():
    model, guide = normal_pair()

    def more(x, **how):
        with pyro.plate("also", 2):
            pyro.sample("k", dist.Bernoulli(0.5), **how)
        model(x)

    x = torch.zeros(4, 1)
    with pytest.raises(ValueError, match="the model draws site 'k', but the guide does not: let the guide draw it"):
        evaluate(more, guide, x)
    with pytest.raises(
        ValueError, match=r"the model has site 'k' summed out, and this loss sums nothing: take TraceEn"
    ):
        evaluate(partial(more, infer={"enumerate": "parallel"}), guide, x)
    summed = evaluate(
        partial(more, infer={"enumerate": "parallel"}), guide, x, loss=TraceEnum_ELBO(max_plate_nesting=1)
    )
    masked = evaluate(pyro.poutine.mask(model, mask=True), guide, x)
    assert summed.loss == pytest.approx(masked.loss, abs=1e-5)


def test_a_scale_of_each_datum_is_refused_in_one_line():
    model, guide = (pyro.poutine.scale(program, torch.rand(40) + 0.5) for program in normal_pair())
    with pytest.raises(ValueError, match=r"^IWAE has no KL to weigh: a scale of shape \(40,\) at site 'z' would .*$"):
        evaluate(model, guide, torch.zeros(40, 1), loss=IWAE(2))


@pytest.mark.filterwarnings("ignore:Found non-auxiliary vars")
def test_what_an_elbo_of_pyros_asserts_is_refused_in_words():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.deterministic("half", x / 2, event_dim=1), 1.0).to_event(1))

    assert math.isfinite(evaluate(model, guide, torch.ones(3, 1)).loss)
    with pytest.raises(ValueError, match=r"TraceMeanField_ELBO does not take .* site that the model has not \(take Tr"):
        evaluate(model, guide, torch.ones(3, 1), loss=TraceMeanField_ELBO())


def test_a_plate_where_the_particles_of_an_objective_stand_is_refused_in_words():
    def model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", x.shape[1], dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))

    x = torch.ones(3, 4)
    assert math.isfinite(evaluate(model, guide, x).loss)
    with pytest.raises(ValueError, match=r"IWAE weighs each datum by itself, .* has dim -2: take Trace_ELBO") as error:
        evaluate(model, guide, x, loss=IWAE(2))
    assert "\n" not in str(error.value)


def test_masks_of_one_site_must_be_those_of_the_other_program():
    model, guide = normal_pair()
    x = torch.tensor([[1.0], [-1.0], [2.0]])
    seen = pyro.poutine.mask(mask=x[:, 0] > 0)
    with pytest.raises(ValueError, match=r"site 'z' has different masks in the model and the guide: put the same pout"):
        evaluate(seen(model), guide, x)
    only = evaluate(seen(model), seen(guide), x, loss=TraceMeanField_ELBO()).kl
    kl = [0.5 * (0.25 + mean**2 - 1) - math.log(0.5) for mean in (1, 2)]
    assert only == pytest.approx(sum(kl) / 3, rel=1e-5)


def of_distributions(of_prior, of_guide, mask=True):
    """A pair with functions that mask the prior and the guide's normal distribution, and a mask around the prior."""

    def model(x):
        with pyro.plate("data", len(x)):
            with pyro.poutine.mask(mask=mask):
                z = pyro.sample("z", of_prior(dist.Normal(torch.zeros(len(x)), 1.0), x))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", of_guide(dist.Normal(x[:, 0] / 2, 0.8), x))

    return model, guide


def test_masks_of_distributions_must_be_those_of_the_other_program_too():
    x = torch.tensor([[0.5], [-1.0], [2.0]])
    as_it_is, positive, nowhere = lambda q, _: q, lambda q, x: q.mask(x[:, 0] > 0), lambda q, _: q.mask(False)
    for pair in (
        (positive, as_it_is),
        (as_it_is, positive),
        (as_it_is, nowhere),
        (nowhere, nowhere),
        (positive, positive),
    ):
        own = of_distributions(*pair)
        if pair[0] is not pair[1]:
            for measure in (evaluate, log_likelihood, fit):
                with pytest.raises(ValueError, match=r"different masks in the model and the guide: .*\.mask\(\)"):
                    measure(*own, x)
            continue
        counted = [0.25, 1.0] if pair[0] is positive else []
        expected = sum((mean**2 + 0.8**2 - 1) / 2 - math.log(0.8) for mean in counted) / 3
        assert evaluate(*own, x, loss=TraceMeanField_ELBO()).kl == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "of", [poutine.mask, lambda mask: poutine.scale(scale=1.0 + mask.float())], ids=["mask", "scale"]
)
@pytest.mark.parametrize("latent", [False, True], ids=["observed", "latent"])
def test_a_mask_that_would_count_a_number_several_times_is_refused(of, latent):
    """Of shape (B, 1) beside a batch shape (B,), which broadcast to (B, B): a log-likelihood of 18.2, not of -1.2."""

    def programs(mask_of):
        def model(x):
            with pyro.plate("data", len(x)):
                with of(mask=mask_of(x)) if latent else nullcontext():
                    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                with nullcontext() if latent else of(mask=mask_of(x)):
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

        def guide(x):
            with pyro.plate("data", len(x)), of(mask=mask_of(x)) if latent else nullcontext():
                pyro.sample("z", dist.Normal(pyro.param("mean", torch.zeros(())), 1.0))

        return model, guide

    x = torch.tensor([[0.5], [-1.2], [2.0]])
    assert math.isfinite(evaluate(*programs(lambda x: x[:, 0] > 0), x).loss)
    for measure in (evaluate, partial(evaluate, at="mean"), log_likelihood, partial(fit, epochs=1)):
        with pytest.raises(ValueError, match=r"of shape \([23], 1\) beside its batch shape \([23],\), .* this shape"):
            measure(*programs(lambda x: x > 0), x)


@pytest.mark.parametrize("by", ["ImproperUniform", "poutine.mask", ".mask()"])
def test_a_flat_prior_has_the_density_1(by):
    """Under it p(x) is the integral of N(x; z, 1) over z, which is 1."""
    flat = {
        "ImproperUniform": lambda _, x: dist.ImproperUniform(dist.constraints.real, (len(x),), ()),
        "poutine.mask": lambda p, _: p,
        ".mask()": lambda p, _: p.mask(False),
    }
    own = of_distributions(flat[by], lambda q, _: q, mask=by != "poutine.mask")
    x, entropy = torch.tensor([[0.5], [-1.0], [2.0]]), math.log(0.8) + (1 + math.log(2 * math.pi)) / 2
    for at in ("sample", "mean"):
        assert evaluate(*own, x.repeat(2000, 1), at=at).kl == pytest.approx(-entropy, abs=0.05)
    assert log_likelihood(*own, x, samples=100_000) == pytest.approx(0.0, abs=0.05)
    if by == "poutine.mask":
        with pytest.raises(ValueError, match=r"mask the KL of site 'z' as the guide does"):
            evaluate(*own, x, loss=TraceMeanField_ELBO())


@pytest.mark.parametrize(
    "how", [{"at": "mean"}, {"loss": TraceMeanField_ELBO(num_particles=200)}], ids=["mean", "field"]
)
def test_the_kl_of_an_autoguide_on_a_positive_site_has_the_density_of_its_points(how):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    x = torch.ones(200, 1)
    guide = AutoNormal(
        model, init_loc_fn=init_to_value(values={"z": torch.full((200,), math.exp(2.0))}), init_scale=0.5
    )
    guide(x)
    exact = -math.log(0.5) + (0.5**2 + 2.0**2 - 1) / 2  # of N(2, 0.5) to N(0, 1), before the exponential
    assert evaluate(model, guide, x, **how).kl == pytest.approx(exact, abs=0.5)  # 200 draws: sd 0.07


@pytest.mark.parametrize("kind", ["view", "index", "cat", "stack"])
@pytest.mark.parametrize(
    "measure",
    [
        log_likelihood,
        partial(evaluate, loss=IWAE(2)),
        partial(evaluate, loss=Trace_ELBO(2, vectorize_particles=True, max_plate_nesting=1)),
        partial(evaluate, loss=TraceEnum_ELBO(2, vectorize_particles=True)),
        partial(fit, loss=IWAE(2), epochs=0),
    ],
)
def test_guides_that_fail_on_particles_alone_are_refused_in_a_line_with_the_fix(measure, kind):
    """Models that do are run on one particle at a time, but for Pyro's own objectives."""
    layer = nn.Linear(2, 5)
    means = {
        "view": lambda z, x: layer(z.view(len(x), 2)),
        "index": lambda z, _: layer(z) * z[:, :1],
        "cat": lambda z, x: layer(torch.cat([z[..., :1], x[:, :1]], -1)),
        "stack": lambda z, _: torch.stack(layer(z).unbind(-1), 1),
    }

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.Normal(torch.zeros(5), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(y + z[..., :1], 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("layer", layer)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x[..., :2], 1.0).to_event(1))
            pyro.sample("y", dist.Normal(means[kind](z, x), 1.0).to_event(1))

    x = torch.ones(6, 5)
    evaluate(model, guide, x)
    with pytest.raises(
        ValueError, match=r"runs the programs on particles.* from the right \(z\[\.\.\., 0\], not z\[:, 0\]\)"
    ):
        measure(model, guide, x)


@torch.no_grad()
def test_at_mean_takes_discrete_codes_that_are_summed_out_and_so_does_a_validation():
    vae, x = discrete(count=6)
    guide, loss = config_enumerate(vae.guide), TraceEnum_ELBO(max_plate_nesting=1)
    posterior, prior = vae.encoder(x), vae.prior().expand([len(x)])
    reconstruction = -vae.decoder(posterior.mean).log_prob(x).mean().item()
    kl = torch.distributions.kl_divergence(posterior, prior).mean().item()
    bound = evaluate(vae.model, guide, x, loss=loss, at="mean")
    assert bound == pytest.approx((reconstruction + kl, reconstruction, kl))
    with torch.enable_grad():
        row = fit(vae.model, guide, x, loss=loss, validation=x, epochs=1)[-1]
    assert row["test_loss_at_mean"] == evaluate(vae.model, guide, x, loss=loss, at="mean").loss


@pytest.mark.parametrize("run", [evaluate, fit])
def test_programs_that_fail_on_the_values_of_a_site_alone_are_refused_in_a_line_with_the_fix(run):
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(y.unsqueeze(-1), 1.0).expand([len(x), 2]).to_event(1), obs=x)

    def guide(x):
        logit = pyro.param("logit", torch.zeros(()))
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(logits=logit), infer={"enumerate": "parallel"})
            torch.cat([x, y.unsqueeze(-1)], -1)

    x = torch.ones(6, 2)
    with pytest.raises(ValueError, match=r"^TraceEnum_ELBO runs the programs on all values of a site.*expand.*$"):
        run(model, guide, x, loss=TraceEnum_ELBO(max_plate_nesting=1))


def test_data_do_not_meet_the_noise_that_they_were_made_of():
    torch.manual_seed(0)
    x = torch.randn(1000, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.5).to_event(1))

    square = x.square().mean().item()
    exact = 0.5 * math.log(2 * math.pi) + (0.64 + 0.04) * square / 2 + 0.25 + math.log(2) - 0.5
    row = fit(model, guide, x, epochs=0, validation=x)[0]
    found = evaluate(model, guide, x).loss, -log_likelihood(model, guide, x, samples=1), row["test_loss"]
    assert found == pytest.approx([exact] * 3, abs=0.075)  # 5 standard errors of 1,000 data


@pytest.mark.parametrize("measure", [log_likelihood, partial(evaluate, loss=IWAE(2))])
def test_a_site_that_the_model_alone_sums_out_is_refused_with_the_objective_that_does(measure):
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(y, 1.0), obs=x[:, 0])

    with pytest.raises(ValueError, match=r"only one of them draws y: evaluate by TraceEnum_ELBO, which sums it out"):
        measure(model, lambda _: None, torch.zeros(3, 1))
