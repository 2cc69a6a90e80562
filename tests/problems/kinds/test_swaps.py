"""Gains that stay current: against values taken anew, after many swaps, for every kind that offers them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from subset_cases import random_problem, solver

from pruneopt.problems.kinds import all_kinds
from pruneopt.problems.kinds._swaps import Recomputed, Swaps, dense_gains, symmetric_rows
from pruneopt.problems.subset import SubsetProblem

KINDS = [kind.name for kind in all_kinds() if kind.offers("swaps")]
CASES = [(kind, False) for kind in KINDS] + [("max_min", True), ("max_sum", True)]


def first_choice(problem: SubsetProblem) -> torch.Tensor:
    params = dict(problem.rules.greedy)
    return solver(params.pop("kind"), **params).solve(problem).keep


def any_swap(swaps: Swaps, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One of the allowed swaps of every sample that has one, good or bad: `number` says which."""
    keep = swaps.keep
    allowed = swaps.filled[:, :, None] & (swaps.problem.real & ~keep)[:, None, :]
    gains = swaps.gains().nan_to_num(nan=-math.inf, neginf=-math.inf).masked_fill(~allowed, -math.inf)
    found = []
    for b, rows in enumerate(gains.isfinite()):
        pairs = rows.nonzero()
        if len(pairs):
            found.append((b, *pairs[(7 * number + b) % len(pairs)].tolist()))
    sample, slot, into = (torch.tensor(column) for column in zip(*found, strict=True))
    return sample, slot, into


def exchanges(problem: SubsetProblem, keep: torch.Tensor) -> list[tuple[int, int, int, float]]:
    """Sample, token that goes, token that comes, and what the values say that gains."""
    now, out = problem.value(keep), []
    for b in range(len(keep)):
        for i in keep[b].nonzero().squeeze(1).tolist():
            for j in (problem.real & ~keep)[b].nonzero().squeeze(1).tolist():
                after = keep.clone()
                after[b, i], after[b, j] = False, True
                out.append((b, i, j, float((problem.value(after) - now)[b])))
    return out


@pytest.mark.parametrize(("kind", "anchors"), CASES)
def test_gains_after_many_swaps_are_differences_of_values(kind, anchors):
    problem = random_problem(kind, 3, batch=3, tokens=10, k=4, ragged=True, anchors=anchors)
    swaps = problem.rules.swaps(problem, first_choice(problem))
    for number in range(40):  # more than the inverse of a log-determinant lives
        sample, slot, into = any_swap(swaps, number)
        swaps.swap(sample, slot, into=into)
    gains = dense_gains(swaps)
    wanted = exchanges(problem, swaps.keep)
    assert len(wanted) > 20
    for b, i, j, gain in wanted:
        assert gains[b, i, j].item() == pytest.approx(gain, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_swap_of_one_sample_leaves_the_others_alone(kind):
    problem = random_problem(kind, 5, batch=3, tokens=10, k=4)
    swaps = problem.rules.swaps(problem, first_choice(problem))
    before = swaps.gains().clone()
    sample, slot, into = any_swap(swaps, 1)
    swaps.swap(sample[:1], slot[:1], into=into[:1])
    after = swaps.gains()
    assert not after[sample[0]].equal(before[sample[0]])
    others = [b for b in range(3) if b != int(sample[0])]
    assert after[others].equal(before[others])


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_alone_gains_what_it_does_in_a_batch(kind):
    problem = random_problem(kind, 5, batch=3, tokens=10, k=4)
    keep = first_choice(problem)
    whole, kept = dense_gains(problem.rules.swaps(problem, keep)), problem.rules.swap_gains(problem, keep)
    assert whole.equal(kept)
    for b in range(3):
        alone = dense_gains(problem.rules.swaps(problem.sample(b), keep[b : b + 1]))
        torch.testing.assert_close(alone, whole[b : b + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_may_choose_differently_many(kind):
    problem = replace(random_problem(kind, 4, batch=3, tokens=9), k=torch.tensor([4, 1, 3]), counts=None)
    keep = torch.arange(9) < problem.k[:, None]
    gains = dense_gains(problem.rules.swaps(problem, keep))
    wanted = [swap for swap in exchanges(problem, keep) if math.isfinite(swap[3])]
    assert len(wanted) > 20
    for b, i, j, gain in wanted:
        assert gains[b, i, j].item() == pytest.approx(gain, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("log_det", "independent_set")])
def test_gains_stay_current_where_many_pairs_are_equal(kind):
    problem = random_problem(kind, 3, batch=3, tokens=10, k=4)
    problem = replace(problem, pairwise=(problem.pairwise * 3).round() / 3)
    swaps = problem.rules.swaps(problem, first_choice(problem))
    for number in range(20):
        sample, slot, into = any_swap(swaps, number)
        swaps.swap(sample, slot, into=into)
    gains = dense_gains(swaps)
    for b, i, j, gain in exchanges(problem, swaps.keep):
        assert gains[b, i, j].item() == pytest.approx(gain, rel=1e-7, abs=1e-9)


def test_rows_of_both_directions_have_their_own_diagonal_and_nothing_at_padding():
    problem = random_problem("max_sum", 2, batch=2, tokens=6, k=2, ragged=True)
    pairwise = torch.rand(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    problem = replace(problem, pairwise=pairwise)
    tokens, sample = torch.tensor([[3, 0], [1, 2], [2, 2]]), torch.tensor([1, 0, 1])
    rows = symmetric_rows(problem, tokens, sample=sample, own=7.0)
    for m, b in enumerate(sample.tolist()):
        for t, i in enumerate(tokens[m].tolist()):
            for j in range(6):
                pair = float(pairwise[b, i, j] + pairwise[b, j, i]) / 2 if problem.real[b, j] else 0.0
                assert rows[m, t, j].item() == pytest.approx(7.0 if i == j else pair)
    each = symmetric_rows(problem, tokens[:2], own=7.0)
    assert each.equal(symmetric_rows(problem, tokens[:2], sample=torch.tensor([0, 1]), own=7.0))


def test_a_free_slot_is_filled_where_k_is_a_maximum():
    worth = torch.tensor([[3.0, 2.0, 1.0, 0.5]], dtype=torch.float64)
    alike = torch.eye(4, dtype=torch.float64)[None]
    alike[0, 0, 1] = alike[0, 1, 0] = 1
    problem = SubsetProblem.build("independent_set", 3, unary=worth, pairwise=alike, threshold=0.5)
    keep = torch.tensor([[False, True, False, False]])
    swaps = problem.rules.swaps(problem, keep)
    assert swaps.slots.shape[1] == 3 and swaps.filled.tolist() == [[True, False, False]]
    gains = swaps.gains()
    assert gains[0, 0].tolist() == [1.0, 0.0, -1.0, -1.5]  # 0 for 1 does not conflict once 1 has left
    assert gains[0, 1].tolist() == [-math.inf, 2.0, 1.0, 0.5]
    swaps.swap(torch.tensor([0]), torch.tensor([1]), into=torch.tensor([2]))
    assert swaps.keep.tolist() == [[False, True, True, False]] and swaps.tokens[0].tolist() == [1, 2, 4]
    best = solver("local_search", start="brute_force").solve(problem)
    assert best.value.item() == 4.5


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_is_held_than_the_rows_of_the_chosen(kind):
    problem = random_problem(kind, 0, tokens=40, k=5)
    swaps = problem.rules.swaps(problem, first_choice(problem))
    assert swaps.gains().shape == (2, 5, 40)


def test_swap_gains_alone_are_enough():
    kind = next(k for k in all_kinds() if not k.offers("swaps") and k.offers("swap_gains"))
    problem = random_problem(kind.name, 0)
    swaps = kind.swaps(problem, first_choice(problem))
    assert isinstance(swaps, Recomputed)
    both = dense_gains(swaps).masked_fill(~swaps.keep[:, :, None], 0)
    assert both.equal(kind.swap_gains(problem, swaps.keep).masked_fill(~swaps.keep[:, :, None], 0))
