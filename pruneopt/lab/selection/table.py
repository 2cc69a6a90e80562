"""What a selection costs, from its record."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pruneopt.lab.environment import package
from pruneopt.lab.records import read_record
from pruneopt.lab.tables import Piece, Table

HOME = "select"


def tables(out: Path) -> list[Piece]:
    """The table of the record in `out`, with its setting."""
    path = out / "select.json"
    return tables_of(read_record(path)) if path.exists() else []


def tables_of(record: dict[str, Any]) -> list[Piece]:
    """The table of a record, with its setting."""
    setting, machine = record["setting"], record["machine"]
    largest = max(setting["sizes"])
    header = ("method", "stage", f"CPU ms at N={largest}", "wall ms", "peak MiB", "exponent", "under 60 ms")
    return [
        Table(
            header, [_cells(row, setting["target_ms"]) for row in record["rows"]], "selection, signals given"
        ),
        f"Medians of warm runs, signals given, batch {setting['batch']}, width {setting['width']}, "
        f"{setting['keep']} tokens kept; exponent of N over {', '.join(map(str, setting['sizes']))} tokens. "
        f"{machine['cores']} cores, {machine['threads']} threads, {machine['device']}, torch "
        f"{package(machine, 'torch')}. One Gram matrix of this shape alone takes "
        f"{record['gram_ms'][str(largest)]:.0f} CPU ms here. Nothing else ran on the machine.",
    ]


def _cells(row: dict[str, Any], target: float) -> list[str]:
    """Judged by processor time, which is wall time of one thread on an idle machine."""
    name = [row["method"], str(row["stage"])]
    if row["skipped"]:
        return [*name, "-", "-", "-", "-", f"skipped: {row['skipped']}"]
    late = f"no: {row['slow']}" if row["slow"] else "no"
    return [
        *name,
        f"{row['cpu_ms']:.1f}",
        f"{row['ms']:.1f}",
        f"{row['peak_mib']:.0f}",
        "-" if math.isnan(row["exponent"]) else f"{row['exponent']:.2f}",
        "yes" if row["cpu_ms"] <= target else late,
    ]
