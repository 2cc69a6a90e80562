"""Rows of the solver records, and what tables and pictures both read from them."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from pruneopt.errors import InputError
from pruneopt.lab.clock import fit_exponent

Row = dict[str, Any]


def load(out: Path) -> tuple[list[Row], list[Row]]:
    """Cell and readout rows of a run."""
    import pyarrow.parquet as pq

    if not (out / "cells.parquet").exists():
        raise InputError(f"{out} holds no solver records; run `pruneopt bench solvers --out {out}` first")
    return tuple(pq.read_table(out / f"{n}.parquet").to_pylist() for n in ("cells", "readouts"))  # type: ignore


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


def number(x: float | None, digits: int = 2) -> str:
    if x is None or math.isnan(x):
        return ""
    if x != 0 and (abs(x) < 1e-3 or abs(x) >= 1e4):
        return f"{x:.1e}"
    return f"{x:.{digits + 1}g}"
