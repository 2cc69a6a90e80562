"""Insertion points from outside: in the vision encoder, in the cache, and both with a cut of the prompt.

References are untouched models that hide keys: in the tower the patches that went, in the decoder the columns
that went, in decoding what left the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from elsewhere import installed
from test_apply import MeanOfDropped
from test_position_policies import told
from tiny_models import IMAGE, finish, llama, llava, llava_scenarios, precise, precisely, siglip
from torch import Tensor, nn

import pruneopt
from pruneopt.errors import ModelError, RegistryError, SpecError
from pruneopt.models.base import adapter_for
from pruneopt.models.report import shape_of
from pruneopt.models.supported import supported_models
from pruneopt.parts.insertions.post_encoder import PostEncoder
from pruneopt.pruner import Pruner
from pruneopt.registry import registry
from pruneopt.show.survivors import survivor_panel
from pruneopt.spec.load import load_spec
from pruneopt.testing.insertion import inventory
from pruneopt.testing.masking import difference, forward, generate, masked, real_columns
from pruneopt.tuning.schedule import achieved
from pruneopt.tuning.tune import meet_layer_mean

PATCHES = 36
RANDOM = {"kind": "top_k", "scores": {"chance": {"kind": "random", "seed": 3}}}
NORM = {"kind": "top_k", "scores": {"norm": "token_norm"}}


@pytest.fixture(autouse=True)
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("site-packages")):
        yield


def stage(kind: str, keep: float, problem: Any = RANDOM, positions: str = "keep", **where: Any) -> Any:
    insertion = {"kind": kind, **where}
    scope = "group" if kind == "encoder_block" else "sample"
    budget = {"keep": keep, "scope": scope}
    return {"insertion": insertion, "budget": budget, "problem": problem, "positions": positions}


def spec_of(*stages: Any) -> Any:
    return load_spec({"name": "elsewhere", "solver": "stable_top_k", "stages": list(stages)})


ENCODER = stage("encoder_block", 0.5, block=1)
LAYER = stage("prefill_layer", 0.3, layer=2)
KEYS = {"kind": "top_k", "scores": {"keys": "key_norm"}}  # of the layer whose cache is cut
CACHE = stage("layer_cache", 0.15, KEYS, layer=[2, 4])


def sigliped(attention: str = "sdpa") -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=siglip(image_size=24), text_config=llama(), image_token_id=IMAGE, image_seq_length=36,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    config._attn_implementation = attention
    return finish(LlavaForConditionalGeneration(config))


BATCHES = precisely(llava_scenarios())


@contextmanager
def blind_tower(model: Any, block: int, kept: Sequence[Sequence[int]]) -> Iterator[None]:
    """Hide patches that are not in `kept`, per crop, in an untouched tower from `block` on."""
    tower = model.model.vision_tower
    lead = int(hasattr(tower.embeddings, "class_embedding"))
    visible = torch.zeros(len(kept), lead + PATCHES, dtype=torch.bool)
    visible[:, :lead] = True
    for crop, patches in enumerate(kept):
        visible[crop, [lead + patch for patch in patches]] = True

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = torch.zeros(len(kept), 1, 1, lead + PATCHES, dtype=args[0].dtype)
        mask = mask.masked_fill(~visible[:, None, None], torch.finfo(args[0].dtype).min)
        return (args[0], mask.expand(-1, -1, lead + PATCHES, -1), *args[2:]), kwargs

    handles = [
        layer.register_forward_pre_hook(before, with_kwargs=True) for layer in tower.encoder.layers[block:]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def blind_decoding(layers: Any, kept: Mapping[int, Sequence[Sequence[int]]], real: Tensor) -> Iterator[None]:
    """Hide the prompt's columns that are not in `kept[layer]` from later steps, in those layers only."""
    rows, columns = real.shape

    def hook(index: int) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            past = int(kwargs["past_key_values"].get_seq_length(index))
            if not past:
                return None
            visible = torch.zeros(rows, 1, 1, past + hidden.shape[1], dtype=torch.bool)
            visible[..., columns:] = True
            for row, survivors in enumerate(kept[index]):
                visible[row, ..., list(survivors)] = True
            mask = torch.zeros(visible.shape, dtype=hidden.dtype)
            return args, {**kwargs, "attention_mask": mask.masked_fill(~visible, torch.finfo(mask.dtype).min)}

        return before

    handles = [layers[i].register_forward_pre_hook(hook(i), with_kwargs=True) for i in kept]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def patches_of(inputs: Mapping[str, Any], visual: Sequence[Sequence[int]]) -> list[list[int]]:
    """Patches of each crop that the columns `visual` of every row hold."""
    out = []
    for row, ids in enumerate(inputs["input_ids"].tolist()):
        columns = [column for column, token in enumerate(ids) if token == IMAGE]
        for start in range(0, len(columns), PATCHES):
            crop = columns[start : start + PATCHES]
            out.append([crop.index(column) for column in visual[row] if column in crop])
    return out


def gap(model: Any, spec: Any, inputs: Mapping[str, Any]) -> float:
    """Largest difference of the logits of a prompt and eight more tokens to the reference."""
    with pruneopt.prune(model, spec) as run:
        tokens, found = generate(model, inputs)
        kept, cuts, prompt = run.kept, run.last.cuts, run.last.prompt
    real, layers = real_columns(inputs), model.model.language_model.layers
    text, held = (prompt.real & ~prompt.free).tolist(), {}
    with ExitStack() as stack:
        for s, cut in zip(spec.stages, cuts, strict=True):
            left: list[list[int]] = [[] for _ in real]
            for row, columns in zip(prompt.rows, cut.kept.tolist(), strict=True):
                left[row] = [column for column in columns if column >= 0]
            for layer in cut.evicted or ():
                stays = [[c for c, here in enumerate(row) if here] for row in text]
                held[layer] = [a + b for a, b in zip(stays, left, strict=True)]
            if s.insertion.name == "encoder_block":
                seen = patches_of(inputs, left)
                assert {len(patches) for patches in seen} == {s.budget.count(PATCHES, PATCHES)}
                stack.enter_context(blind_tower(model, s.insertion.block, seen))
        if kept:
            stack.enter_context(masked(layers, kept, real=real))
            policies = {s.insertion.layer_index: spec.positions_at(s) for s in spec.stages}
            stack.enter_context(told(model.model.language_model, kept, policies, real))
        stack.enter_context(blind_decoding(layers, held, real))
        _, wanted = generate(model, inputs, forced=tokens)
    return difference(found, wanted)


COMPOSED = {
    "encoder": (ENCODER,),
    "last block": (stage("encoder_block", 0.4, NORM, block=1),),
    "cache": (stage("layer_cache", 0.3, KEYS, layer=[0, 2, 3]),),
    "encoder and layer": (ENCODER, LAYER),
    "layer and cache": (LAYER, CACHE),
    "all": (ENCODER, stage("post_encoder", 0.4), LAYER, CACHE),
    "numbered afresh": (stage("encoder_block", 0.5, positions="compact", block=1), LAYER, CACHE),
    "numbered late": (ENCODER, stage("prefill_layer", 0.3, positions="compact", layer=2), CACHE),
}


@pytest.mark.parametrize("build", [llava, sigliped], ids=["clip", "siglip"])
@pytest.mark.parametrize("name", COMPOSED)
def test_removal_equals_hiding_wherever_it_happens(name: str, build: Any) -> None:
    model, spec = precise(build)("sdpa"), spec_of(*COMPOSED[name])
    forward(model, BATCHES["single"])  # transformers hangs recorders on a tower when it first runs
    before = inventory(model)
    for batch in ("left", "text_row") if name != "all" else ("single", "left", "right", "text_row"):
        assert gap(model, spec, BATCHES[batch]) < 1e-12, batch
    assert inventory(model) == before


def test_the_reference_sees_patches_that_stay_in_the_tower_and_entries_that_stay_in_the_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import layer_cache_site
    from cut_elsewhere import encoder_block_site

    model, inputs = precise(llava)("sdpa"), BATCHES["left"]

    def whole_tower(self: Any, *_: Any) -> None:
        self.made.append(Pruner(self.stage).select(self._signals(torch.zeros(4, PATCHES, 1))))

    with monkeypatch.context() as patch:  # patches go after the tower instead of inside it
        patch.setattr(encoder_block_site.EncoderBlockSite, "_cut", whole_tower)
        patch.setattr(encoder_block_site.EncoderBlockSite, "_put_back", lambda *_: None)
        assert gap(model, spec_of(ENCODER), inputs) > 1e-4
    real = layer_cache_site.take

    def neighbours(values: Tensor, order: Tensor, *, dim: int) -> Tensor:
        return real(values, (order - 1).clamp_min(0), dim=dim)

    with monkeypatch.context() as patch:  # the wrong entries stay
        patch.setattr(layer_cache_site, "take", neighbours)
        assert gap(model, spec_of(CACHE), inputs) > 1e-4


def recorded(model: Any, module: nn.Module, inputs: Mapping[str, Any], *, output: bool = False) -> Tensor:
    """What goes into, or comes out of, a module of an untouched model."""
    seen: list[Tensor] = []

    def see(_: nn.Module, args: Any, out: Any) -> None:
        seen.append(out if output else args[0])

    handle = module.register_forward_hook(see)
    try:
        forward(model, inputs)
    finally:
        handle.remove()
    return seen[0]


def test_signals_of_the_tower_and_of_earlier_blocks_belong_to_the_tokens_that_are_left() -> None:
    """The tower is cut by norms of what enters a block, the prompt by keys of the block before it."""
    model, inputs = precise(llava)("sdpa"), BATCHES["left"]
    blocks = model.model.vision_tower.encoder.layers
    norms = recorded(model, blocks[1], inputs)[:, 1:].float().norm(dim=2)
    keys = recorded(model, blocks[0].self_attn.k_proj, inputs, output=True)[:, 1:]
    sizes = keys.float().norm(dim=2)
    by_key = {"kind": "top_k", "scores": {"k": {"kind": "key_norm", "signal": "encoder_keys@0"}}}
    spec = spec_of(stage("encoder_block", 0.5, NORM, block=1), stage("prefill_layer", 0.25, by_key, layer=2))
    with pruneopt.prune(model, spec) as run:
        forward(model, inputs)
        first, second = (patches_of(inputs, run.kept_visual[layer]) for layer in (0, 2))
    assert first == [sorted(row.topk(18).indices.tolist()) for row in norms]
    for row, crops in ((0, [0]), (1, [1]), (2, [2, 3])):
        pool = [(float(sizes[crop, patch]), crop, patch) for crop in crops for patch in first[crop]]
        best = sorted((crop, patch) for _, crop, patch in sorted(pool)[-9 * len(crops) :])
        assert best == [(crop, patch) for crop in crops for patch in second[crop]], row


def test_the_report_counts_what_ran_and_what_is_held() -> None:
    model, inputs = llava(), llava_scenarios()["single"]
    with pruneopt.prune(model, spec_of(ENCODER, LAYER, CACHE)) as run:
        cache = forward(model, inputs, use_cache=True).past_key_values
    report, text = run.report, 45 - 36
    assert report.cuts == [(0, [18]), (2, [11])] and report.evicted == [([2], [5]), ([4], [5])]
    assert report.to_dict()["evicted"] == [{"layers": [2], "kept": [5]}, {"layers": [4], "kept": [5]}]
    assert set(run.kept) == {0, 2}
    assert report.tokens == [[text + 18]] * 2 + [[text + 11]] * 3
    assert report.columns == [text + 18, text + 18, text + 5, text + 11, text + 5]
    assert report.cache_found == report.cache_expected
    assert [layer.keys.shape[2] for layer in cache.layers] == report.columns
    assert (report.kept_at_entry, report.kept_at_end) == (18 / 36, 11 / 36)
    assert "before layer 2: [11] kept, in the cache of [2]: [5] kept" in str(report)
    with pruneopt.prune(model, spec_of(CACHE)) as run:
        forward(model, inputs, use_cache=True)
    assert (run.report.kept_at_entry, run.report.kept_at_end, run.report.flops_share) == (1.0, 1.0, 1.0)
    assert run.report.cache_share < 1
    visual = (inputs["input_ids"][0] == IMAGE).nonzero().squeeze(1).tolist()
    assert run.kept == {0: [list(range(45))]} and run.kept_visual == {0: [visual]}, (
        "all ran through all layers"
    )
    assert survivor_panel(run).title == "5 of 36 tokens kept"


REFUSED = [
    ((LAYER, ENCODER), SpecError, "in order of depth, got prefill_layer 2, encoder_block 1"),
    ((CACHE, LAYER), SpecError, "in order of depth, got layer_cache 2, layer_cache 4, prefill_layer 2"),
    ((stage("encoder_block", 0.5, block=2),), ModelError, "the model reads the features of block 1"),
    ((stage("encoder_block", 0.5, KEYS, block=1),), ModelError, "'keys' does not exist at encoder_block"),
    ((stage("layer_cache", 0.5, KEYS, layer=5),), ModelError, r"layers 0 to 4 once, not \[5\]"),
    ((stage("layer_cache", 0.5, KEYS, layer=[3, 3]),), ModelError, r"layers 0 to 4 once, not \[3, 3\]"),
    ((LAYER, stage("layer_cache", 0.5, KEYS, layer=1)), ModelError, "layers 2 to 4 once"),
    ((stage("layer_cache", 0.5, KEYS, "compact", layer=1),), ModelError, "positions: keep at this"),
    ((ENCODER, stage("prefill_layer", 0.2, {"kind": "top_k", "scores": {"c": "cls_attention"}}, layer=1)),
     ModelError, "runs without the removed patches; .*cls_attention@0"),
]  # fmt: skip


@pytest.mark.parametrize(("stages", "kind", "words"), REFUSED, ids=[words[:30] for _, _, words in REFUSED])
def test_what_cannot_be_carried_out_is_refused_before_anything_is_attached(
    stages: Any, kind: type[Exception], words: str
) -> None:
    model = llava()
    before = inventory(model)
    with pytest.raises(kind, match=words):
        pruneopt.apply(model, spec_of(*stages))
    assert inventory(model) == before


@pytest.mark.parametrize("where", [ENCODER, CACHE], ids=["encoder", "cache"])
@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"kind": "grid_recycle"}, "grid_recycle asks for a merge, and"),
        ({"kind": "recycle_clusters"}, "recycle_clusters asks for a merge and a reordering, and"),
        ({"kind": "add_grid", "order": "appended"}, "add_grid asks for a reordering, and"),
        ({"kind": "add_grid"}, ""),
    ],
)
def test_a_step_that_asks_for_more_is_refused_when_the_spec_is_loaded(
    where: Any, step: dict[str, Any], words: str
) -> None:
    assert spec_of({**LAYER, "steps": [step]}).stages[0].steps[0].name == step["kind"]
    if not words:
        assert spec_of({**where, "steps": [step]}).stages[0].steps[0].asks == frozenset()
        return
    with pytest.raises(SpecError, match=rf"{words} .* only: removal") as caught:
        spec_of({**where, "steps": [step]})
    assert caught.value.key == "stages.0.insertion"


@pytest.mark.parametrize("where", [ENCODER, CACHE], ids=["encoder", "cache"])
def test_an_insertion_says_what_a_selection_may_ask_for(where: Any) -> None:
    spec = spec_of(where)
    spec = replace(spec, stages=(replace(spec.stages[0], steps=(MeanOfDropped(),)),))
    model = llava()
    with (
        pruneopt.prune(model, spec),
        pytest.raises(ModelError, match=r"a merge, and .* only: removal"),
    ):
        forward(model, llava_scenarios()["single"], use_cache=True)


def test_a_token_that_cannot_go_is_not_lost_in_the_tower() -> None:
    """A picture at the end of the prompt: its last token stays where logits are read."""
    inputs = llava_scenarios()["single"]
    cut = {**inputs, **{k: inputs[k][:, :-5] for k in ("input_ids", "attention_mask")}}
    model = llava()
    spec = spec_of(stage("encoder_block", 0.01, block=1))
    with pruneopt.prune(model, spec), pytest.raises(ModelError, match="cannot be removed"):
        forward(model, cut)


def test_schedules_refuse_what_their_closed_form_does_not_count() -> None:
    shape = shape_of(adapter_for(llava()))
    inside = achieved(spec_of(ENCODER, LAYER), shape, visual=36, text=9)
    assert inside.kept == (18, 11) and inside.layer_mean == (2 * 18 + 3 * 11) / 5
    with pytest.raises(SpecError, match="layer_cache cuts a cache, which the closed form"):
        achieved(spec_of(LAYER, CACHE), shape, visual=36, text=9)
    with pytest.raises(SpecError, match="layer_cache cuts a cache"):
        meet_layer_mean(0.5, 5)(spec_of(CACHE))


@dataclass(frozen=True)
class Lost(PostEncoder):
    """An insertion whose site nobody has."""

    site: ClassVar[str] = "nowhere"


def test_plugins_are_listed_and_a_site_that_is_missing_says_so() -> None:
    rows = {row["model_type"]: row["insertion points"] for row in supported_models()}
    assert rows["llava"] == "encoder_block, layer_cache, post_encoder, prefill_layer"
    assert rows["qwen2_vl"] == "layer_cache, post_encoder, prefill_layer"
    assert [entry.origin for entry in registry("sites").entries()][:2] == [
        "cut-elsewhere 1.0",
        "layer-cache 1.0",
    ]
    spec = spec_of(stage("post_encoder", 0.5))
    broken = replace(spec, stages=(replace(spec.stages[0], insertion=Lost()),))
    with pytest.raises(RegistryError, match="unknown site 'nowhere'"):
        pruneopt.apply(llava(), broken)


def test_no_insertion_is_named_where_sites_are_attached_and_measured() -> None:
    models = Path(pruneopt.__file__).parent / "models"
    named = {
        path.name
        for path in models.glob("*.py")
        for name in registry("insertions")
        if name in path.read_text(encoding="utf-8")
    }
    assert named == set() and len(list(models.glob("*.py"))) > 20
