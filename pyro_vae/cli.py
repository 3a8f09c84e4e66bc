"""The command line: the only reader of argv and, with `pyro_vae.launch`, the only place that prints.

What needs torch is imported inside the commands, so that ``pyro-vae --help`` answers at once.
"""

import argparse
import difflib
import inspect
import io
import json
import math
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

import yaml

from pyro_vae.files import check_no_link, printable, takes_files, write_whole
from pyro_vae.launch import lasting_streams, one_line, say, train
from pyro_vae.settings import LOCAL, PARTS, TRUSTED, Config, plain_yaml, read_flags

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_vae.vae import VAE

PRESETS = {"practicum": {"latent_dim": 20, "epochs": 10, "batch_size": 256}}  # and the defaults
TRAIN_ONLY = {
    *("epochs", "lr", "loss", "beta", "warm_up", "clip_norm", "engine", "precision", "devices"),
    *("optimizer", "weight_decay", "eps", "lr_schedule", "patience"),
    *("memory", "on_nan", "checkpoint_minutes"),
    *("evaluate", "latent_map"),
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose help names the parts that a command builds a VAE of."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        say(printable(f"{self.prog}: error: {message}"), error=True)
        raise SystemExit(2)

    def format_help(self) -> str:
        """Return the help, with all parts and their own parameters where a VAE is built."""
        if not self.get_default("builds_vae"):
            return super().format_help()
        from pyro_vae import config

        lines = ["parts and their own parameters:"]
        for kind in PARTS:
            for name, cls in sorted(config.parts_by_flag(kind).items()):
                summary = config.summary_of(cls).replace(":math:", "").replace("`", "")
                lines += [
                    f"  --{kind} {name}",
                    textwrap.fill(summary, 100, initial_indent=" " * 6, subsequent_indent=" " * 6),
                ]
                for own, parameter in config.own_parameters(cls).items():
                    takes = inspect.formatannotation(parameter.annotation)
                    lines.append(f"      --{kind}.{own} {takes}, default {parameter.default}")
        return "\n".join([super().format_help(), *lines, ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Arguments:
        argv: the arguments, without the program's name; those of the process if None.

    Returns:
        0, or 2 after an error, which is one line on standard error.

    Example:
        >>> main(["sample", "no-such-run"])
        2
    """
    if argv is None:
        _import_nothing_from_here()
    argv = list(sys.argv[1:] if argv is None else argv)
    with lasting_streams() as lost, warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"pyro-vae: {message}", error=True)
        code = _run(argv)
        return code or (2 if lost() and argv[0] != "train" else 0)


def _run(argv: list[str]) -> int:
    try:
        arguments = _parse(argv)
        arguments.command(arguments)
    except KeyboardInterrupt:
        say("pyro-vae: stopped", error=True)  # before a training has begun, or in a command that saves nothing
        return 130
    except Exception as error:
        if "--debug" in argv:
            raise
        text = _out_of_memory(argv[0]) if _is_out_of_memory(error) else one_line(error)
        say(f"pyro-vae: error: {text}", error=True)
        return 2
    return 0


def _import_nothing_from_here() -> None:
    """Take the current folder off the path of this process and those it starts: a stranger's modules may lie there."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.environ.get("PYTHONPATH") else []
    relative = {os.path.abspath(entry) for entry in entries if not os.path.isabs(entry)}  # as "" is in "/a:"
    sys.path[:] = [entry for entry in sys.path if os.path.isabs(entry) and entry not in relative]
    own = str(Path(__file__).resolve().parents[1])
    if own not in sys.path:  # where this package lies in the current folder
        sys.path.append(own)
    os.environ["PYTHONPATH"] = os.pathsep.join(entry for entry in entries if os.path.isabs(entry))
    os.environ["PYTHONSAFEPATH"] = "1"


def _is_out_of_memory(error: Exception) -> bool:
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # the latter of torch
    words = ("can't allocate memory", "calculation overflowed", "multiplication overflow")
    return named or (isinstance(error, RuntimeError) and any(text in str(error) for text in words))


def _out_of_memory(command: str) -> str:
    flags = {
        "evaluate": "--memory",
        "train": "--batch-size, --latent-dim or --hidden, or --memory with an objective of several particles",
        "compare": "--batch-size",
    }
    return f"out of memory; lower {flags.get(command, '--n')}"


def _parse(argv: list[str]) -> argparse.Namespace:
    """Parse argv, ``config`` becoming a `Config`: its flags and those of --preset give way to the others."""
    parser = _parser()
    arguments, rest = _known(parser, argv)
    if getattr(arguments, "resume", None):
        _check_resume(arguments, rest)
        local = _local_flags(arguments)
        local += [f"--data={arguments.data}"] if arguments.data else []
        local += [f"--epochs={arguments.epochs}"] if arguments.epochs is not None else []
        arguments.out, arguments.config = arguments.resume, _run_config(arguments.resume, arguments.allow, *local)
    elif arguments.builds_vae:
        from_file = read_flags(arguments.config) if arguments.config else {}
        for name in from_file:
            if name.replace("-", "_") not in Config.flags() and name.partition(".")[0] not in PARTS:
                raise ValueError(f"{arguments.config}: {_unknown_flag(f'--{name}', Config.flags())}")
        _check_local(from_file, arguments)
        flags = PRESETS.get(arguments.preset, {}) | from_file
        _check_classes({name: value for name, value in flags.items() if not getattr(arguments, name, None)}, arguments)
        if arguments.command is not _train:
            flags = {name: value for name, value in flags.items() if name.replace("-", "_") not in TRAIN_ONLY}
        arguments, rest = _known(parser, [argv[0], *_tokens(flags), *argv[1:]])
        arguments.config = _config(arguments, rest)
    elif rest:
        raise ValueError(_unknown_flag(rest[0], vars(arguments)))
    return arguments


def _known(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return what the parser knows of argv, and the rest."""
    arguments, rest = parser.parse_known_args(argv)
    for name, value in vars(arguments).items():
        if value == [] and name != "allow":  # what argparse makes of --prior=--
            raise ValueError(f"--{name.replace('_', '-')} takes a value, not '--'")
    return arguments, rest


def _check_resume(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Refuse what stands beside --resume: a run goes on as it began."""
    flags = [name for name in (*Config.flags(), "preset", "config", "out") if name not in (*LOCAL, "data", "epochs")]
    given = [name for name in flags if getattr(arguments, name) is not None]
    if given or rest:
        flag = f"--{given[0].replace('_', '-')}" if given else rest[0]
        raise ValueError(f"--resume goes on with the flags of the run's config.yaml: leave out {flag}")


def _check_classes(flags: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Refuse to import for a file what nobody has allowed: importing a module runs it."""
    for name, value in flags.items():
        module = str(value).rpartition(".")[0]
        known = any(module == allowed or module.startswith(f"{allowed}.") for allowed in (*TRUSTED, *arguments.allow))
        if name in PARTS and all(module.split(".")) and not known:  # what is no path of a module is refused later
            reason = f"{arguments.config} names {value!r} as its {name}, and importing a module runs its code"
            raise ValueError(f"{reason}: if you trust it, add --allow {module}")


def _local_flags(arguments: argparse.Namespace) -> list[str]:
    root = [] if arguments.data_root is None else [f"--data-root={arguments.data_root}"]
    return [*root, *(["--download"] if arguments.download else [])]


def _check_local(flags: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Refuse a file that decides what this machine reads or fetches, where no flag of the user's own does."""
    for name, value in flags.items():
        known = name.replace("-", "_")
        chosen = value is not None and value is not False  # 0 would be a folder's name
        if known in LOCAL and chosen and getattr(arguments, known) is None:
            flag = f"--{known.replace('_', '-')}" + (f"={value}" if known == "data_root" else "")
            raise ValueError(
                f"{arguments.config} sets {name}: {value!r}, which only you can: if you trust it, add {flag}"
            )


def _run_config(run: Path, allow: list[str], *flags: str) -> Config:
    """Return the config that a run's folder holds."""
    flags = (*flags, *(f"--allow={module}" for module in allow))
    path = run / "config.yaml"
    if not path.exists():
        raise ValueError(f"{run} is no run: it holds no config.yaml")
    config: Config = _parse(["train", f"--config={path}", *flags]).config
    return config


def _parser() -> argparse.ArgumentParser:
    from pyro_vae import __version__

    parser = _Parser(prog="pyro-vae", description="Variational autoencoders as Pyro programs.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    train = _command(commands, "train", _train, "train a VAE and write a run: metrics, weights, pictures, report")
    _add_config_flags(train)
    train.add_argument("--out", type=Path, metavar="DIR", help="the run's folder (default: runs/DATA-DATE-TIME)")
    train.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with a run that was stopped, by its own config"
    )

    compare = _command(commands, "compare", _compare, "hold the Pyro programs against the hand-coded VAE")
    _add_config_flags(compare, TRAIN_ONLY)
    add = compare.add_argument
    add("--steps", type=int, default=300, metavar="N", help="steps of both trainings (default 300)")
    add("--draws", type=int, default=2000, metavar="N", help="gradients drawn (default 2000)")
    add("--rounds", type=int, default=5, metavar="N", help="rounds of timing (default 5)")
    add("--json", type=Path, metavar="FILE", help="write the figures as JSON, too")
    add("--out", type=Path, metavar="DIR", help="folder of picture and JSON (default: runs/compare-...)")

    laboratory = _command(commands, "gradients", _gradients, "measure bias and variance of every gradient estimator")
    add = laboratory.add_argument
    add("--model", default="linear-gaussian", metavar="NAME", help="linear-gaussian or discrete")
    add("--draws", type=int, default=10_000, metavar="N", help="of each gradient (default 10000)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the noise (default 0)")
    add("--json", type=Path, metavar="FILE", help="write the rows as JSON")
    add("--out", type=Path, metavar="FILE", help="draw the rows as a picture: .png, .jpg, .pdf or .svg")
    listing = _command(commands, "list", _list, "list all parts and objectives, with their references")
    listing.add_argument("--markdown", action="store_true", help="as a table")

    sample = _command(commands, "sample", _sample, "decode samples from a run's prior")
    reconstruct = _command(commands, "reconstruct", _reconstruct, "reconstruct test data of a run")
    for command, count in ((sample, 64), (reconstruct, 10)):
        command.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
        command.add_argument("--n", type=int, default=count, metavar="N", help=f"how many (default {count})")
        command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the noise (default 0)")
        text = ".png, .jpg, .pdf or .svg" + ("; .npy or .csv for the numbers" if command is sample else "")
        command.add_argument("--out", type=Path, metavar="FILE", help=f"{text} (default: a .png in the run's folder)")
    evaluation = _command(commands, "evaluate", _evaluate, "bounds and log-likelihood of a run on its test data")
    add = evaluation.add_argument
    add("run", type=Path, metavar="RUN", help="the run's folder")
    add("--samples", type=int, default=5000, metavar="N", help="of log p(x), for each datum (default 5000)")
    add("--memory", default="2GB", metavar="SIZE", help="of the samples at a time: 512MB, 2GiB, ... (default 2GB)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the noise (default 0)")
    add("--json", type=Path, metavar="FILE", help="write the figures as JSON, too, an infinite one as null")
    for command in (sample, reconstruct, evaluation):
        _add_allow(command)
        command.add_argument("--best", action="store_true", help="the weights with the lowest test loss, not the last")
    for command in (reconstruct, evaluation):
        command.add_argument("--data-root", metavar="DIR", help="folder of torchvision's data sets")
        command.add_argument(
            "--download", action="store_true", default=None, help="fetch the data set if it is missing"
        )
        command.add_argument("--data", metavar="NAME|PATH", help="data to take in the place of the run's")
        command.add_argument("--scale", type=float, metavar="X", help="of --data, if not the run's")
    reconstruct.add_argument("--evaluate", default="mean", metavar="WHAT", help="z: posterior mean (default) or sample")
    return parser


def _command(commands: Any, name: str, function: Callable[..., None], summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.set_defaults(command=function, builds_vae=False)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_config_flags(parser: argparse.ArgumentParser, left_out: Collection[str] = ()) -> None:
    """Add a flag for each field of `Config`; one that is not given is None."""
    parser.set_defaults(builds_vae=True)
    for name, annotation in get_type_hints(Config, include_extras=True).items():
        if name in left_out or name == "options":
            continue
        annotated, metavar, text = get_args(annotation)
        kind, *_ = get_args(annotated) or (annotated,)
        how = {"action": "store_true"} if kind is bool else {"type": kind, "metavar": metavar}
        default = getattr(Config(), name)
        if isinstance(default, list):
            how["nargs"], default = "+", " ".join(map(str, default))
        text += "" if default is None or default is False else f" (default {default})"
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, help=text, **how)
    add = parser.add_argument
    _add_allow(parser)
    add("--preset", choices=sorted(PRESETS), help="a known recipe; flags beside it take precedence")
    add("--config", type=Path, metavar="FILE", help="flags from a YAML file, such as a run's config.yaml")


def _add_allow(parser: argparse.ArgumentParser) -> None:
    text = "a module from which a config file may name a class, beside pyro_vae, torch and pyro; repeatable"
    parser.add_argument("--allow", action="append", default=[], metavar="MODULE", help=text)


def _tokens(flags: dict[str, Any]) -> list[str]:
    """Return the tokens that say the same as the flags of a file."""
    tokens = []
    for name, value in flags.items():
        default = None if "." in name else getattr(Config(), name.replace("-", "_"))
        flag = f"--{name}" if "." in name else f"--{name.replace('_', '-')}"
        if isinstance(value, list):
            if not value or not all(type(each) is int for each in value):  # a text might be another flag
                raise ValueError(f"{name} takes one value, or whole numbers where it is a list, not {value!r}")
            tokens += [flag, *map(str, value)]
        elif "." not in name and isinstance(value, bool) is not isinstance(default, bool) and value is not None:
            raise ValueError(
                f"{name} takes {'true or false' if isinstance(default, bool) else 'a value'}, not {value!r}"
            )
        elif isinstance(default, bool):
            tokens += [flag] if value else []
        elif value is not None:  # a flag that is set
            tokens.append(f"{flag}={value}")
    return tokens


def _config(arguments: argparse.Namespace, rest: list[str]) -> Config:
    """Make a config of the flags that were given, and of the parts' own parameters among the rest."""
    names = Config.flags()
    config = Config(**{name: value for name, value in vars(arguments).items() if name in names and value is not None})
    tokens = iter(rest)
    for flag in tokens:
        name, equals, value = flag.partition("=")
        kind, dot, own = name.removeprefix("--").partition(".")
        if not (name.startswith("--") and dot and kind in PARTS):
            raise ValueError(_unknown_flag(flag, vars(arguments)))
        text = value if equals else next(tokens, None)
        if text is None:
            raise ValueError(f"{name} takes a value")
        try:
            config.options[kind][own.replace("-", "_")] = plain_yaml(text)
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            raise ValueError(f"{name} takes a plain value, not {text!r}") from error
    return config


def _unknown_flag(flag: str, names: Iterable[str]) -> str:
    known = [f"--{name.replace('_', '-')}" for name in names if name not in ("command", "builds_vae", "run")]
    matches = difflib.get_close_matches(flag.partition("=")[0], known, 1, cutoff=0.6) if flag[:1] == "-" else []
    return f"unknown argument {flag}" + (f"; did you mean {matches[0]}?" if matches else "; see --help")


def _new_folder(out: Path | None, name: str) -> Path:
    if out:
        return out
    stem = Path("runs") / f"{Path(name).stem or 'data'}-{time.strftime('%Y%m%d-%H%M%S')}"
    count, folder = 1, stem
    while folder.exists():
        count, folder = count + 1, stem.with_name(f"{stem.name}-{count}")
    return folder


def _train(arguments: argparse.Namespace) -> None:
    folder = _new_folder(arguments.out, arguments.config.data)
    train(arguments.config, folder, resume=bool(arguments.resume), debug=arguments.debug)


def _compare(arguments: argparse.Namespace) -> None:
    from pyro_vae import plots
    from pyro_vae.comparison import compare
    from pyro_vae.config import device_named, load_data
    from pyro_vae.runs import as_seen, check_folder, seeded_vae

    config = arguments.config
    folder = _new_folder(arguments.out, f"compare-{Path(config.data).stem}")
    check_folder(folder)
    _check_file(arguments.json, "--json")
    device = device_named(config.device)
    x = as_seen(config, load_data(config).train[:].to(device))
    vae = seeded_vae(config, tuple(x.shape[1:])).to(device)
    counts = {"steps": arguments.steps, "draws": arguments.draws, "rounds": arguments.rounds}
    found = compare(vae, x, batch_size=config.batch_size, seed=config.seed, **counts)
    projections = [found.why_the_trick[name]["projections"] for name in ("pathwise", "score_function")]
    pictures = {"gradients": plots.gradients(*projections), "trajectory": plots.trajectory(found.trajectory)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        write_whole(folder / f"{name}.png", plots.png(figure))
    for path in filter(None, (folder / "comparison.json", arguments.json)):
        write_whole(path, (found.json() + "\n").encode())
    say(found.table())
    say(f"pictures and JSON: {printable(str(folder))}")


def _gradients(arguments: argparse.Namespace) -> None:
    from pyro_vae import plots
    from pyro_vae.laboratory import gradients

    _check_file(arguments.json, "--json")
    _check_file(arguments.out, "--out", plots.KINDS)
    found = gradients(arguments.model, arguments.draws, arguments.seed)
    say(found.table())
    if arguments.json:
        write_whole(arguments.json, (found.json() + "\n").encode())
    if arguments.out:
        names, unbiased = (found.column(name, "encoder") for name in ("estimator", "unbiased_expected"))
        variances = {block: found.column("variance", block) for block in ("encoder", "decoder")}
        title = f"{found.model}: {found.draws} draws of each gradient (hollow: biased by design)"
        figure = plots.estimators(names, variances, [not expected for expected in unbiased], title)
        write_whole(arguments.out, plots.as_file(figure, arguments.out.suffix.lower()))


def _list(arguments: argparse.Namespace) -> None:
    from pyro_vae.config import catalogue

    if arguments.markdown:
        say("| kind | name | what it is | reference |\n| --- | --- | --- | --- |")
    for row in catalogue():
        say(
            f"| {' | '.join(row).replace(':math:', '')} |"
            if arguments.markdown
            else f"{row[0]:<9}{row[1]:<29}{row[2]} ({row[3]})"
        )


def _read_run(arguments: argparse.Namespace) -> "tuple[VAE, Config]":
    from pyro_vae.runs import load_vae

    local = _local_flags(arguments) if hasattr(arguments, "data_root") else ["--data-root=", "--download"]  # not read
    config = _run_config(arguments.run, arguments.allow, *local)
    vae = load_vae(arguments.run, config, best=arguments.best)
    return vae, _with_named_data(config, arguments)


def _with_named_data(config: Config, arguments: argparse.Namespace) -> Config:
    """Put the data that --data names in the place of the run's, with the run's scale if it has one that fits."""
    from pyro_vae.data import are_images

    data, scale = getattr(arguments, "data", None), getattr(arguments, "scale", None)
    if scale is not None and data is None:
        raise ValueError("--scale goes with --data FILE: the run's own data have their scale")
    if data is None:
        return config
    return replace(config, data=data, scale=config.scale if scale is None and not are_images(data) else scale)


def _check_file(path: Path | None, flag: str, suffixes: Collection[str] = ()) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold."""
    if path and path.exists() and not path.is_file():
        raise ValueError(
            f"{flag} {path} cannot be written: it is {'a folder' if path.is_dir() else 'no ordinary file'}"
        )
    if path and not path.absolute().parent.is_dir():
        raise ValueError(f"{flag} {path} cannot be written: its folder does not exist")
    if path:
        check_no_link(path)
    if path and not takes_files(path.absolute().parent):
        raise ValueError(f"{flag} {path} cannot be written: its folder takes no files")
    if path and suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{flag} {path} must end in {', '.join(suffixes)}, which says what is written")


@contextmanager
def _without_warnings_of_nan() -> Iterator[None]:
    """Leave out Pyro's warnings of NaN, which is refused."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered")
        yield


def _check_results(found: dict[str, float]) -> None:
    """Refuse results that are no numbers, as of weights so large that they overflow."""
    if wrong := [name for name, value in found.items() if math.isnan(value)]:
        raise ValueError(f"the weights of this run give {wrong[0]} as NaN: take --best, or train anew")


def _sample(arguments: argparse.Namespace) -> None:
    import torch

    from pyro_vae import plots
    from pyro_vae.networks import as_size
    from pyro_vae.programs import seeded

    as_size(arguments.n, "--n")
    path = arguments.out or arguments.run / f"sample-seed{arguments.seed}.png"
    _check_file(arguments.out, "--out", (*plots.KINDS, ".npy", ".csv"))
    vae, config = _read_run(arguments)
    with seeded(arguments.seed, torch.device(config.device)):
        x = vae.sample(arguments.n)
    _check_results({"a sample": x.sum().item()})
    kind = path.suffix.lower()
    title = "Samples from the prior, decoded"
    write_whole(path, plots.as_file(plots.samples(x, title), kind) if kind in plots.KINDS else _numbers(x, kind))
    say(printable(str(path)))


def _numbers(x: "Tensor", suffix: str) -> bytes:
    """Return data as a file of numpy's, or as lines of numbers, one datum each."""
    import numpy as np

    buffer, array = io.BytesIO(), x.cpu().numpy()
    if suffix == ".npy":
        np.save(buffer, array)
    else:
        np.savetxt(buffer, array.reshape(len(array), -1), "%.9g", ",")
    return buffer.getvalue()


def _reconstruct(arguments: argparse.Namespace) -> None:
    import torch

    from pyro_vae import plots
    from pyro_vae.config import build_loss, check_choice, transform_of
    from pyro_vae.evaluation import evaluate
    from pyro_vae.networks import as_size
    from pyro_vae.pictures import EVALUATE, reconstruction_figure
    from pyro_vae.programs import seeded
    from pyro_vae.runs import check_part, load_data_of, values_of

    check_choice("evaluate", arguments.evaluate, EVALUATE)
    as_size(arguments.n, "--n")
    _check_file(arguments.out, "--out", plots.KINDS)
    vae, config = _read_run(arguments)
    data = load_data_of(arguments.run, config, named=bool(arguments.data))
    transform, device = transform_of(config), torch.device(config.device)
    check_part(vae, config, data, "test", device)
    x = data.test[: arguments.n].to(device)
    with seeded(arguments.seed, device):
        figure = reconstruction_figure(vae, transform(x) if transform else x, arguments.evaluate)
    loss = build_loss(config, len(data.train))
    settings = {"loss": loss, "at": arguments.evaluate, "seed": arguments.seed, "transform": transform}
    with _without_warnings_of_nan():
        bound = evaluate(vae.model, vae.guide, data.test, **settings)
    _check_results(bound._asdict())
    path = arguments.out or arguments.run / f"reconstruct-{arguments.evaluate}.png"
    write_whole(path, plots.as_file(figure, path.suffix.lower()))
    if arguments.data:
        say(f"values: {values_of(config, data)}")
    what = "a bound" if arguments.evaluate == "sample" else "no bound"
    say(
        f"evaluate={arguments.evaluate} ({what}), test: loss {bound.loss:.2f}, reconstruction"
        f" {bound.reconstruction:.2f}, KL {bound.kl:.2f} nats per datum"
    )
    say(printable(str(path)))


def _evaluate(arguments: argparse.Namespace) -> None:
    from pyro_vae.config import build_loss, device_named
    from pyro_vae.evaluation import evaluate, log_likelihood
    from pyro_vae.memory import as_bytes
    from pyro_vae.networks import as_size
    from pyro_vae.runs import as_seen, check_part, load_data_of, values_of

    as_size(arguments.samples, "--samples")
    as_bytes(arguments.memory)
    _check_file(arguments.json, "--json")
    vae, config = _read_run(arguments)
    data = load_data_of(arguments.run, config, named=bool(arguments.data))
    device = device_named(config.device)
    check_part(vae, config, data, "test", device)
    x, pair = as_seen(config, data.test[:].to(device)), (vae.model, vae.guide)
    loss, seed = build_loss(config, len(data.train)), arguments.seed
    with _without_warnings_of_nan():
        bound, at_mean = (evaluate(*pair, x, loss=loss, at=at, seed=seed) for at in ("sample", "mean"))
        log_p = log_likelihood(*pair, x, samples=arguments.samples, memory=arguments.memory, seed=seed)
    terms = {"bound": -bound.loss, "reconstruction": -bound.reconstruction, "kl": bound.kl}
    found = {**terms, "bound_at_mean": -at_mean.loss, "log_p": log_p}
    _check_results(found)
    if arguments.json:
        about = {"data": config.data, "test_data": len(x), "samples": arguments.samples, "seed": seed}
        figures = {name: value if math.isfinite(value) else None for name, value in found.items()}
        write_whole(arguments.json, (json.dumps({**figures, **about}, indent=2, allow_nan=False) + "\n").encode())
    say(f"{printable(config.data)}: {len(x)} test data, nats per datum; larger is better, but for the KL")
    if arguments.data:
        say(f"values: {values_of(config, data)}")
    texts = {
        "bound": f"bound ({config.loss})",
        "reconstruction": "reconstruction, E log p(x|z)",
        "kl": "KL(q(z|x) || p(z))",
        "bound_at_mean": "at the posterior mean (no bound)",
        "log_p": f"log p(x), {arguments.samples} samples",
    }
    for name, text in texts.items():
        say(f"{text:<34}{found[name]:>12.2f}")
    if getattr(vae.decoder, "grey", False):
        say("grey pixels are scored by cross-entropy: these are no log-probabilities")
