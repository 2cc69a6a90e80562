"""`pruneopt bench targets`: promised speed and accuracy, measured in turns in one run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from pruneopt.lab.clock import interleaved
from pruneopt.lab.environment import environment
from pruneopt.lab.progress import progress
from pruneopt.lab.records import write_record
from pruneopt.lab.solvers.families import make
from pruneopt.lab.solvers.peers import PEERS
from pruneopt.lab.targets.rivals import exact_rivals, sinkhorn_rivals
from pruneopt.lab.targets.subset import numpy_targets, subset_targets
from pruneopt.lab.targets.target import Target
from pruneopt.parts.solvers.emd import Emd
from pruneopt.parts.solvers.sinkhorn import Sinkhorn
from pruneopt.problems.transport import TransportProblem


def _products(problem: TransportProblem, rounds: int, *, how: str) -> Callable[[], None]:
    """The same number of bare batched matrix-vector products as `rounds` rounds of Sinkhorn.

    `bmm`: as one would write it; `rows`: both as row vectors, on two copies of the kernel; `mv`: per problem;
    `numpy`: batched with a column.
    """
    kernel = (-problem.cost).exp()
    turned = kernel.transpose(1, 2).contiguous()
    u, v = torch.ones_like(problem.a), torch.ones_like(problem.b)
    k_host, u_host, v_host = kernel.numpy(), u.numpy()[:, :, None], v.numpy()[:, :, None]

    def run() -> None:
        for _ in range(rounds):
            if how == "bmm":
                torch.bmm(kernel, v[:, :, None])
                torch.bmm(kernel.transpose(1, 2), u[:, :, None])
            elif how == "numpy":
                np.matmul(k_host, v_host)
                np.matmul(k_host.transpose(0, 2, 1), u_host)
            elif how == "rows":
                torch.bmm(v[:, None, :], turned)
                torch.bmm(u[:, None, :], kernel)
            else:
                for k, x, y in zip(kernel, v, u, strict=True):
                    torch.mv(k, x)
                    torch.mv(k.t(), y)

    return run


def sinkhorn_targets(
    *, tokens: int = 576, batch: int = 8, rounds: int = 100, repeats: int = 7
) -> list[Target]:
    """Sinkhorn against bare products and against POT, on TopV-like costs at epsilon 0.05 of the range."""
    problem = make("topv", tokens, batch=batch).problem()
    solver = Sinkhorn(epsilon=0.05, rounds=rounds)
    few = max(1, rounds // 10)
    slow = {
        how: interleaved(lambda: None, _products(problem, few, how=how), repeats=3)[1]
        for how in ("bmm", "rows", "mv", "numpy")
    }
    fastest = min(slow, key=lambda how: slow[how])
    ours, bare = interleaved(
        lambda: solver.solve(problem), _products(problem, rounds, how=fastest), repeats=repeats
    )
    note = ", ".join(f"{how} {seconds * rounds / few:.3f} s" for how, seconds in slow.items())
    found = [
        Target("sinkhorn / bare products", ours / bare, "at most", 1.5, "x", ours, bare,
               f"against the fastest way to multiply: {note}"),
    ]  # fmt: skip
    mine = solver.solve(problem)
    for label in ("pot_sinkhorn_log", "pot_sinkhorn_log_torch"):
        peer = PEERS[label]
        theirs, ours = interleaved(lambda p=peer: p.solve(problem), lambda: solver.solve(problem), repeats=3)  # type: ignore
        gap = peer.solve(problem).gap
        worse = float(((mine.gap - gap) / problem.cost_range().double()).max())
        found += [
            Target(f"{label} / sinkhorn", theirs / ours, "at least", 10.0, "x", theirs, ours),
            Target(f"gap of sinkhorn above {label}'s", worse, "at most", 1e-6, "of range"),
        ]
    tiny = Sinkhorn(epsilon=1e-4, rounds=rounds, anneal_start=1.0, anneal_rounds=20).solve(problem)
    gap = (tiny.gap / problem.cost_range().double()).max()
    finite = all(s.ok for s in tiny.status) and bool(tiny.gap.isfinite().all())
    found.append(
        Target("certified gap at epsilon 1e-4, annealed", float(gap) if finite else float("inf"), "at most",
               0.01, "of range", tiny.seconds, note=", ".join({s.name for s in tiny.status}))
    )  # fmt: skip
    return found


def emd_targets(*, tokens: int = 576, batch: int = 8, repeats: int = 9) -> list[Target]:
    """A batch of exact problems on two threads against one after another.

    The note says what two threads gain on work that needs no interpreter at all, at the same moment: a busy
    machine has no second core to give.
    """
    problem = make("topv", tokens, batch=batch).problem()
    alone, together = interleaved(
        lambda: Emd(threads=1).solve(problem), lambda: Emd(threads=2).solve(problem), repeats=repeats
    )
    numbers = [np.random.default_rng(i).random(400_000) for i in range(8)]
    with ThreadPoolExecutor(2) as pool:
        one, two = interleaved(
            lambda: [np.sort(x) for x in numbers], lambda: list(pool.map(np.sort, numbers)), repeats=repeats
        )
    note = f"sorting, which needs no interpreter, gained {one / two:.2f} x at the same time"
    name = "emd one by one / emd on two threads"
    return [Target(name, alone / together, "at least", 1.6, "x", alone, together, note)]


@dataclass(frozen=True)
class Plan:
    """All promises; there is nothing to choose."""


def measure(plan: Plan, out: Path, *, console: Console) -> None:
    """Measure all promises; one record, `out/targets.json`."""
    machine = environment()
    promises = (
        sinkhorn_targets, sinkhorn_rivals, emd_targets, exact_rivals, subset_targets, numpy_targets,
    )  # fmt: skip
    targets: list[Target] = []
    with progress(console, "promises", total=len(promises)) as step:
        for promise in promises:
            targets += promise()
            step(1)
    record = {"machine": machine, "targets": [asdict(t) | {"met": t.met} for t in targets]}
    write_record(out / "targets.json", record)
