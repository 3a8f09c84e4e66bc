"""Priors, each with an independent reference for its log-probability."""

import numpy as np
from part_cases import array, event_sum, prior_case
from scipy import special, stats

from pyro_vae import priors


def standard_normal(_part, _, z):
    return event_sum(stats.norm.logpdf(z), 1)


def learned_normal(part, _, z):
    return event_sum(stats.norm.logpdf(z, array(part.loc), np.exp(array(part.log_scale))), 1)


def spherical_uniform(_part, _, z):
    dim = z.shape[-1]
    return np.full(z.shape[:-1], special.gammaln(dim / 2) - np.log(2) - dim / 2 * np.log(np.pi))


CASES = [
    prior_case("normal", priors.Normal, standard_normal),
    prior_case("normal-learned", priors.Normal, learned_normal, learned=True),
    prior_case("spherical-uniform", priors.HypersphericalUniform, spherical_uniform, dim=3),
]
