"""What test_larger_than_memory.py runs in a process of its own: the growth of its memory's peak in a training.

python tests/support/peak_memory.py FILE, or a number of data to make up one by one
"""

import resource
import sys
from functools import partial

import torch
from torch.utils.data import IterableDataset

from pyro_vae import VAE, decoders, encoders, priors
from pyro_vae.data import MemoryMapped
from pyro_vae.networks import MLP
from pyro_vae.training import fit

WIDTH = 1024


class MadeUp(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return (torch.full((WIDTH,), index % 2) for index in range(self.count))


def train(data):
    network = partial(MLP, hidden=(4,))
    vae = VAE(priors.Normal(2), encoders.Normal(WIDTH, 2, network), decoders.Bernoulli(2, WIDTH, network))
    fit(vae.model, vae.guide, data, epochs=1, batch_size=500, engine="eager")


if __name__ == "__main__":
    torch.set_num_threads(1)
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # noqa: E731
    train(MadeUp(3000))
    before = peak()
    train(MadeUp(int(sys.argv[1])) if sys.argv[1].isdigit() else MemoryMapped(sys.argv[1]))
    sys.stdout.write(f"{peak() - before}\n")
