"""Guarding the guards: every bug planted in the core is noticed, by an assertion and not by a crash."""

from __future__ import annotations

import pytest
from core_bugs import BUGS, Bug, planted


@pytest.mark.parametrize("bug", BUGS, ids=[bug.said for bug in BUGS])
def test_the_test_named_for_a_bug_notices_it(bug: Bug) -> None:
    bug.test()
    with planted(bug), pytest.raises((AssertionError, pytest.fail.Exception)):
        bug.test()
    bug.test()
