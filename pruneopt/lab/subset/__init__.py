"""Subset solvers compared."""
