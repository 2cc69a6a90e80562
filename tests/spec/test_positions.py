"""`positions`: said once for all stages, or at a stage of its own."""

from __future__ import annotations

from typing import Any

import pytest

from pruneopt.errors import SpecError
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec

TOP: dict[str, Any] = {
    "name": "two",
    "problem": {"kind": "top_k", "scores": {"chance": "random"}},
    "solver": "stable_top_k",
}


def two(*own: str | None, **top: str) -> Spec:
    stages = [
        {"insertion": {"kind": "prefill_layer", "layer": n + 1}, **({} if p is None else {"positions": p})}
        for n, p in enumerate(own)
    ]
    return load_spec({**TOP, **top, "stages": stages})


@pytest.mark.parametrize(
    ("own", "top", "wanted"),
    [
        ((None, None), None, ["keep", "keep"]),
        ((None, None), "compact", ["compact", "compact"]),
        (("compact", None), None, ["compact", "keep"]),
        ((None, "keep"), "compact", ["compact", "keep"]),
        (("compact", "compact"), "keep", ["compact", "compact"]),
        (("keep", "compact"), "compact", ["keep", "compact"]),
    ],
)
def test_a_stage_has_its_own_policy_or_that_of_all(
    own: tuple[str | None, ...], top: str | None, wanted: list[str]
) -> None:
    spec = two(*own, **({} if top is None else {"positions": top}))
    assert [spec.positions_at(stage) for stage in spec.stages] == wanted
    again = load_spec(spec)
    assert again == spec and again.hash == spec.hash


def test_one_policy_has_one_form_wherever_it_was_written() -> None:
    above, each = two(None, None, positions="compact"), two("compact", "compact")
    assert above == each and above.hash == each.hash and each.positions == "compact"
    assert [stage.positions for stage in each.stages] == [None, None]
    alone = load_spec({**TOP, "stages": [{"insertion": "post_encoder", "positions": "compact"}]})
    assert alone.positions == "compact" and "stages" not in alone.to_spec()
    mixed = two("compact", "keep")
    assert mixed.positions == "keep" and [stage.positions for stage in mixed.stages] == ["compact", None]
    assert mixed.hash not in (above.hash, two(None, None).hash, two("keep", "compact").hash)
    assert [s.get("positions") for s in mixed.to_spec()["stages"]] == ["compact", None]


def test_a_policy_that_does_not_exist_is_refused_where_it_stands() -> None:
    with pytest.raises(SpecError) as caught:
        two(None, "packed")
    assert str(caught.value) == "stages.1.positions must be one of keep, compact, got 'packed'"
    assert caught.value.key == "stages.1.positions"
    with pytest.raises(SpecError, match=r"^positions must be one of keep, compact, got None"):
        load_spec({**TOP, "insertion": "post_encoder", "positions": None})


def test_overrides_reach_one_stage_or_all_that_say_nothing() -> None:
    spec = load_spec("vflowopt")
    assert [spec.positions_at(stage) for stage in spec.stages] == ["compact", "keep", "keep"]
    other = load_spec("vflowopt", ["positions=compact"])
    assert {other.positions_at(stage) for stage in other.stages} == {"compact"}
    one = load_spec("vflowopt", ["stages.1.positions=compact"])
    assert [one.positions_at(stage) for stage in one.stages] == ["compact", "compact", "keep"]
    said = {**TOP, "stages": [{"insertion": "post_encoder", "positions": "keep"}]}
    with pytest.raises(SpecError, match=r"has no effect: every stage .* stages\.0\.positions=compact"):
        load_spec(said, ["positions=compact"])
