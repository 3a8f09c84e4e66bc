"""Training without `fit`: a VAE of this package, trained by pyro.infer.SVI, pyro.optim.Adam and Trace_ELBO."""

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from pyro_vae import VAE, data, decoders, encoders, priors


def train(vae, x, epochs, batch_size=64, seed=0):
    def per_datum(program):  # Pyro's losses are sums over the batch; fit takes the mean
        return lambda batch: poutine.scale(program, scale=1 / len(batch))(batch)

    pyro.clear_param_store()  # otherwise the parameters of an earlier VAE would be trained instead
    svi = SVI(per_datum(vae.model), per_datum(vae.guide), Adam({"lr": 1e-3}), Trace_ELBO())
    order = torch.Generator().manual_seed(seed)
    pyro.set_rng_seed(seed)
    for epoch in range(epochs):
        batches = x[torch.randperm(len(x), generator=order)].split(batch_size)
        loss = sum(svi.step(batch) * len(batch) for batch in batches) / len(x)
        print(f"epoch {epoch + 1}: {loss:.4f} nats per image")


def main(epochs=20):
    x = data.load("digits").train
    vae = VAE(priors.Normal(10), encoders.Normal((1, 8, 8), 10), decoders.Bernoulli(10, (1, 8, 8), grey=True))
    train(vae, x, epochs)


if __name__ == "__main__":
    main()
