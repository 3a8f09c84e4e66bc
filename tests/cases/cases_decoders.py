"""Decoders, each with an independent reference for its log-probability."""

import numpy as np
from part_cases import array, decoder_case, event_sum
from scipy import stats

from pyro_vae import decoders


def bernoulli(part, z, x):
    return event_sum(stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-array(part.network(z))))))


def cross_entropy(part, z, x):
    p = 1 / (1 + np.exp(-array(part.network(z))))
    return event_sum(x * np.log(p) + (1 - x) * np.log1p(-p))


def continuous_bernoulli(part, z, x):
    logits = array(part.network(z))
    return event_sum(logits * x + np.log(logits / np.expm1(logits)))


def normal(scale):
    return lambda part, z, x: event_sum(stats.norm.logpdf(x, array(part.network(z)), scale))


def learned_normal(part, z, x):
    return event_sum(stats.norm.logpdf(x, array(part.network(z)), np.exp(array(part.log_scale))))


CASES = [
    decoder_case("bernoulli", decoders.Bernoulli, bernoulli),
    decoder_case("bernoulli-grey", decoders.Bernoulli, cross_entropy, density=False, grey=True),
    decoder_case("continuous-bernoulli", decoders.ContinuousBernoulli, continuous_bernoulli),
    *[
        decoder_case(f"normal-scale-{scale}", decoders.Normal, normal(scale), density=scale >= 0.1, scale=scale)
        for scale in (1e-3, 0.1, 1.0, 1e3)
    ],
    decoder_case("normal-learned", decoders.Normal, learned_normal, scale=0.5, learned=True),
]
