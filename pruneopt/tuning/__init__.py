"""Choosing the parameters of a spec."""
