"""The reparameterization trick without a location or a scale: z = -log(u) / rate is exponential, for u uniform.

The mean is 1 / rate, so its derivative with respect to the rate is -1 / rate^2. Each draw gives an unbiased estimate of
this derivative: through the draw, dz/drate, or by the score function, z * d log p(z) / drate, which scatters more.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from pyro import distributions as dist

from pyro_vae import plots


def main(draws=10_000, out=Path("pictures")):
    torch.manual_seed(0)
    rates = torch.linspace(0.5, 3.0, 26, requires_grad=True)
    u = 1 - torch.rand(draws, len(rates))  # in (0, 1]: its logarithm is finite
    z = -u.log() / rates
    each = rates.expand(draws, -1).detach().requires_grad_()  # one rate per draw: one derivative per draw
    (through_the_draw,) = torch.autograd.grad((-u.log() / each).sum(), each)
    (score,) = torch.autograd.grad(dist.Exponential(each).log_prob(z.detach()).sum(), each)
    estimates = {"through the draw": through_the_draw, "score function": z.detach() * score}

    exact = -1 / rates.detach() ** 2
    figure = Figure((9, 4), layout="constrained")
    for axes, (name, estimate) in zip(figure.subplots(1, 2, sharey=True), estimates.items(), strict=True):
        mean, deviation = estimate.mean(0), estimate.std(0)
        error = (mean - exact).abs().max().item()
        print(f"{name}: standard deviation {deviation[5]:.2f} at rate 1; largest error of {draws} draws {error:.3f}")
        axes.fill_between(
            rates.detach(), mean - deviation, mean + deviation, alpha=0.2, label="one draw, ± 1 deviation"
        )
        axes.plot(rates.detach(), mean, ".", label=f"mean of {draws:,} draws")
        axes.plot(rates.detach(), exact, "k-", linewidth=1, label=r"closed form, $-1/\lambda^2$")
        axes.set(title=name, xlabel=r"rate $\lambda$", ylabel=r"$\partial\, E[z] / \partial \lambda$")
        axes.label_outer()
    axes.legend(loc="lower right", frameon=False)
    out.mkdir(parents=True, exist_ok=True)
    (out / "exponential_log_trick.png").write_bytes(plots.png(figure))


if __name__ == "__main__":
    main()
