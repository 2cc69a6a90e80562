"""Pivots in the order in which DART's code visits them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pruneopt.parts import param
from pruneopt.parts.solvers.pivot import Pivot


@dataclass(frozen=True)
class DartPivots(Pivot):
    """`pivot` with the visiting order of DART's code, which depends on the layout of the prompt.

    The code iterates over a CPython set of places in the sequence: `prefix` tokens before the visual ones,
    text right after them.  DART keeps `pivots + (pivots + text_pivots) * n` tokens; the budget rule
    `pivot_quota` gives counts of that form (132, 196, 68 and not 128, 192, 64).  Waits for the device; for
    parity only.
    """

    name: ClassVar[str] = "dart_pivots"
    source: ClassVar[str] = "DART (EMNLP 2025), as released"
    moved: ClassVar[dict[str, str]] = {"pivot_order": "dart_pivots has the order of DART's code only"}
    prefix: int = param(35, low=0, doc="tokens before the visual ones")

    def _visits(self, place: Tensor, usable: Tensor) -> Tensor:
        out = []
        for row, exists in zip(place.tolist(), usable.tolist(), strict=True):
            where = {p + self.prefix: i for i, (p, e) in enumerate(zip(row, exists, strict=True)) if e}
            seen = [where[p] for p in set(list(where))]  # noqa: C414  a set built from a dict is laid out otherwise
            out.append(seen + [i for i, e in enumerate(exists) if not e])
        return torch.tensor(out, dtype=torch.int64, device=place.device).view(place.shape)
