"""The cases of all parts, from the files of ``tests/cases``."""

import importlib
from pathlib import Path

CASES = [
    case
    for path in sorted((Path(__file__).parents[1] / "cases").glob("cases_*.py"))
    for case in importlib.import_module(path.stem).CASES
]


def cases(*kinds):
    return [case for case in CASES if case.kind in kinds]
