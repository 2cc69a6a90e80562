"""Every kind: its value against loops, its bound, gains and program against every choice; nobody names it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from subset_cases import slow_value, solver

import pruneopt
from pruneopt.errors import RegistryError
from pruneopt.problems.kinds import KindsOffering, all_kinds, find_kind
from pruneopt.problems.subset import SubsetProblem
from pruneopt.registry import Claim, Registry, registry
from pruneopt.testing import check_kind


def solved(problem: SubsetProblem) -> torch.Tensor:
    """What the greedy solver of a kind chooses, or the first tokens where there is none."""
    params = dict(problem.rules.greedy)
    if not params:
        return torch.arange(problem.shape[1]) < problem.k[:, None]
    return solver(params.pop("kind"), **params).solve(problem).keep


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
        if named.search(line) and "transport" not in line.lower()  # which is a score in the simplest of them
    ]
    assert found == []


def test_solvers_of_any_kind_take_those_that_offer_what_they_need() -> None:
    assert KindsOffering().__get__(None) == frozenset(KINDS)
    levels = {name for name in KINDS if find_kind(name).offers("levels")}
    linear = {name for name in KINDS if find_kind(name).offers("linear")}
    assert KindsOffering("levels", "linear").__get__(None) == levels | linear
    solves = {name: registry("solvers").get(name).kinds for name in ("brute_force", "local_search", "milp")}
    assert solves["brute_force"] == frozenset(KINDS) and solves["milp"] == levels | linear
    assert [kind.name for kind in all_kinds()] == list(KINDS)


@pytest.mark.parametrize("name", [kind.name for kind in all_kinds() if not kind.offers("bounds")])
@pytest.mark.parametrize("protect", [False, True])
def test_bounds_of_all_counts_are_those_of_the_problems_with_that_count(name: str, protect: bool) -> None:
    from pruneopt.testing import cases

    problem = cases.subset(name, batch=2, tokens=6, k=3, lengths=(6, 5), protect=protect)
    keep = solved(problem)
    every = problem.rules.bounds(problem, keep)
    if isinstance(every, str):
        assert every == problem.rules.bound(problem, keep)
        return
    forced = [0, 0] if problem.protected is None else problem.protected.sum(1).tolist()
    for b in range(2):
        for count in range(max(1, forced[b]), (6, 5)[b] + 1):
            other = replace(problem, k=torch.full((2,), count), counts=None)
            assert every[b, count - 1].item() == pytest.approx(problem.rules.bound(other, keep)[b].item())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("k", [1, 5])
def test_one_token_and_all_tokens_are_bounded_and_worth_what_loops_say(name: str, k: int) -> None:
    from pruneopt.testing import cases

    problem = cases.subset(name, batch=2, tokens=5, k=k)
    for first in range(5 - k + 1):
        keep = (torch.arange(5) >= first) & (torch.arange(5) < first + k)
        keep = keep.expand(2, -1)
        value = problem.value(keep)
        wanted = [slow_value(problem, b, tuple(range(first, first + k))) for b in range(2)]
        assert value.tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-9)
        bound, _ = problem.bound(keep)
        if bound is not None:
            assert (bound >= value - 1e-9 * problem.magnitude(keep).clamp_min(1)).all()


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
