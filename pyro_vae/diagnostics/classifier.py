"""A classifier that learns to tell two samples apart."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


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
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier((32,), alpha=0.01, max_iter=100, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the test is valid however well it has learned
        network.fit(torch.cat([ones, others]).numpy(), [1] * len(ones) + [0] * len(others))
    return lambda values: network.predict_proba(values.numpy())[:, 1]
