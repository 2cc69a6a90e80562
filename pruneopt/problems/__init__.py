"""Optimisation problems, what solves them returns, and the kinds of subset problem."""
