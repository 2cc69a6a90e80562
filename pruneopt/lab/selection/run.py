"""`pruneopt bench select`: time, memory and growth of every method's selection, signals given."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pruneopt.errors import CostBlindReadoutWarning, InputError, PruneoptError, nearest
from pruneopt.lab.clock import fit_exponent, timed, wide
from pruneopt.lab.records import environment
from pruneopt.lab.selection.signals import MAP_HEADS, TEXT, WIDTH, select_signals
from pruneopt.parts.scores.every_kth import EveryKth
from pruneopt.pruner import Pruner
from pruneopt.signals import Signals
from pruneopt.spec.load import list_methods, load_spec
from pruneopt.spec.schema import StageSpec

KEEP, BATCH, TARGET_MS = 64, 8, 60.0
SIZES = (144, 324, 576)
SLOW = {
    "bipartite_elimination": "O(N^2 (N - k) / 8) by definition",
    "backward_elimination": "O(N^2) per round",
    "branch_and_bound": "exact, exponential",
    "vicinity_clusters": "transitive links of a density graph",
    "pagerank": "walks over the map of the whole sequence, every head",
}
WIDE = ("features", "hidden_in", "hidden_out", "hidden_normed")


def run_select_bench(
    out: Path,
    methods: Sequence[str] | None = None,
    sizes: Sequence[int] = SIZES,
    batch: int = BATCH,
    keep: int = KEEP,
    repeats: int = 5,
    budget: float = 2.0,
    console: Console | None = None,
) -> Path:
    """Measure every stage of the named methods (all when None); one JSON record `out/select.json`.

    Each stage keeps `keep` tokens of N (its own count where a rule chooses it, its destinations where tokens
    are matched with those) at batch `batch` and width
    4096.  Cells that need a file are listed as skipped with the reason.  The cost of one Gram matrix of the
    same shape is measured beside, because a method that looks at all pairs cannot be faster than that.

    Raises InputError for unknown methods.
    """
    console = console or wide()
    known = list_methods()
    for name in methods or ():
        if name not in known:
            raise InputError(f"unknown method {name!r}{nearest(name, known)}")
    rows, jobs = [], _jobs(methods or known)
    for number, (name, index, stage) in enumerate(jobs):
        console.print(f"[{number + 1}/{len(jobs)}] {name} stage {index}", highlight=False)
        rows.append(_measure(name, index, stage, sizes, batch, keep, repeats, budget))
    record = {
        "machine": environment(),
        "setting": {"batch": batch, "keep": keep, "sizes": list(sizes), "width": WIDTH, "text": TEXT,
                    "map_heads": MAP_HEADS, "target_ms": TARGET_MS},
        "gram_ms": {str(n): _gram(batch, n, repeats) for n in sizes},
        "rows": rows,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    path = out / "select.json"
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    console.print(_table(record))
    return path


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


def _measure(
    name: str,
    index: int,
    stage: StageSpec,
    sizes: Sequence[int],
    batch: int,
    keep: int,
    repeats: int,
    budget: float,
) -> dict[str, Any]:
    row: dict[str, Any] = {"method": name, "stage": index, "slow": _slow(stage), "skipped": ""}
    if any(getattr(part, "codebook", None) == "" for part in stage.parts):
        return {**row, "skipped": "needs a codebook file"}
    if stage.solver.name == "branch_and_bound":
        return {**row, "skipped": "exact solver: see bench solvers"}
    pruner = Pruner(_kept(stage, keep))
    times: dict[str, float] = {}
    for tokens in sizes:
        if tokens <= keep:
            continue
        signals = select_signals(stage.needs, batch, tokens)
        try:
            chosen, timing = timed(_job(pruner, signals), repeats, budget)
        except PruneoptError as error:
            return {**row, "skipped": str(error)}
        cpu = _cpu_ms(_job(pruner, signals), len(timing.runs))
        times[str(tokens)] = cpu
        row |= {"ms": 1000 * timing.p50, "p95_ms": 1000 * timing.p95, "peak_mib": timing.peak_mib}
        row |= {"cpu_ms": cpu}
        row |= {"kept": list(chosen.known_counts), "seconds": chosen.seconds, "runs": len(timing.runs)}
    slope, low, high = fit_exponent([float(n) for n in times], list(times.values()))
    return {**row, "times_ms": times, "exponent": slope, "exponent_95": [low, high]}


def _job(pruner: Pruner, signals: Signals) -> Callable[[], Any]:
    def run() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CostBlindReadoutWarning)
            return pruner.select(signals, check=False)

    return run


def _cpu_ms(job: Callable[[], Any], repeats: int) -> float:
    """Median milliseconds of processor time, which a busy machine does not inflate."""
    times = []
    for _ in range(max(1, repeats)):
        begin = time.process_time()
        job()
        times.append(time.process_time() - begin)
    return 1000 * sorted(times)[len(times) // 2]


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


def _gram(batch: int, tokens: int, repeats: int) -> float:
    rows = torch.randn(batch, tokens, WIDTH)
    return _cpu_ms(lambda: torch.bmm(rows, rows.transpose(1, 2)), repeats)


def _verdict(row: dict[str, Any], record: dict[str, Any]) -> str:
    """Against processor time, which is wall time of one thread on an idle machine."""
    if row["cpu_ms"] <= record["setting"]["target_ms"]:
        return "yes"
    return "no: " + row["slow"] if row["slow"] else "no"


def select_rows(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of a record."""
    largest = max(record["setting"]["sizes"])
    head = ["method", "stage", f"CPU ms at N={largest}", "wall ms", "peak MiB", "exponent", "under 60 ms"]
    body = []
    for row in record["rows"]:
        if row["skipped"]:
            body.append([row["method"], str(row["stage"]), "-", "-", "-", "-", f"skipped: {row['skipped']}"])
            continue
        exponent = "-" if math.isnan(row["exponent"]) else f"{row['exponent']:.2f}"
        numbers = [f"{row['cpu_ms']:.1f}", f"{row['ms']:.1f}", f"{row['peak_mib']:.0f}", exponent]
        body.append([row["method"], str(row["stage"]), *numbers, _verdict(row, record)])
    return head, body


def _table(record: dict[str, Any]) -> Table:
    head, body = select_rows(record)
    table = Table(*head, title="selection, signals given")
    for row in body:
        table.add_row(*row)
    return table


def select_markdown(record: dict[str, Any]) -> str:
    """The table of a record as Markdown, with its setting."""
    head, body = select_rows(record)
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    setting, machine = record["setting"], record["machine"]
    gram = record["gram_ms"][str(max(setting["sizes"]))]
    lines += [
        "",
        f"Medians of warm runs, signals given, batch {setting['batch']}, width {setting['width']}, "
        f"{setting['keep']} tokens kept; exponent of N over {', '.join(map(str, setting['sizes']))} tokens. "
        f"{machine['cores']} cores, {machine['threads']} threads, {machine['device']}, torch "
        f"{machine['packages']['torch']}. One Gram matrix of this shape alone takes {gram:.0f} CPU ms here. "
        "Nothing else ran on the machine.",
    ]
    return "\n".join(lines)
