"""What programs look up by the indices of a plate."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_vae.objectives import DataPlates


class _Index(Tensor):
    """The indices of a plate, which call ``note`` with the lengths of what is looked up by them."""

    note: Callable[[set[tuple[int, ...]]], None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func.__name__ not in ("__len__", "__get__", "size", "numel"):  # which tell no index
                tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
                indices = [each for each in tensors if isinstance(each, _Index)]
                for each in indices:
                    each.note({tuple(other.shape[:1]) for other in tensors} - {tuple(each.shape)})
            return func(*args, **(kwargs or {}))


class Indices(Messenger):
    """Notes the lengths of what programs look up by the indices of their plates.

    Arguments:
        parts: the tensors of the batch. A plate whose ``subsample`` is one of them knows which data the batch holds.
    """

    def __init__(self, parts: list[Tensor]) -> None:
        super().__init__()
        self.parts = parts
        self.read: dict[str, set[tuple[int, ...]]] = {}
        self.given: set[str] = set()

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if type(msg["fn"]).__name__ == "_Subsample" and any(msg["value"] is part for part in self.parts):
            self.given.add(msg["name"])

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.given:
            return
        if type(msg["fn"]).__name__ == "_Subsample" and isinstance(msg["value"], Tensor) and not msg["is_observed"]:
            name, index = msg["name"], msg["value"].as_subclass(_Index)
            index.note = lambda lengths: self.read.setdefault(name, set()).update(lengths)
            msg["value"] = index

    def check(self, plates: DataPlates, count: int, total: int) -> None:
        """Refuse programs that look up more by these numbers than what the batch holds: it would be of other data."""
        for name in plates.names & self.read.keys():
            if plates.size > count or self.read[name] - {()}:
                raise ValueError(
                    f"the programs read the indices of the plate {name!r}, which are not the numbers of the data in a"
                    f" batch: let x hold all that belongs to a datum, or take all data at a time (batch_size={total})"
                )
