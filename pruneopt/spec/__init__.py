"""Specs: methods as data."""
