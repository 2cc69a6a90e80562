"""Random signals are what their row of the table says, and hang together."""

from __future__ import annotations

import pytest
import torch
from signal_values import odd

from pruneopt.lab.selection.signals import select_signals
from pruneopt.signals import SIGNALS, Place, SignalInfo, Values, signals_at
from pruneopt.testing.cases import make_signals
from pruneopt.testing.draw import grid_of

SIZES = {"B": 2, "N": 6, "T": 5, "S": 2, "M": 16, "H": 3, "D": 10, "C": 10, "c": 10, "d": 5, "P": 4, "L": 14}


def test_axes_are_as_long_as_asked_for() -> None:
    signals = make_signals(SIGNALS, tokens=6, width=10, heads=3, text=5)
    assert not signals.ragged
    for name, info in SIGNALS.items():
        wanted = [SIZES[axis] if axis in SIZES else int(axis) for axis in info.axes]
        found = list(signals[name].shape)
        assert found == ([2, 3, 17, 17] if "L" in info.axes else wanted), name


@pytest.mark.parametrize("style", ["random", "zeros", "constant", "duplicates", "large", "clusters"])
@pytest.mark.parametrize("lengths", [None, (12, 7)])
def test_values_are_what_the_row_says(style: str, lengths: tuple[int, int] | None) -> None:
    signals = make_signals(SIGNALS, lengths=lengths, style=style)
    for name in SIGNALS:
        assert odd(name, signals[name], signals.mask) == "", (name, style)


def test_the_bench_draws_the_same_signals_in_its_own_sizes() -> None:
    names = {"features", "encoder_keys", "keys", "attention_visual", "text_mask"}
    wide = select_signals(names, batch=2, tokens=9)
    assert wide["features"].shape == (2, 9, 4096) and wide["encoder_keys"].shape == (2, 16, 9, 64)
    assert wide["keys"].shape == (2, 32, 9, 128) and wide["attention_visual"].shape == (2, 8, 9, 9)
    assert not wide.ragged and all(odd(name, wide[name], wide.mask) == "" for name in wide)


def test_places_grids_and_counts_hang_together() -> None:
    signals = make_signals({"xy", "grid", "visual_index", "text_index", "size"}, tokens=12, text=4)
    columns, rows = grid_of(12)
    assert (columns, rows) == (4, 3) and grid_of(7) == (7, 1) and grid_of(1) == (1, 1)
    assert signals["grid"].unique(dim=1).tolist() == [[[4, 3]]] * 2
    assert [tuple(xy) for xy in signals["xy"][0].tolist()] == [(i % 4, i // 4) for i in range(12)]
    assert signals["text_index"][0].tolist() == [15, 16, 17, 18]
    assert signals["visual_index"][0].tolist() == list(range(3, 15))


def test_styles_change_numbers_and_nothing_else() -> None:
    names = {"features", "keys", "cls_attention", "visual_index", "size"}
    drawn = {s: make_signals(names, style=s) for s in ("random", "zeros", "constant", "duplicates", "large")}
    for name in ("cls_attention", "visual_index", "size"):
        assert all(torch.equal(one[name], drawn["random"][name]) for one in drawn.values())
    assert drawn["zeros"]["features"].eq(0).all() and drawn["large"]["keys"].abs().max() > 1e4
    same = drawn["constant"]["keys"]
    assert torch.equal(same, same[:, :, :1].expand_as(same)) and same[0].ne(same[1]).any()
    twice = drawn["duplicates"]["features"]
    assert torch.equal(twice[:, :6], twice[:, 6:]) and twice[:, 0].ne(twice[:, 1]).any()
    near = make_signals({"features"}, batch=1, tokens=200, width=50, style="clusters")["features"][0]
    apart = torch.cdist(near, near).fill_diagonal_(torch.inf)
    assert float(apart.amin(1).median()) < 0.5 * float(apart[apart.isfinite()].median())


def test_samples_differ_and_do_not_depend_on_each_other() -> None:
    both, longer = (make_signals({"features"}, tokens=8, lengths=n) for n in ((5, 8), (5, 8, 3)))
    assert both.ragged and torch.equal(both["features"], longer["features"][:2])
    assert both["features"][0, 5:].eq(0).all() and both["features"][1].ne(0).all()
    other = make_signals({"features"}, tokens=8, lengths=(5, 8), seed=1)["features"]
    assert both["features"][0, :5].ne(other[0, :5]).all()
    assert both["features"][0, :5].ne(both["features"][1, :5]).all()
    half = make_signals({"features", "visual_index"}, dtype=torch.float16)
    assert half["features"].dtype == torch.float16 and half["visual_index"].dtype == torch.int64


def test_a_new_row_is_drawn_without_further_words(monkeypatch: pytest.MonkeyPatch) -> None:
    row = SignalInfo("[B,N,5]", "x", place=Place.DECODER, values=Values.POSITIVE)
    monkeypatch.setitem(SIGNALS, "new", row)
    assert "new" in signals_at(Place.DECODER)
    found = make_signals({"new@3"})
    assert found["new@3"].shape == (2, 12, 5) and odd("new", found["new@3"], found.mask) == ""
