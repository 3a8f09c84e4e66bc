"""The models of `benchmarks.speed` as NumPyro programs, with the same weights as the torch VAEs."""

import jax
import numpyro
import numpyro.distributions as dist
from jax import numpy as jnp
from jax.scipy.stats import norm

EDGE = 10.0  # as in networks.soft_clip
LOWEST = -30.0  # as in networks.clip_log_variance


def soft_clip(value, low=-EDGE):
    above, below = jnp.log1p(jnp.maximum(value - EDGE, 0.0)), jnp.log1p(jnp.maximum(low - value, 0.0))
    return jnp.clip(value, low, EDGE) + above - below


def network(weights, name, inputs, masks=None):
    """Apply the layers whose weights start with a name, with ReLU between them."""
    layers = sorted(
        {key.removeprefix(f"{name}.").split(".")[0] for key in weights if key.startswith(f"{name}.")}, key=int
    )
    for number, layer in enumerate(layers):
        weight = weights[f"{name}.{layer}.weight"]
        weight = weight * masks[f"{name}.{layer}.mask"] if masks else weight
        inputs = (jax.nn.relu(inputs) if number else inputs) @ weight.T + weights[f"{name}.{layer}.bias"]
    return inputs


def affine(parameters, value):
    """Apply zuko's affine transformation, with parameters of shape (..., 2D), and return its log-slope too."""
    shift, scale = jnp.moveaxis(parameters.reshape(*value.shape, 2), -1, 0)
    log_scale = scale / (1 + jnp.abs(scale / jnp.log(1e-3)))
    return value * jnp.exp(log_scale) + shift, log_scale.sum(-1)


def programs(vae, name):
    """Return the initial weights, the model and the guide."""
    started = {key: jnp.array(value.detach().numpy()) for key, value in vae.named_parameters()}
    fixed = {key: jnp.array(value.numpy()) for key, value in vae.named_buffers()}
    latent_dim, size = vae.encoder.latent_dim, len(started["decoder.network.layers.2.bias"])

    def moments(weights, x):
        output = network(weights, "encoder.network.layers", x)
        mean, log_variance, context = jnp.split(output, [latent_dim, 2 * latent_dim], -1)
        return mean, jnp.exp(soft_clip(log_variance, LOWEST) / 2), context

    def log_prior(weights, z):
        if name == "flow-prior":
            log_slope = 0.0
            for number in range(3):
                coupling = f"prior.flow.transform.transforms.{number}"
                ones = vae.prior.flow.transform.transforms[number].mask.numpy()
                kept, moved = z[:, ones], z[:, ~ones]
                moved, more = affine(network(weights, f"{coupling}.hyper", kept), moved)
                z, log_slope = z.at[:, ~ones].set(moved), log_slope + more
            return norm.logpdf(z).sum(-1) + log_slope
        if name == "vamp-prior":
            free = jax.nn.sigmoid(weights["prior.free"]).reshape(-1, size)
            means, scales, _ = moments(weights, free)
            of_all = norm.logpdf(z[:, None], means, scales).sum(-1)
            return jax.nn.logsumexp(of_all, -1) - jnp.log(len(means))
        return norm.logpdf(z).sum(-1)

    def model(batch):
        weights = numpyro.param("weights", started)
        with numpyro.plate("data", len(batch)):
            z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), (latent_dim,)))
            numpyro.factor("prior", log_prior(weights, z))
            logits = network(weights, "decoder.network.layers", z)
            # A factor, because NumPyro's Bernoulli gives grey pixels the probability 0.
            numpyro.factor("x", (batch * logits - jax.nn.softplus(logits)).sum(-1))

    def guide(batch):
        weights = numpyro.param("weights", started)
        mean, scale, context = moments(weights, batch)
        z = mean + scale * jax.random.normal(numpyro.prng_key(), mean.shape)
        log_q = norm.logpdf(z, mean, scale).sum(-1)
        for number in range(2 if name == "iaf-encoder" else 0):
            layers = f"encoder.transforms.{number}.layer.hyper"
            inputs = jnp.concatenate([z, soft_clip(context)], -1)
            z, log_slope = affine(network(weights, layers, inputs, fixed), z)
            log_q -= log_slope
        with numpyro.plate("data", len(batch)):
            numpyro.sample("z", dist.Delta(z, log_density=log_q, event_dim=1))

    return started, model, guide
