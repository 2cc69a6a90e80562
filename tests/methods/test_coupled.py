"""Parameters that two parts must agree on, names that are gone, and selections that scores cannot hide."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from pruneopt.errors import ProblemError, PruneoptError, RegistryError, SpecError
from pruneopt.parts import SubsetSolver
from pruneopt.parts.solvers.quota_top_k import QuotaTopK
from pruneopt.pruner import Pruner, select
from pruneopt.registry import MOVED, registry
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.testing.cases import make_signals

# method, the side that a user may change alone, the side that follows it, a value for both
ONE = [
    ("saint", "budget.rule.threshold", "problem.scores.redundancy.threshold", 0.5),
    ("saint/release", "budget.rule.signal", "problem.scores.redundancy.signal", "hidden_out"),
    ("vflowopt", "stages.0.budget.rule.cell", "stages.0.steps.0.cell", 3.5),
    ("vflowopt/quarter", "stages.0.budget.rule.cell", "stages.0.steps.0.cell", 3.5),
    ("vflowopt/tenth", "stages.0.budget.rule.cell", "stages.0.steps.0.cell", 3.5),
    ("tome", "problem.scores.matched.stride", "problem.protect.where.stride", 3),
    ("tome/kth", "problem.scores.matched.stride", "problem.protect.where.stride", 3),
    ("tome/quarter", "stages.1.problem.scores.matched.stride", "stages.1.problem.protect.where.stride", 3),
    ("aim", "stages.0.problem.scores.matched.stride", "stages.0.problem.protect.where.stride", 3),
    ("dart", "solver.text_pivots", "problem.anchors.text.count", 2),
    ("dart/release", "solver.text_pivots", "problem.anchors.text.count", 2),
    ("dart/release", "solver.text_pivots", "budget.rule.text_pivots", 2),
    ("dart/release", "solver.pivots", "budget.rule.pivots", 2),
    ("globalcom2", "budget.keep", "budget.rule.retention", 0.4),
    ("globalcom2/release", "budget.keep", "budget.rule.retention", 0.4),
]


def at(data, path: str):
    for key in path.split("."):
        data = data[int(key)] if isinstance(data, list) else data[key]
    return data


@pytest.mark.parametrize(("method", "leads", "follows", "value"), ONE)
def test_a_coupled_parameter_is_one_parameter(method: str, leads: str, follows: str, value) -> None:
    extra = [] if "signal" not in leads else ["problem.scores.redundancy.gamma=10"]
    spec = load_spec(method, [f"{leads}={value}", *extra]).to_spec()
    if "stages." not in leads and "stages" in spec:
        spec = spec["stages"][0]
    assert at(spec, leads) == value == at(spec, follows)


@pytest.mark.parametrize(("method", "leads", "follows", "value"), ONE)
def test_the_other_side_alone_is_refused(method: str, leads: str, follows: str, value) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(method, [f"{follows}={value}"])
    said = str(caught.value)
    assert str(value) in said
    assert follows.rpartition(".")[2] in said and ("set both" in said or "must" in said or "${" in said)


@pytest.mark.parametrize(("method", "leads", "follows", "value"), ONE)
def test_both_sides_together_load(method: str, leads: str, follows: str, value) -> None:
    more = {"dart/release": ["solver.pivots=2", "solver.text_pivots=2", "budget.rule.pivots=2",
                             "budget.rule.text_pivots=2", "problem.anchors.text.count=2"]}  # fmt: skip
    assert load_spec(method, [f"{leads}={value}", f"{follows}={value}", *more.get(method, [])])


def test_a_resolved_spec_keeps_its_couplings() -> None:
    again = load_spec(load_spec("saint"))
    assert again.hash == load_spec("saint").hash
    with pytest.raises(SpecError, match="set both"):
        load_spec(again, ["stages.3.budget.rule.threshold=0.5"])


@pytest.mark.parametrize(("group", "name"), sorted(MOVED))
def test_a_name_that_is_gone_says_what_to_write(group: str, name: str) -> None:
    with pytest.raises(RegistryError, match=f"{name!r}, which is gone: write") as caught:
        registry(group).get(name)
    words = set(re.findall(r"\w+", str(caught.value).partition("write")[2]))
    there = {part for group in ("scores", "solvers", "steps") for part in registry(group)}
    assert words & there and name not in there


@pytest.mark.parametrize(
    ("part", "parameter", "word"),
    [
        ("solvers.pivot", "pivot_order", "dart_pivots"),
        ("solvers.pivot", "prefix", "dart_pivots"),
        ("solvers.dart_pivots", "pivot_order", "DART"),
        ("steps.merge_nearest", "stride", "problem.protect.where"),
    ],
)
def test_a_parameter_that_is_gone_says_what_to_write(part: str, parameter: str, word: str) -> None:
    group, _, name = part.partition(".")
    with pytest.raises(SpecError, match=f"no parameter '{parameter}': .*{word}"):
        registry(group).get(name).from_spec({parameter: 2})


# -- tokens that stay are protected, not hidden in a score ----------------------------------------------


def cosine(x: torch.Tensor) -> torch.Tensor:
    x = x / x.norm(dim=1, keepdim=True)
    return x @ x.T


@pytest.mark.parametrize(("stride", "keep"), [(2, 11), (2, 14), (3, 8), (4, 5)])
def test_tome_is_the_obvious_loop(stride: int, keep: int) -> None:
    torch.manual_seed(stride)
    keys, values = torch.randn(1, 2, 21, 5), torch.randn(1, 21, 4)
    signals = Signals({"features": values, "encoder_keys": keys})
    chosen = select(
        load_spec("tome", [f"problem.scores.matched.stride={stride}", f"budget.keep={keep}"]), signals
    )
    near = cosine(keys[0].mean(0))
    stay = list(range(stride - 1, 21, stride))
    others = [i for i in range(21) if i not in stay]
    others.sort(key=lambda i: float(near[i, stay].max()))
    kept = sorted(stay + others[: keep - len(stay)])
    assert chosen.indices[0].tolist() == kept
    members = {t: [t] for t in kept}
    for i in others[keep - len(stay) :]:
        members[max(stay, key=lambda t, i=i: float(near[i, t]))].append(i)
    for t, group in members.items():
        np.testing.assert_allclose((chosen.merge @ values)[0, t], values[0, group].mean(0), atol=1e-6)


def test_a_budget_below_the_destinations_is_refused() -> None:
    signals = make_signals({"features", "encoder_keys"}, tokens=12)
    with pytest.raises(ProblemError, match=r"keeps 6 tokens of problem 0, but the budget is 4; keep more"):
        select(load_spec("tome", ["budget.keep=4"]), signals)
    with pytest.raises(ProblemError, match="every_kth"):
        Pruner(load_spec("tome", ["budget.keep=4"]).stages[0]).select(signals, check=False)


def test_scores_of_matching_rank_destinations_like_anybody() -> None:
    """The score alone no longer decides that destinations stay: without protection it is refused."""
    with pytest.raises(SpecError, match=r"problem.protect.where must be \{kind: every_kth, stride: 2\}"):
        load_spec("tome", ["problem.protect=null"])
    with pytest.raises(SpecError, match=r"every_kth, stride: 2"):
        load_spec("saint", ["problem.protect.where.stride=3"])
    for kind in ("match_similarity", "twin_redundancy"):
        part = registry("scores").get(kind)(signal="features")
        signals = make_signals({"features"}, batch=1, tokens=10, width=3, seed=4)
        order = part(signals)[0].argsort(descending=True).tolist()
        assert {i % 2 for i in order[:5]} == {0, 1}


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9])
def test_twin_redundancy_is_the_obvious_loop(threshold: float) -> None:
    rows = torch.randn(1, 11, 3, generator=torch.Generator().manual_seed(1))
    near = cosine(rows[0])
    part = registry("scores").get("twin_redundancy")(signal="features", threshold=threshold, gamma=3.0)
    score = part(Signals({"features": rows}))[0]
    for i in range(11):
        others = [float(near[i, j]) for j in range(1, 11, 2) if j != i]
        twins = [c for c in others if c >= threshold]
        mean = sum(twins or others) / len(twins or others)
        wanted = len(twins) * np.exp(3.0 * (mean - threshold)) if twins else mean
        assert float(score[i]) == pytest.approx(-wanted, rel=1e-4, abs=1e-6)


# -- clusters are a quota problem and a merge -----------------------------------------------------------


def vitcop_case(seed: int, scale: float) -> Signals:
    g = torch.Generator().manual_seed(seed)
    side = 7
    cell = torch.arange(side * side)
    return Signals(
        {
            "keys": torch.randn(1, 2, side * side, 6, generator=g),
            "encoder_keys": scale * torch.randn(1, 2, side * side, 6, generator=g),
            "xy": torch.stack([cell % side, cell // side], 1)[None],
            "grid": torch.full((1, side * side, 2), side),
        }
    )


def by_the_card(signals: Signals, budget: int, strict: bool) -> tuple[list[int], dict[int, list[int]]]:
    """Stage II of ViTCoP in plain loops, by its card: tokens kept, and what each merged one merges."""
    rows = signals["encoder_keys"][0].transpose(0, 1).flatten(1).double()
    place = signals["xy"][0].double() / 7
    norm = signals["keys"][0].mean(0).norm(dim=1).tolist()
    n = len(rows)
    far = [[float((rows[i] - rows[j]).norm()) for j in range(n)] for i in range(n)]
    density = [sum(np.exp(-((far[i][j] / 8) ** 2)) for j in range(n)) for i in range(n)]
    parent, delta = [0] * n, [float("inf")] * n
    for i in range(n):
        for j in range(n):
            denser = density[j] > density[i] if strict else density[j] >= density[i]
            if i != j and denser and float((place[i] - place[j]).norm()) <= 0.6 and far[i][j] < delta[i]:
                parent[i], delta[i] = j, far[i][j]
    peaks = sorted(range(n), key=lambda i: -density[i] * delta[i])[: max(1, int(0.18 * n))]
    label = {p: c for c, p in enumerate(peaks)}
    for _ in range(n):
        for i in range(n):
            if i not in label and delta[i] < float("inf") and parent[i] in label:
                label[i] = label[parent[i]]
    clusters: dict[int, list[int]] = {}
    for i in range(n):
        clusters.setdefault(label.get(i, -1), []).append(i)
    order = sorted(clusters.values(), key=lambda c: sum(norm[i] for i in c))
    if len(order) > budget:
        groups = [*order[: budget - 1], sorted(i for c in order[budget - 1 :] for i in c)]
        kept: list[int] = []
    else:
        left = budget - len(order)
        quota = [min(round((len(c) - 1) / (n - len(order)) * left), len(c) - 1) for c in order]
        while sum(quota) != left:
            for k in range(len(order)) if sum(quota) < left else range(len(order) - 1, -1, -1):
                if sum(quota) < left and quota[k] < len(order[k]) - 1:
                    quota[k] += 1
                elif sum(quota) > left and quota[k] > 0:
                    quota[k] -= 1
        ranked = [sorted(c, key=lambda i: norm[i]) for c in order]
        kept = [i for c, q in zip(ranked, quota, strict=True) for i in c[:q]]
        groups = [sorted(c[q:]) for c, q in zip(ranked, quota, strict=True)]
    return kept, {g[len(g) // 2]: g for g in groups}


@pytest.mark.parametrize("method", ["vitcop", "vitcop/release"])
@pytest.mark.parametrize(("seed", "scale"), [(0, 1.0), (1, 0.2), (2, 5.0)])
@pytest.mark.parametrize("keep", [3, 12, 30])
def test_clusters_get_their_quota_and_merge_their_rest(
    method: str, seed: int, scale: float, keep: int
) -> None:
    signals = vitcop_case(seed, scale)
    stage = load_spec(method, [f"stages.1.budget.keep={keep}"]).stages[1]
    chosen = Pruner(stage).select(signals)
    kept, groups = by_the_card(signals, keep, strict=method == "vitcop")
    assert chosen.indices[0].tolist() == sorted(kept + list(groups)) and chosen.known_counts == (keep,)
    values = torch.randn(49, 3)
    merged = chosen.merge[0] @ values
    for i in kept:
        np.testing.assert_allclose(merged[i], values[i], atol=1e-6)
    for carrier, group in groups.items():
        np.testing.assert_allclose(merged[carrier], values[carrier] + values[group].mean(0), atol=1e-5)
    mean = replace(stage, steps=(replace(stage.steps[0], combine="mean"),))
    merged = Pruner(mean).select(signals).merge[0] @ values
    for carrier, group in groups.items():
        np.testing.assert_allclose(merged[carrier], values[group].mean(0), atol=1e-5)


@dataclass(frozen=True)
class WorstOfEach(SubsetSolver):
    """The smallest scores of every group."""

    name: ClassVar[str] = "worst_of_each"
    kinds: ClassVar[frozenset[str]] = frozenset({"quota"})
    tags: ClassVar[frozenset[str]] = frozenset({"exact_budget"})

    def solve(self, problem):
        return QuotaTopK().solve(replace(problem, unary=-problem.unary))


def test_the_solver_decides_what_a_cluster_keeps() -> None:
    signals = vitcop_case(0, 1.0)
    stage = load_spec("vitcop", ["stages.1.budget.keep=30"]).stages[1]
    best = Pruner(stage).select(signals)
    worst = Pruner(replace(stage, solver=WorstOfEach())).select(signals)
    assert worst.known_counts == best.known_counts == (30,)
    assert int((best.keep & worst.keep).sum()) < 25
    solution = best.solution
    assert float(solution.value[0]) == pytest.approx(float(solution.upper_bound[0]))


def test_merging_groups_needs_groups() -> None:
    with pytest.raises(SpecError, match=r"problem\.kind is top_k"):
        load_spec("fastv", ["steps=[{kind: merge_groups}]"])


def test_errors_of_misfits_are_one_kind() -> None:
    with pytest.raises(
        PruneoptError, match=r"crop_allocation: budget.rule.retention is 0.25 and budget.keep"
    ):
        load_spec("globalcom2", ["budget.rule.retention=0.25", "budget.keep=0.5"])
