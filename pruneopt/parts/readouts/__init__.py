"""Readouts: from a transport solution to an importance, higher is kept. One file per readout."""
