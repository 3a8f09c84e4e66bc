"""What tests/runtime/test_distributed.py trains: in its own process, and as a script in two, of half the batch each."""

import sys
import tempfile
from contextlib import suppress
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from lightning_fabric import Fabric
from pyro.infer import TraceGraph_ELBO
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from pyro_vae import VAE, decoders, encoders, priors
from pyro_vae.data import MemoryMapped
from pyro_vae.networks import MLP
from pyro_vae.objectives import linear_warm_up
from pyro_vae.runtime.checkpoints import Checkpoints, Stopped
from pyro_vae.training import StopTraining, fit


def in_a_file(x):
    with tempfile.NamedTemporaryFile(suffix=".npy", delete=False) as file:
        np.save(file, x.numpy())
    return MemoryMapped(file.name)


class InAStream(IterableDataset):
    """Data one by one, of no known number."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


def in_a_dict(x):
    return {"x": x}


def in_a_loader(x):
    return DataLoader(TensorDataset(x), batch_size=BATCH)


BATCH = 16
CASES = {  # 100 steps each
    "even": {"count": 64},
    "parts of one and two data": {"count": 51},
    "a part of none": {"count": 49},
    "a part of none, recorded": {"count": 49, "engine": "recorded"},
    "in double precision": {"count": 51, "dtype": torch.float64},
    "clipped, warmed up": {"count": 51, "clip_norm": 0.5, "beta": linear_warm_up(40)},
    "in a file, a part of none": {"count": 49, "form": in_a_file},
    "in a stream": {"count": 51, "form": InAStream},
    "in a dict": {"count": 51, "form": in_a_dict},
    "in ready batches": {"count": 51, "form": in_a_loader},
}


class NoiseOfTheDatum(Messenger):
    """Draw z by noise that is a function of x, and so does not depend on who computes it."""

    def __init__(self, x):
        super().__init__()
        self.noise = 2 * torch.sin(1000 * x[:, :2])

    def _pyro_sample(self, msg):
        msg["value"] = msg["fn"].base_dist.loc + msg["fn"].base_dist.scale * self.noise


def programs(dtype, seed):
    torch.manual_seed(seed)
    encoder, decoder = MLP((6,), (2, 2), (8,)).to(dtype), MLP((2,), (6,), (8,)).to(dtype)

    def model(x):
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", lambda: 0.5 + torch.rand((), dtype=dtype), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).unbind(-2)
        with pyro.plate("data", len(x)), NoiseOfTheDatum(x):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def parameters():
        return torch.cat([p.detach().flatten() for p in [*encoder.parameters(), *decoder.parameters()]]), pyro.param(
            "scale"
        ).detach()

    return model, guide, parameters


def train(fabric, count, dtype=torch.float32, form=torch.clone, **settings):
    """Return the parameters, the history without its seconds, and the losses of the steps."""
    pyro.clear_param_store()
    draws = torch.Generator().manual_seed(1)
    x, test = (torch.randn(size, 6, generator=draws, dtype=dtype) for size in (count, 7))
    model, guide, parameters = programs(dtype, seed=fabric.global_rank if fabric else 0)  # rank 0's are everyone's
    losses = []
    history = fit(
        model,
        guide,
        form(x),
        validation=form(test),
        batch_size=BATCH // (fabric.world_size if fabric else 1),
        epochs=25,
        fabric=fabric,
        on_step=lambda _, loss: losses.append(loss.item()),
        **settings,
    )
    rows = [[value for name, value in row.items() if name != "seconds"] for row in history]
    return {"parameters": parameters(), "history": torch.tensor(rows), "losses": torch.tensor(losses)}


def see(fabric):
    """Return the data that this rank has trained on in two epochs, and a number that it drew after each step."""
    pyro.clear_param_store()
    model, guide, _ = programs(torch.float32, seed=0)
    batches, seen = [], []

    def look(batch):
        batches.append(batch)
        return batch

    def remember(*_):
        seen.append((batches[-1], torch.rand(())))

    x = torch.arange(30.0).reshape(5, 6)
    fit(model, guide, x, epochs=2, batch_size=1, fabric=fabric, transform=look, on_step=remember)
    rows, draws = zip(*seen, strict=True)
    return {"rows": torch.cat(rows)[:, 0] / 6, "draws": torch.stack(draws)}


class Normalized(nn.Sequential):
    def __init__(self, in_shape, out_shape):
        super().__init__(nn.BatchNorm1d(6), MLP(in_shape, out_shape, (8,)))


def normalize(fabric):
    """Return the buffers of a batch normalization after 2 epochs of 3 steps, from other ones on each rank."""
    vae = VAE(priors.Normal(2), encoders.Normal(6, 2, Normalized), decoders.Normal(2, 6))
    vae.encoder.network[0].running_mean.fill_(100.0 * fabric.global_rank)
    x = torch.randn(44, 6, generator=torch.Generator().manual_seed(1)) + 3
    fit(vae.model, vae.guide, x, epochs=2, batch_size=8, fabric=fabric)
    return dict(vae.named_buffers())


def stopped_by_one(fabric, where):
    """Return how many rows this rank has, where rank 1 alone ends the training: in its step 120, or behind epoch 2."""
    pyro.clear_param_store()
    model, guide, parameters = programs(torch.float32, seed=0)

    def stop(number, *_):
        if fabric.global_rank == 1 and (number == 120 if where == "on_step" else number["epoch"] == 2):
            raise StopTraining

    x = torch.randn(120, 6, generator=torch.Generator().manual_seed(1))
    history = fit(model, guide, x, epochs=5, batch_size=1, fabric=fabric, **{where: stop})
    return len(history), parameters()


def of_other_data(fabric):
    """Return what is said where each process has a part of the data."""
    pyro.clear_param_store()
    model, guide, _ = programs(torch.float32, seed=0)
    data = TensorDataset(torch.arange(120.0).reshape(20, 6))
    own = DataLoader(data, 5, sampler=DistributedSampler(data, fabric.world_size, fabric.global_rank))
    try:
        fit(model, guide, own, epochs=1, fabric=fabric)
    except ValueError as error:
        return str(error)


ONES = torch.ones(3)
LATE = {  # what each of two ranks uses from its 12th call on: the name and the first value of a parameter
    "of all ranks": (("late", ONES), ("late", ONES)),
    "of one rank": (None, ("late", ONES)),
    "of another name": (("late0", ONES), ("late1", ONES)),
    "of another shape": (("late", ONES[:1]), ("late", ONES)),
    "a step later": (("late", ONES), ("late", ONES)),
    "of random values": (("late", lambda: torch.randn(3)), ("late", lambda: torch.randn(3))),
    "from the first step": (("late0", ONES), ("late1", ONES)),
}


def with_late_parameters(fabric, kind):
    """Return the parameters after two epochs of 10 steps, or what is said where the ranks' parameters differ."""
    pyro.clear_param_store()
    rank, calls = fabric.global_rank if fabric else 0, []
    late, first = LATE[kind][rank], 0 if kind == "from the first step" else 12 + rank * (kind == "a step later")

    def model(x):
        calls.append(1)
        loc = pyro.param("a", torch.zeros(3))
        if len(calls) > first and late:
            loc = loc + pyro.param(*late)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)) + 3
    size = 4 // (fabric.world_size if fabric else 1)
    try:
        fit(model, lambda _: None, x, epochs=2, batch_size=size, fabric=fabric, optimizer=partial(SGD, lr=0.1))
    except ValueError as error:
        return str(error)
    return torch.cat([value.detach() for _, value in sorted(pyro.get_param_store().items())])


class Centred(nn.Module):
    """A layer of data minus their running means, one a buffer and one a frozen parameter, both of this rank's part."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, 3)
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("ones", torch.ones(1).expand(3))
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(x.mean(0), 0.1)
                self.frozen.lerp_(x.mean(0), 0.1)
        return self.layer(x - self.mean - self.frozen * self.ones)


def with_running_means(fabric, epochs=2, **settings):
    """Train on what the ranks know apart, which begins as rank 0's; return its history and what all ranks end with."""
    pyro.clear_param_store()
    net = Centred(seed=fabric.global_rank if fabric else 0)
    infer = {"baseline": {"use_decaying_avg_baseline": True}}

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(x.new_full((3,), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(z * pyro.param("a", torch.ones(3)), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=net(x)).to_event(1), infer=infer)

    x = torch.randn(240, 3, generator=torch.Generator().manual_seed(1)) + 3
    history = fit(model, guide, x, batch_size=1, epochs=epochs, fabric=fabric, loss=TraceGraph_ELBO(), **settings)
    values = net.state_dict() | dict(pyro.get_param_store().items())
    return history.column("train_loss"), {name: value.detach().clone() for name, value in values.items()}


def resumed(fabric, folder):
    """Return what a training begins and ends with, and ends with if it is stopped within an epoch and resumed."""
    keeper, there = Checkpoints(f"{folder}/checkpoints"), f"{folder}/checkpoints"
    whole = with_running_means(fabric)
    with suppress(Stopped):
        with_running_means(fabric, checkpoints=keeper, on_step=lambda step, _: keeper.stop() if step == 99 else None)
    return with_running_means(fabric, epochs=0), whole, with_running_means(fabric, resume=there)


def train_all(fabric, folder):
    torch.set_num_threads(1)
    found = {name: train(fabric, **case) for name, case in CASES.items()}
    found |= {"resumed": resumed(fabric, folder)}
    found |= {"seen": see(fabric), "buffers": normalize(fabric)}
    found |= {f"stopped {where}": stopped_by_one(fabric, where) for where in ("on_step", "on_epoch")}
    found |= {"of other data": of_other_data(fabric)}
    found |= {"late": {kind: with_late_parameters(fabric, kind) for kind in LATE}}
    torch.save(found, f"{folder}/rank{fabric.global_rank}.pt")


if __name__ == "__main__":
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(train_all, sys.argv[1])
