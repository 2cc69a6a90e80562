"""Subset solvers against their exact optimum, from their records."""

from __future__ import annotations

import math
from pathlib import Path

from pruneopt.lab.grid import Row, read_cells, read_rows
from pruneopt.lab.statistics import fit_exponent
from pruneopt.lab.tables import Piece, Table, number
from pruneopt.problems.kinds import find_kind

HOME = "solvers"
_HEADER = (
    "problem", "N", "k", "solver", "ms per sample", "below optimum", "certified gap", "status", "exponent",
)  # fmt: skip


def tables(out: Path) -> list[Piece]:
    """The subset records in `out`: cells of a running study, or its Parquet."""
    where = out / "subset.parquet"
    rows = read_cells(out / "subset") or (read_rows(where) if where.exists() else [])
    return [tables_of([row for row in rows if row.get("error") is None])] if rows else []


def tables_of(rows: list[Row]) -> Table:
    """Losses against the best proved value, gaps against the solver's own bound, within one batch size."""
    proved: dict[tuple[str, int, int], list[float]] = {
        (r["kind"], r["tokens"], r["batch"]): r["value"] for r in rows if r["proved"]
    }
    slopes = {}
    for series in {(r["kind"], r["solver"], r["batch"]) for r in rows}:
        same = [r for r in rows if (r["kind"], r["solver"], r["batch"]) == series]
        mine = sorted((r["tokens"], r["seconds_p50"]) for r in same)
        slopes[series] = fit_exponent(*zip(*mine, strict=True)) if len(mine) > 2 else None
    cells = []
    for r in sorted(rows, key=lambda r: (r["kind"], r["tokens"], r["seconds_p50"])):
        best = proved.get((r["kind"], r["tokens"], r["batch"]))
        slope = slopes[r["kind"], r["solver"], r["batch"]]
        each = number(1e3 * r["seconds_p50"] / r["batch"])
        cells.append([
            r["kind"], str(r["tokens"]), str(r["k"]), r["solver"], each,
            "no proof" if best is None else _loss(best, r["value"], kind=r["kind"]),
            "none" if r["bound"] is None else _loss(r["bound"], r["value"], kind=r["kind"]), r["status"],
            "" if slope is None else f"{slope[0]:.2f} ({slope[1]:.2f} to {slope[2]:.2f})",
        ])  # fmt: skip
    return Table(_HEADER, cells, "subset solvers")


def _loss(high: list[float], low: list[float], *, kind: str) -> str:
    """Mean loss: in nats for kinds whose value may be near zero, as a share otherwise.

    A loss below zero beyond rounding is shown and called an error: `high` is no bound then.
    """
    nats = find_kind(kind).unit == "nats"
    loss = [h - x if nats else 100 * (h - x) / max(abs(h), 1e-300) for h, x in zip(high, low, strict=True)]
    if not all(map(math.isfinite, loss)):
        return "infinite"
    least, unit = 1e-6 if nats else 1e-4, " nats" if nats else "%"
    mean = sum(loss) / len(loss)
    shown = 0.0 if -least <= mean < 0 else mean
    return f"{shown:.3g}{unit}" + (f" (ERROR: {min(loss):.3g}{unit})" if min(loss) < -least else "")
