"""One price over crops, tiles and frames of real (tiny) models: the oracle, the report, batch mates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_families import FAMILIES, case

import pruneopt
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec
from pruneopt.testing.insertion import check_insertion

PLACES: dict[str, Any] = {
    "post_encoder": {"insertion": "post_encoder", "signal": "features"},
    "layer 1": {"insertion": {"kind": "prefill_layer", "layer": 1}, "signal": "hidden_in"},
}
SOME = ("llava_next", "internvl", "llava_next_video")


def priced(place: str, **rule: Any) -> Spec:
    insertion, signal = PLACES[place].values()
    return load_spec(
        {
            "name": f"priced {place}",
            "insertion": insertion,
            "budget": {"keep": 0.4, "rule": {"kind": "one_price", **rule}},
            "problem": {
                "kind": "facility_location",
                "pairwise": {"alike": {"kind": "cosine", "signal": signal}},
            },
            "solver": "lazy_greedy",
        }
    )


def run(family: str, name: str, spec: Spec) -> pruneopt.models.run.Run:
    build, make = FAMILIES[family]
    model, inputs = build(), make(build)[name]
    with torch.no_grad(), pruneopt.prune(model, spec) as found:
        model(**inputs)
    return found


@pytest.mark.parametrize("family", SOME)
def test_removal_equals_masking(family: str) -> None:
    few = {k: v for k, v in case(family).scenarios.items() if k in ("left", "video")}
    specs = tuple(
        priced(place, over=over) for place, over in (("post_encoder", "sample"), ("layer 1", "batch"))
    )
    [result] = check_insertion(replace(case(family), scenarios=few, specs=specs), ["oracle"])
    assert result.problem == ""


def every() -> Iterator[tuple[str, str, str]]:
    for family in SOME:
        for name in ("left", "video")[: 1 + family.endswith("video")]:
            for place in PLACES:
                yield family, name, place


@pytest.mark.parametrize(("family", "name", "place"), list(every()))
def test_a_sample_keeps_what_equal_shares_keep_of_it(family: str, name: str, place: str) -> None:
    """The total is matched exactly, parts differ, and the joint value is no smaller."""
    spec = priced(place)
    equal = replace(spec, stages=(replace(spec.stages[0], rule=None),))
    one, other = run(family, name, spec), run(family, name, equal)
    assert [len(row) for row in one.kept_visual[spec.stages[0].insertion.layer_index]] == [
        len(row) for row in other.kept_visual[spec.stages[0].insertion.layer_index]
    ]
    allotment = one.selections[0].evidence["budget.rule"]
    shared = allotment.shares.sums(other.selections[0].solution.value)
    assert (allotment.value >= shared - 1e-6 * shared.abs()).all()
    assert (allotment.upper_bound >= allotment.value).all()
    parts = other.selections[0].solution.problem.counts
    assert sum(allotment.counts) == sum(parts)
    assert allotment.counts != parts


def test_the_report_shows_price_and_counts_of_every_part() -> None:
    found = run("llava_next", "left", priced("post_encoder", over="batch"))
    allotment = found.selections[0].evidence["budget.rule"]
    (item,) = [each["budget.rule"] for each in found.report.to_dict()["evidence"]]
    assert item["counts"] == list(allotment.counts)
    assert item["price"] == allotment.price.tolist()
    assert item["value"] == allotment.value.tolist()
    text = str(found.report)
    assert f"budget.rule: counts {list(allotment.counts)} at price".replace(" ", "") in "".join(text.split())
    assert "depends on the samples beside it" in text


def test_over_a_sample_batch_mates_change_nothing() -> None:
    build, make = FAMILIES["internvl"]
    model, batches = build(), make(build)
    spec = priced("post_encoder")
    with torch.no_grad(), pruneopt.prune(model, spec) as together:
        model(**batches["left"])
    whole = together.selections[0].evidence["budget.rule"]
    with torch.no_grad(), pruneopt.prune(model, spec) as alone:
        model(**batches["single"])
    first = alone.selections[0].evidence["budget.rule"]
    assert whole.counts[: len(first.counts)] == first.counts
