"""Mixture priors."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.arguments import as_flag, as_size
from pyro_vae.networks._part import Part


class MixtureOfNormals(Part):
    r"""Mixture of normal distributions with diagonal covariances and learned weights, locations and scales.

    .. math:: p(z) = \sum_k \pi_k \prod_d \mathcal{N}(z_d; \mu_{kd}, \sigma_{kd}^2)

    The weights start equal, the locations at standard normal draws and the scales at 1.

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        components: number of components K, at least 1.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: if ``latent_dim`` or ``components`` is not an integer.
        ValueError: if one of them is below 1.

    Example:
        >>> MixtureOfNormals(20, components=10)().event_shape
        torch.Size([20])

    Reference:
        Dilokthanakul et al., 2016, Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders.
        Tomczak and Welling, 2018, VAE with a VampPrior, section 5 (where it is called MoG).
    """

    def __init__(self, latent_dim: int, components: int = 10) -> None:
        super().__init__()
        self.components, self.latent_dim = as_size(components, "components"), as_size(latent_dim, "latent_dim")
        shape = components, latent_dim
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(shape))
        self.log_scale = nn.Parameter(torch.zeros(shape))

    def forward(self) -> dist.TorchDistribution:
        return distributions.MixtureOfNormals(self.logits, self.loc, self.log_scale.exp())


class VampPrior(Part):
    r"""Mixture of the encoder's posteriors at learned pseudo-inputs.

    .. math:: p(z) = \frac{1}{K} \sum_k q(z|u_k)

    The encoder is that of the VAE itself, and is trained through both uses. It is held without being registered, so
    that its parameters are counted and saved once, as the encoder's; only the pseudo-inputs are the prior's. Whatever
    is done to the VAE as a whole (moving it, casting it, loading a state, a deep copy) affects it here too.

    Pseudo-inputs in [0, 1] are logistic functions of unconstrained numbers. The paper clamps them instead; but a clamp
    has no gradient outside the interval, so that an entry which leaves it once never comes back.

    Arguments:
        encoder: a module whose call on u, of shape (K, \*shape), returns q(z|u), of batch shape (K,), with a
            log-probability in closed form; its attribute ``shape`` is the shape of one datum.
        components: number of pseudo-inputs K, at least 1.
        data: data of shape (N, \*shape), at least K of them; the pseudo-inputs start at the first K. Without data, they
            start at uniform draws in [0, 1], of the encoder's ``shape``.
        unit_interval: keep the pseudo-inputs in [0, 1]; they then start within [0.01, 0.99], where they have a
            gradient.

    Returns:
        ``forward()`` returns a distribution of batch shape () and the event shape of the encoder. It has a pathwise
        sampler only if the encoder is a normal one.

    Raises:
        TypeError: if the encoder is not a module with a shape, or ``components`` is not an integer.
        ValueError: if ``components`` is below 1, or the data are too few, of another shape, not finite or outside
            [0, 1].

    Example:
        >>> from pyro_vae import encoders
        >>> encoder = encoders.Normal(64, 20)
        >>> VampPrior(encoder, components=50)().event_shape
        torch.Size([20])

    Reference:
        Tomczak and Welling, 2018, VAE with a VampPrior, equation 9.
    """

    def __init__(
        self, encoder: Any, components: int = 500, data: Tensor | None = None, unit_interval: bool = True
    ) -> None:
        super().__init__()
        shape = getattr(encoder, "shape", None)
        if not isinstance(encoder, nn.Module) or shape is None:
            raise TypeError(f"the encoder of priors.VampPrior must be a module that has a shape, not {encoder!r}")
        # A tuple hides a module from torch, so that it is in neither parameters() nor state_dict().
        self._encoder, self.unit_interval = (encoder,), as_flag(unit_interval, "unit_interval")
        self.components = as_size(components, "components")
        shape = (components, *shape)
        start = torch.rand(shape) if data is None else first_rows(data, shape, unit_interval)
        self.free = nn.Parameter(start.clamp(0.01, 0.99).logit() if unit_interval else start)

    def pseudo_inputs(self) -> Tensor:
        """Return the pseudo-inputs, shape (K, \\*shape)."""
        return self.free.sigmoid() if self.unit_interval else self.free

    def forward(self) -> dist.TorchDistribution:
        posteriors = self._encoder[0](self.pseudo_inputs())
        if isinstance(posteriors, dist.Delta):
            raise ValueError("priors.VampPrior mixes densities, and encoders.Delta gives points: take encoders.Normal")
        logits = self.free.new_zeros(len(self.free))
        normals: Any = getattr(posteriors, "base_dist", None)
        if isinstance(posteriors, dist.Independent) and type(normals) is dist.Normal and normals.loc.dim() == 2:
            return distributions.MixtureOfNormals(logits, normals.loc, normals.scale)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), posteriors)


def first_rows(data: Tensor, shape: tuple[int, ...], unit_interval: bool) -> Tensor:
    """Return a copy of the first data, as many as the shape says, or refuse data that cannot be used."""
    if not isinstance(data, Tensor):
        raise TypeError(f"the data of priors.VampPrior must be a tensor, not {data!r}")
    if data.shape[1:] != shape[1:] or len(data) < shape[0]:
        wanted = ", ".join(map(str, shape[1:]))
        raise ValueError(
            f"priors.VampPrior needs data of shape (N, {wanted}), N >= {shape[0]}, not {tuple(data.shape)}"
        )
    rows = data[: shape[0]].detach().to(torch.get_default_dtype(), copy=True)
    if not rows.isfinite().all():
        raise ValueError(
            f"priors.VampPrior needs data that are finite, not {rows[~rows.isfinite()][0].item()}: fill what is missing"
        )
    if unit_interval and not ((rows >= 0) & (rows <= 1)).all():
        low, high = rows.min().item(), rows.max().item()
        raise ValueError(f"the data lie in [{low:g}, {high:g}], outside [0, 1]: set unit_interval=False")
    return rows
