"""A semi-supervised VAE: batches with and without labels alternate, and unknown labels are summed out."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch import nn
from torch.nn.functional import one_hot

from pyro_vae import data, fit
from pyro_vae.networks import MLP

LATENT, CLASSES = 4, 10
LOSS = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)  # batches with labels enumerate none


def joined(first, second):
    shape = torch.broadcast_shapes(first.shape[:-1], second.shape[:-1])  # all labels have a dimension of their own
    return torch.cat([first.expand(*shape, -1), second.expand(*shape, -1)], -1)


class Programs(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = MLP(64, CLASSES)
        self.encoder, self.decoder = MLP(64 + CLASSES, (2, LATENT)), MLP(LATENT + CLASSES, 64)

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            y = pyro.sample("y", dist.Categorical(torch.ones(CLASSES)), obs=y)
            labels = one_hot(y, CLASSES).to(x)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(joined(z, labels))).to_event(1), obs=x)

    def guide(self, x, y=None):
        pyro.module("programs", self)
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.Categorical(logits=self.classifier(x)), infer={"enumerate": "parallel"})
            labels = one_hot(y, CLASSES).to(x)
            loc, log_scale = self.encoder(joined(x, labels)).unbind(-2)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class InTurn:
    """Ready batches: one with labels, then one without, in the order of the data."""

    def __init__(self, count=1024, size=64):
        digits = data.load("digits")
        self.x, self.y = data.threshold(digits.train[:count].flatten(1)), digits.train_labels[:count]
        self.size = size

    def __iter__(self):
        batches = zip(self.x.split(self.size), self.y.split(self.size), strict=True)
        for number, (x, y) in enumerate(batches):
            yield x, None if number % 2 else y


def batches():
    return InTurn()


def main(epochs=10):
    torch.manual_seed(0)
    programs = Programs()
    history = fit(programs.model, programs.guide, batches(), loss=LOSS, epochs=epochs)
    print(f"{history[-1]['train_loss']:.2f} nats per image")


if __name__ == "__main__":
    main()
