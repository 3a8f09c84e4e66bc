"""Discrete distributions, and several discrete variables at once."""

import pyro.distributions as dist
import torch
from torch import Tensor


class Categorical(dist.Categorical):
    """Categorical distribution of the numbers 0 to K - 1 as floats, which have a mean.

    Example:
        >>> Categorical(probs=torch.tensor([0.5, 0.0, 0.5])).mean
        tensor(1.)
    """

    @property
    def mean(self) -> Tensor:
        return self.probs @ self._numbers()

    @property
    def variance(self) -> Tensor:
        return (self.probs * (self._numbers() - self.mean.unsqueeze(-1)) ** 2).sum(-1)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (as torch has it)
        return super().sample(sample_shape).to(self._param.dtype)

    def _numbers(self) -> Tensor:
        return torch.arange(self._num_events, dtype=self._param.dtype, device=self._param.device)


class ZeroInflated(dist.ZeroInflatedDistribution):
    """A distribution of counts with further zeros, exact for every logit of the gate.

    Once it has drawn or given its mean, Pyro's (seen in 1.9.2) works from the gate's probability, whose logarithm has
    no gradient where it rounds to 1. This one does not keep that probability, and goes on from the logit.

    Example:
        >>> import torch
        >>> gate = torch.tensor(20.0, requires_grad=True)
        >>> counts = ZeroInflated(dist.Poisson(torch.tensor(1.0)), gate_logits=gate)
        >>> counts.log_prob(counts.sample()).backward()
        >>> bool(gate.grad.isfinite())
        True
    """

    @property
    def gate(self) -> Tensor:
        return self.gate_logits.sigmoid()


MOST_CODES = 4096


class EnumerableIndependent(dist.Independent):
    r"""Independent discrete variables as one event, whose joint values can be enumerated.

    .. math:: \mathbb{E}_{q(z)} f(z) = \sum_{z \in \{1, \dots, K\}^D} q(z) f(z)

    Pyro enumerates one variable per sample site and refuses an event of several. With this class a site of D variables
    of K values each takes part in ``pyro.infer.TraceEnum_ELBO`` as a single variable of :math:`K^D` values.

    Arguments:
        base_distribution: a distribution of one variable that can be enumerated.
        reinterpreted_batch_ndims: how many of its rightmost batch dimensions become event dimensions.

    Returns:
        A distribution as ``base_distribution.to_event(reinterpreted_batch_ndims)`` gives.

    Raises:
        NotImplementedError: at ``enumerate_support``, where there are more than 4,096 joint values.

    Example:
        >>> EnumerableIndependent(dist.Bernoulli(logits=torch.zeros(2)), 1).enumerate_support()
        tensor([[0., 0.],
                [1., 0.],
                [0., 1.],
                [1., 1.]])

    Reference:
        Kingma, Mohamed, Jimenez Rezende and Welling, 2014, Semi-supervised Learning with Deep Generative Models,
        equation 7 (the sum over all values of a discrete code).
    """

    @property
    def has_enumerate_support(self) -> bool:
        return bool(self.base_dist.has_enumerate_support)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self.base_dist.enumerate_support(expand=False)
        values = values.reshape(-1, *self.base_dist.event_shape)
        own = self.event_shape[: self.reinterpreted_batch_ndims]
        joint = len(values) ** own.numel()
        if joint > MOST_CODES:
            raise NotImplementedError(
                f"{own.numel()} variables of {len(values)} values have {joint} joint values, and at most "
                f"{MOST_CODES} are enumerated: take fewer variables, or draw samples (Trace_ELBO)"
            )
        # The digits of 0, 1, ..., joint - 1 in base K: one row per joint value.
        places = len(values) ** torch.arange(own.numel(), device=values.device)
        digits = torch.arange(joint, device=values.device)[:, None] // places % len(values)
        codes = values[digits].reshape(joint, *[1] * len(self.batch_shape), *self.event_shape)
        return codes.expand(joint, *self.batch_shape, *self.event_shape) if expand else codes


class OneHotCategorical(dist.OneHotCategorical):
    """One-hot vectors whose drawing can be recorded by `pyro_vae.engine`.

    Torch's own drawing turns tensors into numbers to check their range (seen in torch 2.13), which a recording cannot.

    Arguments:
        probs: probabilities, of shape (\\*batch, K); or
        logits: their logarithms up to a constant.

    Returns:
        A distribution of batch shape (\\*batch) and event shape (K,).

    Example:
        >>> OneHotCategorical(torch.tensor([0.0, 1.0])).sample()
        tensor([0., 1.])
    """

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        rows = torch.eye(self.event_shape[0], dtype=self.logits.dtype, device=self.logits.device)
        return rows[self._categorical.sample(sample_shape)]
