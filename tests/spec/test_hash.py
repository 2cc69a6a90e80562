"""The hash names runs: everything that decides a result is in it, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from pruneopt.parts import Part
from pruneopt.problems.budget import Budget
from pruneopt.spec.load import list_methods, load_spec
from pruneopt.spec.schema import ProblemSpec, Protect, Spec, StageSpec, Weighted

OBJECTS = (Spec, StageSpec, ProblemSpec, Protect, Weighted, Budget, Part)


def other(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 0.5 if isinstance(value, float) else value + 1
    if isinstance(value, str):
        return value + "_"
    if isinstance(value, tuple):
        return (*value[:-1], other(value[-1])) if value else ("x",)
    return 1  # for None


def with_field(thing: Any, name: str, value: Any) -> Any:
    """A copy with one field changed: unchecked, and without what the original had cached."""
    changed = copy.copy(thing)
    fields = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}
    changed.__dict__.clear()
    for key, old in {**fields, name: value}.items():
        object.__setattr__(changed, key, old)
    return changed


def single_changes(thing: Any) -> Iterator[tuple[str, Any]]:
    """Every copy that differs in exactly one value somewhere below, with the path to that value."""
    for item in dataclasses.fields(thing):
        value = getattr(thing, item.name)
        path = f"{type(thing).__name__}.{item.name}"
        if isinstance(thing, Spec) and item.name in ("name", "meta"):
            continue
        if isinstance(thing, Protect) and thing.where is not None and item.name != "where":
            continue  # `where` names the tokens by itself
        if isinstance(value, OBJECTS):
            yield from (
                (f"{path}/{p}", with_field(thing, item.name, new)) for p, new in single_changes(value)
            )
        elif isinstance(value, tuple) and value and isinstance(value[0], OBJECTS):
            yield f"{path} (one less)", with_field(thing, item.name, value[1:])
            for i, entry in enumerate(value):
                for p, new in single_changes(entry):
                    yield f"{path}/{p}", with_field(thing, item.name, (*value[:i], new, *value[i + 1 :]))
        elif value is not None and not (value == () and not isinstance(thing, Part)):
            yield path, with_field(thing, item.name, other(value))


@pytest.mark.slow
def test_every_value_of_every_shipped_method_decides_its_hash() -> None:
    paths: set[str] = set()
    for name in list_methods():
        spec = load_spec(name)
        for path, changed in single_changes(spec):
            assert changed.hash != spec.hash, f"{name}: {path} is not in the hash"
            paths.add(path)
    leaves = {path.rpartition("/")[2] for path in paths}
    for cls in (Budget, Protect, Weighted):
        missing = {f"{cls.__name__}.{f.name}" for f in dataclasses.fields(cls)} - leaves
        assert missing <= {"Protect.count", "Protect.scores", "Protect.where", "Weighted.part"}, missing


def test_every_field_of_protect_decides_the_hash() -> None:
    spec = load_spec(PROTECTED)
    hashes = [spec.hash, *(changed.hash for _, changed in single_changes(spec))]
    assert len(set(hashes)) == len(hashes)
    roundings = [
        load_spec(PROTECTED, [f"problem.protect.rounding={r}"]).hash for r in ("floor", "ceil", "round")
    ]
    assert len(set(roundings)) == 3
    counted = load_spec(PROTECTED, ["problem.protect.share=null", "problem.protect.count=1"])
    more = load_spec(PROTECTED, ["problem.protect.share=null", "problem.protect.count=2"])
    assert len({spec.hash, counted.hash, more.hash}) == 3


PROTECTED = {
    "insertion": "post_encoder",
    "problem": {
        "kind": "max_min",
        "pairwise": {"c": {"kind": "cosine_distance"}},
        "protect": {"share": 0.25, "scores": {"own": {"kind": "token_norm"}}},
    },
    "solver": "farthest_point",
}
TOP_K = {
    "name": "mine",
    "insertion": {"kind": "prefill_layer", "layer": 2},
    "budget": {"keep": 0.5},
    "problem": {
        "kind": "top_k",
        "scores": {
            "a": {"kind": "token_norm", "weight": 2},
            "b": {"kind": "uniform_grid", "normalize": "sum"},
        },
    },
    "solver": "stable_top_k",
}


def test_what_does_not_decide_the_result_is_not_in_the_hash() -> None:
    plain = load_spec(TOP_K).hash
    scores = TOP_K["problem"]["scores"]
    for same in (
        {**TOP_K, "name": "other"},
        {**TOP_K, "meta": {"title": "words", "note": "more"}},
        dict(reversed(TOP_K.items())),
        {**TOP_K, "positions": "keep", "readout": None, "steps": [], "meta": {}},
        {**TOP_K, "solver": {"kind": "stable_top_k"}},
        {**TOP_K, "budget": {"keep": 0.5, "rounding": "round", "scope": "group", "total": False}},
        {**TOP_K, "problem": {"kind": "top_k", "scores": dict(reversed(scores.items()))}},
        {**TOP_K, "problem": {"kind": "top_k", "scores": {**scores, "gone": None}}},
        {**TOP_K, "problem": {"kind": "top_k", "scores": {**scores, "a": {**scores["a"], "weight": 2.0}}}},
        {**TOP_K, "stages": [{}]},
        {k: v for k, v in TOP_K.items() if k not in ("insertion",)}
        | {"stages": [{"insertion": {"kind": "prefill_layer", "layer": 2}}]},
    ):
        assert load_spec(same).hash == plain, same


def test_one_and_two_equal_stages_are_different_methods_and_their_order_matters() -> None:
    one = load_spec({**TOP_K, "stages": [{}]})
    two = load_spec({**TOP_K, "stages": [{}, {}]})
    first = load_spec({**TOP_K, "stages": [{"budget": {"keep": 0.25}}, {}]})
    second = load_spec({**TOP_K, "stages": [{}, {"budget": {"keep": 0.25}}]})
    assert len({s.hash for s in (one, two, first, second)}) == 4


def test_the_hash_is_made_of_sixteen_hexadecimal_digits_of_the_sorted_compact_body() -> None:
    import hashlib
    import json

    spec = load_spec(TOP_K)
    body = {k: v for k, v in spec.to_spec().items() if k not in ("name", "meta")}
    body["problem"]["scores"]["a"]["weight"] = 2  # whole floats hash as integers
    body["problem"]["scores"]["b"]["weight"] = 1
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    assert spec.hash == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_spec_says_everything_with_its_defaults() -> None:
    assert load_spec(TOP_K).to_spec() == {
        "name": "mine",
        "positions": "keep",
        "insertion": {"kind": "prefill_layer", "layer": 2},
        "budget": {
            "keep": 0.5, "rounding": "round", "scope": "group", "total": False, "relative_to": "start",
        },
        "problem": {
            "kind": "top_k",
            "scores": {
                "a": {"kind": "token_norm", **params("token_norm"), "weight": 2, "normalize": "none"},
                "b": {"kind": "uniform_grid", **params("uniform_grid"), "weight": 1, "normalize": "sum"},
            },
        },
        "solver": {"kind": "stable_top_k"},
        "readout": None,
        "steps": [],
        "meta": {},
    }  # fmt: skip


def params(name: str, group: str = "scores") -> dict[str, Any]:
    from pruneopt.registry import registry

    return {f.name: f.default for f in dataclasses.fields(registry(group).get(name))}


FULL = {
    "name": "all",
    "positions": "compact",
    "insertion": "post_encoder",
    "budget": {"keep": 0.5, "rule": {"kind": "capped", "spare": 2}},
    "problem": {
        "kind": "independent_set",
        "scores": {"s": "token_norm"},
        "pairwise": {"k": "cosine"},
        "threshold": 0.5,
        "protect": {"count": 1},
    },
    "solver": "greedy_conflict",
    "steps": [{"kind": "recover_every", "interval": 3}],
    "meta": {"title": "t"},
}
QUOTA = {
    "insertion": "post_encoder",
    "problem": {"kind": "quota", "scores": {"s": "token_norm"}, "quota": "time"},
    "solver": "quota_top_k",
}
TRANSPORT = {
    "insertion": "post_encoder",
    "problem": {"kind": "transport", "cost": {"c": "feature_sq_l2"}, "marginals": {"source": "token_norm"}},
    "solver": "emd",
    "readout": "row_cost",
}


WHERE = {**TOP_K, "problem": {**TOP_K["problem"], "protect": {"where": "token_norm"}}}
RAISED = {
    "insertion": "post_encoder",
    "problem": {"kind": "log_det", "pairwise": {"k": "cosine"}, "symmetric": "mean", "ridge": 0.5},
    "solver": "greedy_log_det",
}


@pytest.mark.parametrize("data", [FULL, QUOTA, TRANSPORT, PROTECTED, TOP_K, WHERE, RAISED])
def test_what_a_spec_says_loads_back_to_the_same(data: dict[str, Any]) -> None:
    spec = load_spec(data)
    said = spec.to_spec()
    assert load_spec(said).to_spec() == said
    assert yaml.safe_load(spec.yaml()) == said == OmegaConf.to_container(OmegaConf.create(spec.yaml()))
    for key in ("threshold", "quota", "protect", "marginals", "cost", "anchors"):
        assert (key in said["problem"]) == (key in data["problem"]), key
    assert ("rule" in said["budget"]) == ("rule" in data.get("budget", {}))


def test_what_a_full_spec_says() -> None:
    said = load_spec(FULL).to_spec()
    assert said["meta"] == {"title": "t"} and said["positions"] == "compact" and said["name"] == "all"
    assert said["budget"]["rule"] == {"kind": "capped", "spare": 2}
    assert said["problem"]["protect"] == {"share": None, "count": 1, "rounding": "floor", "scores": {}}
    assert said["problem"]["threshold"] == 0.5
    assert said["steps"] == [{"kind": "recover_every", "interval": 3}]
    moved = load_spec(TRANSPORT).to_spec()
    assert moved["problem"]["marginals"] == {
        "source": {
            "kind": "token_norm",
            **params("token_norm", "marginals"),
        },
        "target": {"kind": "uniform"},
    }
    assert moved["readout"]["kind"] == "row_cost"
    assert load_spec(QUOTA).to_spec()["problem"]["quota"] == "time"
    where = load_spec(WHERE).to_spec()["problem"]["protect"]
    assert where == {"where": {"kind": "token_norm", **params("token_norm")}}
    raised = load_spec(RAISED).to_spec()["problem"]
    assert (raised["symmetric"], raised["ridge"]) == ("mean", 0.5)
    assert not {"symmetric", "ridge"} & load_spec(PROTECTED).to_spec()["problem"].keys()
    by_score = {**QUOTA, "problem": {**QUOTA["problem"], "quota": {"kind": "random"}}}
    said = load_spec(by_score).to_spec()["problem"]["quota"]
    assert said == {"kind": "random", **params("random")}


def test_needs_are_those_of_all_parts_and_of_the_quota() -> None:
    """Every place a part can stand in adds its signals; a quota by name adds that signal."""
    full = load_spec({**FULL, "problem": {**FULL["problem"], "scores": {"s": "key_norm"}}}).stages[0]
    expected = frozenset().union(*(part.needs for part in full.parts))
    assert full.needs == expected and {"keys"} <= {n.partition("@")[0] for n in full.needs} | {"keys"}
    kinds = [type(part).name for part in full.parts]
    assert kinds == ["key_norm", "cosine", "greedy_conflict", "capped", "recover_every"]
    protected = load_spec(PROTECTED).stages[0]
    assert [type(p).name for p in protected.problem.parts] == ["cosine_distance", "token_norm"]
    quota = load_spec(QUOTA).stages[0]
    assert quota.needs == quota.problem.scores[0].part.needs | {"time"}
    default = load_spec({**QUOTA, "problem": {"kind": "quota", "scores": {"s": "token_norm"}}}).stages[0]
    assert "group" in default.needs and "time" not in default.needs
    scored = {**QUOTA, "problem": {**QUOTA["problem"], "quota": {"kind": "patch_entropy"}}}
    by_score = load_spec(scored).stages[0]
    assert "patches" in by_score.needs and not by_score.needs & {"group", "time"}
    moved = load_spec(TRANSPORT).stages[0]
    assert [type(p).name for p in moved.parts] == [
        "transport",
        "feature_sq_l2",
        "token_norm",
        "uniform",
        "emd",
        "row_cost",
    ]
    both = load_spec(
        {**TOP_K, "stages": [{"solver": "stable_top_k"}, {"problem": {"scores": {"a": "key_norm"}}}]}
    )
    assert both.stages[0].needs != both.stages[1].needs
    assert both.needs == both.stages[0].needs | both.stages[1].needs
