"""A warm start changes how long transport takes, never what it answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import pruneopt
from pruneopt.errors import SpecError
from pruneopt.registry import registry

SOLVER = {"kind": "sinkhorn", "epsilon": 0.1, "rounds": 5_000, "tolerance": 1e-6}


def two_cuts(second: str, **inside: Any) -> pruneopt.Spec:
    """All tokens ranked by their dual, then half of them by the dual of later features."""
    score = {"readout": "dual_source", "solver": SOLVER, "cost": {"near": "cosine_distance"}, **inside}
    stages = [
        {"insertion": "post_encoder", "solver": "stable_top_k", "budget": {"keep": keep}, "problem": {
            "kind": "top_k", "scores": {"plan": {"kind": kind, **score}}}}
        for kind, keep in (("transport", 1.0), (second, 0.5))
    ]  # fmt: skip
    return pruneopt.load_spec({"stages": stages})


def layers(
    seed: int = 0, *, ragged: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
    """Features of a layer, and of the next one, which moved a little; the mask of real tokens."""
    gen = torch.Generator().manual_seed(seed)
    base = torch.randn(2, 48, 12, generator=gen)
    moved = base + 0.002 * torch.randn(2, 48, 12, generator=gen)
    mask = torch.ones(2, 48, dtype=torch.bool)
    mask[0, 40:] = False
    return {"features": base}, {"features": moved}, mask if ragged else None


def second_cut(kind: str, start: Tensor | None, *, ragged: bool = False, seed: int = 0) -> Any:
    first, later, mask = layers(seed, ragged=ragged)
    spec = two_cuts(kind)
    cut = pruneopt.select(spec, pruneopt.Signals(first, mask))
    order = cut.keep.int().argsort(dim=1, descending=True, stable=True)[:, : int(cut.keep.sum(1).max())]
    alive = take(cut.keep, order)
    tensors = {"features": take(later["features"], order)}
    tensors["importance"] = take(cut.importance if start is None else start, order)
    return pruneopt.select(spec, pruneopt.Signals(tensors, alive if ragged else None), stage=1)


def take(tensor: Tensor, order: Tensor) -> Tensor:
    return torch.stack([row[i] for row, i in zip(tensor, order, strict=True)])


def plan_of(selection: Any) -> Any:
    return selection.evidence["problem.scores.plan"]


@pytest.mark.parametrize("ragged", [False, True])
def test_the_next_cut_answers_the_same_in_fewer_rounds(ragged: bool) -> None:
    for seed in range(3):
        cold = second_cut("transport", None, ragged=ragged, seed=seed)
        warm = second_cut("transport_warm", None, ragged=ragged, seed=seed)
        assert torch.equal(warm.keep, cold.keep)
        torch.testing.assert_close(plan_of(warm).plan, plan_of(cold).plan, rtol=0, atol=1e-6)
        alive = plan_of(cold).problem.a > 0
        torch.testing.assert_close(warm.importance[alive], cold.importance[alive], rtol=0, atol=1e-4)
        assert all(s is pruneopt.Status.CONVERGED for s in plan_of(warm).status)
        assert bool((plan_of(warm).rounds < plan_of(cold).rounds).all())


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_a_start_that_says_nothing_costs_rounds_and_no_more(size: float) -> None:
    nonsense = size * torch.randn(2, 48, generator=torch.Generator().manual_seed(5))
    cold, warm = second_cut("transport", None), second_cut("transport_warm", nonsense)
    torch.testing.assert_close(plan_of(warm).plan, plan_of(cold).plan, rtol=0, atol=1e-6)
    assert torch.equal(warm.keep, cold.keep)


def test_a_frame_begins_where_the_frame_before_ended() -> None:
    gen = torch.Generator().manual_seed(1)
    frames = torch.rand(1, 40, 3, generator=gen) + 0.02 * torch.randn(4, 40, 3, generator=gen)
    targets = torch.rand(1, 40, 3, generator=gen)
    params = {"epsilon": 0.02, "rounds": 20_000, "tolerance": 1e-7}
    costs = [torch.cdist(frame[None], targets) for frame in frames]
    cold = [pruneopt.solve("sinkhorn", cost, **params) for cost in costs]
    for cost, before, alone in zip(costs[1:], cold, cold[1:], strict=False):
        warm = pruneopt.solve("sinkhorn", cost, start=(before.f, before.g), **params)
        torch.testing.assert_close(warm.plan, alone.plan, rtol=0, atol=2e-7)
        assert int(warm.rounds) < int(alone.rounds)


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ({"solver": {"kind": "sinkhorn"}}, "with a `tolerance`"),
        ({"solver": "exact"}, "must be sinkhorn"),
        ({"solver": SOLVER, "readout": "row_cost"}, "readout is row_cost; only dual_source"),
    ],
)
def test_what_cannot_go_on_is_refused(inside: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        registry("scores").get("transport_warm").from_spec(inside)


def test_it_reads_what_the_previous_cut_left() -> None:
    part = registry("scores").get("transport_warm").from_spec({"cost": {"near": "cosine_distance"}})
    assert part.needs == {"features", "importance"}
