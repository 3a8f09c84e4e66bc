"""Encoders of codes on a simplex."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import as_flag, as_size
from pyro_vae.distributions.relaxed import as_temperature
from pyro_vae.encoders._concentration import FLOORS, concentration
from pyro_vae.encoders._encoder import _Encoder
from pyro_vae.networks import MLP, Network, soft_clip


class Dirichlet(_Encoder):
    r"""Dirichlet encoder: codes are proportions that add up to 1.

    .. math:: q(z|x) = \Gamma \left( \sum_d \alpha_d(x) \right) \prod_d
              \frac{z_d^{\alpha_d(x) - 1}}{\Gamma(\alpha_d(x))}

    The network gives the concentrations :math:`\alpha`, each between 0.15 and 1,000. Gradients are pathwise: torch
    differentiates the gamma variates that a draw is made of (implicit reparameterization).

    Arguments:
        shape: shape of one datum.
        latent_dim: number of proportions D, at least 1; with one, the code is always 1.
        network: builds the network from ``shape`` to (D,).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,), on the simplex.

    Raises:
        ValueError: if x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> z = Dirichlet(64, 3)(torch.zeros(5, 64)).sample()
        >>> torch.allclose(z.sum(-1), torch.ones(5))
        True

    Reference:
        Figurnov, Mohamed and Mnih, 2018, Implicit Reparameterization Gradients, section 3.
    """

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        return distributions.Dirichlet(concentration(output, FLOORS["Dirichlet"]))


class RelaxedOneHotCategorical(_Encoder):
    r"""Gumbel-softmax encoder: codes of independent relaxed one-hot vectors, with pathwise gradients.

    .. math:: z_{dk} = \frac{\exp((\log \pi_{dk}(x) + g_{dk}) / \tau)}
              {\sum_j \exp((\log \pi_{dj}(x) + g_{dj}) / \tau)}, \qquad g_{dk} \sim \mathrm{Gumbel}(0, 1)

    The network gives :math:`\log \pi` up to a constant, which passes through `pyro_vae.networks.soft_clip`. The
    temperature :math:`\tau` is fixed, or falls exponentially from ``temperature`` to ``final_temperature`` over the
    first ``anneal_steps`` calls in training mode. The buffer ``calls``, which is saved with the weights, counts these.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent variables D, at least 1.
        network: builds the network from ``shape`` to (D, K).
        categories: number of categories K of each variable, at least 1.
        temperature: the fixed or the first temperature, from 0.001 to 1,000.
        final_temperature: the last temperature, from 0.001 to 1,000; None for a fixed temperature.
        anneal_steps: number of calls in training mode from the first temperature to the last, at least 1 with a
            ``final_temperature``, else 0.
        straight_through: round draws to one-hot vectors, but use the gradients of the draws before rounding. Except for
            its gradients, the encoder is then equal to `OneHotCategorical`. Use it with
            `pyro_vae.priors.OneHotCategorical`; every bound is that of the discrete model. Without it the codes are
            continuous, and the model is another one, with `pyro_vae.priors.RelaxedOneHotCategorical`.

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D, K), each row of which lies on the simplex, or is one-hot.

    Raises:
        TypeError: if ``categories`` or ``anneal_steps`` is not an integer.
        ValueError: if a parameter is out of its range or x is not of the shape the encoder was built for.

    Example:
        >>> encoder = RelaxedOneHotCategorical(64, 2, temperature=1.0, final_temperature=0.5, anneal_steps=2)
        >>> [round(encoder(torch.zeros(5, 64)).base_dist.temperature.item(), 3) for _ in range(4)]
        [1.0, 0.707, 0.5, 0.5]

    Reference:
        Jang, Gu and Poole, 2017, Categorical Reparameterization with Gumbel-Softmax, equations 2 and 3; Maddison, Mnih
        and Teh, 2017, The Concrete Distribution, section 3.
    """

    calls: Tensor

    def __init__(
        self,
        shape: int | Sequence[int],
        latent_dim: int,
        network: Network = MLP,
        categories: int = 10,
        temperature: float = 0.67,
        final_temperature: float | None = None,
        anneal_steps: int = 0,
        straight_through: bool = False,
    ) -> None:
        sizes = as_size(latent_dim, "latent_dim"), as_size(categories, "categories")
        super().__init__(shape, latent_dim, network, out_shape=sizes)
        self.categories = sizes[1]
        _check_temperatures(temperature, final_temperature, anneal_steps)
        self.temperature, self.final_temperature = temperature, final_temperature
        self.anneal_steps, self.straight_through = anneal_steps, as_flag(straight_through, "straight_through")
        if final_temperature is not None:
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        logits = soft_clip(output)
        hard, soft = distributions.StraightThroughGumbelSoftmax, distributions.RelaxedOneHotCategorical
        family = hard if self.straight_through else soft
        return family(self._temperature_at(logits), logits=logits).to_event(1)

    def _temperature_at(self, logits: Tensor) -> Tensor:
        if self.final_temperature is None:
            return logits.new_full((), self.temperature)
        # Only tensor operations, and the count in place, so that a recording of the step counts as the step does.
        progress = (self.calls.to(logits.dtype) / self.anneal_steps).clamp(max=1)
        if self.training:
            self.calls.add_(1)
        return self.temperature * (self.final_temperature / self.temperature) ** progress

    def extra_repr(self) -> str:
        text = f"categories={self.categories}, temperature={self.temperature:.4g}"
        if self.final_temperature is not None:
            text += f" to {self.final_temperature:.4g} in {self.anneal_steps} steps"
        return f"{text}, straight_through={self.straight_through}"


def _check_temperatures(temperature: float, final_temperature: float | None, anneal_steps: int) -> None:
    name = "of encoders.RelaxedOneHotCategorical"
    for value in (temperature, final_temperature):
        if value is not None:
            as_temperature(value, f"a temperature {name}")
    if final_temperature is not None:
        as_size(anneal_steps, f"anneal_steps {name} with a final_temperature")
    elif anneal_steps != 0:
        raise ValueError(f"anneal_steps {name} must be 0 without a final_temperature, not {anneal_steps!r}")
