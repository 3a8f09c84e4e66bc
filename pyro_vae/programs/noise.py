r"""Noise as an input: handlers that choose the uniform noise behind the latent sites of a guide.

The reparameterization trick moves the randomness out of the node: z is a function of noise and parameters. Each handler
here goes around a guide, draws its own kind of noise u, uniform on the open interval (0, 1), and sets

.. math:: z = F^{-1}_{\lambda(x)}(u)

by the inverse distribution function (one dimension after another if they depend on each other, as for a Dirichlet or a
mixture), by normal quantiles through a Cholesky factor, Gumbel quantiles, or a flow's transforms, so that gradients
reach the parameters pathwise. It works for every encoder here that has a pathwise sampler. The log-probabilities of the
programs do not change.

For instance ``fit(model, noise.Sobol()(guide), x, loss=Trace_ELBO(num_particles=8, vectorize_particles=True))``.

The K particles are those of the plate that an ELBO with ``num_particles=K, vectorize_particles=True`` puts around the
programs. Each particle by itself has plain uniform noise; what changes is how the particles of one datum depend on each
other. Different data, and different sites, get noise of their own. Which objectives that suits:

- A mean over particles keeps its expectation: ``Trace_ELBO``, ``TraceMeanField_ELBO`` and the other ELBOs of Pyro with
  vectorized particles, ``StickingTheLanding``, ``InfoVAE``, ``BetaTC``.
- ``IWAE``, ``MIWAE``, ``CIWAE``, ``PIWAE``, ``Renyi`` and ``FreeBits`` then estimate another objective, that of K such
  particles, and have its exact gradient. The first four are still lower bounds on :math:`\log p(x)`.
- The gradients of ``DReG``, ``VIMCO`` and ``Thermodynamic`` are right only for independent particles, so they refuse
  these handlers.

`Fixed` uses the same noise in every call, so its estimates are those of one draw. Objectives whose gradient is right
only in the mean over the noise (``DReG``, ``VIMCO``, ``Thermodynamic`` and ``StickingTheLanding``) refuse it.

Without such a plate there is one draw with ordinary noise (with `Fixed`, its own noise). The programs still run in
`pyro_vae.evaluate`, but without ``vectorize_particles`` the handlers reduce no variance.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache, singledispatch
from typing import Any, Self

import torch
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import ExpandedDistribution, TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import get_plates
from torch import Size, Tensor
from torch import distributions as td
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from pyro_vae.distributions import (
    HypersphericalUniform,
    Kumaraswamy,
    MixtureOfNormals,
    PowerSpherical,
    RelaxedOneHotCategorical,
    StraightThroughGumbelSoftmax,
)
from pyro_vae.distributions.quantiles import beta_quantile, gamma_quantile
from pyro_vae.distributions.sphere import directions
from pyro_vae.distributions.wrappers import family
from pyro_vae.objectives.particles import FRESH, INDEPENDENT, NOISE, PARTICLES

WORKS = (
    "distributions with an icdf, Gamma, Beta, Dirichlet, StudentT, PowerSpherical, MixtureOfNormals,"
    " MultivariateNormal, LowRankMultivariateNormal, RelaxedOneHotCategorical, RelaxedBernoulli, and transforms or"
    " flows of these"
)
Draw = Callable[[Size, Tensor], Tensor]


class _Noise(Messenger, ABC):
    """A handler that sets every latent site to a function of its noise.

    ``lacks`` names a property that its noise does not have; objectives that need it refuse the handler.
    """

    lacks = ""
    _used = 0  # number of sites or dimensions that have had noise since the handler was entered

    def __enter__(self) -> Self:
        self._used = 0
        super().__enter__()
        return self

    @abstractmethod
    def uniform(self, particles: int, batch: Size, event: Size, like: Tensor) -> Tensor:
        """Return noise in (0, 1), of shape (particles, \\*batch, \\*event), with the type and device of ``like``."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] or msg["value"] is not None or not isinstance(msg["fn"], TorchDistributionMixin):
            return
        # All plates around the site, including those outside the handler, which see the site only later.
        plates = [plate for plate in get_plates() if plate.vectorized]
        shapes = [Size([plate.size, *[1] * (-plate.dim - 1)]) for plate in plates]
        batch = torch.broadcast_shapes(msg["fn"].batch_shape, *shapes)
        axis = next((len(batch) + plate.dim for plate in plates if plate.name == PARTICLES), None)

        def draw(shape: Size, like: Tensor) -> Tensor:
            event = shape[len(batch) :]
            if axis is None:
                return self.uniform(1, batch, event, like)[0]
            return self.uniform(batch[axis], batch[:axis] + batch[axis + 1 :], event, like).movedim(0, axis)

        try:
            if not msg["fn"].has_rsample:
                raise NotImplementedError("it has no pathwise sampler")
            # The site is not marked as done, because outer plates have yet to expand its distribution.
            msg["value"] = _transport(msg["fn"].expand(batch), draw)
            msg["infer"][NOISE] = type(self).__name__, self.lacks
        except NotImplementedError as error:
            raise ValueError(
                f"noise.{type(self).__name__} cannot drive site {msg['name']!r} ({family(msg['fn'])}): {error}."
                f" What works: {WORKS}"
            ) from error


class Fixed(_Noise):
    r"""The same noise at every call, to replay a run or a picture exactly.

    Particles that are run one after another (without ``vectorize_particles``) are separate calls: all of them get the
    same noise, so K of them are worth no more than one.

    Arguments:
        noise: a seed, from which each site of the program gets its noise, the same on every device; or the noise
            itself, uniform in (0, 1), of a shape that broadcasts to that of each site's noise, (\*batch, D).

    Raises:
        TypeError: if the noise is neither an integer nor a tensor.
        ValueError: for noise outside (0, 1), or whose shape does not fit, and for sites whose distribution cannot be
            written here as a function of uniform noise.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> program = Fixed(3)(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))
        >>> bool(program() == program())
        True
        >>> Fixed(torch.tensor(0.5))(lambda: pyro.sample("z", dist.Normal(3.0, 1.0)))()
        tensor(3.)

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, section 2.4.
    """

    lacks = FRESH

    def __init__(self, noise: int | Tensor) -> None:
        super().__init__()
        if not isinstance(noise, int | Tensor):
            raise TypeError(f"noise must be a seed (an integer) or a tensor, not {noise!r}")
        if isinstance(noise, Tensor) and not ((noise > 0) & (noise < 1)).all():
            low, high = noise.min().item(), noise.max().item()
            raise ValueError(f"noise must lie in (0, 1), but is from {low:g} to {high:g}: pass uniform numbers")
        self.noise = noise
        self._drawn: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def uniform(self, particles: int, batch: Size, event: Size, like: Tensor) -> Tensor:
        shape = (particles, *batch, *event)
        if isinstance(self.noise, int):
            self._used += 1
            # Kept, so that a step with this noise can be recorded: a generator within it could not.
            key = self._used, shape
            if key not in self._drawn:
                self._drawn[key] = _seeded(self.noise, *key)
            return _open(self._drawn[key].to(like.device), like)
        edge = torch.finfo(like.dtype).eps / 2  # rounded to the site's precision the noise must stay inside (0, 1)
        noise = self.noise.to(like).clamp(edge, 1 - edge)
        try:
            return noise.expand(shape)
        except RuntimeError as error:
            where = f"a site needs {shape[1:] if particles == 1 else shape}"
            raise ValueError(f"noise of shape {tuple(noise.shape)} does not fit: {where}; or pass a seed") from error


class Antithetic(_Noise):
    r"""Mirrored pairs: the second half of the particles has the noise of the first half, reflected.

    .. math:: u_{k + K/2} = 1 - u_k, \quad \text{for normal noise} \quad \epsilon_{k + K/2} = -\epsilon_k

    What is odd in the noise averages out to nothing. With an odd number of particles one has no mirror image.

    Raises:
        ValueError: for sites whose distribution cannot be written here as a function of uniform noise.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> with pyro.plate("num_particles_vectorized", 4), Antithetic():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> torch.equal(z[:2], -z[2:])
        True

    Reference:
        Hammersley and Morton, 1956, A New Monte Carlo Technique: Antithetic Variates.
    """

    lacks = INDEPENDENT

    def uniform(self, particles: int, batch: Size, event: Size, like: Tensor) -> Tensor:
        half = _open(_rand(((particles + 1) // 2, *batch, *event), like), like)
        return torch.cat([half, 1 - half[: particles // 2]])


class LatinHypercube(_Noise):
    r"""Stratified noise: in every dimension, each of K equal intervals holds the noise of one particle.

    .. math:: u_{kd} = (\pi_d(k) + v_{kd}) / K, \qquad v \sim \mathrm{Uniform}(0, 1)

    with independent random permutations :math:`\pi_d` of 0, ..., K - 1. What is additive in the dimensions has little
    variance left. In one dimension this is stratified sampling.

    Raises:
        ValueError: for sites whose distribution cannot be written here as a function of uniform noise.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> with pyro.plate("num_particles_vectorized", 4), LatinHypercube():
        ...     z = pyro.sample("z", dist.Uniform(0.0, 4.0))
        >>> z.floor().sort().values
        tensor([0., 1., 2., 3.])

    Reference:
        McKay, Beckman and Conover, 1979, A Comparison of Three Methods for Selecting Values of Input Variables.
    """

    lacks = INDEPENDENT

    def uniform(self, particles: int, batch: Size, event: Size, like: Tensor) -> Tensor:
        shape = (particles, *batch, *event)
        strata = _rand(shape, like).argsort(0)
        return _open((strata + _rand(shape, like)) / particles, like)


class Sobol(_Noise):
    r"""Randomized quasi-Monte Carlo: the particles are the first K points of a Sobol sequence, randomized.

    .. math:: u_{kd} = ((\lfloor 2^m s_{kd} \rfloor \oplus v_d) + w_{kd}) / 2^m, \qquad m = \lceil \log_2 K \rceil

    with :math:`\oplus` the exclusive or of binary digits. Every datum has, at every call, a random shift v of its own,
    of m digits, and every point a uniform w within its cell. That makes each point uniform, and keeps how evenly K
    points fill the cube, which their first m digits say; best for K a power of 2. The sites of one run take
    consecutive dimensions of the sequence.

    Raises:
        ValueError: for sites whose distribution cannot be written here as a function of uniform noise, or that have
            more than 21,201 dimensions together.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> with pyro.plate("num_particles_vectorized", 4), Sobol():
        ...     z = pyro.sample("z", dist.Uniform(torch.zeros(2), 2.0).to_event(1))
        >>> cells = z.floor() @ torch.tensor([1.0, 2.0])  # each quarter of the square holds one point
        >>> cells.sort().values
        tensor([0., 1., 2., 3.])

    Reference:
        L'Ecuyer and Lemieux, 2002, Recent Advances in Randomized Quasi-Monte Carlo Methods, section 3 (digital shift);
        Buchholz, Wenzel and Mandt, 2018, Quasi-Monte Carlo Variational Inference.
    """

    lacks = INDEPENDENT

    def uniform(self, particles: int, batch: Size, event: Size, like: Tensor) -> Tensor:
        start, self._used = self._used, self._used + event.numel()
        cells = 1 << (particles - 1).bit_length()
        points = _sobol_points(particles, self._used, cells)[:, start:].to(like.device)
        points = points.reshape(particles, *[1] * len(batch), *event)
        shifted = points ^ torch.randint(cells, (*batch, *event), device=like.device)
        return _open((shifted + _rand(tuple(shifted.shape), like)) / cells, like)


@lru_cache(maxsize=32)
def _sobol_points(particles: int, dimensions: int, cells: int) -> Tensor:
    """Return the cells, from 0 on, that the first Sobol points fall into, shape (particles, dimensions)."""
    points = torch.quasirandom.SobolEngine(dimensions).draw(particles, dtype=torch.float64)
    return (points * cells).long()


def _rand(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, device=like.device)


def _seeded(seed: int, site: int, shape: tuple[int, ...]) -> Tensor:
    """Return the uniform noise of one site, whose stream is its own."""
    streams = torch.randint(2**62, (site,), generator=torch.Generator().manual_seed(seed))
    stream = torch.Generator().manual_seed(int(streams[-1]))
    return torch.rand(shape, dtype=torch.float64, generator=stream)


def _open(uniform: Tensor, like: Tensor) -> Tensor:
    """Move numbers in [0, 1] to the nearest cell's centre, on a grid that ``like``'s precision holds exactly.

    There u is never 0 or 1, as rounding alone would make it, and 1 - u is exact: mirror images match to the last bit.
    """
    cells = 1 / torch.finfo(like.dtype).eps
    return (((uniform * cells).floor().clamp(max=cells - 1) + 0.5) / cells).to(like.dtype)


@singledispatch
def _transport(fn: Any, draw: Draw) -> Tensor:
    """Return a draw of a distribution as a differentiable function of uniform noise.

    Arguments:
        fn: the distribution, expanded to the batch shape of its plates.
        draw: returns noise in (0, 1) of a shape, in the precision and place of a tensor.

    Raises:
        NotImplementedError: with the reason.
    """
    if getattr(type(fn), "icdf", td.Distribution.icdf) is td.Distribution.icdf:
        raise NotImplementedError(f"{type(fn).__name__} has no inverse cumulative distribution function")
    values = (getattr(fn, name, None) for name in fn.arg_constraints)
    like = next((value for value in values if isinstance(value, Tensor)), torch.empty(()))
    return fn.icdf(draw(_shape(fn), like))


@_transport.register(td.Independent)
def _(fn: td.Independent, draw: Draw) -> Tensor:
    return _transport(fn.base_dist, draw)


@_transport.register(ExpandedDistribution)
def _(fn: Any, draw: Draw) -> Tensor:
    own = len(fn.base_dist.batch_shape)
    return _transport(fn.base_dist, lambda shape, like: draw(fn.batch_shape + shape[own:], like))


_transport.register(Kumaraswamy, _transport.dispatch(object))  # by its icdf, and not by its transforms


@_transport.register(td.TransformedDistribution)
def _(fn: td.TransformedDistribution, draw: Draw) -> Tensor:
    if type(fn).rsample is not td.TransformedDistribution.rsample:  # such as Pyro's straight-through relaxations
        raise NotImplementedError(f"{type(fn).__name__} has a sampler of its own")
    value = _transport(fn.base_dist, draw)
    for transform in fn.transforms:
        value = transform(value)
    return value


@_transport.register(td.HalfNormal)
@_transport.register(td.HalfCauchy)
def _(fn: Any, draw: Draw) -> Tensor:
    # Torch's icdf takes (1 + u) / 2, which rounds to 1; the lower half of a symmetric base has no such end.
    return -fn.base_dist.icdf((1 - draw(_shape(fn), fn.scale)) / 2)


@_transport.register(td.MultivariateNormal)
def _(fn: td.MultivariateNormal, draw: Draw) -> Tensor:
    return fn.loc + _times(fn.scale_tril, _normal(draw(_shape(fn), fn.loc)))


@_transport.register(td.LowRankMultivariateNormal)
def _(fn: td.LowRankMultivariateNormal, draw: Draw) -> Tensor:
    rank, size = fn.cov_factor.shape[-1], fn.event_shape[-1]
    factor, diagonal = _normal(draw(Size((*fn.batch_shape, rank + size)), fn.loc)).split([rank, size], -1)
    return fn.loc + _times(fn.cov_factor, factor) + fn.cov_diag.sqrt() * diagonal


@_transport.register(ExpRelaxedCategorical)
def _(fn: ExpRelaxedCategorical, draw: Draw) -> Tensor:
    gumbel = -(-draw(_shape(fn), fn.logits).log()).log()
    return ((fn.logits + gumbel) / fn.temperature).log_softmax(-1)


@_transport.register(LogitRelaxedBernoulli)
def _(fn: LogitRelaxedBernoulli, draw: Draw) -> Tensor:
    return (fn.logits + draw(_shape(fn), fn.logits).logit()) / fn.temperature


@_transport.register(RelaxedOneHotCategorical)
def _(fn: RelaxedOneHotCategorical, draw: Draw) -> Tensor:
    return fn.draw_of(_transport(fn.base_dist, draw))


@_transport.register(StraightThroughGumbelSoftmax)
def _(fn: StraightThroughGumbelSoftmax, draw: Draw) -> Tensor:
    return fn.draw_of(_transport(fn.relaxed, draw))


@_transport.register(td.Gamma)
def _(fn: td.Gamma, draw: Draw) -> Tensor:
    alpha = fn.concentration.double()
    z = gamma_quantile(alpha, draw(_shape(fn), alpha)).to(fn.concentration)
    return (z / fn.rate).clamp(min=torch.finfo(z.dtype).tiny)


@_transport.register(td.Beta)
def _(fn: td.Beta, draw: Draw) -> Tensor:
    a, b = fn.concentration1.double(), fn.concentration0.double()
    z = beta_quantile(a, b, draw(_shape(fn), a)).to(fn.concentration1)
    return z.clamp(torch.finfo(z.dtype).tiny, 1 - torch.finfo(z.dtype).eps / 2)


@_transport.register(td.Dirichlet)
def _(fn: td.Dirichlet, draw: Draw) -> Tensor:
    alpha = fn.concentration.double()
    after = (alpha.sum(-1, keepdim=True) - alpha.cumsum(-1))[..., :-1]
    sticks = beta_quantile(alpha[..., :-1].contiguous(), after, draw(Size(after.shape), alpha))
    ones = torch.ones_like(alpha[..., :1])
    z = torch.cat([sticks, ones], -1) * torch.cat([ones, 1 - sticks], -1).cumprod(-1)
    return z.to(fn.concentration).clamp(min=torch.finfo(fn.concentration.dtype).tiny)


@_transport.register(td.StudentT)
def _(fn: td.StudentT, draw: Draw) -> Tensor:
    df = fn.df.double()
    u = draw(_shape(fn), df)
    # df / (df + t^2) is a beta variable, which keeps its digits in the tails.
    near = beta_quantile(df / 2, torch.full_like(df, 0.5), 1 - (2 * u - 1).abs())
    t = (u - 0.5).sign() * (df * (1 - near) / near).sqrt()
    return fn.loc + fn.scale * t.to(fn.loc)


@_transport.register(HypersphericalUniform)
def _(fn: HypersphericalUniform, draw: Draw) -> Tensor:
    return directions(_normal(draw(_shape(fn), fn.mean)))


@_transport.register(PowerSpherical)
def _(fn: PowerSpherical, draw: Draw) -> Tensor:
    concentration = fn.concentration.double()
    u, rest = draw(_shape(fn), concentration).tensor_split([1], -1)
    b = torch.full_like(concentration, (fn.event_shape[0] - 1) / 2)
    share = beta_quantile(concentration + b, b, u.squeeze(-1)).unsqueeze(-1)
    aside = 2 * (share * (1 - share)).sqrt() * directions(_normal(rest))
    return fn.turned((2 * share - 1).to(fn.loc), aside.to(fn.loc))


@_transport.register(MixtureOfNormals)
def _(fn: MixtureOfNormals, draw: Draw) -> Tensor:
    return fn.pathwise(fn.quantile(draw(_shape(fn), fn.loc.double())))


@_transport.register(ZukoToPyro)
def _(fn: Any, draw: Draw) -> Tensor:
    # A flow of zuko maps the data to its base; other distributions of zuko are torch's kind.
    if hasattr(fn.dist, "transform") and hasattr(fn.dist, "base"):
        return fn.dist.transform.inv(_transport(fn.dist.base, draw))
    return _transport(fn.dist, draw)


@_transport.register(Delta)
def _(fn: Any, draw: Draw) -> Tensor:  # noqa: ARG001 (a point takes no noise)
    return fn.rsample()


def _shape(fn: Any) -> Size:
    """The shape of a draw; torch's own distributions lack Pyro's ``shape()``."""
    return Size(fn.batch_shape + fn.event_shape)


def _normal(uniform: Tensor) -> Tensor:
    return 2**0.5 * (2 * uniform - 1).erfinv()


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
