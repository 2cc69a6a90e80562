"""The public conformance suite: what every part promises, as small named checks.

`check_cost_term(MyTerm())` runs all checks that apply and raises with the likely cause of each failure;
`parametrize_with_checks([MyTerm()])` makes one pytest item of each; `pruneopt check TARGET` prints a
verdict.  See docs/conformance.md.
"""

from pruneopt.testing.core import Check, CheckFailure, Outcome, Verdict
from pruneopt.testing.insertion import InsertionCase, assert_insertion, check_insertion
from pruneopt.testing.suites import (
    check_budget_rule,
    check_cost_term,
    check_kernel,
    check_kind,
    check_marginal,
    check_part,
    check_readout,
    check_score,
    check_solver,
    check_step,
    checks_for,
    parametrize_with_checks,
)
from pruneopt.testing.tags import TAGS

__all__ = [
    "Check", "CheckFailure", "InsertionCase", "Outcome", "TAGS", "Verdict", "assert_insertion",
    "check_budget_rule", "check_cost_term", "check_insertion", "check_kernel", "check_kind", "check_marginal",
    "check_part", "check_readout", "check_score", "check_solver", "check_step", "checks_for",
    "parametrize_with_checks",
]  # fmt: skip
