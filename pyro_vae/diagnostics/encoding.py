"""Codes of data: the means of their posteriors."""

from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.arguments import as_size
from pyro_vae.data import count_in, pieces
from pyro_vae.data.batch import Count, arguments, cut
from pyro_vae.diagnostics.particles import NOT_FINITE, Particles
from pyro_vae.diagnostics.vectors import check_in_order
from pyro_vae.objectives.particles import on_particles
from pyro_vae.programs import Program, as_input, check_programs, mode, seeded
from pyro_vae.programs.handlers import LocalModules
from pyro_vae.programs.seeds import noise_seed

NAME = "code_means"
TOGETHER = 500  # data that are encoded together


@torch.no_grad()
def code_means(
    model: Program,
    guide: Program,
    data: Any,
    *,
    draws: int = 50,
    seed: int = 0,
    count: Count | None = None,
) -> Tensor:
    r"""Return the mean of each datum's posterior, estimated by draws, for any guide.

    .. math:: \hat\mu(x) = \frac1L \sum_{l=1}^L z_l, \qquad z_l \sim q(z|x),

    whose variance around the mean is that of the posterior divided by L. A dimension that has collapsed to the prior
    is then noise, not a faint copy of the data.

    Arguments:
        model: the Pyro program of p(x, z), called with a batch.
        guide: the Pyro program of q(z|x), called with a batch.
        data: what `fit` takes: tensors, alone or in a tuple or a dict, a data set, or ready batches.
        draws: L, at least 1.
        seed: random seed of the noise; torch's own random state does not change.
        count: returns the number of data of a ready batch.

    Returns:
        The means, shape (N, D), of all latent sites one after the other, in double precision on the CPU.

    Raises:
        TypeError, ValueError: as for `log_likelihood`, but points are taken; for programs that draw no codes, or a
            guide that draws other sites than the model; for a loader that shuffles.

    Example:
        >>> from pyro_vae.diagnostics.estimators import linear_gaussian
        >>> vae, x = linear_gaussian(offset=0.0, factor=1.0, count=7)
        >>> code_means(vae.model, vae.guide, x).shape
        torch.Size([7, 2])
    """
    as_size(draws, "draws")
    check_in_order(data, "the codes")
    x = as_input(data, model, guide, count=count)
    found, count_rows, local = [], count_in(x), LocalModules()
    with seeded(noise_seed(seed), x.device), mode(False, model, guide):
        check_programs(model, guide, x)
        with pyro.validation_enabled(False), on_particles(NAME):
            particles = _Particles(local(model), local(guide), count_rows)
            for whole in x.split(TOGETHER):
                particles.meet(cut(whole, 2, count_rows))
                args, kwargs = arguments(whole)
                particles.values_in(poutine.trace(particles.model).get_trace(*args, **kwargs))  # refuses other sites
                for rows in pieces(whole, TOGETHER, count_rows):
                    drawn = [value.double().mean(0) for value in particles.draw(rows, draws)[1:]]
                    found.append(torch.cat([value.reshape(len(value), -1) for value in drawn], -1).cpu())
                    particles.check_finite(~found[-1].isfinite().all(-1), rows, "the code", NOT_FINITE)
    if len(sizes := {each.shape[1] for each in found}) > 1:
        few, many = min(sizes), max(sizes)
        raise ValueError(f"some data have {few} numbers as their code, others {many}: give those of one size at a time")
    return torch.cat(found)


class _Particles(Particles):
    weighs = False


_Particles.__name__ = NAME  # the name that an objective's errors use
