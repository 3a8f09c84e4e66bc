"""The variational autoencoder as two Pyro programs."""

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.arguments import as_size
from pyro_vae.distributions import centre_of, on_sphere, shown_of
from pyro_vae.networks._part import in_mode


class VAE(nn.Module):
    r"""Variational autoencoder: a prior p(z), an encoder q(z|x) and a decoder p(x|z).

    .. math:: \log p(x) \ge \mathbb{E}_{q(z|x)} [\log p(x|z)] - \mathrm{KL}(q(z|x) \,\|\, p(z))

    ``vae.model`` and ``vae.guide`` are the Pyro programs; hand them to `pyro_vae.fit` or to ``pyro.infer.SVI``.
    ``vae.prior()``, ``vae.encoder(x)`` and ``vae.decoder(z)`` return distributions. Any modules that do so can be used.
    ``sample``, ``reconstruct`` and ``interpolate`` run them in evaluation mode, as `pyro_vae.evaluate` does.

    Arguments:
        prior: module whose call returns p(z), of batch shape () and event shape (D,).
        encoder: module whose call on x, of shape (B, \*shape), returns q(z|x), of event shape (D,).
        decoder: module whose call on z, of shape (\*batch, D), returns p(x|z), of event shape ``shape``.

    Raises:
        TypeError: if a part is not a module.

    Example:
        >>> from pyro_vae import decoders, encoders, priors
        >>> vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8)))
        >>> vae.sample(3).shape
        torch.Size([3, 1, 8, 8])

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, equation 3.
    """

    # Any, for mypy: these modules return distributions, and have attributes of their own.
    prior: Any
    encoder: Any
    decoder: Any

    def __init__(self, prior: nn.Module, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        for name, part in (("prior", prior), ("encoder", encoder), ("decoder", decoder)):
            if not isinstance(part, nn.Module):
                hint = f"; make one: {part.__name__}(...)" if isinstance(part, type) else ""
                raise TypeError(f"the {name} must be a torch.nn.Module, not {part!r}{hint}")
        self.prior, self.encoder, self.decoder = prior, encoder, decoder

    def model(self, x: Tensor) -> Tensor:
        """Draw z from the prior and observe x from the decoder: the program p(x, z).

        Arguments:
            x: a batch of data, shape (B, \\*shape).

        Returns:
            x.
        """
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """Draw z from the encoder: the program q(z|x).

        Arguments:
            x: a batch of data, shape (B, \\*shape).

        Returns:
            z, shape (B, D).
        """
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encoder(x))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Draw n codes from the prior and return the mean of p(x|z) for each; for categories, the most probable one.

        Arguments:
            n: number of codes, at least 1.

        Returns:
            The means, shape (n, \\*shape). For draws of x itself, call ``vae.decoder(z).sample()``.

        Raises:
            TypeError, ValueError: if n is not an integer, or is below 1; if p(x|z) has no finite mean; in a subclass
                with its own ``model``.
        """
        as_size(n, "the number of samples")
        self._check_inherits("sample", "model")
        with in_mode(False, self.modules()):
            return shown_of(self.decoder(self.prior().sample((n,))))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, mean: bool = True) -> Tensor:
        """Encode x and return the mean of p(x|z); for categories, the most probable one.

        Arguments:
            x: a batch of data, shape (B, \\*shape).
            mean: use the posterior's mean as z, or its mean direction on a sphere; otherwise one sample.

        Returns:
            The means of p(x|z), shape (B, \\*shape).

        Raises:
            TypeError: if a mean is not finite, such as that of a Cauchy distribution; in a subclass with its own
                ``model`` or ``guide``.
            ValueError: if x does not have the shape that the encoder was built for.
        """
        self._check_inherits("reconstruct", "model", "guide")
        with in_mode(False, self.modules()):
            posterior = self.encoder(x)
            return shown_of(self.decoder(centre_of(posterior) if mean else posterior.sample()))

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int = 10) -> Tensor:
        """Decode the straight line between the posterior means of two data; on a sphere, the arc above that line.

        Arguments:
            a: where the line starts: data of shape (B, \\*shape).
            b: where it ends: data of the same shape.
            steps: number of points, both ends included, at least 2.

        Returns:
            The means of p(x|z) along the line, shape (steps, B, \\*shape).

        Raises:
            TypeError: if a mean is not finite; in a subclass with its own ``model`` or ``guide``.
            ValueError: for fewer than 2 steps, or if a and b differ in shape.
        """
        as_size(steps, "the number of steps", least=2)
        self._check_inherits("interpolate", "model", "guide")
        with in_mode(False, self.modules()):
            origin, posterior = self.encoder(a), self.encoder(b)
            if a.shape != b.shape:
                raise ValueError(f"a and b must have one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
            start, end = centre_of(origin), centre_of(posterior)
            weight = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
            between = torch.lerp(start, end, weight.reshape(-1, *[1] * start.dim()))
            return shown_of(self.decoder(on_sphere(posterior, between)))

    def _check_inherits(self, method: str, *programs: str) -> None:
        """Refuse a method that computes from the parts in a subclass whose programs may use them in another way."""
        for name in programs:
            if getattr(type(self), name) is not getattr(VAE, name):
                kind, fix = type(self).__name__, f"write a {method} for it, too, or run its programs"
                raise TypeError(f"{kind} has its own {name}, but {method} takes the parts as VAE.{name} does: {fix}")
