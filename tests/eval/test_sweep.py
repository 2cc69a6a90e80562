"""Sweeps: entries from a file, run folders that are resumed, tables from records."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruneopt.cli.sweep import read_entries
from pruneopt.errors import InputError, SpecError
from pruneopt.eval.records import read_run
from pruneopt.eval.tables import accuracy_of

FILE = """
entries:
  - {label: dense, method: dense}
  - {label: random, method: random, overrides: [budget.keep=16], seeds: 2}
  - {label: topv, method: topv, overrides: [budget.keep=16, "steps=[]"]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(FILE)
    return path


def test_seeds_become_entries(file: Path) -> None:
    entries = read_entries(file)
    assert [e.label for e in entries] == ["dense", "random seed 0", "random seed 1", "topv"]
    assert entries[0].spec is None and entries[0].key == "dense"
    assert len({e.key for e in entries}) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("entries: []", "must have a list"),
        ("entries: [{label: a, methd: topv}]", "did you mean 'method'"),
        ("entries: [{label: a}]", "needs a label and a method"),
        ("entries: [{label: a, method: topvv}]", "did you mean 'topv'"),
        ("entries: [{label: a, method: topv}, {label: a, method: fastv}]", "occurs twice"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=words):
        read_entries(path)


def test_a_table_needs_a_dense_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dense"):
        accuracy_of(tmp_path)


@pytest.mark.slow
def test_a_sweep_is_resumed_and_tabulated(file: Path, tmp_path: Path) -> None:
    from pruneopt.demo.assets import load_model, load_questions
    from pruneopt.eval.accuracy import spread
    from pruneopt.eval.sweep import run_sweep

    questions = spread(load_questions(), 12)
    assert len({q.type for q in questions}) >= 6
    model, processor = load_model()
    entries = read_entries(file)
    out = tmp_path / "runs"
    first = run_sweep(model, processor, questions, entries[:2], out)
    stamp = (first[1] / "record.json").stat().st_mtime_ns
    folders = run_sweep(model, processor, questions, entries, out)
    assert (folders[1] / "record.json").stat().st_mtime_ns == stamp, "a finished run was run again"
    record, samples = read_run(folders[3])
    assert record["kept_mean"] == 16 and len(samples) == 12
    assert record["accuracy"] == pytest.approx(sum(s["right"] for s in samples) / 12)
    table = accuracy_of(out)
    assert "| dense | all |" in table and "over 2 seeds" in table and "12 questions" in table
    # Batches do not change answers: one question at a time says the same.
    alone = run_sweep(model, processor, questions[:4], entries[3:], tmp_path / "alone", batch=1)
    said = {s["id"]: s["said"] for s in samples}
    assert all(said[s["id"]] == s["said"] for s in read_run(alone[0])[1])
