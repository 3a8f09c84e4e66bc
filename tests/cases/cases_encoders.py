"""Encoders, each with an independent reference for its log-probability."""

import numpy as np
import pyro.distributions as dist
import torch
from part_cases import SHAPE, Case, array, encoder_case, event_sum
from scipy import stats
from torch import nn

from pyro_vae import encoders, priors


def normal(part, x, z):
    mean, log_variance = np.moveaxis(array(part.network(x)), -2, 0)
    return event_sum(stats.norm.logpdf(z, mean, np.exp(log_variance / 2)), 1)


def delta(part, x, z):
    return np.where((array(part.network(x)) == z).all(-1), 0.0, -np.inf)


class Blind(nn.Module):
    """A decoder that does not look at the code, so that a refinement has no noise: what is left is the KL."""

    def __init__(self, shape):
        super().__init__()
        self.shape = torch.Size([shape] if isinstance(shape, int) else shape)

    def forward(self, z):
        return dist.Normal(z.new_zeros(*z.shape[:-1], *self.shape), 1.0).to_event(len(self.shape))


def semi_amortized(latent_dim, *, shape=SHAPE, **kwargs):
    encoder = encoders.Normal(shape, latent_dim, **kwargs)
    return encoders.SemiAmortized(encoder, priors.Normal(latent_dim), Blind(shape), steps=2)


def refined_normal(part, x, z):
    outputs = array(part.encoder.network(x))
    for _ in range(part.steps):
        mean, log_variance = np.moveaxis(outputs, -2, 0)
        slope = np.stack([-mean, (1 - np.exp(log_variance)) / 2], -2)  # of minus the KL to a standard normal
        norm = np.sqrt((slope**2).sum((-2, -1), keepdims=True))
        outputs = outputs + 0.1 * slope / np.maximum(norm, 1)
    mean, log_variance = np.moveaxis(outputs, -2, 0)
    return event_sum(stats.norm.logpdf(z, mean, np.exp(log_variance / 2)), 1)


CASES = [
    encoder_case("normal", encoders.Normal, normal),
    encoder_case("delta", encoders.Delta, delta, density=False),
    Case("encoder-semi-amortized", "encoders", encoders.SemiAmortized, semi_amortized, refined_normal),
]
