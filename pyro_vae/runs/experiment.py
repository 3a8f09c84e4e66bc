"""An experiment: a config made into its data, its VAE and its objective."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pyro_vae.data import Data, fingerprint
from pyro_vae.networks import Shape
from pyro_vae.programs import check_programs, mode, seeded
from pyro_vae.runs.config import Config
from pyro_vae.runs.parts import (
    beta_of,
    build,
    build_loss,
    device_named,
    load_data,
    optimizer_of,
    schedule_of,
    transform_of,
)
from pyro_vae.training import History, Row, check_loss, check_settings, fit
from pyro_vae.training.checks import check_patience
from pyro_vae.vae import VAE

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from pyro_vae.runtime.checkpoints import Checkpoints

SHOWN = 1000  # test data in the pictures


class Experiment:
    """A config made into what it names: data, and a VAE with its objective, on its device.

    Arguments:
        config: the config.
        data: its data, if they are loaded already.
        vae: its VAE, if it is built already; else one with weights from the seed.
        device: where the VAE is put, if not on the config's device.

    Raises:
        ValueError: for anything in the config or the data that does not fit.

    Example:
        >>> experiment = Experiment(Config(data="digits", latent_dim=2))
        >>> experiment.shape, experiment.vae.prior, len(experiment.shown)
        ((1, 8, 8), Normal(latent_dim=2, learned=False), 360)
    """

    def __init__(
        self, config: Config, data: Data | None = None, vae: VAE | None = None, device: torch.device | None = None
    ) -> None:
        self.config, self.device = config, device or device_named(config.device)
        self.transform = transform_of(config)
        self.data = data or load_data(config)
        self.shape = tuple(self.data.train.shape[1:])
        self.loss = build_loss(config, len(self.data.train))
        self.vae = (vae or seeded_vae(config, self.shape)).to(self.device)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What weights are of: the flags that count, and the data."""
        return self.config.identity() | {"data": fingerprint(self.data)}

    @contextmanager
    def evaluating(self, seed: int | None = None) -> Iterator[None]:
        """Evaluate the VAE: noise from the config's seed or another one, no dropout, and all as before at the end."""
        with seeded(self.config.seed if seed is None else seed, self.device), mode(False, self.vae):
            yield

    def as_seen(self, x: Tensor) -> Tensor:
        """Return data as the programs see them: on their device, and binarized where the config says so."""
        x = x.to(self.device)
        with seeded(self.config.seed, self.device):
            return self.transform(x) if self.transform else x

    @property
    def shown(self) -> Tensor:
        """The test data that the pictures show, at most `SHOWN`, as the encoder sees them."""
        return self.as_seen(self.data.test[:SHOWN])

    def check(self, name: str) -> None:
        """Refuse the "train" or the "test" part of data that the VAE does not take, as `check_programs` does."""
        of = f" of data.load({self.config.data!r}).{name}"  # a file of one part is split in another order
        with self.evaluating():
            x = getattr(self.data, name).to(self.device)
            check_programs(self.vae.model, self.vae.guide, x, self.transform, of=of)

    def check_training(self) -> None:
        """Refuse what `fit` would refuse, before the first word is said.

        Raises:
            ValueError: for the first setting that does not fit.
        """
        config = self.config
        check_settings(beta=config.beta, lr=config.lr, device=self.device, **self._settings())
        check_patience(config.patience, self.data.test)
        optimizer_of(config), schedule_of(config)
        check_loss(self.loss, beta_of(config, steps_per_epoch=1), config.memory)
        for name in ("train", "test"):
            self.check(name)

    def steps_per_epoch(self, processes: int = 1) -> int:
        """Return how many batches, of all processes together, an epoch has."""
        return -(-len(self.data.train) // (self.config.batch_size * processes))

    def fit(
        self,
        checkpoints: "Checkpoints | None" = None,
        *,
        resume: bool = False,
        fabric: "Fabric | None" = None,
        on_step: Callable[[int, Tensor], None] | None = None,
        on_epoch: Callable[[Row], None] | None = None,
    ) -> History:
        """Train the VAE as the config says, by `pyro_vae.fit`."""
        config, guide = self.config, self.vae.guide
        return fit(
            self.vae.model,
            config_enumerate(guide) if isinstance(self.loss, TraceEnum_ELBO) else guide,
            self.data.train,
            loss=self.loss,
            optimizer=optimizer_of(config),
            schedule=schedule_of(config),
            seed=config.seed,
            validation=self.data.test,
            beta=beta_of(config, self.steps_per_epoch(fabric.world_size if fabric else 1)),
            patience=config.patience,
            memory=config.memory,
            transform=self.transform,
            fabric=fabric,
            checkpoints=checkpoints,
            resume=checkpoints.folder if checkpoints and resume else None,
            on_step=on_step,
            on_epoch=on_epoch,
            **self._settings(),
        )

    def _settings(self) -> dict[str, Any]:
        names = ("epochs", "batch_size", "clip_norm", "engine", "precision", "on_nan")
        return {name: getattr(self.config, name) for name in names}


class _Within(TorchFunctionMode):
    """Refuses to make more numbers than a VAE could have whose weights are known, before they take memory."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.left = 4 * sum(tensor.numel() for tensor in weights.values()) + 2**22  # and what is made on the way

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn):
            self.left -= math.prod(size for size in tree_leaves(args) if isinstance(size, int))
            if self.left < 0:
                raise ValueError(
                    "config.yaml makes a VAE that is much larger than the run's weights: correct its sizes"
                )
        return function(*args, **(kwargs or {}))


def seeded_vae(config: Config, shape: Shape, weights: Mapping[str, Tensor] | None = None) -> VAE:
    """Build a config's VAE with weights drawn from its seed, leaving torch's random state alone.

    Arguments:
        config: the config.
        shape: the shape of one datum.
        weights: those that it is to have, if they are known.

    Raises:
        ValueError: as `build`; for a VAE that is much larger than its weights, before it takes memory.
    """
    with seeded(config.seed, torch.device("cpu")), nullcontext() if weights is None else _Within(weights):
        return build(config, shape)
