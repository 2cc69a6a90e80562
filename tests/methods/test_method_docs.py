"""The committed pages about methods and signals are what the specs say now."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruneopt.eval.method_docs import pages, write
from pruneopt.signals import SIGNALS
from pruneopt.spec import list_methods, load_spec

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_committed_pages_equal_the_generated_ones() -> None:
    stale = []
    for name, text in pages().items():
        path = DOCS / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    assert stale == [], "run `python -m pruneopt.eval.method_docs`"


def test_no_page_of_a_method_that_is_gone() -> None:
    known = {name.partition("/")[0] for name in list_methods()}
    assert {path.stem for path in (DOCS / "methods").glob("*.md")} <= known


def test_every_method_and_every_signal_has_its_place() -> None:
    text = pages()
    for name in list_methods():
        assert f"[{name}](" in text["methods.md"]
        assert f"# {name}\n" in text[f"methods/{name.partition('/')[0]}.md"]
    for name in SIGNALS:
        assert f"`{name}`" in text["signals.md"]


def test_written_pages_are_read_back(tmp_path: Path) -> None:
    paths = write(tmp_path)
    assert len(paths) == len(pages())
    assert all(path.read_text(encoding="utf-8").startswith("<!-- generated") for path in paths)


@pytest.mark.parametrize("name", list_methods())
def test_every_method_says_where_it_comes_from_and_how_sure_that_is(name: str) -> None:
    meta = load_spec(name).meta
    for key in ("title", "paper", "code", "licence", "certainty", "family", "equation"):
        assert str(meta.get(key, "")).strip(), f"{name} lacks meta.{key}"
    assert load_spec(name).name == name
