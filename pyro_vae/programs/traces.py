"""Traces of a pair of programs, and what they observed."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.data.batch import Batch, arguments, in_words, map_tensors, tensors_of
from pyro_vae.programs.handlers import LocalModules, Program
from pyro_vae.programs.modules import modules_of


def paired_traces(model: Program, guide: Program, *args: Any, **kwargs: Any) -> tuple[Trace, Trace]:
    """Run the guide, then the model at the guide's sample.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        args: the arguments of both.
        kwargs: the keyword arguments of both.

    Returns:
        The traces of the model and the guide, without the subsample sites of their plates.

    Example:
        >>> from pyro_vae import VAE, decoders, encoders, priors
        >>> vae = VAE(priors.Normal(2), encoders.Normal(64, 2), decoders.Normal(2, 64))
        >>> model_trace, guide_trace = paired_traces(vae.model, vae.guide, torch.zeros(5, 64))
        >>> model_trace.stochastic_nodes, model_trace.observation_nodes
        (['z'], ['x'])
    """
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)


def leaves_of(*values: Tensor) -> list[Tensor]:
    """Return the tensors that values are computed from, and that have gradients.

    Example:
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> leaves_of(2 * weight.exp().sum() + 1)
        [tensor([0.], requires_grad=True)]
    """
    seen: dict[Any, None] = {}
    waiting: list[Any] = [value.grad_fn for value in values]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen[node] = None
            waiting += [following for following, _ in node.next_functions]
    return [node.variable for node in seen if hasattr(node, "variable")]


def filled(batch: Batch, but: Tensor | None = None) -> Batch:
    """Fill in missing entries by a value of the same part, which its support has, except in the part ``but``."""

    def fill(part: Tensor) -> Tensor:
        if part is but or not part.is_floating_point():
            return part
        known = part[~part.isnan()]
        return part.nan_to_num(known[0].item() if len(known) else 0.5)

    return map_tensors(fill, batch)


CHANGED = "{} the batch in place, and so the data: begin with x = x.clone(), and do not use layers with inplace=True"

# Patterns of errors of Pyro and torch, and how to fix the program.
OF_TYPES = r"dtype|scalar type|input type|can't be cast|m1 and m2|bool tensors|not implemented for '"
FIXES = {
    r"Shape mismatch inside plate": "let the last batch dimension be the pyro.plate over the data, and move all other"
    " dimensions to the event by .to_event(1)",
    r"to satisfy the constraint": "compute it so that it does, as by .exp() or softplus for a scale, .sigmoid() for a"
    " probability",
    r"to be within the support": "let the programs observe and draw values that are in the support, whatever the number"
    " of data",
    r"Multiple sample sites": "give each site and each plate a name of its own, such as f'x{number}'",
    r"collide at dim": "give one of these plates another dim, such as dim=-2",
    r"as indices must be|index tensor|scalar types: Long|dtype int64 for index": "use x.long() in the programs for"
    " integers; a tensor by itself becomes floating-point numbers, but one in a tuple, (x,), keeps its type",
    OF_TYPES: "give x.float(), or use it in the programs,"
    " where integers go into a layer; in data of several parts integers keep their type",
}


@contextmanager
def in_one_line(batch: Batch) -> Iterator[None]:
    """Turn an error of programs, which Pyro spreads over many lines, into one line with the batch and the fix."""
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        reason, more = reason_of(error), "\n" in str(error)
        by_type = re.search(OF_TYPES, reason)
        as_it_is = isinstance(error, torch.OutOfMemoryError) or (isinstance(error, NotImplementedError) and not by_type)
        if as_it_is or (isinstance(error, ValueError) and not more):
            raise
        fits = (
            "data that fit the programs" if isinstance(batch, Tensor) else "parts that fit each other and the programs"
        )
        known = (fix for words, fix in FIXES.items() if re.search(words, reason, re.IGNORECASE))
        fix = next(known, "" if isinstance(error, ValueError) else f"give {fits}")
        if fix:
            reason = f"the programs fail on {in_words(batch)} ({reason}): {fix}"
        raise ValueError(reason) from error
    except (AttributeError, TypeError) as error:
        if not re.search(r"\bNone\b", in_words(batch)):
            raise
        fix = "give this part, or let the programs do without it"
        raise TypeError(f"the programs fail on {in_words(batch)} ({reason_of(error)}): {fix}") from error


def reason_of(error: Exception) -> str:
    """Return an error in one line: its first line, and that of the error behind it, with the first invalid value."""
    lines = [(str(error).splitlines() or [type(error).__name__])[0].removesuffix(":")]
    while lines[0].startswith("Error while computing log_prob") and isinstance(error.__cause__, Exception):
        error = error.__cause__
        lines.append((str(error).splitlines() or [type(error).__name__])[0].removesuffix(":"))
    return ": ".join(dict.fromkeys(lines)) + _invalid_value(error)


def _invalid_value(error: Exception) -> str:
    """Return the first value that torch found invalid, in words, if it is such an error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = frames[-1].f_locals if frames else {}
    value, valid = found.get("value"), found.get("valid")
    if "found invalid values" not in str(error) or not isinstance(value, Tensor) or not isinstance(valid, Tensor):
        return ""
    bad = value[~valid] if valid.shape == value.shape else value
    return f", such as {bad.flatten()[0].item():.6g}"


def probe(model: Program, guide: Program, batch: Batch) -> tuple[Trace, Trace]:
    """Run a pair of programs on a copy of the parameter store, as what they add to it may depend on this batch.

    Parameters of other modules are removed from the copy, so that a new guide makes its own and does not find theirs.
    """
    store, local = pyro.get_param_store(), LocalModules()
    own = {id(parameter) for module in modules_of(model, guide) for parameter in module.parameters()}
    state = store.get_state()
    state["params"] = {
        name: value
        for name, value in state["params"].items()
        if not isinstance(value, nn.Parameter) or id(value) in own
    }
    args, kwargs = arguments(batch)
    with unchanged(batch, "the programs change"), store.scope(state), in_one_line(batch), InPlace(batch):
        return paired_traces(local(model), local(guide), *args, **kwargs)


class InPlace(Messenger):
    """Refuses programs that change a site's value, or a tensor of its distribution, after the site.

    Pyro computes densities when a program has ended, and so at the changed values.

    Arguments:
        batch: what the programs are called with; a layer of dropout must not change it in place, either.
    """

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.kept: list[tuple[str, Tensor, int]] = []
        self.parts = tensors_of(batch)

    def __enter__(self) -> Self:
        self.hook = register_module_forward_pre_hook(self._look)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.hook.remove()
        super().__exit__(*error)
        if error[0] is None:
            for name, tensor, version in self.kept:
                self._check(name, changed=tensor._version != version)

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if type(msg["fn"]).__name__ == "_Subsample":  # the indices of a plate
            return
        fn, found = msg["fn"], [msg["value"]]
        while fn is not None:
            found += vars(fn).values()
            fn = getattr(fn, "base_dist", None)
        tensors = [each for each in found if isinstance(each, Tensor) and not each.is_inference()]
        self.kept += [(msg["name"], each, each._version) for each in tensors]

    def _look(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Look for dropout in place, which changes nothing in evaluation mode."""
        if getattr(module, "inplace", False) and args and isinstance(args[0], Tensor):
            memory = args[0].data_ptr()
            if any(part.data_ptr() == memory for part in self.parts):
                raise ValueError(CHANGED.format("the programs change"))
            for name, tensor, _ in self.kept:
                self._check(name, changed=tensor.data_ptr() == memory)

    @staticmethod
    def _check(name: str, *, changed: bool) -> None:
        if changed:
            raise ValueError(
                f"the programs change site {name!r} in place, its value or its distribution, so that its density would"
                " be that of another value: take a copy, z.clone(), and no layer with inplace=True for it"
            )


@contextmanager
def unchanged(batch: Batch, words: str) -> Iterator[None]:
    """Refuse code that changes a batch in place, as it may share memory with the user's own tensor."""
    parts = [part for part in tensors_of(batch) if not part.is_inference()]
    before = [part._version for part in parts]
    yield
    if [part._version for part in parts] != before:
        raise ValueError(CHANGED.format(words))


def observed_in(model_trace: Trace) -> list[dict[str, Any]]:
    """Return the observed sites that count in the bound: those with a density that is not masked as a whole."""
    sites = [model_trace.nodes[name] for name in model_trace.observation_nodes]
    return [site for site in sites if not (site["mask"] is False or getattr(site["fn"], "_mask", None) is False)]
