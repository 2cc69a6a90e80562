"""Two correct transport solvers, and bad ones that each carry one bug."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.optimize import linprog

from pruneopt.errors import ProblemError
from pruneopt.parts import TransportSolver, param
from pruneopt.problems.solution import Status, TransportSolution
from pruneopt.problems.transport import TransportProblem


def _log(mass):
    return mass.log()


@dataclass(frozen=True)
class Good(TransportSolver):
    """Log-domain Sinkhorn, `[B,N,M]`, epsilon relative to the cost range, sources updated last."""

    name: ClassVar[str] = "good_sinkhorn"
    warm: ClassVar[bool] = True
    epsilon: float = param(0.04, above=0)
    rounds: int = param(1000, low=1)
    tolerance: float = param(1e-5, low=0)

    def inputs(self, problem):
        return problem.cost, problem.a, problem.b

    def eps(self, problem):
        return self.epsilon * problem.cost_range().double()

    def least(self):
        return 2

    def start_potential(self, start, b):
        if start is None:
            return torch.zeros_like(b)
        if start[0].shape[1] + start[1].shape[1] != self.width:
            raise ProblemError("start has the wrong shape")
        return start[1].double()

    def finish(self, problem, plan):
        return plan

    def status(self, error):
        return Status.CONVERGED if error < self.tolerance else Status.MAX_ROUNDS

    def solve(self, problem: TransportProblem, start=None) -> TransportSolution:
        begin = time.perf_counter()
        cost, a, b = (t.double() for t in self.inputs(problem))
        eps = self.eps(problem)[:, None]
        object.__setattr__(self, "width", cost.shape[1] + cost.shape[2]) if start is not None else None
        try:
            g = self.start_potential(start, b)
        finally:
            vars(self).pop("width", None)
        f, error, count = torch.zeros_like(a), torch.full((len(a),), torch.inf), 0
        scaled = -cost / eps[:, :, None]
        for _ in range(self.rounds):
            g = eps * (_log(b) - (scaled + f[:, :, None] / eps[:, :, None]).logsumexp(1))
            f = eps * (_log(a) - (scaled + g[:, None, :] / eps[:, :, None]).logsumexp(2))
            plan = (scaled + (f[:, :, None] + g[:, None, :]) / eps[:, :, None]).exp()
            count += 1
            error = (plan.sum(1) - b).abs().sum(1)
            if count >= self.least() and bool(((error < self.tolerance) | error.isnan()).all()):
                break
        return TransportSolution(
            time.perf_counter() - begin,
            problem=problem,
            plan=self.finish(problem, plan),
            f=f,
            g=g,
            rounds=torch.full((len(a),), count),
            ended=tuple(self.status(float(e)) for e in error.detach()),
            order="source",
            solver=self.name,
        )


@dataclass(frozen=True)
class GoodLP(TransportSolver):
    """The linear program itself, by HiGHS, with duals."""

    name: ClassVar[str] = "good_lp"
    tags: ClassVar[frozenset[str]] = frozenset({"exact"})

    def solve(self, problem: TransportProblem) -> TransportSolution:
        begin = time.perf_counter()
        plan = torch.zeros(problem.cost.shape, dtype=torch.float64)
        f, g = torch.zeros(problem.a.shape).double(), torch.zeros(problem.b.shape).double()
        ended = []
        here = problem.detached()
        for i, (c, a, b) in enumerate(zip(*here.inputs, strict=True)):
            if not c.isfinite().all():
                plan[i] = torch.nan
                ended.append(Status.NON_FINITE)
                continue
            rows, cols = c.shape
            matrix = np.concatenate(
                [np.kron(np.eye(rows), np.ones((1, cols))), np.kron(np.ones((1, rows)), np.eye(cols))]
            )
            a, b = a.double() / a.double().sum(), b.double() / b.double().sum()
            mass = np.concatenate([a.numpy(), b.numpy()])
            unit = problem.cost_range()[i].item()  # the tolerances of HiGHS are absolute
            result = linprog(
                c.double().flatten().numpy() / unit,
                A_eq=matrix[:-1],
                b_eq=mass[:-1],
                bounds=(0, None),
                method="highs",
            )
            plan[i] = torch.from_numpy(result.x).view(rows, cols)
            dual = torch.from_numpy(np.append(result.eqlin.marginals, 0.0) * unit)
            f[i], g[i] = dual[:rows], dual[rows:]
            ended.append(Status.OPTIMAL)
        return TransportSolution(
            time.perf_counter() - begin,
            problem=problem,
            plan=plan,
            f=f,
            g=g,
            rounds=torch.zeros(len(plan), dtype=torch.int64),
            ended=tuple(ended),
            order="both",
            solver=self.name,
        )


# -- the twelve bugs of the published measurement --------------------------------------------------------


@dataclass(frozen=True)
class TransposedWhenSquare(Good):
    """The plan comes back transposed when there are as many targets as sources."""

    name = "transposed_when_square"

    def finish(self, problem, plan):
        return plan.transpose(1, 2) if plan.shape[1] == plan.shape[2] else plan


@dataclass(frozen=True)
class IgnoresSourceWeights(Good):
    """Uniform sources whatever `a` says."""

    name = "ignores_source_weights"

    def inputs(self, problem):
        real = (problem.a > 0).double()
        return problem.cost, real / real.sum(1, keepdim=True), problem.b


@dataclass(frozen=True)
class TwoRoundsConverged(Good):
    """Two rounds, and status CONVERGED."""

    name: ClassVar[str] = "two_rounds_converged"
    rounds: int = param(2, low=1)

    def status(self, error):
        return Status.CONVERGED


@dataclass(frozen=True)
class Underflow(Good):
    """Scaling of `exp(-cost / eps)` in float32 without subtracting the minimum; NaN becomes zero."""

    name = "underflow"

    def solve(self, problem: TransportProblem, start=None) -> TransportSolution:
        solution = Good.solve(self, problem, start)
        eps = self.eps(problem).float()[:, None, None]
        kernel = (-problem.cost.float() / eps).exp()
        u, v = torch.ones_like(problem.a).float(), torch.ones_like(problem.b).float()
        for _ in range(300):
            v = problem.b.float() / (kernel * u[:, :, None]).sum(1)
            u = problem.a.float() / (kernel * v[:, None, :]).sum(2)
        plan = (u[:, :, None] * kernel * v[:, None, :]).nan_to_num(0, 0, 0)
        bad = ~problem.cost.isfinite().flatten(1).all(1)
        plan[bad] = torch.nan
        vars(solution)["plan"] = plan.double()
        return solution


@dataclass(frozen=True)
class MutatesCost(Good):
    """Subtracts the minimum from the caller's cost."""

    name = "mutates_cost"

    def inputs(self, problem):
        problem.cost.detach().sub_(problem.cost.detach().amin((1, 2), keepdim=True))
        return problem.cost, problem.a, problem.b


@dataclass(frozen=True)
class CostBlind(TransportSolver):
    """The north-west corner rule without the tag that says so."""

    name = "cost_blind_untagged"

    def solve(self, problem: TransportProblem) -> TransportSolution:
        begin = time.perf_counter()
        a, b = problem.a.double(), problem.b.double()
        end_a, end_b = a.cumsum(1), b.cumsum(1)
        high = torch.minimum(end_a[:, :, None], end_b[:, None, :])
        low = torch.maximum((end_a - a)[:, :, None], (end_b - b)[:, None, :])
        bad = ~problem.cost.isfinite().flatten(1).all(1)
        plan = torch.where(bad[:, None, None], torch.nan, (high - low).clamp_min(0))
        return TransportSolution(
            time.perf_counter() - begin,
            problem=problem,
            plan=plan,
            rounds=torch.zeros(len(a), dtype=torch.int64),
            ended=(Status.HEURISTIC,) * len(a),
            order="both",
            solver=self.name,
        )


@dataclass(frozen=True)
class GlobalNoise(Good):
    """Breaks ties with noise from the global generator."""

    name = "global_noise"

    def inputs(self, problem):
        noise = 0.02 * torch.randn_like(problem.cost) * problem.cost_range()[:, None, None]
        return problem.cost + noise, problem.a, problem.b


@dataclass(frozen=True)
class AbsoluteCost(Good):
    """Takes the absolute value of the cost."""

    name = "absolute_cost"

    def inputs(self, problem):
        return problem.cost.abs(), problem.a, problem.b


@dataclass(frozen=True)
class EpsilonTooLarge(Good):
    """An epsilon as large as the range, honestly converged."""

    name: ClassVar[str] = "epsilon_too_large"
    epsilon: float = param(1.0, above=0)


@dataclass(frozen=True)
class HalfPrecisionCost(Good):
    """Rounds the cost to float16 on the way in."""

    name = "half_precision_cost"

    def inputs(self, problem):
        return problem.cost.half(), problem.a, problem.b


@dataclass(frozen=True)
class DropsARow(Good):
    """Loses the last source and renormalises the columns."""

    name = "drops_a_row"

    def finish(self, problem, plan):
        plan = plan.clone()
        if plan.shape[1] > 1:
            plan[:, -1] = 0
        return plan * (problem.b / plan.sum(1).clamp_min(1e-300))[:, None, :]


@dataclass(frozen=True)
class UnscaledEpsilon(Good):
    """Epsilon in absolute units."""

    name = "unscaled_epsilon"

    def eps(self, problem):
        return torch.full((len(problem.cost),), self.epsilon).double()


# -- bugs for the checks that those twelve do not reach -----------------------------------------------------


@dataclass(frozen=True)
class WrongShape(Good):
    """The plan keeps only its first column where it has a dozen."""

    name = "wrong_shape"

    def solve(self, problem: TransportProblem, start=None) -> TransportSolution:
        solution = Good.solve(self, problem, start)
        vars(solution)["plan"] = solution.plan[:, :, :1]
        return solution


@dataclass(frozen=True)
class NoRounds(Good):
    """Reports no rounds."""

    name = "no_rounds"
    warm = False

    def solve(self, problem: TransportProblem) -> TransportSolution:  # type: ignore[override]
        solution = Good.solve(self, problem)
        vars(solution)["rounds"] = None
        return solution


@dataclass(frozen=True)
class WrongSignOfDual(Good):
    """Returns `-g`, so the certificate is worthless while the plan is right."""

    name = "wrong_sign_of_dual"
    warm = False

    def solve(self, problem: TransportProblem) -> TransportSolution:  # type: ignore[override]
        solution = Good.solve(self, problem)
        vars(solution)["g"] = -solution.g
        return solution


@dataclass(frozen=True)
class BatchRange(Good):
    """Scales epsilon by the range of the whole batch."""

    name = "batch_range"

    def eps(self, problem):
        span = problem.cost_range().double()
        return self.epsilon * span.amax().expand(len(span))


@dataclass(frozen=True)
class DividesByMass(Good):
    """Divides by the source mass, so sources without mass give NaN."""

    name = "divides_by_mass"

    def finish(self, problem, plan):
        return plan / problem.a[:, :, None] * problem.a[:, :, None]


@dataclass(frozen=True)
class HalfPlan(Good):
    """Hands the plan back in half precision."""

    name = "half_plan"

    def finish(self, problem, plan):
        return plan.bfloat16() if problem.cost.dtype == torch.float32 else plan


@dataclass(frozen=True)
class SaysConverged(Good):
    """Claims convergence whatever the marginals say, after enough rounds to get there by default."""

    name = "says_converged"

    def status(self, error):
        return Status.CONVERGED


@dataclass(frozen=True)
class HidesNaN(Good):
    """Replaces NaN by zero in the plan and claims convergence."""

    name = "hides_nan"

    def inputs(self, problem):
        return problem.cost.nan_to_num(0.0), problem.a, problem.b

    def eps(self, problem):
        return self.epsilon * problem.cost_range().double().nan_to_num(1.0)


@dataclass(frozen=True)
class EpsilonUpsideDown(Good):
    """Treats epsilon as its inverse, tuned so that the default is right."""

    name = "epsilon_upside_down"

    def eps(self, problem):
        return 0.04**2 / self.epsilon * problem.cost_range().double()


@dataclass(frozen=True)
class AnyWarmStart(Good):
    """Takes a warm start of any shape and pads it."""

    name = "any_warm_start"

    def start_potential(self, start, b):
        return torch.zeros_like(b)


@dataclass(frozen=True)
class ClampsCost(Good):
    """Clamps the cost at one, which only costs beyond that range notice."""

    name = "clamps_cost"

    def inputs(self, problem):
        return problem.cost.clamp(max=1.0), problem.a, problem.b


@dataclass(frozen=True)
class WrongSignOfGradient(Good):
    """Differentiates backwards."""

    name = "wrong_sign_of_gradient"

    def finish(self, problem, plan):
        return 2 * plan.detach() - plan


@dataclass(frozen=True)
class UnscaledPot(TransportSolver):
    """Hands the user's cost to POT as it is, whose pivot tolerance is absolute."""

    name: ClassVar[str] = "unscaled_pot"
    tags: ClassVar[frozenset[str]] = frozenset({"exact"})

    def ended(self):
        return Status.OPTIMAL

    def solve(self, problem: TransportProblem) -> TransportSolution:
        import ot

        begin = time.perf_counter()
        answers = []
        for c, a, b in zip(*problem.detached().inputs, strict=True):
            if not c.isfinite().all():
                answers.append((c * torch.nan, a * torch.nan, b * torch.nan))
                continue
            a, b = (x.double() / x.double().sum() for x in (a, b))
            plan, log = ot.lp.emd(a.numpy(), b.numpy(), c.double().numpy(), log=True, check_marginals=False)
            answers.append(tuple(torch.from_numpy(x) for x in (plan, log["u"], log["v"])))
        plan, f, g = (torch.stack(x).double() for x in zip(*answers, strict=True))
        return TransportSolution(
            time.perf_counter() - begin,
            problem=problem,
            plan=plan,
            f=f,
            g=g,
            rounds=torch.zeros(len(plan), dtype=torch.int64),
            ended=(self.ended(),) * len(plan),
            order="both",
            solver=self.name,
        )


@dataclass(frozen=True)
class ClaimsOptimal(Good):
    """Calls a good entropic plan an optimum."""

    name: ClassVar[str] = "claims_optimal"
    tags: ClassVar[frozenset[str]] = frozenset({"exact"})
    accuracy: ClassVar[float] = 0.1

    def status(self, error):
        return Status.OPTIMAL if error < self.tolerance else Status.MAX_ROUNDS
