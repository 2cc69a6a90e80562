"""The columns of a prefill, without a model: what is left, where it stands, and what moves along.

Hidden states hold their own address, so that every result is compared with lists that are cut up by hand.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixed_parts import FeatureScore, FixedScore, SpySolver, bare, top_k
from torch import Tensor

from pruneopt.errors import ModelError, SignalError
from pruneopt.models import prefill as prefill_module
from pruneopt.models import sequence as sequence_module
from pruneopt.models.deepstack import Deepstack
from pruneopt.models.prefill import Prefill
from pruneopt.models.prompt import Prompt
from pruneopt.models.sequence import Segment, rotary_of, segment_mask
from pruneopt.parts.insertions.post_encoder import PostEncoder
from pruneopt.parts.insertions.prefill_layer import PrefillLayer
from pruneopt.problems.budget import Budget
from pruneopt.problems.selection import Selection
from pruneopt.pruner import Clock
from pruneopt.spec.schema import ProblemSpec, Spec, StageSpec, Weighted

# `.` leading padding, `T` text, `s` a separator that stays, `0` and `1` free tokens of that crop, `_` padding
# inside or behind.  The second row has no picture.
ROWS = (
    ["..T0000sT1111TT", ".....TTTTTTTTTT", "T00sTT1_11TTTTT"],
    ["T0000sT1111TT__", "TTTTTTTTTT_____", "..T000TTTTTTTT_"],
    ["T0000TT", "T0000TT"],
    ["..T0000T", "T00T001T", "000T000T"],
)
NAMES = ["left", "right", "even", "first"]


def prompt_of(rows: list[str]) -> Prompt:
    """What `read_prompt` would say of these rows."""
    width = len(rows[0])
    real = torch.tensor([[c not in "._" for c in row] for row in rows])
    free = torch.tensor([[c in "01" for c in row] for row in rows])
    owners = [b for b in range(len(rows)) if free[b].any()]
    places = [[c for c in range(width) if rows[b][c] in "01"] for b in owners]
    texts = [[c for c in range(places[i][0], width) if rows[b][c] == "T"] for i, b in enumerate(owners)]
    lengths = real.sum(1).tolist()
    leading = [len(row) - len(row.lstrip(".")) for row in rows]
    groups = [[int(rows[b][c]) for c in place] for b, place in zip(owners, places, strict=True)]
    place = padded(places, -1)
    return Prompt(
        batch=len(rows), columns=width, lengths=lengths, leading=leading,
        inner=[width - n - lead for n, lead in zip(lengths, leading, strict=True)],
        rows=owners, started=[len(p) for p in places], real=real, free=free, place=place,
        text=padded(texts, -1), last=torch.tensor([int(real[b].nonzero().max()) for b in owners]),
        source=torch.zeros_like(place),
        geometry={"group": padded(groups, 0), "xy": torch.stack([place, -place], 2)},
        groups=max(len(set(g)) for g in groups),
    )  # fmt: skip


def padded(rows: list[list[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def address(rows: list[str]) -> Tensor:
    """`[B,W,2]`: 100 times the row plus the column, and its negative."""
    b, c = torch.arange(len(rows))[:, None], torch.arange(len(rows[0]))[None]
    return torch.stack([100 * b + c, -(100 * b + c)], 2).double()


class Rotary:
    """Position p has cos p and sin 1000 + p, over all axes."""

    def rotary_emb(self, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        self.asked, self.hidden = ids, hidden
        cos = ids.double() if ids.dim() == 2 else ids.double().sum(0)
        return cos[:, :, None], 1000 + cos[:, :, None]


def flow_of(rows: list[str], *stages: StageSpec, positions: str = "keep", check: bool = True) -> Prefill:
    adapter: Any = SimpleNamespace(text=Rotary(), text_config="config")
    sources: Any = None  # no layer is asked
    spec = Spec("mine", stages, positions)
    flow = Prefill(adapter, spec, prompt=prompt_of(rows), sources=sources, sites=(), clock=Clock, check=check)
    columns = torch.arange(len(rows[0])).double()[None, :, None]
    flow.rotary = (columns, 1000 + columns)
    flow.positions = torch.arange(len(rows[0]))[None, None]
    return flow


def signals_of(flow: Prefill, stage: StageSpec, hidden: Tensor) -> Any:
    return flow.store.signals(stage, flow.columns, hidden=hidden)


def stage_of(
    values: Tensor | None, keep: int, layer: int = 0, scope: str = "sample", **more: Any
) -> StageSpec:
    insertion: Any = PrefillLayer(layer) if layer else PostEncoder()
    score: Any = FeatureScore() if values is None else FixedScore(values)
    problem = ProblemSpec("top_k", scores=(Weighted("s", score),))
    given = {"rule": None, "solver": SpySolver(), "readout": None, **more}
    return StageSpec(insertion, Budget(keep, scope=scope), problem=problem, **given)


def scores_of(prompt: Prompt, seed: int = 0) -> Tensor:
    return torch.rand(prompt.place.shape, generator=torch.Generator().manual_seed(seed))


def cut_by_hand(rows: list[str], live: list[list[int]], kept: list[list[int]]) -> list[list[int]]:
    """Columns left in each row: padding in front goes, whatever is free and not kept goes."""
    out = []
    for row, columns, chosen in zip(rows, live, kept, strict=True):
        out.append([c for c in columns if row[c] not in "01" or c in chosen])
    return out


def chosen(prompt: Prompt, values: Tensor, k: int) -> list[list[int]]:
    """Columns of the k best tokens of every row."""
    out: list[list[int]] = [[] for _ in range(prompt.batch)]
    for i, b in enumerate(prompt.rows):
        real = [n for n in range(values.shape[1]) if prompt.place[i, n] >= 0]
        best = sorted(real, key=lambda n: -float(values[i, n]))[:k]
        out[b] = sorted(int(prompt.place[i, n]) for n in best)
    return out


def check_flow(
    flow: Prefill, hidden: Tensor, rows: list[str], left: list[list[int]], kept: list[list[int]]
) -> None:
    """Every column, place and length against the lists `left` (columns per row) and `kept` (free ones)."""
    width = max(map(len, left))
    assert flow.columns.width == width == hidden.shape[1]
    real = [[row[c] not in "._" for c in columns] for row, columns in zip(rows, left, strict=True)]
    assert flow.columns.lengths == tuple(sum(r) for r in real)
    owners = flow.prompt.rows
    assert flow.columns.alive == tuple(len(kept[b]) for b in owners)
    assert flow.columns.mask.tolist() == [
        [n < len(kept[b]) for n in range(max(flow.columns.alive))] for b in owners
    ]
    assert flow.columns.valid.tolist() == [[False] * (width - len(r)) + r for r in real]
    for b, columns in enumerate(left):
        shift = width - len(columns)
        assert hidden[b, shift:, 0].tolist() == [100 * b + c for c in columns]
        assert hidden[b, shift:, 1].tolist() == [-(100 * b + c) for c in columns]
        if b not in owners:
            continue
        i = owners.index(b)
        n = len(kept[b])
        new = {c: shift + at for at, c in enumerate(columns)}
        assert flow.columns.place[i, :n].tolist() == [new[c] for c in kept[b]]
        assert flow.columns.origin[i, :n].tolist() == kept[b]
        assert flow.store["xy", None][i, :n].tolist() == [[c, -c] for c in kept[b]]
        assert flow.store["group", None][i, :n].tolist() == [int(rows[b][c]) for c in kept[b]]
        old_text = flow.prompt.text[i].tolist()
        assert flow.columns.text[i].tolist() == [new[c] if c >= 0 else -1 for c in old_text]
        assert flow.columns.last[i].item() == new[int(flow.prompt.last[i])]


@pytest.mark.parametrize("rows", ROWS, ids=NAMES)
@pytest.mark.parametrize("k", [2, 3])
def test_one_cut_leaves_what_lists_leave(rows: list[str], k: int) -> None:
    prompt = prompt_of(rows)
    values = scores_of(prompt)
    flow = flow_of(rows, stage_of(values, k))
    flow.store["keys", 1] = torch.stack([address(rows)[b, p.clamp_min(0)] for b, p in
                                         zip(prompt.rows, prompt.place, strict=True)])[:, None]  # fmt: skip
    flow.store.crop = flow.prompt.geometry["group"] + 10
    hidden = flow.cut(flow.spec.stages[0], address(rows))
    kept = chosen(prompt, values, k)
    live = [[c for c in range(len(row)) if row[c] != "."] for row in rows]
    left = cut_by_hand(rows, live, kept)
    check_flow(flow, hidden, rows, left, kept)
    for i, b in enumerate(prompt.rows):
        assert flow.store["keys", 1][i, 0, :k, 0].tolist() == [100 * b + c for c in kept[b]]
        assert flow.store.crop[i, :k].tolist() == [10 + int(rows[b][c]) for c in kept[b]]
        importance = [float(values[i, prompt.place[i].tolist().index(c)]) for c in kept[b]]
        assert flow.store["importance", None][i, :k].tolist() == pytest.approx(importance)
        assert flow.store["size", None][i, :k].tolist() == [1] * k
    (cut,) = flow.cuts
    assert (cut.layer, cut.stage, cut.width) == (0, flow.spec.stages[0], flow.columns.width)
    assert (cut.lengths, cut.visual) == (list(flow.columns.lengths), list(flow.columns.alive))
    assert cut.kept.tolist() == [kept[b] for b in prompt.rows]
    assert cut.selection.known_counts == flow.columns.alive
    (segment,) = flow.state.segments
    assert (segment.layer, segment.width, segment.following) == (0, flow.columns.width, None)
    assert segment.valid is flow.columns.valid
    assert segment.full is (rows is ROWS[2])
    for b, columns in enumerate(left):
        shift = flow.columns.width - len(columns)
        assert flow.rotary is not None and flow.positions is not None
        assert flow.rotary[0][b, shift:, 0].tolist() == columns
        assert flow.rotary[1][b, shift:, 0].tolist() == [1000 + c for c in columns]
        assert flow.positions[0, b, shift:].tolist() == columns
    assert flow.state.columns == len(rows[0]) and flow.bad is None
    assert {"signals", "cost", "solve", "apply"} == set(flow.seconds)


@pytest.mark.parametrize("rows", ROWS, ids=NAMES)
def test_a_second_cut_goes_on_where_the_first_ended(rows: list[str]) -> None:
    prompt = prompt_of(rows)
    first, second = scores_of(prompt), scores_of(prompt, 1)
    once = chosen(prompt, first, 3)
    then = torch.zeros(len(prompt.rows), 3)  # the second scores, at the tokens that the first cut kept
    twice: list[list[int]] = [[] for _ in rows]
    for i, b in enumerate(prompt.rows):
        at = prompt.place[i].tolist()
        then[i] = torch.tensor([second[i, at.index(c)] for c in once[b]])
        twice[b] = sorted(sorted(once[b], key=lambda c: -float(second[i, at.index(c)]))[:2])
    flow = flow_of(rows, stage_of(first, 3), stage_of(then, 2, layer=2))
    hidden = flow.cut(flow.spec.stages[0], address(rows))
    between = dict(flow.seconds)
    hidden = flow.cut(flow.spec.stages[1], hidden)
    live = [[c for c in range(len(row)) if row[c] != "."] for row in rows]
    check_flow(flow, hidden, rows, cut_by_hand(rows, cut_by_hand(rows, live, once), twice), twice)
    assert [cut.layer for cut in flow.cuts] == [0, 2] == [s.layer for s in flow.state.segments]
    assert [cut.visual for cut in flow.cuts] == [[3] * len(prompt.rows), [2] * len(prompt.rows)]
    assert flow.cuts[1].kept.tolist() == [twice[b] for b in prompt.rows]
    assert flow.cuts[0].kept.tolist() == [once[b] for b in prompt.rows]
    assert all(flow.seconds[name] > between[name] for name in between)
    for i, b in enumerate(prompt.rows):
        wanted = [float(then[i, once[b].index(c)]) for c in twice[b]]
        assert flow.store["importance", None][i].tolist() == pytest.approx(wanted)


def test_two_cuts_at_one_layer_leave_one_segment() -> None:
    rows = ROWS[2]
    values = scores_of(prompt_of(rows))
    flow = flow_of(rows, stage_of(values, 3), stage_of(values[:, :3], 2))
    flow.cut(flow.spec.stages[1], flow.cut(flow.spec.stages[0], address(rows)))
    assert [(s.layer, s.width) for s in flow.state.segments] == [(0, flow.columns.width)] and len(
        flow.cuts
    ) == 2


def test_keeping_everything_changes_nothing_but_is_remembered() -> None:
    rows = ROWS[2]
    flow = flow_of(rows, stage_of(scores_of(prompt_of(rows)), 4))
    given, rotary = address(rows), flow.rotary
    assert flow.cut(flow.spec.stages[0], given) is given
    assert flow.state.segments == [] and flow.rotary is rotary and flow.columns.width == len(rows[0])
    assert flow.cuts[0].kept.tolist() == [[1, 2, 3, 4]] * 2 and flow.cuts[0].visual == [4, 4]


def test_compact_positions_close_gaps_and_ask_the_model_for_its_angles() -> None:
    rows = ROWS[0]
    prompt = prompt_of(rows)
    values = scores_of(prompt)
    flow = flow_of(rows, stage_of(values, 2), positions="compact")
    hidden = flow.cut(flow.spec.stages[0], address(rows))
    left = cut_by_hand(
        rows, [[c for c in range(len(r)) if r[c] != "."] for r in rows], chosen(prompt, values, 2)
    )
    (segment,) = flow.state.segments
    for b, columns in enumerate(left):
        shift, count, wanted = flow.columns.width - len(columns), 0, []
        for c in columns:  # real columns are counted, padding in between gets 0
            real = rows[b][c] not in "._"
            wanted.append(count if real else 0)
            count += real
        assert flow.positions is not None and flow.rotary is not None and segment.following is not None
        assert flow.positions[0, b, shift:].tolist() == wanted
        assert flow.rotary[0][b, shift:, 0].tolist() == wanted
        assert segment.following[b].tolist() == [count]
    assert hidden.shape[1] == flow.columns.width
    assert flow.adapter.text.hidden.shape == hidden.shape


@pytest.mark.parametrize("order", [("compact", "keep"), ("keep", "compact")])
def test_each_cut_numbers_as_its_stage_says(order: tuple[str, str]) -> None:
    rows = ROWS[2]  # T0000TT: tokens 1, 2 and 4 stay, then 2 and 4
    first, second = (
        replace(told(keep, n, layer), positions=policy)
        for keep, n, layer, policy in zip(([[0, 1, 3]] * 2, [[1, 2]] * 2), (4, 3), (1, 2), order, strict=True)
    )
    flow = flow_of(rows, first, second)
    hidden = flow.cut(first, address(rows))
    assert flow.positions is not None and flow.rotary is not None
    once = [0, 1, 2, 3, 4, 5] if order[0] == "compact" else [0, 1, 2, 4, 5, 6]
    assert flow.positions[0].tolist() == [once] * 2 and flow.rotary[0][1, :, 0].tolist() == once
    flow.cut(second, hidden)
    twice = [0, 2, 3, 4, 5] if order[1] == "keep" else [0, 1, 2, 3, 4]
    assert flow.positions[0].tolist() == [twice] * 2 and flow.rotary[0][0, :, 0].tolist() == twice
    ends = [s.following if s.following is None else s.following.tolist() for s in flow.state.segments]
    assert ends == ([[[6], [6]]] * 2 if order[0] == "compact" else [None, [[5], [5]]])


class Told(SpySolver):
    """Keeps what it is told."""

    name = "told"

    def solve(self, problem: Any) -> Any:
        found = super().solve(problem)
        object.__setattr__(found, "keep", self.rank)
        return found


class Change(FixedScore):
    """A step that replaces fields of the selection by `values`."""

    name = "change"

    def __call__(self, selection: Selection, signals: Any) -> Selection:
        return replace(selection, **self.values)

    def count(self, kept: int, tokens: int) -> int:
        return kept


def told(keep: list[list[int]], n: int, layer: int = 0, scope: str = "sample", **changes: Any) -> StageSpec:
    """Keeps the numbered tokens of each row; `changes` go into the selection."""
    mask = torch.zeros(len(keep), n, dtype=torch.bool)
    for i, numbers in enumerate(keep):
        mask[i, numbers] = True
    steps: Any = (Change(changes),) if changes else ()
    return stage_of(torch.rand(len(keep), n), len(keep[0]), layer, scope, solver=Told(mask), steps=steps)


@pytest.mark.parametrize("rows", ROWS[:3], ids=NAMES[:3])
def test_ranks_order_tokens_within_the_places_of_their_crop(rows: list[str]) -> None:
    prompt = prompt_of(rows)
    n = prompt.place.shape[1]
    keep = [[[0, 2, 3, 5], [0, 1, 2, 4]], [[0, 2, 5], [0, 1, 2]], [[0, 2], [1, 3]]][ROWS.index(rows)]
    rank = -torch.arange(n).expand(len(keep), n).float()
    flow = flow_of(rows, told(keep, n, rank=rank), positions="compact")
    flow.deepstack = Deepstack.of(prompt.free, [address(rows)[prompt.free]])
    hidden = flow.cut(flow.spec.stages[0], address(rows))
    added = flow.deepstack.added(0, torch.zeros_like(hidden))
    for i, b in enumerate(prompt.rows):
        columns = [int(prompt.place[i, t]) for t in keep[i]]
        waiting = {g: [c for c in columns if rows[b][c] == g] for g in "01"}
        content = {c: waiting[rows[b][c]].pop() for c in columns}  # each place of a crop, last token first
        live = [c for c in range(len(rows[b])) if rows[b][c] != "."]
        left = [c for c in live if rows[b][c] not in "01" or c in columns]
        shift = flow.columns.width - len(left)
        assert hidden[b, shift:, 0].tolist() == [100 * b + content.get(c, c) for c in left]
        assert flow.columns.origin[i, : len(columns)].tolist() == [content[c] for c in columns]
        assert flow.columns.place[i, : len(columns)].tolist() == [shift + left.index(c) for c in columns]
        wanted = [100 * b + content[c] if c in content else 0 for c in left]
        assert added[b, shift:, 0].tolist() == wanted
        assert not added[b, :shift].any()
    plain = [b for b in range(len(rows)) if b not in prompt.rows]
    for b in plain:
        assert (
            hidden[b, hidden.shape[1] - flow.columns.lengths[b] - prompt.inner[b], 0]
            == 100 * b + prompt.leading[b]
        )


def test_a_rank_needs_compact_positions() -> None:
    rows = ROWS[2]
    flow = flow_of(rows, told([[0, 1], [2, 3]], 4, rank=torch.zeros(2, 4)))
    with pytest.raises(ModelError) as caught:
        flow.cut(flow.spec.stages[0], address(rows))
    assert str(caught.value) == (
        "a step orders the kept tokens anew, which needs positions=compact: with positions=keep every token "
        "holds its place; override positions=compact"
    )
    assert flow.cuts == []


@pytest.mark.parametrize("rows", ROWS, ids=NAMES)
def test_merges_are_written_where_their_tokens_stand_and_sizes_are_carried(rows: list[str]) -> None:
    prompt = prompt_of(rows)
    b, n = prompt.place.shape
    generator = torch.Generator().manual_seed(2)
    merge, size = torch.rand(b, n, n, generator=generator), torch.rand(b, n, generator=generator) + 1
    size[0, 1] = torch.nan  # dropped tokens may say anything
    keep = [[0, 2] for _ in prompt.rows]
    flow = flow_of(rows, told(keep, n, merge=merge, size=size))
    before = address(rows)
    hidden = flow.cut(flow.spec.stages[0], before)
    for i, row in enumerate(prompt.rows):
        tokens = [int(c) for c in prompt.place[i] if c >= 0]
        for slot, t in enumerate(keep[i]):
            wanted = sum(float(merge[i, t, m]) * float(before[row, c, 0]) for m, c in enumerate(tokens))
            assert hidden[row, flow.columns.place[i, slot], 0].item() == pytest.approx(wanted, rel=1e-6)
        assert flow.store["size", None][i].tolist() == pytest.approx([float(size[i, t]) for t in keep[i]])
        new = [int(p) for p in flow.columns.place[i]]
        others = [c for c in range(flow.columns.width) if c not in new and flow.columns.valid[row, c]]
        kept = [tokens[t] for t in keep[i]]
        rest = [c for c in range(len(rows[row])) if rows[row][c] in "Ts"]
        assert hidden[row, others, 0].tolist() == [100 * row + c for c in rest] and len(kept) == 2
    assert flow.store["size", None].dtype == torch.float32


def test_a_merge_that_drops_nothing_is_still_written() -> None:
    rows = ROWS[2]
    merge = 2 * torch.eye(4).expand(2, 4, 4)
    flow = flow_of(rows, told([[0, 1, 2, 3]] * 2, 4, merge=merge))
    hidden = flow.cut(flow.spec.stages[0], address(rows))
    assert hidden[:, 1:5, 0].tolist() == [[2, 4, 6, 8], [202, 204, 206, 208]]
    assert hidden[:, 0, 0].tolist() == [0, 100]


def needing(names: tuple[str, ...], layer: int = 3, scope: str = "sample") -> StageSpec:
    values = torch.rand(2, 4)
    score = FixedScore(values, reads=names)
    problem = ProblemSpec("top_k", scores=(Weighted("s", score),))
    insertion: Any = PrefillLayer(layer) if layer else PostEncoder()
    return StageSpec(insertion, Budget(2, scope=scope), None, problem, SpySolver(), None)


def test_every_signal_is_read_where_it_stands() -> None:
    rows = ["T0000TT", "TT000T_"]
    flow = flow_of(rows)
    hidden = address(rows)
    for key in (("keys", 2), ("keys", 1), ("attn_out", 2), ("encoder_features", None), ("cls_attention", 4)):
        shape = (2, 1, 4, 1) if key[0] == "keys" else (2, 1, 4) if key[0] == "cls_attention" else (2, 4, 1)
        flow.store[key] = torch.rand(shape)
    names = ("features", "text_features", "text_mask", "text_index", "visual_index", "xy", "size",
             "keys", "keys@1", "attn_out", "encoder_features", "cls_attention@4", "cls_feature")  # fmt: skip
    found = signals_of(flow, needing(names), hidden)
    assert set(found) == set(names) - {"cls_feature"}
    assert found["features"][:, :, 0].tolist() == [[1, 2, 3, 4], [102, 103, 104, 100]]
    assert found["text_features"][:, :, 0].tolist() == [[5, 6], [105, 0]]
    assert found["text_mask"].tolist() == [[True, True], [True, False]]
    assert found["text_index"].tolist() == [[5, 6], [5, 0]]
    assert found["visual_index"].tolist() == [[1, 2, 3, 4], [2, 3, 4, 0]]
    assert found["xy"] is flow.store["xy", None] and found["size"].tolist() == [[1] * 4] * 2
    assert found["keys"] is flow.store["keys", 2] and found["keys@1"] is flow.store["keys", 1]
    assert found["attn_out"] is flow.store["attn_out", 2]
    assert found["encoder_features"] is flow.store["encoder_features", None]
    assert found["cls_attention@4"] is flow.store["cls_attention", 4]
    assert found.ragged and torch.equal(found.mask, flow.columns.mask)
    even = flow_of(ROWS[2])
    assert not signals_of(even, needing(("xy",)), address(ROWS[2])).ragged
    assert set(signals_of(even, needing(("text_mask",)), address(ROWS[2]))) == {"text_mask", "xy"}
    crops = flow_of(ROWS[0])
    assert set(signals_of(crops, needing(("xy",)), address(ROWS[0]))) == {"xy", "group"}
    with pytest.raises(SignalError) as caught:
        signals_of(even, needing(("importance",)), address(ROWS[2]))
    assert str(caught.value) == "signal 'importance' needs an earlier cut that ranks tokens; there was none"
    even.store["importance", None] = torch.ones(2, 4)
    assert signals_of(even, needing(("importance",)), address(ROWS[2]))["importance"].all()


def per_crop(
    rows: list[str], scope: str, names: tuple[str, ...] = ("features", "cls_feature")
) -> tuple[Prefill, Any]:
    """A flow whose crops have a CLS feature each: row and crop number."""
    flow = flow_of(rows)
    crops = sorted({(b, g) for b, row in enumerate(rows) for g in row if g in "01"})
    flow.store["cls_feature", None] = torch.tensor([[10.0 * b + int(g)] for b, g in crops])
    flow.store["cls_key", 4] = flow.store["cls_feature", None][:, None] + 0.5
    number = {crop: i for i, crop in enumerate(crops)}
    flow.store.crop = padded([[number[b, c] for c in rows[b] if c in "01"] for b in flow.prompt.rows], 0)
    score = SeesCrops(names)
    problem = ProblemSpec("top_k", scores=(Weighted("s", score),))
    stage = StageSpec(PostEncoder(), Budget(0.5, scope=scope), None, problem, SpySolver(), None)
    return flow, (stage, score)


class SeesCrops(FeatureScore):
    """Scores by the last feature and remembers what it saw."""

    name = "sees_crops"

    def __init__(self, names: tuple[str, ...]):
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "seen", [])

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.names)


def test_signals_of_a_crop_stand_beside_the_tokens_of_that_crop() -> None:
    rows = ["..T0000sT1111TT", ".....TTTTTTTTTT", "T00sTT1_11TTTTT"]
    names = ("features", "cls_feature", "cls_key@4")
    flow, (stage, score) = per_crop(rows, "group", names)
    flow.cut(stage, address(rows))
    (view,) = score.seen
    assert view["cls_feature"].tolist() == [[0], [1], [20], [21]]
    assert view["cls_key@4"].tolist() == [[[0.5]], [[1.5]], [[20.5]], [[21.5]]]
    assert [[v for v, m in zip(r, k, strict=True) if m] for r, k in
            zip(view["features"][:, :, 0].tolist(), view.mask.tolist(), strict=True)] == [
        [3, 4, 5, 6], [9, 10, 11, 12], [201, 202], [206, 208, 209]]  # fmt: skip
    # features fall, so the first half of each crop is kept
    assert flow.cuts[0].kept.tolist() == [[3, 4, 9, 10], [1, 6, 8, -1]]
    lone, (stage, score) = per_crop(["T0T11T", "T0T11T"], "group")  # a crop of one token
    lone.cut(stage, address(["T0T11T", "T0T11T"]))
    assert score.seen[0]["cls_feature"].tolist() == [[0], [1], [10], [11]]
    even, (stage, score) = per_crop(ROWS[2], "sample")
    even.cut(stage, address(ROWS[2]))
    assert score.seen[0]["cls_feature"].tolist() == [[0], [10]] and score.seen[0].sample.tolist() == [0, 1]
    pooled, (stage, _) = per_crop(rows, "sample")
    with pytest.raises(ModelError) as caught:
        pooled.cut(stage, address(rows))
    assert str(caught.value) == (
        "signal 'cls_feature' is one per crop, but this budget pools the crops of a sample; "
        "set budget.scope=group"
    )


@pytest.mark.parametrize("bad", [None, 0, 1])
def test_bad_values_found_after_the_pass_are_never_forgotten(bad: int | None) -> None:
    """Two cuts without a check: what either saw is in `bad`."""
    rows = ROWS[2]
    values = torch.rand(2, 4)
    score, other = FixedScore(values, reads=("xy",)), FixedScore(values[:, :3], reads=("grid",))
    stages = [
        StageSpec(PostEncoder(), Budget(k, scope="sample"), None,
                  ProblemSpec("top_k", scores=(Weighted("s", s),)), SpySolver(), None)
        for k, s in ((3, score), (2, other))
    ]  # fmt: skip
    flow = flow_of(rows, *stages, check=False)
    for number, name in enumerate(("xy", "grid")):
        flow.store[name, None] = torch.zeros(2, 4, 2)
        if bad == number:
            flow.store[name, None][1] = torch.nan
    hidden = flow.cut(stages[0], address(rows))
    assert flow.bad is not None and bool(flow.bad) is (bad == 0)
    flow.cut(stages[1], hidden)
    assert bool(flow.bad) is (bad is not None)
    if bad == 0:
        checked = flow_of(rows, *stages)
        checked.store["xy", None] = torch.full((2, 4, 2), torch.nan)
        with pytest.raises(SignalError, match="'xy' holds NaN"):
            checked.cut(stages[0], address(rows))


def test_budgets_are_relative_to_the_unpruned_prompt() -> None:
    rows = ROWS[2]
    values = torch.rand(2, 4)
    flow = flow_of(rows, stage_of(values, 3))
    flow.cut(flow.spec.stages[0], address(rows))
    later = StageSpec(PrefillLayer(2), Budget(0.75), None, top_k(values[:, :3]), SpySolver(), None)
    flow.cut(later, address(rows)[:, : flow.columns.width])
    assert flow.columns.alive == (3, 3)  # of the three that were left it would be two


class Ticks(Clock):
    """Every lap takes two seconds."""

    def lap(self, name: str) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + 2


def test_seconds_of_all_cuts_add_up() -> None:
    rows = ROWS[2]
    values = torch.rand(2, 4)
    flow = flow_of(rows, stage_of(values, 3), stage_of(values[:, :3], 2, layer=1))
    flow.clock = Ticks
    hidden = flow.cut(flow.spec.stages[0], address(rows))
    assert flow.seconds == {"signals": 2, "cost": 2, "solve": 2, "apply": 2}
    flow.cut(flow.spec.stages[1], hidden)
    assert flow.seconds == {"signals": 4, "cost": 4, "solve": 4, "apply": 4}


def test_text_that_moves_to_the_first_column_is_still_text() -> None:
    rows = ["00T000T", "00T000T"]
    flow = flow_of(rows, told([[2, 3, 4]] * 2, 5))
    hidden = flow.cut(flow.spec.stages[0], address(rows))
    assert flow.columns.text.tolist() == [[0, 4]] * 2 and hidden[0, :, 0].tolist() == [2, 3, 4, 5, 6]
    found = signals_of(flow, needing(("text_mask", "visual_index")), hidden)
    assert found["text_mask"].tolist() == [[True, True]] * 2
    flow.cut(told([[0, 2]] * 2, 3, layer=1), hidden)
    assert flow.columns.text.tolist() == [[0, 3]] * 2


@pytest.mark.parametrize("positions", ["keep", "compact"])
def test_positions_of_three_axes_move_with_their_columns(positions: str) -> None:
    rows = ROWS[2]
    flow = flow_of(rows, told([[1, 3]] * 2, 4), positions=positions)
    axes = torch.tensor([[0, 1, 1, 1, 1, 3, 4], [0, 1, 1, 2, 2, 3, 4], [0, 1, 2, 1, 2, 3, 4]])
    flow.positions = axes[:, None]
    flow.cut(flow.spec.stages[0], address(rows))
    kept = axes[:, [0, 2, 4, 5, 6]]
    closed = torch.tensor([[0, 1, 1, 3, 4], [0, 1, 2, 3, 4], [0, 2, 2, 3, 4]])
    assert flow.positions is not None and flow.positions.shape == (3, 2, 5)
    for row in range(2):
        assert torch.equal(flow.positions[:, row], closed if positions == "compact" else kept)


def test_deepstack_is_added_at_the_visual_columns_that_are_left() -> None:
    rows = ["T0000TT", "TTT00TT"]
    visual = torch.tensor([[c in "01" for c in row] for row in rows])
    count = torch.arange(6)[:, None].expand(6, 2)
    features = [count.double() + 1, count.float() * 10]
    flow = flow_of(rows, told([[1, 3], [0, 1]], 4))
    flow.deepstack = Deepstack.of(visual, features)
    base = torch.full((2, 7, 2), 0.5, dtype=torch.float64)
    whole = flow.deepstack.added(0, base)
    assert whole[:, :, 0].tolist() == [
        [0.5, 1.5, 2.5, 3.5, 4.5, 0.5, 0.5],
        [0.5, 0.5, 0.5, 5.5, 6.5, 0.5, 0.5],
    ]
    assert flow.deepstack.added(1, base).dtype == torch.float64
    assert flow.deepstack.added(0, base.bfloat16()).dtype == torch.bfloat16
    flow.cut(flow.spec.stages[0], address(rows))
    after = flow.deepstack.added(1, torch.zeros(2, flow.columns.width, 2))
    assert after[:, :, 1].tolist() == [[0, 0, 0, 10, 30, 0, 0], [0, 0, 0, 40, 50, 0, 0]]


def test_views_show_the_columns_as_they_stand() -> None:
    flow = flow_of(ROWS[0])
    view = flow.view()
    assert view.columns is flow.columns and view.rotary is flow.rotary
    assert flow.columns.index is not None and flow.columns.index.tolist() == [0, 2]
    cos, sin = view.rotary_at(torch.tensor([[4, -1], [2, 3]]))
    assert cos[:, :, 0].tolist() == [[4, 0], [2, 3]] and sin[:, :, 0].tolist() == [[1004, 1000], [1002, 1003]]
    assert flow_of(ROWS[2]).columns.index is None


def test_times_of_one_name_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = flow_of(ROWS[2])
    monkeypatch.setattr(prefill_module.time, "perf_counter", lambda: 10.0)
    flow.timed("a", 7.0)
    flow.timed("a", 9.0)
    flow.timed("b", 9.5)
    assert flow.seconds == {"a": 4.0, "b": 0.5}


def test_angles_come_from_the_model_by_its_own_axes() -> None:
    adapter: Any = SimpleNamespace(text=Rotary())
    one = torch.tensor([[[3, 4]]])
    cos, sin = rotary_of(adapter, torch.zeros(1), positions=one)
    assert cos[0, :, 0].tolist() == [3, 4] and sin[0, :, 0].tolist() == [1003, 1004]
    assert adapter.text.asked.shape == (1, 2)
    rotary_of(adapter, torch.zeros(1), positions=one.expand(3, 1, 2))
    assert adapter.text.asked.shape == (3, 1, 2)


def test_masks_of_later_steps_join_the_prompt_and_what_came_after(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def causal(config: Any, hidden: Tensor, *, valid: Tensor | None, past: int) -> str:
        asked.append((config, hidden, valid, past))
        return "mask"

    monkeypatch.setattr(sequence_module, "causal_mask", causal)
    adapter: Any = SimpleNamespace(text_config="config")
    valid = torch.tensor([[False, True, True], [True, True, True]])

    def mask(segment: Segment, hidden: Tensor, past: int, tail: Tensor | None) -> Any:
        assert segment_mask(adapter, segment, hidden=hidden, past=past, tail=tail) == "mask"
        config, seen, joined, length = asked.pop()
        assert config == "config" and seen is hidden and length == past
        return None if joined is None else joined.long().tolist()

    ragged, full = Segment(2, valid, False), Segment(2, valid, True)
    two, four = torch.zeros(2, 2, 8), torch.zeros(4, 1, 8)
    assert mask(full, two, 3, None) is None
    assert mask(ragged, two, 3, None) == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert mask(ragged, torch.zeros(2, 3, 8), 0, None) == [[0, 1, 1], [1, 1, 1]]
    tail = torch.tensor([[1, 0], [0, 1]])
    assert mask(full, two, 3, tail) == [[0, 1, 1, 1, 0], [1, 1, 1, 0, 1]]
    assert mask(ragged, four, 3, None) == [[0, 1, 1, 1]] * 2 + [[1, 1, 1, 1]] * 2
    with pytest.raises(ModelError) as caught:
        mask(ragged, torch.zeros(3, 1, 8), 3, None)
    assert str(caught.value) == (
        "the cache was pruned for a batch of 2 but is used for 3; start with a new cache, "
        "or use num_return_sequences"
    )


def test_bare_signals_hold_their_address() -> None:
    assert bare(2, 3)["features"][1, 2].tolist() == [1, 2]
