"""Distributions that wrap another one: with missing entries, or without a pathwise sampler; and ways to unwrap them."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints, kl_divergence, register_kl

AnyDistribution = TypeVar("AnyDistribution", bound=Distribution)


def layers(distribution: Any) -> Iterator[Any]:
    """Yield a distribution, then its base distribution, and so on."""
    yield distribution
    if hasattr(distribution, "base_dist"):
        yield from layers(distribution.base_dist)


def family(distribution: Any) -> str:
    """Return the name of a distribution's class, without wrappers that only change its shape."""
    shapes = Independent | ExpandedDistribution
    return next(type(layer).__name__ for layer in layers(distribution) if not isinstance(layer, shapes))


def is_masked(distribution: Any) -> bool:
    """Whether a distribution, or one that it is made of, has a mask."""
    return any(isinstance(layer, MaskedDistribution) for layer in layers(distribution))


def is_transformed(distribution: Any) -> bool:
    """Whether a distribution, or one that it is made of, has transforms."""
    return any(hasattr(layer, "transforms") for layer in layers(distribution))


def unmasked(distribution: Any) -> Any:
    """Return a distribution without the masks of the distributions that it is made of.

    Example:
        >>> masked = dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])).to_event(1)
        >>> masked.log_prob(torch.zeros(2)), unmasked(masked).log_prob(torch.zeros(2))
        (tensor(-0.9189), tensor(-1.8379))
    """
    if isinstance(distribution, MaskedDistribution):
        return unmasked(distribution.base_dist)
    if not is_masked(distribution):
        return distribution
    new = copy.copy(distribution)
    new.base_dist = unmasked(distribution.base_dist)
    return new


@contextmanager
def with_density(place: str, distribution: Any) -> Iterator[None]:
    """Refuse a density that is known only at its own draws, because one of its transforms has no inverse."""
    try:
        yield
    except (KeyError, NotImplementedError) as error:  # raised by Pyro's and by torch's transforms
        transforms = [t for layer in layers(distribution) for t in getattr(layer, "transforms", ())]
        if not transforms:
            raise
        kinds = ", ".join(type(transform).__name__ for transform in transforms)
        raise ValueError(
            f"the density {place} is known at its own draws alone, as the transform ({kinds}) has no inverse: take one"
            " that has (priors.Flow, encoders.Flow, an affine_coupling) or, for a guide with pathwise draws, IWAE or"
            " Trace_ELBO"
        ) from error


def expanded(distribution: AnyDistribution, batch_shape: Sequence[int], **changed: Any) -> AnyDistribution:
    """Return a copy with a larger batch shape and the changed attributes; parameters are not validated again."""
    own, shape = tuple(distribution.batch_shape), torch.Size(batch_shape)
    if len(own) > len(shape) or any(a not in (1, b) for a, b in zip(own[::-1], shape[::-1], strict=False)):
        raise ValueError(
            f"a {type(distribution).__name__} of batch shape {own} cannot be expanded to {tuple(shape)}: a size can be"
            " changed only if it is 1"
        )
    new = copy.copy(distribution)
    vars(new).update(changed, _batch_shape=shape)
    return new


class _Wrapper(dist.TorchDistribution):
    """A distribution whose draws and moments are those of another one."""

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, base_dist: dist.TorchDistribution, validate_args: bool | None = None) -> None:
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "_Wrapper":
        return type(self)(self.base_dist.expand(torch.Size(batch_shape)), validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (as torch has it)
        return self.base_dist.sample(sample_shape)


class _OrMissing(constraints.Constraint):
    """A constraint that also accepts NaN."""

    def __init__(self, base_constraint: constraints.Constraint) -> None:
        self.base_constraint = base_constraint
        self.is_discrete, self.event_dim = base_constraint.is_discrete, base_constraint.event_dim

    def check(self, value: Tensor) -> Tensor:
        return value.isnan() | self.base_constraint.check(value)


class MissingEntries(_Wrapper):
    r"""Distribution of single numbers that treats NaN as not observed: its log-probability is 0.

    .. math:: \log p(x) = 0 \text{ where x is NaN, and that of the base distribution elsewhere.}

    Draws and moments are those of the base distribution, without missing entries.

    Arguments:
        base_dist: a distribution of event shape ().

    Raises:
        ValueError: if the entries of an event are not independent, so that a single one cannot be left out.

    Example:
        >>> normal = MissingEntries(dist.Normal(torch.zeros(3), 1.0)).to_event(1)
        >>> normal.log_prob(torch.tensor([0.0, float("nan"), 0.0]))  # two observed: -log(2 pi)
        tensor(-1.8379)

    Reference:
        Nazabal, Olmos, Ghahramani and Valera, 2020, Handling Incomplete Heterogeneous Data using VAEs, equation 2.
    """

    def __init__(self, base_dist: dist.TorchDistribution, validate_args: bool | None = None) -> None:
        if base_dist.event_shape:
            raise ValueError(
                f"entries can be missing only from a distribution of independent ones, not from one of event shape"
                f" {tuple(base_dist.event_shape)}: {base_dist}"
            )
        super().__init__(copy.copy(base_dist), validate_args)
        self.base_dist._validate_args = False  # values are checked here, against a support that includes NaN

    @property
    def has_rsample(self) -> bool:
        return self.base_dist.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return _OrMissing(self.base_dist.support)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (as torch has it)
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # The base scores 1/2 instead, which is within the range of every distribution here, so that no gradient is NaN.
        missing = value.isnan()
        return self.base_dist.log_prob(value.masked_fill(missing, 0.5)).masked_fill(missing, 0.0)


class ScoreFunction(_Wrapper):
    """Another distribution without the gradient of its draws, so that Pyro uses the score function.

    Pyro's ``has_rsample_(False)`` fails on ``Independent``, and is lost when a plate expands the distribution. This
    class works in both cases.

    Arguments:
        base_dist: the distribution to wrap.

    Raises:
        ValueError: for a point, which has no density and so no score.

    Example:
        >>> q = ScoreFunction(dist.Normal(torch.zeros(3, requires_grad=True), 1.0).to_event(1))
        >>> q.has_rsample, q.expand((4,)).has_rsample, q().requires_grad
        (False, False, False)

    Reference:
        Williams, 1992, Simple Statistical Gradient-Following Algorithms; Ranganath, Gerrish and Blei, 2014,
        Black Box Variational Inference, equations 2 and 3.
    """

    has_rsample = False

    def __init__(self, base_dist: dist.TorchDistribution, validate_args: bool | None = None) -> None:
        if any(isinstance(layer, dist.Delta) for layer in layers(base_dist)):
            raise ValueError("a Delta has no density, by which a score function could train it: take it as it is")
        super().__init__(base_dist, validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self.base_dist.support

    @property
    def has_enumerate_support(self) -> bool:
        return self.base_dist.has_enumerate_support

    def log_prob(self, value: Tensor) -> Tensor:
        return self._score_of(self.base_dist, value)

    def score_parts(self, value: Tensor) -> ScoreParts:
        # The score is that of all draws: other sites may depend on those that a mask hides.
        return ScoreParts(self.log_prob(value), self._score_of(unmasked(self.base_dist), value), 0)

    def _score_of(self, distribution: dist.TorchDistribution, value: Tensor) -> Tensor:
        # A transform may remember the input of this draw, which is a constant, although the inverse has a gradient by
        # the transform's parameters. It does not know a copy.
        with with_density("of score-function draws", distribution):
            log_prob: Tensor = distribution.log_prob(value.clone() if torch.is_grad_enabled() else value)
        return log_prob

    def entropy(self) -> Tensor:
        return self.base_dist.entropy()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self.base_dist.enumerate_support(expand=expand)


@register_kl(ScoreFunction, Distribution)
def _kl(p: ScoreFunction, q: Distribution) -> Tensor:
    return kl_divergence(p.base_dist, q)
