"""What parts of one selection share, and merges as sums at their homes."""

from __future__ import annotations

import torch

from pruneopt.parts._ledger import Ledger, once, opened
from pruneopt.parts.steps._merging import homed_rows, sums_at
from pruneopt.parts.steps.grid_recycle import GridRecycle
from pruneopt.problems.selection import Selection
from pruneopt.pruner import select
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec


def test_work_is_shared_within_a_selection_by_what_it_depends_on() -> None:
    calls = []
    one, other = torch.zeros(1), torch.zeros(1)

    def make() -> int:
        calls.append(1)
        return len(calls)

    with opened(Ledger()):
        found = [once(make, "a", of=(one,)), once(make, "a", of=(one,)), once(make, "a", of=(other,))]
        assert [*found, once(make, "b", of=(one,))] == [1, 1, 2, 3]
    with opened(Ledger()):
        assert once(make, "a", of=(one,)) == 4
    assert [once(make, "a", of=(one,)), once(make, "a", of=(one,))] == [5, 6]


def test_rows_by_home_count_own_and_given_weights() -> None:
    home = torch.tensor([[2, 0, 2, 2]])
    given, own = torch.tensor([[0.25, 0.0, 0.0, 0.5]]), torch.tensor([[1.0, 1.0, 0.5, 1.0]])
    wanted = torch.eye(4)
    wanted[2] = torch.tensor([0.25, 0.0, 0.5, 0.5])
    assert torch.equal(homed_rows(home, given, own=own)[0], wanted)
    assert sums_at(home, torch.tensor([[1.0, 2.0, 4.0, 8.0]])).tolist() == [[2.0, 0.0, 13.0, 0.0]]


def recycled(importance: list[float]) -> Selection:
    """Five tokens in a row, the last kept; cells of two columns, and the fourth in another picture."""
    signals = Signals({
        "xy": torch.tensor([[[0, 0], [1, 0], [2, 0], [3, 0], [4, 0]]]),
        "group": torch.tensor([[0, 0, 0, 1, 0]]),
    })  # fmt: skip
    keep = torch.tensor([[False, False, False, False, True]])
    return GridRecycle(cell=2.0)(Selection(keep, importance=torch.tensor([importance])), signals)


def test_a_cell_is_carried_by_its_most_important_token_and_weighted() -> None:
    out = recycled([1.0, 3.0, 2.0, 2.0, 9.0])
    assert out.keep.tolist() == [[False, True, True, True, True]]
    assert out.merge is not None
    assert out.merge[0, 1].tolist() == [0.25, 0.75, 0, 0, 0]
    assert torch.equal(out.merge[0, 2:], torch.eye(5)[2:])


def test_a_cell_worth_nothing_is_a_plain_mean_at_its_first_token() -> None:
    out = recycled([0.0, 0.0, 1.0, 1.0, 0.0])
    assert out.keep.tolist() == [[True, False, True, True, True]]
    assert out.merge is not None and out.merge[0, 0].tolist() == [0.5, 0.5, 0, 0, 0]


def test_a_merge_into_protected_tokens_is_the_one_that_looks_for_them_itself() -> None:
    """The score has compared every source with every destination; the step takes its word for it."""
    signals = Signals({"encoder_keys": torch.randn(2, 1, 11, 4, generator=torch.Generator().manual_seed(0))})
    chosen = select(load_spec("tome", ["budget.keep=6"]), signals)
    alone = load_spec("tome", ["budget.keep=6"]).stages[0].steps[0]
    again = alone(Selection(chosen.keep, chosen.counts, solution=chosen.solution), signals)
    assert chosen.merge is not None and again.merge is not None
    assert torch.equal(chosen.merge[chosen.keep], again.merge[chosen.keep])
