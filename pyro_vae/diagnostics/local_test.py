"""Whether an encoder's posteriors of single data are right, by a classifier."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.arguments import as_size
from pyro_vae.data import count_in
from pyro_vae.data.batch import Count
from pyro_vae.diagnostics.calibration import FEWEST, Features, Simulated, in_units
from pyro_vae.diagnostics.classifier import learned
from pyro_vae.diagnostics.vectors import check_in_order
from pyro_vae.programs import Program, as_input, check_programs, mode, seeded
from pyro_vae.programs.seeds import noise_seed
from pyro_vae.runtime.memory import as_bytes
from pyro_vae.runtime.progress import bar


class LocalTest(NamedTuple):
    """How far the posterior of each of M data is from the exact one, as far as a classifier can tell.

    ``statistic`` is the mean squared distance of the classifier's probability from 1/2, over draws given the datum; and
    ``p`` the probability of one as large if the posteriors were exact, at least 1 / (permutations + 1).
    """

    statistic: Tensor
    p: Tensor


@torch.no_grad()
def local_test(
    model: Program,
    guide: Program,
    data: Any,
    at: Any,
    *,
    draws: int = 200,
    permutations: int = 50,
    memory: int | str = "2GB",
    seed: int = 0,
    count: Count | None = None,
    progress: bool = False,
) -> LocalTest:
    r"""Test an encoder's posteriors at given data, by a classifier that learns on data simulated from the model.

    .. math:: t(x) = \frac1L \sum_l \bigl(d(z_l, x) - \tfrac12\bigr)^2, \qquad z_l \sim q(z|x)

    The classifier d learns to tell pairs (z, x) of the model from pairs whose z is drawn from q(z|x). If it can, for
    codes given the datum, the posterior of this datum is wrong. What chance gives is found by classifiers that learn
    after the two codes of each simulated datum have been exchanged at random. `calibration` tests all data together; an
    encoder may be right on average, and wrong for the data that you have.

    Arguments:
        model: the Pyro program of p(x, z), which observes the data as they are.
        guide: the Pyro program of q(z|x), called with a batch.
        data: as many data are simulated as these, best 500 or more.
        at: the data whose posteriors are tested, of the same structure.
        draws: L, at least 2.
        permutations: number of classifiers that show what chance gives, at least 1; each takes a second or so.
        memory: limit for the tensors of the data that are simulated together, such as "512MB". It changes the noise, as
            fewer data are then simulated together.
        seed: random seed of the noise; torch's own random state does not change.
        count: returns the number of data of a ready batch.
        progress: show a progress bar.

    Returns:
        The statistic and the p-value of each datum in ``at``. Of many data some have small p-values by chance.

    Raises:
        TypeError, ValueError: as for `calibration`; for numbers out of range.

    Example:
        >>> from pyro_vae.diagnostics.estimators import linear_gaussian
        >>> narrow, x = linear_gaussian(offset=0.0, factor=0.5, count=300)
        >>> local_test(narrow.model, narrow.guide, x, x[:1], permutations=19).p
        tensor([0.0500], dtype=torch.float64)

    Reference:
        Linhart, Gramfort and Rodrigues, 2023, L-C2ST: Local Diagnostics for Posterior Approximations in
        Simulation-Based Inference, algorithms 1 and 2.
    """
    as_size(draws, "draws", 2), as_size(permutations, "permutations")
    budget = as_bytes(memory)
    check_in_order(at, "the tests of data")
    x, tested = (as_input(each, model, guide, count=count) for each in (data, at))
    if len(x) < FEWEST:
        raise ValueError(f"a local test needs at least {FEWEST} data to simulate as many, not {len(x)}: give more")
    with seeded(noise_seed(seed), x.device), mode(False, model, guide):
        for each in (x, tested):
            check_programs(model, guide, each)
        with bar(1 + permutations, "classifier", shown=progress) as shown:
            particles = Simulated(model, guide, count_in(x), 2 * draws, budget)
            true, both, seen = particles.of(x, lambda _: None)
            features = Features(seen, true.shape[1])
            true, drawn = in_units(true, both)
            ones, others = (features.of(codes, seen) for codes in (true, drawn[0]))
            given, of_given = particles.given(tested)
            rows = torch.cat([features.of(codes, of_given) for codes in in_units(given[0], given)[1]])

            def statistic(first: Tensor, second: Tensor) -> np.ndarray:
                probability = learned(first, second)(rows).reshape(draws, -1)
                shown.update(1)
                found: np.ndarray = ((probability - 0.5) ** 2).mean(0)
                return found

            observed, chance = statistic(ones, others), []
            for _ in range(permutations):
                exchanged = torch.rand(len(ones), 1, dtype=torch.float64) < 0.5
                chance.append(statistic(others.where(exchanged, ones), ones.where(exchanged, others)))
    p = (1 + (np.stack(chance) >= observed).sum(0)) / (1 + permutations)
    return LocalTest(torch.as_tensor(observed), torch.as_tensor(p))
