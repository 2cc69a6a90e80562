"""The solver benchmark: records, resuming, peers, statistics and the loops it compares with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pruneopt.errors import InputError
from pruneopt.lab import grid
from pruneopt.lab.solvers.cells import chosen, entries
from pruneopt.lab.solvers.families import FAMILIES, make
from pruneopt.lab.solvers.peers import PEERS
from pruneopt.lab.solvers.rows import load
from pruneopt.lab.solvers.run import Plan, measure
from pruneopt.lab.study import study
from pruneopt.lab.subset import run as subset
from pruneopt.lab.targets import subset as targets
from pruneopt.lab.targets.target import Target
from pruneopt.parts.solvers.sinkhorn import Sinkhorn
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.registry import registry

SYNTHETIC = [name for name in FAMILIES if name != "embedded"]
SOLVERS = ["sinkhorn eps=0.1 100r", "sinkhorn eps=0.02 100r", "exact", "assignment", "pot_emd"]
QUIET = Console(quiet=True)
PLAN = Plan((9, 16, 25), (2,), ["topv", "permuted"], SOLVERS, repeats=1, budget=0.1)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    measure(PLAN, out, console=QUIET)
    return out


@pytest.mark.parametrize("family", SYNTHETIC)
def test_families_are_valid_and_reproducible(family: str) -> None:
    case = make(family, 36, batch=2)
    cost = case.build()
    problem = TransportProblem.build(cost, a=case.a, b=case.b)
    assert problem.cost.shape == (2, 36, 36) and float(problem.cost_range().min()) > 0
    assert torch.equal(make(family, 36, batch=2).build(), cost)
    other = make(family, 36, batch=2, seed=1)
    assert not (torch.equal(other.build(), cost) and torch.equal(other.a, case.a))
    assert set(case.trivial) == {"token_norm", "uniform", "centre_distance"}
    with pytest.raises(InputError, match="did you mean 'topv'"):
        make("topw", 9, batch=1)


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
    measure(PLAN, record, console=QUIET)
    after = {p: p.stat().st_mtime_ns for p in (record / "cells").glob("*.json")}
    assert set(after) == set(before)
    assert [p for p in after if after[p] != before[p]] == [lost]
    assert json.loads(lost.read_text())["solver"]


def test_report_can_be_redone_from_parquet_alone(record: Path, tmp_path: Path) -> None:
    for name in ("cells", "readouts"):
        (tmp_path / f"{name}.parquet").write_bytes((record / f"{name}.parquet").read_bytes())
    text = study("solvers").report(tmp_path, console=QUIET)
    assert text == study("solvers").markdown(record), "cells and Parquet say different things"
    assert "**topv**" in text and "| exact |" in text
    for picture in ("pareto", "gap_epsilon", "scaling", "readouts"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 5000
    assert (tmp_path / "solvers.md").read_text() == text + "\n"
    for name in ("solvers", "subset", "targets"):
        with pytest.raises(InputError, match=f"holds no records of the study '{name}'"):
            study(name).report(tmp_path / "nothing", console=QUIET)


def test_a_failing_solver_is_recorded_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Sinkhorn, problem: TransportProblem) -> None:
        raise RuntimeError("out of ink")

    monkeypatch.setattr(Sinkhorn, "solve", broken)
    plan = Plan((9,), (1,), ["grid"], ["sinkhorn eps=0.1 100r", "exact"], repeats=1, budget=0.1)
    measure(plan, tmp_path, console=QUIET)
    cells, _ = load(tmp_path)
    assert {c["solver"]: c["error"] for c in cells}["sinkhorn eps=0.1 100r"] == "RuntimeError: out of ink"
    assert "out of ink" in study("solvers").markdown(tmp_path)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="unknown cost family 'grids'"):
        Plan(families=["grids"])
    with pytest.raises(InputError, match="no solver to measure matches"):
        Plan(solvers=["sinkhornn"])
    with pytest.raises(InputError, match="no solver to measure matches"):
        chosen(["sinkhornn"])
    assert set(chosen(["emd", "pot_*"])) >= {"emd", "pot_sinkhorn_log"}
    assert len(entries()) == len(set(entries()))


@pytest.mark.parametrize("label", [k for k in PEERS if k.startswith(("pot", "scipy"))])
def test_peers_do_what_they_are_listed_for(label: str) -> None:
    peer = PEERS[label]
    problem = make("permuted" if peer.uniform_only else "topv", 36, batch=2).problem()
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
    problem = make("topv", 36, batch=2).problem()
    theirs, ours = PEERS[label].solve(problem), Sinkhorn().solve(problem)
    torch.testing.assert_close(theirs.value, ours.value, rtol=0, atol=5e-3)


def test_targets_know_which_way_is_up() -> None:
    assert Target("x", 1.4, "at most", 1.5, "x").met and not Target("x", 1.4, "at least", 1.5, "x").met


@pytest.mark.parametrize("kind", ["max_min", "log_det"])
def test_the_obvious_loops_choose_the_same_tokens(kind: str) -> None:
    matrix = subset.instance(kind, 36, batch=3).pairwise
    loop, name = {
        "max_min": (targets.loop_farthest_point, "farthest_point"),
        "log_det": (targets.loop_log_det, "greedy_log_det"),
    }[kind]
    problem = SubsetProblem.build(kind, 8, pairwise=matrix)
    order = registry("solvers").get(name)().solve(problem).order
    assert order.tolist() == loop(matrix, 8)


def test_subset_bench_orders_random_greedy_and_exact(tmp_path: Path) -> None:
    plan = subset.Plan((16,), batch=2, kinds=["max_min", "facility_location"], repeats=1)
    subset.measure(plan, tmp_path, console=QUIET)
    rows = grid.read_rows(tmp_path / "subset.parquet")
    assert rows == grid.read_cells(tmp_path / "subset")
    for kind, greedy in (("max_min", "farthest_point"), ("facility_location", "lazy_greedy")):
        value = {r["solver"]: sum(r["value"]) for r in rows if r["kind"] == kind}
        assert value["random"] <= value[greedy] + 1e-9 <= value["brute_force"] + 2e-9
        assert value["milp"] == pytest.approx(value["brute_force"], rel=1e-6)
    assert "below optimum" in study("subset").markdown(tmp_path)
    with pytest.raises(InputError, match="unknown subset problem"):
        subset.Plan(kinds=["maxmin"])


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
