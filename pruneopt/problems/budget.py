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

    `keep` at most 1 is a ratio of what was there at the start (1 keeps all); a whole number above 1 is a
    count.  `rounding` turns ratio times tokens into a count; a ratio never keeps fewer than one token.
    `scope` says whether the ratio or count holds per `group` (image, crop, frame) or per `sample`.
    `total`: the count includes what later steps add (recovered or merged tokens).
    `relative_to`: `start` (the tokens of the unpruned prompt) or `current` (those still alive).
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
        """Tokens to keep of `alive`, when the unpruned prompt had `start`.

        Raises ProblemError when a count exceeds what is alive.  Half-way cases round to even.
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
        return {
            "keep": self.keep,
            "rounding": self.rounding,
            "scope": self.scope,
            "total": self.total,
            "relative_to": self.relative_to,
        }
