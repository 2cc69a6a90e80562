"""Every bug planted in a bound is noticed, by an assertion and not by a crash."""

from __future__ import annotations

import pytest
from bound_bugs import BUGS
from core_bugs import Bug, planted


@pytest.mark.parametrize("bug", BUGS, ids=[bug.said for bug in BUGS])
def test_the_test_named_for_a_bug_notices_it(bug: Bug) -> None:
    with planted(bug), pytest.raises((AssertionError, pytest.fail.Exception)):
        bug.test()
