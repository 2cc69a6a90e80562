"""The largest scores of every group."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.problems.kinds._kind import Kind
from pruneopt.problems.kinds._program import Program, choosing, placed
from pruneopt.problems.kinds._terms import best_k, modular, modular_gains, unary_or
from pruneopt.tensors import first_true

if TYPE_CHECKING:
    from pruneopt.problems.subset import SubsetProblem, Terms


class Quota(Kind):
    """Sum of `unary` over the choice, with `quota[b,g]` tokens from every group `group[b,n] == g`."""

    name: ClassVar[str] = "quota"
    needs: ClassVar[frozenset[str]] = frozenset({"unary", "quota"})
    greedy = {"kind": "quota_top_k"}

    def value(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        return modular(problem, keep)

    def broken(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        group, quota = _groups(problem)
        got = torch.zeros_like(quota)
        got.scatter_add_(1, group.masked_fill(~problem.real, 0), keep.to(got.dtype))
        return (got != quota).any(1)

    def bound(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        """The optimum itself: the largest scores of every group."""
        group, quota = _groups(problem)
        score = unary_or(problem, 0.0)
        total = torch.zeros_like(problem.k, dtype=torch.float64)
        for g in range(quota.shape[1]):
            member = (group == g) & problem.real
            forced = None if problem.protected is None else problem.protected & member
            total += best_k(score.masked_fill(~member, -math.inf), quota[:, g], forced=forced)
        return total

    def swap_gains(self, problem: SubsetProblem, keep: Tensor) -> Tensor:
        group, _ = _groups(problem)
        same = group[:, :, None] == group[:, None, :]
        return modular_gains(problem).masked_fill(~same, -math.inf)

    def check(self, problem: SubsetProblem) -> None:
        check_quota(problem)

    def linear(self, problem: SubsetProblem) -> Program:
        group, quota = _groups(problem)
        # no token of an empty group, however large its score
        program = choosing(
            problem, problem.real[0] & (quota[0][group[0].masked_fill(~problem.real[0], 0)] > 0)
        )
        program.c = placed(unary_or(problem, 0.0), program.place)
        each = quota[0].cpu().numpy()
        program.add(placed(group, program.place), range(program.tokens), values=1.0, low=each, high=each)
        program.centre(slice(None), int(problem.k[0]))
        return program

    def draw(self, unit: Tensor, quality: Tensor, *, k: int) -> Terms:
        """At most four groups that take turns; the quotas are those of the first k tokens."""
        groups = min(4, k)
        group = (torch.arange(quality.shape[1], device=quality.device) % groups).expand(quality.shape)
        share = torch.bincount(group[0, :k], minlength=groups).expand(len(quality), groups)
        return {"unary": quality, "group": group.contiguous(), "quota": share.contiguous()}


def _groups(problem: SubsetProblem) -> tuple[Tensor, Tensor]:
    assert problem.group is not None and problem.quota is not None
    return problem.group, problem.quota


def check_quota(problem: SubsetProblem) -> None:
    """Quotas sum to `k`, and every group has as many tokens as it must give and is asked for what it must."""
    (group, quota), real = _groups(problem), problem.real
    bad = (real & ((group < 0) | (group >= quota.shape[1]))).any(1)
    if bad.any():
        raise ProblemError(f"group numbers of sample {first_true(bad)} are outside 0..{quota.shape[1] - 1}")
    bad = (quota < 0).any(1)
    if bad.any():
        raise ProblemError(f"quota of sample {first_true(bad)} is negative")
    off = quota.sum(1) != problem.k
    if off.any():
        i = first_true(off)
        raise ProblemError(f"quotas of sample {i} sum to {int(quota[i].sum())}, but k is {int(problem.k[i])}")
    hot = torch.nn.functional.one_hot(group.masked_fill(~real, 0), quota.shape[1])
    forced = torch.zeros_like(real) if problem.protected is None else problem.protected
    for what, member in (("has only", real), ("protects", forced)):
        size = (hot * (member & real)[:, :, None]).sum(1)
        bad_group = quota > size if what == "has only" else quota < size
        if bad_group.any():
            i, g = (int(v) for v in bad_group.nonzero()[0])
            raise ProblemError(
                f"group {g} of sample {i} {what} {int(size[i, g])} tokens but its quota is {int(quota[i, g])}"
            )
