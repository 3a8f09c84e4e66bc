"""Encoders of real codes."""

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import as_size, held
from pyro_vae.encoders._encoder import _Encoder
from pyro_vae.networks import MLP, Network, Sizes, deviation, positive, soft_clip


class Normal(_Encoder):
    r"""Normal encoder with a diagonal covariance.

    .. math:: q(z|x) = \prod_d \mathcal{N}(z_d; \mu_d(x), \exp(\ell_d(x)))

    The network gives the mean :math:`\mu` and the log-variance :math:`\ell`; the latter passes through
    `pyro_vae.networks.clip_log_variance`, so that no output of the network overflows.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2, D).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        ValueError: if x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> Normal((1, 8, 8), 20)(torch.zeros(5, 1, 8, 8)).event_shape
        torch.Size([20])

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, equation 9.
    """

    numbers = 2

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        mean, log_variance = output.unbind(-2)
        return dist.Normal(mean, deviation(log_variance)).to_event(1)


class Delta(_Encoder):
    r"""Encoder to a single point: with it and a KL weight of 0 the VAE is the classic autoencoder.

    .. math:: q(z|x) = \delta(z - f(x))

    Pyro gives a point the density 1 at itself, so that :math:`\log q = 0` and the reported "KL" is
    :math:`-\log p(f(x))`. The bound is then the joint log-density of a penalized (maximum a posteriori) autoencoder.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (D,).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        ValueError: if x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> bool(Delta(64, 2)(torch.zeros(5, 64)).variance.any())
        False

    Reference:
        Hinton and Salakhutdinov, 2006, Reducing the Dimensionality of Data with Neural Networks.
    """

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        return dist.Delta(output, event_dim=1)


class Laplace(_Encoder):
    r"""Laplace encoder with independent dimensions.

    .. math:: q(z|x) = \prod_d \frac{1}{2 b_d(x)} \exp\left(-\frac{|z_d - \mu_d(x)|}{b_d(x)}\right)

    The network gives the location :math:`\mu` and the logarithm of the scale :math:`b`, which passes through
    `pyro_vae.networks.positive`.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2, D).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        ValueError: if x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> Laplace((1, 8, 8), 20)(torch.zeros(5, 1, 8, 8)).event_shape
        torch.Size([20])

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, section 2.4, location-scale families.
    """

    numbers = 2

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        location, scale = output.unbind(-2)
        return dist.Laplace(location, positive(scale, low=-15.0)).to_event(1)


class StudentT(_Encoder):
    r"""Student t encoder with independent dimensions and fixed degrees of freedom.

    .. math:: q(z|x) = \prod_d \frac{\Gamma((\nu + 1) / 2)}{\Gamma(\nu / 2) \sqrt{\nu \pi} \, s_d(x)}
              \left(1 + \frac{(z_d - \mu_d(x))^2}{\nu \, s_d(x)^2}\right)^{-(\nu + 1) / 2}

    The network gives the location :math:`\mu` and the logarithm of the scale :math:`s`, which passes through
    `pyro_vae.networks.positive`. The variance is :math:`s^2 \nu / (\nu - 2)`.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2, D).
        df: degrees of freedom :math:`\nu`, above 2, so that the variance is finite.

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        ValueError: if x is not of the shape the encoder was built for, or ``df`` is not above 2 and finite.

    Example:
        >>> import torch
        >>> StudentT((1, 8, 8), 20, df=3.0)(torch.zeros(5, 1, 8, 8)).event_shape
        torch.Size([20])

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, section 2.4, location-scale families.
    """

    numbers = 2

    def __init__(self, shape: Sizes, latent_dim: int, network: Network = MLP, df: float = 5.0) -> None:
        super().__init__(shape, latent_dim, network)
        self.df = held(df, 2, "df of encoders.StudentT", low=2.000001)

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        location, scale = output.unbind(-2)
        return distributions.StudentT(self.df, location, positive(scale, low=-15.0)).to_event(1)


class LogNormal(_Encoder):
    r"""Log-normal encoder: positive values, whose logarithms are independent normals.

    .. math:: q(z|x) = \prod_d \frac{1}{z_d} \mathcal{N}(\log z_d; \mu_d(x), \sigma_d(x)^2)

    The network gives :math:`\mu` and :math:`\log \sigma^2`. Both pass through `pyro_vae.networks.soft_clip`, and
    :math:`\sigma` is clipped once more, beyond 2: for outputs of :math:`\pm 10^4` it is 11.6, so that float32 can hold
    the draws.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2, D).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        ValueError: if x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> bool((LogNormal((1, 8, 8), 20)(torch.zeros(5, 1, 8, 8)).sample() > 0).all())
        True

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, section 2.4, composition.
    """

    numbers = 2

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        mean, log_variance = output.unbind(-2)
        return dist.LogNormal(soft_clip(mean), soft_clip(deviation(log_variance), 2.0)).to_event(1)


class FullRankNormal(_Encoder):
    r"""Normal encoder with a full covariance, by its Cholesky factor.

    .. math:: q(z|x) = \mathcal{N}(z; \mu(x), L L^\top), \qquad L = \operatorname{diag}(s(x)) \, (I + N(x))

    The network gives the mean :math:`\mu`, the logarithms of :math:`s^2`, and the D(D-1)/2 entries of N below the
    diagonal. The last two pass through `pyro_vae.networks.soft_clip`. Because s multiplies whole rows, a small s does
    not make the ratio of a row's entries large, and the triangular system can be solved in float32.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (D(D+3)/2,).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        ValueError: if x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> FullRankNormal((1, 8, 8), 20)(torch.zeros(5, 1, 8, 8)).covariance_matrix.shape
        torch.Size([5, 20, 20])

    Reference:
        Kingma and Welling, 2019, An Introduction to Variational Autoencoders, section 2.5.1.
    """

    def __init__(self, shape: Sizes, latent_dim: int, network: Network = MLP) -> None:
        size = as_size(latent_dim, "latent_dim")
        super().__init__(shape, latent_dim, network, out_shape=(size * (size + 3) // 2,))

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        size = self.latent_dim
        mean, log_variance, entries = output.split([size, size, size * (size - 1) // 2], -1)
        rows, columns = torch.tril_indices(size, size, -1, device=mean.device)
        unit = torch.eye(size, dtype=mean.dtype, device=mean.device).expand(*mean.shape, size).clone()
        unit[..., rows, columns] = soft_clip(entries)
        return dist.MultivariateNormal(mean, scale_tril=deviation(log_variance).unsqueeze(-1) * unit)


class LowRankNormal(_Encoder):
    r"""Normal encoder whose correlation comes from a few directions.

    .. math:: q(z|x) = \mathcal{N}\left(z; \mu(x), S (I + V V^\top) S\right), \qquad S = \operatorname{diag}(s(x))

    The network gives the mean :math:`\mu`, the logarithms of :math:`s^2`, and the columns of V; the last two pass
    through `pyro_vae.networks.soft_clip`. V is in units of s, so that :math:`I + V^\top V` can be factorized in float32
    however small s is.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2 + rank, D).
        rank: number of columns of V, at least 1.

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        TypeError: if ``rank`` is not an integer.
        ValueError: if ``rank`` is below 1, or x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> LowRankNormal((1, 8, 8), 20, rank=3)(torch.zeros(5, 1, 8, 8)).cov_factor.shape
        torch.Size([5, 20, 3])

    Reference:
        Ong, Nott and Smith, 2018, Gaussian Variational Approximation with a Factor Covariance Structure.
    """

    def __init__(self, shape: Sizes, latent_dim: int, network: Network = MLP, rank: int = 2) -> None:
        self.numbers = 2 + as_size(rank, "rank")
        super().__init__(shape, latent_dim, network)
        self.rank = rank

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        mean, log_variance, *columns = output.unbind(-2)
        scale = deviation(log_variance)
        factor = scale.unsqueeze(-1) * soft_clip(torch.stack(columns, -1))
        return dist.LowRankMultivariateNormal(mean, factor, scale**2)


class MixtureOfNormals(_Encoder):
    r"""Encoder to a mixture of normals with diagonal covariances.

    .. math:: q(z|x) = \sum_k \pi_k(x) \prod_d \mathcal{N}(z_d; \mu_{kd}(x), \sigma_{kd}(x)^2)

    The network gives the unnormalized log-weights, the means and the log-variances; the first and the last pass through
    `pyro_vae.networks.soft_clip`. Gradients are pathwise, through all components
    (`pyro_vae.distributions.MixtureOfNormals`), one dimension after the other: a draw takes D steps.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (K(1 + 2D),).
        components: number of components K, at least 1.

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        TypeError: if ``components`` is not an integer.
        ValueError: if ``components`` is below 1, or x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> MixtureOfNormals((1, 8, 8), 20, components=3)(torch.zeros(5, 1, 8, 8)).event_shape
        torch.Size([20])

    Reference:
        Graves, 2016, Stochastic Backpropagation through Mixture Density Distributions; Figurnov, Mohamed and Mnih,
        2018, Implicit Reparameterization Gradients, section 3.
    """

    def __init__(self, shape: Sizes, latent_dim: int, network: Network = MLP, components: int = 5) -> None:
        size = as_size(latent_dim, "latent_dim")
        super().__init__(shape, latent_dim, network, out_shape=(as_size(components, "components") * (1 + 2 * size),))
        self.components = components

    def posterior(self, output: Tensor) -> distributions.MixtureOfNormals:
        of_component = output.unflatten(-1, (self.components, 1 + 2 * self.latent_dim))
        logits, loc, log_variance = of_component.split([1, self.latent_dim, self.latent_dim], -1)
        return distributions.MixtureOfNormals(soft_clip(logits.squeeze(-1)), loc, deviation(log_variance))
