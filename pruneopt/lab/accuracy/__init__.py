"""Accuracy of methods on a question set."""
