"""What a planar flow does: the posterior of one digit, from a normal through each transformation to its final shape.

Every transformation bends the plane along one ridge, and its determinant gives the change of the density.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure

from pyro_vae import VAE, data, decoders, encoders, evaluate, fit, plots, priors

SHAPE = (1, 8, 8)


def stages(posterior, draws=4000):
    """Return draws of a flow's base, followed by the same draws after each of its transformations."""
    z = posterior.base_dist.sample((draws,))
    return [z] + [z := transform(z) for transform in posterior.transforms]


def main(epochs=100, transforms=4, out=Path("pictures")):
    digits = data.load("digits")
    torch.manual_seed(0)
    encoder = encoders.Flow(SHAPE, 2, transform="planar", transforms=transforms)
    vae = VAE(priors.Normal(2), encoder, decoders.Bernoulli(2, SHAPE, grey=True))
    fit(vae.model, vae.guide, digits.train, epochs=epochs, batch_size=64)
    print(f"negative bound {evaluate(vae.model, vae.guide, digits.test).loss:.2f} nats per test digit")
    with torch.no_grad():
        flows = [stages(encoder(datum)) for datum in digits.test[:60]]
    # Choose the digit whose base is bent most.
    moved = [(flow[-1] - flow[0] - (flow[-1] - flow[0]).mean(0)).square().mean() for flow in flows]
    flow = flows[int(torch.stack(moved).argmax())]

    base = flow[0] - flow[0].mean(0)
    angle = torch.atan2(base[:, 1], base[:, 0])  # of a draw in the base; it sets the colour in all panels
    figure = Figure((3.1 * len(flow), 3.6), layout="constrained")
    figure.suptitle("Draws from the posterior of one digit; each keeps the colour it has in the base")
    for number, (axes, z) in enumerate(zip(figure.subplots(1, len(flow)), flow, strict=True)):
        axes.scatter(z[:, 0], z[:, 1], s=3, c=angle, cmap="twilight", linewidths=0)
        axes.set(title=f"after transformation {number}" if number else "base: a normal", xlabel="$z_1$")
        axes.set_aspect("equal", "datalim")
    figure.axes[0].set_ylabel("$z_2$")
    out.mkdir(parents=True, exist_ok=True)
    (out / "normalizing_flow_guide.png").write_bytes(plots.png(figure))


if __name__ == "__main__":
    main()
