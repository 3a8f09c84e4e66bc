"""Data, codes and factors as tables of numbers: one row for each datum."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from pyro_vae.data import as_tensor
from pyro_vae.data.batch import Batch, Count, are_rows, map_tensors, structure_of, tensors_of, with_tensors
from pyro_vae.programs.seeds import as_seed

LARGEST = 1e100  # number whose square, and sums of squares, are not infinite
SMALLEST = 1e-100  # difference whose square is not 0


def as_vectors(values: Any, name: str) -> Tensor:
    """Return one vector for each datum, in double precision on the CPU.

    Arguments:
        values: what `pyro_vae.data.as_tensor` takes, such as a tensor or an array, shape (N, ...); the dimensions after
            the first become one.
        name: what the values are called in an error.

    Returns:
        The vectors, shape (N, D).

    Raises:
        TypeError: if the values are not real numbers.
        ValueError: for no numbers, and for a value that is NaN or infinite.

    Example:
        >>> as_vectors([[1, 2], [3, 4]], "the codes")
        tensor([[1., 2.],
                [3., 4.]], dtype=torch.float64)
    """
    try:
        found = as_tensor(values).detach().cpu()
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error
    if found.is_complex():
        raise TypeError(f"{name} must be real numbers, not complex ones: give real and imaginary parts")
    vectors = found.double().reshape(len(found), -1)
    if wrong := (~(vectors.abs() < LARGEST)).any(1).nonzero().flatten().tolist():
        raise ValueError(f"{name} must be finite, and below 1e100, but those of datum {wrong[0]} are not: leave it out")
    return vectors


def as_classes(labels: Any, count: int) -> np.ndarray:
    """Return the number of each datum's class, from 0, or refuse what are no classes.

    Arguments:
        labels: integers or texts, one for each datum.
        count: the number of data.

    Raises:
        ValueError: for another number of labels, for measurements, and for data without a label.

    Example:
        >>> as_classes([0.5, 1.5], 2)
        Traceback (most recent call last):
        ...
        ValueError: labels must be classes, such as whole numbers or texts, not measurements: leave them out
    """
    if isinstance(labels, Tensor):
        labels = (labels.double() if labels.is_floating_point() else labels).detach().cpu()
    named = np.asarray(labels)
    if named.shape != (count,):
        raise ValueError(f"labels must be one number for each of {count} data, not of shape {named.shape}")
    each = named.tolist()
    if missing := [number for number, label in enumerate(each) if label is None or label != label]:
        raise ValueError(f"the label of datum {missing[0]} is {each[missing[0]]}: leave out such data, or the labels")
    kinds = {type(label) for label in each}
    alike = len(kinds) == 1 and not kinds & {float, complex}
    if not (alike or (kinds <= {int, bool, float} and all(float(label).is_integer() for label in each))):
        raise ValueError("labels must be classes, such as whole numbers or texts, not measurements: leave them out")
    return np.unique(named, return_inverse=True)[1]


def can_be_learned(classes: np.ndarray) -> bool:
    """Whether a classifier can learn these: there are several, and in the mean several data of each.

    Example:
        >>> can_be_learned(np.array([0, 1, 0, 1])), can_be_learned(np.arange(4))
        (True, False)
    """
    return 2 <= len(set(classes.tolist())) <= len(classes) // 2


def check_in_order(data: Any, what: str) -> None:
    """Refuse a loader that gives the data in another order than its data set, so that nothing can be matched with them.

    Arguments:
        data: what `fit` takes.
        what: what is matched with the data.

    Raises:
        ValueError: for a ``DataLoader`` that shuffles, or has a sampler of its own.

    Example:
        >>> check_in_order(DataLoader([1, 2, 3], shuffle=True), "the labels")
        Traceback (most recent call last):
        ...
        ValueError: the labels follow the order of the data, which this DataLoader changes: give its data set
    """
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return
    batches, own = data.batch_sampler, type(data.batch_sampler) not in (BatchSampler, type(None))
    if own or type(getattr(batches, "sampler", data.sampler)) is not SequentialSampler:
        raise ValueError(f"{what} follow the order of the data, which this DataLoader changes: give its data set")


def check_together(ones: Tensor, others: Tensor, names: tuple[str, str], fewest: int) -> None:
    """Refuse two tables that are not about the same data, or about too few.

    Example:
        >>> check_together(torch.zeros(3, 2), torch.zeros(4, 2), ("the codes", "the factors"), 2)
        Traceback (most recent call last):
        ...
        ValueError: the codes and the factors must be of the same data in the same order, not of 3 and 4 data
    """
    if len(ones) != len(others):
        raise ValueError(
            f"{names[0]} and {names[1]} must be of the same data in the same order, not of {len(ones)} and"
            f" {len(others)} data"
        )
    if len(ones) < fewest:
        raise ValueError(f"at least {fewest} data are needed, not {len(ones)}: give more")


def joined(parts: list[Batch], count: Count, why: str) -> Batch:
    """Return batches as one, or refuse batches that differ in structure; ``why`` says in the error what joins them.

    Example:
        >>> joined([torch.zeros(2, 1), torch.ones(1, 1)], len, "this joins batches").shape
        torch.Size([3, 1])
    """
    if len(parts) == 1:
        return parts[0]
    fits = all(are_rows(part, count) for part in parts)
    kinds = {structure_of(map_tensors(lambda each: each[:0].contiguous(), part)) for part in parts} if fits else {None}
    if len(kinds) > 1 or None in kinds:
        raise ValueError(f"{why}: give batches of one structure and shape, or one batch")
    return with_tensors(parts[0], [torch.cat(each) for each in zip(*map(tensors_of, parts), strict=True)])


def halves(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of two random halves: one to learn from, and one to measure on.

    Example:
        >>> [len(half) for half in halves(5, seed=0)]
        [2, 3]
    """
    order = torch.randperm(size, generator=torch.Generator().manual_seed(as_seed(seed)))
    return order[: size // 2], order[size // 2 :]


def varies(table: Tensor) -> Tensor:
    """Whether a column has different values, by more than 1e-100, shape (D,).

    Example:
        >>> varies(torch.tensor([[0.1, 0.1], [0.1, 0.2]]))
        tensor([False,  True])
    """
    return ((table - table[0]).abs() > SMALLEST).any(0)


def deviations(table: Tensor) -> Tensor:
    """Return the standard deviation of each column, to divide by it; 1 where all values are the same, shape (D,).

    Example:
        >>> deviations(torch.tensor([[0.1, 1e-20], [0.1, -1e-20]]))
        tensor([1.0000e+00, 1.4142e-20])
    """
    return torch.where(varies(table), table.std(0), 1.0)
