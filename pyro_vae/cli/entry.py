"""The entry of ``pyro-vae``: it parses the arguments, runs a command, and prints an error in one line."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_vae.cli import commands
from pyro_vae.cli.flags import TRAIN_ONLY, Parser, add_allow, add_command, add_config_flags, as_path, parse
from pyro_vae.cli.launch import interrupted_by_signals, lasting_streams, one_line, say


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Arguments:
        argv: the arguments, without the program's name; by default those of the process.

    Returns:
        0; 2 after an error, which is printed in one line on standard error; 128 and its number after a signal.

    Example:
        >>> main(["sample", "no-such-run"])
        2
    """
    if argv is None:
        _import_nothing_from_here()
    argv = list(sys.argv[1:] if argv is None else argv)
    with lasting_streams() as lost, warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"pyro-vae: {message}", error=True)
        try:
            code = _run(argv)
        except SystemExit as error:
            if error.code or not lost():
                raise
            return 2  # the help could not be printed
        return code or (2 if lost() and argv[0] != "train" else 0)


def _run(argv: list[str]) -> int:
    if sys.flags.optimize > 1:
        say("pyro-vae: error: Pyro needs docstrings: run Python without -OO and PYTHONOPTIMIZE=2", error=True)
        return 2
    received: list[int] = []
    try:
        arguments = parsed(argv)
        with interrupted_by_signals(received):
            arguments.command(arguments)
    except KeyboardInterrupt:
        say("pyro-vae: stopped", error=True)  # no training has begun, or what the command saves is complete
        return 128 + (received or [2])[0]
    except Exception as error:
        if "--debug" in argv:
            raise
        text = _out_of_memory(argv[0]) if _is_out_of_memory(error) else one_line(error)
        say(f"pyro-vae: error: {text}", error=True)
        return 2
    return 0


def parsed(argv: list[str]) -> argparse.Namespace:
    """Return the parsed argv; ``config`` is the config that its flags and its config file make."""
    return parse(_parser(), argv)


def _import_nothing_from_here() -> None:
    """Remove the current folder from the import path of this process and its children."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.environ.get("PYTHONPATH") else []
    relative = {os.path.abspath(entry) for entry in entries if not os.path.isabs(entry)}  # such as "" in "/a:"
    sys.path[:] = [entry for entry in sys.path if os.path.isabs(entry) and entry not in relative]
    own = str(Path(__file__).resolve().parents[2])
    if own not in sys.path:  # this package may be in the current folder
        sys.path.append(own)
    os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if os.path.isabs(entry))
    os.environ["PYTHONSAFEPATH"] = "1"


def _is_out_of_memory(error: Exception) -> bool:
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # the second is torch's
    words = ("can't allocate memory", "calculation overflowed", "multiplication overflow")
    return named or (isinstance(error, RuntimeError) and any(text in str(error) for text in words))


def _out_of_memory(command: str) -> str:
    flags = {
        "evaluate": "--memory",
        "impute": "--memory, --draws or --n",
        "train": "--batch-size, --latent-dim or --hidden, or --memory with an objective of several particles",
        "compare": "--batch-size",
    }
    return f"out of memory; lower {flags.get(command, '--n')}"


def _parser() -> argparse.ArgumentParser:
    from pyro_vae import __version__

    parser = Parser(prog="pyro-vae", description="Variational autoencoders as Pyro programs.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    _add_trainings(subparsers)
    _add_uses_of_runs(subparsers)
    return parser


def _add_trainings(subparsers: Any) -> None:
    train = add_command(
        subparsers, "train", commands.train, "train a VAE and write a run: metrics, weights, pictures, report"
    )
    add_config_flags(train)
    train.add_argument("--out", type=as_path, metavar="DIR", help="the run's folder (default: runs/DATA-DATE-TIME)")
    train.add_argument(
        "--resume",
        type=as_path,
        metavar="RUN",
        help="continue a run with its own config; with --epochs N, also train a finished run further",
    )

    compare = add_command(subparsers, "compare", commands.compare, "compare the Pyro programs with the hand-coded VAE")
    add_config_flags(compare, TRAIN_ONLY)
    add = compare.add_argument
    add("--steps", type=int, default=300, metavar="N", help="number of steps of both trainings (default 300)")
    add("--draws", type=int, default=2000, metavar="N", help="number of gradients to draw (default 2000)")
    add("--rounds", type=int, default=5, metavar="N", help="number of rounds of timing (default 5)")
    add("--json", type=as_path, metavar="FILE", help="also write the numbers as JSON to this file")
    add("--out", type=as_path, metavar="DIR", help="folder for the pictures and JSON (default: runs/compare-...)")

    laboratory = add_command(
        subparsers, "gradients", commands.gradients, "measure bias and variance of every gradient estimator"
    )
    add = laboratory.add_argument
    add("--model", default="linear-gaussian", metavar="NAME", help="linear-gaussian or discrete")
    add("--draws", type=int, default=10_000, metavar="N", help="number of draws of each gradient (default 10000)")
    add("--seed", type=int, default=0, metavar="N", help="random seed (default 0)")
    add("--json", type=as_path, metavar="FILE", help="write the rows as JSON to this file")
    add("--out", type=as_path, metavar="FILE", help="draw the rows as a picture: .png, .jpg, .pdf or .svg")
    listing = add_command(
        subparsers, "list", commands.list_parts, "list all parts and objectives, with their references"
    )
    listing.add_argument("--markdown", action="store_true", help="print a Markdown table")


def _add_uses_of_runs(subparsers: Any) -> None:
    sample = add_command(subparsers, "sample", commands.sample, "decode samples from a run's prior")
    reconstruct = add_command(subparsers, "reconstruct", commands.reconstruct, "reconstruct test data of a run")
    for command, count in ((sample, 64), (reconstruct, 10)):
        command.add_argument("run", type=as_path, metavar="RUN", help="the run's folder")
        command.add_argument("--n", type=int, default=count, metavar="N", help=f"number of data (default {count})")
        command.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default 0)")
        text = "file, .png, .jpg, .pdf or .svg" + (
            "; .npy or .csv for the numbers, in the units of the data" if command is sample else ""
        )
        command.add_argument(
            "--out", type=as_path, metavar="FILE", help=f"{text} (default: a .png in the run's folder)"
        )
    evaluation = add_command(
        subparsers, "evaluate", commands.evaluate, "bounds and log-likelihood of a run on its test data"
    )
    add = evaluation.add_argument
    add("run", type=as_path, metavar="RUN", help="the run's folder")
    add("--samples", type=int, default=5000, metavar="N", help="samples for log p(x) of each datum (default 5000)")
    add("--memory", default="2GB", metavar="SIZE", help="memory limit of each measure: 512MB, 2GiB, ... (default 2GB)")
    add("--seed", type=int, default=0, metavar="N", help="random seed (default 0)")
    add("--images", type=int, default=100, metavar="N", help="test data of what takes minutes, below (default 100)")
    add("--ais", action="store_true", help="log p(x) by annealed importance sampling, and a bracket around it")
    add("--gaps", action="store_true", help="what the bound loses by the family of q, and by the encoder's network")
    add("--nuts", action="store_true", help="the posteriors beside the exact ones, of a tenth of these data")
    add("--calibration", action="store_true", help="whether the posteriors are right, on simulated data")
    add("--codes", action="store_true", help="active dimensions, mutual information, and codes beside the prior")
    add("--draws", action="store_true", help="how far draws from the model are from the test data")
    add("--beside", type=as_path, metavar="OTHER_RUN", help="how well the codes agree with another run's")
    add("--all", action="store_true", help="all of these, except --beside and those that do not fit the run")
    add(
        "--resume",
        dest="resumed",
        action="store_true",
        help="continue an evaluation that was interrupted, from RUN/evaluation.json",
    )
    add("--json", type=as_path, metavar="FILE", help="also write the numbers as JSON; infinite ones become null")
    imputation = add_command(subparsers, "impute", commands.impute, "fill in missing entries of data by a run")
    add = imputation.add_argument
    add("run", type=as_path, metavar="RUN", help="the run's folder")
    add("--hide", metavar="WHAT", help="hide entries of test data and measure: upper, lower, left, right, or a share")
    add("--n", type=int, default=100, metavar="N", help="number of test data for --hide (default 100)")
    add("--by", default="importance", metavar="HOW", help="importance (default), encoder, gibbs or nuts (slow)")
    add("--draws", type=int, default=20, metavar="M", help="number of completions of each datum (default 20)")
    add("--samples", type=int, default=1000, metavar="N", help="samples of importance for each datum (default 1000)")
    add("--steps", type=int, default=200, metavar="N", help="steps of gibbs and nuts (default 200)")
    add("--memory", default="2GB", metavar="SIZE", help="memory limit beside the result: 512MB, ... (default 2GB)")
    add("--seed", type=int, default=0, metavar="N", help="random seed (default 0)")
    text = ".npy or .csv for the means, .npz for means, draws and deviations; .png, .jpg, .pdf or .svg for a picture"
    add("--out", type=as_path, metavar="FILE", help=f"{text} (default: FILE-completed.npy; with --hide a picture)")
    for command in (sample, reconstruct, evaluation, imputation):
        add_allow(command)
        command.add_argument("--best", action="store_true", help="use the weights with the lowest test loss")
    for command in (reconstruct, evaluation, imputation):
        command.add_argument("--data-root", metavar="DIR", help="folder of torchvision's data sets")
        command.add_argument(
            "--download", action="store_true", default=None, help="download the data set if it is missing"
        )
        command.add_argument("--data", metavar="NAME|PATH", help="use these data instead of the run's")
        command.add_argument("--scale", type=float, metavar="X", help="divide the values of --data by X")
    reconstruct.add_argument("--evaluate", default="mean", metavar="WHAT", help="z: posterior mean (default) or sample")
