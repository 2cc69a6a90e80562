"""Post-steps: recover, merge, recycle. One file per step."""
