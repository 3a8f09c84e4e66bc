"""Supports of distributions, and checks of values against them."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.distributions.relaxed import KeptLogarithms
from pyro_vae.distributions.wrappers import layers


def support_of(distribution: Any) -> Any:
    """Return a distribution's support, or None if it does not name one, like ``pyro.contrib.zuko.ZukoToPyro``."""
    try:
        return distribution.support
    except NotImplementedError:
        return None


def accepts_nan(site: dict[str, Any]) -> bool:
    """Whether the support of an observed site contains NaN, for missing entries."""
    support, value = support_of(site["fn"]), site["value"]
    return isinstance(value, Tensor) and support is not None and takes_nan(support, value)


def takes_nan(support: Any, value: Tensor) -> bool:
    """Whether a support allows all entries of a value to be missing."""
    return value.is_floating_point() and bool(support.check(torch.full_like(value, torch.nan)).all())


def check_same_support(
    prior_name: str, prior: TorchDistributionMixin, posterior_name: str, posterior: TorchDistributionMixin
) -> None:
    """Refuse a prior and a posterior whose draws lie outside each other's support."""
    of_prior, of_posterior = support_of(prior), support_of(posterior)
    if of_prior is None or of_posterior is None:
        return
    each = max(1, 100 // max(1, posterior.batch_shape.numel()))  # 100 draws or more, also of large batches
    draws = posterior.sample((each,)), prior.expand(posterior.batch_shape).sample((each,))
    missed = (-1e4, -1.5, 0.5, 1.5, 1e4, *([0.0] if of_posterior.is_discrete else []))  # elsewhere 0 is a null set
    probes = [torch.full_like(draws[0][0], value) for value in missed]  # what draws may miss
    beyond = any((of_posterior.check(probe) & ~of_prior.check(probe)).any() for probe in probes)
    apart = len({isinstance(without_events(support), KeptLogarithms) for support in (of_prior, of_posterior)}) == 2
    wider = apart or beyond or not of_prior.check(draws[0]).all()
    if wider or not of_posterior.check(draws[1]).all():
        if not draws[0].isfinite().all():
            bad = draws[0][~draws[0].isfinite()][0].item()
            raise ValueError(f"{prior_name} gets a draw of {bad} ({posterior_name}): start at a smaller scale")
        fix = (
            "take a guide for it (above 0 Gamma or LogNormal, on [0, 1] Beta or Kumaraswamy, on the real line Normal)"
            if wider
            else "draws from a part of the prior's support say nothing of the rest: let the guide reach all of it, as a"
            " normal does by SigmoidTransform and AffineTransform, or narrow the prior"
        )
        supports = f"{_support(of_prior)}, {posterior_name} {_support(of_posterior)}"
        raise ValueError(f"{prior_name} has support {supports}; they must match: {fix}")


def check_values(name: str, prior: TorchDistributionMixin, value: Tensor) -> None:
    """Refuse values of a guide's site outside the support of the model's."""
    support = support_of(prior)
    if support is not None and not support.check(value).all():
        bad = value[~without_events(support).check(value)] if support.event_dim == 0 else value
        raise ValueError(
            f"site {name!r} of the guide takes the value {bad.flatten()[0].item():.6g}, outside the support"
            f" {_support(support)} of the model's: give its parameter that constraint"
        )


def without_events(constraint: Any) -> Any:
    """Return a constraint without the event dimensions that ``independent`` adds to it."""
    return without_events(constraint.base_constraint) if hasattr(constraint, "base_constraint") else constraint


def bounds_of(distribution: Any) -> list[Any]:
    """Return the ends of a distribution's support, numbers or tensors, if it has any.

    Example:
        >>> bounds_of(dist.Beta(1.0, 1.0)), bounds_of(dist.Uniform(0.0, 2.0))
        ([0.0, 1.0], [0.0, 2.0])
    """
    inner = without_events(support_of(distribution))
    return [getattr(inner, name) for name in ("lower_bound", "upper_bound") if hasattr(inner, name)]


def _support(constraint: Any) -> str:
    name = str(without_events(constraint)).removesuffix("()")
    name = type(without_events(constraint)).__name__ if "tensor(" in name else name  # which would list all its numbers
    return {"Boolean": "{0, 1}", "Interval(lower_bound=0.0, upper_bound=1.0)": "[0, 1]"}.get(name, name)


def check_support(site: dict[str, Any], value: Tensor) -> None:
    """Refuse data outside the support of the site that observes them."""
    support = support_of(site["fn"])
    if support is None or _unchecked(site["fn"]) or support.check(value).all():
        return
    inner = without_events(support)
    allowed = inner.check(value) | (value.isnan() if takes_nan(support, value) else False)
    bad = value[~allowed].flatten()
    kind = _support(support)
    if hasattr(inner, "hint"):
        fix = inner.hint
    elif kind == "{0, 1}" and bad.min() >= 0 and bad.max() <= 1:
        fix = "binarize the data (threshold or dynamic), or accept grey values (decoders.Bernoulli(grey=True))"
    elif inner.is_discrete and kind != "{0, 1}":
        fix = "give whole numbers in the support, such as raw counts or token numbers, or choose another decoder"
    elif bad.min() >= 0 and bad.max() > 1:
        fix = "scale the data to [0, 1] (8-bit pixels: x / 255, or --scale 255), or choose another decoder"
    else:
        fix = "scale the data, or choose another decoder"
    raise ValueError(
        f"the data hold {bad[0].item():.6g}, outside the support {kind} of the decoder (site {site['name']!r}): {fix}"
    )


def _unchecked(distribution: Any) -> bool:
    """Whether a distribution was made with ``validate_args=False``."""
    shapes = dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution
    scores = next(layer for layer in layers(distribution) if not isinstance(layer, shapes))
    return vars(scores).get("_validate_args") is False
