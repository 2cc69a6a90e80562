"""`pruneopt bench select`: time, memory and growth of every method's selection, signals given."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pruneopt.errors import CostBlindReadoutWarning, InputError, PruneoptError, nearest
from pruneopt.lab.clock import processor_seconds, timed
from pruneopt.lab.environment import environment
from pruneopt.lab.progress import progress
from pruneopt.lab.records import write_record
from pruneopt.lab.selection.signals import MAP_HEADS, TEXT, WIDTH, select_signals
from pruneopt.lab.statistics import fit_exponent
from pruneopt.parts.scores.every_kth import EveryKth
from pruneopt.pruner import Pruner
from pruneopt.signals import Signals
from pruneopt.spec.load import list_methods, load_spec
from pruneopt.spec.schema import StageSpec

TARGET_MS = 60.0
SLOW = {
    "bipartite_elimination": "O(N^2 (N - k) / 8) by definition",
    "backward_elimination": "O(N^2) per round",
    "branch_and_bound": "exact, exponential",
    "vicinity_clusters": "transitive links of a density graph",
    "pagerank": "walks over the map of the whole sequence, every head",
}
WIDE = ("features", "hidden_in", "hidden_out", "hidden_normed")


@dataclass(frozen=True)
class Plan:
    """Stages of the named methods (all when empty) at sizes above `keep`.

    Parameters
    ----------
    sizes : tokens a picture.  batch : pictures.
    keep : tokens kept (its own count where a rule chooses it, its destinations where tokens are matched with
        those).
    repeats, budget : warm runs a cell, within about that many seconds.

    Raises
    ------
    InputError
        For unknown methods, and when no size is above `keep`.
    """

    methods: Sequence[str] = ()
    sizes: Sequence[int] = (144, 324, 576)
    batch: int = 8
    keep: int = 64
    repeats: int = 5
    budget: float = 2.0

    def __post_init__(self) -> None:
        known = list_methods()
        for name in self.methods:
            if name not in known:
                raise InputError(f"unknown method {name!r}{nearest(name, known)}")
        if max(self.sizes) <= self.keep:
            raise InputError(
                f"no size in {list(self.sizes)} is above {self.keep}; there is nothing to choose"
            )


def measure(plan: Plan, out: Path, *, console: Console) -> None:
    """Time, memory and growth of every stage at width 4096; one record, `out/select.json`.

    Stages that need a file are listed as skipped with the reason.  The cost of one Gram matrix of the same
    shape is measured beside, because a method that looks at all pairs cannot be faster than that.
    """
    machine, rows = environment(), []
    jobs = _jobs(plan.methods or list_methods())
    with progress(console, "stages", total=len(jobs)) as step:
        for name, index, stage in jobs:
            rows.append({"method": name, "stage": index, **_measure(stage, plan)})
            step(1, f"{name} stage {index}")
    record = {
        "machine": machine,
        "setting": {"batch": plan.batch, "keep": plan.keep, "sizes": list(plan.sizes), "width": WIDTH,
                    "text": TEXT, "map_heads": MAP_HEADS, "target_ms": TARGET_MS},
        "gram_ms": {str(n): _gram(plan, n) for n in plan.sizes},
        "rows": rows,
    }  # fmt: skip
    write_record(out / "select.json", record)


def _jobs(names: Sequence[str]) -> list[tuple[str, int, StageSpec]]:
    """Stages to time, without repeats of the same stage of one method at another layer."""
    jobs = []
    for name in names:
        seen: list[dict[str, Any]] = []
        for index, stage in enumerate(load_spec(name).stages):
            what = {k: v for k, v in stage.to_spec().items() if k not in ("insertion", "budget")}
            if what not in seen:
                seen.append(what)
                jobs.append((name, index, stage))
    return jobs


def _measure(stage: StageSpec, plan: Plan) -> dict[str, Any]:
    row: dict[str, Any] = {"slow": _slow(stage), "skipped": ""}
    if any(getattr(part, "codebook", None) == "" for part in stage.parts):
        return {**row, "skipped": "needs a codebook file"}
    if stage.solver.name == "branch_and_bound":
        return {**row, "skipped": "exact solver: see bench solvers"}
    pruner = Pruner(_kept(stage, plan.keep))
    times: dict[int, float] = {}
    for tokens in plan.sizes:
        if tokens <= plan.keep:
            continue
        job = _job(pruner, select_signals(stage.needs, batch=plan.batch, tokens=tokens))
        try:
            chosen, timing = timed(job, repeats=plan.repeats, budget=plan.budget)
        except PruneoptError as error:
            return {**row, "skipped": str(error)}
        times[tokens] = 1000 * processor_seconds(job, repeats=len(timing.runs))
        row |= {
            "ms": 1000 * timing.p50, "p95_ms": 1000 * timing.p95, "peak_mib": timing.peak_mib,
            "cpu_ms": times[tokens], "kept": list(chosen.known_counts), "seconds": chosen.seconds,
            "runs": len(timing.runs),
        }  # fmt: skip
    slope, low, high = fit_exponent(list(times), list(times.values()))
    named = {str(tokens): milliseconds for tokens, milliseconds in times.items()}
    return {**row, "times_ms": named, "exponent": slope, "exponent_95": [low, high]}


def _job(pruner: Pruner, signals: Signals) -> Callable[[], Any]:
    def run() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CostBlindReadoutWarning)
            return pruner.select(signals, check=False)

    return run


def _kept(stage: StageSpec, keep: int) -> StageSpec:
    budget = replace(stage.budget, keep=keep, total=False, relative_to="start", scope="sample")
    where = stage.problem.protect and stage.problem.protect.where
    if isinstance(where, EveryKth):  # destinations stay whatever is asked, so they are the least to ask
        return replace(stage, budget=replace(budget, keep=1 / where.stride, rounding="ceil"))
    return replace(stage, budget=budget if stage.budget.keep != 1.0 else replace(budget, keep=1.0))


def _slow(stage: StageSpec) -> str:
    """Why a stage may take long by definition, or empty."""
    names = [part.name for part in stage.parts]
    reasons = [reason for name, reason in SLOW.items() if name in names]
    pairs = [s.part for s in (*stage.problem.cost, *stage.problem.pairwise)]
    pairs += [s.part for s in stage.problem.scores if s.part.name == "match_similarity"]
    if any(needed in WIDE for part in pairs for needed in part.needs):
        reasons.append("all pairs at full width")
    return "; ".join(reasons)


def _gram(plan: Plan, tokens: int) -> float:
    rows = torch.randn(plan.batch, tokens, WIDTH)
    return 1000 * processor_seconds(lambda: torch.bmm(rows, rows.transpose(1, 2)), repeats=plan.repeats)
