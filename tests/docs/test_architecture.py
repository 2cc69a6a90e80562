"""The page on the architecture names what is there, and its picture is drawn from it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
_TEXT = re.compile(r"<text[^>]*>([^<]*)</text>")
_PLACE = re.compile(r"`((?:\.?[\w.-]+/)*[\w.-]+(?:/|\.py|\.md|\.importlinter))`")


def words(picture: Path) -> list[str]:
    return sorted(_TEXT.findall(picture.read_text()))


def missing(text: str) -> list[str]:
    """Files and folders of a text that exist neither in the repository nor in the package."""
    return [p for p in _PLACE.findall(text) if not ((ROOT / p).exists() or (ROOT / "pruneopt" / p).exists())]


def test_the_picture_is_what_the_tree_says_today(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw = runpy.run_path(str(ROOT / ".ci" / "draw_architecture.py"))["draw"]
    draw(tmp_path / "new.svg")
    assert words(tmp_path / "new.svg") == words(PAGE.parent / "pictures" / "architecture.svg")
    assert "models/sites/" in words(tmp_path / "new.svg")


def test_every_place_that_the_page_names_exists() -> None:
    assert missing(PAGE.read_text()) == []
    assert len(_PLACE.findall(PAGE.read_text())) > 30


def test_a_place_that_is_gone_is_noticed() -> None:
    assert missing("see `pruneopt/eval/` and `solution.py`, not `signals.py`") == [
        "pruneopt/eval/",
        "solution.py",
    ]


def test_every_room_of_the_package_is_on_the_page() -> None:
    rooms = {path.name for path in (ROOT / "pruneopt").iterdir() if (path / "__init__.py").exists()}
    named = set(re.findall(r"pruneopt/(\w+)/", PAGE.read_text()))
    assert rooms - named == set()
