"""The running means that ``TraceGraph_ELBO`` keeps in Pyro's store, in which all trainings of a process meet."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceGraph_ELBO
from torch import nn
from torch.utils.data import DataLoader

from pyro_vae import fit

SETTINGS = {"loss": TraceGraph_ELBO(), "batch_size": 10, "optimizer": partial(torch.optim.Adam, lr=0.01)}
X = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) + 1


class Switch(nn.Module):
    """A code of 0 or 1 for each datum; the likelihood is NaN in one step of the training."""

    def __init__(self, spoiled=None):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.loc, self.spoiled = nn.Linear(3, 1), nn.Parameter(torch.ones(3)), spoiled
        self.step = 0

    def model(self, x):
        self.step += self.training  # in Python, as a step that is left out takes back changes of a buffer
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            loc = z[..., None] * self.loc * (torch.nan if self.training and self.step == self.spoiled else 1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("switch", self)
        infer = {"baseline": {"use_decaying_avg_baseline": True}}
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)[:, 0]), infer=infer)


def trained(switch=None, x=X, **settings):
    switch = switch or Switch()
    history = fit(switch.model, switch.guide, x, **SETTINGS | {"epochs": 2} | settings)
    return history.column("train_loss"), [parameter.detach().clone() for parameter in switch.parameters()]


def test_running_means_are_not_those_of_an_earlier_training():
    before = trained()
    trained(epochs=5)
    after = trained()
    assert before[0] == after[0]
    assert all(map(torch.equal, before[1], after[1]))


def test_running_means_are_not_those_of_a_training_within_a_callback():
    alone, other = trained(), Switch()
    within = trained(on_step=lambda step, _: trained(other, epochs=1) if step == 2 else None)
    assert alone[0] == within[0]
    assert all(map(torch.equal, alone[1], within[1]))


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("on_nan", ["skip", "rollback"])
def test_a_step_that_is_left_out_leaves_the_running_means_alone(on_nan):
    seen = []

    def keep(*_):
        seen.append(pyro.get_param_store()["__baseline_avg_downstream_cost_z"].detach().clone())

    with pytest.warns(RuntimeWarning, match="a step is skipped") as warned:
        trained(Switch(spoiled=6), on_nan=on_nan, on_step=keep, epochs=3)
    assert len([each for each in warned if "a step is skipped" in str(each.message)]) == 1
    assert len(seen) == 3 * 4
    assert torch.equal(seen[5], seen[4 if on_nan == "skip" else 3])


def test_running_means_that_are_replaced_are_forgotten():
    sizes = []
    trained(epochs=60, on_epoch=lambda _: sizes.append(len(pyro.get_param_store()._param_to_name)))
    assert max(sizes) <= 101 + len(pyro.get_param_store())


@pytest.mark.parametrize("x", [X[:35], DataLoader(X, batch_size=15)], ids=["last", "ready"])
def test_running_means_of_batches_of_several_sizes_are_refused(x):
    with pytest.raises(ValueError, match=r"use_decaying_avg_baseline of site 'z'.* drop_last=True"):
        trained(x=x)
    trained(x=DataLoader(X, batch_size=15, drop_last=True))
