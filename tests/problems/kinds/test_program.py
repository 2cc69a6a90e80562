"""Constraints of a linear program, read row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from subset_cases import random_problem, solver

from pruneopt.problems.kinds import all_kinds
from pruneopt.problems.kinds._program import Program
from pruneopt.problems.subset import SubsetProblem


def constraints(program: Program) -> list[tuple[float, dict[int, float], float]]:
    """Every row as its lower limit, its coefficients by column, and its upper limit."""
    rows, cols, values, low, high = (
        np.concatenate(getattr(program, name)).tolist() for name in ("rows", "cols", "values", "low", "high")
    )
    found: list[dict[int, float]] = [{} for _ in range(program.height)]
    for row, col, value in zip(rows, cols, values, strict=True):
        found[row][col] = found[row].get(col, 0.0) + value
    return list(zip(low, found, high, strict=True))


@pytest.mark.parametrize("kind", [kind.name for kind in all_kinds() if kind.offers("linear")])
@pytest.mark.parametrize("k", [1, 2, 6])
def test_the_best_of_a_program_is_the_best_of_all_choices(kind: str, k: int) -> None:
    problem = random_problem(kind, 7, batch=2, tokens=6, k=k).sample(1)
    program = problem.rules.linear(problem)
    rows = constraints(program)
    matrix = np.array([[row.get(col, 0.0) for col in range(len(program.c))] for _, row, _ in rows])
    low, high = [row[0] for row in rows], [row[2] for row in rows]
    binary = np.arange(len(program.c)) < program.tokens
    found = milp(
        -program.c,
        integrality=binary,
        bounds=Bounds(program.floor, program.ceiling),
        constraints=LinearConstraint(matrix, low, high),
    )
    best = solver("brute_force").solve(problem).value.item()
    assert program.constant - found.fun == pytest.approx(best, rel=1e-9)


def test_cliques_cover_all_conflicts() -> None:
    """A triangle 0 1 3, an edge from 3 to 4, a token that conflicts with nobody."""
    pairs = np.zeros((5, 5), dtype=bool)
    for i, j in ((0, 1), (0, 3), (1, 3), (3, 4)):
        pairs[i, j] = pairs[j, i] = True
    program = Program(np.arange(5), np.zeros(5), np.zeros(5), np.ones(5))
    program.add_conflicts(pairs)
    assert constraints(program) == [
        (-math.inf, {0: 1.0, 1: 1.0, 3: 1.0}, 1.0),
        (-math.inf, {3: 1.0, 4: 1.0}, 1.0),
    ]


def test_a_count_is_exact_or_a_maximum_as_the_kind_says() -> None:
    exact = random_problem("top_k", tokens=5, k=3).sample(0)
    assert constraints(exact.rules.linear(exact)) == [(3.0, dict.fromkeys(range(5), 1.0), 3.0)]
    worth = torch.tensor([[3.0, 2.0, 1.0]], dtype=torch.float64)
    alike = torch.eye(3, dtype=torch.float64)[None]
    most = SubsetProblem.build("independent_set", 2, unary=worth, pairwise=alike, threshold=0.5)
    assert constraints(most.rules.linear(most)) == [(1.0, dict.fromkeys(range(3), 1.0), 2.0)]


def test_a_protected_token_is_chosen_and_padding_is_no_column() -> None:
    problem = random_problem("top_k", batch=2, tokens=6, k=2, ragged=True, protect=True).sample(1)
    program = problem.rules.linear(problem)
    assert program.place.tolist() == [0, 1, 2, 3]
    assert program.floor.tolist() == [0.0, 0.0, 0.0, 1.0] and program.ceiling.tolist() == [1.0] * 4
    worth = problem.unary[0, :4].tolist()
    middle = (max(worth) + min(worth)) / 2
    assert program.c.tolist() == [w - middle for w in worth] and program.constant == 2 * middle
