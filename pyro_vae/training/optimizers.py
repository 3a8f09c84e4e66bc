"""The optimizers that `fit` takes."""

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.params.param_store import module_from_param_with_module_name, normalize_param_name, user_param_name
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim.lr_scheduler import LRScheduler

from pyro_vae.arguments import as_function
from pyro_vae.runtime.checkpoints import checked_state, stepped
from pyro_vae.runtime.held import TRUSTED, root_of
from pyro_vae.runtime.steps import import_tracers
from pyro_vae.training.descriptions import described, described_programs
from pyro_vae.training.schedules import Schedule

# What a checkpoint keeps of an optimizer, and what torch and `fit` note there.
KEPT_OR_NOTED = {"state", "param_groups", "defaults", "found_inf", "grad_scale", "step", "_opt_called"}
KEPT_OR_NOTED |= {"_need_device_dtype_check_for_fused", "_warned_capturable_if_run_uncaptured"}
Settings = Callable[[str], dict[str, Any]]
Optimizer = Callable[[Any], torch.optim.Optimizer | LRScheduler]


class Groups:
    """An optimizer whose settings depend on the names of the parameters.

    Arguments:
        optimizer: makes a torch optimizer from groups of parameters, such as ``partial(torch.optim.Adam, lr=1e-3)``.
        settings: returns the settings of a parameter by its name, such as "vae.encoder.loc.weight" for a parameter of
            the module that ``pyro.module`` names "vae"; an empty dict keeps the optimizer's own settings.

    Example:
        >>> slow = Groups(torch.optim.Adam, lambda name: {"lr": 1e-4} if name.startswith("vae.encoder") else {})
        >>> optim = slow.made_of({"vae.encoder.bias": torch.zeros(1), "vae.decoder.bias": torch.zeros(1)})
        >>> [group["lr"] for group in optim.param_groups]
        [0.0001, 0.001]
    """

    def __init__(self, optimizer: Optimizer, settings: Settings) -> None:
        self.optimizer, self.settings = as_function(optimizer, "optimizer"), as_function(settings, "settings")

    def made_of(self, named: Mapping[str, Tensor]) -> Any:
        """Return an optimizer of the named parameters, with one group for each different set of settings."""
        groups: list[dict[str, Any]] = []
        for name, parameter in named.items():
            settings = self.of(name)
            same = [group for group in groups if {key: group[key] for key in group if key != "params"} == settings]
            group = same[0] if same else {"params": [], **settings}
            groups += [] if same else [group]
            group["params"].append(parameter)
        return self.optimizer(groups)

    def of(self, name: str) -> dict[str, Any]:
        """Return the settings of a parameter."""
        settings = self.settings(name)
        if not isinstance(settings, dict):
            raise TypeError(f"the settings of a parameter must be a dict, such as {{'lr': 1e-4}}, not {settings!r}")
        return settings


class Made(NamedTuple):
    """An optimizer, its own scheduler, if any, and the settings of parameters that are met later, if it trains them."""

    optim: torch.optim.Optimizer
    scheduler: LRScheduler | None = None
    settings: Settings | None = lambda _: {}


def check_factory(optimizer: Any) -> None:
    """Refuse what is neither an optimizer nor a function that makes one.

    Raises:
        TypeError: with the fix.
    """
    if not isinstance(optimizer, PyroOptim | torch.optim.Optimizer | LRScheduler | Groups):
        as_function(optimizer, "optimizer", "the parameters")


def made_by(optimizer: Any, parameters: list[Tensor], names: Sequence[str] = (), held: Iterable[Tensor] = ()) -> Made:
    """Make a torch optimizer, and its scheduler if it has one, or refuse what `fit` cannot use.

    Arguments:
        optimizer: the argument of `fit`.
        parameters: the parameters to train.
        names: the names that the programs give them, those of ``pyro.module`` as "module$$$parameter".
        held: other tensors that the programs hold, such as parameters of their modules that ``pyro.module`` leaves out.

    Returns:
        The optimizer, its scheduler or None, and the settings of parameters that are met later, or None if an optimizer
        that was given does not train them.

    Raises:
        TypeError, ValueError: with what was received and the fix.

    Example:
        >>> made_by(lambda parameters: None, [torch.zeros(1, requires_grad=True)])
        Traceback (most recent call last):
        ...
        TypeError: optimizer must return a torch optimizer, as partial(torch.optim.Adam, lr=1e-3) does, not None
    """
    if not parameters:
        raise ValueError("the programs have no parameters to train: name them by pyro.module or pyro.param")
    import_tracers()
    named = dict(zip(names, parameters, strict=False))
    if isinstance(optimizer, PyroOptim):
        made = _of_pyro(optimizer, named)
    elif isinstance(optimizer, Groups):
        groups = Groups(optimizer.optimizer, lambda name: optimizer.settings(normalize_param_name(name)))
        made = _as_made(groups.made_of(named))._replace(settings=groups.of)
    elif isinstance(optimizer, torch.optim.Optimizer | LRScheduler):
        made = _as_made(optimizer)._replace(settings=None)
    else:
        made = _as_made(optimizer(parameters))
    _check_usable(made.optim)
    check_flags(made.optim)
    _check_parameters(made.optim, parameters, held)
    _check_hooks(parameters)
    return made


def _as_made(made: Any) -> Made:
    scheduler = made if isinstance(made, LRScheduler) else None
    optim = scheduler.optimizer if scheduler else made
    if not isinstance(optim, torch.optim.Optimizer):
        such = "a torch optimizer, as partial(torch.optim.Adam, lr=1e-3) does"
        raise TypeError(f"optimizer must return {such}, not {'None' if made is None else f'a {type(made).__name__}'}")
    return Made(optim, scheduler)


def _check_usable(optim: torch.optim.Optimizer) -> None:
    closure = inspect.signature(optim.step).parameters.get("closure")
    if isinstance(optim, torch.optim.SparseAdam) or (closure and closure.default is closure.empty):
        needs = "sparse gradients" if isinstance(optim, torch.optim.SparseAdam) else "several evaluations of a loss"
        raise ValueError(
            f"{type(optim).__name__} needs {needs}, which a step here does not give: take torch.optim.Adam"
        )


def check_flags(optim: torch.optim.Optimizer) -> None:
    """Refuse an optimizer with flags that torch does not have for its parameters.

    Raises:
        ValueError: with the fix.

    Example:
        >>> check_flags(torch.optim.Adam([torch.zeros(1, dtype=torch.complex64)], fused=None))
    """
    kind = type(optim).__name__
    for group in optim.param_groups:
        if group.get("fused") and any(parameter.is_complex() for parameter in group["params"]):
            reason = f"a fused {kind} takes no complex parameters, which the programs have"
        elif group.get("differentiable"):
            reason = f"{kind}(differentiable=True) cannot change parameters that are trained"
        elif group.get("capturable") and any(parameter.device.type == "cpu" for parameter in group["params"]):
            reason = f"{kind}(capturable=True) takes no parameters on a CPU"
        else:
            continue
        fix = f"give another one, such as optimizer=partial(torch.optim.{kind}, lr={float(group['lr'])})"
        raise ValueError(f"{reason}: {fix}")


def _check_parameters(optim: torch.optim.Optimizer, parameters: list[Tensor], held: Iterable[Tensor]) -> None:
    """Refuse an optimizer of other parameters than those of the programs."""
    own = {id(parameter): parameter for group in optim.param_groups for parameter in group["params"]}
    if own.keys().isdisjoint(map(id, parameters)):
        raise ValueError(
            f"the {type(optim).__name__} holds none of the programs' parameters: make it from the parameters that it is"
            " called with, or from modules that the programs name by pyro.module"
        )
    if others := [own[key] for key in own.keys() - set(map(id, [*parameters, *held]))]:
        raise ValueError(
            f"the {type(optim).__name__} holds {len(others)} of {len(own)} parameters that are not the programs',"
            f" such as one of shape {tuple(others[0].shape)}: name their module by pyro.module, or leave them out"
        )


def _check_hooks(parameters: Sequence[Tensor]) -> None:
    """Refuse hooks that torch calls only where a backward pass adds to ``grad``, as a step here computes gradients."""
    for parameter in parameters:
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"a parameter of shape {tuple(parameter.shape)} has a hook by register_post_accumulate_grad_hook, which"
                " would not be called: change its gradient by register_hook, or by the optimizer's"
                " register_step_pre_hook"
            )


def _of_pyro(optimizer: PyroOptim, named: Mapping[str, Tensor]) -> Made:
    """Return the torch optimizer that one of pyro.optim stands for, with its arguments, clipping and scheduler."""
    kind = type(optimizer).__name__
    if not isinstance(optimizer, PyroLRScheduler) and type(optimizer) is not PyroOptim:
        raise TypeError(f"optimizer must be one of torch.optim or pyro.optim for one process, not {kind}")
    clipping = optimizer.pt_clip_args
    if callable(clipping) or set(clipping) - {"clip_norm", "clip_value"}:
        raise TypeError(f"the clip_args of pyro.optim must be a dict of clip_norm and clip_value, not {clipping!r}")
    groups = Groups(optimizer.pt_optim_constructor, partial(_settings_of_pyro, optimizer))
    optim = _as_made(groups.made_of(named)).optim
    if clipping:
        optim.register_step_pre_hook(partial(_clip_each, **clipping))
    by_epoch = isinstance(optimizer, PyroLRScheduler)
    return Made(optim, optimizer.pt_scheduler_constructor(optim, **optimizer.kwargs) if by_epoch else None, groups.of)


def _settings_of_pyro(optimizer: PyroOptim, name: str) -> dict[str, Any]:
    settings = optimizer.pt_optim_args
    if not callable(settings):
        return settings
    if optimizer.pt_optim_args_argc == 1:
        return settings(normalize_param_name(name))
    return settings(module_from_param_with_module_name(name), user_param_name(name))


def _clip_each(
    optim: torch.optim.Optimizer, _: Any, __: Any, *, clip_norm: float | None = None, clip_value: float | None = None
) -> None:
    """Clip the gradient of each parameter by itself, as pyro.optim does."""
    for group in optim.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and clip_norm is not None:
                clip_grad_norm_(parameter, clip_norm)
            if parameter.grad is not None and clip_value is not None:
                clip_grad_value_(parameter, clip_value)


def described_optimizer(optim: torch.optim.Optimizer, schedule: Schedule) -> dict[str, Any]:
    """Return the settings of an optimizer and its schedule as they begin, one by one."""
    groups = [settings_of(group) for group in optim.param_groups]
    values = {f"optimizer {name}": [group.get(name) for group in groups] for name in groups[0]}
    same = {name: value[0] if len(value) == 1 else value for name, value in values.items()}
    kind = type(optim).__name__ if root_of(type(optim)) in TRUSTED else described(type(optim))
    return {"optimizer": kind, "scheduler": schedule.described(), **same}


def check_resumable(optim: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that a checkpoint cannot hold, while nothing is lost.

    Raises:
        TypeError, ValueError: with what it cannot hold.
    """
    for state in stepped(optim).state.values():
        for name, value in state.items():
            if not isinstance(value, Tensor):
                as_plain(value, f"state {name!r}")
    check_state(optim)


def check_state(optim: torch.optim.Optimizer) -> None:
    """Refuse an optimizer's state that could not be resumed: its parts are not those that a first step makes.

    Raises:
        ValueError: with the part.
    """
    new, saved = copy.copy(optim), optim.state_dict()
    new.state = defaultdict(dict)
    groups = [settings_of(group, params=group["params"]) for group in saved["param_groups"]]
    try:
        checked_state(new, {"state": saved["state"], "param_groups": groups})
    except ValueError as error:
        fix = "keep it in its first form, or train without checkpoints"
        what = f"what {type(optim).__name__} has made of its state or its groups since its first step"
        raise ValueError(f"a checkpoint cannot hold {what}: {fix} ({error})") from error


def held_by(optim: torch.optim.Optimizer, values: Mapping[str, Any] = {}) -> str:
    """Return a digest of what an optimizer holds besides its groups and their state, such as hooks.

    Arguments:
        optim: the optimizer.
        values: the tensors that training changes, by name; only the names count.

    Example:
        >>> optim = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> before, optim.count = held_by(optim), 1
        >>> held_by(optim) == before
        False
    """
    own = {name: value for name, value in vars(optim).items() if name not in KEPT_OR_NOTED}
    # Hooks are known by numbers that count all hooks of the process.
    told = {name: list(value.values()) if name.endswith("_hooks") else value for name, value in own.items()}
    known: dict[str, Any] = {**values, "the optimizer": optim}
    return described_programs([told], known)[0]


def settings_of(group: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the settings of an optimizer's group, as plain values, and more.

    Example:
        >>> settings_of({"lr": torch.tensor(0.5), "betas": (0.9, 0.99), "params": []})
        {'lr': 0.5, 'betas': [0.9, 0.99]}
    """
    return {name: as_plain(value, name) for name, value in group.items() if name != "params"} | more


def as_plain(value: Any, name: str) -> Any:
    """Return a setting or a state as a value that JSON can hold; a number of torch or numpy becomes one of Python.

    Raises:
        TypeError: for a value that JSON cannot hold.
    """
    if (isinstance(value, Tensor) and value.dim() == 0) or isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return [as_plain(each, name) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold the optimizer's {name}, a {type(value).__name__}: train without one")


def as_in(group: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return plain settings in the types of a group's settings, such as tensors, as rounding depends on the type.

    Example:
        >>> as_in({"lr": torch.tensor(0.1), "eps": 1e-8}, {"lr": 0.5, "eps": 1e-6})
        {'lr': tensor(0.5000), 'eps': 1e-06}
    """
    return {name: _as(value, group.get(name)) for name, value in settings.items()}


def _as(value: Any, like: Any) -> Any:
    if isinstance(like, list | tuple):
        return list(map(_as, value, like))
    if isinstance(like, np.generic):
        return type(like)(value)
    return torch.full_like(like, value) if isinstance(like, Tensor) else value
