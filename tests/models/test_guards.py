"""What would go round the pruning is refused, or seen; every guard is taken away once and missed."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest
import tiny_models
import torch
from tiny_models import IMAGE, PAD, VOCABULARY, clip, finish, llama, llava, llava_next, llava_scenarios
from torch import Tensor

import pruneopt
from pruneopt.errors import ModelError
from pruneopt.models import guard, refuse
from pruneopt.models.base import adapter_for
from pruneopt.models.guard import Guard
from pruneopt.models.hooks import Attachments
from pruneopt.models.load import load_model
from pruneopt.models.sites import sites_of
from pruneopt.models.timing import timed
from pruneopt.models.window import Window
from pruneopt.testing.insertion import ENTRY, LAYER, SEVERAL, inventory, masked
from pruneopt.testing.masking import difference, forward, generate, real_columns

Bug = AbstractContextManager[Any]


@pytest.fixture
def model() -> Any:
    return llava()


@pytest.fixture(scope="module")
def single() -> dict[str, Any]:
    return llava_scenarios()["single"]


def places(model: Any) -> dict[str, Any]:
    text = model.model.language_model
    return {"model": model, "inner": model.model, "text": text, "layer": text.layers[3]}


# replaced and compiled forwards


def compiled(module: Any) -> None:
    module.forward = torch.compile(module.forward, backend="eager")


def wrapped(module: Any) -> None:
    real = module.forward
    module.forward = lambda *args, **kwargs: real(*args, **kwargs)


def in_place(module: Any) -> None:
    module.compile(backend="eager")


CHANGES = {"compiled": compiled, "not its class's own": wrapped, "is compiled": in_place}


@pytest.mark.parametrize("what", list(CHANGES))
@pytest.mark.parametrize("where", ["model", "inner", "text", "layer"])
def test_replaced_forward_is_refused_before_and_inside(
    model: Any, single: dict[str, Any], where: str, what: str
) -> None:
    with pruneopt.prune(model, LAYER):
        CHANGES[what](places(model)[where])
        for call in (forward, generate):
            with pytest.raises(ModelError, match=f"{what}.*prune the plain model"):
                call(model, single)
    before = inventory(model)
    with pytest.raises(ModelError, match=f"{what}.*prune the plain model"):
        pruneopt.apply(model, LAYER)
    assert inventory(model) == before


def test_a_layer_replaced_inside_is_refused(model: Any, single: dict[str, Any]) -> None:
    layers = model.model.language_model.layers
    with pruneopt.prune(model, LAYER):
        layers[4] = copy.deepcopy(layers[4])
        with pytest.raises(ModelError, match=r"layers\.4 was replaced after"):
            forward(model, single)


def test_a_forward_beside_the_pruning_does_not_matter(model: Any, single: dict[str, Any]) -> None:
    """Modules that carry no hook and hold none may run anything."""
    wrapped(model.model.language_model.layers[1].mlp)
    wrapped(model.model.vision_tower)
    with pruneopt.prune(model, LAYER) as run:
        forward(model, single)
    assert len(run.kept_visual[2][0]) == 18


def graph_of_before(model: Any, single: dict[str, Any]) -> torch.Tensor:
    """Dense logits from code that runs no hook, as a compiled graph does, and no guard looks at forwards."""
    ready = copy.deepcopy(model).forward
    with torch.no_grad():
        dense = ready(**single).logits
    with pruneopt.prune(model, LAYER), mock.patch.object(Guard, "check_forwards", lambda self: None):
        model.forward = ready
        found = forward(model, single).logits
    assert torch.equal(found, dense)
    return found


def test_a_prompt_that_was_not_cut_is_an_error(model: Any, single: dict[str, Any]) -> None:
    """The second net: no check of forwards, and a graph that runs no hook."""
    with pytest.raises(ModelError, match="was not pruned"):
        graph_of_before(model, single)
    # the net is not stuck after an error, and lets text follow
    del model.forward
    with pruneopt.prune(model, LAYER):
        generate(model, single)
        out = forward(model, single, use_cache=True)
        forward(model, {"input_ids": torch.tensor([[5]])}, past_key_values=out.past_key_values)


def test_planted_no_look_at_forwards_is_missed(model: Any, single: dict[str, Any]) -> None:
    with mock.patch.object(guard, "_replaced", lambda module: ""), pruneopt.prune(model, LAYER) as run:
        wrapped(model)
        forward(model, single)
    assert run.prompts == 1  # nothing refused: the test above would fail


def test_planted_no_net_returns_the_dense_output(model: Any, single: dict[str, Any]) -> None:
    with mock.patch.object(Guard, "_leave", lambda *_: None):
        assert graph_of_before(model, single).shape[1] == single["input_ids"].shape[1]


# copies


def hooks_of(model: Any) -> list[dict[str, int]]:
    return [
        {
            name: len(value)
            for name, value in m.__dict__.items()
            if "hooks" in name and isinstance(value, dict)
        }
        for m in model.modules()
    ]


def test_a_deep_copy_is_clean_and_the_original_goes_on(model: Any, single: dict[str, Any]) -> None:
    dense = forward(model, single).logits  # transformers adds hooks of its own in the first pass
    plain, names = copy.deepcopy(model), [set(m.__dict__) for m in model.modules()]
    with timed(model), pruneopt.prune(model, "topv") as run:
        wanted, before = forward(model, single).logits, run.prompts
        copied = copy.deepcopy(model)
        layer = copy.deepcopy(model.model.language_model.layers[1])
        assert torch.equal(forward(copied, single).logits, dense)
        generate(copied, single)
        assert run.prompts == before
        with pruneopt.prune(copied, LAYER) as other:
            assert torch.equal(forward(model, single).logits, wanted)
            forward(copied, single)
        assert (run.prompts, other.prompts) == (before + 1, 1)
    for found in (model, copied):
        assert hooks_of(found) == hooks_of(plain)
        assert [set(m.__dict__) for m in found.modules()] == names
    assert hooks_of(layer) == hooks_of(plain.model.language_model.layers[1])


def test_planted_plain_copies_take_the_state_of_the_run_along(model: Any) -> None:
    with (
        mock.patch.object(Attachments, "_copied_without", lambda self, owner: None),
        pruneopt.prune(model, LAYER),
        pytest.raises(TypeError, match=r"_Call|RLock"),
    ):
        copy.deepcopy(model)


# what generate and forward are given, from wherever it comes

SETTINGS: dict[str, Any] = {
    "use_cache": False,
    "prefill_chunk_size": 4,
    "guidance_scale": 1.5,
    "prompt_lookup_num_tokens": 2,
    "cache_implementation": "static",
    "assistant_early_exit": 2,
    "use_mtp": True,
}


def by_keyword(model: Any, ids: Tensor, rest: dict[str, Any], name: str, value: Any) -> Any:
    return model.generate(ids, max_new_tokens=2, **rest, **{name: value})


def in_a_config(model: Any, ids: Tensor, rest: dict[str, Any], name: str, value: Any) -> Any:
    return model.generate(ids, generation_config=_config(name, value), **rest)


def positionally(model: Any, ids: Tensor, rest: dict[str, Any], name: str, value: Any) -> Any:
    return model.generate(ids, _config(name, value), **rest)


def on_the_model(model: Any, ids: Tensor, rest: dict[str, Any], name: str, value: Any) -> Any:
    setattr(model.generation_config, name, value)
    return model.generate(ids, max_new_tokens=2, **rest)


def beside_a_config(model: Any, ids: Tensor, rest: dict[str, Any], name: str, value: Any) -> Any:
    """The model's own setting counts where a given config says nothing."""
    from transformers import GenerationConfig

    setattr(model.generation_config, name, value)
    return model.generate(ids, GenerationConfig(max_new_tokens=2), **rest)


def _config(name: str, value: Any) -> Any:
    from transformers import GenerationConfig

    found = GenerationConfig(max_new_tokens=2)
    setattr(found, name, value)
    return found


WAYS = [by_keyword, in_a_config, positionally, on_the_model, beside_a_config]


def refusal(way: Callable[..., Any], name: str, single: dict[str, Any]) -> str:
    """What the guard says to a setting; empty when something else happened."""
    kept = copy.deepcopy(SHARED.generation_config)
    rest = {k: v for k, v in single.items() if k != "input_ids"}
    try:
        with pruneopt.prune(SHARED, LAYER) as run:
            way(SHARED, single["input_ids"], rest, name, SETTINGS[name])
    except ModelError as error:
        return str(error) if run.prompts == 0 else ""
    except Exception as error:  # a planted guard lets the call run into transformers' own errors
        print(f"no refusal but {error!r}")
        return ""
    finally:
        SHARED.generation_config = kept
    return ""


SHARED = llava()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", list(SETTINGS))
def test_setting_is_refused_however_it_is_given(
    way: Callable[..., Any], name: str, single: dict[str, Any]
) -> None:
    assert f"generate({name}=...)" in refusal(way, name, single)


def test_a_keyword_outweighs_the_model(single: dict[str, Any]) -> None:
    kept = copy.deepcopy(SHARED.generation_config)
    SHARED.generation_config.use_cache = False
    try:
        with pruneopt.prune(SHARED, LAYER) as run:
            generate(SHARED, single, use_cache=True)
            generate(SHARED, single, use_cache=True, guidance_scale=1)
        assert run.prompts == 2
    finally:
        SHARED.generation_config = kept


def keywords_only(model: Any, given: Any) -> Any:
    return type("Settings", (), dict(given))()


@contextmanager
def row_missing(name: str) -> Iterator[None]:
    rows = tuple(row for row in refuse._REFUSED if row[0] != name)
    with mock.patch.object(refuse, "_REFUSED", rows):
        yield


@pytest.mark.parametrize("name", list(SETTINGS))
def test_planted_missing_row_is_caught(name: str, single: dict[str, Any]) -> None:
    with row_missing(name):
        assert f"generate({name}=...)" not in refusal(by_keyword, name, single)


@pytest.mark.parametrize("way", WAYS[1:], ids=lambda way: way.__name__)
def test_planted_look_at_keywords_only_is_caught(way: Callable[..., Any], single: dict[str, Any]) -> None:
    with mock.patch.object(guard, "effective_generation", keywords_only):
        assert "use_cache" in refusal(by_keyword, "use_cache", single)
        assert refusal(way, "use_cache", single) == ""


def positional_labels(model: Any, inputs: dict[str, Any]) -> None:
    """`labels` at its place in the signature, everything between left at None."""
    names = list(inspect.signature(type(model).forward).parameters)[1:]
    given = {**inputs, "labels": inputs["input_ids"]}
    model(*(given.get(name) for name in names[: names.index("labels") + 1]))


def positions_of_logits(model: Any, inputs: dict[str, Any]) -> None:
    model(**inputs, logits_to_keep=torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("call", "match"), [(positional_labels, "labels"), (positions_of_logits, "logits_to_keep")]
)
def test_arguments_of_the_unpruned_length_are_refused(
    call: Callable[..., None], match: str, single: dict[str, Any]
) -> None:
    with pruneopt.prune(SHARED, LAYER) as run, torch.no_grad():
        with pytest.raises(ModelError, match=match):
            call(SHARED, single)
        assert run.prompts == 0
        SHARED(single["input_ids"], single["pixel_values"])
        assert run.prompts == 1


def test_arguments_are_named_as_the_signature_names_them() -> None:
    def call(self: Any, one: int, two: int = 2, **kwargs: Any) -> None: ...

    named = guard._named(inspect.signature(call), None, args=(1,), kwargs={"two": 3, "labels": 4})  # type: ignore[arg-type]
    assert {k: v for k, v in named.items() if k != "self"} == {"one": 1, "two": 3, "labels": 4}


def test_planted_arguments_by_keyword_only_are_caught(single: dict[str, Any]) -> None:
    by_name = mock.patch.object(guard, "_named", lambda signature, module, args, kwargs: dict(kwargs))
    with by_name, pruneopt.prune(SHARED, LAYER) as run, pytest.raises(Exception, match=r"(?i)shape|size"):
        positional_labels(SHARED, single)  # transformers trips over lengths after the prompt was pruned
    assert run.prompts == 1


def test_continuous_batching_is_refused(single: dict[str, Any]) -> None:
    with pruneopt.prune(SHARED, LAYER):
        for start in (SHARED.generate_batch, SHARED.init_continuous_batching):
            with pytest.raises(ModelError, match="padded batch"):
                start([[1, 2, 3]])
    assert "generate_batch" not in SHARED.__dict__


# windows


def windowed(kind: str, window: int, **more: Any) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig

    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": PAD, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    if kind == "mistral":
        text: Any = MistralConfig(**sizes, sliding_window=window, **more)
    else:
        types = ["sliding_attention"] * 2 + ["full_attention"] * 2 + ["sliding_attention"]
        text = tiny_models.qwen2(use_sliding_window=True, sliding_window=window, layer_types=types)
    config = LlavaConfig(vision_config=clip(), text_config=text, image_token_id=IMAGE, image_seq_length=36)
    return finish(LlavaForConditionalGeneration(config))


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_a_window_that_cannot_bind_is_exact(kind: str, single: dict[str, Any]) -> None:
    """45 prompt tokens and 7 more that are fed: a window of 52 never hides one."""
    model = windowed(kind, 52)
    for spec in (ENTRY, LAYER):
        with pruneopt.prune(model, spec) as run:
            _, found = generate(model, single)
        with masked(model.model.language_model.layers, run.kept, real=real_columns(single)):
            _, wanted = generate(model, single)
        assert difference(found, wanted) < 2e-6


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_a_window_that_binds_is_refused(kind: str, single: dict[str, Any]) -> None:
    model = windowed(kind, 51)
    with pruneopt.prune(model, LAYER) as run:
        with pytest.raises(ModelError, match="52 tokens do not fit into the sliding window of 51"):
            generate(model, single)
        assert run.prompts == 0
        out = forward(model, single, use_cache=True)
        for number in range(6):
            out = forward(
                model, {"input_ids": torch.tensor([[5 + number]])}, past_key_values=out.past_key_values
            )
        with pytest.raises(ModelError, match="52 tokens do not fit"):
            forward(model, {"input_ids": torch.tensor([[5]])}, past_key_values=out.past_key_values)
    short = windowed(kind, 44)
    with pruneopt.prune(short, LAYER) as run, pytest.raises(ModelError, match="45 tokens do not fit"):
        forward(short, single)


def window(model: Any, spec: Any) -> Window:
    adapter = adapter_for(model)
    return Window(adapter, spec, sites=sites_of(adapter, spec))


def test_a_window_is_what_the_model_does_not_what_the_config_says(single: dict[str, Any]) -> None:
    """Mistral's mask ignores `layer_types`; Qwen's full layers ignore `sliding_window`."""
    said = windowed("mistral", 16, layer_types=["full_attention"] * 5)
    with pruneopt.prune(said, LAYER), pytest.raises(ModelError, match="window of 16"):
        forward(said, single)
    model = windowed("qwen2", 16)
    spec = pruneopt.load_spec(LAYER, ["insertion.layer=2"])
    last = pruneopt.load_spec(LAYER, ["insertion.layer=4"])
    assert window(llava(), spec).size is None
    assert window(model, spec).size == window(model, last).size == 16
    model.config.text_config.layer_types[4] = "full_attention"
    assert window(model, last).size == 16  # the layer itself still says so
    model.model.language_model.layers[4].self_attn.sliding_window = None
    assert window(model, last).size is None
    rows = pruneopt.load_spec("fastv", ["insertion.layer=2"])
    assert window(model, rows).size == 16  # its row of attention comes from windowed layer 1


def test_other_kinds_of_layers_are_refused() -> None:
    model = windowed("qwen2", 64)
    model.config.text_config.layer_types[3] = "linear_attention"
    with pytest.raises(ModelError, match="layer 3 is of type 'linear_attention'"):
        pruneopt.apply(model, LAYER)


@contextmanager
def hidden_within(model: Any, kept: list[int], window: int, cut: int) -> Iterator[None]:
    """The windowed model with the dropped keys masked: what a cut would have to give."""
    handles = []

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        every = torch.arange(args[0].shape[1])
        back = every[:, None] - every[None, :]
        allowed = (back >= 0) & (back < window) & torch.isin(every, torch.tensor(kept))
        return args, {**kwargs, "attention_mask": (allowed | (back == 0))[None, None]}

    for layer in model.model.language_model.layers[cut:]:
        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_planted_no_window_is_silently_wrong(single: dict[str, Any]) -> None:
    """Without the check the windowed layers see everything, or too much."""
    model = windowed("mistral", 16)
    with mock.patch.object(Window, "_check", lambda self, columns: None):
        with pruneopt.prune(model, LAYER) as run:
            found = forward(model, single, use_cache=False).logits[:, -1]
        with hidden_within(model, run.kept[2][0], 16, cut=2):
            wanted = forward(model, single, use_cache=False).logits[:, -1]
    assert difference(found, wanted) > 1e-3


# models that are not pruned as they are given


def quantised() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(llava(), {torch.nn.Linear}, dtype=torch.qint8)


def full_next() -> Any:
    model = llava_next()
    model.config.vision_feature_select_strategy = "full"
    return model


def pixtral() -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, PixtralVisionConfig

    vision = PixtralVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=24,
        patch_size=4,
    )  # fmt: skip
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=llama(), image_token_id=IMAGE)
    )


class Adapted(torch.nn.Module):
    """What a PEFT model looks like from outside."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.config = model, model.config

    def get_base_model(self) -> Any:
        return self.model


def gemma() -> Any:
    model = torch.nn.Module()
    model.config = type("Config", (), {"model_type": "gemma3"})()
    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dynamic quantisation": (quantised, "quantised dynamically.*weights only"),
    "full strategy on LLaVA-NeXT": (full_next, "CLS row; use 'default'"),
    "pixtral tower": (pixtral, "pixtral tower.*CLIP and SigLIP"),
    "inner model": (lambda: llava().model, "LlavaModel is the inside.*has generate"),
    "peft": (lambda: Adapted(llava()), r"model\.get_base_model\(\)"),
    "unknown family": (gemma, "'gemma3'.*idefics3, .*llava_next, .*Adding a family.*docs/models.md"),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_model_is_refused_when_the_spec_is_applied(what: str) -> None:
    build, match = REFUSED[what]
    model = build()
    with pytest.raises(ModelError, match=match) as info:
        pruneopt.apply(model, LAYER)
    assert "did you mean" not in str(info.value)


def test_unknown_family_on_disk_gets_the_same_words(tmp_path: Any) -> None:
    from transformers import Gemma3Config

    Gemma3Config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"'gemma3'.*idefics3, .*llava_next, .*Adding a family"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("spec", [ENTRY, SEVERAL], ids=["entry", "several"])
def test_the_guard_changes_nothing_where_nothing_is_wrong(spec: Any, single: dict[str, Any]) -> None:
    with pruneopt.prune(SHARED, spec):
        guarded, _ = generate(SHARED, single)
    with (
        mock.patch.object(Guard, "attach", lambda *_: None),
        nullcontext(),
        pruneopt.prune(SHARED, spec),
    ):
        bare, _ = generate(SHARED, single)
    assert torch.equal(guarded, bare)
