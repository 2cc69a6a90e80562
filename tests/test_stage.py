"""One stage, part by part: what each part is asked, and what is made of its answer."""

from __future__ import annotations

import warnings

import pytest
import torch
from fixed_parts import (
    AddStep,
    FeatureScore,
    FixedCost,
    FixedGroups,
    FixedKernel,
    FixedMarginal,
    FixedReadout,
    FixedRule,
    FixedScore,
    LooseSolver,
    SpySolver,
    SpyTransport,
    bare,
    priced,
    scored,
    stage,
    top_k,
)

import pruneopt.pruner as pruner_module
from pruneopt.errors import CostBlindReadoutWarning, ProblemError, SignalError, SpecError
from pruneopt.problems.budget import Budget
from pruneopt.pruner import Clock, Pruner, select
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import ProblemSpec, Protect, Spec, StageSpec, Weighted

SCORES = torch.tensor([[3.0, 1, 4, 1, 5, 9], [2.0, 6, 5, 3, 5, 8]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0]]).bool()


def kept(selection: object) -> list[list[int]]:
    return [row.tolist() for row in selection.indices]  # type: ignore[attr-defined]


class FakeTime:
    """A clock that moves by 1, 2, 4, 8 ... seconds, one step a look."""

    def __init__(self) -> None:
        self.now, self.step = 0.0, 1.0

    def perf_counter(self) -> float:
        self.now, self.step = self.now + self.step, self.step * 2
        return self.now


def test_a_clock_adds_laps_of_the_same_name_and_waits_at_each_boundary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pruner_module, "time", FakeTime())
    waits: list[str] = []
    clock = Clock(lambda: waits.append("x"))
    assert waits == ["x"] and clock.seconds == {}
    for name in ("a", "b", "a"):
        clock.lap(name)
    assert clock.seconds == {"a": 2.0 + 8.0, "b": 4.0} and len(waits) == 4
    free = Clock()
    free.lap("c")
    assert free.seconds == {"c": 32.0}


def test_seconds_of_a_given_clock_go_on_over_stages_and_are_copied() -> None:
    clock = Clock()
    pruner = Pruner(stage(top_k(SCORES), steps=(AddStep(),)))
    first = pruner.select(bare(2, 6), clock=clock)
    assert sorted(first.seconds) == ["cost", "solve", "steps"]
    before = dict(first.seconds)
    second = pruner.select(bare(2, 6), clock=clock)
    assert first.seconds == before
    assert all(second.seconds[name] > before[name] for name in before)
    assert second.seconds == clock.seconds


def test_transport_is_timed_by_cost_solve_and_readout() -> None:
    assert sorted(moved(FixedReadout(SCORES))[0].seconds) == ["cost", "readout", "solve"]


def test_signals_that_a_stage_needs_must_be_there_before_anything_runs() -> None:
    needy = FixedScore(SCORES, reads=("xy", "grid"))
    pruner = Pruner(stage(ProblemSpec("top_k", scores=(Weighted("s", needy),))))
    with pytest.raises(SignalError, match="signal 'grid' is not available"):
        pruner.select(bare(2, 6))
    assert needy.seen == []


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_bad_signals_name_signal_and_first_sample_and_only_needed_ones_count(bad: float) -> None:
    xy, grid = torch.zeros(3, 6, 2), torch.zeros(3, 6, 2)
    xy[1, 5, 1] = xy[2, 0, 0] = grid[0, 0, 0] = bad
    scores = FixedScore(torch.ones(3, 6), reads=("features", "xy"))
    pruner = Pruner(stage(ProblemSpec("top_k", scores=(Weighted("s", scores),))))
    signals = bare(3, 6, xy=xy, grid=grid)
    with pytest.raises(SignalError) as caught:
        pruner.select(signals)
    assert str(caught.value) == (
        "signal 'xy' holds NaN or infinity in sample 1; nothing was pruned. "
        "Check the model's dtype (try float32 or bfloat16) and its inputs"
    )
    assert scores.seen == []
    assert pruner.select(signals, check=False).known_counts == (3, 3, 3)


def test_padding_may_hold_anything() -> None:
    xy = torch.zeros(2, 6, 2)
    xy[1, 0] = torch.nan
    scores = FixedScore(SCORES, reads=("xy",))
    chosen = Pruner(stage(ProblemSpec("top_k", scores=(Weighted("s", scores),)))).select(
        bare(2, 6, MASK, xy=xy)
    )
    assert kept(chosen) == [[2, 4], [1, 2]]


def test_counts_come_from_the_real_tokens_and_the_best_are_kept() -> None:
    spy = SpySolver()
    whole = Pruner(stage(top_k(SCORES), solver=spy)).select(bare(2, 6))
    assert kept(whole) == [[2, 4, 5], [1, 2, 5]] and whole.counts == (3, 3)
    ragged = Pruner(stage(top_k(SCORES), solver=spy, budget=Budget(0.5, "ceil"))).select(bare(2, 6, MASK))
    assert kept(ragged) == [[0, 2, 4], [1, 2]] and ragged.counts == (3, 2)
    assert [p.k.tolist() for p in spy.seen] == [[3, 3], [3, 2]]
    assert [p.counts for p in spy.seen] == [(3, 3), (3, 2)]
    assert spy.seen[0].mask is None and torch.equal(spy.seen[1].mask, MASK)
    assert torch.equal(ragged.importance, SCORES) and ragged.solution.problem is spy.seen[1]
    assert spy.seen[0].k.dtype == torch.int64


def test_budgets_relative_to_the_start_and_to_what_is_alive() -> None:
    given = stage(top_k(SCORES), budget=Budget(0.25))
    assert Pruner(given).select(bare(2, 6), start=[12, 20]).counts == (3, 5)
    now = stage(top_k(SCORES), budget=Budget(0.5, relative_to="current"))
    assert Pruner(now).select(bare(2, 6), start=[12, 20]).counts == (3, 3)


def test_the_start_is_shared_over_groups_in_proportion_and_rounded() -> None:
    """Groups of 2 and 4 tokens of a prompt that had 10: 3.33 and 6.67, hence 3 and 7, of which half."""
    group = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    signals = bare(2, 6, group=group)
    shares = Pruner._started(
        [10, 9], [2, 4, 6], signals=Signals({"xy": torch.zeros(3, 1, 2)}, sample=torch.tensor([0, 0, 1]))
    )
    assert shares == [3, 7, 9]
    assert Pruner._started(None, [2, 4], signals=signals) == [2, 4]
    split = FixedScore(torch.ones(3, 6))
    half = Pruner(stage(ProblemSpec("top_k", scores=(Weighted("s", split),)), budget=Budget(0.5, "ceil")))
    assert half.select(signals, start=[10, 9]).counts == (2 + 4, 5)
    assert half.select(signals).counts == (1 + 2, 3)


def test_groups_are_split_only_where_the_budget_holds_per_group_and_there_are_some() -> None:
    group = torch.tensor([[0, 1, 0, 1, 0, 1]])
    importance = torch.tensor([[9.0, 1, 8, 3, 7, 2]])
    per_group = FixedScore(torch.tensor([[9.0, 8, 7], [1.0, 3, 2]]))
    grouped = Pruner(stage(ProblemSpec("top_k", scores=(Weighted("s", per_group),)), budget=Budget(1 / 3)))
    chosen = grouped.select(bare(1, 6, group=group))
    assert kept(chosen) == [[0, 3]] and chosen.counts == (2,)
    assert chosen.importance.tolist() == importance.tolist()
    assert [view.batch for view in per_group.seen] == [2]
    whole = stage(top_k(importance), budget=Budget(1 / 3, scope="sample"))
    assert kept(Pruner(whole).select(bare(1, 6, group=group))) == [[0, 2]]
    assert kept(Pruner(stage(top_k(importance), budget=Budget(1 / 3))).select(bare(1, 6))) == [[0, 2]]


def test_a_solver_that_may_keep_another_number_leaves_the_counts_unknown() -> None:
    chosen = Pruner(stage(top_k(SCORES), solver=LooseSolver())).select(bare(2, 6))
    assert chosen.counts is None and chosen.known_counts == (3, 3)
    after = Pruner(stage(top_k(SCORES), solver=LooseSolver(), steps=(AddStep(),))).select(bare(2, 6))
    assert after.counts is None and after.known_counts == (4, 4)


def test_a_rule_is_asked_with_the_plain_counts_and_the_scores_and_its_answer_holds() -> None:
    spy, rule = SpySolver(), FixedRule(torch.tensor([1, 4]))
    chosen = Pruner(stage(top_k(SCORES), rule=rule, solver=spy)).select(bare(2, 6, xy=torch.zeros(2, 6, 2)))
    ((view, k, importance),) = rule.seen
    assert list(view) == ["features"] and k.tolist() == [3, 3] and torch.equal(importance, SCORES)
    assert spy.seen[0].k.tolist() == [1, 4] and spy.seen[0].counts is None
    assert chosen.counts is None and kept(chosen) == [[5], [1, 2, 4, 5]]


def test_steps_run_in_order_each_on_the_result_of_the_one_before() -> None:
    first, second = AddStep(1), AddStep(2, reads=("xy",))
    chosen = Pruner(stage(top_k(SCORES), steps=(first, second))).select(bare(2, 6, xy=torch.zeros(2, 6, 2)))
    assert kept(first.seen[0][0]) == [[2, 4, 5], [1, 2, 5]]
    assert kept(second.seen[0][0]) == [[0, 2, 4, 5], [0, 1, 2, 5]]
    assert kept(chosen) == [[0, 1, 2, 3, 4, 5]] * 2
    assert second.seen[0][0].counts == (4, 4) and chosen.counts == (6, 6)
    assert list(first.seen[0][1]) == ["features"] and list(second.seen[0][1]) == ["xy"]


def test_a_step_that_counts_itself_is_believed_and_counts_look_at_the_real_tokens() -> None:
    tells = Pruner(stage(top_k(SCORES), steps=(AddStep(2, tells=True),))).select(bare(2, 6))
    assert tells.counts == (5, 5)
    ragged = Pruner(stage(top_k(SCORES), budget=Budget(3), steps=(AddStep(2),))).select(bare(2, 6, MASK))
    assert ragged.counts == (5, 4) and ragged.known_counts == tuple(len(i) for i in ragged.indices)


def total(keep: float, *steps: AddStep) -> StageSpec:
    return stage(top_k(SCORES), budget=Budget(keep, total=True), steps=steps)


def test_a_total_budget_is_what_remains_after_the_steps() -> None:
    for keep in (2, 3, 4, 5):
        spy = SpySolver()
        one = stage(top_k(SCORES), solver=spy, budget=Budget(keep, total=True), steps=(AddStep(1),))
        assert Pruner(one).select(bare(2, 6)).counts == (keep, keep)
        assert spy.seen[0].counts == (keep - 1, keep - 1)
    assert Pruner(total(4, AddStep(1), AddStep(2))).select(bare(2, 6)).counts == (4, 4)
    assert Pruner(total(4)).select(bare(2, 6)).counts == (4, 4)
    plain = stage(top_k(SCORES), budget=Budget(3), steps=(AddStep(1),))
    assert Pruner(plain).select(bare(2, 6)).counts == (4, 4)


def test_a_total_that_no_count_reaches_is_refused_with_its_cure() -> None:
    for steps in ((AddStep(3),), (AddStep(1), AddStep(2))):
        with pytest.raises(SpecError) as caught:
            Pruner(total(3, *steps)).select(bare(2, 6))
        assert str(caught.value) == (
            "no count before the steps gives 3 of 6 tokens after them; keep more tokens, "
            "or set budget.total=false so that recovered tokens come on top"
        )


class Doubling(AddStep):
    """Jumps over odd totals."""

    def count(self, kept: int, tokens: int) -> int:
        return 2 * kept


def test_the_search_for_a_total_ends_below_it() -> None:
    assert Pruner(total(4, Doubling(0)))._before_steps(4, 6) == 2
    with pytest.raises(SpecError, match="gives 3 of 6"):
        Pruner(total(3, Doubling(0)))._before_steps(3, 6)


HALF = torch.tensor([[0.5, 0.5], [0.25, 0.75]])


def moved(readout: FixedReadout, mask: torch.Tensor | None = None, **more: object) -> tuple:
    sides = {
        "source": FixedMarginal(torch.full((2, 6), 1 / 6)),
        "target": FixedMarginal(torch.full((2, 6), 1 / 6)),
    }
    if mask is not None:
        even = mask / mask.sum(1, keepdim=True)
        sides = {"source": FixedMarginal(even), "target": FixedMarginal(even)}
    cost = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    spec = ProblemSpec("transport", (priced(cost),), **sides)
    spy = SpyTransport()
    given = stage(spec, solver=spy, readout=readout, **more)
    return Pruner(given).select(bare(2, 6, mask, xy=torch.zeros(2, 6, 2))), spy, cost


def test_transport_keeps_the_best_of_the_readout_which_is_the_importance() -> None:
    readout = FixedReadout(SCORES)
    chosen, spy, cost = moved(readout)
    assert kept(chosen) == [[2, 4, 5], [1, 2, 5]] and chosen.counts == (3, 3)
    assert chosen.importance is SCORES and chosen.diagnostics == ()
    solver, (problem, solution) = readout.seen
    assert solver is spy and problem is spy.seen[0] and solution is chosen.solution
    assert torch.equal(problem.cost, cost) and problem.row_mask is None
    ragged, spy, _ = moved(FixedReadout(SCORES), MASK)
    assert kept(ragged) == [[2, 4], [1, 2]] and torch.equal(spy.seen[0].row_mask, MASK)


def test_a_readout_that_cannot_see_the_cost_warns_and_leaves_a_note() -> None:
    with pytest.warns(CostBlindReadoutWarning, match="cannot see it"):
        chosen, _, _ = moved(FixedReadout(SCORES, blind="cannot see it"))
    assert chosen.diagnostics == ("cannot see it",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved(FixedReadout(SCORES))


def test_a_rule_beside_transport_is_asked_with_its_importance_and_changes_the_counts() -> None:
    rule = FixedRule(torch.tensor([1, 4]))
    chosen, _, _ = moved(FixedReadout(SCORES), rule=rule)
    ((view, k, importance),) = rule.seen
    assert list(view) == ["features"] and k.tolist() == [3, 3] and importance is SCORES
    assert kept(chosen) == [[5], [1, 2, 4, 5]] and chosen.known_counts == (1, 4)


def test_everything_a_subset_problem_states_reaches_the_solver() -> None:
    spy = SpySolver(rank=SCORES)
    pairwise = torch.rand(2, 6, 6)
    pairwise = pairwise + pairwise.transpose(1, 2)
    spec = ProblemSpec(
        "independent_set",
        scores=(scored(SCORES, 2.0),),
        pairwise=(Weighted("k", FixedKernel(pairwise), 3.0),),
        threshold=0.75,
        protect=Protect(count=2),
    )
    Pruner(stage(spec, solver=spy)).select(bare(2, 6, MASK))
    (problem,) = spy.seen
    assert problem.kind == "independent_set" and problem.threshold == 0.75
    assert torch.equal(problem.unary, 2 * SCORES) and torch.equal(problem.pairwise, 3 * pairwise)
    assert torch.equal(problem.mask, MASK) and problem.group is None and problem.quota is None
    assert [row.nonzero().squeeze(1).tolist() for row in problem.protected] == [[2, 4], [1, 2]]


def test_anchors_and_the_repairs_of_the_pairwise_term_reach_the_solver() -> None:
    spy, other = SpySolver(rank=SCORES), SpySolver(rank=SCORES)
    skew, rows = torch.rand(2, 6, 6), torch.rand(2, 3, 6)
    point = FixedCost(rows, strong=torch.rand(2, 3))
    spec = ProblemSpec(
        "max_min", pairwise=(priced(skew),), anchors=(Weighted("a", point, 0.5),), symmetric="mean"
    )
    Pruner(stage(spec, solver=spy)).select(bare(2, 6))
    (problem,) = spy.seen
    assert torch.equal(problem.anchors, 0.5 * rows) and torch.equal(problem.anchor_strength, point.strong)
    assert torch.equal(problem.pairwise, (skew + skew.transpose(1, 2)) / 2)
    flat = torch.ones(2, 6, 6)
    low = ProblemSpec("log_det", pairwise=(Weighted("k", FixedKernel(flat)),), ridge=0.25)
    Pruner(stage(low, solver=other)).select(bare(2, 6))
    assert torch.equal(other.seen[0].pairwise, flat + 0.25 * torch.eye(6))


def test_a_problem_without_extras_has_none() -> None:
    spy = SpySolver()
    Pruner(stage(top_k(SCORES), solver=spy)).select(bare(2, 6))
    (problem,) = spy.seen
    for name in (
        "pairwise",
        "mask",
        "protected",
        "anchors",
        "threshold",
        "group",
        "quota",
        "anchor_strength",
    ):
        assert getattr(problem, name) is None, name


GROUPED = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 1, 0, 1, 0, 1]])


@pytest.mark.parametrize("quota", [None, "group", "time", "score"])
def test_quotas_come_from_the_signal_or_the_score_that_is_named(quota: str | None) -> None:
    spy, other = SpySolver(), 1 - GROUPED
    score = FixedScore(GROUPED.float())
    spec = ProblemSpec("quota", scores=(scored(SCORES),), quota=score if quota == "score" else quota)
    named = {"time": GROUPED, "group": other} if quota == "time" else {"group": GROUPED}
    chosen = Pruner(stage(spec, solver=spy, budget=Budget(3, scope="sample"))).select(bare(2, 6, **named))
    (problem,) = spy.seen
    assert torch.equal(problem.group, GROUPED) and problem.quota.tolist() == [[2, 1], [2, 1]]
    assert chosen.counts == (3, 3)
    if quota == "score":
        assert problem.group.dtype == torch.int64 and list(score.seen[0]) == ["features"]


def test_groups_may_share_the_budget_in_their_own_way() -> None:
    own = (1 - GROUPED, torch.tensor([[1, 2], [0, 3]]))
    for quotas, group, quota in ((own, *own), (None, GROUPED, torch.tensor([[2, 1], [2, 1]]))):
        spy, part = SpySolver(), FixedGroups(GROUPED.float(), quotas)
        spec = ProblemSpec("quota", scores=(scored(SCORES),), quota=part)
        Pruner(stage(spec, solver=spy, budget=Budget(3, scope="sample"))).select(bare(2, 6))
        assert torch.equal(spy.seen[0].group, group) and torch.equal(spy.seen[0].quota, quota)
        ((asked, mask, k, importance),) = part.seen
        assert torch.equal(asked, GROUPED) and asked.dtype == torch.int64
        assert (
            mask.all() and mask.shape == (2, 6) and k.tolist() == [3, 3] and torch.equal(importance, SCORES)
        )


def test_what_is_no_signals_is_refused_with_the_cure() -> None:
    with pytest.raises(SignalError) as caught:
        select(spec_of(stage(top_k(SCORES))), SCORES)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "signals must be pruneopt.Signals, or a mapping from names to tensors, got <class 'torch.Tensor'>; "
        'give Signals({"features": tokens})'
    )


def test_quotas_and_protection_follow_the_counts_of_the_rule() -> None:
    spy = SpySolver()
    spec = ProblemSpec("quota", scores=(scored(SCORES),), quota="group", protect=Protect(share=0.5))
    given = stage(spec, solver=spy, rule=FixedRule(torch.tensor([2, 4])), budget=Budget(0.5, scope="sample"))
    Pruner(given).select(bare(2, 6, group=GROUPED))
    assert spy.seen[0].quota.sum(1).tolist() == [2, 4]
    assert spy.seen[0].protected.sum(1).tolist() == [1, 2]


def test_problems_are_checked_unless_the_caller_looks_itself() -> None:
    bad = SCORES.clone()
    bad[1, 3] = torch.nan
    given = stage(top_k(bad))
    with pytest.raises(ProblemError, match="unary is not finite in sample 1"):
        Pruner(given).select(bare(2, 6))
    assert Pruner(given).select(bare(2, 6), check=False).counts == (3, 3)
    sides = {"source": FixedMarginal(torch.ones(1, 2)), "target": FixedMarginal(torch.ones(1, 2))}
    spec = ProblemSpec("transport", (priced(torch.ones(1, 2, 2)),), **sides)
    given = stage(spec, readout=FixedReadout(torch.ones(1, 2)))
    with pytest.raises(ProblemError, match="a sums to 2"):
        Pruner(given).select(bare(1, 2))
    Pruner(given).select(bare(1, 2), check=False)


def test_select_finds_a_method_by_its_name() -> None:
    rows = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(0))
    by_name = select("divprune", Signals({"features": rows}))
    assert kept(by_name) == kept(select(load_spec("divprune"), Signals({"features": rows})))


def spec_of(*stages: StageSpec) -> Spec:
    return Spec("mine", stages)


def test_select_runs_the_stage_that_is_asked_for() -> None:
    spec = spec_of(stage(top_k(SCORES)), stage(top_k(-SCORES)))
    assert kept(select(spec, bare(2, 6))) == [[2, 4, 5], [1, 2, 5]]
    assert kept(select(spec, bare(2, 6), stage=0)) == [[2, 4, 5], [1, 2, 5]]
    for number in (2, -1):
        with pytest.raises(SpecError) as caught:
            select(spec, bare(2, 6), stage=number)
        assert str(caught.value) == f"mine has 2 stages; there is no stage {number}"


def test_groups_given_by_hand_replace_the_signal_and_keep_the_mask() -> None:
    score = FeatureScore()  # the later token is the better one
    spec = spec_of(stage(ProblemSpec("top_k", scores=(Weighted("s", score),)), budget=Budget(1 / 3)))
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0, 0, 0]]).bool()
    groups = torch.tensor([[0, 1, 5, 0, 1, 1, 0, 5], [5, 5, 2, 2, 2, 5, 5, 5]])
    signals = bare(2, 8, mask, group=torch.zeros(2, 8, dtype=torch.int64))
    chosen = select(spec, signals, groups=groups)
    assert kept(chosen) == [[5, 6], [4]] and chosen.counts == (2, 1)
    assert score.seen[0].mask.sum(1).tolist() == [3, 3, 3]
    assert torch.equal(signals["group"], torch.zeros(2, 8, dtype=torch.int64))


def test_groups_given_by_hand_leave_whole_batches_whole() -> None:
    spy = SpySolver()
    spec = spec_of(stage(top_k(SCORES), solver=spy, budget=Budget(0.5, scope="sample")))
    select(spec, bare(2, 6), groups=torch.zeros(2, 6, dtype=torch.int64))
    assert spy.seen[0].mask is None
