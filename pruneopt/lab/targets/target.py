"""One promise of speed or accuracy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One promise: `value` must be at most (or at least) `bound`; `first`, `second` are the timed seconds."""

    name: str
    value: float
    sense: str
    bound: float
    unit: str
    first: float = 0.0
    second: float = 0.0
    note: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.bound if self.sense == "at most" else self.value >= self.bound
