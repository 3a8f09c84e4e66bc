"""The state of a training: everything that its next step depends on, saved as tensors and plain values, and loaded."""

import copy
import json
import math
import random
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro.params.param_store import normalize_param_name
from torch import Tensor

from pyro_vae.data import Rows
from pyro_vae.diagnostics.evaluation import Bound
from pyro_vae.runtime.checkpoints import (
    COLUMNS,
    Checkpoints,
    Tensors,
    as_file,
    check_group,
    check_random,
    check_tensors,
    checked_state,
)
from pyro_vae.runtime.distributed import BETWEEN_LOOKS
from pyro_vae.runtime.precision import BETWEEN_FLUSHES, flush_subnormal
from pyro_vae.training.baselines import BASELINE, baselines, forget_replaced, set_baselines
from pyro_vae.training.batches import Batches
from pyro_vae.training.descriptions import described
from pyro_vae.training.history import History, Measure
from pyro_vae.training.optimizers import (
    Settings,
    as_in,
    as_plain,
    check_flags,
    check_resumable,
    check_state,
    held_by,
    settings_of,
)
from pyro_vae.training.programs import Programs
from pyro_vae.training.schedules import Schedule

CHANGES = (
    "the {} changes what it holds in Python, such as a count, and a checkpoint does not keep that: if its results"
    " depend on it, a resumed training will differ; keep it in a buffer of a module, or in the optimizer's state"
)
ORDERS = (
    "the data count in Python, or draw from generators of numpy or Python, and a checkpoint does not keep that: if"
    " order or values depend on it, a resumed training will differ; let them draw from a torch.Generator that they hold"
)
DREW = (
    "numbers were drawn from numpy's or Python's random state, which a checkpoint does not keep: if the programs or the"
    " transform draw from it, a resumed training will differ; let them draw from torch"
)
WORKERS = (
    "the loader has persistent workers, whose random states a checkpoint does not keep: if they draw random numbers, a"
    " resumed training will differ; leave out persistent_workers"
)
OTHERS = (
    "the {} begin with other values than those that the checkpoint was made with: unless they are drawn anew each"
    " time, they are other data, and the resumed training will differ"
)
CALLED = ("model", "guide", "transform", "beta", "loss", "optimizer")  # what is described, in this order


class State:
    """The state of a training: what it has done, and everything that its next step depends on.

    ``epoch`` counts from 1, ``step`` from 0 over all epochs, ``batches`` from 0 within the epoch; ``totals`` are those
    of the current epoch, and ``order_state`` is the order's random state at its start.

    Arguments:
        programs: the model and the guide.
        optim: the optimizer of their parameters.
        batches: the data, whose order is part of the state.
        history: the rows measured so far.
        schedule: the schedule of the learning rate.
        settings: plain values in which a checkpoint must be equal to be resumed.
        settings_by_name: returns the optimizer's settings for parameters that appear later; None if these are not
            trained.
        test: the validation data.
    """

    def __init__(
        self,
        programs: Programs,
        optim: torch.optim.Optimizer,
        batches: Batches,
        history: History,
        schedule: Schedule | None = None,
        settings: dict[str, Any] | None = None,
        settings_by_name: Settings | None = lambda _: {},
        test: Rows | None = None,
    ) -> None:
        self.programs, self.optim, self.settings = programs, optim, settings or {}
        self.schedule, self.settings_by_name = schedule or Schedule(), settings_by_name
        self.sources, self.ranks, self.device = batches.sources, batches.ranks, batches.x.device
        self.history = history
        self.epoch, self.step, self.batches, self.seconds = 1, 0, 0, 0.0
        self.totals = torch.zeros(4, dtype=torch.float64, device=self.device)  # of three terms and of the data
        self.order_state = self.sources.get_state()
        self.best: tuple[float, Tensors] = math.inf, {}
        self.described: list[list[str]] = []  # the programs as they came, and after the checks of `fit`
        self.parts: list[dict[str, str]] = []  # what they hold after the checks, by name
        # The optimizer's settings and state of parameters that are yet to appear; no state without a gradient so far.
        self._late: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {}
        self._met, self.own, self._sources = programs.parameters, self._held(), _sources()
        self._sizes = {name: value.shape for name, value in programs.values().items() if name.startswith("buffer/")}
        # Of iterables of data, a hash of the first ones, by which others are noticed on resuming.
        self._read = {"data": batches.digest, "validation data": getattr(test, "digest", None)}
        self._data, self._began_at = batches, described(batches.numbers())
        self._started: float | None = None

    def begin(
        self, settings: Mapping[str, Any], as_given: list[str], checked: list[str], parts: list[dict[str, str]]
    ) -> None:
        """Note the settings of the training, and refuse what a checkpoint cannot hold before any work is lost.

        Arguments:
            settings: by name, the values in which a checkpoint must be equal to be resumed.
            as_given: the programs, described as they came.
            checked: the programs, described after the checks of `fit`.
            parts: what they hold, described by name after these checks.
        """
        dtype = str(torch.get_default_dtype())  # of tensors that the programs make
        self.settings = {name: as_plain(value, name) for name, value in settings.items()} | {"default_dtype": dtype}
        check_resumable(self.optim)
        if self._data.has_lasting_workers:
            warnings.warn(WORKERS, RuntimeWarning, stacklevel=4)
        self.described, self.parts = [[*each, self.own] for each in (as_given, checked)], parts
        as_file(*self.save())

    def resume(self, checkpoints: Checkpoints, epochs: int, patience: int | None) -> None:
        """Load a checkpoint, and with patience also its best parameters."""
        self.load(*checkpoints.read())
        check_epochs(epochs, self.begun)
        if patience:
            self.best = self.best[0], checkpoints.read_best(self.best[0], self.programs.values(), self.settings)

    def start_epoch(self) -> None:
        """Start the clock."""
        self._started = time.perf_counter() - self.seconds

    def end_step(self) -> None:
        """Advance to the next step."""
        self.step += 1
        self.batches += 1
        self.schedule.after_step()
        if self.step % BETWEEN_FLUSHES == 0:
            flush_subnormal(self.optim)
            forget_replaced()
        if self.step % BETWEEN_LOOKS == 0:
            self._share()

    def end_epoch(self, measure: Measure) -> None:
        """Measure the epoch, and advance to the next one."""
        measure.check()
        self._share()
        seconds = self._elapsed()
        self.history.append(measure.row(self.epoch, Bound(*self.means()), self.rate, seconds))
        self._keep_best()
        self.epoch += 1
        self.batches, self.seconds, self._started = 0, 0.0, None
        self.totals.zero_()
        self.order_state = self.sources.get_state()
        self.schedule.after_epoch(self.history[-1])

    @property
    def begun(self) -> int:
        """The last epoch of which a step has been taken."""
        return self.epoch - (self.batches == 0)

    @property
    def rate(self) -> float:
        """The learning rate of the optimizer's first group of parameters."""
        return float(self.optim.param_groups[0].get("lr", math.nan))

    def has_waited(self, patience: int | None) -> bool:
        """Whether the test loss has not improved for so many epochs; False if patience is None."""
        losses = [math.inf if math.isnan(loss) else loss for loss in self.history.column("test_loss")[1:]]
        return patience is not None and bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience

    def restore_best(self) -> None:
        """Restore the parameters and buffers with the lowest test loss."""
        if self.best[1]:
            self.programs.restore(self.best[1])

    def count(self, terms: Sequence[Tensor], data: int | Tensor) -> None:
        """Add a step's terms, which are sums over so many data, to the totals of the epoch."""
        count = data.to(self.totals) if isinstance(data, Tensor) else self.totals.new_full((), data)
        self.totals += torch.stack([*(term.to(self.totals) for term in terms), count])

    def means(self) -> list[float]:
        """Return the epoch's mean terms per datum; NaN if no step counted."""
        return (self.totals[:3] / self.totals[3]).tolist()

    def _share(self) -> None:
        """Give every rank the values of rank 0, as programs and baselines may change some of them by its own data."""
        if self.ranks.size == 1:
            return
        means = list(baselines().values())
        shapes = {"the shapes of a baseline's running means": [tuple(mean.shape) for mean in means]}
        self.ranks.check_same(shapes, "take batches that the processes split evenly")
        self.ranks.broadcast([*self.programs.tensors, *means])

    def _keep_best(self) -> None:
        """Keep a copy of the parameters and buffers if the last row's test loss is the lowest."""
        loss = self.history[-1]["test_loss"]
        if loss < self.best[0]:
            self.best = loss, {name: tensor.detach().clone() for name, tensor in self.programs.values().items()}

    def _held(self) -> str:
        """Return a digest of what the optimizer holds of its own."""
        return held_by(self.optim, self.programs.values())

    def _elapsed(self) -> float:
        return self.seconds if self._started is None else time.perf_counter() - self._started

    def save(self) -> tuple[Tensors, dict[str, Any]]:
        """Return the state of the training; it is the same on every rank.

        Returns:
            Tensors by name, and plain values.

        Raises:
            TypeError: for an optimizer whose state holds anything else.
            ValueError: for an optimizer that holds a parameter without a name.
        """
        self.seconds, optim, local = self._elapsed(), self.optim, self.programs.local
        if self._held() != self.own:
            warnings.warn(CHANGES.format("optimizer"), RuntimeWarning, stacklevel=4)
        if described(self._data.numbers()) != self._began_at:
            warnings.warn(ORDERS, RuntimeWarning, stacklevel=4)
        if _sources() != self._sources:
            warnings.warn(DREW, RuntimeWarning, stacklevel=4)
        check_state(optim)
        values = self.programs.values(strict=True)
        self._check_sizes(values)
        names = {id(value): name for name, value in reversed(values.items())}
        late = {f"param/{name}": value for name, (value, _) in local.saved.items()}
        tensors = values | late | {f"baseline/{name}": mean for name, mean in baselines().items()}
        tensors |= {"order": self.order_state, "totals": self.totals}
        for rank, source in enumerate(self.ranks.gather(_random_state(self.device))):
            tensors[f"random/{rank}"] = source
        left = self._left_out(values)
        states = {_name(each, names): state for each, state in optim.state.items() if id(each) not in left}
        states |= {name: state for name, (_, state) in self._late.items() if state is not None}
        plain: dict[str, dict[str, Any]] = {name: {} for name in states}
        for name, state in states.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{name}/{key}"] = value
                else:
                    plain[name][key] = as_plain(value, f"state {key!r}")
        names |= {number: name for number, name in left.items() if name}
        groups = []
        for group in optim.param_groups:  # a parameter may have been replaced more than once
            trained = dict.fromkeys(_name(p, names) for p in group["params"] if left.get(id(p), True))
            groups.append(settings_of(group, params=list(trained)))
        groups += [group | {"params": [name]} for name, (group, _) in self._late.items()]
        about = {
            **{name: getattr(self, name) for name in ("epoch", "step", "batches", "seconds", "settings")},
            "history": list(self.history),
            "best": self.best[0],
            "optimizer": {"state": plain, "groups": groups},
            "constraints": local.constraints | {name: there for name, (_, there) in local.saved.items()},
            "frozen": self.programs.frozen(),
            "read": self._read,
            "programs": [*self.described[1], *self.programs.described(), self._held()],
            "parts": self.parts,
        }
        return tensors, about

    def _left_out(self, values: Tensors) -> dict[int, str]:
        """Return the parameters that others have replaced, with the names of those that the optimizer has yet to get.

        The name is "" if it has the other one, or if there is none. The new one begins without a state.
        """
        trained = {id(each) for group in self.optim.param_groups for each in group["params"]}
        yet = {name for name, value in values.items() if id(value) not in trained}
        return {number: name if name in yet else "" for number, name in self.programs.replaced().items()}

    def load(self, tensors: Tensors, about: dict[str, Any]) -> None:
        """Load a checkpoint: programs, optimizer, schedule, random states, position and history.

        A parameter that the programs have not used yet gets its value, and its part of the optimizer's state, when they
        first use it.

        Arguments:
            tensors: the tensors that `save` returned.
            about: the plain values that it returned.

        Raises:
            ValueError: if the checkpoint is of another training, with what differs.
        """
        rows = [dict.fromkeys(COLUMNS, math.nan) | row for row in about["history"]]
        self.schedule.go_to(rows[1:], about["step"])
        if self.ranks.rank == 0:  # others may hold things of their own, such as their device
            check_settings_of(about["settings"], self.settings)
        read = about["read"]
        for name in [name for name, digest in self._read.items() if read.get(name) != digest]:
            warnings.warn(OTHERS.format(name), RuntimeWarning, stacklevel=4)
        values = self.programs.values()
        self._check_values(tensors, about, values)
        count = len(CALLED)
        if self.ranks.rank == 0:
            self._check_programs(about["programs"][:count], about["programs"][count:], about["parts"])
        self.described[1], self.parts = about["programs"][:count], about["parts"]
        if strange := [name for name in about["frozen"] if not (isinstance(name, str) and name in tensors)]:
            raise ValueError(f"cannot resume: the checkpoint has frozen={strange}, which are none of its parameters")
        sources = {f"random/{rank}": _random_state(self.device) for rank in range(self.ranks.size)}
        check_tensors(tensors, {"order": self.order_state, "totals": self.totals, **sources})
        for state in tensors["order"].split(len(torch.get_rng_state())):
            check_random("order", state.clone(), torch.device("cpu"))  # torch does not take a part of a tensor
        for name in sources:
            check_random(name, tensors[name], self.device)
        for name, value in tensors.items():
            kind, _, own = name.partition("/")
            if kind == "param" and name not in values:
                self.programs.local.saved[own] = value, about["constraints"].get(own, "")
        means = {name.removeprefix("baseline/"): mean for name, mean in tensors.items() if name.startswith("baseline/")}
        set_baselines({name: mean.to(self.device) for name, mean in means.items() if name.startswith(BASELINE)})
        self._load_optimizer(tensors, about["optimizer"], values)
        self.programs.restore({name: value.to(self.device) for name, value in tensors.items() if _is_value(name)})
        for name, tensor in values.items():
            if not name.startswith("buffer/"):
                tensor.requires_grad_(name not in about["frozen"])
        for name in ("epoch", "step", "batches", "seconds"):
            setattr(self, name, about[name])
        self.history[:] = rows
        self.best = about["best"], {}
        self.totals = tensors["totals"].to(self.device)
        self.order_state = tensors["order"]
        self.sources.set_state(self.order_state)
        _set_random_state(tensors[f"random/{self.ranks.rank}"], self.device)

    def _check_values(self, tensors: Tensors, about: dict[str, Any], values: Tensors) -> None:
        there = {name for name in tensors if _is_value(name)}
        late = {name for name in there if name.startswith("param/")}
        late |= {name for name, place in self.programs.places().items() if getattr(*place) is None}
        for names, holder, other in (
            (there - late - set(values), "the checkpoint", "the programs do"),
            (set(values) - there, "the programs", "the checkpoint does"),
        ):
            if names:
                raise ValueError(f"cannot resume: {holder} hold{'s' * (names <= there)} {min(names)}, and {other} not")
        for name, tensor in values.items():
            if tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
                sizes = " and ".join(f"{value.dtype} {tuple(value.shape)}" for value in (tensors[name], tensor))
                raise ValueError(f"the checkpoint's {name} and the programs' differ: {sizes}")
        met = {name.removeprefix("param/") for name in values}
        for name, here in self.programs.local.constraints.items():
            if name in met and about["constraints"].get(name) != here:
                both = f"{about['constraints'].get(name)} there, and {here} here"
                raise ValueError(f"cannot resume: parameter {name!r} has constraint {both}")

    def _check_sizes(self, values: Mapping[str, Tensor]) -> None:
        for name, size in self._sizes.items():
            if name in values and values[name].shape != size:
                sizes = f"{tuple(size)} before, and {tuple(values[name].shape)} now"
                raise ValueError(
                    f"a checkpoint cannot hold {name}, whose shape is {sizes}: let the buffer be None at first, or keep"
                    " its shape, or train without checkpoints"
                )

    def _check_programs(self, first: list[str], last: list[str], parts: list[dict[str, str]]) -> None:
        for number, name in enumerate(CALLED):
            given, begun = self.described[0][number], self.described[1][number]
            if begun == last[number]:  # such as the same objects, which hold what they held
                continue
            if begun != first[number] and given != last[number]:
                there, here = ([*each, {}][number] for each in (parts, self.parts))  # none of the optimizer
                differ = [part for part in {**there, **here} if there.get(part) != here.get(part)]
                what = f"{differ[0]!r}, which it holds," if differ else "its code, or a value that it holds,"
                fix = "; give it the value from before, or keep what changes no number out of it" if differ else ""
                raise ValueError(f"cannot resume: the {name} is not the checkpoint's: {what} differs{fix}")
            warnings.warn(CHANGES.format(name), RuntimeWarning, stacklevel=4)

    def _load_optimizer(self, tensors: Tensors, saved: dict[str, Any], values: dict[str, Tensor]) -> None:
        optim = self.optim
        states: dict[str, dict[str, Any]] = {name: dict(state) for name, state in saved["state"].items()}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                parameter_name, _, key = name.removeprefix("optimizer/").rpartition("/")
                states.setdefault(parameter_name, {})[key] = tensor
        names = {id(value): name for name, value in reversed(values.items())}
        here = {_name(parameter, names): parameter for group in optim.param_groups for parameter in group["params"]}
        group_of = {_name(parameter, names): group for group in optim.param_groups for parameter in group["params"]}
        there = [name for group in saved["groups"] for name in group["params"]]
        if not all(isinstance(name, str) for name in there) or len(set(there)) < len(there):
            raise ValueError("cannot resume: the checkpoint's optimizer names a parameter twice, or not by a text")
        if new := set(here) - set(there):
            raise ValueError(f"cannot resume: the checkpoint's optimizer does not train {min(new)}")
        if unknown := (set(states) - set(there)) | (set(there) - set(tensors)):
            raise ValueError(f"cannot resume: the checkpoint's optimizer/{min(unknown)} is of no parameter")
        order: list[str] = []
        groups: list[dict[str, Any]] = []
        first = optim.param_groups[0]
        optim.param_groups.clear()
        for group in saved["groups"]:
            met = [name for name in group["params"] if name in here]
            settings = {name: value for name, value in group.items() if name != "params"}
            like = group_of[met[0]] if met else first
            own = {name: like[name] for name in like if name != "params" and (name in settings or name != "initial_lr")}
            check_group(settings, own)
            self._late |= {name: (settings, states.get(name)) for name in group["params"] if name not in here}
            if met:
                groups.append(as_in(own, settings) | {"params": list(range(len(order), len(order) + len(met)))})
                optim.param_groups.append(own | {"params": [here[name] for name in met]})
                order += met
        state = {number: states[name] for number, name in enumerate(order) if name in states}
        optim.load_state_dict(checked_state(optim, {"state": state, "param_groups": groups}))

    @property
    def late(self) -> list[str]:
        """The names of the parameters that have appeared since the step before."""
        return self.programs.local.names[len(self._met) :]

    def meet_new_parameters(self) -> None:
        """Have the optimizer train parameters that have appeared since the step before."""
        parameters, called = self.programs.parameters[len(self._met) :], self.late
        self._met = self.programs.parameters
        if not parameters or self.settings_by_name is None:
            return
        names = {id(value): name for name, value in reversed(self.programs.values().items())}
        held = {id(parameter) for group in self.optim.param_groups for parameter in group["params"]}
        for parameter, name in zip(parameters, called, strict=True):
            if id(parameter) in held:
                continue
            settings, state = self._late.pop(names[id(parameter)], (self.settings_by_name(name), None))
            group = self._group_for(name, settings)
            group["params"].append(parameter)
            check_flags(self.optim)
            if state is not None:
                alone = copy.copy(self.optim)  # an optimizer of this parameter
                alone.param_groups = [{**group, "params": [parameter]}]
                alone.state = defaultdict(dict)
                checked_state(
                    alone, {"state": {0: state}, "param_groups": [settings_of(*alone.param_groups, params=[0])]}
                )
                self.optim.state[parameter] = {name: _moved(value, parameter) for name, value in state.items()}

    def _group_for(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the optimizer's group of the parameters that have the settings of a new one, or make one."""
        by_name, optim = self.settings_by_name or (lambda _: {}), self.optim
        named = zip(self._met, self.programs.local.names, strict=True)
        alike = {id(parameter) for parameter, other in named if by_name(other) == by_name(name)}
        groups = [group for group in optim.param_groups if not alike.isdisjoint(map(id, group["params"]))]
        several = len(groups) > 1  # made by hand: the optimizer's own settings apply, if they are of a group
        for group in groups:
            if not several or _is_default(group, optim):
                return group
        what = f"parameter {normalize_param_name(name)!r} is first used in step {self.step}, and the"
        fix = "use the parameter from the first batch on"
        if several:
            fix += ", or give pyro_vae.training.Groups, whose settings depend on names"
            raise ValueError(f"{what} {type(optim).__name__} has {len(groups)} groups: {fix}")
        if self.schedule.scheduler:
            raise ValueError(
                f"{what} schedule does not know its settings, {settings}: {fix}, or leave out the schedule"
            )
        optim.add_param_group({**as_in(optim.param_groups[0], settings), "params": []})
        return optim.param_groups[-1]


def _is_default(group: dict[str, Any], optim: torch.optim.Optimizer) -> bool:
    """Whether a group of an optimizer began with the optimizer's own settings, apart from those that a GPU needs."""
    begun = group | ({"lr": group["initial_lr"]} if "initial_lr" in group else {})
    same = {name: tuple(v) if isinstance(v := begun[name], list) else v for name in optim.defaults}  # after resuming
    return all(same[name] == value for name, value in optim.defaults.items() if name != "capturable")


def check_settings_of(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse a checkpoint of another training.

    Arguments:
        there: the settings that it was made with.
        here: the settings of the training that is to resume it.

    Raises:
        ValueError: with the first one that differs.

    Example:
        >>> check_settings_of({"seed": 1}, {"seed": 0})
        Traceback (most recent call last):
        ...
        ValueError: cannot resume: the checkpoint has seed=1, this call has seed=0
    """
    here = json.loads(json.dumps(here))
    for name in here:
        if there.get(name) != here[name]:
            scheduled = "optimizer initial_lr"  # of which the description of a scheduler is a digest, too
            if name == "scheduler" and scheduled in here.keys() & there.keys() and there[scheduled] != here[scheduled]:
                name = scheduled
            raise ValueError(
                f"cannot resume: the checkpoint has {name}={there.get(name)!r}, this call has {name}={here[name]!r}"
            )


def _is_value(name: str) -> bool:
    """Whether a tensor of a checkpoint is a value of the programs."""
    return name.partition("/")[0] in ("parameter", "buffer", "param")


def _name(parameter: Tensor, names: dict[int, str]) -> str:
    if id(parameter) not in names:
        shape = tuple(parameter.shape)
        raise ValueError(f"the optimizer holds a parameter of shape {shape} that the programs do not name")
    return names[id(parameter)]


def _moved(value: Any, parameter: Tensor) -> Any:
    return value.to(parameter.device) if isinstance(value, Tensor) and value.dim() else value


def check_epochs(epochs: int, begun: int) -> None:
    """Refuse fewer epochs than a checkpoint has begun, as they cannot be undone.

    Raises:
        ValueError: with both.

    Example:
        >>> check_epochs(2, begun=5)
        Traceback (most recent call last):
        ...
        ValueError: the checkpoint has begun epoch 5: epochs must be at least 5, not 2
    """
    if epochs < begun:
        raise ValueError(f"the checkpoint has begun epoch {begun}: epochs must be at least {begun}, not {epochs}")


def _sources() -> Any:
    """Return the random states of Python and numpy."""
    return described((random.getstate(), np.random.get_state()))


def _random_state(device: torch.device) -> Tensor:
    cpu = torch.get_rng_state()
    return torch.cat([cpu, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else cpu


def _set_random_state(state: Tensor, device: torch.device) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[size:], device)
