"""Entry points of the conformance suite."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pruneopt.errors import PruneoptError, SpecError
from pruneopt.parts import (
    BudgetRule,
    CostTerm,
    Insertion,
    Kernel,
    Marginal,
    Readout,
    Score,
    Step,
    SubsetSolver,
    TransportSolver,
)
from pruneopt.problems.kinds import Kind
from pruneopt.testing.core import Check, Checked, CheckFailure, Verdict, run_checks
from pruneopt.testing.kind_checks import Witness, kind_checks
from pruneopt.testing.part_checks import part_checks
from pruneopt.testing.readout_checks import readout_checks
from pruneopt.testing.signal_checks import signal_checks
from pruneopt.testing.step_checks import budget_checks, step_checks
from pruneopt.testing.subset_checks import subset_checks
from pruneopt.testing.transport_checks import transport_checks

_SUITES: tuple[tuple[type[Checked], str, Any], ...] = (
    (CostTerm, "cost term", signal_checks),
    (Score, "score", signal_checks),
    (Kernel, "kernel", signal_checks),
    (Marginal, "marginal", signal_checks),
    (TransportSolver, "transport solver", transport_checks),
    (SubsetSolver, "subset solver", subset_checks),
    (Readout, "readout", readout_checks),
    (Step, "step", step_checks),
    (BudgetRule, "budget rule", budget_checks),
    (Insertion, "insertion", part_checks),
    (Kind, "problem kind", kind_checks),
)


def _suite(part: Checked) -> tuple[str, Callable[[Any], Iterator[Check]]]:
    for base, kind, checks in _SUITES:
        if isinstance(part, base):
            return kind, checks
    raise PruneoptError(
        f"{type(part).__name__} is no kind of part that pruneopt checks; subclass one of pruneopt.parts"
    )


def kind_of(part: Checked) -> str:
    """What a part is, in words. Raises PruneoptError for something that is no known kind of part."""
    return _suite(part)[0]


def checks_for(part: Checked) -> Iterator[Check]:
    """All checks that apply to a part, by its kind and tags.

    Parameters
    ----------
    part
        An instance.

    Returns
    -------
    iterator of Check
        To be called with the part.

    Raises
    ------
    PruneoptError
        For something that is no kind of part that pruneopt knows.
    """
    return _suite(part)[1](part)


def check_part(
    part: Checked | type[Checked],
    *,
    expected_failures: Mapping[str, str] | None = None,
    strict: bool = True,
    on_fail: str = "raise",
) -> Verdict:
    """Run every check that applies to a part of any kind.

    Parameters
    ----------
    part
        An instance, or a class that can be built without arguments.
    expected_failures
        Names of checks to the reason why they fail.
    strict
        Whether an expected failure that passes is a failure.
    on_fail
        `raise` raises what is listed below, `report` only returns the verdict.

    Returns
    -------
    Verdict
        What became of each check.

    Raises
    ------
    CheckFailure
        With all failures and their likely causes.
    PruneoptError
        For something that is no part, and for an expected failure that names no check of it.
    """
    part = built(part)
    kind, checks = _suite(part)
    verdict = run_checks(part, kind, checks=checks(part), expected_failures=expected_failures, strict=strict)
    return _judged(verdict, on_fail)


def _judged(verdict: Verdict, on_fail: str) -> Verdict:
    """The verdict, or CheckFailure with all that failed."""
    if on_fail == "raise" and not verdict.ok:
        lines = [f"  {outcome.message}" for outcome in verdict.failures]
        raise CheckFailure(
            f"{verdict.part} fails {len(lines)} of {len(verdict.outcomes)} checks:\n" + "\n".join(lines)
        )
    return verdict


def built(part: Checked | type[Checked]) -> Checked:
    """An instance; a class is built with its defaults. Raises SpecError when that is impossible."""
    if not isinstance(part, type):
        return part
    try:
        return part()
    except Exception as error:
        raise SpecError(
            f"{part.__name__} cannot be built with its defaults ({error}); give an instance"
        ) from error


def _entry(words: str, *bases: type[Checked]) -> Any:
    def check(part: Any, **options: Any) -> Verdict:
        part = built(part)
        if not isinstance(part, bases):
            raise PruneoptError(f"{part!r} is no {words}")
        return check_part(part, **options)

    said, plain = check_part.__doc__ or "", "Run every check that applies to a part of any kind"
    check.__doc__ = said.replace(plain, f"Check a {words}")
    check.__signature__ = inspect.signature(check_part)  # type: ignore[attr-defined]
    return check


check_cost_term = _entry("cost term", CostTerm)
check_score = _entry("score", Score)
check_kernel = _entry("kernel", Kernel)
check_marginal = _entry("marginal", Marginal)
check_readout = _entry("readout", Readout)
check_step = _entry("step", Step)
check_budget_rule = _entry("budget rule", BudgetRule)
check_solver = _entry("solver", TransportSolver, SubsetSolver)


def check_kind(kind: Kind | type[Kind], *, witness: Witness | None = None, on_fail: str = "raise") -> Verdict:
    """Check a kind of problem; every choice of some tiny problems is tried.

    Parameters
    ----------
    kind
        An instance, or its class.
    witness
        `witness(problem, sample, chosen)` is a second opinion on values, such as loops over Python numbers.
    on_fail
        As in `check_part`.

    Returns
    -------
    Verdict
        What became of each check.
    """
    found = built(kind)
    if not isinstance(found, Kind):
        raise PruneoptError(f"{found!r} is no kind of problem")
    return _judged(run_checks(found, kind_of(found), checks=kind_checks(found, witness)), on_fail)


def parametrize_with_checks(
    parts: Iterable[Checked | type[Checked]],
    expected_failures: Mapping[str, Mapping[str, str]] | None = None,
    *,
    strict: bool = True,
) -> Any:
    """A pytest decorator: one test per part and check, with ids like `my_term-check_permutation`.

    The test takes `part` and `check` and calls `check(part)`.

    Parameters
    ----------
    parts
        Instances, or classes that can be built without arguments.
    expected_failures
        The name of a part to names of checks to reasons; those become xfails.
    strict
        Whether those xfails are strict.

    Returns
    -------
    pytest.MarkDecorator
        For the test function.

    Raises
    ------
    PruneoptError
        For an expected failure that names no check of its part.
    """
    import pytest

    expected = expected_failures or {}
    rows = []
    for given in parts:
        part = built(given)
        reasons = dict(expected.get(part.name, {}))
        for check in checks_for(part):
            reason = reasons.pop(check.name, None)
            xfail = pytest.mark.xfail(reason=reason or "", strict=strict, raises=CheckFailure)
            marks = () if reason is None else (xfail,)
            rows.append(pytest.param(part, check, marks=marks, id=f"{part.name}-{check.name}"))
        if reasons:
            raise PruneoptError(f"expected failures of {part.name} name no check of it: {', '.join(reasons)}")
    return pytest.mark.parametrize(("part", "check"), rows)
