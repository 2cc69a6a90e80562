"""The committed pages about methods and signals are what the specs say now."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from pruneopt.errors import SpecError
from pruneopt.lab.catalogue_pages import pages, write
from pruneopt.signals import SIGNALS
from pruneopt.spec.load import list_methods, load_spec

written, spec = cache(pages), cache(load_spec)
DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_committed_pages_equal_the_generated_ones() -> None:
    stale = []
    for name, text in written().items():
        path = DOCS / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    assert stale == [], "run `python -m pruneopt.lab.catalogue_pages`"


def test_no_page_of_a_method_that_is_gone() -> None:
    known = {name.partition("/")[0] for name in list_methods()}
    assert {path.stem for path in (DOCS / "methods").glob("*.md")} <= known


def test_every_method_and_every_signal_has_its_place() -> None:
    text = written()
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
    meta = spec(name).meta
    for key in ("title", "paper", "code", "licence", "certainty", "family", "equation"):
        assert str(meta.get(key, "")).strip(), f"{name} lacks meta.{key}"
    assert spec(name).name == name


# Deviations that were found by comparing the specs with their cards, by key.
KNOWN = {
    "newlines": ["vflowopt", "vflowopt/quarter", "vflowopt/tenth", "globalcom2", "globalcom2/release"],
    "pivot": ["todre", "todre/v1", "todre/diversity"],
    "onevision": ["globalcom2", "globalcom2/release", "globalcom2/mean"],
    "encoder_cut": ["saint/encoder", "saint/encoder_release", "saint/hybrid"],
    "schedule": ["sparsevlm", "sparsevlm/rank"],
    "budgets": ["sparsevlm", "sparsevlm/release", "sparsevlm/plus", "sparsevlm/rank"],
    "layer_mean": ["vitcop", "vitcop/release", "visiondrop", "visiondrop/release", "transprune",
                   "transprune/release", "transprune/iga", "transprune/ttv"],
    "instruction": ["cdpruner", "cdpruner/clip", "cdpruner/release"],
    "merge_place": ["visiondrop", "visiondrop/release", "aim/llava", "prumerge", "prumerge/release",
                    "prumerge/fixed", "prumerge/plus", "prumerge/plus_release", "prumerge/received",
                    "visionzip", "visionzip/release", "visionzip/received"],
    "density_neighbours": ["codebook", "codebook/double_softmax", "codebook/threshold"],
    "one_more_than_n": ["prumerge/plus_release"],
    "repeats": ["prumerge/plus_release"],
    "ties": ["visionzip", "visionzip/release"],
}  # fmt: skip


@pytest.mark.parametrize("key", KNOWN)
def test_known_deviations_are_declared(key: str) -> None:
    missing = [name for name in KNOWN[key] if key not in spec(name).meta["deviations"]]
    assert missing == [], f"meta.deviations.{key} is gone; was it removed from the code too?"


@pytest.mark.parametrize("name", list_methods())
def test_every_method_lists_its_deviations_and_its_page_shows_them(name: str) -> None:
    meta = spec(name).meta
    assert "differs" not in meta, f"{name}: write meta.deviations, a mapping from short names to sentences"
    page = written()[f"methods/{name.partition('/')[0]}.md"]
    own = page.partition(f"# {name}\n")[2].partition("\n# ")[0]
    for key, text in meta["deviations"].items():
        assert f"(`{key}`): {text.strip()}" in own and text.strip().endswith("."), f"{name}: {key}"
    assert meta["deviations"] or "No deviation from its source is known." in own


@pytest.mark.parametrize("bad", ["a sentence", ["a list"], {"two words": "x."}, {"empty": " "}, {"n": 3}])
def test_deviations_are_names_and_sentences(bad: object) -> None:
    spec = load_spec("fastv").to_spec()
    with pytest.raises(SpecError, match=r"meta\.deviations must map short names to sentences"):
        load_spec({**spec, "meta": {**spec["meta"], "deviations": bad}})
