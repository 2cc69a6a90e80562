"""Planted bugs in kinds of problem fall to the checks recorded, and every check kills something."""

from __future__ import annotations

import pytest
from planted_kinds import KILLS, Good, Priced, StaleGains

from pruneopt.errors import PruneoptError
from pruneopt.parts.solvers.stable_top_k import StableTopK
from pruneopt.problems.subset import SubsetProblem
from pruneopt.registry import registry
from pruneopt.testing import CheckFailure, check_kind, check_part, checks_for


@pytest.mark.parametrize("kind", KILLS, ids=lambda kind: kind.__name__)
def test_kills_are_exactly_those_recorded(kind: type[Good]) -> None:
    verdict = check_part(kind, on_fail="report")
    assert sorted(outcome.check for outcome in verdict.failures) == KILLS[kind]
    assert verdict.kind == "problem kind" and Good.name not in registry("kinds")


def test_every_check_of_a_kind_kills_something() -> None:
    checks = {check.name for kind in (Good, StaleGains, Priced) for check in checks_for(kind())}
    assert checks == {name for kills in KILLS.values() for name in kills}


def test_a_witness_is_a_second_opinion_on_values() -> None:
    def witness(problem: SubsetProblem, sample: int, chosen: tuple[int, ...]) -> float:
        kept = set(chosen)
        real, k = problem.real[sample].tolist(), int(problem.k[sample])
        forced = () if problem.protected is None else problem.protected[sample].nonzero().flatten().tolist()
        if len(kept) != k or not all(real[i] for i in kept) or not kept.issuperset(forced):
            return float("-inf")
        return sum(float(problem.unary[sample, i]) for i in kept)

    assert check_kind(Good, witness=witness).ok
    with pytest.raises(CheckFailure, match=r"is worth .* the witness says"):
        check_kind(Good, witness=lambda problem, sample, chosen: 2 * witness(problem, sample, chosen))


def test_only_kinds_are_checked_as_kinds() -> None:
    with pytest.raises(PruneoptError, match="no kind of problem"):
        check_kind(StableTopK())
