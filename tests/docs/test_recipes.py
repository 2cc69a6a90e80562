"""The recipes of CONTRIBUTING.md, followed by the letter in a copy of the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SECTION = re.compile(r"^### (.+?)\n(.*?)(?=^### |\Z)", re.MULTILINE | re.DOTALL)
# a block of code, after the name of its file if it is one
_BLOCK = re.compile(r"(?:^`(\S+)`\n\n)?^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# Runs the `pruneopt` commands of its first argument in one process, and writes those that fail to `failed`.
COMMANDS = """
import contextlib, io, json, shlex, sys
from pruneopt.cli.main import main
failed = []
for line in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(shlex.split(line)[1:])
        except SystemExit as end:
            if end.code:
                failed.append(f"{line}\\n{out.getvalue()[-3000:]}")
open("failed", "w").write("\\n".join(failed))
"""


def recipes(text: str) -> dict[str, tuple[dict[str, str], list[str]]]:
    """Title to files and command lines, in the order of the page."""
    found = {}
    for title, body in _SECTION.findall(text):
        blocks = _BLOCK.findall(body)
        files = {name: content for name, content in blocks if name}
        found[title] = files, [line for name, content in blocks if not name for line in content.splitlines()]
    return found


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(place), "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True, check=False
    )


def followed(text: str, place: Path) -> str:
    """What fails when every recipe of `text` is followed in `place`, a copy of the repository."""
    lines = []
    for files, commands in recipes(text).values():
        for name, content in files.items():
            assert not (place / name).exists(), f"{name} is there already"
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(content)
        lines += commands
    tests = [line.removeprefix("python -m pytest ") for line in lines if line.startswith("python -m pytest ")]
    ours = [line for line in lines if line.startswith("pruneopt ")]
    assert len(tests) + len(ours) == len(lines), "a recipe says `python -m pytest FILE` or `pruneopt ...`"
    asked = run(place, "-c", COMMANDS, json.dumps(ours))
    assert asked.returncode == 0, asked.stderr[-3000:]
    tested = run(place, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests)
    return (place / "failed").read_text() + (
        tested.stdout[-3000:] + tested.stderr if tested.returncode else ""
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("pruneopt", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "data", "mutants")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    (tmp_path / "tests" / "golden" / "data").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_there_are_five_recipes_and_each_has_files_and_commands() -> None:
    found = recipes((ROOT / "CONTRIBUTING.md").read_text())
    assert list(found) == ["A cost term", "A solver", "A kind of problem", "A model family", "A method"]
    assert all(files and commands for files, commands in found.values())


@pytest.mark.slow
def test_each_recipe_works_by_the_letter(place: Path) -> None:
    assert followed((ROOT / "CONTRIBUTING.md").read_text(), place) == ""


def test_a_recipe_that_is_wrong_is_noticed(place: Path) -> None:
    wrong = "### A\n\n`tests/test_a.py`\n\n```python\ndef test_a():\n    assert 1 == 2\n```\n\n"
    wrong += "```\npython -m pytest tests/test_a.py\npruneopt check no_such_part\n```\n"
    found = followed(wrong, place)
    assert "assert 1 == 2" in found and "no_such_part" in found
