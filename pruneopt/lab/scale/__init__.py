"""Greedy subset solvers at the size of a video, by rows."""
