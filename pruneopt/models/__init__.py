"""Adapters: the only place that knows transformers internals."""
