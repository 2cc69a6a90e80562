"""Checks of readouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pruneopt.errors import PruneoptError
from pruneopt.parts import Readout, TransportSolver
from pruneopt.problems.transport import TransportProblem
from pruneopt.testing import cases
from pruneopt.testing.calls import agree
from pruneopt.testing.core import Check, CheckFailure, changed, checks_that, require
from pruneopt.testing.part_checks import part_checks
from pruneopt.testing.purity import require_own_generator, require_pure, tensors_in


def partners() -> list[TransportSolver]:
    """Solvers that a readout is combined with: both update orders, one side only, and exact."""
    from pruneopt.parts.solvers.emd import Emd
    from pruneopt.parts.solvers.one_sided import OneSided
    from pruneopt.parts.solvers.sinkhorn import Sinkhorn

    few = Sinkhorn(rounds=20)
    return [few, replace(few, order="source_then_target"), OneSided(), Emd()]


def _reads(readout: Readout, problem: TransportProblem) -> Iterator[tuple[TransportSolver, Tensor]]:
    """The readout after every solver that it accepts."""
    count = 0
    for solver in partners():
        solution = solver.solve(problem)
        try:
            out = readout(problem, solution)
        except PruneoptError:
            continue
        count += 1
        yield solver, out
    require(count, "no solver is accepted; a readout must work after sinkhorn, one_sided or emd")


def check_shape_and_dtype(readout: Readout) -> None:
    """One finite importance per source token, float32 or better."""
    for dtype in (torch.float32, torch.float64):
        problem = cases.transport(dtype=dtype)
        for solver, out in _reads(readout, problem):
            require(out.shape == (2, 12), f"returned {list(out.shape)} after {solver.name}, not [B,N]")
            good = out.is_floating_point() and out.dtype.itemsize >= 4
            require(good, f"returned {out.dtype} after {solver.name}")
            require(out.isfinite().all(), f"not finite after {solver.name}")


def check_cost_blindness_declared(readout: Readout) -> None:
    """`ignores_cost` tells the truth: another cost changes the result, or it says that it cannot."""
    problem = cases.transport(seed=1)
    other = replace(problem, cost=cases.transport(seed=2).cost)
    for solver, out in _reads(readout, problem):
        difference = agree(readout(other, solver.solve(other)), out)
        says = readout.ignores_cost(solver)
        if says is None:
            require(
                difference > 1e-3,
                f"another cost changes nothing after {solver.name}; `ignores_cost` must say so",
            )
        else:
            require(
                difference < 1e-3,
                f"`ignores_cost` says that the cost is not read after {solver.name}, but it is",
            )


def check_cheaper_token_gains(readout: Readout) -> None:
    """Making a source cheaper for every target never lowers its importance, and dearer never raises it."""
    problem = cases.transport(seed=3, uniform=True)
    cost = problem.cost.clone()
    cost[:, 4], cost[:, 7] = cost[:, 4] - 0.5, cost[:, 7] + 0.5
    other = TransportProblem.build(cost)
    for solver in partners():
        if hasattr(solver, "epsilon_scale"):  # else the range, hence epsilon, would change as well
            more = {"rounds": 500} if hasattr(solver, "rounds") else {}
            solver = changed(solver, epsilon_scale="absolute", **more)
        try:
            before = readout(problem, solver.solve(problem)).double()
            after = readout(other, solver.solve(other)).double()
        except PruneoptError:
            continue
        tolerance = 1e-4 * float(torch.maximum(before.abs().amax(), after.abs().amax()))
        right = (after[:, 4] >= before[:, 4] - tolerance) & (after[:, 7] <= before[:, 7] + tolerance)
        require(
            right.all(),
            f"after {solver.name} a source falls in importance when it gets cheaper for every target, or "
            "rises when it gets dearer; the sign is reversed",
        )


def check_permutation(readout: Readout) -> None:
    """Permuting tokens (sources and targets alike) permutes the importance."""
    problem = cases.transport(seed=4)
    p = cases.shuffle(12, 0)
    moved = TransportProblem.build(problem.cost[:, p][:, :, p], a=problem.a[:, p], b=problem.b[:, p])
    for solver, out in _reads(readout, moved):
        before = readout(problem, solver.solve(problem))
        require(
            agree(out, before[:, p]) < 1e-3,
            f"permuting the tokens changes the importance after {solver.name}",
        )


def check_batch(readout: Readout) -> None:
    """A problem gives in a ragged batch what it gives alone."""
    ragged, singles = cases.ragged(cases.transport(seed=5), (12, 8))
    for i, single in enumerate(singles):
        for solver, out in _reads(readout, ragged):
            alone = readout(single, solver.solve(single))
            same = agree(out[i : i + 1, : alone.shape[1]], alone) < 1e-3
            require(same, f"a sample of a ragged batch differs from itself alone after {solver.name}")


def check_inputs_pure(readout: Readout) -> None:
    """Problem and solution are unchanged and two calls agree."""
    problem = cases.transport()
    for solver, _ in _reads(readout, problem):
        solution = solver.solve(problem)
        require_pure(partial(readout, problem, solution), {**tensors_in(solution), "the cost": problem.cost})


def check_global_rng(readout: Readout) -> None:
    """The global random generators are neither used nor moved."""
    problem = cases.transport()
    require_own_generator(lambda: torch.stack([out for _, out in _reads(readout, problem)]))


def check_refusal_is_named(readout: Readout) -> None:
    """A solution that lacks what is read (no potentials) raises a PruneoptError, nothing else."""
    problem = cases.transport()
    solution = replace(partners()[0].solve(problem), f=None, g=None, stats={})
    try:
        readout(problem, solution)
    except PruneoptError:
        return
    except Exception as error:
        raise CheckFailure(
            f"raises {type(error).__name__} for a solution without potentials; raise ProblemError"
        ) from error


def readout_checks(readout: Readout) -> Iterator[Check]:
    """Checks of a readout."""
    yield from part_checks(readout)
    applies = {
        check_shape_and_dtype: True,
        check_cost_blindness_declared: True,
        check_permutation: True,
        check_batch: True,
        check_inputs_pure: True,
        check_global_rng: True,
        check_refusal_is_named: True,
        check_cheaper_token_gains: "reads_shape" not in readout.tags,
    }
    yield from checks_that(applies)
