"""Every part crossed with every other: legal cells run and keep the exact budget, the others say why not."""

from __future__ import annotations

import pytest

from pruneopt.errors import RegistryError, SpecError
from pruneopt.lab.cross.cells import Cell, Outcome, cross, on_signals, run_cells
from pruneopt.registry import registry
from pruneopt.signals import SIGNALS, Signals, signal_info
from pruneopt.testing.cases import make_signals

TOKENS, KEEP = 9, 4


def tiny() -> Signals:
    names = {*SIGNALS, "cls_query@-1", "encoder_keys@-1", "cls_key@-1"}
    return make_signals(names, batch=2, tokens=TOKENS)


@pytest.fixture(scope="module")
def outcomes() -> tuple[list[Cell], list[Outcome]]:
    cells = cross(keep=KEEP)
    signals = tiny()
    return cells, list(run_cells(cells, on_signals(signals)))


def test_every_legal_cell_runs_and_keeps_the_exact_budget(
    outcomes: tuple[list[Cell], list[Outcome]],
) -> None:
    cells, ran = outcomes
    assert len(ran) == sum(cell.legal for cell in cells) > 100
    wrong = [(o.cell.spec.name, o.kept, o.error) for o in ran if o.kept != (KEEP, KEEP)]
    assert wrong == []


def test_every_part_appears_in_a_legal_cell(outcomes: tuple[list[Cell], list[Outcome]]) -> None:
    cells, _ = outcomes
    legal = [cell for cell in cells if cell.legal]
    for group, field in (("solvers", "solver"), ("readouts", "readout"), ("insertions", "insertion")):
        assert {getattr(cell, field) for cell in legal} >= set(registry(group)), group
    terms = {cell.term for cell in legal}
    every = set(registry("costs")) | set(registry("kernels")) | set(registry("scores"))
    assert every - terms == {
        "prototype",  # reads a file
        "text_pivots",  # an anchor, no term of tokens
        *("window", "vicinity_clusters", "every_kth"),  # group numbers and marks, no ranking
        *("match_similarity", "twin_redundancy"),  # rank beside destinations that the problem must protect
    }


def test_every_illegal_cell_says_why(outcomes: tuple[list[Cell], list[Outcome]]) -> None:
    cells, _ = outcomes
    illegal = [cell for cell in cells if not cell.legal]
    assert illegal and all(len(cell.reason) > 10 for cell in illegal)
    reasons = {(c.term, c.problem, c.solver, c.insertion): c.reason for c in illegal}
    assert "keys" in reasons["key_norm", "top_k", "stable_top_k", "post_encoder"]
    assert "unary" in reasons["central_distance", "max_min", "farthest_point", "post_encoder"]
    assert "codebook" in reasons["prototype", "top_k", "stable_top_k", "post_encoder"]


def test_saved_signals_limit_what_is_legal() -> None:
    cells = cross(["token_norm", "cls_attention"], ["stable_top_k"], ["post_encoder"], available={"features"})
    assert [(c.term, c.legal) for c in cells] == [("token_norm", True), ("cls_attention", False)]
    assert "not at hand: cls_attention" in cells[1].reason


def test_a_score_meets_no_transport_solver_and_a_cost_no_ranking() -> None:
    cells = cross(
        ["token_norm", "cosine_distance"], ["sinkhorn", "stable_top_k"], ["post_encoder"], ["row_sum"]
    )
    legal = {(c.term, c.solver): c.legal for c in cells}
    assert legal["token_norm", "stable_top_k"] and legal["cosine_distance", "sinkhorn"]
    assert not legal["token_norm", "sinkhorn"] and not legal["cosine_distance", "stable_top_k"]


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(RegistryError, match="token_norm"):
        cross(["token_nrom"])
    with pytest.raises(RegistryError, match="farthest_point"):
        cross(solvers=["farthest_pont"])


def test_a_solver_that_keeps_too_few_is_caught(outcomes: tuple[list[Cell], list[Outcome]]) -> None:
    """Planted: a selection one token short must not pass for an exact budget."""
    cells, _ = outcomes
    cell = next(c for c in cells if c.legal and c.solver == "stable_top_k")
    signals = tiny()

    def short(spec):
        from dataclasses import replace

        chosen = on_signals(signals)(spec)
        keep = chosen.keep.clone()
        keep[0, chosen.indices[0][0]] = False
        return replace(chosen, keep=keep)

    (outcome,) = run_cells([cell], short)
    assert not outcome.ok


def test_a_refusal_becomes_the_outcome() -> None:
    cell = next(c for c in cross(["token_norm"], ["stable_top_k"], ["post_encoder"], keep=KEEP) if c.legal)

    def refuse(spec):
        raise SpecError("no")

    (outcome,) = run_cells([cell], refuse)
    assert outcome.error == "no" and not outcome.ok


def test_the_tiny_signals_hold_what_the_parts_need(outcomes: tuple[list[Cell], list[Outcome]]) -> None:
    """Every signal that a legal cell reads is there, of the batch and the tokens asked for."""
    cells, _ = outcomes
    signals = tiny()
    needed = {name for cell in cells if cell.spec is not None for name in cell.spec.stages[0].needs}
    assert len(needed) > 20 and needed <= set(signals)
    for name in needed:
        shape = signals[name].shape
        assert shape[0] == 2 and all(shape[axis] == TOKENS for axis in signal_info(name).token_dims), name
