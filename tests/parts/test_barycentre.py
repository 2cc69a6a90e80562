"""Barycentric merging against loops over tokens."""

from __future__ import annotations

import pytest
import torch

from pruneopt.parts.steps.barycentre import Barycentre
from pruneopt.problems.selection import Selection
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.signals import Signals


@pytest.mark.parametrize("direction", ["received", "sent"])
@pytest.mark.parametrize("carry", [False, True])
def test_a_kept_token_is_the_mean_of_what_is_moved(direction: str, carry: bool) -> None:
    gen = torch.Generator().manual_seed(0)
    plan, size = torch.rand(2, 5, 5, generator=gen), torch.randint(1, 4, (2, 5), generator=gen).float()
    plan[1, :, 2], plan[1, 2] = 0, 0
    keep = torch.tensor([[True, False, True, False, False], [False, True, True, False, True]])
    problem = TransportProblem.build(torch.zeros(plan.shape))
    evidence = {"problem": TransportSolution(0.0, {}, problem, plan)}
    x = torch.randn(2, 5, 3, generator=gen)
    signals = Signals({"size": size, "features": x} if carry else {"features": x})
    out = Barycentre(direction=direction, carry=carry)(Selection(keep, evidence=evidence), signals)
    for b, t in keep.nonzero().tolist():
        mass = [float(plan[b, i, t] if direction == "received" else plan[b, t, i]) for i in range(5)]
        mass = [m * (float(size[b, i]) if carry else 1.0) for i, m in enumerate(mass)]
        total = sum(mass)
        mean = sum(m * x[b, i] for i, m in enumerate(mass)) / total if total else x[b, t]
        torch.testing.assert_close(out.merge[b, t] @ x[b], mean)
        assert float(out.size[b, t]) == pytest.approx(5 * total, rel=1e-5)
