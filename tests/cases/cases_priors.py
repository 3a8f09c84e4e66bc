"""Priors, each with an independent reference for its log-probability."""

import copy

import numpy as np
import torch
from part_cases import SHAPE, Case, array, event_sum, prior_case
from scipy import special, stats

from pyro_vae import encoders, priors


def standard_normal(_part, _, z):
    return event_sum(stats.norm.logpdf(z), 1)


def learned_normal(part, _, z):
    return event_sum(stats.norm.logpdf(z, array(part.loc), np.exp(array(part.log_scale))), 1)


def laplace(part, _, z):
    return event_sum(stats.laplace.logpdf(z, array(part.loc), np.exp(array(part.log_scale))), 1)


def student_t(df):
    return lambda part, _, z: event_sum(stats.t.logpdf(z, df, array(part.loc), np.exp(array(part.log_scale))), 1)


def exponential(part, _, z):
    return event_sum(stats.expon.logpdf(z, scale=np.exp(-array(part.log_rate))), 1)


def positive(part, name):
    return np.exp(array(getattr(part, f"log_{name}"))) if part.learned else array(getattr(part, name))


def gamma(part, _, z):
    rate = np.exp(array(part.log_rate))
    return event_sum(stats.gamma.logpdf(z, positive(part, "concentration"), scale=1 / rate), 1)


def beta(part, _, z):
    return event_sum(stats.beta.logpdf(z, *positive(part, "concentrations")), 1)


def dirichlet(part, _, z):
    concentration = positive(part, "concentration")
    normalizer = special.gammaln(concentration).sum() - special.gammaln(concentration.sum())
    return event_sum((concentration - 1) * np.log(z), 1) - normalizer


def spherical_uniform(_part, _, z):
    dim = z.shape[-1]
    return np.full(z.shape[:-1], special.gammaln(dim / 2) - np.log(2) - dim / 2 * np.log(np.pi))


def bernoulli(part, _, z):
    return event_sum(stats.bernoulli.logpmf(z, special.expit(array(part.logits))), 1)


def categorical(part, _, z):
    return event_sum(z * special.log_softmax(array(part.logits), -1), 2)


def relaxed_categorical(temperature):
    def log_prob(part, _, z):
        log_p, k = special.log_softmax(array(part.logits), -1), z.shape[-1]
        terms = log_p - (temperature + 1) * np.log(z)
        total = np.log((np.exp(log_p) * z**-temperature).sum(-1))
        return event_sum(special.gammaln(k) + (k - 1) * np.log(temperature) + terms.sum(-1) - k * total, 1)

    return log_prob


def mixture_of_normals(part, _, z):
    log_weights = special.log_softmax(array(part.logits))
    components = stats.norm.logpdf(z[..., None, :], array(part.loc), np.exp(array(part.log_scale))).sum(-1)
    return special.logsumexp(log_weights + components, -1)


def flow(part, _, z):
    """Change of variables, with the Jacobian by central differences of 1e-6."""
    transform, step = copy.deepcopy(part).double().flow().transform, 1e-6 * np.eye(len(z))
    with torch.no_grad():
        noise, ahead, behind = (transform(torch.from_numpy(v)).numpy() for v in (z, z + step, z - step))
    return stats.norm.logpdf(noise).sum() + np.linalg.slogdet((ahead - behind) / 2e-6)[1]


def vamp(**own):
    def make(latent_dim):
        # The encoder is not the prior's to save, so that two priors of one state must have one encoder.
        with torch.random.fork_rng():
            torch.manual_seed(7)
            encoder = encoders.Normal(SHAPE, latent_dim)
        return priors.VampPrior(encoder, components=4, **own)

    return make


def mixture_of_posteriors(part, _, z):
    u = array(part.free)
    u = special.expit(u) if part.unit_interval else u
    output = array(part._encoder[0].network(torch.from_numpy(u).to(part.free)))
    components = stats.norm.logpdf(z[..., None, :], output[:, 0], np.exp(output[:, 1] / 2)).sum(-1)
    return special.logsumexp(components, -1) - np.log(4)


def variants(name, family, log_prob, **own):
    """One case as it is and one that is learned."""
    plain = prior_case(name, family, log_prob, **own)
    return [plain, prior_case(f"{name}-learned", family, log_prob, learned=True, **own)]


def two_categories(latent_dim):
    return (latent_dim, 2)


CASES = [
    prior_case("normal", priors.Normal, standard_normal),
    prior_case("normal-learned", priors.Normal, learned_normal, learned=True),
    *variants("laplace", priors.Laplace, laplace),
    *variants("student-t", priors.StudentT, student_t(5.0)),
    prior_case("student-t-of-3", priors.StudentT, student_t(3.0), df=3.0),
    *variants("exponential", priors.Exponential, exponential),
    *variants("gamma", priors.Gamma, gamma),
    prior_case("gamma-sparse", priors.Gamma, gamma, concentration=0.3),
    *variants("beta", priors.Beta, beta),
    prior_case("beta-of-3", priors.Beta, beta, concentration=3.0),
    *variants("dirichlet", priors.Dirichlet, dirichlet, dim=2),
    prior_case("dirichlet-sparse", priors.Dirichlet, dirichlet, dim=2, concentration=0.5),
    prior_case("spherical-uniform", priors.HypersphericalUniform, spherical_uniform, dim=3),
    *variants("bernoulli", priors.Bernoulli, bernoulli),
    *variants("categorical", priors.OneHotCategorical, categorical, event=lambda d: (d, 4), categories=4),
    *variants(
        "relaxed-categorical",
        priors.RelaxedOneHotCategorical,
        relaxed_categorical(0.67),
        event=two_categories,
        categories=2,
    ),
    prior_case(
        "relaxed-categorical-warm",
        priors.RelaxedOneHotCategorical,
        relaxed_categorical(2.0),
        event=lambda d: (d, 5),
        density=False,  # its four coordinates are too many for the quadrature
        categories=5,
        temperature=2.0,
    ),
    prior_case("mixture-of-normals", priors.MixtureOfNormals, mixture_of_normals, components=4),
    *[
        prior_case(f"flow-{transform}".lower(), priors.Flow, flow, transform=transform, transforms=2, hidden=16)
        for transform in ("NSF", "MAF", "RealNVP")
    ],
    prior_case("flow-nsf-2d", priors.Flow, flow, dim=2, transform="NSF", transforms=2, hidden=16),
    Case("prior-vamp", "priors", priors.VampPrior, vamp(), mixture_of_posteriors),
    Case("prior-vamp-real", "priors", priors.VampPrior, vamp(unit_interval=False), mixture_of_posteriors),
]
