"""Trains a run for the command line: its processes, its signals, its progress. Prints what any command says.

What needs torch is imported inside, as in `pyro_vae.cli`.
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
from contextlib import contextmanager, suppress
from multiprocessing import active_children, parent_process
from pathlib import Path
from typing import Any

from pyro_vae.files import printable
from pyro_vae.runs.config import Config

SAID, LOST, STOPPED = 2, 3, 143  # how one process of several ends: it has said why; it has lost another, and leaves the
# word to others; a signal has stopped all of them


class _Outlet(io.FileIO):
    """A standard stream for a process that goes on when nobody can take what it says any more."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            while (count := super().write(data)) is None:  # of a pipe that is full and does not make one wait
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
    """Keep a process running, and its files whole, where its standard output or error cannot be written.

    A descriptor that is closed is opened on the null device, as the next file that is opened would take its number and
    receive what is printed.

    Yields:
        Whether output has been lost that a reader was waiting for, as on a full disk; what a reader did not want, as
        with ``| head``, is no loss.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # which takes the lowest number that is free
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
            say("pyro-vae: error: the standard output could not be written, and is incomplete", error=True)
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: Any, original: Any, number: int) -> Any:
    """Return what is to stand for a stream: itself, where a caller has put it in the place of the process's own."""
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
    """Train on this process, or on as many as the config, torchrun or srun say, and print what came of it.

    Arguments:
        config: the config.
        folder: the run's.
        resume: go on with the run that the folder holds.
        debug: let other processes show their tracebacks.

    Raises:
        ValueError: for what does not fit.
        ConnectionError: where a process has been lost.
        SystemExit: where the word has been said: 2 after an error, 130 and 143 after signals.
    """
    from torch.multiprocessing import ProcessExitedException

    from pyro_vae.runs.folder import RunFolder
    from pyro_vae.runtime.distributed import connect

    fabric = connect(config.devices, config.device)
    if fabric is None:
        return _train_run(config, folder, resume=resume)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # what ends is said below
    received: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        received.append(number)
        for child in active_children():
            child.terminate()  # its training ends by a checkpoint; a second time at once

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
    """Return an error's own words in a line.

    Example:
        >>> one_line(ValueError("lr must be above 0,\\nnot -1")), one_line(KeyError("z"))
        ('lr must be above 0, not -1', "KeyError: 'z' (--debug shows where)")
    """
    text = printable(" ".join(str(error).split())) or type(error).__name__
    if isinstance(error, ValueError | TypeError | OSError | FloatingPointError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _train_rank(fabric: Any, config: Config, folder: Path, debug: bool, resume: bool) -> None:
    """Train as one of several processes, and say what went wrong once."""
    with lasting_streams():
        code = _rank_code(fabric, config, folder, debug, resume)
        if code or fabric.local_rank:  # at once: as a rank goes, the threads of its connections may end it by a signal
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _rank_code(fabric: Any, config: Config, folder: Path, debug: bool, resume: bool) -> int:
    """Train, and return with which code the process ends."""
    from pyro_vae.runs.folder import RunFolder

    code = 0
    if parent_process():
        for number in _of_a_terminal():  # which sends it to all: the parent passes it on, as SIGTERM
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
        elif rank == 0 or not (lost or isinstance(error, FloatingPointError)):  # which all ranks meet
            text = one_line(error) + (f"; {RunFolder(folder).what_stands()}" if lost else "")
            say(f"\npyro-vae: error: rank {rank}: {text}" if rank else f"pyro-vae: error: {text}", error=True)
    return code


def _of_a_terminal() -> set[signal.Signals]:
    """Return the signals that a terminal sends to all its processes: Ctrl-C, and its end, but not under nohup."""
    end = getattr(signal, "SIGHUP", signal.SIGINT)  # which Windows has not
    return {signal.SIGINT} | ({end} if signal.getsignal(end) != signal.SIG_IGN else set())


@contextmanager
def _handling_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    numbers = {signal.SIGTERM} | (set() if parent_process() else _of_a_terminal())

    def handle(number: int, frame: Any) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the shell and the system both tell of a terminal's end
        handler(number, frame)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextmanager
def _stopping_at_signals(stop: Callable[[], None], folder: Path, rank: int) -> Iterator[None]:
    """Have a signal stop a training by its checkpoint, and say how to go on; a second one leaves at once."""
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
            code = 128 + received[0] if received else STOPPED  # where another rank was told to
            if parent_process():  # before the parent, which another rank has left, ends this one by a signal
                os._exit(code)
            raise SystemExit(code) from error
        except ConnectionError:  # of another rank, to which the words are added once, above
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
        warnings.filterwarnings("ignore", "the step (cannot be|is not) recorded")  # said below
        history = run.train(bar.on_epoch, None if ranks.rank else bar.on_step)
    row = row_of_weights(config, history)
    say_once(f"{'engine:':<20}{history.engine}")
    say_once(
        f"epoch {row['epoch']:.0f}: train_loss {row['train_loss']:.2f}, test_loss {row['test_loss']:.2f},"
        f" test_loss_at_mean {row['test_loss_at_mean']:.2f} nats per datum"
    )
    say_once(printable(f"{folder}/report.html shows pictures and numbers; run: {folder}"))
