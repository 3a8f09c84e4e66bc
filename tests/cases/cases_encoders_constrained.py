"""Encoders on constrained and discrete supports, each with an independent reference for its log-probability."""

import numpy as np
from part_cases import SHAPE, Case, array, encoder_case, event_sum
from scipy import special, stats

from pyro_vae import encoders


def concentration(v, floor):
    return floor + np.exp(v / np.sqrt(1 + (v / np.log(1000)) ** 2))


def outputs(part, x):
    return np.moveaxis(array(part.network(x)), -2, 0)


def exponential(part, x, z):
    return event_sum(stats.expon.logpdf(z, scale=np.exp(-array(part.network(x)))), 1)


def gamma(part, x, z):
    shape, rate = outputs(part, x)
    return event_sum(stats.gamma.logpdf(z, concentration(shape, 0.15), scale=np.exp(-rate)), 1)


def weibull(part, x, z):
    scale, shape = outputs(part, x)
    return event_sum(stats.weibull_min.logpdf(z, concentration(shape, 0.25), scale=np.exp(scale)), 1)


def beta(part, x, z):
    return event_sum(stats.beta.logpdf(z, *concentration(outputs(part, x), 0.75)), 1)


def kumaraswamy(part, x, z):
    # If y is a beta variate of (1, b), then y^(1/a) is a Kumaraswamy variate of (a, b).
    a, b = concentration(outputs(part, x), 0.75)
    return event_sum(stats.beta.logpdf(z**a, 1, b) + np.log(a * z ** (a - 1)), 1)


def dirichlet(part, x, z):
    alpha = concentration(array(part.network(x)), 0.15)
    rows = zip(z.reshape(-1, z.shape[-1]), alpha.reshape(-1, z.shape[-1]), strict=True)
    return np.reshape([stats.dirichlet.logpdf(row / row.sum(), a) for row, a in rows], z.shape[:-1])


def bernoulli(part, x, z):
    return event_sum(stats.bernoulli.logpmf(z, special.expit(array(part.network(x)))), 1)


def one_hot(part, x, z):
    return event_sum(z * special.log_softmax(array(part.network(x)), -1), 2)


def relaxed(part, x, z):
    # Maddison, Mnih and Teh, 2017, definition 1.
    logits, log_z, (k, t) = array(part.network(x)), np.log(z), (part.categories, part.temperature)
    if part.final_temperature is not None:
        t = t * (part.final_temperature / t) ** (part.calls.item() / part.anneal_steps)
    total = special.logsumexp(logits - t * log_z, -1)
    log_density = special.gammaln(k) + (k - 1) * np.log(t) - k * total + (logits - (t + 1) * log_z).sum(-1)
    return event_sum(log_density, 1)


def categories(number):
    return lambda latent_dim: (latent_dim, number)


def half_annealed(latent_dim, *, shape=SHAPE, **kwargs):
    """Where training has come after half of its steps; calls of the contract are no steps."""
    own = {"categories": 2, "temperature": 2.0, "final_temperature": 0.5, "anneal_steps": 8}
    part = encoders.RelaxedOneHotCategorical(shape, latent_dim, **own, **kwargs).eval()
    part.calls += 4
    return part


CASES = [
    encoder_case("exponential", encoders.Exponential, exponential),
    encoder_case("gamma", encoders.Gamma, gamma),
    encoder_case("weibull", encoders.Weibull, weibull),
    encoder_case("beta", encoders.Beta, beta),
    encoder_case("kumaraswamy", encoders.Kumaraswamy, kumaraswamy),
    encoder_case("dirichlet", encoders.Dirichlet, dirichlet, dim=2),
    encoder_case("bernoulli", encoders.Bernoulli, bernoulli, dim=2),
    encoder_case("one-hot", encoders.OneHotCategorical, one_hot, event=categories(4), dim=2, categories=4),
    encoder_case("relaxed-2", encoders.RelaxedOneHotCategorical, relaxed, event=categories(2), categories=2),
    encoder_case(
        "relaxed-4",
        encoders.RelaxedOneHotCategorical,
        relaxed,
        event=categories(4),
        density=False,  # quadrature is for two categories
        categories=4,
        temperature=1.3,
    ),
    encoder_case(
        "relaxed-straight-through",
        encoders.RelaxedOneHotCategorical,
        one_hot,
        event=categories(3),
        dim=2,
        categories=3,
        straight_through=True,
    ),
    Case(
        "encoder-relaxed-annealed",
        "encoders",
        encoders.RelaxedOneHotCategorical,
        half_annealed,
        relaxed,
        categories(2),
    ),
]
