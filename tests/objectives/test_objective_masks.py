"""What masks and scales of the programs' own do to the objectives of this package."""

import itertools
import math
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from pyro_vae import VAE, decoders, distributions, encoders, objectives, priors
from pyro_vae.objectives.terms import terms_and_gradients as trained

pytestmark = pytest.mark.usefixtures("float64")
BY_DATUM = [
    objectives.IWAE(4),
    objectives.DReG(4),
    objectives.Renyi(0.5, 4),
    objectives.Renyi(-math.inf, 4),
    objectives.CIWAE(0.3, 4),
    objectives.MIWAE(2, 2),
    objectives.PIWAE(2, 2),
    objectives.VIMCO(4),
    objectives.Thermodynamic(4, 3, 0.1),
    objectives.StickingTheLanding(4),
]
BY_BATCH = [objectives.FreeBits(0.1), objectives.InfoVAE(), objectives.BetaTC(3.0, 100)]
MASK = torch.tensor([True, False, True, True, False])


@pytest.fixture
def vae(float64):  # noqa: ARG001 (the dtype of what is drawn)
    torch.manual_seed(0)
    return VAE(priors.Normal(2), encoders.Normal(4, 2), decoders.Normal(2, 4))


def masked(vae, mask=MASK):
    return poutine.mask(vae.model, mask=mask), poutine.mask(vae.guide, mask=mask)


def terms_and_gradients(loss, vae, programs, x):
    torch.manual_seed(1)
    terms = loss.terms(*programs, x)
    gradients = torch.autograd.grad(terms.loss, list(vae.parameters()))
    return [term.detach() for term in terms], gradients


@pytest.mark.parametrize("loss", BY_DATUM, ids=repr)
def test_a_masked_datum_has_no_part_in_value_or_gradient(loss, vae):
    x = torch.randn(5, 4)
    other = torch.where(MASK[:, None], x, 3 + torch.randn(5, 4))
    one = terms_and_gradients(loss, vae, masked(vae), x)
    two = terms_and_gradients(loss, vae, masked(vae), other)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", BY_DATUM, ids=repr)
def test_where_all_is_masked_nothing_is_left(loss, vae):
    (value, *_), gradients = terms_and_gradients(
        loss, vae, masked(vae, torch.zeros(5, dtype=torch.bool)), torch.randn(5, 4)
    )
    assert value == 0
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("loss", BY_BATCH, ids=lambda loss: type(loss).__name__)
def test_an_objective_that_holds_the_data_of_a_batch_together_takes_no_mask(loss, vae):
    with pytest.raises(ValueError, match=f"{type(loss).__name__} .* mask at site 'z': leave the masked data out"):
        loss.loss(*masked(vae), torch.randn(5, 4))


@pytest.mark.parametrize("loss", BY_BATCH, ids=lambda loss: type(loss).__name__)
def test_an_objective_that_holds_the_data_of_a_batch_together_takes_no_scale(loss, vae):
    programs = (poutine.scale(program, 0.5) for program in (vae.model, vae.guide))
    with pytest.raises(ValueError, match=f"{type(loss).__name__} .* scale of 0\\.5 at site 'x'"):
        loss.loss(*programs, torch.randn(5, 4))


@pytest.mark.parametrize("loss", BY_BATCH, ids=lambda loss: type(loss).__name__)
def test_it_takes_no_scale_of_each_datum_for_the_codes(loss, vae):
    """As many data as dimensions of a code, so that the scales would broadcast along the wrong ones."""

    def guide(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=torch.tensor([1.0, 2.0])):
            pyro.sample("z", vae.encoder(x))

    with pytest.raises(ValueError, match=rf"{type(loss).__name__} .* scale of shape \(2,\) at site 'z'"):
        loss.loss(vae.model, guide, torch.randn(2, 4))


class Followed:
    """Codes of two numbers of which masks hide some, while data that are not masked depend on all of them.

    ``shown`` says for each number whether its density counts, and ``where`` the mask stands: around the site, at the
    distribution, below its event dimension, or in a wrapper. Each datum has a parameter of its own, a.
    """

    count = 20_000

    def __init__(self, where, family=dist.Bernoulli):
        self.where, self.family = where, family
        rows = torch.arange(self.count)
        self.x = torch.tensor([0.3, 1.2, -0.5, 2.0])[rows % 4]
        self.by_datum = rows % 2 == 0 if where != "False" else torch.zeros(self.count, dtype=torch.bool)
        self.shown = torch.stack([self.by_datum, ~self.by_datum if where == "below" else self.by_datum], -1)
        self.a = torch.full((self.count,), 0.4, requires_grad=True)

    def posterior(self):
        means = torch.stack([self.a * self.x, 0.2 - self.a], -1)
        return dist.Bernoulli(logits=means) if self.family is dist.Bernoulli else dist.Normal(means, 0.5)

    def prior(self):
        return (dist.Bernoulli(0.3) if self.family is dist.Bernoulli else dist.Normal(0.0, 1.0)).expand([self.count, 2])

    def seen(self, z):
        return dist.Normal(z.sum(-1) + z[..., 0] * z[..., 1], 1.0)

    def site(self, distribution, wrapper=lambda distribution: distribution):
        if self.where == "below":
            return wrapper(distribution.mask(self.shown).to_event(1))
        whole = distribution.to_event(1)
        masks = {"at": self.by_datum, "wrapped": self.by_datum, "False": False}
        return wrapper(whole.mask(masks[self.where]) if self.where in masks else whole)

    def around(self):
        return poutine.mask(mask=self.by_datum) if self.where == "around" else nullcontext()

    def model(self, x):
        with pyro.plate("data", len(x)):
            with self.around():
                z = pyro.sample("z", self.site(self.prior()))
            pyro.sample("x", self.seen(z), obs=x)

    def guide(self, x):
        pyro.param("a", self.a)
        with pyro.plate("data", len(x)), self.around():
            pyro.sample(
                "z",
                self.site(self.posterior(), distributions.ScoreFunction if self.where == "wrapped" else lambda q: q),
            )

    def exact(self, particles):
        """The gradient of the bound of some particles for each datum, summed over all codes."""
        codes = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)))[:, None]
        log_q = self.posterior().log_prob(codes)
        weights = self.seen(codes).log_prob(self.x) + ((self.prior().log_prob(codes) - log_q) * self.shown).sum(-1)
        chances, total = log_q.sum(-1).exp(), 0
        for drawn in itertools.product(range(4), repeat=particles):
            total = total + chances[[*drawn]].prod(0) * (weights[[*drawn]].logsumexp(0) - math.log(particles))
        return -torch.autograd.grad(total.sum(), self.a)[0]

    def gradient(self, loss):
        compute = trained(loss, {"data"})
        return compute(self.model, self.guide, self.x, 1.0, lambda: [self.a])[1][0] * self.count


def agree(one, other):
    """Whether the means of two samples of independent numbers are equal, within 5 standard errors; also of each row."""
    for rows in (slice(0, None, 4), slice(1, None, 4), slice(2, None, 4), slice(3, None, 4)):
        apart = one[rows] - other[rows]
        assert abs(apart.mean()) < 5 * apart.std() / math.sqrt(len(apart)) + 1e-6


@pytest.mark.parametrize("where", ["around", "at", "below", "wrapped", "False"])
@pytest.mark.parametrize(
    ("loss", "particles"),
    [
        (objectives.VIMCO(2), 2),
        (objectives.Thermodynamic(2, 1, 0.5), 1),
        (Trace_ELBO(max_plate_nesting=1), 1),
        (TraceEnum_ELBO(max_plate_nesting=1), 1),
    ],
    ids=["VIMCO", "Thermodynamic", "Trace_ELBO", "TraceEnum_ELBO"],
)
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites configured")
def test_the_score_of_a_masked_code_counts_where_data_depend_on_it(loss, particles, where):
    torch.manual_seed(0)
    programs = Followed(where)
    agree(programs.gradient(loss), programs.exact(particles))


def test_a_masked_code_has_the_gradient_of_iwae_by_dreg():
    torch.manual_seed(0)
    programs = Followed("around", dist.Normal)
    agree(programs.gradient(objectives.DReG(2)), programs.gradient(objectives.IWAE(2)))


def test_dreg_takes_no_mask_within_a_distribution():
    programs = Followed("at", dist.Normal)
    with pytest.raises(ValueError, match=r"DReG takes no \.mask\(\) at the distribution of site 'z': put poutine.mask"):
        programs.gradient(objectives.DReG(2))
