"""Two programs written by hand: a VAE with two levels of codes, trained by `fit` like any other pair.

The model is p(z2) p(z1|z2) p(x|z1), from the upper code down to the picture; the guide, q(z1|x) q(z2|z1), goes up.
"""

from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae import data, fit, plots
from pyro_vae.networks import MLP, positive

SHAPE, LOWER, UPPER = (1, 8, 8), 10, 2


def normal(network, x):
    mean, log_scale = network(x).unbind(-2)
    return dist.Normal(mean, positive(log_scale)).to_event(1)


def main(epochs=100, out=Path("pictures")):
    torch.manual_seed(0)
    decoder = nn.ModuleDict({"z1": MLP(UPPER, (2, LOWER)), "x": MLP(LOWER, SHAPE)})
    encoder = nn.ModuleDict({"z1": MLP(SHAPE, (2, LOWER)), "z2": MLP(LOWER, (2, UPPER))})

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(UPPER), 1.0).to_event(1))
            z1 = pyro.sample("z1", normal(decoder["z1"], z2))
            pyro.sample("x", dist.Bernoulli(logits=decoder["x"](z1)).to_event(3), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", normal(encoder["z1"], x))
            pyro.sample("z2", normal(encoder["z2"], z1))

    x = data.threshold(data.load("digits").train)
    history = fit(model, guide, x, epochs=epochs, batch_size=64)
    for row in history[:: max(1, epochs // 5)]:
        print(f"epoch {row['epoch']}: {row['train_loss']:.2f} nats per image")

    with torch.no_grad():
        z2 = torch.randn(6, UPPER)
        z1 = normal(decoder["z1"], z2).sample((6,)).transpose(0, 1)
        drawn = decoder["x"](z1).sigmoid()
    out.mkdir(parents=True, exist_ok=True)
    figure = plots.samples(drawn.flatten(0, 1), "Each row: one z2, and six draws of z1 given it")
    (out / "own_model_and_guide.png").write_bytes(plots.png(figure))


if __name__ == "__main__":
    main()
