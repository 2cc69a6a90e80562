"""Costs and kernels by rows against their matrices, alone and in sums, and the specs that use them."""

from __future__ import annotations

import pytest
import torch
from fixed_parts import FixedCost, FixedKernel, bare
from torch import Tensor

from pruneopt import load_spec, select
from pruneopt.errors import ProblemError, SpecError
from pruneopt.parts import CostTerm, Kernel
from pruneopt.parts._nested import NORMALIZATIONS, Weighted
from pruneopt.parts._sums import added_rows, combine, combine_rows
from pruneopt.problems import rows as algebra
from pruneopt.problems import unstored
from pruneopt.problems.rows import Rows, Stored
from pruneopt.problems.unstored import Unstored
from pruneopt.registry import registry
from pruneopt.signals import Signals
from pruneopt.testing.draw import make_signals

PAIRS = [
    (group, name)
    for group in ("costs", "kernels")
    for name in registry(group)
    if getattr(registry(group).get(name), "shape", "pairwise") == "pairwise"
]


def part_of(group: str, name: str) -> CostTerm | Kernel:
    params = {"h": 0.7} if (group, name) == ("kernels", "from_cost") else {}
    return registry(group).get(name).from_spec(params)


def pair_mask(signals: Signals) -> Tensor:
    return signals.mask[:, :, None] & signals.mask[:, None, :]


def read(term: Rows) -> Tensor:
    return torch.cat([entries for _, entries in term.blocks()], 1)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algebra, "BLOCK", 300)


@pytest.mark.parametrize(("group", "name"), PAIRS)
@pytest.mark.parametrize("lengths", [None, (7, 10)])
def test_rows_of_a_part_are_those_of_its_matrix(
    group: str, name: str, lengths: tuple[int, int] | None
) -> None:
    part = part_of(group, name)
    signals = make_signals(part.needs, tokens=10, lengths=lengths)
    term, matrix, real = part.by_rows(signals), part(signals), pair_mask(signals)
    torch.testing.assert_close(read(term)[real], matrix[real], rtol=1e-5, atol=1e-5)
    assert read(term).isfinite().all()
    own = matrix.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(term.own()[signals.mask], own[signals.mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("group", "name"), PAIRS)
def test_a_part_promises_by_rows_what_it_promises_as_a_matrix(group: str, name: str) -> None:
    """Every built-in pairwise part has a way to give rows."""
    part = part_of(group, name)
    term = part.by_rows(make_signals(part.needs, tokens=6))
    assert not isinstance(term, Stored)
    assert term.symmetric is part.symmetric
    assert term.definite is ("psd" in part.all_tags)
    assert term.negative_type is getattr(part, "negative_type", False)


def test_a_part_that_knows_no_rows_gives_its_matrix() -> None:
    values = torch.rand(1, 3, 3)
    assert read(FixedCost(values).by_rows(bare(1, 3))).equal(values)
    assert read(FixedKernel(values).by_rows(bare(1, 3))).equal(values)


@pytest.mark.parametrize("how", [how for how in NORMALIZATIONS if how != "softmax"])
def test_sums_are_scaled_and_weighted_as_matrices_are(how: str) -> None:
    space, content = part_of("costs", "spatial_gaussian"), part_of("costs", "cosine_distance")
    centre = registry("costs").get("central_distance")()
    summands = (
        Weighted("a", content, 0.5, how),
        Weighted("b", space, -2.0),
        Weighted("c", centre, 0.1, how),
        Weighted("d", content, 0.0),
    )
    signals = make_signals(content.needs | space.needs | centre.needs, tokens=10, lengths=(7, 10))
    term, matrix = combine_rows(summands, signals), combine(summands, signals, pairwise=True)
    assert term is not None and matrix is not None
    real = pair_mask(signals)
    torch.testing.assert_close(read(term)[real], matrix[real], rtol=1e-5, atol=1e-5)


def test_what_needs_all_pairs_at_once_is_refused_with_the_cure() -> None:
    content = part_of("costs", "cosine_distance")
    signals = make_signals(content.needs, tokens=6)
    with pytest.raises(ProblemError, match=r"softmax.*minmax"):
        combine_rows((Weighted("a", content, 1.0, "softmax"),), signals)
    kernel = registry("kernels").get("from_cost")
    for params in ({}, {"h": 1.0, "repair": "ridge"}):
        with pytest.raises(ProblemError, match="give h a number"):
            kernel.from_spec(params).by_rows(signals)
    with pytest.raises(SpecError, match="weight 0"):
        added_rows((Weighted("a", content, 0.0),), signals)


SPECS = {
    "max_min": ("farthest_point", {"pairwise": {"d": "cosine_distance", "s": {"kind": "spatial_gaussian"}}}),
    "max_sum": ("greedy_max_sum", {
        "pairwise": {"d": {"kind": "feature_sq_l2", "normalize": "minmax"}}, "symmetric": "mean"}),
    "log_det": ("greedy_log_det", {"pairwise": {"k": "cosine"}, "ridge": 0.1}),
    "facility_location": ("lazy_greedy", {"cost": {"d": "feature_sq_l2"}}),
    "k_center": ("greedy_k_center", {"pairwise": {"d": "feature_sq_l2"}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPECS)
def test_a_spec_is_answered_by_rows_where_the_matrix_is_large(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver, problem = SPECS[kind]
    spec = load_spec(
        {
            "insertion": {"kind": "prefill_layer", "layer": 2},
            "budget": {"keep": 5},
            "problem": {"kind": kind, **problem},
            "solver": solver,
        }
    )
    signals = make_signals(spec.stages[0].needs, tokens=20, lengths=(20, 17))
    whole = select(spec, signals)
    monkeypatch.setattr(unstored, "WHOLE", 4 * 2 * 20 * 20 - 1)
    found = select(spec, signals)
    assert isinstance(found.solution.problem.pairwise, Unstored)
    assert not isinstance(whole.solution.problem.pairwise, Unstored)
    assert found.solution.order.tolist() == whole.solution.order.tolist()
    torch.testing.assert_close(found.solution.value, whole.solution.value, rtol=1e-5, atol=1e-5)


def test_a_spec_whose_solver_needs_the_matrix_is_refused_where_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = load_spec(
        {
            "insertion": "post_encoder",
            "budget": {"keep": 5},
            "problem": {"kind": "max_min", "pairwise": {"d": "cosine_distance"}},
            "solver": "local_search",
        }
    )
    signals = make_signals(spec.stages[0].needs, tokens=20)
    monkeypatch.setattr(unstored, "WHOLE", 0)
    assert not isinstance(select(spec, signals).solution.problem.pairwise, Unstored)
    monkeypatch.setattr(unstored, "_memory", lambda device: 3 * 4 * 2 * 20 * 20 - 1)
    with pytest.raises(ProblemError, match="farthest_point"):
        select(spec, signals)
