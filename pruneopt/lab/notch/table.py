"""What a smaller gap does to accuracy and fidelity, from the runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pruneopt.errors import InputError
from pruneopt.lab.runs import Run, read_run, run_folders
from pruneopt.lab.statistics import Change, clustered, holm, mean_and_spread
from pruneopt.lab.tables import Piece, Table
from pruneopt.problems.kinds import find_kind

HOME = "notch"
LEVEL = 0.05
_CLOSED = 1e-6  # percent or nats: gaps of no more are rounding
_HEADER = (
    "method", "kept", "gap of its rule", "gap of the search", "right", "change of right", "KL to dense",
    "change of KL", "change of agreement",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """Both sides of a method at a budget: the same questions, counts and position policy."""

    label: str
    keep: int
    greedy: Run
    better: Run

    def change(self, name: str) -> Change:
        """Search minus rule in a column of the samples, pictures as clusters."""
        return clustered(self.deltas(name), self.pictures)

    def deltas(self, name: str) -> list[float]:
        both = zip(self.greedy.samples, self.better.samples, strict=True)
        return [float(two[name]) - float(one[name]) for one, two in both]

    @property
    def pictures(self) -> list[str]:
        return [sample["picture"] for sample in self.greedy.samples]

    @property
    def nats(self) -> bool:
        return find_kind(self.greedy.record["kind"]).unit == "nats"

    @property
    def gaps(self) -> tuple[float, float]:
        """Mean distance of rule and search to the upper bound, in percent of the bound or in nats."""
        one, two = [], []
        for first, second in zip(self.greedy.samples, self.better.samples, strict=True):
            bound = first["bound"]
            if bound is None:
                continue
            unit = 1.0 if self.nats else abs(bound) / 100 or 1.0
            one.append((bound - first["value"]) / unit)
            two.append((bound - second["value"]) / unit)
        return (math.nan, math.nan) if not one else (sum(one) / len(one), sum(two) / len(two))

    @property
    def closed(self) -> float:
        """Share of the gap of the rule that the search closes."""
        one, two = self.gaps
        return 1 - two / one


def tables(out: Path) -> list[Piece]:
    """The table of the runs in `out`, what they say together, and the controls.

    Raises InputError for runs of different questions.  Pairs of which one side is missing are left out.
    """
    runs = [read_run(folder) for folder in run_folders(out)]
    runs = [run for run in runs if run.record.get("side")]
    pairs = paired_runs(runs)
    dense = next((run for run in runs if run.record["side"] == "dense"), None)
    if not pairs or dense is None:
        return []
    if len({run.record["question_hash"] for run in runs}) > 1:
        raise InputError(f"{str(out)!r} mixes question sets; keep one")
    budgets = sorted({pair.keep for pair in pairs})
    return [
        Table(_HEADER, [_cells(pair) for pair in pairs], "a better solver for the same problem"),
        _words(pairs, dense),
        Table(_POOLED, [_pooled(pairs, keep) for keep in budgets], "all methods together"),
        Table(_CONTROLS, list(_controls(runs, dense)), "controls"),
        "Controls keep the same counts; random is the mean of its seeds. Cuts before the model number "
        "positions anew, cuts at layer 2 keep them, and both sides of a row above do as their method says.",
    ]


_BRIEF = ("method", "gap of its rule", "gap of a better solver", "right", "change of right", "change of KL")
_BRIEF_KEEP = 36


def brief(out: Path) -> list[Piece]:
    """The rows of one budget."""
    pairs = [p for p in paired_runs([read_run(f) for f in run_folders(out)]) if p.keep == _BRIEF_KEEP]
    rows = [
        [pair.label, *(_gap(pair, gap) for gap in pair.gaps), f"{100 * _mean(pair.greedy, 'right'):.1f}",
         pair.change("right").shown(100), pair.change("kl").shown(digits=3)]
        for pair in pairs
    ]  # fmt: skip
    count = len(pairs[0].greedy.samples)
    return [
        Table(_BRIEF, rows, "a better solver for the same problem"),
        f"{_BRIEF_KEEP} of 144 tokens, {count} questions. Gaps are to the upper bound; changes are better "
        "solver minus rule, with 95 percent intervals by picture and without correction for the many rows.",
    ]


def paired_runs(runs: Sequence[Run]) -> list[Pair]:
    """Methods by name, budgets rising."""
    sides: dict[tuple[str, int], dict[str, Run]] = {}
    for run in runs:
        record = run.record
        sides.setdefault((record["label"], record["keep"]), {})[record["side"]] = run
    return [
        Pair(label, keep, both["greedy"], both["better"])
        for (label, keep), both in sorted(sides.items())
        if {"greedy", "better"} <= both.keys()
    ]


def _mean(run: Run, name: str) -> float:
    return sum(float(sample[name]) for sample in run.samples) / len(run.samples)


def _gap(pair: Pair, gap: float) -> str:
    if math.isnan(gap):
        return "-"
    return f"{gap:.2f} nats" if pair.nats else f"{gap:.2f}%"


def _cells(pair: Pair) -> list[str]:
    kept = sorted({round(_mean(run, "kept"), 1) for run in (pair.greedy, pair.better)})
    return [
        pair.label,
        f"{pair.keep}" if kept == [pair.keep] else f"{pair.keep} ({' and '.join(f'{k:g}' for k in kept)})",
        *(_gap(pair, gap) for gap in pair.gaps),
        f"{100 * _mean(pair.greedy, 'right'):.1f}",
        pair.change("right").shown(100),
        f"{_mean(pair.greedy, 'kl'):.3f}",
        pair.change("kl").shown(digits=3),
        pair.change("agree").shown(100),
    ]


_POOLED = ("kept", "methods", "change of right", "change of KL", "change of agreement")


def _pooled(pairs: Sequence[Pair], keep: int) -> list[str]:
    chosen = [pair for pair in pairs if pair.keep == keep]

    def change(name: str) -> Change:
        each = [delta for pair in chosen for delta in pair.deltas(name)]
        return clustered(each, [picture for pair in chosen for picture in pair.pictures])

    return [
        f"{keep}", f"{len(chosen)}", change("right").shown(100), change("kl").shown(digits=3),
        change("agree").shown(100),
    ]  # fmt: skip


_CONTROLS = ("control", "kept", "right", "KL to dense")


def _controls(runs: Sequence[Run], dense: Run) -> list[list[str]]:
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        if run.record["side"] == "control":
            label = run.record["label"].partition(" seed ")[0]
            groups.setdefault((run.record["keep"], label), []).append(run)
    rows = [["dense", "all", f"{100 * _mean(dense, 'right'):.1f}", "0"]]
    for (keep, label), several in sorted(groups.items()):
        right, spread = mean_and_spread([100 * _mean(run, "right") for run in several])
        shown = f"{right:.1f}" if math.isnan(spread) else f"{right:.1f} +- {spread:.1f}"
        kl = sum(_mean(run, "kl") for run in several) / len(several)
        rows.append([label, f"{keep}", shown, f"{kl:.3f}"])
    return rows


def _words(pairs: Sequence[Pair], dense: Run) -> str:
    """How to read the table, and what stands after correction for its many rows."""
    from scipy.stats import spearmanr

    changes = {name: [pair.change(name) for pair in pairs] for name in ("right", "kl", "agree")}
    stands = {
        name: [
            (pair, change)
            for pair, change, p in zip(pairs, each, holm([c.p_value for c in each]), strict=True)
            if p < LEVEL
        ]
        for name, each in changes.items()
    }

    def named(name: str) -> str:
        found = [
            f"{pair.label} {pair.keep} ({'worse' if (change.mean > 0) == (name == 'kl') else 'better'})"
            for pair, change in stands[name]
        ]
        return ", ".join(found) or "none"

    open_ = [i for i, pair in enumerate(pairs) if pair.gaps[0] > _CLOSED]
    closed = [pairs[i].closed for i in open_]
    link = spearmanr(closed, [changes["kl"][i].mean for i in open_]).statistic if len(open_) > 2 else math.nan
    least = {name: sorted(c.least for c in each)[len(each) // 2] for name, each in changes.items()}
    bounded = sum(sample["bound"] is not None for sample in pairs[0].greedy.samples)
    pictures = len({sample["picture"] for sample in dense.samples})
    return (
        f"{len(dense.samples)} questions about {pictures} pictures. A gap is the mean distance to the upper "
        f"bound on {bounded} of them, so it holds what the bound is loose. Changes are search minus rule on "
        "the same questions, in points for right answers and agreement and in nats for KL (lower is closer "
        "to dense), with 95 percent intervals by bootstrap over pictures. The median row would show a "
        f"difference of {100 * least['right']:.1f} points of right answers, {least['kl']:.3f} nats or "
        f"{100 * least['agree']:.1f} points of agreement four times in five. After Holm's correction over "
        f"the {len(pairs)} rows, by flipping the signs of pictures, these changes stand at 5 percent: right "
        f"answers: {named('right')}; KL: {named('kl')}; agreement: {named('agree')}. Rank correlation over "
        f"rows of the share of the gap that the search closes with the change of KL: {link:+.2f} (below "
        "zero: closing more helped more)."
    )


def draw(out: Path) -> None:
    """`notch.png`: the share of the gap that is closed against what that changes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    pairs = paired_runs([run for run in map(read_run, run_folders(out)) if run.record.get("side")])
    pairs = [pair for pair in pairs if pair.gaps[0] > _CLOSED]
    if not pairs:
        return
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    labels = sorted({pair.label for pair in pairs})
    colours = dict(zip(labels, plt.get_cmap("tab10").colors * 2, strict=False))  # type: ignore[attr-defined]
    marks = dict(zip(sorted({pair.keep for pair in pairs}), "osD^v", strict=False))
    panels = (("right", 100.0, "change of right answers, points"), ("kl", 1.0, "change of KL to dense, nats"))
    for axis, (name, times, words) in zip(axes, panels, strict=True):
        for pair in pairs:
            change = pair.change(name)
            ends = [[times * (change.mean - change.low)], [times * (change.high - change.mean)]]
            axis.errorbar(100 * pair.closed, times * change.mean, ends, fmt=marks[pair.keep],
                          color=colours[pair.label], markersize=5, linewidth=0.8)  # fmt: skip
        axis.axhline(0, color="0.5", linewidth=0.8)
        axis.set(xlabel="share of the gap to the upper bound that is closed, %", ylabel=words)
    for label in labels:
        axes[1].plot([], [], "o", color=colours[label], label=label)
    for keep, mark in marks.items():
        axes[1].plot([], [], mark, color="0.3", label=f"{keep} kept")
    axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(out / "notch.png", dpi=80)
    plt.close(figure)
