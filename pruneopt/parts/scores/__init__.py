"""Scores: higher is kept. One file per score."""
