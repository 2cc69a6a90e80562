"""Optimality gaps of the greedy methods, from their record."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pruneopt.lab.records import read_record
from pruneopt.lab.tables import Piece, Table
from pruneopt.problems.kinds import find_kind

HOME = "select"
_HEADER = (
    "method", "problem", "k of N", "optimum", "greedy optimal", "mean gap", "worst gap", "gained over random",
    "bound above best known", "seconds to read it",
)  # fmt: skip


def tables(out: Path) -> list[Piece]:
    """The table of the record in `out` and how to read it."""
    path = out / "gap.json"
    return tables_of(read_record(path)) if path.exists() else []


def tables_of(record: dict[str, Any]) -> list[Piece]:
    """The table of a record and how to read it."""
    setting = record["setting"]
    return [
        Table(_HEADER, [_cells(row) for row in record["rows"]], "optimality gaps"),
        f"Features of the embedded model on {setting['pictures']} pictures. A gap is (best - greedy) / "
        "|best|, or a difference of log-determinants. Rows with an upper bound overstate the gap by what the "
        "bound is loose; proved optima are exact. Random sets of the same size "
        f"({setting['random_seeds']} seeds) are 0% "
        "of what could be gained, the best known value is 100%. The last columns are about the bound that "
        "any solution carries: how far it is above the best value that is known (a proved optimum, or the "
        "greedy answer after swaps), and wall seconds for the whole row. Rows of 576 tokens pool four "
        "pictures.",
    ]


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """Mean and worst gap of a row, in its own unit and relative, and the share of proved optima.

    Gaps are best minus value as they are: one below zero means that a value or a bound is wrong, and
    `contradicted` counts those beyond rounding (1e-6 of the best, or 1e-6 nats).  A value that is not finite
    has an infinite gap; pictures without a best are left out.
    """
    pairs = [
        (-math.inf if v is None else v, b)
        for v, b in zip(row["value"], row["best"], strict=True)
        if b is not None
    ]
    gaps = [b - v for v, b in pairs]
    slack = [1e-6 if _nats(row) else 1e-6 * abs(b) for _, b in pairs]
    relative = [g / abs(b) if b else math.copysign(math.inf, g) if g else 0.0
                for g, (_, b) in zip(gaps, pairs, strict=True)]  # fmt: skip
    gained = [
        (v - r) / (b - r)
        for v, b, r in zip(row["value"], row["best"], row["random"], strict=True)
        if v is not None and b is not None and r is not None and b > r
    ]
    return {
        "pictures": len(pairs),
        "mean": sum(gaps) / len(gaps) if gaps else math.nan,
        "worst": max(gaps, key=abs, default=math.nan),
        "relative": sum(relative) / len(relative) if relative else math.nan,
        "relative_worst": max(relative, key=abs, default=math.nan),
        "gained": sum(gained) / len(gained) if gained else math.nan,
        "proved": row["status"].count("OPTIMAL"),
        "optimal": sum(abs(g) <= s for g, s in zip(gaps, slack, strict=True)),
        "contradicted": sum(g < -s for g, s in zip(gaps, slack, strict=True)),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    s, above = summary(row), summary({**row, "value": row["known"], "best": row["bound"]})
    known = f"proved in {s['proved']} of {s['pictures']}" if row["exact"] else "upper bound"
    if not s["pictures"]:
        known = "no bound"
    if s["contradicted"]:
        known += f"; ERROR: below the value in {s['contradicted']}"
    return [
        row["label"],
        row["problem"],
        f"{row['keep']} of {row['tokens']}",
        known,
        f"{s['optimal']} of {s['pictures']}" if row["exact"] else "-",
        _gap(row, gap=s["mean"], relative=s["relative"]),
        _gap(row, gap=s["worst"], relative=s["relative_worst"]),
        "-" if math.isnan(s["gained"]) else f"{100 * s['gained']:.0f}%",
        _gap(row, gap=above["mean"], relative=above["relative"]),
        f"{row['seconds']:.2f}",
    ]


def _gap(row: dict[str, Any], *, gap: float, relative: float) -> str:
    """In nats for kinds whose value may be near zero, as a share otherwise."""
    number, digits, unit = (gap, 3, " nats") if _nats(row) else (100 * relative, 2, "%")
    if math.isnan(gap):
        return "-"
    return "infinite" if math.isinf(number) else f"{round(number, digits) + 0.0:.{digits}f}{unit}"


def _nats(row: dict[str, Any]) -> bool:
    return find_kind(row["kind"]).unit == "nats"
