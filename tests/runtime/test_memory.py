import copy
import subprocess
import sys

import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae import VAE, decoders, encoders, fit, objectives, priors
from pyro_vae.runtime.memory import as_bytes, most_within, peak_of

# The growth of the resident memory beyond that of one sample, in a process of its own: no earlier test has left a mark.
GROWTH = """
import resource, sys, torch
from functools import partial
from pyro_vae import VAE, decoders, encoders, log_likelihood, priors
from pyro_vae.networks import MLP

torch.set_num_threads(1)
shape, network = 5000, partial(MLP, hidden=(8,))
vae = VAE(priors.Normal(2), encoders.Normal(shape, 2, network), decoders.Normal(2, shape, network))
x = torch.rand(3, shape)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
log_likelihood(vae.model, vae.guide, x, samples=1)
before, rows = peak(), []
vae.decoder.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0][..., 0].numel()))
log_likelihood(vae.model, vae.guide, x, samples=2000, memory=sys.argv[1])
print(peak() - before, max(rows))
"""


def growth(memory):
    run = subprocess.run([sys.executable, "-c", GROWTH, memory], capture_output=True, text=True, check=True)
    return [int(number) for number in run.stdout.split()]


@pytest.mark.slow
def test_the_peak_of_the_process_stays_within_the_memory_that_is_given():
    # All samples together would take 2000 x 3 x 5000 x 4 bytes = 120 MB for each of several tensors.
    (small, few), (large, many) = growth("8MB"), growth("60MB")
    assert small < 12e6  # 4 MB for what is not tensors
    assert large < 64e6
    assert 5 * few < many


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (7, 7),
        ("1024", 1024),
        ("1B", 1),
        ("3kB", 3000),
        ("3 KiB", 3072),
        ("512MB", 512 * 10**6),
        ("1.5GB", 1_500_000_000),
        ("2gib", 2**31),
        (" 1TB ", 10**12),
    ],
)
def test_memory_is_a_number_of_bytes_or_has_a_unit(memory, expected):
    assert as_bytes(memory) == expected


@pytest.mark.parametrize("memory", ["", "GB", "2QB", "2G", "-1GB", "1e9", "2 G B", "nan", "infGB"])
def test_what_is_no_amount_is_refused_with_examples(memory):
    with pytest.raises(ValueError, match="as '512MB' or '2GiB'"):
        as_bytes(memory)


@pytest.mark.parametrize("memory", [0, -5, "0GB", "0.1B"])
def test_less_than_a_byte_is_refused(memory):
    with pytest.raises(ValueError, match="at least 1 byte, not"):
        as_bytes(memory)


@pytest.mark.parametrize("memory", [None, 2.5, True, [1]])
def test_memory_of_another_type_is_refused(memory):
    with pytest.raises(TypeError, match="such as '2GB', not"):
        as_bytes(memory)


def test_the_peak_counts_what_lives_together_and_views_not_at_all():
    def one_after_the_other():
        for _ in range(10):
            torch.ones(100).exp()

    kept = []
    x = torch.ones(100)
    assert peak_of(one_after_the_other) == 2 * 800
    assert peak_of(lambda: kept.extend(torch.ones(100) for _ in range(10))) == 2 * 4000
    assert peak_of(lambda: [x.view(10, 10).T, x.expand(50, 100), x.add_(1)]) == 1


def test_a_peak_of_another_part_than_the_rows_is_no_room_for_any_number_of_them():
    # Up to 10 rows the peak is that of the fixed part, so that two small trials would see no cost of a row.
    assert most_within(10_000, lambda rows: max(1000, 100 * rows), 10**9) == 100


@pytest.mark.parametrize("memory", [2000, 12_345, 10**6])
def test_as_many_rows_as_fit_are_found_within_a_tenth(memory):
    tried = []

    def peak(rows):
        tried.append(rows)
        return 400 + 7 * rows

    found, exact = most_within(memory, peak, 10**9), (memory - 400) // 7
    assert 0.9 * exact <= found <= exact
    assert max(tried) <= exact  # a trial does not overrun the memory


def test_no_more_rows_are_taken_than_there_are_and_none_where_none_fits():
    assert most_within(10**9, lambda rows: 8 * rows, 77) == 77
    assert most_within(10, lambda rows: 11 * rows, 77) == 0


def test_a_training_within_a_memory_is_that_without_one_but_for_rounding():
    x = torch.rand(20, 1, 8, 8)

    def trained(loss, **settings):
        torch.manual_seed(0)
        vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
        fit(vae.model, vae.guide, x, loss=loss, epochs=2, batch_size=10, engine="eager", **settings)
        return loss, torch.cat([parameter.detach().flatten() for parameter in vae.parameters()])

    _, one = trained(objectives.Renyi(0.5, 60), memory="1GB")
    asked, whole = trained(objectives.Renyi(0.5, 60))
    assert torch.equal(one, whole)
    assert asked.chunk == 60
    vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
    chunk = asked.chunk_within(as_bytes("1MB"), vae.model, vae.guide, x[:10])
    assert 1 < chunk < 60
    loss = objectives.Renyi(0.5, 60, chunk=chunk)
    _, chunked = trained(loss)
    _, within = trained(asked, memory="1MB")
    assert torch.equal(within, chunked)
    assert asked.chunk == 60  # a copy was changed


@pytest.mark.parametrize(
    "loss",
    [objectives.Thermodynamic(200, partitions=40), objectives.InfoVAE(num_particles=20)],
    ids=lambda loss: type(loss).__name__,
)
def test_what_an_objective_takes_itself_is_counted(loss):
    """Less than a step takes in small chunks is refused."""
    vae, x = VAE(priors.Normal(1), encoders.Normal(4, 1), decoders.Normal(1, 4)), torch.randn(100, 4)
    in_tens = copy.copy(loss)
    in_tens.chunk = 10
    parameters = list(vae.parameters())
    peak = peak_of(lambda: torch.autograd.grad(in_tens.terms(vae.model, vae.guide, x).loss, parameters))
    assert loss.chunk_within(2 * peak, vae.model, vae.guide, x) >= 1
    with pytest.raises(ValueError, match="is too small: one particle of 100 data takes"):
        loss.chunk_within(peak // 2 - 1, vae.model, vae.guide, x)  # peak_of has twice what was seen


def test_an_objective_with_terms_of_its_own_trains_within_a_memory():
    class Own(objectives.Objective):
        def terms(self, *args):
            return objectives.IWAE(self.num_particles, self.chunk).terms(*args)

    vae = VAE(priors.Normal(1), encoders.Normal(4, 1), decoders.Normal(1, 4))
    history = fit(vae.model, vae.guide, torch.randn(20, 4), loss=Own(3), memory="1GB", epochs=1, batch_size=20)
    assert history[1]["train_loss"] > 0


@pytest.mark.parametrize(
    ("loss", "memory", "message"),
    [
        (objectives.IWAE(5), "10KB", "a memory of 10,000 bytes is too small: one particle of 10 data takes"),
        (objectives.IWAE(5), "much", "memory must be a number of bytes"),
        (Trace_ELBO(), "2GB", "memory limits the particles of objectives such as IWAE, not those of"),
    ],
)
def test_a_memory_that_does_not_do_for_a_training_is_refused(loss, memory, message):
    vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
    with pytest.raises(ValueError, match=message):
        fit(vae.model, vae.guide, torch.rand(20, 1, 8, 8), loss=loss, batch_size=10, memory=memory)
