"""`pruneopt bench released`: `pruneopt.select` beside the released rule of every method, in turns."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pruneopt.errors import InputError, nearest
from pruneopt.lab.clock import processor_in_turns
from pruneopt.lab.environment import environment
from pruneopt.lab.progress import progress
from pruneopt.lab.records import write_record
from pruneopt.lab.released import attention, diversity, merging
from pruneopt.lab.released.attention import Chosen, Rule
from pruneopt.lab.selection.signals import WIDTH, select_signals
from pruneopt.pruner import select
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec
from pruneopt.tensors import take_rows


@dataclass(frozen=True)
class Release:
    """A released rule, and the stage of a spec that decides as it does.

    `share`: of the tokens that stay, for rules that cannot go as low as the plan asks.  `crops`: a picture is
    a thumbnail and that many crops, each of the size of the plan.
    """

    method: str
    rule: Rule
    stage: int = 0
    overrides: tuple[str, ...] = ()
    share: float | None = None
    crops: int = 0

    def count(self, tokens: int, keep: int) -> int:
        """How many tokens stay."""
        return keep if self.share is None else round(self.share * tokens)

    def spec(self, tokens: int, keep: int) -> Spec:
        """The stage alone, keeping `keep` of `tokens`."""
        asked = [f"budget.keep={keep / tokens}"] if self.crops else []
        stage = load_spec(self.method, [*asked, *self.overrides]).stages[self.stage]
        if not self.crops:
            budget = replace(stage.budget, keep=self.count(tokens, keep), relative_to="current")
            stage = replace(stage, budget=budget)
        return Spec(self.method, (stage,))

    def signals(self, spec: Spec, *, batch: int, tokens: int) -> Signals:
        """What both sides read, and the tokens that merging rules merge."""
        views = self.crops + 1
        signals = select_signals(spec.needs | {"features"}, batch=batch, tokens=tokens * views)
        if not self.crops:
            return signals
        side, columns = math.isqrt(tokens), math.isqrt(self.crops)
        cell, view = torch.arange(tokens).repeat(views), torch.arange(views).repeat_interleave(tokens)
        crop = view - 1
        tile = torch.stack([crop % columns, crop // columns], 1)
        places = {
            "xy": torch.stack([cell % side, cell // side], 1),
            "grid": torch.full((len(cell), 2), side),
            "tile": tile.masked_fill(crop[:, None] < 0, -1),
            "group": view,
        }
        given = {name: signals[name] for name in spec.needs}
        return Signals(given | {name: t.expand(batch, *t.shape) for name, t in places.items()})


SPLIT = (f"problem.protect.share={attention.DOMINANT}",)
LAST = (f"stages.1.problem.protect.share={attention.DOMINANT}",)
RELEASES = (
    Release("fastv", attention.last_row("attention_last")),
    Release("pyramiddrop/release", attention.last_row("lookahead_last")),
    Release("fastervlm", attention.fastervlm),
    Release("transprune/release", attention.transprune, stage=2),
    Release("sparsevlm/release", attention.sparsevlm),
    Release("visiondrop/release", attention.visiondrop, stage=1, overrides=LAST),
    Release("aim/prune", attention.pagerank),
    Release("divprune", diversity.divprune),
    Release("cdpruner/release", diversity.cdpruner),
    Release("dart/release", diversity.dart),
    Release("vispruner", diversity.vispruner),
    Release("saint/release", diversity.saint),
    Release("saint/encoder_release", diversity.saint_encoder, share=0.65),
    Release("tome/release", merging.tome, share=0.5),
    Release("aim/merge", merging.aim, share=0.5),
    Release("visionzip/release", merging.visionzip, overrides=SPLIT),
    Release("prumerge/release", merging.prumerge),
    Release("vflowopt", merging.vflowopt),
    Release("globalcom2/release", merging.globalcom2, crops=4),
    Release("vitcop/release", merging.vitcop, stage=1),
)


@dataclass(frozen=True)
class Plan:
    """Rules of the named methods (all when empty), `keep` of `tokens`, at each size of batch.

    Parameters
    ----------
    seconds : about how long the two sides of a cell take turns.
    starts : how often a process is started for the cost of `pruneopt list`.

    Raises
    ------
    InputError
        For unknown methods.
    """

    methods: Sequence[str] = ()
    tokens: int = 576
    keep: int = 64
    batches: Sequence[int] = (1, 8)
    seconds: float = 3.0
    starts: int = 5

    def __post_init__(self) -> None:
        known = [release.method for release in RELEASES]
        for name in self.methods:
            if name not in known:
                raise InputError(f"no released rule of {name!r}{nearest(name, known)}")


def measure(plan: Plan, out: Path, *, console: Console) -> None:
    """Both sides of every rule in turns on the same signals; one record, `out/released.json`.

    Beside them what a selection costs whose arithmetic is nothing, and what `pruneopt list` costs over
    `import torch`.
    """
    machine, rows = environment(), []
    releases = [release for release in RELEASES if not plan.methods or release.method in plan.methods]
    with progress(console, "rules", total=len(releases) * len(plan.batches)) as step:
        for release in releases:
            for batch in plan.batches:
                rows.append(cell(release, plan, batch=batch))
                step(1, f"{release.method} x {batch}")
    record = {
        "machine": machine,
        "setting": {"tokens": plan.tokens, "keep": plan.keep, "batches": list(plan.batches), "width": WIDTH},
        "rows": rows,
        "fixed_ms": 1000 * fixed(),
        "starts": starts(plan.starts),
    }
    write_record(out / "released.json", record)


def cell(release: Release, plan: Plan, *, batch: int) -> dict[str, Any]:
    """Milliseconds of both sides at one size of batch, and in how many samples they keep the same tokens."""
    spec = release.spec(plan.tokens, plan.keep)
    signals = release.signals(spec, batch=batch, tokens=plan.tokens)
    mine: Callable[[], Chosen] = lambda: ours(spec, signals)  # noqa: E731
    theirs: Callable[[], Chosen] = lambda: release.rule(signals, release.count(plan.tokens, plan.keep))  # noqa: E731
    same = sum(torch.equal(a, b) for a, b in zip(mine()[0], theirs()[0], strict=True))
    first, second, turns = processor_in_turns(mine, theirs, seconds=plan.seconds)
    alone = first
    if mine()[1]:  # what `select` gives are weights, and applying them is another's work
        alone = processor_in_turns(lambda: select(spec, signals), theirs, seconds=plan.seconds / 3)[0]
    return {
        "method": release.method, "batch": batch, "same": same, "turns": turns, "select_ms": 1000 * alone,
        "kept": [len(kept) for kept in mine()[0]], "ours_ms": 1000 * first, "theirs_ms": 1000 * second,
    }  # fmt: skip


def ours(spec: Spec, signals: Signals) -> Chosen:
    """What a rule gives: places kept, and the new tokens where the method builds some."""
    chosen = select(spec, signals)
    if chosen.merge is None:
        return chosen.indices, []
    order = chosen.index()
    tokens = torch.bmm(take_rows(chosen.merge, order), signals["features"])
    return chosen.indices, [row[: len(kept)] for row, kept in zip(tokens, chosen.indices, strict=True)]


def fixed() -> float:
    """Processor seconds of a selection of 4 in 16 narrow tokens with a resolved spec."""
    spec = load_spec("token_norm", ["budget.keep=4"])
    signals = Signals({"features": torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))})
    job = lambda: select(spec, signals)  # noqa: E731
    return processor_in_turns(job, job, seconds=1.0)[0]


def starts(times: int) -> dict[str, float]:
    """Best processor seconds of a fresh `pruneopt list` and of a fresh `import torch`, in turns."""
    commands = {"list": ["-m", "pruneopt", "list"], "torch": ["-c", "import torch"]}
    best = dict.fromkeys(commands, math.inf)
    for _ in range(times):
        for name, command in commands.items():
            before = os.times()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            after = os.times()
            spent = sum(after[2:4]) - sum(before[2:4])  # of children, in the system and outside
            best[name] = min(best[name], spent)
    return best
