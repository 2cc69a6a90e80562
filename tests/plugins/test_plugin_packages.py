"""A plugin installed for real, beside one that is broken on purpose."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BROKEN = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "pruneopt-broken"
version = "9.9"
[project.entry-points."pruneopt.costs"]
broken_term = "pruneopt_broken.nowhere:Missing"
[tool.setuptools]
packages = []
"""

MIXED = """
import torch
from pruneopt import load_spec, select
from pruneopt.signals import Signals
torch.manual_seed(0)
n, side = 16, 4
xy = torch.stack([torch.arange(n) % side, torch.arange(n) // side], 1)[None]
busy = torch.rand(1, n, 3, 4, 4) * (torch.arange(n) >= 8).view(1, n, 1, 1, 1)
signals = Signals({"hidden_in": torch.ones(1, n, 5), "post_attention_norm": torch.ones(1, n, 5),
                   "xy": xy, "grid": torch.full((1, n, 2), side), "patches": busy})
entropy = "problem.cost.entropy={kind: patch_entropy, weight: 3.0}"
spec = load_spec("topv", [entropy, "steps=[]"])
print(sorted(s.label for s in spec.stages[0].problem.cost))
print(select(spec, signals).indices[0].tolist())
print(spec.hash != load_spec("topv", ["steps=[]"]).hash)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment that sees this one's packages, with both plugins pip-installed."""
    place = tmp_path_factory.mktemp("fresh")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    packages = next(place.glob("lib/python*/site-packages"))
    here = sysconfig.get_paths()["purelib"]
    (packages / "outer.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    broken = tmp_path_factory.mktemp("broken")
    (broken / "pyproject.toml").write_text(BROKEN)
    plugin = tmp_path_factory.mktemp("copy") / "plugin"
    subprocess.run(["cp", "-r", str(ROOT / "plugins" / "pruneopt-entropy"), str(plugin)], check=True)
    for source in (plugin, broken):
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        command += ["--no-deps", "--no-build-isolation", str(source)]
        subprocess.run(command, check=True, capture_output=True)
    return python


def run(python: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), *words], capture_output=True, text=True)


@pytest.mark.slow
def test_the_plugin_mixes_with_the_terms_of_topv(environment: Path) -> None:
    done = run(environment, "-c", MIXED)
    assert done.returncode == 0, done.stderr
    labels, kept, changed = done.stdout.splitlines()
    assert labels == "['centre', 'entropy', 'feature', 'spatial']"
    assert kept == "[8, 9, 10, 11, 12, 13, 14, 15]"
    assert changed == "True"


@pytest.mark.slow
def test_plugins_are_listed_with_origin_and_a_broken_one_hides_nothing(environment: Path) -> None:
    done = run(environment, "-m", "pruneopt.cli.main", "plugins")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "patch_entropy" in text and "pruneopt-entropy 0.1.0" in text
    assert "broken_term" in text and "pruneopt-broken 9.9" in text and "ModuleNotFoundError" in text


@pytest.mark.slow
def test_using_the_broken_one_says_who_broke_it(environment: Path) -> None:
    done = run(environment, "-m", "pruneopt.cli.main", "show", "topv", "problem.cost.x=broken_term")
    assert done.returncode == 2
    assert "pruneopt-broken 9.9" in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_plugin_passes_its_own_tests(environment: Path) -> None:
    tests = ROOT / "plugins" / "pruneopt-entropy" / "tests"
    done = run(
        environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tests), str(tests)
    )
    assert done.returncode == 0, done.stdout
