"""Experiments: the data, the VAE and the objective of a config."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from pyro_vae.data import Data, fingerprint
from pyro_vae.data.scales import sizes_of
from pyro_vae.diagnostics.evaluation import evaluate
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
from pyro_vae.training.batches import Batches
from pyro_vae.training.checks import check_before, check_patience, fit_to_memory
from pyro_vae.training.history import Measure
from pyro_vae.training.programs import Programs
from pyro_vae.vae import VAE

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from pyro_vae.runtime.checkpoints import Checkpoints

SHOWN = 1000  # test data in the pictures, at most
MAKING = (torch.arange, torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)


class Experiment:
    """The data, the VAE and the objective that a config names, on their device.

    Arguments:
        config: the config.
        data: its data, if they have been loaded already.
        vae: its VAE, if it has been built already; by default, one with weights drawn from the config's seed.
        device: the device of the VAE; by default, that of the config.

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
        """What determines the weights: flags, and a fingerprint of the data."""
        return self.config.identity() | {"data": fingerprint(self.data)}

    @cached_property
    def sizes(self) -> list[float] | None:
        """The size of the values of the training data, as `pyro_vae.data.scales.Values`; None for too few data."""
        return next(map(list, sizes_of(self.data.train).values()), None)

    @contextmanager
    def evaluating(self, seed: int | None = None) -> Iterator[None]:
        """Return a context for evaluations: noise from the config's seed or another one, and no dropout."""
        with seeded(self.config.seed if seed is None else seed, self.device), mode(False, self.vae):
            yield

    def as_seen(self, x: Tensor) -> Tensor:
        """Return data as the programs see them: on their device, and binarized if the config says so."""
        x = x.to(self.device)
        with seeded(self.config.seed, self.device):
            return self.transform(x) if self.transform else x

    @property
    def shown(self) -> Tensor:
        """The test data that the pictures show, at most `SHOWN`, as the encoder sees them."""
        return self.as_seen(self.data.test[:SHOWN])

    @property
    def is_grey(self) -> bool:
        """Whether the likelihood is a cross-entropy of grey pixels, which is no density."""
        return bool(getattr(self.vae.decoder, "grey", False))

    @property
    def guide(self) -> Callable[..., Any]:
        """The VAE's guide, with its sites marked for enumeration where the objective sums over them."""
        guide: Callable[..., Any] = self.vae.guide
        return config_enumerate(guide) if isinstance(self.loss, TraceEnum_ELBO) else guide

    def check(self, name: str) -> None:
        """Check the "train" or the "test" part of the data against the VAE, by `check_programs`."""
        where = f" of data.load({self.config.data!r}).{name}"  # in a file without parts, the data have another order
        with self.evaluating():
            x = getattr(self.data, name).to(self.device)
            check_programs(self.vae.model, self.vae.guide, x, self.transform, where=where)

    def check_training(self) -> None:
        """Refuse what `fit` would refuse, before anything is printed.

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
        self._check_objective()

    def _check_objective(self) -> None:
        """Refuse an objective and a memory limit that the programs do not fit, as `fit` would on its first batch."""
        config, programs = self.config, Programs(self.vae.model, self.guide, self.transform)
        x = self.data.train[: config.batch_size].to(self.device)
        first, measure = Batches(x, len(x), self.transform), Measure(programs.model, programs.guide, None, {})
        with self.evaluating(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `fit` gives them again
            _, loss = check_before(programs, first, measure, self.loss, config.seed)
            loss = fit_to_memory(loss, config.memory, programs, first, config.seed)
            loss.num_particles = min(loss.num_particles, 2 * getattr(loss, "groups", 1))  # more would show no more
            evaluate(self.vae.model, self.guide, x[:2], loss=loss, transform=self.transform)

    def steps_per_epoch(self, processes: int = 1) -> int:
        """Return the number of steps in an epoch; each step takes a batch from every process."""
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
        config = self.config
        return fit(
            self.vae.model,
            self.guide,
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
    """Refuses to make a VAE that is much larger than the weights for it, before it takes memory."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.left = 4 * sum(tensor.numel() for tensor in weights.values()) + 2**22  # with room for temporary tensors

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in MAKING:
            self.left -= math.prod(size for size in tree_leaves(args) if isinstance(size, int))
        if function is Tensor.__getitem__ and any(isinstance(each, Tensor) for each in tree_leaves(args[1])):
            taken = function(*tree_map_only(Tensor, lambda each: each.to("meta"), args))  # which takes no memory
            self.left -= taken.numel()
        if self.left < 0:
            raise ValueError("config.yaml makes a VAE that is much larger than the run's weights: correct its sizes")
        return function(*args, **(kwargs or {}))


def seeded_vae(config: Config, shape: Shape, weights: Mapping[str, Tensor] | None = None) -> VAE:
    """Build a config's VAE with weights drawn from its seed, without changing torch's random state.

    Arguments:
        config: the config.
        shape: the shape of one datum.
        weights: the weights that it will get, if they are known.

    Raises:
        ValueError: as `build`; also for a VAE that is much larger than its weights, before it takes memory.
    """
    with seeded(config.seed, torch.device("cpu")), nullcontext() if weights is None else _Within(weights):
        return build(config, shape)
