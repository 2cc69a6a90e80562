"""Checks of what gap and subset tables say; `test_certificates` runs them, and on planted bugs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from subset_cases import random_problem, slow_best, slow_value, solver

from pruneopt.lab.clock import Timing
from pruneopt.lab.gap import run as select_gap
from pruneopt.lab.gap.run import GREEDY, RANDOM_SEEDS
from pruneopt.lab.gap.table import _cells, summary
from pruneopt.lab.subset import run as subset
from pruneopt.lab.subset.table import tables_of
from pruneopt.parts.solvers.brute_force import BruteForce
from pruneopt.problems.solution import Status, SubsetSolution
from pruneopt.problems.subset import SubsetProblem
from pruneopt.testing.cases import make_signals

DIVPRUNE = GREEDY[0]
TODRE = next(greedy for greedy in GREEDY if greedy.method == "todre/diversity")


def row(**changes: Any) -> dict[str, Any]:
    base = {
        "label": "x", "method": "divprune", "problem": "p", "kind": "max_min", "tokens": 4, "keep": 2,
        "exact": True, "status": ["OPTIMAL", "OPTIMAL"], "value": [1.0, 3.0], "best": [1.0, 4.0],
        "random": [0.5, 1.0],
        "known": [1.0, 4.0], "bound": [1.0, 5.0], "seconds": 0.25,
    }  # fmt: skip
    return base | changes


def texts(**changes: Any) -> list[str]:
    return _cells(row(**changes))


def check_gap_tables_show_contradictions() -> None:
    """A value above the best is a negative gap, counted, named in the table and never an optimum found."""
    found = summary(row(value=[1.0, 5.0]))
    assert (found["mean"], found["worst"], found["relative_worst"]) == (-0.5, -1.0, -0.25)
    assert (found["contradicted"], found["optimal"]) == (1, 1)
    assert texts(value=[1.0, 5.0])[3:8] == [
        "proved in 2 of 2; ERROR: below the value in 1", "1 of 2", "-12.50%", "-25.00%", "117%"
    ]  # fmt: skip
    assert texts()[8:] == ["10.00%", "0.25"]
    nats = texts(kind="log_det", value=[1.0, 4.1], exact=False)
    assert nats[3:7] == ["upper bound; ERROR: below the value in 1", "-", "-0.050 nats", "-0.100 nats"]
    tiny = summary(row(value=[1.0 + 1e-9, 4.0 - 1e-9]))
    assert (tiny["contradicted"], tiny["optimal"]) == (0, 2)
    assert texts(value=[1.0 + 1e-9, 4.0])[5:7] == ["0.00%", "0.00%"]
    small = summary(row(value=[1e-12, 2e-12], best=[2e-12, 2e-12]))
    assert (small["optimal"], small["relative_worst"]) == (1, 0.5)
    assert summary(row(value=[1.0, 0.0], best=[0.0, 0.0]))["relative_worst"] == -math.inf
    broken = texts(value=[1.0, None])
    assert broken[4:7] == ["1 of 2", "infinite", "infinite"]


def check_gap_rows_hold_value_and_best() -> None:
    """Value is the greedy one, best the enumerated one, random the mean over the seeds, each by loops."""
    signals = make_signals(frozenset({"features"}), batch=4, tokens=9, width=4)
    found = select_gap._gaps(DIVPRUNE, signals, keep=4, exact=BruteForce())
    x = torch.nn.functional.normalize(signals["features"].double(), dim=2)
    problem = SubsetProblem.build("max_min", 4, pairwise=1 - x @ x.transpose(1, 2))
    greedy = solver("farthest_point").solve(problem).keep
    below = 0
    for b in range(4):
        chosen = tuple(greedy[b].nonzero()[:, 0].tolist())
        best = slow_best(problem, b)[0]
        assert math.isclose(found["value"][b], slow_value(problem, b, chosen), rel_tol=1e-5)
        assert math.isclose(found["best"][b], best, rel_tol=1e-5)
        below += found["value"][b] < 0.99 * best
        drawn = []
        for seed in range(RANDOM_SEEDS):
            score = torch.rand((4, 9), generator=torch.Generator().manual_seed(seed))
            drawn.append(slow_value(problem, b, tuple(score[b].topk(4).indices.sort().values.tolist())))
        assert len(set(drawn)) > 1
        assert math.isclose(found["random"][b], sum(drawn) / RANDOM_SEEDS, rel_tol=1e-5)
    assert below > 0 and found["status"] == ["OPTIMAL"] * 4 and found["exact"]
    bounded = select_gap._gaps(DIVPRUNE, signals, keep=4, exact=None)
    assert all(high >= best for high, best in zip(bounded["best"], found["best"], strict=True))
    assert bounded["status"] == [] and not bounded["exact"]
    known = zip(found["known"], found["best"], found["bound"], strict=True)
    assert all(math.isclose(k, best, rel_tol=1e-9) and best <= bound for k, best, bound in known)
    assert bounded["bound"] == bounded["best"]


class Liar(BruteForce):
    """Says OPTIMAL of the worst choice, with a bound to match."""

    name = "liar"

    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        turned = BruteForce().solve(replace(problem, pairwise=-problem.pairwise))
        found = SubsetSolution(
            0.0, problem=problem, keep=turned.keep, ended=(Status.OPTIMAL,) * len(turned.keep), solver="liar"
        )
        return replace(found, proved_bound=found.value)


def check_a_false_proof_is_shown() -> None:
    """An "optimum" below the greedy value stays what it is, and the table calls it an error."""
    signals = make_signals(frozenset({"features"}), batch=3, tokens=8, width=4)
    found = select_gap._gaps(DIVPRUNE, signals, keep=3, exact=Liar())
    assert all(best < value for best, value in zip(found["best"], found["value"], strict=True))
    assert "ERROR: below the value in 3" in _cells(found)[3]


def check_random_sets_hold_what_is_protected() -> None:
    """Random sets contain protected tokens, are of the right size and differ by seed."""
    problem = random_problem("max_sum", 1, tokens=9, k=3, protect=True)
    values = []
    for seed in range(4):
        score = torch.rand(problem.shape, generator=torch.Generator().manual_seed(seed))
        score[:, 3] += 1
        sets = [tuple(row.topk(3).indices.sort().values.tolist()) for row in score]
        expected = torch.tensor([slow_value(problem, b, s) for b, s in enumerate(sets)], dtype=torch.float64)
        torch.testing.assert_close(select_gap._random_value(problem, seed), expected)
        values.append(expected)
    assert torch.stack(values).std(0).min() > 0


def check_subset_records_hold_value_and_bound() -> None:
    """A record of the subset bench: value and bound by loops, every status, the median beside the rest."""
    problem = random_problem("max_sum", 2, tokens=8, k=3)
    mixed = replace(
        solver("greedy_max_sum").solve(problem),
        ended=(Status.OPTIMAL, Status.TIME_LIMIT),
        proved_bound=torch.tensor([1e3, 2e3], dtype=torch.float64),
    )
    time = Timing(cold=4.0, runs=(1.0, 2.0, 9.0), peak_mib=5.0)
    with mock.patch.object(subset, "timed", lambda *_, **__: (mixed, time)):
        found = subset._measure(solver("greedy_max_sum"), problem, repeats=1)
    chosen = [tuple(row.nonzero()[:, 0].tolist()) for row in mixed.keep]
    values = [slow_value(problem, b, c) for b, c in enumerate(chosen)]
    assert all(math.isclose(a, b) for a, b in zip(found["value"], values, strict=True))
    assert found["bound"] == [1e3, 2e3]
    assert found["status"] == "TIME_LIMIT, UNPROVED" and found["proved"] is False
    assert found["seconds_cold"] == 4.0 and found["seconds_p50"] == 2.0 and found["seconds_p95"] > 8.0


def check_subset_tables_compare_like_with_like() -> None:
    """Losses against proved values and against bounds, medians per sample, batches of their own."""

    def record(name: str, value: list[float], bound: list[float] | None, **more: Any) -> dict[str, Any]:
        base = {
            "kind": "max_sum", "tokens": 16, "batch": len(value), "k": 4, "solver": name, "proved": False,
            "status": "HEURISTIC", "value": value, "bound": bound, "seconds_p50": 0.5, "seconds_p95": 7.0,
            "seconds_cold": 9.0,
        }  # fmt: skip
        return base | more

    def cells(*rows: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
        lines = [list(line) for line in tables_of(list(rows)).rows]
        return {(line[3], line[4]): line for line in lines}

    exact = record("exact", [4.0, 8.0], [4.0, 8.0], proved=True, status="OPTIMAL", seconds_p50=0.004)
    greedy = record("greedy", [3.0, 8.0], [5.0, 10.0], seconds_p50=0.002)
    alone = record("greedy", [1.0], None, seconds_p50=0.003)
    found = cells(exact, greedy, alone)
    assert found["greedy", "1"][5:8] == ["12.5%", "30%", "HEURISTIC"]
    assert found["exact", "2"][5:8] == ["0%", "0%", "OPTIMAL"]
    assert found["greedy", "3"][5:7] == ["no proof", "none"]
    above = cells(exact, record("wrong", [4.4, 8.0], [4.0, 8.0], seconds_p50=0.002))
    assert above["wrong", "1"][5:7] == ["-5% (ERROR: -10%)"] * 2
    nats = cells(*(r | {"kind": "log_det"} for r in (exact, record("wrong", [4.5, 7.0], [4.0, 8.0]))))
    assert nats["wrong", "250"][5:7] == ["0.25 nats (ERROR: -0.5 nats)"] * 2
