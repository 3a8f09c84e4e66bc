"""The command line: the only reader of argv, and the only place that prints."""

from pyro_vae.cli.entry import main

__all__ = ["main"]
