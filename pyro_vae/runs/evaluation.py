"""An evaluation that is kept in the folder of its run, measure by measure, and shown in the run's report."""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

from pyro_vae import __version__, plots
from pyro_vae.data import digest_of, fingerprint
from pyro_vae.files import printable, takes_files, write_whole
from pyro_vae.runs.folder import RunFolder
from pyro_vae.runs.measures import GREY_TEXTS, TEXTS, Measured, Measures, texts_of
from pyro_vae.runs.report import picture, table, with_evaluation
from pyro_vae.training.descriptions import described

HEADINGS = {
    "bound": "The bound",
    "likelihood": "The likelihood, by importance sampling",
    "codes": "What the codes have learned",
    "beside": "Whether another run has found the same codes",
    "draws": "Draws from the model",
    "ais": "The likelihood, by annealed importance sampling",
    "gaps": "Where the bound is lost",
    "calibration": "Whether the posteriors are right",
    "nuts": "Posteriors beside the exact ones",
}
MOST = 2**53  # of a count
LARGEST = 2**26  # bytes of the file
OF_ANOTHER_FORM = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # errors of a file that is
PICTURES = ("gaps", "calibration", "posteriors")


@dataclass
class Entry:
    """What a measure has found, as it is kept."""

    figures: dict[str, float]
    words: str
    verdict: str = ""
    each: dict[str, list[float]] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)


class Evaluation:
    """The measures of a run on its test data, kept in ``evaluation.json`` in its folder as soon as each is there.

    Arguments:
        folder: the folder of the run.
        measures: what measures the run.
        best: whether it has its best weights.
        resume: take what has been measured already, with the same weights, data and settings.

    Raises:
        ValueError: for ``resume`` if there is nothing to continue.
    """

    def __init__(self, folder: RunFolder, measures: Measures, *, best: bool = False, resume: bool = False) -> None:
        self.folder, self.measures, self.path = folder, measures, folder.evaluation
        self.kept = takes_files(folder.path)
        settings, data = asdict(measures.settings), measures.experiment.data
        self.best = best
        self.about = {
            "version": __version__,
            "weights": described(measures.experiment.vae) + " best" * best,
            "data": f"{fingerprint(data)}, as seen {digest_of(measures.x, data.test_labels)}",
            **{name: settings[name] for name in ("samples", "memory", "seed", "images")},
        }
        self.entries = self._read(required=resume)
        self.known = {*self.entries} - {"beside"} if resume else set()  # which may be of another run now
        for name in self.known:
            measures.each |= self.entries[name].each

    def fitting(self, names: list[str], left_out: dict[str, str] | None = None) -> list[str]:
        """Return the measures that fit the run.

        Arguments:
            names: the measures.
            left_out: where a measure that does not fit puts the reason, by its name; without it, it is an error.
        """
        return [name for name in names if name in self.known or _fits(self.measures.check, name, left_out)]

    def measured(self, names: list[str], left_out: dict[str, str] | None = None) -> Iterator[Entry]:
        """Return what each measure finds, once it is there, and show all in the report; arguments as for `fitting`."""
        for name in names:
            if name in self.known or _fits(self._measure, name, left_out):
                yield self.entries[name]
        if self.kept:
            self._show()

    def _measure(self, name: str) -> None:
        self._keep(name, self.measures.measure(name))

    def _keep(self, name: str, found: Measured) -> None:
        self.entries[name] = Entry(found.figures, found.words, found.verdict, found.each, [*found.pictures])
        if not self.kept:
            return
        for title, figure in found.pictures.items():
            write_whole(self.folder.path / f"{title}.png", plots.png(figure))
        self.entries = self._read(required=False) | self.entries  # with what another process has measured meanwhile
        self._set_aside()
        content = {"about": self.about, "measures": {each: asdict(entry) for each, entry in self.entries.items()}}
        write_whole(self.path, (json.dumps(content, indent=1) + "\n").encode())

    def _read(self, *, required: bool) -> dict[str, Entry]:
        """Return what has been measured with the same weights, data and settings."""
        about: dict[str, Any] = {}
        entries: dict[str, Entry] = {}
        fix = "leave out --resume"
        try:
            about, entries = self._content()
        except OF_ANOTHER_FORM as error:
            if required:
                raise ValueError(f"{self.path} is no evaluation that could be continued: {fix}") from error
        if about == self.about:
            return entries
        if required:
            reason = f"is of other {self._others(about)}" if about else "does not exist"
            raise ValueError(f"{self.path} {reason}, so that there is nothing to continue: {fix}")
        return {}

    def _content(self) -> tuple[dict[str, Any], dict[str, Entry]]:
        """Return what the measures in the file are of, and the measures; both are empty if there is no file."""
        if not os.path.lexists(self.path):
            return {}, {}
        if not _is_own(self.path) or self.path.stat().st_size > LARGEST:
            raise ValueError("not a file of an evaluation")
        content = json.loads(self.path.read_text())
        return dict(content["about"]), _entries(content["measures"])

    def _others(self, about: dict[str, Any]) -> str:
        return ", ".join(name for name in self.about if about.get(name) != self.about[name])

    def _set_aside(self) -> None:
        """Keep an evaluation of other weights, data or settings under another name, if it holds what takes minutes."""
        with suppress(*OF_ANOTHER_FORM):
            about, entries = self._content()
            if about != self.about and not entries.keys().isdisjoint(Measures.SLOW):
                names = (self.path.with_name(f"evaluation-{number}.json") for number in count(1))
                free = next(path for path in names if not os.path.lexists(path))
                os.replace(self.path, free)
                text = f"what was measured with other {self._others(about)} is kept in {free}"
                warnings.warn(text, UserWarning, stacklevel=2)

    def _show(self) -> None:
        """Write what has been measured into the run's report, if there is one."""
        report = self.folder.path / "report.html"
        if _is_own(report):
            html = report.read_bytes().decode("utf-8", "replace")
            if new := with_evaluation(html, self.section()):
                write_whole(report, new.encode("utf-8", "backslashreplace"))

    def section(self) -> str:
        """Return the section of the report."""
        measures, settings = self.measures, self.measures.settings
        texts, numbers = texts_of(measures.experiment), {"samples": settings.samples, "images": len(measures.few)}
        loss = measures.experiment.config.loss
        data = printable(str(measures.experiment.config.data))
        parts = [
            f"<h2>Can these numbers be trusted?</h2><p>{len(measures.x)} test data of {escape(data)}"
            f"{', with the weights of the lowest test loss' * self.best}; nats per datum; larger is better, except for"
            " the KL.</p>"
        ]
        for name in (each for each in HEADINGS if each in self.entries):
            entry = self.entries[name]
            rows = [
                [f"<th>{escape(texts[key].format(loss=loss, **numbers).strip())}</th>", f"<td>{written(value)}</td>"]
                for key, value in entry.figures.items()
                if key in texts
            ]
            parts += [f"<h3>{HEADINGS[name]}</h3><p>{escape(printable(entry.words))}</p>", table(rows, "figures")]
            parts += [f"<p>{_sentence(entry.verdict)}</p>"] if entry.verdict else []
            paths = [self.folder.path / f"{title}.png" for title in entry.pictures if title in PICTURES]
            parts += [picture(path, heading=False) for path in paths if _is_own(path)]
        return "".join(parts)


def _fits(measure: Callable[[str], None], name: str, left_out: dict[str, str] | None) -> bool:
    """Measure, and return whether this fits the run."""
    try:
        measure(name)
    except ValueError as error:
        if left_out is None or name in Measures.ALWAYS:
            raise
        left_out[name] = str(error)
        return False
    return True


def _sentence(verdict: str) -> str:
    return escape(printable(f"{verdict[0].upper()}{verdict[1:]}."))


def _is_own(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _entries(content: dict[str, Any]) -> dict[str, Entry]:
    """Return the entries of a file, which anybody may have written."""
    entries = {name: Entry(**content[name]) for name in HEADINGS if name in content}
    for entry in entries.values():
        numbers = [*entry.figures.values(), *(value for values in entry.each.values() for value in values)]
        known = all(type(value) is float or (type(value) is int and abs(value) < MOST) for value in numbers)
        known = known and not any(map(math.isnan, entry.figures.values()))
        texts = all(isinstance(text, str) for text in (entry.words, entry.verdict, *entry.pictures))
        if not (known and texts and entry.figures and {*entry.figures} <= {*TEXTS, *GREY_TEXTS}):
            raise TypeError("an entry has another form")
    return entries


def written(value: float) -> str:
    """Return a figure as text: counts whole, others with two digits behind the point, or four if they are below 1.

    Example:
        >>> written(7), written(-86.4567), written(0.01234)
        ('7', '-86.46', '0.0123')
    """
    return f"{value:.{0 if isinstance(value, int) else 2 if abs(value) >= 1 else 4}f}"


def as_json(figures: dict[str, float], about: dict[str, Any]) -> bytes:
    """Return figures as JSON, in which infinite ones are null."""
    finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return (json.dumps({**about, **finite}, indent=2, allow_nan=False) + "\n").encode()
