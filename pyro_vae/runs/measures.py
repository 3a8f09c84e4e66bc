"""What a trained run is worth on its test data: bounds, likelihoods, gaps, calibration and codes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae.decoders import Categorical, DiscretizedLogistic
from pyro_vae.diagnostics.annealing import ais, bdmc
from pyro_vae.diagnostics.calibration import calibration
from pyro_vae.diagnostics.codes import codes
from pyro_vae.diagnostics.evaluation import evaluate
from pyro_vae.diagnostics.gaps import inference_gap
from pyro_vae.diagnostics.likelihood import log_likelihood
from pyro_vae.diagnostics.posteriors import Posteriors, posterior_check
from pyro_vae.diagnostics.weights import RELIABLE, LogLikelihood
from pyro_vae.runs.experiment import Experiment

SIMULATED = 1000  # data of the calibration, at most
EIGHT_BIT = (Categorical, DiscretizedLogistic)  # decoders of probabilities of whole numbers
TEXTS = {
    "elbo": "bound ({loss})",
    "reconstruction": "reconstruction, E log p(x|z)",
    "kl": "KL(q(z|x) || p(z))",
    "elbo_at_mean": "at the posterior mean (no bound)",
    "log_likelihood": "{p}, {samples} samples",
    "standard_error": "  its standard error",
    "jackknife": "  less the first term of its bias",
    "pareto_k_over_0_7": "  share of data with Pareto k > 0.7",
    "bits_per_dimension": "  bits per dimension",
    "active_units": "active dimensions of the codes",
    "mutual_information": "mutual information of x and z",
    "mmd": "codes and prior: squared MMD",
    "mmd_p": "  its p-value",
    "classifier_accuracy": "  accuracy of telling them apart",
    "accuracy": "labels by a linear map of the codes",
    "neighbour_accuracy": "  by the nearest neighbour",
    "ais_log_likelihood": "{p} by AIS, {images} data",
    "ais_standard_error": "  its standard error",
    "bdmc_lower": "simulated data: lower bound",
    "bdmc_upper": "  upper bound",
    "approximation_gap": "lost by the family of q, {images} data",
    "amortization_gap": "lost by the encoder's network",
    "calibration_p": "calibration: p-value of all tests",
    "tarp": "  of TARP alone",
    "r_hat": "NUTS: largest R-hat",
    "posterior_mean_error": "  error of the means in deviations",
    "posterior_scale_ratio": "  encoder's deviations to the exact ones",
}


@dataclass(frozen=True)
class Asked:
    """What is measured, and how.

    Arguments:
        samples: importance samples for each datum.
        memory: limit for the tensors of particles at a time.
        seed: random seed of the noise.
        images: test data, the first ones, of the slow measures; the no-U-turn sampler takes a tenth of them.
        ais: annealed importance sampling, and the bracket of bidirectional Monte Carlo.
        gaps: where the bound is lost.
        calibration: whether the posteriors are right, on simulated data.
        nuts: the posteriors beside those of the no-U-turn sampler.
        codes: what the codes have learned.
        progress: show progress bars.
        left_out: where a measure that does not fit the run puts the reason, by its name; without it, it is an error.
    """

    samples: int = 5000
    memory: int | str = "2GB"
    seed: int = 0
    images: int = 100
    ais: bool = False
    gaps: bool = False
    calibration: bool = False
    nuts: bool = False
    codes: bool = False
    progress: bool = False
    left_out: dict[str, str] | None = None

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Note why a measure does not fit the run, such as gradients of discrete codes."""
        try:
            yield
        except ValueError as error:
            if self.left_out is None:
                raise
            self.left_out[name] = str(error)


def measured(experiment: Experiment, asked: Asked) -> dict[str, float]:
    """Return what is asked of a run, by name: bounds and likelihoods in nats per datum, larger being better.

    Arguments:
        experiment: the run's experiment, with its trained weights.
        asked: what is measured.
    """
    vae, seed, x = experiment.vae, asked.seed, experiment.as_seen(experiment.data.test[:])
    pair, few = (vae.model, vae.guide), x[: asked.images]
    own = vae.model, experiment.guide
    bound, at_mean = (evaluate(*own, x, loss=experiment.loss, at=at, seed=seed) for at in ("sample", "mean"))
    check_results({"the bound": bound.loss, "the KL": bound.kl, "the bound at the mean": at_mean.loss})
    common: dict[str, Any] = {"seed": seed, "progress": asked.progress}
    sampled = {**common, "samples": asked.samples, "memory": asked.memory, "per_datum": True}
    likelihood = log_likelihood(*pair, x, **sampled)
    found = {
        "elbo": -bound.loss,
        "reconstruction": -bound.reconstruction,
        "kl": bound.kl,
        "elbo_at_mean": -at_mean.loss,
        "log_likelihood": likelihood.estimate.mean().item(),
    }
    if not likelihood.pareto_k.isnan().any():  # as of fewer than 25 samples
        found["pareto_k_over_0_7"] = (likelihood.pareto_k > RELIABLE).double().mean().item()
    error, debiased = _error_of_mean(likelihood.standard_error), likelihood.jackknife.mean().item()
    if math.isfinite(error):  # it is unknown for a single sample, or an infinite likelihood
        found |= {"standard_error": error, "jackknife": debiased}
    if isinstance(vae.decoder, EIGHT_BIT):
        found["bits_per_dimension"] = -found["log_likelihood"] / (math.prod(x.shape[1:]) * math.log(2))
    few_likely = LogLikelihood(*(each[: len(few)] for each in likelihood))
    if asked.codes:
        with asked.measure("codes"):
            found |= _of_codes(experiment, x, seed)
    if asked.ais:
        with asked.measure("ais"):
            few_likely = ais(*pair, few, memory=asked.memory, **common)
            lower, upper, *_ = bdmc(*pair, few, memory=asked.memory, **common)
            found["ais_log_likelihood"] = few_likely.estimate.mean().item()
            found["ais_standard_error"] = _error_of_mean(few_likely.standard_error)
            found |= {"bdmc_lower": lower.mean().item(), "bdmc_upper": upper.mean().item()}
    if asked.gaps:
        with asked.measure("gaps"):
            gap = inference_gap(*pair, few, likelihood=few_likely, **common)
            found["approximation_gap"] = gap.approximation.mean().item()
            found["amortization_gap"] = gap.amortization.mean().item()
    if asked.calibration:
        with asked.measure("calibration"):
            checked = calibration(*pair, x[:SIMULATED], **common)
            found |= {"calibration_p": checked.p, "tarp": checked.coverage_p}
    if asked.nuts:
        with asked.measure("nuts"):
            found |= _of_posteriors(posterior_check(*pair, few[: max(1, asked.images // 10)], **common))
    return found


def check_results(found: dict[str, float]) -> None:
    """Refuse results that are NaN, as from weights so large that they overflow.

    Raises:
        ValueError: with the name of the first one.

    Example:
        >>> check_results({"the bound": math.nan})
        Traceback (most recent call last):
        ...
        ValueError: the weights of this run give the bound as NaN: take --best, or train again
    """
    if wrong := [name for name, value in found.items() if math.isnan(value)]:
        raise ValueError(f"the weights of this run give {wrong[0]} as NaN: take --best, or train again")


def p_of_x(experiment: Experiment) -> str:
    """Return what the likelihood of a run is called: log p(x), unless it is no density of the data."""
    return "importance-weighted bound" if experiment.is_grey else "log p(x)"


def _error_of_mean(errors: Tensor) -> float:
    return errors.square().sum().sqrt().item() / len(errors)


def _of_posteriors(found: Posteriors) -> dict[str, float]:
    apart, ratio = (found.mean[0] - found.mean[1]) / found.deviation[1], found.deviation[0] / found.deviation[1]
    return {
        "r_hat": found.r_hat.max().item(),
        "posterior_mean_error": apart.abs().mean().item(),
        "posterior_scale_ratio": ratio.log().mean().exp().item(),
    }


def _of_codes(experiment: Experiment, x: Tensor, seed: int) -> dict[str, float]:
    labels = experiment.data.test_labels
    labels = None if labels is None or labels.is_floating_point() else labels  # measurements are no classes
    found = codes(experiment.vae.model, experiment.vae.guide, x, labels=labels, seed=seed)
    names = ("mutual_information", "mmd", "mmd_p", "classifier_accuracy")
    known = {"active_units": found.active} | {name: getattr(found, name) for name in names}
    accuracies = {"accuracy": found.linear_accuracy, "neighbour_accuracy": found.neighbour_accuracy}
    return known | {name: value for name, value in accuracies.items() if not math.isnan(value)}
