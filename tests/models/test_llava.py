"""LLaVA-1.5: removal equals masking, in every way the conformance suite knows."""

from __future__ import annotations

import pytest
from tiny_models import llava, llava_rows, llava_scenarios

from pruneopt.testing.insertion import CHECKS, InsertionCase, check_insertion

CASE = InsertionCase("LLaVA-1.5", llava, llava_scenarios(), llava_rows())


@pytest.mark.parametrize("name", list(CHECKS))
def test_llava_passes(name: str) -> None:
    [result] = check_insertion(CASE, [name])
    assert result.problem == ""
