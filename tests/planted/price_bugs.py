"""Bugs planted where one price spends a budget, each with the test that notices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import test_allotment as split
import test_price_rule as rule
from core_bugs import Bug

from pruneopt.parts.budgets import one_price
from pruneopt.parts.budgets.one_price import OnePrice
from pruneopt.problems.allotment import Allotment, Shares
from pruneopt.problems.kinds import _ddgfact
from pruneopt.problems.kinds.facility_location import FacilityLocation
from pruneopt.problems.kinds.log_det import LogDet
from pruneopt.problems.kinds.top_k import TopK

BEST = split.test_no_split_is_better_and_the_price_parts_what_is_taken
TIES = split.test_of_equal_gains_earlier_tokens_come_first_then_lower_problems
LIMITS = rule.test_floor_and_ceiling_hold_and_meet_at_equal_shares
TIGHT = split.test_the_bound_is_the_optimum_where_bounds_are_concave_and_met
BATCH = rule.test_over_the_batch_one_price_holds_for_all_and_says_so


def above(kind: str) -> Callable[[], None]:
    return partial(split.test_no_split_is_worth_more_than_the_bound, kind)


def each(kind: str) -> Callable[[], None]:
    return partial(split.test_no_count_has_an_optimum_above_its_bound, kind)


def gains(kind: str) -> Callable[[], None]:
    return partial(split.test_gains_are_differences_of_values, kind)


BUGS = [
    # what is spent
    Bug("the price one token late", Shares, "spend", "place < (total", "place <= (total", BEST),
    Bug("the price one token early", Shares, "spend", "place < (total", "place + 1 < (total", BEST),
    Bug("floors not paid from the budget", Shares, "spend", "total - np.bincount(pool, low, len(total))",
        "total", BEST),
    Bug("a floor ignored when tokens are given", Shares, "spend", "(token > low[:, None])", "(token > 1)",
        BEST),
    Bug("a ceiling ignored when tokens are given", Shares, "spend", " & (token <= high[:, None])", "", BEST),
    Bug("a bargain behind a bad token", Shares, "spend", "np.minimum.accumulate(", "np.fmax.accumulate(",
        split.test_a_gain_counts_for_no_more_than_those_before_it),
    Bug("the cheapest first", Shares, "spend", "-offer, owner)", "offer, owner)", BEST),
    Bug("ties to one problem", Shares, "spend", "(problem, number, -offer", "(number, problem, -offer", TIES),
    Bug("budgets spent as one", Shares, "spend", " - np.searchsorted(owner, owner)", "",
        split.test_budgets_do_not_touch_one_another),
    Bug("the price is the best that was missed", Shares, "spend", "price < np.inf, price, missed",
        "missed > -np.inf, missed, price", BEST),
    # the bound
    Bug("the bound forgets a problem", Shares, "bound", "self.sums(worth)",
        "self.sums(worth * (torch.arange(len(worth)) % 3 > 0))", above("top_k")),
    Bug("the bound forgets what the budget costs", Shares, "bound", "price * self.total + self.sums",
        "self.sums", above("top_k")),
    Bug("the bound counts one token less", Shares, "bound", "- price[self.pool, None] * count",
        "- price[self.pool, None] * (count + 1)", above("top_k")),
    Bug("the bound of the counts that were found", Shares, "bound", "range(HALVINGS)", "range(1)", TIGHT),
    Bug("the bound forgets floors and ceilings", Shares, "bound", "may = self.open(count)",
        "may = self.open(count) | True", TIGHT),
    Bug("the price moves the wrong way", Shares, "bound", "used > self.total, price, low",
        "used < self.total, price, low", TIGHT),
    Bug("factorised: the sum of another count", _ddgfact.Factor, "tangents", ".log().cumsum(1)",
        ".log().cumsum(1)[:, self.k[0] - 1 :][:, :1].expand(-1, x.shape[1])", each("log_det")),
    Bug("log-det: largest diagonals in their order", LogDet, "bounds",
        "logs.sort(dim=1, descending=True).values", "logs", each("log_det")),
    # gains
    Bug("top-k: gains of other tokens", TopK, "gains", "gather(1, order.clamp_min(0))", "flip(1)",
        gains("top_k")),
    Bug("serving: weights forgotten", FacilityLocation, "gains", " * weight[:, :, None]).sum", ").sum",
        gains("facility_location")),
    Bug("serving: not the best server so far", FacilityLocation, "gains", ".cummax(2).values", "",
        gains("facility_location")),
    Bug("log-det: a root for a pivot", LogDet, "gains", "2 * root", "root", gains("log_det")),
    # the rule
    Bug("the rule ignores its floor", OnePrice, "settle", "clamp_max(self.floor)", "clamp_max(1)", LIMITS),
    Bug("the rule ignores its ceiling", OnePrice, "__call__", " * self.ceiling", "", LIMITS),
    Bug("protected tokens set no floor", OnePrice, "settle", "if problem.protected is not None", "if False",
        rule.test_protected_tokens_stay_and_count),
    Bug("batch mates are not mentioned", OnePrice, "settle", 'self.over == "batch"', "False", BATCH),
    Bug("a batch is samples", OnePrice, "_shares", 'self.over == "batch"', "False", BATCH),
    Bug("one token too many stays", one_price, "cut_back", ">= counts", "> counts",
        partial(rule.test_every_part_gets_what_its_solver_chooses_for_its_count, "top_k")),
    Bug("an optimum claimed for a heuristic", Allotment, "status", "_together(found)", "Status.OPTIMAL",
        partial(rule.test_nothing_is_above_the_bound_and_scores_reach_it, "facility_location", 1)),
]  # fmt: skip
