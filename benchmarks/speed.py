"""Seconds per epoch of MNIST, 784-400-20: coded by hand, by Pyro's SVI, by `fit` and its engines, and by NumPyro.

python -m benchmarks.speed --data-root DIR [--models NAME ...] [--batch-sizes N ...] [--rounds 5] [--device cpu]
                           [--before CHECKOUT] [--json FILE]

There is one table for each model and batch size. Every way of training has its own process, started once and kept. The
processes take turns of one epoch, while the others sleep, and the medians are over the rounds; a way that fails is
reported. Work that is done once, such as a recording, a compilation or a jit, falls into an epoch before the first
round, whose time is in the column `first`. The bound on the test images is computed after all epochs, in 32 bits, to
show that no speed is gained at the cost of accuracy.

All train on grey pixels in memory (`fit` keeps them in 8 bits, as they are stored) with Adam at 1e-3, fused except for
Pyro's own optimizer and NumPyro's. All add up what they report: `fit` the loss, reconstruction and KL, the others their
loss. By hand, the normal model is `pyro_vae.baseline`, and the others are a loop over the same modules without a Pyro
program; if compiled, their loss passes through torch.compile. SVI is `pyro.infer.SVI`, used as in Pyro's examples.
NumPyro jits a whole epoch of the programs in `benchmarks.numpyro_twins`. `pytorch-example` is the loop of PyTorch's
example script: a DataLoader over images that pass through ToTensor. `fit, before` is the `fit` of another checkout of
this project, given by --before.
"""

import argparse
import json
import multiprocessing
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks import machine
from pyro_vae import VAE, baseline, data, decoders, encoders, evaluate, fit, priors

SHAPE, LATENT_DIM, RATE = (1, 28, 28), 20, 1e-3
adam = partial(torch.optim.Adam, lr=RATE, fused=True)
HAND = ("hand", "eager", "32")
WAYS = [  # who trains, by which engine, in which precision
    HAND,
    ("hand", "compiled", "32"),
    ("pyro.infer.SVI", "eager", "32"),
    *[("fit", engine, precision) for precision in ("32", "bf16-mixed") for engine in ("eager", "recorded", "compiled")],
    ("numpyro", "jit", "32"),
]
MORE = [("pytorch-example", "eager", "32")]  # for the normal model only
BEFORE = "fit, before"


def normal(_):
    encoder = encoders.Normal(SHAPE, LATENT_DIM)
    return VAE(priors.Normal(LATENT_DIM), encoder, decoders.Bernoulli(LATENT_DIM, SHAPE, grey=True))


def flow_prior(_):
    encoder = encoders.Normal(SHAPE, LATENT_DIM)
    return VAE(priors.Flow(LATENT_DIM, "RealNVP"), encoder, decoders.Bernoulli(LATENT_DIM, SHAPE, grey=True))


def iaf_encoder(_):
    encoder = encoders.Flow(SHAPE, LATENT_DIM, transform="IAF")
    return VAE(priors.Normal(LATENT_DIM), encoder, decoders.Bernoulli(LATENT_DIM, SHAPE, grey=True))


def vamp_prior(x):
    encoder = encoders.Normal(SHAPE, LATENT_DIM)
    return VAE(priors.VampPrior(encoder, 100, x), encoder, decoders.Bernoulli(LATENT_DIM, SHAPE, grey=True))


MODELS = {"normal": normal, "flow-prior": flow_prior, "iaf-encoder": iaf_encoder, "vamp-prior": vamp_prior}


def by_hand(vae, name, compiled):
    """Return the loss of a batch without a Pyro program, in nats per datum."""

    def over_modules(x):
        posterior = vae.encoder(x)
        z = posterior.rsample()
        bound = vae.decoder(z).log_prob(x) + vae.prior().log_prob(z) - posterior.log_prob(z)
        return -bound.mean()

    def over_formulas(x):
        return twin.negative_elbo(x, torch.randn(len(x), LATENT_DIM, device=x.device))

    twin = baseline.VAE(vae.encoder.network, vae.decoder.network)
    loss = over_formulas if name == "normal" else over_modules
    return torch.compile(loss) if compiled else loss


def train_by_hand(engine, _, vae, name, x, batch_size, epochs):
    """Train for some epochs, and yield the seconds of each."""
    loss, optim = by_hand(vae, name, engine == "compiled"), adam(vae.parameters())
    order = torch.Generator().manual_seed(0)
    torch.distributions.Distribution.set_default_validate_args(False)
    for _ in range(epochs):
        start, total = time.perf_counter(), torch.zeros((), device=x.device)
        for batch in data.shuffled_batches(x, batch_size, order):
            optim.zero_grad()
            value = loss(batch)
            value.backward()
            optim.step()
            total += value.detach()
        total.item()
        yield time.perf_counter() - start


def train_by_svi(_, __, vae, ___, x, batch_size, epochs):
    import pyro
    from pyro.infer import SVI, Trace_ELBO

    pyro.enable_validation(False)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": RATE}), Trace_ELBO())
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        start, total = time.perf_counter(), 0.0
        for batch in data.shuffled_batches(x, batch_size, order):
            total += svi.step(batch)
        yield time.perf_counter() - start


def train_by_fit(engine, precision, vae, _, x, batch_size, epochs, turn):
    """Train, with a turn after every epoch; `fit` times its epochs itself, without what comes between them."""
    how = {"engine": engine, "precision": precision, "optimizer": adam}

    def on_epoch(row):
        if row["epoch"]:
            turn(row["seconds"])

    return fit(vae.model, vae.guide, x, epochs=epochs, batch_size=batch_size, on_epoch=on_epoch, **how).engine


def train_example(_, __, vae, ___, x, batch_size, epochs, root):
    """Train by the loop of PyTorch's example script, rewritten."""
    from torch.utils.data import DataLoader

    datasets = data.import_torchvision_datasets()
    from torchvision.transforms import ToTensor  # after the datasets, whose import may repair torchvision

    images = datasets.MNIST(root, train=True, transform=ToTensor())
    loader = DataLoader(images, batch_size=batch_size, shuffle=True)
    twin = baseline.VAE(vae.encoder.network, vae.decoder.network)
    optim = torch.optim.Adam(vae.parameters(), lr=RATE)
    for _ in range(epochs):
        start, total = time.perf_counter(), 0.0
        for batch, _ in loader:
            batch = batch.to(x.device)
            total += twin.step(optim, batch, torch.randn(len(batch), LATENT_DIM, device=x.device)).item()
        yield time.perf_counter() - start


def train_by_numpyro(vae, name, x, batch_size, epochs):
    """Train NumPyro programs with the same networks, starting from the same weights, and write the weights back."""
    import jax
    import numpyro
    from jax import numpy as jnp
    from numpyro.infer import SVI, Trace_ELBO

    from benchmarks.numpyro_twins import programs

    _, model, guide = programs(vae, name)
    images = jnp.array(x.flatten(1).numpy())
    svi = SVI(model, guide, numpyro.optim.Adam(RATE), Trace_ELBO())
    state = svi.init(jax.random.PRNGKey(0), images[:batch_size])
    whole, rest = divmod(len(images), batch_size)

    @jax.jit
    def epoch(state, key):
        order = jax.random.permutation(key, len(images))

        def step(number, carry):
            state, total = carry
            rows = jax.lax.dynamic_slice_in_dim(order, number * batch_size, batch_size)
            state, loss = svi.update(state, images[rows])
            return state, total + loss

        state, total = jax.lax.fori_loop(0, whole, step, (state, 0.0))
        if rest:
            state, loss = svi.update(state, images[order[-rest:]])
            total += loss
        return state, total

    for number in range(epochs):
        start = time.perf_counter()
        state, total = epoch(state, jax.random.PRNGKey(number))
        total.block_until_ready()
        yield time.perf_counter() - start
    found = svi.get_params(state)["weights"]
    with torch.no_grad():
        for key, parameter in vae.named_parameters():
            parameter.copy_(torch.tensor(jax.device_get(found[key])))


def work(connection, way, name, batch_size, epochs, settings):
    """Train in one way, in a process of its own: an epoch whenever told to, and at the end send the test loss."""
    torch.set_num_threads(settings.threads)
    who, engine, precision = way
    torch.manual_seed(0)
    mnist = data.load("mnist", settings.data_root, eight_bit=True)
    x, test = mnist.train[: settings.images].to(settings.device), mnist.test[:].to(settings.device)
    vae = MODELS[name](x).to(settings.device)

    def turn(seconds):
        connection.send(seconds)
        connection.recv()

    connection.recv()
    note = ""
    if who == "fit":
        x = data.EightBit(mnist.train.values[: settings.images])
        note = train_by_fit(engine, precision, vae, name, x, batch_size, epochs, turn)
    else:
        ways = {
            "hand": partial(train_by_hand, engine, precision, vae, name),
            "pyro.infer.SVI": partial(train_by_svi, engine, precision, vae, name),
            "numpyro": partial(train_by_numpyro, vae, name),
            "pytorch-example": partial(train_example, engine, precision, vae, name, root=settings.data_root),
        }
        for seconds in ways[who](x, batch_size, epochs):
            turn(seconds)
    connection.send((evaluate(vae.model, vae.guide, test).loss, note))


def ways_of(name, settings):
    """Return the ways that can train a model here, and report if NumPyro is not installed."""
    ways = WAYS + (MORE if name == "normal" else [])
    ways += [(BEFORE, *how) for who, *how in WAYS if who == "fit" and settings.before]
    try:
        import numpyro  # noqa: F401 (whether it is there)
    except ImportError:
        if name == next(iter(MODELS)):
            print("NumPyro is not installed (pip install pyro-vae[bench]): its lines are missing\n")
        ways = [way for way in ways if way[0] != "numpyro"]
    if settings.device != "cpu":  # NumPyro's device is that of the jax that is installed
        ways = [way for way in ways if way[0] != "numpyro"]
    return ways


@contextmanager
def imports_from(checkout):
    """Let processes that are started in this context import this project from another checkout, if one is given."""
    kept = list(sys.path)
    sys.path[:0] = [str(checkout.resolve())] if checkout else []
    try:
        yield
    finally:
        sys.path[:] = kept


def measure(name, batch_size, settings):
    """Return a row for each way of training a model."""
    context = multiprocessing.get_context("spawn")
    workers, epochs = [], settings.rounds + 1
    for way in ways_of(name, settings):
        here, there = context.Pipe()
        trains = ("fit", *way[1:]) if way[0] == BEFORE else way
        process = context.Process(target=work, args=(there, trains, name, batch_size, epochs, settings), daemon=True)
        with imports_from(settings.before if way[0] == BEFORE else None):
            process.start()
        there.close()  # so that recv() notices the end of the process
        workers.append((way, here, []))
    for _ in range(epochs):
        for worker in list(workers):
            way, connection, seconds = worker
            try:
                connection.send("go")
                seconds.append(connection.recv())
            except (EOFError, OSError):
                print(f"{name}, batch {batch_size}: {', '.join(way)} ended with an error\n")
                workers.remove(worker)
    rows = []
    for (who, engine, precision), connection, (first, *seconds) in workers:
        connection.send("go")
        test_loss, note = connection.recv()
        row = {"model": name, "batch": batch_size, "who": who, "engine": engine, "precision": precision}
        rows.append(row | {"seconds_per_epoch": median(seconds), "first": first, "test_loss": test_loss, "note": note})
    for row in rows:
        row["ratio_to_hand_eager"] = row["seconds_per_epoch"] / rows[0]["seconds_per_epoch"]
    return rows


def table(rows):
    """Yield the lines of a table."""
    yield "| model | batch | by | engine | precision | seconds per epoch | to hand, eager | test bound | first |"
    yield f"|{' --- |' * 9}"
    for row in rows:
        names = [str(row[key]) for key in ("model", "batch", "who", "engine", "precision")]
        numbers = [row[key] for key in ("seconds_per_epoch", "ratio_to_hand_eager", "test_loss", "first")]
        yield f"| {' | '.join([*names, *[f'{number:.2f}' for number in numbers]])} |"


def ratios(rows):
    """Yield the lines of a table with ratios of the rows' times."""
    seconds = {
        tuple(row[key] for key in ("model", "batch", "who", "engine", "precision")): row["seconds_per_epoch"]
        for row in rows
    }
    batches = sorted({row["batch"] for row in rows})
    ours, rounded = ("fit", "compiled", "32"), ("fit", "compiled", "bf16-mixed")
    pairs = [(way, ours) for way in (HAND, ("hand", "compiled", "32"), ("pyro.infer.SVI", "eager", "32"))]
    pairs += [(HAND, rounded), (("numpyro", "jit", "32"), rounded)]
    pairs += [((BEFORE, *how), ("fit", *how)) for who, *how in WAYS if who == "fit"]
    yield f"| model | fit | to | {' | '.join(f'batch {batch}' for batch in batches)} |"
    yield f"|{' --- |' * (3 + len(batches))}"
    for model in dict.fromkeys(row["model"] for row in rows):
        for other, way in pairs:
            ways = [((model, batch, *way), (model, batch, *other)) for batch in batches]
            if all(one in seconds and two in seconds for one, two in ways):
                cells = [f"{seconds[one] / seconds[two]:.2f}" for one, two in ways]
                yield f"| {model} | {', '.join(way[1:])} | {', '.join(other)} | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=60_000, help="of the training data; fewer for a trial")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="of this project: its fit takes turns too")
    parser.add_argument("--json", type=Path)
    settings = parser.parse_args()
    name = machine() if settings.device == "cpu" else f"{torch.cuda.get_device_name(settings.device)}, {machine()}"
    print(f"MNIST, 784-400-20, medians of {settings.rounds} alternating rounds; {name}\n")
    rows = []
    for model in settings.models:
        for batch_size in settings.batch_sizes:
            rows += measure(model, batch_size, settings)
            print("\n".join(table([row for row in rows if (row["model"], row["batch"]) == (model, batch_size)])), "\n")
    print("\n".join(ratios(rows)), "\n")
    for row in rows:
        if row["who"] == "fit" and row["engine"] != "eager" and "cannot be recorded" in row["note"]:
            print(f"{row['model']}, batch {row['batch']}, {row['engine']}, {row['precision']}: {row['note']}")
    if settings.json:
        settings.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
