"""A pass over a prompt and the passes after it, step by step and without a model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixed_parts import FixedScore, SpySolver
from test_prefill import Rotary, Ticks, address, chosen, prompt_of, scores_of, stage_of
from torch import Tensor

from pruneopt.errors import ModelError, SignalError
from pruneopt.models import decode as decode_module
from pruneopt.models import prefill as prefill_module
from pruneopt.models.cache import recall
from pruneopt.models.capture.decoder import Captured
from pruneopt.models.columns import Columns, inverse, take
from pruneopt.models.decode import Decode
from pruneopt.models.outcome import Cut
from pruneopt.models.prefill import Prefill, Sources, checks_each_cut
from pruneopt.models.sequence import CacheState, Segment
from pruneopt.models.sites import Site
from pruneopt.models.sites.prefill import PrefillSite
from pruneopt.parts.insertions.post_encoder import PostEncoder
from pruneopt.problems.budget import Budget
from pruneopt.problems.selection import Selection
from pruneopt.pruner import Clock
from pruneopt.spec.schema import ProblemSpec, Spec, StageSpec, Weighted

ROWS = ["T0000TT", "T0000TT"]
EVEN = torch.ones(2, 3, dtype=torch.bool)


class Decoder:
    """Two signals of layer 1, made of what was captured; remembers what it was asked."""

    plan = {1: {"keys", "attn_out"}}

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def compute(self, index: int, view: Any, *, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        self.seen.append((index, view, dict(raw)))
        return {"attn_out": view.columns.visual(raw["out"]), "hidden_in": view.columns.visual(raw["in"])}


class Encoder:
    def collect(self, inputs: Any, prompt: Any) -> dict[Any, Tensor]:
        assert torch.is_grad_enabled() is False
        self.seen = (inputs, prompt)
        return {("encoder_features", None): torch.ones(2, 4, 3)}

    def crops(self, inputs: Any, prompt: Any) -> Tensor:
        self.crops_seen = (inputs, prompt)
        return torch.zeros(2, 4, dtype=torch.int64)


class Adapter:
    text_config = SimpleNamespace(rope_parameters=None)
    layers = range(5)

    def __init__(self, added: Any = None) -> None:
        self.text, self.added = Rotary(), added

    def take_deepstack(self, kwargs: dict[str, Any]) -> Any:
        self.took = kwargs
        return self.added

    def without_deepstack(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in kwargs.items() if name != "deep"}


def prefill_of(*stages: StageSpec, adapter: Any = None, decoder: Any = None, **more: Any) -> Prefill:
    sources = Sources(decoder or SimpleNamespace(plan={}), None, {"inputs": 1})
    given = {"clock": Clock, "check": True, **more}
    adapter, spec = adapter or Adapter(), Spec("mine", stages)
    sites = [PrefillSite(adapter, spec)]
    return Prefill(adapter, spec, prompt=prompt_of(ROWS), sources=sources, sites=sites, **given)


def cosine(width: int = 7) -> tuple[Tensor, Tensor]:
    columns = torch.arange(width).double()[None, :, None]
    return columns, 1000 + columns


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every mask that is asked for, by its arguments; the answer is its number."""
    asked: list[Any] = []

    def mask(adapter: Any, segment: Any, *, hidden: Tensor, past: int, tail: Any) -> str:
        asked.append((adapter, segment, hidden, past, tail))
        return f"mask {len(asked)}"

    monkeypatch.setattr(prefill_module, "segment_mask", mask)
    monkeypatch.setattr(decode_module, "segment_mask", mask)
    return asked


def test_a_new_pass_knows_nothing() -> None:
    fresh = prefill_of()
    assert (fresh.rotary, fresh.positions, fresh.deepstack, fresh.bad) == (None, None, None, None)
    assert fresh.cache is None
    assert (fresh.cuts, fresh.masks, fresh.seconds) == ([], {}, {})
    assert fresh.state.columns == 7 and fresh.state.segments == []


def test_positions_are_those_of_the_first_question() -> None:
    flat, axes = torch.arange(7)[None], torch.arange(21).view(3, 1, 7)
    for ids, wanted in ((flat, flat[None]), (axes, axes)):
        fresh = prefill_of()
        fresh.positions_are(ids)
        assert torch.equal(fresh.positions, wanted)
        fresh.positions_are(ids + 5)
        assert torch.equal(fresh.positions, wanted)


def test_layers_before_the_first_cut_are_left_alone_and_later_ones_get_what_changed(masks: list[Any]) -> None:
    values = scores_of(prompt_of(ROWS))
    run = prefill_of(stage_of(values, 3, layer=1), stage_of(values[:, :3], 2, layer=3))
    run.positions_are(torch.arange(7)[None])
    hidden, cache = address(ROWS), SimpleNamespace(layers=[])
    given = {"position_embeddings": cosine(), "past_key_values": cache}
    assert run.before_layer(0, hidden, kwargs=given) is None and masks == []
    assert run.rotary is given["position_embeddings"]
    widths, found = [], []
    for index in (1, 2, 3, 4):
        after = run.before_layer(
            index, hidden, kwargs={**given, "position_embeddings": "later ones do not count"}
        )
        assert after is not None
        hidden, changed = after
        widths.append(hidden.shape[1])
        assert set(changed) == {"attention_mask", "position_embeddings", "position_ids"}
        assert changed["position_ids"] is None and changed["position_embeddings"] is run.rotary
        found.append(changed["attention_mask"])
    assert widths == [6, 6, 5, 5] and found == ["mask 1", "mask 1", "mask 2", "mask 2"]
    for (adapter, segment, states, past, tail), layer, width in zip(masks, (1, 3), (6, 5), strict=True):
        assert adapter is run.adapter and (segment.layer, segment.width) == (layer, width)
        assert states.shape[1] == width and past == 0 and tail is None
    assert recall(cache) is run.state
    alone = prefill_of(stage_of(values, 3))
    alone.before_layer(0, address(ROWS), kwargs={"position_embeddings": cosine()})  # without a cache
    assert alone.cuts[0].width == 6


def test_both_stages_at_one_layer_cut_in_order(masks: list[Any]) -> None:
    values = scores_of(prompt_of(ROWS))
    run = prefill_of(stage_of(values, 3), stage_of(values[:, :3], 2))
    after = run.before_layer(0, address(ROWS), kwargs={"position_embeddings": cosine()})
    assert after is not None and after[0].shape[1] == 5 and len(run.cuts) == 2 and len(masks) == 1


def test_signals_of_a_layer_are_made_of_what_went_in_and_came_out() -> None:
    decoder = Decoder()
    run = prefill_of(stage_of(scores_of(prompt_of(ROWS)), 3, layer=2), decoder=decoder, clock=Ticks)
    hidden, out = address(ROWS), address(ROWS) + 0.5
    for index in (0, 1):
        run.before_layer(index, hidden.requires_grad_(), kwargs={"position_embeddings": cosine()})
        assert run.after_layer(index, out) is None
    ((index, view, raw),) = decoder.seen
    assert index == 1 and view.rotary is run.rotary and view.columns is run.columns
    assert set(raw) == {"in", "out"} and not raw["in"].requires_grad
    assert torch.equal(raw["in"], hidden) and torch.equal(raw["out"], out)
    assert run.store["attn_out", 1][:, :, 0].tolist() == [[1.5, 2.5, 3.5, 4.5], [101.5, 102.5, 103.5, 104.5]]
    assert run.store["hidden_in", 1][0, :, 0].tolist() == [1, 2, 3, 4]
    assert set(run.seconds) == {"signals"} and 0 <= run.seconds["signals"] < 60
    assert run.sources.captured.raw == {} and run.sources.captured.listening


def test_deepstack_features_are_added_after_the_first_layers_only() -> None:
    visual = torch.tensor([[c == "0" for c in row] for row in ROWS])
    features = [torch.arange(8).double()[:, None].expand(8, 2) + 1, torch.ones(8, 2).double()]
    run = prefill_of(adapter=Adapter((visual, features)))
    args, kwargs = run.text_starts(("x",), {"deep": 1, "other": 2})
    assert (args, kwargs) == (("x",), {"other": 2}) and run.adapter.took == {"deep": 1, "other": 2}
    zero = torch.zeros(2, 7, 2, dtype=torch.float64)
    first, second = run.after_layer(0, zero), run.after_layer(1, zero)
    assert first is not None and second is not None and run.after_layer(2, zero) is None
    assert first[:, :, 0].tolist() == [[0, 1, 2, 3, 4, 0, 0], [0, 5, 6, 7, 8, 0, 0]]
    assert second[:, :, 1].tolist() == [[0, 1, 1, 1, 1, 0, 0]] * 2
    plain = prefill_of()
    assert plain.text_starts((), {}) is None and plain.after_layer(0, zero) is None


def test_deepstack_features_are_part_of_what_a_layer_puts_out() -> None:
    visual = torch.tensor([[c == "0" for c in row] for row in ROWS])
    features = [torch.zeros(8, 2).double(), torch.full((8, 2), 0.5).double()]
    decoder = Decoder()
    run = prefill_of(adapter=Adapter((visual, features)), decoder=decoder)
    run.text_starts((), {})
    run.rotary = cosine()
    run.sources.captured.keep(1, "in", value=address(ROWS))
    run.after_layer(1, address(ROWS))
    assert run.store["attn_out", 1][0, :, 0].tolist() == [1.5, 2.5, 3.5, 4.5]


def test_encoder_signals_are_collected_when_the_text_model_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    run = prefill_of()
    encoder: Any = Encoder()
    run.sources.encoder = encoder
    ticks = iter((3.0, 5.5))
    monkeypatch.setattr(prefill_module.time, "perf_counter", lambda: next(ticks))
    assert run.text_starts((), {}) is None
    assert encoder.seen == encoder.crops_seen == ({"inputs": 1}, run.prompt)
    assert run.store["encoder_features", None].shape == (2, 4, 3) and run.store.crop is not None
    assert run.seconds == {"encoder signals": 2.5} and torch.is_grad_enabled()


ENTRY = ("embeddings", "text_embeddings", "start_embeddings", "start_mask")


@pytest.mark.parametrize("name", [*ENTRY, "xy"])
def test_the_stream_at_the_entry_is_kept_where_a_part_reads_it(name: str) -> None:
    score = FixedScore(torch.rand(2, 4), reads=(name,))
    stage = StageSpec(PostEncoder(), Budget(2), None, ProblemSpec("top_k", scores=(Weighted("s", score),)),
                      SpySolver(), None)  # fmt: skip
    run = prefill_of(stage, check=False)
    run._entry(address(ROWS).requires_grad_())
    assert {key for key, _ in run.store} & set(ENTRY) == {name} - {"xy"}
    if name == "xy":
        return
    found = run.store[name, None]
    row = {"text_embeddings": [[5, 6], [105, 106]], "start_mask": [[True] * 4] * 2}
    wanted = row.get(name, [[1, 2, 3, 4], [101, 102, 103, 104]])
    assert (found if found.dim() == 2 else found[:, :, 0]).tolist() == wanted
    assert not found.requires_grad


def test_only_the_first_layer_is_the_entry(masks: list[Any]) -> None:
    score = FixedScore(torch.rand(2, 4), reads=("embeddings",))
    stage = StageSpec(PostEncoder(), Budget(2), None, ProblemSpec("top_k", scores=(Weighted("s", score),)),
                      SpySolver(), None)  # fmt: skip
    run = prefill_of(stage)
    run.before_layer(1, address(ROWS), kwargs={"position_embeddings": cosine()})
    assert ("embeddings", None) not in run.store
    run.before_layer(0, address(ROWS), kwargs={"position_embeddings": cosine()})
    assert run.store["embeddings", None][0, :, 0].tolist() == chosen(run.prompt, score.values, 2)[0]


def test_a_pass_without_all_its_cuts_has_no_result_and_one_with_bad_signals_is_refused(
    monkeypatch: pytest.MonkeyPatch, masks: list[Any]
) -> None:
    measured: list[Any] = []

    def measure(adapter: Any, outcome: Any, *, cache: Any) -> str:
        measured.append((adapter, outcome, cache))
        return "report"

    monkeypatch.setattr(prefill_module, "measure", measure)
    values = scores_of(prompt_of(ROWS))
    run = prefill_of(stage_of(values, 3), stage_of(values[:, :3], 2, layer=1))
    run.before_layer(0, address(ROWS), kwargs={"position_embeddings": cosine()})
    output = SimpleNamespace(past_key_values="cache")
    assert run.finish(output) is None and measured == []
    run.before_layer(1, address(ROWS)[:, : run.columns.width], kwargs={"position_embeddings": cosine()})
    found = run.finish(output)
    assert found is not None and found[1] == "report"
    outcome = found[0]
    assert measured == [(run.adapter, outcome, "cache")]
    assert outcome.spec is run.spec and outcome.prompt is run.prompt and outcome.cuts is run.cuts
    assert outcome.size is run.store["size", None] and outcome.seconds is run.seconds
    run.finish(SimpleNamespace())
    assert measured[-1][2] is None
    for bad in (torch.tensor(False), torch.tensor([False, False])):
        run.bad = bad
        assert run.finish(output) is not None
    run.bad = torch.tensor([False, True])
    with pytest.raises(SignalError) as caught:
        run.finish(output)
    assert str(caught.value) == (
        "a signal holds NaN or infinity; the output of this pass must not be used. Check the model's dtype "
        "(try float32 or bfloat16) and its inputs"
    )


def test_nan_is_looked_for_before_a_cut_unless_looking_waits() -> None:
    assert checks_each_cut(torch.device("cpu")) is True
    assert checks_each_cut(torch.device("cuda")) is False


def test_columns_may_start_with_text_or_picture_and_padding_stays_minus_one() -> None:
    rows = ["00T000T", "0T00T_T"]
    columns = Columns.of(prompt_of(rows))
    values = address(rows)
    first = replace(columns, text=torch.tensor([[0, 2, -1], [1, 0, 4]]))
    assert first.texts(values)[:, :, 0].tolist() == [[0, 2, 0], [101, 100, 104]]
    assert first.texts(values + 1)[0, :, 0].tolist() == [1, 3, 0]
    keep = torch.tensor([[True, False, True, True, False], [True, True, False, False, False]])
    rank = -torch.arange(5).expand(2, 5).float()
    after, move = columns.after(keep, (3, 2), rank=rank)  # without groups all tokens are one
    assert after.place.tolist() == [[1, 3, 4], [0, 2, -1]]
    assert after.origin.tolist() == [[4, 3, 0], [2, 0, -1]]
    assert take(values, move.content)[0, 1:, 0].tolist() == [4, 2, 3, 0, 6]
    plain, still = columns.after(keep, (3, 2))
    assert plain.origin.tolist() == [[0, 3, 4], [0, 2, -1]] and torch.equal(still.content, still.order)


def test_gathering_works_for_more_rows_than_columns() -> None:
    assert take(torch.tensor([[5, 6, 7]]), torch.tensor([[2], [0], [1]])).tolist() == [[7], [5], [6]]
    assert inverse(torch.tensor([[2], [0], [1]]), 4).shape == (3, 4)


def test_a_store_is_read_like_a_mapping() -> None:
    store = prefill_of().store
    assert set(store) == {("group", None), ("xy", None), ("size", None)} and len(store) == 3


# what carries the stages out


def test_a_cut_must_be_before_a_layer_that_exists() -> None:
    values = scores_of(prompt_of(ROWS))
    adapter: Any = Adapter()
    fine = PrefillSite(adapter, Spec("mine", (stage_of(values, 3, layer=1), stage_of(values, 3, layer=4))))
    assert [stage.insertion.layer_index for stage in fine.stages] == [1, 4]
    assert fine.layers == {1, 2, 3, 4} and fine.notes == ()
    assert PrefillSite(adapter, Spec("mine", (stage_of(values, 3),))).layers == {0, 1, 2, 3, 4}
    for layer in (5, 99):
        with pytest.raises(ModelError) as caught:
            PrefillSite(adapter, Spec("mine", (stage_of(values, 3, layer=layer),)))
        assert str(caught.value) == (
            f"insertion.layer={layer} does not exist: this model has 5 decoder layers, so tokens can be "
            "removed before layers 0 to 4"
        )


class Elsewhere(PostEncoder):
    site = "spy"


class Spy(Site):
    """Writes down every call; drops the first token of each row before layer 1."""

    name = "spy"
    notes = ("I was here",)
    layers = frozenset({1})

    def text_starts(self, run: Prefill) -> None:
        self.calls: list[Any] = [("text", sorted(run.store)[:1])]

    def before_layer(self, run: Prefill, index: int, *, hidden: Tensor) -> Tensor:
        self.calls.append(("before", index, hidden.shape[1]))
        if index != 1:
            return hidden
        keep = torch.tensor([[False, True, True, True]] * 2)
        return run.remove(self.stages[0], Selection(keep), hidden=hidden, clock=Clock())

    def after_layer(self, run: Prefill, index: int) -> None:
        self.calls.append(("after", index, ("attn_out", index) in run.store))

    def finish(self, run: Prefill) -> None:
        self.calls.append(("finish", run.cache))


def test_sites_are_told_what_happens_and_say_what_goes(
    monkeypatch: pytest.MonkeyPatch, masks: list[Any]
) -> None:
    monkeypatch.setattr(prefill_module, "measure", lambda adapter, outcome, *, cache: outcome)
    own = replace(stage_of(None, 3), insertion=Elsewhere())
    later = stage_of(scores_of(prompt_of(ROWS))[:, :3], 2, layer=2)
    adapter, spec = Adapter(), Spec("mine", (own, later))
    sites: Any = [Spy(adapter, spec), PrefillSite(adapter, spec)]
    assert [site.stages for site in sites] == [(own,), (later,)]
    sources: Any = Sources(Decoder(), None, {})
    run = Prefill(
        adapter, spec, prompt=prompt_of(ROWS), sources=sources, sites=sites, clock=Clock, check=True
    )
    run.text_starts((), {})
    run.positions_are(torch.arange(7)[None])
    hidden, cache = address(ROWS), SimpleNamespace(layers=[])
    for index in range(3):
        given = {"position_embeddings": cosine(), "past_key_values": cache}
        after = run.before_layer(index, hidden, kwargs=given)
        hidden = hidden if after is None else after[0]
        run.after_layer(index, hidden)
    found = run.finish(SimpleNamespace(past_key_values=cache))
    assert sites[0].calls == [
        ("text", [("group", None)]), ("before", 0, 7), ("after", 0, False), ("before", 1, 7),
        ("after", 1, True), ("before", 2, 6), ("after", 2, False), ("finish", cache),
    ]  # fmt: skip
    assert hidden[0, :, 0].tolist() == [0, *(c for c in range(2, 7) if c in hidden[0, :, 0])]
    assert found is not None and found[0].notes == ("I was here",)
    assert [(cut.stage, cut.visual, cut.width) for cut in run.cuts] == [(own, [3, 3], 6), (later, [2, 2], 5)]
    assert len(masks) == 2 and {"apply"} <= set(run.seconds)


def test_a_cut_of_caches_reads_no_stream_and_is_written_down_as_such() -> None:
    score = FixedScore(scores_of(prompt_of(ROWS)), reads=("xy",))
    problem = ProblemSpec("top_k", scores=(Weighted("s", score),))
    stage = replace(stage_of(None, 3), problem=problem)
    run, clock = prefill_of(stage), Ticks()
    selection = run.choose(stage, clock=clock)
    assert selection.known_counts == (3, 3) and run.cuts == [] and run.columns.width == 7
    columns, _ = run.columns.after(selection.keep, selection.known_counts)
    run.done(Cut.of(stage, selection, columns=columns, evicted=(2, 4)), clock=clock)
    (cut,) = run.cuts
    assert (cut.evicted, cut.layer, cut.width, cut.lengths, cut.visual) == ((2, 4), 0, 6, [6, 6], [3, 3])
    assert cut.kept is columns.origin and cut.selection is selection
    assert run.seconds == clock.seconds and "apply" in run.seconds


# after the prompt


def state_of(*segments: Segment, columns: int = 7) -> CacheState:
    return CacheState(columns, list(segments))


def test_a_layer_works_on_the_last_cut_before_it() -> None:
    first, second = Segment(0, EVEN, True), Segment(3, EVEN[:, :2], True)
    state = state_of(first, second)
    assert [state.at(layer) for layer in range(5)] == [first, first, first, second, second]
    late = state_of(second)
    assert late.at(2) is None and late.at(3) is second
    assert (first.width, second.width) == (3, 2)


def test_cuts_are_kept_in_order_and_the_last_at_a_layer_counts() -> None:
    state = state_of(Segment(2, EVEN, True))
    state.cut(Segment(0, EVEN[:, :2], True))
    state.cut(Segment(2, EVEN[:, :1], True))
    assert [(segment.layer, segment.width) for segment in state.segments] == [(0, 2), (2, 1)]


def test_one_layer_may_hold_less_than_those_around_it() -> None:
    whole = Columns.of(prompt_of(ROWS))
    some, _ = whole.after(torch.tensor([[True, True, False, False]] * 2), (2, 2))
    few, _ = whole.after(torch.tensor([[True, False, False, False]] * 2), (1, 1))
    state = state_of()
    state.evict(1, held=whole, left=some)
    assert [state.at(layer) and state.at(layer).width for layer in range(4)] == [None, 5, 7, 7]  # type: ignore[union-attr]
    state.evict(2, held=whole, left=few)
    state.evict(4, held=whole, left=some)
    widths = [segment.width for segment in map(state.at, range(1, 6)) if segment is not None]
    assert widths == [5, 4, 7, 5, 7]
    one = state.at(1)
    assert one is not None and one.valid is some.valid and one.full is some.full and one.following is None
    upwards = state_of()
    upwards.evict(3, held=whole, left=few)
    upwards.evict(1, held=whole, left=some)  # layer 2 stands between the two and has lost nothing
    assert [(s.layer, s.width, s.full) for s in upwards.segments] == [
        (1, 5, some.full), (2, 7, whole.full), (3, 4, few.full), (4, 7, whole.full)
    ]  # fmt: skip
    numbered = state_of(Segment(0, whole.valid, True, torch.tensor([[5], [6]])))
    numbered.evict(3, held=whole, left=few)
    ends = [segment.following for segment in map(numbered.at, (0, 3, 4)) if segment is not None]
    assert [end.tolist() for end in ends if end is not None] == [[[5], [6]]] * 3


def test_rows_of_a_cache_take_their_segments_along() -> None:
    valid = torch.tensor([[True, False], [False, True]])
    ahead = Segment(0, valid, False, torch.tensor([[4], [9]]))
    plain = Segment(2, valid, False)
    state = state_of(ahead, plain)
    moved = state.take_rows(torch.tensor([1, 0, 1]), 2)
    assert moved.columns == 7 and [s.layer for s in moved.segments] == [0, 2]
    for segment in moved.segments:
        assert segment.valid.tolist() == [[False, True], [True, False], [False, True]] and not segment.full
    assert moved.segments[0].following is not None and moved.segments[1].following is None
    assert moved.segments[0].following.tolist() == [[9], [4], [9]]
    beams = state.take_rows(torch.tensor([3, 0]), 4)  # two beams a row
    assert beams.segments[0].valid.tolist() == [[False, True], [True, False]]
    assert beams.segments[0].following is not None and beams.segments[0].following.tolist() == [[9], [4]]
    assert state.segments == [ahead, plain]


def layers(*lengths: int) -> Any:
    return SimpleNamespace(layers=[SimpleNamespace(get_seq_length=lambda n=n: n) for n in lengths])


def decode_of(state: CacheState, mask: Tensor | None = None, ids: int = 1, **more: Any) -> Decode:
    inputs: dict[str, Any] = {"attention_mask": mask, "input_ids": torch.zeros(2, ids, dtype=torch.int64)}
    adapter: Any = Adapter()
    return Decode(adapter, {**inputs, **more}, state=state, seen=7)


def test_later_steps_change_what_pruned_layers_get(masks: list[Any]) -> None:
    state = state_of(Segment(1, EVEN, True), Segment(3, EVEN[:, :2], False))
    tail = torch.tensor([[1] * 8 + [0], [1] * 9])
    run = decode_of(state, tail, ids=2)
    cache = layers(7, 3, 3, 2)
    hidden = torch.zeros(2, 2, 8)
    assert run.before_layer(0, hidden, kwargs={"past_key_values": cache}) is None
    found = [run.before_layer(index, hidden, kwargs={"past_key_values": cache}) for index in (1, 2, 3)]
    assert [f is not None and f[0] is hidden for f in found] == [True] * 3
    assert [f[1] for f in found if f is not None] == [
        {"position_ids": None, "attention_mask": "mask 1"},
        {"position_ids": None, "attention_mask": "mask 1"},
        {"position_ids": None, "attention_mask": "mask 2"},
    ]
    for (adapter, segment, states, past, rest), at, length in zip(masks, (0, 1), (3, 2), strict=True):
        assert (
            adapter is run.adapter and segment is state.segments[at] and states is hidden and past == length
        )
        assert rest.tolist() == [[1, 0], [1, 1]]
    assert run.text_starts((), {}) is None and run.after_layer(0, hidden) is None
    assert run.finish(None) is None and run.positions_are(hidden) is None


def test_compact_positions_count_on_from_the_end_of_each_layer(masks: list[Any]) -> None:
    state = state_of(Segment(0, EVEN, True, torch.tensor([[5], [8]])))
    run = decode_of(state)
    hidden = torch.zeros(2, 2, 8)
    for past, wanted in ((3, [[5, 6], [8, 9]]), (4, [[6, 7], [9, 10]])):
        after = run.before_layer(0, hidden, kwargs={"past_key_values": layers(past)})
        assert after is not None
        cos, sin = after[1]["position_embeddings"]
        assert cos[:, :, 0].tolist() == wanted and sin[:, :, 0].tolist() == [
            [1000 + v for v in w] for w in wanted
        ]
        assert run.adapter.text.hidden is hidden and run.adapter.text.asked.shape == (2, 2)
    for new in (1, 2):
        after = run.before_layer(0, torch.zeros(4, new, 8), kwargs={"past_key_values": layers(3)})
        assert after is not None and after[1]["position_embeddings"][0][:, 0, 0].tolist() == [5, 5, 8, 8]
    run.adapter.text_config = SimpleNamespace(rope_parameters={"mrope_section": [1, 1, 2]})
    run.before_layer(0, hidden, kwargs={"past_key_values": layers(3)})
    assert run.adapter.text.asked.shape == (3, 2, 2)
    assert run.adapter.text.asked[2].tolist() == [[5, 6], [8, 9]]
    run.adapter.text_config = SimpleNamespace()
    run.before_layer(0, hidden, kwargs={"past_key_values": layers(3)})
    assert run.adapter.text.asked.shape == (2, 2)


@pytest.mark.parametrize(
    ("mask", "tail"),
    [
        (None, None),
        ({"full": 1}, None),
        (torch.ones(2, 1, 1, 8), None),
        (torch.ones(2, 8), None),
        (torch.tensor([[0] * 7 + [1]] * 2), None),
        (torch.tensor([[1] * 7 + [0], [1] * 8]), [[0], [1]]),
    ],
)
def test_the_mask_after_the_prompt_is_kept_where_it_holds_padding(mask: Any, tail: Any) -> None:
    found = decode_of(state_of(Segment(0, EVEN, True)), mask).tail
    assert (found if found is None else found.tolist()) == tail


def test_masks_must_cover_everything_so_far() -> None:
    state = state_of(Segment(0, EVEN, True))
    with pytest.raises(ModelError) as caught:
        decode_of(state, torch.ones(2, 9), ids=1)
    assert str(caught.value) == (
        "1 new tokens follow 7 seen ones but the attention mask has 9 columns; after a pruned prompt pass "
        "only the new tokens as input_ids, with the mask of all"
    )
    embedded = {"input_ids": None, "inputs_embeds": torch.zeros(2, 3, 8)}
    assert decode_of(state, torch.ones(2, 10), **embedded).tail is None
    with pytest.raises(ModelError, match=r"^3 new tokens follow 7 seen ones but the attention mask has 8"):
        decode_of(state, torch.ones(2, 8), **embedded)


def test_what_is_captured_while_a_signal_is_computed_is_not_kept() -> None:
    captured = Captured()
    captured.keep(1, "in", value=torch.ones(1))
    with captured.closed(1) as raw:
        captured.keep(2, "in", value=torch.ones(1))
        assert set(raw) == {"in"} and captured.raw == {}
    captured.keep(2, "in", value=torch.ones(1))
    assert set(captured.raw) == {2}
