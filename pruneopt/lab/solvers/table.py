"""Transport solvers against exact, time and scaling, from their records; and pictures of them."""

from __future__ import annotations

from pathlib import Path

from pruneopt.lab.grid import Row
from pruneopt.lab.solvers.rows import exponents, focus, load
from pruneopt.lab.tables import Piece, Table, number

HOME = "solvers"
_HEADER = (
    "solver", "ms per problem", "excess", "certified gap", "bias", "convergence", "row error",
    "column error", "rounds", "MiB", "status",
)  # fmt: skip


def tables(out: Path) -> list[Piece]:
    """Accuracy, time, scaling and readout agreement of the records in `out`."""
    cells, readouts = load(out)
    if not cells:
        return []
    good = _good(cells)
    return [
        *_main_tables(good),
        *_scaling_table(exponents(good)),
        *_readout_table(readouts),
        *_failures(cells),
    ]


def draw(out: Path) -> None:
    """Pictures of the records in `out`, beside them."""
    from pruneopt.lab.solvers import plots

    cells, readouts = load(out)
    plots.draw(out, cells=_good(cells), readouts=readouts)


def _good(cells: list[Row]) -> list[Row]:
    return [c for c in cells if c.get("error") is None]


def _cells_of(c: Row) -> list[str]:
    return [
        c["solver"], number(c["seconds_total"] / c["batch"] * 1e3), number(c["excess"]), number(c["gap"]),
        number(c["bias"]), number(c["convergence"]), number(c["row_error"]), number(c["col_error"]),
        str(c["rounds"]), number(c["peak_mib"]), c["status"],
    ]  # fmt: skip


def _main_tables(cells: list[Row]) -> list[Piece]:
    pieces: list[Piece] = [
        "Time includes building the cost. Excess (over the exact optimum, after rounding), certified gap, "
        "bias and convergence are shares of the cost range, averaged over the batch; bias and convergence "
        "split the cost before rounding."
    ]
    for family in dict.fromkeys(c["family"] for c in cells):
        rows = sorted(focus(cells, family), key=lambda c: (c["peer"], c["seconds_total"]))
        pieces.append(f"**{family}**, N={rows[0]['tokens']}, B={rows[0]['batch']}")
        pieces.append(Table(_HEADER, [_cells_of(c) for c in rows]))
    return pieces


def _scaling_table(fits: list[Row]) -> list[Piece]:
    families = list(dict.fromkeys(f["family"] for f in fits))
    if not families:
        return []
    rows = []
    for solver in dict.fromkeys(f["solver"] for f in fits):
        mine = {f["family"]: f for f in fits if f["solver"] == solver}
        rows.append([solver, *(_slope(mine.get(family)) for family in families)])
    return [
        "Fitted exponent of the time per problem in N, with its 95% interval:",
        Table(("solver", *families), rows),
    ]


def _slope(fit: Row | None) -> str:
    return "" if fit is None else f"{fit['exponent']:.2f} ({fit['low']:.2f} to {fit['high']:.2f})"


def _readout_table(readouts: list[Row]) -> list[Piece]:
    rows = [r for r in focus(readouts, "topv") if not r["peer"] or r["solver"] == "pot_sinkhorn_log"]
    if not rows:
        return []
    names = list(dict.fromkeys(r["readout"] for r in rows if r["against"] == r["readout"]))
    solvers = []
    for solver in dict.fromkeys(r["solver"] for r in rows):
        mine = {r["readout"]: r for r in rows if r["solver"] == solver and r["against"] == r["readout"]}
        solvers.append([solver, *(_pair(mine.get(name)) for name in names)])
    trivial = [r for r in rows if r["readout"] in ("token_norm", "uniform", "centre_distance")]
    predictors = []
    for name in dict.fromkeys(r["readout"] for r in trivial):
        mine = {r["against"]: r for r in trivial if r["readout"] == name}
        predictors.append([name, _pair(mine.get("dual_source")), _pair(mine.get("row_cost"))])
    return [
        f"Readouts on topv, N={rows[0]['tokens']}: agreement with the same readout of the exact optimum "
        "(Spearman / top-50% recall). Trivial predictors are compared with the exact dual.",
        Table(("solver", *names), solvers),
        Table(("trivial predictor", "exact dual", "exact row cost"), predictors),
    ]


def _pair(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{number(row['spearman']) or 'none'} / {number(row['recall_50'])}"


def _failures(cells: list[Row]) -> list[Piece]:
    seen = dict.fromkeys((c["solver"], c["error"]) for c in cells if c.get("error") is not None)
    return ["Failures:", "\n".join(f"- {solver}: {error}" for solver, error in seen)] if seen else []
