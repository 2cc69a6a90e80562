"""One picture, one prompt: dense and pruned side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from pruneopt.spec.schema import Spec


@dataclass(frozen=True)
class Side:
    """What one of the two said and how long it took, in seconds.

    Parameters
    ----------
    answer
        The text.
    encoder, prefill, decode
        Medians over warm passes; `decode` is per token.  NaN where there is nothing to time.
    """

    answer: str
    encoder: float
    prefill: float
    decode: float


@dataclass(frozen=True)
class Comparison:
    """Dense and pruned answers to one prompt.

    Parameters
    ----------
    dense, pruned
        What each said, and how long it took.
    run
        Of the last pruned pass.
    """

    dense: Side
    pruned: Side
    run: Any


def compare(
    model: Any, processor: Any, *, inputs: Any, spec: Spec, max_new_tokens: int = 64, repeats: int = 3
) -> Comparison:
    """Greedy answers to one prompt, dense and under `spec`.

    Both run once untimed first: the first pass of either pays for what later ones reuse.  Then they take
    turns, so that a busy machine slows both.

    Parameters
    ----------
    model, processor
        As `load_model` gives them.
    inputs
        One prompt, on the model's device.
    spec
        What prunes.
    max_new_tokens
        Length of the answer.
    repeats
        Timed passes of either.

    Returns
    -------
    Comparison
        Both answers, with medians of their seconds.
    """
    sides: tuple[Spec | None, Spec | None] = (None, spec)
    with torch.inference_mode():
        for each in sides:
            _pass(model, processor, inputs=inputs, spec=each, tokens=max_new_tokens)
        turns = [
            [_pass(model, processor, inputs=inputs, spec=each, tokens=max_new_tokens) for each in sides]
            for _ in range(repeats)
        ]
    dense, pruned = (_medians([turn[i][0] for turn in turns]) for i in (0, 1))
    return Comparison(dense, pruned, turns[-1][1][1])


def _pass(model: Any, processor: Any, *, inputs: Any, spec: Spec | None, tokens: int) -> tuple[Side, Any]:
    """One generation and what it took, and the run of a pruned one."""
    from pruneopt.models.apply import prune
    from pruneopt.models.timing import timed

    context = nullcontext() if spec is None else prune(model, spec)
    with timed(model) as times, context as run:  # the timer outside, so that it counts the selection
        said = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    text = processor.batch_decode(said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    return Side(text.strip(), sum(times.encoder.wall) or math.nan, times.prefill, times.decode), run


def _medians(sides: Sequence[Side]) -> Side:
    times = [[getattr(side, name) for side in sides] for name in ("encoder", "prefill", "decode")]
    return Side(sides[-1].answer, *(statistics.median(each) for each in times))
