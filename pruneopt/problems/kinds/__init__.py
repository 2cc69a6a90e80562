"""Kinds of subset problem."""
