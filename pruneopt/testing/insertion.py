"""Is removal exact?  The checks of an adapter, for anyone's model family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pruneopt.errors import PruneoptError
from pruneopt.testing.insertion_case import ENTRY, LAYER, SEVERAL, CheckResult, InsertionCase
from pruneopt.testing.insertion_life import check_modes, check_restore, inventory
from pruneopt.testing.insertion_values import (
    check_counts,
    check_deletion,
    check_keep_all,
    check_oracle,
    check_ragged,
    check_rows_alone,
)
from pruneopt.testing.masking import masked

CHECKS: dict[str, Callable[[InsertionCase], Iterator[str]]] = {
    "oracle": check_oracle,
    "keep_all": check_keep_all,
    "rows_alone": check_rows_alone,
    "deletion": check_deletion,
    "modes": check_modes,
    "restore": check_restore,
    "ragged": check_ragged,
    "counts": check_counts,
}


def check_insertion(case: InsertionCase, only: Sequence[str] | None = None) -> list[CheckResult]:
    """Run every check of an adapter, and raise nothing for one that fails.

    Parameters
    ----------
    case
        The family, its batches and the cuts.
    only
        Names of `CHECKS`; None runs all.

    Returns
    -------
    list of CheckResult
        One for each check; `problem` is empty where it passed.
    """
    results = []
    for name in only or CHECKS:
        try:
            problem = next(iter(CHECKS[name](case)), "")
        except PruneoptError as error:
            problem = f"refused: {error}"
        results.append(CheckResult(name, problem))
    return results


def assert_insertion(case: InsertionCase, only: Sequence[str] | None = None) -> None:
    """Raise AssertionError with every check of `check_insertion` that fails.

    Parameters
    ----------
    case, only
        As for `check_insertion`.
    """
    failed = [f"{r.check}: {r.problem}" for r in check_insertion(case, only) if not r.ok]
    if failed:
        raise AssertionError(f"{case.name} fails {len(failed)} checks\n" + "\n".join(failed))


__all__ = [
    "CHECKS", "ENTRY", "LAYER", "SEVERAL", "CheckResult", "InsertionCase", "assert_insertion",
    "check_insertion", "inventory", "masked",
]  # fmt: skip
