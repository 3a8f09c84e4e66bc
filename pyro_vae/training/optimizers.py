"""The optimizers that `fit` takes, and the schedules of their learning rates."""

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from pyro_vae.checkpoints import checked_state
from pyro_vae.engine import TRUSTED, import_tracers, root_of
from pyro_vae.networks import as_function
from pyro_vae.training.descriptions import described

NOT_BY_EPOCH = (CyclicLR, OneCycleLR, ReduceLROnPlateau)  # by batch, or by a measure
# What a checkpoint keeps of an optimizer, and what torch and `fit` note there.
KEPT_OR_NOTED = {"state", "param_groups", "defaults", "found_inf", "grad_scale", "step", "_opt_called"}
KEPT_OR_NOTED |= {"_need_device_dtype_check_for_fused", "_warned_capturable_if_run_uncaptured"}
Optimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer | LRScheduler]


def check_factory(optimizer: Any) -> None:
    """Refuse what makes no optimizer.

    Raises:
        TypeError: with the fix.
    """
    if isinstance(optimizer, PyroOptim | torch.optim.Optimizer | LRScheduler):
        named = getattr(optimizer, "pt_optim_constructor", type(optimizer))
        kind = f"{'one of pyro.optim: ' if isinstance(optimizer, PyroOptim) else 'a made '}{named.__name__}"
        such = "a torch optimizer from the parameters, such as partial(torch.optim.Adam, lr=1e-3)"
        raise TypeError(f"optimizer must be a function that makes {such}, not {kind}")
    as_function(optimizer, "optimizer")


def made_by(optimizer: Optimizer, parameters: list[Tensor]) -> tuple[torch.optim.Optimizer, LRScheduler | None]:
    """Have a torch optimizer, and its scheduler if any, made from the parameters, or refuse what `fit` cannot use.

    Arguments:
        optimizer: what `fit` takes.
        parameters: what it is to train.

    Returns:
        The optimizer, and the scheduler or None.

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
    such = "a torch optimizer, as partial(torch.optim.Adam, lr=1e-3) does"
    import_tracers()
    made = optimizer(parameters)
    scheduler = made if isinstance(made, LRScheduler) else None
    optim = scheduler.optimizer if scheduler else made
    name = type(scheduler or optim).__name__
    if not isinstance(optim, torch.optim.Optimizer):
        raise TypeError(f"optimizer must return {such}, not {'None' if made is None else f'a {name}'}")
    if isinstance(scheduler, NOT_BY_EPOCH):
        raise ValueError(f"{name} does not step once an epoch, as fit does: take LambdaLR, or set the rate in on_step")
    closure = inspect.signature(optim.step).parameters.get("closure")
    if isinstance(optim, torch.optim.SparseAdam) or (closure and closure.default is closure.empty):
        needs = "sparse gradients" if isinstance(optim, torch.optim.SparseAdam) else "several evaluations of a loss"
        raise ValueError(f"{name} needs {needs}, which a step here does not give: take torch.optim.Adam")
    own = {id(parameter) for group in optim.param_groups for parameter in group["params"]}
    if own.isdisjoint(map(id, parameters)):
        raise ValueError(
            f"the {name} holds none of the programs' parameters: make it from those that it is called with"
        )
    return optim, scheduler


def step_by_epoch(scheduler: LRScheduler | None, epochs: int) -> None:
    """Bring a scheduler, if there is one, to where it is so many epochs later."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of")  # of a resumed training: its steps were taken before
        for _ in range(epochs if scheduler else 0):
            scheduler.step()  # type: ignore[union-attr]


def described_optimizer(optim: torch.optim.Optimizer, scheduler: LRScheduler | None) -> dict[str, Any]:
    """Return the settings of an optimizer and its scheduler as they begin, one by one."""
    groups = [settings_of(group) for group in optim.param_groups]
    values = {f"optimizer {name}": [group.get(name) for group in groups] for name in groups[0]}
    same = {name: value[0] if len(value) == 1 else value for name, value in values.items()}
    schedule = described(_schedule(scheduler)).replace("list", type(scheduler).__name__) if scheduler else None
    kind = type(optim).__name__ if root_of(type(optim)) in TRUSTED else described(type(optim))
    return {"optimizer": kind, "scheduler": schedule, **same}


def check_resumable(optim: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that a checkpoint cannot hold, while nothing is lost.

    Raises:
        TypeError, ValueError: with what it cannot hold.
    """
    groups = [settings_of(group, params=group["params"]) for group in optim.state_dict()["param_groups"]]
    checked_state(optim, {"state": {}, "param_groups": groups})


def held_by(optim: torch.optim.Optimizer) -> Any:
    """Return a digest of what an optimizer holds of its own beside its groups and their state, such as hooks.

    Example:
        >>> optim = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> before, optim.count = held_by(optim), 1
        >>> held_by(optim) == before
        False
    """
    own = {name: value for name, value in vars(optim).items() if name not in KEPT_OR_NOTED}
    # Hooks are known by numbers that count all hooks of the process.
    return described({name: list(value.values()) if name.endswith("_hooks") else value for name, value in own.items()})


def _schedule(scheduler: LRScheduler) -> list[Any]:
    """Return what a scheduler computes with, and what those that it is made of do."""
    parts = map(_schedule, getattr(scheduler, "_schedulers", ()))
    return [type(scheduler), scheduler.state_dict(), getattr(scheduler, "lr_lambdas", None), *parts]


def settings_of(group: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the settings of an optimizer's group, as plain values, and more.

    Example:
        >>> settings_of({"lr": torch.tensor(0.5), "betas": (0.9, 0.99), "params": []})
        {'lr': 0.5, 'betas': [0.9, 0.99]}
    """
    return {name: as_plain(value, name) for name, value in group.items() if name != "params"} | more


def as_plain(value: Any, name: str) -> Any:
    """Return what JSON holds of a setting or a state of an optimizer.

    Raises:
        TypeError: for what it does not hold.
    """
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    if isinstance(value, list | tuple):
        return [as_plain(each, name) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold the optimizer's {name}, a {type(value).__name__}: train without one")


def as_in(group: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return plain settings as tensors where those of an optimizer's group are: a tensor of 32 bits is no number of 64.

    Example:
        >>> as_in({"lr": torch.tensor(0.1), "eps": 1e-8}, {"lr": 0.5, "eps": 1e-6})
        {'lr': tensor(0.5000), 'eps': 1e-06}
    """
    return {name: _as(value, group.get(name)) for name, value in settings.items()}


def _as(value: Any, like: Any) -> Any:
    if isinstance(like, list | tuple):
        return list(map(_as, value, like))
    return torch.full_like(like, value) if isinstance(like, Tensor) else value
