"""The pruner: grouping, counting, composing."""

from __future__ import annotations

import pytest
import torch

from pruneopt.errors import ProblemError, SignalError, SpecError
from pruneopt.problems.selection import Selection
from pruneopt.pruner import combine, equal_quotas, join_groups, normalize, select, split_groups
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.tensors import keep_top

NORM = {
    "name": "norm",
    "insertion": "post_encoder",
    "budget": {"keep": 0.5},
    "problem": {"kind": "top_k", "scores": {"norm": {"kind": "token_norm"}}},
    "solver": "stable_top_k",
}


def signals(batch: int = 2, tokens: int = 9, mask: torch.Tensor | None = None, seed: int = 0) -> Signals:
    generator = torch.Generator().manual_seed(seed)
    side = 3
    xy = torch.stack([torch.arange(tokens) % side, torch.arange(tokens) // side], 1).float()
    return Signals(
        {
            "features": torch.randn(batch, tokens, 5, generator=generator),
            "xy": xy.expand(batch, -1, -1),
            "grid": torch.tensor([side, tokens // side]).expand(batch, tokens, 2),
        },
        mask,
    )


def test_select_keeps_the_largest_norms() -> None:
    data = signals()
    chosen = select(load_spec(NORM, ["budget.keep=4"]), data)
    expected = data["features"].norm(dim=2).topk(4, dim=1).indices.sort(1).values
    assert torch.equal(torch.stack(chosen.indices), expected)
    assert chosen.known_counts == (4, 4)
    assert torch.equal(chosen.index(), expected)


def test_ties_go_to_the_lower_index() -> None:
    importance = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0]])
    kept = keep_top(importance, torch.tensor([3]), mask=torch.ones(1, 5, dtype=torch.bool))
    assert kept.tolist() == [[True, True, False, True, False]]


def test_non_finite_signals_are_refused_and_name_the_sample() -> None:
    data = signals()
    data["features"][1, 3, 0] = torch.nan
    with pytest.raises(SignalError, match=r"'features' holds NaN or infinity in sample 1"):
        select(load_spec(NORM), data)


def test_groups_each_get_their_own_budget_and_come_back_in_place() -> None:
    data = signals(batch=2, tokens=9)
    groups = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1, 0, 1, 1]])
    chosen = select(load_spec(NORM, ["budget.rounding=floor"]), data, groups=groups)
    norms = data["features"].norm(dim=2)
    for sample in range(2):
        for number in (0, 1):
            members = (groups[sample] == number).nonzero().squeeze(1)
            k = max(1, len(members) // 2)
            best = members[norms[sample, members].argsort(descending=True)[:k]].sort().values
            kept = chosen.indices[sample]
            assert torch.equal(kept[groups[sample, kept] == number], best)
    assert chosen.known_counts == tuple(len(i) for i in chosen.indices)
    whole = select(load_spec(NORM, ["budget.scope=sample"]), data, groups=groups)
    assert whole.known_counts == (4, 4)


def test_split_and_join_are_inverse_even_with_padding_and_merges() -> None:
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 7:] = False
    data = signals(mask=mask)
    tensors = {name: data[name] for name in data}
    tensors["group"] = torch.tensor([[1, 0, 1, 0, 1, 0, 1, 0, 2]] * 2)
    grouped, place = split_groups(Signals(tensors, mask))
    assert grouped.batch == 3 + 2
    keep = grouped.mask.clone()
    identity = torch.eye(grouped.tokens).expand(grouped.batch, -1, -1)
    size = grouped["features"].sum(2)
    back = join_groups(
        Selection(keep, merge=identity, size=size), place, sample=grouped.sample, batch=2, tokens=9
    )
    assert torch.equal(back.keep, mask)
    real = mask[:, :, None] & mask[:, None, :]
    assert torch.equal(back.merge[real], torch.eye(9).expand(2, -1, -1)[real])
    assert torch.equal(back.size[mask], data["features"].sum(2)[mask])


def test_a_sample_is_chosen_the_same_alone_and_in_ragged_company() -> None:
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 6:] = False
    data = signals(mask=mask)
    both = select(load_spec(NORM), data)
    alone = select(load_spec(NORM), Signals({n: data[n][:1, :6] for n in data}))
    assert both.indices[0].tolist() == alone.indices[0].tolist()


def test_weight_zero_removes_a_summand_exactly_and_order_is_irrelevant() -> None:
    data = signals()
    two = {"a": {"kind": "token_norm"}, "b": {"kind": "uniform_grid", "weight": 0.5}}
    spec = load_spec({**NORM, "problem": {"kind": "top_k", "scores": two}})
    swapped = load_spec({**NORM, "problem": {"kind": "top_k", "scores": dict(reversed(two.items()))}})
    assert spec.hash == swapped.hash
    off = load_spec(spec, ["problem.scores.b.weight=0"])
    assert torch.equal(select(off, data).importance, data["features"].norm(dim=2))
    with_both = combine(spec.stages[0].problem.scores, data, pairwise=False)
    b = combine(spec.stages[0].problem.scores[1:], data, pairwise=False)
    assert torch.allclose(with_both, data["features"].norm(dim=2) + b)


@pytest.mark.parametrize("how", ["minmax", "sum", "max", "zscore", "l2"])
def test_normalising_ignores_scale_and_padding(how: str) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(2, 6, generator=generator) + 0.1
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    base = normalize(values, how, mask=mask)
    assert torch.allclose(normalize(values * 1000, how, mask=mask)[mask], base[mask], atol=1e-5)
    spoiled = values.masked_fill(~mask, 77.0)
    assert torch.equal(normalize(spoiled, how, mask=mask)[mask], base[mask])
    constant = normalize(torch.ones(1, 4), "minmax", mask=torch.ones(1, 4, dtype=torch.bool))
    assert constant.tolist() == [[0, 0, 0, 0]]


def test_quotas_are_proportional_with_largest_remainders() -> None:
    group = torch.tensor([[0] * 5 + [1] * 3 + [2] * 2])
    _, quota = equal_quotas(group, torch.ones(1, 10, dtype=torch.bool), k=torch.tensor([4]))
    assert quota.tolist() == [[2, 1, 1]]


def test_total_budgets_include_what_is_recovered() -> None:
    spec = load_spec({**NORM, "steps": [{"kind": "recover_every", "interval": 4}]})
    data = signals(batch=1, tokens=9)
    assert select(load_spec(spec, ["budget.keep=4"]), data).known_counts == (4 + 2,)
    assert select(load_spec(spec, ["budget.keep=4", "budget.total=true"]), data).known_counts == (4,)
    with pytest.raises(SpecError, match=r"budget\.total"):
        select(load_spec(spec, ["budget.keep=2", "budget.total=true"]), data)


def test_recovery_walks_the_pruned_in_index_order() -> None:
    features = torch.zeros(1, 12, 1)
    features[0, [1, 3, 5, 10]] = 1
    spec = load_spec({**NORM, "steps": [{"kind": "recover_every", "interval": 4}]}, ["budget.keep=4"])
    assert select(spec, Signals({"features": features})).indices[0].tolist() == [0, 1, 3, 5, 7, 10]


def test_budgets_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ProblemError, match="only 9 are left"):
        select(load_spec(NORM, ["budget.keep=10"]), signals())
    with pytest.raises(SpecError, match="no stage 1"):
        select(load_spec(NORM), signals(), stage=1)


STOPS = "{kind: greedy_conflict, on_shortfall: stop}"


@pytest.mark.parametrize("solver", ["milp", "brute_force", "local_search", STOPS])
def test_what_a_maximum_leaves_out_is_not_filled_up(solver: str) -> None:
    """Four tokens in two pairs of twins: at most three may be kept, and two fit."""
    twins = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 1.0]]])
    spec = load_spec(
        {
            "insertion": "post_encoder",
            "budget": {"keep": 3},
            "problem": {
                "kind": "independent_set",
                "threshold": 0.5,
                "scores": {"norm": {"kind": "token_norm"}},
                "pairwise": {"alike": {"kind": "cosine", "signal": "features"}},
            },
            "solver": "milp",
        },
        [f"solver={solver}"],
    )
    selection = select(spec, Signals({"features": twins}))
    assert selection.keep.tolist() == [[False, True, True, False]]
    assert selection.counts is None
