"""What a checkpoint says of programs, so that others are not resumed in their place."""

import logging
from collections import defaultdict, deque
from functools import cached_property, lru_cache, partial
from random import Random
from types import MappingProxyType, ModuleType

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroSample

from pyro_vae.training.descriptions import described, described_programs

helper = ModuleType("helper")  # of the user's own


def site():
    pyro.sample("z", dist.Normal(0.0, 1.0))


def in_closure(value):
    return lambda z: value(z)


def of_class(**inside):
    """An object of a class that holds this."""
    return type("Part", (), {"__module__": "theirs", "__call__": lambda self, z: self.scale * z, **inside})()


def reading(function, **inside):
    """A function that reads this from a module of the user's own."""
    vars(helper).update(inside)
    return function


def times(k):
    return lambda z: k * z


def with_attribute(k):
    function = times(1)
    function.scale = k
    return function


class Prior(PyroModule):
    def __init__(self, k):
        super().__init__()
        self.z = PyroSample(dist.Normal(0.0, k))


class Weighed(torch.nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = float(k)

    def forward(self, z):
        return self.k * z


class Longer(list):
    scale = 1.0


def longer(k):
    made = Longer([1])
    made.scale = k
    return made


def backwards(k):
    layer = torch.nn.ReLU()
    layer.register_full_backward_hook(lambda _, gradients, __: (k * gradients[0],))
    return layer


def trace_of(k):
    return poutine.trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.tensor(float(k)))).get_trace()


def one_of(k, *values):
    return values[k - 1]


P = torch.tensor([0.3, 0.7])
ALIKE = {
    "digits of numbers": lambda k: one_of(k, [1, 23], [12, 3]),
    "digits of pairs": lambda k: one_of(k, (0.1, 12), (0.11, 2)),
    "digits of constants": lambda k: one_of(k, lambda z: z * 1 + 23, lambda z: z * 12 + 3),
    "number of a module": lambda k: reading(lambda z: helper.scale * z, scale=k),
    "function of a module": lambda k: reading(lambda z: helper.decode(z), decode=times(k)),
    "number of a module within": lambda k: reading(lambda z: helper.inner.scale * z, inner=helper, scale=k),
    "number of a class": lambda k: of_class(scale=k),
    "property": lambda k: of_class(scale=property(times(k))),
    "static method": lambda k: of_class(__call__=staticmethod(times(k))),
    "class method": lambda k: of_class(decode=classmethod(times(k))),
    "cached property": lambda k: of_class(scale=cached_property(times(k))),
    "attribute of a function": with_attribute,
    "names of arguments": lambda k: partial(
        one_of(k, lambda z, a=1, b=1: a * z + b, lambda z, b=1, a=1: b * z + a), a=2
    ),
    "cached function": lambda k: lru_cache(times(k)),
    "site of a module of Pyro's": Prior,
    "scripted": lambda k: torch.jit.script(Weighed(k)),
    "traced": lambda k: torch.jit.trace(Weighed(k), torch.ones(2)),
    "graph": lambda k: torch.fx.symbolic_trace(Weighed(k)),
    "compiled": lambda k: torch.compile(times(k)),
    "queue": lambda k: deque([1, k]),
    "default of a dictionary": lambda k: defaultdict(times(k)),
    "view of a dictionary": lambda k: MappingProxyType({"a": k}),
    "random numbers of Python": Random,
    "list of one's own": longer,
    "probabilities or logits": lambda k: dist.Bernoulli(**{one_of(k, "probs", "logits"): P}),
    "probabilities or logits within": lambda k: dist.RelaxedBernoulli(
        torch.tensor(0.5), **{one_of(k, "probs", "logits"): P}
    ),
    "inverse": lambda k: dist.transforms.AffineTransform(0.0, float(k)).inv,
    "replayed": lambda k: poutine.replay(site, trace=trace_of(k)),
    "conditioned": lambda k: poutine.condition(site, data=trace_of(k)),
    "gradient": backwards,
    "parameter that is not trained": lambda k: torch.full((2,), float(k), requires_grad=True),
    "sparse": lambda k: k * torch.eye(2).to_sparse(),
    "sparse rows": lambda k: (k * torch.eye(2)).to_sparse_csr(),
    "conjugate": lambda k: torch.tensor([1j * k]).conj(),
}


@pytest.mark.parametrize("kind", [*sorted({*ALIKE} - {"compiled"}), pytest.param("compiled", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Sparse CSR")
def test_what_looks_alike_and_computes_something_else_is_told_apart(kind):
    one, again, other = (described_programs([in_closure(ALIKE[kind](k))], {}) for k in (1, 1, 2))
    assert one == again
    assert one != other


def documented(text):
    made = {}
    exec(f"def program(z):\n    {text}\n    def within(z):\n        {text}\n    print(within(z), 2)", made)  # noqa: S102
    return made["program"]


def test_another_gpu_is_the_same_program():
    first, second = (in_closure(torch.device("cuda", number)) for number in (0, 1))
    assert described(first) == described(second) != described(in_closure(torch.device("cpu")))


def test_a_set_of_objects_is_the_same_wherever_they_lie():
    first, again, other = (described(in_closure(each)) for each in ({of_class()}, {of_class()}, {times(1)}))
    assert first == again != other


def test_docstrings_and_comments_are_no_part_of_a_program():
    none, *others = map(documented, ("pass", "'What it is.'", "'Something else.'", "pass  # a comment"))
    assert {described(each) for each in others} == {described(none)}


def test_a_logger_of_a_program_is_the_same_whatever_others_there_are():
    logger = logging.getLogger("theirs")
    known = described(in_closure(logger.debug))
    logger.debug("this is noted in the logger")
    logging.getLogger("another")
    assert described(in_closure(logger.debug)) == known


def test_a_method_that_is_put_on_a_class_of_torch_is_told_apart(monkeypatch):
    known = described(torch.nn.ReLU())
    monkeypatch.setattr(torch.nn.ReLU, "forward", lambda _, z: z)
    assert described(torch.nn.ReLU()) != known
