"""The product of the parts: which prior, encoder, decoder and objective fit, and what one combination of them does."""

import itertools
import re
from functools import cache, partial

import pyro
import pyro.distributions as dist
import torch
from all_cases import cases
from partners import accepted, of_parts
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

from pyro_vae import data, decoders, encoders, objectives, priors
from pyro_vae.diagnostics.evaluation import mean_bound
from pyro_vae.networks import MLP
from pyro_vae.programs import check_programs, seeded
from pyro_vae.programs.handlers import LocalModules

BY_DENSITY = {  # of which a point has none
    objectives.VIMCO: "trains a guide by its density",
    objectives.Thermodynamic: "trains a guide by its density",
    objectives.DReG: "weighs draws by their density",
}
D, SHAPE, NETWORK = 3, (8,), partial(MLP, hidden=(8,))
OBJECTIVES = [
    Trace_ELBO(),
    TraceMeanField_ELBO(),
    TraceGraph_ELBO(),
    TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    objectives.IWAE(3),
    objectives.DReG(3),
    objectives.Renyi(0.5, 3),
    objectives.CIWAE(0.5, 3),
    objectives.MIWAE(2, 2),
    objectives.PIWAE(2, 2),
    objectives.VIMCO(3),
    objectives.Thermodynamic(3),
    objectives.StickingTheLanding(),
    objectives.FreeBits(),
    objectives.InfoVAE(),
    objectives.BetaTC(size=12),
]


def one_of_each(kind):
    """The first case of every family."""
    return list({case.family: case for case in reversed(cases(kind))}.values())


@cache
def grey():
    return data.load("digits").train[:12, 0, 3, :]


def assembled(prior, encoder, decoder):
    torch.manual_seed(0)
    encoder_part = encoder.make(D, shape=SHAPE, network=NETWORK)
    vamp = prior.family is priors.VampPrior
    prior_part = priors.VampPrior(encoder_part, components=4) if vamp else prior.make(D)
    return of_parts(prior_part, encoder_part, decoder.make(encoder.event(D), shape=SHAPE, network=NETWORK))


def data_for(vae, x):
    """The version of grey values that a VAE scores."""
    return accepted(getattr(vae.decoder, "decoder", vae.decoder), x)


def support_of(case):
    """What a code of a prior or an encoder is: its shape, and which typical draws its support accepts."""
    distribution = case.make(D, **({} if case.kind == "priors" else {"shape": SHAPE}))
    distribution = distribution() if case.kind == "priors" else distribution(torch.zeros(SHAPE))
    draws = distribution.sample((50,))
    if case.family is encoders.Delta:  # of which all draws are one, but where is a matter of chance
        draws = torch.randn_like(draws)
    return distribution.event_shape, distribution.support, draws


def compatible(prior, encoder):
    if prior.family is priors.VampPrior:  # a mixture of any encoder's distributions, but not of points
        return encoder.family is not encoders.Delta
    (shape, support, draws), (other_shape, other_support, other_draws) = support_of(prior), support_of(encoder)
    if shape != other_shape:
        return False
    return bool(support.check(other_draws).all() and other_support.check(draws).all())


PRIORS, ENCODERS, DECODERS = (one_of_each(kind) for kind in ("priors", "encoders", "decoders"))
torch.manual_seed(0)
PAIRS = [pair for pair in itertools.product(PRIORS, ENCODERS) if compatible(*pair)]
OTHERS = [pair for pair in itertools.product(PRIORS, ENCODERS) if pair not in PAIRS]
TRIPLES = [(*pair, decoder) for pair in PAIRS for decoder in DECODERS]
PLAIN = next(case for case in DECODERS if case.family is decoders.Normal)


def independent(distribution):
    return type(distribution).__name__ == "Independent" and not distribution.base_dist.event_shape


def refusal(objective, vae):
    """Words of an objective's refusal of a prior or an encoder; none where it takes them."""
    posterior = vae.encoder(data_for(vae, grey()[0]))
    if not posterior.has_rsample:
        if isinstance(objective, TraceMeanField_ELBO):
            return "TraceMeanField_ELBO does not take these programs"
        if isinstance(objective, objectives.Objective) and objective.pathwise:
            return "needs a pathwise sampler"
    if isinstance(posterior, dist.Delta) and type(objective) in BY_DENSITY:
        return BY_DENSITY[type(objective)]
    prior = vae.prior()
    learned = not prior.has_rsample and prior.log_prob(prior.sample()).requires_grad
    if isinstance(objective, objectives.InfoVAE) and learned:
        return "trains a prior by its draws"
    taken_apart = {objectives.FreeBits: (vae.prior(), posterior), objectives.BetaTC: (posterior,)}
    if not all(map(independent, taken_apart.get(type(objective), ()))):
        return "needs independent latent dimensions"
    return ""


def outcomes(triple, chosen, x):
    """Yield for each objective what comes of it with a prior, an encoder and a decoder, and a word why.

    "decreased" and "trained" say that three steps were taken, with a finite loss that is lower on the same noise, or
    not lower; "refused" that the combination was refused, by the name of what does not fit; "failed" is all else. The
    steps are plain ones of Adam, on all data, by the gradients that `pyro_vae.fit` takes, and as there with validation
    off: the programs are checked once for all objectives.
    """
    vae = assembled(*triple)
    x, start = data_for(vae, x), {name: value.clone() for name, value in vae.state_dict().items()}
    with seeded(1, x.device):
        check_programs(vae.model, vae.guide, x)
    for objective in chosen:
        vae.load_state_dict(start)
        try:
            yield _outcome(vae, objective, x)
        except Exception as error:  # whatever it is, the table says it
            yield "failed", f"{type(error).__name__}: {error}"


def _outcome(vae, objective, x):
    words = refusal(objective, vae)
    if words:
        try:
            mean_bound(vae.model, vae.guide, x, loss=objective)
            three_steps(vae, objective, x)
        except ValueError as error:
            return ("refused" if re.search(words, str(error)) else "failed"), str(error)
        return "failed", f"it is not refused: {words}"
    with pyro.validation_enabled(False):
        before, after = three_steps(vae, objective, x)
    if not (torch.isfinite(torch.tensor([before, after])).all() and all(p.isfinite().all() for p in vae.parameters())):
        return "failed", f"from {before} to {after}"
    return ("decreased" if after < before else "trained"), f"from {before} to {after}"


def check_gradients(vae, gradients):
    """Refuse a step that leaves a parameter, or all those of a part, without a gradient."""
    named = dict(zip(dict(vae.named_parameters()), gradients, strict=True))
    without = [name for name, gradient in named.items() if gradient is None]
    for part in ("prior", "encoder", "decoder"):
        of_part = [gradient for name, gradient in named.items() if name.startswith(f"{part}.")]
        if of_part and not any(gradient is not None and gradient.any() for gradient in of_part):
            without.append(part)
    assert not without, f"no gradient reaches {', '.join(without)}"


def three_steps(vae, objective, x):
    """The loss before and after three steps, on the same noise."""
    local = LocalModules()
    model, guide, parameters = local(vae.model), local(vae.guide), list(vae.parameters())
    optimizer, compute = torch.optim.Adam(parameters, lr=3e-3), objectives.terms_and_gradients(objective)

    def value():
        with seeded(1, x.device):
            return objective.loss(model, guide, x) / len(x)

    before = value()
    with seeded(2, x.device):
        for _ in range(3):
            _, gradients = compute(model, guide, x, 1.0, lambda: parameters)
            check_gradients(vae, gradients)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    return before, value()
