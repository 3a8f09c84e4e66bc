"""Comparison of a Pyro VAE with its hand-coded twin: loss, gradients, training, speed, and what the trick is for."""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from statistics import median
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import Adam
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from pyro_vae import baseline, decoders, encoders, priors
from pyro_vae.arguments import as_size
from pyro_vae.data import shuffled_batches
from pyro_vae.programs import as_input, check_programs, seeded
from pyro_vae.programs.handlers import LocalModules
from pyro_vae.programs.seeds import as_seed
from pyro_vae.training import fit
from pyro_vae.vae import VAE

TOLERANCE = 1e-10
PROGRAMS = ("hand-coded twin", "pyro.infer.SVI", "fit")


@dataclass(frozen=True)
class Comparison:
    """What `compare` found; every field holds plain numbers.

    Attributes:
        identity: for each estimator of the KL, the relative differences of loss and gradients at the same weights and
            noise, in float64.
        controls: the same for twins spoiled on purpose; ``detected`` says whether the difference was seen.
        trajectory: the largest parameter difference after each step of training both from one seed, in float64.
        why_the_trick: the encoder's gradient by the pathwise estimator, without it, and by the score function.
        speed: milliseconds per step, medians over alternating rounds, and the ratios to the twin's.
    """

    identity: dict[str, dict[str, float]]
    controls: dict[str, dict[str, Any]]
    trajectory: list[float]
    why_the_trick: dict[str, Any]
    speed: dict[str, dict[str, float]]

    def json(self) -> str:
        """Return all fields as JSON."""
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """Return the figures as a text table."""
        why = self.why_the_trick
        steps, farthest = len(self.trajectory), max(self.trajectory)
        rows = [
            ("identity: same weights, same noise, float64", "loss", "gradients"),
            *[(f"  {name}", *_differences(found)) for name, found in self.identity.items()],
            ("controls: twins spoiled on purpose", "", ""),
            *[
                (f"  {name}: {'detected' if found['detected'] else 'NOT DETECTED'}", *_differences(found))
                for name, found in self.controls.items()
            ],
            (f"trajectory: largest parameter difference in {steps} steps", f"{farthest:.1e}", ""),
            (f"why the trick: encoder gradient, {why['draws']} draws", "mean", "standard error"),
            *[
                (f"  {name.replace('_', ' ')}", f"{why[name]['mean']:.4g}", f"{why[name]['standard_error']:.2g}")
                for name in ("pathwise", "score_function")
            ],
            ("  difference in standard errors", f"{why['z']:+.2f}", ""),
            ("  variance of the whole gradient, score function / pathwise", f"{why['variance_ratio']:.4g}", ""),
            ("  reconstruction's gradient, sample detached", f"{why['detached_gradient_norm']:.4g}", ""),
            ("  reconstruction's gradient, pathwise", f"{why['pathwise_gradient_norm']:.4g}", ""),
            ("speed", "ms per step", "ratio"),
            *[(f"  {name}", f"{of['ms_per_step']:.2f}", f"{of['ratio']:.2f}") for name, of in self.speed.items()],
        ]
        return "\n".join(f"{name:<60}{first:>10}{second:>16}".rstrip() for name, first, second in rows)


def compare(
    vae: VAE,
    data: Any,
    *,
    steps: int = 300,
    draws: int = 2000,
    rounds: int = 5,
    batch_size: int = 128,
    seed: int = 0,
) -> Comparison:
    """Compare a VAE's Pyro programs with the same VAE coded by hand, on the same data and noise.

    Arguments:
        vae: a VAE with a standard normal prior, `pyro_vae.encoders.Normal` and `pyro_vae.decoders.Bernoulli` or
            `pyro_vae.decoders.Normal` of a fixed scale: the twin of `pyro_vae.baseline` covers only these. It is not
            changed.
        data: a tensor whose first dimension counts the data, or a data set.
        steps: number of training steps, at least 1.
        draws: number of gradients for ``why_the_trick``, at least 2.
        rounds: number of rounds in which speed is measured, at least 1.
        batch_size: data per step; all data if there are fewer.
        seed: random seed of the data's order and of all noise.

    Returns:
        A `Comparison`, with ``table()`` and ``json()``.

    Raises:
        TypeError: if the twin does not cover a part.
        ValueError: for numbers out of range, data that do not fit the VAE, frozen parameters, and networks that draw
            noise (dropout).

    Example:
        >>> from pyro_vae import data
        >>> x = data.load("digits").train
        >>> vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
        >>> found = compare(vae, x, steps=5, draws=10, rounds=1)
        >>> found.identity["sampled KL"]["max_gradient_relative_difference"] < 1e-10
        True

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, sections 2.3 and 2.4.
    """
    counts = {"steps": (steps, 1), "draws": (draws, 2), "rounds": (rounds, 1), "batch_size": (batch_size, 1)}
    for name, (value, least) in counts.items():
        as_size(value, name, least)
    seed = as_seed(seed)
    x = as_input(data, vae.model, vae.guide)[:]
    vae = copy.deepcopy(vae)
    twin_of(vae)  # refuses what it does not cover
    if frozen := [name for name, each in vae.named_parameters() if not each.requires_grad]:
        raise ValueError(f"compare differentiates all parameters, but {frozen[0]} is frozen: set requires_grad to True")
    batch_size = min(batch_size, len(x))
    with seeded(seed, x.device):
        check_programs(vae.eval().model, vae.guide, x)
        vae.train()  # as `fit` trains it
        _check_networks(vae, x[:batch_size])
        return Comparison(
            identity(vae, x[:batch_size], seed),
            controls(vae, x[:batch_size], seed),
            trajectory(vae, x, steps, batch_size, seed),
            why_the_trick(vae, x[:16], draws, seed),
            speed(vae, x, min(steps, 100), rounds, batch_size, seed),
        )


def twin_of(vae: VAE) -> baseline.VAE:
    """Return the hand-coded VAE with copies of a VAE's networks.

    Arguments:
        vae: a VAE whose parts the twin covers, see `compare`.

    Returns:
        A `pyro_vae.baseline.VAE`, whose parameters come in the order of ``parameters_of(vae)``.

    Raises:
        TypeError: if the twin does not cover a part.
    """
    covered = {
        "prior": type(vae.prior) is priors.Normal and not vae.prior.learned,
        "encoder": type(vae.encoder) is encoders.Normal,
        "decoder": type(vae.decoder) is decoders.Bernoulli
        or (type(vae.decoder) is decoders.Normal and not vae.decoder.learned),
    }
    for name, known in covered.items():
        if not known:
            part = getattr(vae, name)
            raise TypeError(
                f"the hand-coded twin has a standard normal prior, a Normal encoder and a Bernoulli or Normal decoder"
                f" of fixed scale; it does not cover the {name} {type(part).__name__}({part.extra_repr()})"
            )
    is_normal = isinstance(vae.decoder, decoders.Normal)
    error = baseline.squared_error(vae.decoder.scale.item()) if is_normal else baseline.cross_entropy
    return baseline.VAE(copy.deepcopy(vae.encoder.network), copy.deepcopy(vae.decoder.network), error)


def parameters_of(vae: VAE) -> list[nn.Parameter]:
    """Return the parameters of a VAE's two networks, the encoder's first."""
    return [*vae.encoder.network.parameters(), *vae.decoder.network.parameters()]


def _check_networks(vae: VAE, x: Tensor) -> None:
    """Refuse networks that draw noise, which the twin would draw at another place."""
    networks = copy.deepcopy(vae)
    with torch.no_grad():
        z = torch.zeros(len(x), *vae.prior().event_shape, dtype=x.dtype, device=x.device)
        for name, network, given in (("encoder", networks.encoder, x), ("decoder", networks.decoder, z)):
            state = copy.deepcopy(network.state_dict())
            first = network.network(given)
            network.load_state_dict(state)
            if not torch.equal(first, network.network(given)):
                raise ValueError(
                    f"the network of the {name} draws noise, such as dropout's, which the hand-coded twin would draw at"
                    " another place: take one without noise"
                )


# --- identity and controls: one loss, computed twice ---------------------------------------------------------------

TwinLoss = Callable[[baseline.VAE, Tensor, Tensor], Tensor]


def identity(vae: VAE, x: Tensor, seed: int = 0) -> dict[str, dict[str, float]]:
    """Return the relative differences of loss and gradients between a VAE and its twin, for both kinds of KL."""
    loss = baseline.VAE.negative_elbo
    return {
        "sampled KL": _difference(vae, x, seed, Trace_ELBO(), loss),
        "closed-form KL": _difference(vae, x, seed, TraceMeanField_ELBO(), partial(loss, closed_form=True)),
    }


def controls(vae: VAE, x: Tensor, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return the same differences for twins spoiled on purpose: a check that cannot fail proves nothing."""
    spoiled: dict[str, TwinLoss] = {
        "KL sign flipped": lambda twin, x, eps: twin.negative_elbo(x, eps, beta=-1.0),
        "KL left out": lambda twin, x, eps: twin.negative_elbo(x, eps, beta=0.0),
        "beta 2": lambda twin, x, eps: twin.negative_elbo(x, eps, beta=2.0),
        "variance taken for standard deviation": _variance_for_standard_deviation,
        "noise drawn anew": lambda twin, x, eps: twin.negative_elbo(x, torch.randn_like(eps)),
        "sum over the batch for a mean": lambda twin, x, eps: twin.negative_elbo(x, eps) * len(x),
    }
    if len(x) == 1:
        del spoiled["sum over the batch for a mean"]  # both are the same
    found = {name: _difference(vae, x, seed, Trace_ELBO(), loss) for name, loss in spoiled.items()}
    return {
        name: {**difference, "detected": max(difference.values()) > TOLERANCE} for name, difference in found.items()
    }


def _variance_for_standard_deviation(twin: baseline.VAE, x: Tensor, eps: Tensor) -> Tensor:
    mean, log_variance = twin.encode(x)
    z = mean + log_variance.exp() * eps
    return (twin.error(x, twin.decoder(z)) + baseline.kl_sampled(mean, log_variance, z)).mean()


def _difference(vae: VAE, x: Tensor, seed: int, loss: ELBO, twin_loss: TwinLoss) -> dict[str, float]:
    ours, x = copy.deepcopy(vae).double(), x.double()
    twin, local = twin_of(ours), LocalModules()
    with seeded(seed, x.device):
        our_value = loss.differentiable_loss(local(ours.model), local(ours.guide), x) / len(x)
        our_gradients = torch.autograd.grad(our_value, parameters_of(ours))
    with seeded(seed, x.device):
        # The first noise of a seed is the guide's: Pyro draws it inside a call, the twin takes it as an argument.
        value = twin_loss(twin, x, _noise(vae, x))
        gradients = torch.autograd.grad(value, list(twin.parameters()))
    return {
        "loss_relative_difference": _relative(our_value, value),
        "max_gradient_relative_difference": _relative(*map(parameters_to_vector, (our_gradients, gradients))),
    }


def _noise(vae: VAE, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return torch.randn(len(x), *vae.prior().event_shape, dtype=x.dtype, device=x.device, generator=generator)


def _relative(ours: Tensor, theirs: Tensor) -> float:
    size = theirs.abs().max().item()
    difference = (ours - theirs).abs().max().item()
    return difference / size if size else difference


def _differences(found: dict[str, Any]) -> tuple[str, str]:
    return f"{found['loss_relative_difference']:.1e}", f"{found['max_gradient_relative_difference']:.1e}"


# --- trajectory: both trained from one seed -------------------------------------------------------------------------


def trajectory(vae: VAE, x: Tensor, steps: int = 300, batch_size: int = 128, seed: int = 0) -> list[float]:
    """Return the largest parameter difference after each step of `fit` and of the twin's own loop, in float64."""
    ours, x = copy.deepcopy(vae).double(), x[: steps * batch_size].double()
    twin = twin_of(ours)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    differences: list[float] = []
    epochs = math.ceil(steps / math.ceil(len(x) / batch_size))
    order = torch.Generator().manual_seed(seed)
    batches = chain.from_iterable(shuffled_batches(x, batch_size, order) for _ in range(epochs))  # those of fit
    noise = torch.Generator(x.device).manual_seed(seed)

    def follow(step: int, loss: Tensor) -> None:  # noqa: ARG001
        if step < steps:
            batch = next(batches)
            twin.step(optimizer, batch, _noise(vae, batch, noise))
            pairs = zip(parameters_of(ours), twin.parameters(), strict=True)
            differences.append(max((a - b).abs().max().item() for a, b in pairs))

    adam = partial(torch.optim.Adam, lr=1e-3)
    how: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "on_step": follow}
    if fit(ours.model, ours.guide, x, optimizer=adam, **how).interrupted:
        raise KeyboardInterrupt
    return differences


# --- why the trick --------------------------------------------------------------------------------------------------


def why_the_trick(vae: VAE, x: Tensor, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    r"""Measure the encoder's gradient at fixed weights with the trick, without it, and by the score function.

    The gradients of the bound are projected on one direction, that of the pathwise gradient averaged over other
    draws. The ratio of variances is that of the whole gradients, :math:`\operatorname{tr} \operatorname{Cov}`.

    Arguments:
        vae: a VAE with a Normal encoder.
        x: a few data.
        draws: number of gradients of each estimator, at least 2.
        seed: random seed of the noise.

    Returns:
        ``draws``; for ``pathwise`` and ``score_function`` the ``mean``, ``standard_error`` and ``projections`` of the
        gradient, in nats per datum and unit of the parameters; ``z``, the difference of the means in standard errors;
        ``variance_ratio``; and the norm of the gradient of the reconstruction alone with respect to the encoder,
        pathwise and with the sample detached.
    """
    vae = copy.deepcopy(vae)
    without = VAE(vae.prior, encoders.ScoreFunction(vae.encoder), vae.decoder)
    with seeded(seed, x.device):
        direction = torch.stack([_encoder_gradient(vae, x) for _ in range(max(2, draws // 10))]).mean(0)
        direction = direction / direction.norm()
        pathwise = _gradient_statistics(vae, x, draws, direction)
        score_function = _gradient_statistics(without, x, draws, direction)
        posterior = vae.encoder(x)
        detached, attached = posterior.sample(), posterior.rsample()
        norms = [_reconstruction_gradient_norm(vae, x, z) for z in (detached, attached)]
    standard_error = math.hypot(pathwise["standard_error"], score_function["standard_error"])
    return {
        "draws": draws,
        "pathwise": pathwise,
        "score_function": score_function,
        "z": (score_function["mean"] - pathwise["mean"]) / standard_error if standard_error else math.nan,
        "variance_ratio": score_function["variance"] / pathwise["variance"] if pathwise["variance"] else math.nan,
        "detached_gradient_norm": norms[0],
        "pathwise_gradient_norm": norms[1],
    }


def _encoder_gradient(vae: VAE, x: Tensor) -> Tensor:
    local = LocalModules()
    loss = Trace_ELBO().differentiable_loss(local(vae.model), local(vae.guide), x) / len(x)
    return parameters_to_vector(torch.autograd.grad(loss, list(vae.encoder.parameters())))


def _gradient_statistics(vae: VAE, x: Tensor, draws: int, direction: Tensor) -> dict[str, Any]:
    projections: list[float] = []
    mean, squares = torch.zeros_like(direction), torch.zeros_like(direction)
    with pyro.validation_enabled(False):
        for count in range(1, draws + 1):  # Welford's running mean and sum of squared deviations
            gradient = _encoder_gradient(vae, x)
            deviation = gradient - mean
            mean += deviation / count
            squares += deviation * (gradient - mean)
            projections.append(torch.dot(gradient, direction).item())
    values = torch.tensor(projections, dtype=torch.float64)
    return {
        "mean": values.mean().item(),
        "standard_error": (values.std() / draws**0.5).item(),
        "variance": (squares.sum() / (draws - 1)).item(),
        "projections": projections,
    }


def _reconstruction_gradient_norm(vae: VAE, x: Tensor, z: Tensor) -> float:
    reconstruction = -vae.decoder(z).log_prob(x).mean()
    parameters = list(vae.encoder.parameters())
    gradients = torch.autograd.grad(reconstruction, parameters, retain_graph=True, materialize_grads=True)
    return parameters_to_vector(gradients).norm().item()


# --- speed ----------------------------------------------------------------------------------------------------------


def speed(
    vae: VAE, x: Tensor, steps: int = 100, rounds: int = 5, batch_size: int = 128, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return milliseconds per step of the twin, of ``pyro.infer.SVI`` and of `fit`, all with plain Adam.

    The first round is a warm-up and is not counted; then the three take turns, ``rounds`` times.
    """
    x = x[: steps * batch_size]
    steps = math.ceil(len(x) / batch_size)  # one epoch
    timings: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for round_number in range(rounds + 1):
        for name, run in zip(PROGRAMS, (_time_twin, _time_svi, _time_fit), strict=True):
            seconds = run(copy.deepcopy(vae), x, batch_size, seed)
            if round_number:
                timings[name].append(1000 * seconds / steps)
    medians = {name: median(times) for name, times in timings.items()}
    return {name: {"ms_per_step": ms, "ratio": ms / medians[PROGRAMS[0]]} for name, ms in medians.items()}


def _time_twin(vae: VAE, x: Tensor, batch_size: int, seed: int) -> float:
    twin = twin_of(vae)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    return _time(lambda batch: twin.step(optimizer, batch, _noise(vae, batch)).item(), x, batch_size, seed)


def _time_svi(vae: VAE, x: Tensor, batch_size: int, seed: int) -> float:
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), Trace_ELBO())
    with pyro.get_param_store().scope(), pyro.validation_enabled(False):
        return _time(svi.step, x, batch_size, seed)


def _time(step: Callable[[Tensor], Any], x: Tensor, batch_size: int, seed: int) -> float:
    batches = shuffled_batches(x, batch_size, torch.Generator().manual_seed(seed))
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    return time.perf_counter() - start


def _time_fit(vae: VAE, x: Tensor, batch_size: int, seed: int) -> float:
    optimizer = partial(torch.optim.Adam, lr=1e-3)
    history = fit(vae.model, vae.guide, x, epochs=1, batch_size=batch_size, seed=seed, optimizer=optimizer)
    if history.interrupted:
        raise KeyboardInterrupt
    return history[1]["seconds"]
