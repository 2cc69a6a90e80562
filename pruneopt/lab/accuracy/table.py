"""Accuracy of methods on one question set, from their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pruneopt.errors import InputError
from pruneopt.lab.runs import read_run, run_folders
from pruneopt.lab.statistics import mean_and_spread, paired, share
from pruneopt.lab.tables import Piece, Table

HOME = "accuracy"
HEADER = ("method", "tokens kept", "accuracy", "against dense")


def tables(out: Path) -> list[Piece]:
    """Every finished run of a study: kept tokens, accuracy with interval, difference to dense.

    Runs whose label ends in `seed N` are pooled.  Raises InputError when there is no dense run, or when runs
    are of different questions.
    """
    runs = [read_run(folder) for folder in run_folders(out)]
    runs = [run for run in runs if "kept_mean" in run.record]  # not those of another study
    if not runs:
        return []
    if "dense" not in {run.record["label"] for run in runs}:
        raise InputError(f"{str(out)!r} holds no finished run labelled 'dense' to compare with")
    if len({run.record["question_hash"] for run in runs}) > 1:
        raise InputError(f"{str(out)!r} mixes question sets; keep one")
    rights = {run.record["label"]: [s["right"] for s in run.samples] for run in runs}
    kept = {run.record["label"]: run.record["kept_mean"] for run in runs}
    return [
        Table(HEADER, compared(rights, kept)),
        f"{len(rights['dense'])} questions; accuracy in percent with 95 percent Wilson interval; difference "
        "paired.",
    ]


def compared(rights: Mapping[str, Sequence[bool]], kept: Mapping[str, float | None]) -> list[list[str]]:
    """Rows of `HEADER`, one a method, `dense` first, then by tokens kept and accuracy.

    Parameters
    ----------
    rights
        Whether each question was answered right, by label, `dense` among them; those that end in `seed N`
        are pooled.
    kept
        Tokens kept, by label.
    """
    dense = list(rights["dense"])
    groups: dict[str, list[str]] = {}
    for label in (label for label in rights if label != "dense"):
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
    return rows
