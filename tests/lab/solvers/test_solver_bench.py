"""The solver benchmark: records, resuming, peers, statistics and the loops it compares with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from pruneopt.errors import InputError
from pruneopt.lab.clock import agreement, fit_exponent, interleaved, timed
from pruneopt.lab.pages import insert
from pruneopt.lab.solvers.cells import chosen, entries
from pruneopt.lab.solvers.families import FAMILIES, make
from pruneopt.lab.solvers.peers import PEERS
from pruneopt.lab.solvers.report import write_report
from pruneopt.lab.solvers.rows import load
from pruneopt.lab.solvers.run import run_solver_bench
from pruneopt.lab.subset import run as subset
from pruneopt.lab.targets import subset as targets
from pruneopt.lab.targets.page import write_page
from pruneopt.lab.targets.target import Target
from pruneopt.parts.solvers.sinkhorn import Sinkhorn
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.registry import registry

SYNTHETIC = [name for name in FAMILIES if name != "embedded"]
SOLVERS = ["sinkhorn eps=0.1 100r", "sinkhorn eps=0.02 100r", "exact", "assignment", "pot_emd"]
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    run_solver_bench(
        out, (9, 16, 25), (2,), ["topv", "permuted"], SOLVERS,
        repeats=1, budget=0.1, threads=1, console=QUIET,
    )  # fmt: skip
    return out


@pytest.mark.parametrize("family", SYNTHETIC)
def test_families_are_valid_and_reproducible(family: str) -> None:
    case = make(family, 36, 2)
    cost = case.build()
    problem = TransportProblem.build(cost, case.a, case.b)
    assert problem.cost.shape == (2, 36, 36) and float(problem.cost_range().min()) > 0
    assert torch.equal(make(family, 36, 2).build(), cost)
    other = make(family, 36, 2, seed=1)
    assert not (torch.equal(other.build(), cost) and torch.equal(other.a, case.a))
    assert set(case.trivial) == {"token_norm", "uniform", "centre_distance"}
    with pytest.raises(InputError, match="did you mean 'topv'"):
        make("topw", 9, 1)


def test_cells_carry_a_certificate_that_holds(record: Path) -> None:
    cells, readouts = load(record)
    assert len(cells) == 3 * (4 + 5)  # assignment only where marginals are uniform
    for c in cells:
        assert c.get("error") is None
        assert c["gap"] >= c["excess"] - 1e-7 and c["excess"] > -1e-7, c["solver"]
        if c["solver"] in ("exact", "assignment", "pot_emd"):
            assert c["excess"] < 1e-9 and c["gap"] < 1e-6
        if c["solver"].startswith("sinkhorn"):
            assert c["row_error"] < 1e-5
            total = c["bias"] + c["convergence"]
            assert total == pytest.approx(c["unrounded_relative"], abs=1e-7)
    same = [r for r in readouts if r["readout"] == r["against"] == "row_sum" and r["family"] == "topv"]
    assert same and all(r["spearman"] > 0.99 for r in same)
    exact = [r for r in readouts if r["solver"] == "exact" and r["readout"] == r["against"] == "dual_source"]
    assert exact and all(r["recall_50"] == 1 and r["jaccard_10"] == 1 for r in exact)


def test_finished_cells_are_not_measured_again(record: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (record / "cells").glob("*.json")}
    lost = sorted(before)[0]
    lost.unlink()
    lost.with_suffix(".part").write_text("half a record")
    run_solver_bench(
        record, (9, 16, 25), (2,), ["topv", "permuted"], SOLVERS,
        repeats=1, budget=0.1, threads=1, console=QUIET,
    )  # fmt: skip
    after = {p: p.stat().st_mtime_ns for p in (record / "cells").glob("*.json")}
    assert set(after) == set(before)
    assert [p for p in after if after[p] != before[p]] == [lost]
    assert json.loads(lost.read_text())["solver"]


def test_report_can_be_redone_from_parquet_alone(record: Path, tmp_path: Path) -> None:
    for name in ("cells", "readouts"):
        (tmp_path / f"{name}.parquet").write_bytes((record / f"{name}.parquet").read_bytes())
    text = write_report(tmp_path)
    assert "**topv**" in text and "| exact |" in text
    for picture in ("pareto", "gap_epsilon", "scaling", "readouts"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 5000
    with pytest.raises(InputError, match="holds no solver records"):
        write_report(tmp_path / "nothing")
    with pytest.raises(InputError, match="no subset records"):
        write_page(tmp_path, None)


def test_tables_go_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- begin: x -->\nold\n<!-- end: x -->\nb\n")
    insert(page, "x", "new \\1")
    insert(page, "x", "new \\1")
    assert page.read_text() == "a\n<!-- begin: x -->\n\nnew \\1\n\n<!-- end: x -->\nb\n"
    with pytest.raises(InputError, match="has no lines"):
        insert(page, "y", "new")


def test_a_failing_solver_is_recorded_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Sinkhorn, problem: TransportProblem) -> None:
        raise RuntimeError("out of ink")

    monkeypatch.setattr(Sinkhorn, "solve", broken)
    run_solver_bench(
        tmp_path, (9,), (1,), ["grid"], ["sinkhorn eps=0.1 100r", "exact"], 1, 0.1, 1, console=QUIET
    )
    cells, _ = load(tmp_path)
    assert {c["solver"]: c["error"] for c in cells}["sinkhorn eps=0.1 100r"] == "RuntimeError: out of ink"
    assert "out of ink" in (tmp_path / "tables.md").read_text()


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown cost family 'grids'"):
        run_solver_bench(tmp_path, families=["grids"], console=QUIET)
    with pytest.raises(InputError, match="no solver to measure matches"):
        chosen(["sinkhornn"])
    assert set(chosen(["emd", "pot_*"])) >= {"emd", "pot_sinkhorn_log"}
    assert len(entries()) == len(set(entries()))


@pytest.mark.parametrize("label", [k for k in PEERS if k.startswith(("pot", "scipy"))])
def test_peers_do_what_they_are_listed_for(label: str) -> None:
    peer = PEERS[label]
    problem = make("permuted" if peer.uniform_only else "topv", 36, 2).problem()
    theirs = peer.solve(problem)
    ours = Sinkhorn(epsilon=peer.epsilon, rounds=peer.rounds)
    if peer.order == "both":
        mine = registry("solvers").get("exact")().solve(problem)
    else:
        mine = (ours if peer.order == "source" else Sinkhorn(order="source_then_target")).solve(problem)
        torch.testing.assert_close(
            theirs.plan, mine.plan, rtol=0, atol=2e-3 if peer.order == "target" else 1e-6
        )
        assert float({"source": theirs.row_error, "target": theirs.col_error}[peer.order].max()) < 1e-5
    torch.testing.assert_close(theirs.value, mine.value, rtol=0, atol=2e-3)
    assert (theirs.gap >= -1e-9).all()


@pytest.mark.parametrize("label", ["geomloss", "ott"])
def test_optional_peers(label: str) -> None:
    if not PEERS[label].installed:
        pytest.skip(f"{label} is not installed (extra `peers`)")
    problem = make("topv", 36, 2).problem()
    theirs, ours = PEERS[label].solve(problem), Sinkhorn().solve(problem)
    torch.testing.assert_close(theirs.value, ours.value, rtol=0, atol=5e-3)


def test_agreement_against_hand_computed_values() -> None:
    truth = np.array([5.0, 4, 3, 2, 1, 0, -1, -2, -3, -4])
    assert (
        agreement(truth, truth)["kendall"] == pytest.approx(1) and agreement(truth, truth)["jaccard_50"] == 1
    )
    swapped = truth.copy()
    swapped[[4, 5]] = swapped[[5, 4]]  # ranks 5 and 6 change places
    found = agreement(swapped, truth)
    assert found["kendall"] == pytest.approx(1 - 2 / 45)
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (10 * 99))
    assert found["recall_50"] == pytest.approx(4 / 5) and found["jaccard_50"] == pytest.approx(4 / 6)
    flat = agreement(np.zeros(10), truth)
    assert (
        math.isnan(flat["spearman"]) and flat["recall_50"] == 1
    )  # ties: lower index, which is the truth here


def test_exponent_fit_recovers_a_power() -> None:
    sizes = [64, 144, 256, 576, 1024]
    slope, low, high = fit_exponent(sizes, [1e-6 * n**2.4 for n in sizes])
    assert slope == pytest.approx(2.4) and low == pytest.approx(2.4) and high == pytest.approx(2.4)
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        noisy = [1e-6 * n**2.0 * math.exp(0.2 * rng.standard_normal()) for n in sizes]
        _, low, high = fit_exponent(sizes, noisy)
        inside += low <= 2.0 <= high
    assert 180 <= inside <= 199  # about 95%
    assert math.isnan(fit_exponent([1, 2], [1, 2])[1])


def test_timing_counts_runs_and_memory() -> None:
    result, time = timed(lambda: torch.ones(8 * 2**20).sum(), repeats=3, budget=5.0)
    assert float(result) == 8 * 2**20 and len(time.runs) == 3 and time.p95 >= time.p50 > 0
    calls = []
    interleaved(lambda: calls.append(1), lambda: calls.append(2), 3)
    assert calls == [1, 2] * 4


def test_targets_know_which_way_is_up() -> None:
    assert Target("x", 1.4, "at most", 1.5, "x").met and not Target("x", 1.4, "at least", 1.5, "x").met


@pytest.mark.parametrize("kind", ["max_min", "log_det"])
def test_the_obvious_loops_choose_the_same_tokens(kind: str) -> None:
    matrix = subset.instance(kind, 36, 3).pairwise
    loop, name = {
        "max_min": (targets.loop_farthest_point, "farthest_point"),
        "log_det": (targets.loop_log_det, "greedy_log_det"),
    }[kind]
    problem = SubsetProblem.build(kind, 8, pairwise=matrix)
    order = registry("solvers").get(name)().solve(problem).order
    assert order.tolist() == loop(matrix, 8)


def test_subset_bench_orders_random_greedy_and_exact(tmp_path: Path) -> None:
    subset.run_subset_bench(tmp_path, sizes=(16,), batch=2, kinds=["max_min", "facility_location"], repeats=1,
                            console=QUIET)  # fmt: skip
    rows = [json.loads(p.read_text()) for p in (tmp_path / "subset").glob("*.json")]
    for kind, greedy in (("max_min", "farthest_point"), ("facility_location", "lazy_greedy")):
        value = {r["solver"]: sum(r["value"]) for r in rows if r["kind"] == kind}
        assert value["random"] <= value[greedy] + 1e-9 <= value["brute_force"] + 2e-9
        assert value["milp"] == pytest.approx(value["brute_force"], rel=1e-6)
    assert "below optimum" in (tmp_path / "subset.md").read_text()
    with pytest.raises(InputError, match="unknown subset problem"):
        subset.run_subset_bench(tmp_path, kinds=["maxmin"], console=QUIET)


@pytest.mark.slow
def test_embedded_family_is_what_the_model_computes() -> None:
    from pruneopt.demo import assets
    from pruneopt.lab.solvers.embedded import LAYER, tokens

    if not (assets._HERE / "model").is_dir():
        pytest.skip("the embedded model is not there")
    model, processor = assets.load_model()
    pictures = {q.image: q for q in reversed(assets.load_questions())}
    first = assets.load_questions()[0]
    inputs = assets.load_inputs([pictures[first.image]], processor)
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[LAYER]
    visual = hidden[inputs["input_ids"] == model.config.image_token_id]
    case = tokens(len(visual), 1)
    norm = visual.norm(dim=1)
    torch.testing.assert_close(case.a[0], norm / norm.sum(), rtol=1e-5, atol=0)
    assert case.build().shape == (1, len(visual), len(visual))
    with pytest.raises(InputError, match="fewer than 10000"):
        tokens(10_000, 1)
