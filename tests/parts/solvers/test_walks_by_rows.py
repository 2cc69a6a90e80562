"""Greedy walks that read rows take the picks of those that read the matrix, ties included, and no matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.parts.solvers import _first, lazy_greedy
from pruneopt.problems import rows as algebra
from pruneopt.problems.row_sums import Raised, Total
from pruneopt.problems.rows import Beside, Cosines, Gram, Rows, constant
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.unstored import Unstored
from pruneopt.registry import registry

TOKENS = 30


def squared(x: Tensor) -> Rows:
    return Total((Beside(x.square().sum(2)), Gram(x)), (1.0, -2.0))


def cosine_distance(x: Tensor) -> Rows:
    cosine = Cosines(torch.nn.functional.normalize(x, dim=2))
    return Total((constant(1.0, cosine), cosine), (1.0, -1.0))


WALKS: list[tuple[str, dict[str, Any], str, Any]] = [
    ("farthest_point", {}, "max_min", cosine_distance),
    ("farthest_point", {"seed": "max_mean_distance"}, "max_min", squared),
    ("farthest_point", {"core": 0.4}, "max_min", squared),
    ("greedy_k_center", {}, "k_center", squared),
    ("greedy_k_center", {}, "k_center", lambda x: squared_to(x, x.roll(1, 2))),
    ("greedy_max_sum", {}, "max_sum", cosine_distance),
    ("greedy_max_sum", {"seed": "max_nn_distance", "scores": "seed"}, "max_sum", squared),
    ("greedy_log_det", {}, "log_det", Gram),
    ("greedy_log_det", {}, "log_det", lambda x: Raised(Gram(x), 0.5)),
    ("lazy_greedy", {}, "facility_location", Gram),
    ("lazy_greedy", {}, "facility_location", lambda x: Total((squared_to(x, x.roll(1, 2)),), (-1.0,))),
]


def squared_to(x: Tensor, y: Tensor) -> Rows:
    return Total((Beside(x.square().sum(2), y.square().sum(2)), Gram(x, y)), (1.0, -2.0))


@pytest.fixture(autouse=True)
def _a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algebra, "BLOCK", 2**9)
    monkeypatch.setattr(_first, "MANY", 5)
    monkeypatch.setattr(lazy_greedy, "FEW", 1)


def picks(walk: int, x: Tensor, **terms: Any) -> tuple[list[list[int]], list[list[int]]]:
    """The picks by rows, where nobody may read the matrix, and those of the matrix."""
    name, params, kind, form = WALKS[walk]
    solver = registry("solvers").get(name).from_spec(params)
    problem = SubsetProblem.build(kind, 9, pairwise=Unstored(form(x)), **terms)
    with mock.patch.object(Unstored, "whole", side_effect=AssertionError("the matrix was read")):
        found = solver.solve(problem)
        assert found.value.isfinite().all()
    return found.order.tolist(), solver.solve(replace(problem, pairwise=form(x).dense())).order.tolist()


def features(width: int = 12) -> Tensor:
    return torch.randn(2, TOKENS, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("walk", range(len(WALKS)))
def test_picks_are_those_of_the_matrix(walk: int) -> None:
    score = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(4)) + 0.1
    found, told = picks(walk, features(), unary=score)
    assert found == told


@pytest.mark.parametrize("walk", range(len(WALKS)))
def test_picks_with_padding_protected_tokens_and_anchors(walk: int) -> None:
    score = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(4)) + 0.1
    protected = torch.zeros(2, TOKENS, dtype=torch.bool)
    protected[0, [4, 20]] = protected[1, 7] = True
    terms: dict[str, Any] = {"mask": torch.arange(TOKENS) < torch.tensor([[TOKENS], [TOKENS - 6]])}
    if WALKS[walk][2] != "log_det":
        terms["anchors"] = 5 * torch.rand(2, 3, TOKENS, generator=torch.Generator().manual_seed(5))
    for protect in (None, protected):
        found, told = picks(walk, features(), unary=score, protected=protect, **terms)
        assert found == told


@pytest.mark.parametrize("walk", [w for w in range(len(WALKS)) if WALKS[w][3] is not cosine_distance])
def test_equal_tokens_tie_as_in_the_matrix(walk: int) -> None:
    """Whole numbers have exact products, so that entries are the same bits and ties are ties."""
    x = torch.randint(-2, 3, (1, 10, 4), generator=torch.Generator().manual_seed(6)).float().repeat(1, 3, 1)
    name = WALKS[walk][0]
    if name == "greedy_log_det":
        x = torch.eye(16)[None, :10].repeat(1, 3, 1)
    found, told = picks(walk, x, unary=torch.ones(1, TOKENS))
    assert found == told


def test_few_rows_are_read_for_the_first_pick() -> None:
    """One token is alone: once its row is known, no other can be the first."""
    x = torch.zeros(1, TOKENS, 2)
    x[0, :, 0] = torch.arange(TOKENS) / 10
    x[0, 11] = 50.0
    read: list[int] = []

    class Counted(Gram):
        def block(self, rows: algebra.Index, cols: algebra.Index = slice(None)) -> Tensor:
            found = super().block(rows, cols)
            read.append(found.shape[1])
            return found

    squares = Total((Beside(x.square().sum(2)), Counted(x)), (1.0, -2.0))
    problem = SubsetProblem.build("max_min", 3, pairwise=Unstored(squares))
    score = _first.least_of_others(squares, problem)
    assert int(score.argmax()) == 11
    assert 0 < sum(read) <= TOKENS


def test_negative_weights_are_refused_by_rows_too() -> None:
    problem = SubsetProblem.build(
        "facility_location", 3, pairwise=Unstored(Gram(features())), unary=-torch.ones(2, TOKENS)
    )
    with pytest.raises(ProblemError, match="non-negative"):
        lazy_greedy.LazyGreedy().solve(problem)


def test_old_gains_spare_evaluations() -> None:
    """Most gains are never evaluated again: that is what makes the walk lazy."""
    x = features(40)
    problem = SubsetProblem.build("facility_location", 9, pairwise=Unstored(Gram(x)))
    real, count = lazy_greedy._Targets.gains, [0]

    def counted(self: Any, best: Tensor, tokens: Tensor | None = None) -> Tensor:
        count[0] += 0 if tokens is None else len(tokens)
        return real(self, best, tokens)

    with mock.patch.object(lazy_greedy._Targets, "gains", counted):
        lazy_greedy.LazyGreedy().solve(problem)
    assert 0 < count[0] < 2 * 8 * TOKENS * 0.7
