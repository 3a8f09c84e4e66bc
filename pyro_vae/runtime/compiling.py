"""Compiles a recording into kernels by torch's compiler."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.infer
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from pyro_vae.runtime.steps import Step


def compiled(recording: GraphModule, graphs: bool, *inputs: Tensor) -> Step:
    """Compile a recording by torch's compiler, without the checks that ``torch.compile`` makes at every call."""
    import torch._inductor

    # The tensors that the recording reads from outside become its first inputs, as constants might be built into the
    # kernels. So do results whose shape depends on values other than the data, such as the indices of a mask's ones:
    # the compiler cannot handle them, so they are computed here.
    read = {node: getattr(recording, node.target) for node in recording.graph.nodes if node.op == "get_attr"}
    found = {node: _value(node, read) for node in recording.graph.nodes if _has_open_shape(node) and _is_fixed(node)}
    by_identity = {id(value): value for value in (read | found).values()}
    graph, constants = Graph(), list(by_identity.values())
    given = {name: graph.placeholder(f"constant_{number}") for number, name in enumerate(by_identity)}
    copies: dict[Node, Node] = {node: given[id(value)] for node, value in (read | found).items()}
    for node in recording.graph.nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.get)
    examples: list[Any] = [*constants, *inputs]
    on_gpu = any(isinstance(example, Tensor) and example.is_cuda for example in examples)
    # Random numbers are those of the uncompiled recording.
    options = {"fallback_random": True, "triton.cudagraphs": on_gpu and graphs}
    kernels = torch._inductor.compile(GraphModule({}, graph), examples, options=options)
    return lambda *inputs: kernels(*constants, *inputs)


def _is_fixed(node: Node) -> bool:
    """Whether a node depends on no input and on no random number."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return node.op == "get_attr" or (
        node.op == "call_function" and not random and all(map(_is_fixed, node.all_input_nodes))
    )


def _has_open_shape(node: Node) -> bool:
    return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())


def _value(node: Node, read: dict[Node, Tensor]) -> Any:
    """Compute a fixed node."""
    if node in read:
        return read[node]
    args, kwargs = map_arg((node.args, node.kwargs), lambda argument: _value(argument, read))
    return node.target(*args, **kwargs)  # type: ignore[operator]


@contextmanager
def kept_on_device() -> Iterator[None]:
    """Keep Pyro's ELBOs (as of 1.9) from turning tensors into numbers or branching on them, within this context."""
    without = {
        "torch_item": lambda x: x.detach().double() if isinstance(x, Tensor) else x,  # numbers of Python are double
        "warn_if_nan": lambda *_, **__: None,  # `fit` stops at what is not finite
    }
    modules = [
        pyro.infer.trace_elbo,
        pyro.infer.trace_mean_field_elbo,
        pyro.infer.tracegraph_elbo,
        pyro.infer.traceenum_elbo,
    ]
    before = [(module, name, getattr(module, name)) for module in modules for name in without if hasattr(module, name)]
    try:
        for module, name, _ in before:
            setattr(module, name, without[name])
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)
