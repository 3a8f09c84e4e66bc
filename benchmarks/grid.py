"""The whole product of the parts: every prior, encoder and decoder that fit, with every objective.

python -m benchmarks.grid [--part I/N] [--json FILE]

Each combination is trained for three steps on digits, or is refused with a message that names what does not fit.
Anything else is a failure, and the exit code is then 1. `decreased` counts the combinations whose loss is lower after
the steps, on the same noise.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from benchmarks import machine

sys.path.extend([str(Path(__file__).parents[1] / "tests" / room) for room in ("support", "cases")])  # of the tests
from combinations import OBJECTIVES, TRIPLES, grey, outcomes

OUTCOMES = ("decreased", "trained", "refused", "failed")


def run(triples):
    """Return a row for each combination: prior, encoder, decoder, objective, outcome and reason."""
    x, rows = grey(), []
    for triple in triples:
        names = [case.family.__name__ for case in triple]
        for objective, found in zip(OBJECTIVES, outcomes(triple, OBJECTIVES, x), strict=True):
            rows.append([*names, type(objective).__name__, *found])
            if found[0] == "failed":
                print(" x ".join(rows[-1][:4]), "failed:", found[1], flush=True)
    return rows


def table(rows):
    """Yield the lines of a table with the counts of outcomes for each objective."""
    counts = Counter((row[3], row[4]) for row in rows)
    names = [type(objective).__name__ for objective in OBJECTIVES]
    yield "| objective | trained | of these decreased | refused by name | failed |"
    yield "|" + 5 * " --- |"
    for name in [*names, "all"]:
        decreased, same, refused, failed = (
            sum(counts[other, outcome] for other in ([name] if name != "all" else names)) for outcome in OUTCOMES
        )
        yield f"| {name} | {decreased + same} | {decreased} | {refused} | {failed} |"


def part_of(text):
    """Return I and N of I/N."""
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"a part is I/N with I from 1 to N, not {text}")
    return part, parts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", type=part_of, default=(1, 1), metavar="I/N", help="one of N parts (default: all)")
    parser.add_argument("--json", type=Path, help="where every combination is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # tensors here are small: more threads would only wait for each other
    part, parts = arguments.part
    start = time.perf_counter()
    rows = run(TRIPLES[part - 1 :: parts])
    minutes = (time.perf_counter() - start) / 60
    print(f"part {part} of {parts}: {len(rows)} combinations, {minutes:.1f} minutes; {machine()}\n")
    print("\n".join(table(rows)))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=0) + "\n")
    sys.exit(any(row[4] == "failed" for row in rows))


if __name__ == "__main__":
    main()
