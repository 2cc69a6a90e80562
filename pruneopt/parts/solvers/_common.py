"""What several transport solvers need: the other way round, host copies in one scale, and one answer type."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem

WIDE = 1e6  # cost range over dearest pair paid, beyond which an exact solver is asked again ...
CLIP = 1e3  # ... with costs cut off at this many times the dearest pair paid


@dataclass(frozen=True)
class Atoms:
    """One problem of a batch as a host solver sees it: float64, only atoms that carry mass.

    `cost [n,m]` in [0,1]: lowest 0, highest 1 (all 0 if constant), because the tolerances of libraries are
    absolute.  `a [n]`, `b [m]` sum to one.  `index`: which problem; `unit`: what 1 is in the user's cost.
    """

    cost: np.ndarray
    a: np.ndarray
    b: np.ndarray
    index: int
    unit: float


@dataclass(frozen=True)
class Answer:
    """What a host solver found for some `Atoms`, in their cost units; `words`: what it has to say."""

    plan: np.ndarray
    f: np.ndarray | None
    g: np.ndarray | None
    rounds: int
    status: Status
    words: dict[str, Any]


SolveOne = Callable[[Atoms], Answer]


def transposed(problem: TransportProblem) -> TransportProblem:
    """Sources and targets exchanged; views, no copies."""
    return TransportProblem(
        problem.cost.transpose(1, 2), problem.b, problem.a, problem.col_mask, problem.row_mask
    )


def double(problem: TransportProblem) -> TransportProblem:
    """The same problem in float64."""
    cost, a, b = (x.double() for x in problem.inputs)
    return TransportProblem(cost, a, b, problem.row_mask, problem.col_mask)


def spoil(problem: TransportProblem, plan: Tensor) -> Tensor:
    """NaN for problems whose cost is not finite, for solvers that would not notice."""
    fine = problem.cost.isfinite().flatten(1).all(1)
    return torch.where(fine[:, None, None], plan, torch.full_like(plan, torch.nan))


def each(
    problem: TransportProblem,
    solve_one: SolveOne,
    *,
    solver: str,
    threads: int = 1,
    exact: bool = True,
) -> TransportSolution:
    """Run a host solver on every problem of the batch, scaled, in float64, and put the answers back.

    `solve_one` sees only atoms that carry mass, so padding and zero-mass atoms cannot disturb it; a problem
    without any, or with a cost that is not finite, never reaches it (`NON_FINITE`).  Atoms that it did not
    see get an empty row or column and the largest potential that stays dual feasible.  `exact`: both sides
    are met and the optimum is claimed, so `solve_one` may be asked again where one scale does not fit all.
    """
    begin = time.perf_counter()
    cost, a, b = (x.detach().cpu().numpy() for x in problem.inputs)
    a, b = a.astype(np.float64), b.astype(np.float64)
    plan, f, g = np.zeros(cost.shape), np.zeros(a.shape), np.zeros(b.shape)

    def run(i: int) -> Answer:
        mine = cost[i].astype(np.float64)  # one by one, so that a copy is still in the cache when it is read
        answer = _scaled(solve_one, mine, a=a[i], b=b[i], index=i, exact=exact)
        _put_back(answer, mine, seen=(a[i] > 0, b[i] > 0), plan=plan[i], f=f[i], g=g[i])
        return answer

    batch = range(len(cost))
    if threads > 1 and len(cost) > 1:
        with ThreadPoolExecutor(min(threads, len(cost))) as pool:
            answers = list(pool.map(run, batch))
    else:
        answers = [run(i) for i in batch]
    device = problem.cost.device
    put: Callable[[np.ndarray], Tensor] = lambda x: torch.from_numpy(x).to(device)  # noqa: E731
    potentials = any(x.f is not None for x in answers)
    return TransportSolution(
        time.perf_counter() - begin,
        {"details": [x.words for x in answers]},
        problem=problem,
        plan=put(plan),
        f=put(f) if potentials else None,
        g=put(g) if potentials else None,
        rounds=torch.tensor([x.rounds for x in answers], dtype=torch.int64, device=device),
        ended=tuple(x.status for x in answers),
        order="both" if exact else "source",
        solver=solver,
    )


def _scaled(
    solve_one: SolveOne, cost: np.ndarray, *, a: np.ndarray, b: np.ndarray, index: int, exact: bool
) -> Answer:
    """The answer to one problem, in the user's cost."""
    found = _atoms(cost, a, b=b, index=index)
    if found is None:
        nothing = np.full(cost.shape, np.nan)
        return Answer(nothing, nothing[:, 0], nothing[0], 0, Status.NON_FINITE, {})
    atoms, low = found
    answer = solve_one(atoms)
    if exact:
        answer = _finer(solve_one, atoms, first=answer)
    if answer.f is None or answer.g is None:
        return answer
    return replace(answer, f=answer.f * atoms.unit + low, g=answer.g * atoms.unit)


def _atoms(cost: np.ndarray, a: np.ndarray, *, b: np.ndarray, index: int) -> tuple[Atoms, float] | None:
    """What a host solver sees of one problem, and the cost that its 0 stands for.

    None to keep it away: some libraries crash on an empty problem, or on NaN.
    """
    rows, cols = a > 0, b > 0
    mass = a.sum() + b.sum()
    if not (rows.any() and cols.any() and np.isfinite((cost.min(), cost.max(), mass)).all()):
        return None
    seen = cost if rows.all() and cols.all() else cost[np.ix_(rows, cols)]
    low = float(seen.min())
    unit = (float(seen.max()) - low) or 1.0
    p, q = a[rows], b[cols]
    if not np.isfinite(unit):
        return None
    return Atoms((seen - low) / unit, p / p.sum(), q / q.sum(), index, unit), low


def _finer(solve_one: SolveOne, atoms: Atoms, *, first: Answer) -> Answer:
    """`first`, or an answer to the same problem with the costs that dwarf what it pays cut off.

    Libraries see no difference between costs of 1 and 2 beside one of 1e15.  Cutting costs off only lowers
    them, so an optimum that pays no cut pair, and its potentials, are optimal before the cut as well.
    """
    if first.status is not Status.OPTIMAL or float(np.vdot(first.plan, atoms.cost)) * WIDE >= 1:
        return first  # the dearest pair costs no less than the mean
    paid = _dearest(atoms, first)
    if not 0 < paid * WIDE < 1:
        return first
    top = CLIP * paid
    near = replace(atoms, cost=np.minimum(atoms.cost / top, 1.0), unit=atoms.unit * top)
    again = solve_one(near)
    if again.status is not Status.OPTIMAL or _dearest(near, again) >= 1 or again.f is None or again.g is None:
        return first
    return replace(again, f=again.f * top, g=again.g * top)


def _dearest(atoms: Atoms, answer: Answer) -> float:
    """The highest cost of a pair that gets mass beyond rounding."""
    used = answer.plan > 1e-14 * atoms.a[:, None]
    return float(atoms.cost[used].max(initial=0.0))


def _put_back(
    answer: Answer,
    cost: np.ndarray,
    *,
    seen: tuple[np.ndarray, np.ndarray],
    plan: np.ndarray,
    f: np.ndarray,
    g: np.ndarray,
) -> None:
    """Write an answer into its places of a batch; `seen`: the rows and columns that carry mass."""
    if answer.status is Status.NON_FINITE:
        plan[:], f[:], g[:] = np.nan, np.nan, np.nan
        return
    rows, cols = seen
    if rows.all() and cols.all():
        plan[:] = answer.plan
    else:
        plan[np.ix_(rows, cols)] = answer.plan
    if answer.f is None or answer.g is None:  # zero target potentials are dual feasible after a c-transform
        f[rows] = cost[np.ix_(rows, cols)].min(1)
    else:
        f[rows], g[cols] = answer.f, answer.g
    if not rows.all():  # potentials of atoms without mass, by the c-transform of the other side
        f[~rows] = (cost[~rows][:, cols] - g[cols]).min(1)
    if not cols.all():
        g[~cols] = (cost[:, ~cols] - f[:, None]).min(0)
