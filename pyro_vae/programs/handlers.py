"""Effect handlers that `fit` and `evaluate` put around a pair of Pyro programs."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from pyro import get_param_store
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import transform_to
from torch.distributions.constraints import real

from pyro_vae.distributions.moments import NoMeanError, centre_of

Program = Callable[..., Any]
STORE_HOLDS = "Pyro's parameter store holds"


class KLWeight(Messenger):
    r"""Scale the log-probabilities of a program's latent sites.

    Around both programs it makes any ELBO of Pyro the one of the beta-VAE,

    .. math:: \mathbb{E}_q [\log p(x|z)] - \beta \, \mathrm{KL}(q(z|x) \,\|\, p(z))

    It is ``poutine.scale`` for the latent sites alone, and allows a weight of 0.

    Arguments:
        beta: the weight, at least 0; a tensor if it changes from step to step.

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
        beta: the weight, at least 0; a tensor if it changes from step to step.
        programs: Pyro programs.

    Returns:
        The programs, each with the weight around it.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> (program,) = weigh_kl(0.5, lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))
        >>> pyro.poutine.trace(program).get_trace().nodes["z"]["scale"]
        0.5
    """
    if isinstance(beta, float | int) and beta == 1:
        return programs
    return tuple(KLWeight(beta)(program) for program in programs)


class AtMean(Messenger):
    """Use the mean of every latent site's distribution (on a sphere, its direction) instead of a sample.

    Raises:
        NoMeanError: in the program, at a site whose distribution has no finite mean.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> with AtMean():
        ...     pyro.sample("z", dist.Normal(3.0, 1.0))
        tensor(3.)
    """

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"] and type(msg["fn"]).__name__ != "_Subsample":
            with suppress(NoMeanError):
                msg["value"], msg["done"] = centre_of(msg["fn"]), True
            if not (msg["done"] and msg["value"].isfinite().all()):
                raise NoMeanError(f"site {msg['name']!r} has no finite mean: evaluate at its samples (at='sample')")


class LocalModules(Messenger):
    """Keep the parameters of ``pyro.module`` with their module, and collect all parameters that are met.

    Pyro's parameter store is global, and if it already knows a module's name, it keeps the old module's tensors: the
    second VAE of a process would never train. With this handler, a module's parameters do not enter the store. Those
    that a program makes by ``pyro.param`` do, and stay there, as after ``pyro.infer.SVI``.

    ``parameters`` are those used so far, unconstrained, in the order of first use; ``names`` are the names that the
    programs give them, and ``constraints`` the constraints of ``pyro.param``. ``saved`` holds values of parameters by
    name, with their constraints; a parameter gets its saved value when it is first used. Put the handler around the
    programs, not around their callers: then no outer handler sees a module's parameters, which saves time. Set
    ``shown`` to let outer handlers see them: ``loss_and_grads`` of Pyro's ELBOs computes gradients only if a trace has
    parameters.

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
        self._names: dict[int, str] = {}
        self.shown = False
        self.constraints: dict[str, str] = {}
        self.saved: dict[str, tuple[Tensor, str]] = {}

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters used so far, unconstrained."""
        return list(self._met.values())

    @property
    def names(self) -> list[str]:
        """The names that the programs give the parameters."""
        return list(self._names.values())

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        # pyro.module names a parameter "module$$$parameter" and hands over the parameter itself.
        if "$$$" in msg["name"] and len(msg["args"]) == 2 and isinstance(msg["args"][1], nn.Parameter):
            msg["value"], msg["done"], msg["stop"] = msg["args"][1], True, not self.shown
            if msg["name"] in self.saved:
                self._restore(msg["name"], msg["value"], "")
            self._meet(msg["value"], msg["name"])
        elif msg["name"] in self.saved:
            constraint, store = msg["kwargs"].get("constraint", real), get_param_store()
            with torch.no_grad():
                store.setdefault(msg["name"], transform_to(constraint)(self.saved[msg["name"]][0]), constraint)
            self._restore(msg["name"], store[msg["name"]].unconstrained(), str(constraint))

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        if id(msg["value"]) not in self._met:
            unconstrained = getattr(msg["value"], "unconstrained", lambda: msg["value"])  # none if local to a module
            self._meet(unconstrained(), msg["name"])
            if msg["name"] not in self.constraints:
                self.constraints[msg["name"]] = str(msg["kwargs"].get("constraint", real))
                _check_as_asked(msg)

    @torch.no_grad()
    def _restore(self, name: str, parameter: Tensor, constraint: str) -> None:
        value, constraint_there = self.saved.pop(name)
        for what, there, here in (
            ("shape", tuple(value.shape), tuple(parameter.shape)),
            ("constraint", constraint_there, constraint),
        ):
            if there != here:
                raise ValueError(f"cannot resume: parameter {name!r} has {what} {there} there, and {here} here")
        parameter.copy_(value)  # to the last bit, as the constraint's transform may round

    def _meet(self, parameter: Tensor, name: str) -> None:
        if id(parameter) not in self._met:
            self._met[id(parameter)] = parameter
            self._names[id(parameter)] = name


def _check_as_asked(msg: dict[str, Any]) -> None:
    """Refuse a parameter that Pyro's store already has with another shape or constraint."""
    store, name = get_param_store(), msg["name"]
    if len(msg["args"]) < 2 or name not in store:
        return
    asked = msg["args"][1]
    pairs: dict[str, tuple[Any, Any]] = {
        "constraint": (str(store._constraints[name]), str(msg["kwargs"].get("constraint", real)))
    }
    if isinstance(asked, Tensor):
        pairs["shape"] = tuple(msg["value"].shape), tuple(asked.shape)
    for what, (there, here) in pairs.items():
        if there != here:
            raise ValueError(
                f"{STORE_HOLDS} {name!r} with {what} {there}, but the program asks for {here}: call"
                " pyro.clear_param_store() first"
            )
