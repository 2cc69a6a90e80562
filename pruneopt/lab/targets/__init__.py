"""Stated speed targets."""
