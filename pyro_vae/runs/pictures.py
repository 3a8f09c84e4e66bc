"""The pictures of a run, drawn by `pyro_vae.plots` from a trained VAE and its test data."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal

from pyro_vae import plots
from pyro_vae.diagnostics.evaluation import kl_parts
from pyro_vae.distributions import on_sphere, shown_of
from pyro_vae.distributions.moments import NoMeanError
from pyro_vae.plots import Figure
from pyro_vae.runs.config import Config
from pyro_vae.training import History
from pyro_vae.vae import VAE

EVALUATE = ("mean", "sample")
NUMBERS = 2**24  # in the largest picture, at most
MAP_NAMES = {"first": "first dimensions", "pca": "principal components", "tsne": "t-SNE"}
Moments = tuple[Tensor, Tensor]


def draw(
    vae: VAE,
    config: Config,
    history: History,
    snapshots: dict[str, Moments],
    x: Tensor,
    labels: Tensor | None,
    names: Sequence[str] | None = None,
) -> tuple[dict[str, Figure], dict[str, str]]:
    """Draw every picture that a VAE's parts allow.

    Arguments:
        vae: the trained VAE.
        config: the config of its run.
        history: what `fit` measured.
        snapshots: the posteriors' moments of x by title, from `posterior_moments`.
        x: test data, shape (N, \\*shape).
        labels: labels of the test data, in the order of x, or None.
        names: the texts of labels 0, 1, ..., or None if the labels are numbers.

    Returns:
        Figures by name, in the order of the report, and the reasons why other pictures are left out, by name.
    """
    labels = None if labels is None else labels[: len(x)]

    def most(count: int) -> int:  # so that data of a million numbers are drawn in seconds
        return max(4, min(count, NUMBERS // x[0].numel()))

    pictures: dict[str, Callable[[], Figure | str]] = {
        "curves": lambda: plots.curves(history, f"{Path(config.data).name}: training"),
        "samples": lambda: plots.samples(vae.sample(most(64)), "Samples from the prior, decoded"),
        "reconstructions": lambda: reconstruction_figure(vae, x[:10], config.evaluate),
        "interpolation": lambda: (
            interpolation_figure(vae, *x[_two(labels)]) if len(x) > 1 else "there is a single test datum"
        ),
        "latent_map": lambda: map_figure(config, snapshots, labels, names),
        "posterior_cloud": lambda: cloud_figure(vae, x, config.seed),
        "kl_per_dimension": lambda: kl_figure(vae, x) or "prior and posteriors are not both diagonal normals",
    }
    if config.latent_dim == 2:
        pictures["decoded_grid"] = lambda: grid_figure(vae, isqrt(most(400))) or "the codes do not fill a rectangle"
    figures, left_out = {}, {}
    for name, picture in pictures.items():
        try:
            found = picture()
        except (
            NoMeanError,
            ValueError,
        ) as error:  # such as for data that are not pictures, or codes that are not finite
            found = " ".join(str(error).split())
        if isinstance(found, str):
            left_out[name] = found
        else:
            figures[name] = found
    return figures, left_out


def _two(labels: Tensor | None) -> list[int]:
    """Return the indices of two data to interpolate between, with different labels if there are any."""
    others = [] if labels is None else (labels[1:] != labels[0]).nonzero().flatten().tolist()
    return [0, 1 + others[0] if others else 1]


def snapshot_epochs(epochs: int) -> set[int]:
    """Return the epochs at which the latent map is drawn: the start, half time and the end.

    Example:
        >>> sorted(snapshot_epochs(10))
        [0, 5, 10]
    """
    return {0, epochs // 2, epochs}


@torch.no_grad()
def posterior_moments(vae: VAE, x: Tensor) -> Moments:
    """Return the posteriors' means, (n, D), and scales, as `plots.project` takes them.

    If they have no closed form, they are estimated from draws. Codes of several dimensions, such as (variables,
    categories), are flattened.
    """
    posterior = vae.encoder(x)
    codes = posterior.sample((100,))
    mean, scale = codes.mean(0), codes.std(0)
    with suppress(NotImplementedError):
        if posterior.mean.isfinite().all() and posterior.stddev.isfinite().all():  # not of heavy tails
            mean, scale = posterior.mean, posterior.stddev
    scale = scale.flatten(1) if _is_independent(posterior) else _factor_of(posterior, codes)
    return mean.flatten(1).cpu(), scale.cpu()


def _is_independent(posterior: Distribution) -> bool:
    """Say whether the dimensions of a posterior are independent."""
    while isinstance(posterior, Independent):
        posterior = posterior.base_dist
    return not posterior.event_shape


def _factor_of(posterior: Distribution, draws: Tensor) -> Tensor:
    """Return a factor of each posterior's covariance, (n, D, K): by Cholesky where it is known, else of draws."""
    if isinstance(posterior, MultivariateNormal | LowRankMultivariateNormal) and posterior.event_shape[0] <= len(draws):
        return posterior.scale_tril
    deviations = (draws - draws.mean(0)).flatten(2).permute(1, 0, 2)
    return torch.linalg.qr(deviations).R.mT / (len(draws) - 1) ** 0.5


def map_figure(
    config: Config, snapshots: dict[str, Moments], labels: Tensor | None, names: Sequence[str] | None = None
) -> Figure:
    """Draw the posteriors of test data at each snapshot, with colours by their labels."""
    shape = next(iter(snapshots.values()))[0].shape
    method = "first" if shape[1] <= 2 else config.latent_map if shape[0] >= 4 else "pca"  # t-SNE needs 4
    seed = config.seed % 2**32  # scikit-learn takes no larger seed
    panels = {name: plots.project(*moments, method, seed) for name, moments in snapshots.items()}
    title = f"Posteriors of test data, {MAP_NAMES[method]}"
    shared = method != "tsne"  # t-SNE maps have no unit, so two of them have no common scale
    shown = labels if names is None or labels is None else [names[label] for label in labels.tolist()]
    return plots.latent_map(panels, shown, title=title, shared=shared)


def reconstruction_figure(vae: VAE, x: Tensor, evaluate: str) -> Figure:
    """Draw data above their reconstructions, from the posterior's mean or from a sample of it."""
    reconstructed = vae.reconstruct(x, mean=evaluate == "mean")
    return plots.reconstructions(x, reconstructed, f"Test data and reconstructions, z at the posterior {evaluate}")


def interpolation_figure(vae: VAE, a: Tensor, b: Tensor) -> Figure:
    """Draw the way from one datum to another, in latent space and in the space of the data."""
    path = vae.interpolate(a[None], b[None])[:, 0]
    weight = torch.linspace(0, 1, len(path), device=a.device).reshape(-1, *[1] * a.dim())
    return plots.interpolation(path, torch.lerp(a, b, weight), "From one datum to another")


@torch.no_grad()
def kl_figure(vae: VAE, x: Tensor) -> Figure | None:
    """Draw the KL of each latent dimension, or return None if the KL is not a sum over dimensions."""
    parts = kl_parts(vae.encoder(x), vae.prior())
    return plots.kl_per_dimension(*parts, "KL per latent dimension, test data") if parts else None


@torch.no_grad()
def cloud_figure(vae: VAE, x: Tensor, seed: int) -> Figure:
    """Draw 100 posterior samples of the first datum in the map of the other data, and some of them decoded."""
    codes = on_sphere(vae.encoder(x), posterior_moments(vae, x)[0])
    draws = vae.encoder(x[:1]).sample((100,))[:, 0]
    both = torch.cat([codes, draws.flatten(1).cpu()])
    centres, _ = plots.project(both, torch.zeros_like(both), "pca" if both.shape[-1] > 2 else "first", seed)
    title = "100 posterior samples of one datum"
    decoded = shown_of(vae.decoder(draws[:25]))
    return plots.posterior_cloud(x[0], centres[len(x) :], decoded, centres[: len(x)], title)


@torch.no_grad()
def grid_figure(vae: VAE, side: int = 20) -> Figure | None:
    """Decode an even grid over a 2-dimensional latent space, which covers the prior except for 1 draw in 370.

    Return None if not all points of the grid are codes, as on a circle or for discrete variables.
    """
    prior = vae.prior()
    if prior.event_shape != (2,):
        return None
    reach = torch.tensor([0.00135, 0.99865], device=prior.sample().device)  # 3 standard deviations of a normal
    ends = prior.sample((100_000,)).float().quantile(reach, 0)
    unit = 10 ** (ends.diff(dim=0).log10().floor() - 1)  # two digits of the width, so that the ticks are short
    low, high = (ends / unit).round() * unit
    columns, rows = (torch.linspace(*ends, side, device=low.device) for ends in zip(low, high, strict=True))
    z = torch.stack([columns.expand(side, side), rows[:, None].expand(side, side)], -1)
    if not prior.support.check(z).all():
        return None
    extent = (*columns[[0, -1]].tolist(), *rows[[0, -1]].tolist())
    return plots.decoded_grid(shown_of(vae.decoder(z)), extent, "Decoded grid over the latent space")
