"""Where a training stands: all that its next step hangs on, as tensors and plain values, and back."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.checkpoints import Tensors, check_random, check_tensors, checked_state
from pyro_vae.distributed import Ranks


class Progress:
    """What `fit` has done, and what it does next.

    ``epoch`` counts from 1, ``step`` from 0 over all epochs, ``batches`` from 0 within the epoch; ``totals`` and
    ``seconds`` are of the epoch under way, and ``order_state`` is from its start.

    Arguments:
        history: the rows measured so far, to which those of a checkpoint are added.
        modules: those of the programs.
        order: the source of the order of the data.
        device: where the programs are.
        ranks: the processes of the training, each with a random state of its own.
        settings: plain values that a checkpoint must have been made with to be continued.
    """

    def __init__(
        self,
        history: list[dict[str, float]],
        modules: Sequence[nn.Module],
        order: torch.Generator,
        device: torch.device,
        ranks: Ranks,
        settings: dict[str, Any],
    ) -> None:
        self.history, self.modules, self.order, self.device = history, modules, order, device
        self.ranks, self.settings = ranks, settings
        self.epoch, self.step, self.batches, self.seconds = 1, 0, 0, 0.0
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)  # of three terms and of the data
        self.order_state = order.get_state()
        self.best: tuple[float, Tensors] = math.inf, {}

    def begin_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch += 1
        self.batches, self.seconds = 0, 0.0
        self.totals.zero_()
        self.order_state = self.order.get_state()

    def count(self, terms: Sequence[Tensor], data: int | Tensor) -> None:
        """Add a step's terms, summed over so many data, to those of the epoch."""
        count = data.to(terms[0]) if isinstance(data, Tensor) else terms[0].new_full((), data)
        self.totals += torch.stack([*terms, count])

    def means(self) -> list[float]:
        """Return the epoch's mean terms per datum, NaN where no step counted."""
        return (self.totals[:3] / self.totals[3]).tolist()

    def values(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the tensors that training changes in the programs, by name, no copies: buffers, too."""
        values: dict[str, Tensor] = {}
        names: dict[int, str] = {}
        for number, module in enumerate(self.modules):
            prefix = f"{number}." if len(self.modules) > 1 else ""
            names |= {id(parameter): prefix + name for name, parameter in module.named_parameters()}
            values |= {f"buffer/{prefix}{name}": buffer for name, buffer in module.named_buffers()}
        for number, parameter in enumerate(parameters):
            values[f"parameter/{names.get(id(parameter), number)}"] = parameter
        return values

    def keep_best(self, parameters: Sequence[Tensor]) -> None:
        """Keep a copy of the programs where the last row's test loss is the lowest."""
        loss = self.history[-1]["test_loss"]
        if loss < self.best[0]:
            self.best = loss, {name: tensor.detach().clone() for name, tensor in self.values(parameters).items()}

    def save(self, parameters: Sequence[Tensor], optim: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
        """Return where the training stands, on every rank alike.

        Arguments:
            parameters: all that were met.
            optim: their optimizer.

        Returns:
            Tensors by name, and plain values.

        Raises:
            TypeError: for an optimizer whose state holds something else.
        """
        state = optim.state_dict()
        tensors = self.values(parameters) | {"order": self.order_state, "totals": self.totals}
        for rank, random in enumerate(self.ranks.gather(_random_state(self.device))):
            tensors[f"random/{rank}"] = random
        plain: dict[str, dict[str, Any]] = {}
        for number, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{number}/{name}"] = value
                else:
                    plain.setdefault(str(number), {})[name] = _plain(value, f"state {name!r}")
        groups = [{name: _plain(value, name) for name, value in group.items()} for group in state["param_groups"]]
        about = {
            **{name: getattr(self, name) for name in ("epoch", "step", "batches", "seconds", "settings")},
            "history": list(self.history),
            "best": self.best[0],
            "optimizer": {"class": type(optim).__name__, "state": plain, "groups": groups},
        }
        return tensors, about

    def load(
        self,
        tensors: Tensors,
        about: dict[str, Any],
        parameters: Sequence[Tensor],
        optim: torch.optim.Optimizer,
    ) -> None:
        """Take a checkpoint's place: programs, optimizer, random states, position and history.

        Arguments:
            tensors: what `save` returned.
            about: what it returned beside them.
            parameters: those of the programs, in the order in which they were.
            optim: their optimizer, new.

        Raises:
            ValueError: where the checkpoint is of another training, naming what differs.
        """
        for name, here in self.settings.items():
            there = about["settings"].get(name)
            if there != here:
                raise ValueError(
                    f"the checkpoint is of a training with {name} {there!r}, not {here!r}: it must be equal"
                )
        optimizer = about["optimizer"]
        if optimizer.get("class") != type(optim).__name__:
            raise ValueError(f"the checkpoint is of the optimizer {optimizer.get('class')}, not {type(optim).__name__}")
        values = self.values(parameters)
        names = [name for name in tensors if name.partition("/")[0] in ("parameter", "buffer")]
        if set(names) != set(values):
            raise ValueError(f"the checkpoint holds {len(names)} parameters and buffers, the programs {len(values)}")
        for name, tensor in values.items():
            if tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
                sizes = " and ".join(f"{value.dtype} {tuple(value.shape)}" for value in (tensors[name], tensor))
                raise ValueError(f"the checkpoint's {name} and the programs' differ: {sizes}")
        state = {_number(number): dict(plain) for number, plain in optimizer["state"].items()}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                number, _, key = name.removeprefix("optimizer/").partition("/")
                state.setdefault(_number(number), {})[key] = tensor
        saved = checked_state(optim, {"state": state, "param_groups": optimizer["groups"]})
        random = _random_state(self.device)
        own = {f"random/{rank}": random for rank in range(self.ranks.size)}
        check_tensors(tensors, {"order": self.order_state, "totals": self.totals, **own})
        check_random("order", tensors["order"], torch.device("cpu"))
        for name in own:
            check_random(name, tensors[name], self.device)
        with torch.no_grad():
            for name, tensor in values.items():
                tensor.copy_(tensors[name])
        optim.load_state_dict(saved)
        for name in ("epoch", "step", "batches", "seconds"):
            setattr(self, name, about[name])
        self.history[:] = about["history"]
        self.best = about["best"], {}
        self.totals = tensors["totals"].to(self.device)
        self.order_state = tensors["order"]
        self.order.set_state(self.order_state)
        _set_random_state(tensors[f"random/{self.ranks.rank}"], self.device)


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text  # what is no number belongs to no parameter, and is refused


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    if isinstance(value, list | tuple):
        return [_plain(each, name) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold the optimizer's {name}, a {type(value).__name__}: train without one")


def _random_state(device: torch.device) -> Tensor:
    cpu = torch.get_rng_state()
    return torch.cat([cpu, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else cpu


def _set_random_state(state: Tensor, device: torch.device) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[size:], device)
