"""Lazy names, honest about broken and disputed ones."""

from __future__ import annotations

import subprocess
import sys
import threading
from importlib.metadata import EntryPoint

import pytest

from pruneopt.errors import RegistryError
from pruneopt.registry import GROUPS, Registry, registry


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, "pruneopt.costs")


GOOD = point("good", "pruneopt.costs.spatial_gaussian:SpatialGaussian")


def test_every_built_in_part_loads_and_is_called_what_it_is_registered_as() -> None:
    seen = 0
    for group in GROUPS:
        for entry in registry(group).entries():
            if not entry.origin.startswith("pruneopt "):
                continue
            assert entry.problem == "", entry
            seen += 1
            if group != "models":
                assert registry(group).get(entry.name).name == entry.name
    assert seen > 10


def test_a_broken_plugin_hides_only_itself() -> None:
    found = Registry("costs", [GOOD, point("bad", "no_such_module:Thing")])
    assert found.get("good").name == "spatial_gaussian"
    with pytest.raises(RegistryError, match="no_such_module"):
        found.get("bad")
    problems = {e.name: e.problem for e in found.entries()}
    assert problems["good"] == "" and "ModuleNotFoundError" in problems["bad"]


def test_a_disputed_name_names_both_claims() -> None:
    found = Registry("costs", [GOOD, point("good", "other.module:Other")])
    with pytest.raises(RegistryError, match=r"spatial_gaussian.*other\.module"):
        found.get("good")


def test_an_entry_that_is_no_class_is_broken() -> None:
    with pytest.raises(RegistryError, match="not a class"):
        Registry("costs", [point("x", "pruneopt.signals:signal_info")]).get("x")


def test_unknown_names_suggest_even_for_swapped_letters() -> None:
    with pytest.raises(RegistryError, match="did you mean 'spatial_gaussian'"):
        registry("costs").get("spatial_guassian")
    with pytest.raises(RegistryError, match="did you mean 'costs'"):
        registry("cost")


def test_loading_from_many_threads_gives_one_class() -> None:
    found = Registry("costs", [GOOD])
    classes: list[type] = []
    threads = [threading.Thread(target=lambda: classes.append(found.get("good"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(classes) == 16 and len(set(classes)) == 1


def test_importing_pruneopt_is_cheap_and_loads_no_heavy_library() -> None:
    code = (
        "import torch, sys, time; start = time.perf_counter(); import pruneopt; "
        "pruneopt.load_spec, pruneopt.select, pruneopt.Signals; "
        "heavy = [m for m in ('transformers', 'ot', 'cvxpy', 'sklearn', 'matplotlib') if m in sys.modules]; "
        "print(time.perf_counter() - start, heavy)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = out.stdout.split(maxsplit=1)
    assert heavy.strip() == "[]"
    assert float(seconds) < 5, "importing pruneopt does heavy work"
