"""Where a step's time goes, and how far it is from what the machine can do.

python -m benchmarks.profiles [--batch-size 128] [--steps 300] [--top 8]

The model is the normal one of `benchmarks.speed`, 784-400-20, on random grey pixels. The floor of a step is the larger
of two times. The first is that of its matrix products, at the rate that this machine reaches on the largest of them in
the same precision. The second is that of the bytes that must pass through memory, each once, at the rate of a copy: the
batch, the decoder's output and its gradient are written and read; Adam reads every parameter, gradient and pair of
moments, and writes all of them except the gradient. Data in a cache are faster than that, so that the second time is a
guide, not a bound. Operators are those of torch's profiler; their own time excludes that of operators that they call.
"""

import argparse
import time
from itertools import pairwise
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine
from benchmarks.speed import LATENT_DIM, SHAPE, adam, normal
from pyro_vae import baseline, fit
from pyro_vae.data import EightBit

WAYS = [("eager", "32"), ("recorded", "32"), ("compiled", "32"), ("recorded", "bf16-mixed"), ("compiled", "bf16-mixed")]


def seconds_of(function, repeats=200):
    """Return the median time of a call."""
    times = []
    for _ in range(repeats + 10):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return median(times[10:])


def product_rate(batch_size, dtype):
    """Return the operations per second of the decoder's last product."""
    inputs, weight = torch.randn(batch_size, 400).to(dtype), torch.randn(784, 400).to(dtype)
    outputs = torch.empty(batch_size, 784, dtype=dtype)
    return 2 * batch_size * 400 * 784 / seconds_of(lambda: torch.mm(inputs, weight.T, out=outputs), 1000)


def copy_rate():
    """Return the bytes per second, read and written, of copying a tensor that is too large for a cache."""
    source = torch.randn(2**26)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / seconds_of(lambda: target.copy_(source), 20)


def work_of_a_step(batch_size):
    """Return the operations of a step's products, and the bytes that it moves."""
    vae = normal(None)
    twin = baseline.VAE(vae.encoder.network, vae.decoder.network)
    with FlopCounterMode(display=False) as counter:
        twin.negative_elbo(torch.rand(batch_size, *SHAPE), torch.randn(batch_size, LATENT_DIM)).backward()
    parameters = sum(parameter.numel() for parameter in vae.parameters())
    pixels = batch_size * 784
    return counter.get_total_flops(), 4 * (7 * parameters + 5 * pixels)


def steps_of(x, batch_size, steps, engine, precision, profiler=None):
    """Return the seconds of every step except the first 20, which a profiler records if one is given."""
    vae, times = normal(None), []

    def on_step(step, _):
        times.append(time.perf_counter())
        if profiler is not None and step == 20:
            profiler.start()

    fit(
        vae.model,
        vae.guide,
        x[: steps * batch_size],
        epochs=1,
        batch_size=batch_size,
        optimizer=adam,
        engine=engine,
        precision=precision,
        on_step=on_step,
    )
    if profiler is not None:
        profiler.stop()
    return [after - before for before, after in pairwise(times[20:])]


def adam_seconds(subnormal):
    """Return the seconds of a step of Adam with a share of subnormal first moments, as dead units cause them."""
    vae = normal(None)
    parameters = list(vae.parameters())
    optim = adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    optim.step()
    for parameter in parameters:
        chosen = torch.rand_like(parameter) < subnormal
        parameter.grad.masked_fill_(chosen, 0.0)
        optim.state[parameter]["exp_avg"].masked_fill_(chosen, 1e-44)
    return seconds_of(optim.step)


def operators(averages, steps, top):
    """Yield the lines of a table of the operators that take longest."""
    rows = sorted(averages, key=lambda row: row.self_cpu_time_total, reverse=True)
    total = sum(row.self_cpu_time_total for row in rows)
    yield "| operator | calls per step | own ms per step | share |"
    yield f"|{' --- |' * 4}"
    for row in rows[:top]:
        own = row.self_cpu_time_total
        yield f"| `{row.key}` | {row.count / steps:.1f} | {own / 1e3 / steps:.3f} | {own / total:.0%} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--top", type=int, default=8, help="how many operators")
    arguments = parser.parse_args()
    size, steps = arguments.batch_size, arguments.steps
    torch.manual_seed(0)
    x = EightBit(torch.randint(0, 256, (steps * size, *SHAPE), dtype=torch.uint8))
    operations, moved = work_of_a_step(size)
    rates = {"32": product_rate(size, torch.float32), "bf16-mixed": product_rate(size, torch.bfloat16)}
    bandwidth = copy_rate()
    print(f"784-400-20, batch {size}, medians of {steps - 21} steps; {machine()}\n")
    print(f"A step: {operations / 1e6:.0f} million operations in products, {moved / 1e6:.1f} MB moved.")
    print(f"Products: {rates['32'] / 1e9:.0f} GFLOP/s in 32 bits, {rates['bf16-mixed'] / 1e9:.0f} in bfloat16.")
    print(f"A copy: {bandwidth / 1e9:.1f} GB/s.")
    without, some = (1e3 * adam_seconds(share) for share in (0.0, 0.14))
    print(f"A step of Adam: {without:.2f} ms; with 14 % of its first moments subnormal {some:.2f} ms.\n")
    print("| engine | precision | ms per step | products' floor | memory's floor | to the larger floor |")
    print(f"|{' --- |' * 6}")
    for engine, precision in WAYS:
        took = 1e3 * median(steps_of(x, size, steps, engine, precision))
        floors = 1e3 * operations / rates[precision], 1e3 * moved / bandwidth
        numbers = [took, *floors, took / max(floors)]
        print(f"| {engine} | {precision} | {' | '.join(f'{number:.2f}' for number in numbers)} |", flush=True)
    for engine, precision in WAYS:
        profiler = profile(activities=[ProfilerActivity.CPU])
        steps_of(x, size, steps, engine, precision, profiler)
        print(f"\n{engine}, {precision}:\n")
        print("\n".join(operators(profiler.key_averages(), steps - 21, arguments.top)), flush=True)


if __name__ == "__main__":
    main()
