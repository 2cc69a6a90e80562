"""Every study has two halves, and tables are made of records by the one that measures nothing."""

from __future__ import annotations

import inspect
import io
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console

from pruneopt.errors import InputError
from pruneopt.lab.study import RECORDS, studies, study
from pruneopt.lab.tables import Table, markdown, number, show

NAMES = [
    "accuracy", "gap", "notch", "prefill", "price", "released", "scale", "selection", "solvers", "subset",
    "targets",
]  # fmt: skip


def test_a_folder_with_both_halves_is_a_study() -> None:
    assert list(studies()) == NAMES
    with pytest.raises(InputError, match="did you mean 'targets'"):
        study("target")


@pytest.mark.parametrize("name", NAMES)
def test_both_halves_are_called_alike(name: str) -> None:
    run = import_module(f"pruneopt.lab.{name}.run")
    assert list(inspect.signature(run.measure).parameters) == ["plan", "out", "console"]
    assert inspect.isclass(run.Plan) and run.measure.__module__ == run.__name__
    table = import_module(f"pruneopt.lab.{name}.table")
    assert list(inspect.signature(table.tables).parameters) == ["out"]
    assert study(name).holds(RECORDS / table.HOME)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_without_records_has_no_table(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing measured")
    assert not study(name).holds(tmp_path)
    with pytest.raises(InputError, match=f"holds no records of the study '{name}'"):
        study(name).markdown(tmp_path)


def test_tables_are_made_without_what_measures() -> None:
    """Beside the import contract: every committed table in a process that is asked what it imported."""
    code = (
        "import sys; from pruneopt.lab.study import studies\n"
        "for study in studies().values(): study.committed()\n"
        "print(*(m for m in sys.modules if m.endswith('.run') and m.startswith('pruneopt.lab.')), "
        "*(m for m in ('transformers', 'ot', 'cvxpy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_report_is_shown_and_left_beside_its_records(tmp_path: Path) -> None:
    (tmp_path / "targets.json").write_bytes((RECORDS / "solvers" / "targets.json").read_bytes())
    console = Console(width=300, record=True, quiet=True)
    text = study("targets").report(tmp_path, console=console)
    assert (tmp_path / "targets.md").read_text() == text + "\n" == study("targets").committed() + "\n"


def test_a_table_is_the_same_on_a_page_and_on_a_terminal() -> None:
    table = Table(("a", "b"), [["1", "x|y"], ["", "2"]], "title")
    assert table.markdown() == "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n|  | 2 |"
    assert markdown(["first", table]) == f"first\n\n{table.markdown()}"
    console = Console(width=40, record=True, file=io.StringIO())
    show(["a [95%] paragraph that is longer than this terminal is wide", table], console)
    shown = console.export_text()
    assert "a [95%] paragraph that is longer than this terminal is wide" in shown
    assert "title" in shown and "x|y" in shown


def test_numbers_have_few_digits() -> None:
    assert [number(x) for x in (0.0, 1.0, 0.5, 12.345, 9999.0, 12345.0, 1e-4, -2e-5)] == [
        "0", "1", "0.5", "12.3", "1e+04", "1.2e+04", "1.0e-04", "-2.0e-05",
    ]  # fmt: skip
    assert number(None) == number(float("nan")) == ""
