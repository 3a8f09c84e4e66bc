"""Trains and measures what others have published, within a time, and adds a row to benchmarks/PUBLISHED.md.

python -m benchmarks.published ROW [--budget MINUTES] [--data-root DIR] [--seed N]
python -m benchmarks.published --all [--budget MINUTES]
"""

import argparse
import sys
from functools import cache, partial
from pathlib import Path

from benchmarks.published.rows import ROWS
from benchmarks.published.run import append, run
from pyro_vae import data

TABLE = Path(__file__).parents[1] / "PUBLISHED.md"


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__.splitlines()[0])
    parser.add_argument("row", nargs="?", choices=ROWS, metavar="ROW", help=f"one of {', '.join(ROWS)}")
    parser.add_argument("--all", action="store_true", help="every row")
    parser.add_argument("--budget", type=float, default=45.0, metavar="MINUTES", help="for each row (default 45)")
    parser.add_argument("--data-root", metavar="DIR", help="torchvision's data (default: $PYRO_VAE_DATA, or data)")
    parser.add_argument("--seed", type=int, metavar="N", help="random seed (default: that of the row's config)")
    parser.add_argument("--out", type=Path, default=TABLE, metavar="FILE", help=f"the table (default {TABLE.name})")
    arguments = parser.parse_args()
    if arguments.all == bool(arguments.row):
        parser.error("name a row, or give --all")
    if not arguments.budget > 0:
        parser.error(f"--budget must be above 0 minutes, not {arguments.budget}")
    load = cache(partial(data.load, root=arguments.data_root, eight_bit=True))
    failed = [name for name in ([arguments.row] if arguments.row else ROWS) if not reported(name, load, arguments)]
    sys.exit(2 if failed else 0)


def reported(name, load, arguments):
    """Run a row and add it to the table; return whether it could be run."""
    try:
        line = run(name, load, arguments.budget, arguments.seed)
    except (ValueError, FloatingPointError) as error:  # such as data that are not there
        print(f"{name}: {error}", file=sys.stderr)
        return False
    except KeyboardInterrupt:
        sys.exit(130)
    append(arguments.out, line)
    print(line, flush=True)
    return True


if __name__ == "__main__":
    main()
