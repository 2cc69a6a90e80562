"""Solvers of transport and subset problems. One file per solver."""
