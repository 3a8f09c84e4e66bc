"""Encoders on R^D and on positive values, each with an independent reference for its log-probability."""

import numpy as np
import torch
from part_cases import SHAPE, Case, array, encoder_case, event_sum
from scipy import special, stats

from pyro_vae import encoders


def clipped(v, bound=10.0):
    beyond = np.maximum(np.abs(v) - bound, 0)
    return np.clip(v, -bound, bound) + np.sign(v) * np.log1p(beyond)


def numbers(part, x):
    return np.moveaxis(array(part.network(x)), -2, 0)


def laplace(part, x, z):
    location, log_scale = numbers(part, x)
    return event_sum(stats.laplace.logpdf(z, location, np.exp(log_scale)), 1)


def student_t(part, x, z):
    location, log_scale = numbers(part, x)
    return event_sum(stats.t.logpdf(z, part.df, location, np.exp(log_scale)), 1)


def log_normal(part, x, z):
    mean, log_variance = numbers(part, x)
    scale = clipped(np.exp(log_variance / 2), 2.0)
    return event_sum(stats.lognorm.logpdf(z, scale, scale=np.exp(mean)), 1)


def multivariate(z, mean, covariance):
    z, mean = np.broadcast_arrays(z, mean)
    flat = zip(z.reshape(-1, z.shape[-1]), mean.reshape(-1, z.shape[-1]), strict=True)
    covariances = covariance.reshape(-1, *covariance.shape[-2:])
    each = [stats.multivariate_normal.logpdf(v, m, c) for (v, m), c in zip(flat, covariances, strict=True)]
    return np.reshape(each, z.shape[:-1])


def normal(part, x, z):
    mean, log_variance = numbers(part, x)
    return event_sum(stats.norm.logpdf(z, mean, np.exp(log_variance / 2)), 1)


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
    mean, log_variance, *columns = numbers(part, x)
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


def hyper(layer, context, v):
    """The masked network of a layer, from its weights."""
    values = clipped(context)
    if v.shape[-1] > 1:
        values = np.concatenate([v, np.broadcast_to(values, (*v.shape[:-1], values.shape[-1]))], -1)
    modules = list(layer.hyper)
    for index, linear in enumerate(modules[::2]):
        weight = array(linear.weight) * array(getattr(linear, "mask", torch.ones(())))
        values = (values if index == 0 else np.maximum(values, 0)) @ weight.T + array(linear.bias)
    return values.reshape(*values.shape[:-1], v.shape[-1], -1)


def squash(v, bound):
    return v / (1 + np.abs(v) / bound)


def affine(phi, v):
    log_scale = squash(phi[..., 1], np.log(1000))
    return v * np.exp(log_scale) + phi[..., 0], log_scale


def spline(phi, v):
    """Durkan et al., 2019, equations 4 and 5, with knots from -5 to 5."""
    knots = []
    for raw in (phi[..., :8], phi[..., 8:16]):
        share = special.softmax(squash(raw, np.log(1000) / 2), -1)
        knots.append(10 * np.concatenate([0 * share[..., :1], share.cumsum(-1)], -1) - 5)
    inner = np.exp(squash(phi[..., 16:], np.log(1000)))
    slopes = np.concatenate([np.ones_like(inner[..., :1]), inner, np.ones_like(inner[..., :1])], -1)
    bin_ = np.clip((knots[0] < v[..., None]).sum(-1) - 1, 0, 7)[..., None]
    (x0, y0, d0), (x1, y1, d1) = (
        [np.take_along_axis(k, bin_ + step, -1)[..., 0] for k in (*knots, slopes)] for step in (0, 1)
    )
    s, t = (y1 - y0) / (x1 - x0), np.clip((v - x0) / (x1 - x0), 0, 1)
    below = s + (d1 + d0 - 2 * s) * t * (1 - t)
    y = y0 + (y1 - y0) * (s * t**2 + d0 * t * (1 - t)) / below
    slope = s**2 * (d1 * t**2 + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2) / below**2
    inside = np.abs(v) < 5
    return np.where(inside, y, v), np.where(inside, np.log(slope), 0)


def bisect(function, target):
    low, high = target * 0 - 1e4, target * 0 + 1e4
    for _ in range(100):
        middle = (low + high) / 2
        above = function(middle) > target
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2


def forward_layer(layer, context, v, univariate):
    y, log_slope = univariate(hyper(layer.layer, context, v), v)
    return y, log_slope.sum(-1)


def backward_layer(layer, context, y, univariate):
    v = np.zeros_like(y)
    for _ in range(y.shape[-1]):
        phi = hyper(layer.layer, context, v)
        v = bisect(lambda w, phi=phi: univariate(phi, w)[0], y)
    return v, -forward_layer(layer, context, v, univariate)[1]


def backward_planar(layer, context, y):
    """Of a draw, by bisection of the projection on w."""
    linear, size = layer.parameters_of, y.shape[-1]
    raw = clipped(clipped(context) @ array(linear.weight).T + array(linear.bias))
    w, u, b = raw[..., :size], raw[..., size : 2 * size], raw[..., 2 * size]
    along = (w * u).sum(-1)
    slope = 0.999 * (np.log1p((np.e - 1) * np.exp(along)) - 1)
    u = u + ((slope - along) / (w**2).sum(-1))[..., None] * w
    projection = bisect(lambda p: p + slope * np.tanh(p + b), (w * y).sum(-1))
    ridge = np.tanh(projection + b)
    return y - u * ridge[..., None], -np.log1p(slope * (1 - ridge**2))


def flow(part, x, z):
    size, out = part.latent_dim, array(part.network(x))
    mean, log_variance, context = out[..., :size], out[..., size : 2 * size], out[..., 2 * size :]
    total = 0.0
    for layer in reversed(part.transforms):
        if part.transform == "planar":
            z, log_slope = backward_planar(layer, context, z)
        elif part.transform == "MAF":
            z, log_slope = forward_layer(layer, context, z, affine)
        else:
            z, log_slope = backward_layer(layer, context, z, spline if part.transform == "NSF" else affine)
        total = total + log_slope
    return total + event_sum(stats.norm.logpdf(z, mean, np.exp(log_variance / 2)), 1)


def score_function(latent_dim, *, shape=SHAPE, **kwargs):
    return encoders.ScoreFunction(encoders.Normal(shape, latent_dim, **kwargs))


CASES = [
    encoder_case("laplace", encoders.Laplace, laplace),
    encoder_case("student-t", encoders.StudentT, student_t),
    encoder_case("log-normal", encoders.LogNormal, log_normal),
    encoder_case("full-rank-normal", encoders.FullRankNormal, full_rank, dim=2),
    encoder_case("low-rank-normal", encoders.LowRankNormal, low_rank, dim=2),
    encoder_case("low-rank-normal-1", encoders.LowRankNormal, low_rank, rank=1),
    encoder_case("mixture", encoders.MixtureOfNormals, mixture),
    encoder_case("mixture-2d", encoders.MixtureOfNormals, mixture, dim=2, components=3),
    *(
        encoder_case(f"flow-{kind}-{dim}d", encoders.Flow, flow, dim=dim, transform=kind, hidden=8, context=4)
        for kind in ("IAF", "MAF", "planar")
        for dim in (1, 2)
    ),
    # In two dimensions the narrow bins of a spline take a finer grid than the contract's: see test_encoders_real.py.
    encoder_case("flow-NSF", encoders.Flow, flow, transform="NSF", hidden=8, context=4),
    Case(
        "encoder-score-function",
        "encoders",
        encoders.ScoreFunction,
        score_function,
        lambda part, x, z: normal(part.encoder, x, z),
    ),
]
