"""Programs that give NaN for a single datum: each diagnostic names the datum, and the site that it comes from."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.diagnostics.annealing import ais, bdmc
from pyro_vae.diagnostics.calibration import calibration
from pyro_vae.diagnostics.codes import codes
from pyro_vae.diagnostics.encoding import code_means
from pyro_vae.diagnostics.gaps import inference_gap
from pyro_vae.diagnostics.likelihood import log_likelihood
from pyro_vae.diagnostics.posteriors import posterior_check

DATA = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
WRONG = {"z": 17, "x": 23}  # the datum for which a site is NaN


def broken(x, loc, name, at):
    """Return a location, which is NaN for a datum if it is that of a certain site."""
    wrong = (x == DATA[WRONG[at]]).all(-1, keepdim=True) & (name == at)
    return dist.Normal(loc.masked_fill(wrong, math.nan), 1.0, validate_args=False).to_event(1)


def pair(at):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", broken(x, z, "x", at), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", broken(x, x / 2, "z", at))

    return model, guide


BY_THE_GUIDE = {"codes": lambda *pair: codes(*pair, DATA), "code_means": lambda *pair: code_means(*pair, DATA)}
BY_BOTH = {
    "log_likelihood": lambda *pair: log_likelihood(*pair, DATA, samples=30),
    "with errors": lambda *pair: log_likelihood(*pair, DATA, samples=30, per_datum=True, memory="30kB"),
    "ais": lambda *pair: ais(*pair, DATA, chains=2, steps=3),
    "gaps": lambda *pair: inference_gap(*pair, DATA, samples=30, steps=3),
}
CASES = [(name, run, at) for name, run in BY_BOTH.items() for at in WRONG]
CASES.append(("posterior_check", lambda *pair: posterior_check(*pair, DATA[16:24], samples=4, warmup=1), "x"))
CASES += [(name, run, "z") for name, run in BY_THE_GUIDE.items()]


@pytest.mark.filterwarnings("ignore:the chains of")
@pytest.mark.parametrize(("name", "run", "at"), CASES, ids=[f"{name}-{at}" for name, _, at in CASES])
def test_nan_is_named_with_datum_and_site(name, run, at):
    datum = WRONG[at] - 16 * (name == "posterior_check")
    with pytest.raises(
        ValueError, match=rf"of datum {datum} is nan( or infinite)? at site '{at}': correct the parameters of"
    ):
        run(*pair(at))


def test_nan_of_simulated_data_is_named():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            loc = z.where(z[:, :1] < 1, torch.tensor(math.nan))
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=False).to_event(1), obs=x)

    for run in (lambda *pair: calibration(*pair, DATA, draws=9), lambda *pair: bdmc(*pair, DATA, chains=2, steps=3)):
        with pytest.raises(
            ValueError, match=r"of datum \d+ is nan( or infinite)? at site '[xz]': correct the parameters"
        ):
            run(model, pair("x")[1])
