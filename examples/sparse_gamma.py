"""A deep exponential family of sparse gammas: global weights, and two layers of codes for each datum.

Source: Ranganath et al., 2015, Deep Exponential Families.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.distributions.constraints import positive

from pyro_vae import fit

TOP, BOTTOM, PIXELS, N = 3, 6, 16, 128
LOSS = TraceMeanField_ELBO()


def model(x):
    w1 = pyro.sample("w1", dist.Gamma(0.3, 0.3).expand([TOP, BOTTOM]).to_event(2))
    w2 = pyro.sample("w2", dist.Gamma(0.3, 0.3).expand([BOTTOM, PIXELS]).to_event(2))
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Gamma(0.3, 0.3).expand([TOP]).to_event(1))
        z2 = pyro.sample("z2", dist.Gamma(0.3, 0.3 / (z1 @ w1 + 1e-3)).to_event(1))
        pyro.sample("x", dist.Poisson(z2 @ w2 + 1e-3).to_event(1), obs=x)


def gamma(name, *shape):
    """Return a gamma distribution with a concentration and a mean of its own for each entry."""
    concentration = pyro.param(f"{name}_concentration", torch.full(shape, 1.0), constraint=positive)
    mean = pyro.param(f"{name}_mean", torch.full(shape, 1.0), constraint=positive)
    return dist.Gamma(concentration, concentration / mean)


def guide(x):
    pyro.sample("w1", gamma("w1", TOP, BOTTOM).to_event(2))
    pyro.sample("w2", gamma("w2", BOTTOM, PIXELS).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("z1", gamma("z1", len(x), TOP).to_event(1))
        pyro.sample("z2", gamma("z2", len(x), BOTTOM).to_event(1))


def batches():
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(3, PIXELS, generator=generator).pow(3) * 10
    return torch.poisson(rates[torch.randint(0, 3, (N,), generator=generator)], generator=generator)


def main(epochs=200):
    pyro.clear_param_store()
    history = fit(model, guide, batches(), loss=LOSS, epochs=epochs, batch_size=N)  # each datum has own parameters
    print(f"{history[-1]['train_loss']:.2f} nats per datum")


if __name__ == "__main__":
    main()
