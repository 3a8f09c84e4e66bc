"""The gradient laboratory, which compares gradient estimators at fixed weights with the exact gradient.

Two models have an exact gradient: a VAE of linear maps and normal distributions (probabilistic PCA), by quadrature, and
a VAE with binary codes, by enumeration.
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
from torch.utils.checkpoint import checkpoint

from pyro_vae import decoders, encoders, priors
from pyro_vae.distributions import GreyBernoulli
from pyro_vae.networks import MLP
from pyro_vae.objectives import IWAE, VIMCO, DReG, StickingTheLanding, terms_and_gradients
from pyro_vae.programs import noise, seeded
from pyro_vae.programs.handlers import LocalModules
from pyro_vae.vae import VAE

LINEAR = partial(MLP, hidden=())
MODELS = ("linear-gaussian", "discrete")
TOGETHER = 50  # independent draws of a gradient per step; their mean is one sample of the statistics
BLOCKS = ("encoder", "decoder")
MOST, PART = 2**22, 2**17  # points of an exact sum over codes: the most, and how many are summed at a time
STEP = 1 / 64  # nats between the log-weights that an exact bound distinguishes


@dataclass
class Estimator:
    """An estimator of the gradient of a bound of ``particles`` particles: an objective, and a guide.

    ``unbiased`` says whether its expectation, by theory, is the exact gradient.
    """

    name: str
    loss: ELBO
    particles: int = 1
    unbiased: bool = True
    guide: Callable[[VAE], Callable[..., Any]] = lambda vae: vae.guide


@dataclass
class Row:
    """The statistics of an estimator for one block of parameters.

    ``bias_z`` is the largest distance of an entry's mean from the exact gradient, in standard errors. ``variance`` is
    that of the gradient of the batch's mean loss, summed over the block's entries. ``snr`` is the norm of the mean
    divided by the square root of that variance. ``ms_per_step`` is the median time of one gradient.
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
    """The rows of the laboratory, the model that they are for, and the number of draws behind them."""

    model: str
    draws: int
    rows: list[Row]

    def column(self, name: str, block: str) -> list[Any]:
        """Return one figure of a block for each estimator."""
        return [getattr(row, name) for row in self.rows if row.block == block]

    def json(self) -> str:
        """Return the rows as JSON; the infinite ratio of a gradient without noise becomes null."""
        rows = [
            {name: None if value == math.inf else value for name, value in asdict(row).items()} for row in self.rows
        ]
        return json.dumps(rows, indent=2, allow_nan=False)

    def table(self) -> str:
        """Return the rows as text, in columns."""
        width = 2 + max(map(len, ["estimator", *(row.estimator for row in self.rows)]))
        head = f"{'estimator':<{width}}{'block':<9}{'bias z':>9}{'variance':>11}{'SNR':>9}{'ms':>7}  unbiased expected"
        lines = [
            f"{row.estimator:<{width}}{row.block:<9}{row.bias_z:>9.2f}{row.variance:>11.3g}{row.snr:>9.3g}"
            f"{row.ms_per_step:>7.2f}  {'yes' if row.unbiased_expected else 'no'}"
            for row in self.rows
        ]
        return "\n".join([f"{self.model}: {self.draws} draws of each gradient", head, *lines])


def linear_gaussian(offset: float = 0.5, factor: float = 1.3, count: int = 4) -> tuple[VAE, Tensor]:
    """Return a VAE of linear maps whose encoder can represent the exact posterior, and data from it.

    Arguments:
        offset: distance of the encoder's means from those of the exact posterior.
        factor: the encoder's standard deviations, in units of those of the exact posterior.
        count: number of data.

    Returns:
        The VAE, in double precision, with 2 latent and 3 observed dimensions, and data of shape (count, 3).

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
    """Return a VAE with 3 binary codes, 4 binary observations and fixed random weights, and data.

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
    r"""Return the importance-weighted bound of a small model exactly, by sums over z and over the weights.

    With S the sum of K weights, and :math:`\varphi(t) = \mathbb{E}_q [e^{-t w}]` the Laplace transform of one weight,

    .. math:: \mathbb{E} [\log S] = \int_{-\infty}^\infty \big( e^{-e^s} - \varphi(e^s)^K \big) \, ds,

    so that any K needs one sum over z and one over s. The grid of the first sum is the finer, the steeper the weights
    are. The second sum covers every s at which the weights are neither all too small nor all too large to matter. The
    gradient of the bound is exact as well.

    Arguments:
        vae: a VAE that `linear_gaussian` or `discrete` returned.
        x: data, shape (B, \*shape).
        particles: K, at least 1.

    Returns:
        The bound, shape (B,), in nats.

    Raises:
        ValueError: for weights so steep that the grid of a datum would have more than 4 million points.

    Example:
        >>> vae, x = discrete()
        >>> bool((exact_bound(vae, x, 1) < exact_bound(vae, x, 5)).all())
        True
    """
    return torch.stack([_exact_bound(vae, datum, particles) for datum in x.split(1)])


def _exact_bound(vae: VAE, datum: Tensor, particles: int) -> Tensor:
    weigh, parts = partial(_weigh, vae, datum), _points(vae, datum).split(PART)
    if particles == 1:
        return torch.stack([(mass * values).sum() for mass, values in map(weigh, parts)]).sum()
    with torch.no_grad():
        ends = torch.stack([torch.stack(weigh(part)[1].aminmax()) for part in parts])
        low, high = ends[:, 0].min(), ends[:, 1].max()
    size = int((high - low) / STEP) + 6

    def law_of(part: Tensor) -> Tensor:
        mass, values = weigh(part)
        return _on_grid(mass, (values - low) / STEP + 2, size)

    law = sum(checkpoint(law_of, part, use_reentrant=False) for part in parts)
    return low + _mean_log_sum(law, particles) - math.log(particles)


def _weigh(vae: VAE, datum: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mass of some points under q, and the logarithms of their weights, each of shape (N,)."""
    posterior = vae.encoder(datum)
    if posterior.has_enumerate_support:
        z = points.unsqueeze(1)
        mass = posterior.log_prob(z).exp()
    else:
        z = posterior.mean + posterior.stddev * points[:, None, :-1]
        mass = points[:, -1:]
    return mass[:, 0], (vae.decoder(z).log_prob(datum) + vae.prior().log_prob(z) - posterior.log_prob(z))[:, 0]


@torch.no_grad()
def _points(vae: VAE, datum: Tensor) -> Tensor:
    """Return all codes, shape (N, D), or points in units of q's standard deviations with their masses, shape (N, 3)."""
    posterior = vae.encoder(datum)
    if posterior.has_enumerate_support:
        return posterior.enumerate_support()[:, 0]
    coarse = torch.arange(-8.0, 9.0, dtype=datum.dtype)  # what lies further out has a mass of 1e-15
    values = _weigh(vae, datum, _with_mass(coarse, coarse))[1].reshape(17, 17)
    counts = [33 + int(24 * values.diff(dim=dim).abs().max()) for dim in (0, 1)]
    if math.prod(counts) > MOST:
        raise ValueError(
            f"the weights are too steep for an exact bound, which would take {math.prod(counts):,} points, and not at"
            f" most {MOST:,}: take a smaller offset, or a factor nearer to 1"
        )
    return _with_mass(*(torch.linspace(-8, 8, count, dtype=datum.dtype) for count in counts))


def _with_mass(*axes: Tensor) -> Tensor:
    """Return the points of a grid and their normal masses, by the trapezoidal rule."""
    points = torch.cartesian_prod(*axes)
    return torch.cat([points, (-points.square().sum(-1, keepdim=True) / 2).softmax(0)], -1)


def _on_grid(mass: Tensor, places: Tensor, size: int) -> Tensor:
    """Split each mass between the four nearest of 0, 1, ..., size - 1, so that sums of cubic functions are kept."""
    first = places.detach().floor()
    t = places - first
    shares = [-t * (t - 1) * (t - 2) / 6, (t + 1) * (t - 1) * (t - 2) / 2, -(t + 1) * t * (t - 2) / 2]
    law = torch.zeros(size, dtype=mass.dtype)
    for shift, share in enumerate([*shares, (t + 1) * t * (t - 1) / 6], -1):
        law = law.index_add(0, first.long() + shift, mass * share)
    return law


def _mean_log_sum(law: Tensor, count: int) -> Tensor:
    """Return the mean logarithm of a sum of ``count`` weights, whose logarithms are -2, -1, 0, ... times `STEP`."""
    below, above = round(6 / STEP), round(40 / STEP)  # where exp(-w) is 0, and where it is 1
    shifts = torch.arange(1 - len(law), len(law) + below + above, dtype=law.dtype)
    kernel = (-(STEP * (below - shifts)).exp()).exp()
    length = len(law) + len(kernel)
    transform = torch.fft.irfft(torch.fft.rfft(law, length) * torch.fft.rfft(kernel, length), length)
    transform = transform[len(law) - 1 : len(kernel)]  # at t = exp(-s), s from `below` to the last place and `above`
    last = STEP * (len(law) - 3 + above + 0.5)
    return last - np.euler_gamma - STEP * (transform**count).sum()


def exact_gradient(vae: VAE, x: Tensor, particles: int = 1) -> Tensor:
    """Return the gradient of minus the mean exact bound with respect to all parameters, in one vector."""
    bound = exact_bound(vae, x, particles).mean()
    return parameters_to_vector(torch.autograd.grad(-bound, list(vae.parameters())))


def _score(vae: VAE) -> Callable[..., Any]:
    return VAE(vae.prior, encoders.ScoreFunction(vae.encoder), vae.decoder).guide


class _Relaxed(GreyBernoulli):
    """Binary Gumbel-softmax samples, with the log-probability of the binary codes that they relax."""

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
    guides: dict[str, Callable[[VAE], Callable[..., Any]]] = {"": lambda vae: vae.guide}
    guides |= {f", {name}": partial(_with_noise, kind) for name, kind in kinds.items()}
    return [
        Estimator("pathwise, sampled KL", Trace_ELBO()),
        Estimator("pathwise, closed-form KL", TraceMeanField_ELBO()),
        Estimator("sticking the landing", StickingTheLanding()),
        Estimator("score function", Trace_ELBO(), guide=_score),
        Estimator("VIMCO 8", VIMCO(8), 8),
        *[Estimator(f"IWAE {count}", IWAE(count), count) for count in (2, 8, 64)],
        *[Estimator(f"DReG {count}", DReG(count), count) for count in (2, 8, 64)],
        *[
            Estimator(f"{name}, 8 particles{noise_of}", make(), guide=guide)
            for name, make in {"pathwise": vectorized, "sticking the landing": partial(StickingTheLanding, 8)}.items()
            for noise_of, guide in guides.items()
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
        draws: number of draws of each gradient, at least 1,000, made in groups of 50.
        seed: random seed of the noise.
        settings: arguments of the model, such as ``offset=0.0, factor=1.0``, which make the linear encoder exact.

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
    return Gradients(model, TOGETHER * math.ceil(draws / TOGETHER), rows)


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
        mean, variance = _moments(partial(gradient, many), math.ceil(draws / TOGETHER))
    with pyro.validation_enabled(False), pyro.get_param_store().scope():
        milliseconds = 1e3 * median(timeit.repeat(partial(gradient, x), number=1, repeat=20))
    z = (mean - exact).abs() / (variance / math.ceil(draws / TOGETHER)).sqrt().clamp(min=1e-7)
    variance = TOGETHER * variance
    block_of = [name.partition(".")[0] for name, value in vae.named_parameters() for _ in range(value.numel())]
    rows = []
    for block in BLOCKS:
        at = torch.tensor([own == block for own in block_of])
        total = variance[at].sum()
        snr = mean[at].norm() / total.sqrt()
        figures = z[at].max().item(), total.item(), snr.item(), milliseconds
        rows.append(Row(estimator.name, block, *figures, estimator.unbiased))
    return rows


def _moments(draw: Callable[[], Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of so many draws, of which one at a time is in memory.

    Reference:
        Welford, 1962, Note on a Method for Calculating Corrected Sums of Squares and Products.
    """
    mean, squares = torch.tensor(0.0), torch.tensor(0.0)
    for number in range(1, count + 1):
        drawn = draw()
        deviation = drawn - mean
        mean = mean + deviation / number
        squares = squares + deviation * (drawn - mean)
    return mean, squares / (count - 1)
