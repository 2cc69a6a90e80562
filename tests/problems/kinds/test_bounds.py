"""Upper bounds of subset optima against enumeration, closed forms and finite differences.

Ten thousand random problems at scales from 1e-12 to 1e12: a bound below one optimum fails.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from unittest import mock

import numpy as np
import pytest
import torch
from bound_cases import EVERY, TOKENS, draw, some_keep, values
from torch import Tensor

from pruneopt.problems.kinds import _packing
from pruneopt.problems.kinds._capped_simplex import CappedSimplex
from pruneopt.problems.kinds._concave_quadratic import Quadratic, quadratic_bound, top_on_zero_sums
from pruneopt.problems.kinds._ddgfact import factorise, factorised_bound
from pruneopt.problems.kinds._linx import linx_bound, linx_tangent
from pruneopt.problems.kinds._packing import cliques, packing_bound
from pruneopt.problems.kinds._serving import serving_bound
from pruneopt.problems.subset import SubsetProblem

# how many problems, and a share of them in which the bound must be the optimum
DRAWN = {
    "log_det": (3000, 0.65),
    "max_sum": (3000, 0.6),
    "facility_location": (3000, 0.95),
    "independent_set": (500, 0.95),
    "max_min": (500, 0.95),
}


@cache
def enumerated(kind: str) -> tuple[SubsetProblem, Tensor, Tensor]:
    """Problems, their optima, and the unit of a rounding error in each."""
    problem = draw(kind, DRAWN[kind][0], seed=11)
    every = values(problem)
    size = every.masked_fill(every == -math.inf, 0).abs().amax(1)
    return problem, every.amax(1), 1 + size if kind == "log_det" else size.clamp_min(1e-300)


def off(bound: Tensor, best: Tensor, unit: Tensor) -> Tensor:
    """How far bounds are above optima, in units; zero where there is nothing to choose."""
    return torch.where(best == -math.inf, 0.0, (bound - best) / unit)


@pytest.mark.parametrize("kind", DRAWN)
def test_no_bound_is_below_an_optimum(kind: str) -> None:
    problem, best, unit = enumerated(kind)
    bound, why = problem.bound(some_keep(problem, seed=3))
    assert bound is not None, why
    assert not bound.isnan().any()
    above = off(bound, best, unit)
    assert above.min() >= -1e-12, f"below the optimum in {int((above < -1e-12).sum())} of {len(above)}"
    assert (above[best > -math.inf] <= 1e-9).double().mean() >= DRAWN[kind][1]


@pytest.mark.parametrize("part", [factorised_bound, linx_bound])
def test_each_log_det_bound_alone_is_above_the_optimum(part) -> None:
    problem, best, unit = enumerated("log_det")
    bound = part(problem.rules.kernel(problem), CappedSimplex.of(problem))
    assert not bound.isnan().any()
    assert off(bound, best, unit).min() >= -1e-12


def test_the_quadratic_bound_alone_is_above_the_optimum() -> None:
    problem, best, unit = enumerated("max_sum")
    rows = problem.anchors.masked_fill(problem.anchors == math.inf, 0).sum(1)
    own = (problem.unary + rows).masked_fill(~problem.real, 0)
    both = problem.real[:, :, None] & problem.real[:, None, :] & ~torch.eye(TOKENS, dtype=torch.bool)
    bound = quadratic_bound(problem.pairwise.masked_fill(~both, 0), own, simplex=CappedSimplex.of(problem))
    size = unit + own.abs().amax(1) * problem.k
    assert off(bound, best, size).min() >= -1e-12


@pytest.mark.parametrize("kind", ["log_det", "max_sum", "facility_location"])
def test_protected_tokens_are_used(kind: str) -> None:
    """What must be chosen lowers the optimum; a bound that knows it follows."""
    problem, best, unit = enumerated(kind)
    free = replace(problem, protected=torch.zeros_like(problem.protected))
    keep = some_keep(problem, seed=3)
    with_them, without = problem.bound(keep)[0], free.bound(keep)[0]
    forced = problem.protected.any(1) & (best > -math.inf)
    lower = off(without, with_them, unit)[forced]
    assert (lower > 1e-3).double().mean() > 0.3
    open_gap, gap = off(without, best, unit)[forced].mean(), off(with_them, best, unit)[forced].mean()
    assert gap < open_gap / 2


@pytest.mark.parametrize("kind", DRAWN)
def test_a_bound_scales_with_the_problem_and_knows_no_batch_mates(kind: str) -> None:
    problem = draw(kind, 60, seed=4)
    keep = some_keep(problem, seed=3)
    bound = problem.bound(keep)[0]
    for power in (-40, 40):  # of two, so that scaling rounds nothing
        scaled = {
            name: getattr(problem, name) * 2.0**power
            for name in problem.rules.scaled
            if getattr(problem, name) is not None
        }
        if kind == "log_det":
            expected = bound + problem.k.double() * power * math.log(2)
        else:
            expected = bound * 2.0**power
        again = replace(problem, **scaled).bound(keep)[0]
        torch.testing.assert_close(again, expected, rtol=1e-9, atol=1e-9 if kind == "log_det" else 0)
    alone = torch.cat([problem.sample(b).bound(keep[b : b + 1])[0] for b in range(60)])
    some = values(problem).amax(1) > -math.inf  # elsewhere a log_det bound is rounding
    torch.testing.assert_close(alone[some], bound[some], rtol=1e-9, atol=1e-9 if kind == "log_det" else 0)


def psd(count: int, tokens: int, width: int, seed: int) -> Tensor:
    x = torch.randn(count, tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x / x.norm(dim=2, keepdim=True)
    gram = x @ x.transpose(1, 2)
    return (gram + gram.transpose(1, 2)) / 2


def shares(count: int, tokens: int, seed: int) -> Tensor:
    return 0.2 + 0.6 * torch.rand(
        count, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def open_simplex(count: int, tokens: int, k: int) -> CappedSimplex:
    real = torch.ones(count, tokens, dtype=torch.bool)
    return CappedSimplex(torch.full((count,), k), real, torch.zeros_like(real))


def tangents(seed: int = 0) -> dict:
    """A concave function of each kind, with the kernel or distances it relaxes."""
    kernel, k = psd(3, TOKENS, 9, seed), torch.tensor([3, 3, 3])
    distance = (1 - kernel).masked_fill(torch.eye(TOKENS, dtype=torch.bool), 0)
    linear = torch.randn(3, TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    shift = top_on_zero_sums(distance, torch.ones(3, TOKENS, dtype=torch.bool))
    return {
        "factorised": factorise(kernel, open_simplex(3, TOKENS, 3), small=0).tangent,
        "linx": lambda x: linx_tangent(kernel, x, scale=scale, k=k)[:2],
        "quadratic": Quadratic(distance, linear, shift).tangent,
        "worth": (kernel, distance, linear),
    }


@pytest.mark.parametrize("name", ["factorised", "linx", "quadratic"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    tangent, x = tangents()[name], shares(3, TOKENS, 5)
    slope = tangent(x)[1]
    for n in range(TOKENS):
        step = torch.zeros_like(x)
        step[:, n] = 1e-6
        seen = (tangent(x + step)[0] - tangent(x - step)[0]) / 2e-6
        torch.testing.assert_close(slope[:, n], seen, rtol=1e-5, atol=1e-6)


def test_the_scale_of_linx_has_the_derivative_of_finite_differences() -> None:
    kernel, x, k = psd(3, TOKENS, 9, 0), shares(3, TOKENS, 5), torch.tensor([3, 3, 3])
    scale = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    turn = linx_tangent(kernel, x, scale=scale, k=k)[2]
    up, down = (linx_tangent(kernel, x, scale=scale * math.exp(s), k=k)[0] for s in (1e-6, -1e-6))
    torch.testing.assert_close(turn, (up - down) / 2e-6, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["factorised", "linx", "quadratic"])
def test_relaxations_are_concave_and_agree_with_the_objective_at_choices(name: str) -> None:
    for seed in range(5):
        found = tangents(seed)
        tangent, (kernel, distance, linear) = found[name], found["worth"]
        for choice in EVERY[EVERY.sum(1) == 3]:
            at = choice.double().expand(3, -1)
            if name == "quadratic":
                worth = distance[:, choice][:, :, choice].sum((1, 2)) / 2 + linear[:, choice].sum(1)
            else:
                worth = torch.linalg.slogdet(kernel[:, choice][:, :, choice]).logabsdet
            torch.testing.assert_close(tangent(at)[0], worth, rtol=1e-8, atol=1e-8)
        simplex = open_simplex(3, TOKENS, 3)
        x, y = simplex.nearest(shares(3, TOKENS, seed)), simplex.nearest(shares(3, TOKENS, seed + 100))
        assert (tangent((x + y) / 2)[0] >= (tangent(x)[0] + tangent(y)[0]) / 2 - 1e-12).all()


def random_simplex(seed: int, count: int = 200) -> CappedSimplex:
    problem = draw("max_sum", count, seed)
    return CappedSimplex.of(problem)


def test_shares_are_feasible_and_nearest() -> None:
    """Against the optimality conditions: moving mass from any token to any other comes no closer."""
    simplex = random_simplex(1)
    g = torch.Generator().manual_seed(2)
    for size in (1e-3, 1.0, 1e3):
        point = size * torch.randn(simplex.real.shape, generator=g, dtype=torch.float64)
        weight = torch.rand(simplex.real.shape, generator=g, dtype=torch.float64) ** 4
        for x in (simplex.nearest(point), simplex.scaled(weight), simplex.centre()):
            assert x.min() >= -1e-12 and x.max() <= 1 + 1e-12
            torch.testing.assert_close(x.sum(1), simplex.k.double(), rtol=0, atol=1e-12)
            assert (x[simplex.forced] == 1).all() and (x[~simplex.real] == 0).all()
        for x, pull in (
            (simplex.nearest(point), point - simplex.nearest(point)),
            (simplex.scaled(weight), (weight / simplex.scaled(weight)).log()),
        ):
            may_gain, may_lose = simplex.free & (x < 1 - 1e-9), simplex.free & (x > 1e-9)
            highest = pull.masked_fill(~may_gain, -math.inf).amax(1)
            lowest = pull.masked_fill(~may_lose, math.inf).amin(1)
            assert (highest <= lowest + 1e-7 * max(size, 1)).all()


def test_the_best_choice_is_that_of_enumeration() -> None:
    simplex = random_simplex(3)
    worth = torch.randn(simplex.real.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    wrong = (EVERY.sum(1) != simplex.k[:, None]) | (EVERY[None] & ~simplex.real[:, None]).any(2)
    wrong |= (~EVERY[None] & simplex.forced[:, None]).any(2)
    best = (worth @ EVERY.double().T).masked_fill(wrong, -math.inf).amax(1)
    torch.testing.assert_close(simplex.most(worth), best)
    assert open_simplex(1, 4, 2).choice(torch.ones(1, 4)).tolist() == [[True, True, False, False]]


def test_bounds_are_exact_in_closed_forms() -> None:
    """Diagonal kernels, all tokens kept, equal distances, a star of conflicts, one server a token."""
    eigen = torch.tensor([[5.0, 3.0, 2.0, 1.0, 0.5]], dtype=torch.float64)
    assert math.isclose(
        factorised_bound(torch.diag_embed(eigen), open_simplex(1, 5, 2), rounds=200).item(),
        math.log(15),
        abs_tol=1e-2,
    )
    kernel, whole = psd(2, 6, 9, 1), open_simplex(2, 6, 6)
    for part in (factorised_bound, linx_bound):
        torch.testing.assert_close(
            part(kernel, whole), torch.linalg.slogdet(kernel).logabsdet, atol=1e-9, rtol=0
        )
    equal = (1 - torch.eye(6, dtype=torch.float64))[None]
    none = torch.zeros(1, 6, dtype=torch.float64)
    assert math.isclose(quadratic_bound(equal, none, simplex=open_simplex(1, 6, 4)).item(), 6, rel_tol=1e-12)
    star = np.zeros((5, 5), dtype=bool)
    star[0, 1:] = star[1:, 0] = True
    assert math.isclose(packing_bound(np.array([3.0, 1, 1, 1, 1]), star, k=5), 4, rel_tol=1e-9)
    assert math.isclose(packing_bound(np.array([3.0, 1, 1, 1, 1]), star, k=2), 10 / 3, rel_tol=1e-9)
    worth = torch.diag_embed(eigen)
    assert math.isclose(serving_bound(worth, eigen, simplex=open_simplex(1, 5, 2)).item(), 8, rel_tol=1e-6)


def test_an_odd_hole_costs_half_a_token_and_its_cliques_are_cliques() -> None:
    """Five tokens in a ring: two fit, and every linear program without odd holes says two and a half."""
    ring = np.roll(np.eye(5, dtype=bool), 1, axis=1)
    ring |= ring.T
    assert math.isclose(packing_bound(np.ones(5), ring, k=5), 2.5, rel_tol=1e-9)
    g = np.random.default_rng(0)
    pairs = np.triu(g.random((30, 30)) < 0.4, 1)
    pairs |= pairs.T
    for row in cliques(np.arange(30), g.random(30), pairs=pairs):
        inside = np.flatnonzero(row)
        apart = ~pairs[np.ix_(inside, inside)]
        assert apart.sum() == len(inside)  # the diagonal alone
        assert not pairs[inside].all(0).any()  # and no other token fits


def test_any_prices_certify() -> None:
    """A solver may answer what it likes: prices only decide how tight the bound is."""
    g = np.random.default_rng(1)

    def made_up(worth: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, float]:
        return g.random(len(worth)), g.random(len(rows)) * g.random(), g.random()

    every = EVERY.numpy()
    for _ in range(50):
        worth, k = g.standard_normal(TOKENS), int(g.integers(1, TOKENS + 1))
        pairs = np.triu(g.random((TOKENS, TOKENS)) < 0.4, 1)
        pairs |= pairs.T
        fits = (every.sum(1) <= k) & ~(every[:, :, None] & every[:, None, :] & pairs).any((1, 2))
        with mock.patch.object(_packing, "_prices", made_up):
            assert packing_bound(worth, pairs, k=k) >= (every[fits] @ worth).max()


def test_max_min_bound_is_the_optimum_of_a_line() -> None:
    """Eleven points on a line, four kept: at best three apart, as four steps of it do not fit."""
    place = torch.arange(11, dtype=torch.float64)
    for unit in (1e-12, 1.0, 1e12):
        problem = SubsetProblem.build("max_min", 4, pairwise=unit * (place[:, None] - place).abs()[None])
        keep = (torch.arange(11) < 4)[None]
        assert problem.bound(keep)[0].tolist() == [3 * unit]
        held = replace(problem, protected=(torch.arange(11)[None] == 4))
        assert held.bound(keep & (torch.arange(11) < 0) | held.protected)[0].tolist() == [3 * unit]
        near = replace(problem, protected=(torch.arange(11)[None] - 5).abs() <= 1)
        assert near.bound(near.protected)[0].tolist() == [unit]


def test_log_det_bound_is_tighter_than_the_eigenvalues() -> None:
    """At the size and the rank of token features the spectral bound is several times looser."""
    kernel = psd(4, 60, 16, 3) + 1e-3 * torch.eye(60, dtype=torch.float64)
    problem = SubsetProblem.build("log_det", 15, pairwise=kernel)
    swapped = problem.rules.value(problem, (torch.arange(60) < 15).expand(4, -1))
    spectral = torch.linalg.eigvalsh(kernel)[:, -15:].log().sum(1)
    bound = problem.bound((torch.arange(60) < 15).expand(4, -1))[0]
    assert (bound >= swapped).all()
    assert (bound <= spectral - 8).all()
