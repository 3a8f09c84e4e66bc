"""What a row reports of a trained pair of programs: values by name, one for each datum or of all together, in nats."""

import torch

from pyro_vae import ais, bdmc, evaluate, impute, inference_gap, log_likelihood


def bounds(recipe, history, x):
    """Return the negative bounds on the training data, during the last epoch, and on the test data."""
    test, at_mean = (evaluate(recipe.model, recipe.guide, x, at=at, seed=1).loss for at in ("sample", "mean"))
    found = {"train": history[-1]["train_loss"], "test": test, "test at the mean": at_mean}
    return {name: torch.tensor([value]) for name, value in found.items()}


def bound(recipe, _, x):
    """Return the negative evidence lower bound."""
    return {"bound": torch.tensor([evaluate(recipe.model, recipe.guide, x, seed=1).loss])}


def likelihood(recipe, history, x, samples=5000):
    """Return the negative log-likelihood by importance sampling, and the negative bound beside it."""
    found = log_likelihood(recipe.model, recipe.guide, x, samples=samples, per_datum=True)
    return {"-log p(x)": -found.estimate, **bound(recipe, history, x)}


def jackknife(recipe, history, x, samples=32):
    """Return the negative bounds of 1 and of 32 samples, and the latter less one and two terms of its bias."""
    found = bound(recipe, history, x)
    for order, name in enumerate(("IWAE-32", "JVI-1", "JVI-2")):
        settings = {"samples": samples, "jackknife": order, "per_datum": True}
        found[name] = -log_likelihood(recipe.model, recipe.guide, x, **settings).estimate
    return found


def gap(recipe, _, x, **settings):
    """Return the negative bounds of q and of the best q*, the likelihood, and both gaps between them."""
    found = inference_gap(recipe.model, recipe.guide, x, **settings)
    return {
        "-L[q]": -found.bound,
        "-L[q*]": -found.best_bound,
        "-log p(x)": -found.log_likelihood,
        "approximation": found.approximation,
        "amortization": found.amortization,
        "approximation less amortization": found.approximation - found.amortization,
    }


def annealed(recipe, _, x, chains=16, steps=1000, samples=10_000):
    """Return negative log-likelihoods by annealed importance sampling from either start, and without annealing."""
    sampled = log_likelihood(recipe.model, recipe.guide, x, samples=samples, per_datum=True).estimate
    settings = {"chains": chains, "steps": steps}
    prior, encoder = (ais(recipe.model, recipe.guide, x, start=at, **settings).estimate for at in ("prior", "encoder"))
    found = {f"AIS from the prior, {steps:,} steps": prior, f"from the encoder, {steps:,} steps": encoder}
    found[f"importance sampling, {samples:,} samples"] = sampled
    return {name: -values for name, values in found.items()} | {"AIS above importance sampling": encoder - sampled}


def bracket(recipe, _, x, chains=16, steps=1000):
    """Return the width of the bracket of bidirectional Monte Carlo, on data that the model simulates."""
    lower, upper, *_ = bdmc(recipe.model, recipe.guide, x, chains=chains, steps=steps, start="prior")
    return {"gap": upper - lower}


def imputation(recipe, _, x, samples=10_000, draws=500):
    """Return the squared errors of missing entries; x holds the incomplete and the complete data, (N, 2, D)."""
    incomplete, complete = x.unbind(1)
    means = impute(recipe.model, recipe.guide, incomplete, samples=samples, draws=draws).mean[0]
    return {"mean squared error": (means - complete)[incomplete.isnan()].square()}
