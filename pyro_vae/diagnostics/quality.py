"""How far the data that a model draws are from real ones."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.diagnostics.classifier import Features
from pyro_vae.diagnostics.distances import discrepancy, frechet, precision_and_recall
from pyro_vae.diagnostics.vectors import as_classes, as_vectors, can_be_learned, halves, varies
from pyro_vae.programs.seeds import as_seed

FEWEST = 20  # data
LEARNED = 10_000  # data that the classifier learns from, at most
SPLITS = 10  # of real data, whose distances show what is due to their number


class Quality(NamedTuple):
    """How far draws are from real data.

    Attributes:
        mmd: the squared maximum mean discrepancy, near 0 if they are alike, and maybe below.
        mmd_p: its p-value: the probability of one as large if they were alike.
        precision: the share of draws that look real.
        recall: the share of real data that look drawn.
        frechet: the squared Frechet distance of the features; NaN without labels.
        frechet_of_real: what it would be between real data, for the same numbers of them; NaN without labels.
        accuracy: that of the classifier whose features these are, on data that are new to it; NaN without labels.
    """

    mmd: float
    mmd_p: float
    precision: float
    recall: float
    frechet: float
    frechet_of_real: float
    accuracy: float


def sample_quality(real: Any, drawn: Any, *, labels: Any = None, seed: int = 0) -> Quality:
    r"""Compare draws from a model with real data, without features from elsewhere.

    The discrepancy compares the data as they are. If real data have labels, a small classifier learns them on half of
    these, at most 10,000; its 64 hidden units are the features for precision, recall and Frechet distance, which
    compare the draws with the other half. Without labels, precision and recall compare the data as they are, and there
    is no Frechet distance.

    The Frechet distance of a few data is too large, by about :math:`(\tfrac1n + \tfrac1m) \tfrac{D (D + 5)}{4}` for D
    independent normal features of variance 1. So ``frechet_of_real`` is what halves of the real data give, multiplied
    for the numbers n and m: a model cannot do much better.

    Arguments:
        real: data that the model has not been trained on, shape (N, \*shape), at least 20, or 40 with labels.
        drawn: draws from the model, shape (M, \*shape), at least 20. Draw x as well as z,
            ``vae.decoder(vae.prior().sample((n,))).sample()``, unless the real data are means, too, such as grey pixels
            of a Bernoulli decoder: then ``vae.sample(n)``.
        labels: a class for each real datum, as integers or texts, or None.
        seed: random seed of the halves, frequencies and permutations.

    Returns:
        The distances, with what is needed to judge them.

    Raises:
        TypeError, ValueError: for values that are not finite numbers, data of different shapes, fewer data, and labels
            of another number, or of one class, or of a class for each datum, or of data that are all the same.

    Example:
        >>> from pyro_vae import data
        >>> digits = data.load("digits")
        >>> found = sample_quality(digits.train, digits.test, labels=digits.train_labels)
        >>> found.mmd_p > 0.01, found.frechet < 2 * found.frechet_of_real, found.accuracy > 0.9
        (True, True, True)

    Reference:
        Gretton et al., 2012, A Kernel Two-Sample Test, equation 3; Kynkäänniemi et al., 2019, Improved Precision and
        Recall Metric for Assessing Generative Models, equations 1 and 2; Heusel et al., 2017, GANs Trained by a Two
        Time-Scale Update Rule, equation 6; of its bias: Chong and Forsyth, 2020, Effectively Unbiased FID and Inception
        Score, section 3.
    """
    x, y = _checked(real, drawn)
    generator = torch.Generator().manual_seed(as_seed(seed))
    compared = discrepancy(x, y, generator)
    if labels is None:
        return Quality(*compared, *precision_and_recall(x, y), *[math.nan] * 3)
    classes, (learn, measure) = as_classes(labels, len(x)), halves(len(x), seed)
    learn = learn[:LEARNED]
    if len(x) < 2 * FEWEST or not can_be_learned(classes[learn]) or not varies(x[learn]).any():
        raise ValueError(
            f"a classifier needs at least {2 * FEWEST} real data that differ, and several data of each of several"
            " classes: leave out the labels"
        )
    features = Features(x[learn], classes[learn])
    of_real, of_drawn = features(x[measure]), features(y)
    distances = frechet(of_real, of_drawn), _of_real(of_real, len(of_drawn), generator)
    accuracy = features.accuracy(x[measure], classes[measure])
    return Quality(*compared, *precision_and_recall(of_real, of_drawn), *distances, accuracy)


def _of_real(features: Tensor, count: int, generator: torch.Generator) -> float:
    """Return the mean distance of halves, multiplied as if one had all the data and the other one the given count."""
    size = len(features)
    orders = [torch.randperm(size, generator=generator) for _ in range(SPLITS)]
    found = [frechet(features[order[: size // 2]], features[order[size // 2 :]]) for order in orders]
    return float(np.mean(found)) * (1 / size + 1 / count) / (1 / (size // 2) + 1 / (size - size // 2))


def _checked(real: Any, drawn: Any) -> tuple[Tensor, Tensor]:
    x, y = as_vectors(real, "the real data"), as_vectors(drawn, "the draws")
    shapes = [tuple(getattr(each, "shape", table.shape))[1:] for each, table in ((real, x), (drawn, y))]
    if shapes[0] != shapes[1]:
        raise ValueError(f"real data and draws must have one shape, not {shapes[0]} and {shapes[1]}")
    if min(len(x), len(y)) < FEWEST:
        raise ValueError(f"at least {FEWEST} real data and draws are needed, not {len(x)} and {len(y)}: give more")
    return x, y
