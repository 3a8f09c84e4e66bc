"""Published numbers: each row has a config in this folder, and `python -m benchmarks.published ROW` runs it."""
