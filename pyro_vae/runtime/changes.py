"""Records what a step changes in place, so that it can be undone."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.runtime.steps import import_tracers


class Changes(TorchDispatchMode):
    """Keeps copies of tensors, such as running means, from before an operation changes them in place.

    Example:
        >>> count = torch.zeros(1)
        >>> with Changes() as changes:
        ...     _ = count.add_(1)
        >>> changes.undo()
        >>> count
        tensor([0.])
    """

    def __init__(self) -> None:
        import_tracers()  # as torch itself does when an operation is first dispatched to a mode
        super().__init__()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        arguments = func._schema.arguments
        named = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
        for argument in arguments:
            # The schema of a batch normalization does not say that it changes its running moments.
            if argument.name.startswith("running_") or (argument.alias_info and argument.alias_info.is_write):
                values = named.get(argument.name)
                for value in values if isinstance(values, list | tuple) else [values]:
                    if isinstance(value, Tensor) and id(value) not in self._before:
                        self._before[id(value)] = value, value.clone()
        return func(*args, **kwargs)

    @torch.no_grad()
    def undo(self) -> None:
        """Restore the tensors that were changed."""
        for value, before in reversed(self._before.values()):
            if value.shape == before.shape:
                value.copy_(before)
            else:  # it was transposed or resized in place
                value.data = before
