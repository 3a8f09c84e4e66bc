"""The pair of programs that a training is of."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.params.param_store import normalize_param_name
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.arguments import as_function
from pyro_vae.programs import leaves_of, modules_of
from pyro_vae.programs.handlers import LocalModules, Program
from pyro_vae.runtime.distributed import is_expanded
from pyro_vae.training.descriptions import described_programs, parts_of


class Programs:
    """A model and a guide, with their modules and all tensors that training changes, by name.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        others: what else a step calls, and what may hold and change values in Python: the transform, KL weight, loss.

    Attributes:
        given: the programs as they came.
        others: what else a step calls.
        model: the model in a handler that collects its parameters, and keeps them with their module.
        guide: the guide, likewise.
        local: that handler, with the parameters collected so far.
        modules: the modules that the programs hold.
        called: ids of the parameters of the modules that the programs have been seen to call.
        leaves: the tensors with gradients and no name that the first loss was computed from; None before.
    """

    def __init__(self, model: Program, guide: Program, *others: Any) -> None:
        self.given, self.others, self.local = (model, guide), [*others], LocalModules()
        self.model, self.guide = self.local(as_function(model, "model")), self.local(as_function(guide, "guide"))
        self.modules: Sequence[nn.Module] = modules_of(model, guide)
        self.called: set[int] = set()
        self.leaves: list[Tensor] | None = None
        self._names: dict[int, str] = {}  # of the parameters that have been seen in a module, by identity

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters collected so far, unconstrained, in the order of their first use."""
        return self.local.parameters

    @property
    def tensors(self) -> list[Tensor]:
        """All parameters and buffers, including buffers that a checkpoint cannot keep."""
        buffers = [buffer for module in self.modules for buffer in module.buffers()]
        return list({id(tensor): tensor for tensor in [*self.values().values(), *buffers]}.values())

    def values(self, *, strict: bool = False) -> dict[str, Tensor]:
        """Return the tensors that training changes, parameters and buffers, by name; they are not copies.

        Arguments:
            strict: refuse two parameters of one name; otherwise the later one is returned.

        Raises:
            ValueError: where two parameters have one name.
        """
        values: dict[str, Tensor] = {}
        for prefix, module in self._by_prefix():
            values |= {f"parameter/{prefix}{name}": parameter for name, parameter in module.named_parameters()}
            buffers = {name: buffer for name, buffer in module.named_buffers() if _can_be_set(buffer)}
            values |= {f"buffer/{prefix}{name}": buffer for name, buffer in buffers.items()}
        known = {id(value): name for name, value in reversed(values.items())}
        new = [each for each in self.parameters if id(each) in known.keys() - self._names.keys()]
        self._names |= {id(each): known[id(each)] for each in new}  # the others stay as they are, for recordings
        for name, parameter in zip(self.local.names, self.parameters, strict=True):
            if id(parameter) not in self._names:
                if strict and f"param/{name}" in values:
                    raise ValueError(f"two parameters of the programs are called {name!r}: give each a name of its own")
                values[f"param/{name}"] = parameter
        return values

    def replaced(self) -> dict[int, str]:
        """Return the names of parameters that are no longer in their module, as after ``load_state_dict(assign=True)``.

        They are given by identity. The parameter that has taken its place may have the same name.
        """
        here = set(map(id, self.values().values()))
        return {number: name for number, name in self._names.items() if number not in here}

    def places(self) -> dict[str, tuple[nn.Module, str]]:
        """Return the modules of the buffers by the buffers' names, and their names there; a buffer may be None."""
        places: dict[str, tuple[nn.Module, str]] = {}
        for prefix, module in self._by_prefix():
            for path, owner in module.named_modules():
                names = vars(owner).get("_buffers", ())
                places |= {f"buffer/{prefix}{path}{'.' * bool(path)}{name}": (owner, name) for name in names}
        return places

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Give parameters and buffers the values that they had, by name; a buffer that had none becomes None."""
        here, places = self.values(), self.places()
        for name, value in values.items():
            if name in here and here[name].shape == value.shape:
                here[name].copy_(value)
            elif name in places:
                setattr(*places[name], value.clone())
        for name in (places.keys() & here.keys()) - values.keys():
            setattr(*places[name], None)

    def _by_prefix(self) -> list[tuple[str, nn.Module]]:
        return [(f"{number}." * (len(self.modules) > 1), module) for number, module in enumerate(self.modules)]

    def frozen(self) -> list[str]:
        """Return the names of the parameters that are not trained."""
        values = self.values().items()
        return [name for name, value in values if not (name.startswith("buffer/") or value.requires_grad)]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the parameters of the modules that the programs call."""

        def note(module: nn.Module, _: Any) -> None:
            self.called.update(id(each) for each in module.parameters(recurse=False))

        hook = register_module_forward_pre_hook(note)
        try:
            yield
        finally:
            hook.remove()

    def look(self, *terms: Tensor) -> None:
        """Note what the first loss, or its terms, are computed from without a name."""
        if self.leaves is None:
            self.leaves = leaves_of(*terms)
            self.leaves = self.unnamed()

    def unnamed(self) -> list[Tensor]:
        """Return the tensors with gradients that the programs compute with, but do not name: no step changes them."""
        named = set(map(id, self.parameters))
        return [each for each in self.leaves or () if each.requires_grad and id(each) not in named]

    def in_use(self, numbers: Collection[int]) -> list[str]:
        """Return the names of those parameters that are to be trained and that the programs compute with.

        A program may name a module by ``pyro.module`` of which it calls only some layers.
        """
        found = []
        for number, (name, each) in enumerate(zip(self.local.names, self.parameters, strict=True)):
            if number in numbers and each.requires_grad and ("$$$" not in name or id(each) in self.called):
                found.append(normalize_param_name(name))
        return found

    def described(self) -> list[str]:
        """Return a digest of each program and of what else a step calls, with what they hold but the trained values."""
        return described_programs([*self.given, *self.others], self.values())

    def parts(self) -> list[dict[str, str]]:
        """Return digests of what each of these holds, by name."""
        return parts_of([*self.given, *self.others], self.values())


def _can_be_set(buffer: Tensor) -> bool:
    """Whether a checkpoint can keep a buffer; a sparse or an expanded one is taken for a constant of the programs."""
    if buffer.layout is not torch.strided or buffer.dtype is torch.complex128 or buffer.is_meta:  # safetensors has none
        return False
    return not is_expanded(buffer)
