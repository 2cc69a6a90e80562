"""Subset solvers against their exact optimum, and against the obvious loop."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from pruneopt.errors import InputError, nearest
from pruneopt.lab.clock import digest, fit_exponent, timed, wide
from pruneopt.lab.solvers.families import clustered
from pruneopt.lab.solvers.rows import number
from pruneopt.parts import SubsetSolver
from pruneopt.problems.kinds import Kind, all_kinds, find_kind
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem
from pruneopt.registry import registry
from pruneopt.tensors import keep_top

SIZES = (16, 36, 64, 144, 576)
CONTROL = "random"


@dataclass(frozen=True)
class Run:
    """A solver with settings under a label, for the sizes it is worth waiting for."""

    label: str
    settings: tuple[tuple[str, Any], ...] = ()
    most: int = 10_000

    def solver(self) -> SubsetSolver:
        if self.label == CONTROL:
            return RandomChoice()
        part = cast(type[SubsetSolver], registry("solvers").get(self.label))
        return part.from_spec(dict(self.settings))


class _Unconstrained:
    """Kinds for which a random choice of `k` tokens is a solution."""

    def __get__(self, part: object, owner: type | None = None) -> frozenset[str]:
        return frozenset(kind.name for kind in all_kinds() if not kind.offers("broken"))


@dataclass(frozen=True)
class RandomChoice(SubsetSolver):
    """The control: `k` tokens at random."""

    name: ClassVar[str] = CONTROL
    kinds = _Unconstrained()

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        gen = torch.Generator().manual_seed(0)
        score = torch.rand(problem.shape, generator=gen)
        keep = keep_top(score, problem.k, mask=problem.real)
        return SubsetSolution(
            0.0, problem=problem, keep=keep, ended=(Status.HEURISTIC,) * len(keep), solver=self.name
        )


_LIMIT = (("time_limit", 5.0),)


def runs(kind: Kind) -> list[Run]:
    """What is measured for a kind: its greedy rule, a control, and the solvers that take many kinds."""
    greedy = [Run(kind.greedy["kind"])] if kind.greedy else []
    every = [
        *greedy,
        Run(CONTROL),
        Run("local_search", most=576),
        Run("milp", _LIMIT, 64),
        Run("branch_and_bound", _LIMIT, 64),
        Run("brute_force", most=16),
    ]
    return [run for run in every if kind.name in run.solver().kinds]


def instance(kind: str, tokens: int, batch: int, seed: int = 0) -> SubsetProblem:
    """Clustered tokens stated as a subset problem that keeps a quarter of them; float32.

    Scores are random between 0.5 and 1.5; `Kind.draw` says what distances and similarities are.
    """
    gen = torch.Generator().manual_seed(seed + tokens)
    unit = torch.nn.functional.normalize(clustered(tokens, batch, gen).double(), dim=2)
    quality = 0.5 + torch.rand(batch, tokens, generator=gen)
    k = max(2, tokens // 4)
    terms = find_kind(kind).draw(unit, quality, k)
    if "pairwise" in terms:
        terms["pairwise"] = cast(Tensor, terms["pairwise"]).float()
    return SubsetProblem.build(kind, k, **terms)


def run_subset_bench(
    out: Path,
    sizes: Sequence[int] = SIZES,
    batch: int = 4,
    kinds: Sequence[str] | None = None,
    repeats: int = 3,
    console: Console | None = None,
) -> Path:
    """Measure every subset cell that `out/subset` does not hold, then write Parquet and a table.

    Raises InputError for an unknown kind of problem.
    """
    console = console or wide()
    known = [kind.name for kind in all_kinds()]
    for kind in kinds or ():
        if kind not in known:
            raise InputError(f"unknown subset problem {kind!r}{nearest(kind, known)}")
    folder = out / "subset"
    folder.mkdir(parents=True, exist_ok=True)
    todo = [x for x in _cells(kinds or known, sizes) if not _path(folder, batch, *x).exists()]
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=len(todo))
        for kind, tokens, run in todo:
            bar.update(task, description=f"{kind} N={tokens} {run.label}")
            record = _measure(kind, tokens, batch, run, repeats)
            path = _path(folder, batch, kind, tokens, run)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(record))
            part.replace(path)
            bar.advance(task)
            if not console.is_terminal:
                took = record.get("error") or f"{record['seconds_p50'] * 1e3:.1f} ms"
                console.print(f"{kind} N={tokens} {run.label}: {took}", markup=False, highlight=False)
    write_subset_report(out, console)
    return out


def _cells(kinds: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[str, int, Run]]:
    for kind in kinds:
        for tokens in sizes:
            yield from ((kind, tokens, run) for run in runs(find_kind(kind)) if tokens <= run.most)


def _path(folder: Path, batch: int, kind: str, tokens: int, run: Run) -> Path:
    return folder / f"{kind}-{tokens}-{batch}-{run.label}-{digest(run.solver().to_spec())}.json"


def _measure(kind: str, tokens: int, batch: int, run: Run, repeats: int) -> dict[str, Any]:
    problem, solver = instance(kind, tokens, batch), run.solver()
    key = {"kind": kind, "tokens": tokens, "batch": batch, "k": int(problem.k[0]), "solver": run.label}
    try:
        solution, time = timed(lambda: solver.solve(problem), repeats, 3.0)
    except Exception as error:
        return key | {"error": f"{type(error).__name__}: {error}"}
    return key | {
        "status": ", ".join(sorted({s.name for s in solution.status})),
        "proved": all(s.proved for s in solution.status),
        "value": solution.value.double().tolist(),
        "bound": _bound(solution),
        "no_bound": solution.no_bound,
        "seconds_cold": time.cold,
        "seconds_p50": time.p50,
        "seconds_p95": time.p95,
        "peak_mib": time.peak_mib,
    }


def _bound(solution: SubsetSolution) -> list[float] | None:
    return None if solution.upper_bound is None else solution.upper_bound.double().tolist()


def write_subset_report(out: Path, console: Console | None = None) -> str:
    """`subset.parquet` and `subset.md` from the cells (or from the Parquet alone); returns the Markdown."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted((out / "subset").glob("*.json"))
    where = out / "subset.parquet"
    if paths:
        rows = [json.loads(p.read_text()) for p in paths]
        names = list(dict.fromkeys(k for r in rows for k in r))
        part = out / "subset.parquet.part"
        pq.write_table(pa.Table.from_pylist([{k: r.get(k) for k in names} for r in rows]), part)
        part.replace(where)
    text = subset_tables(out, console)
    (out / "subset.md").write_text(text + "\n")
    return text


def subset_tables(out: Path, console: Console | None = None) -> str:
    """The subset records in `out` as Markdown. Raises InputError when there are none."""
    import pyarrow.parquet as pq

    where = out / "subset.parquet"
    if not where.exists():
        raise InputError(f"{out} holds no subset records; run `pruneopt bench solvers --out {out}` first")
    return _markdown([r for r in pq.read_table(where).to_pylist() if r.get("error") is None], console)


_COLUMNS = ("problem", "N", "k", "solver", "ms per sample", "below optimum", "certified gap", "status",
            "exponent")  # fmt: skip


def _markdown(rows: list[dict[str, Any]], console: Console | None) -> str:
    """Losses against the best proved value, gaps against the solver's own bound, within one batch size."""
    proved: dict[tuple[str, int, int], list[float]] = {
        (r["kind"], r["tokens"], r["batch"]): r["value"] for r in rows if r["proved"]
    }
    slopes = {}
    for series in {(r["kind"], r["solver"], r["batch"]) for r in rows}:
        same = [r for r in rows if (r["kind"], r["solver"], r["batch"]) == series]
        mine = sorted((r["tokens"], r["seconds_p50"]) for r in same)
        slopes[series] = fit_exponent(*zip(*mine, strict=True)) if len(mine) > 2 else None
    table = Table(*_COLUMNS, title="subset solvers")
    lines = ["| " + " | ".join(_COLUMNS) + " |", "| " + " | ".join("---" for _ in _COLUMNS) + " |"]
    for r in sorted(rows, key=lambda r: (r["kind"], r["tokens"], r["seconds_p50"])):
        best = proved.get((r["kind"], r["tokens"], r["batch"]))
        slope = slopes[r["kind"], r["solver"], r["batch"]]
        took = number(r["seconds_p50"] / r["batch"] * 1e3)
        cells = [
            r["kind"], str(r["tokens"]), str(r["k"]), r["solver"], took,
            "no proof" if best is None else _loss(best, r["value"], r["kind"]),
            "none" if r["bound"] is None else _loss(r["bound"], r["value"], r["kind"]), r["status"],
            "" if slope is None else f"{slope[0]:.2f} ({slope[1]:.2f} to {slope[2]:.2f})",
        ]  # fmt: skip
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    if console is not None:
        console.print(table)
    return "\n".join(lines)


def _loss(high: list[float], low: list[float], kind: str) -> str:
    """Mean loss: in nats for kinds whose value may be near zero, as a share otherwise.

    A loss below zero beyond rounding is shown and called an error: `high` is no bound then.
    """
    nats = find_kind(kind).unit == "nats"
    loss = [h - x if nats else 100 * (h - x) / max(abs(h), 1e-300) for h, x in zip(high, low, strict=True)]
    if not all(map(math.isfinite, loss)):
        return "infinite"
    least, unit = 1e-6 if nats else 1e-4, " nats" if nats else "%"
    mean = sum(loss) / len(loss)
    shown = 0.0 if -least <= mean < 0 else mean
    return f"{shown:.3g}{unit}" + (f" (ERROR: {min(loss):.3g}{unit})" if min(loss) < -least else "")
