"""Programs as Pyro's users write them, through `fit` as they are, against ``pyro.infer.SVI``."""

import itertools
import re
import runpy
from pathlib import Path

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_vae import fit
from pyro_vae.data.batch import arguments, map_tensors, tensors_of

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS, SEED = 50, 3
PROGRAMS = [  # the first is the one of the quick tier
    "bayesian_regression",
    "conditional_vae",
    "semi_supervised_vae",
    "deep_markov_model",
    "topic_model",
    "count_vae",
    "attend_infer_repeat",
    "sparse_gamma",
    "flow_prior",
    "two_level_vae",
]
WHOLE = {"bayesian_regression": 128}  # its plate scales each batch to all data, so that their number divides the loss
SIZES = {"bayesian_regression": 32, "attend_infer_repeat": 64}


def read(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def pair_of(example):
    """Return the same programs at each call, with their modules' parameters at the same values."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    if "make" in example:
        return example["make"]()
    programs = example["Programs"]() if "Programs" in example else None
    return (programs.model, programs.guide) if programs else (example["model"], example["guide"])


def in_the_order_of_fit(data, size):
    """The batches of each epoch: ready ones as they come, others as `fit` shuffles them."""
    if not (isinstance(data, torch.Tensor | dict) or (isinstance(data, tuple) and isinstance(data[0], torch.Tensor))):
        while True:
            yield from data
    order, count = torch.Generator().manual_seed(SEED), len(tensors_of(data)[0])
    while True:
        for rows in torch.randperm(count, generator=order).split(size) if size < count else [torch.arange(count)]:
            yield map_tensors(lambda part, rows=rows: part[rows], data)


def by_svi(name, example, learning_rate):
    """Train by SVI's own steps, of the sum over each batch, which Adam does not tell from its mean but by epsilon."""
    model, guide = pair_of(example)
    batches = list(itertools.islice(in_the_order_of_fit(example["batches"](), SIZES.get(name, 128)), STEPS))
    calls = [arguments(batch) for batch in batches]
    count = WHOLE.get(name, len(tensors_of(batches[0])[0]))
    optimizer = pyro.optim.Adam({"lr": learning_rate, "eps": 1e-8 * count})
    svi, (args, kwargs) = SVI(model, guide, optimizer, example.get("LOSS", Trace_ELBO())), calls[0]
    torch.manual_seed(SEED)
    if "make" in example:  # an autoguide makes its parameters when it is called
        guide(*args, **kwargs)
    torch.manual_seed(SEED)
    losses = [svi.step(*args, **kwargs) / count for args, kwargs in calls]
    return losses, [parameter for parameter, optim in optimizer.optim_objs.items() if optim.state]


def by_fit(name, example, engine, learning_rate):
    model, guide = pair_of(example)
    data, losses, optims = example["batches"](), [], []
    size = SIZES.get(name, 128)

    class Enough(Exception):  # noqa: N818
        pass

    def on_step(_, loss):
        losses.append(float(loss))
        if len(losses) == STEPS:
            raise Enough

    def optimizer(parameters):
        optims.append(torch.optim.Adam(parameters, lr=learning_rate))
        return optims[-1]

    settings = {"loss": example.get("LOSS", Trace_ELBO()), "batch_size": size, "seed": SEED, "engine": engine}
    with pytest.raises(Enough):
        fit(model, guide, data, epochs=STEPS, optimizer=optimizer, on_step=on_step, **settings)
    return losses, list(optims[-1].state)


def check(name, engine, tolerance=1e-6):
    """Hold losses to a relative tolerance, and parameters to 1e-6, or 1e-5 where Adam has magnified rounding."""
    example = read(name)
    losses, parameters = by_fit(name, example, engine, 1e-3)
    expected, others = by_svi(name, example, 1e-3)
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
    found, right = (sorted(map(torch.Tensor.tolist, map(torch.Tensor.flatten, each))) for each in (parameters, others))
    assert len(found) == len(right)
    for mine, other in zip(found, right, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 if engine == "compiled" else 1e-6)


@pytest.mark.filterwarnings("ignore:the step cannot be recorded")
@pytest.mark.parametrize("engine", ["eager", "recorded"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_trained_by_fit_as_by_svi(name, engine):
    check(name, engine)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the step cannot be (recorded|compiled)")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_compiled_program_is_trained_by_fit_as_by_svi(name):
    check(name, "compiled")


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_of_a_program_prints_its_loss(name, capsys):
    read(name)["main"](epochs=2)
    assert re.fullmatch(r"-?\d+\.\d\d nats per [a-z ]+\n", capsys.readouterr().out)
