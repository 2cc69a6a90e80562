"""The worked checks of the method cards, on the formula-generated inputs that the cards give."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from pruneopt.problems.selection import Selection
from pruneopt.pruner import Pruner, select
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec


def unit(c: int, *shape: int) -> torch.Tensor:
    """`U(c)` of the cards: numbers in [0,1) from a sine, leading axes flattened into rows."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    i = np.arange(1, rows + 1)[:, None]
    j = np.arange(1, columns + 1)[None, :]
    values = 43758.5453 * np.abs(np.sin(12.9898 * i + 78.233 * j + 37.719 * (c + 1)))
    return torch.from_numpy((values - np.floor(values)).astype(np.float32)).view(*shape)


def signed(c: int, *shape: int) -> torch.Tensor:
    """`Z(c)` of the cards: `2 U(c) - 1`."""
    return 2 * unit(c, *shape) - 1


def run(method: str, tensors: dict[str, torch.Tensor], *overrides: str, stage: int = 0) -> Selection:
    return select(load_spec(method, overrides), Signals(tensors), stage=stage)


def kept(chosen: Selection) -> list[int]:
    return chosen.indices[0].tolist()


V = torch.tensor([[1, 0], [0.9, 0.1], [0, 1], [-1, 0], [0.6, 0.8], [0, -2]])
PROMPT = torch.tensor([[1, 0.2], [0.8, -0.2]])


def test_the_generator_is_the_cards() -> None:
    wanted = [0.562316, 0.764266, 0.364251, 0.055005]
    np.testing.assert_allclose(unit(0, 4, 4)[0], wanted, atol=1e-6)


def test_fastervlm() -> None:
    chosen = run("fastervlm", {"cls_attention": unit(0, 1, 2, 24)}, "budget.keep=6")
    assert kept(chosen) == [4, 10, 11, 17, 19, 22]


def test_divprune() -> None:
    features = signed(1, 1, 24, 8)
    chosen = run("divprune", {"features": features}, "budget.keep=0.25")
    assert chosen.solution.order[0].tolist() == [5, 3, 15, 7, 13, 0]
    assert kept(chosen) == [0, 3, 5, 7, 13, 15]
    assert float(chosen.solution.value[0]) == pytest.approx(0.7895, abs=1e-4)


def test_divprune_never_repeats_a_token() -> None:
    rows = torch.ones(1, 10, 4)
    rows[0, 0] = torch.tensor([1.0, -1, 0, 0])
    chosen = run("divprune", {"features": rows}, "budget.keep=0.5")
    assert kept(chosen)[0] == 0 and len(kept(chosen)) == 5


@pytest.mark.parametrize(
    ("solver", "wanted"),
    [
        ({"kind": "dart_pivots", "prefix": 3}, [3, 4, 6, 7, 8, 11, 13, 14, 18, 20]),
        ({"kind": "pivot"}, [4, 6, 7, 8, 11, 12, 13, 14, 18, 20]),
    ],
)
def test_dart(solver: dict, wanted: list[int]) -> None:
    hidden, keys = signed(2, 1, 34, 8), signed(3, 1, 34, 8).view(1, 34, 2, 4).transpose(1, 2)
    span, tail = slice(3, 27), slice(27, 34)
    tensors = {
        "hidden_normed": hidden[:, span],
        "text_hidden_normed": hidden[:, tail],
        "keys": keys[:, :, span],
        "text_keys": keys[:, :, tail],
        "text_mask": torch.ones(1, 7, dtype=torch.bool),
    }
    chosen = run(
        "dart",
        tensors,
        "budget.keep=10",
        *(f"solver.{key}={value}" for key, value in solver.items()),
        "solver.pivots=2",
        "solver.text_pivots=2",
    )
    assert sorted((chosen.solution.stats["pivots"][0] + 3).tolist()) == [7, 11]
    assert [i + 3 for i in kept(chosen)] == wanted


def test_visionzip_release() -> None:
    hidden, metric = signed(4, 1, 25, 4), signed(6, 1, 25, 4)
    tensors = {
        "features": hidden[:, 1:],
        "cls_attention": unit(5, 2, 25)[None, :, 1:],
        "encoder_keys": metric[:, None, 1:],
    }
    chosen = run("visionzip/release", tensors, "budget.keep=10", "problem.protect.share=0.7")
    protected = chosen.solution.problem.protected[0].nonzero().squeeze(1)
    assert [0, *(protected + 1).tolist()] == [0, 1, 8, 11, 15, 17, 20, 21]
    contextual = chosen.index()[0, 7:]
    assert (contextual + 1).tolist() == [2, 7, 14]  # counted with CLS in front
    wanted = [
        [-0.8886, -1.3102, -0.9304, 0.9454],
        [0.4167, -0.5983, 0.1043, 0.2562],
        [-0.9394, -0.6373, 0.0718, 0.7829],
    ]
    rows = (chosen.merge @ hidden[:, 1:])[0, contextual]
    np.testing.assert_allclose(rows, wanted, atol=1e-4)


def test_saint_bipartite() -> None:
    chosen = run(
        "saint/release",
        {"keys": signed(7, 1, 25, 4)[:, None]},
        "insertion.layer=8",
        "budget.rule.threshold=0.5",
        "budget.rule.degree=3",
    )
    assert sorted(set(range(25)) - set(kept(chosen))) == [6, 8, 12, 22, 24]


def test_saint_full_graph() -> None:
    keys = signed(8, 1, 24, 4)
    chosen = run(
        "saint/encoder_release", {"encoder_keys@19": keys[:, None]}, "budget.keep=10", "solver.divisor=4"
    )
    assert kept(chosen) == [0, 1, 2, 4, 5, 7, 10, 12, 14, 20]


def test_saint_release_steps() -> None:
    spec = load_spec("saint/encoder_release")
    sizes, n = [], 576
    for drop in spec.stages[0].solver.plan(576, 375):
        n -= drop
        sizes.append(n)
    assert sizes == [540, 525, 490, 476, 442, 429, 396, 384, 375]


def test_prumerge_release() -> None:
    q, k, h = 6 * signed(10, 1, 49, 4), 6 * signed(11, 1, 49, 4), signed(12, 1, 49, 4)
    tensors = {
        "features": h[:, 1:],
        "cls_query@-1": q[:, None, 0],
        "cls_key@-1": k[:, None, 0],
        "encoder_keys@-1": k[:, None, 1:],
    }
    chosen = run("prumerge/release", tensors)
    order = chosen.index()[0]
    assert order[:-1].tolist() == [8, 44, 32, 37, 25, 42, 11, 0, 46, 4]
    first = (chosen.merge @ h[:, 1:])[0, order[0]]
    np.testing.assert_allclose(first, [-0.6076, 0.6058, -0.2649, -0.4013], atol=1e-4)


def test_cdpruner_release() -> None:
    tensors = {
        "features": signed(13, 1, 24, 32),
        "clip_features": signed(14, 1, 24, 6),
        "clip_text": signed(15, 2, 6)[None],
    }
    assert kept(run("cdpruner/release", tensors, "budget.keep=6")) == [8, 12, 16, 19, 20, 21]


def test_visiondrop_stage() -> None:
    q, k = 2 * signed(16, 1, 2, 20, 4), 2 * signed(17, 1, 2, 20, 4)
    future = torch.ones(20, 20, dtype=torch.bool).triu(1)
    attention = ((q @ k.transpose(2, 3)) / 2).masked_fill(future, -torch.inf).softmax(3)
    span = slice(3, 15)
    tensors = {
        "features": signed(18, 1, 12, 4),
        "lookahead_visual": attention[:, :, span, span],
        "lookahead_keys": k[:, :, span],
    }
    chosen = run(
        "visiondrop/release",
        tensors,
        "stages.1.budget.keep=6",
        "stages.1.problem.protect.share=0.66666667",
        stage=1,
    )
    protected = chosen.solution.problem.protected[0].nonzero().squeeze(1).tolist()
    assert protected == [0, 1, 3, 4]
    targets = [i for i in kept(chosen) if i not in protected]
    assert targets == [2, 8]
    member = chosen.merge[0][torch.tensor(targets)] > 0
    homes = {j: targets[int(member[:, j].nonzero()[0, 0])] for j in (5, 6, 7, 9, 10, 11)}
    assert homes == {5: 8, 6: 2, 7: 8, 9: 2, 10: 2, 11: 2}


@pytest.mark.parametrize(("tau", "keep", "wanted"), [(0.9, 3, [0, 4, 5]), (0.5, 5, [0, 5, 2, 3, 1])])
def test_greedyprune(tau: float, keep: int, wanted: list[int]) -> None:
    tensors = {
        "hidden_out": V[None],
        "text_features": torch.tensor([[[9.0, 9], [0.8, -0.2]]]),
        "text_mask": torch.ones(1, 2, dtype=torch.bool),
    }
    chosen = run("greedyprune", tensors, f"budget.keep={keep}", f"problem.threshold={tau}")
    np.testing.assert_allclose(
        chosen.importance[0], [0.9701, 0.9374, -0.2425, -0.9701, 0.3881, 0.2425], atol=1e-4
    )
    assert kept(chosen) == sorted(wanted)
    order = chosen.solution.order[0].tolist()
    assert order == wanted if tau == 0.5 else set(order) == set(wanted)


def test_todre_pivot_walk() -> None:
    attention = torch.zeros(1, 1, 6)
    attention[0, 0, 4] = 1
    chosen = run("todre/diversity", {"features": V[None], "cls_attention@-1": attention}, "budget.keep=4")
    assert chosen.solution.order[0].tolist() == [4, 5, 3, 1]


def test_zspaprune() -> None:
    tensors = {
        "features": V[None],
        "text_embeddings": PROMPT[None],
        "text_mask": torch.ones(1, 2, dtype=torch.bool),
    }
    chosen = run("zspaprune", tensors, "budget.keep=4", "problem.protect.share=0.5")
    assert kept(chosen) == [0, 1, 3, 5]
    assert chosen.solution.problem.protected[0].nonzero().squeeze(1).tolist() == [0, 1]


def test_trimtokenator() -> None:
    tensors = {
        "features": V[None],
        "text_embeddings": PROMPT[None],
        "text_mask": torch.ones(1, 2, dtype=torch.bool),
    }
    first = run("trimtokenator", tensors, "stages.0.budget.keep=5")
    np.testing.assert_allclose(first.importance[0], [-0.06, -0.06, -1.86, -3.66, -0.78, -4.86], atol=1e-5)
    assert kept(first) == [0, 1, 2, 3, 4]
    spec = load_spec("trimtokenator", ["stages.1.budget.keep=2"])
    rest = Pruner(spec.stages[1]).select(Signals({"features": V[None, :5]}), start=[6])
    assert rest.solution.order[0].tolist() == [3, 0]


def test_vitcop_keeps_exactly_its_budget() -> None:
    torch.manual_seed(0)
    side = 17
    n = side * side
    xy = torch.stack([torch.arange(n) % side, torch.arange(n) // side], 1)[None]
    for scale in (0.05, 1.0, 20.0):
        tensors = {
            "keys": torch.randn(1, 4, n, 8),
            "encoder_keys": scale * torch.randn(1, 4, n, 8),
            "xy": xy,
            "grid": torch.full((1, n, 2), side),
        }
        for keep in (253, 60, 5):
            spec = load_spec("vitcop", [f"stages.1.budget.keep={keep}"])
            chosen = Pruner(spec.stages[1]).select(Signals(tensors), start=[576])
            assert int(chosen.keep.sum()) == keep
            rows = chosen.merge[0][chosen.keep[0]]
            assert bool(((rows.sum(1) - 1).abs() < 1e-4).logical_or((rows.sum(1) - 2).abs() < 1e-4).all())


def test_transprune_schedule_is_the_cards() -> None:
    spec = load_spec("transprune")
    cuts = [(s.insertion.layer_index, s.budget.count(576, 576)) for s in spec.stages]
    assert cuts == [(7, 504), (9, 360), (12, 72)]


def test_sparsevlm_counts_are_the_cards() -> None:
    spec = load_spec("sparsevlm/release")
    kept_and_merged = []
    alive = 576
    for stage in spec.stages:
        plain = stage.budget.count(576, alive)
        alive = stage.steps[0].count(plain, alive)
        kept_and_merged.append(alive)
    assert kept_and_merged == [309, 204, 113]
    mean = (2 * 576 + 4 * 309 + 9 * 204 + 17 * 113) / 32
    assert mean == pytest.approx(192.03, abs=0.01)


@pytest.mark.parametrize(
    ("method", "tokens", "wanted", "merged", "average"),
    [
        ("sparsevlm/release", 128, [303, 110, 36], [312, 117, 39], 128.63),
        ("sparsevlm/release", 96, [238, 48, 26], [249, 55, 27], 96.94),
        ("sparsevlm/release", 64, [66, 30, 17], [82, 32, 18], 64.81),
        ("sparsevlm/plus", 128, [238, 108, 60], [238, 108, 60], None),
        ("sparsevlm/plus", 96, [246, 54, 28], [246, 54, 28], None),
        ("sparsevlm/plus", 64, [66, 34, 20], [66, 34, 20], None),
    ],
)
def test_budgets_that_sparsevlm_declares_are_the_cards(
    method: str, tokens: int, wanted: list[int], merged: list[int], average: float | None
) -> None:
    told = load_spec(method).meta["deviations"]["budgets"]
    lists = re.findall(r"\[[\d.,]+\]", told)
    assert len(lists) == 3
    kept, alive, layers = [], 576, []
    for stage in load_spec(method, [f"budget.keep={lists[[128, 96, 64].index(tokens)]}"]).stages:
        plain = stage.budget.count(576, alive)
        kept.append(plain)
        alive = stage.steps[0].count(plain, alive) if stage.steps else plain
        layers.append(alive)
    assert kept == wanted and layers == merged
    if average is not None:
        mean = (2 * 576 + 4 * layers[0] + 9 * layers[1] + 17 * layers[2]) / 32
        assert mean == pytest.approx(average, abs=0.01)


def test_topv_for_internvl_differs_in_two_numbers() -> None:
    ours, base = load_spec("topv/internvl").to_spec(), load_spec("topv").to_spec()
    assert ours["problem"]["cost"]["centre"].pop("weight") == 0.1
    assert base["problem"]["cost"]["centre"].pop("weight") == 0.01
    assert ours["steps"][0].pop("interval") == 3 and base["steps"][0].pop("interval") == 4
    assert {k: v for k, v in ours.items() if k not in ("name", "meta")} == {
        k: v for k, v in base.items() if k not in ("name", "meta")
    }


def test_saint_hybrid_is_its_two_halves() -> None:
    def cuts(spec: Spec) -> list[Any]:
        return [{**stage.to_spec(), "positions": spec.positions_at(stage)} for stage in spec.stages]

    hybrid = load_spec("saint/hybrid")
    assert cuts(hybrid) == cuts(load_spec("saint/encoder_release")) + cuts(load_spec("saint/release"))
    stages = hybrid.stages
    assert stages[0].budget.count(576, 576) == 375
    assert [s.insertion.layer_index for s in stages[1:]] == list(range(8, 18))


@pytest.mark.parametrize(
    ("name", "afresh"),
    [
        ("vflowopt", {0}), ("vflowopt/quarter", {0}), ("vflowopt/tenth", {0}), ("saint/hybrid", {0}),
        ("aim", {0, 1}), ("aim/llava", {0, 1}), ("vitcop", {0, 2}), ("vitcop/release", {0, 2}),
    ],
)  # fmt: skip
def test_tokens_are_numbered_afresh_at_the_cuts_of_the_released_code(name: str, afresh: set[int]) -> None:
    spec = load_spec(name)
    policies = [spec.positions_at(stage) for stage in spec.stages]
    assert {n for n, policy in enumerate(policies) if policy == "compact"} == afresh
    assert "positions" not in spec.meta["deviations"]


def test_globalcom2_without_cls_scores_by_the_mean() -> None:
    part = load_spec("globalcom2/mean").stages[0].problem.scores[1].part
    rows = signed(2, 1, 10, 4)
    mask = torch.tensor([[True] * 6 + [False] * 4])
    score = part(Signals({"encoder_features": rows}, mask))[0, :6]
    mean = rows[0, :6].mean(0)
    for i in range(6):
        x = rows[0, i]
        assert float(score[i]) == pytest.approx(-float(x @ mean / (x.norm() * mean.norm())), abs=1e-6)


def test_the_pivot_of_todre_reads_the_last_encoder_layer() -> None:
    for method in ("todre", "todre/v1", "todre/diversity"):
        spec = load_spec(method)
        assert "cls_attention@-1" in spec.needs and "cls_attention" not in spec.needs


def test_pyramiddrop_counts_are_the_cards() -> None:
    for method in ("pyramiddrop", "pyramiddrop/release"):
        alive, counts = 576, []
        for stage in load_spec(method).stages:
            alive = stage.budget.count(576, alive)
            counts.append(alive)
        assert counts == [288, 144, 72]


def test_todre_gate_drops_all_or_nothing() -> None:
    attention = torch.full((2, 2, 3, 6), 0.05)
    attention[1] = 0.01
    tensors = {
        "features": V.expand(2, 6, 2),
        "attention_text": attention,
        "text_mask": torch.ones(2, 3, dtype=torch.bool),
    }
    chosen = run("todre", tensors, stage=1)
    assert chosen.known_counts == (6, 0)
