"""Crossings of parts that used to be impossible: each against its own formula in NumPy or brute force.

The transport importance is the one-sided one, `sum_j b_j softmax_i(-C_ij / eps)`, over TopV's cost: a closed
form that ten lines of NumPy give.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from pruneopt.errors import SpecError
from pruneopt.problems.selection import Selection
from pruneopt.problems.solution import SubsetSolution, TransportSolution
from pruneopt.pruner import select
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec
from pruneopt.testing.cases import make_signals

TOPV = {
    "feature": {"kind": "feature_sq_l2", "normalize": "minmax"},
    "spatial": {"kind": "spatial_gaussian", "sigma": 2, "weight": 0.5},
    "centre": {"kind": "central_distance", "weight": 0.01},
}
MOVE: dict[str, Any] = {
    "kind": "transport",
    "cost": TOPV,
    "solver": {"kind": "one_sided", "epsilon": 0.2, "epsilon_scale": "absolute"},
    "readout": "one_sided_mass",
}
TOKENS, KEEP = 9, 4


def spec(problem: dict[str, Any], solver: str = "stable_top_k", **more: Any) -> Spec:
    return load_spec(
        {
            "insertion": {"kind": "prefill_layer", "layer": 2},
            "budget": {"keep": KEEP, **more.pop("budget", {})},
            "problem": problem,
            "solver": solver,
            **more,
        }
    )


def given(made: Spec, seed: int = 0) -> Signals:
    return make_signals(made.needs, tokens=TOKENS, width=6, seed=seed)


def rows(signals: Signals) -> list[dict[str, np.ndarray]]:
    return [{n: signals[n][b].double().numpy() for n in signals} for b in range(signals.batch)]


def topv_cost(s: dict[str, np.ndarray]) -> np.ndarray:
    apart = ((s["hidden_in"][:, None] - s["post_attention_norm"][None]) ** 2).sum(2)
    apart = (apart - apart.min()) / (apart.max() - apart.min())
    near = 1 - np.exp(-((s["xy"][:, None] - s["xy"][None]) ** 2).sum(2) / 8)
    centre = np.linalg.norm(s["xy"] - (s["grid"] - 1) / 2, axis=1)
    return apart + 0.5 * near + 0.01 * centre[:, None]


def importance(s: dict[str, np.ndarray], mass: np.ndarray | None = None) -> np.ndarray:
    weight = np.exp(-topv_cost(s) / 0.2)
    return (weight / weight.sum(0) * (np.full(TOKENS, 1 / TOKENS) if mass is None else mass)).sum(1)


def asked(s: dict[str, np.ndarray]) -> np.ndarray:
    """The attention of the last token, averaged over heads."""
    return s["attention_last"].mean(0)


def unit(x: np.ndarray) -> np.ndarray:
    return (x - x.min()) / (x.max() - x.min())


def best(score: np.ndarray, k: int = KEEP) -> list[int]:
    return sorted(np.argsort(-score, kind="stable")[:k].tolist())


def kept(chosen: Selection) -> list[list[int]]:
    return [index.tolist() for index in chosen.indices]


def moves(chosen: Selection, key: str) -> TransportSolution:
    found = chosen.evidence[key]
    assert isinstance(found, TransportSolution) and bool((found.gap >= -1e-6).all())
    return found


def answer(chosen: Selection) -> SubsetSolution:
    """The subset solution, which is what the spec states; the transport one stands beside it."""
    found = chosen.evidence["problem"]
    assert found is chosen.solution and isinstance(found, SubsetSolution)
    return found


def test_attention_and_transport_in_one_top_k() -> None:
    scores = {
        "asked": {"kind": "attention_row", "weight": 2, "normalize": "minmax"},
        "move": {**MOVE, "normalize": "minmax"},
    }
    made = spec({"kind": "top_k", "scores": scores})
    signals = given(made)
    chosen = select(made, signals)
    wanted = [2 * unit(asked(s)) + unit(importance(s)) for s in rows(signals)]
    np.testing.assert_allclose(chosen.importance, np.stack(wanted), rtol=1e-4, atol=1e-5)
    assert kept(chosen) == [best(score) for score in wanted]
    assert kept(chosen) != [best(asked(s)) for s in rows(signals)]
    assert kept(chosen) != [best(importance(s)) for s in rows(signals)]
    assert list(chosen.evidence) == ["problem.scores.move", "problem"]
    assert answer(chosen).status[0].proved and moves(chosen, "problem.scores.move").solver == "one_sided"


def test_transport_under_a_quota() -> None:
    made = spec(
        {"kind": "quota", "scores": {"move": MOVE}, "quota": {"kind": "window", "columns": 1, "rows": 3}},
        "quota_top_k",
        budget={"keep": 6},
    )
    signals = given(made)
    chosen = select(made, signals)
    groups = answer(chosen).problem.group
    for s, group, found in zip(rows(signals), groups.numpy(), kept(chosen), strict=True):
        assert len(set(group)) == 3
        score = importance(s)
        wanted = [i for g in set(group) for i in np.flatnonzero(group == g)[best(score[group == g], 2)]]
        assert found == sorted(int(i) for i in wanted)
    moves(chosen, "problem.scores.move")


def test_transport_with_protected_tokens() -> None:
    protect = {"count": 2, "scores": {"asked": "attention_row"}}
    made = spec({"kind": "top_k", "scores": {"move": MOVE}, "protect": protect})
    signals = given(made)
    chosen = select(made, signals)
    for s, found in zip(rows(signals), kept(chosen), strict=True):
        first = best(asked(s), 2)
        rest = importance(s)
        rest[first] = np.inf
        assert found == best(rest) and set(first) <= set(found)
    by_move = {"count": 2, "scores": {"move": MOVE}}
    turned = spec({"kind": "top_k", "scores": {"asked": "attention_row"}, "protect": by_move})
    chosen = select(turned, given(turned))
    for s, found in zip(rows(given(turned)), kept(chosen), strict=True):
        assert set(best(importance(s), 2)) <= set(found)
    moves(chosen, "problem.protect.scores.move")


def log_det_best(kernel: np.ndarray) -> tuple[list[int], float]:
    values = {s: np.linalg.slogdet(kernel[np.ix_(s, s)]) for s in combinations(range(TOKENS), KEEP)}
    subset = max(values, key=lambda s: values[s].logabsdet if values[s].sign > 0 else -np.inf)
    return list(subset), values[subset].logabsdet


def test_transport_as_the_quality_of_a_log_determinant() -> None:
    made = spec({"kind": "log_det", "scores": {"move": MOVE}, "pairwise": {"k": "cosine"}}, "brute_force")
    signals = given(made)
    chosen = select(made, signals)
    for b, s in enumerate(rows(signals)):
        rows_ = s["features"] / np.linalg.norm(s["features"], axis=1, keepdims=True)
        q = importance(s)
        subset, value = log_det_best(q[:, None] * (rows_ @ rows_.T) * q[None])
        assert kept(chosen)[b] == subset
        assert float(answer(chosen).value[b]) == pytest.approx(value, rel=1e-4)
    assert all(status.proved for status in answer(chosen).status)
    moves(chosen, "problem.scores.move")


def test_a_log_determinant_over_topvs_cost() -> None:
    pairs = {"near": {"kind": "from_cost", "cost": TOPV, "h": 0.5, "repair": "ridge"}}
    made = spec({"kind": "log_det", "pairwise": pairs}, "brute_force")
    signals = given(made)
    chosen = select(made, signals)
    for b, s in enumerate(rows(signals)):
        cost = topv_cost(s)
        kernel = np.exp(-(cost + cost.T) / 2 / 0.5)
        kernel += max(0.0, -np.linalg.eigvalsh(kernel)[0]) * np.eye(TOKENS)
        subset, value = log_det_best(kernel)
        assert kept(chosen)[b] == subset
        assert float(answer(chosen).value[b]) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_facility_location_over_topvs_cost(weighted: bool) -> None:
    """The k sources that serve every token at the least cost, weighted by what the text asks of it."""
    problem: dict[str, Any] = {"kind": "facility_location", "cost": TOPV}
    made = spec({**problem, "scores": {"asked": "attention_row"}} if weighted else problem, "brute_force")
    signals = given(made)
    chosen, greedy = select(made, signals), select(load_spec(made, ["solver=lazy_greedy"]), signals)
    for b, s in enumerate(rows(signals)):
        cost, weight = topv_cost(s), asked(s) if weighted else np.ones(TOKENS)
        costs = {c: float((weight * cost[list(c)].min(0)).sum()) for c in combinations(range(TOKENS), KEEP)}
        cheapest = min(costs, key=lambda c: costs[c])
        assert kept(chosen)[b] == list(cheapest)
        assert float(answer(chosen).value[b]) == pytest.approx(-costs[cheapest], rel=1e-5)
        found = answer(greedy)
        assert float(found.value[b]) == pytest.approx(-costs[tuple(kept(greedy)[b])], rel=1e-5)
        assert float(found.value[b]) <= -costs[cheapest] + 1e-6 <= float(found.upper_bound[b]) + 2e-6


def test_facility_location_serves_text_pivots_and_tokens_in_one_sum() -> None:
    pivots = {"kind": "text_pivots", "count": 2, "weight": 3}
    for cost in ({"text": pivots}, {"text": pivots, "near": "spatial_gaussian"}):
        made = spec({"kind": "facility_location", "cost": cost}, "brute_force")
        signals = given(made)
        chosen = select(made, signals)
        part = made.stages[0].problem.cost[-1].part
        points = part(signals.view(part.needs)).numpy()
        for b, s in enumerate(rows(signals)):
            table = [3 * row for row in points[b] if np.isfinite(row).all()]
            assert len(table) == 2
            if len(cost) == 2:
                table += list(1 - np.exp(-((s["xy"][:, None] - s["xy"][None]) ** 2).sum(2) / 200))
            every = combinations(range(TOKENS), KEEP)
            least = min(every, key=lambda c: sum(row[list(c)].min() for row in table))
            assert float(answer(chosen).value[b]) == pytest.approx(
                -sum(row[list(least)].min() for row in table), rel=1e-4
            )


def test_what_a_cost_cannot_do_is_refused_when_the_spec_is_read() -> None:
    both = {"kind": "facility_location", "cost": TOPV, "pairwise": {"k": "cosine"}}
    with pytest.raises(SpecError, match="has a cost and pairwise terms; facility_location serves by one"):
        spec(both, "lazy_greedy")
    outside = {"kind": "facility_location", "cost": {"t": "text_pivots"}, "scores": {"s": "attention_row"}}
    with pytest.raises(SpecError, match="weigh tokens that are served, and only external points"):
        spec(outside, "lazy_greedy")
    with pytest.raises(SpecError, match="text_pivots reaches external points and is not scaled"):
        spec({"kind": "facility_location", "cost": {"t": {"kind": "text_pivots", "normalize": "max"}}})


def test_a_score_as_a_marginal() -> None:
    """Also `problem.kind: transport`: its plan is the evidence of the problem, its ranking stands beside."""
    asks = {"kind": "from_score", "scores": {"asked": "attention_row"}}
    made = spec(
        {"kind": "transport", "cost": TOPV, "marginals": {"target": asks}},
        solver=MOVE["solver"],
        readout=MOVE["readout"],
    )
    signals = given(made)
    chosen = select(made, signals)
    for b, s in enumerate(rows(signals)):
        mass = asked(s) / asked(s).sum()
        np.testing.assert_allclose(chosen.importance[b], importance(s, mass), rtol=1e-4)
        np.testing.assert_allclose(moves(chosen, "problem").problem.b[b], mass, rtol=1e-5)
        assert kept(chosen)[b] == best(importance(s, mass))
    assert chosen.solution is chosen.evidence["problem"]
    ranking = chosen.evidence["problem.top_k"]
    assert isinstance(ranking, SubsetSolution) and ranking.problem.unary is chosen.importance


def test_a_negative_weight_keeps_what_transport_would_drop_under_a_rule_that_counts() -> None:
    score = {"move": {**MOVE, "weight": -1, "normalize": "minmax"}}
    rule = {"kind": "score_threshold", "bound": -0.5}
    made = spec({"kind": "top_k", "scores": score}, budget={"rule": rule})
    signals = given(made)
    chosen = select(made, signals)
    counts = []
    for s, found in zip(rows(signals), kept(chosen), strict=True):
        low = np.flatnonzero(unit(importance(s)) < 0.5).tolist()
        assert found == low
        counts.append(len(low))
    assert chosen.counts is None and chosen.known_counts == tuple(counts)
    moved = spec(
        {"kind": "transport", "cost": TOPV},
        solver=MOVE["solver"],
        readout=MOVE["readout"],
        budget={"rule": {"kind": "score_threshold", "bound": 1 / TOKENS}},
    )
    chosen = select(moved, signals)
    wanted = [np.flatnonzero(importance(s) > 1 / TOKENS).tolist() for s in rows(signals)]
    assert kept(chosen) == wanted and chosen.known_counts == tuple(map(len, wanted))


@pytest.mark.parametrize("whole", [True, False])
def test_merging_by_the_plan(whole: bool) -> None:
    """Whether transport is the problem or one of two scores: dropped tokens go where its plan sends them."""
    if whole:
        made = spec({"kind": "transport", "cost": TOPV}, MOVE["solver"], readout=MOVE["readout"],
                    steps=["merge_by_plan"])  # fmt: skip
    else:
        scores = {"asked": "attention_row", "move": MOVE}
        made = spec({"kind": "top_k", "scores": scores}, steps=["merge_by_plan"])
    signals = given(made)
    chosen = select(made, signals)
    for b, s in enumerate(rows(signals)):
        weight = np.exp(-topv_cost(s) / 0.2)
        plan = weight / weight.sum(0) / TOKENS
        inside = kept(chosen)[b]
        share = np.zeros((TOKENS, TOKENS))
        for i in range(TOKENS):
            if i in inside:
                share[i, i] = 1
            else:
                share[inside, i] = plan[i, inside] / plan[i, inside].sum()
        size = share.sum(1)
        found = chosen.merge[b, inside].double().numpy()
        np.testing.assert_allclose(found, share[inside] / size[inside, None], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(chosen.size[b, inside], size[inside], rtol=1e-4)
        assert size[inside].sum() == pytest.approx(TOKENS)


def test_merging_without_a_plan_or_with_two_is_refused_when_the_spec_is_read() -> None:
    scores = {"asked": "attention_row"}
    with pytest.raises(Exception, match="merge_by_plan: reads a transport plan, and no transport") as no:
        spec({"kind": "top_k", "scores": scores}, steps=["merge_by_plan"])
    assert no.value.key == "steps.0"
    two = {"a": MOVE, "b": {**MOVE, "cost": {"c": "cosine_distance"}}}
    with pytest.raises(SpecError, match=r"set `of` to one of problem.scores.a, problem.scores.b"):
        spec({"kind": "top_k", "scores": two}, steps=["merge_by_plan"])
    one = spec({"kind": "top_k", "scores": two}, steps=[{"kind": "merge_by_plan", "of": "problem.scores.b"}])
    assert list(select(one, given(one)).evidence) == ["problem.scores.a", "problem.scores.b", "problem"]


def test_evidence_of_groups_has_one_row_a_group_and_outlives_joining() -> None:
    scores = {"deep": {"kind": "from_cost", "cost": {"c": {"kind": "from_score", "scores": {"move": MOVE}}}}}
    made = spec({"kind": "top_k", "scores": scores}, budget={"keep": 2}, steps=["recover_every"])
    signals = given(made)
    groups = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 2, 2, 2]])
    chosen = select(made, signals, groups=groups)
    found = moves(chosen, "problem.scores.deep.cost.c.scores.move")
    assert found.plan.shape[0] == 5 and answer(chosen).keep.shape[0] == 5
    assert chosen.keep.shape[0] == 2 and chosen.diagnostics == ()
