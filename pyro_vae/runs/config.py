"""The config of a run, in plain values. Does not import torch, so that the command line shows its help at once."""

import re
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import yaml

from pyro_vae.files import check_regular, write_whole

FREE = {  # flags that may change when a run is resumed
    *(
        "data",
        "data_root",
        "download",
        "device",
        "devices",
        "epochs",
        "engine",
        "memory",
        "on_nan",
        "patience",
        "checkpoint_minutes",
    ),
    *("evaluate", "latent_map"),
}
TRUSTED = ("pyro_vae", "torch", "pyro")  # packages from which a config file may name a class
LOCAL = ("data_root", "download")  # flags that a config file may not set: what this machine reads and downloads
LARGEST_CONFIG = 2**16  # bytes
PARTS = ("prior", "encoder", "decoder", "network", "loss")  # these have parameters of their own


@dataclass
class Config:
    """Everything needed to repeat a run: one field for each flag of ``pyro-vae train``, with its name and its help.

    ``options`` holds the parts' own parameters, such as ``{"decoder": {"scale": 0.1}}`` for ``--decoder.scale 0.1``.
    """

    data: Annotated[str, "NAME|PATH", "digits, mnist, fashion-mnist, kmnist, .npy, .npz, image folder"] = "digits"
    data_root: Annotated[str | None, "DIR", "folder of torchvision's data (default: $PYRO_VAE_DATA, or data)"] = None
    download: Annotated[bool, "", "download the data set if it is missing"] = False
    scale: Annotated[
        float | None,
        "X",
        "divide the values of a .npy or .npz file by X, such as 255 (default: do not divide them)",
    ] = None
    binarize: Annotated[str, "HOW", "none (grey values), threshold or dynamic"] = "none"
    prior: Annotated[str, "CLASS", "the prior: a name below, or package.module.Class"] = "Normal"
    encoder: Annotated[str, "CLASS", "the encoder: a name below, or package.module.Class"] = "Normal"
    decoder: Annotated[str, "CLASS", "the decoder: a name below, or package.module.Class"] = "Bernoulli"
    network: Annotated[str, "NAME", "encoder's and decoder's network: a name below"] = "MLP"
    hidden: Annotated[list[int], "N", "widths of the MLP's hidden layers"] = field(default_factory=lambda: [400])
    channels: Annotated[list[int], "N", "channels of Conv"] = field(default_factory=lambda: [32, 64])
    latent_dim: Annotated[int, "D", "latent dimensions"] = 10
    loss: Annotated[str, "NAME", "the objective: a name below; Trace_ELBO, TraceMeanField_ELBO, IWAE, ..."] = (
        "Trace_ELBO"
    )
    beta: Annotated[float, "X", "weight of the KL"] = 1.0
    warm_up: Annotated[int, "N", "epochs over which the weight of the KL rises from 0"] = 0
    epochs: Annotated[int, "N", "number of passes over the data"] = 100
    batch_size: Annotated[int, "N", "number of data per step"] = 64
    lr: Annotated[float, "X", "learning rate"] = 1e-3
    optimizer: Annotated[str | None, "NAME", "adam (default), adamw, adamax, nadam, radam, rmsprop, adagrad, sgd"] = (
        None
    )
    weight_decay: Annotated[float | None, "X", "weight decay of the optimizer (default: its own)"] = None
    eps: Annotated[float | None, "X", "eps of the optimizer, added to its denominator (default: its own)"] = None
    lr_schedule: Annotated[
        str | None,
        "HOW",
        "cosine (to 0 at the last epoch), step (a tenth every 30 epochs), exponential (0.95 times each epoch) or"
        " plateau (a tenth after 10 epochs without a lower test loss) (default: constant)",
    ] = None
    patience: Annotated[
        int | None, "N", "stop after N epochs without a lower test loss, and keep the best weights (default: never)"
    ] = None
    clip_norm: Annotated[float | None, "X", "largest norm of the gradient of all parameters (default: no limit)"] = None
    engine: Annotated[str, "HOW", "auto, eager, recorded (replay the programs' arithmetic) or compiled"] = "auto"
    precision: Annotated[str, "HOW", "32, or bf16-mixed: layers in bfloat16, everything else in 32 bits"] = "32"
    memory: Annotated[
        str | None, "SIZE", "memory limit for the particles of a step: 512MB, 2GiB, ...; chooses --loss.chunk"
    ] = None
    on_nan: Annotated[
        str, "HOW", "what to do if a loss is not finite: stop, skip (the batch) or rollback (to the start of the epoch)"
    ] = "stop"
    checkpoint_minutes: Annotated[float, "X", "minutes between checkpoints within an epoch"] = 5.0
    seed: Annotated[int, "N", "random seed for the first weights, shuffling and sampling"] = 0
    device: Annotated[str, "NAME", "cpu, cuda, cuda:1, mps"] = "cpu"
    devices: Annotated[
        int | None,
        "N",
        "number of processes on this machine, one per core or GPU, each with --batch-size data per step (default: 1, or"
        " those of torchrun)",
    ] = None
    evaluate: Annotated[str, "WHAT", "codes of the pictured reconstructions: posterior mean or sample"] = "mean"
    latent_map: Annotated[str, "HOW", "axes of the latent map: first (two dimensions), pca or tsne"] = "pca"
    options: dict[str, dict[str, Any]] = field(default_factory=lambda: {kind: {} for kind in PARTS})

    @staticmethod
    def flags() -> list[str]:
        """Return the names of the fields that are flags: all except ``options``."""
        return [f.name for f in fields(Config) if f.name != "options"]

    def flat(self) -> dict[str, Any]:
        """Return the flags that are set, by name, such as ``decoder.scale`` for a part's own parameter."""
        plain = {name: value for name in self.flags() if (value := getattr(self, name)) is not None}
        own = {f"{kind}.{name}": value for kind, values in self.options.items() for name, value in values.items()}
        return {**plain, **own}

    def identity(self) -> dict[str, Any]:
        """Return the flags that determine the weights: all files of a run must have been written with the same.

        The data are not among them: a file may have moved, and its values are compared by
        `pyro_vae.data.fingerprint`.
        """
        return {name: value for name, value in self.flat().items() if name not in FREE}

    def save(self, path: Path) -> None:
        """Write the flags as YAML, with the versions of torch and Pyro as a comment."""
        versions = f"# torch {version('torch')}, pyro-ppl {version('pyro-ppl')}\n"
        kept = {name: value for name, value in self.flat().items() if name not in LOCAL}
        write_whole(path, (versions + as_yaml(kept)).encode())


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases (a few lines could become more values than fit into memory), huge numbers and twin keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"it has an alias, *{self.peek_event().anchor}: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            _refuse_twice([str(key.value) for key, _ in node.value])
        return mapping

    def construct_yaml_int(self, node: Any) -> int:
        value = int(node.value)
        if abs(value) >= 2**64:
            raise ValueError(f"it has a number of more than 64 bits, {node.value[:20]}...")
        return value


def _refuse_twice(names: list[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"it says {twice[0]} twice: leave one of them out")


# Numbers as flags and YAML 1.2 have them. In YAML 1.1, which PyYAML reads, 010 is 8, 1:30 is 90 and 1e-3 is a text.
_NUMBERS = {
    "int": r"[-+]?[0-9]+$",
    "float": r"(?:[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
}
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in known if tag.rpartition(":")[2] not in _NUMBERS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _form in _NUMBERS.items():
    _PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_form), list("-+.0123456789"))
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


class _PlainDumper(yaml.SafeDumper):
    """Writes a text in quotes where `_PlainLoader` would take it for a number."""


_PlainDumper.yaml_implicit_resolvers = _PlainLoader.yaml_implicit_resolvers


def as_yaml(value: Any) -> str:
    """Return the YAML that `plain_yaml` reads as a plain value.

    Example:
        >>> plain_yaml(as_yaml("1e1")), plain_yaml(as_yaml("no")), plain_yaml(as_yaml(None))
        ('1e1', 'no', None)
    """
    return yaml.dump(value, Dumper=_PlainDumper, sort_keys=False)


def plain_yaml(text: str) -> Any:
    """Read plain values of YAML.

    Raises:
        ValueError, RecursionError, yaml.YAMLError: for text that is not YAML, or has aliases.

    Example:
        >>> plain_yaml("{epochs: 3, decoder.scale: 0.1}")
        {'epochs': 3, 'decoder.scale': 0.1}
    """
    return yaml.load(text, _PlainLoader)  # noqa: S506 (it is a safe loader)


def read_flags(path: Path) -> dict[str, Any]:
    """Read the flags of a config file.

    Raises:
        ValueError: for a file that is missing, too large, or does not hold flags.
    """
    try:
        check_regular(path)
        with open(path, "rb") as file:
            content = file.read(LARGEST_CONFIG + 1)
        if len(content) > LARGEST_CONFIG:
            raise ValueError(f"it is larger than {LARGEST_CONFIG} bytes")
        flags = plain_yaml(content.decode())
        if isinstance(flags, dict):
            _refuse_twice([str(name).replace("-", "_") for name in flags])  # in two spellings
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"the config {path} cannot be read: {error}") from error
    if not isinstance(flags, dict) or not all(isinstance(name, str) for name in flags):
        raise ValueError(f"the config {path} must hold lines such as 'epochs: 10', the flags without their dashes")
    return flags
