"""Four encoders for the same model, and how close each comes to the exact posterior.

With two latent dimensions the exact posterior can be computed for comparison: p(z|x) is p(x|z) p(z), divided by its sum
over a grid. That sum is p(x), whose logarithm no encoder's bound exceeds.
"""

from pathlib import Path

import pyro
import torch
from matplotlib.figure import Figure

from pyro_vae import VAE, data, decoders, encoders, evaluate, fit, plots, priors

SHAPE = (1, 8, 8)


def on_grid(vae, x, side=100, extent=4.0):
    """Return an even grid, the density of p(z|x) on it for each x, and the mean of log p(x)."""
    line = torch.linspace(-extent, extent, side)
    grid = torch.cartesian_prod(line, line)
    cell = (line[1] - line[0]) ** 2
    likelihood = vae.decoder(grid)
    joint = torch.stack([likelihood.log_prob(datum) for datum in x]) + vae.prior().log_prob(grid)
    evidence = (joint + cell.log()).logsumexp(1, keepdim=True)
    return grid.reshape(side, side, 2), (joint - evidence).exp().reshape(-1, side, side), evidence.mean().item()


def main(epochs=50, out=Path("pictures")):
    digits = data.load("digits")
    torch.manual_seed(0)
    guides = {
        "Normal": encoders.Normal(SHAPE, 2),
        "FullRankNormal": encoders.FullRankNormal(SHAPE, 2),
        "MixtureOfNormals": encoders.MixtureOfNormals(SHAPE, 2, components=4),
        "Flow of kind IAF": encoders.Flow(SHAPE, 2, transform="IAF", transforms=4),
    }
    vae = VAE(priors.Normal(2), guides["Normal"], decoders.Bernoulli(2, SHAPE, grey=True))
    fit(vae.model, vae.guide, digits.train, epochs=epochs, batch_size=64)
    vae.decoder.requires_grad_(False)  # the model is fixed from here on: only the encoders are trained
    bounds = {}
    for name, encoder in guides.items():
        programs = of_encoder(encoder, vae)
        fit(*programs, digits.train, epochs=epochs, batch_size=64)
        bounds[name] = evaluate(*programs, digits.test).loss
        print(f"{name}: negative bound {bounds[name]:.2f} nats per test digit")
    with torch.no_grad():
        grid, exact, evidence = on_grid(vae, digits.test)
        print(f"exact: {-evidence:.2f}")
        # The digit on which the flow gains most on the normal.
        errors = [
            (torch.stack([density(guides[name], datum, grid) for datum in digits.test]) - exact).abs().sum((1, 2))
            for name in ("Normal", "Flow of kind IAF")
        ]
        shown = (errors[0] - errors[1]).argmax()
        panels = {name: density(encoder, digits.test[shown], grid) for name, encoder in guides.items()}
    out.mkdir(parents=True, exist_ok=True)
    (out / "swap_guide.png").write_bytes(plots.png(contours(grid, exact[shown], panels, bounds)))


def of_encoder(encoder, vae):
    """Return programs for an encoder and a model that is not trained: its parameters are frozen."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior())
            pyro.sample("x", vae.decoder(z), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", encoder(x))

    return model, guide


def density(encoder, datum, grid):
    return encoder(datum).log_prob(grid).exp()


def contours(grid, exact, panels, bounds):
    figure = Figure((13, 4.2), layout="constrained")
    figure.suptitle("Posterior of one test digit: exact on a grid (grey), and the encoder's (lines)")
    inside = grid[exact > exact.max() / 1000]
    (left, bottom), (right, top) = inside.amin(0).tolist(), inside.amax(0).tolist()
    all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    for axes, (name, guess) in zip(all_axes, panels.items(), strict=True):
        axes.contourf(*grid.unbind(-1), exact, levels=12, cmap="Greys")
        axes.contour(*grid.unbind(-1), guess, levels=6, cmap="autumn_r", linewidths=1)
        axes.set(title=f"{name}\nnegative bound {bounds[name]:.2f}", xlabel="$z_1$")
        axes.set(xlim=(left - 0.2, right + 0.2), ylim=(bottom - 0.2, top + 0.2))
        axes.label_outer()
    figure.axes[0].set_ylabel("$z_2$")
    return figure


if __name__ == "__main__":
    main()
