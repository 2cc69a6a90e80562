"""Every bug planted where one price spends a budget is noticed, by an assertion or a refusal."""

from __future__ import annotations

import pytest
from core_bugs import Bug, planted
from price_bugs import BUGS

from pruneopt.errors import PruneoptError


@pytest.mark.parametrize("bug", BUGS, ids=[bug.said for bug in BUGS])
def test_the_test_named_for_a_bug_notices_it(bug: Bug) -> None:
    with planted(bug), pytest.raises((AssertionError, pytest.fail.Exception, PruneoptError)):
        bug.test()
