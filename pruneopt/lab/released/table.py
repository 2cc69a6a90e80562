"""Selection beside the released rules, from its record, and whether it is as fast as it has to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pruneopt.lab.environment import package
from pruneopt.lab.records import read_record
from pruneopt.lab.tables import Piece, Table

HOME = "select"
LEAST = {1: 1.0, 8: 1.5}  # geometric mean of theirs over ours, by size of batch
FLOOR, SMALL_MS = 0.7, 0.15  # of one method, unless a side of it takes less than that
FIXED_MS, LIST = 0.3, 1.3


def tables(out: Path) -> list[Piece]:
    """The table of the record in `out`, with its verdicts."""
    path = out / "released.json"
    return tables_of(read_record(path)) if path.exists() else []


def tables_of(record: dict[str, Any]) -> list[Piece]:
    """The table of a record: milliseconds of both sides and their quotient, by size of batch."""
    setting, machine = record["setting"], record["machine"]
    batches = setting["batches"]
    found = {(row["method"], row["batch"]): row for row in record["rows"]}
    header = ["method"]
    for batch in batches:
        header += [f"released, {batch} x", "ours", "of ours", "same picks"]
    rows = [
        [method, *(cell for batch in batches for cell in _cells(found[method, batch]))]
        for method in dict.fromkeys(row["method"] for row in record["rows"])
    ]
    return [
        Table(header, rows, "selection beside the released rules, processor milliseconds"),
        f"Best processor milliseconds of either side, taken in turns in one process; {setting['keep']} of "
        f"{setting['tokens']} tokens of width {setting['width']} (adaptive rules their own number, matching "
        f"rules half), {machine['threads']} thread, {machine['device']}, torch {package(machine, 'torch')}. "
        "Above 1 ours is faster.",
        "\n".join(f"- {line}" for line in verdicts(record)),
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    same = "all" if row["same"] == row["batch"] else f"{row['same']} of {row['batch']}"
    return [f"{row['theirs_ms']:.2f}", f"{row['ours_ms']:.2f}", f"{_ratio(row):.2f}", same]


def _ratio(row: dict[str, Any]) -> float:
    return float(row["theirs_ms"] / row["ours_ms"])


def verdicts(record: dict[str, Any]) -> list[str]:
    """What was asked, what was reached, and whether that is enough, one sentence each."""
    lines = []
    for batch in record["setting"]["batches"]:
        rows = [row for row in record["rows"] if row["batch"] == batch]
        mean = math.exp(sum(math.log(_ratio(row)) for row in rows) / len(rows))
        least = LEAST.get(batch, 1.0)
        lines.append(_line(f"geometric mean at batch {batch}", found=mean, asked=least, met=mean >= least))
        if any("select_ms" not in row for row in rows):  # a record of before
            continue
        alone = math.exp(sum(math.log(row["theirs_ms"] / row["select_ms"]) for row in rows) / len(rows))
        lines.append(f"the same where our merge weights are not multiplied out: {alone:.3g}")
    slow = slower(record["rows"])
    names = ", ".join(f"{row['method']} x {row['batch']} ({_ratio(row):.2f})" for row in slow)
    lines.append(
        f"no method below {FLOOR} unless it takes less than {SMALL_MS} ms: "
        + (f"missed by {names}" if slow else "met")
    )
    starts = record["starts"]
    for what, found, asked in (
        ("milliseconds of `select` that are not arithmetic", record["fixed_ms"], FIXED_MS),
        ("`pruneopt list` over `import torch`", starts["list"] / starts["torch"], LIST),
    ):
        lines.append(_line(what, found=found, asked=asked, met=found <= asked))
    return lines


def slower(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that are too slow: below the floor, and not too short to matter."""
    small = lambda row: min(row["ours_ms"], row["theirs_ms"]) < SMALL_MS  # noqa: E731
    return [row for row in rows if _ratio(row) < FLOOR and not small(row)]


def _line(what: str, *, found: float, asked: float, met: bool) -> str:
    return f"{what}: {found:.3g}, asked {asked:g}: {'met' if met else 'missed'}"
