"""Where a bound is lost: by the family of the guide, and by its network."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Delta, Dirichlet, constraints
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, Kumaraswamy, transform_to

from pyro_vae.arguments import as_size
from pyro_vae.data import count_in, pieces
from pyro_vae.data.batch import Batch, Count, arguments
from pyro_vae.diagnostics.likelihood import log_likelihood
from pyro_vae.diagnostics.particles import data_within
from pyro_vae.diagnostics.vectors import check_in_order
from pyro_vae.diagnostics.weights import LogLikelihood
from pyro_vae.distributions.sphere import directions
from pyro_vae.distributions.wrappers import family
from pyro_vae.encoders._concentration import FLOORS
from pyro_vae.objectives import Draws, Objective
from pyro_vae.objectives.particles import on_particles
from pyro_vae.programs import Program, as_input, check_programs, mode, seeded
from pyro_vae.programs.handlers import LocalModules
from pyro_vae.programs.seeds import noise_seed
from pyro_vae.programs.supports import bounds_of
from pyro_vae.programs.traces import in_one_line
from pyro_vae.runtime.memory import as_bytes
from pyro_vae.runtime.progress import bar

Transform = Callable[[Tensor], Tensor]

NAME = "inference_gap"
FIXED = ("df", "temperature", "total_count")  # what a guide fixes rather than learns
# The second parameter of a family, and the first; see `_located`.
BESIDE = {"rate": "concentration", "concentration0": "concentration1"}
SAME = {"logits": ["probs"], "scale_tril": ["covariance_matrix", "precision_matrix"]}  # parameters that say the same
LEARNING_RATES = 0.1, 0.001  # of the first and the last step; between them it falls exponentially
BETAS = 0.9, 0.95  # of Adam: with 0.999, the steep slopes far from q* would make all steps near it small
PARTICLES, TOGETHER = 10, 500  # samples of each step of the search, and data that are searched together at most
CLOSE = 0.05  # nats between the two best starts that are near enough
RUNS = 50  # of the guide, in which the samples of a bound are drawn


class Gap(NamedTuple):
    """What a bound loses for each datum, in nats; each of shape (N,).

    ``log_likelihood - bound`` is ``approximation + amortization``. The standard errors are those of the noise of all
    estimates together.
    """

    log_likelihood: Tensor
    bound: Tensor
    best_bound: Tensor
    approximation: Tensor
    amortization: Tensor
    approximation_error: Tensor
    amortization_error: Tensor


class Freed(Messenger):
    """Gives each datum parameters of its own for the distributions of a guide, which begin at those of the guide.

    Arguments:
        count: number of data.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.parameters: dict[tuple[str, str], Tensor] = {}  # by site and name, without constraints

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] or msg["value"] is not None or site_is_subsample(msg):
            return
        name, fn = msg["name"], msg["fn"]
        base, event_dims = fn, 0
        while isinstance(base, Independent | ExpandedDistribution):
            event_dims += base.reinterpreted_batch_ndims if isinstance(base, Independent) else 0
            base = base.base_dist
        names = _names_of(base)
        if not names:
            raise _not_freed(name, fn, "frees the parameters of each site", "a parametric family, such as a normal")
        if constraints.is_dependent(type(base).support) and bounds_of(base):
            raise ValueError(
                f"{NAME} searches among distributions of one support, and that of {family(fn)} at site {name!r} moves"
                " with its parameters, so that bounds are infinite: take a guide with a fixed support"
            )
        if tuple(fn.batch_shape) != (self.count,):
            raise ValueError(
                f"{NAME} frees the parameters of each datum, but those at site {name!r} have shape"
                f" {tuple(fn.batch_shape)}: it takes guides whose sites depend on the data alone"
            )
        shape = fn.batch_shape + fn.event_shape[:event_dims]
        values: dict[str, Tensor] = {}
        own = len(base.batch_shape)
        for each in names:
            to_value, from_value = _unconstrained(base, each)
            if BESIDE.get(each) in values:
                to_value, from_value = _located(base, values[BESIDE[each]], to_value, from_value)
            if (name, each) not in self.parameters:
                value = getattr(base, each)
                free = from_value(value.expand(shape + value.shape[own:]))
                self.parameters[name, each] = free.detach().clone().requires_grad_()
            values[each] = to_value(self.parameters[name, each])
        fixed = {each: getattr(base, each) for each in FIXED if each in signature(type(base)).parameters}
        msg["fn"] = type(base)(**values, **fixed).to_event(event_dims)


def _not_freed(name: str, fn: Any, needs: str, family_of: str) -> ValueError:
    return ValueError(
        f"{NAME} {needs}, which {family(fn)} at site {name!r} has not: take a guide of {family_of}; the whole gap is"
        " log_likelihood minus the bound of evaluate"
    )


def _names_of(base: Any) -> list[str]:
    """Return the parameters of a distribution that can be freed."""
    names = [each for each in base.arg_constraints if each not in FIXED]
    for preferred, others in SAME.items():
        if preferred in names:
            names = [each for each in names if each not in others]
    return [] if isinstance(base, Delta) else names


def _constraint_of(base: Any, name: str) -> Any:
    """Return what a parameter may be: a concentration is not below its floor, unless the guide has it lower."""
    floor = next((FLOORS[kind.__name__] for kind in type(base).__mro__ if kind.__name__ in FLOORS), None)
    value = getattr(base, name)
    if floor is None or not name.startswith("concentration") or value.dtype == torch.float64:
        return base.arg_constraints[name]
    return constraints.greater_than(min(floor, 0.99 * value.min().item()))


def _located(base: Any, first: Tensor, to_value: Transform, from_value: Transform) -> tuple[Transform, Transform]:
    """Return functions from the location of a family, given its first parameter, to its second one, and back.

    Both parameters are large if a posterior is narrow, and Adam, which moves them one by one, would be slow along the
    line on which the mean stays. The location is the logarithm of rate / concentration of a gamma variate, of the ratio
    of both concentrations of a beta variate, and of -log(median) of Kumaraswamy's.
    """
    shift = first.log()
    if not isinstance(base, Kumaraswamy):
        return lambda free: to_value(free + shift), lambda value: from_value(value) - shift

    def to_second(free: Tensor) -> Tensor:
        logarithm = (free + shift).exp()  # of 1 / median^first; where it is large, -log(-log(1 - exp(-v))) is v
        small = logarithm.clamp(max=8)
        return to_value(math.log(math.log(2)) + logarithm - small - (-(-torch.expm1(-small)).log()).log())

    def from_second(value: Tensor) -> Tensor:
        return (-torch.log(-torch.expm1(-math.log(2) * (-from_value(value)).exp()))).log() - shift

    return to_second, from_second


def _unconstrained(base: Any, name: str) -> tuple[Transform, Transform]:
    """Return functions from real numbers to a parameter of a distribution, and back."""
    constraint = _constraint_of(base, name)
    if constraint is constraints.sphere:
        return directions, lambda value: value
    transform = transform_to(constraint)
    if not isinstance(base, Dirichlet):
        return transform, transform.inv
    return (  # the last number moves the total, which Adam would find slowly by all others together
        lambda free: transform(free[..., :-1] + free[..., -1:]),
        lambda value: torch.nn.functional.pad(transform.inv(value), (0, 1)),
    )


def inference_gap(
    model: Program,
    guide: Program,
    data: Any,
    *,
    likelihood: LogLikelihood | None = None,
    samples: int = 1000,
    steps: int = 1000,
    starts: int = 3,
    memory: int | str = "2GB",
    seed: int = 0,
    count: Count | None = None,
    progress: bool = False,
) -> Gap:
    r"""Split what a bound loses into what the guide's family loses, and what its network loses.

    .. math:: \log p(x) - \mathcal{L}[q] = \underbrace{\log p(x) - \mathcal{L}[q^*]}_{\text{approximation gap}}
              + \underbrace{\mathcal{L}[q^*] - \mathcal{L}[q]}_{\text{amortization gap}}

    Here :math:`q^*` is the best distribution of the guide's family for each datum by itself. Its parameters are found
    by Adam, from those of the guide and from others near them; in 32 bits, concentrations are not below those that the
    encoders of this package reach, as their draws are not exact there. A large approximation gap asks for another
    family, such as a flow; a large amortization gap for a larger network, or `pyro_vae.encoders.SemiAmortized`.

    Arguments:
        model: the Pyro program of p(x, z), called with a batch; every site is in one plate, over the data.
        guide: the Pyro program of q(z|x), whose sites have pathwise samplers and parameters that depend on x alone.
        data: what `fit` takes: tensors, alone or in a tuple or a dict, a data set, or ready batches.
        likelihood: the log-likelihood of the data, by `log_likelihood` with ``per_datum`` or by `ais`; by default that
            of 5,000 importance samples.
        samples: samples that measure each bound, at least 2.
        steps: steps of the search for q*, at least 1.
        starts: the number of starts of the search, at least 1.
        memory: limit for the tensors of the data that are searched together, such as "512MB". It changes the noise, as
            fewer data are then searched together.
        seed: random seed of the noise; torch's own random state does not change.
        count: returns the number of data of a ready batch.
        progress: show a progress bar.

    Returns:
        The log-likelihood, both bounds, both gaps and their standard errors, for each datum, on the CPU.

    Raises:
        TypeError, ValueError: as for `log_likelihood`; for a guide whose sites have no parameters to free, such as a
            flow, or depend on each other; for a loader that shuffles.

    Example:
        >>> from pyro_vae.diagnostics.estimators import linear_gaussian
        >>> vae, x = linear_gaussian()  # the family contains the posterior, but the network's mean is off
        >>> gap = inference_gap(vae.model, vae.guide, x, steps=300, starts=1)
        >>> gap.amortization.mean() > 10 * gap.approximation.mean().abs()
        tensor(True)

    Reference:
        Cremer, Li and Duvenaud, 2018, Inference Suboptimality in Variational Autoencoders, section 3.
    """
    for name, value, least in (("samples", samples, 2), ("steps", steps, 1), ("starts", starts, 1)):
        as_size(value, name, least)
    budget = as_bytes(memory)
    check_in_order(data, "the gaps of data")
    if likelihood is None:
        likelihood = log_likelihood(model, guide, data, per_datum=True, memory=memory, seed=seed, count=count)
    x, found = as_input(data, model, guide, count=count), []
    count_rows, local, total = count_in(x), LocalModules(), starts * steps * len(x)
    if len(likelihood.estimate) != len(x):
        raise ValueError(
            f"the likelihood is of {len(likelihood.estimate)} data, not of these {len(x)}: give that of these"
        )
    with seeded(noise_seed(seed), x.device), mode(False, model, guide), bar(total, "step", shown=progress) as shown:
        check_programs(model, guide, x)
        with pyro.validation_enabled(False), in_one_line(x[:2]), on_particles(NAME):
            searched = partial(_Searched, local(model), local(guide), count_rows)

            def once(rows: Batch) -> None:
                trial = searched(rows, lambda _: None)
                trial.measured(trial.guide, samples), trial.searched(1, spread=0)

            for whole in x.split(TOGETHER):
                size = data_within(budget, once, whole, TOGETHER, count_rows)
                parts = pieces(whole, size, count_rows)
                found += [searched(rows, shown.update).bounds(samples, steps, starts) for rows in parts]
    bound, best, error, best_error, apart = map(torch.cat, zip(*found, strict=True))
    log_p, log_p_error = likelihood.estimate, likelihood.standard_error
    errors = (log_p_error.square() + best_error.square()).sqrt(), (best_error.square() + error.square()).sqrt()
    below = (best - log_p).mean().item()
    if below > 3 * errors[0].square().sum().sqrt().item() / len(best) + 1e-6:
        text = f"the log-likelihood is {below:.3g} nats below a bound on it, so that its estimate is too low"
        warnings.warn(f"{text}: take more samples, or ais", RuntimeWarning, stacklevel=2)
    _check_starts(apart, best_error)
    return Gap(log_p, bound, best, log_p - best, best - bound, *errors)


def _check_starts(apart: Tensor, error: Tensor) -> None:
    """Warn if the two best starts of the search end further apart than by noise: by 1.13 errors, if it is normal."""
    noise = 1.13 * error.mean() + 3 * error.square().mean().sqrt() / math.sqrt(len(error))
    if apart.mean() > noise + CLOSE:
        warnings.warn(
            f"the two best starts of the search for q* end {apart.mean():.3g} nats apart in the mean, so that the"
            " approximation gap can be that much too large: take more steps or starts",
            RuntimeWarning,
            stacklevel=3,
        )


class _ELBO(Objective):
    """The evidence lower bound, with its whole gradient."""

    def estimate(self, draws: Draws) -> Tensor:
        return draws.log_weights.mean(0)

    def _check_draw(self, name: str, site: dict[str, Any]) -> None:
        if not site["fn"].has_rsample:
            raise _not_freed(name, site["fn"], "needs draws with a gradient", "continuous codes without ScoreFunction")


_ELBO.__name__ = NAME  # the name that an objective's errors use


class _Searched:
    """The bounds of some data, under a guide and under the best distributions of its family."""

    def __init__(
        self, model: Program, guide: Program, count: Count, rows: Batch, advance: Callable[[int], Any]
    ) -> None:
        self.model, self.guide, self.rows, self.count, self.advance = model, guide, rows, count(rows), advance

    @torch.no_grad()
    def measured(self, guide: Program, samples: int) -> tuple[Tensor, Tensor]:
        """Return the bound of each datum and its standard error, by several runs of the guide, which may draw noise."""
        args, kwargs = arguments(self.rows)
        runs = min(RUNS, samples)
        loss = _ELBO(math.ceil(samples / runs))
        each = [loss.draws(self.model, guide, *args, **kwargs).log_weights.double().cpu().mean(0) for _ in range(runs)]
        return torch.stack(each).mean(0), torch.stack(each).std(0) / math.sqrt(runs)

    def searched(self, steps: int, spread: float) -> Freed:
        """Return the best parameters that Adam finds, from those of the guide or from others near them."""
        args, kwargs = arguments(self.rows)
        freed, loss = Freed(self.count), _ELBO(PARTICLES)
        with torch.no_grad():
            loss.draws(self.model, freed(self.guide), *args, **kwargs)  # which meets the parameters
            for free in freed.parameters.values():
                free += spread * torch.randn_like(free)
        first, last = LEARNING_RATES
        optim = torch.optim.Adam(freed.parameters.values(), lr=first, betas=BETAS)
        decay = torch.optim.lr_scheduler.ExponentialLR(optim, (last / first) ** (1 / steps))
        for _ in range(steps):
            terms = loss.terms(self.model, freed(self.guide), *args, **kwargs)
            gradients = torch.autograd.grad(terms.loss, list(freed.parameters.values()))
            for free, gradient in zip(freed.parameters.values(), gradients, strict=True):
                free.grad = gradient
            optim.step()
            decay.step()
            self.advance(self.count)
        return freed

    def bounds(self, samples: int, steps: int, starts: int) -> tuple[Tensor, ...]:
        """Return the guide's bound, the best, their standard errors, and how far the two best starts end apart."""
        bound, error = self.measured(self.guide, samples)
        searched = [self.searched(steps, spread=min(start, 1)) for start in range(starts)]
        reached = torch.stack([self.measured(freed(self.guide), samples)[0] for freed in searched])
        best, order = Freed(self.count), reached.nan_to_num(nan=-math.inf).sort(0, descending=True)
        highest, apart = order.indices[0], order.values[0] - order.values[min(1, starts - 1)]
        for name, free in searched[0].parameters.items():
            each = torch.stack([freed.parameters[name] for freed in searched])
            best.parameters[name] = each[highest.to(free.device), torch.arange(self.count, device=free.device)]
        again, best_error = self.measured(best(self.guide), samples)  # by new noise, as the old one chose the start
        return bound, again, error, best_error, apart
