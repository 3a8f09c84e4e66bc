"""The gradient laboratory: what each estimator gives at fixed weights, against the exact gradient.

Two models have one: a VAE of linear maps and normal distributions (probabilistic PCA), by Gauss-Hermite quadrature, and
one of binary codes, by enumeration.
"""

import json
import math
import timeit
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from pyro_vae import decoders, encoders, noise, priors
from pyro_vae.distributions import GreyBernoulli
from pyro_vae.handlers import LocalModules
from pyro_vae.networks import MLP
from pyro_vae.objectives import IWAE, VIMCO, DReG, StickingTheLanding, terms_and_gradients
from pyro_vae.programs import seeded
from pyro_vae.vae import VAE

LINEAR = partial(MLP, hidden=())
MODELS = ("linear-gaussian", "discrete")
TOGETHER = 50  # independent draws of a gradient per step: their mean is one number of the statistics
BLOCKS = ("encoder", "decoder")


@dataclass
class Estimator:
    """A way to the gradient of a bound of ``particles`` particles: an objective, and the guide.

    ``unbiased`` says whether theory expects the exact gradient in the mean.
    """

    name: str
    loss: ELBO
    particles: int = 1
    unbiased: bool = True
    guide: Callable[[VAE], Callable[..., Any]] = lambda vae: vae.guide


@dataclass
class Row:
    """What an estimator gave for one block of parameters.

    ``bias_z`` is the largest distance of an entry's mean from the exact gradient, in standard errors; ``variance`` the
    sum over the block's entries, of the gradient of the mean loss over the batch; ``snr`` the norm of the mean over the
    root of that variance; ``ms_per_step`` the median time of one gradient.
    """

    estimator: str
    block: str
    bias_z: float
    variance: float
    snr: float
    ms_per_step: float
    unbiased_expected: bool


@dataclass
class Gradients:
    """The rows of a laboratory, and how they came about."""

    model: str
    draws: int
    rows: list[Row]

    def column(self, name: str, block: str) -> list[Any]:
        """Return one figure of a block, estimator by estimator."""
        return [getattr(row, name) for row in self.rows if row.block == block]

    def json(self) -> str:
        """Return the rows as JSON; a ratio to no noise at all is null."""
        rows = [
            {name: None if value == math.inf else value for name, value in asdict(row).items()} for row in self.rows
        ]
        return json.dumps(rows, indent=2, allow_nan=False)

    def table(self) -> str:
        """Return the rows as text, in columns."""
        head = f"{'estimator':<40}{'block':<9}{'bias z':>9}{'variance':>11}{'SNR':>9}{'ms':>7}  unbiased expected"
        lines = [
            f"{row.estimator:<40}{row.block:<9}{row.bias_z:>9.2f}{row.variance:>11.3g}{row.snr:>9.3g}"
            f"{row.ms_per_step:>7.2f}  {'yes' if row.unbiased_expected else 'no'}"
            for row in self.rows
        ]
        return "\n".join([f"{self.model}: {self.draws} draws of each gradient", head, *lines])


def linear_gaussian(offset: float = 0.5, factor: float = 1.3, count: int = 4) -> tuple[VAE, Tensor]:
    """Return a VAE of linear maps whose exact posterior is in reach of its encoder, and data from it.

    Arguments:
        offset: distance of the encoder's means from the exact posterior's.
        factor: the encoder's standard deviations, in units of the exact posterior's.
        count: number of data.

    Returns:
        The VAE, in double precision, 2 latent dimensions and 3 observed ones, and data of shape (count, 3).

    Example:
        >>> vae, x = linear_gaussian(offset=0.0, factor=1.0)
        >>> x.shape
        torch.Size([4, 3])

    Reference:
        Tipping and Bishop, 1999, Probabilistic Principal Component Analysis, equation 8.
    """
    scale = 0.5
    vae = VAE(priors.Normal(2), encoders.Normal(3, 2, LINEAR), decoders.Normal(2, 3, LINEAR, scale=scale)).double()
    weight = torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.3, 0.0]], dtype=torch.float64)
    precision = 1 + weight.square().sum(0) / scale**2  # the columns are orthogonal, so this is diagonal
    with torch.no_grad():
        decoder, encoder = vae.decoder.network.layers[0], vae.encoder.network.layers[0]
        decoder.weight.copy_(weight), decoder.bias.zero_()
        encoder.weight.zero_()
        encoder.weight[:2] = weight.T / scale**2 / precision[:, None]
        encoder.bias[:2], encoder.bias[2:] = offset, 2 * math.log(factor) - precision.log()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return vae, z @ weight.T + scale * torch.randn(count, 3, generator=generator, dtype=torch.float64)


def discrete(count: int = 4) -> tuple[VAE, Tensor]:
    """Return a VAE of 3 binary codes and 4 binary observations, with weights drawn once, and data.

    Arguments:
        count: number of data.

    Returns:
        The VAE, in double precision, and data of shape (count, 4).

    Example:
        >>> vae, x = discrete()
        >>> vae.encoder(x).event_shape
        torch.Size([3])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = priors.Bernoulli(3), encoders.Bernoulli(4, 3, LINEAR), decoders.Bernoulli(3, 4, LINEAR)
        vae = VAE(*parts).double()
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.copy_(torch.randn_like(parameter))
        return vae, torch.rand(count, 4, dtype=torch.float64).round()


def exact_bound(vae: VAE, x: Tensor, particles: int = 1) -> Tensor:
    r"""Return the importance-weighted bound of a small model exactly, by a sum over z.

    With S the sum of K weights, and :math:`\varphi(t) = \mathbb{E}_q [e^{-t w}]` the Laplace transform of one,

    .. math:: \mathbb{E} [\log S] = \int_{-\infty}^\infty \big( e^{-e^s} - \varphi(e^s)^K \big) \, ds,

    so that any K takes one sum over z, and one over s. Its gradient is exact as well.

    Arguments:
        vae: as `linear_gaussian` or `discrete` return it.
        x: data, shape (B, \*shape).
        particles: K, at least 1.

    Returns:
        The bound, shape (B,), in nats.

    Example:
        >>> vae, x = discrete()
        >>> bool((exact_bound(vae, x, 1) < exact_bound(vae, x, 5)).all())
        True
    """
    z, weights = _sum_over_codes(vae, x)
    log_weights = vae.decoder(z).log_prob(x) + vae.prior().log_prob(z) - vae.encoder(x).log_prob(z)
    if particles == 1:
        return (weights * log_weights).sum(0)
    centre = (weights.detach().log() + log_weights.detach()).logsumexp(0)
    w = (log_weights - centre).exp()
    s = torch.arange(-40.0, 60.0, 0.1, dtype=x.dtype)
    transform = torch.stack([(weights * (-t.exp() * w).exp()).sum(0) for t in s])
    integral = 0.1 * ((-s.exp()).exp()[:, None] - transform**particles).sum(0)
    return centre + integral - math.log(particles)


def _sum_over_codes(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes of shape (N, B, D) and their weights under q, of shape (N, B) or (N, 1)."""
    posterior = vae.encoder(x)
    if posterior.has_enumerate_support:
        codes = posterior.enumerate_support()
        return codes, posterior.log_prob(codes).exp()
    nodes, weights = (torch.as_tensor(array) for array in np.polynomial.hermite_e.hermegauss(48))
    grid = torch.cartesian_prod(nodes, nodes).unsqueeze(1)
    product = torch.cartesian_prod(weights, weights).prod(1, keepdim=True) / (2 * math.pi)
    return posterior.mean + posterior.stddev * grid, product


def exact_gradient(vae: VAE, x: Tensor, particles: int = 1) -> Tensor:
    """Return the gradient of minus the mean exact bound with respect to all parameters, in one vector."""
    bound = exact_bound(vae, x, particles).mean()
    return parameters_to_vector(torch.autograd.grad(-bound, list(vae.parameters())))


def _score(vae: VAE) -> Callable[..., Any]:
    return VAE(vae.prior, encoders.ScoreFunction(vae.encoder), vae.decoder).guide


class _Relaxed(GreyBernoulli):
    """Binary Gumbel-softmax samples, with the log-probability of the codes that they stand for."""

    has_rsample = True
    temperature = 1.0

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        uniform = torch.rand(self._extended_shape(sample_shape), dtype=self.logits.dtype).clamp(1e-12, 1 - 1e-12)
        return ((self.logits + uniform.logit()) / self.temperature).sigmoid()


class _RelaxedEncoder(nn.Module):
    """A Bernoulli encoder whose codes are relaxed."""

    def __init__(self, encoder: nn.Module, temperature: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.family = type("Relaxed", (_Relaxed,), {"temperature": temperature})

    def forward(self, x: Tensor) -> Any:
        return self.family(logits=self.encoder(x).base_dist.logits).to_event(1)


def _relaxed(temperature: float, vae: VAE) -> Callable[..., Any]:
    return VAE(vae.prior, _RelaxedEncoder(vae.encoder, temperature), vae.decoder).guide


def _with_baseline(vae: VAE) -> Callable[..., Any]:
    """Give the guide's sites the decaying average of their past costs as a baseline."""
    baseline = {"baseline": {"use_decaying_avg_baseline": True}}
    return poutine.infer_config(vae.guide, lambda site: baseline if site["type"] == "sample" else {})


def _with_noise(kind: Callable[[], Any], vae: VAE) -> Callable[..., Any]:
    return kind()(vae.guide)


def linear_gaussian_estimators() -> list[Estimator]:
    """Return the estimators that suit normal codes."""
    vectorized = partial(Trace_ELBO, num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    kinds = {"antithetic": noise.Antithetic, "Latin hypercube": noise.LatinHypercube, "Sobol": noise.Sobol}
    return [
        Estimator("pathwise, sampled KL", Trace_ELBO()),
        Estimator("pathwise, closed-form KL", TraceMeanField_ELBO()),
        Estimator("sticking the landing", StickingTheLanding()),
        Estimator("score function", Trace_ELBO(), guide=_score),
        Estimator("VIMCO 8", VIMCO(8), 8),
        *[Estimator(f"IWAE {count}", IWAE(count), count) for count in (2, 8, 64)],
        *[Estimator(f"DReG {count}", DReG(count), count) for count in (2, 8, 64)],
        Estimator("pathwise, 8 particles", vectorized()),
        *[
            Estimator(f"pathwise, 8 particles, {name}", vectorized(), guide=partial(_with_noise, kind))
            for name, kind in kinds.items()
        ],
    ]


def discrete_estimators() -> list[Estimator]:
    """Return the estimators that suit discrete codes."""
    return [
        Estimator("score function", Trace_ELBO()),
        Estimator("score function, baseline", TraceGraph_ELBO(), guide=_with_baseline),
        *[Estimator(f"VIMCO {count}", VIMCO(count), count) for count in (2, 8)],
        *[
            Estimator(f"Gumbel-softmax, temperature {t}", Trace_ELBO(), unbiased=False, guide=partial(_relaxed, t))
            for t in (1.0, 0.5, 0.1)
        ],
        Estimator("enumerated", TraceEnum_ELBO(max_plate_nesting=1), guide=lambda vae: config_enumerate(vae.guide)),
    ]


def gradients(model: str = "linear-gaussian", draws: int = 10_000, seed: int = 0, **settings: Any) -> Gradients:
    """Measure bias, variance and cost of every estimator of a model's gradient, at fixed weights.

    Arguments:
        model: "linear-gaussian" or "discrete".
        draws: of each gradient, at least 1,000.
        seed: of the noise.
        settings: of the model, such as ``offset=0.0, factor=1.0``, with which the encoder of the linear one is exact.

    Returns:
        A row per estimator and block of parameters.

    Raises:
        ValueError: for another model, or too few draws.

    Example:
        >>> found = gradients("discrete", draws=1000)
        >>> found.rows[0].estimator
        'score function'
    """
    if model not in MODELS:
        raise ValueError(f"model is one of {', '.join(MODELS)}, not {model!r}")
    if draws < 1000:
        raise ValueError(f"the statistics take at least 1000 draws, not {draws!r}")
    vae, x = linear_gaussian(**settings) if model == "linear-gaussian" else discrete(**settings)
    estimators = linear_gaussian_estimators() if model == "linear-gaussian" else discrete_estimators()
    exact = {k: exact_gradient(vae, x, k) for k in {estimator.particles for estimator in estimators}}
    with seeded(seed, x.device):
        rows = [row for e in estimators for row in _measure(e, vae, x, exact[e.particles], draws)]
    return Gradients(model, draws, rows)


def _measure(estimator: Estimator, vae: VAE, x: Tensor, exact: Tensor, draws: int) -> list[Row]:
    compute = terms_and_gradients(estimator.loss)
    local, parameters = LocalModules(), list(vae.parameters())
    model, guide = local(vae.model), local(estimator.guide(vae))

    def gradient(batch: Tensor) -> Tensor:
        _, found = compute(model, guide, batch, 1.0, lambda: parameters)
        return parameters_to_vector(
            [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        )

    many = x.repeat(TOGETHER, 1)
    with pyro.validation_enabled(False), pyro.get_param_store().scope():  # a baseline is kept in the store
        found = torch.stack([gradient(many) for _ in range(math.ceil(draws / TOGETHER))])
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        milliseconds = 1e3 * median(timeit.repeat(partial(gradient, x), number=1, repeat=20))
    mean, variance = found.mean(0), TOGETHER * found.var(0)
    z = (mean - exact).abs() / (variance / (TOGETHER * len(found))).sqrt().clamp(min=1e-7)
    block_of = [name.partition(".")[0] for name, value in vae.named_parameters() for _ in range(value.numel())]
    rows = []
    for block in BLOCKS:
        at = torch.tensor([own == block for own in block_of])
        total = variance[at].sum()
        snr = mean[at].norm() / total.sqrt()
        figures = z[at].max().item(), total.item(), snr.item(), milliseconds
        rows.append(Row(estimator.name, block, *figures, estimator.unbiased))
    return rows
