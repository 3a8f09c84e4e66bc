"""Runs: a config trained into a folder of its own, and read back from it. Imports no torch by itself."""
