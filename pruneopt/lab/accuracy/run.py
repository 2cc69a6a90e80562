"""`pruneopt sweep`: accuracy of several methods over the embedded questions, one run folder each.

Resumable, and shared: several processes may run one sweep into one folder, each entry is run by one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from pruneopt.demo.assets import Question
from pruneopt.errors import InputError, PruneoptError, located
from pruneopt.lab.accuracy.answer import Outcome, answer
from pruneopt.lab.clock import Stopwatch
from pruneopt.lab.environment import environment, setting
from pruneopt.lab.progress import progress
from pruneopt.lab.records import prepare_folder
from pruneopt.lab.runs import finished, pack, read_run, run_each, write_run
from pruneopt.lab.statistics import share
from pruneopt.spec.schema import Spec

DENSE = "name: dense\n"


@dataclass(frozen=True)
class Entry:
    """One row of a sweep: what it is called, its spec (None is dense), and where it was written down."""

    label: str
    spec: Spec | None
    where: str = ""

    @property
    def key(self) -> str:
        return "dense" if self.spec is None else self.spec.hash


@dataclass(frozen=True)
class Plan:
    """Every entry over all questions, `batch` of them in a forward pass."""

    model: Any
    processor: Any
    questions: Sequence[Question]
    entries: Sequence[Entry]
    batch: int = 12

    def folders(self, out: Path) -> list[Path]:
        """One run folder per entry, named by label, spec hash and question set."""
        labels = [entry.label.replace("/", "-").replace(" ", "-") for entry in self.entries]
        asked = question_hash(self.questions)
        keys = [entry.key for entry in self.entries]
        return [out / f"{label}_{key}_{asked}" for label, key in zip(labels, keys, strict=True)]


def question_hash(questions: Sequence[Question]) -> str:
    """8 hexadecimal digits over the ids, questions and answers of a set."""
    text = "\n".join(f"{q.id}\t{q.question}\t{q.answer}" for q in questions)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def measure(plan: Plan, out: Path, *, console: Console) -> None:
    """Run what is not finished yet, then pack all of it into two files."""
    with progress(console, "questions", total=len(plan.questions) * len(plan.entries)) as step:
        run_sweep(plan, out, step=step)
    pack(out)


def run_sweep(plan: Plan, out: Path, *, step: Callable[[int], None] | None = None) -> list[Path]:
    """Run what is not finished yet; returns the run folders.

    Nothing is run before all of it has been checked: see `check_sweep`.  Processes may share it: `run_each`.
    """
    folders = check_sweep(plan, out)

    def run(entry: Entry, folder: Path) -> None:
        _run(plan, entry, folder=folder, step=step)

    def skip() -> None:
        if step is not None:
            step(len(plan.questions))

    run_each(dict(zip(folders, plan.entries, strict=True)), run, skip=skip)
    return folders


def check_sweep(plan: Plan, out: Path) -> list[Path]:
    """The run folder of every entry, once it is known that all of them can be run.

    Every spec that is not finished yet prefills the first question.  Raises the refusal of an entry, with
    where it is written; InputError for two entries with one folder, a folder that cannot be written, one that
    holds something else, and finished runs made with another device, dtype or attention setting.
    """
    prepare_folder(out)
    folders, wanted = plan.folders(out), setting(plan.model)
    for i, (folder, entry) in enumerate(zip(folders, plan.entries, strict=True)):
        if folder in folders[:i]:
            other = plan.entries[folders.index(folder)]
            raise InputError(
                f"{entry.where or entry.label} has the run folder of {other.label!r}; rename one"
            )
        if finished(folder):
            found = read_run(folder).record.get("setting", {})
            differs = [f"{k}={found[k]}" for k, v in wanted.items() if found.get(k, v) != v]
            if differs:
                raise InputError(
                    f"run {str(folder)!r} was made with {', '.join(differs)}; choose another --out"
                )
        elif folder.exists() and not finished(folder):  # another process may just have finished it
            raise InputError(f"{str(folder)!r} exists and is no finished run; move it away")
    for folder, entry in zip(folders, plan.entries, strict=True):
        if entry.spec is not None and not finished(folder):
            try:
                answer(plan.model, plan.processor, questions=plan.questions[:1], spec=entry.spec, tokens=1)
            except PruneoptError as error:
                raise located(error, entry.where or f"entry {entry.label!r}") from error
    return folders


def _run(plan: Plan, entry: Entry, *, folder: Path, step: Callable[[int], None] | None) -> None:
    where, started = environment(str(plan.model.device)), Stopwatch()
    outcomes = answer(
        plan.model, plan.processor, questions=plan.questions, spec=entry.spec, batch=plan.batch, on_batch=step
    )
    seconds = started.wall
    correct = share([o.right for o in outcomes])
    kept = [o.kept for o in outcomes if o.kept is not None]
    record = {
        "label": entry.label,
        "spec_hash": entry.key,
        "questions": len(plan.questions),
        "question_hash": question_hash(plan.questions),
        "accuracy": correct.value,
        "accuracy_low": correct.low,
        "accuracy_high": correct.high,
        "kept_mean": sum(kept) / len(kept) if kept else None,
        "seconds": seconds,
        "batch": plan.batch,
        "setting": setting(plan.model),
        "environment": where,
    }
    spec = DENSE if entry.spec is None else entry.spec.yaml()
    write_run(folder, spec, record=record, samples=[_sample(outcome) for outcome in outcomes])


def _sample(outcome: Outcome) -> dict[str, Any]:
    question = outcome.question
    return {
        "id": question.id,
        "type": question.type,
        "question": question.question,
        "answer": question.answer,
        "said": outcome.said,
        "right": outcome.right,
        "kept": outcome.kept,
    }
