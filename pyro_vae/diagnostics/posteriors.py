"""An encoder's posteriors beside the exact ones, which the no-U-turn sampler draws from."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from pyro_vae.arguments import as_size
from pyro_vae.data import count_in, pieces
from pyro_vae.data.batch import Count, cut
from pyro_vae.diagnostics.annealing import Annealing, Settings, Slopes
from pyro_vae.diagnostics.particles import replayed
from pyro_vae.diagnostics.vectors import check_in_order, deviations
from pyro_vae.objectives.particles import on_particles
from pyro_vae.programs import Program, as_input, check_programs, mode, seeded
from pyro_vae.programs.handlers import LocalModules
from pyro_vae.programs.seeds import noise_seed
from pyro_vae.runtime.progress import bar

NAME = "posterior_check"
MIXED = 1.05  # R-hat above which chains have not found the same distribution


class Posteriors(NamedTuple):
    """The encoder's posteriors of N data and the exact ones, of D dimensions.

    Attributes:
        drawn: draws from the encoder, shape (K, N, D).
        exact: draws from the exact posteriors, shape (K, N, D).
        mean: means of both, shape (2, N, D), the encoder's first, and so with the next two.
        deviation: standard deviations.
        correlation: correlations of the dimensions, shape (2, N, D, D).
        r_hat: how far the chains differ from each other, 1 if they do not, shape (N, D).
        effective_sample_size: how many independent draws the exact ones are worth, shape (N, D).
    """

    drawn: Tensor
    exact: Tensor
    mean: Tensor
    deviation: Tensor
    correlation: Tensor
    r_hat: Tensor
    effective_sample_size: Tensor


def posterior_check(
    model: Program,
    guide: Program,
    data: Any,
    *,
    samples: int = 500,
    warmup: int = 300,
    chains: int = 2,
    seed: int = 0,
    count: Count | None = None,
    progress: bool = False,
) -> Posteriors:
    """Compare the encoder's posterior of each datum with the exact one, by the no-U-turn sampler.

    It takes some seconds for each datum, so give a few. A warning says for how many the chains have not mixed, so that
    their draws are not those of the exact posterior; more ``warmup`` and ``samples`` may help.

    Arguments:
        model: the Pyro program of p(x, z), called with a batch; every site is in one plate, over the data.
        guide: the Pyro program of q(z|x), called with a batch. Its draws are where the chains start.
        data: what `fit` takes: tensors, alone or in a tuple or a dict, a data set, or ready batches.
        samples: draws of each chain, at least 4.
        warmup: steps of each chain before these, which adapt step size and masses, at least 1.
        chains: number of chains, at least 2.
        seed: random seed of the noise; torch's own random state does not change.
        count: returns the number of data of a ready batch.
        progress: show a progress bar.

    Returns:
        Draws of both posteriors, their moments, and how well the chains have mixed, on the CPU.

    Raises:
        TypeError, ValueError: as for `log_likelihood`; for numbers out of range, and sites that have no gradient; for a
            loader that shuffles.

    Example:
        >>> from pyro_vae.diagnostics.estimators import linear_gaussian
        >>> vae, x = linear_gaussian(offset=0.5, factor=1.0)  # the encoder's means are 0.5 too large
        >>> found = posterior_check(vae.model, vae.guide, x[:1], samples=100, warmup=100)
        >>> (found.mean[0] - found.mean[1] > 0.2).tolist()
        [[True, True]]

    Reference:
        Hoffman and Gelman, 2014, The No-U-Turn Sampler. Of R-hat and the effective sample size: Gelman et al., 2013,
        Bayesian Data Analysis, sections 11.4 and 11.5.
    """
    for name, value, least in (("samples", samples, 4), ("warmup", warmup, 1), ("chains", chains, 2)):
        as_size(value, name, least)
    check_in_order(data, "the posteriors")
    x = as_input(data, model, guide, count=count)
    found: list[tuple[Tensor, Tensor]] = []
    count_rows, local, steps = count_in(x), LocalModules(), len(x) * chains * (samples + warmup)
    with seeded(noise_seed(seed), x.device), mode(False, model, guide), bar(steps, "step", shown=progress) as shown:
        check_programs(model, guide, x)
        with pyro.validation_enabled(False), on_particles(NAME):
            particles = _Particles(local(model), local(guide), count_rows, Settings(chains, 1, 1, "encoder", 0.5))
            slopes = replayed(particles.slopes, steps, compiled=False)
            for whole in x.split(1):
                particles.meet(cut(whole, 2, count_rows))
                for rows in pieces(whole, 1, count_rows):
                    particles.check_masks(rows)
                    particles.check_repeated(rows, "model", particles.log_joint, "draw it at a site")
                    starts = particles.at_start(rows, chains * samples).detach()
                    wrong = slopes(rows, starts[:1])[1][0].isnan()  # the joint density
                    particles.check_finite(wrong, rows, "the density")
                    each = [chain_of(partial(slopes, rows), start, samples, warmup) for start in starts[:chains, 0]]
                    found.append((particles.codes(starts), torch.stack([particles.codes(chain) for chain in each])))
                    shown.update(chains * (samples + warmup))
    drawn, exact = (torch.cat(parts, -2) for parts in zip(*found, strict=True))
    if poor := int((split_gelman_rubin(exact, 0, 1) > MIXED).any(-1).sum()):
        text = f"the chains of {poor} of {exact.shape[-2]} data have not mixed (R-hat over {MIXED}): give more warmup"
        warnings.warn(f"{text} and samples", RuntimeWarning, stacklevel=2)
    together = torch.stack([drawn, exact.flatten(0, 1)])
    centered = (together - together.mean(1, keepdim=True)) / deviations(together.transpose(0, 1)).unsqueeze(1)
    correlation = torch.einsum("aknd,akne->ande", centered, centered) / (together.shape[1] - 1)
    mixing = split_gelman_rubin(exact, 0, 1), effective_sample_size(exact, 0, 1)
    return Posteriors(together[0], together[1], together.mean(1), together.std(1), correlation, *mixing)


class _Potential(torch.autograd.Function):
    """Minus the joint log-density at some coordinates, whose gradient has been computed with it."""

    @staticmethod
    def forward(context: Any, u: Tensor, slopes: Callable[[Tensor], Sequence[Tensor]]) -> Tensor:
        at_u = Slopes(*slopes(u.detach()[None, None]))
        context.save_for_backward(at_u.of_joint[0, 0])
        return -at_u.log_joint.sum()

    @staticmethod
    def backward(context: Any, *slope: Tensor) -> tuple[Tensor, None]:
        return -slope[0] * context.saved_tensors[0], None


def chain_of(slopes: Callable[[Tensor], Sequence[Tensor]], start: Tensor, samples: int, warmup: int) -> Tensor:
    """Return the coordinates of draws from the exact posterior, shape (K, 1, D)."""

    def potential(parameters: dict[str, Tensor]) -> Any:
        return _Potential.apply(parameters["u"], slopes)

    sampler = MCMC(NUTS(potential_fn=potential), samples, warmup, {"u": start.clone()}, disable_progbar=True)
    sampler.run()
    return sampler.get_samples()["u"][:, None]


class _Particles(Annealing):
    about_codes = True

    def codes(self, u: Tensor) -> Tensor:
        """Return the values of all sites at some coordinates, as one vector for each particle and datum."""
        values, _ = self.coordinates.values(u)
        return torch.cat([value.reshape(*u.shape[:2], -1).double().cpu() for value in values], -1)


_Particles.__name__ = NAME  # the name that an objective's errors use
