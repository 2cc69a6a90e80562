"""Checks of kinds of problem, on tiny instances where every choice can be tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from pruneopt.parts import SubsetSolver
from pruneopt.problems.kinds import GROUPS, Kind
from pruneopt.problems.kinds._swaps import dense_gains
from pruneopt.problems.subset import SubsetProblem
from pruneopt.registry import registry
from pruneopt.testing import cases
from pruneopt.testing.core import Check, checks_that, require
from pruneopt.testing.purity import require_pure, tensors_in
from pruneopt.testing.subset_choices import tokens_of

TOKENS, KEPT = 7, 3
TERMS = ("unary", "pairwise", "anchors")
Witness = Callable[[SubsetProblem, int, tuple[int, ...]], float]


def problems(kind: Kind) -> Iterator[SubsetProblem]:
    """Small problems of a kind: plain, with a protected token, ragged, with anchors where they count."""
    for seed in (0, 1):
        for protect, lengths in ((False, None), (True, None), (True, (TOKENS, TOKENS - 2))):
            stated = cases.subset(
                kind.name, tokens=TOKENS, k=KEPT, seed=seed, protect=protect, lengths=lengths
            )
            yield stated
            if kind.anchored:
                gen = torch.Generator().manual_seed(seed)
                rows = torch.rand(2, 2, TOKENS, generator=gen, dtype=torch.float64)
                rows[0, 1] = math.inf
                yield replace(stated, anchors=rows)


def choices(sizes: range = range(TOKENS + 1)) -> Tensor:
    """`[C,N]` bool: every choice of these sizes."""
    sets = [chosen for size in sizes for chosen in combinations(range(TOKENS), size)]
    return torch.tensor([[token in chosen for token in range(TOKENS)] for chosen in sets])


def each_value(problem: SubsetProblem) -> tuple[Tensor, Tensor]:
    """Every choice of an allowed size, `[C,N]`, and what it is worth in every sample, `[B,C]`."""
    every = choices(range(1 if problem.rules.at_most else KEPT, KEPT + 1))
    samples = (problem.sample(b).repeated(len(every)) for b in range(problem.shape[0]))
    return every, torch.stack([sample.value(every) for sample in samples])


def optimum(problem: SubsetProblem) -> Tensor:
    """`[B]` float64 largest value of all choices."""
    return each_value(problem)[1].amax(1)


def some(problem: SubsetProblem) -> Tensor:
    """`[B,N]` an allowed choice of every sample: the first that is worth something."""
    every, values = each_value(problem)
    return every[values.isfinite().int().argmax(1)]


def best(problem: SubsetProblem) -> Tensor:
    """`[B,N]` the best choice of every sample."""
    every, values = each_value(problem)
    return every[values.argmax(1)]


def check_declared(kind: Kind) -> None:
    """Needs, pairs, unit and scaled terms are words that pruneopt knows; its greedy solver solves it."""
    unknown = kind.needs - {"unary", "threshold", "quota"} | kind.scaled - set(TERMS)
    require(not unknown, f"needs or scaled name no term: {', '.join(sorted(unknown))}")
    require(kind.pairs in ("", *GROUPS), f"pairs is {kind.pairs!r}; use {', '.join(GROUPS)} or nothing")
    require(kind.unit in ("percent", "nats"), f"unit is {kind.unit!r}; use percent or nats")
    alone = kind.symmetric or kind.definite or kind.anchored
    require(kind.pairs or not alone, "symmetric, definite and anchored speak of pairs, but `pairs` is empty")
    require((type(kind).__doc__ or "").strip(), "no docstring; its first line is what `pruneopt list` shows")
    if kind.greedy:
        solver = registry("solvers").get(kind.greedy["kind"])
        solves = issubclass(solver, SubsetSolver) and kind.name in solver.kinds
        require(solves, f"greedy {kind.greedy['kind']!r} does not solve {kind.name}")


def check_draw(kind: Kind) -> None:
    """`draw` gives what `build` accepts, for one token and for all, and the same twice."""
    for tokens, k in ((1, 1), (TOKENS, 1), (TOKENS, KEPT), (TOKENS, TOKENS)):
        one, two = (cases.subset(kind.name, tokens=tokens, k=k) for _ in range(2))
        for name in TERMS:
            first, again = getattr(one, name), getattr(two, name)
            require(first is None or torch.equal(first, again), f"two draws differ in {name}; keep no state")


def check_values(kind: Kind) -> None:
    """float64 `[B]`, and a choice is worth the same alone and in a batch."""
    for problem in problems(kind):
        for keep in choices(range(KEPT, KEPT + 1))[::4]:
            both = keep.expand(problem.shape)
            value = kind.value(problem, both & problem.real)
            require(
                value.dtype == torch.float64 and tuple(value.shape) == (2,),
                f"value is {value.dtype} {list(value.shape)}, not float64 [2]",
            )
            for b in range(2):
                alone = problem.sample(b)
                own = kind.value(alone, (both & problem.real)[b : b + 1])
                require(
                    torch.allclose(own, value[b : b + 1], rtol=1e-12, atol=1e-12, equal_nan=False),
                    f"a choice is worth {float(value[b]):.6g} in a batch and {float(own):.6g} alone",
                )


def check_witness(kind: Kind, witness: Witness) -> None:
    """The value of every choice is that of the loops of `witness`, -inf where a constraint is broken."""
    for problem in problems(kind):
        every = choices()[1:]
        for b in range(2):
            values = problem.sample(b).repeated(len(every)).value(every).tolist()
            for keep, found in zip(every, values, strict=True):
                chosen = tuple(keep.nonzero().squeeze(1).tolist())
                wanted = witness(problem, b, chosen)
                same = math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-9)
                require(same, f"{chosen} is worth {found:.6g}, the witness says {wanted:.6g}")


def check_padding(kind: Kind) -> None:
    """What stands at padding changes neither value, bound nor swap gains."""
    for problem in problems(kind):
        if problem.mask is None:
            continue
        pairs = problem.real[:, :, None] & problem.real[:, None, :]
        dirty: dict[str, Any] = {}
        for name, real in (("unary", problem.real), ("pairwise", pairs), ("anchors", problem.real[:, None])):
            tensor = getattr(problem, name)
            dirty[name] = None if tensor is None else tensor.masked_fill(~real, 9.0)
        other = replace(problem, **dirty)
        keep = some(problem)
        for what, one, two in _answers(problem, other, keep=keep, moved=keep):
            require(torch.equal(one, two), f"{what} reads padding; mask it")


def check_token_order(kind: Kind) -> None:
    """Value and swap gains do not depend on the order of the tokens; a bound may be looser in another."""
    order = cases.shuffle(TOKENS, 2)
    for problem in problems(kind):
        keep = some(problem)
        for what, one, two in _answers(problem, tokens_of(problem, order), keep=keep, moved=keep[:, order]):
            if what == "bound":
                continue
            one = one[:, order][:, :, order] if one.dim() == 3 else one
            require(
                torch.allclose(one, two, rtol=1e-9, atol=1e-9), f"{what} depends on the order of the tokens"
            )


def _answers(
    one: SubsetProblem, two: SubsetProblem, *, keep: Tensor, moved: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """What a kind says of two problems, side by side; gains only of swaps that exist."""
    yield "value", one.value(keep), two.value(moved)
    first, second = one.bound(keep)[0], two.bound(moved)[0]
    if first is not None and second is not None:
        yield "bound", first, second
    if _swappable(one.rules):
        yield "swap_gains", _gains(one, keep), _gains(two, moved)


def _swappable(kind: Kind) -> bool:
    return kind.offers("swaps") or kind.offers("swap_gains")


def _gains(problem: SubsetProblem, keep: Tensor) -> Tensor:
    return _real(problem.rules.swap_gains(problem, keep), problem, keep=keep)


def _real(gains: Tensor, problem: SubsetProblem, *, keep: Tensor) -> Tensor:
    """Gains of swaps that exist, 0 elsewhere."""
    return gains.masked_fill(~(keep[:, :, None] & (problem.real & ~keep)[:, None, :]), 0)


def check_bound(kind: Kind) -> None:
    """No choice is worth more than the bound, whichever choice it is taken around; or a reason for none."""
    for problem in problems(kind):
        most = optimum(problem)
        for keep in choices(range(KEPT, KEPT + 1))[::5]:
            bound, reason = problem.bound(keep.expand(problem.shape) & problem.real)
            if bound is None:
                require(reason, "neither a bound nor a reason for none")
                continue
            slack = 1e-9 * problem.magnitude(some(problem)).clamp_min(1)
            good = bool((bound >= most - slack).all())
            require(good, f"the bound {bound.tolist()} is below the optimum {most.tolist()}")


def check_bounds(kind: Kind) -> None:
    """No choice of any count is worth more than the bound of that count; or a reason for none."""
    for problem in problems(kind):
        found = kind.bounds(problem, some(problem))
        if isinstance(found, str):
            require(found, "neither bounds nor a reason for none")
            continue
        most = int(problem.real.sum(1).min())
        for count in range(1 if problem.protected is None else int(problem.protected.sum(1).max()), most + 1):
            every = choices(range(count, count + 1))
            asked = replace(problem, k=torch.full_like(problem.k, count), counts=None)
            samples = [asked.sample(b).repeated(len(every)).value(every).amax() for b in range(2)]
            slack = 1e-9 * problem.magnitude(some(problem)).clamp_min(1)
            good = bool((found[:, count - 1] >= torch.stack(samples) - slack).all())
            require(
                good, f"the bound of {count} tokens is below their optimum; was it made for another count?"
            )


def check_gains(kind: Kind) -> None:
    """Gains are differences of values, and in a greedy order those after the first never rise."""
    for problem in problems(kind):
        batch, live = problem.shape[0], problem.real.sum(1)
        keep, worth = torch.zeros_like(problem.real), problem.k.new_zeros(batch, dtype=torch.float64)
        order, wanted = [], []
        for t in range(TOKENS):
            each = torch.stack([kind.value(problem, keep | one) for one in torch.eye(TOKENS).bool()], 1)
            pick = each.masked_fill(keep | ~problem.real, -math.inf).argmax(1)
            order.append(torch.where(t < live, pick, -1))
            now = each.gather(1, pick[:, None]).squeeze(1)
            wanted.append(torch.where(t < live, now - worth, math.nan))
            keep, worth = keep.scatter(1, pick[:, None], True) & problem.real, now
        gains = kind.gains(problem, torch.stack(order, 1))
        same = torch.allclose(gains, torch.stack(wanted, 1), rtol=1e-6, atol=1e-9, equal_nan=True)
        require(same, "gains are not what each token adds to those before it, NaN where order is -1")
        rises = gains[:, 1:].diff(dim=1).nan_to_num(0.0)
        falls = bool((rises <= 1e-7 * gains.nan_to_num(0.0).abs().amax(1, keepdim=True)).all())
        require(falls, "gains of a greedy order rise, so no price spends a budget; offer no `gains`")


def check_swap_gains(kind: Kind) -> None:
    """The gain of a swap is the difference of two values, and -inf where it breaks a constraint."""
    for problem in problems(kind):
        keep = some(problem)
        free = keep if problem.protected is None else keep & ~problem.protected
        gains, now = kind.swap_gains(problem, keep), problem.value(keep)
        for b in range(2):
            for i in free[b].nonzero().squeeze(1).tolist():
                for j in (problem.real & ~keep)[b].nonzero().squeeze(1).tolist():
                    after = keep.clone()
                    after[b, i], after[b, j] = False, True
                    wanted, found = float((problem.value(after) - now)[b]), float(gains[b, i, j])
                    same = math.isclose(found, wanted, rel_tol=1e-7, abs_tol=1e-9)
                    require(same, f"{i} for {j} gains {wanted:.6g}, swap_gains says {found:.6g}")


def check_swaps(kind: Kind) -> None:
    """Gains that were kept current through some swaps are those of the choice as it is then."""
    for problem in problems(kind):
        keep = some(problem)
        swaps = kind.swaps(problem, keep)
        for _ in range(3):
            fixed = ~keep if problem.protected is None else ~keep | problem.protected
            gains = dense_gains(swaps).masked_fill(
                fixed[:, :, None] | (keep | ~problem.real)[:, None, :], -math.inf
            )
            allowed = gains.isfinite().flatten(1)
            sample = allowed.any(1).nonzero().squeeze(1)  # the last swap that is allowed, better or worse
            last = TOKENS * TOKENS - 1 - allowed[sample].flip(1).int().argmax(1)
            slot = (swaps.tokens[sample] == (last // TOKENS)[:, None]).int().argmax(1)
            swaps.swap(sample, slot, into=last % TOKENS)
            keep = swaps.keep
            kept, fresh = (
                _real(dense_gains(each), problem, keep=keep) for each in (swaps, kind.swaps(problem, keep))
            )
            same = torch.allclose(kept, fresh, rtol=1e-7, atol=1e-9)
            require(same, "gains after a swap are not those of the choice; `update` leaves something behind")


def check_model(kind: Kind) -> None:
    """Integer programming on what `linear`, or `levels` and `reaching`, say finds the enumerated optimum."""
    solver = registry("solvers").get("milp")()
    for problem in problems(kind):
        solution, most = solver.solve(problem), optimum(problem)
        off = float((solution.value - most).abs().amax())
        require(off <= 1e-6, f"the program's optimum is {off:.2g} away from the enumerated one")
        require(all(s.proved for s in solution.status), f"the program ends {solution.status[0].name}")


def check_scaled(kind: Kind) -> None:
    """Terms in `scaled` times a number: the value times it (shifted, in nats), and its magnitude too."""
    for problem in problems(kind) if kind.scaled else ():
        terms = {name: getattr(problem, name) for name in kind.scaled}
        moved = replace(problem, **{name: 4 * t for name, t in terms.items() if t is not None})
        keep, top = some(problem), best(problem)
        one, two = problem.value(keep), moved.value(keep)
        if kind.unit == "nats":
            shift = moved.value(top) - problem.value(top)
            require(torch.allclose(two - one, shift, rtol=1e-9), "scaling does not shift all choices alike")
        else:
            require(torch.allclose(two, 4 * one, rtol=1e-9), "`scaled` terms do not scale the value")
            sizes = problem.magnitude(keep), moved.magnitude(keep)
            scales = torch.allclose(4 * sizes[0], sizes[1], rtol=1e-9)
            large = bool((sizes[0] >= one.abs() - 1e-9).all())
            require(scales and large, "magnitude must scale with the terms and not be below |value|")


def check_problem_pure(kind: Kind) -> None:
    """Nothing that a kind is asked changes the problem or the choice."""
    for problem in problems(kind):
        keep = some(problem)

        def asked(problem: SubsetProblem = problem, keep: Tensor = keep) -> Tensor:
            answers = [one for _, one, _ in _answers(problem, problem, keep=keep, moved=keep)]
            return torch.cat([x.flatten() for x in (*answers, problem.magnitude(keep))])

        require_pure(asked, {**tensors_in(problem), "keep": keep})


def kind_checks(kind: Kind, witness: Witness | None = None) -> Iterator[Check]:
    """Checks of a kind, according to what it offers.

    `witness(problem, sample, chosen)` is a second opinion on values, such as loops over Python numbers.
    """
    applies = {
        check_declared: True,
        check_draw: True,
        check_values: True,
        check_padding: True,
        check_token_order: True,
        check_bound: True,
        check_scaled: True,
        check_problem_pure: True,
        check_bounds: kind.offers("bounds") or kind.offers("gains"),
        check_gains: kind.offers("gains"),
        check_swap_gains: _swappable(kind),
        check_swaps: kind.offers("swaps"),
        check_model: kind.offers("linear") or kind.offers("levels"),
    }
    for check in checks_that(applies):
        yield replace(check, run=partial(_lent, check.run))
    if witness is not None:
        yield Check("check_witness", partial(_lent, partial(check_witness, witness=witness)))


def _lent(check: Callable[[Any], None], kind: Any) -> None:
    """Run a check on a kind that need not be registered."""
    with registry("kinds").lent(kind.name, type(kind)):
        check(kind)
