"""Committed documents hold what their records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruneopt.errors import InputError
from pruneopt.lab import pages as embed

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=str)
def test_no_document_is_stale(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert embed.render(text) == text, f"run: python -m pruneopt.lab.pages {path}"


class Block:
    """A study that says where its records are."""

    def committed(self, records: Path) -> str:
        return f"new \\1 from {records.name}\n"

    def brief(self, records: Path) -> str:
        return "short\n"


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "study", lambda _: Block())


STALE = "a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n"
FRESH = "a\n<!-- begin: x -->\n\nnew \\1 from records\n\n<!-- end: x -->\nb\n"


@pytest.mark.usefixtures("block")
def test_blocks_are_replaced_and_nothing_else() -> None:
    assert embed.render(STALE) == FRESH
    assert embed.render(STALE, Path("elsewhere")) == FRESH.replace("records", "elsewhere")
    assert embed.render(STALE + STALE) == FRESH + FRESH
    short = STALE.replace(": x", ": x-brief")
    assert embed.render(short) == short.replace("old", "\nshort\n")
    other = STALE.replace("end: x", "end: y")
    assert embed.render(other) == other
    assert embed.blocks(STALE + other) == ["x"]
    assert embed.splice(STALE, {"y": "new"}.get) == STALE


def test_a_study_without_a_short_table_says_so() -> None:
    with pytest.raises(InputError, match="'gap' has no short table; name the block 'gap'"):
        embed.render("<!-- begin: gap-brief -->\n<!-- end: gap-brief -->")


@pytest.mark.usefixtures("block")
def test_the_check_fails_for_stale_files_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale, fresh = tmp_path / "stale.md", tmp_path / "fresh.md"
    stale.write_text(STALE)
    fresh.write_text(FRESH)
    assert embed.main(["--check", str(fresh), str(stale)]) == 1
    assert stale.read_text() == STALE and capsys.readouterr().out == f"{stale} is stale\n"
    assert embed.main(["--check", str(fresh)]) == 0
    assert embed.main([str(fresh), str(stale)]) == 0
    assert stale.read_text() == FRESH and capsys.readouterr().out == f"{stale} written\n"
    assert embed.main(["--check", str(stale)]) == 0


def test_unknown_blocks_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'accuracy'"):
        embed.render("<!-- begin: acuracy -->\n<!-- end: acuracy -->")
