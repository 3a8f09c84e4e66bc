"""More decoders, each with an independent reference for its log-probability."""

import numpy as np
from part_cases import SHAPE, Case, array, decoder_case, event_sum
from scipy import special, stats

from pyro_vae import decoders


def outputs(part, z):
    """The numbers per entry, first."""
    return np.moveaxis(array(part.network(z)), -1 - len(part.shape), 0)


def sigmoid(value):
    return 1 / (1 + np.exp(-value))


def normal_each(part, z, x):
    scale = np.exp(array(part.log_scale))
    assert scale.shape == part.shape
    return event_sum(stats.norm.logpdf(x, array(part.network(z)), scale))


def laplace(part, z, x):
    return event_sum(stats.laplace.logpdf(x, array(part.network(z)), array(part.scales())))


def student(part, z, x):
    return event_sum(stats.t.logpdf(x, part.df, array(part.network(z)), array(part.scales())))


def beta(part, z, x):
    logits, log_concentration = outputs(part, z)
    mean, concentration = sigmoid(logits), np.exp(log_concentration)
    return event_sum(stats.beta.logpdf(x, mean * concentration, (1 - mean) * concentration))


def poisson(part, z, x):
    return event_sum(stats.poisson.logpmf(x, np.exp(array(part.network(z)))))


def negative_binomial_pmf(part, log_mean, x):
    theta, mean = np.exp(array(part.log_inverse_dispersion)), np.exp(log_mean)
    return stats.nbinom.logpmf(x, theta, theta / (theta + mean))


def negative_binomial(part, z, x):
    return event_sum(negative_binomial_pmf(part, array(part.network(z)), x))


def zero_inflated(part, z, x):
    log_mean, gate = outputs(part, z)
    return event_sum(
        np.log(sigmoid(gate) * (x == 0) + sigmoid(-gate) * np.exp(negative_binomial_pmf(part, log_mean, x)))
    )


def categorical(part, z, x):
    logits = outputs(part, z)
    logits = np.broadcast_to(logits, (len(logits), *x.shape))
    picked = np.take_along_axis(special.log_softmax(logits, 0), x[None].astype(int), 0)[0]
    return event_sum(picked)


def discretized_logistic(part, z, x):
    """The mixture's distribution function at the two ends of the bin, subtracted."""
    numbers, k, steps = outputs(part, z), part.components, 2**part.bits - 1
    mean, scale = numbers[:k], np.exp(numbers[k : 2 * k])
    weights = special.softmax(np.concatenate([np.zeros_like(numbers[:1]), numbers[2 * k :]]), 0)
    upper = np.where(x > 1 - 0.5 / steps, np.inf, x + 0.5 / steps)
    lower = np.where(x < 0.5 / steps, -np.inf, x - 0.5 / steps)
    bins = stats.logistic.cdf(upper, mean, scale) - stats.logistic.cdf(lower, mean, scale)
    return event_sum(np.log((weights * bins).sum(0)))


def masked(family, log_prob):
    """A decoder within Masked, of data that are complete."""

    def make(latent_dim, *, shape=SHAPE, **kwargs):
        return decoders.Masked(family(latent_dim, shape, **kwargs))

    def reference(part, z, x):
        return log_prob(part.decoder, z, x)

    return Case(f"decoder-masked-{family.__name__.lower()}", "decoders", decoders.Masked, make, reference)


CASES = [
    decoder_case("normal-per-dimension", decoders.Normal, normal_each, scale=0.5, learned=True, per_dimension=True),
    decoder_case("laplace", decoders.Laplace, laplace, scale=0.5),
    decoder_case("laplace-learned", decoders.Laplace, laplace, scale=2.0, learned=True),
    decoder_case("student", decoders.StudentT, student),
    decoder_case("student-fixed", decoders.StudentT, student, df=2.5, scale=0.3, learned=False),
    decoder_case("student-per-dimension", decoders.StudentT, student, df=30.0, per_dimension=True),
    decoder_case("beta", decoders.Beta, beta),
    decoder_case("poisson", decoders.Poisson, poisson),
    decoder_case("negative-binomial", decoders.NegativeBinomial, negative_binomial),
    decoder_case("negative-binomial-5", decoders.NegativeBinomial, negative_binomial, inverse_dispersion=5.0),
    decoder_case("zero-inflated-negative-binomial", decoders.ZeroInflatedNegativeBinomial, zero_inflated),
    decoder_case("categorical", decoders.Categorical, categorical, categories=5),
    decoder_case("categorical-256", decoders.Categorical, categorical),
    decoder_case("discretized-logistic", decoders.DiscretizedLogistic, discretized_logistic),
    decoder_case("discretized-logistic-mixture", decoders.DiscretizedLogistic, discretized_logistic, components=3),
    decoder_case("discretized-logistic-3-bits", decoders.DiscretizedLogistic, discretized_logistic, bits=3),
    masked(decoders.Laplace, laplace),
    masked(decoders.Beta, beta),
    masked(decoders.ZeroInflatedNegativeBinomial, zero_inflated),
    masked(decoders.DiscretizedLogistic, discretized_logistic),
]
