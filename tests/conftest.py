"""What every test starts from."""

import pyro
import pytest
import torch
from matplotlib.figure import Figure

from pyro_vae import plots
from pyro_vae.runtime import precision

torch.set_num_threads(1)  # tensors here are small: more threads would only wait for each other


@pytest.fixture(autouse=True)
def _clean_state():
    """An empty parameter store and a fixed seed, and no trace of either afterwards."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture
def float64():
    """Parts, networks and data built in a test are of double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def bfloat16(monkeypatch):
    """Let every machine compute in bfloat16: one without such products gives the same results, slowly."""
    monkeypatch.setattr(precision, "_has_bfloat16", lambda _: True)


@pytest.fixture
def blank_pictures(request, monkeypatch):
    """Leave the pictures of a run blank, since drawing is slow, but in tests marked "pictures"."""
    if not request.node.get_closest_marker("pictures"):
        as_file = plots.as_file
        for module in (plots, plots.files):  # where the commands find it, and where `png` does
            monkeypatch.setattr(module, "as_file", lambda _, *how: as_file(Figure(), *how))
