"""What a forward pass waits for: nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transport_cases import random_problem

from pruneopt.parts.readouts.dual_source import DualSource
from pruneopt.parts.readouts.one_sided_mass import OneSidedMass
from pruneopt.parts.readouts.row_cost import RowCost
from pruneopt.parts.readouts.row_sum import RowSum
from pruneopt.parts.readouts.row_sum_target_last import RowSumTargetLast
from pruneopt.parts.solvers.one_sided import OneSided
from pruneopt.parts.solvers.proximal import Proximal
from pruneopt.parts.solvers.sinkhorn import Sinkhorn
from pruneopt.problems.transport import TransportProblem


class Waiting(Exception):
    pass


class NoWaiting(TorchDispatchMode):
    """Raises at any operation whose result Python, or the shape of a tensor, would have to wait for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal",
                    "aten::masked_select", "aten::_unique2"):  # fmt: skip
            raise Waiting(name)
        return func(*args, **(kwargs or {}))


def masked() -> TransportProblem:
    cost, a, b = random_problem(0, n=12, m=12, dtype=torch.float32)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, 5] = False
    a, b = a * mask, b * mask
    return TransportProblem.build(
        cost, a=a / a.sum(1, keepdim=True), b=b / b.sum(1, keepdim=True), row_mask=mask, col_mask=mask
    )


def test_the_guard_can_fail() -> None:
    with NoWaiting(), pytest.raises(Waiting):
        float(torch.ones(3).sum())
    with NoWaiting(), pytest.raises(Waiting):
        Sinkhorn(tolerance=1e-3).solve(masked())


@pytest.mark.parametrize("order", ["target_then_source", "source_then_target"])
def test_fixed_rounds_and_their_readouts_never_wait(order: str) -> None:
    problem = masked()
    for solver in (Sinkhorn(rounds=3, epsilon=0.05, order=order), OneSided(), Proximal(rounds=12)):
        with NoWaiting():
            solution = solver.solve(problem)
            for readout in (RowSum(), RowSumTargetLast(), OneSidedMass(), RowCost(), DualSource()):
                assert readout(problem, solution).shape == (2, 12)
            certificate = solution.certificate
        assert (certificate.gap > -1e-9).all()


def test_building_without_value_checks_never_waits() -> None:
    cost, a, b = random_problem(1, dtype=torch.float32)
    with NoWaiting():
        problem = TransportProblem.build(cost, a=a, b=b, check=False)
    assert problem.cost.shape == (2, 9, 7)


@pytest.mark.gpu
def test_gpu_agrees_with_cpu_and_does_not_synchronise() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    problem = masked()
    there = TransportProblem(*(None if x is None else x.cuda() for x in (
        problem.cost, problem.a, problem.b, problem.row_mask, problem.col_mask)))  # fmt: skip
    for solver in (
        Sinkhorn(rounds=50),
        Sinkhorn(rounds=3, epsilon=0.5, epsilon_scale="absolute"),
        Sinkhorn(rounds=3, epsilon=0.001),
        OneSided(),
    ):
        torch.cuda.set_sync_debug_mode("error")
        try:
            solution = solver.solve(there)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        want = solver.solve(problem)
        torch.testing.assert_close(solution.plan.cpu(), want.plan, rtol=1e-4, atol=1e-6)
    for solver in (Sinkhorn(epsilon=0.001, anneal_start=0.5, tolerance=1e-4, rounds=500), Proximal()):
        torch.testing.assert_close(
            solver.solve(there).value.cpu(), solver.solve(problem).value, rtol=0, atol=1e-4
        )
