"""One picture, one prompt: dense and pruned side by side."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from pruneopt.spec import Spec


@dataclass(frozen=True)
class Side:
    """What one of the two said and how long it took, in seconds.

    All of the run with the fastest prefill; `decode` is per token.  NaN where there is nothing to time.
    """

    answer: str
    encoder: float
    prefill: float
    decode: float


@dataclass(frozen=True)
class Comparison:
    """Dense and pruned answers, the report of the pruned run, and what it kept."""

    dense: Side
    pruned: Side
    run: Any

    @property
    def report(self) -> Any:
        return self.run.report


def _side(
    model: Any, processor: Any, inputs: Any, spec: Spec | None, tokens: int, repeats: int
) -> tuple[Side, Any]:
    from pruneopt.models.apply import prune
    from pruneopt.models.timing import timed

    def once() -> tuple[Side, Any]:
        context = nullcontext() if spec is None else prune(model, spec)
        with timed(model) as times, context as run:
            said = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
        text = processor.batch_decode(said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        return Side(text.strip(), sum(times.encoder) or math.nan, times.prefill, times.decode), run

    return min((once() for _ in range(repeats)), key=lambda pair: pair[0].prefill)


def compare(
    model: Any, processor: Any, inputs: Any, spec: Spec, max_new_tokens: int = 64, repeats: int = 3
) -> Comparison:
    """Greedy answers to one prompt, dense and under `spec`; a first dense run warms the machine up."""
    with torch.inference_mode():
        model.generate(**inputs, do_sample=False, max_new_tokens=1)
        dense, _ = _side(model, processor, inputs, None, max_new_tokens, repeats)
        pruned, run = _side(model, processor, inputs, spec, max_new_tokens, repeats)
    return Comparison(dense, pruned, run)
