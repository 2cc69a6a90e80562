"""How many tokens stay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pruneopt.errors import ProblemError, SpecError


@dataclass(frozen=True)
class Budget:
    """How many tokens stay.

    Parameters
    ----------
    keep
        At most 1: a ratio (1 keeps all).  A whole number above 1: a count.
    rounding
        How ratio times tokens becomes a count: `round` (half-way cases to even), `floor` or `ceil`; a ratio
        never keeps fewer than one token.
    scope
        Whether `keep` holds per `group` (image, crop, frame) or per `sample`.
    total
        Whether the count includes what later steps add (recovered or merged tokens).
    relative_to
        What a ratio is of: `start`, the tokens of the unpruned prompt, or `current`, those still alive.

    Raises
    ------
    SpecError
        For a value that is none of these, with its key.
    """

    keep: float | int = 0.5
    rounding: str = "round"
    scope: str = "group"
    total: bool = False
    relative_to: str = "start"

    def __post_init__(self) -> None:
        if isinstance(self.keep, bool) or not isinstance(self.keep, (int, float)):
            raise SpecError(f"budget.keep must be a ratio or a count, got {self.keep!r}", key="keep")
        keep = float(self.keep)
        if not keep > 0 or math.isinf(keep):
            raise SpecError(
                f"budget.keep must be above 0 (a ratio up to 1, or a count of tokens), got {self.keep}",
                key="keep",
            )
        if keep > 1 and keep != int(keep):
            raise SpecError(
                f"budget.keep above 1 must be a whole count of tokens, got {self.keep}; ratios end at 1",
                key="keep",
            )
        for name, value, known in (
            ("rounding", self.rounding, ("round", "floor", "ceil")),
            ("scope", self.scope, ("group", "sample")),
            ("relative_to", self.relative_to, ("start", "current")),
        ):
            if value not in known:
                raise SpecError(f"budget.{name} must be one of {', '.join(known)}, got {value!r}", key=name)

    def count(self, start: int, alive: int) -> int:
        """Count the tokens to keep.

        Parameters
        ----------
        start
            Tokens of the unpruned prompt.
        alive
            Tokens that are left.

        Returns
        -------
        int
            From 1 to `alive`.

        Raises
        ------
        ProblemError
            When a count exceeds what is alive.
        """
        base = start if self.relative_to == "start" else alive
        if float(self.keep) > 1:
            wanted = int(self.keep)
        else:
            exact = round(float(self.keep) * base, 9)  # 0.29 * 100 must not floor to 28
            rules: dict[str, Callable[[float], int]] = {
                "round": round,
                "floor": math.floor,
                "ceil": math.ceil,
            }
            wanted = max(1, rules[self.rounding](exact))
        if wanted > alive:
            raise ProblemError(
                f"budget.keep={self.keep} asks for {wanted} tokens where only {alive} are left; "
                "lower it or give a ratio"
            )
        return wanted

    def to_spec(self) -> dict[str, Any]:
        """Every field, as the section `budget` of a spec."""
        return {
            "keep": self.keep,
            "rounding": self.rounding,
            "scope": self.scope,
            "total": self.total,
            "relative_to": self.relative_to,
        }
