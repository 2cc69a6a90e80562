"""Markdown tables from committed records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pruneopt.errors import InputError
from pruneopt.lab.records import finished, read_run
from pruneopt.lab.statistics import mean_and_spread, paired, share


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned."""
    lines = ["| " + " | ".join(header) + " |", "| " + " | ".join("---" for _ in header) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def accuracy(records: Path) -> str:
    """The committed accuracy runs."""
    return accuracy_of(records / "accuracy")


def gap(records: Path) -> str:
    """Optimality gaps of the greedy methods."""
    from pruneopt.lab.gap.run import gap_markdown

    return gap_markdown(json.loads((records / "select" / "gap.json").read_text(encoding="utf-8")))


def selection(records: Path) -> str:
    """Time, memory and scaling of every method's selection."""
    from pruneopt.lab.selection.run import select_markdown

    return select_markdown(json.loads((records / "select" / "select.json").read_text(encoding="utf-8")))


def solvers(records: Path) -> str:
    """Transport solvers against exact, time and scaling."""
    from pruneopt.lab.solvers.report import transport_tables

    return transport_tables(records / "solvers")


def subset(records: Path) -> str:
    """Subset solvers against their exact optimum."""
    from pruneopt.lab.subset.run import subset_tables

    return subset_tables(records / "solvers")


def targets(records: Path) -> str:
    """Promised ratios, measured side by side."""
    from pruneopt.lab.targets.page import target_table

    return target_table(records / "solvers")


def accuracy_of(folder: Path) -> str:
    """Every finished run in a folder: kept tokens, accuracy with interval, difference to dense.

    Runs whose label ends in `seed N` are pooled.  Raises InputError when there is no dense run, or when runs
    are of different questions.
    """
    runs = [read_run(f) for f in sorted(folder.iterdir()) if finished(f)] if folder.is_dir() else []
    if "dense" not in {record["label"] for record, _ in runs}:
        raise InputError(f"{str(folder)!r} holds no finished run labelled 'dense' to compare with")
    if len({record["question_hash"] for record, _ in runs}) > 1:
        raise InputError(f"{str(folder)!r} mixes question sets; keep one")
    rights = {record["label"]: [s["right"] for s in samples] for record, samples in runs}
    kept = {record["label"]: record["kept_mean"] for record, _ in runs}
    dense = rights.pop("dense")
    groups: dict[str, list[str]] = {}
    for label in rights:
        groups.setdefault(label.partition(" seed ")[0], []).append(label)
    rows = [["dense", "all", str(share(dense)), ""]]

    def place(group: tuple[str, list[str]]) -> tuple[float, float]:
        labels = group[1]
        return -(kept[labels[0]] or 0), -sum(sum(rights[x]) for x in labels) / len(labels)

    for name, labels in sorted(groups.items(), key=place):
        pooled = [right for label in labels for right in rights[label]]
        if len(labels) > 1:
            mean, deviation = mean_and_spread([sum(rights[x]) / len(rights[x]) for x in labels])
            shown = f"{100 * mean:.1f} +- {100 * deviation:.1f} over {len(labels)} seeds"
        else:
            shown = str(share(pooled))
        rows.append([name, f"{kept[labels[0]]:g}", shown, str(paired(pooled, dense * len(labels)))])
    note = f"{len(dense)} questions; accuracy in percent with 95 percent Wilson interval; difference paired."
    return markdown(["method", "tokens kept", "accuracy", "against dense"], rows) + f"\n\n{note}"
