"""What happens to runs from outside: kills, signals, a second process, a folder that goes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import faults
from pyro_vae.cli import main
from pyro_vae.cli.launch import _handling_signals
from pyro_vae.runs import recorder
from pyro_vae.runs.config import PARTS, Config
from pyro_vae.runs.run import Run
from pyro_vae.runtime.checkpoints import Checkpoints, Stopped

pytestmark = pytest.mark.usefixtures("blank_pictures")
FLAGS = ["--hidden=8", "--latent-dim=2", "--batch-size=4", "--latent-map=first", "--data=digits"]
FAST = [*FLAGS, "--batch-size=64"]


def start(*flags):
    """Start the command line in a process of its own."""
    command = [sys.executable, "-m", "pyro_vae", "train", *flags]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def hangup():
    """What this process, and those that it starts, do at the end of their terminal."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


def test_the_end_of_a_terminal_stops_a_training_by_its_checkpoint_but_not_under_nohup(hangup):
    """The shell and the system may both tell of it; a second signal of another kind leaves at once."""
    received = []
    for before in (signal.SIG_DFL, signal.SIG_IGN):
        hangup(before)
        with _handling_signals(lambda number, _: received.append(number)):
            for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
                os.kill(os.getpid(), number)
        assert signal.getsignal(signal.SIGHUP) == before
    assert received == [signal.SIGHUP, signal.SIGTERM, signal.SIGTERM]


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_five_killed_runs_end_as_the_one_that_was_not(seed):
    rows = faults.survive(5, seed=seed, jobs=2)
    assert all(row["survived"] for row in rows), rows
    assert {row["where"] for row in rows} != {"after its end"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(number, code, tmp_path, hangup):
    hangup(signal.SIG_DFL)
    folder = tmp_path / "a run"
    process = start(*FLAGS, "--epochs=500", f"--out={folder}")
    wait_for(folder / "metrics.csv", process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"continue with: pyro-vae train --resume '{folder}'" in said.splitlines()[-1]  # below the progress
    assert "Traceback" not in said
    assert (folder / "checkpoints" / "last.safetensors").exists()
    assert (folder / "model.safetensors").exists()
    assert main(["sample", str(folder), "--n=4"]) == 0


@pytest.mark.slow
def test_a_second_process_on_the_same_folder_is_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    process = start(*FLAGS, "--epochs=500", f"--out={folder}")
    try:
        wait_for(folder / "metrics.csv", process)
        assert main(["train", "--resume", str(folder)]) == 2
        assert f"another process is training in {folder}" in capsys.readouterr().err
        assert main(["train", *FLAGS, f"--out={folder}"]) == 2
        assert "already holds a run" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()
    text = (folder / "config.yaml").read_text().replace("epochs: 500", "epochs: 1")
    shutil.rmtree(folder / "checkpoints")
    (folder / "config.yaml").write_text(text)
    assert main(["train", "--resume", str(folder)]) == 0  # the lock has died with its owner
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_a_folder_that_goes_ends_the_run_in_one_line(tmp_path):
    folder = tmp_path / "run"
    process = start(*FLAGS, "--epochs=500", "--checkpoint-minutes=0.001", f"--out={folder}")
    wait_for(folder / "checkpoints" / "last.safetensors", process)
    folder.rename(tmp_path / "gone")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.count("pyro-vae: error:") == 1
    assert "No such file or directory" in said
    assert "Traceback" not in said
    assert not folder.exists()
    assert main(["sample", str(tmp_path / "gone"), "--n=4"]) == 0


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    """A limit of the system on the size of files stands for it: the weights are larger."""
    folder = tmp_path / "run"
    assert main(["train", *FAST, "--epochs=1", f"--out={folder}"]) == 0
    before = (folder / "checkpoints" / "last.safetensors").read_bytes()
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 1", "epochs: 3"))
    script = (
        "import resource, signal, sys\n"
        "from pyro_vae.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "sys.exit(main(['train', '--resume', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert "pyro-vae train --resume" in done.stderr
    assert (folder / "checkpoints" / "last.safetensors").read_bytes() == before
    assert main(["train", "--resume", str(folder)]) == 0


@pytest.mark.parametrize("flag", ["--lr=3", "--preset=practicum", "--out=elsewhere", "--decoder.grey=true"])
def test_flags_beside_resume_are_refused(flag, tmp_path, capsys):
    assert main(["train", "--resume", str(tmp_path), flag]) == 2
    assert f"leave out {flag.partition('=')[0]}" in capsys.readouterr().err


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path, capsys):
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "is no run: it holds no config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "words"),
    [("--hidden=9", "hidden [9]"), ("--seed=1", "seed 1"), ("--lr=0.01", "lr 0.01")],
)
def test_files_swapped_between_runs_are_refused(flag, words, tmp_path, capsys):
    for name, extra in (("one", []), ("other", [flag])):
        assert main(["train", *FAST, *extra, "--epochs=1", f"--out={tmp_path / name}"]) == 0
    for file, command in (
        ("checkpoints/last.safetensors", ["train", "--resume"]),
        ("checkpoints/best.safetensors", ["sample", "--best"]),
        ("model.safetensors", ["sample"]),
    ):
        own = (tmp_path / "one" / file).read_bytes()
        shutil.copy(tmp_path / "other" / file, tmp_path / "one" / file)
        assert main([*command, str(tmp_path / "one")]) == 2
        assert f"{file} is of another run: it has {words}, this run has " in capsys.readouterr().err
        (tmp_path / "one" / file).write_bytes(own)
        assert main([*command, str(tmp_path / "one")]) == 0


def test_files_swapped_within_a_run_are_refused(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", *FAST, "--epochs=1", f"--out={folder}"]) == 0
    last, best = (folder / "checkpoints" / f"{name}.safetensors" for name in ("last", "best"))
    contents = last.read_bytes(), best.read_bytes()
    last.write_bytes(contents[1])
    best.write_bytes(contents[0])
    assert main(["train", "--resume", str(folder)]) == 2
    assert f"{last} holds no checkpoint of a training" in capsys.readouterr().err
    assert main(["sample", "--best", str(folder)]) == 2
    assert f"{best} holds no best weights of a run" in capsys.readouterr().err
    shutil.copy(folder / "model.safetensors", last)
    assert main(["train", "--resume", str(folder)]) == 2
    assert f"{last} holds no checkpoint of a training" in capsys.readouterr().err


def test_a_run_that_moves_goes_on_with_other_flags_that_are_free(tmp_path):
    folder = tmp_path / "run"
    assert main(["train", *FAST, "--epochs=1", f"--out={folder}"]) == 0
    config = folder / "config.yaml"
    free = {"epochs: 1": "epochs: 2", "engine: auto": "engine: eager", "latent_map: first": "latent_map: pca"}
    for before, after in free.items():
        assert before in config.read_text()
        config.write_text(config.read_text().replace(before, after))
    folder = folder.rename(tmp_path / "moved")
    assert main(["train", "--resume", str(folder)]) == 0
    assert len((folder / "metrics.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """By years, back and forth, at every look at it."""
    looks = []

    def jumping():
        looks.append(0)
        return 1e9 + 1.5e8 * (-1) ** len(looks)

    def train(name):
        folder = tmp_path / name
        often = ["--batch-size=16", "--epochs=2", "--checkpoint-minutes=0.001"]
        assert main(["train", *FLAGS, *often, f"--out={folder}"]) == 0
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("epochs: 2", "epochs: 3"))
        assert main(["train", "--resume", str(folder)]) == 0
        rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
        assert all(0 <= float(row[-1]) < 600 for row in rows)
        return (folder / "model.safetensors").read_bytes()

    steady = train("steady")
    monkeypatch.setattr(time, "time", jumping)
    assert train("jumping") == steady
    keeper = Checkpoints(tmp_path)
    keeper.write({}, {}, (1.0, {}))
    assert not any(keeper.due(at_end_of_epoch=False) for _ in range(9))


@pytest.mark.slow
def test_the_best_weights_of_a_run(tmp_path, capsys):
    folder = tmp_path / "run"
    flags = [*FLAGS, "--lr=0.05", "--epochs=4", f"--out={folder}"]
    assert main(["train", *flags]) == 0
    bounds = []
    for extra in ([], ["--best"]):
        capsys.readouterr()
        assert main(["evaluate", str(folder), "--samples=2", *extra]) == 0
        bounds.append(float(capsys.readouterr().out.splitlines()[1].split()[-1]))
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    losses = [float(row[4]) for row in rows]
    assert bounds[0] == pytest.approx(-losses[-1], abs=0.5)
    assert bounds[1] == pytest.approx(-min(losses), abs=0.5)


@pytest.fixture
def received(tmp_path):
    """A run in which each name that might be written is a link to a file outside, or to none that exists."""
    folder, outside = tmp_path / "run", tmp_path / "outside"
    assert main(["train", *FLAGS, "--epochs=0", f"--out={folder}"]) == 0
    (outside / "empty").mkdir(parents=True)
    (outside / "mine").write_text("mine")
    names = [path.name for path in folder.iterdir() if path.suffix in (".png", ".html", ".csv")]
    for number, name in enumerate([*names, "sample-seed0.png", "sample-seed1.png", "reconstruct-mean.png"]):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(outside / ("mine" if number % 2 else "missing"))
        (folder / f".{name}.partial").symlink_to(outside / ("missing" if number % 2 else "mine"))
    yield folder
    assert (outside / "mine").read_text() == "mine"
    assert sorted(path.name for path in outside.iterdir()) == ["empty", "mine"]
    assert not any((outside / "empty").iterdir())


def test_links_in_a_run_lead_no_write_outside_it(received):
    commands = (
        ["train", "--resume", str(received)],
        ["sample", str(received), "--n=4"],
        ["sample", str(received), "--n=4", "--seed=1"],
        ["reconstruct", str(received), "--n=2"],
    )
    for command in commands:
        assert main(command) == 0
    assert [path.name for path in received.iterdir() if path.is_symlink() and path.suffix != ".partial"] == []


@pytest.mark.parametrize("name", [".lock", "checkpoints"])
def test_a_run_whose_lock_or_folder_is_a_link_is_refused(name, received, capsys):
    path, outside = received / name, received.parent / "outside" / ("mine" if name == ".lock" else "empty")
    path.rename(received / "before")
    path.symlink_to(outside)
    capsys.readouterr()
    assert main(["train", "--resume", str(received)]) == 2
    assert f"{path} is a link to {outside}, and is not followed: remove it" in capsys.readouterr().err
    assert main(["sample", str(received), "--best"]) == 2
    assert ("is a link to" in capsys.readouterr().err) == (name == "checkpoints")


@pytest.mark.parametrize("flag", ["--json", "--out"])
def test_a_result_is_not_written_to_a_link_or_a_device(flag, received, capsys):
    command = ["evaluate", str(received), "--samples=2"] if flag == "--json" else ["sample", str(received)]
    (received / "found").symlink_to(received.parent / "outside" / "mine")
    capsys.readouterr()
    assert main([*command, f"{flag}={received / 'found'}"]) == 2
    assert "found is a link to" in capsys.readouterr().err
    assert main([*command, f"{flag}=/dev/null"]) == 2
    assert f"{flag} /dev/null cannot be written: it is no ordinary file" in capsys.readouterr().err


SAYS = """
import sys
from pyro_vae.cli.launch import lasting_streams, say
from pyro_vae.runs.config import Config

with lasting_streams() as lost, open(sys.argv[1], "w+") as file:
    for _ in range(20_000):  # more than pipes and buffers hold
        say("out")
        say("err", error=True)
    file.write("data")
    sys.exit(2 if lost() else 0)
"""
CLOSED = [">&-", "2>&-", ">&- 2>&- <&-", "| head -1", "2>&1 | head -1", "2> >(head -1)", "</dev/null 2>/dev/full"]


@pytest.mark.parametrize(("redirected", "code"), [*((how, 0) for how in CLOSED), (">/dev/full", 2)])
def test_what_nobody_reads_ends_no_process_and_enters_no_file(redirected, code, tmp_path):
    (tmp_path / "says.py").write_text(SAYS)
    line = f"set -o pipefail; '{sys.executable}' says.py file {redirected}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "file").read_text() == "data"
    assert set(done.stderr.splitlines()[:-1]) <= {"err"}
    assert not code or "standard output could not be written" in done.stderr.splitlines()[-1]
    assert not any(word in done.stderr for word in ("Traceback", "Exception", "Broken"))


@pytest.mark.parametrize("command", ["--help", "train --nope", "train --epochs=x"])
@pytest.mark.parametrize("redirected", [">&-", "2>&-", "2>&1 | head -c 1", "2>/dev/full"])
def test_commands_that_nobody_listens_to_end_as_ever(redirected, command):
    line = f"'{sys.executable}' -m pyro_vae {command} {redirected}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (0 if command == "--help" else 2)
    assert not any(word in done.stdout + done.stderr for word in ("Traceback", "Exception", "Broken"))


@pytest.mark.parametrize("command", ["--help", "train --help", "--version"])
def test_a_help_that_is_lost_is_an_error(command):
    line = f"'{sys.executable}' -m pyro_vae {command} >/dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "pyro-vae: error: the standard output could not be written completely\n"


@pytest.mark.slow
@pytest.mark.parametrize("redirected", ["2>&1 | head -1", ">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_training_goes_on_to_its_end_where_nobody_listens(redirected, tmp_path):
    line = f"'{sys.executable}' -m pyro_vae train --epochs=1 --out=run {' '.join(FAST)} {redirected}"
    done = subprocess.run(["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0
    assert (tmp_path / "run" / "report.html").read_text().endswith("</html>")
    assert main(["sample", str(tmp_path / "run"), "--n=4"]) == 0
    assert [row.split(",")[0] for row in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]] == ["0", "1"]


INHERITS = """
import subprocess, sys
from pyro_vae.cli.launch import lasting_streams

with lasting_streams():
    sys.exit(subprocess.call([sys.executable, "-c", "import os; os.fstat(1), os.fstat(2)"]))
"""


def test_processes_that_are_started_inherit_what_was_opened_for_closed_descriptors(tmp_path):
    (tmp_path / "inherits.py").write_text(INHERITS)
    subprocess.run(f"'{sys.executable}' {tmp_path}/inherits.py >&- 2>&-", shell=True, timeout=60, check=True)  # noqa: S602


NASTY = "x\x1b[31m\x9b2J\u202e\x07 y.npy"


def test_control_characters_in_names_are_printed_escaped(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(NASTY, np.zeros((20, 3), np.uint8))
    flags = ["--hidden=4", "--latent-dim=2", "--batch-size=7", "--epochs=1"]
    said = []
    for argv, code in (
        (["train", *flags, f"--data={NASTY}", f"--out=run{NASTY}"], 0),
        (["train", *flags, f"--data={NASTY}", f"--out=run{NASTY}"], 2),
        (["train", *flags, f"--data=no{NASTY}"], 2),
        (["train", *flags, f"--{NASTY}=1"], 2),
        (["train", *flags, f"--prior={NASTY}"], 2),
        (["sample", f"run{NASTY}", "--n=4"], 0),
        (["sample", f"no{NASTY}"], 2),
        (["evaluate", f"run{NASTY}", "--samples=2"], 0),
        (["reconstruct", f"run{NASTY}", "--n=2"], 0),
    ):
        assert main(argv) == code
        said += capsys.readouterr()
    assert "x\\x1b[31m\\x9b2J\\u202e\\x07 y.npy" in "".join(said)
    assert all(each.isprintable() or each in "\n\r" for each in "".join(said))


@pytest.fixture
def small(tmp_path):
    """The config of a run of 3 steps to an epoch."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((20, 3), np.float32))
    own = {kind: {} for kind in PARTS}
    return Config(
        str(tmp_path / "x.npy"), hidden=[4], latent_dim=2, batch_size=7, epochs=4, engine="eager", options=own
    )


def train(config, folder, stop_after=None, **how):
    """Train a run, or until so many steps have been done; return its rows but the seconds and its weights."""
    run = Run(config, folder, **how)
    if stop_after is None:
        run.train()
    else:
        with pytest.raises(Stopped):
            run.train(on_step=lambda step, _: run.checkpoints.stop() if step + 1 == stop_after else None)
    rows = [line.rpartition(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()]
    return rows, (folder / "model.safetensors").read_bytes()


@pytest.fixture
def drawn(monkeypatch):
    """The epochs of each latent map; a single empty picture is made in the place of all."""
    maps = []

    def draw(*given):
        maps.append([int(name.split()[1]) for name in given[3]])
        return {"latent_map": Figure((1, 1))}, {}

    monkeypatch.setattr(recorder, "draw", draw)
    return maps


@pytest.mark.usefixtures("drawn")
def test_nothing_is_written_to_another_run_that_comes_into_the_place_of_the_first(small, tmp_path, monkeypatch):
    """As after rm -r and a new training of the same name, while the first one goes on."""
    theirs, ours, record = tmp_path / "theirs", tmp_path / "ours", recorder.Recorder.record
    train(small, theirs)

    def replacing(own, row):
        if row["epoch"] == 1:
            shutil.rmtree(ours)
            shutil.copytree(theirs, ours)
        record(own, row)

    monkeypatch.setattr(recorder.Recorder, "record", replacing)
    with pytest.raises(ValueError, match=f"^{ours} is not the folder any more in which this training began"):
        train(replace(small, seed=7), ours)
    names = [path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()]
    assert len(names) > 5
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)


@pytest.mark.parametrize("epochs", range(10))
def test_a_finished_run_goes_on_with_any_number_of_epochs(small, tmp_path, epochs, drawn):
    train(small, tmp_path / "run")
    resumed = train(replace(small, epochs=epochs), tmp_path / "run", resume=True)
    last = max(4, epochs)
    assert drawn == [[0, 2, 4], [0, drawn[1][1], last]]
    assert abs(drawn[1][1] - last // 2) <= 1
    assert resumed == train(replace(small, epochs=last), tmp_path / "whole")


@pytest.mark.usefixtures("drawn")
def test_epochs_below_0_are_refused_by_a_run_that_goes_on(small, tmp_path):
    train(replace(small, epochs=1), tmp_path / "run")
    with pytest.raises(ValueError, match="epochs must be at least 0, not -1"):
        train(replace(small, epochs=-1), tmp_path / "run", resume=True)


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(("stopped", "epochs", "in_the_end"), [(8, 1, 3), (8, 0, 3), (6, 1, 2), (3, 9, 9)])
def test_a_stopped_run_goes_on_with_fewer_or_more_epochs(small, tmp_path, stopped, epochs, in_the_end):
    """An epoch that was begun is finished: the weights are those of the last row."""
    train(small, tmp_path / "run", stopped)
    resumed = train(replace(small, epochs=epochs), tmp_path / "run", resume=True)
    assert resumed == train(replace(small, epochs=in_the_end), tmp_path / "whole")
    assert f"{in_the_end} epochs" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.usefixtures("drawn")
def test_files_that_are_missing_damaged_or_stale_are_made_anew(small, tmp_path):
    folder = tmp_path / "run"
    train(replace(small, epochs=2), folder)
    stale = (folder / "model.safetensors").read_bytes()
    train(small, folder, resume=True)
    made = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".png", ".safetensors")}
    middle = folder / "checkpoints" / "posteriors-2.safetensors"
    for name in ("checkpoints/posteriors-0.safetensors", "checkpoints/posteriors-4.safetensors", "latent_map.png"):
        (folder / name).unlink()
    (folder / "report.html").unlink()
    (folder / "model.safetensors").write_bytes(stale)  # as after a kill between the last checkpoint and the weights
    train(small, folder, resume=True)
    assert {path: path.read_bytes() for path in made} == made
    shutil.copy(middle, folder / "checkpoints" / "posteriors-4.safetensors")  # of another epoch
    (folder / "checkpoints" / "posteriors-0.safetensors").write_bytes(b"damaged")
    train(small, folder, resume=True)
    assert {path: path.read_bytes() for path in made} == made
    assert "</html>" in (folder / "report.html").read_text()
    middle.unlink()
    train(small, folder, resume=True)  # without what nothing could make anew


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out=a\0b"], r"no folder can be named 'a\x00b'; give --out another one"),
        (["--out=link"], "link is a link to nowhere, and is not followed: remove it"),
        (["--out=x.npy/y"], "x.npy/y cannot be written: x.npy is not a folder that you can write to"),
        (["--config=nested.yaml"], "prior takes one value, or a list of whole numbers, not ['a']"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_before_any_work(flags, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((20, 3), np.float32))
    (tmp_path / "nested.yaml").write_text("prior: [a]\n")
    (tmp_path / "link").symlink_to("nowhere")
    assert main(["train", "--data=x.npy", "--batch-size=7", *flags]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert not said.out
    assert len(said.err.splitlines()) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that says it can be written, and cannot")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["train", "--data=x.npy", "--batch-size=7", "--out=/proc/run"], "/proc is not a folder that you can write to"),
        (["sample", "run", "--out=/proc/x.png"], "--out /proc/x.png cannot be written: its folder takes no files"),
        (["evaluate", "run", "--json=/proc/x.json"], "--json /proc/x.json cannot be written: its folder takes no"),
    ],
)
def test_a_folder_that_takes_no_files_is_refused_before_any_work(command, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((20, 3), np.float32))
    assert main(command) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert not said.out
