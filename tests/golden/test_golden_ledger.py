"""Planted faults that the golden harness must catch: wrong picks, wrong scores, comparisons left out."""

from __future__ import annotations

import numpy as np
import pytest
from golden_files import GoldenCase
from zoo import Ledger, run, tensor


def made_up() -> GoldenCase:
    return GoldenCase(
        "planted",
        {
            "param_json": np.array('{"variants": {"a": {}}}'),
            "in.x": np.zeros(3, dtype=np.float16),
            "out.a.idx": np.array([1, 3], dtype=np.int32),
            "stable.a.idx": np.array(True),
            "out.a.score": np.array([0.5, 0.25], dtype=np.float32),
            "f64diff.a.score": np.array(1e-7, dtype=np.float32),
        },
    )


def test_a_wrong_index_is_caught() -> None:
    with pytest.raises(AssertionError):
        Ledger(made_up()).same("a", "idx", [1, 2])


def test_a_wrong_score_is_caught() -> None:
    book = Ledger(made_up())
    book.close("a", "score", [0.5, 0.25 + 1e-6])
    with pytest.raises(AssertionError):
        book.close("a", "score", [0.5, 0.2501])


def test_a_comparison_left_out_is_caught() -> None:
    book = Ledger(made_up())
    book.same("a", "idx", [1, 3])
    with pytest.raises(AssertionError, match="score"):
        book.close_book()
    book.close("a", "score", [0.5, 0.25])
    assert book.close_book() == 2


def test_an_empty_run_is_caught() -> None:
    empty = GoldenCase("empty", {"param_json": np.array('{"variants": {}}')})
    with pytest.raises(AssertionError):
        Ledger(empty).close_book()


@pytest.mark.golden("fastv")
def test_another_query_is_not_fastv(case: GoldenCase) -> None:
    """The file tells a planted FastV that keeps the least attended tokens from the real one."""
    book, common = Ledger(case), case.param["common"]
    rows = tensor(case["in.attn_last_row"])[:, common["sys"] : common["sys"] + common["N"]]
    chosen = run(
        "fastv",
        {"attention_last": rows[None]},
        ["problem.scores.attention.weight=-1", f"budget.keep={book.variants['k0.11']['rank']}"],
    )
    with pytest.raises(AssertionError):
        book.same("k0.11", "idx", chosen.indices[0])
