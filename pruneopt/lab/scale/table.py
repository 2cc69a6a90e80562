"""Growth of time and memory by rows, from its records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pruneopt.lab.grid import Row, read_cells, read_rows
from pruneopt.lab.statistics import fit_exponent
from pruneopt.lab.tables import Piece, Table, number
from pruneopt.problems.kinds import find_kind

HOME = "solvers"
LEAST = 1.0  # MiB: what is below is noise of the allocator
_HEADER = (
    "problem", "solver", "N", "k", "s", "processor s", "MiB", "certificate processor s", "certificate MiB",
    "certified gap", "picks of the matrix",
)  # fmt: skip
_GROWTH: dict[str, Callable[[Row], float]] = {
    "time": lambda r: r["processor"],
    "memory": lambda r: max(LEAST, r["peak_mib"]),
    "certificate time": lambda r: r["bound_processor"],
    "certificate memory": lambda r: max(LEAST, r["bound_mib"]),
}


def tables(out: Path) -> list[Piece]:
    """The records in `out`: cells of a running study, or its Parquet; then fitted exponents."""
    where = out / "scale.parquet"
    rows = read_cells(out / "scale") or (read_rows(where) if where.exists() else [])
    rows = [row for row in rows if row.get("error") is None]
    if not rows:
        return []
    rows.sort(key=lambda r: (r["kind"], r["tokens"]))
    growth = [
        [kind, *(_slope([r for r in rows if r["kind"] == kind], of) for of in _GROWTH.values())]
        for kind in dict.fromkeys(r["kind"] for r in rows)
    ]
    return [
        Table(_HEADER, [_cells_of(r) for r in rows], "by rows"),
        f"Features of width {rows[0]['width']}; k grows with N. Fitted exponents in N, with 95% intervals:",
        Table(("problem", *_GROWTH), growth, "growth"),
        f"Machine: {rows[-1]['machine']}.",
    ]


def _cells_of(r: Row) -> list[str]:
    gap = "none" if r["bound"] is None else f"{number(r['bound'] - r['value'])} nats"
    if r["bound"] is not None and find_kind(r["kind"]).unit != "nats":
        gap = f"{number(100 * (r['bound'] - r['value']) / abs(r['bound']))}%" if r["bound"] else "infinite"
    return [
        r["kind"], r["solver"], str(r["tokens"]), str(r["k"]), number(r["seconds_cold"]),
        number(r["processor"]), number(r["peak_mib"]), number(r["bound_processor"]), number(r["bound_mib"]),
        gap, {None: "", True: "the same", False: "others"}[r["same"]],
    ]  # fmt: skip


def _slope(rows: list[Row], of: Callable[[Row], float]) -> str:
    if len(rows) < 3:
        return ""
    slope, low, high = fit_exponent([r["tokens"] for r in rows], [of(r) for r in rows])
    return f"{slope:.2f} ({low:.2f} to {high:.2f})"
