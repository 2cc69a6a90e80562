"""The study of one price: what a prompt shows, what a plan refuses, tables by hand, a small run."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pruneopt.demo.assets import Question
from pruneopt.errors import InputError
from pruneopt.lab.price import run as price
from pruneopt.lab.price.table import tables
from pruneopt.lab.records import write_record
from pruneopt.lab.runs import write_run
from pruneopt.lab.tables import Table


def test_every_prompt_shows_the_picture_of_the_next_one_first() -> None:
    class Processor:
        batch_decode = "decodes"

        def __call__(self, **given: Any) -> dict[str, Any]:
            return given

    shown = price.Preceded(Processor())
    found = shown(images=["a", "b", "c"], text=["x <image> y"] * 3, padding=True)
    assert found["images"] == ["b", "a", "c", "b", "a", "c"]
    assert found["text"] == ["x <image> <image> y"] * 3 and found["padding"]
    assert shown.batch_decode == "decodes"


def test_batches_hold_one_type_and_unlike_pictures() -> None:
    questions = price.Plan(pictures=20).questions
    for start in range(0, len(questions), price.BATCH):
        batch = questions[start : start + price.BATCH]
        assert len({q.type for q in batch}) == 1 and len({q.image for q in batch}) == price.BATCH
    assert len(questions) == 20 * 10


@pytest.mark.parametrize("pictures", [0, -10, 7, 100_000])
def test_pictures_must_fill_batches(pictures: int) -> None:
    with pytest.raises(InputError, match="give a multiple of 10 up to 160"):
        price.Plan(pictures=pictures)


def run_of(out: Path, label: str, right: list[bool]) -> None:
    samples = [{"id": f"00{i // 2}-{i}", "right": r, "kept": 4} for i, r in enumerate(right)]
    write_run(out / label.replace(" ", "-"), "name: x\n", record={"label": label}, samples=samples)


def test_tables_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    rows = [
        {"method": "Some", "rule": "one price", "keep": 4, "equal": [1.0, 3.0], "priced": [2.0, 3.0],
         "bound": [4.0, 4.0], "counts": [1, 7, 4, 4]},
        {"method": "Some", "rule": "one price over the batch", "keep": 4, "equal": [4.0], "priced": [4.0],
         "bound": [4.0], "counts": [4, 4, 4, 4]},
    ]  # fmt: skip
    record = {"rows": rows, "setting": {"pictures": 2, "batch": 2}, "environment": {}}
    assert tables(tmp_path) == []
    write_record(tmp_path / "splits.json", record)
    run_of(tmp_path, "dense", [True] * 4)
    run_of(tmp_path, "Some, equal share, 4", [True, False, False, False])
    run_of(tmp_path, "Some, one price, 4", [True, True, True, False])
    run_of(tmp_path, "Some, one price over the batch, 4", [False, False, False, False])
    values, how, right, asked = tables(tmp_path)
    assert isinstance(values, Table) and isinstance(right, Table)
    assert values.rows == [
        ["Some", "4", "prompt of 2", "2", "2.5", "4", "25.0%", "1 to 7"],
        ["Some", "4", "batch of 4", "4", "4", "4", "0.0%", "4 to 4"],
    ]
    assert right.rows[0][:3] == ["Some", "4", "25.0 [4.6, 69.9]"]
    assert right.rows[0][3:] == ["+50.0 [+50.0, +50.0]", "-25.0 [-50.0, +0.0]"]  # by pictures, not questions
    assert "2 prompts of two pictures" in str(how) and str(asked).startswith("4 questions")


def test_a_small_run_leaves_packed_answers_and_matched_totals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(price, "METHODS", {"coverage": price.METHODS["coverage"]})
    monkeypatch.setattr(price, "BATCH", 2)
    monkeypatch.setattr(price, "load_questions", partial(price.load_questions, ["object"]))
    price.measure(price.Plan(pictures=2, keeps=(9,)), tmp_path, console=Console(file=io.StringIO()))
    index = (tmp_path / "runs.jsonl").read_text()
    labels = [json.loads(line)["record"]["label"] for line in index.splitlines()]
    assert sorted(labels) == ["coverage, equal share, 9", "coverage, one price over the batch, 9",
                              "coverage, one price, 9", "dense"]  # fmt: skip
    sample, batch = json.loads((tmp_path / "splits.json").read_text())["rows"]
    assert [sum(sample["counts"][:2]), sum(sample["counts"][2:])] == [18, 18]
    assert sum(batch["counts"]) == 36 and len(sample["equal"]) == 2 and len(batch["equal"]) == 1
    for row in (sample, batch):
        for equal, priced, bound in zip(row["equal"], row["priced"], row["bound"], strict=True):
            assert equal - 1e-6 <= priced <= bound
    assert len(tables(tmp_path)) == 4
    assert isinstance(price.Plan(pictures=2).questions[0], Question)
