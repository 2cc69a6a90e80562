"""Lazy names, honest about broken and disputed ones."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

import pruneopt
from pruneopt import registry as registry_module
from pruneopt.errors import RegistryError
from pruneopt.registry import GROUPS, MOVED, PARTS, Claim, Entry, Registry, built_in, plugged_in, registry


def point(name: str, value: str, origin: str = "a-plugin 1.0") -> Claim:
    return Claim(name, value, origin)


GOOD = point("good", "pruneopt.parts.costs.spatial_gaussian:SpatialGaussian")
ROOT = Path(__file__).parents[1]


def test_every_built_in_part_loads_and_is_called_what_it_is_registered_as() -> None:
    seen = 0
    for group in GROUPS:
        for entry in registry(group).entries():
            if not entry.origin.startswith("pruneopt "):
                continue
            assert entry.problem == "", entry
            seen += 1
            if group in PARTS:
                assert registry(group).get(entry.name).name == entry.name
    assert seen > 10


def test_a_broken_plugin_hides_only_itself() -> None:
    found = Registry("costs", [GOOD, point("bad", "no_such_module:Thing")])
    assert found.get("good").name == "spatial_gaussian"
    with pytest.raises(RegistryError, match="no_such_module"):
        found.get("bad")
    bad, good = found.entries()
    assert good == Entry("costs", "good", GOOD.target, "a-plugin 1.0")
    assert bad.problem == (
        "costs 'bad' from a-plugin 1.0 cannot be loaded from no_such_module:Thing: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert [entry.problem for entry in found.entries(check=False)] == ["", ""]


def test_a_disputed_name_names_both_claims() -> None:
    found = Registry("costs", [GOOD, point("good", "other.module:Other")])
    with pytest.raises(RegistryError) as refusal:
        found.get("good")
    assert str(refusal.value) == (
        f"costs name 'good' is claimed by a-plugin 1.0 ({GOOD.target}) and "
        "a-plugin 1.0 (other.module:Other); uninstall one of them"
    )
    assert [entry.problem for entry in found.entries()] == [str(refusal.value)] * 2


def test_a_plugin_that_takes_a_built_in_name_is_named_beside_it() -> None:
    mine = next(claim for claim in built_in("costs") if claim.name == "spatial_gaussian")
    found = Registry("costs", [mine, point("spatial_gaussian", "other.module:Other", "pruneopt-other 3.1")])
    with pytest.raises(RegistryError, match=r"pruneopt \d.*spatial_gaussian.*pruneopt-other 3\.1 .*rename"):
        found.get("spatial_gaussian")


def test_one_distribution_found_twice_on_the_path_is_one_claim() -> None:
    assert Registry("costs", [GOOD, GOOD]).get("good").name == "spatial_gaussian"


@pytest.mark.parametrize("source", ["", "class A:\n    name = 'part'\nclass B:\n    name = 'part'\n"])
def test_a_file_with_no_or_two_classes_of_its_name_is_broken(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_file_part.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RegistryError, match=r"[02] classes in some_file_part are called 'part'"):
        Registry("costs", [point("part", "some_file_part")]).get("part")


def test_built_in_parts_are_the_files_without_an_underscore() -> None:
    folder = ROOT / "pruneopt" / "parts" / "solvers"
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    claims = built_in("solvers")
    assert {claim.name for claim in claims} == files and len(files) > 20
    assert claims[0].target == f"pruneopt.parts.solvers.{claims[0].name}"
    assert claims[0].origin == f"pruneopt {pruneopt.__version__}"


def test_an_own_stale_installation_disputes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, name in (("pruneopt", "old_part"), ("pruneopt_other", "their_part")):
        info = tmp_path / f"{package}-0.0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0.1\n")
        (info / "entry_points.txt").write_text(f"[pruneopt.costs]\n{name} = {package}.x:X\n")
    monkeypatch.syspath_prepend(tmp_path)
    claims = plugged_in("costs")
    assert Claim("their_part", "pruneopt_other.x:X", "pruneopt_other 0.0.1") in claims
    assert "old_part" not in {claim.name for claim in claims}


def test_other_packages_parts_stand_beside_the_files_and_say_where_they_are_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stale = SimpleNamespace(name="Old", value="old:Old", dist=SimpleNamespace(name="pruneopt", version="0.1"))
    points = [stale, *(EntryPoint(name, f"some:{name}", "pruneopt.costs") for name in ("One", "Two"))]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points * (group == "pruneopt.costs"))
    origin = "unknown distribution"
    assert plugged_in("costs") == [Claim("One", "some:One", origin), Claim("Two", "some:Two", origin)]
    assert set(Registry("costs")) == {claim.name for claim in built_in("costs")} | {"One", "Two"}


@pytest.mark.slow
def test_an_uninstalled_checkout_knows_its_parts() -> None:
    # -S -I would hide torch too; what matters is that no metadata of pruneopt is read, see the test above
    code = "import pruneopt.registry as r; print([len(list(r.registry(g))) > 0 for g in r.GROUPS])"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert "False" not in out.stdout and "True" in out.stdout


def test_an_entry_that_is_no_class_is_broken() -> None:
    with pytest.raises(RegistryError, match="not a class"):
        Registry("costs", [point("x", "pruneopt.signals:signal_info")]).get("x")


def test_unknown_names_suggest_even_for_swapped_letters() -> None:
    with pytest.raises(RegistryError, match="did you mean 'spatial_gaussian'"):
        registry("costs").get("spatial_guassian")
    with pytest.raises(RegistryError, match="did you mean 'costs'"):
        registry("cost")


def test_a_name_that_is_gone_says_what_to_write_instead() -> None:
    with pytest.raises(RegistryError) as refusal:
        registry("solvers").get("strided")
    assert str(refusal.value) == f"unknown solver 'strided', which is gone: {MOVED['solvers', 'strided']}"


def test_loading_from_many_threads_gives_one_class() -> None:
    found = Registry("costs", [GOOD])
    classes: list[type] = []
    threads = [threading.Thread(target=lambda: classes.append(found.get("good"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(classes) == 16 and len(set(classes)) == 1


def test_a_lent_class_answers_until_it_is_given_back() -> None:
    found = Registry("costs", [GOOD])
    with found.lent("mine", int):
        assert found.get("mine") is int and list(found) == ["good", "mine"]
        assert found.entries(check=False)[1] == Entry("costs", "mine", "builtins", "lent")
    assert list(found) == ["good"] and "mine" not in found
    with pytest.raises(RegistryError, match="unknown cost 'mine'"):
        found.get("mine")


@pytest.mark.slow
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
