"""Training on several processes and machines, one rank and one device each, on Lightning Fabric."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from pyro.params.param_store import normalize_param_name
from torch import Tensor
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from lightning_fabric import Fabric

from pyro_vae.data.batch import Batch, Count, are_rows, count_of, in_words, map_tensors
from pyro_vae.data.fingerprints import digest_of_batches

T = TypeVar("T")
TORCHRUN = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")  # environment variables that torchrun sets
TIMEOUT_MINUTES = 5  # for all ranks to join a sum: far longer than a step, or than writing files after an epoch
BETWEEN_LOOKS = 100  # steps, after which several processes stop and write checkpoints together, from equal states
SAME = "call fit with the same arguments on all of them, as it splits each batch itself"


class Ranks:
    r"""The processes of one training, as each of them sees the others.

    The batch of a step is split into one part for each rank. With :math:`n_r` data on rank r, and the gradient
    :math:`g_r` of their mean loss, all ranks use the gradient of the mean over the whole batch,

    .. math:: g = \frac{\sum_r n_r \, g_r}{\sum_r n_r},

    so that parameters that are equal at the start stay equal, even if the ranks have different numbers of data.

    Arguments:
        fabric: a launched ``lightning_fabric.Fabric``, or None for a single process.

    Example:
        >>> ranks = Ranks()
        >>> ranks.size, ranks.part(torch.arange(3))
        (1, tensor([0, 1, 2]))

    Reference:
        Li et al., 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training, section 2.2.
    """

    def __init__(self, fabric: "Fabric | None" = None) -> None:
        if fabric is not None and not hasattr(fabric, "global_rank"):
            raise TypeError(f"fabric must be a launched lightning_fabric.Fabric, not {fabric!r}")
        self.fabric = fabric
        self.rank: int = fabric.global_rank if fabric else 0
        self.size: int = fabric.world_size if fabric else 1

    def part(self, rows: Tensor) -> Tensor:
        """Return this rank's part of a batch; it is empty if there are fewer rows than ranks."""
        return rows.tensor_split(self.size)[self.rank]

    def part_of(self, batch: Batch, count: Count = count_of) -> Batch:
        """Return this rank's part of a batch of any structure.

        Arguments:
            batch: the batch of all ranks.
            count: returns the number of data of a batch.

        Raises:
            ValueError: if there are several ranks, and the tensors of the batch differ in their first dimension.
        """
        if self.size == 1:
            return batch
        if not are_rows(batch, count):
            fix = "let the first dimension of each tensor count the data, or train in one process"
            raise ValueError(f"several processes split each batch, but {in_words(batch)} cannot be split: {fix}")
        return map_tensors(self.part, batch)

    def seed(self, seed: int) -> int:
        """Return the seed of this rank's own noise; for rank 0, and so for a single process, it is the seed itself."""
        return seed if self.rank == 0 else int(np.random.SeedSequence([seed % 2**64, self.rank]).generate_state(1)[0])

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of the values of all ranks; it is the same on every rank to the last bit.

        Raises:
            ConnectionError: if another rank has ended, or does not answer.
        """
        if self.fabric is None:
            return values
        total = values.to(self.fabric.device, copy=True)
        with _all_there():
            torch.distributed.all_reduce(total)  # Fabric's own also waits at a barrier, which a step does not need
        return total.to(values.device)

    def gather(self, value: Tensor) -> list[Tensor]:
        """Return the values of all ranks, in their order.

        Raises:
            ConnectionError: as `sum`.
        """
        all_ = torch.zeros(self.size, *value.shape, dtype=torch.int64)
        all_[self.rank] = value
        return list(self.sum(all_).to(value))

    def check_same(self, values: Mapping[str, Any], fix: str = SAME) -> None:
        """Refuse plain values, by name, in which the ranks differ; the error ends with the fix.

        Raises:
            ValueError: with the first one, on all ranks.
        """
        if self.size == 1:
            return
        digests = [hashlib.sha256(repr(value).encode()).digest()[:7] for value in values.values()]
        everywhere = self.gather(torch.tensor([int.from_bytes(digest) for digest in digests]))
        for number, (name, value) in enumerate(values.items()):
            if len({int(there[number]) for there in everywhere}) > 1:
                texts = [""] * self.size
                with _all_there():
                    torch.distributed.all_gather_object(texts, repr(value))
                other = next(rank for rank, text in enumerate(texts) if text != texts[0])
                shown = f"{texts[0]} in process 0 but {texts[other]} in process {other}"
                raise ValueError(f"the processes differ in {name}, {shown}: {fix}")

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set on some rank."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag))) > 0)

    def check_parameters(self, names: Sequence[str], parameters: Sequence[Tensor], what: str, fix: str) -> None:
        """Refuse parameters that are not the same on all ranks, in their names, shapes and order.

        Arguments:
            names: the names that this rank's programs give them.
            parameters: the parameters.
            what: what they are, for the error.
            fix: the fix, for the error.

        Raises:
            ValueError: on all ranks.
        """
        shapes = {normalize_param_name(name): tuple(each.shape) for name, each in zip(names, parameters, strict=True)}
        self.check_same({what: shapes}, fix)

    def combine(
        self,
        terms: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        parameters: Sequence[Tensor],
        count: int,
        late: Sequence[str] = (),
    ) -> tuple[Sequence[Tensor], Sequence[Tensor | None], int | Tensor]:
        """Combine the ranks' results of one step, by a single sum over a flat tensor.

        Arguments:
            terms: scalars, summed over this rank's data.
            gradients: gradients of the mean over this rank's data, one for each parameter, or None.
            parameters: the parameters, with the same shapes on all ranks.
            count: the number of this rank's data; if it is 0, the rank's terms and gradients are ignored.
            late: names of parameters that this rank has first used in this step, which are the last ones.

        Returns:
            The terms summed over all data of the step, the gradients of the mean over them, and the number of data.

        Raises:
            ConnectionError: as `sum`.
            ValueError: on all ranks, if the ranks have not first used the same parameters, with the same values.
        """
        if self.size == 1:
            return terms, gradients, count
        known = len(parameters) - len(late)
        sums, means, total, used_late = self._combine(terms, gradients[:known], parameters[:known], count, len(late))
        if used_late > 0:  # on some rank; in all other steps the sums of all ranks have the same parts
            what, new = "the parameters that they first use in this step", parameters[known:]
            self.check_parameters(late, new, what, "name each parameter (pyro.param, pyro.module) in every batch")
            hashed = {f"the first values of {what}, as their hash shows": digest_of_batches(new)}
            self.check_same(hashed, "give them first values that are not random, or name them in every batch")
            means += self._combine(terms, gradients[known:], new, count)[1]
        return sums, means, total

    def _combine(
        self,
        terms: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        parameters: Sequence[Tensor],
        count: int,
        late: int = 0,
    ) -> tuple[Sequence[Tensor], list[Tensor | None], Tensor, Tensor]:
        """Combine results as `combine`; the last value is the number of late parameters on all ranks together."""
        real = [parameter.dtype.to_real() for parameter in parameters]
        dtype = reduce(torch.promote_types, real, torch.float32)  # counts and sums are not rounded to 16 bits
        like = torch.empty(0, dtype=dtype, device=terms[0].device)
        used = [gradient is not None for gradient in gradients]
        weighed = [
            like.new_zeros(parameter.numel() * (1 + parameter.is_complex()))
            if gradient is None
            else _as_real(gradient).flatten().to(like) * count
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
        own_terms = torch.stack([term.to(like) for term in terms]) * bool(count)
        flat = torch.cat([own_terms, like.new_tensor([count, late, *used]), *weighed])
        sizes = [len(terms), 1, 1, len(used), *(len(piece) for piece in weighed)]
        all_terms, total, used_late, used_by, *sums = self.sum(flat).split(sizes)
        means = [
            # Only a rank without a gradient looks whether others have one, as this waits for the device.
            _like(value / total, parameter) if mine or theirs > 0 else None
            for value, parameter, mine, theirs in zip(sums, parameters, used, used_by, strict=True)
        ]
        return all_terms.unbind(), means, total[0], used_late[0]

    @torch.no_grad()
    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank the values that the tensors have on rank 0.

        Raises:
            ConnectionError: as `sum`.
        """
        if self.fabric is None:
            return
        tensors = [tensor for tensor in tensors if not tensor.is_meta]  # which has no values
        own = [tensor.detach().cpu() for tensor in tensors]
        with _all_there():
            values = self.fabric.broadcast(own)
        for tensor, value in zip(tensors, values, strict=True):
            if is_expanded(tensor):  # torch does not write into it
                tensor.data = value.to(tensor.device)
            else:
                tensor.copy_(value)

    def together(self, function: Callable[[], T]) -> T:
        """Call a function on every rank; if it fails on any, all ranks end.

        Raises:
            Exception: the function's own error, on the first rank where it failed.
            SystemExit: with code 2, on all other ranks.
        """
        result, error = None, None
        try:
            result = function()
        except Exception as raised:
            error = raised
        failed = torch.zeros(self.size)
        failed[self.rank] = error is not None
        failed = self.sum(failed)
        if error is not None and failed.argmax() == self.rank:
            raise error
        if failed.any():
            raise SystemExit(2)
        return result  # type: ignore[return-value]


def is_expanded(tensor: Tensor) -> bool:
    """Whether several numbers of a tensor have one place in memory.

    Example:
        >>> is_expanded(torch.zeros(1).expand(3)), is_expanded(torch.zeros(3))
        (True, False)
    """
    if tensor.layout is not torch.strided or is_lazy(tensor):
        return False
    return any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _like(values: Tensor, parameter: Tensor) -> Tensor:
    """Return a flat tensor of real numbers in the type and shape of a parameter."""
    if parameter.is_complex():
        values = torch.view_as_complex(values.view(-1, 2))
    return values.view_as(parameter).to(parameter.dtype)


@contextmanager
def _all_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        minutes = f"or has not answered for {TIMEOUT_MINUTES} minutes"
        raise ConnectionError(f"another process of this training has ended, {minutes}") from error


def started() -> tuple[int, int] | None:
    """Return the number of processes that torchrun or srun has started on each machine, and the number of machines.

    Raises:
        ValueError: if torchrun's variables contradict each other.

    Example:
        >>> started() is None
        True
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        try:
            world, local, rank, local_rank = (int(os.environ[name]) for name in TORCHRUN)
        except (KeyError, ValueError) as error:
            raise ValueError(f"torchrun sets {', '.join(TORCHRUN)} to numbers, but here: {error}") from error
        if not (0 <= local_rank < local <= world and local_rank <= rank < world and world % local == 0):
            found = f"WORLD_SIZE {world}, LOCAL_WORLD_SIZE {local}, RANK {rank}, LOCAL_RANK {local_rank}"
            fix = "start the same number of processes on every machine"
            raise ValueError(f"torchrun's variables contradict each other: {found}; {fix}")
        return local, world // local
    tasks, machines = (int(os.environ.get(name, 1)) for name in ("SLURM_NTASKS", "SLURM_NNODES"))
    if tasks > 1 and "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return tasks // machines, machines
    return None


def connect(devices: int | None, device: str) -> "Fabric | None":
    """Return a Fabric that has not been launched yet, or None for a single process.

    Arguments:
        devices: number of processes on this machine, each with its own device; by default as many as torchrun or srun
            has started, or else one.
        device: "cpu" or "cuda".

    Returns:
        A Fabric that starts the processes, or joins those that torchrun or srun has started.

    Raises:
        ValueError: for devices that this machine does not have, for numbers that contradict those of torchrun or srun,
            and if Lightning Fabric is not installed.

    Example:
        >>> connect(0, "cpu")
        Traceback (most recent call last):
        ...
        ValueError: --devices must be at least 1, not 0
    """
    if devices is not None and devices < 1:
        raise ValueError(f"--devices must be at least 1, not {devices}")
    outside = started()
    local, machines = outside or (devices or 1, 1)
    if devices not in (None, local):
        raise ValueError(f"--devices {devices} contradicts torchrun or srun, which started {local} here; leave it out")
    if local * machines == 1:
        return None
    if device not in ("cpu", "cuda"):
        raise ValueError(f"several processes need --device cpu or cuda, not {device!r}")
    there = os.cpu_count() or 1 if device == "cpu" else torch.cuda.device_count()
    if local > there:
        raise ValueError(f"--devices {local} is more than this machine has: {there} of {device}")
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy
    except ImportError as error:
        fix = "python -m pip install 'pyro-vae[distributed]'"
        raise ValueError(f"training on several processes needs Lightning Fabric: {fix}") from error
    how = DDPStrategy(start_method="popen" if outside else "spawn", timeout=timedelta(minutes=TIMEOUT_MINUTES))
    try:
        return Fabric(accelerator=device, devices=local, num_nodes=machines, strategy=how)
    except RuntimeError as error:  # such as for contradictory variables of srun
        raise ValueError(str(error)) from error
