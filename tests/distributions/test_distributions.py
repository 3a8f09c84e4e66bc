"""Moments, entropies, modes and distribution functions of all distributions, against mpmath, in both precisions.

What a class does not know it must refuse with NotImplementedError.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import mpmath as mp
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import distributions, priors

mp.mp.dps = 60
WHAT = ["mean", "variance", "stddev", "mode", "entropy"]
DTYPES = [torch.float32, torch.float64]
# Relative to the value; of entropies, probabilities and quantiles to the larger of 1 and the value.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-8}


POINTS = (1e-12, 1e-4, 0.01, 0.3, 0.5, 0.9, 0.9999)
MODERATE = POINTS[2:]  # torch's own quantiles work from 2 u - 1


@dataclass
class Case:
    """A distribution of some numbers, what these make of each quantity by mpmath, and where its functions are held."""

    make: Any
    numbers: list
    reference: Any
    points: tuple = POINTS


def numbers(values, dtype):
    """Numbers rounded to a precision, as tensors and in mpmath."""
    tensors = [torch.tensor(value, dtype=dtype) for value in values]
    return tensors, [exact(tensor) for tensor in tensors]


def exact(tensor):
    return [exact(entry) for entry in tensor] if tensor.dim() else mp.mpf(tensor.item())


def bernoulli(logit):
    p, lack = 1 / (1 + mp.exp(-logit)), 1 / (1 + mp.exp(logit))
    entropy = -p * mp.log(p) - lack * mp.log(lack)
    return {"mean": p, "variance": p * lack, "mode": logit > 0, "entropy": entropy}


def bernoulli_of_probability(p):
    entropy = -sum(q * mp.log(q) for q in (p, 1 - p) if q)
    return {"mean": p, "variance": p * (1 - p), "mode": p > 0.5, "entropy": entropy}


def softmax(logits):
    total = sum(map(mp.exp, logits))
    return [mp.exp(logit) / total for logit in logits]


def categorical(logits):
    p = softmax(logits)
    mean = sum(k * q for k, q in enumerate(p))
    variance = sum((k - mean) ** 2 * q for k, q in enumerate(p))
    return {"mean": mean, "variance": variance, "mode": p.index(max(p)), "entropy": -sum(q * mp.log(q) for q in p)}


def one_hot(logits):
    p = softmax(logits)
    variance = [q * sum(p[:k] + p[k + 1 :]) for k, q in enumerate(p)]
    mode = [float(q == max(p)) for q in p]
    return {"mean": p, "variance": variance, "mode": mode, "entropy": -sum(q * mp.log(q) for q in p)}


def beta(a, b):
    s = a + b
    log_b = mp.loggamma(a) + mp.loggamma(b) - mp.loggamma(s)
    entropy = log_b - (a - 1) * mp.digamma(a) - (b - 1) * mp.digamma(b) + (s - 2) * mp.digamma(s)
    mode = (a - 1) / (s - 2) if min(a, b) > 1 else mp.nan
    return {"mean": a / s, "variance": a * b / s**2 / (s + 1), "mode": mode, "entropy": entropy}


def beta_of_mean(logit, log_concentration):
    c = mp.exp(log_concentration)
    return beta(c / (1 + mp.exp(-logit)), c / (1 + mp.exp(logit)))


def dirichlet(alpha):
    s, k = sum(alpha), len(alpha)
    log_b = sum(map(mp.loggamma, alpha)) - mp.loggamma(s)
    entropy = log_b + (s - k) * mp.digamma(s) - sum((a - 1) * mp.digamma(a) for a in alpha)
    mode = [(a - 1) / (s - k) if min(alpha) > 1 else mp.nan for a in alpha]
    variance = [a * (s - a) / s**2 / (s + 1) for a in alpha]
    return {"mean": [a / s for a in alpha], "variance": variance, "mode": mode, "entropy": entropy}


def gamma(a, b):
    entropy = a - mp.log(b) + mp.loggamma(a) + (1 - a) * mp.digamma(a)
    cdf = (lambda z: mp.gammainc(a, 0, b * z, regularized=True)) if a < 1e4 else None  # mpmath takes too long
    return {"mean": a / b, "variance": a / b**2, "mode": max(a - 1, 0) / b, "entropy": entropy, "cdf": cdf}


def continuous_bernoulli(logit):
    if logit == 0:
        moments = mp.mpf(1) / 2, mp.mpf(1) / 12, mp.mpf(0)
        return dict(zip(("mean", "variance", "entropy"), moments, strict=True)) | dict.fromkeys(("cdf", "icdf"), same)
    e = mp.exp(logit)
    mean = e / (e - 1) - 1 / logit
    return {
        "mean": mean,
        "variance": 1 / logit**2 - e / (e - 1) ** 2,
        "entropy": -logit * mean - mp.log(logit / (e - 1)),
        "cdf": lambda x: (mp.exp(logit * x) - 1) / (e - 1),
        "icdf": lambda u: mp.log(1 + u * (e - 1)) / logit,
    }


def same(x):
    return x


def kumaraswamy(a, b):
    first, second = (b * mp.beta(1 + n / a, b) for n in (1, 2))
    inside = min(a, b) >= 1 and max(a, b) > 1
    return {
        "mean": first,
        "variance": second - first**2,
        "mode": ((a - 1) / (a * b - 1)) ** (1 / a) if inside else mp.nan,
        "entropy": 1 - 1 / b + (1 - 1 / a) * (mp.digamma(b + 1) + mp.euler) - mp.log(a * b),
        "cdf": lambda z: 1 - (1 - z**a) ** b,
        "icdf": lambda u: (1 - (1 - u) ** (1 / b)) ** (1 / a),
    }


def weibull(scale, k):
    return {
        "mean": scale * mp.gamma(1 + 1 / k),
        "variance": scale**2 * (mp.gamma(1 + 2 / k) - mp.gamma(1 + 1 / k) ** 2),
        "mode": scale * ((k - 1) / k) ** (1 / k) if k > 1 else 0,
        "entropy": mp.euler * (1 - 1 / k) + mp.log(scale / k) + 1,
        "cdf": lambda z: 1 - mp.exp(-((z / scale) ** k)),
        "icdf": lambda u: scale * (-mp.log(1 - u)) ** (1 / k) if u < 1 else mp.inf,
    }


def exponential(rate):
    return weibull(1 / rate, mp.mpf(1))


def normal(loc, scale):
    return {
        "mean": loc,
        "variance": scale**2,
        "mode": loc,
        "entropy": mp.log(2 * mp.pi * mp.e) / 2 + mp.log(scale),
        "cdf": lambda x: mp.ncdf(x, loc, scale),
        "icdf": lambda u: loc + scale * mp.sqrt(2) * mp.erfinv(2 * u - 1),
    }


def log_normal(loc, scale):
    spread, of_log = scale**2, normal(loc, scale)
    return {
        "mean": mp.exp(loc + spread / 2),
        "variance": mp.expm1(spread) * mp.exp(2 * loc + spread),
        "mode": mp.exp(loc - spread),
        "entropy": of_log["entropy"] + loc,
        "cdf": lambda x: of_log["cdf"](mp.log(x)) if x else 0,
        "icdf": lambda u: mp.exp(of_log["icdf"](u)),
    }


def laplace(loc, scale):
    return {
        "mean": loc,
        "variance": 2 * scale**2,
        "mode": loc,
        "entropy": 1 + mp.log(2 * scale),
        "cdf": lambda x: mp.exp((x - loc) / scale) / 2 if x < loc else 1 - mp.exp((loc - x) / scale) / 2,
        "icdf": lambda u: loc - scale * mp.sign(u - 0.5) * mp.log(1 - 2 * abs(u - 0.5)) if 0 < u < 1 else mp.inf,
    }


def logistic_bins(loc, scale, steps=15):
    center, width = loc * steps, scale * steps
    return {"mean": sum(1 / (1 + mp.exp((k + 0.5 - center) / width)) for k in range(steps)) / steps}


def sphere(loc):
    d = len(loc)
    return {"mean": [0] * d, "entropy": mp.log(2 * mp.pi ** (mp.mpf(d) / 2) / mp.gamma(mp.mpf(d) / 2))}


def power_spherical(loc, kappa):
    d = len(loc)
    b = mp.mpf(d - 1) / 2
    a = b + kappa
    log_normalizer = (a + b) * mp.log(2) + b * mp.log(mp.pi) + mp.loggamma(a) - mp.loggamma(a + b)
    entropy = log_normalizer - kappa * (mp.log(2) + mp.digamma(a) - mp.digamma(a + b))
    return {"mean": [x * kappa / (kappa + d - 1) for x in loc], "entropy": entropy}


def mixture(logits, loc, scale):
    p = softmax(logits)
    columns = range(len(loc[0]))
    mean = [sum(q * m[d] for q, m in zip(p, loc, strict=True)) for d in columns]
    each = list(zip(p, loc, scale, strict=True))
    return {
        "mean": mean,
        "variance": [sum(q * (s[d] ** 2 + (m[d] - mean[d]) ** 2) for q, m, s in each) for d in columns],
    }


def zero_inflated_poisson(gate, rate):
    keep = 1 / (1 + mp.exp(gate))
    return {"mean": keep * rate, "variance": keep * rate * (1 + (1 - keep) * rate)}


def negative_binomial(log_mean, log_inverse_dispersion):
    mean = mp.exp(log_mean)
    return {"mean": mean, "variance": mean + mean**2 / mp.exp(log_inverse_dispersion)}


def poisson(log_rate):
    rate = mp.exp(log_rate)
    return {"mean": rate, "variance": rate, "mode": mp.floor(rate)}


def student_t(df, loc, scale):
    half = (df + 1) / 2
    log_beta = mp.loggamma(df / 2) + mp.loggamma(mp.mpf(1) / 2) - mp.loggamma(half)
    entropy = half * (mp.digamma(half) - mp.digamma(df / 2)) + mp.log(df) / 2 + log_beta + mp.log(scale)
    return {"mean": loc, "variance": scale**2 * df / (df - 2), "mode": loc, "entropy": entropy}


def of_two(reference):
    """Two independent variables with the same numbers, as one event."""

    def both(*values):
        one = reference(*values)
        return {what: 2 * one[what] if what == "entropy" else [one[what]] * 2 for what in one if what in WHAT}

    return both


def only(reference, *what):
    return lambda *values: {name: value for name, value in reference(*values).items() if name in what}


def nothing(*_):
    return {}


LOGITS = [(-80.0,), (-20.0,), (-0.3,), (1e-3,), (20.0,), (88.0,)]
CATEGORIES = [([0.0, -3.0, 2.0],), ([0.0, -50.0, 30.0],), ([1e-3, 0.0, 0.0],)]
CONTINUOUS = [(x,) for x in (0.0, 1e-8, 0.0045, 0.005, 0.03, 0.1, 0.999, 1.001, 16.5, 90.0, 500.0, 1e4, 1e6)]
CONTINUOUS += [(-x,) for (x,) in CONTINUOUS[1:]]
PAIRS = [(a, b) for a in (1e-3, 0.5, 1.0, 2.0, 49.0, 51.0, 1e3, 1e5) for b in (1e-3, 0.5, 1.0, 2.0, 1e3, 1e5)]
SCALES = [(0.3, 1e-4), (-2.0, 1.0), (1e3, 30.0)]
D = distributions
CASES = {
    "Bernoulli": Case(lambda x: D.Bernoulli(logits=x), LOGITS, bernoulli),
    "Bernoulli of probabilities": Case(D.Bernoulli, [(0.0,), (0.3,), (1.0,)], bernoulli_of_probability),
    "GreyBernoulli": Case(lambda x: D.GreyBernoulli(logits=x), LOGITS, bernoulli),
    "BernoulliVector": Case(lambda x: D.Bernoulli(logits=x.expand(2)).to_event(1), LOGITS, of_two(bernoulli)),
    "EnumerableIndependent": Case(
        lambda x: D.EnumerableIndependent(D.Bernoulli(logits=x.expand(2)), 1), LOGITS, of_two(bernoulli)
    ),
    "Categorical": Case(lambda x: D.Categorical(logits=x), CATEGORIES, categorical),
    "OneHotCategorical": Case(lambda x: D.OneHotCategorical(logits=x), CATEGORIES, one_hot),
    "StraightThroughGumbelSoftmax": Case(
        lambda x: D.StraightThroughGumbelSoftmax(x.new_tensor(0.5), x), CATEGORIES, one_hot
    ),
    "RelaxedOneHotCategorical": Case(
        lambda x: D.RelaxedOneHotCategorical(x.new_tensor(0.5), logits=x), CATEGORIES, nothing
    ),
    "Beta": Case(D.Beta, PAIRS, beta),
    "OpenBeta": Case(D.OpenBeta, PAIRS, beta),
    "Dirichlet": Case(D.Dirichlet, [([0.01, 2.0, 300.0],), ([1.5, 2.0, 1e5],), ([1e6, 2e6],)], dirichlet),
    "Gamma": Case(D.Gamma, PAIRS, gamma),
    "Weibull": Case(D.Weibull, [(s, k) for s in (1e-4, 1.0, 1e3) for k in (0.25, 1.0, 3.0, 1e3, 1e4)], weibull),
    "ContinuousBernoulli": Case(lambda x: D.ContinuousBernoulli(logits=x), CONTINUOUS, continuous_bernoulli),
    "Kumaraswamy": Case(D.Kumaraswamy, PAIRS, kumaraswamy),
    "DiscretizedLogistic": Case(
        lambda m, s: D.DiscretizedLogistic(m, s, bits=4), [(0.3, 1e-2), (-2.0, 1.0), (1.1, 0.2)], logistic_bins
    ),
    "HypersphericalUniform": Case(
        lambda x: D.HypersphericalUniform(len(x), x.dtype), [([1.0, 0.0],), ([1.0] + [0.0] * 10,)], sphere
    ),
    "PowerSpherical": Case(
        D.PowerSpherical,
        [([0.0, 1.0] + [0.0] * d, k) for d in (0, 1, 9) for k in (1e-6, 1e-3, 1.0, 1e3, 1e6)],
        power_spherical,
    ),
    "MixtureOfNormals": Case(
        D.MixtureOfNormals, [([0.0, 1.0], [[0.0, 3.0], [1e-3, -1.0]], [[1.0, 1e-3], [2.0, 10.0]])], mixture
    ),
    "ZeroInflated": Case(
        lambda gate, rate: D.ZeroInflated(dist.Poisson(rate), gate_logits=gate),
        [(0.0, 3.0), (-20.0, 1e6), (20.0, 1e6), (5.0, 0.1)],
        zero_inflated_poisson,
    ),
    "NegativeBinomial": Case(D.NegativeBinomial, [(0.0, 0.0), (5.0, 18.0), (10.0, -8.0)], negative_binomial),
    "Poisson": Case(D.Poisson, [(-5.0,), (0.3,), (10.1,)], poisson),
    "StudentT": Case(D.StudentT, [(2.5, 0.3, 1e-3), (5.0, -2.0, 1.0), (1e6, 0.0, 30.0)], student_t),
    "BetaProportion": Case(D.BetaProportion, [(0.3, 0.0), (-4.0, 6.0), (2.0, 15.0)], beta_of_mean),
    "MissingEntries": Case(
        lambda x: D.MissingEntries(D.ContinuousBernoulli(logits=x)),
        CONTINUOUS,
        only(continuous_bernoulli, "mean", "variance"),
    ),
    "ScoreFunction": Case(
        lambda a, b: D.ScoreFunction(D.Kumaraswamy(a, b)), PAIRS, only(kumaraswamy, "mean", "variance", "entropy")
    ),
    "ConditionalFlow": Case(
        lambda x: D.ConditionalFlow(
            dist.Normal(x, 1.0).to_event(1), [D.Planar(torch.ones_like(x), torch.ones_like(x), x[0])]
        ),
        CATEGORIES,
        nothing,
    ),
    "ZukoFlow": Case(lambda x: priors.Flow(len(x)).to(x.dtype)(), CATEGORIES, nothing),
    # Those of Pyro that parts return as they are.
    "Normal": Case(dist.Normal, SCALES, normal, MODERATE),
    "Laplace": Case(dist.Laplace, SCALES, laplace, MODERATE),
    "LogNormal": Case(dist.LogNormal, [(0.3, 1e-2), (-2.0, 1.0), (5.0, 4.0)], log_normal, MODERATE),
    "Exponential": Case(dist.Exponential, [(1e-4,), (1.0,), (1e4,)], exponential),
}
every_case = pytest.mark.parametrize(
    ("name", "values"),
    [
        pytest.param(name, values, id=f"{name}-{k}")
        for name, case in CASES.items()
        for k, values in enumerate(case.numbers)
    ],
)


def value_of(quantity):
    return quantity() if callable(quantity) else quantity


def assert_close(found, expected, absolute, where):
    """Entry by entry; numbers below the smallest normal one are 0."""
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, absolute, where)
        return
    tolerance, tiny = TOLERANCE[found.dtype], torch.finfo(found.dtype).tiny
    number, expected = mp.mpf(found.item()), mp.mpf(expected)
    if mp.isnan(expected):
        assert mp.isnan(number), where
    else:
        error = abs(number - expected)
        assert error <= tolerance * max(abs(expected), absolute) + 10 * tiny, (where, float(number), float(expected))


@every_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_entropies_and_modes_are_right_or_refused(name, values, dtype):
    case = CASES[name]
    tensors, precise = numbers(values, dtype)
    reference, distribution = case.reference(*precise), case.make(*tensors)
    if "variance" in reference:
        variance = reference["variance"]
        reference["stddev"] = [mp.sqrt(v) for v in variance] if isinstance(variance, list) else mp.sqrt(variance)
    for what in WHAT:
        if what in reference:
            found = value_of(getattr(distribution, what))
            assert found.shape == (distribution.batch_shape if what == "entropy" else distribution.mean.shape)
            assert_close(found.to(dtype), reference[what], what == "entropy", what)
        else:
            with pytest.raises(NotImplementedError):
                value_of(getattr(distribution, what))


@every_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_distribution_functions_and_quantiles_are_right_or_refused(name, values, dtype):
    """Relative to the larger of 1 and the value."""
    case = CASES[name]
    tensors, precise = numbers(values, dtype)
    reference, distribution = case.reference(*precise), case.make(*tensors)
    points, exact_points = numbers(case.points, dtype)
    for what in ("cdf", "icdf"):
        if what not in reference:
            with pytest.raises(NotImplementedError):
                getattr(distribution, what)(points[-3].expand(distribution.event_shape))
        elif reference[what] is not None:
            for point, value in zip(points, exact_points, strict=True):
                expected = reference[what](value)
                if abs(expected) < torch.finfo(dtype).max:
                    assert_close(getattr(distribution, what)(point), expected, 1, (what, point.item()))


@pytest.mark.parametrize("name", ["ContinuousBernoulli", "Weibull", "Gamma", "Kumaraswamy"])
def test_beyond_the_support_a_distribution_function_is_0_or_1_where_values_are_not_checked(name):
    one, other = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 1.0, 0.5])
    parameters = {"logits": torch.tensor([-50.0, 0.0, 0.5])} if name == "ContinuousBernoulli" else {}
    q = getattr(D, name)(*(() if parameters else (one, other)), **parameters, validate_args=False)
    below, above = q.cdf(torch.tensor(-1.0)), q.cdf(torch.tensor(1e6))
    assert torch.equal(below, torch.zeros(3))
    assert torch.equal(above, torch.ones(3))


def test_every_class_has_a_case():
    classes = [getattr(D, name) for name in D.__all__ if inspect.isclass(getattr(D, name))]
    ours = {cls.__name__ for cls in classes if issubclass(cls, torch.distributions.Distribution)}
    covered = set()
    for case in CASES.values():
        covered.add(type(case.make(*numbers(case.numbers[0], torch.float64)[0])).__name__)
    assert ours <= covered


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-9, 1e-3, 0.3, 100.0])
@pytest.mark.parametrize("loc", [0.5, 0.30000001, -3.0, 1.0])
def test_logistic_bins_are_drawn_with_their_probabilities(loc, scale, dtype):
    """Of 20,000 draws, within 4 standard errors and 6 draws in each of 8 bins; 1/2 lies on the edge of two."""
    torch.manual_seed(8)
    q = D.DiscretizedLogistic(torch.tensor(loc, dtype=dtype), torch.tensor(scale, dtype=dtype), bits=3)
    index = (q.sample((20_000,)) * 7).round().long()
    found = torch.bincount(index, minlength=8).double() / len(index)
    exact = q.log_prob(torch.arange(8, dtype=dtype) / 7).double().exp()
    assert ((found - exact).abs() < 4 * (exact * (1 - exact) / len(index)).sqrt() + 3e-4).all()


@pytest.mark.parametrize("logit", [0.0, 0.01, 0.03, 0.1, 1.0, -2.0, 50.0])
@pytest.mark.parametrize("what", ["mean", "variance", "entropy", "log_prob", "cdf", "icdf"])
def test_derivatives_of_a_continuous_bernoulli_are_those_of_differences(what, logit):
    """At and around the logits where the series begin; central differences of 1e-4, in mpmath's formulas."""
    leaf = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    distribution = D.ContinuousBernoulli(logits=leaf)
    point = [torch.tensor(0.3, dtype=torch.float64)] if what in ("log_prob", "cdf", "icdf") else []
    value = getattr(distribution, what)
    (found,) = torch.autograd.grad(value(*point) if callable(value) else value, leaf)

    def exact(shift):
        reference = continuous_bernoulli(mp.mpf(logit) + shift)
        reference["log_prob"] = lambda x: mp.log(mp.diff(reference["cdf"], x))
        return reference[what](mp.mpf(0.3)) if point else reference[what]

    step = mp.mpf(10) ** -4
    assert found.item() == pytest.approx(float((exact(step) - exact(-step)) / (2 * step)), rel=1e-6, abs=1e-8)
