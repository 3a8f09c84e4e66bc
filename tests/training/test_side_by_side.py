"""Several trainings in one process, and what a training leaves of the process as it was."""

import contextlib
import multiprocessing
import os
import random
import signal
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae import VAE, decoders, encoders, evaluate, fit, log_likelihood, objectives, priors
from pyro_vae.diagnostics import comparison

SHAPE = (1, 4, 4)
LOSSES = [Trace_ELBO(), objectives.IWAE(3), objectives.Renyi(0.5, 2)]


def made(seed):
    """A VAE and data of their own for each seed, without a look at the process's random state."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        vae = VAE(priors.Normal(2), encoders.Normal(SHAPE, 2), decoders.Bernoulli(2, SHAPE, grey=True))
        return vae, torch.rand(60, *SHAPE)


def weights_of(seed, start=None):
    """Train, and return the weights as bytes."""
    vae, x = start or made(seed)
    fit(vae.model, vae.guide, x, epochs=4, batch_size=16, seed=seed, loss=LOSSES[seed % len(LOSSES)])
    return b"".join(parameter.detach().numpy().tobytes() for parameter in vae.parameters())


@pytest.fixture(scope="module")
def alone():
    return [weights_of(seed) for seed in range(8)]


def test_eight_trainings_in_threads_are_those_alone(alone):
    starts = [made(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(weights_of, range(8), starts)) == alone


@pytest.mark.slow
def test_eight_trainings_in_processes_are_those_alone(alone):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyro_vae"])
    with ProcessPoolExecutor(4, context) as pool:
        assert list(pool.map(weights_of, range(8))) == alone


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process can be forked here")
def test_a_process_forked_from_a_training_thread_trains_as_alone(alone):
    vae, x = made(8)
    begun, done = threading.Event(), threading.Event()

    def on_step(*_):
        begun.set()
        if done.is_set():
            raise InterruptedError

    def train_until_done():
        with contextlib.suppress(InterruptedError):
            fit(vae.model, vae.guide, x, epochs=10**6, batch_size=16, engine="eager", on_step=on_step)

    thread = threading.Thread(target=train_until_done)
    thread.start()
    try:
        assert begun.wait(60)
        assert [ends_of_a_fork(alone[1]) for _ in range(4)] == [0] * 4
    finally:
        done.set()
        thread.join()


def ends_of_a_fork(expected, seconds=60):
    """Return the code with which a forked process ends that trains, or kill it."""
    child = os.fork()
    if child == 0:
        os._exit(0 if weights_of(1) == expected and not pyro.poutine.runtime._PYRO_STACK else 1)
    for _ in range(100 * seconds):
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hangs"


def test_a_training_is_the_same_whatever_ran_before(alone):
    torch.manual_seed(99)
    torch.randn(1234)
    np.random.seed(5)
    pyro.set_rng_seed(7)
    pyro.param("encoder$$$weight", torch.ones(3))  # as another's program would have left it
    weights_of(3)
    assert [weights_of(seed) for seed in (5, 0)] == [alone[5], alone[0]]
    pyro.clear_param_store()


def of_the_process():
    """All of the process that a training could change."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "random state of torch": torch.get_rng_state().tolist(),
        "random state of numpy": [str(part) for part in np.random.get_state()],
        "random state of Python": random.getstate(),
        "gradients": torch.is_grad_enabled(),
        "validation of torch": torch.distributions.Distribution._validate_args,
        "settings of Pyro": pyro.settings.get(),
        "handlers": list(pyro.poutine.runtime._PYRO_STACK),
        "parameter store": sorted(pyro.get_param_store().keys()),
        "filters of warnings": list(warnings.filters),
        "backend": matplotlib.get_backend(),
        "settings of matplotlib": dict(matplotlib.rcParams),
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "threads": threading.active_count(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomalies": torch.is_anomaly_enabled(),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "printing": vars(torch._tensor_str.PRINT_OPTS).copy(),
        "functions of Pyro": [getattr(pyro.infer.trace_elbo, name) for name in ("torch_item", "warn_if_nan")],
    }


def train(engine="auto", **settings):
    vae, x = made(0)
    fit(vae.model, vae.guide, x, epochs=2, batch_size=16, engine=engine, **settings)


def fail_in_a_step():
    vae, x = made(0)

    def on_step(step, _):
        if step == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(vae.model, vae.guide, x, epochs=2, batch_size=16, on_step=on_step)


def fail_in_a_check():
    vae, x = made(0)
    with pytest.raises(ValueError, match="inf"):
        fit(vae.model, vae.guide, x / 0, epochs=2, batch_size=16)


def fail_in_a_recording():
    vae, x = made(0)

    def model(batch):
        if float(batch.sum()) < 0:  # a branch on data
            return None
        return vae.model(batch)

    with pytest.warns(RuntimeWarning, match="cannot be recorded"):
        fit(model, vae.guide, x, epochs=1, batch_size=16, engine="recorded")


def look():
    vae, x = made(0)
    evaluate(vae.model, vae.guide, x)
    evaluate(vae.model, vae.guide, x, at="mean")
    log_likelihood(vae.model, vae.guide, x, samples=20)


def hold_against_the_twin():
    vae, x = made(0)
    comparison.compare(vae, x, steps=2, draws=2, rounds=1, batch_size=8)


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize(
    "act",
    [
        *(train, partial(train, "recorded"), partial(train, on_nan="rollback")),
        pytest.param(partial(train, "compiled"), marks=pytest.mark.slow),
        *(fail_in_a_step, fail_in_a_check, fail_in_a_recording, look, hold_against_the_twin),
    ],
)
def test_nothing_of_the_process_is_changed(act, validation):
    act()  # what is imported or started once may be so here
    with pyro.validation_enabled(validation):
        before = of_the_process()
        act()
        after = of_the_process()
    for name, value in before.items():
        assert after[name] == value, name


def test_a_program_of_ones_own_keeps_its_parameters():
    def model(batch):
        with pyro.plate("data", len(batch)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).expand([len(batch)]), obs=batch[:, 0])

    def guide(batch):
        loc = pyro.param("own loc", torch.zeros(()))
        with pyro.plate("data", len(batch)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    pyro.clear_param_store()
    x = torch.randn(20, 1)
    before = of_the_process()
    fit(model, guide, x, epochs=1, batch_size=5)
    after = of_the_process()
    assert {name for name in before if before[name] != after[name]} == {"parameter store"}
    assert list(pyro.get_param_store().keys()) == ["own loc"]
    pyro.clear_param_store()
