"""Bugs planted in the bounds of subset optima: each changes one function, and names the test that notices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import test_bounds as seen
import test_bounds_by_rows as read
import test_rows
from core_bugs import Bug

from pruneopt.problems.kinds import (
    _concave_quadratic,
    _ddgfact,
    _linx,
    _packing,
    _serving,
    _streamed,
    max_min,
)
from pruneopt.problems.kinds._capped_simplex import CappedSimplex
from pruneopt.problems.kinds.facility_location import FacilityLocation
from pruneopt.problems.kinds.max_min import MaxMin
from pruneopt.problems.row_sums import Raised
from pruneopt.problems.rows import Gram


def below(kind: str) -> Callable[[], None]:
    return partial(seen.test_no_bound_is_below_an_optimum, kind)


def alone(part: Callable) -> Callable[[], None]:
    return partial(seen.test_each_log_det_bound_alone_is_above_the_optimum, part)


def slope(name: str) -> Callable[[], None]:
    return partial(seen.test_gradients_are_those_of_finite_differences, name)


def at_choices(name: str) -> Callable[[], None]:
    return partial(seen.test_relaxations_are_concave_and_agree_with_the_objective_at_choices, name)


def protected(kind: str) -> Callable[[], None]:
    return partial(seen.test_protected_tokens_are_used, kind)


FACTORISED, LINX = alone(_ddgfact.factorised_bound), alone(_linx.linx_bound)
LINE = seen.test_max_min_bound_is_the_optimum_of_a_line
CLOSED = seen.test_bounds_are_exact_in_closed_forms
SHARES = seen.test_shares_are_feasible_and_nearest


def by_rows(kind: str, form: int = 0) -> Callable[[], None]:
    return partial(read.test_no_bound_by_rows_is_below_an_optimum, kind, form)


BUGS = [
    # by rows
    Bug("by rows: a block forgets the token itself", Raised, "block", "own + self.by", "own",
        partial(test_rows.test_every_way_to_read_a_term_gives_its_matrix, "raised")),
    Bug("by rows: a row that is one off", Gram, "block", "take(self.left, rows)",
        "take(self.left.roll(1, 1), rows)",
        partial(test_rows.test_every_way_to_read_a_term_gives_its_matrix, "gram")),
    Bug("by rows: the widest group counts the last piece only", _streamed, "_widest_group",
        "torch.maximum(widest, apart.amax().double())", "apart.amax().double()", by_rows("max_min")),
    Bug("by rows: as many groups as tokens", _streamed, "_widest_group",
        "len(centres) >= int(problem.k[0])", "len(centres) > int(problem.k[0])", by_rows("max_min")),
    Bug("by rows: the last block of tokens forgotten", _streamed, "priced",
        "for part, entries in term.blocks():",
        "for part, entries in [*term.blocks()][:-1] + [(slice(0, 0), next(term.blocks())[1][:, :0])]:",
        read.test_the_last_block_counts_for_prices),
    Bug("by rows: the best two share nothing", _streamed, "shared_server_bound",
        "largest=False).values[:, :, 1]", "largest=False).values[:, :, -1] * 2", by_rows("k_center")),
    Bug("by rows: prices without what they leave", FacilityLocation, "bound_by_rows",
        "bound = least + CappedSimplex.of(problem).most(added)", "bound = least",
        by_rows("facility_location")),
    Bug("by rows: a shift not paid back", _streamed, "negative_type_bound", "own + shift / 2", "own",
        by_rows("max_sum", 1)),
    Bug("by rows: stars of k - 2", _streamed, "star_bound", "problem.k[:, None] - 1",
        "problem.k[:, None] - 2", by_rows("max_sum", 2)),
    Bug("by rows: what is beside the factor lost", _ddgfact, "thin_bound",
        "square().sum(2) + rest / unit[:, None]", "square().sum(2) + 0.5 * rest / unit[:, None]",
        by_rows("log_det", 1)),
    Bug("by rows: a unit of the factor forgotten", _ddgfact, "thin_bound", "best + simplex.k * unit.log()",
        "best", by_rows("log_det")),
    # the simplex
    Bug("a value without its linear term", CappedSimplex, "bound",
        "value + self.most(slope) - (slope * x).sum(1)", "value", below("max_sum")),
    Bug("a tangent taken from the origin", CappedSimplex, "bound", " - (slope * x).sum(1)", "", CLOSED),
    Bug("k off by one in the best choice", CappedSimplex, "choice", "< self.k[:, None]",
        "< self.k[:, None] - 1", below("log_det")),
    Bug("the best choice reads padding", CappedSimplex, "best_first", ".masked_fill(~self.real, -math.inf)",
        "", seen.test_the_best_choice_is_that_of_enumeration),
    Bug("protected tokens left out of the best choice", CappedSimplex, "best_first",
        ".masked_fill(self.forced, math.inf)", "", protected("log_det")),
    Bug("shares cut one place late", CappedSimplex, "scaled", "places * top <= rest", "places * top < 0",
        SHARES),
    Bug("shares moved past the corner", CappedSimplex, "nearest", "before = after - 1", "before = after",
        SHARES),
    # log-determinants
    Bug("factorised: a value without its linear term", _ddgfact, "factorised_bounds",
        "values + simplex.most_of_each(slope) - count", "values", FACTORISED),
    Bug("factorised: a unit forgotten", _ddgfact, "factorised_bounds", "best + count * unit.log()[:, None]",
        "best", FACTORISED),
    Bug("factorised: what rounding took stays lost", _ddgfact, "factorise", "eigen.clamp_min(0) + noise",
        "0.99 * eigen.clamp_min(0) + noise", FACTORISED),
    Bug("factorised: small directions dropped", _ddgfact.Factor, "tangents", " + self.own / level", "",
        FACTORISED),
    Bug("factorised: slope of the square root", _ddgfact.Factor, "tangents", "levels[:, None, :])",
        "levels[:, None, :].sqrt())", slope("factorised")),
    Bug("factorised: k off by one in the tail", _ddgfact.Factor, "tangents", "[levels, more]",
        "[levels[:, 1:], more, level]", at_choices("factorised")),
    Bug("linx: the scale not paid for", _linx, "linx_tangent", "(log - k * scale.log()) / 2", "log / 2",
        at_choices("linx")),
    Bug("linx: the slope forgets what shares take away", _linx, "linx_tangent",
        "(inner - inverse.diagonal(dim1=1, dim2=2)) / 2", "inner / 2", slope("linx")),
    Bug("linx: the scale turns the wrong way", _linx, "linx_tangent", "(inner * x).sum(1) - k",
        "k - (inner * x).sum(1)", seen.test_the_scale_of_linx_has_the_derivative_of_finite_differences),
    Bug("linx: a unit forgotten", _linx, "linx_bound", "best + k * unit.log()", "best", LINX),
    # max-sum
    Bug("quadratic: the shift with the wrong sign", _concave_quadratic.Quadratic, "tangent",
        "self.linear + self.shift", "self.linear - self.shift", below("max_sum")),
    Bug("quadratic: not shifted", _concave_quadratic, "top_on_zero_sums", "return eigen[:, -1]",
        "return 0 * eigen[:, -1]", below("max_sum")),
    Bug("quadratic: the smallest eigenvalue", _concave_quadratic, "top_on_zero_sums", "eigen[:, -1]",
        "eigen[:, 0]", below("max_sum")),
    Bug("quadratic: protected pairs counted twice", _concave_quadratic, "quadratic_bound", "pull / 2 + own",
        "pull + own", below("max_sum")),
    Bug("quadratic: protected tokens worth nothing", _concave_quadratic, "quadratic_bound", "return fixed + ",
        "return ", below("max_sum")),
    # serving
    Bug("serving: prices not paid", _serving, "serving_bounds", "bounds = price.sum(1)[:, None] + ",
        "bounds = ",
        below("facility_location")),
    Bug("serving: first prices without a step", _serving, "serving_bounds", "price - step[:, None] * slope",
        "price", below("facility_location")),
    # packing, max-min
    Bug("packing: the price of a token forgotten", _packing, "packing_bound", "price.sum() + k * top",
        "price.sum()", CLOSED),
    Bug("packing: unpriced worth forgotten", _packing, "packing_bound",
        " + np.maximum(worth - top - price @ rows, 0).sum()", "",
        seen.test_any_prices_certify),
    Bug("packing: a clique grown past its conflicts", _packing, "cliques", "fits[each] &= pairs[token]",
        "fits[each, token] = False", seen.test_an_odd_hole_costs_half_a_token_and_its_cliques_are_cliques),
    Bug("max-min: k off by one in the core", max_min, "_core", ".sum(1) >= k", ".sum(1) > k", LINE),
    Bug("max-min: protected tokens ignored", max_min, "_core", " & ~close[forced].any(0)", "", LINE),
    Bug("max-min: the last refuted level", MaxMin, "_bound_one", "levels[: high + 1]", "levels[: high]",
        below("max_min")),
]  # fmt: skip
