"""Attend, infer, repeat: infers how many digits there are, and where and what each is; baselines help with the number.

Source: Eslami et al., 2016, Attend, Infer, Repeat.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from torch import nn
from torch.nn.functional import affine_grid, grid_sample

from pyro_vae import data, fit
from pyro_vae.networks import MLP

SIDE, WINDOW, WHAT, MOST = 16, 8, 4, 2
LOSS = TraceGraph_ELBO()


def at(where, inverse=False):
    """Return the affine map of a window of half the side, shifted by `where`."""
    shift = torch.stack([where[:, 0], where[:, 1]], -1)[..., None]
    scale = torch.eye(2).expand(len(where), 2, 2)
    return torch.cat([2 * scale, -2 * shift] if inverse else [scale / 2, shift], -1)


class Programs(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(SIDE**2 + 1 + 2, 16)
        self.place, self.encoder = MLP(16, 5), MLP(WINDOW**2, (2, WHAT))
        self.decoder = MLP(WHAT, WINDOW**2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            canvas, there = torch.zeros(len(x), SIDE, SIDE), torch.ones(len(x))
            for step in range(MOST):
                there = pyro.sample(f"there{step}", dist.Bernoulli(0.5 * there, validate_args=False))
                with poutine.mask(mask=there > 0):
                    where = pyro.sample(f"where{step}", dist.Normal(torch.zeros(2), 0.4).to_event(1))
                    what = pyro.sample(f"what{step}", dist.Normal(torch.zeros(WHAT), 1.0).to_event(1))
                seen = self.decoder(what).sigmoid().view(-1, 1, WINDOW, WINDOW)
                grid = affine_grid(at(where, inverse=True), [len(x), 1, SIDE, SIDE], align_corners=False)
                canvas = canvas + there[:, None, None] * grid_sample(seen, grid, align_corners=False)[:, 0]
            pyro.sample("x", dist.Normal(canvas, 0.3).to_event(2), obs=x)

    def guide(self, x):
        pyro.module("programs", self)
        with pyro.plate("data", len(x)):
            state, there, where = torch.zeros(len(x), 16), torch.ones(len(x)), torch.zeros(len(x), 2)
            for step in range(MOST):
                state = self.cell(torch.cat([x.flatten(1), there[:, None], where], -1), state)
                logit, loc, log_scale = self.place(state).split([1, 2, 2], -1)
                chance = logit[:, 0].sigmoid() * there
                baseline = {"baseline": {"use_decaying_avg_baseline": True}}
                posterior = dist.Bernoulli(chance, validate_args=False)
                there = pyro.sample(f"there{step}", posterior, infer=baseline)
                with poutine.mask(mask=there > 0):
                    scale = 0.4 * log_scale.exp()
                    where = pyro.sample(f"where{step}", dist.Normal(loc, scale).to_event(1))
                    grid = affine_grid(at(where), [len(x), 1, WINDOW, WINDOW], align_corners=False)
                    glimpse = grid_sample(x[:, None], grid, align_corners=False).flatten(1)
                    code, log_width = self.encoder(glimpse).unbind(-2)
                    pyro.sample(f"what{step}", dist.Normal(code, log_width.exp()).to_event(1))


def batches():
    """Return pictures of one or two small digits: one at the upper left, and perhaps one at the lower right."""
    digits = data.load("digits").train[:512, 0]
    x = torch.zeros(256, SIDE, SIDE)
    x[:, :8, :8] = digits[:256]
    x[::2, 8:, 8:] = digits[256::2]
    return x


def main(epochs=20):
    torch.manual_seed(0)
    programs = Programs()
    history = fit(programs.model, programs.guide, batches(), loss=LOSS, epochs=epochs, batch_size=64)
    print(f"{history[-1]['train_loss']:.2f} nats per picture")


if __name__ == "__main__":
    main()
