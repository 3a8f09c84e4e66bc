"""Priors by normalizing flows."""

import pyro.distributions as dist

from pyro_vae.arguments import as_size
from pyro_vae.distributions.flow import ZukoFlow, zuko
from pyro_vae.networks._part import Part

TRANSFORMS = ("NSF", "MAF", "RealNVP")


class Flow(Part):
    r"""Normalizing flow prior: standard normal noise through learned invertible transforms.

    .. math:: \log p(z) = \sum_d \log \mathcal{N}(f_d(z); 0, 1)
              + \log \left| \det \frac{\partial f(z)}{\partial z} \right|

    NSF (neural spline flow) and MAF (masked autoregressive flow) score in one pass and draw in D passes; RealNVP
    (coupling) does both in one. A single dimension has no others to be conditioned on, so that each transform is then a
    spline or an affine map with constant parameters, without a network.

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        transform: "NSF", "MAF" or "RealNVP".
        transforms: number of transforms, at least 1.
        hidden: width of the hidden layers of each transform's network, at least 1.
        layers: number of those hidden layers, at least 1.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        ImportError: if the package zuko is not installed.
        TypeError: for sizes that are not integers.
        ValueError: for a size below 1 or an unknown transform.

    Example:
        >>> Flow(20, "MAF", transforms=2)().event_shape
        torch.Size([20])

    Reference:
        Durkan et al., 2019, Neural Spline Flows, section 3.
        Papamakarios, Pavlakou and Murray, 2017, Masked Autoregressive Flow for Density Estimation, section 3.
        Dinh, Sohl-Dickstein and Bengio, 2017, Density Estimation Using Real NVP, equations 7 and 8.
    """

    def __init__(
        self, latent_dim: int, transform: str = "NSF", transforms: int = 3, hidden: int = 64, layers: int = 2
    ) -> None:
        super().__init__()
        if transform not in TRANSFORMS:
            raise ValueError(f"the transform of priors.Flow must be one of {', '.join(TRANSFORMS)}, not {transform!r}")
        self.latent_dim, self.transform = as_size(latent_dim, "latent_dim"), transform
        widths = (as_size(hidden, "hidden"),) * as_size(layers, "layers")
        family = getattr(zuko().flows, transform)
        self.flow = family(latent_dim, transforms=as_size(transforms, "transforms"), hidden_features=widths)
        if latent_dim == 1:
            # The constants are drawn with a deviation of 1, which would start the flow far from a normal distribution;
            # flows with networks start near one.
            for parameter in self.flow.parameters():
                parameter.data *= 0.1

    def forward(self) -> dist.TorchDistribution:
        return ZukoFlow(self.flow())
