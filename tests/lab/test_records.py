"""Records are written whole or not at all, and say what they were measured with."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruneopt.errors import InputError
from pruneopt.lab.environment import environment, machine, package
from pruneopt.lab.records import read_record, write_record


def test_a_record_comes_back_as_written_or_not_at_all(tmp_path: Path) -> None:
    path = write_record(tmp_path / "deep" / "a.json", {"b": [1, 2.5], "a": None})
    assert read_record(path) == {"a": None, "b": [1, 2.5]}
    with pytest.raises(TypeError):
        write_record(path, {"bad": object()})
    assert read_record(path) == {"a": None, "b": [1, 2.5]}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json"):
        read_record(tmp_path / "a.json")
    with pytest.raises(InputError, match="missing"):
        read_record(tmp_path / "b.json")


def test_the_environment_names_versions_the_machine_and_the_commit() -> None:
    found = environment()
    assert package(found, "torch") == found["packages"]["torch"] and found["pruneopt"]
    assert {"commit", "dirty", "device", "threads", "load"} <= set(found) and found["device"] == "cpu"
    assert environment(commit="abc")["commit"] == "abc"


def test_older_forms_of_an_environment_are_read() -> None:
    """Records are never edited, so the words for them must stay."""
    assert package({"torch": "2.13.0", "threads": 1}, "torch") == "2.13.0"
    assert machine("one sentence") == "one sentence"
    found = environment() | {"machine": "x86_64", "cores": 2, "threads": 1, "load": 0.94}
    assert machine(found) == "x86_64, 2 cores, 1 torch threads, load 0.9 at the start"
