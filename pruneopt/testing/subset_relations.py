"""Checks of subset solvers on problems that are the same but for order, batch mates, dtype or scale."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pruneopt.parts import SubsetSolver
from pruneopt.problems.kinds import find_kind
from pruneopt.problems.row_sums import Total
from pruneopt.problems.rows import Cosines, Rows, constant
from pruneopt.problems.solution import SubsetSolution
from pruneopt.problems.unstored import Unstored
from pruneopt.testing import cases
from pruneopt.testing.core import changed, require
from pruneopt.testing.purity import require_own_generator, require_pure, tensors_in
from pruneopt.testing.subset_choices import count_holds, size, tokens_of


def check_scale(solver: SubsetSolver, kind: str) -> None:
    """The numbers of an objective times 1e-12 or 1e12: the same choice, and the same claim about it."""
    problem = cases.subset(kind, tokens=10, k=4, seed=4)
    reference = solver.solve(problem)
    for scale in (1e-12, 1e12):
        terms = {name: getattr(problem, name) for name in problem.rules.scaled}
        moved = changed(problem, **{n: scale * t for n, t in terms.items() if t is not None})
        solution = solver.solve(moved)
        require(
            torch.equal(solution.keep, reference.keep),
            f"another choice at scale {scale:g}; divide by the size of the objective first",
        )
        require(
            solution.status == reference.status,
            f"{reference.status[0].name} becomes {solution.status[0].name} at scale {scale:g}",
        )


def check_nested(solver: SubsetSolver, kind: str) -> None:
    """Tagged `nested`: the choice for k is part of the choice for k + 1."""
    last = torch.zeros(2, 12, dtype=torch.bool)
    for k in range(1, 13):
        keep = solver.solve(cases.subset(kind, tokens=12, k=k)).keep
        require(not (last & ~keep).any(), f"a token kept for k={k - 1} is dropped for k={k}")
        last = keep


def check_ties(solver: SubsetSolver, kind: str) -> None:
    """Of identical tokens the lower index is chosen first."""
    problem = cases.subset(kind, tokens=12, k=4, duplicates=True, dtype=torch.float32)
    keep = solver.solve(problem).keep
    wrong = (keep[:, 6:] & ~keep[:, :6]).any()
    require(not wrong, "a copy was chosen before its original; use argmax or a stable sort")


def _same(solver: SubsetSolver, one: Tensor, *, two: Tensor, a: SubsetSolution, b: SubsetSolution) -> bool:
    """Equal choices; for exact solvers, which may pick any optimum, equal values."""
    if "exact" in solver.tags:
        return bool((a.value - b.value).abs().amax() <= 1e-6)
    return torch.equal(one, two)


def check_permutation(solver: SubsetSolver, kind: str) -> None:
    """Permuting tokens permutes the choice."""
    n = size(solver)
    problem = cases.subset(kind, tokens=n, seed=5)
    p = cases.shuffle(n, 2)
    moved = tokens_of(problem, p)
    one, two = solver.solve(problem), solver.solve(moved)
    require(
        _same(solver, one.keep[:, p], two=two.keep, a=one, b=two),
        "permuting the tokens changes the choice; tag it `uses_order` if that is the rule",
    )


def check_batch(solver: SubsetSolver, kind: str) -> None:
    """A sample gives in a ragged batch what it gives alone, whatever stands at padding."""
    n = size(solver)
    for protect in (False, True):
        _batch_of(solver, kind, n=n, protect=protect)


def _batch_of(solver: SubsetSolver, kind: str, *, n: int, protect: bool) -> None:
    lengths = (n, n - 3, 7)
    problem = cases.subset(kind, batch=3, tokens=n, lengths=lengths, protect=protect, seed=6)
    together = solver.solve(problem)
    count_holds(solver, problem, solution=together, where=f"({kind}, ragged)")
    for b, length in enumerate(lengths):
        alone = solver.solve(replace(tokens_of(problem.sample(b), torch.arange(length)), mask=None))
        require(
            _same(solver, alone.keep[0], two=together.keep[b, :length], a=alone, b=_value_of(together, b)),
            f"{kind}: sample {b} of a ragged batch differs from itself alone",
        )
    real = problem.real
    pair = real[:, :, None] & real[:, None, :]
    dirty = replace(
        problem,
        unary=None if problem.unary is None else problem.unary.masked_fill(~real, 9.0),
        pairwise=None if problem.pairwise is None else problem.pairwise.masked_fill(~pair, 9.0),
    )
    again = solver.solve(dirty)
    same = _same(solver, again.keep, two=together.keep, a=again, b=together)
    require(same, f"{kind}: values at padded tokens leak into the choice")


def _value_of(solution: SubsetSolution, b: int) -> SubsetSolution:
    """A stand-in with the value of one sample."""
    part = replace(solution)
    part.__dict__["value"] = solution.value[b : b + 1]
    return part


def check_inputs_pure(solver: SubsetSolver, kind: str) -> None:
    """The problem is unchanged and two calls agree."""
    problem = cases.subset(kind, tokens=size(solver), protect=True)
    require_pure(lambda: solver.solve(problem).keep, tensors_in(problem))


def check_global_rng(solver: SubsetSolver, kind: str) -> None:
    """The global random generators are neither used nor moved."""
    problem = cases.subset(kind, tokens=size(solver))
    require_own_generator(lambda: solver.solve(problem).keep)


def check_dtype(solver: SubsetSolver, kind: str) -> None:
    """float32 input gives the choice of float64 up to ties, and half precision is accepted."""
    exact = cases.subset(kind, tokens=size(solver), seed=7)
    reference = solver.solve(exact)
    single = solver.solve(cases.subset(kind, tokens=size(solver), seed=7, dtype=torch.float32))
    off = (single.value - reference.value).abs().amax()
    scale = reference.value.abs().amax().clamp_min(1)
    require(off <= 1e-3 * scale, f"float32 changes the value by {float(off):.2g}")
    half = cases.subset(kind, tokens=size(solver), seed=7, dtype=torch.bfloat16)
    count_holds(solver, half, solution=solver.solve(half), where="(bfloat16)")


def check_degenerate(solver: SubsetSolver, kind: str) -> None:
    """Equal tokens, zero matrices and one token give a full choice and no NaN."""
    for fill in (0.0, 1.0):
        problem = cases.subset(kind, tokens=8, k=3)
        values = {"unary": problem.unary, "pairwise": problem.pairwise}
        flat = {n: torch.full_like(t, fill) for n, t in values.items() if t is not None}
        problem = changed(problem, **flat)
        solution = solver.solve(problem)
        count_holds(solver, problem, solution=solution, where=f"(all entries {fill:g})")
        require(not solution.value.isnan().any(), f"NaN value for entries {fill:g}")
    one = cases.subset(kind, tokens=1, k=1)
    count_holds(solver, one, solution=solver.solve(one), where="(one token)")


def check_rows(solver: SubsetSolver, kind: str) -> None:
    """Tagged `rows`: a term by rows gets the picks of its matrix, which nobody makes."""
    problem = cases.subset(kind, tokens=size(solver))
    features = torch.randn(2, size(solver), 16, generator=torch.Generator().manual_seed(1)).double()
    rows: Rows = Cosines(torch.nn.functional.normalize(features, dim=2))
    if find_kind(kind).pairs == "costs":
        rows = Total((constant(1.0, rows), rows), (1.0, -1.0))
    unread = Unstored(rows)
    found = solver.solve(replace(problem, pairwise=unread)).keep
    require(not unread.read, "the whole matrix was read; rows_of(problem.pairwise) gives rows")
    told = solver.solve(replace(problem, pairwise=rows.dense())).keep
    require(bool((found == told).all()), "the choice by rows is not that of the matrix")
