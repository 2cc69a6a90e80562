"""What is captured of a model while it runs."""
