"""Bayesian regression: weights shared by all data, an autoguide, and minibatches of a plate over all data."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal

from pyro_vae import fit

N, FEATURES = 128, 3


def model(x, y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(FEATURES), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", N, subsample_size=len(x)):
        pyro.sample("y", dist.Normal((x * weights).sum(-1), scale), obs=y)


def make():
    return model, AutoMultivariateNormal(model)


def batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, FEATURES, generator=generator)
    return x, x @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(N, generator=generator)


def main(epochs=200):
    pyro.clear_param_store()
    torch.manual_seed(0)
    history = fit(*make(), batches(), epochs=epochs, batch_size=32)
    print(f"{history[-1]['train_loss']:.2f} nats per datum")


if __name__ == "__main__":
    main()
