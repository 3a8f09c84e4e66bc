"""The hand-coded VAE, which writes out what `pyro_vae.vae` leaves to Pyro. It uses torch and networks, but not Pyro.

Read it beside the two programs of `pyro_vae.VAE`: where those say ``pyro.sample("z", self.encoder(x))``, the
reparameterization trick is coded here by hand, with the noise as an argument.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_vae.networks import clip_log_variance

Error = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(x: Tensor, logits: Tensor) -> Tensor:
    r"""Return the cross-entropy between pixels and Bernoulli probabilities, summed over each datum.

    .. math:: -\sum_i x_i \log \pi_i + (1 - x_i) \log (1 - \pi_i), \quad \pi = \operatorname{sigmoid}(\text{logits})

    Arguments:
        x: data in [0, 1], shape (B, \*shape).
        logits: the decoder network's output, of the same shape.

    Returns:
        Shape (B,), in nats.

    Example:
        >>> cross_entropy(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
        tensor([1.3863])

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, equation 11.
    """
    return binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(-1)


def squared_error(scale: float) -> Error:
    r"""Return minus the log-density of a normal likelihood of a fixed scale, as a function of data and means.

    .. math:: \sum_i \frac{(x_i - \mu_i)^2}{2 \sigma^2} + \log \sigma + \tfrac{1}{2} \log 2 \pi

    Arguments:
        scale: the standard deviation, above 0.

    Returns:
        A function of x and the decoder network's output, both (B, \*shape), to shape (B,), in nats.

    Example:
        >>> squared_error(1.0)(torch.tensor([[1.0]]), torch.tensor([[1.0]]))
        tensor([0.9189])
    """

    def error(x: Tensor, mean: Tensor) -> Tensor:
        constant = math.log(scale) + math.log(2 * math.pi) / 2
        return ((x - mean) ** 2 / (2 * scale**2) + constant).flatten(1).sum(-1)

    return error


def kl_closed_form(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Return the KL from N(mean, exp(log_variance)) to N(0, I), in closed form.

    .. math:: \tfrac{1}{2} \sum_d \mu_d^2 + \sigma_d^2 - 1 - \log \sigma_d^2

    Arguments:
        mean: shape (B, D).
        log_variance: shape (B, D).

    Returns:
        Shape (B,), in nats.

    Example:
        >>> kl_closed_form(torch.tensor([[1.0]]), torch.tensor([[0.0]]))
        tensor([0.5000])

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, equation 10.
    """
    return (mean**2 + log_variance.exp() - 1 - log_variance).sum(-1) / 2


def kl_sampled(mean: Tensor, log_variance: Tensor, z: Tensor) -> Tensor:
    r"""Return the one-sample estimate of the same KL.

    .. math:: \log q(z|x) - \log p(z) = \tfrac{1}{2} \sum_d z_d^2 - \frac{(z_d - \mu_d)^2}{\sigma_d^2} - \log \sigma_d^2

    Arguments:
        mean: shape (B, D).
        log_variance: shape (B, D).
        z: a draw of N(mean, exp(log_variance)), shape (B, D).

    Returns:
        Shape (B,), in nats.

    Example:
        >>> kl_sampled(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]))
        tensor([0.5000])
    """
    return (z**2 - (z - mean) ** 2 / log_variance.exp() - log_variance).sum(-1) / 2


class VAE(nn.Module):
    r"""Variational autoencoder with a normal encoder and a standard normal prior, coded by hand.

    .. math:: -\mathcal{L}(x, \epsilon) = -\log p(x | z) + \mathrm{KL}(q(z|x) \,\|\, p(z)),
              \qquad z = \mu(x) + \sigma(x) \, \epsilon

    Arguments:
        encoder: network from (B, \*shape) to (B, 2, D): mean and log-variance.
        decoder: network from (B, D) to (B, \*shape).
        error: minus the log-likelihood of data given the decoder's output, such as `cross_entropy`.

    Example:
        >>> from pyro_vae.networks import MLP
        >>> vae = VAE(MLP(64, (2, 3)), MLP(3, 64))
        >>> vae.negative_elbo(torch.zeros(5, 64), torch.zeros(5, 3)).shape
        torch.Size([])

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, section 2.4 and appendix B.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, error: Error = cross_entropy) -> None:
        super().__init__()
        self.encoder, self.decoder, self.error = encoder, decoder, error

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the log-variance of q(z|x), each of shape (B, D)."""
        mean, log_variance = self.encoder(x).unbind(-2)
        return mean, clip_log_variance(log_variance)

    def reparameterize(self, mean: Tensor, log_variance: Tensor, eps: Tensor) -> Tensor:
        """Return z by the reparameterization trick: as ``eps`` is drawn outside, the gradient passes through z."""
        return mean + (log_variance / 2).exp() * eps

    def negative_elbo(self, x: Tensor, eps: Tensor, closed_form: bool = False, beta: float = 1.0) -> Tensor:
        """Return the negative bound for given noise.

        Arguments:
            x: a batch of data, shape (B, \\*shape).
            eps: standard normal noise, shape (B, D).
            closed_form: compute the KL in closed form; otherwise at the sampled z.
            beta: the KL weight, at least 0.

        Returns:
            A scalar: nats per datum.
        """
        mean, log_variance = self.encode(x)
        z = self.reparameterize(mean, log_variance, eps)
        kl = kl_closed_form(mean, log_variance) if closed_form else kl_sampled(mean, log_variance, z)
        return (self.error(x, self.decoder(z)) + beta * kl).mean()

    def step(self, optimizer: torch.optim.Optimizer, x: Tensor, eps: Tensor, closed_form: bool = False) -> Tensor:
        """Take one step of an optimizer over the parameters, and return the loss before it, detached."""
        loss = self.negative_elbo(x, eps, closed_form)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()
