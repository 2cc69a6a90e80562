"""Insertion points: where in the forward pass tokens are removed. One file per point."""
