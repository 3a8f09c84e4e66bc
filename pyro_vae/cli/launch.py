"""Trains a run for the command line, with its processes, signals and progress bar. Prints for all commands.

Torch is imported only inside functions, as in `pyro_vae.cli.commands`.
"""

import errno
import io
import logging
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from multiprocessing import active_children, parent_process
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from pyro_vae.files import printable
from pyro_vae.runs.config import Config

# Exit codes of one of several processes: it has printed its error; it has lost another process, which the parent
# reports; a signal has stopped all processes.
SAID, LOST, STOPPED = 2, 3, 143


class _Outlet(io.FileIO):
    """A standard stream that discards output which cannot be written any more, so that the process continues."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            while (count := super().write(data)) is None:  # a full pipe that does not block
                select.select([], [self], [])
            return count
        except OSError as error:  # the reader has left, the disk is full, the descriptor takes no output
            self.error = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


@contextmanager
def lasting_streams() -> Iterator[Callable[[], bool]]:
    """Keep a process running, and its files intact, if its standard output or error cannot be written.

    A closed descriptor is opened on the null device; otherwise the next file that is opened would get its number, and
    printed text would go there.

    Yields:
        A function that returns whether output has been lost, as on a full disk. Output that its reader did not want, as
        with ``| head``, does not count.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # open takes the lowest free number
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _lasting(sys.stdout, sys.__stdout__, 1), _lasting(sys.stderr, sys.__stderr__, 2)
    out = sys.stdout

    def lost() -> bool:
        out.flush()
        error = getattr(getattr(getattr(out, "buffer", None), "raw", None), "error", None)
        return error is not None and error.errno not in (errno.EPIPE, errno.EBADF)

    try:
        yield lost
    finally:
        if lost():
            say("pyro-vae: error: the standard output could not be written completely", error=True)
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: Any, original: Any, number: int) -> Any:
    """Return a lasting stream for one of the process's own; a stream of a caller's is returned as it is."""
    if stream is not None and (
        stream is not original or not isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO)
    ):
        return stream
    outlet = io.BufferedWriter(_Outlet(number if stream is None else stream.fileno(), "wb", closefd=False))
    encoding, lines = (stream.encoding, stream.line_buffering or stream.write_through) if stream else ("utf-8", True)
    return io.TextIOWrapper(outlet, encoding, "backslashreplace", line_buffering=lines)


def say(text: Any, *, error: bool = False) -> None:
    """Print lines, each of them `printable`, to the standard output or error."""
    print("\n".join(map(printable, str(text).split("\n"))), file=sys.stderr if error else sys.stdout, flush=error)


def train(config: Config, folder: Path, *, resume: bool = False, debug: bool = False) -> None:
    """Train in this process, or in as many as the config, torchrun or srun say, and print the result.

    Arguments:
        config: the config.
        folder: the folder of the run.
        resume: continue the run in the folder.
        debug: let other processes show their tracebacks.

    Raises:
        ValueError: for anything that does not fit.
        ConnectionError: if a process has been lost.
        SystemExit: after the error has been printed, with code 2, or 130 and 143 after signals.
    """
    from torch.multiprocessing import ProcessExitedException

    from pyro_vae.runs.folder import RunFolder
    from pyro_vae.runtime.distributed import connect

    fabric = connect(config.devices, config.device)
    if fabric is None:
        return _train_run(config, folder, resume=resume)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # the end of a process is reported below
    received: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        received.append(number)
        for child in active_children():
            child.terminate()  # its training writes a checkpoint and ends; at the second signal it ends at once

    try:
        with _handling_signals(pass_on):
            fabric.launch(_train_rank, config, folder, debug, resume)
    except ProcessExitedException as error:
        if received and error.exit_code != STOPPED:
            say(f"pyro-vae: stopped; {printable(RunFolder(folder).what_stands())}", error=True)
        if received or error.exit_code in (SAID, STOPPED):
            raise SystemExit(128 + received[0] if received else error.exit_code) from error
        how = f"was ended by {error.signal_name}" if error.signal_name else "has ended, or no longer answers"
        which = "a process" if error.exit_code == LOST else f"process {error.error_index}"
        raise ConnectionError(f"{which} of this training {how}; {RunFolder(folder).what_stands()}") from error


def one_line(error: Exception) -> str:
    """Return the message of an error in one line.

    Example:
        >>> one_line(ValueError("lr must be above 0,\\nnot -1")), one_line(KeyError("z"))
        ('lr must be above 0, not -1', "KeyError: 'z' (--debug shows where)")
    """
    text = printable(" ".join(str(error).split())) or type(error).__name__
    if isinstance(error, ValueError | TypeError | OSError | FloatingPointError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _train_rank(fabric: Any, config: Config, folder: Path, debug: bool, resume: bool) -> None:
    """Train as one of several processes, and print an error once."""
    with lasting_streams():
        code = _rank_code(fabric, config, folder, debug, resume)
        if code or fabric.local_rank:  # at once, as the threads of a rank's connections may kill it while it ends
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _rank_code(fabric: Any, config: Config, folder: Path, debug: bool, resume: bool) -> int:
    """Train, and return the exit code of the process."""
    from pyro_vae.runs.folder import RunFolder

    code = 0
    if parent_process():
        for number in _of_a_terminal():  # a terminal sends them to all processes: the parent passes them on as SIGTERM
            signal.signal(number, signal.SIG_IGN)
    try:
        _train_run(config, folder, fabric, resume=resume)
    except SystemExit as error:
        code = int(error.code or 0)
    except Exception as error:
        if debug:
            raise
        code = SAID
        lost, rank = isinstance(error, ConnectionError), fabric.global_rank
        if lost and parent_process():
            code = LOST
        elif rank == 0 if lost else _is_first_to_fail(rank):
            text = one_line(error) + (f"; {RunFolder(folder).what_stands()}" if lost else "")
            say(f"\npyro-vae: error: rank {rank}: {text}" if rank else f"pyro-vae: error: {text}", error=True)
    return code


def _is_first_to_fail(rank: int) -> bool:
    """Return whether this process is to print its error: rank 0 if it fails, too, or else the first one that asks."""
    from torch.distributed.distributed_c10d import _get_default_store

    try:
        store = _get_default_store()
        if rank:
            with suppress(RuntimeError):  # it takes longer: it has not failed
                store.wait(["failed"], timedelta(seconds=2))
        return bool(store.add("failed", 1) == 1)
    except RuntimeError:  # rank 0, which holds the store, has printed its error and ended
        return False


def _of_a_terminal() -> set[signal.Signals]:
    """Return the signals that a terminal sends to all its processes: Ctrl-C, and its end except under nohup."""
    end = getattr(signal, "SIGHUP", signal.SIGINT)  # Windows has no SIGHUP
    return {signal.SIGINT} | ({end} if signal.getsignal(end) != signal.SIG_IGN else set())


@contextmanager
def _handling_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    numbers = {signal.SIGTERM} | (set() if parent_process() else _of_a_terminal())

    def handle(number: int, frame: Any) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # both the shell and the system send it at a terminal's end
        handler(number, frame)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextmanager
def interrupted_by_signals(received: list[int]) -> Iterator[None]:
    """Have a signal interrupt a command as Ctrl-C does, so that it leaves nothing half-written, and keep its number.

    A second signal ends the process at once.
    """

    def on_signal(number: int, _: Any) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        raise KeyboardInterrupt

    with _handling_signals(on_signal) if current_thread() is main_thread() else nullcontext():
        yield


@contextmanager
def _stopping_at_signals(stop: Callable[[], None], folder: Path, rank: int) -> Iterator[None]:
    """Have a signal end a training after its checkpoint, and print how to continue; a second signal ends it at once."""
    from pyro_vae.runs.folder import RunFolder
    from pyro_vae.runtime.checkpoints import Stopped

    received: list[int] = []

    def on_signal(number: int, _: Any) -> None:
        if received:
            with suppress(OSError):
                os.write(2, b"\n")
            os._exit(128 + number)
        received.append(number)
        stop()

    with _handling_signals(on_signal):
        try:
            yield
        except Stopped as error:
            if rank == 0:
                say(printable(f"pyro-vae: {error}; {RunFolder(folder).what_stands()}"), error=True)
            code = 128 + received[0] if received else STOPPED  # another rank got the signal
            if parent_process():  # at once, before the parent kills this process because another rank has ended
                os._exit(code)
            raise SystemExit(code) from error
        except ConnectionError:  # another rank was lost: how to continue is added by `train`
            raise
        except OSError as error:
            raise type(error)(f"{error}; {RunFolder(folder).what_stands()}") from error


def _train_run(config: Config, folder: Path, fabric: Any = None, *, resume: bool = False) -> None:
    from tqdm import tqdm

    from pyro_vae.runs.facts import facts_of
    from pyro_vae.runs.parts import load_data
    from pyro_vae.runs.recorder import row_of_weights
    from pyro_vae.runs.run import Run
    from pyro_vae.runtime.distributed import Ranks
    from pyro_vae.training.loggers import Progress

    ranks = Ranks(fabric)
    if fabric and config.download:  # once on each machine
        ranks.together(lambda: load_data(config) if fabric.local_rank == 0 else None)
    run = ranks.together(lambda: Run(config, folder, fabric, resume=resume))
    say_once = say if ranks.rank == 0 else lambda _: None
    for name, text in facts_of(run.experiment, ranks.size).items():
        say_once(f"{name + ':':<20}{printable(text)}")
    config = run.experiment.config
    bar = Progress(config.epochs, run.experiment.steps_per_epoch(ranks.size), shown=ranks.rank == 0)
    with _stopping_at_signals(run.checkpoints.stop, folder, ranks.rank), bar, warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: tqdm.write(printable(f"pyro-vae: {message}"), file=sys.stderr)
        warnings.filterwarnings("ignore", "Encountered")  # Pyro's warning of NaN; fit raises an error
        warnings.filterwarnings("ignore", "the step (cannot be|is not) recorded")  # printed below
        history = run.train(bar.on_epoch, None if ranks.rank else bar.on_step)
    row = row_of_weights(config, history)
    say_once(f"{'engine:':<20}{history.engine}")
    say_once(
        f"epoch {row['epoch']:.0f}: train_loss {row['train_loss']:.2f}, test_loss {row['test_loss']:.2f},"
        f" test_loss_at_mean {row['test_loss_at_mean']:.2f} nats per datum"
    )
    say_once(printable(f"{folder}/report.html shows pictures and numbers; run: {folder}"))
