"""Parts that turn one kind of part into another: values against formulas in NumPy, sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pruneopt.errors import CostBlindReadoutWarning, ProblemError, SpecError
from pruneopt.parts import Part
from pruneopt.parts._ledger import Ledger, once, opened
from pruneopt.parts.steps.merge_by_plan import MergeByPlan
from pruneopt.problems.selection import Selection
from pruneopt.problems.solution import TransportSolution
from pruneopt.problems.transport import TransportProblem
from pruneopt.registry import registry
from pruneopt.signals import Signals
from pruneopt.testing import cases

LENGTHS = (12, 7)
TOPV = {
    "feature": {"kind": "feature_sq_l2", "normalize": "minmax"},
    "spatial": {"kind": "spatial_gaussian", "sigma": 2, "weight": 0.5},
    "centre": {"kind": "central_distance", "weight": 0.01},
}


def part(group: str, name: str, **params: Any) -> Part:
    return registry(group).get(name).from_spec(params)


def ragged(given: Part, seed: int = 0) -> tuple[Signals, Tensor]:
    """Two samples whose padding stands between their tokens, and the places of the real ones."""
    signals, old = cases.spread(
        cases.make_signals(given.needs, lengths=LENGTHS, seed=seed, tokens=14), "above"
    )
    return signals, old >= 0


def call(given: Part, signals: Signals) -> Tensor:
    return given(signals.view(given.needs))


def each_sample(given: Part, signals: Signals, real: Tensor):
    """What the part gives at real tokens, and the signals of the sample alone, in NumPy."""
    out = call(given, signals).double()
    for b in range(2):
        here = real[b].nonzero().squeeze(1)
        found = out[b, here] if out.dim() == 2 else out[b, here][:, here]
        alone = {name: signals[name][b].numpy().astype(float)[real[b].numpy()] for name in given.needs}
        yield found.numpy(), alone


def topv_cost(s: dict[str, np.ndarray]) -> np.ndarray:
    apart = ((s["hidden_in"][:, None] - s["post_attention_norm"][None]) ** 2).sum(2)
    apart = (apart - apart.min()) / (apart.max() - apart.min())
    near = 1 - np.exp(-((s["xy"][:, None] - s["xy"][None]) ** 2).sum(2) / 8)
    centre = np.linalg.norm(s["xy"] - (s["grid"] - 1) / 2, axis=1)
    return apart + 0.5 * near + 0.01 * centre[:, None]


@pytest.mark.parametrize("h", [0.25, "median"])
def test_a_kernel_of_topvs_cost_is_the_formula(h: float | str) -> None:
    given = part("kernels", "from_cost", cost=TOPV, h=h)
    for found, s in each_sample(given, *ragged(given)):
        cost = topv_cost(s)
        cost = (cost + cost.T) / 2
        pairs = np.sort(cost[~np.eye(len(cost), dtype=bool)])
        width = pairs[(len(pairs) - 1) // 2] if h == "median" else h
        np.testing.assert_allclose(found, np.exp(-cost / width), rtol=2e-5)
        assert (found == found.T).all()


def test_a_median_that_is_not_above_zero_is_one() -> None:
    given = part("kernels", "from_cost", cost={"a": {"kind": "cosine_distance", "weight": -1}})
    features = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    out = call(given, Signals({"features": features}))
    unit = features / features.norm(dim=2, keepdim=True)
    torch.testing.assert_close(out, (1 - unit @ unit.mT).exp())
    single = call(given, Signals({"features": features[:, :1]}))
    torch.testing.assert_close(single, torch.ones(2, 1, 1))


def test_a_ridge_makes_any_kernel_psd_and_no_other_entry_changes() -> None:
    plain = part("kernels", "from_cost", cost=TOPV, h=0.5)
    repaired = part("kernels", "from_cost", cost=TOPV, h=0.5, repair="ridge")
    signals, real = ragged(plain, seed=3)
    rows = zip(each_sample(plain, signals, real), each_sample(repaired, signals, real), strict=True)
    for (before, _), (after, _) in rows:
        low = np.linalg.eigvalsh(before)[0]
        assert low < -1e-3  # the case needs a repair
        assert np.linalg.eigvalsh(after)[0] > -1e-6
        off = after - before
        np.testing.assert_allclose(np.diag(off), -low, rtol=1e-4)
        assert (off[~np.eye(len(off), dtype=bool)] == 0).all()


def test_a_cost_of_a_kernel_is_the_squared_distance_of_its_features() -> None:
    kernels = {"a": {"kind": "cosine", "weight": 2}, "b": {"kind": "cosine", "signal": "hidden_in"}}
    given = part("costs", "from_kernel", kernels=kernels)
    for found, s in each_sample(given, *ragged(given)):
        one, two = (s[n] / np.linalg.norm(s[n], axis=1, keepdims=True) for n in ("features", "hidden_in"))
        rows = np.concatenate([np.sqrt(2) * one, two], 1)
        np.testing.assert_allclose(found, ((rows[:, None] - rows[None]) ** 2).sum(2), atol=2e-6)


def test_scores_and_unary_costs_turn_into_each_other_with_their_sign() -> None:
    scores = {"n": {"kind": "token_norm", "weight": -3, "normalize": "max"}, "r": "random"}
    cost = part("costs", "from_score", scores=scores)
    back = part("scores", "from_cost", cost={"c": {"kind": "from_score", "scores": scores}})
    assert cost.shape == "unary" and not cost.symmetric
    signals, real = ragged(cost)
    noise = part("scores", "random")
    drawn = call(noise, signals)
    for b, (found, s) in enumerate(each_sample(cost, signals, real)):
        norm = np.linalg.norm(s["features"], axis=1)
        wanted = 3 * norm / norm.max() - drawn[b, real[b]].numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(call(back, signals), -call(cost, signals))


def test_a_pairwise_cost_is_no_score_and_says_what_is() -> None:
    with pytest.raises(SpecError) as caught:
        part("scores", "from_cost", cost={"c": "cosine_distance"})
    assert str(caught.value) == (
        "from_cost.cost.c: cosine_distance is no unary cost, and ranks no token by itself; write the score "
        "transport, {kind: transport, cost: {...}, readout: ...}"
    )


def test_mass_from_scores_is_the_share_or_the_softmax() -> None:
    share = part("marginals", "from_score")
    for found, s in each_sample(share, *ragged(share)):
        norm = np.linalg.norm(s["features"], axis=1)
        np.testing.assert_allclose(found, norm / norm.sum(), rtol=1e-5)
    soft = part("marginals", "from_score", how="softmax", temperature=0.5)
    for found, s in each_sample(soft, *ragged(soft)):
        raised = np.exp(2 * np.linalg.norm(s["features"], axis=1))
        np.testing.assert_allclose(found, raised / raised.sum(), rtol=1e-5)
    flat = call(share, Signals({"features": torch.zeros(1, 4, 3)}))
    assert flat.tolist() == [[0.25] * 4]


def test_a_negative_share_is_refused_and_never_moved() -> None:
    wrong = {"kind": "from_score", "scores": {"n": {"kind": "token_norm", "weight": -1}}}
    given = part("scores", "transport", marginals={"source": wrong})
    signals = cases.make_signals(given.needs)
    mass = part("marginals", "from_score", scores=wrong["scores"])
    assert call(mass, signals).isnan().all()  # where nobody looks it stays visible
    with (
        opened(Ledger(check=True)),
        pytest.raises(ProblemError, match="a has a negative or non-finite entry"),
    ):
        call(given, signals)


def test_a_transport_score_is_the_readout_of_the_plan_and_writes_it_down() -> None:
    given = part(
        "scores",
        "transport",
        cost=TOPV,
        marginals={"target": {"kind": "token_norm", "signal": "hidden_in"}},
        solver={"kind": "one_sided", "epsilon": 0.5, "epsilon_scale": "absolute"},
        readout="row_sum",
    )
    signals, real = ragged(given)
    laps: list[str] = []
    with opened(Ledger(lap=laps.append)) as book:
        rows = list(each_sample(given, signals, real))
    for found, s in rows:
        weight = np.exp(-topv_cost(s) / 0.5)
        norm = np.linalg.norm(s["hidden_in"], axis=1)
        wanted = (weight / weight.sum(0) * (norm / norm.sum())).sum(1)
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert laps == ["cost", "solve", "readout"] and book.notes == []
    ((who, solution),) = book.solved
    assert who is given and isinstance(solution, TransportSolution) and solution.solver == "one_sided"


def test_a_blind_readout_warns_and_notes_wherever_the_score_stands() -> None:
    given = part("scores", "transport", readout="row_sum")
    with opened(Ledger()) as book, pytest.warns(CostBlindReadoutWarning, match="row_sum cannot depend"):
        call(given, cases.make_signals(given.needs))
    assert len(book.notes) == 1


def test_targets_may_be_external_points_and_absent_ones_get_nothing() -> None:
    given = part(
        "scores",
        "transport",
        cost={"text": {"kind": "text_pivots", "count": 2}},
        solver={"kind": "one_sided", "epsilon": 0.5, "epsilon_scale": "absolute"},
        readout="row_sum",
    )
    signals = cases.make_signals(given.needs, lengths=(9, 6), text=4)
    pivots = part("costs", "text_pivots", count=2)
    rows = call(pivots, signals)
    with opened(Ledger(check=True)) as book:
        out = call(given, signals)
    assert book.solved[0][1].plan.shape == (2, 12, 4)
    for b, n in enumerate((9, 6)):
        cost = np.stack([row[:n].numpy() for row in rows[b] if row.isfinite().all()], 1)
        assert cost.shape == (n, 2)
        weight = np.exp(-cost / 0.5)
        np.testing.assert_allclose(out[b, :n], (weight / weight.sum(0) / 2).sum(1), rtol=1e-4)


def test_targets_of_two_sorts_and_masses_of_the_wrong_sort_are_refused() -> None:
    with pytest.raises(SpecError, match="mixes targets: t reach external points"):
        part("scores", "transport", cost={"t": "text_pivots", "c": "cosine_distance"})
    with pytest.raises(SpecError, match="target is token_norm, a mass of tokens"):
        part("scores", "transport", cost={"t": "text_pivots"}, marginals={"target": "token_norm"})


# -- merging by the plan -------------------------------------------------------------------------------------


def planned(keep: Tensor, plan: Tensor, **more: Any) -> Selection:
    problem = TransportProblem.build(torch.zeros(plan.shape))
    solution = TransportSolution(0.0, {}, problem, plan)
    return Selection(keep, evidence={"problem": solution, **more})


def test_dropped_tokens_go_where_the_plan_sends_them() -> None:
    g = torch.Generator().manual_seed(0)
    keep = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 1, 0]]).bool()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    plan, size = torch.rand(2, 5, 5, generator=g), torch.randint(1, 4, (2, 5), generator=g).float()
    plan[0, 4, [0, 2]] = 0  # sends kept tokens nothing
    signals = Signals({"size": size}, mask)
    for carry in (False, True):
        out = MergeByPlan(carry=carry)(planned(keep, plan), signals)
        assert torch.equal(out.keep, keep)
        for b in range(2):
            kept = keep[b].nonzero().squeeze(1).tolist()
            for j in kept:
                own = size[b, j].item() if carry else 1.0
                row = {j: own}
                for i in range(5):
                    total = sum(plan[b, i, t].item() for t in kept)
                    if mask[b, i] and not keep[b, i] and total > 0:
                        row[i] = plan[b, i, j].item() / total * (size[b, i].item() if carry else 1.0)
                whole = sum(row.values())
                wanted = [row.get(i, 0.0) / whole for i in range(5)]
                assert out.merge[b, j].tolist() == pytest.approx(wanted, abs=1e-6)
                assert out.size[b, j].item() == pytest.approx(whole, abs=1e-5)


def test_all_that_is_sent_arrives() -> None:
    """Without tokens that send nothing the sizes sum to the real tokens."""
    g = torch.Generator().manual_seed(1)
    keep = torch.rand(3, 8, generator=g) < 0.5
    keep[:, 0] = True
    signals = Signals({"size": torch.ones(3, 8)})
    out = MergeByPlan()(planned(keep, torch.rand(3, 8, 8, generator=g) + 0.1), signals)
    assert (out.size * keep).sum(1).tolist() == pytest.approx([8.0] * 3, abs=1e-4)


def test_a_step_without_its_plan_says_what_to_do() -> None:
    keep, signals = torch.ones(1, 3).bool(), Signals({"size": torch.ones(1, 3)})
    with pytest.raises(SpecError, match=r"reads one plan and found 0; set problem.kind=transport, or give"):
        MergeByPlan()(Selection(keep), signals)
    two = planned(keep, torch.rand(1, 3, 3), other=planned(keep, torch.rand(1, 3, 3)).evidence["problem"])
    with pytest.raises(SpecError, match="found 2"):
        MergeByPlan()(two, signals)
    assert MergeByPlan(of="other")(two, signals).size.shape == (1, 3)
    with pytest.raises(SpecError, match="reaches 2 external points"):
        MergeByPlan()(planned(keep, torch.rand(1, 3, 2)), signals)


def test_what_several_parts_read_is_computed_once_a_selection() -> None:
    one, two, calls = torch.zeros(2), torch.zeros(2), []

    def make() -> int:
        calls.append(None)
        return len(calls)

    with opened(Ledger()):
        assert [once(make, "sum", of=(one,)) for _ in range(3)] == [1, 1, 1]
        assert once(make, "sum", of=(two,)) == 2 and once(make, "mean", of=(one,)) == 3
        assert once(make, "sum", of=(one, two)) == 4 and once(make, "sum", of=(one,)) == 1
    assert [once(make, "sum", of=(one,)) for _ in range(2)] == [5, 6]  # nobody keeps a ledger here
