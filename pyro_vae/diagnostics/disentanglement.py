"""Whether each dimension of the codes holds one known factor of the data."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_vae.diagnostics.vectors import as_vectors, check_together, halves, varies
from pyro_vae.programs.seeds import as_seed

BINS = 20  # of equal width, by which the mutual information of a code is computed
FEWEST = 100  # data
VOTES = 400  # for each factor that the FactorVAE score learns from, and as many to measure it
TOGETHER = 64  # data of a vote
TREES = 50  # of the boosting that predicts a factor
MOST = 1000  # data that these learn from


class Disentanglement(NamedTuple):
    """Scores of D dimensions of codes and K factors, each at most 1, and better if larger.

    Attributes:
        mig: mutual information gap; 0 if no dimension knows more than another one.
        sap: separated attribute predictability; at best 1 - 1 / (number of values), in the mean over the factors.
        disentanglement: whether a dimension is important for one factor alone (DCI).
        completeness: whether a factor has one important dimension alone (DCI).
        informativeness: the mean accuracy of factors that are predicted from all dimensions (DCI).
        factor_vae: the FactorVAE score; about 1/K if the codes do not depend on the factors.
        information: the mutual information of each dimension and factor, in nats, shape (D, K).
        importance: that of each dimension for predicting each factor, shape (D, K).
    """

    mig: float
    sap: float
    disentanglement: float
    completeness: float
    informativeness: float
    factor_vae: float
    information: Tensor
    importance: Tensor


def disentanglement(codes: Any, factors: Any, *, seed: int = 0) -> Disentanglement:
    r"""Score codes by how well their dimensions match the factors that data were made from.

    .. math:: \mathrm{MIG} = \frac1K \sum_k \frac{I(z_{(1)}; v_k) - I(z_{(2)}; v_k)}{H(v_k)}

    where (1) and (2) are the dimensions that know most about factor k. SAP is the same gap between the accuracies of
    thresholds on a single dimension, with the same weight for each value of a factor. For DCI, gradient boosting
    predicts each factor from all dimensions. For FactorVAE, groups of 64 data have one factor in common, and the
    dimension that varies least, in units of its deviation, has to tell which factor it is.

    Arguments:
        codes: the codes of N data, such as `pyro_vae.diagnostics.encoding.code_means`, shape (N, D).
        factors: the number of each factor's value, whole numbers of shape (N, K), best in all combinations, such as
            those of `pyro_vae.data.sprites`.
        seed: random seed of the halves of the data that the boosting learns from and is measured on, and of the groups.

    Returns:
        The scores, and the tables of dimensions and factors that they are made from.

    Raises:
        TypeError, ValueError: for codes that are not finite numbers; for factors that are not whole numbers, or have a
            single value, or fewer than 4 data for each; for fewer than 100 data, 2 dimensions or 2 factors; for
            different numbers of codes and factors.

    Example:
        >>> from pyro_vae.data import sprites
        >>> _, factors, _ = sprites()
        >>> found = disentanglement(factors, factors)  # codes that are the factors themselves
        >>> round(found.mig, 6), round(found.disentanglement, 6), found.factor_vae
        (1.0, 1.0, 1.0)

    Reference:
        MIG: Chen, Li, Grosse and Duvenaud, 2018, Isolating Sources of Disentanglement in VAEs, section 4. SAP: Kumar,
        Sattigeri and Balakrishnan, 2018, Variational Inference of Disentangled Latent Concepts from Unlabeled
        Observations, section 3. DCI: Eastwood and Williams, 2018, A Framework for the Quantitative Evaluation of
        Disentangled Representations. FactorVAE: Kim and Mnih, 2018, Disentangling by Factorising, section 4. Bins and
        boosting: Locatello et al., 2019, Challenging Common Assumptions in the Unsupervised Learning of Disentangled
        Representations, appendix C.
    """
    z, v = _checked(codes, factors)
    information, importance, accuracy = mutual_information(z, v), *_importance(z, v, seed)
    return Disentanglement(
        mig=_gap(information / _entropies(v)),
        sap=_gap(_predicted_alone(z, v)),
        disentanglement=_concentration(importance),
        completeness=_concentration(importance.T),
        informativeness=accuracy,
        factor_vae=_factor_vae(z, v, seed),
        information=information,
        importance=importance,
    )


def mutual_information(codes: Tensor, factors: Tensor) -> Tensor:
    r"""Return the mutual information of each dimension, in 20 bins of equal width, and each factor.

    .. math:: I(z_d; v_k) = \sum_{b, v} p(b, v) \log \frac{p(b, v)}{p(b)\, p(v)}

    Arguments:
        codes: shape (N, D).
        factors: integers from 0, shape (N, K).

    Returns:
        The mutual information in nats, shape (D, K). That of independent numbers is not quite 0, but about
        (bins - 1)(values - 1) / 2N.

    Example:
        >>> levels = torch.arange(4)[:, None]
        >>> mutual_information(levels.double(), levels)  # log 4
        tensor([[1.3863]], dtype=torch.float64)
    """
    low, high = codes.min(0).values, codes.max(0).values
    width = (high - low).clamp(min=torch.finfo(codes.dtype).tiny)
    binned = ((codes - low) / width * BINS).long().clamp(max=BINS - 1)
    return torch.tensor([[_information(b, v) for v in factors.T] for b in binned.T], dtype=torch.float64)


def _information(ones: Tensor, others: Tensor) -> float:
    counts = torch.zeros(int(ones.max()) + 1, int(others.max()) + 1, dtype=torch.float64)
    counts.index_put_((ones, others), torch.ones(len(ones), dtype=torch.float64), accumulate=True)
    joint = counts / counts.sum()
    return (torch.xlogy(joint, joint) - torch.xlogy(joint, joint.sum(0) * joint.sum(1, keepdim=True))).sum().item()


def _entropies(factors: Tensor) -> Tensor:
    return torch.tensor([_information(v, v) for v in factors.T], dtype=torch.float64)


def _gap(scores: Tensor) -> float:
    """Return how far the best dimension of each factor is before the second best, in the mean over the factors."""
    best, second = scores.topk(2, 0).values
    return (best - second).mean().item()


def _predicted_alone(codes: Tensor, factors: Tensor) -> Tensor:
    """Return how well thresholds on each dimension tell each factor: the mean accuracy of its values, shape (D, K)."""
    from sklearn.metrics import recall_score
    from sklearn.tree import DecisionTreeClassifier

    def accuracy(z: np.ndarray, v: np.ndarray) -> float:
        thresholds = DecisionTreeClassifier(max_leaf_nodes=v.max() + 1, class_weight="balanced", random_state=0)
        found = thresholds.fit(z[:, None], v).predict(z[:, None])
        return float(recall_score(v, found, average="macro"))

    table = [[accuracy(z, v) for v in factors.T.numpy()] for z in codes.T.numpy()]
    return torch.tensor(table, dtype=torch.float64)


def _importance(codes: Tensor, factors: Tensor, seed: int) -> tuple[Tensor, float]:
    """Return each dimension's importance for each factor, shape (D, K), and the mean accuracy on the other half."""
    from sklearn.ensemble import GradientBoostingClassifier

    learn, measure = halves(len(codes), seed)
    importances, accuracies = [], []
    for number, v in enumerate(factors.T.numpy()):
        if len(set(v[learn[:MOST]])) < 2:
            raise ValueError(f"factor {number} has almost always the same value: leave it out, or give more data")
        trees = GradientBoostingClassifier(n_estimators=TREES, random_state=0)
        trees.fit(codes[learn[:MOST]].numpy(), v[learn[:MOST]])
        importances.append(torch.as_tensor(trees.feature_importances_).clamp(min=0))  # rounded sums may be below 0
        accuracies.append(trees.score(codes[measure].numpy(), v[measure]))
    return torch.stack(importances, 1), float(np.mean(accuracies))


def _concentration(importance: Tensor) -> float:
    r"""Return 1 minus the entropy of each row's shares, to the base of their number, in the mean by importance.

    .. math:: \sum_i \rho_i \Big(1 + \sum_j P_{ij} \log_K P_{ij}\Big), \quad
              P_{ij} = \frac{R_{ij}}{\sum_j R_{ij}}, \quad \rho_i = \frac{\sum_j R_{ij}}{\sum_{ij} R_{ij}}
    """
    total = importance.sum(1)
    shares = importance / total.clamp(min=1e-300)[:, None]
    each = 1 + torch.xlogy(shares, shares).sum(1) / math.log(importance.shape[1])
    return ((total * each).sum() / total.sum()).item()


def _factor_vae(codes: Tensor, factors: Tensor, seed: int) -> float:
    """Return how often the dimension that varies least, where one factor is fixed, tells which factor it is."""
    moving, generator = codes[:, varies(codes)], torch.Generator().manual_seed(as_seed(seed))
    learned, measured = (_votes(moving / moving.std(0), factors, generator) for _ in range(2))
    told = learned.argmax(1)  # for each dimension
    return (measured[torch.arange(len(told)), told].sum() / measured.sum()).item()


def _votes(codes: Tensor, factors: Tensor, generator: torch.Generator) -> Tensor:
    """Count how often each dimension varies least among data with one value of a factor in common, shape (D, K)."""
    counts = []
    for v in factors.T:
        order, sizes = v.argsort(), v.bincount()
        starts, several = sizes.cumsum(0) - sizes, (sizes > 1).nonzero().flatten()
        value = several[torch.randint(len(several), (VOTES, 1), generator=generator)]
        place = (torch.rand(VOTES, TOGETHER, generator=generator) * sizes[value]).long()
        least = codes[order[starts[value] + place]].var(1).argmin(1)
        counts.append(least.bincount(minlength=codes.shape[1]))
    return torch.stack(counts, 1)


def _checked(codes: Any, factors: Any) -> tuple[Tensor, Tensor]:
    """Return codes as numbers, and factors as integers from 0, or refuse what cannot be scored."""
    z, values = as_vectors(codes, "the codes"), as_vectors(factors, "the factors")
    check_together(z, values, ("the codes", "the factors"), FEWEST)
    for name, table in (("dimensions of the codes", z), ("factors", values)):
        if table.shape[1] < 2:
            raise ValueError(f"the scores compare {name}, at least 2 of them, not 1: give more")
    moving = varies(z)
    if not moving.any():
        raise ValueError("all data have the same code: train longer, or with a smaller KL weight")
    z = torch.where(moving, (z - z.mean(0)) / z.std(0), 0.0)  # trees compute in 32 bits
    if (values % 1 != 0).any():
        raise ValueError("the factors must be classes, as whole numbers, not measurements: sort them into intervals")
    found = [torch.unique(each, return_inverse=True) for each in values.T]
    for number, (kinds, _) in enumerate(found):
        if not 2 <= len(kinds) <= len(z) // 4:
            fix = "leave it out" if len(kinds) < 2 else "sort them into fewer classes"
            raise ValueError(f"factor {number} has {len(kinds)} values in {len(z)} data: {fix}")
    return z, torch.stack([each for _, each in found], 1)
