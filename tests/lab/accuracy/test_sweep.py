"""Sweeps: entries from a file, run folders that are resumed, tables from records."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruneopt.cli.sweep import read_entries
from pruneopt.errors import InputError, PruneoptError, SpecError
from pruneopt.lab.runs import pack, read_run, run_folders, write_run
from pruneopt.lab.study import study

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
    ("line", "place", "words"),
    [
        ("{label: a, methd: topv}", "4:16", "did you mean 'method'"),
        ("{label: a}", "4:5", "needs a label and a method"),
        ("{label: a, method: topvv}", "4:16", "did you mean 'topv'"),
        ("{label: dense, method: topv}", "4:5", "occurs twice"),
        ("{label: a, method: topv, overrides: [budget.keep=0]}", "4:30", "budget.keep must be above 0"),
        ("{label: a, method: topv, overrides: budget.keep=0.5}", "4:30", "must be a list"),
        ("{label: a, method: topv, overrides: [16]}", "4:30", "must be a list"),
        ("{label: a, method: random, seeds: many}", "4:32", "whole number from 1"),
        ("{label: a, method: topv, seeds: 2}", "4:30", "problem.scores"),
        ("{label: 7, method: topv}", "4:6", "label must be text"),
        ("{label: .a, method: topv}", "4:6", "starts with a dot"),
        ("{label: a, method: dense, seeds: 2}", "4:31", "dense has neither"),
        ("topv", "4:5", "an entry is a mapping"),
    ],
)
def test_a_bad_entry_is_named_with_file_line_and_number(
    tmp_path: Path, line: str, place: str, words: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"# a sweep\nentries:\n  - {{label: dense, method: dense}}\n  - {line}\n")
    with pytest.raises(PruneoptError, match=re.escape(words)) as caught:
        read_entries(path)
    assert str(caught.value).startswith(f"{path}:{place}: entry 2"), caught.value
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("entries: []", "must have a list"),
        ("entries: 3", "must have a list"),
        ("- 1", "must have a list"),
        ("entrys: []", "must have a list"),
        ("entries: [{label: a, method: dense}]\nout: x", ":2:1: unknown key out"),
        ("entries: [", ":2:1: not valid YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=re.escape(words)):
        read_entries(path)
    with pytest.raises(SpecError, match="does not exist"):
        read_entries(tmp_path / "none.yaml")


def test_a_table_needs_a_dense_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no records"):
        study("accuracy").markdown(tmp_path)
    write_run(tmp_path / "a", "", record={"label": "a"}, samples=[{"right": True}])
    with pytest.raises(InputError, match="dense"):
        study("accuracy").markdown(tmp_path)


@pytest.mark.slow
def test_a_sweep_is_resumed_and_tabulated(file: Path, tmp_path: Path) -> None:
    from pruneopt.demo.assets import load_model, load_questions
    from pruneopt.lab.accuracy.answer import spread
    from pruneopt.lab.accuracy.run import Plan, run_sweep

    questions = spread(load_questions(), 12)
    assert len({q.type for q in questions}) >= 6
    model, processor = load_model()
    entries = read_entries(file)
    out = tmp_path / "runs"
    first = run_sweep(Plan(model, processor, questions, entries[:2]), out)
    stamp = (first[1] / "record.json").stat().st_mtime_ns
    folders = run_sweep(Plan(model, processor, questions, entries), out)
    assert (folders[1] / "record.json").stat().st_mtime_ns == stamp, "a finished run was run again"
    record, samples, _ = read_run(folders[3])
    assert record["kept_mean"] == 16 and len(samples) == 12
    assert record["accuracy"] == pytest.approx(sum(s["right"] for s in samples) / 12)
    table = study("accuracy").markdown(out)
    pack(out)
    assert study("accuracy").markdown(out) == table, "packing changed the table"
    again = run_sweep(Plan(model, processor, questions, entries), out)
    assert again == folders and not any(f.exists() for f in folders), "a packed run was run again"
    assert "| dense | all |" in table and "over 2 seeds" in table and "12 questions" in table
    # Batches do not change answers: one question at a time says the same.
    alone = run_sweep(Plan(model, processor, questions[:4], entries[3:], batch=1), tmp_path / "alone")
    said = {s["id"]: s["said"] for s in samples}
    assert all(said[s["id"]] == s["said"] for s in read_run(alone[0]).samples)


@pytest.mark.slow
def test_a_whole_sweep_is_checked_against_the_model_before_anything_runs(tmp_path: Path) -> None:
    from pruneopt.demo.assets import load_model, load_questions
    from pruneopt.lab.accuracy.run import Plan, run_sweep

    model, processor = load_model()
    path = tmp_path / "sweep.yaml"
    for override, words in (
        ("insertion.layer=99", "insertion.layer=99"),
        ("budget.keep=500", "asks for 500 tokens"),
    ):
        path.write_text(
            "entries:\n  - {label: dense, method: dense}\n"
            f"  - label: deep\n    method: fastv\n    overrides: [{override}]\n"
        )
        with pytest.raises(PruneoptError, match=words) as caught:
            run_sweep(Plan(model, processor, load_questions()[:2], read_entries(path)), tmp_path / "runs")
        assert str(caught.value).startswith(f"{path}:3:5: entry 2 ('deep'): ")
        assert [p.name for p in (tmp_path / "runs").iterdir()] == [], "something ran before the refusal"


# One process imports, then forks the workers: the real sweep with a stand-in for the model's answers.
WORKERS = """
import os, signal, sys, time, traceback
from pathlib import Path
from types import SimpleNamespace

import torch

import pruneopt.lab.accuracy.run as sweep
from pruneopt.lab import runs as waiting
from pruneopt.demo.assets import load_questions
from pruneopt.lab.accuracy.answer import Outcome

here = Path(sys.argv[1])
out, log = here / "runs", here / "log"
config = SimpleNamespace(_attn_implementation="sdpa")
model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, config=config)
entries = [sweep.Entry(f"entry {i}", None) for i in range(4)]
asked = load_questions()[:2]
waiting._WAIT = 0.02


def worker(seconds):
    def answer(*_, **__):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(seconds)
        return [Outcome(q, q.answer, True, None) for q in asked]

    child = os.fork()
    if child:
        return child
    sweep.answer = answer
    try:
        sweep.run_sweep(sweep.Plan(model, None, asked, entries), out)
    except BaseException as error:
        traceback.print_exception(error)
        os._exit(1)
    os._exit(0)


dead = worker(600)
while not log.exists():
    time.sleep(0.01)
os.kill(dead, signal.SIGKILL)
os.waitpid(dead, 0)
(claimed,) = (out / ".claims").iterdir()
half = out / f".{claimed.stem}.x1y2"
half.mkdir()
(half / "spec.yaml").write_text("name: half")
log.unlink()
pair = [worker(0.2), worker(0.2)]
print(*pair, *(os.waitpid(child, 0)[1] for child in pair))
"""


def test_two_processes_share_a_sweep_that_a_third_was_killed_in(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stderr == ""
    first, second, *statuses = done.stdout.split()
    assert statuses == ["0", "0"], "a worker died"
    ran = Counter((tmp_path / "log").read_text().split())
    assert sum(ran.values()) == 4, f"an entry was run twice, or the killed one's was lost: {ran}"
    assert set(ran) == {first, second}, "one process did all the work"
    folders = run_folders(tmp_path / "runs")
    assert sorted(str(read_run(folder).record["label"]) for folder in folders) == [
        f"entry {i}" for i in range(4)
    ]


def test_a_folder_that_cannot_be_resumed_is_refused_before_any_work(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from pruneopt.demo.assets import load_questions
    from pruneopt.lab.accuracy.run import Entry, Plan, check_sweep, question_hash

    questions = load_questions()[:2]
    model = SimpleNamespace(
        device=torch.device("cpu"), dtype=torch.float32, config=SimpleNamespace(_attn_implementation="sdpa")
    )
    entries = [Entry("dense", None)]
    plan = Plan(model, None, questions, entries)
    (folder,) = check_sweep(plan, tmp_path)
    assert folder == tmp_path / f"dense_dense_{question_hash(questions)}"
    record = {"label": "dense", "setting": {"dtype": "bfloat16"}}
    write_run(folder, "", record=record, samples=[{"right": True}])
    with pytest.raises(InputError, match="dtype=bfloat16"):
        check_sweep(plan, tmp_path)
    (folder / "samples.parquet").unlink()
    with pytest.raises(InputError, match="no finished run"):
        check_sweep(plan, tmp_path)
    with pytest.raises(InputError, match="rename one"):
        check_sweep(replace(plan, entries=[Entry("a b", None), Entry("a-b", None)]), tmp_path / "other")
