"""Specs are data: closed, typed, resolved, hashed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pruneopt.errors import PruneoptError, RegistryError, SpecError
from pruneopt.spec.load import list_methods, load_spec

BASE = {
    "name": "mine",
    "insertion": {"kind": "prefill_layer", "layer": 2},
    "budget": {"keep": 0.5},
    "problem": {"kind": "top_k", "scores": {"norm": {"kind": "token_norm"}}},
    "solver": {"kind": "stable_top_k"},
}


@pytest.mark.slow
def test_every_shipped_method_loads_and_round_trips() -> None:
    names = list_methods()
    assert "topv" in names
    for name in names:
        spec = load_spec(name)
        again = load_spec(spec.to_spec())
        assert again.hash == spec.hash, name
        assert again.to_spec() == spec.to_spec(), name


def test_overrides_change_the_hash_and_nothing_else_does() -> None:
    spec = load_spec(BASE)
    assert load_spec({**BASE, "name": "other", "meta": {"title": "x"}}).hash == spec.hash
    assert load_spec(BASE, ["budget.keep=0.50"]).hash == spec.hash
    assert load_spec(BASE, ["budget.keep=0.25"]).hash != spec.hash
    assert load_spec(BASE, ["positions=compact"]).hash != spec.hash
    assert load_spec(BASE, ["problem.scores.norm.weight=2"]).hash != spec.hash
    assert load_spec(BASE, ["budget.keep=1"]).hash == load_spec(BASE, ["budget.keep=1.0"]).hash


@pytest.mark.slow
def test_the_hash_is_the_same_in_another_process() -> None:
    code = "from pruneopt.spec.load import load_spec; print(load_spec('topv').hash)"
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert out.stdout.strip() == load_spec("topv").hash


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["budget.kep=0.5"], ["budget.kep", "keep"]),
        (["bugdet.keep=0.5"], ["bugdet", "budget"]),
        (["insertion.layr=3"], ["layr", "layer"]),
        (["insertion.kind=prefil_layer"], ["prefil_layer", "prefill_layer"]),
        (["solver.kind=stable_topk"], ["stable_topk", "stable_top_k"]),
        (["solver=stable_topk"], ["stable_topk", "stable_top_k"]),
        (["problem.kind=topk"], ["topk", "top_k"]),
        (["problem.scores.norm.kind=tokennorm"], ["tokennorm", "token_norm"]),
        (["positions=kept"], ["positions", "keep", "compact"]),
        (["budget.keep=0"], ["budget.keep", "above 0"]),
        (["budget.keep=-0.5"], ["budget.keep", "above 0"]),
        (["budget.keep=1.5"], ["budget.keep", "whole"]),
        (["budget.keep=much"], ["budget.keep", "much"]),
        (["budget.keep=true"], ["budget.keep"]),
        (["budget.keep=.nan"], ["budget.keep"]),
        (["budget.rounding=up"], ["rounding", "ceil"]),
        (["insertion.layer=0"], ["layer", "at least 1"]),
        (["insertion.layer=two"], ["layer", "two"]),
        (["problem.scores.norm.weight=heavy"], ["weight", "heavy"]),
        (["problem.scores.norm.normalize=minmx"], ["normalize", "minmax"]),
        (["readout.kind=row_sum"], ["readout", "top_k"]),
        (["budget.keep"], ["key.path=value"]),
        (["problem.threshold=${oc.env:HOME}"], ["resolver"]),
        (["problem.scores.norm._target_=os.system"], ["_target_", "not allowed"]),
        (["problem.cost.a.kind=feature_sq_l2"], ["cost", "transport"]),
        (["insertion.layer=[2,4]", "budget.keep=[0.5]"], ["2 entries", "1"]),
    ],
)
def test_bad_keys_and_values_name_the_thing_and_the_cure(overrides: list[str], words: list[str]) -> None:
    with pytest.raises((SpecError, RegistryError)) as caught:
        load_spec(BASE, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_unknown_methods_suggest_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean 'topv'"):
        load_spec("topvv")
    with pytest.raises(SpecError, match="does not exist"):
        load_spec("missing.yaml")


def test_yaml_that_is_not_a_spec_is_refused(tmp_path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2\n")
    with pytest.raises(SpecError, match="not valid YAML"):
        load_spec(str(broken))
    listy = tmp_path / "list.yaml"
    listy.write_text("- 1\n- 2\n")
    with pytest.raises(SpecError, match="must be a mapping"):
        load_spec(str(listy))


def test_lists_of_layers_become_stages() -> None:
    spec = load_spec(BASE, ["insertion.layer=[8,16,24]", "budget.keep=[0.5,0.25,0.125]"])
    assert [s.insertion.layer_index for s in spec.stages] == [8, 16, 24]
    assert [s.budget.keep for s in spec.stages] == [0.5, 0.25, 0.125]
    assert load_spec(spec.to_spec()).hash == spec.hash


def test_stages_say_only_what_differs() -> None:
    stages = [{"insertion": "post_encoder"}, {"budget": {"keep": 0.25}}]
    spec = load_spec({**BASE, "stages": stages})
    assert [s.insertion.layer_index for s in spec.stages] == [0, 2]
    assert [s.budget.keep for s in spec.stages] == [0.5, 0.25]
    with pytest.raises(SpecError, match="order of depth"):
        load_spec({**BASE, "stages": stages[::-1]})


def test_an_override_that_every_stage_overrules_is_refused() -> None:
    stages = [{"insertion": "post_encoder", "budget": {"keep": 0.5}}, {"budget": {"keep": 0.25}}]
    with pytest.raises(SpecError, match=r"no effect.*use stages\.0\.budget\.keep=0\.1"):
        load_spec({**BASE, "stages": stages}, ["budget.keep=0.1"])
    spec = load_spec({**BASE, "stages": stages}, ["stages.1.budget.keep=0.1"])
    assert [s.budget.keep for s in spec.stages] == [0.5, 0.1]
    inherits = [{"insertion": "post_encoder"}, {"budget": {"keep": 0.25}}]
    spec = load_spec({**BASE, "stages": inherits}, ["budget.keep=0.75"])
    assert [s.budget.keep for s in spec.stages] == [0.75, 0.25]


def test_changing_a_kind_drops_the_parameters_of_the_old_one() -> None:
    spec = load_spec("topv", ["solver=emd"])
    assert spec.stages[0].solver.name == "emd"
    weighted = load_spec("topv", ["problem.cost.centre.kind=spatial_gaussian"])
    assert {s.label: s.weight for s in weighted.stages[0].problem.cost}["centre"] == 0.01


def test_null_removes_a_summand() -> None:
    spec = load_spec("topv", ["problem.cost.centre=null"])
    assert [s.label for s in spec.stages[0].problem.cost] == ["feature", "spatial"]


def test_every_refusal_is_a_pruneopt_error() -> None:
    with pytest.raises(PruneoptError):
        load_spec(BASE, ["solver=nonsense"])


def test_what_refers_to_a_part_keeps_its_value_when_the_part_gives_way() -> None:
    """`dart` counts its text pivots by `${solver.text_pivots}`."""
    spec = load_spec("dart", ["solver.text_pivots=3", "solver=threshold_search"])
    (text,) = spec.stages[0].problem.anchors
    assert text.part.count == 3 and spec.stages[0].solver.name == "threshold_search"
    again = load_spec("dart", ["solver=threshold_search", "solver={kind: pivot, text_pivots: 4}"])
    assert again.hash == load_spec("dart").hash
    both = load_spec("dart", ["solver.kind=dart_pivots", "solver.text_pivots=2"])
    assert both.stages[0].problem.anchors[0].part.count == 2  # the new part says it, so the reference stands


CLOSER = {
    "cdpruner": "local_search", "dart": "threshold_search", "divprune": "milp", "fastv": "brute_force",
    "greedyprune": "local_search", "saint/encoder": "local_search", "topv": "emd", "vispruner": "milp",
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSER)
def test_any_method_runs_one_notch_closer_by_the_name_of_a_solver(name: str) -> None:
    """`solver=NAME` is all that is said; everything else of the spec stays."""
    plain, closer = load_spec(name).to_spec(), load_spec(name, [f"solver={CLOSER[name]}"]).to_spec()
    assert closer.pop("solver")["kind"] == CLOSER[name]
    plain.pop("solver")
    assert closer == plain
