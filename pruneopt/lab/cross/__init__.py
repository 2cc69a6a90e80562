"""Every part with every other."""
