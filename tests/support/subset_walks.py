"""Checks of bounds and greedy rules against loops; `test_certificates` runs them, and on planted bugs."""

from __future__ import annotations

import math

import torch
from subset_cases import random_problem, slow_best, solver

from pruneopt.problems.subset import SubsetProblem


def check_facility_bound_counts_all_tokens() -> None:
    """Disjoint tokens: the optimum is exactly the value of a bad choice plus the k largest gains over it."""

    def bound(problem: SubsetProblem, keep: torch.Tensor) -> torch.Tensor:
        found = problem.rules.bound(problem, keep)
        assert isinstance(found, torch.Tensor)
        return found

    for scale in (1e-9, 1.0, 1e9):
        worth = scale * torch.tensor([[0.0, 0.0, 0.0, 5.0, 4.0, 3.0, 0.5]], dtype=torch.float64)
        problem = SubsetProblem.build("facility_location", 3, pairwise=torch.diag_embed(worth))
        bad = torch.tensor([[True, True, True, False, False, False, False]])
        assert math.isclose(slow_best(problem, 0)[0], 12 * scale)
        # the trivial bound, in which every token is served as well as it can be, is half a token looser
        assert math.isclose(bound(problem, bad).item(), 12 * scale)
        assert 12 * scale <= bound(problem, worth > scale).item() <= 12.5 * scale
    for seed in range(10):
        problem = random_problem("facility_location", seed, batch=4, tokens=8, k=3, ragged=True)
        best = torch.tensor([slow_best(problem, b)[0] for b in range(4)], dtype=torch.float64)
        for start in range(4):
            keep = problem.real & (torch.arange(8) >= start) & (torch.arange(8) < start + 3)
            assert bool((bound(problem, keep) >= best - 1e-9).all()), (seed, start)


def check_threshold_at_equality() -> None:
    """A pair exactly as alike as the threshold may be kept, by every solver, in every dtype."""
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    for threshold in (0.3, 0.7, 0.9):  # as float32: above, below and below what was written
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            alike = torch.eye(3, dtype=dtype)[None].clone()
            alike[0, 0, 1] = alike[0, 1, 0] = threshold
            alike[0, 0, 2] = alike[0, 2, 0] = threshold + 0.01
            problem = SubsetProblem.build(
                "independent_set",
                2,
                unary=scores.to(dtype),
                pairwise=alike,
                threshold=float(alike[0, 0, 1].double()),
            )
            written = SubsetProblem.build(
                "independent_set", 2, unary=scores.to(dtype), pairwise=alike, threshold=threshold
            )
            for stated in (problem, *([] if dtype is torch.bfloat16 else [written])):
                keep = torch.tensor([[True, True, False]])
                assert not bool(stated.broken(keep)) and stated.value(keep).item() == 5.0
                assert bool(stated.broken(torch.tensor([[True, False, True]])))
                for name in ("greedy_conflict", "local_search", "milp", "brute_force"):
                    found = solver(name).solve(stated)
                    assert found.keep.equal(keep), (name, dtype, threshold)
                    assert found.value.item() == 5.0 <= found.upper_bound.item() * (1 + 1e-9)


def check_core_counts() -> None:
    """The core holds int(core k) of the largest scores, at least one, and distances decide from there on."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(40, 2, generator=g, dtype=torch.float64)
    score = torch.rand(1, 40, generator=g, dtype=torch.float64)
    ranked = score[0].argsort(descending=True).tolist()
    for kind, name in (("max_min", "farthest_point"), ("max_sum", "greedy_max_sum")):
        for k, core, held in (
            (5, 0.5, 2), (5, 0.59, 2), (5, 0.6, 3), (7, 0.1, 1), (10, 0.3, 3), (10, 1.0, 10), (20, 0.62, 12)
        ):  # fmt: skip
            problem = SubsetProblem.build(kind, k, unary=score, pairwise=torch.cdist(x, x)[None])
            scores = {"scores": "seed"} if name == "greedy_max_sum" else {}
            order = solver(name, core=core, **scores).solve(problem).order[0].tolist()
            assert order[:held] == ranked[:held], (name, k, core)
            distance = torch.cdist(x, x)
            for t in range(held, k):
                far = distance[order[:t]].amin(0) if kind == "max_min" else distance[order[:t]].sum(0)
                far[order[:t]] = -math.inf
                assert order[t] == int(far.argmax()), (name, k, core, t)
            assert k == held or order[held] != ranked[held], "the case does not tell core from distance"


def check_seeds_with_masks() -> None:
    """Every rule for the first token, on ragged batches whose padding lies below, between and above."""
    g = torch.Generator().manual_seed(3)
    x = torch.rand(6, 7, 3, generator=g, dtype=torch.float64)
    distance = torch.cdist(x, x)
    scores = torch.rand(6, 7, generator=g, dtype=torch.float64)
    mask = torch.ones(6, 7, dtype=torch.bool)
    for b in range(6):
        mask[b, [b, (b + 2) % 7][: 1 + b % 2]] = False  # padding at every place, not only at the end
    firsts: dict[str, list[int]] = {}
    for fill in (-9.0, 0.45, 9.0):
        pad = ~(mask[:, :, None] & mask[:, None, :])
        noise = fill * torch.rand(6, 7, 7, generator=g, dtype=torch.float64)
        dirty = torch.where(pad, (noise + noise.transpose(1, 2)) / 2, distance)
        filled = scores.masked_fill(~mask, fill)
        for kind, name in (("max_min", "farthest_point"), ("max_sum", "greedy_max_sum")):
            problem = SubsetProblem.build(kind, 3, unary=filled, pairwise=dirty, mask=mask)
            for rule in ("max_nn_distance", "max_mean_distance", "unary", "first"):
                extra = {"scores": "seed"} if name == "greedy_max_sum" else {}
                found = solver(name, seed=rule, **extra).solve(problem)
                for b in range(6):
                    real = mask[b].nonzero()[:, 0].tolist()
                    others = {i: [distance[b, i, j].item() for j in real if j != i] for i in real}
                    worth = {
                        "max_nn_distance": lambda i, o=others: min(o[i]),
                        "max_mean_distance": lambda i, o=others: sum(o[i]),
                        "unary": lambda i, b=b: scores[b, i].item(),
                        "first": lambda i: -i,
                    }[rule]
                    first = int(found.order[b, 0])
                    assert first == max(real, key=worth), (name, rule, b, fill)
                    firsts.setdefault(rule, []).append(first)
                    assert not bool((found.keep[b] & ~mask[b]).any())
    assert len({tuple(v) for v in firsts.values()}) == 4, "the rules agree, so the case says nothing"
