"""Independent witnesses for parts of the zoo: plain loops, closed forms, exhaustive search, planted bugs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pruneopt.errors import SignalError, SpecError
from pruneopt.parts.budgets.iqr_outliers import IQROutliers, masked_quantile
from pruneopt.parts.costs.cosine_distance import CosineDistance
from pruneopt.parts.scores.uniform_grid import UniformGridScore
from pruneopt.parts.solvers.backward_elimination import BackwardElimination
from pruneopt.parts.solvers.bipartite_elimination import BipartiteElimination
from pruneopt.parts.solvers.strided_fill import StridedFill
from pruneopt.problems.subset import SubsetProblem
from pruneopt.pruner import Pruner, select
from pruneopt.signals import Attention, Signals
from pruneopt.spec.load import list_methods, load_spec
from pruneopt.tensors import gram, unit_rows
from pruneopt.testing.cases import make_signals


def run(method: str, signals: Signals, *overrides: str, stage: int = 0):
    return select(load_spec(method, overrides), signals, stage=stage)


def test_blocked_gram_is_the_gram_matrix_and_symmetric() -> None:
    rows = torch.randn(2, 300, 7)
    product = gram(rows)
    np.testing.assert_allclose(product, rows @ rows.transpose(1, 2), atol=1e-5)
    assert bool((product == product.transpose(1, 2)).all())


def test_quantiles_are_numpys() -> None:
    values = torch.randn(3, 41)
    mask = torch.arange(41) < torch.tensor([41, 17, 2])[:, None]
    for q in (0.25, 0.75):
        wanted = [np.quantile(values[b, mask[b]].numpy(), q) for b in range(3)]
        np.testing.assert_allclose(masked_quantile(values, mask, q=q), wanted, rtol=1e-5)


def test_outliers_are_counted_above_the_fence_only() -> None:
    values = torch.tensor([[0.0, 1, 2, 3, 4, 100, -100]])
    signals = Signals({"features": torch.zeros(1, 7, 1)})
    count = IQROutliers()(signals, torch.tensor([3]), importance=values)
    assert count.tolist() == [1]  # -100 is far below, not above


@pytest.mark.parametrize("seed", range(3))
def test_bipartite_elimination_is_the_obvious_loop(seed: int) -> None:
    torch.manual_seed(seed)
    n, k, step = 21, 8, 3
    distance = CosineDistance()(Signals({"features": torch.randn(1, n, 5)}))
    score = torch.randn(1, n)
    forced = torch.zeros(1, n, dtype=torch.bool)
    forced[0, :2] = True
    problem = SubsetProblem.build("max_min", k, unary=score, pairwise=distance, protected=forced)
    found = BipartiteElimination(batch=step).solve(problem)
    left = [i for i in score[0].argsort(descending=True).tolist() if i > 1]
    while len(left) > k - 2:
        even, odd = left[0::2], left[1::2]
        near = {i: min(float(distance[0, i, j]) for j in odd) for i in even}
        ranked = sorted(even, key=lambda i: near[i])
        drop = min(step, len(left) - (k - 2), len(even))
        left = ranked[drop:] + odd
    assert found.keep[0].nonzero().squeeze(1).tolist() == sorted([0, 1, *left])


@pytest.mark.parametrize("reuse", [False, True])
def test_backward_elimination_is_the_obvious_loop(reuse: bool) -> None:
    torch.manual_seed(3)
    n, k, divisor = 30, 7, 4
    similar = unit_rows(torch.randn(n, 6)) @ unit_rows(torch.randn(n, 6)).T
    similar = (similar + similar.T) / 2
    problem = SubsetProblem.build("max_sum", k, pairwise=(1 - similar)[None])
    found = BackwardElimination(divisor=divisor, reuse=reuse).solve(problem)
    left = list(range(n))
    while len(left) > k:
        drop = max(1, min(len(left) - k, len(left) // divisor))
        divisor = drop if reuse else divisor
        total = {i: float(similar[i, left].sum()) for i in left}
        left = sorted(sorted(left, key=lambda i: total[i])[: len(left) - drop])
    assert found.keep[0].nonzero().squeeze(1).tolist() == left


def test_backward_elimination_leaves_a_gap_that_enumeration_sees() -> None:
    torch.manual_seed(0)
    distance = CosineDistance()(Signals({"features": torch.randn(1, 12, 3)}))
    problem = SubsetProblem.build("max_sum", 5, pairwise=distance)
    found = BackwardElimination(divisor=2).solve(problem)
    best = max(
        float(distance[0][list(s)][:, list(s)].sum()) / 2 for s in itertools.combinations(range(12), 5)
    )
    assert float(found.value[0]) <= best + 1e-6
    assert float(found.value[0]) > 0.8 * best


def test_strided_takes_every_sth_of_the_rest() -> None:
    forced = torch.zeros(1, 11, dtype=torch.bool)
    forced[0, [1, 4]] = True
    problem = SubsetProblem.build("top_k", 5, unary=torch.zeros(1, 11), protected=forced)
    assert StridedFill().solve(problem).keep[0].nonzero().squeeze(1).tolist() == [0, 1, 4, 5, 8]


def test_uniform_grid_is_the_obvious_loop() -> None:
    def inverse(t: int, base: int) -> float:
        out, scale = 0.0, 1 / base
        while t:
            out, t, scale = out + scale * (t % base), t // base, scale / base
        return out

    side = 5
    cell = torch.arange(side * side)
    xy = torch.stack([cell % side, cell // side], 1)
    signals = Signals({"xy": xy[None], "grid": torch.full((1, side * side, 2), side)})
    free, order = list(range(side * side)), []
    for t in range(1, side * side + 1):
        x, y = inverse(t, 2), inverse(t, 3)
        best = min(
            free,
            key=lambda i: round(((i % side + 0.5) / side - x) ** 2 + ((i // side + 0.5) / side - y) ** 2, 12),
        )
        free.remove(best)
        order.append(best)
    score = UniformGridScore()(signals)[0]
    assert score.argsort(descending=True, stable=True).tolist() == order


@pytest.mark.parametrize("method", ["avg_pool", "downsample"])
@pytest.mark.parametrize("keep", [2, 7, 16, 36, 64])
def test_pooling_keeps_the_count_and_the_mean(method: str, keep: int) -> None:
    side = 8
    cell = torch.arange(side * side)
    signals = Signals(
        {
            "features": torch.randn(1, side * side, 4),
            "xy": torch.stack([cell % side, cell // side], 1)[None],
            "grid": torch.full((1, side * side, 2), side),
        }
    )
    chosen = run(method, signals, f"budget.keep={keep}")
    assert chosen.known_counts == (keep,) == (int(chosen.keep.sum()),)
    rows = chosen.merge[0][chosen.keep[0]]
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)
    if keep == side * side:
        np.testing.assert_allclose(rows, torch.eye(keep), atol=1e-6)
    if keep == 16:  # whole 2 x 2 cells: plain average pooling
        picture = signals["features"].view(1, side, side, 4).permute(0, 3, 1, 2)
        wanted = torch.nn.functional.avg_pool2d(picture, 2)[0].flatten(1).T
        values = rows @ signals["features"][0]
        assert all(any(torch.dist(a, b) < 1e-5 for b in values) for a in wanted)


def test_pooling_refuses_a_grid_with_holes() -> None:
    signals = make_signals({"features", "xy", "grid"}, batch=1, tokens=12)
    grid = signals["grid"] + 1
    broken = Signals({"features": signals["features"], "xy": signals["xy"], "grid": grid})
    with pytest.raises(SignalError, match="whole grid"):
        run("avg_pool", broken, "budget.keep=4")


def test_windows_get_their_share_and_fastv_may_not() -> None:
    side, windows = 8, 4
    cell = torch.arange(side * side)
    xy = torch.stack([cell % side, cell // side], 1)[None]
    late = cell.float()[None, None] / 1e4  # attention grows towards the bottom
    signals = Signals(
        {
            "xy": xy,
            "grid": torch.full((1, side * side, 2), side),
            "group": torch.zeros(1, side * side, dtype=torch.int64),
            "attention_last": late,
        }
    )
    chosen = run("windowfastv", signals, "budget.keep=16")
    window = (xy[0, :, 1] * windows // side) * windows + xy[0, :, 0] * windows // side
    assert torch.bincount(window[chosen.keep[0]], minlength=16).tolist() == [1] * 16
    plain = run("fastv", signals, "budget.keep=16")
    assert int(xy[0, plain.keep[0], 1].min()) == 6  # only the last two rows


def test_protected_tokens_are_the_best_by_their_own_scores() -> None:
    signals = make_signals({"features", "text_embeddings", "text_mask"}, batch=2, tokens=20, lengths=[20, 13])
    chosen = run("zspaprune", signals, "budget.keep=8", "problem.protect.share=0.5")
    protected = chosen.solution.problem.protected
    assert protected.sum(1).tolist() == [4, 4]
    assert bool((protected <= chosen.keep).all()) and chosen.known_counts == (8, 8)


def test_protect_needs_scores_and_one_amount() -> None:
    spec = load_spec("divprune").to_spec()
    for bad, word in (
        ({"share": 0.5}, "scores"),
        ({"share": 0.5, "count": 1}, "either"),
        ({}, "either"),
        ({"share": 1.5, "scores": {"n": {"kind": "token_norm"}}}, "0 to 1"),
        ({"share": 0.5, "shares": 1}, "did you mean"),
    ):
        problem = {**spec["problem"], "protect": bad}
        if not bad:
            assert load_spec({**spec, "problem": problem}).stages[0].problem.protect is None
            continue
        with pytest.raises(SpecError, match=word):
            load_spec({**spec, "problem": problem})


@pytest.mark.parametrize("seed", range(4))
def test_the_dispersion_bound_with_a_core_holds_and_is_tight_when_the_core_decides(seed: int) -> None:
    torch.manual_seed(seed)
    distance = CosineDistance()(Signals({"features": torch.randn(1, 9, 4)}))
    forced = torch.zeros(1, 9, dtype=torch.bool)
    forced[0, [0, 1, 2]] = True
    problem = SubsetProblem.build("max_min", 4, pairwise=distance, protected=forced)

    def spread(chosen: tuple[int, ...]) -> float:
        return min(float(distance[0, i, j]) for i, j in itertools.combinations(chosen, 2))

    best = max(spread((0, 1, 2, j)) for j in range(3, 9))
    bound = problem.bound(forced)[0]
    assert best - 1e-6 <= float(bound) <= spread((0, 1, 2)) + 1e-6


def test_globalcom2_gives_a_brighter_crop_more() -> None:
    side = 4
    cell = torch.arange(side * side)
    xy = torch.stack([cell % side, cell // side], 1)
    thumb = torch.zeros(side, side)
    thumb[:2, 2:] = 8.0  # what the upper right crop shows
    local = torch.rand(4, side * side, generator=torch.Generator().manual_seed(0))
    tiles = [[-1, -1], [0, 0], [1, 0], [0, 1], [1, 1]]
    signals = Signals(
        {
            "cls_attention": torch.cat([thumb.flatten(), local.flatten()])[None, None],
            "xy": xy.repeat(5, 1)[None],
            "grid": torch.full((1, 5 * side * side, 2), side),
            "group": torch.arange(5).repeat_interleave(side * side)[None],
            "tile": torch.tensor(tiles).repeat_interleave(side * side, 0)[None],
        }
    )
    chosen = run("globalcom2", signals, "budget.keep=0.5", "budget.rule.temperature=2")
    counts = chosen.keep[0].view(5, -1).sum(1).tolist()
    assert counts[2] > counts[1] and counts[2] == max(counts[1:])
    even = run("globalcom2", signals, "budget.keep=0.5", "budget.rule.temperature=1e6")
    counts = even.keep[0].view(5, -1)[1:].sum(1)
    assert int(counts.max() - counts.min()) <= 1  # an exact n r may fall to the integer below


def test_merges_keep_mass_and_sizes_add_up() -> None:
    signals = make_signals({"features", "encoder_keys", "size"}, batch=2, tokens=18)
    chosen = run("tome", signals, "budget.keep=0.5", "steps.0.carry=true")
    assert chosen.size[chosen.keep].sum() == pytest.approx(float(signals["size"].sum()), rel=1e-5)
    back = (chosen.merge @ signals["features"] * chosen.size[:, :, None])[chosen.keep]
    front = signals["features"] * signals["size"][:, :, None]
    np.testing.assert_allclose(back.sum(0), front.sum((0, 1)), atol=1e-3)


def test_later_cuts_of_vflowopt_are_nested_in_the_first_map() -> None:
    spec = load_spec("vflowopt")
    importance = torch.randn(1, 40).abs()
    chosen = Pruner(spec.stages[1]).select(Signals({"importance": importance}), start=[576])
    best = importance[0].argsort(descending=True)[: int(chosen.keep.sum())]
    assert bool(chosen.keep[0, best].all()) and int(chosen.keep.sum()) == round(0.74875 * 40)


@pytest.mark.parametrize("method", [m for m in list_methods() if not m.startswith("codebook")])
def test_every_method_selects_and_no_sample_knows_its_neighbour(method: str) -> None:
    """Each stage runs on two samples; the second alone gives the same tokens."""
    for number, stage in enumerate(load_spec(method).stages):
        protect = stage.problem.protect
        halved = protect is not None and protect.where is not None  # each round of merging keeps half
        start = 16 * 2**number if halved else 16
        names = stage.needs | {"features", "xy", "grid", "group"}
        both = make_signals(names, batch=2, tokens=16, width=8, text=4, seed=3)
        chosen = Pruner(stage).select(both, start=[start, start])
        alone = Signals({name: both[name][1:] for name in both})
        single = Pruner(stage).select(alone, start=[start])
        assert bool((chosen.keep[1] == single.keep[0]).all()), (method, stage.insertion)
        assert chosen.known_counts == tuple(chosen.keep.sum(1).tolist())


def test_attention_needs_are_what_the_cards_say() -> None:
    none = {"divprune", "dart", "cdpruner", "greedyprune", "zspaprune", "trimtokenator", "saint", "tome",
            "transprune/ttv", "random", "uniform_grid", "avg_pool", "downsample", "token_norm", "aim/merge",
            "codebook", "saint/encoder"}  # fmt: skip
    full = {"aim", "aim/prune", "visiondrop", "fastv/received", "vflowopt"}
    row = {"fastv", "pyramiddrop", "sparsevlm", "transprune", "fastervlm", "vispruner", "visionzip",
           "globalcom2", "todre", "prumerge", "vitcop", "windowfastv"}  # fmt: skip
    for names, need in ((none, Attention.NONE), (row, Attention.ROW), (full, Attention.FULL)):
        assert {name: load_spec(name).attention for name in names} == dict.fromkeys(names, need)


def test_the_image_goes_when_the_walk_ends() -> None:
    spec = load_spec("aim/prune")
    kept = [s.budget.count(64, 64) for s in spec.stages[:-1]]
    assert kept == [math.floor(64 * (1 - i / 8)) for i in range(1, 8)]
    signals = make_signals({"attention_logits", "visual_index", "features"}, batch=1, tokens=8)
    last = Pruner(spec.stages[-1]).select(signals, start=[64])
    assert last.known_counts == (0,) and last.index().shape == (1, 0)
