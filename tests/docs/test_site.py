"""`make docs` fails on anything that a reader would stumble over, and leaves no page unreachable."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("mkdocs", reason="the site needs the extra 'docs'")


def recipe() -> list[str]:
    """The command of `make docs`, run by this interpreter."""
    line = re.search(r"^docs:.*\n\t(.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert line is not None
    words = shlex.split(line[1])
    assert words[0] == "$(BIN)/mkdocs"
    return [sys.executable, "-m", "mkdocs", *words[1:]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the site is made from."""
    for name in ("docs", ".ci", "experiments/records/notch", "experiments/records/solvers"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copytree(
        ROOT / "pruneopt", tmp_path / "pruneopt", ignore=shutil.ignore_patterns("demo", "methods")
    )
    return tmp_path


def build(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(recipe(), cwd=tree, capture_output=True, text=True)


class Targets(HTMLParser):
    """Links and pictures of one page."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if tag == "img" and found.get("src"):
            self.pictures.append(str(found["src"]))


def test_every_page_is_reached_and_every_picture_shows(tree: Path) -> None:
    done = build(tree)
    assert done.returncode == 0, done.stderr
    site = tree / "site"
    start = Targets((site / "index.html").read_text(encoding="utf-8"))
    reached = {(site / link.split("#")[0] / "index.html").resolve() for link in start.links}
    for page in (tree / "docs").rglob("*.md"):
        place = page.relative_to(tree / "docs").with_suffix("")
        html = site / ("index.html" if place.name == "index" else f"{place}/index.html")
        assert html.is_file()
        assert html.resolve() in reached or place.name == "index", f"{place} is in no menu"
        wanted = re.findall(r"!\[[^\]]*\]\(", page.read_text(encoding="utf-8"))
        pictures = Targets(html.read_text(encoding="utf-8")).pictures
        assert len(pictures) >= len(wanted)
        for picture in pictures:
            assert (html.parent / picture).is_file(), f"{place} shows {picture}, which is not in the site"
    assert 'id="pruneopt.select"' in (site / "reference" / "index.html").read_text(encoding="utf-8")
    assert len(Targets((site / "solvers" / "index.html").read_text(encoding="utf-8")).pictures) == 4


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("docs/models.md", "[x](no-such-page.md)"),
        ("docs/methods/topv.md", "[x](#no-such-heading)"),
        ("docs/topv.md", "![x](../experiments/records/solvers/no-such.png)"),
        ("docs/nowhere.md", "a page in no menu"),
    ],
)
def test_what_a_reader_would_stumble_over_fails_the_build(tree: Path, page: str, text: str) -> None:
    with (tree / page).open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")
    done = build(tree)
    assert done.returncode != 0, f"{text} in {page} passed"
    assert Path(page).name in done.stdout + done.stderr


def test_a_public_name_that_the_reference_lacks_fails_the_build(tree: Path) -> None:
    page = tree / "docs" / "reference.md"
    page.write_text(page.read_text(encoding="utf-8").replace("::: pruneopt.select\n", ""), encoding="utf-8")
    done = build(tree)
    assert done.returncode != 0
    assert "reference.md lacks a line '::: pruneopt.select'" in done.stdout + done.stderr


def test_a_docstring_that_is_wrong_fails_the_build(tree: Path) -> None:
    module = tree / "pruneopt" / "spec" / "load.py"
    text = module.read_text(encoding="utf-8").replace(
        "    overrides\n        `key", "    override\n        `key"
    )
    module.write_text(text, encoding="utf-8")
    done = build(tree)
    assert done.returncode != 0
    assert "'override' does not appear in the function signature" in done.stdout + done.stderr


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert len(links) > 5
    for link in links:
        assert (ROOT / link.split("#")[0]).exists(), link


@pytest.mark.parametrize(("broken", "ran"), [("", "lint types docs test"), ("types", "lint types")])
def test_continuous_integration_runs_every_gate_and_stops_at_the_first_failure(
    tmp_path: Path, broken: str, ran: str
) -> None:
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "$1" >> "{tmp_path}/ran"\n[ "$1" != "{broken}" ]\n')
    make.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / ".ci" / "run")], env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    )
    assert (done.returncode == 0) == (not broken)
    assert (tmp_path / "ran").read_text().split() == ran.split()
