"""Every diagnostic draws its noise from its own seed: other random states change nothing, and stay as they are."""

import math

import numpy as np
import pytest
import torch

from pyro_vae import VAE, decoders, encoders, priors
from pyro_vae.diagnostics.annealing import ais, bdmc
from pyro_vae.diagnostics.calibration import calibration
from pyro_vae.diagnostics.codes import codes
from pyro_vae.diagnostics.consistency import consistency
from pyro_vae.diagnostics.disentanglement import disentanglement
from pyro_vae.diagnostics.encoding import code_means
from pyro_vae.diagnostics.estimators import gradients
from pyro_vae.diagnostics.evaluation import evaluate
from pyro_vae.diagnostics.gaps import inference_gap
from pyro_vae.diagnostics.imputation import impute
from pyro_vae.diagnostics.likelihood import log_likelihood
from pyro_vae.diagnostics.local_test import local_test
from pyro_vae.diagnostics.posteriors import posterior_check
from pyro_vae.diagnostics.predictive import predictive_check
from pyro_vae.diagnostics.quality import sample_quality

LABELS = torch.arange(40) % 2
WIDE = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) + LABELS[:, None]  # more than the components
LONG = WIDE.reshape(-1, 5)
GAPS = WIDE.masked_fill(torch.rand(WIDE.shape, generator=torch.Generator().manual_seed(1)) < 0.2, math.nan)
DIAGNOSTICS = {
    "evaluate": lambda *pair: evaluate(*pair, WIDE),
    "log_likelihood": lambda *pair: log_likelihood(*pair, WIDE, samples=30, per_datum=True),
    "ais": lambda *pair: ais(*pair, WIDE[:2], chains=2, steps=3),
    "bdmc": lambda *pair: bdmc(*pair, WIDE[:2], chains=2, steps=3),
    "inference_gap": lambda *pair: inference_gap(*pair, WIDE[:2], samples=30, steps=5, starts=1),
    "calibration": lambda *pair: calibration(*pair, WIDE, draws=9),
    "local_test": lambda *pair: local_test(*pair, WIDE, WIDE[:2], draws=9, permutations=2),
    "posterior_check": lambda *pair: posterior_check(*pair, WIDE[:1], samples=10, warmup=10),
    "predictive_check": lambda *pair: predictive_check(*pair, WIDE, lambda x: x.mean(-1), draws=9),
    "codes": lambda *pair: codes(*pair, WIDE, labels=LABELS),
    "code_means": lambda *pair: code_means(*pair, WIDE),
    "consistency": lambda *_: consistency(LONG, LONG.cos()),
    "disentanglement": lambda *_: disentanglement(LONG, LONG[:, :2] > 0),
    "sample_quality": lambda *_: sample_quality(WIDE, WIDE.sin(), labels=LABELS),
    "gradients": lambda *_: [(row.bias_z, row.variance) for row in gradients("discrete", draws=1000).rows],
    **{
        f"impute by {by}": lambda *pair, by=by: impute(*pair, GAPS[:5], by=by, draws=3, samples=30, steps=5)
        for by in ("encoder", "importance", "gibbs", "nuts")
    },
}


def states():
    numpys = np.random.get_state()
    return torch.get_rng_state().tolist(), numpys[1].tolist(), numpys[2]


def plain(found):
    """Return the numbers of a result as text, NaN among them."""
    if isinstance(found, torch.Tensor):
        return repr(found.tolist())
    if isinstance(found, tuple | list):
        return [plain(each) for each in found]
    return repr(vars(found)) if hasattr(found, "__dict__") else repr(found)


@pytest.mark.filterwarnings("ignore:the importance weights", "ignore:the chains of")
@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_a_diagnostic_hangs_on_its_seed_alone_and_leaves_random_states_alone(name):
    torch.manual_seed(0)
    vae, found = VAE(priors.Normal(3), encoders.Normal(30, 3), decoders.Normal(3, 30)), []
    for state in range(2):
        torch.manual_seed(state), np.random.seed(state)
        before = states()
        found.append(plain(DIAGNOSTICS[name](vae.model, vae.guide)))
        assert states() == before
    assert found[0] == found[1]
