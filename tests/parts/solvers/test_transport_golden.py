"""POT's golden data: exact costs, duals and converged entropic plans."""

from __future__ import annotations

import pytest
import torch
from golden_files import GoldenCase

import pruneopt
from pruneopt.problems.certificate import certify

MARGINALS = ("uniform", "dirichlet")


def load(case: GoldenCase, marginal: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tuple(torch.from_numpy(case[k])[None] for k in ("in.cost", f"in.{marginal}.a", f"in.{marginal}.b"))


@pytest.mark.golden("ot_pot")
@pytest.mark.parametrize("marginal", MARGINALS)
def test_exact_solvers_reach_the_golden_cost(case: GoldenCase, marginal: str) -> None:
    cost, a, b = load(case, marginal)
    want = float(case[f"out.{marginal}.emd.cost"])
    solvers = [("emd", {}), ("exact", {})]
    if cost.numel() <= 5000:
        solvers += [("lp", {"route": "direct"}), ("lp", {})]
    for name, how in solvers:
        s = pruneopt.solve(name, cost, a=a, b=b, **how)
        assert float(s.value) == pytest.approx(want, rel=1e-9), (case.name, name)
        assert float(s.gap) <= 1e-9 * want, (case.name, name)
        assert s.status[0].proved, (case.name, name, s.stats)
    if f"out.{marginal}.assignment_cost" in case:
        s = pruneopt.solve("assignment", cost, a=a, b=b)
        assert float(s.value) == pytest.approx(float(case[f"out.{marginal}.assignment_cost"]), rel=1e-9)


@pytest.mark.golden("ot_pot")
@pytest.mark.parametrize("marginal", MARGINALS)
def test_golden_duals_and_plans_are_read_as_optimal(case: GoldenCase, marginal: str) -> None:
    """The certificate agrees with somebody else's optimum: no gap, and no violation of the duals."""
    cost, a, b = load(case, marginal)
    plan = torch.zeros_like(cost)
    at = case[f"out.{marginal}.emd.plan_nnz_ij"].astype(int)
    at = at if at.shape[0] == 2 else at.T
    plan[0, at[0], at[1]] = torch.from_numpy(case[f"out.{marginal}.emd.plan_nnz_val"])
    g = torch.from_numpy(case[f"out.{marginal}.emd.dual_v"])[None]
    found = certify(pruneopt.TransportProblem.build(cost, a=a, b=b), plan, g=g)
    assert abs(float(found.gap)) < 1e-9, case.name
    assert float(found.value) == pytest.approx(float(case[f"out.{marginal}.emd.cost"]), rel=1e-9)


@pytest.mark.golden("ot_pot")
@pytest.mark.parametrize("marginal", MARGINALS)
@pytest.mark.parametrize("eps", [0.1, 0.05, 0.01])
def test_entropic_plans_match_at_convergence(case: GoldenCase, marginal: str, eps: float) -> None:
    cost, a, b = load(case, marginal)
    key = f"out.{marginal}.sinkhorn{eps}"
    how = {"epsilon": eps, "epsilon_scale": "absolute"}
    s = pruneopt.solve(
        "sinkhorn_newton", cost, a=a, b=b, tolerance=1e-12, anneal_start=0.2 if eps < 0.05 else None, **how
    )
    assert s.status[0] is pruneopt.Status.CONVERGED, (case.name, s.stats)
    got = float((s.plan * cost).sum())
    assert got == pytest.approx(float(case[f"{key}.cost"]), rel=1e-7), case.name
    if f"{key}.plan" in case:
        want = torch.from_numpy(case[f"{key}.plan"])[None]
        torch.testing.assert_close(s.plan, want, rtol=0, atol=1e-7)
    else:
        top = s.plan[0].max(1).values.numpy()
        assert abs(top - case[f"{key}.row_max"]).max() < 1e-7, case.name
    quick = int(case[f"{key}.n_iter"]) <= 2000
    for order in ("target_then_source", "source_then_target") if quick else ():
        t = pruneopt.solve("sinkhorn", cost, a=a, b=b, rounds=5000, tolerance=1e-10, order=order, **how)
        assert t.status[0] is pruneopt.Status.CONVERGED, (case.name, order)
        torch.testing.assert_close(t.plan, s.plan, rtol=0, atol=1e-8)
