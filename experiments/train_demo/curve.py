"""Draws ``records/curve.png`` from ``records/training.jsonl``."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

VISION_SERIES = ["class_accuracy", "digit_accuracy", "attribute_accuracy", "background_accuracy"]


def series(rows: list[dict], name: str) -> tuple[list[float], list[float]]:
    """Minutes and values of ``name``, a field of a row or a question type."""
    points = [(row["stage_seconds"] / 60, row.get(name, row.get("accuracy", {}).get(name))) for row in rows]
    known = [(minute, value) for minute, value in points if value is not None]
    return [minute for minute, _ in known], [value for _, value in known]


def draw(log: Path, out: Path) -> None:
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), sharey=True)
    for axis, stage in zip(axes, ("language", "vision", "joint"), strict=True):
        part = [row for row in rows if row["stage"] == stage]
        names = VISION_SERIES
        if stage != "vision":
            names = sorted({kind for row in part for kind in row["accuracy"]})
        for name in names:
            axis.plot(*series(part, name), marker=".", markersize=3, linewidth=1, label=name)
        for before, after in itertools.pairwise(part):
            if before["run"] != after["run"]:
                axis.axvline(before["stage_seconds"] / 60, color="grey", linestyle=":")
        axis.set(title=f"stage {stage}", xlabel="minutes", ylim=(0, 1.02))
        axis.legend(fontsize=6, loc="lower right")
    axes[0].set_ylabel("accuracy on the training batch")
    figure.tight_layout()
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, default=Path("records/training.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("records/curve.png"))
    arguments = parser.parse_args()
    draw(arguments.log, arguments.out)
