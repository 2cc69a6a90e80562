"""LLaVA-1.5: removal equals masking, in every way the conformance suite knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_models import llava, llava_rows, llava_scenarios, precise, precisely

from pruneopt.testing.insertion import CHECKS, InsertionCase, check_insertion

ROWS = {name: list(precisely(dict(enumerate(rows))).values()) for name, rows in llava_rows().items()}
CASE = InsertionCase("LLaVA-1.5", precise(llava), precisely(llava_scenarios()), ROWS, attention=("sdpa",))


@pytest.mark.parametrize("name", list(CHECKS))
def test_llava_passes(name: str) -> None:
    [result] = check_insertion(CASE, [name])
    assert result.problem == ""


def test_llava_passes_with_eager_attention() -> None:
    """In float32: eager attention takes its softmax in float32, whatever the model is."""
    eager = replace(CASE, build=llava, scenarios=llava_scenarios(), attention=("eager",))
    [result] = check_insertion(eager, ["oracle"])
    assert result.problem == ""
