"""Ragged batches with unlike pictures, several crops, and unlike stages: rows and stages do not mix."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from test_families import FAMILIES
from test_model_signals import SEEN, Spy, spying
from tiny_models import IMAGE, batch, llava, llava_rows, llava_scenarios, pixels, text_ids
from torch import Tensor

import pruneopt
from pruneopt.errors import InputError, SignalError
from pruneopt.models import columns, deepstack, prefill, store, wiring
from pruneopt.models.capture import decoder, encoder_signals
from pruneopt.parts import Step
from pruneopt.parts.insertions.prefill_layer import PrefillLayer
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec
from pruneopt.testing.insertion import ENTRY, LAYER
from pruneopt.testing.masking import difference, forward, masked, real_columns


@dataclass(frozen=True)
class Backwards(Step):
    """Emits the kept tokens last one first; says whatever it likes about dropped ones."""

    name: ClassVar[str] = "backwards"

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        rank = -torch.arange(selection.keep.shape[1]).expand(selection.keep.shape).float()
        return replace(selection, rank=rank.masked_fill(~selection.keep, -5.5))


def changed(base: Any, **changes: Any) -> Spec:
    spec = load_spec(base)
    scope = changes.pop("scope", spec.stages[0].budget.scope)
    positions = changes.pop("positions", spec.positions)
    stages = [replace(s, budget=replace(s.budget, scope=scope), **changes) for s in spec.stages]
    return replace(spec, stages=tuple(stages), positions=positions)


def backwards(scope: str) -> Spec:
    return changed(ENTRY, scope=scope, steps=(Backwards(),), positions="compact")


@pytest.fixture(scope="module")
def model() -> Any:
    return llava()


@pytest.fixture(scope="module")
def left() -> dict[str, Any]:
    return llava_scenarios()["left"]


def entering(layer: torch.nn.Module, run: Callable[[], Any]) -> Tensor:
    """Hidden states that enter a layer in its first call."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        run()
    finally:
        hook.remove()
    return seen[0]


def emitted(prompt: Any, kept: list[list[int]], visual: list[list[int]]) -> list[list[int]]:
    """Old columns in the order in which `Backwards` must emit them, by list surgery.

    Each place of a crop takes the next token of that crop from behind.
    """
    out = []
    for row, left in enumerate(kept):
        group: dict[int, int] = {}
        if row in prompt.rows:
            i = prompt.rows.index(row)
            found = zip(prompt.place[i].tolist(), prompt.geometry["group"][i].tolist(), strict=True)
            group = {column: number for column, number in found if column >= 0}
        waiting: dict[int, list[int]] = {}
        for column in visual[row]:
            waiting.setdefault(group[column], []).append(column)
        out.append([waiting[group[c]].pop() if c in visual[row] else c for c in left])
    return out


@pytest.mark.parametrize("scope", ["sample", "group"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl"])
def test_tokens_are_emitted_in_the_order_of_their_rank(family: str, scope: str) -> None:
    """Rows with one and two pictures and with crops whose columns alternate; deepstack follows its tokens."""
    build, make = FAMILIES.get(family, (llava, lambda build: llava_scenarios()))
    model, inputs = build("sdpa"), make(build)["left"]
    layers = model.model.language_model.layers
    dense = entering(layers[0], lambda: forward(model, inputs))
    added: dict[str, list[Tensor]] = {"dense": [], "pruned": []}
    with watching_deepstack(layers, added["dense"]):
        forward(model, inputs)
    with watching_deepstack(layers, added["pruned"]), pruneopt.prune(model, backwards(scope)) as run:
        pruned = entering(layers[0], lambda: forward(model, inputs))
        order = emitted(run.last.prompt, run.kept[0], run.kept_visual[0])
    assert max(run.last.prompt.started) > min(run.last.prompt.started)
    for row, wanted in enumerate(order):
        assert sorted(wanted) != wanted
        assert torch.equal(pruned[row, -len(wanted) :], dense[row, wanted])
        for before, after in zip(added["dense"], added["pruned"], strict=True):
            # what is added is read as a difference, so it carries the rounding of the stream
            assert difference(after[row, -len(wanted) :], before[row, wanted]) < 1e-5


@contextmanager
def watching_deepstack(layers: Any, into: list[Tensor]) -> Iterator[None]:
    """What the text model adds between its first two layers, as a difference; zero without deepstack."""
    out: list[Tensor] = []

    def leaves(module: Any, args: Any, output: Tensor) -> None:
        out.append(output.clone())

    def enters(module: Any, args: Any) -> None:
        into.append(args[0] - out.pop())

    # `leaves` must see the output before any hook of the pruned run changes it
    hooks = [layers[0].register_forward_hook(leaves), layers[1].register_forward_pre_hook(enters)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def shallow(method: str) -> Spec:
    """A method with its cuts before layers 1, 2, 3 of a small model; cuts before the model stay there."""
    spec, stages = load_spec(method), []
    for number, stage in enumerate(spec.stages):
        deep = stage.insertion.layer_index > 0
        stages.append(replace(stage, insertion=PrefillLayer(number + 1)) if deep else stage)
    return replace(spec, stages=tuple(stages))


METHODS = ("sparsevlm", "tome/release", "prumerge/release", "visiondrop")


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_reorder_give_rows_what_they_get_alone(method: str) -> None:
    model, found = llava(), llava_scenarios()["left"]
    with pruneopt.prune(model, shallow(method)) as run:
        logits = forward(model, found).logits[:, -1]
        kept = run.kept
        real = real_columns(found)
        for row, single in enumerate(llava_rows()["left"]):
            alone = forward(model, single).logits[:, -1]
            shift = int(real[row].nonzero().min())
            assert {k: [c + shift for c in rows[0]] for k, rows in run.kept.items()} == {
                k: rows[row] for k, rows in kept.items()
            }
            assert difference(logits[row : row + 1], alone) < 1e-5


def two_spies(first: tuple[str, ...], second: tuple[str, ...]) -> Spec:
    """Cuts before layers 2 and 3 that read these signals; the first keeps half by a spy's order."""
    one = spying({**LAYER, "insertion": {"kind": "prefill_layer", "layer": 2}}, *first)
    two = spying({**LAYER, "insertion": {"kind": "prefill_layer", "layer": 3}}, *second)
    return replace(one, stages=(*one.stages, *two.stages))


def test_looking_ahead_leaves_captures_alone(model: Any, left: dict[str, Any]) -> None:
    """A lookahead of layer 1 runs the norm of layer 2, whose own signals a later stage asks for."""
    transitions = ("transition", "transition_abs")
    seen = []
    for names in (transitions, ("lookahead_last", "lookahead_keys", *transitions)):
        caught: dict[str, Tensor] = {}

        def note(self: Spy, signals: Signals, caught: dict[str, Tensor] = caught) -> Tensor:
            caught.update({name: signals[name].clone() for name in self.names if name not in caught})
            return torch.arange(signals.tokens).expand(signals.batch, -1).float()

        with mock.patch.object(Spy, "__call__", note), pruneopt.prune(model, two_spies(names, transitions)):
            forward(model, left)
        seen.append(caught)
    for name in transitions:
        assert torch.equal(seen[0][name], seen[1][name])


def test_importance_is_that_of_the_cut_before(model: Any, left: dict[str, Any]) -> None:
    """Three unlike cuts: the last one reads what the second gave, at the tokens that it kept."""
    first = load_spec({**LAYER, "insertion": {"kind": "prefill_layer", "layer": 1}, "budget": {"keep": 0.8}})
    norm = {"kind": "top_k", "scores": {"norm": {"kind": "token_norm"}}}
    second = load_spec({**LAYER, "problem": norm, "budget": {"keep": 0.6}})
    third = spying({**LAYER, "insertion": {"kind": "prefill_layer", "layer": 3}}, "importance")
    spec = replace(first, stages=(*first.stages, *second.stages, *third.stages))
    with pruneopt.prune(model, spec) as run:
        forward(model, left)
        given, chosen = run.selections[1].importance, run.selections[1].keep
    assert given is not None and len({int(row.sum()) for row in chosen}) > 1
    for row in range(3):
        wanted = given[row][chosen[row]]
        assert torch.equal(SEEN["importance"][row, : len(wanted)], wanted)


def test_start_embeddings_are_all_of_the_unpruned_prompt(model: Any, left: dict[str, Any]) -> None:
    """After a first cut, in rows with one and with two pictures."""
    first = load_spec({**LAYER, "insertion": {"kind": "prefill_layer", "layer": 1}})
    second = spying(LAYER, "start_embeddings", "start_mask", "embeddings", "features")
    dense = entering(model.model.language_model.layers[0], lambda: forward(model, left))
    with pruneopt.prune(model, replace(first, stages=(*first.stages, *second.stages))) as run:
        forward(model, left)
        kept = run.last.cuts[0].kept
    for row, ids in enumerate(left["input_ids"]):
        every = (ids == IMAGE).nonzero().squeeze(1)
        mask = SEEN["start_mask"][row]
        assert mask.tolist() == [True] * len(every) + [False] * (len(mask) - len(every))
        assert torch.equal(SEEN["start_embeddings"][row, : len(every)], dense[row, every])
        left_over = kept[row][kept[row] >= 0]
        assert torch.equal(SEEN["embeddings"][row, : len(left_over)], dense[row, left_over])


def crop_spec(base: Any, *names: str) -> Spec:
    spec = spying(base, *names)
    return replace(
        spec, stages=tuple(replace(s, budget=replace(s.budget, scope="group")) for s in spec.stages)
    )


def test_crops_follow_the_tokens_that_are_left() -> None:
    """A first cut that empties most of the first picture: each later problem still gets its own crop."""
    model = llava(vision_feature_layer=-2)
    inputs = llava_scenarios()["left"]
    spied = crop_spec({**LAYER, "budget": {"keep": 5}}, "cls_key", "encoder_keys")
    first = load_spec(
        {
            **LAYER,
            "insertion": {"kind": "prefill_layer", "layer": 1},
            "budget": {"keep": 20, "scope": "sample"},
        }
    )
    names = replace(first.stages[0].problem.scores[0], part=Late())
    problem = replace(first.stages[0].problem, scores=(names,))
    first = replace(first, stages=(replace(first.stages[0], problem=problem),))
    keys = model.model.vision_tower.encoder.layers[-2].self_attn.k_proj
    caught: list[Tensor] = []
    hook = keys.register_forward_hook(lambda module, args, output: caught.append(output))
    with pruneopt.prune(model, replace(first, stages=(*first.stages, *spied.stages))):
        forward(model, inputs)
    hook.remove()
    whole = caught[0].unflatten(2, (4, -1)).transpose(1, 2)
    # the last 20 of 72 tokens of the row with two pictures lie in its second picture, which is crop 3
    torch.testing.assert_close(SEEN["cls_key"], whole[[0, 1, 3]][:, :, 0])


@dataclass(frozen=True)
class Late(Spy):
    """Keeps the last tokens."""

    name: ClassVar[str] = "late"


def test_crops_of_videos_are_counted_after_those_of_images() -> None:
    build, make = FAMILIES["llava_next_video"]
    model, inputs = build("sdpa"), make(build)["image and video"]
    tower = model.model.vision_tower
    caught: list[Tensor] = []
    hook = tower.encoder.layers[-2].self_attn.k_proj.register_forward_hook(
        lambda module, args, output: caught.append(output.unflatten(2, (4, -1))[:, 0])
    )
    with pruneopt.prune(model, crop_spec(ENTRY, "cls_key", "time", "features")):
        forward(model, inputs)
    hook.remove()
    assert len(caught) == 2  # images, then the video
    images, frames = caught
    count = sys.modules[type(model.model).__module__].image_size_to_num_patches
    first = count(inputs["image_sizes"][0].tolist(), model.config.image_grid_pinpoints, 16)
    assert 0 < first < len(images) and len(images) != 2 * first
    wanted = torch.cat([images[:first], frames, images[first:]])
    torch.testing.assert_close(SEEN["cls_key"], wanted)
    assert SEEN["time"].amax(1).tolist()[first : first + 3] == [0, 1, 2]


def at_the_end() -> dict[str, Any]:
    """The picture is the last thing in the prompt, in rows of unlike length."""
    one = [IMAGE] * 36
    rows = [[1, *text_ids(3, 1), *one], [1, *text_ids(6, 3), *one, *text_ids(2, 4), *one]]
    return {**batch(rows), "pixel_values": pixels(3, 24)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("base", [ENTRY, LAYER], ids=["post_encoder", "prefill_layer"])
def test_the_last_column_answers_when_the_prompt_ends_in_a_picture(model: Any, base: Any, seed: int) -> None:
    inputs = at_the_end()
    problem = {"kind": "top_k", "scores": {"chance": {"kind": "random", "seed": seed}}}
    with pruneopt.prune(model, {**base, "problem": problem, "budget": {"keep": 6, "scope": "sample"}}) as run:
        found = forward(model, inputs).logits[:, -1]
        kept, visual = run.kept, run.kept_visual
    assert [len(row) for row in visual[max(visual)]] == [6, 6]
    with masked(model.model.language_model.layers, kept, real=real_columns(inputs)):
        wanted = forward(model, inputs).logits[:, -1]
    assert difference(found, wanted) < 1e-5


@pytest.mark.parametrize("method", ["sparsevlm", "dart", "cdpruner", "topv", "fastv", "divprune", "tome"])
def test_methods_without_text_after_the_picture_work_or_name_what_is_missing(model: Any, method: str) -> None:
    inputs = {**batch([[1, *text_ids(3, 1), *[IMAGE] * 36]]), "pixel_values": pixels(1, 24)}
    with pruneopt.prune(model, shallow(method)) as run:
        reads_text = any(name.startswith("text") or "_text" in name for name in run.spec.needs)
        if reads_text:
            with pytest.raises(InputError, match="no text after its picture"):
                forward(model, inputs)
        else:
            assert forward(model, inputs).logits.isfinite().all()
            assert run.kept[max(run.kept)][0][-1] == 39


def test_hidden_image_tokens_are_neither_kept_nor_counted(model: Any) -> None:
    """Half of the second picture lies under attention_mask=0: the reference hides it as padding."""
    one = [IMAGE] * 36
    ids = torch.tensor([[1, *text_ids(3, 1), *one, *text_ids(2, 2), *one, *text_ids(4, 3)]])
    mask = torch.ones_like(ids)
    mask[:, 42:60] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels(2, 24)}
    with pruneopt.prune(model, {**LAYER, "budget": {"keep": 1.0}}) as run:
        forward(model, inputs)
        assert [c for c in run.kept_visual[2][0] if 42 <= c < 60] == []
        assert len(run.kept_visual[2][0]) == 36 + 18 == run.report.visual_tokens[0]
    with pruneopt.prune(model, LAYER) as run:
        found = forward(model, inputs).logits[:, -1]
        kept = run.kept
        assert len(run.kept_visual[2][0]) == 27
    with masked(model.model.language_model.layers, kept, real=real_columns(inputs)):
        wanted = forward(model, inputs).logits[:, -1]
    assert difference(found, wanted) < 1e-5


def poisoned(value: float) -> Any:
    """A spy whose first cut reads a NaN; the second reads none."""
    return mock.patch.dict(
        decoder.DECODER_SIGNALS,
        hidden_in=lambda layer: layer.visual("in") * (value if layer.index == 1 else 1.0),
    )


def test_a_nan_is_found_after_the_pass_where_nothing_may_wait(model: Any, left: dict[str, Any]) -> None:
    """As on a GPU: cuts do not look at the values, the end of the pass does, at those of every cut."""
    spec = two_spies(("hidden_in",), ("hidden_in",))
    with mock.patch.object(wiring, "checks_each_cut", lambda device: False):
        with poisoned(1.0), pruneopt.prune(model, spec) as ran:
            forward(model, left)
            assert ran.prompts == 1
        with poisoned(float("nan")), pruneopt.prune(model, spec) as ran:
            with pytest.raises(SignalError, match="the output of this pass must not be used"):
                forward(model, left)
            assert ran.prompts == 0
    with poisoned(float("nan")), pruneopt.prune(model, spec), pytest.raises(SignalError, match="'hidden_in'"):
        forward(model, left)
    assert prefill.checks_each_cut(torch.device("cpu")) and not prefill.checks_each_cut(torch.device("cuda"))


# planted bugs, each with the tests that must fail by a wrong value


@contextmanager
def dropped_places_among_the_kept_ones() -> Iterator[None]:
    real = columns.emission

    def emission(*args: Any, **more: Any) -> tuple[Tensor, Tensor]:
        places, chosen = real(*args, **more)
        return places.sort(dim=1).values, chosen

    with mock.patch.object(columns, "emission", emission):
        yield


@contextmanager
def crops_share_one_order() -> Iterator[None]:
    real = columns.emission

    def emission(keep: Tensor, rank: Any, *, group: Tensor, width: int) -> tuple[Tensor, Tensor]:
        return real(keep, rank, group=group * 0, width=width)

    with mock.patch.object(columns, "emission", emission):
        yield


@contextmanager
def deepstack_stays_in_its_column() -> Iterator[None]:
    real = deepstack.Deepstack.after

    def after(self: Any, now: Any, move: Any) -> Any:
        return real(self, now, replace(move, content=move.order))

    with mock.patch.object(deepstack.Deepstack, "after", after):
        yield


@contextmanager
def captures_of_all_layers_in_one_place() -> Iterator[None]:
    class Shared(dict):
        def setdefault(self, layer: int, default: Any) -> Any:
            return super().setdefault(0, default)

        def pop(self, layer: int) -> Any:
            return self[0]

    def keep(self: Any, layer: int, slot: str, *, value: Tensor) -> None:
        self.raw = Shared(self.raw) if type(self.raw) is dict else self.raw
        self.raw.setdefault(layer, {})[slot] = value.detach()

    with mock.patch.object(decoder.Captured, "keep", keep):
        yield


@contextmanager
def importance_of_the_first_cut() -> Iterator[None]:
    real = store.SignalStore.__setitem__

    def put(self: Any, key: Any, tensor: Tensor) -> None:
        if key != ("importance", None) or key not in self:
            real(self, key, tensor)

    with mock.patch.object(store.SignalStore, "__setitem__", put):
        yield


@contextmanager
def crop_not_gathered() -> Iterator[None]:
    real = store.SignalStore.carry

    def carry(self: Any, tokens: Tensor) -> None:
        crop = self.crop
        real(self, tokens)
        self.crop = crop

    with mock.patch.object(store.SignalStore, "carry", carry):
        yield


@contextmanager
def crop_offset_lost() -> Iterator[None]:
    real = encoder_signals.EncoderCapture.crops

    def crops(self: Any, inputs: Any, prompt: Any) -> Any:
        found = real(self, inputs, prompt)
        images = len(next(iter(self.encoder.raw.values()))[0])
        return torch.where(found >= images, found - images, found)

    with mock.patch.object(encoder_signals.EncoderCapture, "crops", crops):
        yield


@contextmanager
def everything_counts_at_the_start() -> Iterator[None]:
    real = prefill.Prefill._entry

    def entry(self: Any, hidden: Tensor) -> None:
        real(self, hidden)
        self.store["start_mask", None] = torch.ones_like(self.columns.mask)

    with mock.patch.object(prefill.Prefill, "_entry", entry):
        yield


@contextmanager
def only_the_last_cut_is_checked() -> Iterator[None]:
    real = prefill.Prefill._select

    def select(self: Any, *args: Any, **more: Any) -> Selection:
        self.bad = None
        return real(self, *args, **more)

    with mock.patch.object(prefill.Prefill, "_select", select):
        yield


order = test_tokens_are_emitted_in_the_order_of_their_rank
PLANTED: dict[Any, Callable[[Any, Any], Any]] = {
    dropped_places_among_the_kept_ones: lambda model, left: order("llava", "sample"),
    crops_share_one_order: lambda model, left: order("llava_next", "group"),
    deepstack_stays_in_its_column: lambda model, left: order("qwen3_vl", "group"),
    captures_of_all_layers_in_one_place: test_looking_ahead_leaves_captures_alone,
    importance_of_the_first_cut: test_importance_is_that_of_the_cut_before,
    crop_not_gathered: lambda model, left: test_crops_follow_the_tokens_that_are_left(),
    crop_offset_lost: lambda model, left: test_crops_of_videos_are_counted_after_those_of_images(),
    everything_counts_at_the_start: test_start_embeddings_are_all_of_the_unpruned_prompt,
    only_the_last_cut_is_checked: test_a_nan_is_found_after_the_pass_where_nothing_may_wait,
}


@pytest.mark.parametrize("bug", list(PLANTED), ids=lambda bug: bug.__name__)
def test_planted_bug_is_caught(bug: Any, model: Any, left: dict[str, Any]) -> None:
    expected = pytest.fail.Exception if bug is only_the_last_cut_is_checked else AssertionError
    with bug(), pytest.raises(expected):
        PLANTED[bug](model, left)
