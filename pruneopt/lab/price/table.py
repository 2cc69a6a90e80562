"""What one price gains over equal shares, in value and in accuracy, from the records of `bench price`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pruneopt.lab.records import read_record
from pruneopt.lab.runs import Run, read_run, run_folders
from pruneopt.lab.statistics import paired, share
from pruneopt.lab.tables import Piece, Table, number

HOME = "price"
EQUAL = "equal share"


def tables(out: Path) -> list[Piece]:
    """Values and bounds, then accuracies with paired intervals; empty without the record of values."""
    path = out / "splits.json"
    if not path.exists():
        return []
    record = read_record(path)
    runs = {run.record["label"]: run for run in map(read_run, run_folders(out))}
    setting = record["setting"]
    return [
        Table(
            ("method", "tokens a picture", "budget of", "value, equal share", "value, one price", "bound",
             "gap closed", "tokens of a picture"),
            [_value_row(row, batch=setting["batch"]) for row in record["rows"]],
            "joint values",
        ),
        f"Means over the budgets that were spent, {setting['pictures']} prompts of two pictures, in units of "
        "the objective (nats for the log-determinant). The bound holds for every split and every choice; the "
        "gap closed is the part of the distance from equal shares to it that the price gains, too little by "
        "what the bound is loose.",
        Table(
            ("method", "tokens a picture", "equal share", "one price, over equal share",
             "one price over the batch, over equal share"),
            _accuracy_rows(runs),
            "accuracy",
        ),
        f"{len(runs['dense'].samples)} questions; accuracy in percent with 95 percent Wilson interval, dense "
        f"{share(_right(runs['dense']))}. Differences are paired, with bootstrap intervals that draw whole "
        "pictures.",
    ]  # fmt: skip


def _value_row(row: dict[str, Any], *, batch: int) -> list[str]:
    equal, priced, bound = (sum(row[name]) / len(row[name]) for name in ("equal", "priced", "bound"))
    budgets = "batch of " + str(2 * batch) if "batch" in row["rule"] else "prompt of 2"
    closed = (priced - equal) / (bound - equal) if bound > equal else 0.0
    return [
        row["method"], str(row["keep"]), budgets, number(equal, 3), number(priced, 3), number(bound, 3),
        f"{100 * closed:.1f}%", f"{min(row['counts'])} to {max(row['counts'])}",
    ]  # fmt: skip


def _right(run: Run) -> list[bool]:
    return [sample["right"] for sample in run.samples]


def _accuracy_rows(runs: dict[str, Run]) -> list[list[str]]:
    """A row per method and budget, in the order of the labels `METHOD, RULE, TOKENS`."""
    found: dict[tuple[str, int], dict[str, Run]] = {}
    for label, run in runs.items():
        if label != "dense":
            method, rule, tokens = label.split(", ")
            found.setdefault((method, -int(tokens)), {})[rule] = run
    rows = []
    for (method, keep), by_rule in sorted(found.items()):
        equal = by_rule[EQUAL]
        pictures = [sample["id"].partition("-")[0] for sample in equal.samples]
        against = [
            str(paired(_right(by_rule[rule]), _right(equal), clusters=pictures))
            for rule in ("one price", "one price over the batch")
        ]
        rows.append([method, str(-keep), str(share(_right(equal))), *against])
    return rows
