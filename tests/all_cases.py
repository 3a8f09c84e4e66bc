"""The cases of all parts, from the files ``cases_*.py`` beside this one."""

import importlib
from pathlib import Path

CASES = [
    case
    for path in sorted(Path(__file__).parent.glob("cases_*.py"))
    for case in importlib.import_module(path.stem).CASES
]


def cases(*kinds):
    return [case for case in CASES if case.kind in kinds]
