"""Bugs planted in the core by hand: each is a change of one function and the test that must notice it.

`make mutants` plants thousands of small ones; here stand those that someone would really write, and those in
properties, which mutmut leaves alone.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from types import FunctionType
from typing import Any

import pytest
import test_compose
import test_crossings
import test_grouping
import test_hash
import test_nested
import test_prefill
import test_problems
import test_resolve
import test_served_targets
import test_signals
import test_solution
import test_stage

from pruneopt import compose, grouping, parts, pruner, signals, tensors
from pruneopt.models import columns, prefill, store
from pruneopt.parts.scores.transport import Transport
from pruneopt.parts.steps.merge_by_plan import MergeByPlan
from pruneopt.problems import selection, solution, subset, transport
from pruneopt.problems import values as subset_values
from pruneopt.problems.kinds import facility_location, quota
from pruneopt.spec import load as spec
from pruneopt.spec import resolve, schema


@dataclass(frozen=True)
class Bug:
    """`where.name` with `old` written as `new`, and the test that must fail then."""

    said: str
    where: Any
    name: str
    old: str
    new: str
    test: Callable[[], None]


def function_of(bug: Bug) -> FunctionType:
    """The plain function behind a function, method, static method or property."""
    found = inspect.getattr_static(bug.where, bug.name)
    if isinstance(found, property):
        found = found.fget
    elif isinstance(found, cached_property):
        found = found.func
    elif isinstance(found, staticmethod):
        found = found.__func__
    found = inspect.unwrap(found)  # what the checks of shapes wrap
    assert isinstance(found, FunctionType)
    return found


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Swaps the code inside the function, so that whoever has imported it runs the bug."""
    function = function_of(bug)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(bug.old) == 1, f"{bug.said}: {bug.old!r} stands {source.count(bug.old)} times"
    source = "from __future__ import annotations\n" + source[source.index("def ") :].replace(bug.old, bug.new)
    scope: dict[str, Any] = {}
    exec(compile(source, inspect.getfile(function), "exec"), function.__globals__, scope)
    good, function.__code__ = function.__code__, scope[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = good


def scores(how: str, pad: float) -> Callable[[], None]:
    return partial(test_compose.test_normalising_scores_is_the_formula_over_real_values, how, pad)


def pairs(how: str, pad: float) -> Callable[[], None]:
    return partial(test_compose.test_normalising_pairs_is_the_formula_over_real_pairs, how, pad, 3)


def clock() -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_stage.test_a_clock_adds_laps_of_the_same_name_and_waits_at_each_boundary(patch)


SHARE = partial(test_compose.test_a_protected_share_is_rounded_as_said, 0.1 + 0.2, "ceil", 10, 3)
ORDER = partial(
    test_solution.test_emission_order_is_that_of_sorted_lists, test_solution.RANKS, [0, 1, 2], True
)
BACK = test_grouping.test_selections_come_back_in_place_with_all_that_they_carry

BUGS = [
    # normalisation and combination
    Bug("zscore over N-1", compose, "normalize", "keepdim=True) / count).sqrt()",
        "keepdim=True) / (count - 1).clamp_min(1)).sqrt()", scores("zscore", 0.25)),
    Bug("zscore's mean over padding", compose, "normalize", "shift = clean.sum(", "shift = values.sum(",
        scores("zscore", 100.0)),
    Bug("minmax's low bound over padding", compose, "normalize",
        "shift = values.masked_fill(~mask, torch.inf)", "shift = values", scores("minmax", -100.0)),
    Bug("minmax's high bound over padding", compose, "normalize",
        "scale = values.masked_fill(~mask, -torch.inf)", "scale = values", scores("minmax", 100.0)),
    Bug("padding read as zero by minmax", compose, "normalize",
        "shift = values.masked_fill(~mask, torch.inf)", "shift = clean", scores("minmax", 0.25)),
    Bug("columns of pairs unmasked", compose, "normalize", "mask[:, :, None] & mask[:, None, :]",
        "mask[:, :, None]", pairs("sum", 100.0)),
    Bug("softmax over padding", compose, "normalize", "values.masked_fill(~mask, -torch.inf).flatten(1)",
        "values.flatten(1)", scores("softmax", 0.25)),
    Bug("softmax over each row of pairs", compose, "normalize", ".flatten(1).softmax(1)",
        ".softmax(-1).flatten(1)", pairs("softmax", 0.25)),
    Bug("an anchor's weight dropped", compose, "combine_anchors", ".float() * s.weight", ".float()",
        test_compose.test_anchors_are_stacked_in_order_and_weighted),
    Bug("a weight dropped", compose, "combine", "out if summand.weight == 1 else out * summand.weight", "out",
        test_compose.test_summands_are_scaled_then_weighted_then_added),
    Bug("a protected share unrounded", compose, "protected_tokens",
        "(k.double() * protect.share * 1e9).round() / 1e9", "k.double() * protect.share", SHARE),
    Bug("a protected count beyond the budget", compose, "protected_tokens", ".minimum(k)", "",
        test_compose.test_a_protected_count_never_exceeds_the_budget_and_the_best_are_protected),
    Bug("quotas count padding", compose, "equal_quotas", " * mask[:, :, None]", "",
        test_compose.test_quotas_ignore_padding_and_ties_go_to_the_lower_group),
    Bug("remainder ties to the higher group", compose, "equal_quotas",
        "(exact - base).argsort(dim=1, descending=True, stable=True)",
        "(exact - base).flip(1).argsort(dim=1, descending=True, stable=True).neg() + base.shape[1] - 1",
        test_compose.test_quotas_ignore_padding_and_ties_go_to_the_lower_group),
    Bug("padding ranked by its score", tensors, "keep_top", "importance.masked_fill(~mask, -torch.inf)",
        "importance", partial(
            test_compose.test_keep_top_takes_the_largest_real_entries_and_the_lower_index_at_ties, 9.0)),
    # grouping and pruner
    Bug("merge transposed", grouping, "join_groups", "left, right] =", "right, left] =",
        test_grouping.test_merge_weights_keep_their_direction_and_stay_within_their_group),
    Bug("rank lost", grouping, "join_groups", "rank=scatter(selection.rank, 0.0)", "rank=None", BACK),
    Bug("size lost", grouping, "join_groups", "size=scatter(selection.size, 1.0)", "size=None", BACK),
    Bug("groups given by hand lose the mask", pruner, "select", "signals.mask if signals.ragged else None",
        "None", test_stage.test_groups_given_by_hand_replace_the_signal_and_keep_the_mask),
    Bug("start share floored", pruner.Pruner, "_started", "round(start[owner] * count / totals[owner])",
        "start[owner] * count // totals[owner]",
        test_stage.test_the_start_is_shared_over_groups_in_proportion_and_rounded),
    Bug("stage seconds overwritten", pruner.Clock, "lap", "self.seconds.get(name, 0.0) + now", "now",
        clock),
    Bug("seconds shared with the clock", pruner.Pruner, "select", "selection.seconds.update(clock.seconds)",
        'object.__setattr__(selection, "seconds", clock.seconds)',
        test_stage.test_seconds_of_a_given_clock_go_on_over_stages_and_are_copied),
    Bug("a total budget that steps exceed", pruner.Pruner, "_before_steps", "outcome == final",
        "outcome <= final", test_stage.test_the_search_for_a_total_ends_below_it),
    # problems, solutions, signals
    Bug("minus infinity anchors accepted", subset_values, "_check_anchors",
        "(anchors.isnan() | (anchors == -math.inf))", "anchors.isnan()",
        test_problems.test_anchors_may_be_absent_but_not_broken),
    Bug("more protected than the quota accepted", quota, "check_quota",
        '(("has only", real), ("protects", forced))', '(("has only", real),)',
        test_problems.test_quotas_must_sum_to_k_and_fit_their_groups),
    Bug("a NaN potential called success", solution.TransportSolution, "status",
        "(potential.isfinite() | absent)", "(~potential.isinf() | absent)",
        partial(test_solution.test_a_non_finite_plan_or_potential_is_never_a_success, float("nan"))),
    Bug("the source's potential never looked at", solution.TransportSolution, "status",
        "(self.f, self.problem.a), ", "(None, self.problem.a), ",
        partial(test_solution.test_a_non_finite_plan_or_potential_is_never_a_success, float("nan"))),
    Bug("the NaN check looks at the first token axis only", signals.Signals, "bad_values",
        "signal_info(name).token_dims", "signal_info(name).token_dims[:1]",
        partial(test_signals.test_one_bad_entry_is_found_at_every_place_and_only_at_real_tokens,
                "attention_visual")),
    Bug("the NaN check misses infinity", tensors, "not_finite", "rows.amax(1) * 0 != rows.amin(1) * 0",
        "rows.amax(1).isnan()",
        partial(test_signals.test_one_bad_entry_is_found_at_every_place_and_only_at_real_tokens, "xy")),
    Bug("columns of a problem unmasked", transport.TransportProblem, "pair_mask",
        "if self.col_mask is not None:", "if False:",
        test_problems.test_the_span_and_range_of_costs_look_at_real_pairs_only),
    Bug("the smallest k called the most", subset.SubsetProblem, "most", "max(self.counts)",
        "min(self.counts)", test_problems.test_everything_given_is_kept),
    Bug("padding called real", subset.SubsetProblem, "real", "return self.mask\n",
        "return self.mask | True\n",
        test_problems.test_counts_beyond_the_real_tokens_are_refused_with_the_sample),
    Bug("a contradiction called usable", solution.Status, "ok", ", Status.INVALID)", ")",
        test_solution.test_which_statuses_may_be_used_and_which_are_proofs),
    Bug("convergence called a proof", solution.Status, "proved", "self is Status.OPTIMAL",
        "self in (Status.OPTIMAL, Status.CONVERGED)",
        test_solution.test_which_statuses_may_be_used_and_which_are_proofs),
    Bug("value and bound swapped", solution.TransportSolution, "value", "certificate.value",
        "certificate.lower_bound", test_solution.test_a_solution_reports_its_own_certificate),
    Bug("row and column errors swapped", solution.TransportSolution, "row_error", "certificate.row_error",
        "certificate.col_error", test_solution.test_a_solution_reports_its_own_certificate),
    Bug("a gap upside down", solution.SubsetSolution, "gap", "self.upper_bound - self.value",
        "self.value - self.upper_bound", test_solution.test_subset_solutions_report_value_bound_and_gap),
    Bug("the solver's own bound forgotten", solution.SubsetSolution, "_bound",
        "if self.proved_bound is not None:", "if False:",
        test_solution.test_subset_solutions_report_value_bound_and_gap),
    Bug("counts read from the first sample", selection.Selection, "known_counts",
        "tuple(self.keep.sum(1).tolist())", "(int(self.keep[0].sum()),) * len(self.keep)",
        partial(test_solution.test_emission_order_is_that_of_sorted_lists, None, [0, 1, 2], False)),
    Bug("dropped tokens emitted by rank", selection.Selection, "index",
        "by_rank.gather(1, dropped.gather(1, by_rank).argsort(dim=1, stable=True))", "by_rank", ORDER),
    # forward pass
    Bug("importance stale after the first cut", prefill.Prefill, "remove",
        "if selection.importance is not None:", 'if ("importance", None) not in self.store:',
        partial(test_prefill.test_a_second_cut_goes_on_where_the_first_ended, test_prefill.ROWS[0])),
    Bug("the crop of a token not gathered", store.SignalStore, "carry",
        "self.crop = take(self.crop, tokens)", "pass",
        partial(test_prefill.test_one_cut_leaves_what_lists_leave, test_prefill.ROWS[0], 2)),
    Bug("a rank across crops", columns, "emission", "number = group", "number = torch.zeros_like(group)",
        partial(test_prefill.test_ranks_order_tokens_within_the_places_of_their_crop, test_prefill.ROWS[0])),
    Bug("a NaN seen before the last cut forgotten", prefill.Prefill, "_select", "self.bad | bad", "bad",
        partial(test_prefill.test_bad_values_found_after_the_pass_are_never_forgotten, 0)),
    Bug("sizes not carried", prefill.Prefill, "_shorten", "if selection.size is not None:", "if False:",
        partial(test_prefill.test_merges_are_written_where_their_tokens_stand_and_sizes_are_carried,
                test_prefill.ROWS[0])),
    Bug("a merge read by its columns", prefill, "_merged", "take(selection.merge, move.tokens)",
        "take(selection.merge.transpose(1, 2), move.tokens)",
        partial(test_prefill.test_merges_are_written_where_their_tokens_stand_and_sizes_are_carried,
                test_prefill.ROWS[0])),
    Bug("padding inside a row forgotten", columns.Columns, "full", "in self.lengths", "in self.used",
        partial(test_prefill.test_one_cut_leaves_what_lists_leave, ["T0000TT_", "T00T00T_"], 2)),
    # specs
    Bug("protect rounding not in the hash", schema.Protect, "to_spec", ', "rounding": self.rounding', "",
        test_hash.test_every_field_of_protect_decides_the_hash),
    Bug("positions not in the hash", schema.Spec, "to_spec", '"positions": self.positions, ', "",
        test_hash.test_every_field_of_protect_decides_the_hash),
    Bug("the name in the hash", schema.Spec, "hash", 'body.pop("name"), ', "",
        test_hash.test_what_does_not_decide_the_result_is_not_in_the_hash),
    Bug("normalisation lost when a kind changes", resolve, "mixed", '("weight", "normalize")', '("weight",)',
        test_resolve.test_changing_the_kind_of_a_summand_keeps_its_weight_and_scale_and_nothing_else),
    Bug("parameters of another kind mixed in", resolve, "mixed",
        'new.get("kind", old.get("kind")) != old.get("kind")', "False",
        partial(test_resolve.test_mappings_mix_and_those_of_another_kind_replace, *test_resolve.MIXES[1])),
    Bug("an override mixes kinds", spec, "_override", "isinstance(old, DictConfig) and", "False and",
        test_resolve.test_changing_the_kind_of_a_solver_drops_the_parameters_of_the_old_one),
    Bug("protected scores need no signals", schema.ProblemSpec, "keyed",
        "self.protect.keyed", "{}",
        test_hash.test_needs_are_those_of_all_parts_and_of_the_quota),
    Bug("the quota's signal is not needed", schema.ProblemSpec, "groups", 'self.quota or "group"',
        '"group"', test_hash.test_needs_are_those_of_all_parts_and_of_the_quota),
    Bug("the readout's signals are not needed", schema.StageSpec, "keyed", '"readout": self.readout}',
        "}", test_hash.test_needs_are_those_of_all_parts_and_of_the_quota),
    Bug("a method needs its first stage only", schema.Spec, "needs", "for stage in self.stages)",
        "for stage in self.stages[:1])", test_hash.test_needs_are_those_of_all_parts_and_of_the_quota),
    # parts inside parts, and transport as one of them
    Bug("signals of parts inside not needed", parts.Part, "needs", "self.nested.values()", "()",
        test_nested.test_needs_and_attention_are_those_of_every_level),
    Bug("tags of parts inside forgotten", parts.Part, "all_tags", "self.nested.values()", "()",
        test_nested.test_needs_and_attention_are_those_of_every_level),
    Bug("evidence by the name of its part", pruner.Pruner, "_evidence", "keys.get(id(part), part.name)",
        "part.name", test_crossings.test_attention_and_transport_in_one_top_k),
    Bug("evidence of the ranking lost", pruner.Pruner, "_evidence", '"problem" in found', "False",
        test_crossings.test_a_score_as_a_marginal),
    Bug("source and target mass swapped", Transport, "__call__", "source, target = (", "target, source = (",
        test_crossings.test_a_score_as_a_marginal),
    Bug("counts of the plain budget beside a rule", compose, "subset_problem", "=unary), None",
        "=unary), counts",
        test_crossings.test_a_negative_weight_keeps_what_transport_would_drop_under_a_rule_that_counts),
    Bug("a cost served the other way round", compose, "combine_pairs", "-cost.transpose(1, 2)", "-cost",
        partial(test_crossings.test_facility_location_over_topvs_cost, False)),
    Bug("external points served at a gain", facility_location, "served", "-problem.anchors",
        "problem.anchors",
        partial(test_served_targets.test_value_and_bound_are_those_of_the_loops, "points", 0)),
    Bug("mass sent to dropped tokens lost", MergeByPlan, "__call__", " * keep[:, None, :]", "",
        partial(test_crossings.test_merging_by_the_plan, True)),
]  # fmt: skip
