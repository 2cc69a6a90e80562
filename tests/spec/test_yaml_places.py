"""Errors in a YAML file say file, line and column; no value of any key ends in anything but a SpecError."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pruneopt
from pruneopt.errors import PruneoptError, SpecError
from pruneopt.spec.resolve import resolve

SPEC = """\
name: mine
insertion: {kind: prefill_layer, layer: 2}
budget:
  keep: 0.5
  rounding: floor
problem:
  kind: transport
  cost:
    feature:
      kind: feature_sq_l2
      weight: 1.0
    space: {kind: spatial_gaussian, sigma: 10.0}
solver: {kind: sinkhorn, epsilon: 0.05}
readout: row_cost
"""
STAGES = """\
budget: {keep: 0.5}
problem: {kind: top_k, scores: {a: {kind: token_norm}}}
solver: stable_top_k
stages:
  - insertion: {kind: prefill_layer, layer: 2}
  - insertion: {kind: prefill_layer, layer: 4}
    budget:
      keep: 0.25
"""


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("rounding: floor", "roundign: floor", "5:3", "did you mean 'rounding'"),
        ("keep: 0.5", "keep: 0", "4:3", "budget.keep must be above 0"),
        ("floor", "down", "5:3", "budget.rounding"),
        ("kind: feature_sq_l2", "kind: feature_sq", "9:5", "did you mean 'feature_sq_l2'"),
        ("weight: 1.0", "weight: much", "11:7", "weight must be a number"),
        ("weight: 1.0", "normalize: minmix", "11:7", "must be one of none, minmax"),
        ("sigma: 10.0", "sigma: -1", "12:37", "sigma must be"),
        ("epsilon: 0.05", "epsilom: 0.05", "13:26", "no parameter 'epsilom'"),
        ("readout: row_cost", "readout: row_costs", "14:1", "did you mean 'row_cost'"),
        ("readout: row_cost", "", "1:1", "readout is missing"),
        ("  kind: transport", "  kind: transprot", "7:3", "did you mean 'transport'"),
        ("insertion: {kind", "insertion: {_target_: os.system, kind", "2:13", "is not allowed"),
        ("floor", "${oc.env:HOME}", "5:3", "cannot read the environment"),
        ("floor", "${nothing}", "5:3", "cannot be read"),
    ],
)
def test_a_bad_spec_file_is_named_with_line_and_column(
    tmp_path: Path, old: str, new: str, place: str, words: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SPEC)
    pruneopt.load_spec(path)
    assert old in SPEC
    path.write_text(SPEC.replace(old, new, 1))
    with pytest.raises(PruneoptError) as caught:
        pruneopt.load_spec(path)
    assert str(caught.value).startswith(f"{path}:{place}: "), caught.value
    assert words in str(caught.value)


def test_a_fault_of_a_stage_is_found_where_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "stages.yaml"
    for old, new, place in (
        ("keep: 0.25", "keep: 2.5", "8:7"),
        ("layer: 4", "layer: -4", "6:38"),
        ("{keep: 0.5}", "{keep: 0.0}", "1:10"),
        ("token_norm", "token_nrm", "2:33"),
    ):
        path.write_text(STAGES.replace(old, new))
        with pytest.raises(PruneoptError) as caught:
            pruneopt.load_spec(path)
        assert str(caught.value).startswith(f"{path}:{place}: "), caught.value


def test_an_override_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SPEC)
    with pytest.raises(SpecError) as caught:
        pruneopt.load_spec(path, ["budget.keep=0"])
    assert str(path) not in str(caught.value)
    path.write_text(SPEC.replace("floor", "down"))
    with pytest.raises(SpecError, match=r"mine\.yaml:5:3"):
        pruneopt.load_spec(path, ["solver.epsilon=0.1"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"name: [1,\nbudget: 2\n", ":3:1: not valid YAML"),
        (b"name: a\nname: b\n", ":2:1: not valid YAML"),
        (b"name: !!python/object:os.system x\n", ":1:7: not valid YAML"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is not a text file"),
        (b"\x00\x01\x02", "not valid YAML"),
        (b"3", "a mapping is needed"),
        (b"- 1\n", "must be a mapping"),
        (b"", "is missing"),
    ],
)
def test_files_that_are_no_spec(tmp_path: Path, body: bytes, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(body)
    with pytest.raises(SpecError) as caught:
        pruneopt.load_spec(path)
    assert words in str(caught.value) and "bad.yaml" in str(caught.value)


def test_a_folder_is_no_spec(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(SpecError, match="does not exist"):
        pruneopt.load_spec(tmp_path / "folder.yaml")


BAD: tuple[Any, ...] = (None, 3, -1, "x", "", [], {}, [1], {"a": 1}, float("nan"), True, [[1]], {"kind": 3})


def places(data: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in nested plain data."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*before, key)
        yield from places(value, (*before, key))


@pytest.mark.parametrize("method", ["topv", "cdpruner", "todre"])
def test_any_value_anywhere_is_accepted_or_a_refusal(method: str) -> None:
    base = pruneopt.load_spec(method).to_spec()
    base.pop("meta")
    refused = 0
    for path in places(base):
        if path[:2] == ("stages", 0):
            continue  # the second stage says the same of stages, in half the time
        for bad in BAD:
            data = copy.deepcopy(base)
            spot = data
            for key in path[:-1]:
                spot = spot[key]
            spot[path[-1]] = bad
            try:
                resolve(data)  # what load_spec ends in, without the cost of OmegaConf
            except PruneoptError as error:
                assert str(error)
                refused += 1
    assert refused > 150
