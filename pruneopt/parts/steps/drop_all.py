"""Remove every visual token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from pruneopt.parts import Step
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals


@dataclass(frozen=True)
class DropAll(Step):
    """Nothing visual is kept from here on, as at the end of AIM's schedule."""

    name: ClassVar[str] = "drop_all"
    source: ClassVar[str] = "AIM (ICCV 2025), end of the schedule"

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        return replace(selection, keep=torch.zeros_like(selection.keep))

    def count(self, kept: int, tokens: int) -> int:
        return 0
