"""Guarding the guards: planted bugs fall to the checks recorded, and every check kills something."""

from __future__ import annotations

import pytest
from kill_matrix import KILLS
from planted_run import PLANTED, verdict

from pruneopt.testing import CheckFailure, check_part, checks_for
from pruneopt.testing.suites import kind_of

# The check named for each of the twelve bugs measured in the literature on smoke tests.
NAMED = {
    "transport.TransposedWhenSquare": "check_permutation",
    "transport.IgnoresSourceWeights": "check_marginals",
    "transport.TwoRoundsConverged": "check_status_honest",
    "transport.Underflow": "check_offset",
    "transport.MutatesCost": "check_inputs_pure",
    "transport.CostBlind": "check_gap",
    "transport.GlobalNoise": "check_global_rng",
    "transport.AbsoluteCost": "check_gap",
    "transport.EpsilonTooLarge": "check_gap",
    "transport.HalfPrecisionCost": "check_offset",
    "transport.DropsARow": "check_marginals",
    "transport.UnscaledEpsilon": "check_scale",
}
CORRECT = [name for name in PLANTED if name.split(".")[1].startswith("Good")]


def test_the_matrix_covers_every_planted_part():
    assert set(KILLS) == set(PLANTED)
    assert all((KILLS[name] == []) == (name in CORRECT) for name in PLANTED)


@pytest.mark.parametrize("name", PLANTED)
def test_kills_are_exactly_those_recorded(name):
    found = sorted(outcome.check for outcome in verdict(name).failures)
    assert found == KILLS[name]


@pytest.mark.parametrize("name", NAMED)
def test_the_check_named_for_a_bug_kills_it_and_smoke_does_not(name):
    assert NAMED[name] in KILLS[name]
    assert "check_runs" not in KILLS[name]


def test_every_check_kills_something():
    applied: dict[str, set[str]] = {}
    killing: dict[str, set[str]] = {}
    for name, part in PLANTED.items():
        family = name.split(".")[0] + (" " + kind_of(part()) if name.startswith("rest") else "")
        applied.setdefault(family, set()).update(check.name for check in checks_for(part()))
        killing.setdefault(family, set()).update(KILLS[name])
    general = set.intersection(*applied.values())  # those of any part need one kill in all
    for family, names in applied.items():
        idle = names - killing[family] - general
        assert not idle, f"checks of {family} that kill nothing: {sorted(idle)}"
    assert general <= set().union(*killing.values())


def test_failures_are_raised_with_their_cause():
    with pytest.raises(CheckFailure, match="changed in place"):
        check_part(PLANTED["transport.MutatesCost"])


def test_expected_failures_are_strict():
    part = PLANTED["transport.MutatesCost"]
    why = "documented: works in place"
    reason = {"check_inputs_pure": why, "check_gradient": why}
    assert check_part(part, expected_failures=reason).ok
    surprise = {**reason, "check_gap": "never happens"}
    verdict = check_part(part, expected_failures=surprise, on_fail="report")
    assert [o.check for o in verdict.failures] == ["check_gap"]
    assert check_part(part, expected_failures=surprise, strict=False).ok
