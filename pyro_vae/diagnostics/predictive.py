"""Whether data that a model draws look like the observed ones, by a statistic that the user names."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae.arguments import as_function, as_size
from pyro_vae.data import count_in, pieces
from pyro_vae.data.batch import Batch, Count, arguments, cut, map_tensors
from pyro_vae.diagnostics.particles import Particles
from pyro_vae.diagnostics.vectors import joined
from pyro_vae.objectives.particles import on_particles
from pyro_vae.programs import Program, as_input, check_programs, mode, seeded
from pyro_vae.programs.handlers import LocalModules
from pyro_vae.programs.seeds import noise_seed
from pyro_vae.runtime.progress import bar

NAME = "predictive_check"
CODES = ("posterior", "prior")
TOGETHER = 1000  # data that are simulated together


class PredictiveCheck(NamedTuple):
    """A statistic of the data beside those of simulated data sets.

    ``observed`` is that of the data, of the shape that the statistic returns; ``simulated``, of shape (M, ...), those
    of M simulated data sets; ``p`` is the share of these above the observed one, where equal ones count one half. If it
    is near 0 or 1, the model does not draw such data.
    """

    observed: Tensor
    simulated: Tensor
    p: Tensor


@torch.no_grad()
def predictive_check(
    model: Program,
    guide: Program,
    data: Any,
    statistic: Callable[..., Tensor],
    *,
    codes: str = "posterior",
    draws: int = 100,
    seed: int = 0,
    count: Count | None = None,
    progress: bool = False,
) -> PredictiveCheck:
    r"""Compare a statistic of the data with those of data sets that the model draws.

    .. math:: T(x) \quad\text{beside}\quad T(x'_1), \dots, T(x'_M), \qquad x'_m \sim \int p(x'|z) \, q(z|x) \, dz

    Arguments:
        model: the Pyro program of p(x, z), which observes the data as they are.
        guide: the Pyro program of q(z|x), called with a batch.
        data: tensors, alone or in a tuple or a dict, or a data set that fits into memory.
        statistic: takes what a program takes, but all data at once, and returns a number or a tensor, such as
            ``lambda x: (x == 0).float().mean()``.
        codes: "posterior" draws new data from the codes of the given ones, as if each were measured again; "prior"
            draws data of new codes, as `VAE.sample` does.
        draws: number of simulated data sets M, at least 1.
        seed: random seed of the noise; torch's own random state does not change.
        count: returns the number of data of a batch.
        progress: show a progress bar.

    Returns:
        The statistic of the data, those of the simulated data sets, and the share of these above it.

    Raises:
        TypeError, ValueError: as for `log_likelihood`; for a statistic that returns no tensor, nan, or another number
            of values for simulated data; for an unknown kind of codes, and a model that observes something that the
            data do not hold as it is.

    Example:
        >>> from pyro_vae.diagnostics.estimators import linear_gaussian
        >>> vae, x = linear_gaussian(offset=0.0, factor=1.0)
        >>> found = predictive_check(vae.model, vae.guide, x, lambda x: x.std())
        >>> 0.01 < found.p < 0.99
        tensor(True)

    Reference:
        Gelman, Meng and Stern, 1996, Posterior Predictive Assessment of Model Fitness via Realized Discrepancies.
    """
    as_function(statistic, "statistic"), as_size(draws, "draws")
    if codes not in CODES:
        raise ValueError(f"codes are from the {' or the '.join(CODES)}, not from {codes!r}")
    x = as_input(data, model, guide, count=count)
    count_rows, local, simulated = count_in(x), LocalModules(), []
    with seeded(noise_seed(seed), x.device), mode(False, model, guide), bar(draws, "draw", shown=progress) as shown:
        check_programs(model, guide, x)
        batches = [rows for whole in x.split(TOGETHER) for rows in pieces(whole, TOGETHER, count_rows)]
        observed = _of(statistic, batches, count_rows)
        with pyro.validation_enabled(False), on_particles(NAME):
            particles = _Particles(local(model), local(guide), count_rows)
            particles.meet(cut(batches[0], 2, count_rows))
            for _ in range(draws):
                drawn = [particles.simulated(rows, given=codes == "posterior")[0] for rows in batches]
                simulated.append(_of(statistic, drawn, count_rows, observed.shape))
                shown.update(1)
    all_draws = torch.stack(simulated)
    above = (all_draws > observed).double() + (all_draws == observed).double() / 2
    return PredictiveCheck(observed, all_draws, above.mean(0))


def _of(
    statistic: Callable[..., Tensor], batches: list[Batch], count: Count, shape: torch.Size | None = None
) -> Tensor:
    whole = joined(batches, count, "the statistic is that of all data")
    args, kwargs = arguments(map_tensors(torch.clone, whole))  # which the statistic may change in place
    found, of = statistic(*args, **kwargs), "the data" if shape is None else "simulated data"
    if not isinstance(found, Tensor) or found.is_complex():
        raise TypeError(f"statistic must return a tensor, such as x.mean(), not {type(found).__name__}")
    if found.isnan().any():
        fix = "let it leave out what is missing (x.nanmean()), and what it is not defined for"
        raise ValueError(f"the statistic of {of} is nan, which is neither above nor below another: {fix}")
    if shape not in (None, found.shape):
        reason = f"shape {tuple(found.shape)}, and that of the data {tuple(shape or ())}"
        raise ValueError(f"the statistic of {of} has {reason}: let it return as many numbers for any data")
    return found.cpu()


class _Particles(Particles):
    pass


_Particles.__name__ = NAME  # the name that an objective's errors use
