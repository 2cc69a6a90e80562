"""Greedy subset solvers that read rows: time, memory and certificate as tokens grow.

A twentieth of the tokens is kept, so a walk reads a twentieth of the matrix.  Time is of the processor too:
wall seconds of a busy machine say little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from pruneopt.lab.clock import Stopwatch, timed
from pruneopt.lab.grid import Cell, measure_cells, read_cells, write_rows
from pruneopt.lab.solvers.families import clustered
from pruneopt.parts import CostTerm, Kernel, SubsetSolver
from pruneopt.problems.kinds import Kind, all_kinds, find_kind
from pruneopt.problems.row_sums import Raised
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.unstored import Unstored, matrix_bytes
from pruneopt.registry import registry
from pruneopt.signals import Signals

WIDTH = 256
STORED = 2**27  # bytes of a matrix up to which picks are compared with those of the matrix
RIDGE = 0.1
TERMS = {"costs": "cosine_distance", "kernels": "cosine"}


@dataclass(frozen=True)
class Plan:
    """Every kind whose greedy rule reads rows, at these numbers of tokens."""

    sizes: Sequence[int] = (576, 1296, 2304, 5184, 10368, 20736)


def measure(plan: Plan, out: Path, *, console: Console) -> None:
    """Measure every cell that `out/scale` does not hold yet, then write `out/scale.parquet`."""
    folder = out / "scale"
    measure_cells(list(_cells(plan)), folder, console=console)
    write_rows(out / "scale.parquet", read_cells(folder))


def _cells(plan: Plan) -> Iterator[Cell]:
    for tokens in plan.sizes:
        for kind in all_kinds():
            if kind.greedy and "rows" in _solver(kind).tags:
                key = {"kind": kind.name, "tokens": tokens, "solver": kind.greedy["kind"]}
                yield Cell(key, (WIDTH, RIDGE), partial(_measure, kind.name, tokens))


def _solver(kind: Kind) -> SubsetSolver:
    params = dict(kind.greedy)
    return cast(type[SubsetSolver], registry("solvers").get(params.pop("kind"))).from_spec(params)


@cache
def _features(tokens: int) -> Signals:
    """Clustered tokens `[1,N,WIDTH]`: directions of 64 numbers, and noise in all."""
    gen = torch.Generator().manual_seed(tokens)
    turn = torch.randn(64, WIDTH, generator=gen) / 8
    noise = torch.randn(1, tokens, WIDTH, generator=gen)
    return Signals({"features": clustered(tokens, 1, gen=gen) @ turn + 0.1 * noise})


def problem_of(name: str, tokens: int) -> SubsetProblem:
    """The problem of a kind that keeps a twentieth of clustered tokens (1024 of 20,736), by rows."""
    kind, signals = find_kind(name), _features(tokens)
    part = cast(CostTerm | Kernel, registry(kind.pairs).get(TERMS[kind.pairs])())
    term = part.by_rows(signals.view(part.needs))
    term = Raised(term, RIDGE) if kind.definite else term
    return SubsetProblem.build(name, max(2, round(tokens * 1024 / 20736)), pairwise=Unstored(term))


def _measure(name: str, tokens: int) -> dict[str, Any]:
    solver, walked, read = _solver(find_kind(name)), [0.0], [0.0]
    _features(tokens)

    def walk() -> SubsetSolution:
        watch = Stopwatch()
        found = solver.solve(problem_of(name, tokens))
        walked[0] = watch.processor
        return found

    def certify(found: SubsetSolution) -> SubsetSolution:
        watch, again = Stopwatch(), replace(found)
        assert again.gap is not None  # it is computed when it is read
        read[0] = watch.processor
        return again

    found, time = timed(walk, repeats=1, budget=0.0)
    found, certificate = timed(partial(certify, found), repeats=1, budget=0.0)
    same = None
    if matrix_bytes(1, tokens) <= STORED:
        stored = replace(found.problem, pairwise=cast(Unstored, found.problem.pairwise).whole())
        same = solver.solve(stored).order.tolist() == found.order.tolist()  # type: ignore[union-attr]
    return {
        "k": int(found.problem.k[0]),
        "width": WIDTH,
        "value": float(found.value[0]),
        "bound": None if found.upper_bound is None else float(found.upper_bound[0]),
        "same": same,
        "processor": walked[0],
        "bound_processor": read[0],
        "bound_seconds": certificate.cold,
        "bound_mib": certificate.peak_mib,
        **time.record(),
    }
