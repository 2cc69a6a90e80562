"""Signals equal what the untouched model computes with eager attention, row by row of a padded batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import tiny_models
import torch
from test_families import FAMILIES
from tiny_models import IMAGE, VIDEO, finish, llava_scenarios
from torch import Tensor

import pruneopt
from pruneopt.errors import ModelError
from pruneopt.models.apply import prune
from pruneopt.parts import Score, param
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec
from pruneopt.testing.insertion import ENTRY, LAYER, SEVERAL
from pruneopt.testing.masking import forward

SEEN: dict[str, Tensor] = {}


@dataclass(frozen=True)
class Spy(Score):
    """Notes every signal that it is asked to read."""

    name: ClassVar[str] = "spy"
    names: tuple[Any, ...] = param(())

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.names)

    def __call__(self, signals: Signals) -> Tensor:
        SEEN.update({name: signals[name].clone() for name in self.names})
        SEEN["mask"] = signals.mask.clone()
        return torch.arange(signals.tokens).expand(signals.batch, -1).float()


def spying(base: Any, *names: str, stage: int = -1) -> Spec:
    spec = load_spec({**base, "budget": {**base["budget"], "scope": "sample"}})
    stages = list(spec.stages)
    problem = stages[stage].problem
    summand = replace(problem.scores[0], part=Spy(names))
    stages[stage] = replace(stages[stage], problem=replace(problem, scores=(summand,)))
    return replace(spec, stages=tuple(stages))


def collect(model: Any, inputs: dict[str, Any], base: Any, *names: str) -> dict[str, Tensor]:
    SEEN.clear()
    with pruneopt.prune(model, spying(base, *names)):
        forward(model, inputs)
    return dict(SEEN)


def columns(inputs: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Visual columns, and text columns after the first of them, of every row that has any."""
    out = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        visual = (ids == IMAGE).nonzero().squeeze(1)
        if len(visual):
            after = torch.arange(len(ids)) > visual[0]
            out.append((visual, (mask.bool() & (ids != IMAGE) & after).nonzero().squeeze(1)))
    return out


@pytest.fixture(scope="module")
def dense() -> dict[str, Any]:
    """The untouched model's own hidden states, attentions and cache on a left-padded ragged batch."""
    model = tiny_models.llava("eager")
    inputs = llava_scenarios()["left"]
    out = forward(model, inputs, output_attentions=True, output_hidden_states=True, use_cache=True)
    return {"model": model, "inputs": inputs, "out": out}


def rows(dense: dict[str, Any]) -> list[int]:
    return list(range(dense["inputs"]["input_ids"].shape[0]))


NAMES = (
    "hidden_in", "attn_out", "post_attention_norm", "hidden_out", "hidden_normed", "text_hidden_normed",
    "keys", "text_keys", "values", "attention_last", "attention_text", "attention_visual", "lookahead_last",
    "lookahead_text", "lookahead_visual", "lookahead_keys", "embeddings", "text_embeddings", "features",
    "text_features", "text_mask", "visual_index", "text_index", "hidden_in@0", "attention_last@0",
    "transition", "xy", "group",
)  # fmt: skip


def test_decoder_signals_equal_the_eager_model(dense: dict[str, Any]) -> None:
    seen = collect(dense["model"], dense["inputs"], LAYER, *NAMES)
    hidden, maps, cache = dense["out"].hidden_states, dense["out"].attentions, dense["out"].past_key_values
    norm = dense["model"].model.language_model.norm
    close = {"atol": 3e-6, "rtol": 1e-5}
    for row, (visual, text) in enumerate(columns(dense["inputs"])):
        n, t = len(visual), len(text)
        assert int(seen["mask"][row].sum()) == n and int(seen["text_mask"][row].sum()) == t
        assert torch.equal(seen["visual_index"][row, :n], visual)
        assert torch.equal(seen["text_index"][row, :t], text)
        wanted = {
            "hidden_in": hidden[1][row][visual],
            "hidden_in@0": hidden[0][row][visual],
            "embeddings": hidden[0][row][visual],
            "hidden_out": hidden[2][row][visual],
            "features": hidden[2][row][visual],
            "hidden_normed": norm(hidden[2][row][visual]),
        }
        for name, value in wanted.items():
            torch.testing.assert_close(seen[name][row, :n], value, **close)
        texts = {
            "text_embeddings": hidden[0][row][text],
            "text_features": hidden[2][row][text],
            "text_hidden_normed": norm(hidden[2][row][text]),
        }
        for name, value in texts.items():
            torch.testing.assert_close(seen[name][row, :t], value, **close)
        for name, layer in (("attention", 1), ("lookahead", 2)):
            whole = maps[layer][row]
            torch.testing.assert_close(seen[f"{name}_last"][row, :, :n], whole[:, -1][:, visual], **close)
            torch.testing.assert_close(
                seen[f"{name}_text"][row, :, :t, :n], whole[:, text][:, :, visual], **close
            )
            torch.testing.assert_close(
                seen[f"{name}_visual"][row, :, :n, :n], whole[:, visual][:, :, visual], **close
            )
        torch.testing.assert_close(
            seen["attention_last@0"][row, :, :n], maps[0][row][:, -1][:, visual], **close
        )
        torch.testing.assert_close(seen["keys"][row, :, :n], cache.layers[1].keys[row][:, visual], **close)
        assert torch.equal(seen["values"][row, :, :n], cache.layers[1].values[row][:, visual])
        torch.testing.assert_close(seen["text_keys"][row, :, :t], cache.layers[1].keys[row][:, text], **close)
        torch.testing.assert_close(
            seen["lookahead_keys"][row, :, :n], cache.layers[2].keys[row][:, visual], **close
        )


def test_sublayer_signals(dense: dict[str, Any]) -> None:
    """attn_out and transition from hand-made hooks on the untouched model."""
    model, inputs = dense["model"], dense["inputs"]
    layer = model.model.language_model.layers[1]
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.input_layernorm.register_forward_hook(lambda m, a, o: seen.update(n1=o)),
        layer.self_attn.register_forward_hook(lambda m, a, o: seen.update(attention=o[0])),
        layer.post_attention_layernorm.register_forward_hook(lambda m, a, o: seen.update(added=a[0], n2=o)),
        layer.mlp.register_forward_hook(lambda m, a, o: seen.update(mlp=o)),
    ]
    forward(model, inputs)
    for hook in hooks:
        hook.remove()
    found = collect(model, inputs, LAYER, "attn_out", "post_attention_norm", "transition", "transition_abs")
    for row, (visual, _) in enumerate(columns(inputs)):
        n, real = len(visual), inputs["attention_mask"][row].bool()
        torch.testing.assert_close(found["attn_out"][row, :n], seen["added"][row][visual])
        torch.testing.assert_close(found["post_attention_norm"][row, :n], seen["n2"][row][visual])
        for name, absolute in (("transition", False), ("transition_abs", True)):
            total = torch.zeros(len(real))
            for before, after in (("n1", "attention"), ("n2", "mlp")):
                x, y = seen[before][row][real], seen[after][row][real]
                cosine = (x * y).sum(1) / x.norm(dim=1) / y.norm(dim=1)
                weight = torch.softmax(1 - (cosine.abs() if absolute else cosine), 0)
                total[real] += y.norm(dim=1) / x.norm(dim=1) * weight
            torch.testing.assert_close(found[name][row, :n], total[visual], atol=1e-6, rtol=1e-5)


def test_logits_of_the_whole_sequence(dense: dict[str, Any]) -> None:
    found = collect(dense["model"], dense["inputs"], LAYER, "attention_logits", "xy")["attention_logits"]
    maps = dense["out"].attentions[1]
    assert found.isfinite().all()
    for row, mask in enumerate(dense["inputs"]["attention_mask"].bool()):
        torch.testing.assert_close(found.softmax(3)[row][:, mask], maps[row][:, mask], atol=3e-6, rtol=1e-5)


def test_signals_of_an_earlier_layer_follow_the_survivors(dense: dict[str, Any]) -> None:
    """At the second of two cuts, a signal of a layer before the first is that of the tokens still there."""
    model, inputs = dense["model"], dense["inputs"]
    with pruneopt.prune(model, spying(SEVERAL, "hidden_in@0", "importance", "size", "visual_index")) as run:
        forward(model, inputs)
        kept = run.last.cuts[0].kept
    hidden = dense["out"].hidden_states[0]
    assert SEEN["size"].eq(1).all()
    for row in rows(dense):
        n = int((kept[row] >= 0).sum())
        assert torch.equal(SEEN["hidden_in@0"][row, :n], hidden[row][kept[row, :n]])


def test_cls_signals_equal_the_eager_tower() -> None:
    model = tiny_models.llava("eager", vision_feature_layer=-2)
    inputs = llava_scenarios()["text_row"]
    names = (
        "cls_attention", "received_attention", "encoder_keys", "encoder_queries", "cls_query", "cls_key",
        "cls_feature", "encoder_features", "encoder_attention", "patches", "cls_attention@-1", "xy",
    )  # fmt: skip
    seen = collect(model, inputs, ENTRY, *names)
    tower = model.model.vision_tower
    with torch.no_grad():
        out = tower(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
    maps, hidden = out.attentions, out.hidden_states
    block = tower.encoder.layers[-2].self_attn
    normed = tower.encoder.layers[-2].layer_norm1(hidden[-3])
    keys = block.k_proj(normed).unflatten(2, (4, -1)).transpose(1, 2)
    wanted = {
        "cls_attention": maps[-2][:, :, 0, 1:],
        "cls_attention@-1": maps[-1][:, :, 0, 1:],
        "received_attention": maps[-2].mean(2)[:, :, 1:],
        "encoder_attention": maps[-2][:, :, 1:, 1:],
        "encoder_keys": keys[:, :, 1:],
        "cls_key": keys[:, :, 0],
        "cls_feature": hidden[-2][:, 0],
        "encoder_features": hidden[-2][:, 1:],
    }
    for name, value in wanted.items():
        torch.testing.assert_close(seen[name], value, atol=2e-6, rtol=1e-5)
    projected = block.q_proj(normed).unflatten(2, (4, -1)).transpose(1, 2)
    torch.testing.assert_close(seen["cls_query"], projected[:, :, 0])
    torch.testing.assert_close(seen["encoder_queries"], projected[:, :, 1:])
    x, y = seen["xy"][0, 8].tolist()
    patch = inputs["pixel_values"][0][:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
    assert torch.equal(seen["patches"][0, 8], patch)


@pytest.mark.parametrize("family", ["llava_next", "llava_next_video", "internvl", "llava_onevision"])
def test_encoder_features_lie_at_their_tokens(family: str) -> None:
    """Projecting `encoder_features` gives the embeddings of the same tokens: the packing is understood."""
    build, make = FAMILIES[family]
    model = build("sdpa")
    inputs = make(build)["video" if family == "llava_next_video" else "single"]
    seen = collect(model, inputs, ENTRY, "encoder_features", "embeddings", "xy", "grid", "group", "tile")
    with torch.no_grad():
        projected = model.model.multi_modal_projector(seen["encoder_features"])
    torch.testing.assert_close(projected, seen["embeddings"], atol=1e-5, rtol=1e-4)
    assert (seen["xy"] >= 0).all() and (seen["xy"] < seen["grid"]).all()


def test_next_tiles_and_groups() -> None:
    """A tall picture: base crop, then tiles; coordinates rebuild the unpadded picture."""
    build, make = FAMILIES["llava_next"]
    seen = collect(build("sdpa"), make(build)["single"], ENTRY, "xy", "tile", "group", "grid")
    tile, group, xy = seen["tile"][0], seen["group"][0], seen["xy"][0]
    assert (tile[group == 0] == -1).all() and (group == 0).sum() == 16
    assert sorted(set(map(tuple, tile[group > 0].tolist()))) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    whole = tile[group > 0] * 4 + xy[group > 0]
    height, width = (int(whole[:, 1].max() - whole[:, 1].min()) + 1, int(whole[:, 0].max()) + 1)
    assert height * width == len(whole) == len(set(map(tuple, whole.tolist())))
    assert width == 8 and height < 8  # 20 x 37 pixels on a 32 x 32 canvas: rows were cut away


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_qwen_encoder_signals(family: str) -> None:
    """Order, merging and attention within segments, from the tower's own hidden states."""
    build, make = FAMILIES[family]
    model, inputs = build("eager"), make(build)["left"]
    seen = collect(
        model,
        inputs,
        ENTRY,
        "encoder_features",
        "received_attention",
        "encoder_keys",
        "patches",
        "encoder_attention",
    )
    tower, grid = model.model.visual, inputs["image_grid_thw"]
    caught: dict[str, Any] = {}
    attention = tower.blocks[-1].attn
    hooks = [
        tower.merger.register_forward_hook(lambda m, a, o: caught.update(states=a[0], merged=o)),
        attention.register_forward_pre_hook(lambda m, a, k: caught.update(call=(a, k)), with_kwargs=True),
    ]
    with torch.no_grad():
        pooled = torch.cat(list(model.model.get_image_features(inputs["pixel_values"], grid).pooler_output))
    for hook in hooks:
        hook.remove()
    # where each token came from, found by looking for its merged row
    order = torch.cdist(pooled.double(), caught["merged"].double()).argmin(1)
    assert sorted(order.tolist()) == list(range(len(order)))
    groups = caught["states"].reshape(len(order), 4, -1).mean(1)[order]
    args, kwargs = caught["call"]
    hidden = args[0] if args else kwargs["hidden_states"]
    with torch.no_grad():
        query, key, _ = attention.qkv(hidden).reshape(len(hidden), 3, 4, -1).unbind(1)
    cos, sin = (part[:, None] for part in kwargs["position_embeddings"])

    def turned(x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-right, left], -1) * sin

    image = torch.repeat_interleave(torch.arange(len(grid)), grid.prod(1))
    if family == "qwen2_5_vl":  # the encoder holds patches in window order, image after image
        assert tower.fullatt_block_indexes == [2]
    logits = torch.einsum("qhd,khd->hqk", turned(query), turned(key)) * attention.scaling
    weights = logits.masked_fill(image[:, None] != image[None], -torch.inf).softmax(2)
    sizes = torch.bincount(image).float()
    received = weights.sum(1) / sizes[image]
    per_token = received.reshape(4, len(order), 4).mean(2)[:, order]
    keys = key.reshape(len(order), 4, 4, -1).mean(1)[order]
    start, ids = 0, inputs["input_ids"]
    for row in range(len(ids)):
        n = int((ids[row] == IMAGE).sum())
        take = slice(start, start + n)
        torch.testing.assert_close(seen["encoder_features"][row, :n], groups[take], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            seen["received_attention"][row, :, :n], per_token[:, take], atol=1e-6, rtol=1e-4
        )
        torch.testing.assert_close(
            seen["encoder_keys"][row, :, :n], keys[take].transpose(0, 1), atol=1e-5, rtol=1e-4
        )
        between = seen["encoder_attention"][row, :, :n, :n]
        whole = weights.reshape(4, len(order), 4, len(order), 4).mean((2, 4))[:, order][:, :, order]
        torch.testing.assert_close(between, whole[:, take, take], atol=1e-6, rtol=1e-4)
        start += n
    first = inputs["pixel_values"][:4].reshape(2, 2, 3, 2, 4, 4)[:, :, :, 0]
    assert torch.equal(seen["patches"][0, 0], first.permute(2, 0, 3, 1, 4).reshape(3, 8, 8))


def test_idefics_received_attention_merges_neighbours() -> None:
    build, make = FAMILIES["smolvlm"]
    model, inputs = build("eager"), make(build)["single"]
    seen = collect(model, inputs, ENTRY, "received_attention", "cls_attention", "xy")
    pixels = inputs["pixel_values"].flatten(0, 1)
    with torch.no_grad():
        maps = model.model.vision_model(pixels, output_attentions=True).attentions[-1]
    received = maps.mean(2).unflatten(2, (6, 6))
    merged = torch.nn.functional.avg_pool2d(received, 2).flatten(2)  # [3,H,9], raster order
    wanted = merged.transpose(0, 1).flatten(1)[None]
    torch.testing.assert_close(seen["received_attention"], wanted, atol=2e-6, rtol=1e-5)
    assert torch.equal(seen["cls_attention"], seen["received_attention"])
    assert seen["xy"][0, :9].tolist() == [[i % 3, i // 3] for i in range(9)]


def test_video_time_and_groups() -> None:
    build, make = FAMILIES["llava_onevision"]
    inputs = make(build)["video"]
    seen = collect(build("sdpa"), inputs, ENTRY, "time", "group", "grid", "received_attention")
    assert int((inputs["input_ids"] == VIDEO).sum()) == 3 * 4 + 1
    assert seen["time"][0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(seen["time"], seen["group"]) and seen["grid"].eq(2).all()


def test_signals_of_crops_reach_the_problem_of_their_crop() -> None:
    """Two pictures in one sample, and beams: each crop's CLS key goes with the keys of the same crop."""
    model = tiny_models.llava("eager", vision_feature_layer=-2)
    inputs = llava_scenarios()["left"]
    spec = spying(ENTRY, "cls_key", "encoder_keys", "cls_attention", "xy")
    per_group = replace(spec.stages[0], budget=replace(spec.stages[0].budget, scope="group"))
    keys = model.model.vision_tower.encoder.layers[-2].self_attn.k_proj

    def check(given: dict[str, Any], order: list[int], run: Callable[[], Any]) -> None:
        caught: list[Tensor] = []
        hook = keys.register_forward_hook(lambda m, a, o: caught.append(o))
        run()
        hook.remove()
        whole = caught[0].unflatten(2, (4, -1)).transpose(1, 2)
        order = (
            order if len(whole) < len(order) else list(range(len(order)))
        )  # older versions encode per beam
        torch.testing.assert_close(SEEN["cls_key"], whole[order][:, :, 0])
        torch.testing.assert_close(SEEN["encoder_keys"], whole[order][:, :, 1:])

    single = llava_scenarios()["text_row"]
    with pruneopt.prune(model, replace(spec, stages=(per_group,))) as run:
        check(inputs, [0, 1, 2, 3], lambda: forward(model, inputs))
        check(single, [0, 0, 1, 1], lambda: model.generate(**single, max_new_tokens=2, num_beams=2))
        assert run.kept_visual[0][0::2] == run.kept_visual[0][1::2]
    with pruneopt.prune(model, spec), pytest.raises(ModelError, match="one per crop"):
        forward(model, inputs)


def test_towers_without_cls_refuse_cls_keys() -> None:
    build, _ = FAMILIES["llava_onevision"]
    with pytest.raises(ModelError, match="no CLS token"):
        pruneopt.apply(build("sdpa"), spying(ENTRY, "cls_key"))


def test_compact_positions_close_gaps() -> None:
    from pruneopt.models.sequence import compact_positions

    positions = torch.tensor([[[0, 1, 2, 2, 7]], [[0, 1, 4, 6, 7]], [[0, 1, 2, 5, 7]]])
    found, following = compact_positions(positions, torch.tensor([[True] * 5]))
    assert found[:, 0].tolist() == [[0, 1, 2, 2, 6], [0, 1, 3, 5, 6], [0, 1, 2, 4, 6]]
    assert following.tolist() == [[7]]
    line = torch.tensor([[[5, 9, 12]]])
    assert compact_positions(line, torch.tensor([[False, True, True]]))[0].tolist() == [[[0, 0, 1]]]


def test_finish_is_the_same_for_every_attention_setting() -> None:
    make: Callable[..., Any] = tiny_models.llava
    a, b = make("sdpa"), make("eager")
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert finish(a) is a


def test_a_tower_without_cls_says_what_answered_for_it() -> None:
    build, make = FAMILIES["smolvlm"]
    model, inputs = build("sdpa"), make(build)["single"]
    scores = {"cls": {"kind": "cls_attention"}}
    spec = {
        "name": "cls",
        "insertion": "post_encoder",
        "positions": "compact",
        "budget": {"keep": 0.5, "scope": "sample"},
        "problem": {"kind": "top_k", "scores": scores},
        "solver": "stable_top_k",
    }
    with torch.no_grad(), prune(model, spec) as run:
        model(**inputs)
    assert any("no CLS token" in note for note in run.report.diagnostics)
