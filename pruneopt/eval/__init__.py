"""Tasks, metrics, records, tables."""
