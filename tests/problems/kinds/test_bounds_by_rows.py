"""Values and bounds of terms by rows against enumeration, and against those of the matrix."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from bound_cases import EVERY, TOKENS, some_keep, values
from torch import Tensor

from pruneopt.problems import rows as algebra
from pruneopt.problems.kinds import _streamed
from pruneopt.problems.kinds.log_det import LogDet
from pruneopt.problems.row_sums import Mapped, Raised, Total
from pruneopt.problems.rows import Beside, Gram, Rows
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.unstored import Unstored

COUNT = 800


def squared(x: Tensor) -> Rows:
    squares = Total((Beside(x.square().sum(2)), Gram(x)), (1.0, -2.0))
    return Mapped(squares, lambda d: d.clamp_min_(0), is_negative_type=True)


FORMS: dict[str, tuple[Any, ...]] = {
    "max_min": (squared, Gram),
    "max_sum": (squared, lambda x: Total((Gram(x),), (-1.0,)), Gram),
    "k_center": (squared, lambda x: Mapped(Gram(x, x.roll(1, 2)), torch.abs)),
    "facility_location": (Gram, lambda x: Gram(x, x.roll(1, 2)), lambda x: Total((squared(x),), (-1.0,))),
    "log_det": (
        Gram,
        lambda x: Raised(Gram(x), 0.1),
        lambda x: Total((Gram(x), Gram(x[:, :, :2])), (1.0, 0.5)),
        lambda x: Mapped(squared(x), lambda d: d.neg_().exp_(), is_definite=True),
    ),
}  # fmt: skip
CASES = [(kind, form) for kind, forms in FORMS.items() for form in range(len(forms))]


def draw(kind: str, form: int) -> SubsetProblem:
    """Ragged, protected, anchored problems over features of a width of 1 to 8, scales of 1e-12 to 1e12."""
    g = torch.Generator().manual_seed(form)
    which = torch.arange(COUNT)
    scale = 10.0 ** (torch.rand(COUNT, generator=g, dtype=torch.float64) * 24 - 12)
    x = torch.randn(COUNT, TOKENS, 8, generator=g, dtype=torch.float64)
    x = x * (torch.arange(8) < torch.randint(1, 9, (COUNT, 1, 1), generator=g))
    x[which % 4 == 0, 1] = x[which % 4 == 0, 2]
    x = x if kind == "log_det" and form in (1, 3) else x * scale.sqrt()[:, None, None]
    size = torch.where(which % 2 == 0, TOKENS, torch.randint(2, TOKENS + 1, (COUNT,), generator=g))
    real = torch.arange(TOKENS) < size[:, None]
    k = (torch.rand(COUNT, generator=g) * real.sum(1)).long() + 1
    order = torch.rand(COUNT, TOKENS, generator=g).masked_fill(~real, -1).argsort(1, descending=True)
    many = (torch.rand(COUNT, generator=g) * (k + 1)).long() * (torch.rand(COUNT, generator=g) < 0.5)
    terms: dict[str, Any] = {}
    if kind != "log_det":
        terms["anchors"] = (
            torch.rand(COUNT, 2, TOKENS, generator=g, dtype=torch.float64) * scale[:, None, None]
        )
        terms["anchors"][which % 5 < 3, 0] = math.inf
        terms["anchors"][which % 5 < 4, 1] = math.inf
    if kind != "k_center":
        terms["unary"] = torch.rand(COUNT, TOKENS, generator=g, dtype=torch.float64) + 0.1
    return SubsetProblem.build(
        kind,
        k,
        pairwise=Unstored(FORMS[kind][form](x)),
        mask=real,
        protected=torch.zeros_like(real).scatter(1, order, torch.arange(TOKENS) < many[:, None]),
        **terms,
    )


@cache
def enumerated(kind: str, form: int) -> tuple[SubsetProblem, SubsetProblem, Tensor]:
    """Problems by rows, the same with matrices, and the values of all choices."""
    problem = draw(kind, form)
    stored = replace(problem, pairwise=problem.pairwise.whole())
    return problem, stored, radii(stored) if kind == "k_center" else values(stored)


def radii(p: SubsetProblem) -> Tensor:
    """`[B,128]` minus the radius of every choice, written from the text."""
    cost = p.pairwise.clamp_min(0).masked_fill(torch.eye(TOKENS, dtype=torch.bool), 0)
    near = cost[:, None].masked_fill(~EVERY[None, :, None, :], math.inf).amin(3)
    near = torch.minimum(near, p.anchors.amin(1)[:, None]).masked_fill(EVERY, 0)
    bad = (EVERY[None] & ~p.real[:, None]).any(2) | (p.protected[:, None] & ~EVERY[None]).any(2)
    bad |= EVERY.sum(1) != p.k[:, None]
    return -near.masked_fill(~p.real[:, None], 0).amax(2).masked_fill(bad, math.inf)


def unit(kind: str, every: Tensor) -> Tensor:
    size = every.masked_fill(every == -math.inf, 0).abs().amax(1)
    return 1 + size if kind == "log_det" else size.clamp_min(1e-300)


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_no_bound_by_rows_is_below_an_optimum(kind: str, form: int) -> None:
    problem, _, every = enumerated(kind, form)
    best = every.amax(1)
    with mock.patch.object(Unstored, "whole", side_effect=AssertionError("the matrix was read")):
        bound, why = problem.bound(some_keep(problem, seed=3))
    assert bound is not None, why
    assert not bound.isnan().any()
    above = torch.where(best == -math.inf, 0.0, (bound - best) / unit(kind, every))
    assert above.min() >= -1e-12, f"below the optimum in {int((above < -1e-12).sum())} of {len(above)}"


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_values_by_rows_are_those_of_the_matrix(kind: str, form: int) -> None:
    problem, stored, every = enumerated(kind, form)
    for keep in (some_keep(problem, seed=3), some_keep(problem, seed=4)):
        found, told = problem.value(keep), stored.value(keep)
        assert ((found == -math.inf) == (told == -math.inf)).all()
        there = told > -math.inf
        off = (found - told)[there].abs() / unit(kind, every)[there]
        assert off.max() <= 1e-9


@pytest.mark.parametrize("kind", ["max_sum", "log_det"])
def test_bounds_by_rows_are_as_tight_as_those_of_the_matrix(kind: str) -> None:
    """On features of a wide spread, where the relaxations behind both are the same."""
    g = torch.Generator().manual_seed(5)
    x = torch.nn.functional.normalize(torch.randn(2, 40, 60, generator=g, dtype=torch.float64), dim=2)
    term = Gram(x) if kind == "log_det" else Total((Beside(x.new_full((2, 40), 0.5)), Gram(x)), (1.0, -1.0))
    problem = SubsetProblem.build(kind, 8, pairwise=Unstored(term))
    stored = replace(problem, pairwise=term.dense())
    keep = (torch.arange(40) < 8).expand(2, -1)
    (bound, _), (told, _) = problem.bound(keep), stored.bound(keep)
    torch.testing.assert_close(bound, told, rtol=1e-2, atol=0.05)


def test_the_widest_of_k_minus_one_groups_in_closed_form() -> None:
    """Three pairs on a line, kept one of each: two of any four tokens are in one pair."""
    x = torch.tensor([0.0, 1.0, 10.0, 12.0, 30.0, 33.0], dtype=torch.float64)[None, :, None]
    problem = SubsetProblem.build("max_min", 4, pairwise=Unstored(squared(x)))
    keep = torch.tensor([[True, False, True, False, True, True]])
    assert problem.bound(keep)[0].tolist() == pytest.approx([9.0])
    single = SubsetProblem.build("max_min", 1, pairwise=Unstored(squared(x)))
    assert single.bound(torch.arange(6)[None] == 2)[0].tolist() == [0.0]


def test_the_last_block_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one row and of all rows give the same values and bounds."""
    for kind, form in CASES:
        problem, _, _ = enumerated(kind, form)
        terms = {item.name: getattr(problem, item.name) for item in fields(problem)}
        part = replace(problem, **{name: t[:20] for name, t in terms.items() if isinstance(t, Tensor)})
        keep = some_keep(part, seed=3)
        found = (part.value(keep), part.bound(keep)[0])
        with monkeypatch.context() as patch:
            for module in (_streamed, algebra):
                patch.setattr(module, "BLOCK", 1)
            again = (part.value(keep), part.bound(keep)[0])
        for a, b in zip(found, again, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_last_block_counts_for_prices() -> None:
    """Four tokens alike nobody, one of them in the last block: served at no price, each adds itself."""
    term, one = Gram(torch.eye(4, dtype=torch.float64)[None]), torch.ones(1, 4, dtype=torch.float64)
    with mock.patch.object(algebra, "BLOCK", 1):
        added, best = _streamed.priced(term, one, price=0 * one, real=one.bool())
    assert added.tolist() == [[1.0] * 4]
    assert best.tolist() == [[1.0] * 4]


def test_a_kernel_without_factor_has_the_hadamard_bound() -> None:
    x = torch.tensor([[0.0], [1.0], [5.0]], dtype=torch.float64)[None]
    kernel = Mapped(squared(x), lambda d: d.neg_().exp_(), is_definite=True)
    quality = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    problem = SubsetProblem.build("log_det", 2, pairwise=Unstored(kernel), unary=quality)
    bound = problem.bound(torch.tensor([[True, True, False]]))[0]
    assert bound.tolist() == pytest.approx([2 * math.log(6.0)])
    assert isinstance(problem.rules, LogDet)


def test_a_kind_that_reads_no_rows_says_so() -> None:
    x = torch.eye(3)[None]
    problem = SubsetProblem.build(
        "independent_set", 2, pairwise=Unstored(Gram(x)), unary=torch.ones(1, 3), threshold=0.5
    )
    bound, why = problem.bound(torch.tensor([[True, True, False]]))
    assert bound is None and "by rows" in why
    assert problem.value(torch.tensor([[True, True, False]])).tolist() == [2.0]
    assert EVERY.shape == (2**TOKENS, TOKENS)
