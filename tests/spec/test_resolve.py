"""From data to a spec: what each key becomes, and every refusal in its own words with the key it is about."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from pruneopt.errors import PruneoptError, SpecError
from pruneopt.parts.budgets.capped import Capped
from pruneopt.parts.scores.token_norm import TokenNormScore
from pruneopt.problems.budget import Budget
from pruneopt.spec import load as spec_module
from pruneopt.spec.load import list_methods, load_spec, touches
from pruneopt.spec.resolve import _spread, mixed, resolve
from pruneopt.spec.schema import Protect, Weighted

TOP: dict[str, Any] = {
    "insertion": {"kind": "prefill_layer", "layer": 2},
    "budget": {"keep": 0.5},
    "problem": {"kind": "top_k", "scores": {"norm": {"kind": "token_norm"}}},
    "solver": {"kind": "stable_top_k"},
}
MOVE: dict[str, Any] = {
    "insertion": "post_encoder",
    "problem": {"kind": "transport", "cost": {"c": {"kind": "feature_sq_l2"}}},
    "solver": {"kind": "sinkhorn", "epsilon": 0.25},
    "readout": "row_cost",
}
SPREAD: dict[str, Any] = {
    "insertion": "post_encoder",
    "problem": {"kind": "max_min", "pairwise": {"c": {"kind": "cosine_distance"}}},
    "solver": "farthest_point",
}
ALIKE: dict[str, Any] = {
    "insertion": "post_encoder",
    "problem": {
        "kind": "independent_set",
        "scores": {"s": "token_norm"},
        "pairwise": {"k": "cosine"},
        "threshold": 0.5,
    },
    "solver": "greedy_conflict",
}

LOG_DET: dict[str, Any] = {
    "insertion": "post_encoder",
    "problem": {"kind": "log_det", "pairwise": {"k": "cosine"}},
    "solver": "greedy_log_det",
}


AS_SCORE = (
    ", also as a score: problem.scores.LABEL: {kind: transport, cost: {...}, marginals: {...}, solver: ..., "
    "readout: ...}"
)


def put(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A deep copy with `a__b=value` set at data["a"]["b"]; `...` removes the key."""
    out = copy.deepcopy(data)
    for path, value in changes.items():
        *above, last = path.split("__")
        place = out
        for key in above:
            if not isinstance(place.get(key), dict):
                place[key] = {} if place.get(key) is None else {"kind": place[key]}
            place = place[key]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return out


PROTECT = {"problem__protect__count": 1}
REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    (put(TOP, positions="kept"), "positions must be one of keep, compact, got 'kept'", "positions"),
    (put(TOP, meta=[1]), "meta must be a mapping, got [1]", "meta"),
    (put(TOP, meta__titel="x"), "unknown key meta.titel; did you mean 'title'?", "meta.titel"),
    (put(TOP, bugdet={}), "unknown key bugdet; did you mean 'budget'?", "bugdet"),
    (put(TOP, stages={"a": 1}), "stages must be a list of mappings, got {'a': 1}", "stages"),
    (put(TOP, stages=[{}, 3]), "stages.1 must be a mapping, got 3", "stages.1"),
    (
        put(TOP, stages=[{"name": "x"}]),
        "unknown key stages.0.name; known: budget, insertion, positions, problem, readout, solver, steps",
        "stages.0.name",
    ),
    (
        put(TOP, stages=[{}, {"insertion": "post_encoder"}]),
        "stages must be in order of depth, got prefill_layer 2, post_encoder 0",
        "stages",
    ),
    (put(TOP, insertion=...), "insertion is missing", "insertion"),
    (put(TOP, problem=...), "problem is missing", "problem"),
    (put(TOP, solver=None), "solver is missing", "solver"),
    (put(TOP, stages=[{"solver": None}]), "stages.0.solver is missing", "stages.0.solver"),
    (
        put(TOP, budget__kep=1),
        "unknown key budget.kep; did you mean 'keep'?",
        "budget.kep",
    ),
    (put(TOP, budget=[0.5]), "budget must be a mapping, got [0.5]", "budget"),
    (put(TOP, budget__keep="x"), "budget.keep must be a ratio or a count, got 'x'", "budget.keep"),
    (put(TOP, budget__scope="all"), "budget.scope must be one of group, sample, got 'all'", "budget.scope"),
    (
        put(TOP, stages=[{"budget": {"keep": 0}}]),
        "budget.keep must be above 0 (a ratio up to 1, or a count of tokens), got 0",
        "stages.0.budget.keep",
    ),
    (put(TOP, budget__rule=3), "budget.rule must name a part by `kind`, got 3", "budget.rule"),
    (
        put(TOP, budget__rule="cappd"),
        "unknown budget 'cappd'; did you mean 'capped'?",
        "budget.rule",
    ),
    (put(TOP, insertion=[2]), "insertion must name a part by `kind`, got [2]", "insertion"),
    (put(TOP, insertion={"layer": 2}), "insertion must name a part by `kind`, got {'layer': 2}", "insertion"),
    (
        put(TOP, insertion__layr=2),
        "insertion: prefill_layer has no parameter 'layr'; did you mean 'layer'?",
        "insertion.layr",
    ),
    (
        put(TOP, problem="top_k"),
        "problem must be a mapping, got 'top_k'",
        "problem",
    ),
    (put(TOP, problem__kind="topk"), "problem.kind 'topk' is unknown; did you mean 'top_k'?", "problem.kind"),
    (
        put(TOP, problem__kind=...),
        "problem.kind None is unknown; known: facility_location, independent_set, k_center, log_det, "
        "max_min, max_sum, quota, top_k, transport",
        "problem.kind",
    ),
    (put(TOP, problem__skores={}), "unknown key problem.skores; did you mean 'scores'?", "problem.skores"),
    (
        put(TOP, problem__scores="token_norm"),
        "problem.scores must be a mapping from labels to parts, got 'token_norm'",
        "problem",
    ),
    (
        put(TOP, problem__scores={"kind": "token_norm"}),
        "problem.scores must map labels to parts: problem.scores.LABEL.kind=token_norm",
        "problem",
    ),
    (
        put(TOP, problem__scores__norm=3),
        "problem.scores.norm must name a part by `kind`, got 3",
        "problem.scores.norm",
    ),
    *(
        (
            put(TOP, problem__scores__norm__weight=bad),
            f"problem.scores.norm.weight must be a number, got {bad!r}",
            "problem.scores.norm.weight",
        )
        for bad in (True, "2", None, float("nan"))
    ),
    (
        put(TOP, problem__scores__norm__normalize="minmx"),
        "problem.scores.norm.normalize must be one of none, minmax, sum, max, zscore, l2, softmax, "
        "got 'minmx'",
        "problem.scores.norm.normalize",
    ),
    (
        put(TOP, problem__scores={}),
        "problem.scores is empty; top_k needs at least one score",
        "problem",
    ),
    (
        put(ALIKE, problem__scores=...),
        "problem.scores is empty; independent_set needs at least one score",
        "problem",
    ),
    (
        put(TOP, problem__kind="quota", problem__scores=None),
        "problem.scores is empty; quota needs at least one score",
        "problem",
    ),
    *(
        (
            put(SPREAD, problem__kind=kind, problem__pairwise=...),
            f"problem.pairwise is empty; {kind} needs at least one {part}",
            "problem",
        )
        for kind, part in (
            ("max_min", "cost term"),
            ("max_sum", "cost term"),
            ("facility_location", "kernel, or a cost in problem.cost"),
            ("log_det", "kernel"),
        )
    ),
    (
        put(ALIKE, problem__pairwise={}),
        "problem.pairwise is empty; independent_set needs at least one kernel",
        "problem",
    ),
    (
        put(ALIKE, problem__threshold=...),
        "problem.threshold must be a number for independent_set, got None",
        "problem.threshold",
    ),
    (
        put(TOP, problem__cost={"c": "feature_sq_l2"}),
        f"problem.cost has no meaning for top_k; facility_location, transport take it{AS_SCORE}",
        "problem.cost",
    ),
    (
        put(TOP, problem__marginals={"source": "uniform"}),
        f"problem.marginals has no meaning for top_k; transport takes it{AS_SCORE}",
        "problem.marginals",
    ),
    *(
        (
            put(MOVE, **{f"problem__{key}": {} if key != "threshold" else 0}),
            f"problem.{key} belongs to subset problems; for transport with it write another problem.kind, "
            "and " + AS_SCORE.removeprefix(", also as a score: "),
            f"problem.{key}",
        )
        for key in ("scores", "pairwise", "anchors", "threshold", "quota", "protect", "symmetric", "ridge")
    ),
    (
        put(MOVE, problem__cost=None),
        "problem.cost is empty; a transport problem needs at least one cost term",
        "problem.cost",
    ),
    (
        put(MOVE, problem__marginals={"sorce": "uniform"}),
        "unknown key problem.marginals.sorce; did you mean 'source'?",
        "problem.marginals.sorce",
    ),
    (
        put(MOVE, problem__marginals={"target": 1}),
        "problem.marginals.target must name a part by `kind`, got 1",
        "problem.marginals.target",
    ),
    (
        put(MOVE, readout=...),
        "readout is missing: a transport plan does not rank tokens by itself",
        "readout",
    ),
    (put(TOP, readout="row_sum"), "readout has no meaning for top_k; remove it", "readout"),
    (put(TOP, solver="emd"), "solver 'emd' does not solve top_k; its solvers are ", "solver"),
    (
        put(MOVE, solver="stable_top_k"),
        "solver 'stable_top_k' does not solve transport; its solvers are ",
        "solver",
    ),
    (
        put(TOP, solver="branch_and_bound"),
        "solver 'branch_and_bound' does not solve top_k; its solvers are ",
        "solver",
    ),
    (
        put(
            SPREAD,
            problem__anchors={"t": {"kind": "text_pivots", "count": 3}},
            solver={"kind": "pivot", "text_pivots": 2},
        ),
        "text_pivots: problem.anchors has 3 text pivots (count) and solver.text_pivots is 2; "
        "every text pivot that is chosen must be visited, so set both",
        "problem.anchors.t",
    ),
    (
        put(SPREAD, solver="stable_top_k"),
        "solver 'stable_top_k' does not solve max_min; its solvers are bipartite_elimination, ",
        "solver",
    ),
    (
        put(TOP, steps={"kind": "recover_every"}),
        "steps must be a list, got {'kind': 'recover_every'}",
        "steps",
    ),
    (put(TOP, steps=["drop_all", 7]), "steps.1 must name a part by `kind`, got 7", "steps.1"),
    (
        put(TOP, problem__protect={"share": 0.5, "count": 2}),
        "problem.protect needs either share (of the budget) or count, not both and not neither",
        "problem",
    ),
    (
        put(TOP, problem__protect={"rounding": "floor"}),
        "problem.protect needs either share (of the budget) or count, not both and not neither",
        "problem",
    ),
    *(
        (
            put(TOP, problem__protect={"share": bad}),
            f"problem.protect.share must be a number from 0 to 1, got {bad!r}",
            "problem",
        )
        for bad in (-0.1, 1.01, True, "half")
    ),
    *(
        (
            put(TOP, problem__protect={"count": bad}),
            f"problem.protect.count must be a whole number from 1, got {bad!r}",
            "problem",
        )
        for bad in (0, -1, True, 1.0, "one")
    ),
    (
        put(TOP, problem__protect={"count": 1, "rounding": "up"}),
        "problem.protect.rounding must be one of round, floor, ceil, got 'up'",
        "problem",
    ),
    (
        put(TOP, problem__protect={"counts": 1}),
        "unknown key problem.protect.counts; did you mean 'count'?",
        "problem.protect.counts",
    ),
    (
        put(SPREAD, problem__protect={"count": 1}),
        "problem.protect.scores is empty and the problem has no scores either",
        "problem",
    ),
    (
        put(TOP, insertion__layer=[2, 4], budget__keep=[0.5]),
        "insertion.layer has 2 entries and budget.keep 1; they must agree",
        "",
    ),
    (put(TOP, insertion__layer=[]), "insertion.layer has 0 entries and budget.keep 0; they must agree", ""),
    (
        put(TOP, stages=[{"budget": {"keep": [0.5, 0.25]}}]),
        "stages.0.budget.keep is a list but insertion.layer is not; give both or neither",
        "stages.0",
    ),
    (put(TOP, problem__scores__norm={"kind": "emd"}), "unknown score 'emd'", "problem.scores.norm"),
    (
        put(ALIKE, problem__anchors={"k": "cosine"}),
        "problem.anchors has no meaning for independent_set; k_center, max_min, max_sum take it",
        "problem.anchors",
    ),
    *(
        (
            put(TOP, **{f"problem__{key}": value}),
            f"problem.{key} has no meaning for top_k; {takers} it",
            f"problem.{key}",
        )
        for key, value, takers in (
            (
                "pairwise",
                {"k": "cosine"},
                "facility_location, independent_set, k_center, log_det, max_min, max_sum take",
            ),
            ("threshold", 0.0, "independent_set takes"),
            ("quota", "window", "quota takes"),
            ("symmetric", "mean", "independent_set, log_det, max_min, max_sum take"),
            ("ridge", 1.0, "log_det takes"),
        )
    ),
    (
        put(SPREAD, problem__pairwise__c="feature_sq_l2"),
        "problem.pairwise.c: feature_sq_l2 is not symmetric, and max_min knows unordered pairs only; "
        "set problem.symmetric=mean to average both directions",
        "problem",
    ),
    (
        put(SPREAD, problem__pairwise__c="text_pivots"),
        "problem.pairwise.c: text_pivots reaches external points, not tokens; write it under "
        "problem.anchors, or under problem.cost of facility_location",
        "problem",
    ),
    (
        put(SPREAD, problem__symmetric="max"),
        "problem.symmetric can be mean, got 'max'",
        "problem.symmetric",
    ),
    *(
        (
            put(LOG_DET, problem__ridge=bad),
            f"problem.ridge must be a number above 0, got {bad!r}",
            "problem.ridge",
        )
        for bad in (0, -1, True, "x", float("inf"), float("nan"))
    ),
    (
        put(TOP, problem__protect={"where": "token_norm", "share": 0.5, "count": None}),
        "problem.protect.where names the tokens by itself; remove share",
        "problem",
    ),
    (
        put(TOP, problem__protect={"where": "token_norm", "share": 0.5, "count": 2}),
        "problem.protect.where names the tokens by itself; remove share, count",
        "problem",
    ),
    *(
        (
            put(data, **{"problem__" + place.replace(".", "__"): {"kind": kind, "wrong": 1}}),
            f"problem.{place}: {kind} has no parameter 'wrong'; known: {known}",
            "problem",
        )
        for data, place, kind, known in (
            (TOP, "scores.norm", "random", "seed"),
            (SPREAD, "pairwise.c", "spatial_gaussian", "sigma"),
            (SPREAD, "anchors.c", "spatial_gaussian", "sigma"),
            (put(TOP, problem__kind="quota"), "quota", "random", "seed"),
            (TOP, "protect.where", "random", "seed"),
            (put(TOP, **PROTECT), "protect.scores.own", "random", "seed"),
        )
    ),
    *(
        (
            put(TOP, meta__deviations=bad),
            f"meta.deviations must map short names to sentences, got {bad!r}",
            "meta.deviations",
        )
        for bad in (["x"], "x", {"two words": "x"}, {"name": " "}, {"name": 3}, {"a": "fine", "b": ""})
    ),
]


# names that stay when a row is added: the mutation run remembers tests by name
NAMES = [re.sub(r"\W+", "-", words)[:70] for _, words, _ in REFUSALS]


@pytest.mark.parametrize(("data", "words", "key"), REFUSALS, ids=NAMES)
def test_every_refusal_says_what_and_where(data: dict[str, Any], words: str, key: str) -> None:
    with pytest.raises(PruneoptError) as caught:
        resolve(data)
    said = str(caught.value)
    cut = words.startswith("unknown score") or " its solvers are " in words  # a list that grows
    assert said == words or (cut and said.startswith(words))
    assert caught.value.key == key or (key == "problem" and caught.value.key.startswith("problem."))


def test_a_spec_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(SpecError) as caught:
        resolve([1])  # type: ignore[arg-type]
    assert (str(caught.value), caught.value.key) == ("the spec must be a mapping, got [1]", "")


def test_a_part_of_another_family_behind_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import pruneopt.parts._nested as module

    class Names:
        def get(self, name: str) -> type:
            return Capped

    monkeypatch.setattr(module, "registry", lambda group: Names())
    with pytest.raises(SpecError, match=r"^insertion: 'prefill_layer' is not a Insertion$"):
        resolve(TOP)


def test_defaults_are_those_that_are_documented() -> None:
    spec = resolve(put(TOP, budget=...))
    assert (spec.name, spec.positions, dict(spec.meta)) == ("unnamed", "keep", {})
    (stage,) = spec.stages
    assert stage.budget == Budget(0.5, "round", "group", False, "start")
    assert (stage.rule, stage.readout, stage.steps) == (None, None, ())
    assert stage.problem.scores == (Weighted("norm", TokenNormScore(), 1.0, "none"),)
    assert stage.problem.protect is None and stage.problem.quota is None and stage.problem.threshold is None
    (moved,) = resolve(MOVE).stages
    assert (moved.problem.source.name, moved.problem.target.name) == ("uniform", "uniform")
    assert moved.readout.name == "row_cost" and moved.solver.epsilon == 0.25


def test_every_key_reaches_its_place() -> None:
    spec = resolve(
        put(
            TOP,
            name=7,
            positions="compact",
            meta={"title": "t"},
            budget={
                "keep": 3,
                "rounding": "ceil",
                "scope": "sample",
                "total": True,
                "relative_to": "current",
            },
            budget__rule={"kind": "capped", "spare": 2},
            problem__scores={"b": "token_norm", "a": {"kind": "token_norm", "weight": -2, "normalize": "l2"}},
            problem__protect={"share": 1, "rounding": "ceil", "scores": {"own": "random"}},
            steps=["drop_all", {"kind": "recover_every", "interval": 5}],
        )
    )
    assert (spec.name, spec.positions, spec.meta) == ("7", "compact", {"title": "t"})
    (stage,) = spec.stages
    assert stage.budget == Budget(3, "ceil", "sample", True, "current") and stage.rule == Capped(2)
    a, b = stage.problem.scores
    assert (a.label, a.weight, a.normalize) == ("a", -2.0, "l2") and isinstance(a.weight, float)
    assert (b.label, b.weight, b.normalize) == ("b", 1.0, "none")
    protect = stage.problem.protect
    assert isinstance(protect, Protect) and isinstance(protect.share, float)
    assert (protect.share, protect.count, protect.rounding) == (1.0, None, "ceil")
    assert [s.label for s in protect.scores] == ["own"]
    assert [step.name for step in stage.steps] == ["drop_all", "recover_every"]
    assert stage.steps[1].interval == 5


def test_problems_of_all_kinds_take_their_parts() -> None:
    alike = resolve(ALIKE).stages[0].problem
    assert alike.kind == "independent_set" and alike.threshold == 0.5
    assert alike.pairwise[0].part.name == "cosine" and alike.anchors == ()
    spread = resolve(put(SPREAD, problem__anchors={"t": "text_pivots"}, problem__scores={"s": "token_norm"}))
    assert spread.stages[0].problem.anchors[0].part.name == "text_pivots"
    assert spread.stages[0].problem.scores[0].label == "s"
    for kind, solver in (("facility_location", "lazy_greedy"), ("log_det", "greedy_log_det")):
        problem = resolve(put(SPREAD, problem={"kind": kind, "pairwise": {"k": "cosine"}}, solver=solver))
        assert problem.stages[0].problem.pairwise[0].part.name == "cosine"
    quota = {"insertion": "post_encoder", "solver": "quota_top_k"}
    for given, name in ((None, None), ("", None), ("time", "time")):
        data = put(quota, problem={"kind": "quota", "scores": {"s": "token_norm"}, "quota": given})
        assert resolve(data).stages[0].problem.quota == name
    data = put(quota, problem={"kind": "quota", "scores": {"s": "token_norm"}, "quota": {"kind": "random"}})
    assert resolve(data).stages[0].problem.quota.name == "random"
    sides = put(MOVE, problem__marginals={"source": "token_norm", "target": {"kind": "uniform"}})
    problem = resolve(sides).stages[0].problem
    assert (problem.source.name, problem.target.name) == ("token_norm", "uniform")
    assert (
        resolve(put(MOVE, problem__marginals={"target": "token_norm"})).stages[0].problem.source.name
        == "uniform"
    )
    mean = resolve(put(SPREAD, problem__pairwise__c="feature_sq_l2", problem__symmetric="mean"))
    assert (mean.stages[0].problem.symmetric, mean.stages[0].problem.ridge) == ("mean", None)
    off = put(SPREAD, problem__pairwise__d={"kind": "feature_sq_l2", "weight": 0})
    assert resolve(off).stages[0].problem.symmetric is None
    assert resolve(put(LOG_DET, problem__ridge=0.5)).stages[0].problem.ridge == 0.5
    raised = resolve(put(LOG_DET, problem__ridge=2)).stages[0].problem
    assert raised.ridge == 2.0 and isinstance(raised.ridge, float)
    protect = (
        resolve(put(TOP, problem__protect={"where": "token_norm", "share": None})).stages[0].problem.protect
    )
    assert protect == Protect(where=TokenNormScore())
    told = put(TOP, meta__deviations={"order": "reads backwards", "b_2": "too"})
    assert resolve(told).meta["deviations"]["order"] == "reads backwards"
    ends = [resolve(put(TOP, problem__protect={"share": s})).stages[0].problem.protect for s in (0, 1)]
    assert [p.share for p in ends] == [0.0, 1.0]


MIXES: list[tuple[Any, Any, Any]] = [
    ({"kind": "a", "x": 1, "y": 2}, {}, {"kind": "a", "x": 1, "y": 2}),
    ({"kind": "a", "x": 1, "y": 2}, {"kind": "b", "y": 3}, {"kind": "b", "y": 3}),
    ({"kind": "a", "x": 1, "y": 2}, {"kind": "a", "y": 3}, {"kind": "a", "x": 1, "y": 3}),
    ({"kind": "a", "x": 1, "y": 2}, {"y": 3}, {"kind": "a", "x": 1, "y": 3}),
    ({"kind": "a", "x": 1, "weight": 2}, {"kind": "b"}, {"kind": "b", "weight": 2}),
    ({"kind": "a", "x": 1, "normalize": "l2"}, {"kind": "b", "x": 5},
     {"kind": "b", "x": 5, "normalize": "l2"}),
    ({"kind": "a", "weight": 2, "normalize": "l2"}, {"kind": "b", "weight": 3, "normalize": "sum"},
     {"kind": "b", "weight": 3, "normalize": "sum"}),
    ({"x": 1}, {"kind": "b"}, {"kind": "b"}),
    ({"s": {"kind": "a", "x": 1}, "t": 2}, {"s": {"kind": "b"}}, {"s": {"kind": "b"}, "t": 2}),
    ({"s": {"kind": "a", "x": 1}, "t": 2}, {"s": {"y": 2}}, {"s": {"kind": "a", "x": 1, "y": 2}, "t": 2}),
    ({"s": {"kind": "a"}}, {"s": "b"}, {"s": "b"}),
    ({"s": {"kind": "a"}}, {"s": None}, {"s": None}),
    ({"s": "a"}, {"s": {"kind": "b"}}, {"s": {"kind": "b"}}),
    ({"s": [1, 2]}, {"s": [3]}, {"s": [3]}),
    ({"r": {"s": {"kind": "a", "x": 1}}}, {"r": {"s": {"kind": "b"}, "n": {"m": 1}}},
     {"r": {"s": {"kind": "b"}, "n": {"m": 1}}}),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "out"), MIXES, ids=range(len(MIXES)))
def test_mappings_mix_and_those_of_another_kind_replace(old: Any, new: Any, out: Any) -> None:
    before = copy.deepcopy((old, new))
    assert mixed(old, new) == out
    assert (old, new) == before


def test_stages_inherit_what_they_do_not_say_and_never_parameters_of_another_kind() -> None:
    data = put(
        MOVE,
        stages=[{"insertion": "post_encoder"}, {"solver": {"kind": "proximal"}}, {"solver": {"rounds": 7}}],
    )
    first, second, third = resolve(data).stages
    assert (first.solver.name, first.solver.epsilon) == ("sinkhorn", 0.25)
    alone = resolve(put(MOVE, solver={"kind": "proximal"})).stages[0].solver
    assert second.solver == alone
    assert (third.solver.name, third.solver.epsilon, third.solver.rounds) == ("sinkhorn", 0.25, 7)


def test_lists_of_layers_and_ratios_are_spread_in_step() -> None:
    kept = {"other": 1}
    data = {
        "insertion": {"kind": "p", "layer": [8, 16]},
        "budget": {"scope": "s", "keep": [0.5, 0.25]},
        **kept,
    }
    assert _spread(data, "") == [
        {"insertion": {"kind": "p", "layer": 8}, "budget": {"scope": "s", "keep": 0.5}, **kept},
        {"insertion": {"kind": "p", "layer": 16}, "budget": {"scope": "s", "keep": 0.25}, **kept},
    ]
    single = {"insertion": {"layer": [8, 16]}, "budget": {"keep": 0.5}}
    assert [d["budget"] for d in _spread(single, "")] == [{"keep": 0.5}] * 2
    bare = {"insertion": {"layer": [8]}}
    assert _spread(bare, "") == [{"insertion": {"layer": 8}, "budget": {}}]
    for plain in (
        {"insertion": "post_encoder"},
        {"insertion": {"layer": 8}, "budget": {"keep": 1}},
        {"budget": "x"},
    ):
        out = _spread(plain, "")
        assert out == [plain] and out[0] is not plain


def test_spread_stages_stand_between_their_neighbours() -> None:
    stages = [
        {"insertion": "post_encoder"},
        {"insertion": {"layer": [4, 6]}, "budget": {"keep": [0.5, 0.25]}},
    ]
    spec = resolve(put(TOP, stages=stages))
    assert [(s.insertion.layer_index, s.budget.keep) for s in spec.stages] == [(0, 0.5), (4, 0.5), (6, 0.25)]


# overrides


def said(data: Any, *overrides: str) -> dict[str, Any]:
    return load_spec(data, overrides).to_spec()


def test_changing_the_kind_of_a_summand_keeps_its_weight_and_scale_and_nothing_else() -> None:
    data = put(TOP, problem__scores__norm={"kind": "random", "seed": 5, "weight": 3, "normalize": "minmax"})
    for override in ("problem.scores.norm.kind=token_norm", "problem.scores.norm=token_norm"):
        norm = said(data, override)["problem"]["scores"]["norm"]
        alone = said(TOP)["problem"]["scores"]["norm"]
        assert norm == {**alone, "weight": 3.0, "normalize": "minmax"}
    same = said(data, "problem.scores.norm=random")["problem"]["scores"]["norm"]
    assert same["seed"] == 5 and same["weight"] == 3
    for whole in ("problem.scores.norm=", "problem.scores={norm: ", "problem={scores: {norm: "):
        end = "}" * whole.count("{")
        norm = said(data, whole + "{kind: token_norm, weight: 2}" + end)["problem"]["scores"]["norm"]
        assert norm == {**alone, "weight": 2, "normalize": "minmax"}
    staged = put(data, stages=[{"problem": {"scores": {"norm": {"kind": "token_norm"}}}}])
    assert said(staged)["problem"]["scores"]["norm"] == {**alone, "weight": 3, "normalize": "minmax"}


def test_changing_the_kind_of_a_solver_drops_the_parameters_of_the_old_one() -> None:
    for override in ("solver=proximal", "solver.kind=proximal", "solver={kind: proximal}"):
        assert said(MOVE, override)["solver"] == said(put(MOVE, solver="proximal"))["solver"]
    assert said(MOVE, "solver=sinkhorn")["solver"]["epsilon"] == 0.25
    assert said(MOVE, "solver={kind: sinkhorn}")["solver"]["epsilon"] == 0.25
    assert said(MOVE, "solver.epsilon=0.5")["solver"]["epsilon"] == 0.5
    assert said(MOVE, " solver.epsilon =0.5")["solver"]["epsilon"] == 0.5
    assert said(put(TOP, insertion={"kind": "prefill_layer", "layer": 9}), "insertion=post_encoder")[
        "insertion"
    ] == {"kind": "post_encoder"}
    assert said(MOVE, "readout=row_max")["readout"]["kind"] == "row_max"


@pytest.mark.parametrize(
    ("data", "override", "place"),
    [
        (MOVE, "problem.cost.c=cosine_distance", ("problem", "cost", "c")),
        (MOVE, "problem.cost.new=cosine_distance", ("problem", "cost", "new")),
        (MOVE, "problem.marginals.source=token_norm", ("problem", "marginals", "source")),
        (TOP, "problem.scores.norm=random", ("problem", "scores", "norm")),
        (SPREAD, "problem.pairwise.c=spatial_gaussian", ("problem", "pairwise", "c")),
        (SPREAD, "problem.anchors.a=text_pivots", ("problem", "anchors", "a")),
        (put(TOP, **PROTECT), "problem.protect.scores.s=random", ("problem", "protect", "scores", "s")),
    ],
)
def test_a_part_is_named_by_its_kind_alone(
    data: dict[str, Any], override: str, place: tuple[str, ...]
) -> None:
    found: Any = said(data, override)
    for key in place:
        found = found[key]
    assert found["kind"] == override.partition("=")[2]


@pytest.mark.parametrize(
    ("data", "where", "old", "new"),
    [
        (MOVE, "problem.cost.c", "cosine_distance", "spatial_gaussian"),
        (TOP, "problem.scores.norm", "random", "token_norm"),
        (SPREAD, "problem.pairwise.c", "cosine_distance", "spatial_gaussian"),
        (SPREAD, "problem.anchors.c", "text_pivots", "spatial_gaussian"),
        (put(TOP, **PROTECT), "problem.protect.scores.s", "token_norm", "random"),
    ],
)
def test_a_new_kind_alone_keeps_the_weight_of_its_summand(data: Any, where: str, old: str, new: str) -> None:
    weighed = put(data, **{where.replace(".", "__"): {"kind": old, "weight": 3}})
    found = read(said(weighed, f"{where}={new}"), where)
    assert (found["kind"], found["weight"]) == (new, 3)


def test_the_same_kind_alone_keeps_the_parameters() -> None:
    sides = put(MOVE, problem__marginals={"source": {"kind": "token_norm", "signal": "keys"}})
    for data, where, key, value in (
        (put(TOP, insertion__layer=9), "insertion", "layer", 9),
        (MOVE, "solver", "epsilon", 0.25),
        (sides, "problem.marginals.source", "signal", "keys"),
    ):
        before = read(said(data), where)
        assert read(said(data, f"{where}={before['kind']}"), where) == before and before[key] == value


def read(data: Any, where: str) -> Any:
    for key in where.split("."):
        data = data[key]
    return data


def test_references_are_read_after_all_overrides() -> None:
    data = put(TOP, problem__scores__norm={"kind": "token_norm", "weight": "${budget.keep}"})
    overrides = "problem.scores={norm: {normalize: sum}}", "budget.keep=0.25"
    norm = said(data, *overrides)["problem"]["scores"]["norm"]
    assert (norm["weight"], norm["normalize"]) == (0.25, "sum")


def test_values_of_overrides_are_read_as_yaml_and_may_hold_an_equals_sign() -> None:
    assert said(TOP, "budget={keep: 7, scope: sample}")["budget"]["keep"] == 7
    assert said(TOP, "budget={scope: sample}")["budget"]["keep"] == 0.5  # mixes with what is there
    assert said(TOP, "steps=[drop_all]")["steps"] == [
        {"kind": "drop_all", **said(TOP, "steps=[drop_all]")["steps"][0]}
    ]
    assert said(TOP, "meta.title='a=b'")["meta"]["title"] == "a=b"
    assert said(TOP, "budget.keep=8", "budget.keep=9")["budget"]["keep"] == 9


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["budget.keep"], "override 'budget.keep' is not of the form key.path=value"),
        (["=3"], "override '=3' is not of the form key.path=value"),
        (
            ["solver._target_=os.system"],
            "solver._target_ is not allowed: specs name parts by `kind`, never classes",
        ),
        (["_x_=1"], "_x_ is not allowed: specs name parts by `kind`, never classes"),
        (
            ["steps=[{kind: drop_all, _y_: 1}]"],
            "steps.0._y_ is not allowed: specs name parts by `kind`, never classes",
        ),
        (
            ["budget.keep=${oc.env:HOME}"],
            "budget.keep uses a resolver (${oc.env:HOME}); specs cannot read the environment",
        ),
        (
            ["steps=[drop_all, '${oc.env:HOME}']"],
            "steps.1 uses a resolver (${oc.env:HOME}); specs cannot read the environment",
        ),
    ],
)
def test_refused_overrides(overrides: list[str], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(TOP, overrides)
    assert str(caught.value).lstrip(".") == words


def test_names_with_one_underscore_at_an_end_are_fine_and_plain_references_are_read() -> None:
    data = put(
        TOP, problem__scores={"_a": "token_norm", "b_": {"kind": "token_norm", "weight": "${budget.keep}"}}
    )
    scores = said(data)["problem"]["scores"]
    assert sorted(scores) == ["_a", "b_"] and scores["b_"]["weight"] == 0.5


def test_an_override_that_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(put(TOP, steps=["drop_all"]), ["steps.x.y=3"])
    said_words = str(caught.value)
    assert said_words.startswith("override 'steps.x.y=3' does not fit the spec: ") and "\n" not in said_words


def test_idle_overrides_are_those_that_every_stage_overrules() -> None:
    stages = [{"insertion": "post_encoder", "budget": {"keep": 0.5}}, {"budget": {"keep": 0.25}, "steps": []}]
    data = put(TOP, stages=stages)
    with pytest.raises(SpecError) as caught:
        load_spec(data, ["budget.keep=0.1"])
    assert str(caught.value) == (
        "override 'budget.keep=0.1' has no effect: every stage of this method sets budget.keep itself; "
        "use stages.0.budget.keep=0.1"
    )
    assert caught.value.key == "budget.keep"
    for fine in ("budget.scope=sample", "steps=[drop_all]", "positions=compact", "meta.title=x", "name=y"):
        load_spec(data, [fine])
    assert [s.budget.keep for s in load_spec(TOP, ["budget.keep=0.1"]).stages] == [0.1]


def test_idle_overrides_with_two_equal_signs_are_found_too() -> None:
    with pytest.raises(SpecError, match="has no effect"):
        load_spec(put(TOP, stages=[{"budget": {"keep": 0.5}}]), ["budget.keep=a=b"])
    with pytest.raises(SpecError, match="has no effect") as caught:
        load_spec(put(TOP, stages=[{"budget": {"keep": 0.5}}]), [" budget.keep =a=b"])
    assert caught.value.key == "budget.keep"


def test_references_to_nothing_are_refused_with_their_key() -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(put(TOP, problem__scores__norm__weight="${nothing.here}"))
    assert str(caught.value) == "the spec cannot be read: Interpolation key 'nothing.here' not found"
    assert caught.value.key == "problem.scores.norm.weight"


def test_folders_and_files_that_are_no_methods_are_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.yaml", "family/b.yaml", "_hidden/c.yaml", "family/d.txt", "e.txt"):
        (tmp_path / "methods" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "methods" / name).write_text("")
    monkeypatch.setattr(spec_module, "files", lambda package: tmp_path)
    assert list_methods() == ["a", "family/b"]


def test_sources_that_are_no_spec_are_refused_in_their_own_words(tmp_path: Path) -> None:
    for name in ("gone.yml", "gone.yaml"):
        with pytest.raises(SpecError, match=f"^spec file '{name}' does not exist$"):
            load_spec(name)
    listed = tmp_path / "list.yml"
    listed.write_text("- 1\n")
    with pytest.raises(SpecError, match=r"a spec must be a mapping of keys, not a list or a single value$"):
        load_spec(listed)
    with pytest.raises(
        SpecError, match=r"^divprune\.yaml:\d+:\d+: solver 'farthest_point' does not solve top_k"
    ):
        load_spec("divprune", ["problem={kind: top_k, scores: {s: token_norm}}"])
    label = put(TOP, problem__scores={"X": "${oc.env:HOME}"})
    with pytest.raises(SpecError, match=r"^problem\.scores\.X uses a resolver"):
        load_spec(label)


def test_overrides_that_are_no_yaml_or_do_not_fit_say_so_with_the_reason() -> None:
    with pytest.raises(SpecError, match=r"^override 'budget.keep=\[1': ") as caught:
        load_spec(TOP, ["budget.keep=[1"])
    assert caught.value.key == "budget.keep"
    with pytest.raises(SpecError) as caught:
        load_spec(put(TOP, steps=["drop_all"]), ["steps.x.y=3"])
    assert str(caught.value).startswith("override 'steps.x.y=3' does not fit the spec: ")
    reason = str(caught.value).partition("spec: ")[2]
    assert reason == str(caught.value.__cause__).splitlines()[0] and "x" in reason


def test_methods_are_listed_by_name_and_folder() -> None:
    import pruneopt

    root = Path(pruneopt.__file__).parent / "methods"
    names = {str(p.relative_to(root))[:-5] for p in root.rglob("*.yaml")}
    assert list_methods() == sorted(n for n in names if not n.startswith("_")) and len(names) > 20
    assert any("/" in name for name in names) and any("/" not in name for name in names)


@pytest.mark.parametrize(
    ("override", "key", "sets"),
    [
        ("a.b=1", "a.b", True),
        ("a.b=1", "a.b.c", True),
        ("a.b.c=1", "a.b", True),
        ("a.b=1", "a.bc", False),
        ("a.bc=1", "a.b", False),
        ("a.b=1", "a.c", False),
        (" a.b = 1", "a.b", True),
        ("a[0].b=1", "a.0.b", True),
        ("a[1]=1", "a.0", False),
        ("[a].b=1", "a.b", True),
        ("a.b=c.d=e", "a.b", True),
        ("a=x.b", "x.b", False),
        ("a.b", "a.b", True),
        ("X.a=1", "X.a", True),
    ],
)
def test_an_override_touches_its_key_and_all_above_and_below(override: str, key: str, sets: bool) -> None:
    assert touches(override, key) is sets


def test_a_refusal_says_where_in_the_file_unless_an_override_is_to_blame(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("insertion: post_encoder\nbudget:\n  keep: nothing\nsolver: emd\n")
    for overrides in ([], ["budget.scope=sample"], ["problem.kind=top_k"]):
        with pytest.raises(SpecError) as caught:
            load_spec(str(file), ["problem={kind: top_k, scores: {s: random}}", *overrides])
        said_there = str(caught.value)
        assert said_there.startswith(f"{file}:3:") and said_there.endswith("or a count, got 'nothing'")
    with pytest.raises(SpecError) as caught:
        load_spec(str(file), ["problem={kind: top_k, scores: {s: random}}", "budget.keep=all"])
    assert str(caught.value) == "budget.keep must be a ratio or a count, got 'all'"
