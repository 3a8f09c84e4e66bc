"""Encoders that wrap another one: without a pathwise sampler, or refined by gradient steps."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.arguments import as_number, as_size
from pyro_vae.distributions.kl import kl_or_none
from pyro_vae.distributions.wrappers import layers
from pyro_vae.networks._part import Part
from pyro_vae.runtime.recording import kept_tensors

# SemiAmortized refuses distributions whose draws have only a first derivative (implicit reparameterization), the
# derivative of something else, or no noise. Torch refuses the second derivative of a gamma variate; for the others (as
# of torch 2.13) it would be silently wrong.
_REFUSED = (
    td.Beta,
    td.Dirichlet,
    td.Gamma,
    dist.Delta,
    distributions.MixtureOfNormals,
    distributions.PowerSpherical,
    distributions.StraightThroughGumbelSoftmax,
)


class ScoreFunction(nn.Module):
    r"""Any encoder, with score-function gradients in place of pathwise ones.

    .. math:: \nabla_\phi \mathbb{E}_{q_\phi(z|x)} [f(z)] =
              \mathbb{E}_{q_\phi(z|x)} [f(z) \, \nabla_\phi \log q_\phi(z|x)]

    The gradient is unbiased, but has a much larger variance. Use ``Trace_ELBO`` or another objective that supports such
    sites; ``TraceMeanField_ELBO`` has no score-function term, and refuses them while validation is on.

    Arguments:
        encoder: the encoder, a module that returns a distribution.

    Returns:
        ``forward(x)`` returns a distribution equal to the encoder's, with ``has_rsample`` False.

    Raises:
        TypeError: if the encoder is not a module.

    Example:
        >>> import torch
        >>> from pyro_vae import encoders
        >>> encoders.ScoreFunction(encoders.Normal(64, 2))(torch.zeros(5, 64))().requires_grad
        False

    Reference:
        Ranganath, Gerrish and Blei, 2014, Black Box Variational Inference, equations 2 and 3; Mnih and Gregor, 2014,
        Neural Variational Inference and Learning in Belief Networks.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoders.ScoreFunction takes an encoder, a torch.nn.Module, not {encoder!r}")
        self.encoder = encoder
        if hasattr(encoder, "shape"):
            self.shape = encoder.shape

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        posterior = self.encoder(x)
        if not isinstance(posterior, td.Distribution):
            raise TypeError(f"the encoder of encoders.ScoreFunction must return a distribution, not {posterior!r}")
        return distributions.ScoreFunction(posterior)


class SemiAmortized(Part):
    r"""Another encoder, whose output is refined for each datum by gradient steps on its bound.

    .. math:: \lambda_0 = \mathrm{network}(x), \qquad \lambda_{t+1} = \lambda_t + \eta \nabla_{\lambda_t} \left(
              \log p(x|z_t) - \mathrm{KL}(q_{\lambda_t}(z) \,\|\, p(z)) \right), \qquad z_t \sim q_{\lambda_t}(z),
              \qquad q(z|x) = q_{\lambda_T}(z)

    Every step draws new noise, because for a single fixed draw the bound has no maximum in the scale. The KL is in
    closed form if there is one, else :math:`\log q(z_t) - \log p(z_t)`, and always has weight 1. Training
    differentiates through all steps exactly: the gradients of encoder, decoder and prior are those of the final bound.
    A call takes about steps + 1 times as long as the encoder and the decoder.

    Prior and decoder are those of the VAE itself. They are held without being registered, so that their parameters are
    counted and saved once, as the VAE's; whatever is done to the VAE as a whole affects them here too.

    Arguments:
        encoder: an encoder of this package, or a module with ``output(x)`` and ``posterior(output)``, whose ``forward``
            is ``posterior(output(x))``. Its draws must be pathwise and twice differentiable: `Normal` and its
            relatives, `Flow`, `Exponential`, `Weibull`, `Kumaraswamy` or `RelaxedOneHotCategorical`, whose
            ``anneal_steps`` then count every refinement too.
        prior: the VAE's prior.
        decoder: the VAE's decoder.
        steps: number of steps T, at least 1.
        step_size: :math:`\eta`, above 0.
        clip_norm: the largest norm of a datum's gradient, above 0; a longer gradient is scaled down to it. A step then
            moves a datum's outputs by at most ``step_size * clip_norm``. Without clipping they diverge for a likelihood
            as steep as that of `pyro_vae.decoders.Normal` with scale 0.1.

    Returns:
        ``forward(x)`` returns the encoder's distribution at the refined output. It differs from call to call, because
        of the noise of the steps; given that noise it is a density like any other, so that importance sampling is
        valid. A handler of `pyro_vae.noise` sets the noise of the draw from it, not that of the steps.

    Raises:
        TypeError: if a part is not a module, the encoder lacks one of the two methods, or ``steps`` is not an integer.
        ValueError: if a number is out of its range; in ``forward``, if draws are not twice differentiable.

    Example:
        >>> from pyro_vae import VAE, decoders, encoders, priors
        >>> prior, encoder, decoder = priors.Normal(2), encoders.Normal(64, 2), decoders.Normal(2, 64, scale=0.1)
        >>> vae = VAE(prior, encoders.SemiAmortized(encoder, prior, decoder, steps=20), decoder)
        >>> vae.encoder(torch.ones(5, 64)).event_shape
        torch.Size([2])

    Reference:
        Kim, Wiseman, Miller, Sontag and Rush, 2018, Semi-Amortized Variational Autoencoders, algorithm 1; Marino, Yue
        and Mandt, 2018, Iterative Amortized Inference; Krishnan, Liang and Hoffman, 2018, On the Challenges of Learning
        with Inference Networks on Sparse, High-dimensional Data.
    """

    encoder: Any

    def __init__(
        self,
        encoder: nn.Module,
        prior: nn.Module,
        decoder: nn.Module,
        steps: int = 5,
        step_size: float = 0.1,
        clip_norm: float = 1.0,
    ) -> None:
        super().__init__()
        for name, part in (("encoder", encoder), ("prior", prior), ("decoder", decoder)):
            if not isinstance(part, nn.Module):
                raise TypeError(f"the {name} of encoders.SemiAmortized must be a torch.nn.Module, not {part!r}")
        if not (hasattr(encoder, "output") and hasattr(encoder, "posterior")):
            raise TypeError(
                "encoders.SemiAmortized refines what encoder.output(x) gives and encoder.posterior(output) takes, which"
                f" {type(encoder).__name__} has not: give it both, forward being self.posterior(self.output(x))"
            )
        if not 0 < as_number(step_size, "step_size") < math.inf or not as_number(clip_norm, "clip_norm") > 0:
            raise ValueError(
                "step_size of encoders.SemiAmortized must be above 0 and finite, and clip_norm above 0, not"
                f" {step_size!r} and {clip_norm!r}"
            )
        # A tuple hides modules from torch, so that they are in neither parameters() nor state_dict().
        self.encoder, self._model = encoder, (prior, decoder)
        self.steps, self.step_size, self.clip_norm = as_size(steps, "steps"), step_size, clip_norm
        if hasattr(encoder, "shape"):
            self.shape = encoder.shape

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        training, prior, output = torch.is_grad_enabled(), self._model[0](), self.encoder.output(x)
        # The programs check the support of x where they observe it. kept_tensors() keeps what the gradients below need:
        # an outer checkpoint (``chunk`` of the objectives) would recompute it in the middle of its own first run.
        with torch.enable_grad(), pyro.validation_enabled(False), kept_tensors():
            for _ in range(self.steps):
                output = self._ascended(output, x, prior, training)
        return self.encoder.posterior(output)

    def _ascended(self, output: Tensor, x: Tensor, prior: dist.TorchDistribution, training: bool) -> Tensor:
        output = output if output.requires_grad else output.detach().requires_grad_()
        posterior = self.encoder.posterior(output)
        _check_draws(posterior, type(self.encoder).__name__)
        z = posterior.rsample()
        kl = kl_or_none(posterior, prior)
        kl = posterior.log_prob(z) - prior.log_prob(z) if kl is None else kl
        bound = self._model[1](z).log_prob(x) - kl
        (slope,) = torch.autograd.grad(bound.sum(), output, create_graph=training)
        norm = torch.linalg.vector_norm(slope.reshape(*bound.shape, -1), dim=-1)
        norm = norm.reshape(*bound.shape, *[1] * (slope.dim() - bound.dim()))
        output = output + self.step_size * slope / (norm / self.clip_norm).clamp(min=1)
        return output if training else output.detach()


def _check_draws(posterior: dist.TorchDistribution, encoder: str) -> None:
    made_of = list(layers(posterior))
    refused = [layer for layer in made_of if isinstance(layer, _REFUSED)]
    if refused or not posterior.has_rsample:
        name = type([*made_of, *refused][-1]).__name__
        raise ValueError(
            f"encoders.SemiAmortized differentiates draws twice, which those of {name} by {encoder} do not allow: take"
            " encoders.Normal, Flow or another one that its documentation names"
        )
