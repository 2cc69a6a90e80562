"""What pruning does to prefill."""
