"""Accuracy of several methods over the embedded questions, one run folder each, resumable."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneopt.demo.assets import Question
from pruneopt.eval.accuracy import answer
from pruneopt.eval.metrics import share
from pruneopt.eval.records import environment, finished, write_run
from pruneopt.spec import Spec

DENSE = "name: dense\n"


@dataclass(frozen=True)
class Entry:
    """One row of a sweep: what it is called, and its spec (None is dense)."""

    label: str
    spec: Spec | None

    @property
    def key(self) -> str:
        return "dense" if self.spec is None else self.spec.hash


def question_hash(questions: Sequence[Question]) -> str:
    """8 hexadecimal digits over the ids, questions and answers of a set."""
    text = "\n".join(f"{q.id}\t{q.question}\t{q.answer}" for q in questions)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_sweep(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    entries: Sequence[Entry],
    out: Path,
    batch: int = 12,
    step: Callable[[int], None] | None = None,
) -> list[Path]:
    """Run what is not finished yet; one folder per entry, named by label, spec hash and question set."""
    folders = []
    for entry in entries:
        name = f"{entry.label.replace('/', '-').replace(' ', '-')}_{entry.key}_{question_hash(questions)}"
        folder = out / name
        folders.append(folder)
        if finished(folder):
            if step is not None:
                step(len(questions))
            continue
        start = time.perf_counter()
        outcomes = answer(model, processor, questions, entry.spec, batch, step)
        seconds = time.perf_counter() - start
        correct = share([o.right for o in outcomes])
        kept = [o.kept for o in outcomes if o.kept is not None]
        record = {
            "label": entry.label,
            "spec_hash": entry.key,
            "questions": len(questions),
            "question_hash": question_hash(questions),
            "accuracy": correct.value,
            "accuracy_low": correct.low,
            "accuracy_high": correct.high,
            "kept_mean": sum(kept) / len(kept) if kept else None,
            "seconds": seconds,
            "batch": batch,
            "environment": environment(),
        }
        samples = [
            {
                "id": o.question.id,
                "type": o.question.type,
                "question": o.question.question,
                "answer": o.question.answer,
                "said": o.said,
                "right": o.right,
                "kept": o.kept,
            }
            for o in outcomes
        ]
        write_run(folder, DENSE if entry.spec is None else entry.spec.yaml(), record, samples)
    return folders
