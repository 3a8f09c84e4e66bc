"""What objectives, evaluations and noise handlers share: the names of particles and noise, and errors of particles."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARTICLES = "num_particles_vectorized"  # the particle plate of pyro.infer.ELBO, as of Pyro 1.9.2
NOISE = "noise"  # in a site's "infer": the handler of `pyro_vae.noise` that drew it, and which property below it lacks
INDEPENDENT, FRESH = "independent particles", "new noise at every step"


@contextmanager
def on_particles(name: str, at_a_time: str = "particles") -> Iterator[None]:
    """Explain an error that is due to the dimension of the particles, as the programs have run without it before."""
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        memory = isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in ("alloc", "overflow"))
        of_others = isinstance(error, ValueError) and not str(error).startswith("Shape mismatch inside plate")
        if memory or of_others or isinstance(error, NotImplementedError) or not at_a_time:
            raise
        raise ValueError(
            f"{name} runs the programs on {at_a_time}, a dimension to the left of that of the data, and they fail there"
            f" ({str(error).partition(chr(10))[0]}): let them count dimensions from the right (z[..., 0], not z[:, 0])"
            " and expand what they join (y.expand, then torch.cat), or evaluate by Trace_ELBO()"
        ) from error
