"""Data of several parts, and ready batches, against Pyro's own loop: ``for batch in loader: svi.step(*batch)``."""

import copy
import warnings
from collections import UserDict
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from data_sets import Items, Stream
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pyro_vae import VAE, decoders, encoders, evaluate, fit, priors
from pyro_vae.data import Columns, EightBit, MemoryMapped, Ready, pieces
from pyro_vae.diagnostics.evaluation import log_likelihood
from pyro_vae.objectives import IWAE
from pyro_vae.runtime.checkpoints import Checkpoints, Stopped
from pyro_vae.runtime.distributed import Ranks
from pyro_vae.training.batches import Batches

N, D, CLASSES = 50, 3, 4
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, D, generator=GENERATOR)
Y = torch.randint(0, CLASSES, (N,), generator=GENERATOR)


class Conditional(nn.Module):
    """p(x|z, y) p(z) and q(z|x, y); without labels the guide sees zeros, and so does the model."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder, self.decoder = nn.Linear(D + CLASSES, 4), nn.Linear(2 + CLASSES, D)

    def labels(self, x, y):
        return x.new_zeros(len(x), CLASSES) if y is None else one_hot(y.long(), CLASSES).to(x)

    def model(self, x, y=None):
        pyro.module("conditional", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            labels = self.labels(x, y).expand(*z.shape[:-1], CLASSES)
            pyro.sample("x", dist.Normal(self.decoder(torch.cat([z, labels], -1)), 1.0).to_event(1), obs=x)

    def guide(self, x, y=None):
        pyro.module("conditional", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(torch.cat([x, self.labels(x, y)], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def by_hand(pair, epochs, seed, count=len):
    """Do what SVI does, on the mean of each batch: yields the loss of each step."""
    optim = torch.optim.Adam(pair.parameters(), lr=1e-3)
    torch.manual_seed(seed)
    for batches in epochs:
        for batch in batches:
            args, kwargs = ((), batch) if isinstance(batch, dict) else (batch, {})
            first = next(iter(batch.values())) if kwargs else batch[0]
            loss = Trace_ELBO().differentiable_loss(pair.model, pair.guide, *args, **kwargs) / count(first)
            optim.zero_grad()
            loss.backward()
            optim.step()
            yield loss.item()


def shuffled(epochs, seed, size=16):
    """The rows of each batch as fit shuffles them."""
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield torch.randperm(N, generator=order).split(size)


KINDS = {
    "tuple": lambda: (X, Y),
    "list": lambda: [X, Y],
    "dict": lambda: {"y": Y, "x": X},
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "TensorDataset": lambda: TensorDataset(X, Y),
    "items": lambda: Items(list(zip(X, Y, strict=True))),
    "numbers": lambda: Items([(x.numpy(), int(y)) for x, y in zip(X, Y, strict=True)]),
    "dict of items": lambda: Items([{"x": x, "y": y} for x, y in zip(X, Y, strict=True)]),
    "list of items": lambda: list(zip(X, Y, strict=True)),
}


@pytest.mark.parametrize("engine", ["eager", "recorded"])
@pytest.mark.parametrize("kind", KINDS)
def test_data_of_several_parts_are_trained_as_by_hand(kind, engine):
    losses, ours, theirs = [], Conditional(), Conditional()
    fit(
        ours.model,
        ours.guide,
        KINDS[kind](),
        epochs=13,
        batch_size=16,
        seed=3,
        engine=engine,
        on_step=lambda _, loss: losses.append(float(loss)),
    )
    epochs = ([(X[rows], Y[rows]) for rows in batches] for batches in shuffled(13, seed=3))
    torch.testing.assert_close(losses, list(by_hand(theirs, epochs, seed=3)), rtol=1e-6, atol=0)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_compiled_steps_of_several_parts_are_those_by_hand():
    ours, theirs = Conditional(), Conditional()
    history = fit(ours.model, ours.guide, (X, Y), epochs=13, batch_size=25, seed=3, engine="compiled")
    epochs = ([(X[rows], Y[rows]) for rows in batches] for batches in shuffled(13, seed=3, size=25))
    list(by_hand(theirs, epochs, seed=3))
    assert history.engine.startswith("compiled: ")
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


class Alternating:
    """Labelled and unlabelled batches in turn, of different sizes."""

    def __iter__(self):
        for start in range(0, 48, 12):
            yield X[start : start + 8], Y[start : start + 8]
            yield X[start + 8 : start + 12], None


LOADERS = {
    "in order": lambda: DataLoader(TensorDataset(X, Y), batch_size=16),
    "shuffled": lambda: DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True),
    "of its own generator": lambda: DataLoader(
        TensorDataset(X, Y), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "drop_last": lambda: DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True, drop_last=True),
    "dicts": lambda: DataLoader(KINDS["dict of items"](), batch_size=16, shuffle=True),
    "ready-made": lambda: DataLoader([(X[:30], Y[:30]), (X[30:], Y[30:])], batch_size=None),
    "alternating": Alternating,
    "list of batches": lambda: [(X[:30], Y[:30]), (X[30:], None)],
}


@pytest.mark.parametrize("engine", ["eager", "recorded"])
@pytest.mark.parametrize("kind", LOADERS)
def test_ready_batches_are_trained_as_by_hand(kind, engine, monkeypatch):
    monkeypatch.setattr("pyro_vae.runtime.recording.AGAIN", 5)
    losses, ours, theirs = [], Conditional(), Conditional()
    loader, other = LOADERS[kind](), LOADERS[kind]()
    history = fit(
        ours.model,
        ours.guide,
        loader,
        epochs=13,
        seed=3,
        engine=engine,
        on_step=lambda _, loss: losses.append(float(loss)),
    )
    torch.testing.assert_close(losses, list(by_hand(theirs, [other] * 13, seed=3)), rtol=1e-6, atol=0)
    for mine, hand in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, hand, rtol=0, atol=1e-6)
    if engine == "recorded":
        replayed, _, calls = history.engine.removeprefix("recorded: ").split()[:3]
        assert int(replayed) > int(calls) / 3  # each structure has a recording of its own


class Sequences(nn.Module):
    """Sequences of different length: a latent per sequence, observed where a mask says so."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(D, 4)

    def model(self, x, lengths):
        mask = torch.arange(x.shape[1]) < lengths[:, None]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            steps = dist.Normal(z[..., None, :], 1.0).to_event(1).mask(mask).to_event(1)
            pyro.sample("x", steps, obs=x)

    def guide(self, x, lengths):
        pyro.module("encoder", self.encoder)
        mask = torch.arange(x.shape[1]) < lengths[:, None]
        mean = (x * mask[..., None]).sum(1) / lengths[:, None]
        with pyro.plate("data", len(x)):
            loc, _ = self.encoder(mean).split([D, 1], -1)
            pyro.sample("z", dist.Normal(loc, (1.0 + lengths[:, None]) ** -0.5).to_event(1))


def ragged():
    lengths = torch.tensor([2, 5, 3, 1, 4, 4, 2, 6, 3])
    for start in (0, 4, 6):
        own = lengths[start : start + 4 if start != 4 else 6]
        yield torch.randn(len(own), int(own.max()), D, generator=torch.Generator().manual_seed(start)), own


class Ragged:
    def __iter__(self):
        return ragged()


def test_ragged_sequences_come_as_they_are():
    ours, theirs = Sequences(), Sequences()
    theirs.load_state_dict(ours.state_dict())
    losses = []
    fit(ours.model, ours.guide, Ragged(), epochs=20, seed=1, on_step=lambda _, loss: losses.append(float(loss)))
    torch.testing.assert_close(losses, list(by_hand(theirs, [Ragged()] * 20, seed=1)), rtol=1e-6, atol=0)


def test_a_bound_of_ready_batches_is_the_mean_over_their_data():
    """The posterior is known, so that the bound is log p(x) whatever the draw: no noise."""
    pair = Sequences()
    with torch.no_grad():
        pair.encoder.weight.copy_(torch.cat([torch.eye(D), torch.zeros(1, D)]))
        pair.encoder.bias.zero_()

    def guide(x, lengths):
        mask = torch.arange(x.shape[1]) < lengths[:, None]
        total = (x * mask[..., None]).sum(1)
        with pyro.plate("data", len(x)):
            precision = 1.0 + lengths[:, None]
            pyro.sample("z", dist.Normal(total / precision, precision**-0.5).to_event(1))

    exact = []
    for x, lengths in ragged():
        for row, length in zip(x, lengths, strict=True):
            covariance = torch.eye(length) + torch.ones(length, length)  # of each of the D entries
            seen = dist.MultivariateNormal(torch.zeros(length), covariance).log_prob(row[:length].T).sum()
            exact.append(seen.item())
    assert evaluate(pair.model, guide, Ragged()).loss == pytest.approx(-np.mean(exact), rel=1e-5)
    assert log_likelihood(pair.model, guide, Ragged(), samples=7) == pytest.approx(np.mean(exact), rel=1e-5)


def test_the_parts_of_a_bound_do_not_depend_on_how_the_data_come():
    pair, settings = Conditional(), {"seed": 1, "batch_size": N}
    whole = evaluate(pair.model, pair.guide, (X, Y), **settings)
    loader = DataLoader(
        TensorDataset(X, Y), batch_size=N, generator=torch.Generator()
    )  # else it draws before each pass
    for same in ({"x": X, "y": Y}, TensorDataset(X, Y), loader, Stream(list(zip(X, Y, strict=True)))):
        assert evaluate(pair.model, pair.guide, same, **settings) == whole
    estimates = {log_likelihood(pair.model, pair.guide, each, samples=9) for each in ((X, Y), loader)}
    assert len(estimates) == 1


def test_particles_take_several_parts():
    ours, theirs = Conditional(), Conditional()
    fit(ours.model, ours.guide, (X, Y), loss=IWAE(5), epochs=2, batch_size=N, seed=2)
    fit(theirs.model, theirs.guide, {"x": X, "y": Y}, loss=IWAE(5, chunk=2), epochs=2, batch_size=N, seed=2)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_count_says_how_many_data_a_batch_holds():
    """Sequences with time first: the first dimension is no number of data."""

    def turned(program):
        return lambda x, lengths: program(x.transpose(0, 1), lengths)

    class Turned:
        def __iter__(self):
            return ((x.transpose(0, 1), lengths) for x, lengths in ragged())

    pair = Sequences()
    expected = evaluate(pair.model, pair.guide, Ragged(), seed=4)
    found = evaluate(turned(pair.model), turned(pair.guide), Turned(), seed=4, count=lambda batch: len(batch[1]))
    assert found == expected
    with pytest.raises(ValueError, match="count must return the number of data of a batch, not"):
        evaluate(turned(pair.model), turned(pair.guide), Turned(), count=lambda _: 1.5)
    with pytest.raises(ValueError, match="count is for ready batches, as of a DataLoader, not for a tuple"):
        evaluate(pair.model, pair.guide, (X, Y), count=len)


class TimeFirst:
    """Sequences of several lengths, shape (T, B): their first dimension is that of time."""

    def __init__(self, *shapes):
        self.batches = [torch.randn(shape, generator=torch.Generator().manual_seed(len(shapes))) for shape in shapes]

    def __iter__(self):
        return iter(self.batches)


def chain(x, of_time=0, observed=True):
    """Model z_t ~ N(0, 1) and x_t ~ N(z_t, 1), or draw from its exact posterior, with a site for each time."""
    with pyro.plate("data", x.shape[1 - of_time]):
        for number, at in enumerate(x.unbind(of_time)):
            z = pyro.sample(f"z{number}", dist.Normal(0.0, 1.0) if observed else dist.Normal(at / 2, 0.5**0.5))
            if observed:
                pyro.sample(f"x{number}", dist.Normal(z + pyro.param("moved", torch.tensor(0.0)), 1.0), obs=at)


def test_batches_of_other_sites_and_of_any_first_dimension_have_their_exact_log_likelihood():
    batches, count = TimeFirst((3, 4), (6, 2), (2, 5)), {"count": lambda batch: batch.shape[1]}
    exact = sum(dist.Normal(0.0, 2**0.5).log_prob(batch).sum().item() for batch in batches) / 11
    pair = chain, lambda x: chain(x, observed=False)
    assert log_likelihood(*pair, batches, samples=3, **count) == pytest.approx(exact, rel=1e-6)
    assert evaluate(*pair, batches, loss=IWAE(3), **count).loss == pytest.approx(-exact, rel=1e-6)
    still = partial(torch.optim.SGD, lr=1e-20)
    row = fit(*pair, batches, loss=IWAE(3), epochs=1, optimizer=still, validation=batches, **count)[1]
    assert (row["train_loss"], row["test_loss"]) == pytest.approx((-exact, -exact), rel=1e-6)


class SomeLabels:
    """Batches with and without labels."""

    def __iter__(self):
        yield X[:20, 0], (Y[:20] > 1).float()
        yield X[20:30, 0], None
        yield X[30:, 0], (Y[30:] > 1).float()


def test_labels_that_some_batches_lack_are_summed_over_there():
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3)), obs=y)
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x, y=None):
        joint = [dist.Normal(float(each), 1.0).log_prob(x) + np.log([0.7, 0.3][each]) for each in (0, 1)]
        if y is None:
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Bernoulli(logits=joint[1] - joint[0]))

    joint = [dist.Normal(float(each), 1.0).log_prob(X[:, 0]) + np.log([0.7, 0.3][each]) for each in (0, 1)]
    exact = torch.where(Y > 1, joint[1], joint[0])
    exact[20:30] = torch.logaddexp(*joint)[20:30]
    assert log_likelihood(model, guide, SomeLabels(), samples=7) == pytest.approx(exact.mean().item(), rel=1e-6)


class PlatesOfTheirOwn:
    """Batches with and without labels, which the programs hold in plates of a size, of one name or of two."""

    def __init__(self, labelled):
        self.labelled = labelled

    def __iter__(self):
        yield X[:20, 0], None
        yield X[20:, 0], X[20:, 1]

    def model(self, x, y):
        self.program(x, y, dist.Normal(0.0, 1.0), observed=True)

    def guide(self, x, y):
        self.program(x, y, dist.Normal(x / 2, pyro.param("scale", torch.tensor(1.0))))

    def program(self, x, y, code, observed=False):
        name, size = ("data", 1000) if y is None else (self.labelled, 300)
        with pyro.plate(name, size, subsample_size=len(x)):
            z = pyro.sample("z", code)
            for name, value in [("x", x), ("y", y)] if observed else []:
                if value is not None:
                    pyro.sample(name, dist.Normal(z, 1.0), obs=value)


@pytest.mark.parametrize("loss", [Trace_ELBO(), IWAE(2)], ids=["Trace_ELBO", "IWAE"])
def test_a_batch_of_another_structure_may_have_a_plate_of_its_own(loss):
    found = []
    for data in (PlatesOfTheirOwn("data"), PlatesOfTheirOwn("labelled")):
        pyro.clear_param_store()
        trained = fit(data.model, data.guide, data, loss=loss, epochs=3).column("train_loss")
        found.append([*evaluate(data.model, data.guide, data, loss=loss), *trained])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_what_stands_outside_the_plate_of_a_later_batch_is_refused_as_in_the_first():
    data = PlatesOfTheirOwn("labelled")

    def program(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        if y is not None:
            pyro.sample("w", dist.Normal(0.0, 1.0))

    words = r"site 'w' stands outside the plate over the data, .* once for each batch of 30"
    with pytest.raises(ValueError, match=words):
        evaluate(program, poutine.block(program, hide=["x"]), data)


def test_batches_of_many_structures_are_kept_no_longer():
    ready = Ready([(torch.zeros(size, 2), f"batch {size}") for size in range(1, 30)])
    assert len(list(ready.structures())) == 8
    assert sum(ready.counts) == len(ready) == 435


def test_a_transform_acts_on_the_whole_batch():
    ours, theirs = Conditional(), Conditional()
    fit(ours.model, ours.guide, (X, Y), epochs=2, transform=lambda batch: (2 * batch[0], batch[1]))
    fit(theirs.model, theirs.guide, (2 * X, Y), epochs=2)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    with pytest.raises(ValueError, match=r"the transform makes .*: it must return as many data"):
        fit(ours.model, ours.guide, (X, Y), transform=lambda batch: (batch[0][:3], batch[1][:3]))


def test_whole_numbers_keep_their_types_and_others_take_that_of_the_programs():
    seen = []

    class Double(Conditional):
        def model(self, x, y, flags, pixels):
            seen.append((x.dtype, y.dtype, flags.dtype, pixels.dtype))
            super().model(x, y)

        def guide(self, x, y, *_):
            super().guide(x, y)

    pair = Double().double()
    bits = (Y > 1, (Y * 60).to(torch.uint8))
    fit(pair.model, pair.guide, (X, Y.int(), *bits), epochs=1)
    assert set(seen) == {(torch.float64, torch.int32, torch.bool, torch.uint8)}


def test_several_files_are_read_together(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    np.save(tmp_path / "y.npy", Y.numpy())
    files = MemoryMapped(tmp_path / "x.npy"), MemoryMapped(tmp_path / "y.npy")
    ours, theirs = Conditional(), Conditional()
    fit(ours.model, ours.guide, files, epochs=2, seed=1)
    fit(theirs.model, theirs.guide, (X, Y), epochs=2, seed=1)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    with pytest.raises(ValueError, match="data must have shape"):
        evaluate(theirs.model, theirs.guide, MemoryMapped(tmp_path / "y.npy"))
    rows = Columns({"pixels": EightBit(torch.full((3, 2), 255, dtype=torch.uint8)), "y": [1, 2, 3]})[1:]
    assert torch.equal(rows["pixels"], torch.ones(2, 2))
    assert rows["y"].tolist() == [2, 3]


def one(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([D]).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def one_guide(x):
    with pyro.plate("data", len(x)):
        scale = pyro.param("scale", torch.ones(D), constraint=dist.constraints.positive)
        pyro.sample("z", dist.Normal(x / 2, scale).to_event(1))


@pytest.mark.parametrize("kind", ["TensorDataset", "items", "list of items", "in order", "shuffled"])
def test_programs_of_one_argument_take_the_first_part_of_a_data_set_and_say_so_once(kind):
    data = (KINDS | LOADERS)[kind]()
    pyro.clear_param_store()
    with pytest.warns(UserWarning, match="only the first of the 2 parts of each datum is used") as caught:
        found = evaluate(one, one_guide, data, batch_size=N)
    assert len(caught) == 1
    if kind != "shuffled":
        whole = DataLoader(X, batch_size=16) if kind == "in order" else X
        assert found == evaluate(one, one_guide, whole, batch_size=N)


REFUSED = {
    "lengths": ((X, Y[:-1]), r"differ in length: part 0 has 50 data, and part 1 49"),
    "nested lengths": ({"x": X, "y": (Y, Y[:3])}, r"differ in length: part x has 50 data, and part y.1 3"),
    "unknown key": ({"x": X, "y": Y, "w": Y}, r"the model takes \(x, y\), but a batch is .*write model\(x, y, w\)"),
    "a number as a key": ({0: X}, "the keys of a batch must be names of the programs' arguments, such as 'x', not 0"),
    "a name": ("digits", r"not a name: give data.load\('digits'\).train"),
    "missing key": ({"y": Y}, r"the model takes \(x, y\), but a batch is \{y: .*or give data for \(x, y\)"),
    "a key of the objectives": ({"x": X, "model": Y}, "must not have the key 'model', an argument of the objectives"),
    "too many": ((X, Y, Y), r"the model takes \(x, y\), but a batch is \(tensor of shape \(1, 3\), tensor .*x2\)"),
    "an iterator": (iter(DataLoader(X)), "must start again at each pass"),
    "an empty loader": (DataLoader(TensorDataset(X[:0], Y[:0])), "gives no batches"),
    "an empty tuple": ((), "must hold a tensor of at least one datum, not"),
    "texts": ((X, ["a"] * N), "a part of the data must be a tensor or an array, not a str"),
    "text items": (Items([(x, "cat") for x in X]), "must hold real numbers"),
    "other structures": (Items([(X[0], Y[0]), (X[0], Y[0], 3)]), "the data differ in structure"),
    "some labels": (Items([(X[0], None), (X[0], 1)]), "a part of the data is None in 1 of 2"),
    "shapes": (Items([(X[0], Y[0]), (X[0, :1], Y[0])]), r"the data differ in shape: \(1,\) and \(3,\)"),
    "may be either": ([(X, X), (X, X)], "may hold data or ready batches"),
    "batches of numbers": (DataLoader(Items([1.0, 2.0])), r"data must have shape \(N, \.\.\.\)"),
    "infinite": ((X, torch.full((N,), torch.inf)), r"the data hold inf at index \(0,\) of part 1"),
    "a batch without data": (DataLoader([(X, Y), (X[:0], Y[:0])], batch_size=None), "gives a batch without data"),
    "a packed sequence": (DataLoader([pack_sequence([X, X])], batch_size=None), "must not be a PackedSequence"),
    "missing": ((X.clone().index_fill(0, torch.tensor([7]), torch.nan), Y), r"hold nan at index \(7, 0\) of part 0"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused(kind):
    data, words = REFUSED[kind]
    pair = Conditional()
    with pytest.raises((TypeError, ValueError), match=words):
        fit(pair.model, pair.guide, data, epochs=1)


def test_a_tuple_is_never_taken_apart_for_programs_of_one_argument():
    vae = VAE(priors.Normal(2), encoders.Normal(D, 2), decoders.Normal(2, D))
    with pytest.raises(
        TypeError, match=r"the model takes \(x\), but a batch is .* write model\(x, y\) and guide\(x, y\)"
    ):
        fit(vae.model, vae.guide, (X, X))
    with pytest.raises(TypeError, match=r"the guide takes \(x\), but a batch is"):
        fit(Conditional().model, one_guide, (X, Y))


@pytest.mark.parametrize("later", [(X, Y, Y), {"x": X, "w": Y}], ids=["too many", "unknown key"])
def test_a_structure_that_comes_later_and_does_not_fit_is_refused(later):
    class Changing:
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield (X, Y) if self.passes < 4 else later

    pair = Conditional()
    with pytest.raises(ValueError, match=r"the Changing gave .* cannot be called: give the same parts in every pass"):
        fit(pair.model, pair.guide, Changing(), epochs=5)


@pytest.mark.parametrize("number", [0, 1], ids=["first", "second"])
def test_a_ready_batch_whose_parts_do_not_fit_is_refused_in_a_line(number):
    class Uneven:
        def __iter__(self):
            for place in (0, 1):
                yield X[:10], Y[: 9 if place == number else 10]

    pair = Conditional()
    words = (
        r"the programs fail on \(tensor of shape \(10, 3\), tensor of shape \(9,\)\) \(Sizes of tensors.*: give parts"
    )
    with pytest.raises(ValueError, match=words) as caught:
        fit(pair.model, pair.guide, Uneven(), epochs=1)
    assert "\n" not in str(caught.value)


class Shrinking:
    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        return iter([(X, Y)] * (1 + (self.passes < 4)))


@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 3))])
def test_whole_numbers_beside_others_are_refused_by_their_type(layer):
    """Of one part they become floats; of several, labels among them, they are indices as often as not."""
    vae = VAE(priors.Normal(2), encoders.Normal(3, 2, network=lambda *_: layer), decoders.Poisson(2, 3))
    with pytest.raises(
        ValueError, match=r": give x\.float\(\), or use it in the programs, where integers go into a layer"
    ):
        evaluate(vae.model, vae.guide, {"x": torch.ones(10, 3, dtype=torch.int32)})


def test_a_loader_that_ends_early_is_refused():
    pair = Conditional()
    with pytest.raises(ValueError, match="the Shrinking gave 50 data in this pass, and 100 before"):
        fit(pair.model, pair.guide, Shrinking(), epochs=9)


@pytest.mark.parametrize("kind", ["tuple", "dict", "shuffled", "of its own generator", "alternating"])
def test_a_training_on_batches_is_resumed_to_the_last_bit(kind, tmp_path):
    """Ready batches begin again at the start of the epoch that was stopped."""
    make = (KINDS | LOADERS)[kind]
    whole, stopped = Conditional(), Conditional()
    settings = {"epochs": 5, "batch_size": 16, "seed": 3}
    history = fit(whole.model, whole.guide, make(), checkpoints=tmp_path / "whole", **settings)

    def stop(step, _):
        if step == 9:
            keeper.stop()

    keeper = Checkpoints(tmp_path / "part")
    with pytest.raises(Stopped):
        fit(stopped.model, stopped.guide, make(), checkpoints=keeper, on_step=stop, **settings)
    again = Conditional(seed=7)
    rest = fit(again.model, again.guide, make(), resume=tmp_path / "part", **settings)
    for mine, other in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert [row["train_loss"] for row in rest] == [row["train_loss"] for row in history]
    if kind in ("tuple", "dict"):
        with pytest.raises(ValueError, match="cannot resume: the checkpoint has data="):
            fit(again.model, again.guide, (X, Y.roll(1)), resume=tmp_path / "part", **settings)


def test_parts_that_a_recording_cannot_follow_are_trained_eagerly():
    """Settings of a namespace may change from batch to batch, and cannot be looked up."""
    half, losses = SimpleNamespace(scale=1.0), []

    class Once:
        def __iter__(self):
            yield X, half

    def model(x, settings):
        with poutine.scale(scale=settings.scale):
            one(x)

    def guide(x, settings):
        with poutine.scale(scale=settings.scale):
            one_guide(x)

    def halve(step, loss):
        losses.append(float(loss))
        half.scale = 0.5 ** ((step + 1) // 10)

    history = fit(model, guide, Once(), epochs=20, engine="recorded", on_step=halve)
    assert history.engine == "recorded: 0 of 20 steps were replayed"
    assert np.mean(losses[10:]) == pytest.approx(np.mean(losses[:10]) / 2, rel=0.1)


def test_the_callers_generator_is_used_by_the_training_alone():
    """An epoch's order is that which the loader would have given without the checks and evaluations."""
    loader = LOADERS["of its own generator"]()
    rows = Ready(loader)
    state = loader.generator.get_state()
    list(rows.split())
    assert torch.equal(loader.generator.get_state(), state)
    batches = [batch for batch, _ in Batches(rows, 16).after(0)]
    loader.generator.set_state(state)
    assert all(map(torch.equal, (x for x, _ in batches), (x for x, _ in loader)))


def test_global_state_is_as_before_whatever_fails():
    pair, state = Conditional(), torch.get_rng_state()

    class Failing:
        def __init__(self):
            self.passes = 0

        def __iter__(self):
            self.passes += 1
            yield X, Y
            if self.passes == 5:
                raise RuntimeError("of the user's data")

    with pytest.raises(RuntimeError, match="of the user's data"):
        fit(pair.model, pair.guide, Failing(), epochs=9)
    assert torch.equal(torch.get_rng_state(), state)
    assert copy.copy(pair).training


def in_batches(generator):
    return DataLoader(TensorDataset(X, Y), batch_sampler=BatchSampler(RandomSampler(X, generator=generator), 16, False))


class OfOwnGenerators:
    """Batches in an order, and with noise, of two generators."""

    def __init__(self):
        self.order, self.noise = (torch.Generator().manual_seed(seed) for seed in (4, 5))

    def __iter__(self):
        for rows in torch.randperm(N, generator=self.order).split(16):
            yield X[rows] + torch.randn(len(rows), D, generator=self.noise), Y[rows]


GENERATORS = {
    "of a batch sampler": lambda: in_batches(torch.Generator().manual_seed(1)),
    "of a loader and its sampler": lambda: DataLoader(
        TensorDataset(X, Y),
        batch_size=16,
        sampler=WeightedRandomSampler([1.0, 3.0] * 25, 40, generator=torch.Generator().manual_seed(1)),
        generator=torch.Generator().manual_seed(2),
    ),
    "of an iterable": OfOwnGenerators,
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_generators_wherever_they_are_held_are_used_by_the_training_alone_and_resumed(kind, tmp_path):
    make, losses, settings = GENERATORS[kind], [], {"epochs": 4, "seed": 3}
    ours, theirs, stopped, again = Conditional(), Conditional(), Conditional(), Conditional(seed=7)
    fit(
        ours.model,
        ours.guide,
        make(),
        validation=make(),
        on_step=lambda _, loss: losses.append(float(loss)),
        **settings,
    )
    loader = make()
    torch.testing.assert_close(losses, list(by_hand(theirs, [loader] * 4, seed=3)), rtol=1e-6, atol=0)
    keeper = Checkpoints(tmp_path)
    with pytest.raises(Stopped):
        fit(
            stopped.model,
            stopped.guide,
            make(),
            checkpoints=keeper,
            on_step=lambda step, _: step == 6 and keeper.stop(),
            **settings,
        )
    fit(again.model, again.guide, make(), resume=tmp_path, **settings)
    for mine, other in zip(again.parameters(), ours.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_generator_that_is_none_of_torchs_is_left_alone():
    class OfNumpy(Alternating):
        generator = property(lambda _: np.random.default_rng(0))

    pair = Conditional()
    assert evaluate(pair.model, pair.guide, OfNumpy()) == evaluate(pair.model, pair.guide, Alternating())


@pytest.mark.parametrize("kind", ["shuffled", "of its own generator"])
def test_all_ranks_take_their_parts_of_the_same_ready_batches(kind):
    """The noise of each rank is its own, and torch draws the order of a loader from the same source."""
    seen = []
    for rank in range(2):
        ranks = Ranks()
        ranks.rank, ranks.size = rank, 2
        torch.manual_seed(rank)
        batches = Batches(Ready(LOADERS[kind]()), 16, ranks=ranks)
        noise = torch.get_rng_state()
        seen.append([[x for (x, _), _ in batches.after(0)] for _ in range(2)])
        assert torch.equal(torch.get_rng_state(), noise)
    first, second = (
        torch.cat([torch.cat(parts) for parts in zip(*(own[epoch] for own in seen), strict=True)]) for epoch in range(2)
    )
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert torch.equal(epoch.sort(0).values, X.sort(0).values)


def test_passes_that_measure_draw_from_a_source_of_their_own():
    """Whatever order a loader draws for itself, the noise of an evaluation is that of its seed."""
    pair = Conditional()
    ones = [
        evaluate(pair.model, pair.guide, data, batch_size=N) for data in ((X, Y), DataLoader(TensorDataset(X, Y), N))
    ]
    assert ones[0] == ones[1]


def turned(x):
    with pyro.plate("data", x.shape[1]):
        z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        steps = dist.Normal(z[..., None, :], 1.0).expand([*z.shape[:-1], len(x), D]).to_event(2)
        pyro.sample("x", steps, obs=x.transpose(0, 1))


def turned_guide(x):
    with pyro.plate("data", x.shape[1]):
        pyro.sample("z", dist.Normal(x.sum(0) / (1 + len(x)), (1 + len(x)) ** -0.5).to_event(1))


def test_as_many_steps_as_sequences_are_not_taken_for_them():
    """Time comes first, and the batches are square: what is cut off must be sequences, or nothing."""
    square = X[:36].reshape(4, 9, D)[:, :4]
    covariance = torch.eye(4) + torch.ones(4, 4)
    exact = dist.MultivariateNormal(torch.zeros(4), covariance).log_prob(square.permute(1, 2, 0)).sum().item() / 4
    batches, settings = DataLoader([square], batch_size=None), {"count": lambda batch: batch.shape[1]}
    assert evaluate(turned, turned_guide, batches, **settings).loss == pytest.approx(-exact, rel=1e-5)
    found = log_likelihood(turned, turned_guide, batches, samples=50, **settings)
    assert found == pytest.approx(exact, rel=1e-5)
    assert len(list(pieces(square, 2, settings["count"]))) == 1
    ranks = Ranks()
    ranks.size = 2
    with pytest.raises(ValueError, match=r"several processes split each batch, but tensor .* cannot be split: let"):
        ranks.part_of(square, settings["count"])


@pytest.mark.parametrize("kind", ["tuple", "items", "numbers", "loader", "stream"])
def test_programs_without_modules_get_the_numbers_as_they_are(kind):
    double, seen = X.double() + 1e-9, []
    data = {
        "tuple": (double, double),
        "items": Items(list(zip(double, double, strict=True))),
        "numbers": Items([(row, float(row[0])) for row in double]),
        "loader": DataLoader(TensorDataset(double, double), batch_size=N),
        "stream": Stream(list(zip(double, double, strict=True))),
    }[kind]

    def model(x, y):
        seen.append((x, y))
        one(x)

    evaluate(model, lambda x, _: one_guide(x), data, batch_size=N)
    x, y = seen[-1]
    assert torch.equal(x, double)
    assert torch.equal(y, double[:, 0] if kind == "numbers" else double)


def test_a_transform_may_change_what_the_programs_are_called_with():
    masked, masked_guide = (lambda x, mask: one(x * mask)), (lambda x, mask: one_guide(x * mask))
    expected = evaluate(one, one_guide, X.relu())
    for data, transform in {
        (X, Y): lambda batch: batch[0].relu(),
        X: lambda x: x.relu(),
    }.items():
        assert evaluate(one, one_guide, data, transform=transform) == expected
    assert evaluate(masked, masked_guide, X, transform=lambda x: (x, x > 0)) == expected
    found = evaluate(masked, masked_guide, (X, Y), transform=lambda batch: {"mask": batch[0] > 0, "x": batch[0]})
    assert found == expected
    with pytest.raises(ValueError, match=r"count fails on \{x: .*, which the transform makes \(KeyError: 1\)"):
        evaluate(
            masked,
            masked_guide,
            LOADERS["in order"](),
            transform=lambda batch: {"x": batch[0], "mask": batch[0] > 0},
            count=lambda batch: len(batch[1]),
        )


class Given(NamedTuple):
    y: torch.Tensor
    weight: torch.Tensor


@pytest.mark.parametrize("kind", ["tensors", "items", "loader"])
def test_programs_take_parts_of_parts_by_their_names(kind):
    pair = Conditional()
    items = Items([(x, Given(y, y)) for x, y in zip(X, Y, strict=True)])
    data = {"tensors": (X, Given(Y, Y)), "items": items, "loader": DataLoader(items, N)}[kind]
    found = evaluate(lambda x, given: pair.model(x, given.y), lambda x, given: pair.guide(x, given.y), data)
    assert found == evaluate(pair.model, pair.guide, (X, Y))


def test_mappings_are_data_as_dicts_are(tmp_path):
    pair = Conditional()
    expected = evaluate(pair.model, pair.guide, {"x": X, "y": Y})
    np.savez(tmp_path / "x.npz", x=X.numpy(), y=Y.numpy())
    with np.load(tmp_path / "x.npz") as arrays:
        assert evaluate(pair.model, pair.guide, arrays) == expected
    assert evaluate(pair.model, pair.guide, UserDict(x=X, y=Y)) == expected


class Scaled(Conditional):
    """Takes the scale of the data from an object that no recording can look into."""

    def model(self, x, y, held):
        super().model(x * held["scale"], y)

    def guide(self, x, y, held):
        super().guide(x * held["scale"], y)


class Growing:
    def __init__(self):
        self.held = UserDict(scale=1.0, names={"a"})

    def __iter__(self):
        self.held["scale"] = 1.0  # in the same object
        for start in range(0, 48, 12):
            self.held["scale"] += 0.1
            yield X[start : start + 12], Y[start : start + 12], self.held


@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_batches_with_objects_are_trained_as_by_hand(engine):
    ours, theirs, losses = Scaled(), Scaled(), []
    history = fit(
        ours.model,
        ours.guide,
        Growing(),
        epochs=13,
        seed=3,
        engine=engine,
        on_step=lambda _, loss: losses.append(float(loss)),
    )
    torch.testing.assert_close(losses, list(by_hand(theirs, [Growing()] * 13, seed=3)), rtol=1e-6, atol=0)
    assert engine == "eager" or history.engine == "recorded: 0 of 52 steps were replayed"


def strided(loader_of, engine):
    pair, losses = Conditional(), []

    def guide(x, y):
        pair.guide(x.reshape(-1).reshape(x.shape), y)

    fit(pair.model, guide, loader_of, epochs=13, engine=engine, on_step=lambda _, loss: losses.append(float(loss)))
    return losses


class Turned:
    def __iter__(self):
        for number in range(4):
            yield (X if number % 2 else X.t().contiguous().t()), Y


def test_batches_that_lie_otherwise_in_memory_are_recorded_apart():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert strided(Turned(), "recorded") == strided(Turned(), "eager")


def test_a_part_with_missing_entries_that_nobody_leaves_out_is_refused_beside_one_that_may_have_them():
    decoder, weight = decoders.Masked(decoders.Normal(2, D)), nn.Linear(1, 2)

    def model(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", decoder(z + weight(c)), obs=x)

    def guide(x, _):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    missing, c = X.clone(), torch.ones(N, 1)
    missing[3, 1] = torch.nan
    assert np.isfinite(evaluate(model, guide, (missing, c)).loss)
    c[7] = torch.nan
    with pytest.raises(ValueError, match=r"the data hold nan at index \(7, 0\) of part 1"):
        evaluate(model, guide, (missing, c))


class Shuffling(IterableDataset):
    def __iter__(self):
        return ((X[row], Y[row]) for row in torch.randperm(N).tolist())


def test_data_that_draw_their_own_order_leave_torchs_random_state_as_before():
    pair, state = Conditional(), torch.get_rng_state()
    fit(pair.model, pair.guide, Shuffling(), validation=Shuffling(), epochs=1)
    assert torch.equal(torch.get_rng_state(), state)


class Permuted(IterableDataset):
    """A stream in another order at each pass, by torch's own random numbers or by a generator's."""

    def __init__(self, generator=None):
        self.generator = generator

    def __iter__(self):
        yield from X[torch.randperm(N, generator=self.generator)]


@pytest.mark.parametrize("own", [False, True], ids=["torch's", "its own"])
def test_a_stream_that_shuffles_is_resumed_within_an_epoch_to_the_last_bit(own, tmp_path):
    def make():
        return Permuted(torch.Generator().manual_seed(5) if own else None)

    settings = {"epochs": 4, "batch_size": 8, "seed": 3}
    whole, stopped, again = (Conditional(seed) for seed in (0, 0, 7))
    fit(whole.model, whole.guide, make(), checkpoints=tmp_path / "whole", **settings)
    keeper = Checkpoints(tmp_path / "part")
    stop = lambda step, _: step == 9 and keeper.stop()  # noqa: E731
    with pytest.raises(Stopped):
        fit(stopped.model, stopped.guide, make(), checkpoints=keeper, on_step=stop, **settings)
    fit(again.model, again.guide, make(), resume=keeper.folder, **settings)
    for mine, other in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)
