"""Every part crossed with every other: legal cells run and keep the exact budget, the others say why not."""

from __future__ import annotations

import pytest

from pruneopt.errors import RegistryError, SpecError
from pruneopt.lab.cross.cells import Cell, Outcome, cross, legal_shares, on_signals, run_cells
from pruneopt.registry import registry
from pruneopt.signals import SIGNALS, Signals, signal_info
from pruneopt.testing.cases import make_signals

TOKENS, KEEP = 9, 4


def tiny() -> Signals:
    names = {*SIGNALS, "cls_query@-1", "encoder_keys@-1", "cls_key@-1"}
    return make_signals(names, batch=2, tokens=TOKENS)


def few(cells: list[Cell]) -> list[Cell]:
    """All legal cells whose term stands as it is, and of the others one for each way, problem and solver."""
    turned = {(c.via, c.problem, c.solver, c.readout): c for c in cells if c.legal and c.via}
    return [c for c in cells if c.legal and not c.via] + list(turned.values())


@pytest.fixture(scope="module")
def outcomes() -> tuple[list[Cell], list[Outcome]]:
    cells = cross(keep=KEEP)
    signals = tiny()
    return cells, list(run_cells(few(cells), on_signals(signals)))


def test_every_legal_cell_runs_and_keeps_the_exact_budget(
    outcomes: tuple[list[Cell], list[Outcome]],
) -> None:
    cells, ran = outcomes
    assert len(ran) == len(few(cells)) > 100 and sum(bool(o.cell.via) for o in ran) > 100
    wrong = [(o.cell.spec.name, o.kept, o.error) for o in ran if not o.ok or len(o.kept) != 2]
    assert wrong == []
    short = {(o.cell.problem, o.cell.via) for o in ran if o.kept != (KEEP, KEEP)}
    assert short <= {("independent_set", "kernels/from_cost")}  # a maximum, not a number


def test_terms_of_another_kind_enter_through_what_turns_them(
    outcomes: tuple[list[Cell], list[Outcome]],
) -> None:
    cells, _ = outcomes
    ways = {(c.term, c.problem): c.via for c in cells if c.legal}
    assert ways["cosine_distance", "max_min"] == ways["cosine", "log_det"] == ways["random", "top_k"] == ""
    assert ways["cosine_distance", "log_det"] == "kernels/from_cost"
    assert ways["cosine", "max_min"] == ways["cosine", "transport"] == "costs/from_kernel"
    assert ways["cosine_distance", "quota"] == ways["cosine", "top_k"] == "scores/transport"
    assert ways["central_distance", "top_k"] == "scores/from_cost"
    assert ways["cls_attention", "transport"] == "costs/from_score"
    assert ways["cosine_distance", "facility_location"] == "a cost is served"
    assert ways["text_pivots", "transport"] == "external targets"
    plain, turned = legal_shares(cells)
    assert plain == sum(c.legal and not c.via for c in cells) / len(cells) < turned / 3
    assert turned == sum(c.legal for c in cells) / len(cells)


def test_a_name_of_several_groups_is_all_of_them_unless_the_group_is_said() -> None:
    both = cross(["from_cost"], ["stable_top_k"], insertions=["prefill_layer"])
    assert [(c.term, c.via) for c in both if c.legal] == [
        ("from_cost", "scores/transport"),
        ("from_cost", ""),
    ]
    (one,) = cross(["scores/from_cost"], ["stable_top_k"], insertions=["prefill_layer"])
    assert one.legal and not one.via


def test_every_part_appears_in_a_legal_cell(outcomes: tuple[list[Cell], list[Outcome]]) -> None:
    cells, _ = outcomes
    legal = [cell for cell in cells if cell.legal]
    for group, field in (("solvers", "solver"), ("readouts", "readout"), ("insertions", "insertion")):
        assert {getattr(cell, field) for cell in legal} >= set(registry(group)), group
    terms = {cell.term for cell in legal}
    every = set(registry("costs")) | set(registry("kernels")) | set(registry("scores"))
    assert every - terms == {
        "prototype",  # reads a file
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
    cells = cross(
        ["token_norm", "cls_attention"], ["stable_top_k"], insertions=["post_encoder"], available={"features"}
    )
    assert [(c.term, c.legal) for c in cells] == [("token_norm", True), ("cls_attention", False)]
    assert "not at hand: cls_attention" in cells[1].reason


def test_a_score_meets_a_transport_solver_and_a_cost_a_ranking_when_they_are_turned() -> None:
    cells = cross(
        ["token_norm", "cosine_distance"],
        ["sinkhorn", "stable_top_k"],
        insertions=["post_encoder"],
        readouts=["row_sum"],
    )
    ways = {(c.term, c.solver): c.via for c in cells if c.legal}
    assert ways["token_norm", "stable_top_k"] == ways["cosine_distance", "sinkhorn"] == ""
    assert ways["token_norm", "sinkhorn"] == "costs/from_score"
    assert ways["cosine_distance", "stable_top_k"] == "scores/transport"


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
    cell = next(
        c for c in cross(["token_norm"], ["stable_top_k"], insertions=["post_encoder"], keep=KEEP) if c.legal
    )

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
