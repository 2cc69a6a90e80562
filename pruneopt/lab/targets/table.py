"""Promised ratios, measured side by side, from their record."""

from __future__ import annotations

from pathlib import Path

from pruneopt.lab.environment import machine
from pruneopt.lab.records import read_record
from pruneopt.lab.tables import Piece, Table, number

HOME = "solvers"


def tables(out: Path) -> list[Piece]:
    """The record in `out`: what was promised, what was measured, and on which machine."""
    path = out / "targets.json"
    if not path.exists():
        return []
    record = read_record(path)
    rows = [
        [
            t["name"],
            f"{number(t['value'])} {t['unit']}",
            f"{t['sense']} {t['bound']:g}",
            " / ".join(number(x) for x in (t["first"], t["second"]) if x),
            "yes" if t["met"] else "no",
            t["note"],
        ]
        for t in record["targets"]
    ]
    header = ("target", "measured", "asked", "seconds", "met", "note")
    return [Table(header, rows, "targets"), f"Machine: {machine(record['machine'])}."]
