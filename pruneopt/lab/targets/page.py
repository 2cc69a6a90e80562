"""The solver page: every table it holds, made from records."""

from __future__ import annotations

import json
from pathlib import Path

from pruneopt.errors import InputError
from pruneopt.lab.pages import insert
from pruneopt.lab.solvers.report import write_report
from pruneopt.lab.solvers.rows import number
from pruneopt.lab.subset.run import write_subset_report


def write_page(out: Path, into: Path | None) -> None:
    """Tables and pictures of all that `out` holds; `into` is rewritten between its marks.

    Marks are lines `<!-- begin: NAME -->` and `<!-- end: NAME -->` for NAME in solvers, subset, targets.
    """

    texts = {"solvers": write_report(out), "subset": write_subset_report(out), "targets": target_table(out)}
    if into is not None:
        for name, text in texts.items():
            insert(into, name, text)


def target_table(out: Path) -> str:
    """The promised ratios of `targets.json` as Markdown. Raises InputError when it is missing."""
    path = out / "targets.json"
    if not path.exists():
        raise InputError(f"{path} is missing; run `pruneopt bench targets --out {out}` first")
    record = json.loads(path.read_text())
    lines = ["| target | measured | asked | seconds | met | note |", "| --- | --- | --- | --- | --- | --- |"]
    for t in record["targets"]:
        seconds = " / ".join(number(x) for x in (t["first"], t["second"]) if x)
        lines.append(
            f"| {t['name']} | {number(t['value'])} {t['unit']} | {t['sense']} {t['bound']:g} | {seconds} | "
            f"{'yes' if t['met'] else 'no'} | {t['note']} |"
        )
    return "\n".join([*lines, "", f"Machine: {record['machine']}."])
