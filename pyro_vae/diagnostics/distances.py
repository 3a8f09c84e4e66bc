"""Distances between two samples of vectors: discrepancy, precision and recall, and the Frechet distance."""

from collections.abc import Callable

import torch
from torch import Tensor

FREQUENCIES = 256  # random ones, each a cosine and a sine
PAIRS = 1000  # data whose distances give the kernel its width
PERMUTATIONS = 500
TOGETHER = 50  # permutations
NEIGHBOURS = 3
ROUNDING = 1e-14  # of squares, relative to the largest terms of their sum
AT_A_TIME = 1000  # data that are compared with all others


def discrepancy(ones: Tensor, others: Tensor, generator: torch.Generator) -> tuple[float, float]:
    r"""Return the squared maximum mean discrepancy of two samples, without bias, and its p-value.

    .. math:: \mathrm{MMD}^2 = \mathbb{E}\, k(x, x') + \mathbb{E}\, k(y, y') - 2\, \mathbb{E}\, k(x, y), \qquad
              k(x, y) = e^{-|x - y|^2 / 2 s^2} \approx \frac1M \sum_m \cos \omega_m^\top (x - y), \quad
              \omega_m \sim N(0, s^{-2} I)

    Each mean is over pairs of different data, so that the estimate is 0 in the mean if the distributions are the same,
    and may be below 0. The width s is the median distance of pairs of both samples; with 256 frequencies, time and
    memory grow with the number of data, not with its square.

    Arguments:
        ones: a sample, shape (N, D).
        others: another one, shape (M, D).
        generator: of the frequencies and permutations.

    Returns:
        The squared discrepancy, and the share of 500 permutations of both samples, and of the samples themselves, with
        one at least as large: at least 1/501.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(2, 500, 1, generator=generator, dtype=torch.float64)
        >>> discrepancy(x[0], x[1] + 1, generator)[1] < 0.01
        True

    Reference:
        Gretton et al., 2012, A Kernel Two-Sample Test, equation 3. Of the frequencies: Rahimi and Recht, 2007, Random
        Features for Large-Scale Kernel Machines, algorithm 1; Zhao and Meng, 2015, FastMMD, equation 9.
    """
    together, n, m = torch.cat([ones, others]), len(ones), len(others)
    waves = random_features(together, _width(together, generator), generator)
    total = waves.sum(0)

    def estimate(first: Tensor) -> Tensor:
        """Of the sums of features over the first sample: each feature vector has the length 1."""
        second = total - first
        within = [(sums.square().sum(-1) - k) / (k * (k - 1)) for sums, k in ((first, n), (second, m))]
        return within[0] + within[1] - 2 * (first * second).sum(-1) / (n * m)

    def permuted() -> Tensor:
        orders = torch.stack([torch.randperm(n + m, generator=generator) for _ in range(TOGETHER)])
        return estimate((orders < n).to(waves.dtype) @ waves)

    found = estimate(waves[:n].sum(0)).item()
    others_as_large = sum(int((permuted() >= found).sum()) for _ in range(PERMUTATIONS // TOGETHER))
    return found, (1 + others_as_large) / (1 + PERMUTATIONS)


def random_features(values: Tensor, width: float, generator: torch.Generator) -> Tensor:
    """Return features of length 1 whose products are, in the mean, the normal kernel of a width, shape (N, 512)."""
    frequencies = torch.randn(values.shape[1], FREQUENCIES, generator=generator, dtype=values.dtype) / width
    phases = values @ frequencies
    return torch.cat([phases.cos(), phases.sin()], -1) / FREQUENCIES**0.5


def _width(values: Tensor, generator: torch.Generator) -> float:
    """Return the median distance of different values, 1 if there are none."""
    some = values[torch.randperm(len(values), generator=generator)[:PAIRS]]
    distances = torch.pdist(some)
    return distances[distances > 0].median().item() if (distances > 0).any() else 1.0


def precision_and_recall(real: Tensor, drawn: Tensor, neighbours: int = NEIGHBOURS) -> tuple[float, float]:
    r"""Return the share of draws that look real, and the share of real data that look drawn.

    .. math:: \mathrm{precision} = \frac1M \sum_m
              1\Big[y_m \in \bigcup_n \mathrm{ball}\big(x_n, |x_n - \mathrm{NN}_k(x_n)|\big)\Big]

    where :math:`\mathrm{NN}_k` is the k-th nearest among the real data. For the recall, both change places.

    Arguments:
        real: vectors of real data, shape (N, D).
        drawn: vectors of draws, shape (M, D).
        neighbours: k, below N and M.

    Returns:
        Precision and recall. For samples of one distribution they are below 1, the lower the more dimensions there are.

    Example:
        >>> line = torch.arange(10.0)[:, None]
        >>> precision_and_recall(line, line[:5] + 0.5, neighbours=1)
        (1.0, 0.6)

    Reference:
        Kynkäänniemi, Karras, Laine, Lehtinen and Aila, 2019, Improved Precision and Recall Metric for Assessing
        Generative Models, equations 1 and 2.
    """
    return _covered(drawn, real, neighbours), _covered(real, drawn, neighbours)


def _covered(values: Tensor, centers: Tensor, neighbours: int) -> float:
    """Return the share of values that are in the ball of a center, up to its k-th nearest other center."""
    origin = centers.median(0).values  # which a center that is far from all others does not move
    values, centers = values - origin, centers - origin
    squares_of = _squares
    edges = _edges(squares_of, centers, neighbours)
    if ROUNDING * torch.cat([values, centers]).square().sum(1).max() > 1e-6 * edges.median():  # as of far clusters
        squares_of = _squares_by_differences
        edges = _edges(squares_of, centers, neighbours)
    pairs = (squares_of(part, centers) for part in values.split(AT_A_TIME))
    inside = [(squares - rounding <= edges).any(1) for squares, rounding in pairs]
    return torch.cat(inside).double().mean().item()


def _edges(squares_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], centers: Tensor, neighbours: int) -> Tensor:
    """Return the squared distance of each center to its k-th nearest other center; the first one is itself."""
    parts = (squares_of(part, centers)[0] for part in centers.split(AT_A_TIME))
    return torch.cat([squares.topk(neighbours + 1, largest=False).values[:, -1] for squares in parts])


def _squares(ones: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return squared distances by products, which are faster than differences, and how far they may be rounded."""
    total = ones.square().sum(1, keepdim=True) + others.square().sum(1)
    return total - 2 * ones @ others.T, ROUNDING * total


def _squares_by_differences(ones: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same by differences, which a large distance from the origin does not round."""
    squares = torch.cdist(ones, others, compute_mode="donot_use_mm_for_euclid_dist").square()
    return squares, ROUNDING * squares


def frechet(ones: Tensor, others: Tensor) -> float:
    r"""Return the squared Frechet distance of the normal distributions with the moments of two samples.

    .. math:: d^2 = |m_1 - m_2|^2 + \mathrm{tr}\big(C_1 + C_2 - 2 (C_1 C_2)^{1/2}\big)

    It is too large for few data: for n and m draws of one normal distribution in D dimensions with covariance I, it is
    about :math:`(\tfrac1n + \tfrac1m) \tfrac{D (D + 5)}{4}` in the mean, not 0.

    Arguments:
        ones: a sample, shape (N, D).
        others: another one, shape (M, D).

    Example:
        >>> ones, others = torch.tensor([[-1.0], [1.0]]), torch.tensor([[-2.0], [4.0]])
        >>> round(frechet(ones.double(), others.double()), 6)  # means 0 and 1, variances 2 and 18
        9.0

    Reference:
        Dowson and Landau, 1982, The Fréchet Distance between Multivariate Normal Distributions, equation 4; Heusel et
        al., 2017, GANs Trained by a Two Time-Scale Update Rule, equation 6.
    """
    first, second = (each.T.cov().reshape(each.shape[1], -1) for each in (ones, others))
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()  # the trace of (C_1 C_2)^(1/2)
    apart = (ones.mean(0) - others.mean(0)).square().sum()
    return (apart + first.trace() + second.trace() - 2 * cross).clamp(min=0).item()  # rounding may lead below 0
