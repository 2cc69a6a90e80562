"""Small relaxed transport problems at all scales, and their optima by other means."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from pruneopt.problems.transport import TransportProblem


def many(seed: int, batch: int, *, n: int = 5, m: int = 4) -> TransportProblem:
    """Problems of scale 1e-12 to 1e12 with offsets, atoms without mass and padding."""
    gen = torch.Generator().manual_seed(seed)
    cost = torch.rand(batch, n, m, generator=gen, dtype=torch.float64)
    unit = 10.0 ** torch.randint(-12, 13, (batch, 1, 1), generator=gen).double()
    offset = torch.randn(batch, 1, 1, generator=gen, dtype=torch.float64)
    masks, masses = [], []
    for size in (n, m):
        mask = torch.rand(batch, size, generator=gen) > 0.2
        mask[:, 0] = True
        mass = torch.rand(batch, size, generator=gen, dtype=torch.float64)
        mass = mass * mask * (torch.rand(batch, size, generator=gen) > 0.1)
        mass[:, 0] += 0.1
        masks.append(mask)
        masses.append(mass / mass.sum(1, keepdim=True))
    return TransportProblem.build(
        (cost + offset) * unit, a=masses[0], b=masses[1], row_mask=masks[0], col_mask=masks[1]
    )


def above(problem: TransportProblem) -> tuple[Tensor, Tensor]:
    """Lowest real cost `[B]` and `[B,N,M]` cost above it; a lot where either atom is missing."""
    low = problem.cost.masked_fill(~problem.pair_mask, torch.inf).flatten(1).amin(1)
    return low, problem.cost - low[:, None, None]


def served_by_the_best(problem: TransportProblem, *, k: int) -> Tensor:
    """`[B]` least cost of serving all targets from at most k sources with mass: every choice is tried."""
    best = torch.full((len(problem.a),), torch.inf, dtype=torch.float64)
    cost = problem.cost.masked_fill((problem.a == 0)[:, :, None], torch.inf)
    for chosen in combinations(range(cost.shape[1]), k):
        each = cost[:, list(chosen)].amin(1).masked_fill(problem.b == 0, 0)
        best = torch.minimum(best, (problem.b * each).sum(1))
    return best


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p|q) of unequal masses, per problem."""
    return (torch.xlogy(p, p / q.clamp_min(1e-300)) - p + q).sum(1)


def unbalanced_optimum(
    problem: TransportProblem, reach: Tensor, *, rounds: int = 3000
) -> tuple[Tensor, Tensor]:
    """`[B]` value and `[B,M]` target potential of unbalanced transport with both sides soft, by majorisation.

    Multiplicative updates of Chapel, Flamary, Wu, Fevotte, Gasso 2021, which use no epsilon.
    """
    _, cost = above(problem)
    a, b = problem.a, problem.b
    kernel = (-cost / (2 * reach)[:, None, None]).exp()
    plan = a[:, :, None] * b[:, None, :]
    for _ in range(rounds):
        rows, cols = (x.clamp_min(1e-300) for x in (plan.sum(2), plan.sum(1)))
        plan = plan * kernel * ((a / rows)[:, :, None] * (b / cols)[:, None, :]).sqrt()
    rows, cols = plan.sum(2), plan.sum(1)
    value = (plan * cost).sum((1, 2)) + reach * (divergence(rows, a) + divergence(cols, b))
    return value, -reach[:, None] * (cols / b).log().nan_to_num(0.0)
