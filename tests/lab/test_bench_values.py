"""What benchmarks report, on made-up clocks: quantiles, warm-up, units, seeds, and names of records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from pruneopt.lab import clock as stats
from pruneopt.lab import grid
from pruneopt.lab.clock import Timing, interleaved, processor_seconds, timed
from pruneopt.lab.gap import run as select_gap
from pruneopt.lab.prefill import run as prefill
from pruneopt.lab.selection import run as select
from pruneopt.lab.selection.signals import select_signals
from pruneopt.lab.solvers import cells
from pruneopt.lab.solvers import run as solvers
from pruneopt.lab.solvers.rows import exponents
from pruneopt.lab.subset import run as subset
from pruneopt.models import timing
from pruneopt.models.timing import Calls, ForwardTimes
from pruneopt.problems.kinds import find_kind
from pruneopt.problems.subset import SubsetProblem
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec

QUIET = Console(quiet=True)
EVERY = cells.entries()


class FakeClock:
    """Time that passes only where a job says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any):
        self.now = 0.0
        tell = SimpleNamespace(perf_counter=lambda: self.now, process_time=lambda: 1000 * self.now)
        monkeypatch.setattr(module, "time", tell)

    def job(self, *seconds: float) -> Callable[[], int]:
        """A job whose calls take the given seconds in turn and return their number."""
        left = iter(enumerate(seconds))

        def run() -> int:
            number, took = next(left)
            self.now += took
            return number

        return run


# --- timing -------------------------------------------------------------------------------------------------


def test_quantiles_by_hand() -> None:
    time = Timing(100.0, tuple(float(i) for i in range(20, 0, -1)), 0.0)
    assert time.p50 == pytest.approx(10.5)
    assert time.p95 == pytest.approx(19.05)


def test_the_cold_run_is_not_a_warm_one(monkeypatch: pytest.MonkeyPatch) -> None:
    job = FakeClock(monkeypatch, stats).job(9, 1, 2, 3, 99)
    result, time = timed(job, repeats=3, budget=100)
    assert (time.cold, time.runs, result) == (9, (1, 2, 3), 3)


def test_a_slow_job_is_not_run_again_and_a_budget_ends_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, stats)
    assert timed(clock.job(9), repeats=3, budget=8)[1].runs == (9,)
    assert timed(clock.job(1, 2, 2, 2, 2, 2), repeats=5, budget=6.5)[1].runs == (2, 2, 2)
    assert timed(clock.job(1, 7, 7), repeats=5, budget=6)[1].runs == (7,)


def test_jobs_in_turns_are_warmed_up_and_read_at_their_best(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, stats)
    assert interleaved(clock.job(0.125, 5, 3, 4), clock.job(0.25, 6, 9, 7), repeats=3) == (3, 6)


def test_processor_time_is_a_median(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, stats)  # its processor runs 1000 times as fast as its wall
    assert processor_seconds(clock.job(0.5, 0.001, 0.002), repeats=3) == pytest.approx(1000 * 0.002)


def test_timing_counts_runs_and_memory() -> None:
    result, time = timed(lambda: torch.ones(8 * 2**20).sum(), repeats=3, budget=5.0)
    assert float(result) == 8 * 2**20 and len(time.runs) == 3 and time.p95 >= time.p50 > 0
    calls = []
    interleaved(lambda: calls.append(1), lambda: calls.append(2), repeats=3)
    assert calls == [1, 2] * 4


# --- prefill ------------------------------------------------------------------------------------------------


class FakeModel:
    """Takes `first` seconds for a prompt and `step` for every token after it."""

    device = torch.device("cpu")

    def __init__(self, clock: FakeClock, first: float, step: float):
        self.clock, self.first, self.step, self.seen = clock, first, step, []

    def __call__(self, input_ids: torch.Tensor, past_key_values: Any = None, **_: Any) -> Any:
        self.clock.now += self.first if past_key_values is None else self.step
        self.seen.append((tuple(input_ids.shape), past_key_values))
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 7), past_key_values="cache")


@contextmanager
def no_modules(*_: Any) -> Iterator[ForwardTimes]:
    yield ForwardTimes(Calls([0.5], [0.25]), Calls([2.0, 99.0], [1.0, 99.0]))


def test_decode_is_per_token_and_prefill_is_the_prompt_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel(FakeClock(monkeypatch, stats), 4.0, 0.5)
    monkeypatch.setattr(prefill, "timed", no_modules)
    wall, processor, _ = prefill._pass(model, {"input_ids": torch.zeros(2, 9, dtype=torch.long)}, decode=8)
    assert wall == {"prefill": 4.0, "encoder": 0.5, "language_model": 2.0, "decode_token": 0.5}
    assert processor == {"encoder": 0.25, "language_model": 1.0}
    assert model.seen == [((2, 9), None)] + 8 * [((2, 1), "cache")]
    assert "decode_token" not in prefill._pass(model, {"input_ids": torch.zeros(1, 3)})[0]


def test_modules_are_timed_by_wall_and_by_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, timing)

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: float) -> float:
            clock.now += x
            return x

    text, tower = Layer(), Layer()
    adapter = SimpleNamespace(text=text, base=SimpleNamespace(visual=tower))
    monkeypatch.setattr(timing, "adapter_for", lambda _: adapter)
    with timing.timed(text) as times:
        tower(1.0), text(0.25), text(2.0), text(4.0)
    text(9.0)
    assert (times.encoder.wall, times.encoder.processor) == ([1.0], [1000.0])
    assert (times.text.wall, times.text.processor) == ([0.25, 2.0, 4.0], [250.0, 2000.0, 4000.0])
    assert (times.prefill, times.decode) == (0.25, 3.0)


DENSE = [90.0, 80.0, 6.0, 10.0, 8.0]  # two turns of warm-up, then three
PRUNED = [70.0, 60.0, 4.0, 2.0, 8.0]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A row of the prefill table from seconds that are made up; `turns` lists who ran when."""
    turns: list[str] = []
    times = {"dense": iter(DENSE), "pruned": iter(PRUNED)}

    def passes(*_: Any, **more: Any) -> tuple[dict[str, float], dict[str, float], Any]:
        kind = "dense" if more["spec"] is None else "pruned"
        turns.append(kind)
        seconds = next(times[kind])
        wall = {"prefill": 2 * seconds, "language_model": seconds, "decode_token": seconds / 8}
        return wall, {"language_model": 10 * seconds}, SimpleNamespace(report=report)

    report = SimpleNamespace(
        flops_share=0.25, visual_tokens=[64, 64], cuts=[(1, (48, 48)), (2, (32, 32))], batch=2,
        cache_dense=100, cache_found=[10, 20],
    )  # fmt: skip

    @contextmanager
    def prune(*_: Any, **__: Any) -> Iterator[Any]:
        yield SimpleNamespace(report=report)

    monkeypatch.setattr(prefill.pruneopt, "prune", prune)
    monkeypatch.setattr(prefill, "_pass", passes)
    stages = {"solve": {"median": 0.5}, "cost": {"median": 0.25}}
    monkeypatch.setattr(prefill, "_stages", lambda *_, **__: stages)
    monkeypatch.setattr(prefill, "_peak", lambda *_, **__: None)
    row = prefill.measure_spec(None, {}, spec=load_spec("fastv"), repeats=3, warmup=2)
    return row | {"turns": turns}


def test_a_prefill_row_from_made_up_seconds(measured: dict[str, Any]) -> None:
    assert measured["turns"] == ["dense", "pruned"] * 5
    assert measured["dense"]["language_model"] == {"median": 8.0, "q1": 6.0, "q3": 10.0, "min": 6.0}
    assert measured["pruned"]["language_model"]["median"] == 4.0
    assert measured["dense"]["decode_token"]["median"] == 1.0
    assert measured["speedup"]["median"] == pytest.approx(1.5)  # of 6/4, 10/2 and 8/8
    assert measured["speedup_processor_time"]["median"] == pytest.approx(1.5)
    assert (measured["ideal"], measured["efficiency"]) == (4.0, pytest.approx(0.375))
    assert (measured["selection_seconds"], measured["rest_of_prefill"]) == (0.75, 3.25)
    assert measured["selection_share_of_dense_language_model"] == pytest.approx(0.75 / 8)
    assert (measured["kept"], measured["visual_tokens"], measured["batch"]) == (32, 64, 2)
    assert measured["kv_bytes"] == {"dense": 100, "pruned": 30}


def test_the_first_pass_of_the_stages_is_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([100.0, 1.0, 2.0, 3.0])
    report = SimpleNamespace(seconds={})

    @contextmanager
    def prune(*_: Any, **__: Any) -> Iterator[Any]:
        yield SimpleNamespace(report=report)

    monkeypatch.setattr(prefill.pruneopt, "prune", prune)
    monkeypatch.setattr(prefill, "_pass", lambda *_: report.seconds.update(solve=next(seconds)))
    model = SimpleNamespace(device=torch.device("cpu"))
    found = prefill._stages(model, {}, spec=load_spec("fastv"), repeats=3)
    assert found == {"solve": {"median": 2.0, "q1": 1.0, "q3": 3.0, "min": 1.0}}


# --- selection ----------------------------------------------------------------------------------------------


def test_a_selection_row_names_each_number_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, asked = (9, 16, 25), []
    chosen = SimpleNamespace(known_counts=(4, 4), seconds={"solve": 0.1})

    def fake(job: Callable[[], Any], *, repeats: int, budget: float) -> tuple[Any, Timing]:
        asked.append((job().keep.shape, repeats, budget))
        return chosen, Timing(50.0, tuple(i / 1000 for i in range(1, 21)), 7.0)

    monkeypatch.setattr(select, "timed", fake)
    monkeypatch.setattr(
        select, "processor_seconds", lambda job, repeats: float(job().keep.shape[1] ** 2) / 1000
    )
    stage = load_spec("fastervlm").stages[0]
    row = select._measure(stage, select.Plan(sizes=sizes, batch=2, keep=4, repeats=3, budget=0.5))
    assert asked == [((2, n), 3, 0.5) for n in sizes]
    assert (row["ms"], row["p95_ms"]) == (pytest.approx(10.5), pytest.approx(19.05))
    assert (row["peak_mib"], row["runs"], row["kept"]) == (7.0, 20, [4, 4])
    assert row["cpu_ms"] == 625 and row["times_ms"] == pytest.approx({"9": 81, "16": 256, "25": 625})
    assert row["exponent"] == pytest.approx(2.0)


def test_signals_are_drawn_by_their_seed() -> None:
    names = ["cls_attention", "encoder_features", "xy"]
    draws = {seed: select_signals(names, batch=2, tokens=9, seed=seed) for seed in (0, 1)}
    again = select_signals(names, batch=2, tokens=9, seed=1)
    for name in ("cls_attention", "encoder_features"):
        assert torch.equal(again[name], draws[1][name])
        assert not torch.equal(draws[0][name], draws[1][name]), name
        assert not torch.equal(draws[0][name][0], draws[0][name][1]), "samples of a batch are alike"
    assert torch.equal(draws[0]["xy"], draws[1]["xy"])


# --- seeds and records --------------------------------------------------------------------------------------


def test_random_controls_are_drawn_by_their_seed_and_keep_what_is_protected() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(2, 40, generator=generator)
    free = SubsetProblem.build("top_k", 5, unary=score)
    values = [select_gap._random_value(free, seed).tolist() for seed in range(5)]
    assert len({tuple(value) for value in values}) == 5
    assert values[3] == select_gap._random_value(free, 3).tolist()
    protected = torch.zeros(2, 40, dtype=torch.bool)
    protected[:, [7, 11, 30, 31, 39]] = True
    fixed = replace(free, protected=protected)
    wanted = (score * protected).sum(1).double()
    for seed in range(5):
        torch.testing.assert_close(select_gap._random_value(fixed, seed), wanted)


@pytest.mark.parametrize("kind", ["max_min", "log_det", "top_k"])
def test_instances_are_drawn_by_their_seed(kind: str) -> None:
    def values(seed: int) -> np.ndarray:
        problem = subset.instance(kind, 16, batch=2, seed=seed)
        return (problem.unary if kind == "top_k" else problem.pairwise).numpy()

    first, second = values(3), values(3)
    assert np.array_equal(first, second) and not np.array_equal(first, values(4))


def test_a_record_of_solvers_is_named_by_all_that_it_hangs_on() -> None:
    ours, peer = EVERY["sinkhorn eps=0.1 100r"], EVERY["pot_sinkhorn_log"]
    other = replace(ours, solver=replace(ours.solver, rounds=7))
    keys = [("topv", 9, 1, ours), ("grid", 9, 1, ours), ("topv", 16, 1, ours), ("topv", 9, 2, ours)]
    keys += [("topv", 9, 1, other), ("topv", 9, 1, replace(ours, label="sinkhorn eps=0.1-100r"))]
    keys += [("topv", 9, 1, peer), ("topv", 9, 1, replace(peer, solver=replace(peer.solver, rounds=7)))]

    def name(*place: Any) -> str:
        return solvers._cell(place[3], cells.Place(*place[:3]), plan=solvers.Plan()).file

    names = [name(*key) for key in keys]
    assert len(set(names)) == len(names)
    assert name("topv", 9, 1, cells.entries()[ours.label]) == names[0]


def test_a_record_of_subsets_is_named_by_all_that_it_hangs_on() -> None:
    run = next(run for run in subset.runs(find_kind("max_min")) if run.label == "milp")
    slower = replace(run, settings=(("time_limit", 50.0),))
    keys = [
        (4, "max_min", 16, run),
        (8, "max_min", 16, run),
        (4, "max_sum", 16, run),
        (4, "max_min", 36, run),
    ]
    keys += [(4, "max_min", 16, slower), (4, "max_min", 16, replace(run, label="branch_and_bound"))]

    def name(batch: int, kind: str, tokens: int, run: subset.Run) -> str:
        return subset._cell(run, subset.Plan(batch=batch), kind=kind, tokens=tokens).file

    names = [name(*key) for key in keys]
    assert len(set(names)) == len(names)
    assert name(4, "max_min", 16, replace(run)) == names[0]


def test_another_batch_is_measured_and_not_taken_from_the_record(tmp_path: Path) -> None:
    for batch in (1, 2, 2):
        subset.measure(subset.Plan((16,), batch, ["top_k"], repeats=1), tmp_path, console=QUIET)
    rows = grid.read_cells(tmp_path / "subset")
    assert sorted((row["batch"], len(row["value"])) for row in rows if row["solver"] == "random") == [
        (1, 1),
        (2, 2),
    ]
    for batch in (1, 2, 2):
        plan = solvers.Plan((9,), (batch,), ["grid"], ["north_west"], repeats=1, budget=0.1)
        solvers.measure(plan, tmp_path, console=QUIET)
    assert sorted(row["batch"] for row in grid.read_cells(tmp_path / "cells")) == [1, 2]


def test_a_cell_names_each_of_its_times_rightly(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([Timing(9.0, (0.5, 0.5, 8.0), 1.0), Timing(40.0, tuple(map(float, range(1, 21))), 3.0)])
    monkeypatch.setattr(cells, "timed", lambda job, repeats, budget: (job(), next(times)))
    plan = solvers.Plan(repeats=20, budget=1.0)
    row = solvers._cell(EVERY["north_west"], cells.Place("grid", 9, 2), plan=plan).row()
    assert (row["seconds_cost"], row["seconds_cold"]) == (0.5, 40.0)
    assert (row["seconds_p50"], row["seconds_p95"]) == (pytest.approx(10.5), pytest.approx(19.05))
    assert (row["seconds_total"], row["runs"], row["peak_mib"]) == (pytest.approx(11.0), 20, 3.0)
    assert (row["tokens"], row["batch"], row["family"], row["solver"]) == (9, 2, "grid", "north_west")


def test_growth_is_of_the_time_of_one_problem_in_the_largest_batch() -> None:
    """The largest batch takes N^2 a problem, a smaller one is made to mislead."""
    rows = []
    for tokens, largest in ((9, 8), (16, 4), (25, 2)):
        key = {"family": "f", "solver": "s", "tokens": tokens}
        rows.append({**key, "batch": 1, "seconds_p50": 99.0 / tokens})
        rows.append({**key, "batch": largest, "seconds_p50": largest * 1e-3 * tokens**2})
    (found,) = exponents(rows)
    assert found["exponent"] == pytest.approx(2.0) and found["points"] == 3
    assert exponents(rows[::-1]) == [found]
    assert exponents(rows[:4]) == []


def test_tokens_of_four_pictures_are_pooled_in_order() -> None:
    """The first problem holds the tokens of the first four samples, one after the other."""
    features = torch.arange(8 * 5 * 2, dtype=torch.float32).view(8, 5, 2)
    keys = torch.arange(8 * 3 * 5 * 2, dtype=torch.float32).view(8, 3, 5, 2)
    pooled = select_gap.pooled(Signals({"features": features, "keys": keys}))
    assert torch.equal(pooled["features"], features.view(2, 20, 2))
    assert torch.equal(pooled["keys"][1], torch.cat(list(keys[4:]), 1))
