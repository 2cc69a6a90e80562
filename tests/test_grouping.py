"""Groups come apart and back together: against the same thing written with lists."""

from __future__ import annotations

import math

import pytest
import torch

from pruneopt.errors import SignalError
from pruneopt.grouping import gather_tokens, join_groups, split_groups
from pruneopt.problems.selection import Selection
from pruneopt.problems.solution import Solution
from pruneopt.signals import Signals

# three groups interleaved, numbers with a hole, and padding before, between and after real tokens
GROUP = torch.tensor([[2, 0, 2, 0, 5, 2, 2], [1, 1, 0, 0, 1, 7, 0]])
MASK = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 0, 1]]).bool()
PLACES = [(0, [1, 3]), (0, [2, 5, 6]), (0, [4]), (1, [2, 6]), (1, [0, 1, 4])]


def numbered() -> Signals:
    """Every entry tells its sample and tokens: one, two and no token axes, in several positions."""
    b, n = torch.arange(2)[:, None], torch.arange(7)[None]
    pair = (100 * b[:, :, None] + 10 * n[:, :, None] + n[:, None, :]).float()
    return Signals(
        {
            "group": GROUP,
            "features": torch.stack([(100 * b + n), -(100 * b + n)], 2).float(),
            "keys": (100 * b + n)[:, None, :, None].float() * torch.tensor([1.0, 2.0])[None, :, None, None],
            "encoder_attention": torch.stack([pair, 3 * pair], 1),
            "text_features": torch.tensor([[[1.0]], [[2.0]]]),
        },
        MASK,
    )


def test_every_group_becomes_a_problem_with_its_tokens_in_order() -> None:
    grouped, place = split_groups(numbered())
    assert place.tolist() == [row + [-1] * (3 - len(row)) for _, row in PLACES]
    assert grouped.sample.tolist() == [owner for owner, _ in PLACES]
    assert grouped.mask.tolist() == [[i < len(row) for i in range(3)] for _, row in PLACES]
    for g, (owner, row) in enumerate(PLACES):
        for i, n in enumerate(row):
            assert grouped["features"][g, i].tolist() == [100 * owner + n, -(100 * owner + n)]
            assert grouped["keys"][g, :, i, 0].tolist() == [100 * owner + n, 2 * (100 * owner + n)]
            assert grouped["group"][g, i] == GROUP[owner, n]
            for j, m in enumerate(row):
                value = 100 * owner + 10 * n + m
                assert grouped["encoder_attention"][g, :, i, j].tolist() == [value, 3 * value]
        assert grouped["text_features"][g].tolist() == [[owner + 1.0]]


def test_a_sample_without_real_tokens_has_no_problem_and_none_at_all_is_refused() -> None:
    mask = MASK.clone()
    mask[0] = False
    tensors = {"group": GROUP, "features": torch.zeros(2, 7, 1)}
    grouped, _ = split_groups(Signals(tensors, mask))
    assert grouped.sample.tolist() == [1, 1]
    with pytest.raises(SignalError) as caught:
        split_groups(Signals(tensors, torch.zeros(2, 7, dtype=torch.bool)))
    assert str(caught.value) == "no visual token is left to choose from"


def test_tokens_gathered_by_hand_may_repeat_samples_and_reverse_their_order() -> None:
    place = torch.tensor([[6, 0], [3, -1], [1, 2]])
    out = gather_tokens(numbered(), place, sample=torch.tensor([1, 0, 1]))
    assert out["features"][:, :, 0].tolist() == [[106, 100], [3, 0], [101, 102]]
    assert out["encoder_attention"][0, 1].tolist() == [[3 * 166, 3 * 160], [3 * 106, 3 * 100]]
    assert out.mask.tolist() == [[True, True], [True, False], [True, True]]
    assert out.sample.tolist() == [1, 0, 1]


def joined(selection: Selection) -> Selection:
    _, place = split_groups(numbered())
    owners = torch.tensor([owner for owner, _ in PLACES])
    return join_groups(selection, place, sample=owners, batch=2, tokens=7)


def pad(rows: list[list[float]]) -> torch.Tensor:
    """Padding holds a value that must not come through."""
    return torch.tensor([row + [77.0] * (3 - len(row)) for row in rows])


KEPT = [[True, False], [False, True, True], [True], [False, True], [True, True, False]]
GIVEN = [[1.0, 2.0], [3.0, 4.0, 5.0], [6.0], [7.0, 8.0], [9.0, 10.0, 11.0]]


def test_selections_come_back_in_place_with_all_that_they_carry() -> None:
    keep = torch.tensor([row + [True] * (3 - len(row)) for row in KEPT])
    values = pad(GIVEN)
    chosen = Selection(
        keep,
        (1, 2, 1, 1, 2),
        importance=values,
        size=values + 100,
        rank=values + 200,
        solution=Solution(0.5),
        diagnostics=("note",),
    )
    back = joined(chosen)
    assert back.size is not None and back.rank is not None
    want: dict[str, dict[tuple[int, int], float]] = {"keep": {}, "importance": {}}
    for (owner, row), kept, given in zip(PLACES, KEPT, GIVEN, strict=True):
        for n, k, v in zip(row, kept, given, strict=True):
            want["keep"][owner, n], want["importance"][owner, n] = k, v
    for b in range(2):
        for n in range(7):
            assert bool(back.keep[b, n]) is bool(want["keep"].get((b, n), False))
            value = want["importance"].get((b, n))
            if value is None:
                assert math.isnan(back.importance[b, n])
                assert (back.size[b, n], back.rank[b, n]) == (1, 0)
            else:
                assert back.importance[b, n] == value
                assert (back.size[b, n], back.rank[b, n]) == (value + 100, value + 200)
    assert back.counts == (4, 3)
    assert back.solution is chosen.solution and back.diagnostics == ("note",)
    assert back.keep.dtype == torch.bool and back.rank.dtype == values.dtype


def test_merge_weights_keep_their_direction_and_stay_within_their_group() -> None:
    merge = torch.zeros(5, 3, 3)
    for g, (_, row) in enumerate(PLACES):
        for i in range(3):
            for j in range(3):
                real = i < len(row) and j < len(row)
                merge[g, i, j] = (100 * g + 10 * i + j + 1) if real else 999.0
    back = joined(Selection(torch.ones(5, 3, dtype=torch.bool), merge=merge))
    want = torch.zeros(2, 7, 7)
    for g, (owner, row) in enumerate(PLACES):
        for i, n in enumerate(row):
            for j, m in enumerate(row):
                want[owner, n, m] = 100 * g + 10 * i + j + 1
    assert torch.equal(back.merge, want)


def test_what_a_selection_does_not_have_stays_absent() -> None:
    back = joined(Selection(torch.ones(5, 3, dtype=torch.bool)))
    assert (back.counts, back.importance, back.merge, back.size, back.rank) == (None,) * 5
    half = joined(Selection(torch.ones(5, 3, dtype=torch.bool), merge=torch.ones(5, 3, 3).half()))
    assert half.merge.dtype == torch.float16


@pytest.mark.parametrize("batch", [1, 2])
def test_pictures_that_lie_in_one_piece_are_cut_and_no_padding_is_made(batch: int) -> None:
    tokens = torch.arange(batch * 6).view(batch, 6)
    tensors = {
        "group": torch.tensor([[3, 3, 3, 5, 5, 5]]).expand(batch, -1),
        "keys": tokens[:, None, :, None].float() * torch.tensor([1.0, -1.0])[None, :, None, None],
        "encoder_attention": (10 * tokens[:, None, :, None] + tokens[:, None, None, :]).float(),
        "features": tokens[:, :, None].float(),
    }
    grouped, place = split_groups(Signals(tensors), {"keys", "group", "encoder_attention"})
    assert set(grouped) == {"keys", "group", "encoder_attention"} and not grouped.ragged
    assert place.tolist() == [[0, 1, 2], [3, 4, 5]] * batch
    assert grouped.sample.tolist() == [b for b in range(batch) for _ in range(2)]
    cut = tokens.view(-1, 3)
    assert torch.equal(grouped["keys"][:, 1, :, 0], -cut.float())
    assert torch.equal(grouped["encoder_attention"][:, 0], (10 * cut[:, :, None] + cut[:, None]).float())


def test_pieces_of_other_samples_are_not_taken_for_whole_ones() -> None:
    tensors = {"features": torch.arange(8.0).view(2, 4, 1)}
    out = gather_tokens(Signals(tensors), torch.arange(4).repeat(2, 1), sample=torch.tensor([1, 0]))
    assert out["features"][:, :, 0].tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]
