"""Benchmarks: solver accuracy, selection cost, prefill and memory."""
