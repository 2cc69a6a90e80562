"""A check is a named function; running a list of them on a part gives a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pruneopt.errors import PruneoptError, nearest
from pruneopt.parts import Part
from pruneopt.problems.kinds import Kind

Checked = Part | Kind  # what has a name and a suite


class CheckFailure(AssertionError):
    """A part does not keep its contract; the message names the likely cause."""


@dataclass(frozen=True)
class Check:
    """One conformance check.

    Parameters
    ----------
    name
        What it is called: `check_` and what it looks at.
    run
        Takes the part; returns, or raises CheckFailure with the likely cause.
    """

    name: str
    run: Callable[..., None]

    def __call__(self, part: Checked) -> None:
        """Run on `part`. Raises CheckFailure, also for anything unexpected that the part raises."""
        try:
            self.run(part)
        except CheckFailure as error:
            raise CheckFailure(f"{part.name}: {self.name}: {error}") from error
        except Exception as error:
            raise CheckFailure(
                f"{part.name}: {self.name}: the part raised {type(error).__name__}: {error}"
            ) from error


def checks_that(apply: Mapping[Callable[..., None], object]) -> Iterator[Check]:
    """A check of each function that says of itself that it applies, called as the function is."""
    for function, applies in apply.items():
        if applies:
            yield Check(function.__name__, function)


@dataclass(frozen=True)
class Outcome:
    """How one check ended.

    Parameters
    ----------
    check
        Its name.
    state
        `passed`, `failed`, `expected` (a failure with a reason) or `surprise` (an expected failure that
        passes).
    message
        What was wrong, or the reason of what was expected; empty where it passed.
    """

    check: str
    state: str
    message: str = ""

    @property
    def ok(self) -> bool:
        return self.state in ("passed", "expected")


@dataclass
class Verdict:
    """Outcomes of all checks that apply to one part.

    Parameters
    ----------
    part
        Its name.
    kind
        What it is, in words.
    outcomes
        One for each check, in the order in which they ran.
    """

    part: str
    kind: str
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(outcome.ok for outcome in self.outcomes)

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.ok]


def changed(thing: Any, **fields: Any) -> Any:
    """A frozen dataclass with some fields replaced."""
    return replace(thing, **fields)


def require(condition: object, message: str) -> None:
    """Raise CheckFailure unless `condition` holds."""
    if not condition:
        raise CheckFailure(message)


def run_checks(
    part: Checked,
    kind: str,
    *,
    checks: Iterable[Check],
    expected_failures: Mapping[str, str] | None = None,
    strict: bool = True,
) -> Verdict:
    """Run every check and collect the outcomes; nothing is raised for a failing part.

    `expected_failures` maps names of checks to the reason why they fail; with `strict` one that passes all
    the same is a failure (`surprise`).  Raises PruneoptError for the name of a check that does not apply.
    """
    expected = dict(expected_failures or {})
    checks = list(checks)
    for name in expected:
        if name not in {check.name for check in checks}:
            raise PruneoptError(
                f"expected failure {name!r} is no check of this part{nearest(name, (c.name for c in checks))}"
            )
    verdict = Verdict(part.name, kind)
    for check in checks:
        try:
            check(part)
        except CheckFailure as error:
            state = "expected" if check.name in expected else "failed"
            verdict.outcomes.append(Outcome(check.name, state, expected.get(check.name, str(error))))
        else:
            surprise = strict and check.name in expected
            words = f"passes although a failure was expected: {expected[check.name]}" if surprise else ""
            verdict.outcomes.append(Outcome(check.name, "surprise" if surprise else "passed", words))
    return verdict
