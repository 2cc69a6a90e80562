"""Kernels: similarities between visual tokens, larger is more alike. One file per kernel."""
