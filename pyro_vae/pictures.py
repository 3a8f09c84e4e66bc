"""The pictures of a run: what `pyro_vae.plots` draws, of a trained VAE and its test data."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae import plots
from pyro_vae.config import Config
from pyro_vae.evaluation import kl_parts
from pyro_vae.training import History
from pyro_vae.vae import VAE

EVALUATE = ("mean", "sample")
MAP_NAMES = {"first": "first dimensions", "pca": "principal components", "tsne": "t-SNE"}
Moments = tuple[Tensor, Tensor]


def draw(
    vae: VAE, config: Config, history: History, snapshots: dict[str, Moments], x: Tensor, labels: Tensor | None
) -> dict[str, Figure]:
    """Draw every picture that a VAE's parts allow.

    Arguments:
        vae: the trained VAE.
        config: the config of its run.
        history: what `fit` measured.
        snapshots: the posteriors' moments of x by title, from `posterior_moments`; empty where there are none.
        x: test data, shape (N, \\*shape).
        labels: labels of the test data, or None.

    Returns:
        Figures by name, in the order of the report.
    """
    figures = {"curves": plots.curves(history, f"{config.data}: training")}
    figures["samples"] = plots.samples(vae.sample(64), "Samples from the prior, decoded")
    if not snapshots:  # an encoder without a mean has no map, and nothing to interpolate between
        return {**figures, "reconstructions": reconstruction_figure(vae, x[:10], "sample")}
    figures["reconstructions"] = reconstruction_figure(vae, x[:10], config.evaluate)
    if len(x) > 1:
        figures["interpolation"] = interpolation_figure(vae, *x[_two(labels)])
    method = "first" if config.latent_dim <= 2 else config.latent_map if len(x) >= 4 else "pca"  # t-SNE needs 4
    panels = {name: plots.project(*moments, method, config.seed) for name, moments in snapshots.items()}
    shown_labels = None if labels is None else labels[: len(x)]
    title = f"Posteriors of test data, {MAP_NAMES[method]}"
    shared = method != "tsne"  # a t-SNE map has no unit, so that two of them have no common scale
    figures["latent_map"] = plots.latent_map(panels, shown_labels, title=title, shared=shared)
    figures["posterior_cloud"] = cloud_figure(vae, x, config.seed)
    with torch.no_grad():
        parts = kl_parts(vae.encoder(x), vae.prior())
    if parts:
        figures["kl_per_dimension"] = plots.kl_per_dimension(*parts, "KL per latent dimension, test data")
    if config.latent_dim == 2:
        figures["decoded_grid"] = grid_figure(vae)
    return figures


def _two(labels: Tensor | None) -> list[int]:
    """Return the indices of two data to interpolate between, of different labels where there are such."""
    if labels is None or (labels == labels[0]).all():
        return [0, 1]
    return [0, int((labels != labels[0]).nonzero()[0, 0])]


def snapshot_epochs(epochs: int) -> set[int]:
    """Return the epochs at which the latent map is drawn: the start, half time and the end.

    Example:
        >>> sorted(snapshot_epochs(10))
        [0, 5, 10]
    """
    return {0, epochs // 2, epochs}


@torch.no_grad()
def posterior_moments(vae: VAE, x: Tensor) -> Moments | None:
    """Return the posteriors' means and standard deviations, each (n, D), or None where they have none."""
    posterior = vae.encoder(x)
    try:
        return posterior.mean.cpu(), posterior.stddev.cpu()
    except NotImplementedError:
        return None


def reconstruction_figure(vae: VAE, x: Tensor, evaluate: str) -> Figure:
    """Draw data above their reconstructions, at the posterior's mean or a sample of it."""
    reconstructed = vae.reconstruct(x, mean=evaluate == "mean")
    return plots.reconstructions(x, reconstructed, f"Test data and reconstructions, z at the posterior {evaluate}")


def interpolation_figure(vae: VAE, a: Tensor, b: Tensor, steps: int = 10) -> Figure:
    """Draw the way from one datum to another, in latent space and in the space of the data."""
    weight = torch.linspace(0, 1, steps, device=a.device).reshape(-1, *[1] * a.dim())
    path = vae.interpolate(a[None], b[None], steps)[:, 0]
    return plots.interpolation(path, torch.lerp(a, b, weight), "From one datum to another")


@torch.no_grad()
def cloud_figure(vae: VAE, x: Tensor, seed: int) -> Figure:
    """Draw 100 posterior samples of the first datum in the map of the others, and what some of them decode to."""
    codes = vae.encoder(x).mean
    draws = vae.encoder(x[:1]).sample((100,))[:, 0]
    both = torch.cat([codes, draws])
    centres, _ = plots.project(both, torch.zeros_like(both), "pca" if draws.shape[-1] > 2 else "first", seed)
    title = "100 posterior samples of one datum"
    return plots.posterior_cloud(x[0], centres[len(x) :], vae.decoder(draws[:25]).mean, centres[: len(x)], title)


@torch.no_grad()
def grid_figure(vae: VAE, side: int = 20, extent: float = 3.0) -> Figure:
    """Decode an even grid over a 2-dimensional latent space."""
    line = torch.linspace(-extent, extent, side, device=next(vae.parameters()).device)
    z = torch.stack([line.expand(side, side), line[:, None].expand(side, side)], -1)
    title = "Decoded grid over the latent space"
    return plots.decoded_grid(vae.decoder(z).mean, (-extent, extent, -extent, extent), title)
