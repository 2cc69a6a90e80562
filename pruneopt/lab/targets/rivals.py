"""Our transport solvers over the best alternative, at the same accuracy.

All run in turns in one process, in the dtype and with the number of threads that the run was given.  A rival
counts if its answer is as good as ours: for Sinkhorn the same rounds at the same epsilon from the same start,
a marginal error that is not larger, and a plan that is the one of the same rounds in float64; for exact
transport the same value.  Who does not is named with the reason.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch

from pruneopt.lab.clock import Stopwatch, turns
from pruneopt.lab.solvers.families import make
from pruneopt.lab.solvers.peers import PEERS, Peer
from pruneopt.lab.targets.target import Target
from pruneopt.parts import TransportSolver
from pruneopt.parts.solvers.exact import Exact
from pruneopt.parts.solvers.sinkhorn import Sinkhorn
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem

SIZES = ((144, 8), (576, 8), (1024, 1))
SLOW = 3.0  # a rival that takes this many times our seconds is timed once
NOISE = 1e-5  # L1 distance of plans, and marginal error, that float32 explains
EXACT = ("pot_emd", "scipy_assignment")

Judge = Callable[[TransportSolution], str]  # why an answer is not as good as ours, empty if it is


def sinkhorn_rivals(
    *, sizes: tuple[tuple[int, int], ...] = SIZES, rounds: int = 100, repeats: int = 7
) -> list[Target]:
    """Sinkhorn at two epsilons on TopV-like costs, in float32, a fixed number of rounds from zero."""
    found = []
    for epsilon in (0.05, 0.01):
        for tokens, batch in sizes:
            problem = make("topv", tokens, batch=batch).problem()
            ours = Sinkhorn(epsilon=epsilon, rounds=rounds)
            cost, a, b = (x.double() for x in problem.inputs)
            reference = ours.solve(TransportProblem(cost, a, b))
            rivals = {
                label: replace(peer, epsilon=epsilon, rounds=rounds)
                for label, peer in PEERS.items()
                if label not in EXACT
            }
            name = f"sinkhorn {epsilon:g} / best alternative, {tokens} x {batch}"
            judge = partial(_as_close, reference=reference, ours=ours.solve(problem))
            found.append(_beside(name, ours, problem=problem, rivals=rivals, judge=judge, repeats=repeats))
    return found


def exact_rivals(
    *,
    sizes: tuple[tuple[int, int], ...] = SIZES[:2],
    repeats: int = 5,
    families: tuple[str, ...] = ("topv", "cloud64"),
) -> list[Target]:
    """Exact transport on TopV-like costs and clouds, with their own masses and with uniform ones."""
    found = []
    for family in families:
        for tokens, batch in sizes:
            weighted = make(family, tokens, batch=batch).problem()
            for masses, problem in (
                ("", weighted),
                (", uniform", TransportProblem.build(weighted.cost, check=False)),
            ):
                ours = Exact()
                rivals = {x: PEERS[x] for x in EXACT if masses or not PEERS[x].uniform_only}
                name = f"exact / best alternative, {family} {tokens} x {batch}{masses}"
                judge = partial(_as_good, ours=ours.solve(problem))
                found.append(
                    _beside(name, ours, problem=problem, rivals=rivals, judge=judge, repeats=repeats)
                )
    return found


def _beside(
    name: str,
    ours: TransportSolver,
    *,
    problem: TransportProblem,
    rivals: Mapping[str, Peer],
    judge: Judge,
    repeats: int,
) -> Target:
    """Our best seconds over those of the fastest rival whose answer is as good."""
    notes: list[str] = []
    close: dict[str, Peer] = {}
    ours.solve(problem)
    started = Stopwatch()
    ours.solve(problem)
    mine = started.wall
    for label, rival in rivals.items():
        if rival.absence:
            notes.append(rival.absence)
            continue
        if rival.compiles:
            rival.solve(problem)
        started = Stopwatch()
        answer = rival.solve(problem)
        seconds = started.wall
        worse = judge(answer)
        if worse:
            notes.append(f"{label}: {worse}")
        elif seconds > SLOW * mine and close:
            notes.append(f"{label} {seconds / mine:.0f} x")
        else:
            close[label] = rival
    jobs = [partial(ours.solve, problem), *(partial(x.solve, problem) for x in close.values())]
    times = turns(jobs, repeats=repeats)
    best = dict(zip(close, (min(x) for x in times[1:]), strict=True))
    first = min(best, key=lambda label: best[label])
    mine = min(times[0])
    others = [f"{label} {best[label] / mine:.2f} x" for label in sorted(best, key=lambda x: best[x])]
    spread = statistics.median(times[0]) / mine - 1
    note = f"times ours: {'; '.join([*others, *notes])}; our median is {spread:.0%} above our best"
    return Target(name, mine / best[first], "at most", 1.0, "x", mine, best[first], note)


def _as_close(answer: TransportSolution, *, reference: TransportSolution, ours: TransportSolution) -> str:
    error, allowed = (float(torch.maximum(x.row_error, x.col_error).max()) for x in (answer, ours))
    if not error <= 1.2 * allowed + NOISE:
        return f"marginal error {error:.1e}, ours {allowed:.1e}"
    off = float((answer.plan.double() - reference.plan).abs().sum((1, 2)).max())
    # One that ends on the other side is half a round away, which is as much as its marginals still miss.
    return "" if off <= NOISE + 2 * error else f"plan {off:.1e} from that of float64"


def _as_good(answer: TransportSolution, *, ours: TransportSolution) -> str:
    off = float(((answer.value - ours.value).abs() / ours.value.abs().clamp_min(1e-300)).max())
    return "" if off <= 1e-9 else f"value off by {off:.1e}"
