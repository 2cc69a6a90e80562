"""Patch entropy for pruneopt."""
