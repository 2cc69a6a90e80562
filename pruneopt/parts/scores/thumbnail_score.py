"""Scores of crops as the thumbnail sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pruneopt.parts import Part, Score, param
from pruneopt.registry import registry
from pruneopt.signals import Signals


@dataclass(frozen=True)
class ThumbnailScore(Score):
    """The thumbnail's score, stretched over the crops, `[B,N]` float32; higher is kept.

    Every crop token reads the bilinear interpolation (half-cell centres) of the thumbnail's score map at
    its place on the canvas of all crops; the canvas is the area that real tokens cover, so padding that the
    model removed does not count.  Tokens of the thumbnail, and of samples without crops, keep their own
    score.  `score` is a registered score with default parameters besides those in `options`.

    Source: GlobalCom2 section 3.3.  The problems of one sample must be its crops (`budget.scope=group`).
    """

    name: ClassVar[str] = "thumbnail_score"
    source: ClassVar[str] = "GlobalCom2 (AAAI 2026), section 3.3"
    tags: ClassVar[frozenset[str]] = frozenset({"host", "uses_positions"})
    score: str = param("cls_attention", doc="registered score of the thumbnail")
    options: Mapping[str, Any] = param({}, doc="parameters of that score")

    @property
    def inner(self) -> Score:
        return registered_score(self.score, self.options)

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs | {"tile", "xy", "grid"}

    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]:
        own = self.inner(signals)
        out = own.clone()
        for problem, crops in thumbnails(signals):
            canvas, real = canvas_places(signals, crops), signals.mask[crops]
            low = canvas[real].amin(0)
            extent = canvas[real].amax(0) - low + 1
            image = score_map(own, signals, problem=problem)
            size = torch.tensor(image.shape[::-1], device=image.device)
            where = (canvas - low + 0.5) * (size / extent) - 0.5
            out[crops] = torch.where(real, bilinear(image, where), out[crops])
        return out


def registered_score(name: str, options: Mapping[str, Any]) -> Score:
    """A score by its registered name and parameters."""
    part: Part = registry("scores").get(name).from_spec(options)  # type: ignore[attr-defined]
    assert isinstance(part, Score)
    return part


def thumbnails(signals: Signals) -> list[tuple[int, list[int]]]:
    """Problem number of every thumbnail (its tile is negative), and of its crops, where there are any."""
    owners, tile = signals.sample.tolist(), signals["tile"][:, 0, 0]
    found = []
    for problem in (tile < 0).nonzero()[:, 0].tolist():
        crops = [i for i, owner in enumerate(owners) if i != problem and owner == owners[problem]]
        found += [(problem, crops)] if crops else []
    return found


def canvas_places(signals: Signals, problems: list[int]) -> Tensor:
    """`[G,N,2]` float32 column and row of the tokens of some crops on the canvas of all crops."""
    grid = signals["grid"].float()
    return signals["tile"][problems].float() * grid[problems] + signals["xy"][problems].float()


def score_map(values: Tensor, signals: Signals, *, problem: int) -> Tensor:
    """`[rows,columns]` float32 map of one problem's scores on its own grid; zero where there is no token."""
    columns, rows = (int(v) for v in signals["grid"][problem, 0])
    real = signals.mask[problem]
    xy = signals["xy"][problem, real].long()
    out = torch.zeros(rows, columns, dtype=torch.float32, device=values.device)
    out[xy[:, 1], xy[:, 0]] = values[problem, real].float()
    return out


def bilinear(image: Tensor, where: Tensor) -> Tensor:
    """Values of `image` `[rows,columns]` at real-valued cells `[...,2]` (column, row), edges repeated."""
    size = torch.tensor(image.shape[::-1], device=image.device)
    where = where.clamp_min(0)
    low = where.floor().long().minimum(size - 1)
    high = (low + 1).minimum(size - 1)
    part = where - low
    (x0, y0), (x1, y1), (fx, fy) = (t.unbind(-1) for t in (low, high, part))
    top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    bottom = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
    return top * (1 - fy) + bottom * fy
