"""Checks of subset solvers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.parts import SubsetSolver
from pruneopt.problems.kinds import all_kinds
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem
from pruneopt.testing import cases
from pruneopt.testing.core import Check, changed, require
from pruneopt.testing.part_checks import part_checks, torch_rng_untouched

LARGE = 24  # tokens where brute force would be out of reach; solvers tagged `small` get 12


def size(solver: SubsetSolver) -> int:
    return 12 if "small" in solver.tags or "exact" in solver.tags else LARGE


def count_holds(solver: SubsetSolver, problem: SubsetProblem, solution: SubsetSolution, where: str) -> None:
    """Fail unless the choice keeps the budget, real tokens only, and all protected ones."""
    keep = solution.keep
    require(
        keep.dtype == torch.bool and keep.shape == problem.shape,
        f"keep is {keep.dtype} {list(keep.shape)} {where}",
    )
    require(
        not bool((keep & ~problem.real).any()),
        f"padding was chosen {where}; mask scores with -inf before any argmax",
    )
    size, k = keep.sum(1), problem.k
    at_most = problem.rules.at_most and ("exact" in solver.tags or "exact_budget" not in solver.tags)
    good = (size <= k) & (size >= 1) if at_most else size == k
    require(
        bool(good.all()), f"kept {size.tolist()} tokens for k={k.tolist()} {where}; was a token chosen twice?"
    )
    if problem.protected is not None:
        lost = (problem.protected & problem.real & ~keep).any()
        require(not bool(lost), f"a protected token was dropped {where}; honour problem.protected")
    if solution.order is not None:
        for row, kept in zip(solution.order, keep, strict=True):
            chosen = row[row >= 0].tolist()
            require(
                sorted(chosen) == kept.nonzero().squeeze(1).tolist(), f"`order` and `keep` disagree {where}"
            )


def check_kinds(solver: SubsetSolver) -> None:
    """The declared kinds exist, and every other kind is refused with a ProblemError."""
    known = [kind.name for kind in all_kinds()]
    unknown = set(solver.kinds) - set(known)
    require(
        solver.kinds and not unknown, f"kinds {sorted(solver.kinds)} are not all known: {', '.join(known)}"
    )
    for kind in set(known) - solver.kinds:
        try:
            solver.solve(cases.subset(kind))
        except ProblemError:
            continue
        require(False, f"{kind} is not declared in `kinds`, yet it is solved; raise ProblemError")


def check_exact_budget(solver: SubsetSolver) -> None:
    """Exactly k distinct real tokens for k = 1, in between, N-1 and N; k = N is the identity."""
    n = size(solver)
    for kind in sorted(solver.kinds):
        for k in (1, 5, n - 1, n):
            problem = cases.subset(kind, tokens=n, k=k)
            solution = solver.solve(problem)
            count_holds(solver, problem, solution, f"({kind}, k={k}, N={n})")


def check_protected(solver: SubsetSolver) -> None:
    """Protected tokens are kept and counted in k."""
    for kind in sorted(solver.kinds):
        for k in (1, 5):
            problem = cases.subset(kind, tokens=size(solver), k=k, protect=True)
            count_holds(solver, problem, solver.solve(problem), f"({kind}, protected, k={k})")


def check_fields(solver: SubsetSolver) -> None:
    """The solution reports itself: solver, seconds, statuses, and a bound or a reason for none."""
    for kind in sorted(solver.kinds):
        problem = cases.subset(kind, tokens=size(solver))
        solution = solver.solve(problem)
        require(isinstance(solution, SubsetSolution), f"solve returned {type(solution).__name__}")
        require(
            solution.solver == solver.name, f"solution.solver is {solution.solver!r}, not {solver.name!r}"
        )
        require(
            len(solution.ended) == 2 and all(isinstance(s, Status) for s in solution.ended),
            "one Status per sample",
        )
        require(
            0 < solution.seconds < 600, f"seconds is {solution.seconds}; measure with time.perf_counter()"
        )
        require(
            solution.upper_bound is not None or solution.no_bound, "neither a bound nor a reason for none"
        )
        require(solution.keep.device == problem.k.device, "the choice is on another device than the problem")


def check_below_bound(solver: SubsetSolver) -> None:
    """The value is at most the optimum found by enumeration, and the bound at least that."""
    from pruneopt.parts.solvers.brute_force import BruteForce

    for kind in sorted(solver.kinds):
        for seed in (0, 1):
            problem = cases.subset(kind, tokens=10, k=4, seed=seed)
            solution = solver.solve(problem)
            best = BruteForce().solve(solution.problem).value
            slack = 1e-7 * best.abs().clamp_min(1)
            require(bool((solution.value <= best + slack).all()), f"{kind}: the value exceeds the optimum")
            bound = solution.upper_bound
            if bound is not None:
                require(
                    bool((bound >= best - slack).all()),
                    f"{kind}: upper_bound {bound.tolist()} is below the optimum {best.tolist()}",
                )


def check_scale(solver: SubsetSolver) -> None:
    """The numbers of an objective times 1e-12 or 1e12: the same choice, and the same claim about it."""
    for kind in sorted(solver.kinds):
        problem = cases.subset(kind, tokens=10, k=4, seed=4)
        reference = solver.solve(problem)
        for scale in (1e-12, 1e12):
            terms = {name: getattr(problem, name) for name in problem.rules.scaled}
            moved = changed(problem, **{n: scale * t for n, t in terms.items() if t is not None})
            solution = solver.solve(moved)
            require(
                torch.equal(solution.keep, reference.keep),
                f"{kind}: another choice at scale {scale:g}; divide by the size of the objective first",
            )
            require(
                solution.status == reference.status,
                f"{kind}: {reference.status[0].name} becomes {solution.status[0].name} at scale {scale:g}",
            )


def check_optimal(solver: SubsetSolver) -> None:
    """Tagged `exact`: the value is that of enumeration, with status OPTIMAL and no gap."""
    from pruneopt.parts.solvers.brute_force import BruteForce

    for kind in sorted(solver.kinds):
        for seed in (2, 3):
            problem = cases.subset(kind, tokens=10, k=4, seed=seed, lengths=(10, 8))
            solution, best = solver.solve(problem), BruteForce().solve(problem).value
            off = (solution.value - best).abs().amax()
            require(
                bool(off <= 1e-6),
                f"{kind}: tagged 'exact' but {float(off):.2g} away from the enumerated optimum",
            )
            require(
                all(s is Status.OPTIMAL for s in solution.status),
                f"{kind}: an optimum with status {solution.status[0].name}",
            )


def check_beats_random(solver: SubsetSolver) -> None:
    """The value is above the mean of twenty random choices of the same size."""
    for kind in sorted(solver.kinds):
        problem = cases.subset(kind, batch=4, tokens=size(solver), k=5, seed=4)
        solution = solver.solve(problem)
        g = torch.Generator().manual_seed(0)
        if problem.rules.offers("broken"):
            continue  # most random choices break its constraint
        total = torch.zeros(4, dtype=torch.float64)
        for _ in range(20):
            ranks = torch.rand(4, problem.shape[1], generator=g).argsort(1).argsort(1)
            total += solution.problem.value(ranks < 5) / 20
        better = float(solution.value.mean()) > float(total.mean())
        require(
            better, f"{kind}: worse than random on average; is the objective read, and with the right sign?"
        )


def check_half_of_optimum(solver: SubsetSolver) -> None:
    """Tagged `factor_two_on_metrics`: within a factor of two of the optimum for distances in the plane."""
    from pruneopt.parts.solvers.brute_force import BruteForce

    for kind in sorted(solver.kinds):
        for seed in range(6):
            problem = cases.subset(kind, tokens=10, k=4, seed=seed, metric=True)
            value, best = solver.solve(problem).value, BruteForce().solve(problem).value
            worst = torch.where(best > 0, best / 2, 2 * best) - 1e-12
            require((value >= worst).all(), f"{kind}: more than a factor of two away from the optimum")


def check_submodular_bound(solver: SubsetSolver) -> None:
    """Tagged `submodular_greedy`: at least 1 - 1/e of the optimum for similarities in [0, 1]."""
    from pruneopt.parts.solvers.brute_force import BruteForce

    for kind in sorted(solver.kinds):
        for seed in range(6):
            problem = cases.subset(kind, tokens=12, k=3, seed=seed)
            heap = (torch.arange(12) * 5) % 3
            together = (heap[:, None] == heap).double()
            assert problem.pairwise is not None
            problem = changed(problem, unary=None, pairwise=0.9 * together + 0.1 * problem.pairwise)
            least = (1 - 1 / math.e) * BruteForce().solve(problem).value
            require((solver.solve(problem).value >= least).all(), "less than 1 - 1/e of the optimum")


def check_nested(solver: SubsetSolver) -> None:
    """Tagged `nested`: the choice for k is part of the choice for k + 1."""
    for kind in sorted(solver.kinds):
        last = torch.zeros(2, 12, dtype=torch.bool)
        for k in range(1, 13):
            keep = solver.solve(cases.subset(kind, tokens=12, k=k)).keep
            require(
                not bool((last & ~keep).any()), f"{kind}: a token kept for k={k - 1} is dropped for k={k}"
            )
            last = keep


def check_ties(solver: SubsetSolver) -> None:
    """Of identical tokens the lower index is chosen first."""
    for kind in sorted(solver.kinds):
        problem = cases.subset(kind, tokens=12, k=4, duplicates=True, dtype=torch.float32)
        keep = solver.solve(problem).keep
        wrong = (keep[:, 6:] & ~keep[:, :6]).any()
        require(
            not bool(wrong), f"{kind}: a copy was chosen before its original; use argmax or a stable sort"
        )


def _same(solver: SubsetSolver, one: Tensor, two: Tensor, a: SubsetSolution, b: SubsetSolution) -> bool:
    """Equal choices; for exact solvers, which may pick any optimum, equal values."""
    if "exact" in solver.tags:
        return bool((a.value - b.value).abs().amax() <= 1e-6)
    return torch.equal(one, two)


def check_permutation(solver: SubsetSolver) -> None:
    """Permuting tokens permutes the choice."""
    for kind in sorted(solver.kinds):
        n = size(solver)
        problem = cases.subset(kind, tokens=n, seed=5)
        p = cases.shuffle(n, 2)
        moved = _select(problem, p)
        one, two = solver.solve(problem), solver.solve(moved)
        require(
            _same(solver, one.keep[:, p], two.keep, one, two),
            f"{kind}: permuting the tokens changes the choice; tag it `uses_order` if that is the rule",
        )


def _select(problem: SubsetProblem, index: Tensor, sample: int | None = None) -> SubsetProblem:
    """The same problem on tokens `index`, for all samples or one."""

    def take(tensor: Tensor | None, axes: tuple[int, ...]) -> Tensor | None:
        if tensor is None:
            return None
        for axis in axes:
            tensor = tensor.index_select(axis, index)
        return tensor if sample is None else tensor[sample : sample + 1]

    quota = problem.quota if sample is None or problem.quota is None else problem.quota[sample : sample + 1]
    return SubsetProblem.build(
        problem.kind,
        problem.k if sample is None else problem.k[sample : sample + 1],
        unary=take(problem.unary, (1,)),
        pairwise=take(problem.pairwise, (1, 2)),
        mask=take(problem.mask, (1,)),
        protected=take(problem.protected, (1,)),
        threshold=problem.threshold,
        group=take(problem.group, (1,)),
        quota=quota,
    )


def check_batch(solver: SubsetSolver) -> None:
    """A sample gives in a ragged batch what it gives alone, whatever stands at padding."""
    n = size(solver)
    for kind in sorted(solver.kinds):
        for protect in (False, True):
            _batch_of(solver, kind, n, protect)


def _batch_of(solver: SubsetSolver, kind: str, n: int, protect: bool) -> None:
    lengths = (n, n - 3, 7)
    problem = cases.subset(kind, batch=3, tokens=n, lengths=lengths, protect=protect, seed=6)
    together = solver.solve(problem)
    count_holds(solver, problem, together, f"({kind}, ragged)")
    for b, length in enumerate(lengths):
        alone = solver.solve(replace(_select(problem, torch.arange(length), b), mask=None))
        require(
            _same(solver, alone.keep[0], together.keep[b, :length], alone, _value_of(together, b)),
            f"{kind}: sample {b} of a ragged batch differs from itself alone",
        )
    real = problem.real
    pair = real[:, :, None] & real[:, None, :]
    dirty = replace(
        problem,
        unary=None if problem.unary is None else problem.unary.masked_fill(~real, 9.0),
        pairwise=None if problem.pairwise is None else problem.pairwise.masked_fill(~pair, 9.0),
    )
    again = solver.solve(dirty)
    same = _same(solver, again.keep, together.keep, again, together)
    require(same, f"{kind}: values at padded tokens leak into the choice")


def _value_of(solution: SubsetSolution, b: int) -> SubsetSolution:
    """A stand-in with the value of one sample."""
    part = replace(solution)
    part.__dict__["value"] = solution.value[b : b + 1]
    return part


def check_inputs_pure(solver: SubsetSolver) -> None:
    """The problem is unchanged and two calls agree."""
    for kind in sorted(solver.kinds):
        problem = cases.subset(kind, tokens=size(solver), protect=True)
        kept = {n: t.clone() for n, t in vars(problem).items() if isinstance(t, Tensor)}
        first = solver.solve(problem).keep.clone()
        for name, copy in kept.items():
            require(
                torch.equal(getattr(problem, name), copy),
                f"{kind}: {name} was changed in place; clone it first",
            )
        require(torch.equal(first, solver.solve(problem).keep), f"{kind}: two calls differ; keep no state")


def check_global_rng(solver: SubsetSolver) -> None:
    """The global random generators are neither used nor moved."""
    for kind in sorted(solver.kinds):
        problem = cases.subset(kind, tokens=size(solver))
        one, two = torch_rng_untouched(lambda p=problem: solver.solve(p).keep)
        require(torch.equal(one, two), f"{kind}: the choice depends on a global random generator")


def check_dtype(solver: SubsetSolver) -> None:
    """float32 input gives the choice of float64 up to ties, and half precision is accepted."""
    for kind in sorted(solver.kinds):
        exact = cases.subset(kind, tokens=size(solver), seed=7)
        reference = solver.solve(exact)
        single = solver.solve(cases.subset(kind, tokens=size(solver), seed=7, dtype=torch.float32))
        off = (single.value - reference.value).abs().amax()
        scale = reference.value.abs().amax().clamp_min(1)
        require(bool(off <= 1e-3 * scale), f"{kind}: float32 changes the value by {float(off):.2g}")
        half = cases.subset(kind, tokens=size(solver), seed=7, dtype=torch.bfloat16)
        count_holds(solver, half, solver.solve(half), f"({kind}, bfloat16)")


def check_degenerate(solver: SubsetSolver) -> None:
    """Equal tokens, zero matrices and one token give a full choice and no NaN."""
    for kind in sorted(solver.kinds):
        for fill in (0.0, 1.0):
            problem = cases.subset(kind, tokens=8, k=3)
            values = {"unary": problem.unary, "pairwise": problem.pairwise}
            flat = {n: torch.full_like(t, fill) for n, t in values.items() if t is not None}
            problem = changed(problem, **flat)
            solution = solver.solve(problem)
            count_holds(solver, problem, solution, f"({kind}, all entries {fill:g})")
            require(not bool(solution.value.isnan().any()), f"{kind}: NaN value for entries {fill:g}")
        one = cases.subset(kind, tokens=1, k=1)
        count_holds(solver, one, solver.solve(one), f"({kind}, one token)")


def check_time_limit(solver: SubsetSolver) -> None:
    """Tagged `time_limit`: a tiny limit ends soon, says so, and leaves a full choice with a bound."""
    part = changed(solver, time_limit=0.02)
    for kind in sorted(solver.kinds):
        problem = cases.subset(kind, batch=1, tokens=40, k=12, seed=8)
        solution = part.solve(problem)
        require(solution.seconds < 20, f"{kind}: a limit of 0.02 s took {solution.seconds:.0f} s")
        if solution.status[0] is Status.OPTIMAL:
            continue
        require(
            solution.status[0] is Status.TIME_LIMIT, f"{kind}: stopped with status {solution.status[0].name}"
        )
        count_holds(solver, problem, solution, f"({kind}, time limit)")
        bounded = solution.upper_bound is not None and bool(solution.upper_bound.isfinite().all())
        require(bounded, f"{kind}: stopped by the limit without a bound")


def subset_checks(solver: SubsetSolver) -> Iterator[Check]:
    """Checks of a subset solver, according to its tags."""
    yield from part_checks(solver)
    tagged: list[tuple[str, Callable[[SubsetSolver], None]]] = [
        ("exact", check_optimal),
        ("factor_two_on_metrics", check_half_of_optimum),
        ("submodular_greedy", check_submodular_bound),
        ("nested", check_nested),
        ("time_limit", check_time_limit),
    ]
    chosen: list[Callable[[SubsetSolver], None]] = [
        check_kinds,
        check_exact_budget,
        check_protected,
        check_fields,
        check_below_bound,
        check_inputs_pure,
        check_global_rng,
        check_degenerate,
    ]
    if "chaotic" not in solver.tags:
        chosen += [check_batch, check_dtype]
        if "uses_order" not in solver.tags:
            chosen.append(check_permutation)
        if not solver.tags & {"uses_order", "exact"}:
            chosen.append(check_ties)
    if "cost_blind" not in solver.tags:
        chosen.append(check_beats_random)
    chosen += [function for tag, function in tagged if tag in solver.tags]
    if "chaotic" not in solver.tags:
        chosen.append(check_scale)
    for function in chosen:
        yield Check(function.__name__, function)  # type: ignore[arg-type]
