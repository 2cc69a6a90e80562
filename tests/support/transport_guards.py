"""What transport certificates and gradients promise; `test_transport_certificates` runs it, on bugs too."""

from __future__ import annotations

import math
import warnings
from unittest import mock

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog
from torch import Tensor
from transport_cases import random_problem

import pruneopt
from pruneopt.errors import ProblemError
from pruneopt.parts.solvers import _scaling as scaling
from pruneopt.parts.solvers import assignment
from pruneopt.problems import solution
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.registry import registry

EXACT = ("emd", "exact", "lp")
OTHERS = ("sinkhorn", "proximal", "sinkhorn_newton", "one_sided", "greedy_rows", "north_west")
COST = torch.tensor([[1.0, 5, 9], [4, 1, 9], [9, 9, 1]]).double()
BEST = torch.eye(3).double() / 3
WORSE = BEST[[1, 0, 2]]
HOW: dict[str, dict[str, object]] = {"lp": {"route": "direct"}, "proximal": {"rounds": 40}}


def run(
    name: str, cost: Tensor, a: Tensor | None = None, b: Tensor | None = None, **params: object
) -> TransportSolution:
    return pruneopt.solve(name, cost, a=a, b=b, **{**HOW.get(name, {}), **params})


def witness(cost: Tensor, a: Tensor | None, b: Tensor | None) -> Tensor:
    """`[B]` optimum by SciPy in scaled arithmetic; an assignment where no marginals are given."""
    out = []
    for i, c in enumerate(cost.double().numpy()):
        low, unit = c.min(), np.ptp(c) or 1.0
        unit_cost, (n, m) = (c - low) / unit, c.shape
        if a is None or b is None:
            at = linear_sum_assignment(unit_cost)
            best = unit_cost[at].mean()
        else:
            rows, cols = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
            mass = [x[i].double().numpy() / float(x[i].double().sum()) for x in (a, b)]
            found = linprog(
                unit_cost.ravel(), A_eq=np.concatenate([rows, cols])[:-1], b_eq=np.concatenate(mass)[:-1]
            )
            best = found.fun
        out.append(best * unit + low)
    return torch.tensor(out, dtype=torch.float64)


def ordered(seed: int, exponent: int, offset: float, *, square: bool, dtype: torch.dtype) -> None:
    """Bound, optimum and value of all solvers in this order, at a scale and an offset; exact ones proved."""
    base, a, b = random_problem(seed, n=8, m=8 if square else 6)
    a, b = (None, None) if square else (a.to(dtype), b.to(dtype))
    scale = 10.0**exponent
    cost = ((base + offset) * scale).to(dtype)
    seen = TransportProblem.build(cost, a=a, b=b)  # float32 marginals are rounded once more
    best = witness(cost, None if square else seen.a, None if square else seen.b)
    slack = 1e-9 * scale + 1e-14 * abs(offset) * scale
    for name in (*EXACT, *OTHERS, *(("assignment",) if square else ())):
        found = run(name, cost, a, b)
        assert all(s.ok for s in found.status), (name, found.status)
        assert (found.lower_bound <= best + slack).all(), (name, "lower bound above the optimum")
        assert (found.value >= best - slack).all(), (name, "value below the optimum")
        if name in (*EXACT, "assignment"):
            assert all(s.proved for s in found.status), (name, found.status)
            assert (found.value <= best + slack).all(), (name, "a wrong plan was proved")
            assert (found.gap <= found.certificate.tolerance).all(), name


def check_scales() -> None:
    """From 1e-15 to 1e15, two offsets, both kinds of marginals, float32 too."""
    for exponent in (-15, -12, -11, 0, 15):
        ordered(exponent + 20, exponent, 0.0, square=exponent % 2 == 0, dtype=torch.float64)
        ordered(exponent + 40, exponent, -3.0, square=exponent % 2 == 1, dtype=torch.float64)
    ordered(3, -15, 1.0, square=False, dtype=torch.float32)


def check_offset_does_not_blur_the_gap() -> None:
    """Whole costs of 1 to 9 on an offset of 1e8: a gap of 2e-9 is known below the digits of the value."""
    near = (BEST * (1 - 1e-9) + WORSE * 1e-9)[None]
    gaps = [
        solution.certify(TransportProblem.build((COST + x)[None]), near, g=None).gap for x in (0.0, 1e8, -1e8)
    ]
    torch.testing.assert_close(gaps[0], torch.tensor([7e-9 / 3]).double(), rtol=1e-5, atol=0)
    for gap in gaps:
        torch.testing.assert_close(gap, gaps[0], rtol=1e-5, atol=0)
    cost, a, b = random_problem(4, batch=6)
    for name in EXACT:
        assert run(name, cost + 1e8, a, b).status == (Status.OPTIMAL,) * 6, name


def check_big_m() -> None:
    """Forbidden pairs at 1e6 to 1e100 leave the optimum of the others, proved."""
    for big in (1e6, 1e12, 1e15, 1e100):
        for square in (False, True):
            base, a, b = random_problem(31, n=9, m=9 if square else 7)
            a, b = (None, None) if square else (a, b)
            forbidden = torch.rand(base.shape, generator=torch.Generator().manual_seed(1)) < 0.15
            mild = run("emd", base.masked_fill(forbidden, 60.0), a, b)
            assert float(mild.plan[forbidden].sum()) < 1e-12  # none is needed
            best = witness(base.masked_fill(forbidden, 60.0), a, b)
            for name in (*EXACT, *(("assignment",) if square else ())):
                found = run(name, base.masked_fill(forbidden, big), a, b)
                assert found.status == (Status.OPTIMAL,) * 2, (name, big, found.status, found.gap)
                torch.testing.assert_close(found.value, best, rtol=0, atol=1e-9)


def claim(cost: Tensor, plan: Tensor, g: Tensor | None = None) -> Status:
    """What becomes of OPTIMAL over this plan `[n,m]` of a uniform problem."""
    problem = TransportProblem.build(cost[None].double())
    g = None if g is None else g[None]
    return TransportSolution(0.0, {}, problem, plan[None].double(), g=g, ended=(Status.OPTIMAL,)).status[0]


def check_claims() -> None:
    """OPTIMAL falls to UNPROVED beside a gap, in the unit of what is paid, or beside missed marginals."""
    cost, best, worse = COST, BEST, WORSE
    assert claim(cost, best) is Status.OPTIMAL
    for big in (9.0, 1e6, 1e15):  # what the plan avoids is no unit
        for offset in (0.0, 1e7):
            wide = cost.masked_fill(cost == 9, big) + offset
            assert claim(wide, best) is Status.OPTIMAL, (big, offset)
            assert claim(wide, worse) is Status.UNPROVED, (big, offset)
    near = best * (1 - 1e-6) + worse * 1e-6
    for scale in (1.0, 1e-12, 1e12):
        assert claim(cost * scale, near) is Status.UNPROVED, scale
        assert claim(cost * scale, best) is Status.OPTIMAL, scale
    heavy = best.clone()
    heavy[0, 0] += 1e-7
    assert claim(cost, heavy) is Status.UNPROVED
    assert claim(cost, best, torch.tensor([math.nan, 0, 0])) is Status.NON_FINITE


def check_bounds_survive_shifts() -> None:
    """Potentials moved by 1e200, atoms without mass, costs near 1e200: a bound stays one, and stays close."""
    cost, a, b = random_problem(5, batch=1, n=6, m=5)
    b = b.clone()
    b[:, 2] = 0
    b = b / b.sum(1, keepdim=True)
    exact = run("emd", cost, a, b)
    best = float(exact.value)
    absent = exact.g.masked_fill(b == 0, -math.inf)
    for scale in (1.0, 1e40, 1e200):
        problem = TransportProblem.build(cost * scale, a=a, b=b)
        for sign in (1.0, -1.0):
            flat = solution.certify(
                TransportProblem.build(sign * problem.cost, a=a, b=b), exact.plan, g=sign * absent * scale
            )
            if sign > 0:
                assert float(flat.lower_bound) == pytest.approx(best * scale, rel=1e-12)
        for shift in (0.0, scale * 1e3, 1e200, -1e200):
            found = solution.certify(problem, exact.plan, g=absent * scale + shift)
            assert float(found.lower_bound) <= best * scale * (1 + 1e-12), (scale, shift)
            assert float(found.gap) <= float(problem.cost.max() - problem.cost.min()), (scale, shift)
            if abs(shift) <= scale * 1e3:
                assert float(found.gap) <= 1e-9 * scale, (scale, shift)
    from pruneopt.parts.readouts.dual_source import DualSource

    a = a.clone()
    a[:, 1] = 0
    a = a / a.sum(1, keepdim=True)
    plain = run("sinkhorn", cost, a, b)
    moved = run("sinkhorn", cost * 1e40, a, b)
    ratio = DualSource()(moved.problem, moved) / 1e40
    torch.testing.assert_close(ratio, DualSource()(plain.problem, plain), rtol=1e-9, atol=1e-12)


def check_masked_problems() -> None:
    """A sample without rows or columns is refused by name, and cannot take the process down unchecked."""
    cost = torch.rand(2, 4, 3)
    for side, shape in (("row", (2, 4)), ("col", (2, 3))):
        mask = torch.ones(shape, dtype=torch.bool)
        mask[1] = False
        masks = (mask, None) if side == "row" else (None, mask)
        for name in ("emd", "sinkhorn", "lp"):
            with pytest.raises(ProblemError, match=rf"{side}_mask is False everywhere in problem 1"):
                run(name, cost, mask=masks)


def check_empty_problems_stay_away_from_libraries() -> None:
    """Nobody checked the masks: the library, which would end the process, must not see the empty problem."""
    mask = torch.tensor([[True, True], [False, False]])
    problem = TransportProblem.build(
        torch.rand(2, 2, 2), a=None, b=None, row_mask=mask, col_mask=mask, check=False
    )
    simplex = ot.lp.emd

    def watched(a: np.ndarray, *rest: object, **how: object) -> object:
        assert a.size, "an empty problem reached the library"
        return simplex(a, *rest, **how)

    with mock.patch.object(ot.lp, "emd", watched):
        for name in ("emd", "exact", "assignment"):
            found = registry("solvers").get(name)().solve(problem)
            assert found.status == (Status.OPTIMAL, Status.NON_FINITE), (name, found.status)
            assert found.plan[1].isnan().all()


def check_overflow_is_refused() -> None:
    """A range that the dtype cannot hold is an error of the input, not a NaN of the solver."""
    cost = torch.tensor([[[3e38, -3e38], [0.0, 1.0]]])
    with pytest.raises(ProblemError, match=r"spans more than torch.float32 holds in problem 0"):
        run("sinkhorn", cost)


def check_uniform_is_exact() -> None:
    """Marginals 4e-6 from uniform are not uniform; equal float32 entries are, at any size."""
    cost, _, _ = random_problem(6, n=8, m=8)
    for size in (4e-6, 1e-9, 1e-13):
        tilt = torch.ones(2, 8, dtype=torch.float64) / 8
        tilt[:, 0] *= 1 + size
        tilt[:, 1] *= 1 - size
        found = run("exact", cost, tilt)
        assert [x["method"] for x in found.stats["details"]] == ["emd", "emd"], size
        torch.testing.assert_close(found.plan.sum(2), tilt, rtol=0, atol=1e-16)
        with pytest.raises(ProblemError, match="not all equal"):
            run("assignment", cost, tilt)
    for n in (3, 7, 49, 576):
        same = torch.full((1, n), 1 / n)
        found = run("exact", torch.rand(1, n, n, generator=torch.Generator().manual_seed(n)), same, same)
        assert found.stats["details"][0]["method"] == "assignment" and found.status[0].proved, n


def check_assignment_duals_are_relative() -> None:
    """Costs of 1e-14 beside one of 1: potentials prove the matching of the small ones."""
    cost = np.random.default_rng(0).random((30, 30)) * 1e-14
    cost[0, 29] = 1.0
    rows, match = linear_sum_assignment(cost)
    f, g = assignment._duals(cost, match)
    paid = cost[rows, match].sum()
    assert (f[:, None] + g <= cost + 1e-26).all()
    assert f.sum() + g.sum() == pytest.approx(paid, rel=1e-9, abs=0)


def check_one_kernel_lasts_to_its_limit() -> None:
    """The fast road up to the limit of the dtype and the safe one beyond give the plan of the log domain."""
    for seed in range(3):
        cost, a, b = random_problem(seed, n=24, m=20)
        cost[:, 0] += 1.0  # a row that is far from everything
        problem = TransportProblem.build(cost, a=a, b=b)
        for ratio in (20, 55, 65, 120, 200, 500, 650):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy, where a kernel does not last
                found = run("sinkhorn", cost.float(), a.float(), b.float(), epsilon=1 / ratio, rounds=40)
            assert found.status == (Status.ROUNDS_DONE,) * 2, (ratio, found.status)
            start = torch.zeros_like(a)
            state = scaling.Potentials(start, torch.zeros_like(b), torch.zeros(2), torch.zeros(2).double())
            eps = problem.cost_range() / ratio
            scaling.iterate_blindly(problem, eps, state=state, rounds=40, omega=1.0)
            want = scaling.gibbs(problem, state.f, g=state.g, eps=eps)
            torch.testing.assert_close(found.plan.double(), want, rtol=0, atol=3e-5)


def check_first_round_is_that_of_the_log_domain() -> None:
    """The kernel of the first round holds its potentials and its plan, whatever the dtype, scale and masses.

    Few rows at a time give the same bits of the rows as all of them.
    """
    for seed, dtype, close in ((0, torch.float32, 2e-6), (1, torch.float64, 1e-12)):
        for unit, offset, ratio in ((1.0, 0.0, 80), (1e-12, 0.0, 3000), (1e6, 3e6, 100), (1.0, -50.0, 300)):
            cost, a, b = random_problem(seed, n=23, m=19)
            cost[:, 4] += 2.0  # a row that is far from everything
            cost[:, 2] -= 1.0  # one that is close to everything, and not there
            a, b = a.clone(), b.clone()
            a[:, 2], b[:, 3] = 0, 0
            a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
            problem = TransportProblem.build((cost * unit + offset).to(dtype), a=a, b=b)
            eps = problem.cost_range().double() / ratio
            at = scaling.Scaled.opening(problem, eps)
            empty = torch.full((), -torch.inf, dtype=torch.float64)
            f = torch.where(problem.a > 0, 0.0, empty)
            f, g = scaling._log_rounds(problem, eps, f=f, g=torch.zeros_like(b), n=1, omega=torch.ones(2))
            scale = eps[:, None]
            for found, want in zip(at.potentials(), (f, g), strict=True):
                torch.testing.assert_close(found / scale, want / scale, rtol=0, atol=close * ratio)
            want = scaling.gibbs(problem, f, g=g, eps=eps)
            torch.testing.assert_close(at.plan(), want, rtol=close * 100, atol=close)
            with mock.patch.object(scaling, "BLOCK", 40):
                torch.testing.assert_close(
                    scaling.Scaled.opening(problem, eps).plan(), want, rtol=close * 100, atol=close
                )
                torch.testing.assert_close(scaling.gibbs(problem, f, g=g, eps=eps), want, rtol=0, atol=0)


def check_rounds_in_float32_give_the_plan_of_float64() -> None:
    """After the same rounds from zero, watched or not, to the rounding of the products."""
    for seed, epsilon in ((0, 0.01), (1, 0.004), (2, 0.05)):
        cost, a, b = random_problem(seed, batch=3, n=40, m=31)
        for rounds in (1, 7, 60):
            with mock.patch.object(scaling, "plain_limit", lambda dtype: 0.0):
                ours = run("sinkhorn", cost.float(), a.float(), b.float(), epsilon=epsilon, rounds=rounds)
            exact = run("sinkhorn", cost.float().double(), a, b, epsilon=epsilon, rounds=rounds)
            distance = (ours.plan.double() - exact.plan).abs().sum((1, 2))
            assert float(distance.max()) < 2e-6, (epsilon, rounds, distance)
            assert float(ours.row_error.max()) < 1e-6


def check_eased_costs_have_the_same_optimum() -> None:
    """Hard problems, square, rectangular and of one column: the optimum of the costs as they are, proved."""
    gen = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 3, 30, 2, generator=gen, dtype=torch.float64)
    cost = torch.cdist(x, y).square() * 7 + 3
    for c in (cost, cost[:, :, :19], cost[:, :11], cost[:, :, :1]):
        a, b = (torch.rand(3, n, generator=gen, dtype=torch.float64) + 0.01 for n in c.shape[1:])
        a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
        uniform = c.shape[1] == c.shape[2]
        for masses in [(a, b), *([(None, None)] if uniform else [])]:
            found = run("exact", c, *masses)
            assert found.status == (Status.OPTIMAL,) * 3
            torch.testing.assert_close(found.value, witness(c, *masses), rtol=1e-10, atol=0)
            slack = c - found.f[:, :, None] - found.g[:, None, :]
            assert float(slack.min()) > -1e-10


def check_atoms_without_mass() -> None:
    """They are priced by the other side, with this sign: minus the cheapest way to a target at its price."""
    cost, a, b = random_problem(7, n=6, m=5)
    a, b = a.clone(), b.clone()
    a[:, 2], b[:, 3] = 0, 0
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    real = b > 0
    for name in ("emd", "sinkhorn", "sinkhorn_newton", "lp"):
        found = run(name, cost, a, b)
        g = found.g.masked_fill(~real, -math.inf)
        price = (cost[:, 2] - g).masked_fill(~real, math.inf).amin(1)
        mean = (a * found.f.masked_fill(a == 0, 0)).sum(1)
        got = registry("readouts").get("dual_source")()(found.problem, found)
        torch.testing.assert_close(got[:, 2], mean - price, rtol=0, atol=1e-12)
        assert (found.f[:, 2] == -math.inf).all() or torch.allclose(
            found.f[:, 2], price, rtol=0, atol=1e-12
        ), name
        moved = registry("readouts").get("row_cost")()(found.problem, found)
        torch.testing.assert_close(moved[:, 2].double(), -cost[:, 2].amin(1), rtol=0, atol=1e-12)
        assert (registry("readouts").get("row_sum")()(found.problem, found)[:, 2] == 0).all()
    scaled = run("sinkhorn", cost, a, b)
    assert (scaled.f[:, 2] == -math.inf).all() and (scaled.g[:, 3] == -math.inf).all()
    relaxed = run("one_sided", cost, a, b)
    assert (relaxed.f[:, 2] == -math.inf).all() and (relaxed.plan[:, 2] == 0).all()


# ---------------------------------------------------------------- gradients


def along(name: str, read: str, seed: int, *, unmass: bool = False, **params: object) -> None:
    """Gradient of `read` in cost, a and b against finite differences along directions that keep the mass."""
    base = random_problem(seed, n=7, m=6)
    if unmass:  # an atom without mass has a derivative too, on the side where it gets some
        a = base[1].clone()
        a[:, 2] = 0
        base = (base[0], a / a.sum(1, keepdim=True), base[2])
    gen = torch.Generator().manual_seed(seed)
    inputs = tuple(x.clone().requires_grad_() for x in base)
    found = run(name, *inputs, **params)
    weight = torch.randn(getattr(found, read).shape, generator=gen).double()
    loss = (getattr(found, read) * weight).sum()
    grads = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    for side, grad in enumerate(grads):
        move = torch.randn(base[side].shape, generator=gen).double()
        if side:
            move = move - move.mean(1, keepdim=True)
            torch.testing.assert_close((grad * base[side]).sum(1), torch.zeros(2).double(), rtol=0, atol=1e-9)
        one_way = unmass and side == 1
        if one_way:
            move[:, 2] = move[:, 2].abs()
            move = move - base[1] * move.sum(1, keepdim=True)

        def at(step: float, side: int = side, move: Tensor = move) -> float:
            args = [x + step * move if i == side else x for i, x in enumerate(base)]
            return float((getattr(run(name, *args, **params), read) * weight).sum())

        h = 1e-6
        slope = (at(h) - at(0)) / h if one_way else (at(h) - at(-h)) / (2 * h)
        got = float((grad * move).sum())
        assert got == pytest.approx(slope, rel=1e-4, abs=1e-6), (name, read, params, ("cost", "a", "b")[side])


FORGETS = {"epsilon": 0.4, "rounds": 60}  # the start of the rounds, in which an atom either is or is not
ROADS: tuple[dict[str, object], ...] = (
    {},
    {"rounds": 3, "order": "source_then_target"},
    {"epsilon": 0.005, "rounds": 30},
    {"epsilon": 0.01, "anneal_start": 0.2, "rounds": 5, "order": "source_then_target"},
    {"epsilon": 0.1, "tolerance": 1e-6, "rounds": 300},
    {"epsilon": 0.1, "epsilon_scale": "absolute"},
)


def check_value_of_optima() -> None:
    """The envelope theorem: plan and potentials, for each exact solver."""
    for name in EXACT:
        for seed in (1, 2):
            along(name, "value", seed)
        along(name, "value", 3, unmass=True)
    cost, a, b = random_problem(5)
    leaf = a.clone().requires_grad_()
    direct = TransportProblem(cost, leaf, b)  # nothing divides its marginals by their sums
    (grad,) = torch.autograd.grad(registry("solvers").get("emd")().solve(direct).value.sum(), leaf)
    torch.testing.assert_close((grad * a).sum(1), torch.zeros(2).double(), rtol=0, atol=1e-12)


def check_value_of_sinkhorn() -> None:
    """Value and bound have the derivative of the rounds that were run, on every road."""
    for params in ROADS:
        along("sinkhorn", "value", 4, **params)
    along("sinkhorn", "lower_bound", 4)
    along("sinkhorn", "value", 5, unmass=True, **FORGETS)
    along("one_sided", "value", 4)


def check_plan_of_sinkhorn() -> None:
    for params in ROADS:
        along("sinkhorn", "plan", 6, **params)
    along("sinkhorn", "f", 6)
    along("sinkhorn", "plan", 6, unmass=True, **FORGETS)
    along("one_sided", "plan", 6)


def check_same_answer_with_gradients() -> None:
    """Asking for gradients changes no answer, also in a batch whose problems stop at unlike rounds."""
    easy, a, b = random_problem(10, n=16, m=12)
    cost = torch.cat([easy[:1] * 0.01, easy[1:]])
    stops = {"epsilon": 0.01, "epsilon_scale": "absolute", "rounds": 5000, "tolerance": 1e-9}
    for params in (*ROADS, stops):
        plain = run("sinkhorn", cost, a, b, **params)
        traced = run("sinkhorn", cost.clone().requires_grad_(), a, b, **params)
        assert traced.status == plain.status and torch.equal(traced.rounds, plain.rounds)
        for name in ("plan", "f", "g", "value", "lower_bound"):
            want = getattr(plain, name)
            torch.testing.assert_close(getattr(traced, name).detach(), want, rtol=1e-8, atol=1e-12)


def check_refusals() -> None:
    """What autograd did not follow refuses by name, also beside other terms of a loss and if read before."""
    cost, a, b = random_problem(8, n=7, m=6)
    for name, params in (
        ("proximal", {"rounds": 20}), ("sinkhorn_newton", {}), ("greedy_rows", {}), ("north_west", {}),
        ("sinkhorn", {"omega": 1.5, "epsilon": 0.01}), ("emd", {}),
    ):  # fmt: skip
        for side in range(3):
            inputs = [x.clone() for x in (cost, a, b)]
            inputs[side].requires_grad_()
            found = run(name, *inputs, **params)
            with torch.no_grad():
                assert all(s.ok for s in found.status)
            reads = ["plan", "lower_bound", "gap"] + ["value"] * (name != "emd")
            reads += ["f", "g"] * (found.f is not None)
            for read in reads:
                loss = getattr(found, read).sum() + inputs[side].sum()
                with pytest.raises(ProblemError, match=rf"{name} has no gradient of `{read}`.*sinkhorn"):
                    loss.backward(retain_graph=True)
    silent = run("emd", cost, a, b)
    assert not silent.plan.requires_grad and not silent.value.requires_grad
    with torch.no_grad():
        quiet = run("sinkhorn", cost.clone().requires_grad_(), a, b)
    assert not quiet.plan.requires_grad and not quiet.value.requires_grad


def check_unproved_value_refuses() -> None:
    """A batch in which one value is not proved: only that one refuses, and it is named."""
    cost, a, b = random_problem(9, n=20, m=20)
    leaf = cost.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = run("emd", leaf, a, b, rounds=3)
    with pytest.raises(ProblemError, match="problem 0: emd has no gradient of `value`"):
        whole.value.sum().backward()
    problem = TransportProblem.build(leaf, a=a, b=b)
    right = run("emd", cost, a, b)
    plan = right.plan.clone()
    plan[1] = a[1][:, None] * b[1]
    mixed = TransportSolution(
        0.0, {}, problem, plan, right.f, right.g, ended=(Status.OPTIMAL,) * 2, solver="half"
    )
    mixed.value[0].backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad[0], right.plan[0])
    with pytest.raises(ProblemError, match="problem 1: half has no gradient"):
        mixed.value.sum().backward()
