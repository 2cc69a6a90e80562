"""What evaluation reports: which cut is counted, whose questions, what of a dirty tree, what a table says."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pruneopt.demo.assets import Question, load_questions
from pruneopt.errors import InputError
from pruneopt.lab import environment
from pruneopt.lab.accuracy import run as sweep
from pruneopt.lab.accuracy.answer import Outcome, answer, deepest, spread
from pruneopt.lab.accuracy.run import Entry, Plan, question_hash, run_sweep
from pruneopt.lab.runs import read_run, write_run
from pruneopt.lab.statistics import paired, share
from pruneopt.lab.study import study
from pruneopt.spec.load import load_spec


def questions(count: int = 4) -> list[Question]:
    return [Question(f"q{i}", Path("x.png"), "colour", f"what {i}?", "red", None) for i in range(count)]


# --- which cut, which questions -----------------------------------------------------------------------------


def test_the_last_cut_is_the_deepest_one() -> None:
    assert deepest(SimpleNamespace(kept_visual={8: [], 2: [], 12: []})) == 12


def test_an_outcome_counts_what_the_last_cut_left() -> None:
    from pruneopt.demo.assets import load_model

    model, processor = load_model()
    asked = load_questions()[:2]
    spec = load_spec("pyramiddrop", ["insertion.layer=[1,2,4]", "budget.keep=[0.5,0.5,0.25]"])
    assert [o.kept for o in answer(model, processor, questions=asked, spec=spec)] == [9, 9]
    assert [o.kept for o in answer(model, processor, questions=asked)] == [None, None]


@pytest.mark.parametrize("change", [{"id": "other"}, {"question": "other?"}, {"answer": "blue"}])
def test_the_hash_of_a_question_set_knows_every_text(change: dict) -> None:
    first = questions()
    changed = [replace(first[0], **change), *first[1:]]
    assert question_hash(first) == question_hash(questions())
    assert len({question_hash(q) for q in (first, changed, first[:3], first[::-1])}) == 4


def test_the_same_entry_on_other_questions_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record of other questions must never be taken for a finished run of these."""
    monkeypatch.setattr(
        sweep, "answer", lambda *_, questions, **__: [Outcome(q, "red", True, 7) for q in questions]
    )
    model = SimpleNamespace(
        device=torch.device("cpu"), dtype=torch.float32, config=SimpleNamespace(_attn_implementation="sdpa")
    )
    entries = [Entry("dense", None), Entry("a", load_spec("fastv")), Entry("b", load_spec("fastv"))]
    entries.append(Entry("a", load_spec("fastv", ["budget.keep=0.3"])))
    few, many = (run_sweep(Plan(model, None, questions(n), entries), tmp_path) for n in (3, 4))
    assert len({*few, *many}) == 8
    assert [len(read_run(folder).samples) for folder in (*few, *many)] == [3] * 4 + [4] * 4
    record, samples, _ = read_run(many[1])
    assert record["question_hash"] == question_hash(questions(4)) and record["kept_mean"] == 7
    assert record["spec_hash"] == load_spec("fastv").hash and read_run(many[0]).record["spec_hash"] == "dense"
    assert [s["id"] for s in samples] == ["q0", "q1", "q2", "q3"]


def test_questions_are_spread_over_the_types() -> None:
    every = [replace(q, type=kind, id=f"{kind}{q.id}") for kind in ("a", "b", "c") for q in questions(5)]
    assert [q.id for q in spread(every, 7)] == ["aq0", "aq1", "aq2", "bq0", "bq1", "cq0", "cq1"]
    assert spread(every, 99) == every


# --- where a number comes from ------------------------------------------------------------------------------


def test_a_changed_file_makes_the_tree_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    code = tmp_path / "code.py"
    code.write_text("a = 1\n")
    git("init", "-q")
    git("add", "code.py")
    git("commit", "-qm", "first")
    monkeypatch.setattr(environment, "__file__", str(code))
    found = environment.environment()
    assert (found["commit"], found["dirty"]) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "beside.txt").write_text("an untracked file is no change")
    assert environment.environment()["dirty"] is False
    code.write_text("a = 2\n")
    assert environment.environment()["dirty"] is True


def test_without_a_repository_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "code.py"))
    found = environment.environment()
    assert (found["commit"], found["dirty"]) == (None, None)


# --- what a table says --------------------------------------------------------------------------------------


def run(folder: Path, label: str, rights: list[bool], kept: float | None, hashed: str = "h") -> None:
    record = {"label": label, "question_hash": hashed, "kept_mean": kept}
    samples = [{"right": right} for right in rights]
    write_run(folder / label.replace(" ", "-"), "", record=record, samples=samples)


DENSE = [True] * 9 + [False]
GOOD, POOR = [True] * 8 + [False] * 2, [False] * 7 + [True] * 3


def test_a_table_against_its_records(tmp_path: Path) -> None:
    run(tmp_path, "dense", DENSE, None)
    run(tmp_path, "poor", POOR, 16)
    run(tmp_path, "good", GOOD, 16)
    run(tmp_path, "wide", POOR, 36)
    rows = [line.split(" | ") for line in study("accuracy").markdown(tmp_path).splitlines()]
    assert rows[2] == ["| dense", "all", str(share(DENSE)), " |"]
    assert [row[:2] for row in rows[3:6]] == [["| wide", "36"], ["| good", "16"], ["| poor", "16"]]
    assert rows[4][2:] == [str(share(GOOD)), f"{paired(GOOD, DENSE)} |"]
    assert "-10.0 [" in rows[4][3] and "-60.0 [" in rows[5][3]
    assert "10 questions" in study("accuracy").markdown(tmp_path)


def test_seeds_are_one_row_with_their_spread(tmp_path: Path) -> None:
    run(tmp_path, "dense", DENSE, None)
    run(tmp_path, "random seed 0", GOOD, 16)
    run(tmp_path, "random seed 1", POOR, 16)
    (row,) = [
        line for line in study("accuracy").markdown(tmp_path).splitlines() if line.startswith("| random")
    ]
    assert "| 16 | 55.0 +- 35.4 over 2 seeds | -35.0 [" in row


def test_mixed_question_sets_are_refused(tmp_path: Path) -> None:
    run(tmp_path, "dense", DENSE, None)
    run(tmp_path, "other", GOOD, 16, hashed="another")
    with pytest.raises(InputError, match="mixes question sets"):
        study("accuracy").markdown(tmp_path)
