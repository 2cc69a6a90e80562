"""Optimality gaps of published greedy rules."""
