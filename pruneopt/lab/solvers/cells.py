"""One measurement: a solver at one place, judged against the exact optimum."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from torch import Tensor

from pruneopt.errors import InputError, ProblemError, nearest
from pruneopt.lab.clock import timed
from pruneopt.lab.solvers.case import Case
from pruneopt.lab.solvers.families import make
from pruneopt.lab.solvers.peers import PEERS, Peer
from pruneopt.lab.statistics import agreement
from pruneopt.parts import TransportSolver
from pruneopt.parts.solvers.exact import Exact
from pruneopt.parts.solvers.sinkhorn_newton import SinkhornNewton
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.registry import registry

READOUTS = (
    "row_sum", "row_sum_target_last", "one_sided_mass", "row_cost", "dual_source", "row_max", "diagonal",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A solver with its settings under a label, and the sizes it is worth waiting for."""

    label: str
    solver: TransportSolver | Peer
    most_tokens: int = 100_000
    uniform_only: bool = False
    peer: bool = False


@dataclass(frozen=True)
class Place:
    """Which problems: a family, tokens a side and problems a batch."""

    family: str
    tokens: int
    batch: int


def _ours(label: str, name: str, *, most: int = 100_000, uniform: bool = False, **params: Any) -> Entry:
    part = cast(type[TransportSolver], registry("solvers").get(name))
    return Entry(label, part.from_spec(params), most, uniform)


def entries() -> dict[str, Entry]:
    """Everything that can be measured, by label."""
    found = [_ours(f"sinkhorn eps={e:g} 100r", "sinkhorn", epsilon=e) for e in (0.2, 0.1, 0.05, 0.02, 0.01)]
    found += [
        _ours("sinkhorn eps=0.1 3r", "sinkhorn", epsilon=0.1, rounds=3),
        _ours("sinkhorn eps=0.05 tol", "sinkhorn", epsilon=0.05, rounds=2000, tolerance=1e-4),
        _ours(
            "sinkhorn eps=0.05 tol w=1.5", "sinkhorn", epsilon=0.05, rounds=2000, tolerance=1e-4, omega=1.5
        ),
        *(
            _ours(f"sinkhorn eps={e:g} anneal", "sinkhorn", epsilon=e, anneal_start=0.2)
            for e in (0.005, 0.001, 0.0001)
        ),
        _ours("one_sided eps=0.05", "one_sided"),
        _ours("proximal 100", "proximal", rounds=100),
        _ours("sinkhorn_newton eps=0.05", "sinkhorn_newton", most=600),
        _ours("sinkhorn_newton eps=0.005", "sinkhorn_newton", most=300, epsilon=0.005, anneal_start=0.1),
        _ours("emd", "emd"),
        _ours("exact", "exact"),
        _ours("assignment", "assignment", uniform=True),
        _ours("lp HiGHS", "lp", most=150, route="direct"),
        _ours("lp cvxpy", "lp", most=70),
        _ours("greedy_rows", "greedy_rows"),
        _ours("north_west", "north_west"),
    ]
    found += [
        Entry(p.label, p, uniform_only=p.uniform_only, peer=True) for p in PEERS.values() if p.installed
    ]
    return {entry.label: entry for entry in found}


def chosen(patterns: Sequence[str]) -> dict[str, Entry]:
    """Entries whose label matches one of the patterns (`sinkhorn*`, or the first word of a label), or all.

    Raises InputError for a pattern that matches nothing.
    """
    every = entries()
    if not patterns:
        return every
    found = {}
    for pattern in patterns:
        hits = [x for x in every if fnmatch.fnmatch(x, pattern) or x.split()[0] == pattern]
        if not hits:
            if pattern in PEERS:
                raise InputError(PEERS[pattern].absence)
            raise InputError(f"no solver to measure matches {pattern!r}{nearest(pattern, every)}")
        found.update({x: every[x] for x in hits})
    return found


@dataclass(frozen=True)
class Truth:
    """The exact optimum of a case and its readouts, shared by all cells of the case."""

    case: Case
    problem: TransportProblem
    solution: TransportSolution
    readouts: dict[str, Tensor]


@lru_cache(maxsize=2)
def truth(place: Place) -> Truth:
    case = make(place.family, place.tokens, batch=place.batch)
    problem = case.problem()
    solution = Exact().solve(problem)
    return Truth(case, problem, solution, _readouts(problem, solution))


@lru_cache(maxsize=16)
def limit(place: Place, epsilon: float) -> TransportSolution:
    """The entropic plan that Sinkhorn at this epsilon (share of the range) converges to."""
    start = 0.2 if epsilon < 0.02 else None
    solver = SinkhornNewton(epsilon=epsilon, anneal_start=start, tolerance=1e-8)
    return solver.solve(truth(place).problem)


def _readouts(problem: TransportProblem, solution: TransportSolution) -> dict[str, Tensor]:
    out = {}
    for name in READOUTS:
        try:
            out[name] = registry("readouts").get(name)()(problem, solution)
        except ProblemError:
            continue
    return out


def measured(entry: Entry, place: Place, *, repeats: int, budget: float) -> dict[str, Any]:
    """Accuracy, time, memory and readouts of a solver at a place; plain numbers that go to JSON."""
    exact = truth(place)
    if isinstance(entry.solver, Peer) and entry.solver.compiles:
        entry.solver.solve(exact.problem)
    _, cost_time = timed(exact.case.build, repeats=3, budget=0.5)
    solution, time = timed(lambda: entry.solver.solve(exact.problem), repeats=repeats, budget=budget)
    best = exact.solution.value
    scale = best.abs().clamp_min(1e-300)
    span = exact.problem.cost_range().double()
    unrounded = (solution.plan.double() * exact.problem.cost).sum((1, 2)) - best
    return {
        "status": solution.status[0].name,
        "dtype": str(solution.dtype).removeprefix("torch."),
        "order": solution.order,
        "rounds": int(solution.rounds.max()) if solution.rounds is not None else 0,
        "row_error": _mean(solution.row_error),
        "col_error": _mean(solution.col_error),
        "row_error_max": float((solution.plan.sum(2) - exact.problem.a).abs().max()),
        "col_error_max": float((solution.plan.sum(1) - exact.problem.b).abs().max()),
        "smallest_entry": float(solution.plan.min()),
        "mass": _mean(solution.plan.double().sum((1, 2))),
        "optimum": _mean(best),
        "range": _mean(span),
        "excess": _mean((solution.value - best) / span),
        "excess_relative": _mean((solution.value - best) / scale) if float(scale.min()) > 1e-12 else math.nan,
        "unrounded_relative": _mean(unrounded / span),
        "gap": _mean(solution.gap / span),
        **time.record(),
        "seconds_cost": cost_time.p50,
        "seconds_total": time.p50 + cost_time.p50,
        "runs": len(time.runs),
        "bias": math.nan,
        "convergence": math.nan,
        "epsilon": math.nan,
        **_split(entry, solution, place=place),
        "readouts": _agreements(exact, solution),
    }


def _mean(x: Tensor) -> float:
    return float(x.double().mean())


def _split(entry: Entry, solution: TransportSolution, *, place: Place) -> dict[str, float]:
    """Bias: what the converged entropic plan costs above the optimum; convergence: what this one adds.

    Left out where finding the converged plan would take minutes.
    """
    epsilon = getattr(entry.solver, "epsilon", None)
    if epsilon is None or entry.label in ("pot_emd", "scipy_assignment"):
        return {}
    costly = place.tokens > 600 or (place.tokens > 300 and epsilon < 0.02)
    if costly or entry.label.startswith("one_sided"):
        return {"epsilon": float(epsilon)}
    exact, converged = truth(place), limit(place, float(epsilon))
    span = exact.problem.cost_range().double()
    best = exact.solution.value / span
    bias = (converged.plan * exact.problem.cost).sum((1, 2)) / span - best
    here = (solution.plan.double() * exact.problem.cost).sum((1, 2)) / span - best
    return {"epsilon": float(epsilon), "bias": _mean(bias), "convergence": _mean(here - bias)}


def _agreements(exact: Truth, solution: TransportSolution) -> list[dict[str, Any]]:
    """Every readout and trivial predictor against the same readout of the optimum, and against its dual."""
    rows = []
    mine = _readouts(exact.problem, solution)
    for name, score in [*mine.items(), *exact.case.trivial.items()]:
        for against in dict.fromkeys((name, "dual_source", "row_cost")):
            if against in exact.readouts:
                rows.append(
                    {"readout": name, "against": against, **_averaged(score, exact.readouts[against])}
                )
    return rows


def _averaged(score: Tensor, best: Tensor) -> dict[str, float]:
    each = [agreement(s, t) for s, t in zip(score.double().numpy(), best.double().numpy(), strict=True)]
    return {key: float(np.mean([x[key] for x in each])) for key in each[0]}
