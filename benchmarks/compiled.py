"""Every part and every objective, compiled: how far a compiled step is from the eager one.

python -m benchmarks.compiled [--part I/N]

Each part, in a VAE with partners that fit, and each objective, with a normal VAE, is trained for a few steps with
engine "compiled", which compares its steps with eager ones on the same noise. The difference is the largest of any
gradient or term, relative to its norm (for terms, to the largest term). Steps that differ by more than is allowed, for
example because codes are drawn again, run eagerly, and `fit` says so.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks import machine
from benchmarks.grid import part_of
from pyro_vae import VAE, decoders, encoders, fit, priors
from pyro_vae.runtime import recording as engine

sys.path.extend([str(Path(__file__).parents[1] / "tests" / room) for room in ("support", "cases")])  # of the tests
from all_cases import CASES
from combinations import OBJECTIVES
from partners import vae_around


def difference(ones, others):
    """Return the largest relative difference of two steps' outputs."""
    pairs = [(one.double(), other.double()) for one, other in zip(ones, others, strict=True) if one is not None]
    terms = max(one.norm() for one, _ in pairs if not one.dim())
    shares = [(one - other).norm() / (one.norm() if one.dim() else terms) for one, other in pairs if one.any()]
    return float(max(shares))


def row(vae, x, **settings):
    """Return the largest difference of a compiled training's steps from eager ones, and how the training was run."""
    found, same = [], engine._same

    def compared(ones, others, tolerance=0.0):
        if tolerance:
            found.append(difference(ones, others))
        return same(ones, others, tolerance)

    with patch.object(engine, "_same", compared), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last column says what runs eagerly
        history = fit(vae.model, vae.guide, x, engine="compiled", epochs=4, batch_size=len(x) // 3, **settings)
    return max(found, default=0.0), history.engine


def trainings():
    """Yield a name, a VAE, its data and the settings of each training."""
    for case in CASES:
        yield repr(case), *vae_around(case), {"beta": 0.0 if case.family is encoders.Delta else 1.0}
    for objective in OBJECTIVES:
        torch.manual_seed(0)
        vae = VAE(priors.Normal(2), encoders.Normal(6, 2), decoders.Bernoulli(2, 6, grey=True))
        yield type(objective).__name__, vae, torch.rand(40, 6), {"loss": objective}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", type=part_of, default=(1, 1), metavar="I/N", help="one of N parts (default: all)")
    part, parts = parser.parse_args().part
    torch.set_num_threads(1)  # tensors here are small: more threads would only wait for each other
    start, rows = time.perf_counter(), []
    print("| part or objective | largest difference | how |\n| --- | --- | --- |")
    for name, vae, x, settings in list(trainings())[part - 1 :: parts]:
        rows.append(row(vae, x, **settings))
        print(f"| {name} | {rows[-1][0]:.1e} | {rows[-1][1]} |", flush=True)
    minutes = (time.perf_counter() - start) / 60
    compiled = [share for share, how in rows if how.startswith("compiled")]
    print(f"\n{len(compiled)} of {len(rows)} compiled, largest difference {max(compiled):.1e}", end="; ")
    print(f"{minutes:.1f} minutes; {machine()}")


if __name__ == "__main__":
    main()
