"""Rows of the solver records, and what tables and pictures both read from them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from pruneopt.lab.grid import Row, read_cells, read_rows
from pruneopt.lab.statistics import fit_exponent


def load(out: Path) -> tuple[list[Row], list[Row]]:
    """Cell and readout rows of a running study, or of a finished one; none when there are no records."""
    found = from_cells(out)
    if not found["cells"] and (out / "cells.parquet").exists():
        found = {name: read_rows(out / f"{name}.parquet") for name in found}
    return found["cells"], found["readouts"]


def from_cells(out: Path) -> dict[str, list[Row]]:
    """`cells` and `readouts`: what was measured, and the agreements of each with the key of its cell."""
    cells = read_cells(out / "cells")
    readouts = []
    for cell in cells:
        key = {name: cell[name] for name in ("family", "tokens", "batch", "solver", "peer")}
        readouts += [key | row for row in cell.pop("readouts", None) or ()]
    return {"cells": cells, "readouts": readouts}


def exponents(cells: list[Row]) -> list[Row]:
    """Growth of time per problem with N, per solver and family, from the largest batch of each size."""
    times: dict[tuple[str, str], dict[int, tuple[int, float]]] = defaultdict(dict)
    for c in cells:
        best = times[c["family"], c["solver"]].get(c["tokens"], (0, 0.0))
        if c["batch"] >= best[0]:
            times[c["family"], c["solver"]][c["tokens"]] = (c["batch"], c["seconds_p50"] / c["batch"])
    rows = []
    for (family, solver), found in times.items():
        sizes = sorted(found)
        if len(sizes) >= 3:
            slope, low, high = fit_exponent(sizes, [found[n][1] for n in sizes])
            rows.append({"family": family, "solver": solver, "exponent": slope, "low": low, "high": high,
                         "points": len(sizes)})  # fmt: skip
    return rows


def focus(cells: list[Row], family: str) -> list[Row]:
    """Cells of a family at the size that tables show: N=576 or the largest, with the largest batch."""
    mine = [c for c in cells if c["family"] == family]
    if not mine:
        return []
    sizes = {c["tokens"] for c in mine}
    tokens = 576 if 576 in sizes else max(sizes)
    mine = [c for c in mine if c["tokens"] == tokens]
    batch = max(c["batch"] for c in mine)
    return [c for c in mine if c["batch"] == batch]
