"""Parts inside parts: built from plain data, written back, refused under the key that is wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from pruneopt.errors import PruneoptError, SpecError
from pruneopt.parts import Weighted
from pruneopt.parts.costs.cosine_distance import CosineDistance
from pruneopt.parts.costs.feature_sq_l2 import FeatureSquaredL2
from pruneopt.parts.costs.from_kernel import CostFromKernel
from pruneopt.parts.kernels.from_cost import KernelFromCost
from pruneopt.parts.scores.token_norm import TokenNormScore
from pruneopt.parts.scores.transport import Transport
from pruneopt.parts.solvers.one_sided import OneSided
from pruneopt.signals import Attention
from pruneopt.spec.load import load_spec

MOVES: dict[str, Any] = {
    "kind": "transport",
    "cost": {
        "near": {"kind": "spatial_gaussian", "sigma": 2, "weight": 0.5},
        "alike": {"kind": "from_kernel", "kernels": {"k": {"kind": "cosine", "signal": "keys@3"}}},
    },
    "marginals": {"source": {"kind": "from_score", "scores": {"asked": "attention_row"}}},
    "solver": {"kind": "one_sided", "epsilon": 0.2},
    "readout": "one_sided_mass",
}
SPEC: dict[str, Any] = {
    "insertion": {"kind": "prefill_layer", "layer": 3},
    "problem": {
        "kind": "top_k",
        "scores": {
            "move": {**MOVES, "weight": -2, "normalize": "minmax"},
            "norm": {"kind": "token_norm"},
        },
    },
    "solver": "stable_top_k",
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """SPEC with another value below the transport score."""
    out = copy.deepcopy(SPEC)
    inside = out["problem"]["scores"]["move"]
    *above, last = path.split(".")
    for key in above:
        inside = inside.setdefault(key, {})
    inside[last] = value
    return out


def test_nested_parts_are_built_with_all_that_was_said() -> None:
    move, norm = load_spec(SPEC).stages[0].problem.scores
    assert (move.label, move.weight, move.normalize) == ("move", -2.0, "minmax") and norm.weight == 1
    part = move.part
    assert isinstance(part, Transport) and part.solver == OneSided(epsilon=0.2)
    assert [(s.label, s.part.name, s.weight) for s in part.cost] == [
        ("alike", "from_kernel", 1.0),
        ("near", "spatial_gaussian", 0.5),
    ]
    assert [(s.label, s.part.name) for s in part.marginals] == [
        ("source", "from_score"),
        ("target", "uniform"),
    ]
    assert [key for key, _ in part.walk("x")] == [
        "x", "x.cost.alike", "x.cost.alike.kernels.k", "x.cost.near", "x.marginals.source",
        "x.marginals.source.scores.asked", "x.marginals.target", "x.solver", "x.readout",
    ]  # fmt: skip


def test_needs_and_attention_are_those_of_every_level() -> None:
    stage = load_spec(SPEC).stages[0]
    assert stage.needs == {"keys@3", "xy", "attention_last", "features"}
    assert stage.attention is Attention.ROW
    assert stage.problem.scores[0].part.needs == {"keys@3", "xy", "attention_last"}
    assert "uses_positions" in stage.problem.scores[0].part.all_tags
    assert not stage.problem.scores[0].part.tags


def test_a_spec_with_nested_parts_writes_itself_and_hashes_every_level() -> None:
    spec = load_spec(SPEC)
    again = load_spec(spec.to_spec())
    assert again == spec and again.hash == spec.hash
    said = spec.to_spec()["problem"]["scores"]["move"]
    assert said["cost"]["near"] == {
        "kind": "spatial_gaussian",
        "sigma": 2,
        "weight": 0.5,
        "normalize": "none",
    }
    assert said["marginals"]["target"] == {"kind": "uniform"} and said["readout"] == {
        "kind": "one_sided_mass"
    }
    move = "problem.scores.move"
    overrides = [
        f"{move}.cost.near.sigma=3", f"{move}.cost.near.weight=1", f"{move}.cost.near=null",
        f"{move}.marginals.target=token_norm", f"{move}.solver.epsilon=0.1", f"{move}.readout=row_sum",
        f"{move}.cost.alike.kernels.k.signal=keys@2", f"{move}.cost.more=cosine_distance",
        f"{move}.marginals.source.how=softmax",
    ]  # fmt: skip
    hashes = {load_spec(SPEC, [override]).hash for override in overrides}
    assert len(hashes) == len(overrides) and spec.hash not in hashes


def test_a_part_written_by_its_name_alone_takes_parameters_at_every_depth() -> None:
    move = "problem.scores.move"
    spec = load_spec(SPEC, [f"{move}.marginals.target=token_norm", f"{move}.marginals.target.signal=keys@2"])
    assert {s.label: s.part.needs for s in spec.stages[0].problem.scores[0].part.marginals}["target"] == {
        "keys@2"
    }
    short = {**SPEC, "problem": {"kind": "top_k", "scores": {"n": "token_norm"}}}
    assert load_spec(short, ["problem.scores.n.signal=embeddings"]).needs == {"embeddings"}


def test_an_override_of_a_kind_keeps_the_weight_at_every_depth() -> None:
    spec = load_spec(SPEC, ["problem.scores.move.cost.near=central_distance"])
    (near,) = [s for s in spec.stages[0].problem.scores[0].part.cost if s.label == "near"]
    assert (near.part.name, near.weight) == ("central_distance", 0.5)
    same = load_spec(SPEC, ["problem.scores.move.cost.alike.kernels.k=cosine"])
    assert same == load_spec(SPEC)  # the same kind keeps its parameters too
    gone = load_spec(SPEC, ["problem.scores.move.kind=random"]).stages[0].problem.scores[0]
    assert gone.part.name == "random" and (gone.weight, gone.normalize) == (-2.0, "minmax")


BAD = [
    ("cost.near.sigma", -1, "problem.scores.move.cost.near: spatial_gaussian.sigma must be above 0, got -1",
     "cost.near.sigma"),
    ("cost.near.sgma", 1, "problem.scores.move.cost.near: spatial_gaussian has no parameter 'sgma'; did you "
     "mean 'sigma'?", "cost.near.sgma"),
    ("cost.near.weight", "x", "problem.scores.move.cost.near.weight must be a number, got 'x'",
     "cost.near.weight"),
    ("cost.near.normalize", "x", "problem.scores.move.cost.near.normalize must be one of none, minmax, sum, "
     "max, zscore, l2, softmax, got 'x'", "cost.near.normalize"),
    ("cost", {}, "problem.scores.move: transport.cost is empty; transport needs at least one cost", "cost"),
    ("cost", "spatial_gaussian", "problem.scores.move.cost must be a mapping from labels to parts, got "
     "'spatial_gaussian'", "cost"),
    ("marginals", {"sorce": "uniform"}, "unknown key problem.scores.move.marginals.sorce; did you mean "
     "'source'?", "marginals.sorce"),
    ("marginals.source", "unifrom", "unknown marginal 'unifrom'; did you mean 'uniform'?",
     "marginals.source"),
    ("solver", "stable_top_k", "problem.scores.move.solver: 'stable_top_k' is not a TransportSolver",
     "solver"),
    ("solver.epsilon", 0, "problem.scores.move.solver: one_sided.epsilon must be above 0, got 0",
     "solver.epsilon"),
    ("cost.alike.kernels.k.heads", "all", "problem.scores.move.cost.alike.kernels.k: cosine.heads must be "
     "one of joined, mean, got 'all'", "cost.alike.kernels.k.heads"),
    ("colour", "red", "problem.scores.move: transport has no parameter 'colour'", "colour"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "words", "key"), BAD)
def test_refusals_name_the_key_at_every_depth(path: str, value: Any, words: str, key: str) -> None:
    with pytest.raises(PruneoptError) as caught:
        load_spec(changed(path, value))
    assert str(caught.value).startswith(words)
    assert caught.value.key == f"problem.scores.move.{key}"


WRAPS = [
    ("log_det", "pairwise", "cosine_distance", "'cosine_distance' is a cost, and here stands a kernel: wrap "
     "it, {kind: from_cost, cost: {cosine_distance: {kind: cosine_distance}}}"),
    ("max_min", "pairwise", "cosine", "'cosine' is a kernel, and here stands a cost: wrap it, "
     "{kind: from_kernel, kernels: {cosine: {kind: cosine}}}"),
    ("max_min", "pairwise", "token_norm", "'token_norm' is a score, and here stands a cost: wrap it, "
     "{kind: from_score, scores: {token_norm: {kind: token_norm}}}"),
    ("top_k", "scores", "central_distance", "'central_distance' is a cost, and here stands a score: wrap it, "
     "{kind: from_cost, cost: {central_distance: {kind: central_distance}}}"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "slot", "name", "words"), WRAPS)
def test_a_part_of_another_kind_is_refused_with_what_turns_it(
    kind: str, slot: str, name: str, words: str
) -> None:
    data = {**SPEC, "problem": {"kind": kind, slot: {"x": name}}}
    with pytest.raises(PruneoptError) as caught:
        load_spec(data)
    assert str(caught.value) == words and caught.value.key == f"problem.{slot}.x"


def test_a_score_where_a_marginal_stands_is_refused_with_its_wrap() -> None:
    with pytest.raises(PruneoptError) as caught:
        load_spec(changed("marginals.target", "cls_attention"))
    assert "{kind: from_score, scores: {cls_attention: {kind: cls_attention}}}" in str(caught.value)


def test_a_file_names_the_line_of_a_nested_key(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    path = tmp_path / "mine.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(changed("cost.near.sigma", -1))))
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "sigma" in text)
    with pytest.raises(SpecError, match=f"mine.yaml:{line}:"):
        load_spec(path)


def test_parts_built_in_python_are_checked_too() -> None:
    with pytest.raises(SpecError, match=r"transport.cost.x must be a CostTerm, got TokenNormScore"):
        Transport(cost=(Weighted("x", TokenNormScore()),))
    with pytest.raises(SpecError, match=r"transport.cost is empty"):
        Transport(cost=())
    with pytest.raises(SpecError, match=r"transport.solver must be TransportSolver"):
        Transport(solver="sinkhorn")  # type: ignore[arg-type]
    given = (Weighted("x", CosineDistance()),)
    assert Transport.from_spec({"cost": given}).cost is given


def test_a_kernel_from_a_cost_is_called_psd_only_where_that_is_proven() -> None:
    def kernel(weight: float = 1.0, normalize: str = "none", repair: str = "none", **more: Any) -> bool:
        part = more.pop("part", CosineDistance())
        return "psd" in KernelFromCost((Weighted("x", part, weight, normalize),), repair=repair).all_tags

    assert kernel() and kernel(2.0, "minmax") and kernel(part=FeatureSquaredL2("keys", "keys"))
    assert kernel(part=CostFromKernel())
    for unproven in ({"weight": -1.0}, {"normalize": "softmax"}, {"part": FeatureSquaredL2()}):
        assert not kernel(**unproven) and kernel(**unproven, repair="ridge")
