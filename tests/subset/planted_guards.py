"""Bugs in certificates, each with the guard that must catch it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch

from pruneopt import compose, pruner, solution, subset_values
from pruneopt.costs.feature_sq_l2 import FeatureSquaredL2
from pruneopt.solution import Status
from pruneopt.solvers import bounds, branch_and_bound, exact, linear, objectives
from pruneopt.solvers.linear import Program

Bug = Callable[[], AbstractContextManager[Any]]


def unscaled_milp() -> AbstractContextManager[Any]:
    """Objectives reach HiGHS in their own units."""
    return mock.patch.object(Program, "unit", 1.0)


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

    return mock.patch("pruneopt.solvers.milp.run", run)


def any_positive_determinant() -> AbstractContextManager[Any]:
    """The sign of the determinant alone decides, as it did."""

    def log_det(block: torch.Tensor, singular: torch.Tensor) -> torch.Tensor:
        sign, log = torch.linalg.slogdet(block)
        return torch.where(sign > 0, log, -math.inf)

    return mock.patch.object(objectives, "block_log_det", log_det)


def rounding_counts_as_rank() -> AbstractContextManager[Any]:
    """Eigenvalues that are rounding are taken for variance."""

    def nothing(problem: Any, size: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(size, dtype=torch.float64)

    return mock.patch.object(objectives, "singular_below", nothing)


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
    real = bounds._log_best_k
    return mock.patch.object(bounds, "_log_best_k", lambda logs, k: real(logs, k) - 1.0)


def symmetry_unchecked() -> AbstractContextManager[Any]:
    return mock.patch.object(subset_values, "_check_symmetric", lambda *args: None)


def symmetry_of_rounding_asked() -> AbstractContextManager[Any]:
    """Float rounding counts as asymmetry."""
    return mock.patch.object(subset_values, "ASYMMETRY", 0.0)


def tag_on_any_cost() -> AbstractContextManager[Any]:
    """Every cost counts as symmetric, so that TopV's is averaged in values and bounds but not in walks."""
    return mock.patch.object(FeatureSquaredL2, "symmetric", True)


def symmetrised_in_one_place() -> AbstractContextManager[Any]:
    """`symmetric: mean` reaches the objective, which averages anyway, and not the walk."""
    return mock.patch.object(pruner, "combine_pairs", lambda spec, s: compose.combine(spec.pairwise, s, True))


def kernels_unchecked() -> AbstractContextManager[Any]:
    return mock.patch.object(subset_values, "_check_psd", lambda *args: None)


def exact_zero_asked() -> AbstractContextManager[Any]:
    """Kernels must be definite to the last digit."""
    real = subset_values._check_psd
    return mock.patch.object(subset_values, "_check_psd", lambda kernel, rounding: real(kernel, 0.0))


def anchors_unchecked() -> AbstractContextManager[Any]:
    return mock.patch.object(subset_values, "_check_anchors", lambda problem: None)


def quotas_unchecked() -> AbstractContextManager[Any]:
    return mock.patch.object(subset_values, "_check_quota", lambda problem: None)


PLANTED: dict[str, tuple[str, Bug]] = {
    f"{check}-{bug.__name__}": (check, bug)
    for check, bugs in {
        "scales": (bound_not_scaled_back, offset_forgotten, spectral_bound_without_the_last),
        "milp_on_small_scores": (unscaled_milp,),
        "milp_on_a_common_offset": (offsets_stay,),
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
    }.items()
    for bug in bugs
}
