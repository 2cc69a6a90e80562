"""The public conformance suite."""
