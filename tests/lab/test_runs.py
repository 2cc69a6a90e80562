"""Runs are complete or absent, never edited, and say the same whether they are folders or packed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pruneopt.errors import InputError
from pruneopt.lab import runs
from pruneopt.lab.runs import finished, pack, read_run, run_folders, write_run

SAMPLES = [{"id": "a", "right": True}, {"id": "b", "right": False}]


def test_a_run_comes_back_as_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x" / "run", "name: topv\n", record={"n": 2}, samples=SAMPLES)
    assert finished(folder)
    assert read_run(folder) == ({"n": 2}, SAMPLES, "name: topv\n")


def test_runs_are_never_edited(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "", record={}, samples=SAMPLES)
    for _ in range(2):
        with pytest.raises(InputError, match="never edited"):
            write_run(folder, "", record={}, samples=SAMPLES)
        pack(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_run(tmp_path / "run", "", record={"bad": object()}, samples=SAMPLES)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="not a finished run"):
        read_run(tmp_path / "run")


def study(out: Path) -> dict[str, Any]:
    """Runs of unlike samples, with every value that JSON and Parquet could bend, as the folders say them."""
    odd = {"accuracy": 0.1 + 0.2, "none": None, "nan": float("nan"), "deep": {"b": [1, 2.0, True], "a": "\n"}}
    write_run(out / "b", "name: dense\n", record=odd, samples=[s | {"kept": None} for s in SAMPLES])
    write_run(out / "a", "text: 'ü'\n", record={"n": 1}, samples=[s | {"kept": 3} for s in SAMPLES[::-1]])
    write_run(out / "c", "", record={"n": 10**18}, samples=[{"id": "z", "share": 1 / 3}])
    write_run(out / "d", "", record={}, samples=[])
    return contents(out)


def contents(out: Path) -> dict[str, Any]:
    return {folder.name: read_run(folder) for folder in run_folders(out)}


def files(out: Path) -> list[str]:
    return sorted(p.name for p in out.iterdir() if p.name != ".claims")


def test_packing_changes_no_value(tmp_path: Path) -> None:
    before = study(tmp_path)
    assert [p.name for p in pack(tmp_path)] == ["a", "b", "c", "d"]
    assert files(tmp_path) == ["runs.jsonl", "samples.parquet"]
    assert repr(contents(tmp_path)) == repr(before), "a value, its type or an order is another one"
    assert all(finished(tmp_path / name) for name in "abcd") and not finished(tmp_path / "e")
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == ["a", "b", "c", "d"]
    assert pq.read_table(tmp_path / "samples.parquet").num_rows == sum(line["samples"] for line in lines) == 5


def test_a_study_goes_on_after_it_was_packed(tmp_path: Path) -> None:
    before = study(tmp_path)
    pack(tmp_path)
    first = (tmp_path / "runs.jsonl").read_text().splitlines()
    write_run(tmp_path / "aa", "", record={"n": 7}, samples=SAMPLES)
    (tmp_path / ".e.x1y2").mkdir()  # a run that is being written
    (tmp_path / "half").mkdir()  # and one that is not complete
    both = contents(tmp_path)
    assert list(both) == ["a", "aa", "b", "c", "d"] and repr(both) == repr(
        dict(sorted({**before, "aa": both["aa"]}.items()))
    )
    assert [p.name for p in pack(tmp_path)] == ["aa"] and pack(tmp_path) == []
    assert repr(contents(tmp_path)) == repr(both)
    assert files(tmp_path) == [".e.x1y2", "half", "runs.jsonl", "samples.parquet"]
    assert set(first) < set((tmp_path / "runs.jsonl").read_text().splitlines()), "a packed line was edited"


class Stopped(Exception):
    pass


@pytest.mark.parametrize("moment", range(1, 9))
def test_packing_may_be_stopped_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Stop before each file that is moved or removed; what is read then and after another try is the same."""
    before = study(tmp_path)
    left = [moment]

    def counted(act: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Stopped
            return act(*arguments, **more)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted(os.replace))
        patch.setattr(os, "rename", counted(os.rename))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        with pytest.raises(Stopped):
            pack(tmp_path)
        assert repr(contents(tmp_path)) == repr(before)
    pack(tmp_path)
    assert repr(contents(tmp_path)) == repr(before)
    assert files(tmp_path) == ["runs.jsonl", "samples.parquet"]


def lost_sample(line: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    samples.pop()
    line["samples"] -= 1


def lost_column(line: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    line["columns"].remove("right")


def turned_order(line: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    samples.reverse()


def rounded_record(line: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    line["record"]["accuracy"] = round(line["record"]["accuracy"], 9)


def spec_without_its_end(line: dict[str, Any], samples: list[dict[str, Any]]) -> None:
    line["spec"] = line["spec"].strip()


@pytest.mark.parametrize(
    "bug", [lost_sample, lost_column, turned_order, rounded_record, spec_without_its_end]
)
def test_nothing_is_removed_when_packing_says_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: Callable[..., None]
) -> None:
    """Bugs planted in what is written: each is seen, and the folders stay."""
    before = study(tmp_path)
    real = runs._packed

    def bent(folder: Path) -> runs.Run:
        found = real(folder)
        if folder.name != "b":
            return found
        line = {"samples": 2, "columns": list(found.samples[0]), "record": found.record, "spec": found.spec}
        bug(line, found.samples)
        kept = [{name: row[name] for name in line["columns"]} for row in found.samples]
        return runs.Run(line["record"], kept, line["spec"])

    monkeypatch.setattr(runs, "_packed", bent)
    with pytest.raises(InputError, match=r"'.*b' differs from the packed run"):
        pack(tmp_path)
    assert {"a", "b", "c", "d"} <= set(files(tmp_path)) and repr(contents(tmp_path)) == repr(before)


def test_what_would_be_dropped_is_refused(tmp_path: Path) -> None:
    study(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("seen by nobody else")
    with pytest.raises(InputError, match=r"'.*a' holds notes\.txt beside its run"):
        pack(tmp_path)
    (tmp_path / "a" / "notes.txt").unlink()
    write_run(tmp_path / "e", "", record={}, samples=[{"id": 7}])
    with pytest.raises(InputError, match="of different types"):
        pack(tmp_path)
    shutil.rmtree(tmp_path / "e")
    write_run(tmp_path / "e", "", record={}, samples=[{"run": "mine"}])
    with pytest.raises(InputError, match="have a column 'run'"):
        pack(tmp_path)
    assert files(tmp_path) == ["a", "b", "c", "d", "e"]


def test_two_runs_of_one_name_must_say_the_same(tmp_path: Path) -> None:
    study(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    pack(tmp_path / "one")
    shutil.copytree(tmp_path / "two" / "a", tmp_path / "one" / "a")
    assert [p.name for p in pack(tmp_path / "one")] == ["a"], "the same run twice is one run"
    write_run(tmp_path / "one" / "other" / "a", "", record={"n": 2}, samples=SAMPLES)
    os.rename(tmp_path / "one" / "other" / "a", tmp_path / "one" / "a")
    with pytest.raises(InputError, match="differs from the packed run"):
        pack(tmp_path / "one")


@pytest.mark.parametrize(
    ("name", "text"), [("runs.jsonl", "{"), ("runs.jsonl", "[]\n"), ("samples.parquet", "x")]
)
def test_damaged_packs_are_named(tmp_path: Path, name: str, text: str) -> None:
    study(tmp_path)
    pack(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}' is damaged"):
        contents(tmp_path)
    (tmp_path / "samples.parquet").unlink()
    with pytest.raises(InputError, match="is damaged"):
        contents(tmp_path)


def test_a_pack_that_lost_samples_is_no_record(tmp_path: Path) -> None:
    study(tmp_path)
    pack(tmp_path)
    path = tmp_path / "samples.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(InputError, match="1 samples instead of 2"):
        contents(tmp_path)
