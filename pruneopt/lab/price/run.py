"""`pruneopt bench price`: equal shares against one price at matched totals, two pictures in every prompt.

The question is about the second picture; the one before it is that of the next question of the batch.
Batches hold questions of one type about different pictures, so a price over the batch has pictures to weigh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pruneopt.demo.assets import Question, load_inputs, load_model, load_questions
from pruneopt.errors import InputError
from pruneopt.lab.accuracy import run as accuracy
from pruneopt.lab.environment import environment
from pruneopt.lab.progress import progress
from pruneopt.lab.records import write_record
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec

BATCH = 10
COVERAGE = "coverage"  # facility location of cosines, which no published method is
METHODS: dict[str, tuple[str, ...]] = {
    "CDPruner": ("cdpruner", "positions=keep"),
    COVERAGE: (str(Path(__file__).with_name("coverage.yaml")),),
    "FastV": ("fastv", "budget.scope=group"),
}
EQUAL = "equal share"
RULES: dict[str, tuple[str, ...]] = {
    EQUAL: (),
    "one price": ("budget.rule={kind: one_price}",),
    "one price over the batch": ("budget.rule={kind: one_price, over: batch}",),
}


@dataclass(frozen=True)
class Plan:
    """How many embedded pictures are asked about, with every type of question, and tokens kept of each."""

    pictures: int = 40
    keeps: tuple[int, ...] = (36, 16)

    def __post_init__(self) -> None:
        self.questions  # noqa: B018

    @property
    def grid(self) -> list[tuple[str, int]]:
        """Every method with every budget."""
        return [(method, keep) for method in METHODS for keep in self.keeps]

    @property
    def questions(self) -> list[Question]:
        """Type by type, picture by picture. Raises InputError for pictures that make no whole batches."""
        every = load_questions()
        pictures = list(dict.fromkeys(question.image for question in every))
        if self.pictures < 1 or self.pictures % BATCH or self.pictures > len(pictures):
            raise InputError(
                f"asked for {self.pictures} pictures; give a multiple of {BATCH} up to {len(pictures)}"
            )
        some = set(pictures[: self.pictures])
        types = sorted({question.type for question in every})
        return [q for kind in types for q in every if q.type == kind and q.image in some]


def spec_of(method: str, rule: str, *, keep: int) -> Spec:
    """A method under a rule with a budget of `keep` tokens a picture."""
    base, *overrides = METHODS[method]
    return load_spec(base, [f"budget.keep={keep}", *overrides, *RULES[rule]])


class Preceded:
    """A processor that shows another picture before each one: that of the next prompt."""

    def __init__(self, processor: Any):
        self.processor = processor
        self.batch_decode = processor.batch_decode

    def __call__(self, *, images: Sequence[Any], text: Sequence[str], **options: Any) -> Any:
        after = [*images[1:], images[0]]
        shown = [picture for pair in zip(after, images, strict=True) for picture in pair]
        return self.processor(
            images=shown, text=[line.replace("<image>", "<image> <image>") for line in text], **options
        )


def measure(plan: Plan, out: Path, *, console: Console) -> None:
    """Answers of every method, rule and budget (packed runs), then values and bounds (`splits.json`)."""
    model, processor = load_model()
    two = Preceded(processor)
    entries = [accuracy.Entry("dense", None)]
    entries += [
        accuracy.Entry(f"{method}, {rule}, {keep}", spec_of(method, rule, keep=keep))
        for method, keep in plan.grid
        for rule in RULES
    ]
    accuracy.measure(accuracy.Plan(model, two, plan.questions, entries, BATCH), out, console=console)
    rows, where = [], environment()
    with progress(console, "splits", total=len(plan.grid)) as step:
        for method, keep in plan.grid:
            rows += _splits(model, two, questions=plan.questions[: plan.pictures], method=method, keep=keep)
            step(1)
    record = {"rows": rows, "setting": {"pictures": plan.pictures, "batch": BATCH}, "environment": where}
    write_record(out / "splits.json", record)


def _splits(
    model: Any, processor: Any, *, questions: Sequence[Question], method: str, keep: int
) -> list[dict[str, Any]]:
    """Of each rule: values of equal shares and its own, bounds and counts, of every budget that is spent."""
    from pruneopt.models.apply import prune

    lists = ("equal", "priced", "bound", "counts")
    rows: list[dict[str, Any]] = [
        {"method": method, "rule": rule, "keep": keep, **{name: [] for name in lists}}
        for rule in RULES
        if rule != EQUAL
    ]
    for start in range(0, len(questions), BATCH):
        inputs = load_inputs(questions[start : start + BATCH], processor)
        chosen: dict[str, Any] = {}
        for rule in RULES:
            with torch.inference_mode(), prune(model, spec_of(method, rule, keep=keep)) as run:
                model(**inputs)
            chosen[rule] = run.selections[0]
        for row in rows:
            spent = chosen[row["rule"]].evidence["budget.rule"]
            row["equal"] += spent.shares.sums(chosen[EQUAL].solution.value).tolist()
            row["priced"] += spent.value.tolist()
            row["bound"] += spent.upper_bound.tolist()
            row["counts"] += list(spent.counts)
    return rows
