"""Bugs in transport certificates and gradients, each with the guard that must catch it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import numpy as np
import torch

from pruneopt.parts.readouts import _common as readout_common
from pruneopt.parts.solvers import _common as common
from pruneopt.parts.solvers import _eased as eased
from pruneopt.parts.solvers import _scaling as scaling
from pruneopt.parts.solvers import _unrolled as unrolled
from pruneopt.parts.solvers import assignment
from pruneopt.parts.solvers import exact as exact_transport
from pruneopt.problems import certificate, gradients, solution, transport
from pruneopt.problems.solution import Certificate, TransportSolution

Bug = Callable[[], AbstractContextManager[Any]]
patch = mock.patch.object


def unscaled_libraries() -> AbstractContextManager[Any]:
    """Costs reach POT and HiGHS in the user's unit, and answers are taken as they are."""
    real = common.Atoms

    class Raw(real):
        def __init__(self, cost: Any, a: Any, b: Any, index: int, unit: float) -> None:
            super().__init__(cost * unit, a, b, index, unit)

    def as_is(solve: Any, atoms: Any, *, first: Any) -> Any:
        return common.replace(first, f=first.f / atoms.unit, g=first.g / atoms.unit)

    return _both(patch(common, "Atoms", Raw), patch(common, "_finer", as_is))


def one_scale_for_all() -> AbstractContextManager[Any]:
    """No second look where one cost dwarfs the others."""
    return patch(common, "_finer", lambda solve, atoms, *, first: first)


def cut_costs_are_paid() -> AbstractContextManager[Any]:
    """The cut is put so low that the optimum pays cut pairs, and nobody looks."""
    return _both(patch(common, "CLIP", 1e-1), patch(common, "_dearest", _blind(common._dearest)))


def _blind(real: Callable[..., float]) -> Callable[..., float]:
    return lambda atoms, answer: min(real(atoms, answer), 0.99)


def optimal_unchecked() -> AbstractContextManager[Any]:
    """What a solver claims is its status."""
    return patch(Certificate, "proved", property(lambda self: torch.ones_like(self.gap, dtype=torch.bool)))


def marginals_unchecked() -> AbstractContextManager[Any]:
    """A gap is enough for a proof."""
    return patch(Certificate, "proved", property(lambda self: self.gap <= self.tolerance))


def tolerance_of_the_range() -> AbstractContextManager[Any]:
    """The gap is judged by the cost range, which a big-M inflates."""
    real = solution.certify

    def loose(problem: Any, plan: Any, *, g: Any) -> Certificate:
        found = real(problem, plan, g=g)
        return solution.replace(found, tolerance=1e-9 * problem.cost_range().double())

    return patch(solution, "certify", loose)


def sentinel() -> AbstractContextManager[Any]:
    """An atom without mass has the potential -1e30."""
    real = certificate.c_transform

    def numbered(cost: Any, g: Any, **how: Any) -> Any:
        return real(cost, torch.where(g.isfinite(), g, torch.full_like(g, -1e30)), **how)

    return _both(patch(certificate, "c_transform", numbered), patch(readout_common, "c_transform", numbered))


def residue_is_spread() -> AbstractContextManager[Any]:
    """Rounding errors of the marginals are put somewhere, at the price of what lies there."""
    return patch(certificate, "_left", lambda mass, sent: (mass - sent).clamp_min(0))


def offset_stays() -> AbstractContextManager[Any]:
    """The certificate works in the user's zero."""
    real = solution.certify

    def shifted(problem: Any, plan: Any, *, g: Any) -> Certificate:
        found = real(problem, plan, g=g)
        return solution.replace(found, gap=found.value - found.lower_bound)

    return patch(solution, "certify", shifted)


def anything_may_be_masked() -> AbstractContextManager[Any]:
    return patch(transport, "_some_real", lambda mask, side: None)


def empty_reaches_the_library() -> AbstractContextManager[Any]:
    """Nobody looks whether there is anything to move."""
    real, none = common._atoms, np.zeros(0)

    def any_atoms(cost: Any, a: Any, *, b: Any, index: int) -> Any:
        empty = common.Atoms(np.zeros((0, 0)), none, none, index, 1.0)
        return real(cost, a, b=b, index=index) or (empty, 0.0)

    return patch(common, "_atoms", any_atoms)


def any_range() -> AbstractContextManager[Any]:
    return patch(transport.TransportProblem, "cost_range", lambda self: torch.ones(len(self.cost)))


def roughly_uniform() -> AbstractContextManager[Any]:
    """Uniform to single precision."""

    def rough(a: np.ndarray, b: np.ndarray) -> bool:
        n = len(a)
        return n == len(b) and bool((np.abs(a * n - 1) < 1e-5).all() and (np.abs(b * n - 1) < 1e-5).all())

    return _both(patch(assignment, "is_assignment", rough), patch(exact_transport, "is_assignment", rough))


def absolute_stop() -> AbstractContextManager[Any]:
    """Potentials are done when they move by less than 1e-14."""

    def duals(cost: np.ndarray, match: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slack, g = cost - cost[np.arange(len(cost)), match][:, None], np.zeros(len(cost))
        for _ in range(len(cost)):
            new = np.minimum(g, (slack + g[match][:, None]).min(0))
            if (g - new).max() <= 1e-14:
                break
            g = new
        return (cost - g).min(1), g

    return patch(assignment, "_duals", duals)


def kernel_beyond_float32() -> AbstractContextManager[Any]:
    """The limit of float64 for every dtype."""
    return patch(scaling, "plain_limit", lambda dtype: 600.0)


def massless_sign() -> AbstractContextManager[Any]:
    """An atom without mass is priced with the wrong sign."""
    real = readout_common.c_transform
    return patch(readout_common, "c_transform", lambda *args, **how: -real(*args, **how))


def massless_hosts() -> AbstractContextManager[Any]:
    """Host solvers leave 0 as the potential of an atom without mass."""
    real = common._put_back

    def put(answer: Any, cost: Any, **places: Any) -> None:
        real(answer, cost, **places)
        places["f"][~places["seen"][0]] = 0

    return patch(common, "_put_back", put)


def wrong_envelope_sign() -> AbstractContextManager[Any]:
    """Potentials enter the gradient as costs do not."""
    real = gradients._centred
    return patch(gradients, "_centred", lambda potential, mass: -real(potential, mass))


def uncentred() -> AbstractContextManager[Any]:
    """A marginal's gradient that scales the mass."""
    return patch(gradients, "_centred", lambda potential, mass: potential)


def silent_zero() -> AbstractContextManager[Any]:
    """Results that autograd did not follow come back detached."""
    return patch(solution, "refuse_gradient", lambda tensor, inputs, words: tensor)


def envelope_without_proof() -> AbstractContextManager[Any]:
    """The theorem is used for whatever plan there is."""
    real = solution.envelope
    return patch(
        solution,
        "envelope",
        lambda *given, proved, **how: real(*given, proved=torch.ones_like(proved), **how),
    )


def constant_epsilon() -> AbstractContextManager[Any]:
    """The cost range behind a relative epsilon is taken for a constant."""
    real = unrolled.repeat

    def cut(problem: Any, start: Any, *, stages: Any) -> Any:
        held = [unrolled.Stage(s.eps.detach(), s.rounds, s.taken) for s in stages]
        return real(problem, start, stages=held)

    return patch(unrolled, "repeat", cut)


def last_round_only() -> AbstractContextManager[Any]:
    """One-step differentiation: the rounds before the last are constants."""
    real = unrolled._round

    def cut(cost: Any, h: Any, weight: Any, b: Any, eps: Any) -> Any:
        return real(cost, h.detach(), weight.detach(), b, eps)

    return patch(unrolled, "_round", cut)


def everybody_takes_all_rounds() -> AbstractContextManager[Any]:
    """A problem that stopped is carried on with the slowest of its batch."""
    real = unrolled.repeat

    def most(problem: Any, start: Any, *, stages: Any) -> Any:
        full = [unrolled.Stage(s.eps, s.rounds, torch.full_like(s.taken, s.rounds)) for s in stages]
        return real(problem, start, stages=full)

    return patch(unrolled, "repeat", most)


def traced_by_the_reader() -> AbstractContextManager[Any]:
    """Whether the certificate has gradients depends on where it is first read."""
    real = TransportSolution.certificate.func

    def read(self: TransportSolution) -> Certificate:
        mode = torch.is_grad_enabled()
        with patch(torch, "set_grad_enabled", lambda _: torch.autograd.grad_mode.set_grad_enabled(mode)):
            return real(self)

    prop = solution.cached_property(read)
    prop.__set_name__(TransportSolution, "certificate")
    return patch(TransportSolution, "certificate", prop)


def absent_rows_count() -> AbstractContextManager[Any]:
    """The first round is stabilised by rows that carry no mass, so that what matters underflows."""
    real = scaling.Scaled.opening.__func__  # type: ignore[attr-defined]

    def blind(cls: Any, problem: Any, eps: Any) -> Any:
        everywhere = transport.TransportProblem(problem.cost, problem.a.clamp_min(1e-30), problem.b)
        return real(cls, everywhere, eps)

    return patch(scaling.Scaled, "opening", classmethod(blind))


def reduction_is_forgotten() -> AbstractContextManager[Any]:
    """Potentials are those of the reduced costs."""
    real = eased._potentials
    last: list[Any] = []

    def kept(atoms: Any) -> Any:
        last[:] = real(atoms)
        return tuple(last)

    def bare(atoms: Any, solve_one: Any) -> Any:
        answer = eased.eased(atoms, solve_one)
        return common.replace(answer, g=answer.g - last[1]) if last else answer

    return _both(patch(eased, "_potentials", kept), patch(exact_transport, "eased", bare))


def potentials_are_rounded() -> AbstractContextManager[Any]:
    """Potentials lose digits before they meet the cost."""
    real = scaling.gibbs

    def coarse(problem: Any, f: Any, *, g: Any, eps: Any) -> Any:
        return real(problem, f.bfloat16().double(), g=g.bfloat16().double(), eps=eps)

    return patch(scaling, "gibbs", coarse)


def nan_is_a_success() -> AbstractContextManager[Any]:
    """NaN potentials become 0 before anyone looks."""
    real = TransportSolution.__post_init__

    def clean(self: TransportSolution) -> None:
        if self.g is not None:
            object.__setattr__(self, "g", self.g.nan_to_num(0.0, math.inf, -math.inf))
        real(self)

    return patch(TransportSolution, "__post_init__", clean)


def _both(*patches: Any) -> AbstractContextManager[Any]:
    from contextlib import ExitStack

    stack = ExitStack()
    for one in patches:
        stack.enter_context(one)
    return stack


PLANTED: dict[str, tuple[str, Bug]] = {
    bug.__name__: (guard, bug)
    for guard, bug in (
        ("scales", unscaled_libraries),
        ("big_m", one_scale_for_all),
        ("big_m", cut_costs_are_paid),
        ("big_m", residue_is_spread),
        ("claims", optimal_unchecked),
        ("claims", marginals_unchecked),
        ("claims", tolerance_of_the_range),
        ("claims", nan_is_a_success),
        ("bounds_survive_shifts", sentinel),
        ("offset_does_not_blur_the_gap", offset_stays),
        ("masked_problems", anything_may_be_masked),
        ("empty_problems_stay_away_from_libraries", empty_reaches_the_library),
        ("overflow_is_refused", any_range),
        ("uniform_is_exact", roughly_uniform),
        ("assignment_duals_are_relative", absolute_stop),
        ("one_kernel_lasts_to_its_limit", kernel_beyond_float32),
        ("first_round_is_that_of_the_log_domain", absent_rows_count),
        ("rounds_in_float32_give_the_plan_of_float64", potentials_are_rounded),
        ("eased_costs_have_the_same_optimum", reduction_is_forgotten),
        ("atoms_without_mass", massless_sign),
        ("atoms_without_mass", massless_hosts),
        ("value_of_optima", wrong_envelope_sign),
        ("value_of_optima", uncentred),
        ("value_of_sinkhorn", constant_epsilon),
        ("plan_of_sinkhorn", last_round_only),
        ("same_answer_with_gradients", everybody_takes_all_rounds),
        ("refusals", silent_zero),
        ("refusals", traced_by_the_reader),
        ("unproved_value_refuses", envelope_without_proof),
    )
}
