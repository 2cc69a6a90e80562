"""Subset solvers against their exact optimum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from rich.console import Console
from torch import Tensor

from pruneopt.errors import InputError, nearest
from pruneopt.lab.clock import timed
from pruneopt.lab.grid import Cell, measure_cells, read_cells, write_rows
from pruneopt.lab.solvers.families import clustered
from pruneopt.parts import SubsetSolver
from pruneopt.problems.kinds import Kind, all_kinds, find_kind
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem
from pruneopt.registry import registry
from pruneopt.tensors import keep_top

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


def instance(kind: str, tokens: int, *, batch: int, seed: int = 0) -> SubsetProblem:
    """Clustered tokens stated as a subset problem that keeps a quarter of them; float32.

    Scores are random between 0.5 and 1.5; `Kind.draw` says what distances and similarities are.
    """
    gen = torch.Generator().manual_seed(seed + tokens)
    unit = torch.nn.functional.normalize(clustered(tokens, batch, gen=gen).double(), dim=2)
    quality = 0.5 + torch.rand(batch, tokens, generator=gen)
    k = max(2, tokens // 4)
    terms = find_kind(kind).draw(unit, quality, k=k)
    if "pairwise" in terms:
        terms["pairwise"] = cast(Tensor, terms["pairwise"]).float()
    return SubsetProblem.build(kind, k, **terms)


@dataclass(frozen=True)
class Plan:
    """Cells of these kinds (all when empty), tokens and batch, with warm runs per cell.

    Raises InputError for an unknown kind of problem.
    """

    sizes: Sequence[int] = (16, 36, 64, 144, 576)
    batch: int = 4
    kinds: Sequence[str] = ()
    repeats: int = 3

    def __post_init__(self) -> None:
        known = [kind.name for kind in all_kinds()]
        for kind in self.kinds:
            if kind not in known:
                raise InputError(f"unknown subset problem {kind!r}{nearest(kind, known)}")


def measure(plan: Plan, out: Path, *, console: Console) -> None:
    """Measure every cell that `out/subset` does not hold yet, then write `out/subset.parquet`."""
    folder = out / "subset"
    measure_cells(list(_cells(plan)), folder, console=console)
    write_rows(out / "subset.parquet", read_cells(folder))


def _cells(plan: Plan) -> Iterator[Cell]:
    for kind in map(find_kind, plan.kinds) if plan.kinds else all_kinds():
        for tokens in plan.sizes:
            for run in runs(kind):
                if tokens <= run.most:
                    yield _cell(run, plan, kind=kind.name, tokens=tokens)


def _cell(run: Run, plan: Plan, *, kind: str, tokens: int) -> Cell:
    key = {"kind": kind, "tokens": tokens, "batch": plan.batch, "solver": run.label}
    problem = partial(instance, kind, tokens, batch=plan.batch)
    return Cell(key, run.solver().to_spec(), lambda: _measure(run.solver(), problem(), repeats=plan.repeats))


def _measure(solver: SubsetSolver, problem: SubsetProblem, *, repeats: int) -> dict[str, Any]:
    solution, time = timed(lambda: solver.solve(problem), repeats=repeats)
    bound = solution.upper_bound
    return {
        "k": int(problem.k[0]),
        "status": ", ".join(sorted({s.name for s in solution.status})),
        "proved": all(s.proved for s in solution.status),
        "value": solution.value.double().tolist(),
        "bound": None if bound is None else bound.double().tolist(),
        "no_bound": solution.no_bound,
        **time.record(),
    }
