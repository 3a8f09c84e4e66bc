"""Diagnostics of a pair of programs: its bound, its likelihood, its gradients, and its hand-coded twin."""
