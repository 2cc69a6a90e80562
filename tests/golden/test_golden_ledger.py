"""Planted faults that the golden harness must catch: wrong picks, wrong scores, comparisons left out."""

from __future__ import annotations

import numpy as np
import pytest
from fair import cosines, no_worse, ranked, rows_in_common, same_worth, tie_of
from golden_files import GoldenCase
from golden_zoo import Ledger, run, tensor
from test_golden_diversity import log_nearest


def made_up() -> GoldenCase:
    return GoldenCase(
        "planted",
        {
            "param_json": np.array('{"variants": {"a": {}}}'),
            "in.x": np.zeros(3, dtype=np.float16),
            "out.a.idx": np.array([1, 3], dtype=np.int32),
            "stable.a.idx": np.array(True),
            "out.a.loose": np.array([1, 3], dtype=np.int32),
            "stable.a.loose": np.array(False),
            "out.a.score": np.array([0.5, 0.25], dtype=np.float32),
            "f64diff.a.score": np.array(1e-7, dtype=np.float32),
        },
    )


SCORE = np.array([0.1, 0.5, 0.2, 0.5, 0.2])


def test_a_wrong_index_is_caught() -> None:
    with pytest.raises(AssertionError, match=r"planted out\.a\.idx"):
        Ledger(made_up()).same("a", "idx", [1, 2])


def test_a_wrong_score_is_caught() -> None:
    book = Ledger(made_up())
    book.close("a", "score", [0.5, 0.25 + 1e-6])
    with pytest.raises(AssertionError, match=r"planted out\.a\.score"):
        book.close("a", "score", [0.5, 0.2501])


def test_an_unstable_output_needs_a_fair_comparison_that_is_read() -> None:
    book = Ledger(made_up())
    with pytest.raises(AssertionError, match="give it a fair comparison"):
        book.same("a", "loose", [1, 3])
    with pytest.raises(AssertionError, match="give it a fair comparison"):
        book.close("a", "score", [0.5, 0.25], after=("loose",))
    book.same("a", "loose", [3, 1], same_worth(SCORE))
    with pytest.raises(AssertionError, match=r"out\.a\.loose"):
        book.same("a", "loose", [1, 2], same_worth(SCORE))
    with pytest.raises(AssertionError, match=r"out\.a\.score"):
        book.close("a", "score", [0.5, 0.26], after=("loose",), fair=rows_in_common_of_scalars)


def rows_in_common_of_scalars(want: np.ndarray, got: np.ndarray) -> None:
    rows_in_common(0.9)(want[:, None], got[:, None])


def test_a_comparison_left_out_is_caught() -> None:
    book = Ledger(made_up())
    book.same("a", "idx", [1, 3])
    book.leave_out("a", "loose", why="not comparable here")
    with pytest.raises(AssertionError, match="score"):
        book.close_book()
    book.close("a", "score", [0.5, 0.25])
    assert book.close_book() == 2


def test_a_variant_of_which_nothing_is_compared_is_caught() -> None:
    book = Ledger(made_up())
    book.leave_out("a", "idx", "loose", "score", why="not comparable here")
    with pytest.raises(AssertionError, match="planted: a"):
        book.close_book()
    with pytest.raises(AssertionError, match="say why"):
        book.leave_out("a", "idx", why="")


def test_an_empty_file_is_caught() -> None:
    with pytest.raises(AssertionError, match="holds no outputs"):
        Ledger(GoldenCase("empty", {"param_json": np.array('{"variants": {}}')})).close_book()


FAIR = {
    "worth less": (same_worth(SCORE), [1, 3], [1, 2]),
    "a mask worth less": (same_worth(SCORE), SCORE > 0.3, SCORE < 0.2),
    "the same token twice": (same_worth(SCORE), [1, 3], [1, 1]),
    "another order": (ranked(SCORE), [1, 2], [2, 1]),
    "no tie": (tie_of(lambda _, picked: SCORE, 1e-9), [1, 2], [1, 0]),
    "worse set": (no_worse(lambda _, index: float(SCORE[index].sum()), 1e-9), [1, 3], [1, 2]),
    "other rows": (rows_in_common(0.9), np.eye(3), np.eye(3)[[0, 0, 0]]),
    "not finite": (rows_in_common(0.1), np.eye(3), np.full((3, 3), np.nan)),
}
EQUAL = {
    "an equal score": (same_worth(SCORE), [1, 2], [3, 4]),
    "ties in another order": (ranked(SCORE), [1, 3, 2], [3, 1, 4]),
    "a tie": (tie_of(lambda _, picked: SCORE, 1e-9), [1, 2, 0], [1, 4, 2]),
    "a better set": (no_worse(lambda _, index: float(SCORE[index].sum()), 1e-9), [1, 2], [1, 3]),
    "rows elsewhere": (rows_in_common(1.0), np.eye(3), np.eye(3)[[2, 0, 1]]),
}


@pytest.mark.parametrize("what", FAIR)
def test_fair_comparisons_catch(what: str) -> None:
    check, want, got = FAIR[what]
    with pytest.raises(AssertionError):
        check(np.asarray(want), np.asarray(got))


@pytest.mark.parametrize("what", EQUAL)
def test_fair_comparisons_let_pass(what: str) -> None:
    check, want, got = EQUAL[what]
    check(np.asarray(want), np.asarray(got))


def test_cosines_against_their_definition() -> None:
    x = np.array([[3.0, 4.0], [4.0, 3.0], [-3.0, -4.0]])
    np.testing.assert_allclose(cosines(x), [[1, 0.96, -1], [0.96, 1, -0.96], [-1, -0.96, 1]])


@pytest.mark.golden("fastv")
def test_the_least_attended_tokens_are_not_fastv(case: GoldenCase) -> None:
    """Every file tells a planted FastV that keeps the least attended tokens from the real one."""
    book, common = Ledger(case), case.param["common"]
    rows = tensor(case["in.attn_last_row"])[:, common["sys"] : common["sys"] + common["N"]]
    planted = ["problem.scores.attention.weight=-1", f"budget.keep={book.variants['k0.11']['rank']}"]
    chosen = run("fastv", {"attention_last": rows[None]}, planted)
    with pytest.raises(AssertionError, match=r"k0\.11\.idx"):
        book.same("k0.11", "idx", chosen.indices[0])


@pytest.mark.golden("vispruner")
def test_random_tokens_are_not_diverse(case: GoldenCase) -> None:
    """The bound that chaos gets in large files does not let random tokens pass for diverse ones."""
    distance = [1 - cosines(x) for x in tensor(case["in.features"])]
    book, generator = Ledger(case), np.random.default_rng(0)
    apart = no_worse(lambda b, index: log_nearest(distance[b], index), 0.15)
    for variant in set(book.variants) - {"k0.22_r1"}:  # all are important there
        want = book.want(variant, "diverse")
        chance = np.stack([generator.choice(len(distance[0]), want.shape[1], replace=False) for _ in want])
        with pytest.raises(AssertionError, match=f"{variant}.diverse"):
            book.same(variant, "diverse", chance, apart)
