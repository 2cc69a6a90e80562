"""Records are complete or absent, and never edited."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruneopt.errors import InputError
from pruneopt.lab.records import environment, finished, read_run, write_run

SAMPLES = [{"id": "a", "right": True}, {"id": "b", "right": False}]


def test_a_run_comes_back_as_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x" / "run", "name: topv\n", {"n": 2}, SAMPLES)
    assert finished(folder)
    assert read_run(folder) == ({"n": 2}, SAMPLES)


def test_records_are_never_edited(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "", {}, SAMPLES)
    with pytest.raises(InputError, match="never edited"):
        write_run(folder, "", {}, SAMPLES)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_run(tmp_path / "run", "", {"bad": object()}, SAMPLES)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="not a finished run"):
        read_run(tmp_path / "run")


def test_the_environment_names_versions_and_the_commit() -> None:
    found = environment()
    assert found["packages"]["torch"] and found["pruneopt"]
    assert {"commit", "dirty", "device", "threads"} <= set(found)
