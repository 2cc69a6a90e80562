"""Cost terms: lower is cheaper to keep. One file per term."""
