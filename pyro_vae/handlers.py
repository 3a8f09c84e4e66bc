"""Effect handlers: what `fit` and `evaluate` put around a pair of Pyro programs."""

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.distributions import centre_of

Program = Callable[..., Any]


class KLWeight(Messenger):
    r"""Scale the log-probabilities of a program's latent sites.

    Around both programs it makes any ELBO of Pyro the one of the beta-VAE,

    .. math:: \mathbb{E}_q [\log p(x|z)] - \beta \, \mathrm{KL}(q(z|x) \,\|\, p(z))

    It is ``poutine.scale`` for the latent sites alone, and allows a weight of 0.

    Arguments:
        beta: the weight, at least 0; a tensor where it changes from step to step.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> trace = pyro.poutine.trace(KLWeight(4.0)(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))).get_trace()
        >>> trace.nodes["z"]["scale"]
        4.0

    Reference:
        Higgins et al., 2017, beta-VAE, equation 4.
    """

    def __init__(self, beta: Tensor | float) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"]:
            msg["unweighed_scale"] = msg["scale"]  # for reports at weight 1
            msg["scale"] = msg["scale"] * self.beta


def weigh_kl(beta: Tensor | float, *programs: Program) -> tuple[Program, ...]:
    """Put a `KLWeight` around each program, unless the weight is 1.

    Arguments:
        beta: the weight, at least 0; a tensor where it changes from step to step.
        programs: Pyro programs.

    Returns:
        As many programs.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> (program,) = weigh_kl(0.5, lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))
        >>> pyro.poutine.trace(program).get_trace().nodes["z"]["scale"]
        0.5
    """
    if isinstance(beta, float | int) and beta == 1:
        return programs
    return tuple(KLWeight(beta)(program) for program in programs)


class NoMeanError(TypeError):
    """A latent site has no finite mean, or the model does not take it."""


class AtMean(Messenger):
    """Take the mean of every latent site's distribution, on a sphere its direction, in place of a sample.

    Raises:
        NoMeanError: within, at a site whose distribution has no finite mean.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> with AtMean():
        ...     pyro.sample("z", dist.Normal(3.0, 1.0))
        tensor(3.)
    """

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"] and type(msg["fn"]).__name__ != "_Subsample":
            msg["value"], msg["done"] = centre_of(msg["fn"]), True
            if not msg["value"].isfinite().all():
                raise NoMeanError(f"site {msg['name']!r} has no finite mean: evaluate at its samples (at='sample')")


class LocalModules(Messenger):
    """Keep the parameters of ``pyro.module`` with their module, and collect all parameters that are met.

    Pyro's parameter store is global, and where it knows a module's name already it keeps the old module's tensors:
    the second VAE of a process would never train. Here a module's parameters do not enter the store. Those that a
    program makes with ``pyro.param`` do, and stay there, as after ``pyro.infer.SVI``.

    ``parameters`` holds what was met, unconstrained, in the order of first use. The programs are to be wrapped, not
    their callers: a module's parameters then stop here, and no handler further out spends time on them.

    Example:
        >>> import pyro
        >>> local = LocalModules()
        >>> layer = local(pyro.module)("layer", nn.Linear(3, 2))
        >>> [tuple(parameter.shape) for parameter in local.parameters]
        [(2, 3), (2,)]
        >>> "layer$$$weight" in pyro.get_param_store()
        False
    """

    def __init__(self) -> None:
        super().__init__()
        self._met: dict[int, Tensor] = {}

    @property
    def parameters(self) -> list[Tensor]:
        """The unconstrained parameters met so far."""
        return list(self._met.values())

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        # pyro.module names a parameter "module$$$parameter" and hands over the parameter itself.
        if "$$$" in msg["name"] and len(msg["args"]) == 2 and isinstance(msg["args"][1], nn.Parameter):
            msg["value"], msg["done"], msg["stop"] = msg["args"][1], True, True
            self._met.setdefault(id(msg["value"]), msg["value"])

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        if id(msg["value"]) not in self._met:
            parameter = msg["value"].unconstrained()
            self._met.setdefault(id(parameter), parameter)
