"""Flags of the command line, and the config that they make together with a config file. Does not import torch."""

import argparse
import difflib
import inspect
import textwrap
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import yaml

from pyro_vae.cli.launch import say
from pyro_vae.files import printable
from pyro_vae.runs.config import LOCAL, PARTS, TRUSTED, Config, as_yaml, plain_yaml, read_flags

PRESETS = {"practicum": {"latent_dim": 20, "epochs": 10, "batch_size": 256}}  # and the defaults
TRAIN_ONLY = {
    *("epochs", "lr", "loss", "beta", "warm_up", "clip_norm", "engine", "precision", "devices"),
    *("optimizer", "weight_decay", "eps", "lr_schedule", "patience"),
    *("memory", "on_nan", "checkpoint_minutes"),
    *("evaluate", "latent_map"),
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose help lists the parts of a VAE if the command builds one."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        say(printable(f"{self.prog}: error: {message}"), error=True)
        raise SystemExit(2)

    def format_help(self) -> str:
        """Return the help, with all parts and their parameters if the command builds a VAE."""
        if not self.get_default("builds_vae"):
            return super().format_help()
        from pyro_vae.runs import parts as config

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


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse argv, and make ``config`` a `Config`; flags in argv override those of --config and --preset."""
    arguments, rest = _known(parser, argv)
    if getattr(arguments, "resume", None):
        _check_resume(arguments, rest)
        local = local_flags(arguments)
        local += [] if arguments.data is None else [f"--data={arguments.data}"]
        local += [f"--epochs={arguments.epochs}"] if arguments.epochs is not None else []
        arguments.out, arguments.config = arguments.resume, config_of_run(arguments.resume, arguments.allow, *local)
    elif arguments.builds_vae:
        tokens = _tokens_of_files(arguments)
        command = argv[:1] if "command" in arguments else []
        arguments, rest = _known(parser, [*command, *tokens, *argv[len(command) :]])
        arguments.config = _config(arguments, rest)
    elif rest:
        raise ValueError(_unknown_flag(rest[0], vars(arguments)))
    return arguments


def _flags_of_files(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of --preset and --config that the command takes; the config file overrides the preset."""
    from_file = read_flags(arguments.config) if arguments.config else {}
    for name in from_file:
        if name.replace("-", "_") not in Config.flags() and name.partition(".")[0] not in PARTS:
            raise ValueError(f"{arguments.config}: {_unknown_flag(f'--{name}', Config.flags())}")
    _check_local(from_file, arguments)
    flags = PRESETS.get(arguments.preset, {}) | from_file
    _check_classes({name: value for name, value in flags.items() if not getattr(arguments, name, None)}, arguments)
    return {name: value for name, value in flags.items() if "." in name or name.replace("-", "_") in arguments}


def _tokens_of_files(arguments: argparse.Namespace) -> list[str]:
    """Return the flags of --preset and --config as tokens of argv; an error in a file names the file."""
    try:
        tokens = _tokens(_flags_of_files(arguments))
    except TypeError as error:
        raise ValueError(f"{arguments.config}: {error}") from error
    of_file = Parser(prog=f"pyro-vae: {arguments.config}", allow_abbrev=False)
    add_config_flags(of_file)
    of_file.parse_known_args(tokens)
    return tokens


def _known(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the arguments that the parser knows, and the rest of argv."""
    arguments, rest = parser.parse_known_args(argv)
    for name, value in vars(arguments).items():
        if value == [] and name != "allow":  # argparse turns --prior=-- into an empty list
            raise ValueError(f"--{name.replace('_', '-')} takes a value, not '--'")
    return arguments, rest


def _check_resume(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Refuse other flags beside --resume, because a run continues with its own config."""
    flags = [name for name in (*Config.flags(), "preset", "config", "out") if name not in (*LOCAL, "data", "epochs")]
    given = [name for name in flags if getattr(arguments, name) is not None]
    if given or rest:
        flag = f"--{given[0].replace('_', '-')}" if given else rest[0]
        raise ValueError(f"--resume continues with the flags of the run's config.yaml: leave out {flag}")


def _check_classes(flags: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Refuse to import a module that a file names and --allow does not, because importing a module runs it."""
    for name, value in flags.items():
        module = str(value).rpartition(".")[0]
        known = any(module == allowed or module.startswith(f"{allowed}.") for allowed in (*TRUSTED, *arguments.allow))
        if name in PARTS and all(module.split(".")) and not known:  # names without a module are checked later
            reason = f"{arguments.config} names {value!r} as its {name}, and importing a module runs its code"
            raise ValueError(f"{reason}: if you trust it, add --allow {module}")


def local_flags(arguments: argparse.Namespace) -> list[str]:
    """Return the flags of the user that say where this machine finds its data."""
    root = [] if arguments.data_root is None else [f"--data-root={arguments.data_root}"]
    return [*root, *(["--download"] if arguments.download else [])]


def _check_local(flags: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Refuse a file that sets what this machine reads or downloads, unless the user gives the same flag."""
    for name, value in flags.items():
        known = name.replace("-", "_")
        chosen = value is not None and value is not False  # 0 would be a folder's name
        if known in LOCAL and chosen and getattr(arguments, known) is None:
            flag = f"--{known.replace('_', '-')}" + (f"={value}" if known == "data_root" else "")
            raise ValueError(
                f"{arguments.config} sets {name}: {value!r}, but only you may set that: if you trust it, add {flag}"
            )


def config_of_run(run: Path, allow: list[str], *flags: str) -> Config:
    """Return the config that a run's folder holds."""
    path = run / "config.yaml"
    if not path.exists():
        raise ValueError(f"{run} is no run: it holds no config.yaml")
    parser = Parser(prog="pyro-vae", allow_abbrev=False)
    add_config_flags(parser)
    config: Config = parse(parser, [f"--config={path}", *flags, *(f"--allow={module}" for module in allow)]).config
    return config


def add_command(commands: Any, name: str, function: Callable[..., None], summary: str) -> argparse.ArgumentParser:
    """Add a command, and the function that runs it."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    parser.set_defaults(command=function, builds_vae=False)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_config_flags(parser: argparse.ArgumentParser, left_out: Collection[str] = ()) -> None:
    """Add a flag for each field of `Config`; a flag that is not given is None."""
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
    add_allow(parser)
    add("--preset", choices=sorted(PRESETS), help="a known recipe; other flags override it")
    add("--config", type=as_path, metavar="FILE", help="read flags from a YAML file, such as a run's config.yaml")


def as_path(text: str) -> Path:
    """Return a path with ~ replaced by the user's home; a shell does not replace it after an equals sign."""
    return Path(text).expanduser()


def add_allow(parser: argparse.ArgumentParser) -> None:
    """Add the flag that allows a config file to name classes of a module."""
    text = "a module whose classes a config file may name, besides pyro_vae, torch and pyro; may be repeated"
    parser.add_argument("--allow", action="append", default=[], metavar="MODULE", help=text)


def _tokens(flags: dict[str, Any]) -> list[str]:
    """Return the flags of a file as tokens of argv."""
    tokens = []
    for name, value in flags.items():
        if "." in name:  # `_config` reads it as YAML
            tokens.append(f"--{name}={as_yaml(value)}")
            continue
        flag, default = f"--{name.replace('_', '-')}", getattr(Config(), name.replace("-", "_"))
        if value is None and default is not None:  # of an empty line, such as "epochs:"
            raise TypeError(f"{name} takes a value: write one, or leave the line out")
        if isinstance(value, list):
            if not value or not all(type(each) is int for each in value):  # a text might be another flag
                raise TypeError(f"{name} takes one value, or a list of whole numbers, not {value!r}")
            tokens += [flag, *map(str, value)]
        elif isinstance(value, bool) is not isinstance(default, bool) and value is not None:
            raise TypeError(
                f"{name} takes {'true or false' if isinstance(default, bool) else 'a value'}, not {value!r}"
            )
        elif isinstance(default, bool):
            tokens += [flag] if value else []
        elif name == "data" and not isinstance(value, str):  # 010 would be the file 10
            raise TypeError(f"data takes a name or a path, not {value!r}: write it in quotes")
        elif value is not None:  # a flag that is set
            tokens.append(f"{flag}={value}")
    return tokens


def _config(arguments: argparse.Namespace, rest: list[str]) -> Config:
    """Make a config of the flags that were given, and of the parts' own parameters in the rest."""
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
    if flag == "--":
        return "unknown argument --: leave it out"
    if flag.partition("=")[0] in known:  # after --, nothing is a flag
        return f"unknown argument {flag} after --: give flags before it, or leave -- out and write a name as ./-name"
    matches = difflib.get_close_matches(flag.partition("=")[0], known, 1, cutoff=0.6) if flag[:1] == "-" else []
    return f"unknown argument {flag}" + (f"; did you mean {matches[0]}?" if matches else "; see --help")
