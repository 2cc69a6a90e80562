"""Budgets: exact counts, stated rounding, no silent clipping."""

from __future__ import annotations

import pytest

from pruneopt.errors import ProblemError, SpecError
from pruneopt.problems.budget import Budget


@pytest.mark.parametrize(
    ("keep", "rounding", "tokens", "count"),
    [
        (0.5, "round", 576, 288),
        (0.098, "round", 576, 56),
        (0.29, "floor", 100, 29),
        (0.1, "round", 576, 58),
        (0.1, "floor", 576, 57),
        (0.1, "ceil", 576, 58),
        (0.5, "round", 5, 2),
        (0.001, "floor", 10, 1),
        (1, "round", 7, 7),
        (1.0, "floor", 7, 7),
        (64, "round", 576, 64),
    ],
)
def test_counts(keep: float, rounding: str, tokens: int, count: int) -> None:
    assert Budget(keep, rounding).count(tokens, tokens) == count


def test_ratios_can_refer_to_the_start_or_to_what_is_alive() -> None:
    assert Budget(0.25).count(start=100, alive=40) == 25
    assert Budget(0.25, relative_to="current").count(start=100, alive=40) == 10


def test_more_than_is_there_is_refused_not_clipped() -> None:
    with pytest.raises(ProblemError, match="only 49 are left"):
        Budget(64).count(49, 49)
    with pytest.raises(ProblemError, match="only 10 are left"):
        Budget(0.5).count(start=100, alive=10)


@pytest.mark.parametrize("keep", [0, -1, 1.5, float("nan"), float("inf"), True, "half", None])
def test_bad_keeps(keep: object) -> None:
    with pytest.raises(SpecError, match=r"budget\.keep"):
        Budget(keep)  # type: ignore[arg-type]
