import itertools
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from scipy.special import logsumexp

from pyro_vae import VAE, encoders
from pyro_vae.cli import main
from pyro_vae.diagnostics import estimators as laboratory
from pyro_vae.objectives import IWAE, DReG
from pyro_vae.runtime.memory import peak_of

DRAWS = 10_000


@pytest.fixture(scope="module")
def linear():
    return laboratory.gradients("linear-gaussian", DRAWS)


@pytest.fixture(scope="module")
def discrete():
    return laboratory.gradients("discrete", DRAWS)


def rows(found, block="encoder"):
    return {row.estimator: row for row in found.rows if row.block == block}


# What is exact


def test_the_exact_bound_of_one_particle_is_the_closed_form_of_the_linear_model():
    vae, x = laboratory.linear_gaussian(offset=0.3, factor=1.2)
    q, weight = vae.encoder(x), vae.decoder.network.layers[0].weight
    kl = (q.variance + q.mean**2 - 1 - q.variance.log()).sum(-1) / 2
    squares = (x - q.mean @ weight.T).square().sum(-1) + q.variance @ weight.square().sum(0)
    expected = -squares / (2 * 0.25) - 3 / 2 * math.log(2 * math.pi * 0.25) - kl
    torch.testing.assert_close(laboratory.exact_bound(vae, x), expected, rtol=1e-10, atol=1e-10)


def law_of_a_log_weight(x, offset, factor):
    """log w = c + b.e + C |e|^2 with e ~ N(0, I), of the linear model, by hand."""
    weight, scale = np.array([[1, 0.5], [1, -0.5], [0.3, 0]]), 0.5
    deviation = (1 + (weight**2).sum(0) / scale**2) ** -0.5  # of the exact posterior
    evidence = stats.multivariate_normal.logpdf(x, np.zeros(3), weight @ weight.T + scale**2 * np.eye(3))
    away = offset / deviation
    c = evidence + 2 * math.log(factor) - (away**2).sum() / 2
    return c, -away * factor, (1 - factor**2) / 2


def bound_of_two(x, offset, factor):
    r"""By the characteristic function of the difference d of two log-weights.

    log((e^u + e^v) / 2) = (u + v) / 2 + f(d), f(d) = log cosh(d / 2), and the Fourier transform of f'' is
    pi s / sinh(pi s): hence E f(d) = 1 / (2 pi) times the integral of (pi s / sinh(pi s)) (1 - E cos(s d)) / s^2.
    """
    c, b, curvature = law_of_a_log_weight(x, offset, factor)

    def integrand(s):
        root = 1 - 2j * s * curvature
        one = np.prod(np.exp(-(s**2) * b**2 / (2 * root)) / np.sqrt(root))
        return math.pi * s / math.sinh(math.pi * s) * (1 - abs(one) ** 2) / s**2

    ends = [1e-7, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1, 4, 14]
    total = sum(integrate.quad(integrand, *pair, limit=200)[0] for pair in itertools.pairwise(ends))
    total += 1e-7 * (b @ b + 4 * curvature**2)  # up to the first end, where it is half the variance of d
    return c + 2 * curvature + total / math.pi


@pytest.mark.parametrize("factor", [1.3, 0.7])
@pytest.mark.parametrize("offset", [3.0, 0.0, 1.0, pytest.param(6.0, marks=pytest.mark.slow)])
def test_the_exact_bound_of_two_particles_is_right_wherever_the_encoder_is(offset, factor):
    vae, x = laboratory.linear_gaussian(offset=offset, factor=factor, count=1)
    found = laboratory.exact_bound(vae, x, 2).item()
    assert found == pytest.approx(bound_of_two(x[0].numpy(), offset, factor), abs=2e-6)


@pytest.mark.parametrize("particles", [5, 64])
@pytest.mark.parametrize("offset", [4.0, 1.0])
def test_the_exact_bound_of_many_particles_is_the_mean_over_draws(offset, particles):
    """20,000 draws of the particles, within 4.5 standard errors."""
    vae, x = laboratory.linear_gaussian(offset=offset, count=1)
    c, b, curvature = law_of_a_log_weight(x[0].numpy(), offset, 1.3)
    noise = np.random.default_rng(0).standard_normal((20_000, particles, 2))
    found = logsumexp(c + noise @ b + curvature * (noise**2).sum(-1), 1) - math.log(particles)
    exact = laboratory.exact_bound(vae, x, particles).item()
    assert abs(found.mean() - exact) < 4.5 * found.std() / 20_000**0.5


def test_at_a_far_encoder_unbiased_estimators_are_not_accused():
    """2,000 draws of each, the largest of 17 entries within 4.5 standard errors."""
    vae, x = laboratory.linear_gaussian(offset=3.0)
    exact = laboratory.exact_gradient(vae, x, 2)
    for loss in (IWAE(2), DReG(2)):
        for row in laboratory._measure(laboratory.Estimator("far", loss, 2), vae, x, exact, 2000):
            assert row.bias_z < 4.5


def test_more_draws_take_no_more_memory_and_have_the_mean_and_the_variance_of_all():
    drawn = 100 + torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    peaks = []
    for count in (10, 1000):
        each = iter(drawn[:count])
        peaks.append(peak_of(lambda each=each, count=count: laboratory._moments(lambda: next(each).clone(), count)))
    assert peaks[0] == peaks[1] < drawn.nbytes / 10
    mean, variance = laboratory._moments(partial(next, iter(drawn)), len(drawn))
    assert torch.allclose(mean, drawn.mean(0), rtol=1e-12)
    assert torch.allclose(variance, drawn.var(0), rtol=1e-10)


def test_draws_are_counted_as_they_are_made(monkeypatch):
    """They are made in groups of 50, so that 1,001 take 21 groups."""
    first = laboratory.discrete_estimators()[0]
    monkeypatch.setattr(laboratory, "discrete_estimators", lambda: [first])
    found = laboratory.gradients("discrete", draws=1001)
    assert found.draws == 1050
    assert "discrete: 1050 draws of each gradient" in found.table()


def test_weights_too_steep_for_an_exact_bound_are_refused():
    with pytest.raises(ValueError, match=r"too steep .* take a smaller offset"):
        laboratory.exact_bound(*laboratory.linear_gaussian(offset=100.0), 2)


@pytest.mark.parametrize("particles", [1, 2, 8, 64])
def test_at_the_exact_posterior_every_bound_is_the_evidence(particles):
    vae, x = laboratory.linear_gaussian(offset=0.0, factor=1.0)
    weight = vae.decoder.network.layers[0].weight.detach().numpy()
    expected = stats.multivariate_normal.logpdf(x.numpy(), np.zeros(3), weight @ weight.T + 0.25 * np.eye(3))
    np.testing.assert_allclose(laboratory.exact_bound(vae, x, particles).detach(), expected, atol=1e-7)


@pytest.mark.parametrize("particles", [2, 3])
def test_the_exact_bound_of_several_particles_is_the_sum_over_all_their_codes(particles):
    vae, x = laboratory.discrete()
    codes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 3)[:, None].expand(-1, len(x), -1)
    q = vae.encoder(x).log_prob(codes)
    log_weights = vae.decoder(codes).log_prob(x) + vae.prior().log_prob(codes) - q
    index = torch.cartesian_prod(*[torch.arange(8)] * particles)
    bounds = log_weights[index].logsumexp(1) - math.log(particles)
    expected = (q[index].sum(1).exp() * bounds).sum(0)
    torch.testing.assert_close(laboratory.exact_bound(vae, x, particles), expected, rtol=1e-7, atol=1e-7)


def test_the_exact_gradient_is_that_of_finite_differences():
    vae, x = laboratory.linear_gaussian()
    found = laboratory.exact_gradient(vae, x, 8)
    parameters, start = list(vae.parameters()), 0
    for parameter in parameters:
        with torch.no_grad():
            entry, step = parameter.view(-1), 1e-5
            entry[0] += step
            above = laboratory.exact_bound(vae, x, 8).mean()
            entry[0] -= 2 * step
            below = laboratory.exact_bound(vae, x, 8).mean()
            entry[0] += step
        assert found[start].item() == pytest.approx(-(above - below).item() / (2 * step), rel=1e-4, abs=1e-6)
        start += parameter.numel()


# What theory says


@pytest.mark.slow
@pytest.mark.parametrize("model", ["discrete", "linear"])
def test_unbiased_estimators_stay_within_4_standard_errors_of_the_exact_gradient(request, model):
    """Over 10,000 draws of each."""
    found = request.getfixturevalue(model)
    unbiased = [row for row in found.rows if row.unbiased_expected]
    assert len(unbiased) >= 10
    for row in unbiased:
        assert abs(row.bias_z) < 4, row


@pytest.mark.slow
def test_the_bias_of_gumbel_softmax_shrinks_with_its_temperature(discrete):
    z = [rows(discrete)[f"Gumbel-softmax, temperature {t}"] for t in (1.0, 0.5, 0.1)]
    biases = [row.bias_z * math.sqrt(row.variance) for row in z]
    assert z[0].bias_z > 10
    assert biases[0] > biases[1] > biases[2]


def test_colder_gumbel_softmax_has_more_variance(discrete):
    variances = [rows(discrete)[f"Gumbel-softmax, temperature {t}"].variance for t in (1.0, 0.5, 0.1)]
    assert variances == sorted(variances)


def test_the_enumerated_gradient_has_no_variance(discrete):
    assert rows(discrete)["enumerated"].variance < 1e-20


@pytest.mark.slow
def test_a_baseline_and_leaving_one_out_lower_the_variance_of_the_score_function(discrete, linear):
    found = rows(discrete)
    assert found["score function, baseline"].variance < found["score function"].variance
    assert found["VIMCO 8"].variance < found["VIMCO 2"].variance < found["score function"].variance
    assert rows(linear)["pathwise, sampled KL"].variance < rows(linear)["score function"].variance / 5


@pytest.mark.slow
def test_sticking_the_landing_has_no_variance_at_the_exact_posterior_and_the_others_have():
    variances = []
    for distance in (1.0, 0.3, 0.0):
        found = rows(laboratory.gradients("linear-gaussian", 1000, offset=0.5 * distance, factor=1 + 0.3 * distance))
        variances.append(found["sticking the landing"].variance)
    assert variances[0] > variances[1] > 1e-6
    assert variances[2] < 1e-20
    assert found["pathwise, sampled KL"].variance > 0.1


@pytest.mark.slow
def test_the_signal_to_noise_ratio_of_dreg_grows_with_the_particles_where_that_of_iwae_falls(linear):
    iwae, dreg = ([rows(linear)[f"{name} {k}"].snr for k in (2, 8, 64)] for name in ("IWAE", "DReG"))
    assert iwae[0] > iwae[1] > iwae[2]
    assert dreg[0] < dreg[1] < dreg[2]


@pytest.mark.slow
def test_better_noise_lowers_the_variance_on_a_smooth_model(linear):
    plain = rows(linear)["pathwise, 8 particles"].variance
    sticking = rows(linear)["sticking the landing, 8 particles"].variance
    for kind in ("antithetic", "Latin hypercube", "Sobol"):
        assert rows(linear)[f"sticking the landing, 8 particles, {kind}"].variance < sticking / 1.5
        assert rows(linear)[f"pathwise, 8 particles, {kind}"].variance < plain / 1.5


@pytest.mark.slow
def test_the_closed_form_kl_changes_the_variance_and_not_the_mean(linear):
    one, other = rows(linear)["pathwise, closed-form KL"], rows(linear)["pathwise, sampled KL"]
    assert one.variance != pytest.approx(other.variance, rel=0.05)


def test_a_biased_estimator_would_be_seen():
    """IWAE's gradient of 8 particles is not that of 2: held against it, its z is far out."""
    vae, x = laboratory.linear_gaussian()
    wrong = laboratory.Estimator("wrong", IWAE(8), 2)
    (row, _) = laboratory._measure(wrong, vae, x, laboratory.exact_gradient(vae, x, 2), 2000)
    assert row.bias_z > 6
    right = laboratory.Estimator("right", DReG(8), 8)
    (row, _) = laboratory._measure(right, vae, x, laboratory.exact_gradient(vae, x, 8), 2000)
    assert row.bias_z < 4.5


# As a command


@pytest.mark.parametrize("names", [["plain", "n" * 60], []], ids=len)
def test_the_columns_of_the_table_stand_apart_whatever_the_names(names):
    rows = [laboratory.Row(name, "encoder", 1.0, 2.0, 3.0, 4.0, True) for name in names]
    _, head, *lines = laboratory.Gradients("linear", 10, rows).table().splitlines()
    assert [line.split()[:3] for line in lines] == [[name, "encoder", "1.00"] for name in names]
    assert {line.index("encoder") for line in lines} <= {head.index("block")}


def test_the_command_prints_writes_and_draws(tmp_path, capsys):
    argv = ["gradients", "--model", "discrete", "--draws", "1000", "--json", str(tmp_path / "g.json")]
    assert main([*argv, "--out", str(tmp_path / "g.png")]) == 0
    assert "VIMCO 8" in capsys.readouterr().out
    found = json.loads((tmp_path / "g.json").read_text())
    assert set(found[0]) == {"estimator", "block", "bias_z", "variance", "snr", "ms_per_step", "unbiased_expected"}
    assert [row["snr"] for row in found if row["estimator"] == "enumerated"] == [None, None]
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--model", "cubic"], "model is one of linear-gaussian, discrete"), (["--draws", "10"], "at least 1000 draws")],
)
def test_the_command_refuses_in_one_line(capsys, flags, message):
    assert main(["gradients", *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_models_are_what_they_say():
    vae, x = laboratory.linear_gaussian()
    assert isinstance(vae, VAE)
    assert x.dtype == torch.float64
    assert isinstance(laboratory.discrete()[0].encoder, encoders.Bernoulli)
