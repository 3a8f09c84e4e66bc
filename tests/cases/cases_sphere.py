"""Encoders to the sphere, each with an independent reference for its log-probability."""

import math

import numpy as np
from part_cases import array, encoder_case
from scipy import special

from pyro_vae import encoders


def power_spherical(part, x, z):
    output = array(part.network(x))
    loc = output[..., :-1] / np.linalg.norm(output[..., :-1], axis=-1, keepdims=True)
    concentration, b = np.exp(output[..., -1]), (part.latent_dim - 1) / 2
    a = concentration + b
    normalizer = (a + b) * math.log(2) + b * math.log(math.pi) + special.gammaln(a) - special.gammaln(a + b)
    return concentration * np.log1p((loc * z).sum(-1)) - normalizer


CASES = [
    encoder_case("power-spherical", encoders.PowerSpherical, power_spherical, dim=3),
    encoder_case("power-spherical-circle", encoders.PowerSpherical, power_spherical, dim=2),
]
