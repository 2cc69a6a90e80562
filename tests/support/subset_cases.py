"""Random subset problems and an independent, slow evaluation of their objectives."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import torch

from pruneopt.parts import SubsetSolver
from pruneopt.problems.subset import SubsetProblem
from pruneopt.registry import registry

KINDS = tuple(registry("kinds"))
DISTANCE_KINDS = ("max_min", "max_sum", "k_center")
OWN = (
    "branch_and_bound", "brute_force", "farthest_point", "greedy_conflict", "greedy_k_center",
    "greedy_log_det", "greedy_max_sum", "lazy_greedy", "local_search", "milp", "pivot",
    "quota_top_k", "stable_top_k", "threshold_search",
)  # fmt: skip


def solver(name: str, **params) -> SubsetSolver:
    return registry("solvers").get(name).from_spec(params)


def names(kind: str | None = None, exact: bool | None = None) -> list[str]:
    out = []
    for name in OWN:
        found = registry("solvers").get(name)
        if kind and kind not in found.kinds:
            continue
        if exact is None or exact == ("exact" in found.tags):
            out.append(name)
    return out


def unit(batch: int, tokens: int, width: int, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(batch, tokens, width, generator=generator, dtype=torch.float64)
    return x / x.norm(dim=2, keepdim=True)


def random_problem(
    kind: str,
    seed: int = 0,
    batch: int = 2,
    tokens: int = 9,
    k: int = 4,
    ragged: bool = False,
    protect: bool = False,
    anchors: bool = False,
    width: int = 12,
) -> SubsetProblem:
    g = torch.Generator().manual_seed(seed)
    x = unit(batch, tokens, width, g)
    gram = x @ x.transpose(1, 2)
    gram = (gram + gram.transpose(1, 2)) / 2
    pairwise = 1 - gram if kind in DISTANCE_KINDS else gram
    unary = torch.rand(batch, tokens, generator=g, dtype=torch.float64) + 0.1
    mask = protected = rows = group = quota = None
    if ragged:
        mask = torch.arange(tokens) < torch.tensor([tokens - 2 * (b % 2) for b in range(batch)])[:, None]
    if protect:
        protected = torch.zeros(batch, tokens, dtype=torch.bool)
        protected[:, 3] = True
    if anchors:
        rows = 1 - unit(batch, 3, width, g) @ x.transpose(1, 2)
        rows[0, 1] = math.inf
    if kind == "quota":
        group = torch.arange(tokens).expand(batch, -1) % 2
        quota = torch.tensor([[k - k // 2, k // 2]]).expand(batch, -1)
    return SubsetProblem.build(
        kind,
        k,
        unary=None if kind == "max_min" and not protect and not anchors and seed % 2 else unary,
        pairwise=None if kind in ("top_k", "quota") else pairwise,
        mask=mask,
        protected=protected,
        anchors=rows,
        threshold=0.3,
        group=group,
        quota=quota,
    )


def slow_value(p: SubsetProblem, b: int, chosen: tuple[int, ...]) -> float:
    """Objective of one choice by loops over Python numbers, -inf when it breaks a constraint."""
    k, real = int(p.k[b]), p.real[b].tolist()
    if any(not real[i] for i in chosen):
        return -math.inf
    if len(chosen) > k or (p.kind != "independent_set" and len(chosen) != k):
        return -math.inf
    if p.protected is not None and any(t and i not in chosen for i, t in enumerate(p.protected[b].tolist())):
        return -math.inf
    u = [1.0] * len(real) if p.unary is None else p.unary[b].double().tolist()
    d = None if p.pairwise is None else p.pairwise[b].double().tolist()
    rows = [] if p.anchors is None else [r for r in p.anchors[b].tolist() if math.isfinite(r[chosen[0]])]
    pairs = list(combinations(chosen, 2))
    if p.kind == "quota":
        for g, q in enumerate(p.quota[b].tolist()):
            if sum(int(p.group[b, i]) == g for i in chosen) != q:
                return -math.inf
    if p.kind == "independent_set" and any(d[i][j] > p.threshold for i, j in pairs):
        return -math.inf
    if p.kind in ("top_k", "quota", "independent_set"):
        return sum(u[i] for i in chosen)
    if p.kind == "k_center":
        serves = lambda n: [0.0 if s == n else d[n][s] for s in chosen] + [r[n] for r in rows]  # noqa: E731
        return -max(max(0.0, min(serves(n))) for n in range(len(real)) if real[n])
    if p.kind == "max_min":
        every = [d[i][j] for i, j in pairs] + [r[i] for r in rows for i in chosen]
        return min(every) if every else 0.0
    if p.kind == "max_sum":
        own = 0.0 if p.unary is None else sum(u[i] for i in chosen)
        return own + sum(d[i][j] for i, j in pairs) + sum(r[i] for r in rows for i in chosen)
    if p.kind == "facility_location":
        return sum(u[n] * max(d[n][s] for s in chosen) for n in range(len(real)) if real[n])
    block = np.array([[u[i] * d[i][j] * u[j] for j in chosen] for i in chosen])
    return math.log(max(np.linalg.det(block), 1e-300))


def slow_best(p: SubsetProblem, b: int) -> tuple[float, tuple[int, ...]]:
    """Optimum of one sample by enumeration; the lexicographically first of equals."""
    k, tokens = int(p.k[b]), p.shape[1]
    sizes = range(1, k + 1) if p.kind == "independent_set" else (k,)
    best, where = -math.inf, ()
    for size in sizes:
        for chosen in combinations(range(tokens), size):
            value = slow_value(p, b, chosen)
            if value > best and not math.isclose(value, best, rel_tol=1e-12):
                best, where = value, chosen
    return best, where
