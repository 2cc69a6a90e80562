"""Columns after a removal, against lists that are cut up by hand: no model, every layout hypothesis finds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruneopt.models import columns as columns_module
from pruneopt.models.columns import Columns, Move, take

# one letter a column: `.` leading padding, `T` text, `s` a separator, `_` other padding, digits the visual
# tokens of that crop
Row = str


def digits(row: Row) -> list[int]:
    return [c for c, letter in enumerate(row) if letter.isdigit()]


@st.composite
def layouts(draw: st.DrawFn) -> list[Row]:
    """One to four rows of one width, some without visual tokens; the last real column is never visual."""
    width = draw(st.integers(3, 12))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        lead = draw(st.integers(0, width - 3))
        trail = draw(st.integers(0, width - 3 - lead))
        body = draw(st.text("Ts_012", min_size=width - lead - trail - 2, max_size=width - lead - trail - 2))
        rows.append("." * lead + draw(st.sampled_from("T01")) + body + "T" + "_" * trail)
    if not any(digits(row) for row in rows):
        rows[0] = rows[0].replace("T", "0", 1)
    return rows


def padded(rows: list[list[int]], fill: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.int64)


def columns_of(rows: list[Row]) -> Columns:
    """What the rows say, read letter by letter."""
    owners = [b for b, row in enumerate(rows) if digits(row)]
    real = [[letter not in "._" for letter in row] for row in rows]
    place = padded([digits(rows[b]) for b in owners], -1)
    texts = [[c for c, x in enumerate(rows[b]) if x == "T" and c > digits(rows[b])[0]] for b in owners]
    lengths = [sum(row) for row in real]
    return Columns(
        valid=torch.tensor(real),
        rows=tuple(owners),
        index=None if len(owners) == len(rows) else torch.tensor(owners),
        place=place,
        origin=place,
        text=padded(texts, -1),
        last=torch.tensor([max(c for c, is_real in enumerate(real[b]) if is_real) for b in owners]),
        lengths=tuple(lengths),
        inner=tuple(len(row.lstrip(".")) - n for row, n in zip(rows, lengths, strict=True)),
        alive=tuple(len(digits(rows[b])) for b in owners),
    )


def groups_of(rows: list[Row], columns: Columns) -> Tensor:
    return padded([[int(rows[b][c]) for c in digits(rows[b])] for b in columns.rows], 0)


Cell = tuple[int, int]  # the original column whose place this is, and the one whose token stands there


def cut(row: Row, cells: list[Cell], keep: set[int], rank: dict[int, int] | None) -> list[Cell]:
    """One row without the tokens outside `keep`; with a rank each crop fills its own places anew."""
    left = [(c, token) for c, token in cells if not row[c].isdigit() or token in keep]
    if rank is None:
        return left
    for crop in "012":
        at = [i for i, (c, _) in enumerate(left) if row[c] == crop]
        order = sorted((left[i][1] for i in at), key=lambda token: rank[token])
        for i, token in zip(at, order, strict=True):
            left[i] = left[i][0], token
    return left


def check(rows: list[Row], new: list[list[Cell]], got: Columns) -> None:
    """Every field against the lists."""
    assert got.width == max(map(len, new)) and got.valid.shape == (len(rows), got.width)
    whole = all(
        len(cells) == got.width and rows[b][c] != "_" for b, cells in enumerate(new) for c, _ in cells
    )
    assert got.full is whole
    for b, cells in enumerate(new):
        real = [rows[b][c] != "_" for c, _ in cells]
        assert got.valid[b].tolist() == [False] * (got.width - len(cells)) + real
        assert got.lengths[b] == sum(real) and got.used[b] == len(cells)
    for i, b in enumerate(got.rows):
        at = {c: got.width - len(new[b]) + n for n, (c, _) in enumerate(new[b])}
        visual = [(c, token) for c, token in new[b] if rows[b][c].isdigit()]
        rest = [-1] * (got.place.shape[1] - len(visual))
        assert got.alive[i] == len(visual)
        assert got.place[i].tolist() == [at[c] for c, _ in visual] + rest
        assert got.origin[i].tolist() == [token for _, token in visual] + rest
        assert got.mask[i].tolist() == [not r for r in [0] * len(visual) + rest]
        texts = [c for c, letter in enumerate(rows[b]) if letter == "T" and c > digits(rows[b])[0]]
        assert got.text[i].tolist() == [at[c] for c in texts] + [-1] * (got.text.shape[1] - len(texts))
        assert got.last[i].item() == at[max(c for c, letter in enumerate(rows[b]) if letter not in "._")]
    assert got.ragged is (len(set(got.alive)) > 1)


def check_move(old: list[list[Cell]], before: int, new: list[list[Cell]], got: Columns, move: Move) -> None:
    """Gathering by the move gives what the lists say: places, tokens, and the numbers of visual tokens."""
    for b, cells in enumerate(new):
        shift = before - len(old[b])
        place = {c: shift + n for n, (c, _) in enumerate(old[b])}
        token = {t: shift + n for n, (_, t) in enumerate(old[b])}
        assert move.order[b, got.width - len(cells) :].tolist() == [place[c] for c, _ in cells]
        assert move.content[b, got.width - len(cells) :].tolist() == [token[t] for _, t in cells]


@settings(
    max_examples=150, deadline=None, derandomize=True, report_multiple_bugs=False, phases=[Phase.generate]
)
@given(rows=layouts(), data=st.data())
def test_two_cuts_leave_what_lists_leave(rows: list[Row], data: st.DataObject) -> None:
    columns = columns_of(rows)
    group = padded([[int(rows[b][c]) for c in digits(rows[b])] for b in columns.rows], 0)
    state = [[(c, c) for c, letter in enumerate(row) if letter != "."] for row in rows]
    if all(row[0] != "." for row in rows):
        check(rows, state, columns)
    for _ in range(2):
        ranked = data.draw(st.booleans())
        keep = torch.zeros_like(columns.place, dtype=torch.bool)
        rank, after, counts = torch.zeros(columns.place.shape), list(state), []
        for b, cells in enumerate(state):
            if b not in columns.rows:
                continue
            i = columns.rows.index(b)
            tokens = [token for token in columns.origin[i].tolist() if token >= 0]
            kept = data.draw(st.sets(st.sampled_from(tokens)) if tokens else st.just(set()))
            ranks = {token: data.draw(st.integers(0, 3)) for token in tokens} if ranked else None
            for n, token in enumerate(tokens):
                keep[i, n], rank[i, n] = token in kept, ranks[token] if ranks else 0
            counts.append(len(kept))
            after[b] = cut(rows[b], cells, kept, ranks)
        found, move = columns.after(keep, counts, rank=rank if ranked else None, group=group)
        check(rows, after, found)
        check_move(state, columns.width, after, found, move)
        assert torch.equal(take(columns.origin, move.tokens)[found.mask], found.origin[found.mask])
        assert move.tokens.shape == found.place.shape
        state, columns, group = after, found, take(group, move.tokens)


@settings(max_examples=60, deadline=None)
@given(rows=layouts())
def test_values_at_visual_and_text_columns(rows: list[Row]) -> None:
    """Reading and writing by row and column, one value for all rows included."""
    columns = columns_of(rows)
    address = torch.tensor([[[100 * b + c] for c in range(len(row))] for b, row in enumerate(rows)])
    seen, texts = columns.visual(address), columns.texts(address)
    shared = columns.visual(address[:1])
    for i, b in enumerate(columns.rows):
        visual = digits(rows[b])
        assert seen[i, : len(visual), 0].tolist() == [100 * b + c for c in visual]
        assert shared[i, : len(visual), 0].tolist() == visual
        text = [c for c in range(visual[0], len(rows[b])) if rows[b][c] == "T"]
        assert texts[i, :, 0].tolist() == [100 * b + c for c in text] + [0] * (texts.shape[1] - len(text))
    written = columns.write(address, -seen)
    for b, row in enumerate(rows):
        wanted = [-(100 * b + c) if letter.isdigit() else 100 * b + c for c, letter in enumerate(row)]
        assert written[b, :, 0].tolist() == wanted


# planted bugs


@contextmanager
def replaced(name: str, bug: Any) -> Iterator[None]:
    with mock.patch.object(columns_module, name, bug(getattr(columns_module, name))):
        yield


def sorted_places(real: Any) -> Any:
    """Places of dropped tokens stand among those of kept ones."""

    def emission(*given: Any, **more: Any) -> tuple[Tensor, Tensor]:
        places, tokens = real(*given, **more)
        return places.sort(dim=1).values, tokens

    return emission


def left_aligned(real: Any) -> Any:
    return lambda alive, width: (~alive).to(torch.int8).argsort(dim=1, stable=True)[:, :width]


def one_crop(real: Any) -> Any:
    return lambda keep, rank, *, group, width: real(keep, rank, group=torch.zeros_like(group), width=width)


def rank_upside_down(real: Any) -> Any:
    return lambda keep, rank, **more: real(keep, None if rank is None else -rank, **more)


def unstable_ranks(real: Any) -> Any:
    def emission(keep: Tensor, rank: Tensor | None, **more: Any) -> tuple[Tensor, Tensor]:
        back = torch.arange(keep.shape[1], 0, -1)
        return real(keep, None if rank is None else rank + back / 1000, **more)

    return emission


def moved_by_one(real: Any) -> Any:
    return lambda order, columns: (real(order, columns) + 1) % order.shape[1]


BUGS = {
    sorted_places: "emission",
    one_crop: "emission",
    rank_upside_down: "emission",
    unstable_ranks: "emission",
    left_aligned: "survivors",
    moved_by_one: "inverse",
}


@pytest.mark.parametrize("bug", list(BUGS), ids=lambda bug: bug.__name__)
def test_planted_bug_is_caught(bug: Any) -> None:
    with replaced(BUGS[bug], bug), pytest.raises(AssertionError):
        test_two_cuts_leave_what_lists_leave()
