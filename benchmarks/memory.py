"""Time and memory of the log-likelihood of MNIST's test images, beside its decoder's matrix products alone.

python -m benchmarks.memory [--data-root DIR] [--images 400] [--samples 5000] [--memory 2GB] [--rounds 5] [--json FILE]

The floor is the time of the decoder's two matrix products, 20-400-784, on as many rows and in chunks of the same size
as in `log_likelihood`, into preallocated tensors, and of one pass over their outputs, a sum. Both are timed in
alternating rounds in one process; `log_likelihood` uses a compiled chunk, as it does for 10,000 images. Each round also
times it on a few images, and the difference is the time of the other images, without the work that is done once. The
time of that work, mostly compilation, is taken to be the time of the first call in the process. The time for 10,000
images is this time plus 10,000 times the time per image; the ratio is this over the time of the products for 10,000
images, the median over the rounds. The peak is that of the resident memory of the whole process, which includes the
interpreter, torch and the compiler.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks import machine, print_row
from pyro_vae import VAE, data, decoders, encoders, log_likelihood, priors
from pyro_vae.diagnostics import likelihood, particles

HEADS = ["samples", "rows", "products, ms/image", "ours, ms/image", "once, s", "10,000 images, s", "ratio", "peak, GiB"]
SHAPE, HIDDEN, LATENT_DIM, FEW, ALL = (1, 28, 28), 400, 20, 10, 10_000


def decoder_products(vae, rows, chunk):
    """Return the seconds of the decoder's products and one pass over their outputs."""
    first, second = (vae.decoder.network.layers[index].weight.T for index in (0, 2))
    z = torch.randn(chunk, LATENT_DIM)
    hidden, outputs = torch.empty(chunk, HIDDEN), torch.empty(chunk, second.shape[1])
    start = time.perf_counter()
    for begin in range(0, rows, chunk):
        size = min(chunk, rows - begin)
        torch.mm(z[:size], first, out=hidden[:size])
        torch.mm(hidden[:size], second, out=outputs[:size])
        hidden[:size].sum()
        outputs[:size].sum()
    return time.perf_counter() - start


def seconds_of(vae, x, settings):
    """Return the seconds that the log-likelihood of some images takes."""
    start = time.perf_counter()
    log_likelihood(vae.model, vae.guide, x, **settings)
    return time.perf_counter() - start


def peak():
    """Return the peak of this process's resident memory, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", help="where MNIST lies; else as pyro_vae.data.load")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    vae = VAE(priors.Normal(LATENT_DIM), encoders.Normal(SHAPE, LATENT_DIM), decoders.Bernoulli(LATENT_DIM, SHAPE))
    x = data.threshold(data.load("mnist", arguments.data_root).test)[: arguments.images]
    settings = {"samples": arguments.samples, "memory": arguments.memory}
    likelihood.MANY = particles.WORTHWHILE = 1  # compile, as for all images
    seen = []
    hook = vae.decoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0][..., 0].numel()))
    once = seconds_of(vae, x[:FEW], settings)
    hook.remove()
    chunk = max(seen)
    each, floor, ratios = [], [], []
    for _ in range(arguments.rounds):
        products = decoder_products(vae, len(x) * arguments.samples, chunk) / len(x)
        few, many = (seconds_of(vae, part, settings) for part in (x[:FEW], x))
        floor.append(products)
        each.append((many - few) / (len(x) - FEW))
        ratios.append((once / ALL + each[-1]) / products)
    row = {
        "samples": arguments.samples,
        "rows_at_a_time": chunk,
        "products_ms_per_image": 1e3 * median(floor),
        "log_likelihood_ms_per_image": 1e3 * median(each),
        "once_seconds": once,
        "seconds_for_10000_images": once + ALL * median(each),
        "ratio": median(ratios),
        "peak_gib": peak() / 2**30,
    }
    print(f"784-400-20, {len(x)} images, {arguments.rounds} alternating rounds; {machine()}\n")
    print_row(HEADS, row)
    if arguments.json:
        arguments.json.write_text(json.dumps(row | {"machine": machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
