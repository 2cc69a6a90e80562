"""Bugs in certificates, each with the guard that must catch it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any
from unittest import mock

import subset_reports as reports
import torch

from pruneopt import compose
from pruneopt.lab.gap import run as select_gap
from pruneopt.lab.gap import table as gap_table
from pruneopt.lab.subset import run as subset
from pruneopt.lab.subset import table as subset_table
from pruneopt.parts.costs.feature_sq_l2 import FeatureSquaredL2
from pruneopt.parts.solvers import _exact as exact
from pruneopt.parts.solvers import _first as first
from pruneopt.parts.solvers import _linear as linear
from pruneopt.parts.solvers import branch_and_bound, farthest_point, greedy_conflict
from pruneopt.problems import solution
from pruneopt.problems import values as subset_values
from pruneopt.problems.kinds import facility_location, independent_set, log_det, quota
from pruneopt.problems.kinds._program import Program
from pruneopt.problems.solution import Status

Bug = Callable[[], AbstractContextManager[Any]]


def _all(patches: list[Any]) -> AbstractContextManager[Any]:
    stack = ExitStack()
    for patch in patches:
        stack.enter_context(patch)
    return stack


def unscaled_milp() -> AbstractContextManager[Any]:
    """Objectives reach HiGHS in their own units."""
    return mock.patch.object(Program, "unit", 1.0)


def unreachable_terms_set_the_unit() -> AbstractContextManager[Any]:
    """The objective is divided by what no choice can contain."""
    return mock.patch.object(Program, "unit", 1e9)


def offsets_stay() -> AbstractContextManager[Any]:
    """What all choices share stays in the objective."""
    return mock.patch.object(Program, "centre", lambda self, where, times: None)


def offset_forgotten() -> AbstractContextManager[Any]:
    """What was taken out of the objective is not put back into the bound."""

    def centre(self: Program, where: slice, times: float) -> None:
        part = self.c[where]
        self.c = self.c.copy()
        self.c[where] -= (part.max() + part.min()) / 2

    return mock.patch.object(Program, "centre", centre)


def bound_not_scaled_back() -> AbstractContextManager[Any]:
    real = linear.run

    def run(program: Program, *args: Any, **kwargs: Any) -> Any:
        program.c, unit = program.c / program.unit, program.unit
        program.constant /= unit
        return real(program, *args, **kwargs)

    return mock.patch("pruneopt.parts.solvers.milp.run", run)


def any_positive_determinant() -> AbstractContextManager[Any]:
    """The sign of the determinant alone decides, as it did."""

    def positive(block: torch.Tensor, singular: torch.Tensor) -> torch.Tensor:
        sign, log = torch.linalg.slogdet(block)
        return torch.where(sign > 0, log, -math.inf)

    return mock.patch.object(log_det, "block_log_det", positive)


def rounding_counts_as_rank() -> AbstractContextManager[Any]:
    """Eigenvalues that are rounding are taken for variance."""

    def nothing(problem: Any, size: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(size, dtype=torch.float64)

    return mock.patch.object(log_det, "singular_below", nothing)


def node_bound_too_low() -> AbstractContextManager[Any]:
    """The bound of a node forgets how much may still come."""
    real = branch_and_bound._Node.bound
    return mock.patch.object(branch_and_bound._Node, "bound", lambda self, k: real(self, k) - 2.0)


def trusting() -> AbstractContextManager[Any]:
    """Solvers are believed."""
    return mock.patch.object(solution, "settled", lambda ended, gap, slack: ended)


def contradiction_hidden() -> AbstractContextManager[Any]:
    """A bound below the value counts as a proof."""

    def settled(ended: Status, gap: float, slack: float) -> Status:
        return Status.UNPROVED if ended is Status.OPTIMAL and not gap <= slack else ended

    return mock.patch.object(solution, "settled", settled)


def bound_raised_to_value() -> AbstractContextManager[Any]:
    """Bounds that are too low are lifted to the value, as they were."""
    real = exact.replace

    def lifted(found: Any, **changes: Any) -> Any:
        if "proved_bound" in changes:
            changes["proved_bound"] = torch.maximum(changes["proved_bound"], found.value)
        return real(found, **changes)

    return mock.patch.object(exact, "replace", lifted)


def spectral_bound_without_the_last() -> AbstractContextManager[Any]:
    """The log-det bound sums one logarithm too few of a kernel whose logarithms are positive."""
    real = log_det.log_best_k
    return mock.patch.object(log_det, "log_best_k", lambda logs, k: real(logs, k) - 1.0)


def symmetry_unchecked() -> AbstractContextManager[Any]:
    return mock.patch.object(subset_values, "_check_symmetric", lambda *args, **more: None)


def symmetry_of_rounding_asked() -> AbstractContextManager[Any]:
    """Float rounding counts as asymmetry."""
    return mock.patch.object(subset_values, "ASYMMETRY", 0.0)


def tag_on_any_cost() -> AbstractContextManager[Any]:
    """Every cost counts as symmetric, so that TopV's is averaged in values and bounds but not in walks."""
    return mock.patch.object(FeatureSquaredL2, "symmetric", True)


def symmetrised_in_one_place() -> AbstractContextManager[Any]:
    """`symmetric: mean` reaches the objective, which averages anyway, and not the walk."""
    return mock.patch.object(
        compose, "combine_pairs", lambda spec, s: compose.combine(spec.pairwise, s, pairwise=True)
    )


def kernels_unchecked() -> AbstractContextManager[Any]:
    return mock.patch.object(subset_values, "_check_psd", lambda *args, **more: None)


def exact_zero_asked() -> AbstractContextManager[Any]:
    """Kernels must be definite to the last digit."""
    real = subset_values._check_psd
    return mock.patch.object(
        subset_values, "_check_psd", lambda kernel, kind, rounding: real(kernel, kind, rounding=0.0)
    )


def anchors_unchecked() -> AbstractContextManager[Any]:
    return mock.patch.object(subset_values, "_check_anchors", lambda problem: None)


def quotas_unchecked() -> AbstractContextManager[Any]:
    return mock.patch.object(quota, "check_quota", lambda problem: None)


def one_gain_too_few() -> AbstractContextManager[Any]:
    """The facility bound adds k - 1 gains."""
    real = facility_location.FacilityLocation.bound

    def bound(kind: Any, problem: Any, keep: torch.Tensor) -> Any:
        return real(kind, replace(problem, k=problem.k - 1), keep)

    return mock.patch.object(facility_location.FacilityLocation, "bound", bound)


def equal_is_a_conflict() -> AbstractContextManager[Any]:
    """`>=` where the threshold says `>`."""
    real = independent_set.conflicts

    def conflicts(problem: Any) -> torch.Tensor:
        lower = torch.nextafter(torch.tensor(problem.threshold).to(problem.pairwise), torch.tensor(-math.inf))
        return real(replace(problem, threshold=lower.item()))

    patches = [mock.patch.object(m, "conflicts", conflicts) for m in (independent_set, greedy_conflict)]
    return _all(patches)


def compared_in_double() -> AbstractContextManager[Any]:
    """float32 similarities against a threshold that was not rounded with them."""
    real = independent_set.conflicts

    def conflicts(problem: Any) -> torch.Tensor:
        return real(replace(problem, pairwise=problem.pairwise.double()))

    return mock.patch.object(independent_set, "conflicts", conflicts)


def core_rounds_up() -> AbstractContextManager[Any]:
    """The core counts to the next whole number."""
    real = torch.Tensor.long
    return mock.patch.object(torch.Tensor, "long", lambda self: real(self.ceil()))


def seed_reads_padding() -> AbstractContextManager[Any]:
    """The first token is looked for among what padding holds."""

    def seed(rule: str, part: Any, problem: Any) -> torch.Tensor:
        return first.seed_score(rule, part, problem=replace(problem, mask=None))

    return mock.patch.object(farthest_point, "seed_score", seed)


def summary_clamps() -> AbstractContextManager[Any]:
    """Gaps below zero count as zero."""
    real = reports.summary

    def summary(row: dict[str, Any]) -> dict[str, Any]:
        pairs = zip(row["value"], row["best"], strict=True)
        return real(row | {"value": [v if v is None or b is None else min(v, b) for v, b in pairs]})

    return _all([mock.patch.object(m, "summary", summary) for m in (reports, gap_table)])


def value_and_best_swapped() -> AbstractContextManager[Any]:
    real = select_gap._gaps

    def gaps(*args: Any, **more: Any) -> dict[str, Any]:
        row = real(*args, **more)
        return row | {"value": row["best"], "best": row["value"]}

    return mock.patch.object(select_gap, "_gaps", gaps)


def optimum_lifted_to_greedy() -> AbstractContextManager[Any]:
    real = select_gap._gaps

    def gaps(*args: Any, **more: Any) -> dict[str, Any]:
        row = real(*args, **more)
        return row | {"best": [max(v, b) for v, b in zip(row["value"], row["best"], strict=True)]}

    return mock.patch.object(select_gap, "_gaps", gaps)


def one_seed_for_all() -> AbstractContextManager[Any]:
    real = select_gap._random_value
    return mock.patch.object(select_gap, "_random_value", lambda problem, seed: real(problem, 0))


def record_swapped() -> AbstractContextManager[Any]:
    """Value and bound of a subset record change places."""
    real = subset._measure

    def measure(*args: Any, **more: Any) -> dict[str, Any]:
        row = real(*args, **more)
        return row | {"value": row["bound"], "bound": row["value"]}

    return mock.patch.object(subset, "_measure", measure)


def loss_clamped() -> AbstractContextManager[Any]:
    real = subset_table._loss

    def loss(high: list[float], low: list[float], *, kind: str) -> str:
        return real([max(h, x) for h, x in zip(high, low, strict=True)], low, kind=kind)

    return mock.patch.object(subset_table, "_loss", loss)


PLANTED: dict[str, tuple[str, Bug]] = {
    f"{check}-{bug.__name__}": (check, bug)
    for check, bugs in {
        "scales": (bound_not_scaled_back, offset_forgotten, spectral_bound_without_the_last),
        "milp_on_small_scores": (unscaled_milp,),
        "milp_on_a_common_offset": (offsets_stay,),
        "milp_on_odd_objectives": (unreachable_terms_set_the_unit,),
        "log_det_of_low_rank": (rounding_counts_as_rank,),
        "branch_and_bound_searches": (node_bound_too_low,),
        "log_det_counts_definite_blocks": (any_positive_determinant,),
        "claims_need_a_bound": (trusting, contradiction_hidden),
        "bounds_of_samples_are_kept": (bound_raised_to_value,),
        "asymmetric_terms_are_refused": (symmetry_unchecked, symmetry_of_rounding_asked),
        "shipped_terms_are_symmetric": (tag_on_any_cost,),
        "specs_of_asymmetric_terms_are_refused": (tag_on_any_cost, symmetrised_in_one_place),
        "indefinite_kernels_are_refused": (kernels_unchecked, exact_zero_asked),
        "values_are_refused_by_name": (anchors_unchecked, quotas_unchecked),
        "facility_bound_counts_all_tokens": (one_gain_too_few,),
        "threshold_at_equality": (equal_is_a_conflict, compared_in_double),
        "core_counts": (core_rounds_up,),
        "seeds_with_masks": (seed_reads_padding,),
        "gap_tables_show_contradictions": (summary_clamps,),
        "gap_rows_hold_value_and_best": (value_and_best_swapped, one_seed_for_all),
        "a_false_proof_is_shown": (optimum_lifted_to_greedy,),
        "random_sets_hold_what_is_protected": (one_seed_for_all,),
        "subset_records_hold_value_and_bound": (record_swapped,),
        "subset_tables_compare_like_with_like": (loss_clamped,),
    }.items()
    for bug in bugs
}
