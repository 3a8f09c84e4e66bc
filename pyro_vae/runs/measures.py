"""What a trained run is worth on its test data: bounds, likelihoods, gaps, calibration and codes."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_vae import plots
from pyro_vae.data import digest_of
from pyro_vae.decoders import Categorical, DiscretizedLogistic
from pyro_vae.diagnostics.annealing import ais, bdmc
from pyro_vae.diagnostics.calibration import FEWEST, band, calibration
from pyro_vae.diagnostics.codes import ACTIVE, codes
from pyro_vae.diagnostics.consistency import consistency
from pyro_vae.diagnostics.encoding import code_means
from pyro_vae.diagnostics.evaluation import Bound, evaluate
from pyro_vae.diagnostics.gaps import inference_gap
from pyro_vae.diagnostics.likelihood import log_likelihood
from pyro_vae.diagnostics.local_test import local_test
from pyro_vae.diagnostics.posteriors import posterior_check
from pyro_vae.diagnostics.quality import sample_quality
from pyro_vae.diagnostics.weights import RELIABLE, LogLikelihood
from pyro_vae.encoders import Flow
from pyro_vae.objectives import Objective
from pyro_vae.plots import Figure
from pyro_vae.runs.experiment import Experiment
from pyro_vae.runs.facts import changes_of, no_bound

SIMULATED = 1000  # data of the calibration, at most
PERMUTATIONS = 19  # so that the smallest p-value is 1/20
RUNAWAY = 1000.0  # times as far as the codes of most data
DRAWS, TOGETHER = 10, 1000  # draws of each datum that are looked at, and data at a time
EIGHT_BIT = (Categorical, DiscretizedLogistic)  # decoders of probabilities of whole numbers
TEXTS = {
    "elbo": "bound ({loss})",
    "reconstruction": "reconstruction, E log p(x|z)",
    "kl": "KL(q(z|x) || p(z))",
    "elbo_at_mean": "at the posterior mean (no bound)",
    "log_likelihood": "log p(x), {samples} samples",
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
    "r_squared": "codes of both runs: R^2 by a linear map",
    "mcc": "  correlation of single dimensions",
    "sample_mmd": "draws and data: squared MMD",
    "sample_mmd_p": "  its p-value",
    "precision": "  share of draws that look real",
    "recall": "  share of data that look drawn",
    "frechet": "  Frechet distance by a classifier",
    "frechet_of_real": "  the same of real data",
    "ais_log_likelihood": "log p(x) by AIS, {images} data",
    "ais_standard_error": "  its standard error",
    "sampled_log_likelihood": "  by importance sampling, same data",
    "bdmc_lower": "simulated data: lower bound",
    "bdmc_upper": "  upper bound",
    "approximation_gap": "lost by the family of q, {images} data",
    "approximation_gap_error": "  its standard error",
    "amortization_gap": "lost by the encoder's network",
    "amortization_gap_error": "  its standard error",
    "calibration_p": "calibration: p-value of all tests",
    "tarp": "  of TARP alone",
    "local_rejected": "  share of wrong posteriors, {images} data",
    "r_hat": "NUTS: largest R-hat",
    "posterior_mean_error": "  error of the means in deviations",
    "posterior_scale_ratio": "  encoder's deviations to the exact ones",
}
GREY = {  # where the likelihood is no density of the data, so that nothing is log p(x)
    "log_likelihood": "importance_weighted_bound",
    "ais_log_likelihood": "ais_bound",
    "sampled_log_likelihood": "sampled_bound",
}
GREY_TEXTS = TEXTS | {
    "reconstruction": "reconstruction, minus cross-entropy",
    "importance_weighted_bound": "importance-weighted bound, {samples} samples",
    "ais_bound": "bound by AIS, {images} data",
    "sampled_bound": "  by importance sampling, same data",
}


@dataclass(frozen=True)
class Settings:
    """How a run is measured.

    Arguments:
        samples: importance samples for each datum.
        memory: limit for the tensors of particles at a time.
        seed: random seed of the noise.
        images: test data, the first ones, of the slow measures; the no-U-turn sampler takes a tenth of them.
        progress: show progress bars.
    """

    samples: int = 5000
    memory: int | str = "2GB"
    seed: int = 0
    images: int = 100
    progress: bool = False


@dataclass(frozen=True)
class Measured:
    """What a measure has found.

    Arguments:
        figures: numbers by name, in nats per datum where they are bounds, likelihoods or gaps; NaN if unknown.
        words: what they mean, in sentences.
        verdict: what they say of this run, in one sentence without a full stop, if anything.
        each: numbers of each datum, which other measures use.
        pictures: figures by name.
    """

    figures: dict[str, float]
    words: str
    verdict: str = ""
    each: dict[str, list[float]] = field(default_factory=dict)
    pictures: dict[str, Figure] = field(default_factory=dict)


class Measures:
    """What can be measured of a trained run on its test data, each by a method that is named as its flag.

    Arguments:
        experiment: the run's experiment, with its trained weights.
        settings: how it is measured.
        each: the numbers of each datum that earlier measures have found.
        other: the name and the experiment of another run, whose codes `beside` compares; else the same run.
    """

    ALWAYS, SLOW = ("bound", "likelihood"), ("codes", "draws", "ais", "gaps", "calibration", "nuts")

    def __init__(
        self,
        experiment: Experiment,
        settings: Settings,
        each: dict[str, list[float]] | None = None,
        other: tuple[str, Experiment] | None = None,
    ) -> None:
        self.experiment, self.settings, self.each = experiment, settings, {} if each is None else each
        self.other_name, self.other = other or ("this run", experiment)
        self.x = experiment.as_seen(experiment.data.test[:])
        self.few = self.x[: settings.images]
        self.programs = experiment.vae.model, experiment.vae.guide
        self.common: dict[str, Any] = {"seed": settings.seed, "progress": settings.progress}
        self.within: dict[str, Any] = {**self.common, "memory": settings.memory}

    def measure(self, name: str) -> Measured:
        """Return what a measure finds, and keep its numbers of each datum for the next ones."""
        found: Measured = getattr(self, name)()
        self.each |= found.each
        names = GREY if self.experiment.is_grey else {}
        known = {names.get(name, name): value for name, value in found.figures.items() if not math.isnan(value)}
        return replace(found, figures=known)

    def check(self, name: str) -> None:
        """Refuse a measure that does not fit the run, by a small one of its kind, before the others are measured."""
        two, few = (*self.programs, self.x[:2]), (*self.programs, self.x[:FEWEST])
        small: dict[str, Callable[[], Any]] = {
            "bound": lambda: self._bounds(self.x[:2]),
            "likelihood": lambda: self._sampled(self.x[:2]),
            "ais": lambda: [each(*two, chains=2, steps=1, leapfrog=1) for each in (ais, bdmc)],
            "gaps": lambda: inference_gap(*two, samples=2, steps=1, starts=1),
            "calibration": lambda: calibration(*few, draws=2),
            "nuts": lambda: posterior_check(*two, samples=4, warmup=1),
            "draws": lambda: sample_quality(few[-1], few[-1]),
            "beside": self._check_beside,
            "codes": lambda: codes(*few, draws=2),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numbers that are not used
            small.get(name, lambda: None)()

    def bound(self) -> Measured:
        """The bound at a sample of the encoder, and the loss at its mean."""
        bound, at_mean = self._bounds(self.x)
        figures = {"elbo": -bound.loss, "reconstruction": -bound.reconstruction, "kl": bound.kl}
        verdict = no_bound(self.experiment).replace("log p(x)", self.p)
        if not verdict and isinstance(self.experiment.vae.encoder, Flow):
            verdict = self._runaway()
        return Measured(figures | {"elbo_at_mean": -at_mean.loss}, self._about_the_bound(), verdict)

    def _about_the_bound(self) -> str:
        loss, changes = self.experiment.loss, changes_of(self.experiment)
        if no_bound(self.experiment):
            return f"Training makes this number as large as it can, also beyond {self.p}."
        below = f"It never exceeds {self.p} in the mean"
        if isinstance(loss, Objective) and not loss.weighs_kl:  # several draws have one weight together
            return f"Training makes this bound, that of {loss!r}, as large as it can. {below}."
        trained = "Training makes the bound as large as it can."
        if changes:
            trained = (
                f"This is the bound itself, whose KL has the weight 1. Training does not make it as large as it can: in"
                f" the loss that it minimizes, {', and '.join(changes)}."
            )
        return f"{trained} {below}; the difference is how far the encoder's posteriors are from the exact ones."

    def _bounds(self, x: Tensor) -> tuple[Bound, Bound]:
        own = self.experiment.vae.model, self.experiment.guide, x
        how = {"loss": self.experiment.loss, "seed": self.settings.seed}
        bound, at_mean = (evaluate(*own, at=at, **how) for at in ("sample", "mean"))
        check_results({"the bound": bound.loss, "the KL": bound.kl, "the bound at the mean": at_mean.loss})
        return bound, at_mean

    @torch.no_grad()
    def _runaway(self) -> str:
        """Name a datum that a flow sends far from all others, as it may do with data unlike those of training."""
        with self.experiment.evaluating(self.settings.seed):
            codes = [self.experiment.vae.encoder(rows).sample((DRAWS,)) for rows in self.x.split(TOGETHER)]
        reach = torch.cat([each.flatten(2).abs().amax((0, 2)) for each in codes]).nan_to_num(math.inf)
        worst, typical = int(reach.argmax()), reach.median().item()
        if reach[worst] <= RUNAWAY * typical:
            return ""
        return (
            f"the flow sends test datum {worst} to codes as far as {reach[worst]:.3g} from 0, where {typical:.3g} is"
            " usual, so that it alone may change the mean bound: look at this datum"
        )

    def likelihood(self) -> Measured:
        """The likelihood by importance sampling."""
        likelihood = self._sampled(self.x)
        figures = {"log_likelihood": likelihood.estimate.mean().item()}
        error, debiased = _error_of_mean(likelihood.standard_error), likelihood.jackknife.mean().item()
        if math.isfinite(error):  # it is unknown for a single sample, or an infinite likelihood
            figures |= {"standard_error": error, "jackknife": debiased}
        known, unreliable = likelihood.pareto_k[~likelihood.pareto_k.isnan()], math.nan
        if len(known):  # none is known of fewer than 25 samples
            unreliable = figures["pareto_k_over_0_7"] = (known > RELIABLE).double().mean().item()
        if isinstance(self.experiment.vae.decoder, EIGHT_BIT):
            dimensions = math.prod(self.x.shape[1:])
            figures["bits_per_dimension"] = -figures["log_likelihood"] / (dimensions * math.log(2))
        words = (
            f"Importance sampling draws {self.settings.samples} codes of each datum from the encoder and averages their"
            f" weights p(x, z) / q(z|x). The logarithm of this average is, in the mean, below {self.p}, and the closer"
            " to it the more codes are drawn."
        )
        if unreliable > 0:
            words += (
                f" For {unreliable:.0%} of the data a few weights outweigh all others (Pareto k over {RELIABLE}): there"
                " the estimate and its standard error may be far too small, and annealed importance sampling (--ais)"
                " says more."
            )
        return Measured(figures, words)

    def codes(self) -> Measured:
        """What the codes have learned."""
        found = codes(*self.programs, self.x, labels=self._classes, **self.within)
        names = ("mutual_information", "mmd", "mmd_p", "classifier_accuracy")
        known = {"active_units": found.active} | {name: getattr(found, name) for name in names}
        accuracies = {"accuracy": found.linear_accuracy, "neighbour_accuracy": found.neighbour_accuracy}
        words = (
            "A dimension is active if the mean of its posterior changes with the data. If all codes together were draws"
            " from the prior, their squared MMD would be near 0 with a large p-value, and a classifier could not tell"
            " them from draws: it would be right in half of all cases."
        )
        return Measured(known | accuracies, words, found.verdict)

    def beside(self) -> Measured:
        """Whether another run has found the same codes."""
        found = consistency(*map(self._active_means, (self.experiment, self.other)))
        words = (
            f"The codes of {self.other_name} on the same data are predicted from those of this run by a linear map, on"
            " data that the map was not fitted to. Prior and likelihood may leave codes free to rotate: then the share"
            " of variance that is predicted, R^2, is near 1, and single dimensions still differ. Only active dimensions"
            " are compared."
        )
        return Measured({"r_squared": found.mean_r_squared, "mcc": found.mcc}, words)

    def _check_beside(self) -> None:
        codes(*self.programs, self.x[:FEWEST], draws=2)  # as those of both runs are asked for
        own, others = (each.data.test[:] for each in (self.experiment, self.other))
        if own.shape != others.shape or digest_of(own) != digest_of(others):  # NaN is not equal to itself
            raise ValueError(
                "--beside takes a run on the same test data, and those of the other run differ in values or scale: give"
                " both runs the same ones by --data"
            )

    def _active_means(self, experiment: Experiment) -> Tensor:
        binarized_alike = experiment.config.binarize == self.experiment.config.binarize
        x = self.x if binarized_alike else experiment.as_seen(experiment.data.test[:])
        own = experiment.vae.model, experiment.vae.guide, x
        active = codes(*own, seed=self.settings.seed).variances > ACTIVE
        if not active.any():
            which = "this run" if experiment is self.experiment else "the other run"
            raise ValueError(f"--beside compares active dimensions of the codes, and {which} has none: train it longer")
        return code_means(*own, seed=self.settings.seed)[:, active]

    @torch.no_grad()
    def draws(self) -> Measured:
        """How far draws are from real data."""
        vae, count = self.experiment.vae, len(self.x)
        with self.experiment.evaluating(self.settings.seed):
            drawn = vae.sample(count) if self.experiment.is_grey else vae.decoder(vae.prior().sample((count,))).sample()
        try:
            found = sample_quality(self.x, drawn, labels=self._classes, seed=self.settings.seed)
        except ValueError:  # of labels that a classifier cannot learn, such as a class for each datum
            found = sample_quality(self.x, drawn, seed=self.settings.seed)
        figures = {"sample_mmd": found.mmd, "sample_mmd_p": found.mmd_p}
        figures |= {name: getattr(found, name) for name in ("precision", "recall", "frechet", "frechet_of_real")}
        words = (
            f"{count} draws from the model are compared with the test data. If they were alike, their squared MMD would"
            " be near 0 with a large p-value. Precision is the share of draws that look real, recall the share of real"
            " data that the draws come near to."
        )
        if not math.isnan(found.frechet):
            words += (
                " The Frechet distance compares what a small classifier, which has learned the labels, sees in both;"
                " that of real data is what this many real data would give."
            )
        return Measured(figures, words)

    def ais(self) -> Measured:
        """The likelihood by annealed importance sampling, and a bracket of how far it can be off."""
        found = ais(*self.programs, self.few, **self.within)
        lower, upper, *_ = bdmc(*self.programs, self.few, **self.within)
        figures = {
            "ais_log_likelihood": found.estimate.mean().item(),
            "ais_standard_error": _error_of_mean(found.standard_error),
            "sampled_log_likelihood": self._few_sampled().estimate.mean().item(),
            "bdmc_lower": lower.mean().item(),
            "bdmc_upper": upper.mean().item(),
        }
        width = max(0.0, figures["bdmc_upper"] - figures["bdmc_lower"])  # the bounds hold in the mean
        words = (
            "Annealed importance sampling moves chains from the encoder's posterior to the exact one, so that it also"
            " finds what the encoder misses. On data that the model itself draws, bidirectional Monte Carlo encloses"
            f" {self.p} from both sides: the bracket is {width:.2f} nats wide,"
            " and so far the estimate may be too low on data like these."
        )
        each = {"estimate": found.estimate.tolist(), "standard_error": found.standard_error.tolist()}
        return Measured(figures, words, each=each)

    def gaps(self) -> Measured:
        """Where the bound is lost."""
        gap = inference_gap(*self.programs, self.few, likelihood=self._few_likely(), **self.within)
        figures = {
            "approximation_gap": gap.approximation.mean().item(),
            "approximation_gap_error": _error_of_mean(gap.approximation_error),
            "amortization_gap": gap.amortization.mean().item(),
            "amortization_gap_error": _error_of_mean(gap.amortization_error),
        }
        words = (
            "The best posterior of the encoder's family is searched for each datum by itself. What it still loses is"
            " the family's, and what the encoder loses against it is the network's."
        )
        title = f"Where the bound is lost, {len(self.few)} test data"
        pictures = {"gaps": plots.gaps(gap.approximation, gap.amortization, title)}
        return Measured(figures, words, _larger_gap(gap.amortization - gap.approximation), pictures=pictures)

    def calibration(self) -> Measured:
        """Whether the posteriors are right, on simulated data."""
        found = calibration(*self.programs, self.x[:SIMULATED], **self.within)
        words = (
            "The model draws codes and data, so that the true codes are known; if the encoder's posteriors were exact,"
            " they could not be told from draws of these. The first p-value is that of three tests together. Then the"
            f" posterior of each of {len(self.few)} test data is tested by itself; of exact ones 5 % would seem wrong."
        )
        low, high = band(len(found.ranks), found.draws, tests=found.ranks.shape[1] + 2)
        title = "Ranks of the true codes among draws from the encoder"
        pictures = {"calibration": plots.ranks(found.ranks, found.draws, low, high, title)}
        settings = {**self.within, "permutations": PERMUTATIONS}
        local = local_test(*self.programs, self.x[:SIMULATED], self.few, **settings)
        rejected = (local.p <= 1 / (1 + PERMUTATIONS)).double().mean().item()
        figures = {"calibration_p": found.p, "tarp": found.coverage_p, "local_rejected": rejected}
        return Measured(figures, words, found.verdict, pictures=pictures)

    def nuts(self) -> Measured:
        """The posteriors beside those of the no-U-turn sampler."""
        x = self.few[: max(1, self.settings.images // 10)]
        found = posterior_check(*self.programs, x, **self.common)
        apart, ratio = (found.mean[0] - found.mean[1]) / found.deviation[1], found.deviation[0] / found.deviation[1]
        figures = {
            "r_hat": found.r_hat.max().item(),
            "posterior_mean_error": apart.abs().mean().item(),
            "posterior_scale_ratio": ratio.log().mean().exp().item(),
        }
        words = (
            f"The no-U-turn sampler draws from the exact posteriors of {len(x)} data. The encoder's means are"
            f" {figures['posterior_mean_error']:.2f} deviations off on average, and its deviations are"
            f" {figures['posterior_scale_ratio']:.2f} times the exact ones."
        )
        pictures = {}
        if found.mean.shape[-1] > 1:
            two = found.deviation[1].mean(0).argsort()[:2].sort().values
            pairs = [(found.drawn[:, n, two], found.exact[:, n, two]) for n in range(min(3, len(x)))]
            title = "Posteriors: the encoder's, and the exact ones"
            pictures["posteriors"] = plots.posterior_pairs(pairs, two.tolist(), title)
        return Measured(figures, words, pictures=pictures)

    @property
    def p(self) -> str:
        """What the likelihood is called in sentences."""
        return "the log-evidence" if self.experiment.is_grey else "log p(x)"

    @property
    def _classes(self) -> Tensor | None:
        labels = self.experiment.data.test_labels
        return None if labels is None or labels.is_floating_point() else labels  # measurements are no classes

    def _sampled(self, x: Tensor) -> LogLikelihood:
        return log_likelihood(*self.programs, x, per_datum=True, samples=self.settings.samples, **self.within)

    def _few_sampled(self) -> LogLikelihood:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `likelihood` has given them for all data
            return self._sampled(self.few)

    def _few_likely(self) -> LogLikelihood:
        """Return the likelihood of the first data: by annealed importance sampling, if it has been measured."""
        if "estimate" not in self.each:
            return self._few_sampled()
        estimate, error = (
            torch.tensor(self.each[name], dtype=torch.float64) for name in ("estimate", "standard_error")
        )
        unknown = dict.fromkeys(LogLikelihood._fields, torch.full_like(estimate, math.nan))
        return LogLikelihood(**unknown | {"estimate": estimate, "standard_error": error})


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


def texts_of(experiment: Experiment) -> dict[str, str]:
    """Return what each measure of a run is called; nothing is log p(x) if the likelihood is no density of the data."""
    return GREY_TEXTS if experiment.is_grey else TEXTS


def _larger_gap(more: Tensor) -> str:
    """Say whether the encoder's network or the family of q loses more, if the data tell.

    Arguments:
        more: how much more the network loses than the family, for each datum.
    """
    error = more.std().item() / math.sqrt(len(more)) if len(more) > 1 else math.inf
    if more.mean().abs() <= 2 * error:
        return f"whether the family or the network loses more cannot be told from {len(more)} data"
    network = more.mean() > 0
    what, fix = ("network", "a larger one, or SemiAmortized") if network else ("family", "another one, such as a flow")
    return f"the {what} loses more: {fix}, may gain"


def _error_of_mean(errors: Tensor) -> float:
    return errors.square().sum().sqrt().item() / len(errors)
