"""Every kind: its value against loops, its bound, gains and program against every choice; nobody names it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from subset_cases import slow_value

import pruneopt
from pruneopt.errors import RegistryError
from pruneopt.problems.kinds import KindsOffering, all_kinds, find_kind
from pruneopt.problems.subset import SubsetProblem
from pruneopt.registry import Claim, Registry, registry
from pruneopt.testing import check_kind

CORE = Path(pruneopt.__file__).parent
KINDS = tuple(registry("kinds"))
NAMELESS = (
    "spec/resolve.py", "spec/schema.py", "pruner.py", "compose.py", "lab/**/*.py", "testing/*.py",
    "problems/subset.py", "problems/values.py", "problems/solution.py", "problems/kinds/_*.py",
)  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_keeps_its_promises_and_its_value_is_that_of_loops(name: str) -> None:
    assert check_kind(find_kind(name), witness=slow_value).ok


def test_no_name_of_a_kind_stands_outside_its_file_and_its_solvers() -> None:
    words = "|".join(name for name in KINDS if name != "quota")
    # quota is also the name of a term, and top_k=0 switches off a sampling rule of transformers
    quota = r"""kind["']: ?["']quota|kind (?:==|!=|in) .?["']quota|build\(["']quota"""
    named = re.compile(rf'\b(?:{words})\b(?!": 0)|{quota}')
    files = [path for pattern in NAMELESS for path in CORE.glob(pattern)]
    assert len(files) > 60
    found = [
        f"{path.relative_to(CORE)}: {line.strip()}"
        for path in files
        for line in path.read_text().splitlines()
        if named.search(line) and '"transport"' not in line  # which is a score in the simplest of them
    ]
    assert found == []


PLUGIN = """
import torch
from pruneopt.problems.kinds import Kind
from pruneopt.problems.kinds._program import choosing

class Squares(Kind):
    \"\"\"Sum of the squares of the scores.\"\"\"
    name = "squares"
    needs = frozenset({"unary"})
    scaled = frozenset()

    def _worth(self, problem):
        return problem.unary.double().square().masked_fill(~problem.real, 0)

    def value(self, problem, keep):
        return (self._worth(problem) * keep).sum(1)

    def swap_gains(self, problem, keep):
        worth = self._worth(problem)
        return worth[:, None, :] - worth[:, :, None]

    def linear(self, problem):
        program = choosing(problem)
        program.c = self._worth(problem)[0].numpy()[program.place]
        return program
"""

USE = """
import torch
from pruneopt import load_spec, select
from pruneopt.registry import registry
from pruneopt.testing import check_kind
signals = {"features": torch.tensor([0.1, -3.0, 2.0, 0.5, -2.5, 1.0])[None, :, None]}
less = {"kind": "token_norm", "weight": -1}
for solver in ("local_search", "milp", "brute_force"):
    spec = load_spec({"insertion": "post_encoder", "budget": {"keep": 2}, "solver": solver,
                      "problem": {"kind": "squares", "scores": {"less": less}}})
    print(solver, select(spec, signals).indices[0].tolist())
print(check_kind(registry("kinds").get("squares"), on_fail="report").failures)
"""


def test_a_kind_of_another_package_needs_no_edit(tmp_path: Path) -> None:
    (tmp_path / "planted_squares.py").write_text(PLUGIN)
    info = tmp_path / "planted_squares-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planted-squares\nVersion: 1.2\n")
    points = ("[pruneopt.kinds]", "squares = planted_squares:Squares", "lost = planted_nowhere:Lost")
    (info / "entry_points.txt").write_text("\n".join(points))

    def run(*words: str) -> str:
        paths = f"{tmp_path}:{CORE.parent}"
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, env={"PYTHONPATH": paths, "PATH": ""}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("-c", USE).splitlines() == [
        "local_search [1, 4]", "milp [1, 4]", "brute_force [1, 4]", "[]",
    ]  # fmt: skip
    listed = run("-m", "pruneopt", "list", "kinds")
    assert "Sum of the squares of the scores." in listed and "planted-squares 1.2" in listed
    assert "planted_nowhere" in listed  # the broken one is named and hides nothing
    assert "conforms" in run("-m", "pruneopt", "check", "kinds/squares")


def test_solvers_of_any_kind_take_those_that_offer_what_they_need() -> None:
    assert KindsOffering().__get__(None) == frozenset(KINDS)
    levels = {name for name in KINDS if find_kind(name).offers("levels")}
    linear = {name for name in KINDS if find_kind(name).offers("linear")}
    assert KindsOffering("levels", "linear").__get__(None) == levels | linear
    solves = {name: registry("solvers").get(name).kinds for name in ("brute_force", "local_search", "milp")}
    assert solves["brute_force"] == frozenset(KINDS) and solves["milp"] == levels | linear
    assert [kind.name for kind in all_kinds()] == list(KINDS)


def test_what_is_registered_as_a_kind_and_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Registry("kinds", [Claim("odd", "pruneopt.problems.budget:Budget", "a plugin 1.0")])
    monkeypatch.setattr("pruneopt.problems.kinds._kind.registry", lambda group: odd)
    with pytest.raises(RegistryError, match=r"kind 'odd' is no .*Kind: Budget"):
        find_kind("odd")
    assert all_kinds() == []


def test_samples_and_repeats_are_the_same_problem() -> None:
    from pruneopt.testing import cases

    problem = cases.subset("quota", batch=3, tokens=8, k=4, lengths=(8, 6, 7), protect=True)
    one = problem.sample(1)
    assert one.shape == (1, 8) and one.counts == (4,) and one.group.equal(problem.group[1:2])
    assert one.quota.equal(problem.quota[1:2]) and one.mask.equal(problem.mask[1:2])
    many = one.repeated(5)
    assert many.shape == (5, 8) and many.counts is None and many.k.tolist() == [4] * 5
    assert many.unary.equal(one.unary.expand(5, -1)) and many.protected.equal(one.protected.expand(5, -1))


def test_terms_have_names() -> None:
    from pruneopt.testing import cases

    problem = cases.subset("top_k")
    with pytest.raises(TypeError):
        SubsetProblem.build("top_k", 2, problem.unary)
    with pytest.raises(TypeError, match="scores"):
        SubsetProblem.build("top_k", 2, scores=problem.unary)
