import re
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch

from pyro_vae.runtime.distributed import Ranks

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.slow  # the two processes take half a minute; the quick tier has one run of test_launch.py


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each of two real processes has found."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run([sys.executable, TESTS / "support" / "ranks.py", folder], check=True, timeout=300)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ranks.CASES)
def test_two_ranks_with_half_the_batch_end_as_one_process_with_the_batch(two_ranks, name):
    alone = ranks.train(None, **ranks.CASES[name])
    first, second = (found[name] for found in two_ranks)
    assert len(alone["losses"]) == 100
    for one, other, expected in zip(*(found["parameters"] for found in (first, second, alone)), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-6)
    for column in ("history", "losses"):
        assert torch.equal(*(found[column].nan_to_num() for found in (first, second)))
        torch.testing.assert_close(first[column], alone[column], rtol=1e-5, atol=1e-5)


def test_every_rank_has_its_own_part_of_each_epoch_and_its_own_noise(two_ranks):
    first, second = (found["seen"] for found in two_ranks)
    epochs = torch.stack([first["rows"], second["rows"]], 1).reshape(2, 6)  # of 5 data in 3 steps
    assert [sorted(epoch[:5].tolist()) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 2
    assert not torch.equal(*epochs)
    draws = torch.cat([first["draws"], second["draws"]])
    assert len(draws.unique()) == len(draws) == 12
    assert torch.equal(first["draws"], ranks.see(None)["draws"][:6])  # rank 0 draws as a single process does


def test_buffers_begin_and_end_as_those_of_rank_0(two_ranks):
    first, second = (found["buffers"] for found in two_ranks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [value.item() for name, value in first.items() if name.endswith("num_batches_tracked")] == [6]
    (mean,) = (value for name, value in first.items() if name.endswith("running_mean"))
    # Six steps from 0 towards the mean 3 of batches of 8, whose running mean has a standard deviation of 0.07.
    torch.testing.assert_close(mean, torch.full((6,), 3 * (1 - 0.9**6)), rtol=0, atol=0.35)


def test_what_each_rank_computes_from_its_own_data_begins_ends_and_is_resumed_as_on_rank_0(two_ranks):
    """Buffers, frozen parameters, and the running means of baselines: within an epoch, each rank has its own."""
    (begun, whole, again), others = (found["resumed"] for found in two_ranks)
    assert all(torch.equal(begun[1][name], value) for name, value in ranks.Centred(seed=0).state_dict().items())
    for kept, found in ((begun, others[0]), (whole, again), (whole, others[1]), (whole, others[2])):
        assert kept[0] == found[0]
        assert kept[1].keys() == found[1].keys()
        assert all(torch.equal(value, found[1][name]) for name, value in kept[1].items())


@pytest.mark.parametrize(("where", "rows"), [("on_step", 4), ("on_epoch", 3)])
def test_all_ranks_end_where_a_callback_of_one_ends_the_training(two_ranks, where, rows):
    """A step's is heard at the end of its epoch, the third, if no hundredth step comes before."""
    (counts, parameters), (counts_2, parameters_2) = (found[f"stopped {where}"] for found in two_ranks)
    assert counts == counts_2 == rows
    assert torch.equal(torch.cat(parameters[:1]), torch.cat(parameters_2[:1]))


def test_processes_with_data_of_their_own_are_refused(two_ranks):
    for found in two_ranks:
        assert found["of other data"].startswith("the processes differ in data, (")
        assert "as it splits each batch itself" in found["of other data"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "of one rank",
            r"first use in this step, \{\} in process 0 but \{'late': \(3,\)\} in process 1: name each parameter",
        ),
        (
            "of another name",
            r"first use in this step, \{'late0': \(3,\)\} in process 0 but \{'late1': .* 1: name each parameter",
        ),
        (
            "of another shape",
            r"first use in this step, \{'late': \(1,\)\} in process 0 but \{'late': \(3,\)\} .*: name each parameter",
        ),
        (
            "a step later",
            r"first use in this step, \{'late': \(3,\)\} in process 0 but \{\} in process 1: name each parameter",
        ),
        ("of random values", "first values of the parameters .* give them first values that are not random"),
        (
            "from the first step",
            r"parameters of their programs, \{'a': .*'late0': .* but .*'late1': .*run the same programs",
        ),
    ],
)
def test_parameters_that_the_ranks_do_not_share_are_refused_on_each(two_ranks, kind, words):
    for found in two_ranks:
        assert re.match(f"the processes differ in the .*{words}", found["late"][kind])


def test_a_parameter_that_all_ranks_first_use_in_one_step_is_trained_as_in_one_process(two_ranks):
    alone = ranks.with_late_parameters(None, "of all ranks")
    for found in two_ranks:
        torch.testing.assert_close(found["late"]["of all ranks"], alone, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_sums_over_ranks_are_rounded_no_more_than_in_32_bits_and_are_real(dtype, monkeypatch):
    """301 data on each of two equal ranks, which bfloat16 would count as 600, and a sum that float16 cannot hold."""
    two = Ranks()
    two.size = 2
    monkeypatch.setattr(two, "sum", lambda values: 2 * values)
    parameter, gradient = torch.zeros(2, dtype=dtype), torch.tensor([250.0, -0.5], dtype=dtype)
    terms, means, count = two.combine([torch.tensor(1234.5)], [gradient, None], [parameter, parameter], 301)
    assert count.item() == 602.0
    assert terms[0].item() == 2469.0
    assert torch.equal(means[0], gradient)
    assert means[0].dtype is dtype
    assert means[1] is None
