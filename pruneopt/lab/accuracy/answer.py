"""Accuracy of a model on the embedded questions, dense or under a spec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from pruneopt.demo.assets import Question, load_inputs, score
from pruneopt.spec.schema import Spec


@dataclass(frozen=True)
class Outcome:
    """What a model said to one question. `kept`: visual tokens that survive the last cut."""

    question: Question
    said: str
    right: bool
    kept: int | None


def answer(
    model: Any,
    processor: Any,
    *,
    questions: Sequence[Question],
    spec: Spec | None = None,
    batch: int = 12,
    tokens: int = 8,
    on_batch: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Greedy answers of at most `tokens` tokens to `questions`, dense when `spec` is None.

    `on_batch(n)` reports n more done.
    """
    from pruneopt.models.apply import prune

    outcomes: list[Outcome] = []
    for start in range(0, len(questions), batch):
        part = questions[start : start + batch]
        inputs = load_inputs(part, processor).to(model.device, model.dtype)
        with torch.inference_mode(), nullcontext() if spec is None else prune(model, spec) as run:
            said = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
            kept = [None] * len(part) if run is None else [len(row) for row in run.kept_visual[deepest(run)]]
        words = processor.batch_decode(said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        outcomes += [
            Outcome(q, text.strip(), score(text, q.answer), k)
            for q, text, k in zip(part, words, kept, strict=True)
        ]
        if on_batch is not None:
            on_batch(len(part))
    return outcomes


def deepest(run: Any) -> int:
    """Decoder layer of the last cut of a run."""
    return max(run.kept_visual)


def spread(questions: Sequence[Question], count: int) -> list[Question]:
    """`count` questions taken evenly from every type, in a fixed order; all of them if fewer exist."""
    by_type: dict[str, list[Question]] = {}
    for question in questions:
        by_type.setdefault(question.type, []).append(question)
    chosen: list[Question] = []
    depth = 0
    while len(chosen) < min(count, len(questions)):
        row = [group[depth] for group in by_type.values() if depth < len(group)]
        chosen += row[: count - len(chosen)]
        depth += 1
    place = {question.id: i for i, question in enumerate(questions)}
    return sorted(chosen, key=lambda q: place[q.id])
