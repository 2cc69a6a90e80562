"""What checks of subset problems share: choices that keep the budget, and problems on some of the tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pruneopt.parts import SubsetSolver
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.subset import SubsetProblem
from pruneopt.testing.core import require

LARGE = 24  # tokens where brute force would be out of reach; solvers tagged `small` get 12


def size(solver: SubsetSolver) -> int:
    return 12 if "small" in solver.tags or "exact" in solver.tags else LARGE


def optimum(problem: SubsetProblem) -> Tensor:
    """`[B]` value of the best of all choices."""
    from pruneopt.parts.solvers.brute_force import BruteForce

    return BruteForce().solve(problem).value


def count_holds(
    solver: SubsetSolver, problem: SubsetProblem, *, solution: SubsetSolution, where: str
) -> None:
    """Fail unless the choice keeps the budget, real tokens only, and all protected ones."""
    keep = solution.keep
    require(
        keep.dtype == torch.bool and keep.shape == problem.shape,
        f"keep is {keep.dtype} {list(keep.shape)} {where}",
    )
    require(
        not (keep & ~problem.real).any(),
        f"padding was chosen {where}; mask scores with -inf before any argmax",
    )
    size, k = keep.sum(1), problem.k
    at_most = problem.rules.at_most and ("exact" in solver.tags or "exact_budget" not in solver.tags)
    good = (size <= k) & (size >= 1) if at_most else size == k
    require(good.all(), f"kept {size.tolist()} tokens for k={k.tolist()} {where}; was a token chosen twice?")
    if problem.protected is not None:
        lost = (problem.protected & problem.real & ~keep).any()
        require(not lost, f"a protected token was dropped {where}; honour problem.protected")
    if solution.order is not None:
        for row, kept in zip(solution.order, keep, strict=True):
            chosen = row[row >= 0].tolist()
            require(
                sorted(chosen) == kept.nonzero().squeeze(1).tolist(), f"`order` and `keep` disagree {where}"
            )


def tokens_of(problem: SubsetProblem, index: Tensor) -> SubsetProblem:
    """The same problem on the tokens `index` `[M]`, in that order."""
    names = ("unary", "pairwise", "mask", "protected", "anchors", "group")
    terms: dict[str, Any] = {name: getattr(problem, name) for name in names}
    for name, tensor in terms.items():
        if tensor is not None:
            tensor = tensor.index_select(tensor.dim() - 1, index)
            terms[name] = tensor.index_select(1, index) if name == "pairwise" else tensor
    return replace(problem, **terms)
