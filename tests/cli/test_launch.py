"""Training on several processes from the command line: real processes, and what is refused before there are any."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from pyro_vae.cli import main

OWN_ENCODER = """
import os, signal
from pyro_vae import encoders

class Encoder(encoders.Normal):
    calls = 0

    def forward(self, x):
        type(self).calls += self.training
        if self.calls > 8 and os.environ["LOCAL_RANK"] == "1":  # in its second epoch
            {action}
        return super().forward(x)
"""
SMALL = ["train", "--data=x.npy", "--latent-dim=2", "--hidden=8", "--batch-size=10", "--epochs=2", "--out=run"]


@pytest.fixture(autouse=True)
def _in_a_folder_with_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).random((101, 6), np.float32))


def run(*command, extra=()):
    return subprocess.run([sys.executable, *command, *SMALL, *extra], capture_output=True, text=True, timeout=120)


def errors(found):
    return re.findall(r"^pyro-vae: error: .*$", found.stderr, re.MULTILINE)


def assert_one_run(found, folder):
    assert found.returncode == 0, found.stderr
    for once in ("training:", "engine:", "report.html shows"):
        assert found.stdout.count(once) == 1
    assert "2 processes" in found.stdout
    assert epochs_of(folder) == ["epoch", "0", "1", "2"]
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "model.safetensors", "report.html", "curves.png"} <= names
    assert not [name for name in names if name.endswith(".partial")]


def epochs_of(folder):
    return [row.split(",")[0] for row in (folder / "metrics.csv").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A command that trains two processes for two epochs of 304 steps, the folder of its data and run, and its end."""
    folder = tmp_path_factory.mktemp("whole")
    np.save(folder / "x.npy", np.random.default_rng(0).random((760, 6), np.float32))
    command = [sys.executable, "-m", "pyro_vae", *SMALL, "--batch-size=1", "--devices=2"]
    return command, folder, subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_processes_write_one_run(whole):
    _, folder, found = whole
    assert_one_run(found, folder / "run")


@pytest.mark.slow
def test_two_processes_of_torchrun_write_one_run(tmp_path):
    found = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pyro_vae")
    assert_one_run(found, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", r"process of this training has ended|process 1 .* ended by SIGKILL"),
        ("raise OSError('the disk is full')", "rank 1: the disk is full"),
    ],
    ids=["killed", "failed"],
)
def test_a_lost_rank_ends_the_run_and_the_last_weights_stand(tmp_path, monkeypatch, action, words):
    (tmp_path / "own.py").write_text(OWN_ENCODER.format(action=action))
    found = run("-m", "pyro_vae", extra=["--devices=2", "--encoder=own.Encoder", "--engine=eager"])
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    assert re.search(words, errors(found)[0])
    assert found.stderr.count("continue with: pyro-vae train --resume run") == 1
    assert epochs_of(tmp_path / "run") == ["epoch", "0", "1"]
    monkeypatch.delitem(sys.modules, "own", raising=False)
    assert main(["sample", "run", "--n=3", "--allow=own"]) == 0


@pytest.mark.slow
def test_two_processes_go_on_to_the_last_bit(tmp_path, whole):
    command, other, _ = whole
    shutil.copy(other / "x.npy", "x.npy")
    found = subprocess.run([*command, "--epochs=1"], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 1", "epochs: 2"))
    assert_goes_on(tmp_path, whole)


def assert_goes_on(folder, whole):
    """Resumed, it ends with the weights and epochs of the run that was never stopped."""
    resume = [sys.executable, "-m", "pyro_vae", "train", "--resume=run"]
    found = subprocess.run(resume, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    _, other, _ = whole
    weights = [(each / "run" / "model.safetensors").read_bytes() for each in (folder, other)]
    assert weights[0] == weights[1]
    assert epochs_of(folder / "run") == epochs_of(other / "run") == ["epoch", "0", "1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_two_processes_within_an_epoch_and_both_go_on(number, code, tmp_path, whole):
    command, other, _ = whole
    shutil.copy(other / "x.npy", "x.npy")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    out, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert said.count("pyro-vae: ") == 1
    assert re.search(r"pyro-vae: stopped in epoch \d, before step [1-9]\d*00; .* pyro-vae train --resume run\n$", said)
    assert "Traceback" not in said + out
    assert "leaked" not in said
    assert_goes_on(tmp_path, whole)


@pytest.mark.slow
def test_what_all_ranks_refuse_is_said_once():
    found = run("-m", "pyro_vae", extra=["--devices=2", "--encoder=Norml"])
    assert found.returncode == 2
    assert len(errors(found)) == 1
    assert "did you mean 'Normal'?" in errors(found)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [["-m", "pyro_vae"], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]]
)
def test_an_error_of_all_ranks_in_the_first_step_is_said_once(tmp_path, how):
    (tmp_path / "own.py").write_text(
        "from pyro_vae import encoders\n\nclass Encoder(encoders.Normal):\n    def forward(self, x):\n"
        "        if self.training:\n            raise ValueError('no training today')\n"
        "        return super().forward(x)\n"
    )
    command, devices = ([*how, "-m", "pyro_vae"], []) if len(how) > 2 else (how, ["--devices=2"])
    found = run(*command, extra=[*devices, "--encoder=own.Encoder"])
    assert found.returncode != 0
    assert [line.partition(": error: ")[2][:17] for line in errors(found)] == ["no training today"]


TORCHRUN = {"TORCHELASTIC_RUN_ID": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("flags", "variables", "words"),
    [
        (["--devices=0"], {}, "--devices must be at least 1, not 0"),
        (["--devices=-1"], {}, "--devices must be at least 1, not -1"),
        (["--devices=100000"], {}, r"--devices 100000 is more than this machine has: \d+ of cpu"),
        (["--devices=2", "--device=mps"], {}, "several processes need --device cpu or cuda, not 'mps'"),
        (["--devices=2", "--device=cuda:1"], {}, "several processes need --device cpu or cuda, not 'cuda:1'"),
        (["--devices=3"], TORCHRUN, "--devices 3 contradicts torchrun or srun, which started 2 here"),
        (["--devices=3"], {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "1"}, "which started 4 here"),
        ([], TORCHRUN | {"LOCAL_RANK": "2"}, "torchrun's variables contradict each other: .*LOCAL_RANK 2"),
        ([], TORCHRUN | {"LOCAL_WORLD_SIZE": "3"}, "contradict each other: .*start the same number of proc"),
        ([], TORCHRUN | {"RANK": "first"}, "torchrun sets .* to numbers, but here: .*'first'"),
    ],
)
def test_processes_that_cannot_be_are_refused_in_a_line(capsys, monkeypatch, flags, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main([*SMALL, *flags]) == 2
    found = capsys.readouterr()
    assert re.fullmatch(f"pyro-vae: error: .*{words}.*\n", found.err)
    assert not found.out


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    assert main([*SMALL, "--devices=2"]) == 2
    assert capsys.readouterr().err == (
        "pyro-vae: error: training on several processes needs Lightning Fabric:"
        " python -m pip install 'pyro-vae[distributed]'\n"
    )


def test_one_process_that_torchrun_has_started_needs_no_fabric(capsys, monkeypatch):
    for name, value in (
        TORCHRUN | {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    ).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    assert main([*SMALL, "--devices=1"]) == 0
    assert "processes" not in capsys.readouterr().out
