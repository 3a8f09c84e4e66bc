"""Classifiers that learn: to tell two samples apart, or to tell the classes of data."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.diagnostics.vectors import deviations


def learned(ones: Tensor, others: Tensor) -> Callable[[Tensor], np.ndarray]:
    """Return a function to the probability that a value is of the first sample rather than the second, once learned.

    Arguments:
        ones: a sample, shape (N, D).
        others: another one.

    Returns:
        A function of values of shape (M, D) to M probabilities.

    Example:
        >>> probability = learned(torch.ones(500, 1), -torch.ones(500, 1))
        >>> bool(probability(torch.ones(1, 1))[0] > 0.9)
        True
    """
    labels = np.array([1] * len(ones) + [0] * len(others))
    network = _fitted(32, torch.cat([ones, others]), labels, 100)  # the test is valid however well it has learned
    return lambda values: network.predict_proba(values.numpy())[:, 1]


class Features:
    """Features of data that tell their classes: the hidden units of a small network, once learned.

    Arguments:
        values: data, shape (N, D).
        classes: the class of each, N integers or texts.

    Example:
        >>> values = torch.arange(100.0, dtype=torch.float64)[:, None]
        >>> features = Features(values, np.arange(100) // 50)
        >>> features(values).shape, features.accuracy(values, np.arange(100) // 50) > 0.9
        (torch.Size([100, 64]), True)
    """

    def __init__(self, values: Tensor, classes: np.ndarray) -> None:
        self.center = values.mean(0)
        self.scale = deviations((values - self.center).reshape(-1, 1))
        self.network = _fitted(64, self._scaled(values), classes, 50)

    def __call__(self, values: Tensor) -> Tensor:
        """Return the features, shape (N, 64)."""
        weight, bias = (torch.as_tensor(each[0]) for each in (self.network.coefs_, self.network.intercepts_))
        return (self._scaled(values) @ weight + bias).relu()

    def accuracy(self, values: Tensor, classes: np.ndarray) -> float:
        """Return the share of data whose class is told right."""
        return float(self.network.score(self._scaled(values).numpy(), classes))

    def _scaled(self, values: Tensor) -> Tensor:
        return (values - self.center) / self.scale


def _fitted(units: int, values: Tensor, labels: np.ndarray, epochs: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier((units,), alpha=0.01, max_iter=epochs, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return network.fit(values.numpy(), labels)
