"""Remove every visual token once the text has stopped looking at them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pruneopt.parts import Step, param
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals


@dataclass(frozen=True)
class RelevanceGate(Step):
    """Drop all tokens of a problem whose mean text-to-picture attention mass is below `tau`.

    The mass is the share of a text query's attention that falls on visual keys, averaged over heads and the
    text tokens after the picture.  Source: ToDRE stage 2, whose second condition, the mass that visual
    queries put on text, is 0 by causality when the text follows the picture, and is not read here.
    """

    name: ClassVar[str] = "relevance_gate"
    source: ClassVar[str] = "ToDRE (arXiv 2505.18757v2), stage 2"
    tau: float = param(0.1, low=0, high=1, doc="mass below which the picture is dropped")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"attention_text", "text_mask"})

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        rows = signals["attention_text"].float().mean(1) * signals.mask[:, None, :]
        text = signals["text_mask"]
        mass = (rows.sum(2) * text).sum(1) / text.sum(1).clamp_min(1)
        return replace(selection, keep=selection.keep & (mass >= self.tau)[:, None], counts=None)
