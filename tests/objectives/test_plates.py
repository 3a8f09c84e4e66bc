import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SubsetRandomSampler, TensorDataset

from pyro_vae import evaluate, fit, log_likelihood
from pyro_vae.objectives import IWAE, BetaTC, FreeBits, InfoVAE, StickingTheLanding

N = 60
PRIOR = 0.1  # the scale of the prior of a global mean


def plate(size, x, name="data", dim=-1):
    """A plate over the data, of a size of its own, or of the batch's."""
    return pyro.plate(name, len(x), dim=dim) if size is None else pyro.plate(name, size, subsample_size=len(x), dim=dim)


class Local(nn.Module):
    """One code for each datum, taken at a point, so that nothing has noise."""

    def __init__(self, size=None, guide_size=0):
        super().__init__()
        self.encode, self.decode = nn.Linear(5, 2), nn.Linear(2, 5)
        self.size, self.guide_size = size, size if guide_size == 0 else guide_size

    def model(self, x):
        pyro.module("local", self)
        with plate(self.size, x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        with plate(self.guide_size, x):
            pyro.sample("z", dist.Delta(self.encode(x)).to_event(1))

    def bound(self, x):
        z = self.encode(x)
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()
        return -(prior + torch.distributions.Normal(self.decode(z), 0.5).log_prob(x).sum()) / len(x)


class Global(nn.Module):
    """A mean of all data, normal under the prior and under the guide."""

    def __init__(self, size=None):
        super().__init__()
        self.mean, self.log_scale, self.size = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(-1.0)), size

    def model(self, x):
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), PRIOR))
        with plate(self.size, x):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[:, 0])

    def guide(self, x):  # noqa: ARG002 (as the model is called)
        pyro.module("global", self)
        pyro.sample("mean", dist.Normal(self.mean, self.log_scale.exp()))

    def terms(self, x):
        """Return the exact reconstruction and KL of all data, divided by their number."""
        mean, variance = self.mean.item(), self.log_scale.exp().item() ** 2
        error = ((x[:, 0] - mean) ** 2 + variance).mean().item() / 2 + math.log(2 * math.pi) / 2
        return error, (variance / PRIOR**2 - 1 - math.log(variance / PRIOR**2) + (mean / PRIOR) ** 2) / 2 / len(x)


def numbers(shape=(N, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 1


@pytest.mark.parametrize("batch_size", [1, 7, 20, N])
@pytest.mark.parametrize("size", [3 * N, N, None])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO])
def test_a_bound_is_per_datum_whatever_the_batch_and_the_size_of_the_plate(elbo, size, batch_size):
    local, x = Local(size), numbers()
    bound = evaluate(local.model, local.guide, x, loss=elbo(), batch_size=batch_size)
    assert bound.loss == pytest.approx(local.bound(x).item(), rel=1e-5)
    assert bound.reconstruction + bound.kl == pytest.approx(bound.loss, rel=1e-5)
    assert evaluate(local.model, local.guide, x, at="mean", batch_size=batch_size).loss == pytest.approx(bound.loss)


@pytest.mark.parametrize("beta", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO])
def test_a_scaled_plate_trains_as_one_of_the_batch(elbo, beta):
    histories, ends = [], []
    for size in (None, N):
        torch.manual_seed(0)
        local = Local(size)
        settings = {"epochs": 3, "batch_size": 25, "optimizer": lambda ps: torch.optim.SGD(ps, lr=0.01)}
        history = fit(local.model, local.guide, numbers(), loss=elbo(), beta=beta, **settings)
        histories.append([row[name] for row in history for name in ("train_loss", "train_reconstruction", "train_kl")])
        ends.append(list(local.parameters()))
    assert histories[1] == pytest.approx(histories[0], rel=1e-4)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [25, N])
def test_the_kl_of_a_global_site_counts_once_for_all_data(batch_size):
    own, x = Global(N), numbers((N, 1))
    found = [evaluate(own.model, own.guide, x, batch_size=batch_size, seed=seed) for seed in range(60)]
    losses = torch.tensor([bound.loss for bound in found], dtype=torch.float64)
    error = 5 * losses.std().item() / math.sqrt(len(losses))  # of 60 seeds
    assert abs(losses.mean().item() - sum(own.terms(x))) < error
    exact = evaluate(own.model, own.guide, x, loss=TraceMeanField_ELBO(), batch_size=batch_size)
    assert exact.kl == pytest.approx(own.terms(x)[1], rel=1e-5)


def test_a_global_site_ends_at_its_exact_posterior():
    own, x = Global(N), numbers((N, 1))
    for rate, epochs in ((3e-2, 80), (3e-3, 20)):
        optimizer = lambda ps, lr=rate: torch.optim.Adam(ps, lr=lr)  # noqa: E731
        settings = {"epochs": epochs, "batch_size": 25, "loss": TraceMeanField_ELBO(), "engine": "eager"}
        fit(own.model, own.guide, x, optimizer=optimizer, **settings)
    precision = N + 1 / PRIOR**2  # with the KL once per batch, the mean would be 0.2 and not 0.375
    assert own.mean.item() == pytest.approx(x.sum().item() / precision, abs=0.04)
    assert own.log_scale.exp().item() == pytest.approx(precision**-0.5, rel=0.2)


@pytest.mark.parametrize("call", [evaluate, fit])
def test_a_global_site_beside_a_plate_of_the_batch_is_refused_with_the_plate_to_take(call):
    own = Global()
    with pytest.raises(ValueError, match=r"'mean' .* for each batch of 20, .* pyro\.plate\('data', 60, subsample_size"):
        call(own.model, own.guide, numbers((N, 1)), batch_size=20)


def factor(x):
    pyro.factor("penalty", torch.tensor(-3.0))
    Local().model(x)


def observed(x):
    pyro.sample("constant", dist.Normal(0.0, 1.0), obs=torch.tensor(2.0))
    Local().model(x)


def without_plates(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mean, 1.0).expand(x.shape).to_event(2), obs=x)


@pytest.mark.parametrize(
    ("model", "guide", "site"),
    [
        (factor, Local().guide, "penalty"),
        (observed, Local().guide, "constant"),
        (without_plates, lambda x: pyro.sample("mean", dist.Normal(x.mean(), 1.0)), "mean"),
    ],
    ids=["factor", "observed", "no plate"],
)
def test_any_site_that_would_count_once_per_batch_is_refused_but_not_all_data_at_a_time(model, guide, site):
    with pytest.raises(ValueError, match=f"site '{site}' stands outside the plate over the data"):
        evaluate(model, guide, numbers(), batch_size=20)
    assert math.isfinite(evaluate(model, guide, numbers(), batch_size=N).loss)


@pytest.mark.parametrize(("sizes"), [(N, None), (None, N), (N, 2 * N)])
def test_plates_of_several_sizes_are_refused_with_both(sizes):
    local = Local(*sizes)
    with pytest.raises(ValueError, match=r"one size.* 60 .*subsample_size=len\(x\)|one size.* 20 .*subsample_size"):
        evaluate(local.model, local.guide, numbers(), batch_size=20)


@pytest.mark.parametrize("size", [N - 1, 10 * N])
def test_a_plate_of_another_size_than_the_data_is_refused_where_a_site_stands_outside(size):
    own = Global(size)
    with pytest.raises(ValueError, match=f"has size {size}, but there are 60 data.*'mean'.*give the plate the size 60"):
        fit(own.model, own.guide, numbers((N, 1)), epochs=1, batch_size=20)


LOADERS = {
    "in order": (50, lambda x, size: DataLoader(x, size, drop_last=True)),
    "shuffled": (N, lambda x, size: DataLoader(x, size, drop_last=True, shuffle=True)),
    "a part of them": (55, lambda x, size: DataLoader(x, size, drop_last=True, sampler=SubsetRandomSampler(range(55)))),
    "batches": (N, lambda x, size: DataLoader(x, batch_sampler=BatchSampler(RandomSampler(x), size, drop_last=True))),
    "drawn": (N, lambda x, size: DataLoader(x, size, sampler=RandomSampler(x, num_samples=50))),
}


@pytest.mark.parametrize("batch_size", [25, 50])
@pytest.mark.parametrize("name", LOADERS)
def test_a_plate_has_the_size_of_all_data_that_a_loader_draws_its_batches_from(name, batch_size):
    """In a random order all of 60 data have their turn, although each pass leaves out 10."""
    total, made_of = LOADERS[name]
    loader = made_of(TensorDataset(numbers((N, 1))), batch_size)
    own = Global(total + 1)
    with pytest.raises(ValueError, match=f"give the plate the size {total}"):
        fit(own.model, own.guide, loader, epochs=1)
    own = Global(None if batch_size < total else 1)
    with pytest.raises(ValueError, match=rf"plate\('data', {total}, |does not have the size of its batch"):
        fit(own.model, own.guide, loader, epochs=1)
    own = Global(total)
    row = fit(own.model, own.guide, loader, epochs=0, loss=TraceMeanField_ELBO())[0]
    assert row["train_kl"] == pytest.approx(own.terms(numbers((N, 1)))[1] * N / total, rel=1e-4)


def test_a_plate_of_fewer_data_than_a_batch_is_refused():
    local = Local(10)
    with pytest.raises(ValueError, match=r"does not have the size of its batch, 60: .*, or lower the batch size"):
        evaluate(local.model, local.guide, numbers())
    assert math.isfinite(evaluate(local.model, local.guide, numbers(), batch_size=10).loss)


def test_validation_data_may_be_fewer_than_the_plate_speaks_of():
    own, x = Global(N), numbers((N, 1))
    history = fit(own.model, own.guide, x, validation=x[:15], epochs=1, batch_size=20, loss=TraceMeanField_ELBO())
    assert history[0]["test_kl"] == pytest.approx(history[0]["train_kl"], rel=1e-5)  # 1/N per datum in both


def test_a_plate_as_long_as_a_batch_by_chance_is_no_plate_over_the_data():
    def model(x):
        with pyro.plate("columns", 50, subsample_size=5, dim=-1), plate(N, x, dim=-2):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    expected = evaluate(model, lambda _: None, numbers(), batch_size=20).loss
    for batch_size in (5, 10):
        assert evaluate(model, lambda _: None, numbers(), batch_size=batch_size).loss == pytest.approx(expected)
    assert expected == pytest.approx(-10 * torch.distributions.Normal(0.0, 1.0).log_prob(numbers()).sum().item() / N)


def test_a_latent_site_that_holds_the_batch_outside_a_scaled_plate_is_refused():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
        with plate(N, x):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        pyro.sample("z", dist.Normal(x[:, 0], 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"site 'z' holds the data of a batch, but stands outside .* size 60: put it"):
        evaluate(model, guide, numbers(), batch_size=20)


class Drawn(Local):
    """One code for each datum, drawn after as much other noise as a scaled plate of N makes."""

    def model(self, x):
        self.size or torch.randperm(N)
        super().model(x)

    def guide(self, x):
        self.size or torch.randperm(N)
        with plate(self.size, x):
            pyro.sample("z", dist.Normal(self.encode(x), 0.5).to_event(1))


@pytest.mark.parametrize("objective", [IWAE(3), StickingTheLanding(2), FreeBits(0.1), InfoVAE(), BetaTC()], ids=repr)
def test_objectives_of_each_datum_are_those_of_the_batch_under_a_scaled_plate(objective):
    found = []
    for size in (None, N):
        torch.manual_seed(0)
        own = Drawn(size)
        found.append(evaluate(own.model, own.guide, numbers()[:21], loss=objective, batch_size=7))
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_the_log_likelihood_under_a_scaled_plate_is_that_under_one_of_the_batch():
    found = []
    for size in (None, N):
        torch.manual_seed(0)
        own = Drawn(size)
        found.append(log_likelihood(own.model, own.guide, numbers()[:7], samples=100_000))
    assert found[1] == pytest.approx(found[0], abs=0.05)


@pytest.mark.filterwarnings("ignore:Found no sample sites")  # Pyro's, of what is not summed out
@pytest.mark.parametrize(
    ("loss", "instead"), [(RenyiELBO(num_particles=2), r"objectives\.Renyi"), (TraceTMC_ELBO(), "TraceEnum_ELBO")]
)
def test_pyros_sums_of_weights_are_refused_under_a_scaled_plate(loss, instead):
    """The scale would be a power of the weights."""
    own, whole = Drawn(N), Drawn()
    scaled = poutine.scale(whole.model, 2.0), poutine.scale(whole.guide, 2.0)
    trained = () if isinstance(loss, RenyiELBO) else (partial(fit, epochs=1),)  # it is refused by its name
    for run in (evaluate, *trained):
        for pair in ((own.model, own.guide), scaled):
            with pytest.raises(
                ValueError, match=f"another bound where a plate or a site is scaled, .*: take {instead}"
            ):
                run(*pair, numbers(), loss=loss, batch_size=20)


# Parameters for each datum


def guide_of_rows(x):
    loc = pyro.param("loc", torch.zeros(len(x), 1))
    scale = pyro.param("scale", torch.ones(len(x), 1), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def model_of_rows(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_parameters_for_each_datum_end_at_the_posterior_of_their_own_datum():
    x = numbers((N, 1))
    optimizer = lambda ps: torch.optim.Adam(ps, lr=0.05)  # noqa: E731
    fit(model_of_rows, guide_of_rows, x, loss=TraceMeanField_ELBO(), epochs=300, batch_size=N, optimizer=optimizer)
    assert pyro.param("loc").shape == (N, 1)
    torch.testing.assert_close(pyro.param("loc").detach(), x / 2, rtol=0, atol=0.4)
    torch.testing.assert_close(pyro.param("scale").detach(), torch.full((N, 1), 0.5**0.5), rtol=0, atol=0.4)


@pytest.mark.parametrize("call", [evaluate, fit])
def test_parameters_for_each_datum_of_a_batch_are_refused(call):
    with pytest.raises(ValueError, match=r"'loc' of shape \(20, 1\) has an entry for each datum.*\(batch_size=60\)"):
        call(model_of_rows, guide_of_rows, numbers((N, 1)), batch_size=20)
    assert not list(pyro.get_param_store().keys())


@pytest.mark.parametrize("subsampled", [True, False], ids=["by the plate", "by hand"])
def test_parameters_for_each_datum_of_a_scaled_plate_are_refused(subsampled):
    def guide(x):
        with pyro.plate("data", N, subsample_size=len(x)) as index:
            loc = pyro.param("loc", torch.zeros(N, 1), event_dim=1 if subsampled else None)
            pyro.sample("z", dist.Normal(loc if subsampled else loc[index], 1.0).to_event(1))

    def model(x):
        with pyro.plate("data", N, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"'loc' of shape \([26]0, 1\) has an entry for each datum.*\(batch_size=60\)"):
        fit(model, guide, numbers((N, 1)), batch_size=20)
    assert math.isfinite(evaluate(model, guide, numbers((N, 1)), batch_size=N).loss)


LABELS, LAYER = torch.arange(float(N)), nn.Embedding(N, 1).requires_grad_(False)
LOOK_UPS = {
    "labels": lambda index: LABELS[index, None],
    "an embedding": lambda index: LAYER(index),
}


def looking_up(x, size, look_up):
    """A model whose mean is another number for each datum, at first times 0."""
    slope = pyro.param("slope", torch.zeros(()))
    with plate(size, x) as index:
        pyro.sample("x", dist.Normal(slope * look_up(index), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("call", [evaluate, fit])
@pytest.mark.parametrize("size", [N, None])
@pytest.mark.parametrize("look_up", ["labels", "an embedding"])
def test_what_is_looked_up_by_the_indices_of_a_plate_is_refused_but_not_for_all_data_at_a_time(look_up, size, call):
    """They are not those of the batch: the label of another datum would stand beside each."""
    pair = partial(looking_up, size=size, look_up=LOOK_UPS[look_up]), lambda _: None
    with pytest.raises(ValueError, match=r"read the indices of the plate 'data'.*or take all data .*\(batch_size=60\)"):
        call(*pair, numbers((N, 1)), batch_size=20)
    call(*pair, numbers((N, 1)), batch_size=N)


def test_the_batch_itself_may_be_looked_up_by_the_indices_of_its_plate():
    def model(x):
        with pyro.plate("data", len(x)) as index:
            assert index.shape == (len(x),)
            pyro.sample("x", dist.Normal(pyro.param("mean", torch.zeros(1)), 1.0).to_event(1), obs=x[index])

    x = numbers((N, 1))
    assert evaluate(model, lambda _: None, x, batch_size=7).loss == pytest.approx(
        -dist.Normal(0.0, 1.0).log_prob(x).mean().item(), rel=1e-5
    )


def test_a_plate_that_keeps_one_size_is_refused_where_the_batches_are_smaller():
    guide = AutoNormal(model_of_rows)
    with pytest.raises(ValueError, match=r"plate 'data' has size 20 also on 19 data.*\(batch_size=60\)"):
        evaluate(model_of_rows, guide, numbers((N, 1)), batch_size=20)


def test_an_autoguide_of_a_global_site_ends_at_its_exact_posterior():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), PRIOR))
        with pyro.plate("data", N, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x[:, 0])

    guide, x = AutoDelta(model), numbers((N, 1))
    optimizer = lambda ps: torch.optim.Adam(ps, lr=0.01)  # noqa: E731
    fit(model, guide, x, epochs=60, batch_size=30, optimizer=optimizer, engine="eager")
    assert guide.median()["mean"].item() == pytest.approx(x.sum().item() / (N + 1 / PRIOR**2), abs=0.03)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("scale", [lambda x: N / len(x), lambda x: torch.tensor(1 / len(x))], ids=["up", "down"])
def test_a_scale_that_hangs_on_the_batch_is_refused_but_not_for_all_data_at_a_time(scale, both):
    pair, x = Local(), torch.ones(N, 5)

    def scaled(program):
        return lambda x: poutine.scale(program, scale=scale(x))(x)

    model, guide = scaled(pair.model), scaled(pair.guide) if both else pair.guide
    with pytest.raises(ValueError, match=r"site '[xz]' has a scale of its own of .* take pyro.plate\(\.\.\., 60, subs"):
        evaluate(model, guide, x, batch_size=20)
    whole = evaluate(model, guide, x, batch_size=N).loss
    half = [evaluate(poutine.scale(pair.model, scale=0.5), pair.guide, x, batch_size=size).loss for size in (20, N)]
    assert half[0] == pytest.approx(half[1], rel=1e-5)
    assert half[0] == pytest.approx(pair.bound(x).item() / 2, rel=1e-5)
    assert whole == pytest.approx(pair.bound(x).item() * float(scale(x)), rel=1e-5)


def test_a_schedule_of_a_programs_own_is_no_scale_of_the_batch():
    pair, steps = Local(), iter(range(5, 1000))

    def warm(x):
        with poutine.scale(scale=next(steps) / 1000):
            pair.guide(x)

    evaluate(pair.model, warm, torch.ones(N, 5), batch_size=20)


def loadings(x, size, how):
    """Factor analysis whose loadings are latent, and once for all data."""
    loading = pyro.sample("w", dist.Normal(torch.zeros(2, 5), 1.0).to_event(2))
    with plate(size, x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        mean = pyro.deterministic("mean", (z.unsqueeze(-2) @ loading).squeeze(-2) if how == "right" else z @ loading)
        pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)


def loadings_guide(x, size):
    pyro.sample("w", dist.Delta(pyro.param("loading", torch.ones(2, 5)), event_dim=2))
    with plate(size, x):
        pyro.sample("z", dist.Delta(x[:, :2], event_dim=1))


SIDE_BY_SIDE = {"num_particles": 3, "vectorize_particles": True}


@pytest.mark.parametrize("call", [evaluate, fit])
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO])
def test_a_site_that_would_count_for_every_pair_of_particles_is_refused(elbo, call):
    x, guide = numbers(), partial(loadings_guide, size=N)
    expected = evaluate(partial(loadings, size=N, how="left"), guide, x).loss
    fitting = partial(loadings, size=N, how="right")
    assert evaluate(fitting, guide, x, loss=elbo(**SIDE_BY_SIDE)).loss == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"site 'x' has shape \(3, 3, 60\) where particles run side by side"):
        call(partial(loadings, size=N, how="left"), guide, x, loss=elbo(**SIDE_BY_SIDE), batch_size=N)


@pytest.mark.parametrize("measure", [partial(evaluate, loss=IWAE(3)), partial(log_likelihood, samples=3)])
def test_a_site_with_a_dimension_left_of_the_particles_is_refused(measure):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.unsqueeze(0), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"site 'x' has shape \(1, 3?1?, \d+\) where particles run side by side"):
        measure(model, guide, numbers())


@pytest.mark.parametrize("call", [evaluate, partial(fit, epochs=1, batch_size=20)])
def test_an_objective_of_each_datum_refuses_programs_that_take_a_part_of_the_batch(call):
    """Its value would be that of the part, divided by the number of all data."""

    def model(x):
        with pyro.plate("data", len(x), subsample_size=min(5, len(x))) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows, 0])

    def guide(x):
        points = pyro.param("points", torch.zeros(20))
        with pyro.plate("data", len(x), subsample_size=min(5, len(x))) as rows:
            pyro.sample("z", dist.Normal(points[rows], 0.5))

    with pytest.raises(ValueError, match=r"^IWAE weighs each datum of a batch, but no plate .* take pyro\.plate"):
        call(model, guide, numbers()[:20], loss=IWAE(2))


@pytest.mark.parametrize("loss", [IWAE(2), FreeBits()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("call", ["fit", "log_likelihood", "loss"])
def test_programs_that_take_a_part_of_some_batches_alone_are_refused_there(call, loss):
    """A batch of a step has 10 data, which they take whole; an evaluation has 20."""

    def model(x):
        with pyro.plate("data", len(x), subsample_size=min(12, len(x))) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x[rows])

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.5))
        with pyro.plate("data", len(x), subsample_size=min(12, len(x))) as rows:
            pyro.sample("z", dist.Normal(x[rows], scale).to_event(1))

    x = numbers()[:20, :1]
    calls = {
        "fit": lambda: fit(model, guide, x, loss=loss, epochs=1, batch_size=10),
        "log_likelihood": lambda: log_likelihood(model, guide, x, samples=10),
        "loss": lambda: loss.loss(model, guide, x),
    }
    with pytest.raises(ValueError, match="weighs each datum of a batch, but the programs take 12 of 20"):
        calls[call]()


@pytest.mark.parametrize("engine", ["eager", "recorded"])
@pytest.mark.parametrize("subsampled", [True, False], ids=["by the plate", "by hand"])
def test_parameters_for_each_datum_are_trained_where_the_data_hold_its_index(subsampled, engine):
    """The bound of each datum is its own, so that its parameter ends at its own posterior mean, x / 2."""

    def program(sites):
        def run(index, x):
            with pyro.plate("data", N, subsample=index):
                return sites(index, x)

        return run

    def guide(index, _):
        loc = pyro.param("loc", torch.zeros(N, 1), event_dim=1 if subsampled else None)
        pyro.sample("z", dist.Normal(loc if subsampled else loc[index], 0.5**0.5).to_event(1))

    def model(_, x):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x, settings = numbers((N, 1)), {"loss": TraceMeanField_ELBO(), "engine": engine, "batch_size": 20}
    optimizer = lambda ps: torch.optim.SGD(ps, lr=2.0)  # noqa: E731
    fit(program(model), program(guide), (torch.arange(N), x), optimizer=optimizer, epochs=60, **settings)
    torch.testing.assert_close(pyro.param("loc").detach(), x / 2, rtol=0, atol=0.6)

    def in_order(sites):
        return lambda index, x: program(sites)(torch.arange(len(index)), x)

    with pytest.raises(ValueError, match="or let the data hold the index of each datum, i, and give it to the plate"):
        fit(in_order(model), in_order(guide), (torch.arange(N), x), batch_size=20)


LABELS = (torch.arange(N) % 3 == 0).float()


def one_by_one(x, labels=None):
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
        pyro.sample(f"y{i}", dist.Bernoulli(logits=x[i, 0] + z), obs=(LABELS if labels is None else labels)[i])


def together(x, labels=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        seen = LABELS[: len(x)] if labels is None else labels
        pyro.sample("y", dist.Bernoulli(logits=x[:, 0] + z), obs=seen)


def in_an_event(x, labels=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        seen = (LABELS[: len(x)] if labels is None else labels)[:, None].expand(-1, 2)
        pyro.sample("y", dist.Bernoulli(logits=(x[:, 0] + z)[:, None].expand(-1, 2)).to_event(1), obs=seen)


def guide_of(model):
    def guide(x, labels=None):
        mean = pyro.param("mean", torch.tensor(0.0))
        x = x if labels is None else labels
        if model is one_by_one:
            for i in pyro.plate("data", len(x)):
                pyro.sample(f"z{i}", dist.Normal(mean, 1.0))
        else:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(mean, 1.0))

    return guide


@pytest.mark.parametrize("model", [one_by_one, together, in_an_event])
def test_labels_from_outside_are_refused_where_each_batch_holds_other_data(model):
    """Of all data at a time they are right, and so are labels that the data hold."""
    x, guide = torch.randn(N, 2), guide_of(model)
    for call in (fit, evaluate):
        with pytest.raises(
            ValueError, match=rf"site 'y0?' observes the same values .* \(x, values\), .*batch_size={N}"
        ):
            call(model, guide, x, batch_size=8)
    whole = evaluate(model, guide, x, batch_size=N)
    assert evaluate(model, guide, (x, LABELS), batch_size=8).loss > 0
    assert evaluate(model, guide, (x, LABELS), batch_size=N) == whole


@pytest.mark.parametrize("where", ["prior", "likelihood", "encoder"])
@pytest.mark.parametrize(
    "taken",
    [
        lambda x: LABELS[: len(x)],
        lambda x: LABELS.index_select(0, torch.arange(len(x))),
        lambda x: torch.tensor(LABELS.tolist()[: len(x)]),
    ],
    ids=["a slice", "by index", "of a list"],
)
def test_labels_from_outside_that_programs_compute_with_are_refused_where_each_batch_holds_other_data(where, taken):
    """They condition on y: no site observes it. Of each datum's own label, the bound is the same in all batch sizes."""

    def model(x, y=None):
        y = taken(x) if y is None else y
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(3 * y * (where == "prior"), 1.0))
            mean = z + 3 * y * (where == "likelihood") + pyro.param("a", torch.tensor(0.0))
            pyro.sample("x", dist.Normal(mean[:, None], 1.0).expand(x.shape).to_event(1), obs=x)

    def guide(x, y=None):
        y = taken(x) if y is None else y
        with pyro.plate("data", len(x)):
            mean = x.sum(1) / 3 + y * {"prior": 1, "likelihood": -2, "encoder": 1}[where]
            pyro.sample("z", dist.Normal(mean, 3**-0.5))

    x = torch.randn(N, 2) + 3 * LABELS[:, None]
    for call in (fit, evaluate):
        with pytest.raises(ValueError, match=rf"site '[xz]' has different log-probabilities .*batch_size={N}"):
            call(model, guide, x, batch_size=8)
    if where != "encoder":  # the guide is the exact posterior, so that the bound has no noise
        shift = 3 * LABELS[:, None].expand(N, 2)
        exact = torch.distributions.MultivariateNormal(shift, torch.eye(2) + 1).log_prob(x).mean()
        for data, size in ((x, N), ((x, LABELS), 8), ((x, LABELS), N)):
            assert evaluate(model, guide, data, batch_size=size).loss == pytest.approx(-exact.item(), rel=1e-5)


def scaled_up_or_not(x, taken, size, y=None):
    """Data around 3y + z, where y is that of each datum's position or of its index."""
    with plate(size, x) as index:
        shift = 3 * (taken(x, index) if y is None else y)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal((z + shift)[:, None], 1.0).expand(x.shape).to_event(1), obs=x)


@pytest.mark.parametrize("call", [evaluate, partial(fit, epochs=1, batch_size=N)])
@pytest.mark.parametrize(
    ("taken", "size"),
    [
        (lambda x, _: LABELS[: len(x)], None),
        (lambda _, index: LABELS[index], None),
        (lambda _, index: LABELS[index], N),
    ],
    ids=["a slice", "by index", "by the indices of a part"],
)
def test_labels_from_outside_are_refused_where_there_are_more_of_them_than_data(taken, size, call):
    """All data are one batch, but not those that the labels are of."""
    x = torch.randn(N, 2) + 3 * LABELS[:, None]

    def guide(x):
        with plate(size, x):
            pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 1.0))

    pair = partial(scaled_up_or_not, taken=taken, size=size), guide
    with pytest.raises(ValueError, match=r"\(x, values\), .* or let the programs.* have one for each of these 50 data"):
        call(*pair, x[10:])
    with pytest.raises(ValueError, match="have one for each of these 10 data"):
        fit(*pair, x, validation=x[:10], batch_size=N)
    assert evaluate(*pair, x) == evaluate(lambda x, y: pair[0](x, y=y), lambda x, _: guide(x), (x, LABELS))


def test_a_random_walk_over_the_data_is_not_taken_for_labels_from_outside():
    """Its positions differ, and the programs hold more numbers than there are data, but all data are one batch."""
    held = nn.Parameter(torch.zeros(N))

    def model(x):
        pyro.sample("start", dist.Normal(held.sum(), 1.0))
        with pyro.plate("data", len(x)):
            step = pyro.sample("step", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(step.cumsum(0), 1.0), obs=x[:, 0])

    def guide(x):
        pyro.sample("start", dist.Normal(pyro.param("a", torch.tensor(0.0)), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("step", dist.Normal(0.0, 1.0))

    assert evaluate(model, guide, torch.randn(20, 1)).loss > 0


def test_a_program_with_noise_of_its_own_is_not_taken_for_one_that_looks_labels_up():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal((z + torch.randn(len(x)))[:, None], 1.0).expand(x.shape).to_event(1), obs=x)

    assert evaluate(model, guide_of(together), torch.randn(N, 2), batch_size=8).loss > 0


def test_parameters_of_positions_in_the_batch_are_refused_under_a_sequential_plate():
    def guide(x, _):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z{i}", dist.Normal(pyro.param(f"mean{i}", torch.tensor(0.0)), 1.0))

    data = torch.randn(N, 2), LABELS
    with pytest.raises(ValueError, match=rf"parameter 'mean7' is of a position in the batch.*batch_size={N}"):
        fit(one_by_one, guide, data, batch_size=8)
    assert len(fit(one_by_one, guide, data, batch_size=N, epochs=1)) == 2


def test_ready_batches_whose_labels_are_alike_by_chance_are_taken():
    """Another batch, of one datum less, has the labels of the first one."""
    batches = [
        (torch.randn(3, 2), torch.tensor([0.0, 1.0, 1.0])),
        (torch.randn(2, 2), torch.tensor([0.0, 1.0])),
    ]
    time_first = [(x.T, labels) for x, labels in batches]

    def model(x, labels):
        with pyro.plate("data", len(labels)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Bernoulli(logits=z + x[0]), obs=labels)

    loader = torch.utils.data.DataLoader(time_first, batch_size=None)
    assert len(fit(model, guide_of(together), loader, count=lambda batch: len(batch[1]), epochs=1)) == 2
