"""Docstrings of public names, which the reference is made from, are in numpydoc form and complete."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import pruneopt
import pruneopt.demo
import pruneopt.parts
import pruneopt.testing

validate = pytest.importorskip("numpydoc.validate", reason="docstrings are checked with the extra 'dev'")

RULES = {
    "GL08": "no docstring",
    "PR01": "a parameter is not documented",
    "PR02": "a documented parameter does not exist",
    "PR03": "parameters in another order",
    "PR07": "a parameter has no description",
    "RT01": "no section Returns",
    "YD01": "no section Yields",
}
NAMES = [f"{module.__name__}.{name}" for module in (pruneopt, pruneopt.parts) for name in module.__all__]
MORE = {  # what other pages tell users to call
    "testing": sorted(set(pruneopt.testing.__all__) - {"CheckFailure", "TAGS"}),
    "demo": pruneopt.demo.__all__,
    "show.compare": ("Side", "Comparison", "compare"),
    "show.images": ("open_image", "asked"),
    "show.picture": ("Panel", "overlay", "save_overlay"),
    "show.survivors": ("survivor_panel",),
    "tuning.codebook": ("Thresholds", "build_codebook", "save_codebook", "live_probe"),
    "tuning.schedule": ("Achieved", "achieved", "cut_layers", "solve_keep"),
    "tuning.tune": ("Tuning", "tune", "meet_layer_mean", "final_state_cosine"),
}
OTHERS = [f"pruneopt.{module}.{name}" for module, names in MORE.items() for name in names]


def found(name: str) -> Any:
    module, _, last = name.rpartition(".")
    return getattr({"pruneopt": pruneopt, "pruneopt.parts": pruneopt.parts}[module], last)


def methods(name: str) -> Iterator[str]:
    """Public methods and properties that a public class defines itself."""
    for key, value in vars(found(name)).items():
        if not key.startswith("_") and isinstance(
            value, (property, staticmethod, classmethod, type(validate.validate))
        ):
            yield f"{name}.{key}"


METHODS = [method for name in NAMES if inspect.isclass(found(name)) for method in methods(name)]


def faults(name: str, rules: set[str]) -> list[str]:
    return [f"{code} {words}" for code, words in validate.validate(name)["errors"] if code in rules]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_documented_in_full(name: str) -> None:
    rules = set(RULES) - ({"PR01"} if name == "pruneopt.Status" else set())  # nobody calls an enumeration
    assert faults(name, rules) == []


@pytest.mark.parametrize("name", OTHERS)
def test_what_pages_tell_to_call_is_documented_in_full(name: str) -> None:
    assert faults(name, set(RULES)) == []


@pytest.mark.parametrize("name", METHODS)
def test_a_public_method_says_what_it_does_and_nothing_wrong(name: str) -> None:
    rules = {"GL08", "PR02", "PR03"} | (set(RULES) if _takes_two(name) else set())
    assert faults(name, rules) == []


@pytest.mark.parametrize("name", NAMES)
def test_errors_stand_in_their_section(name: str) -> None:
    """`Raises X` in a sentence is invisible to a reference."""
    assert not re.search(r"\bRaises \w+Error", inspect.getdoc(found(name)) or "")


def _takes_two(method: str) -> bool:
    """Whether a method takes two arguments or more beside `self`: one can be told in the summary."""
    owner, _, last = method.rpartition(".")
    thing = getattr(found(owner), last)
    return callable(thing) and sum(name != "self" for name in inspect.signature(thing).parameters) > 1


def test_a_planted_undocumented_parameter_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (pruneopt.load_spec.__doc__ or "").replace("    overrides\n", "    override\n")
    monkeypatch.setattr(pruneopt.load_spec, "__doc__", text)
    assert [fault[:4] for fault in faults("pruneopt.load_spec", set(RULES))] == ["PR01", "PR02"]
