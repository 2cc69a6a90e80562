"""What several transport solvers need: the other way round, host copies, and one answer type."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pruneopt.problems import TransportProblem
from pruneopt.solution import Status, TransportSolution

T = TypeVar("T")
Answer = tuple[np.ndarray, "np.ndarray | None", "np.ndarray | None", int, Status, object]


def transposed(problem: TransportProblem) -> TransportProblem:
    """Sources and targets exchanged; views, no copies."""
    return TransportProblem(
        problem.cost.transpose(1, 2), problem.b, problem.a, problem.col_mask, problem.row_mask
    )


def double(problem: TransportProblem) -> TransportProblem:
    """The same problem in float64."""
    cost, a, b = problem.cost.double(), problem.a.double(), problem.b.double()
    return TransportProblem(cost, a, b, problem.row_mask, problem.col_mask)


def spoil(problem: TransportProblem, plan: Tensor) -> Tensor:
    """NaN for problems whose cost is not finite, for solvers that would not notice."""
    fine = problem.cost.isfinite().flatten(1).all(1)
    return torch.where(fine[:, None, None], plan, torch.full_like(plan, torch.nan))


def span(problem: TransportProblem) -> tuple[Tensor, Tensor]:
    """Lowest and highest real cost, `[B]` each."""
    mask, cost = problem.pair_mask, problem.cost
    if mask is None:
        return cost.amin((1, 2)), cost.amax((1, 2))  # aminmax over a dim is 15 times slower on a CPU
    return cost.masked_fill(~mask, torch.inf).amin((1, 2)), cost.masked_fill(~mask, -torch.inf).amax((1, 2))


def each(
    problem: TransportProblem,
    solve_one: Callable[[np.ndarray, np.ndarray, np.ndarray, int], Answer],
    solver: str,
    threads: int = 1,
    order: str = "both",
) -> TransportSolution:
    """Run a host solver on every problem of the batch in float64 and put the answers back.

    `solve_one(cost [n,m], a [n], b [m], index)` sees only atoms that carry mass, so padding and zero-mass
    atoms cannot disturb it, and returns plan, f, g, rounds, status and whatever it has to say.  Atoms that it
    did not see get an empty row or column and the largest potential that stays dual feasible.
    """
    begin = time.perf_counter()
    cost = problem.cost.detach().double().cpu().numpy()
    a, b = problem.a.detach().double().cpu().numpy(), problem.b.detach().double().cpu().numpy()
    rows, cols = a > 0, b > 0

    def run(i: int) -> Answer:
        r, c = rows[i], cols[i]
        p, q = a[i][r], b[i][c]
        if not (np.isfinite(cost[i]).all() and np.isfinite(p.sum() + q.sum())):
            nothing = np.full((r.sum(), c.sum()), np.nan)
            return nothing, nothing[:, :1].ravel(), nothing[:1].ravel(), 0, Status.NON_FINITE, {}
        seen = cost[i] if r.all() and c.all() else cost[i][np.ix_(r, c)]
        return solve_one(np.ascontiguousarray(seen), p / p.sum(), q / q.sum(), i)

    batch = range(len(cost))
    if threads > 1 and len(cost) > 1:
        with ThreadPoolExecutor(min(threads, len(cost))) as pool:
            answers = list(pool.map(run, batch))
    else:
        answers = [run(i) for i in batch]
    plan = np.zeros_like(cost)
    f, g = np.zeros_like(a), np.zeros_like(b)
    potentials = any(x[1] is not None for x in answers)
    for i, (part, fi, gi, _, _, _) in enumerate(answers):
        if part.shape == plan[i].shape:
            plan[i] = part
        else:
            plan[i][np.ix_(rows[i], cols[i])] = part
        if fi is None or gi is None:  # zero target potentials are dual feasible after a c-transform
            fi, gi = cost[i][np.ix_(rows[i], cols[i])].min(1), np.zeros(cols[i].sum())
        f[i][rows[i]], g[i][cols[i]] = fi, gi
        _extend(cost[i], f[i], g[i], rows[i], cols[i])
    device = problem.cost.device
    put: Callable[[np.ndarray], Tensor] = lambda x: torch.from_numpy(x).to(device)  # noqa: E731
    return TransportSolution(
        time.perf_counter() - begin,
        {"details": [x[5] for x in answers]},
        problem=problem,
        plan=put(plan),
        f=put(f) if potentials else None,
        g=put(g) if potentials else None,
        rounds=torch.tensor([x[3] for x in answers], dtype=torch.int64, device=device),
        ended=tuple(x[4] for x in answers),
        order=order,
        solver=solver,
    )


def _extend(cost: np.ndarray, f: np.ndarray, g: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> None:
    """Potentials of atoms without mass, by the c-transform of the other side."""
    if not rows.all():
        f[~rows] = (cost[~rows][:, cols] - g[cols]).min(1)
    if not cols.all():
        g[~cols] = (cost[:, ~cols] - f[:, None]).min(0)
