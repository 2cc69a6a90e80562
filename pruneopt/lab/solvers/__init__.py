"""Transport solvers compared."""
