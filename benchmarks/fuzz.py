"""Bad input by the hundreds: every command, file and function is given what is wrong, and must say so in its own words.

python -m benchmarks.fuzz [--cases 3300] [--seed 0] [--json FILE]

A case is a few lines of Python that write files into an empty folder, and one call. Most of its values are valid, so
that invalid ones reach code deep inside. A command must end within 10 seconds of processor time, and within a minute
even if other programs are running. Its exit code must be 0, or else 2 with one line on standard error. With 2 the
folder must be as before, unless a training met numbers that are not finite. A function must return, or raise a
ValueError, TypeError or (`fit`) FloatingPointError. A call that takes more than 4 GiB may say that it is out of memory.
Internal messages of Python and torch, which name neither a flag nor a fix, count as failures.
"""

import argparse
import contextlib
import functools
import inspect
import io
import json
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from benchmarks import machine
from pyro_vae import VAE, cli, data, decoders, encoders, evaluate, fit, networks, objectives, priors
from pyro_vae.cli import entry
from pyro_vae.diagnostics.evaluation import log_likelihood
from pyro_vae.runs import parts as config
from pyro_vae.runtime.checkpoints import save_tensors

SECONDS = 10  # of processor time; a call that takes more counts as a hang
PATIENCE = 60  # seconds on the clock, of which other programs may take a part
MEMORY = 2**32  # bytes that a call may take in addition to what the process has
VERDICTS = ("accepted", "refused", "traceback", "hang", "half-written", "not in its own words")
INSIDES = re.compile(
    r"--debug shows where|Traceback|not supported between|has no attribute|object is not|objects? cannot be|operand|"
    r"argument '|\(position \d|positional argument|keyword argument|can't convert|cannot convert|could not convert|"
    r"aten::|mat1|size of tensor|must match the|expected scalar|invalid for input|unhashable type|must be real number|"
    r"indices must be|unpack|list index|pickle|object has|a leaf|does not require grad|not implemented for"
)


PASSED_ON = re.compile("cannot be (had|read|imported)|is damaged|does not fit|fails on|no device|when it is called")


class Case(NamedTuple):
    """A test case: its kind, lines that write files, and the call, the last two as Python text."""

    kind: str
    lines: tuple[str, ...]
    call: str

    def __str__(self):
        return "; ".join([*self.lines, self.call])


class Outcome(NamedTuple):
    """The outcome of a case: one of `VERDICTS`, and the message."""

    verdict: str
    words: str

    @property
    def failed(self):
        return self.verdict not in ("accepted", "refused")


# Functions that a case may call, in addition to the package


def write(path, text):
    """Write text or bytes to a file, and make its folders."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))


def save(path, array):
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=True)


def savez(path, *arrays, **named):
    with open(path, "wb") as file:
        np.savez(file, *arrays, **named)


def cut(path, end):
    """Truncate a file, if it exists."""
    if Path(path).exists():
        write(path, Path(path).read_bytes()[:end])


def flip(path, place):
    """Invert all bits of one byte of a file, if it exists."""
    if Path(path).exists():
        content = bytearray(Path(path).read_bytes())
        content[place % len(content)] ^= 255
        write(path, bytes(content))


def replace(path, old, new):
    """Replace a text in a file."""
    write(path, Path(path).read_text().replace(old, new))


def append(path, line):
    """Add a line to a file."""
    write(path, Path(path).read_text() + line + "\n")


def images(folder, sizes, mode="L"):
    """Write one image of each size into a folder."""
    from PIL import Image

    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(sizes):
        Image.new(mode, size, 1).save(Path(folder) / f"{number}.{'tif' if mode in 'FI' else 'png'}")


def idx(array):
    """Return an array of bytes in the format of the MNIST files."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist(root, train=5, test=3, labels=0):
    """Write MNIST files as torchvision stores them, with ``labels`` more labels than images."""
    for part, count in (("train", train), ("t10k", test)):
        write(f"{root}/MNIST/raw/{part}-images-idx3-ubyte", idx(np.zeros((count, 28, 28), np.uint8)))
        write(f"{root}/MNIST/raw/{part}-labels-idx1-ubyte", idx(np.zeros(count + labels, np.uint8)))


@functools.cache
def trained():
    """Return a folder with one small trained run and its data."""
    folder = tempfile.TemporaryDirectory()
    with contextlib.chdir(folder.name), contextlib.redirect_stdout(io.StringIO()):
        save("rows.npy", np.random.default_rng(0).random((10, 4)))
        with contextlib.redirect_stderr(io.StringIO()):
            cli.main(["train", "--data=rows.npy", *SMALL, "--out=run"])
    return folder


def run():
    """Copy that run and its data into the current folder."""
    shutil.copytree(trained().name, ".", dirs_exist_ok=True)


def names():
    """Return the names that the text of a case may use."""
    torch.manual_seed(0)
    small = functools.partial(networks.MLP, hidden=(2,))
    vae = VAE(priors.Normal(2), encoders.Normal((4,), 2, small), decoders.Normal(2, (4,), small))
    functions = (write, save, savez, cut, flip, replace, append, images, mnist, run, cli.main, functools.partial)
    ours = (VAE, evaluate, fit, log_likelihood, save_tensors, Path, TensorDataset)
    modules = {"np": np, "torch": torch, "os": os, "shutil": shutil, "data": data, "networks": networks}
    parts = {"priors": priors, "encoders": encoders, "decoders": decoders, "objectives": objectives}
    values = {"nan": float("nan"), "inf": float("inf"), "rng": np.random.default_rng(0), "X": torch.rand(6, 4)}
    named = {function.__name__: function for function in (*functions, *ours)}
    return named | modules | parts | values | {"small": small, "vae": vae}


# Running a case


def own(words):
    """Whether an error is in this package's own words, or says that it passes on another error's reason."""
    return not INSIDES.search(words) or (PASSED_ON.search(words) and "--debug" not in words)


class Hang(BaseException):
    """A call has not ended in time."""


@contextlib.contextmanager
def within_limits():
    """Limit the time and the memory of the code in this context."""

    def stop(*_):
        raise Hang

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def tree():
    """Return the paths of everything in the current folder, with the content of files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def outcome(case):
    """Run a case in an empty folder, and return its outcome."""
    trained()
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=how) for how in ("strict", "backslashreplace")]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scope = names()
        for line in case.lines:
            with contextlib.suppress(OSError):  # if another line has made a folder of that name
                exec(line, scope)  # noqa: S102 (a case is text, so that it can be repeated)
        before, error, code = tree(), None, 0
        warnings.simplefilter("default")
        start = time.process_time()
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            try:
                with within_limits():
                    code = eval(case.call, scope)  # noqa: S307 (as above)
            except Hang as hang:
                error = hang
            except SystemExit as exit_:
                code = exit_.code or 0
            except Exception as raised:
                error = raised
        if isinstance(error, Hang) or time.process_time() - start > SECONDS:
            return Outcome("hang", "")
        streams[1].seek(0)
        if case.call.startswith("main("):
            return of_command(code, error, streams[1].read(), before, tree())
        return of_function(case, error)


def of_function(case, error):
    """Judge a function by the error that it has raised, if any."""
    words = f"{type(error).__name__}: {error}"
    if error is None:
        return Outcome("accepted", "")
    if entry._is_out_of_memory(error):
        return Outcome("refused", words)
    if not isinstance(error, ValueError | TypeError) and not (
        isinstance(error, FloatingPointError) and case.call.startswith("fit(")
    ):
        return Outcome("traceback", words)
    return Outcome("refused" if own(str(error)) else "not in its own words", words)


def of_command(code, error, said, before, after):
    """Judge a command by how it ended, what it wrote to standard error, and how it changed the folder."""
    if error is not None or code not in (0, 2) or "Traceback" in said:
        return Outcome("traceback", f"exit code {code}, {type(error).__name__}: {error}\n{said}")
    if code == 0:
        runs = [Path(path).parent for path in set(after) - set(before) if Path(path).name == "metrics.csv"]
        whole = all(str(run / "report.html") in after for run in runs)
        return Outcome("accepted" if whole else "half-written", said)
    lines = [line for line in re.split(r"[\r\n]+", said) if line.strip() and "step/s" not in line]
    if len(lines) != 1 or not re.match(r"pyro-vae( \w+)?(: .+\.yaml)?: error: .", lines[0]) or not own(lines[0]):
        return Outcome("not in its own words", said)
    if before != after and not ("is not finite" in said and any(path.endswith("config.yaml") for path in after)):
        changed = sorted(path for path in {*before, *after} if before.get(path, ...) != after.get(path, ...))
        return Outcome("half-written", f"{said}\nchanged: {changed}")
    return Outcome("refused", said)


# Values, most of them valid


def each(text):
    """Return the words of a text, which are separated by bars."""
    return [word.strip() for word in text.split("|")]


def mostly(right, wrong):
    """Draw one of the valid values five times in six, else one of the invalid ones."""
    return st.integers(0, 5).flatmap(lambda number: st.sampled_from(wrong if number == 5 else right))


def some_of(values, most):
    """Draw the values of a few entries of a dictionary of strategies."""
    chosen = st.lists(st.sampled_from(sorted(values)), max_size=most, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: values[name] for name in names}))


# Files

JUNK = [
    *each("|nan|inf|-inf|-1|0|0.5|1e400|x|ü ö|None|true|[1, 2]|{a: 1}|--|-|%s|2019-99-99|*a"),
    *(" ", "\udcff", "a\nb", "[" * 3000, "9" * 400, "!!python/object/apply:os.mkdir [sprung]"),
]
HUGE = ["99999999999", str(2**62), str(10**30)]
PATHS = ["out", "out", "with space/ünï"]
BAD_PATHS = [*each("|.|full|full/mine.txt/run|/dev/null/run|no/such/x.png|run"), "a" * 300, "\udcff", "a\nb"]
CONFIGS = [
    *each("null|- 1|a: [|1: 2|&a [*a]|&a {a: *a}|a: !!binary x|help: true|out: x|resume: run|config: c.yaml|allow: os"),
    *each("epochs: 2019-99-99|epochs: 2019-01-01|epochs: {a: 1}|epochs: '1 --lr=3'|epochs: !!python/name:os.system"),
    *each("hidden: [[1]]|hidden: []|prior: os.path.join|data: null|data: [1, 2]|debug: true|beta: .nan|seed: 1_000"),
    *each("'epochs=0': 1|-- : 1|decoder.scale: 1|prior.: 1|epochs: !!python/object/apply:os.mkdir [sprung]"),
    *("", "\udcff", "[" * 5000, "? [1, 2]\n: 3", "epochs: 1\nepochs: 2", "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]"),
]
SHAPES = each("6, 4|6, 4|30, 4|6, 1, 4, 4|6, 3, 4, 4|7, 5, 2|2, 4")
BAD_SHAPES = each("|6,|6, 1|0, 4|1, 4|6, 0|6, 2, 0|2, 1000000|4, 1, 1, 1, 1, 1, 2|6, 2, 4, 4")


@st.composite
def arrays(draw):
    """Python text that makes an array."""
    shape = f"({draw(mostly(SHAPES, BAD_SHAPES))})"
    if draw(mostly([False], [True])):
        return f"np.zeros({shape}, {draw(st.sampled_from(each('c8|U3|S2|O|M8[s]|m8[s]|V8|u8|g|i1')))!r})"
    constants = [f"np.full({shape}, {value})" for value in each("nan|inf|-inf|255.0|-1.0|1e300|1e-320|0.5")]
    values = draw(mostly([f"rng.random({shape})", f"rng.integers(0, 2, {shape})"], constants))
    return f"np.asarray({values}).astype({draw(st.sampled_from(each('f4|f8|u1|i8|?|f2|>f4')))!r})"


@st.composite
def data_sets(draw):
    """Lines that write a data set, the name by which it is loaded, and its root."""
    layout = draw(st.sampled_from(each("npy|npy|npy|npy|npz|npz|images|mnist|digits|none")))
    stem = draw(mostly(["x", "with space", "ünï %s {}"], ["-x", ".", "\udcff", "$x_$", "x\ny"]))
    name, root, lines = f"{stem}.{layout}", "root", []
    if layout == "npy":
        lines = [f"save({name!r}, {draw(arrays())})"]
    elif layout == "npz":
        right = ["x={0}", "{0}", "x_train={0}, x_test={1}", "x={0}, y=np.arange(6)"]
        keys = draw(mostly(right, ["a={0}, b={1}", "", "x={0}, y={1}"]))
        lines = [f"savez({name!r}, {keys.format(draw(arrays()), draw(arrays()))})"]
    elif layout == "images":
        sizes = draw(mostly(["[(4, 4)] * 5", "[(3, 2)] * 2"], ["[]", "[(4, 4)]", "[(4, 4), (3, 4)]"]))
        name, kind = stem, draw(st.sampled_from(each("L|RGB|1|P|I;16|I|F|LA|RGBA")))
        lines = [f"images({stem!r}, {sizes}, {kind!r})"]
    elif layout == "mnist":
        name = "mnist"
        lines = [f"mnist({root!r}, {draw(mostly(['5, 3'], ['0, 0', '1, 1', '5, 3, 1', '5, 3, -1']))})"]
    elif layout == "none":
        name = draw(st.sampled_from([*JUNK, "kmnist", "x.npy", "x.npz", "..", "\0"]))
    else:
        name = "digits"
    if lines and draw(mostly([False], [True])):
        file = {"images": f"{stem}/0.png", "mnist": f"{root}/MNIST/raw/train-images-idx3-ubyte"}.get(layout, name)
        lines.append(f"{draw(st.sampled_from(['cut', 'flip']))}({file!r}, {draw(st.integers(0, 200))})")
    return lines, name, draw(mostly([root], ["nowhere", "", "\udcff"]))


# Commands

FLAGS = {
    "binarize": mostly(each("none|threshold|dynamic"), JUNK),
    "hidden": mostly(each("2|3"), JUNK + HUGE),
    "channels": mostly(each("2|3"), JUNK + HUGE),
    "latent-dim": mostly(each("1|2|3"), JUNK + HUGE),
    "beta": mostly(each("0|0.5|4"), [*JUNK, "1e38"]),
    "warm-up": mostly(each("0|1|5"), JUNK + HUGE),
    "epochs": mostly(each("0|1"), JUNK),
    "batch-size": mostly(each("1|2"), JUNK + HUGE),
    "lr": mostly(each("0.001|0.1"), [*JUNK, *each("1e12|1e-320|1e308")]),
    "clip-norm": mostly(each("1|0.1"), [*JUNK, *each("1e-320|1e308")]),
    "engine": mostly(each("auto|eager|recorded"), JUNK),
    "precision": mostly(each("32|bf16-mixed"), [*JUNK, "16"]),
    "memory": mostly(each("1GB|2 GiB"), [*JUNK, *HUGE, *each("1|1B|-1GB|1QB|1e3"), f"{'9' * 400}GB"]),
    "on-nan": mostly(each("stop|skip|rollback"), JUNK),
    "checkpoint-minutes": mostly(each("5|1e-9|0.5"), JUNK + HUGE),
    "seed": mostly(each("0|1|123456789"), JUNK + HUGE),
    "device": mostly(each("cpu"), [*JUNK, *each("cuda:99|meta|cpu:1|mps|xla|hip")]),
    "devices": mostly(each("1"), JUNK),
    "evaluate": mostly(each("mean|sample"), JUNK),
    "latent-map": mostly(each("first|pca|tsne"), JUNK),
    "prior": st.sampled_from(
        [*config.parts("prior"), *JUNK, *each("os.path.join|torch.nn.Linear|torch.nn.ReLU|no.such|.")]
    ),
    "encoder": st.sampled_from([*config.parts("encoder"), *each("torch.nn.Linear|torch.nn.ReLU|pyro_vae|..x")]),
    "decoder": st.sampled_from([*config.parts("decoder"), *each("torch.nn.Linear|torch.nn.ReLU|os.nothing|a.")]),
    "network": mostly(each("MLP|Conv|GRU"), JUNK),
    "loss": st.sampled_from(
        [*config.parts("loss"), *each("pyro.infer.ELBO|pyro.infer.RenyiELBO|pyro.infer.JitTrace_ELBO")]
    ),
}
SMALL = each("--hidden=2|--latent-dim=2|--epochs=1|--batch-size=4|--latent-map=first|--decoder=Normal")
TINY = {"hidden": "2", "latent-dim": "2", "epochs": "1", "batch-size": "2", "latent-map": "first"}
PAIRS = [
    *[(name, name) for name in each("Normal|Laplace|StudentT|Bernoulli|Beta|Gamma|Dirichlet|Flow|Exponential")],
    *[(name, name) for name in each("OneHotCategorical|RelaxedOneHotCategorical|MixtureOfNormals")],
    *[("HypersphericalUniform", "PowerSpherical"), ("VampPrior", "Normal"), ("Normal", "Delta"), ("Gamma", "Weibull")],
]
LASTING = each("transforms|layers|partitions|num_particles|groups")  # large numbers of these are valid, but slow
EXTRA = [
    *[
        text.split()
        for text in each("--preset=practicum|--config=missing.yaml|--config .|--config=/|--resume=run|--allow")
    ],
    *[
        text.split()
        for text in each("--allow=x|--epoch=3|more|--|--hidden|--hidden=|--decoder.scale|--x.y=1|--prior.=1")
    ],
    *[
        text.split()
        for text in each("--out a --out b|--config a --preset practicum|--version|--help|--network.gated maybe")
    ],
    *(["--resume", ""], ["--decoder.grey", "true", "--decoder.grey=false"]),
]


def of_part(kind, name):
    """Strategies for a part's own parameters."""
    right = {bool: each("true|false"), int: each("1|2|3"), float: each("0.5|2.5"), str: each("MAF|RealNVP|IAF|planar")}
    return {
        f"{kind}.{own}": mostly(right.get(parameter.annotation, ["1", "null"]), JUNK + HUGE * (own not in LASTING))
        for own, parameter in config.own_parameters(config.parts(kind)[name]).items()
    }


@st.composite
def flags(draw):
    """Flags of a config, by name."""
    found = dict(TINY)
    if draw(st.booleans()):
        found["prior"], found["encoder"] = draw(st.sampled_from(PAIRS))
    if draw(st.booleans()):
        found["decoder"] = draw(mostly(each("Normal|ContinuousBernoulli|Laplace"), list(config.parts("decoder"))))
    if draw(st.booleans()):
        found["loss"] = draw(st.sampled_from(sorted(config.parts("loss"))))
    own = {}
    for kind in ("prior", "encoder", "decoder", "loss"):
        own |= of_part(kind, found[kind]) if kind in found else {}
    return found | (draw(some_of(own, 2)) if own else {}) | draw(some_of(FLAGS, 3))


def tokens(found):
    """Return flags as they are written on a command line."""
    apart = ("hidden", "channels", "best")  # which take several values, or none
    pairs = [[f"--{key}", text] if key in apart else [f"--{key}={text}"] for key, text in found.items()]
    return [token for pair in pairs for token in pair if token]


def case_of(command, argv, lines=()):
    return Case(command, tuple(lines), f"main({[command, *argv]!r})")


@st.composite
def train(draw):
    """pyro-vae train, by flags or by a config file."""
    lines, name, root = draw(data_sets())
    found = {"data": name, "data-root": root} | draw(flags())
    found |= {"batch-size": "256"} if name == "digits" else {}  # smaller batches only take longer
    argv = tokens(found)
    if draw(st.booleans()):
        quoted = {key: json.dumps(text) if key.startswith("data") else text for key, text in found.items()}
        text = "\n".join(f"{key}: {text}" for key, text in quoted.items())
        file = draw(mostly(["c.yaml", "with space ü.yaml"], ["c", "\udcff"]))
        content = draw(mostly([text], CONFIGS))
        lines.append(f"write({file!r}, {content!r})")
        argv = [f"--config={file}", *([] if content == text else tokens(TINY))]
    argv += [*draw(mostly([[]], EXTRA)), f"--out={draw(mostly(PATHS, BAD_PATHS))}"]
    return case_of("train", argv, ["write('full/mine.txt', 'mine')", *lines])


ABOUTS = each(
    "{}|None|[]|'x'|{'shape': 'x'}|{'shape': [-1]}|{'shape': []}|{'shape': [2**62]}|{'history': 3}|{'history': []}"
)
WEIGHTS = each("run/model.safetensors|run/checkpoints/last.safetensors|run/checkpoints/best.safetensors")
FILES = [*WEIGHTS, *each("run/config.yaml|run/metrics.csv|rows.npy|run/checkpoints/posteriors-0.safetensors")]


@st.composite
def damages(draw):
    """A line that damages a run."""
    file, other = draw(st.sampled_from(FILES)), draw(st.sampled_from(FILES))
    key = draw(st.sampled_from(sorted(FLAGS)))
    return draw(
        st.sampled_from(
            [
                f"cut({file!r}, {draw(st.integers(0, 3000))})",
                f"flip({file!r}, {draw(st.integers(0, 3000))})",
                f"Path({file!r}).unlink()",
                f"write({file!r}, Path({other!r}).read_bytes())",
                f"write('run/config.yaml', {draw(st.sampled_from(CONFIGS))!r})",
                f"append('run/config.yaml', {f'{key}: {draw(FLAGS[key])}'!r})",
                f"save_tensors(Path({draw(st.sampled_from(WEIGHTS))!r}), {{}}, {draw(st.sampled_from(ABOUTS))})",
                f"save('rows.npy', {draw(arrays())})",
                "shutil.rmtree('run/checkpoints')",
                "replace('run/config.yaml', 'rows.npy', 'digits')",
                "os.rename('run/config.yaml', 'c'); os.symlink('../c', 'run/config.yaml')",
            ]
        )
    )


@st.composite
def runs(draw, own):
    """Lines that make a run and, every other time, damage it; flags; and the run's name."""
    lines = ["run()", *([draw(damages())] if draw(st.booleans()) else [])]
    argv = [*tokens(draw(some_of(own, 3))), *draw(mostly([[]], EXTRA))]
    return lines, argv, draw(mostly(["run"], [*BAD_PATHS, *each("nowhere|rows.npy|run/config.yaml")]))


def of_run(command, own):
    """A command on a run."""
    return runs(own).map(lambda found: case_of(command, [*found[1], found[2]], found[0]))


@st.composite
def resume(draw):
    """pyro-vae train --resume, on a run that has another epoch to go."""
    (first, *spoiled), argv, name = draw(runs({"allow": mostly(["x"], JUNK)}))
    more = f"replace('run/config.yaml', 'epochs: 1', 'epochs: {draw(mostly(each('2|1'), each('0|x')))}')"
    return case_of("train", [*argv, f"--resume={name}"], [first, more, *spoiled])


@st.composite
def compare(draw):
    """pyro-vae compare."""
    lines, name, root = draw(data_sets())
    found = {
        "data": name,
        "data-root": root,
        "steps": "2",
        "draws": "2",
        "rounds": "1",
        "hidden": "2",
        "latent-dim": "2",
    }
    found |= {"decoder": "Normal"} if draw(st.booleans()) else {}
    counts = {"steps": mostly(each("1|3"), JUNK), "draws": mostly(each("2|3"), JUNK), "rounds": mostly(["1"], JUNK)}
    shared = each("hidden|latent-dim|batch-size|seed|device|binarize|network|decoder|prior|encoder")
    argv = tokens(found | draw(some_of(counts | {key: FLAGS[key] for key in shared}, 3)))
    argv += [*draw(mostly([[]], EXTRA)), f"--out={draw(mostly(PATHS, BAD_PATHS))}"]
    argv += draw(mostly([[]], [[f"--json={path}"] for path in BAD_PATHS]))
    return case_of("compare", argv, ["write('full/mine.txt', 'mine')", *lines])


FILE = mostly(["x.png", "ü x.png"], [*BAD_PATHS, "x.pdf"])
ROOT = {"data-root": mostly(["."], BAD_PATHS), "best": st.just("")}
DRAWN = {"seed": FLAGS["seed"], "n": mostly(each("1|4"), JUNK + HUGE), "out": FILE, "best": st.just("")}
MEASURED = {"model": mostly(["discrete"], JUNK), "draws": mostly(["1000"], JUNK), "seed": FLAGS["seed"]}
WEIGHED = {"samples": mostly(each("1|3"), JUNK), "memory": FLAGS["memory"], "seed": FLAGS["seed"], "json": FILE}
COMMANDS = {
    "train": (train(), 10),
    "resume": (resume(), 4),
    "compare": (compare(), 2),
    "gradients": (
        some_of({**MEASURED, "json": FILE, "out": FILE}, 4).map(
            lambda found: case_of("gradients", tokens({"draws": "0"} | found))
        ),
        1,
    ),
    "list": (st.sampled_from([["--markdown"], [], *EXTRA]).map(lambda more: case_of("list", more)), 1),
    "sample": (of_run("sample", DRAWN), 2),
    "reconstruct": (of_run("reconstruct", {**DRAWN, **ROOT, "evaluate": FLAGS["evaluate"]}), 3),
    "evaluate": (of_run("evaluate", {**WEIGHED, **ROOT}), 3),
}

# Functions

SHORT = [  # none of these makes a valid call slow
    *each(
        "None|nan|inf|-inf|-1|0|1.5|True|'x'|''|[]|()|{}|object()|X|torch.tensor(nan)|lambda *_: None|lambda *_: 'x'"
    ),
    *each("1j|b'x'|int|[1, 'x']|torch.nn.ReLU()"),
]
VALUES = [*SHORT, *each("2**40|2**70|10**400")]
ROWS = each("X|X|X.double()|X.numpy()|list(X)|TensorDataset(X)|X.round().byte()|data.EightBit((X * 255).byte())")
BAD_ROWS = [
    *each(
        "X[0]|X[:0]|X[:1]|nan * X|inf * X|1e38 * X|X + 1j|X > 0.5|X.half()|X.bfloat16()|X.requires_grad_()|X[None]|X.T"
    ),
    *each("(X * 255).byte()|X.to_sparse()|X.to('meta')|torch.zeros(6, 0)|torch.zeros(6, 5)|torch.zeros(2, 1_000_000)"),
    *each(
        "np.array([{}])|np.zeros((3, 2), 'U3')|np.float64(3)|X.numpy().tolist()|[X, X[0]]|[X[0], 'x']|[['a']]|[None]"
    ),
    *each("'X'|5|[]|[1, 2]|{}|{'x': X}|iter([])|range(3)"),
]
PROGRAMS = ["vae.model, vae.guide"]
BAD_PROGRAMS = [
    *each("None, None|vae, vae|vae.guide, vae.model|vae.model, lambda x: None|lambda x: None, lambda x: None|1, 2"),
    *each(
        "vae.model, vae.encoder|VAE(priors.Normal(3), vae.encoder, vae.decoder).model, vae.guide|vae.decoder, vae.guide"
    ),
]
OWN_LOSSES = sorted(set(config.parts("loss")) - set(config.PYRO_LOSSES))
FITTED = {
    "epochs": mostly(each("0|1"), SHORT),
    "batch_size": mostly(each("1|3"), VALUES),
    "seed": mostly(each("0|7"), VALUES),
    "beta": mostly(each("0|0.5|objectives.linear_warm_up(3)"), VALUES),
    "clip_norm": mostly(each("None|1.0"), VALUES),
    "transform": mostly(each("None|data.threshold|data.dynamic"), each("'x'|1|X")),
    "engine": mostly(each("'auto'|'eager'|'recorded'"), VALUES),
    "precision": mostly(each("'32'|'bf16-mixed'"), VALUES),
    "memory": mostly(each("None|'1GB'"), VALUES),
    "on_nan": mostly(each("'stop'|'skip'|'rollback'"), VALUES),
    "checkpoints": mostly(each("None|'there'"), SHORT),
    "resume": mostly(["None"], SHORT),
    "loss": mostly([f"objectives.{name}()" for name in OWN_LOSSES], VALUES),
    "validation": mostly(each("None|X"), BAD_ROWS),
    "optimizer": mostly(
        ["partial(torch.optim.SGD, lr=0.1)"], each("partial(torch.optim.SGD, lr=1e38)|None|3|torch.optim.SGD")
    ),
}
MEASURED_BY = {name: FITTED[name] for name in each("batch_size|seed|loss|transform")}
WEIGHED_BY = {"samples": mostly(each("1|5"), SHORT), "memory": mostly(["'1GB'"], VALUES), "seed": FITTED["seed"]}


def call(name, *positional, **keywords):
    """Return the text of a call."""
    return f"{name}({', '.join([*positional, *(f'{key}={value}' for key, value in keywords.items())])})"


@st.composite
def of_programs(draw, name, own, **fixed):
    """A function of two programs and data."""
    programs, rows = draw(mostly(PROGRAMS, BAD_PROGRAMS)), draw(mostly(ROWS, BAD_ROWS))
    return Case(name, (), call(name, programs, rows, **fixed | draw(some_of(own, 3))))


@st.composite
def loads(draw):
    """data.load."""
    lines, name, root = draw(data_sets())
    arguments = [draw(mostly([repr(right)], SHORT)) for right in (name, root)]
    return Case("data.load", tuple(lines), call("data.load", *arguments))


GIVEN = {
    "latent_dim": mostly(each("2|1|3"), VALUES),
    "shape": mostly(each("(4,)|4|[4]"), [*VALUES, *each("(0,)|(4, -1)|(2**31, 2**31)")]),
    "in_shape": mostly(each("(4,)|(4, 2)|(1, 4, 4)"), [*VALUES, "(0,)"]),
    "out_shape": mostly(each("(4,)|(4, 2)|(1, 4, 4)"), [*VALUES, "(0,)"]),
    "network": mostly(["small"], each("None|3|'MLP'|networks.ConvEncoder|networks.GRUDecoder|networks.FillMissing")),
    "encoder": mostly(["vae.encoder"], VALUES),
    "decoder": mostly(["vae.decoder"], VALUES),
    "prior": mostly(["vae.prior"], VALUES),
    "data": mostly(
        each("None|torch.rand(9, 4)"), each("X|'x'|nan * X|torch.zeros(600, 5)|torch.ones(600, 4) * 7|X.numpy()")
    ),
    "hidden": mostly(each("(2,)|2|()"), VALUES),
    "channels": mostly(each("(2,)|2"), VALUES),
    "activation": mostly(["torch.nn.Tanh"], each("None|torch.tanh|3")),
    "final_temperature": mostly(each("None|0.5"), VALUES),
    "chunk": mostly(each("None|1"), VALUES),
}
HELPERS = (objectives.DataPlates, objectives.Draws, objectives.Objective, objectives.Terms)  # not for users to make
INPUTS = {"priors": "", "encoders": "X", "decoders": "torch.zeros(3, 2)"}


def constructors():
    """Every class of parts, networks and objectives by name, and the parameters of its constructor."""
    for module in (priors, encoders, decoders, networks, objectives):
        for name in module.__all__:
            cls = getattr(module, name)
            if inspect.isclass(cls) and cls not in HELPERS:
                parameters = dict(inspect.signature(cls).parameters)
                if module is encoders:
                    parameters.pop("out_shape", None)  # which only the package's encoders give to their base
                yield f"{module.__name__.rpartition('.')[2]}.{name}", parameters


def of_parameter(parameter):
    """Return a strategy for a parameter of a constructor."""
    right = {bool: each("True|False"), int: each("1|2|3"), float: each("0.5|2.5|3"), str: each("'MAF'|'NSF'")}
    chosen = [*right.get(parameter.annotation, []), repr(parameter.default)]
    return (
        GIVEN[parameter.name]
        if parameter.name in GIVEN
        else mostly(chosen, SHORT if parameter.name in LASTING else VALUES)
    )


@st.composite
def builds(draw, classes):
    """Build a part, network or objective; a part is also called."""
    name, parameters = draw(st.sampled_from(classes))
    needed = [key for key, parameter in parameters.items() if parameter.default is parameter.empty or key == "network"]
    values = {key: of_parameter(parameter) for key, parameter in parameters.items()}
    keywords = {key: draw(values[key]) for key in needed} | draw(some_of(values, 2))
    kind = name.partition(".")[0]
    return Case("parts", (), call(name, **keywords) + (f"({INPUTS[kind]})" if kind in INPUTS else ""))


@st.composite
def assembles(draw):
    """Build a VAE from any three objects, and call one of its methods."""
    parts = [draw(mostly([f"vae.{part}"], ["priors.Normal", *VALUES])) for part in ("prior", "encoder", "decoder")]
    value = draw(st.sampled_from(SHORT))
    asked = [f"sample({value})", f"reconstruct({value})", f"interpolate(X, X, {value})", f"interpolate(X, {value})"]
    method = draw(st.sampled_from([*each("sample(2)|reconstruct(X)|interpolate(X, X)"), *asked]))
    return Case("VAE", (), f"{call('VAE', *parts)}.{method}")


FUNCTIONS = {
    "fit": (of_programs("fit", FITTED, batch_size="3", epochs="1"), 6),
    "evaluate()": (of_programs("evaluate", {**MEASURED_BY, "at": mostly(each("'mean'|'sample'"), VALUES)}), 2),
    "log_likelihood": (of_programs("log_likelihood", WEIGHED_BY), 2),
    "data.load": (loads(), 3),
    "as_tensor": (
        st.sampled_from(ROWS + BAD_ROWS + VALUES).map(lambda x: Case("as_tensor", (), f"data.as_tensor({x})")),
        1,
    ),
    "VAE": (assembles(), 1),
    "parts": (builds(list(constructors())), 6),
}
STRATEGIES = {**COMMANDS, **FUNCTIONS}


def of_kind(kind):
    """The cases of one kind of entry."""
    return STRATEGIES[kind][0].map(lambda case: case._replace(kind=kind))


CASES = st.one_of([of_kind(kind) for kind in STRATEGIES])
QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def drawn(kind, count, number):
    """Draw this many different cases of a kind, or all that there are."""
    found = {}

    def one(case):
        found[case] = None

    for round_ in range(100):  # many short searches, because a single one keeps to cases like its first ones
        search = settings(max_examples=20, phases=[Phase.generate], **QUIET)(given(of_kind(kind))(one))
        seed(1000 * number + round_)(search)()
        if len(found) >= count:
            break
    return list(found)[:count]


def many(cases, number, say):
    """Run about this many cases, of each kind according to its weight, and return each with its outcome."""
    found, weights = [], sum(weight for _, weight in STRATEGIES.values())
    for kind, (_, weight) in STRATEGIES.items():
        for case in drawn(kind, max(1, round(cases * weight / weights)), number):
            found.append((case, outcome(case)))
            say(found[-1][1])
    return found


def table(found):
    """Yield the lines of a table with the counts of verdicts for each kind of entry."""
    yield f"| entry | cases | exit 0, or returned | {' | '.join(VERDICTS[1:])} |"
    yield "|" + (2 + len(VERDICTS)) * " --- |"
    counts = Counter((case.kind, result.verdict) for case, result in found)
    for name in [*STRATEGIES, "all"]:
        kinds = [name] if name in STRATEGIES else STRATEGIES
        numbers = [sum(counts[kind, verdict] for kind in kinds) for verdict in VERDICTS]
        yield f"| {name} | {sum(numbers)} | {' | '.join(map(str, numbers))} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=3300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where every case is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # tensors here are small: more threads would only wait for each other
    start = time.perf_counter()
    found = many(arguments.cases, arguments.seed, lambda result: print(".F"[result.failed], end="", flush=True))
    minutes = (time.perf_counter() - start) / 60
    print(f"\n\n{len(found)} cases, seed {arguments.seed}, {minutes:.1f} minutes; {machine()}\n")
    print("\n".join(table(found)))
    for case, result in found:
        if result.failed:
            print(f"\n{result.verdict}: {case!s:.2000}\n    {result.words.strip():.2000}")
    if arguments.json:
        arguments.json.write_text(json.dumps([(*case, *result) for case, result in found], indent=0) + "\n")
    sys.exit(any(result.failed for _, result in found))


if __name__ == "__main__":
    main()
