"""Benchmarks: each is one command, and its result is kept in RESULTS.md."""

import platform
from pathlib import Path

import torch


def machine() -> str:
    """Return the processor, the number of threads and the version of torch that the numbers were measured with."""
    cpu = platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def print_row(heads, row):
    """Print the values of a row as a table with these heads."""
    print(f"| {' | '.join(heads)} |")
    print(f"|{' --- |' * len(heads)}")
    print(f"| {' | '.join(f'{value:.2f}' if isinstance(value, float) else f'{value}' for value in row.values())} |")
