"""A run's metrics.csv."""

from collections.abc import Sequence
from pathlib import Path

from pyro_vae.files import append, write_whole
from pyro_vae.training import COLUMNS, Row


def write_metrics(path: Path, rows: Sequence[Row]) -> None:
    """Write metrics.csv with exactly these rows; without rows, remove it."""
    if rows:
        write_whole(path, "\n".join([",".join(COLUMNS), *map(_line, rows), ""]).encode())
    else:
        path.unlink(missing_ok=True)


def _line(row: Row) -> str:
    forms = {"epoch": ".0f", "seconds": ".3f", "learning_rate": ".6g"}
    return ",".join(f"{row[name]:{forms.get(name, '.6f')}}" for name in COLUMNS)


def append_metrics(path: Path, row: Row) -> None:
    """Append a row to metrics.csv in one write, after a header if the file is new.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.csv"
        >>> append_metrics(path, dict.fromkeys(COLUMNS, 1.0))
        >>> print(path.read_text().splitlines()[1])
        1,1.000000,1.000000,1.000000,1.000000,1.000000,1.000000,1.000000,1,1.000
    """
    header = [] if path.exists() else [",".join(COLUMNS)]
    append(path, "\n".join([*header, _line(row), ""]).encode())
