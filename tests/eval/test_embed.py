"""Committed documents hold what their records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruneopt.errors import InputError
from pruneopt.eval import embed

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=str)
def test_no_document_is_stale(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert embed.render(text) == text, f"run: python -m pruneopt.eval.embed {path}"


def test_blocks_are_replaced_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(embed.BLOCKS, "x", "tests_embed_helper:table")
    import sys
    import types

    helper = types.ModuleType("tests_embed_helper")
    helper.table = lambda records: "new"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests_embed_helper", helper)
    text = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n"
    assert embed.render(text) == "a\n<!-- begin: x -->\n\nnew\n\n<!-- end: x -->\nb\n"


def test_unknown_blocks_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'accuracy'"):
        embed.render("<!-- begin: acuracy -->\n<!-- end: acuracy -->")
