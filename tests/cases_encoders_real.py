"""Encoders on R^D and on positive values, each with an independent reference for its log-probability."""

import numpy as np
from part_cases import array, encoder_case, event_sum
from scipy import special, stats

from pyro_vae import encoders


def clipped(v, bound=10.0):
    beyond = np.maximum(np.abs(v) - bound, 0)
    return np.clip(v, -bound, bound) + np.sign(v) * np.log1p(beyond)


def two(part, x):
    return np.moveaxis(array(part.network(x)), -2, 0)


def laplace(part, x, z):
    location, log_scale = two(part, x)
    return event_sum(stats.laplace.logpdf(z, location, np.exp(log_scale)), 1)


def student_t(part, x, z):
    location, log_scale = two(part, x)
    return event_sum(stats.t.logpdf(z, part.df, location, np.exp(log_scale)), 1)


def log_normal(part, x, z):
    mean, log_variance = two(part, x)
    scale = clipped(np.exp(log_variance / 2), 2.0)
    return event_sum(stats.lognorm.logpdf(z, scale, scale=np.exp(mean)), 1)


def multivariate(z, mean, covariance):
    z, mean = np.broadcast_arrays(z, mean)
    flat = zip(z.reshape(-1, z.shape[-1]), mean.reshape(-1, z.shape[-1]), strict=True)
    covariances = covariance.reshape(-1, *covariance.shape[-2:])
    each = [stats.multivariate_normal.logpdf(v, m, c) for (v, m), c in zip(flat, covariances, strict=True)]
    return np.reshape(each, z.shape[:-1])


def full_rank(part, x, z):
    size, out = part.latent_dim, array(part.network(x))
    factor = np.zeros((*out.shape[:-1], size, size))
    entries = iter(np.moveaxis(out[..., 2 * size :], -1, 0))
    for row in range(size):
        scale = np.exp(out[..., size + row] / 2)
        factor[..., row, row] = scale
        for column in range(row):
            factor[..., row, column] = scale * next(entries)
    return multivariate(z, out[..., :size], factor @ np.swapaxes(factor, -1, -2))


def low_rank(part, x, z):
    mean, log_variance, *columns = np.moveaxis(array(part.network(x)), -2, 0)
    scale = np.exp(log_variance / 2)
    covariance = np.eye(part.latent_dim) + sum(v[..., :, None] * v[..., None, :] for v in columns)
    return multivariate(z, mean, scale[..., :, None] * covariance * scale[..., None, :])


def mixture(part, x, z):
    size, out = part.latent_dim, array(part.network(x)).copy()
    out = out.reshape(*out.shape[:-1], part.components, 1 + 2 * size)
    logits, mean, log_variance = out[..., 0], out[..., 1 : size + 1], out[..., size + 1 :]
    log_weights = logits - special.logsumexp(logits, -1, keepdims=True)
    of_component = stats.norm.logpdf(z[..., None, :], mean, np.exp(log_variance / 2)).sum(-1)
    return special.logsumexp(log_weights + of_component, -1)


CASES = [
    encoder_case("laplace", encoders.Laplace, laplace),
    encoder_case("student-t", encoders.StudentT, student_t),
    encoder_case("log-normal", encoders.LogNormal, log_normal),
    encoder_case("full-rank-normal", encoders.FullRankNormal, full_rank, dim=2),
    encoder_case("low-rank-normal", encoders.LowRankNormal, low_rank, dim=2),
    encoder_case("low-rank-normal-1", encoders.LowRankNormal, low_rank, rank=1),
    encoder_case("mixture", encoders.MixtureOfNormals, mixture),
    encoder_case("mixture-2d", encoders.MixtureOfNormals, mixture, dim=2, components=3),
]
