"""From cell records to Parquet, tables and pictures.  Everything here can be redone from the records."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pruneopt.lab.solvers.rows import Row, exponents, focus, load, number


def write_report(out: Path, console: Console | None = None) -> str:
    """Parquet (when cells are there), `tables.md` and pictures in `out`; returns the tables.

    Raises InputError when `out` holds neither cells nor Parquet.
    """
    from pruneopt.lab.solvers.plots import draw

    _compile(out)
    cells, readouts = load(out)
    good = [c for c in cells if c.get("error") is None]
    fits = exponents(good)
    draw(out, good, readouts, fits)
    text = transport_tables(out)
    (out / "tables.md").write_text(text + "\n")
    if console is not None:
        for table in _rich(good):
            console.print(table)
        console.print(f"records, tables and pictures are in {out}", highlight=False)
    return text


def transport_tables(out: Path) -> str:
    """Accuracy, time, scaling and readout agreement of the records in `out`, as Markdown."""
    cells, readouts = load(out)
    good = [c for c in cells if c.get("error") is None]
    lines = [*_main_tables(good), *_scaling_table(exponents(good)), *_readout_table(readouts)]
    return "\n".join([*lines, *_failures(cells)])


def _compile(out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted((out / "cells").glob("*.json"))
    if not paths:
        return
    cells, readouts = [], []
    for path in paths:
        cell = json.loads(path.read_text())
        key = {k: cell[k] for k in ("family", "tokens", "batch", "solver", "peer")}
        readouts += [key | row for row in cell.pop("readouts")]
        cells.append(cell)
    names = list(dict.fromkeys(k for c in cells for k in c))
    cells = [{k: c.get(k) for k in names} for c in cells]
    for name, rows in (("cells", cells), ("readouts", readouts)):
        part = out / f"{name}.parquet.part"
        pq.write_table(pa.Table.from_pylist(rows), part, compression="zstd")
        part.replace(out / f"{name}.parquet")


_COLUMNS = ("solver", "ms per problem", "excess", "certified gap", "bias", "convergence", "row error",
            "column error", "rounds", "MiB", "status")  # fmt: skip


def _cells_of(c: Row) -> list[str]:
    return [
        c["solver"], number(c["seconds_total"] / c["batch"] * 1e3), number(c["excess"]), number(c["gap"]),
        number(c["bias"]), number(c["convergence"]), number(c["row_error"]), number(c["col_error"]),
        str(c["rounds"]), number(c["peak_mib"]), c["status"],
    ]  # fmt: skip


def _order(cells: list[Row]) -> list[Row]:
    return sorted(cells, key=lambda c: (c["peer"], c["seconds_total"]))


def _main_tables(cells: list[Row]) -> list[str]:
    lines = [
        "Time includes building the cost. Excess (over the exact optimum, after rounding), certified gap, "
        "bias and convergence are shares of the cost range, averaged over the batch; bias and convergence "
        "split the cost before rounding.",
        "",
    ]
    for family in dict.fromkeys(c["family"] for c in cells):
        rows = focus(cells, family)
        lines += [f"**{family}**, N={rows[0]['tokens']}, B={rows[0]['batch']}", ""]
        lines += ["| " + " | ".join(_COLUMNS) + " |", "| " + " | ".join("---" for _ in _COLUMNS) + " |"]
        lines += ["| " + " | ".join(_cells_of(c)) + " |" for c in _order(rows)]
        lines.append("")
    return lines


def _scaling_table(fits: list[Row]) -> list[str]:
    lines = ["Fitted exponent of the time per problem in N, with its 95% interval:", ""]
    families = list(dict.fromkeys(f["family"] for f in fits))
    if not families:
        return []
    lines += ["| solver | " + " | ".join(families) + " |", "| --- |" + " --- |" * len(families)]
    for solver in dict.fromkeys(f["solver"] for f in fits):
        mine = {f["family"]: f for f in fits if f["solver"] == solver}
        shown = [
            f"{mine[x]['exponent']:.2f} ({mine[x]['low']:.2f} to {mine[x]['high']:.2f})" if x in mine else ""
            for x in families
        ]
        lines.append(f"| {solver} | " + " | ".join(shown) + " |")
    return [*lines, ""]


def _readout_table(readouts: list[Row]) -> list[str]:
    rows = [r for r in focus(readouts, "topv") if not r["peer"] or r["solver"] == "pot_sinkhorn_log"]
    if not rows:
        return []
    lines = [
        f"Readouts on topv, N={rows[0]['tokens']}: agreement with the same readout of the exact optimum "
        "(Spearman / top-50% recall). Trivial predictors are compared with the exact dual.",
        "",
    ]
    names = list(dict.fromkeys(r["readout"] for r in rows if r["against"] == r["readout"]))
    trivial = [r for r in rows if r["readout"] in ("token_norm", "uniform", "centre_distance")]
    lines += ["| solver | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for solver in dict.fromkeys(r["solver"] for r in rows):
        mine = {r["readout"]: r for r in rows if r["solver"] == solver and r["against"] == r["readout"]}
        lines.append(f"| {solver} | " + " | ".join(_pair(mine.get(n)) for n in names) + " |")
    lines += ["", "| trivial predictor | exact dual | exact row cost |", "| --- | --- | --- |"]
    for name in dict.fromkeys(r["readout"] for r in trivial):
        mine = {r["against"]: r for r in trivial if r["readout"] == name}
        lines.append(f"| {name} | {_pair(mine.get('dual_source'))} | {_pair(mine.get('row_cost'))} |")
    return [*lines, ""]


def _pair(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{number(row['spearman']) or 'none'} / {number(row['recall_50'])}"


def _failures(cells: list[Row]) -> list[str]:
    bad = [c for c in cells if c.get("error") is not None]
    if not bad:
        return []
    seen = dict.fromkeys((c["solver"], c["error"]) for c in bad)
    return ["Failures:", "", *(f"- {solver}: {error}" for solver, error in seen), ""]


def _rich(cells: list[Row]) -> list[Table]:
    tables = []
    for family in dict.fromkeys(c["family"] for c in cells):
        rows = focus(cells, family)
        table = Table(*_COLUMNS, title=f"{family}, N={rows[0]['tokens']}, B={rows[0]['batch']}")
        for c in _order(rows):
            table.add_row(*_cells_of(c))
        tables.append(table)
    return tables
