"""The commands. They import torch only when they run, so that ``pyro-vae --help`` answers at once."""

import argparse
import io
import sys
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_vae.cli import launch
from pyro_vae.cli.launch import say
from pyro_vae.files import check_apart, check_no_link, printable, takes_files, write_whole
from pyro_vae.runs.config import Config

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_vae.plots import Figure
    from pyro_vae.runs.completion import Completion
    from pyro_vae.runs.experiment import Experiment
from pyro_vae.cli.flags import config_of_run, local_flags

COMPLETED = {
    "mean_squared_error": "mean squared error of the means",
    "mean_squared_error_of_the_mean": "  of the mean of the training data",
    "deviation": "standard deviation of the draws",
    "log_likelihood_of_hidden": "log p(hidden | observed), nats per datum",
    "standard_error": "  its standard error",
}


def _new_folder(out: Path | None, name: str) -> Path:
    if out:
        return out
    stem = Path("runs") / f"{Path(name).stem or 'data'}-{time.strftime('%Y%m%d-%H%M%S')}"
    count, folder = 1, stem
    while folder.exists():
        count, folder = count + 1, stem.with_name(f"{stem.name}-{count}")
    return folder


def train(arguments: argparse.Namespace) -> None:
    """Train a VAE and write a run."""
    folder = _new_folder(arguments.out, arguments.config.data)
    launch.train(arguments.config, folder, resume=bool(arguments.resume), debug=arguments.debug)


def compare(arguments: argparse.Namespace) -> None:
    """Compare the Pyro programs with the hand-coded VAE."""
    from pyro_vae import plots
    from pyro_vae.data import located
    from pyro_vae.diagnostics.comparison import compare
    from pyro_vae.runs.experiment import Experiment
    from pyro_vae.runs.folder import RunFolder

    config = arguments.config
    folder = _new_folder(arguments.out, f"compare-{Path(config.data).stem}")
    RunFolder(folder).check_new()
    for path in filter(None, (folder, arguments.json)):
        check_apart(path, located(config.data))
    _check_file(arguments.json, "--json", [".json"])
    experiment = Experiment(config)
    vae, x = experiment.vae, experiment.as_seen(experiment.data.train[:])
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


def gradients(arguments: argparse.Namespace) -> None:
    """Measure bias and variance of every gradient estimator."""
    from pyro_vae import plots
    from pyro_vae.diagnostics.estimators import gradients

    _check_file(arguments.json, "--json", [".json"])
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


def list_parts(arguments: argparse.Namespace) -> None:
    """List all parts and objectives."""
    from pyro_vae.runs.parts import catalogue

    if arguments.markdown:
        say("| kind | name | what it is | reference |\n| --- | --- | --- | --- |")
    for row in catalogue():
        say(
            f"| {' | '.join(row).replace(':math:', '')} |"
            if arguments.markdown
            else f"{row[0]:<9}{row[1]:<29}{row[2]} ({row[3]})"
        )


def _experiment_of_run(arguments: argparse.Namespace) -> "Experiment":
    from pyro_vae.runs.experiment import Experiment
    from pyro_vae.runs.folder import RunFolder

    config = config_of_run(arguments.run, arguments.allow, *local_flags(arguments))
    folder, named = RunFolder(arguments.run), _with_named_data(config, arguments)
    for path in filter(None, (getattr(arguments, flag, None) for flag in ("out", "json"))):
        folder.check_result(path, config.data, named.data)
    vae = folder.load_vae(config, best=arguments.best)
    data = folder.load_data(named, named=bool(arguments.data))
    if arguments.data and arguments.scale is None:
        folder.check_scale(named, data)
    return Experiment(named, data, vae)


def _with_named_data(config: Config, arguments: argparse.Namespace) -> Config:
    """Replace the run's data by those of --data, with the scale of --scale, or the run's scale if the data take one."""
    from pyro_vae.data import are_images

    data, scale = getattr(arguments, "data", None), getattr(arguments, "scale", None)
    if scale is not None and data is None:
        raise ValueError("--scale goes with --data FILE: the run's own data have their scale")
    if data is None:
        return config
    return replace(config, data=data, scale=config.scale if scale is None and not are_images(data) else scale)


def _check_file(path: Path | None, flag: str, suffixes: Collection[str] = ()) -> None:
    """Refuse a file that cannot be written, before the work is done."""
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
        raise ValueError(f"{flag} {path} must end in {', '.join(suffixes)}, to say the format")


@contextmanager
def _without_warnings_of_nan() -> Iterator[None]:
    """Suppress Pyro's warnings of NaN, because NaN is refused."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Encountered")
        yield


def sample(arguments: argparse.Namespace) -> None:
    """Decode samples from a run's prior."""
    import torch

    from pyro_vae import plots
    from pyro_vae.arguments import as_size
    from pyro_vae.data.arrays import as_scale
    from pyro_vae.data.numpy_files import multiplied
    from pyro_vae.programs import seeded
    from pyro_vae.runs.folder import RunFolder
    from pyro_vae.runs.measures import check_results

    as_size(arguments.n, "--n")
    path = arguments.out or arguments.run / f"sample-seed{arguments.seed}.png"
    _check_file(arguments.out, "--out", (*plots.KINDS, ".npy", ".csv"))
    config = config_of_run(arguments.run, arguments.allow, "--data-root=", "--download")  # no data are read
    folder = RunFolder(arguments.run)
    folder.check_result(path, config.data)
    vae = folder.load_vae(config, best=arguments.best)
    with seeded(arguments.seed, torch.device(config.device)):
        x = vae.sample(arguments.n)
    check_results({"a sample": x.sum().item()})
    kind = path.suffix.lower()
    if kind in plots.KINDS:
        _write_figure(path, plots.samples(x, "Samples from the prior, decoded"))
    else:
        write_whole(path, _numbers(x if config.scale is None else multiplied(x, as_scale(config.scale)), kind))
    say(printable(str(path)))


def _write_figure(path: Path, figure: "Figure") -> None:
    from pyro_vae import plots

    write_whole(path, plots.as_file(figure, path.suffix.lower()))


def _numbers(x: "Tensor", suffix: str) -> bytes:
    """Return the content of a numpy file, or of a text file with one datum per line."""
    import numpy as np

    buffer, array = io.BytesIO(), x.cpu().numpy()
    if suffix == ".npy":
        np.save(buffer, array)
    else:
        digits = 17 if array.dtype == np.float64 else 9  # from which the same number is read again
        np.savetxt(buffer, array.reshape(len(array), -1), f"%.{digits}g", ",")
    return buffer.getvalue()


def reconstruct(arguments: argparse.Namespace) -> None:
    """Reconstruct test data of a run."""
    from pyro_vae import plots
    from pyro_vae.arguments import as_size
    from pyro_vae.diagnostics.evaluation import evaluate
    from pyro_vae.programs import seeded
    from pyro_vae.runs.facts import no_bound, values_of
    from pyro_vae.runs.measures import check_results
    from pyro_vae.runs.parts import check_choice
    from pyro_vae.runs.pictures import EVALUATE, reconstruction_figure

    check_choice("--evaluate", arguments.evaluate, EVALUATE)
    as_size(arguments.n, "--n")
    _check_file(arguments.out, "--out", plots.KINDS)
    experiment = _experiment_of_run(arguments)
    vae, data, transform = experiment.vae, experiment.data, experiment.transform
    experiment.check("test")
    x = data.test[: arguments.n].to(experiment.device)
    with seeded(arguments.seed, experiment.device):
        figure = reconstruction_figure(vae, transform(x) if transform else x, arguments.evaluate)
    settings = {"loss": experiment.loss, "at": arguments.evaluate, "seed": arguments.seed, "transform": transform}
    with _without_warnings_of_nan():
        bound = evaluate(vae.model, experiment.guide, data.test, **settings)
    check_results(bound._asdict())
    path = arguments.out or arguments.run / f"reconstruct-{arguments.evaluate}.png"
    write_whole(path, plots.as_file(figure, path.suffix.lower()))
    if arguments.data:
        say(f"values: {values_of(experiment.config, data)}")
    what = "no bound" if arguments.evaluate == "mean" or no_bound(experiment) else "a bound"
    say(
        f"evaluate={arguments.evaluate} ({what}), test: loss {bound.loss:.2f}, reconstruction"
        f" {bound.reconstruction:.2f}, KL {bound.kl:.2f} nats per datum"
    )
    say(printable(str(path)))


def impute(arguments: argparse.Namespace) -> None:
    """Fill in the missing entries of a file, or hide entries of test data and measure how well they are found."""
    from pyro_vae import plots
    from pyro_vae.arguments import as_size
    from pyro_vae.diagnostics.imputation import WAYS
    from pyro_vae.runs.completion import Completion
    from pyro_vae.runs.parts import check_choice
    from pyro_vae.runtime.memory import as_bytes

    check_choice("--by", arguments.by, WAYS)
    for name, least in (("n", 1), ("draws", 2), ("samples", arguments.draws), ("steps", 1)):
        as_size(getattr(arguments, name), f"--{name}", least)
    if not (arguments.hide or arguments.data):
        raise ValueError("give --data FILE with missing entries (NaN), or --hide lower to hide some of the test data")
    numbers = [] if arguments.hide else [".npy", ".npz", ".csv"]
    _check_file(arguments.out, "--out", [*numbers, *plots.KINDS])
    as_bytes(arguments.memory)
    names = ("by", "draws", "samples", "steps", "memory", "seed")
    completion = Completion(**{name: getattr(arguments, name) for name in names}, progress=sys.stderr.isatty())
    (_impute_hidden if arguments.hide else _impute_file)(arguments, completion)


def _impute_hidden(arguments: argparse.Namespace, completion: "Completion") -> None:
    from pyro_vae.runs.completion import HALVES, completions_figure, hidden, mean_of_training, measured

    experiment = _experiment_of_run(arguments)
    experiment.check("test")
    x = experiment.as_seen(experiment.data.test[: arguments.n])
    incomplete = hidden(x, arguments.hide, arguments.seed)
    mean = mean_of_training(experiment)
    found = completion.of(experiment.vae, incomplete, mean)
    figures = measured(experiment, x, incomplete, found, mean, arguments.seed, arguments.memory)
    what = f"the {arguments.hide} half" if arguments.hide in HALVES else f"a share of {arguments.hide}"
    title = f"Test data with {what} hidden, completed by {completion.by}"
    texts = COMPLETED | (
        {"mean_squared_error_of_the_mean": "  of the mean of their train part"} if arguments.data else {}
    )
    data = printable(experiment.config.data)
    say(f"{data}: {len(x)} test data, {incomplete.isnan().double().mean():.1%} of their entries hidden")
    for name, value in figures.items():
        say(f"{texts[name]:<48}{value:>12.4f}")
    path = arguments.out or arguments.run / f"impute-{completion.by}.png"
    try:
        figure = completions_figure(incomplete, found, title, x)
    except ValueError as error:  # of data that are no pictures
        if arguments.out:
            raise
        say(f"no picture: {error}")
        return
    _write_figure(path, figure)
    say(printable(str(path)))


def _impute_file(arguments: argparse.Namespace, completion: "Completion") -> None:
    import numpy as np
    import torch

    from pyro_vae import plots
    from pyro_vae.data import Data
    from pyro_vae.data.arrays import as_scale
    from pyro_vae.data.numpy_files import divided, multiplied
    from pyro_vae.programs import seeded
    from pyro_vae.runs.completion import completions_figure, rows_of
    from pyro_vae.runs.folder import RunFolder, read_weights
    from pyro_vae.runs.parts import transform_of

    folder = RunFolder(arguments.run)
    own = config_of_run(arguments.run, arguments.allow, *local_flags(arguments))
    config = _with_named_data(own, arguments)
    path = arguments.out or Path(arguments.data).with_name(f"{Path(arguments.data).stem}-completed.npy")
    _check_file(path, "--out")
    if not arguments.out and path.exists():
        raise ValueError(f"{path} exists, and would be replaced: name the file of the result by --out")
    folder.check_result(path, own.data, config.data)
    vae, rows = folder.load_vae(own, best=arguments.best), rows_of(arguments.data, read_weights(folder.weights)[1])
    scale, transform = 1.0 if config.scale is None else as_scale(config.scale), transform_of(config)
    with seeded(config.seed, torch.device(config.device)):
        x = divided(rows, scale).to(config.device)
        if arguments.scale is None and not x.isnan().all():
            folder.check_scale(config, Data(x, x))
        x = transform(x) if transform else x
    with _without_warnings_of_nan():
        found = completion.of(vae, x)
    missing, kind = rows.isnan(), path.suffix.lower()
    mean, *draws = (
        torch.where(missing, multiplied(each, scale).to(rows), rows) for each in (found.mean[0], *found.draws[0])
    )
    if kind in plots.KINDS:
        title = f"{Path(arguments.data).name}, completed by {completion.by}"
        _write_figure(path, completions_figure(x, found, title))
    elif kind == ".npz":
        buffer, deviation = io.BytesIO(), multiplied(found.deviation[0], scale).to(rows)
        np.savez(buffer, mean=mean.numpy(), draws=torch.stack(draws).numpy(), deviation=deviation.numpy())
        write_whole(path, buffer.getvalue())
    else:
        write_whole(path, _numbers(mean, kind))
    say(f"{printable(arguments.data)}: {len(rows)} data, {missing.double().mean():.1%} of their entries missing")
    say(printable(str(path)))


def evaluate(arguments: argparse.Namespace) -> None:
    """Print what a run is worth on its test data: bounds, likelihoods and, if asked, what takes longer."""
    from pyro_vae.arguments import as_size
    from pyro_vae.runs.evaluation import Evaluation, as_json, written
    from pyro_vae.runs.facts import values_of
    from pyro_vae.runs.folder import RunFolder
    from pyro_vae.runs.measures import Measures, Settings, texts_of
    from pyro_vae.runtime.memory import as_bytes

    for name in ("samples", "images"):
        as_size(getattr(arguments, name), f"--{name}")
    as_bytes(arguments.memory)
    _check_file(arguments.json, "--json", [".json"])
    experiment = _experiment_of_run(arguments)
    experiment.check("test")
    config, data = experiment.config, experiment.data
    settings = {name: getattr(arguments, name) for name in ("samples", "memory", "seed", "images")}
    beside = argparse.Namespace(**{**vars(arguments), "run": arguments.beside})
    other = (f"the run {arguments.beside}", _experiment_of_run(beside)) if arguments.beside else None
    measures = Measures(experiment, Settings(**settings, progress=sys.stderr.isatty()), other=other)
    evaluation = Evaluation(RunFolder(arguments.run), measures, best=arguments.best, resume=arguments.resumed)
    figures: dict[str, float] = {}
    left_out: dict[str, str] = {}
    names = [*Measures.ALWAYS, *(name for name in Measures.SLOW if arguments.all or getattr(arguments, name))]
    names += ["beside"] * bool(other)
    lenient = left_out if arguments.all else None
    names = evaluation.fitting(names, lenient)
    texts, numbers = texts_of(experiment), {"samples": arguments.samples, "images": len(measures.few)}
    with _without_warnings_of_nan():
        for entry in evaluation.measured(names, lenient):
            if not figures:  # the bound is a number
                units = "nats per datum; larger is better, except for the KL"
                say(f"{printable(config.data)}: {len(data.test)} test data, {units}")
                if arguments.data:
                    say(f"values: {values_of(config, data)}")
            figures |= entry.figures
            for name, value in entry.figures.items():
                say(f"{texts[name].format(loss=config.loss, **numbers):<40}{written(value):>12}")
            if entry.verdict:
                say(f"  {printable(entry.verdict)}")
    for name, reason in left_out.items():
        say(printable(f"--{name} is left out: {reason}"))
    if experiment.is_grey:
        say("grey pixels are scored by cross-entropy, so these numbers are not log-probabilities")
    if arguments.json:
        about = {"data": config.data, "test_data": len(data.test), "loss": config.loss, "grey": experiment.is_grey}
        write_whole(arguments.json, as_json(figures, about | settings | numbers))
