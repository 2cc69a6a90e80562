"""Every mode of use in the table of docs/models.md: what it says is what happens.

The table is written from `MODES` (`python tests/models/test_modes.py` prints it) and compared with it, so a
row without a test, or a test without a row, fails.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import IMAGE, batch, llava, llava_scenarios, pixels
from torch import Tensor, nn

import pruneopt
from pruneopt.errors import ModelError
from pruneopt.models.compat import replays_hooks
from pruneopt.testing.insertion import LAYER, masked
from pruneopt.testing.masking import difference, forward, generate, real_columns

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- modes -->", "<!-- end of modes -->"


@dataclass(frozen=True)
class Mode:
    """One row: what it is called, works, refused or untested, a few words, and the test behind it."""

    says: str
    words: str
    test: Callable[[], None] | None = None


MODES: dict[str, Mode] = {}


def row(name: str, says: str, words: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """The decorated function is the test behind the row."""

    def add(test: Callable[[], None]) -> Callable[[], None]:
        assert name not in MODES
        MODES[name] = Mode(says, words, test)
        return test

    return add


def untested(name: str, why: str) -> None:
    MODES[name] = Mode("untested", why)


def layers(model: Any) -> Any:
    return model.model.language_model.layers


def single() -> dict[str, Any]:
    return llava_scenarios()["single"]


def equal_to_masked(model: Any, inputs: dict[str, Any], times: int = 1, **options: Any) -> None:
    """Tokens and logits of a pruned `generate` are those of the same model with the same keys masked."""
    options = {"max_new_tokens": 3, "min_new_tokens": 3, **options}
    torch.manual_seed(5)
    with pruneopt.prune(model, LAYER) as run:
        tokens, found = generate(model, inputs, **options)
    assert run.prompts == 1
    with masked(layers(model), run.kept, real=real_columns(inputs, times)):
        torch.manual_seed(5)
        wanted_tokens, wanted = generate(model, inputs, **options)
    assert torch.equal(tokens, wanted_tokens)
    assert difference(found, wanted) < 2e-6


def refused(match: str, call: Callable[[Any], Any], model: Any = None) -> None:
    """The call is refused inside the context, before the prompt was run."""
    model = llava() if model is None else model
    with pruneopt.prune(model, LAYER) as run:
        with pytest.raises(ModelError, match=match):
            call(model)
        assert run.prompts == 0


def refused_model(match: str, model: Any) -> None:
    with pytest.raises(ModelError, match=match):
        pruneopt.apply(model, LAYER)


# how text is generated


@row("greedy decoding", "works", "equal to the masked model")
def greedy() -> None:
    equal_to_masked(llava(), single(), max_new_tokens=8, min_new_tokens=8)


@row("sampling", "works", "equal to the masked model under one seed")
def sampling() -> None:
    equal_to_masked(llava(), single(), do_sample=True, temperature=1.3, top_k=0)


@row("beam search", "works", "equal to the masked model")
def beams() -> None:
    equal_to_masked(llava(), single(), times=3, num_beams=3)


@row("`num_return_sequences`", "works", "equal to the masked model, with sampling and with beams")
def return_sequences() -> None:
    equal_to_masked(llava(), single(), times=2, do_sample=True, num_return_sequences=2, top_k=0)
    equal_to_masked(llava(), single(), times=3, num_beams=3, num_return_sequences=2)


@row("`guidance_scale`", "refused", "its second prompt has no picture to prune")
def guidance() -> None:
    refused("guidance_scale", lambda model: generate(model, single(), guidance_scale=2.0))


@row(
    "assisted decoding", "refused", "an assistant, prompt lookup, early exit: guessed tokens would take part"
)
def assisted() -> None:
    refused("assistant_model", lambda model: generate(model, single(), assistant_model=llava()))
    refused("prompt_lookup", lambda model: generate(model, single(), prompt_lookup_num_tokens=2))
    refused("early_exit", lambda model: generate(model, single(), assistant_early_exit=2))


@row("chunked prefill", "refused", "`prefill_chunk_size`, or chunks by hand: a chunk is not the whole prompt")
def chunked() -> None:
    refused("prefill_chunk_size", lambda model: generate(model, single(), prefill_chunk_size=4))
    first = {**single(), "input_ids": single()["input_ids"][:, :20]}
    refused("in chunks", lambda model: forward(model, first, use_cache=True))


@row("continuous batching", "refused", "`generate_batch`: its paged cache packs prompts into one row")
def continuous() -> None:
    refused("padded batch", lambda model: model.generate_batch([[1, 2]]))


@row("`use_cache=False` in `generate`", "refused", "tokens would be chosen anew at every step")
def no_cache() -> None:
    refused("use_cache", lambda model: generate(model, single(), use_cache=False))


untested("contrastive, DoLa, group and constrained beam search", "their code comes from the hub")


# caches and turns


@row("static cache", "refused", "its layers have one length; so has a quantised cache asked for by name")
def static() -> None:
    from transformers import StaticCache

    refused("cache_implementation", lambda model: generate(model, single(), cache_implementation="static"))
    refused("cache_implementation", lambda model: generate(model, single(), cache_implementation="quantized"))
    cache = StaticCache(config=llava().config.get_text_config(), max_cache_len=128)
    refused("StaticCache", lambda model: forward(model, single(), past_key_values=cache))


untested("offloaded cache", '`cache_implementation="offloaded"` needs an accelerator')


def second_turn(model: Any, everything: bool) -> None:
    """More text on the cache of a pruned prompt: its last logits are those of the masked model at once."""
    inputs = single()
    with pruneopt.prune(model, LAYER) as run:
        first = model.generate(
            **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, return_dict_in_generate=True
        )
        kept, cache = run.kept, first.past_key_values
        ids = torch.cat([first.sequences, torch.tensor([[9, 11, 13]])], 1)
        mask = torch.ones_like(ids)
        if everything:
            options = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
            found = model.generate(ids, attention_mask=mask, past_key_values=cache, **options).logits[0]
        else:  # the last generated token is not in the cache yet
            new = {"input_ids": ids[:, -4:], "attention_mask": mask}
            found = forward(model, new, past_key_values=cache).logits[:, -1]
    rest = range(inputs["input_ids"].shape[1], ids.shape[1])
    kept = {layer: [[*rows[0], *rest]] for layer, rows in kept.items()}
    with masked(layers(model), kept, real=mask.bool()):
        wanted = forward(model, {**inputs, "input_ids": ids, "attention_mask": mask}).logits[:, -1]
    assert difference(found, wanted) < 2e-6


@row("a second turn with the new ids alone", "works", "pass the mask of everything so far")
def new_ids() -> None:
    second_turn(llava(), everything=False)


@row("a second turn with the whole text", "works", "`generate` cuts off what the cache stands for")
def whole_text() -> None:
    second_turn(llava(), everything=True)


@row("cropping a cache", "works", "decoded tokens come off again; into the pruned prompt is refused")
def cropping() -> None:
    from test_passes import test_the_cache_counts_what_was_pruned

    test_the_cache_counts_what_was_pruned(llava(), llava_scenarios()["left"])


@row("a picture after a cached prompt", "refused", "give all pictures in the first prompt")
def second_picture() -> None:
    model = llava()
    with pruneopt.prune(model, LAYER):
        out = forward(model, single(), use_cache=True)
        more = {**batch([[*[IMAGE] * 36, 5]]), "pixel_values": pixels(1, 24, 7)}
        more["attention_mask"] = torch.ones(1, 45 + 37, dtype=torch.long)
        with pytest.raises(ModelError, match="picture that comes after"):
            forward(model, more, past_key_values=out.past_key_values)


@row("moving the rows of a cache", "works", "`reorder_cache` and its like; masks and positions go along")
def moved_rows() -> None:
    model, inputs = llava(), llava_scenarios()["left"]
    order = [2, 0, 1]
    with pruneopt.prune(model, LAYER):
        ends = []
        for rows in (None, order):
            cache = forward(model, inputs, use_cache=True).past_key_values
            tokens, mask = torch.tensor([[7], [8], [9]]), inputs["attention_mask"]
            if rows is not None:
                cache.reorder_cache(torch.tensor(rows))
                tokens, mask = tokens[rows], mask[rows]
            mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], 1)
            step = {"input_ids": tokens, "attention_mask": mask, "position_ids": mask.sum(1)[:, None] - 1}
            ends.append(forward(model, step, past_key_values=cache).logits[:, -1])
    assert difference(ends[1], ends[0][order]) < 2e-6


# what the model is given


@row("padding, text-only rows, several images, ragged counts", "works", "left or right")
def batches() -> None:
    equal_to_masked(llava(), llava_scenarios()["text_row"])
    equal_to_masked(llava(), llava_scenarios()["right"], max_new_tokens=1, min_new_tokens=1)


@row("`inputs_embeds`", "works", "equal to `input_ids`; `pixel_values` stay with them")
def embeds() -> None:
    model, inputs = llava(), single()
    table = model.get_input_embeddings()(inputs["input_ids"]).detach()
    with pruneopt.prune(model, LAYER) as run:
        wanted = forward(model, inputs).logits
        rest = {k: v for k, v in inputs.items() if k != "input_ids"}
        found = forward(model, {**rest, "inputs_embeds": table}).logits
    assert run.prompts == 2
    assert torch.equal(found, wanted)


@row("`labels`", "refused", "logits no longer line up with the prompt; so have positions in `logits_to_keep`")
def labels() -> None:
    ids = single()["input_ids"]
    refused("labels", lambda model: forward(model, single(), labels=ids))
    refused("logits_to_keep", lambda model: forward(model, single(), logits_to_keep=torch.tensor([1])))


@row("custom attention masks", "refused", "4-D masks and mappings do not say which columns are padding")
def masks() -> None:
    wide = torch.ones(1, 1, 45, 45).tril().bool()
    refused("2-D padding mask", lambda model: forward(model, {**single(), "attention_mask": wide}))
    each = {"full_attention": wide}
    refused("2-D padding mask", lambda model: model(**{**single(), "attention_mask": each}))


@row("sliding windows", "works", "while prompt and answer fit into the window; refused where it would bind")
def windows() -> None:
    from test_guards import windowed

    equal_to_masked(windowed("mistral", 52), single())
    refused("sliding window of 51", lambda model: generate(model, single()), windowed("mistral", 51))


# what the model is


@row("two models in two threads", "works", "each equal to itself alone")
def two_models() -> None:
    models = [llava(), llava()]
    found: list[Any] = [None, None]

    def work(i: int) -> None:
        with pruneopt.prune(models[i], LAYER):
            found[i] = generate(models[i], single())[1]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pruneopt.prune(models[0], LAYER):
        wanted = generate(models[0], single())[1]
    assert torch.equal(found[0], wanted)
    assert torch.equal(found[1], wanted)


@row(
    "one model in two threads",
    "works",
    "one `generate` or forward at a time, the other waits; `run` tells of the last",
)
def one_model() -> None:
    from test_passes import two_threads_get_what_they_get_alone

    two_threads_get_what_they_get_alone(llava(), LAYER)


@row("an exception or Ctrl-C in a pass", "works", "nothing stays behind; the next call is right")
def interrupted() -> None:
    from test_passes import answers, raising

    model = llava()
    with pruneopt.prune(model, LAYER):
        wanted = answers(model, single())
        for error in (KeyboardInterrupt, ValueError):
            raising(layers(model)[3].mlp, error)
            with pytest.raises(error):
                answers(model, single())
            assert torch.equal(answers(model, single()), wanted)


@row("`torch.compile`", "refused", "and any replaced `forward`: it goes round the hooks")
def compile_() -> None:
    refused_model("torch.compile", torch.compile(llava(), backend="eager"))
    for place in (lambda m: m, lambda m: m.model, lambda m: layers(m)[3]):
        model = llava()
        place(model).compile(backend="eager")
        refused_model("compiled", model)
        model = llava()
        place(model).forward = torch.compile(place(model).forward, backend="eager")
        refused_model("compiled forward", model)


@row("`copy.deepcopy` inside the context", "works", "the copy is a clean, unpruned model")
def deepcopy() -> None:
    model = llava()
    dense = forward(model, single()).logits
    with pruneopt.prune(model, LAYER) as run:
        assert torch.equal(forward(copy.deepcopy(model), single()).logits, dense)
        assert run.prompts == 0


@row("applying twice to one model", "refused", "several cuts belong into the stages of one spec")
def twice() -> None:
    refused("already pruned", lambda model: pruneopt.apply(model, LAYER))


@row("the inner model (`model.model`)", "refused", "prune the model that has `generate`")
def inner() -> None:
    refused_model("has generate", llava().model)


@row("PEFT", "works", "on `model.get_base_model()`, LoRA in place; the wrapper itself is refused")
def peft() -> None:
    from peft import LoraConfig, get_peft_model

    model = llava()
    config = LoraConfig(target_modules=["q_proj", "k_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks for names that transformers has renamed
        wrapped = get_peft_model(model, config)
    refused_model("get_base_model", wrapped)
    plain = forward(llava(), single()).logits
    inside = wrapped.get_base_model().eval()
    assert difference(forward(inside, single()).logits, plain) > 1e-3  # the adapter does something
    equal_to_masked(inside, single())


class Int8Linear(nn.Module):
    """A linear map with weights stored as int8 and one scale a row; activations stay as they are."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


@row("weight-only quantisation", "works", "int8 weights in linear layers of another class")
def weight_only() -> None:
    model = llava()
    for layer in layers(model):
        for parent in (layer.self_attn, layer.mlp):
            for name, part in list(parent.named_children()):
                if isinstance(part, nn.Linear):
                    setattr(parent, name, Int8Linear(part))
    equal_to_masked(model, single())
    with pruneopt.prune(model, "fastv") as run:
        forward(model, single(), use_cache=True)
    assert run.report.cache_found == run.report.cache_expected  # activations are not int8


@row("torchao int8 weight-only", "works", "tested where torchao is installed; the suite does not install it")
def torchao() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = llava()
    quantization.quantize_(model.model.language_model, quantization.Int8WeightOnlyConfig())
    equal_to_masked(model, single())


@row("dynamic quantisation", "refused", "scales of activations depend on the tokens that are left")
def dynamic() -> None:
    from test_guards import quantised

    refused_model("quantise weights only", quantised())


@row("offload (accelerate)", "works", "equal to the model in memory")
def offload() -> None:
    from accelerate import cpu_offload

    with pruneopt.prune(llava(), LAYER) as run:
        wanted = generate(run.adapter.model, single())[1]
    model = cpu_offload(llava(), execution_device=torch.device("cpu"))
    with pruneopt.prune(model, LAYER), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older transformers take offloaded weights for misplaced ones
        found = generate(model, single())[1]
    assert torch.equal(found, wanted)


def gradients_of(model: Any) -> list[Tensor]:
    model.requires_grad_(True)
    model(**single()).logits[:, -1].square().sum().backward()
    return [p.grad for p in model.model.language_model.parameters()]


@row(
    "gradients",
    "works",
    "equal to the masked model; with activation checkpointing too (refused where hooks would run again)",
)
def gradients() -> None:
    with pruneopt.prune(llava(), LAYER) as run:
        found = gradients_of(run.adapter.model)
    model = llava().train()
    start = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    start()
    with pruneopt.prune(model, LAYER):
        if any(map(replays_hooks, layers(model))):  # older transformers
            with pytest.raises(ModelError, match="switch gradient checkpointing off"):
                gradients_of(model)
            again = found
        else:
            again = gradients_of(model)
    model = llava()
    with masked(layers(model), run.kept, real=real_columns(single())):
        wanted = gradients_of(model)
    for some in (found, again):
        assert max(difference(a, b) for a, b in zip(some, wanted, strict=True)) < 1e-5


# the table


def modes_table() -> str:
    lines = ["| mode | | |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {m.says} | {m.words} |" for name, m in MODES.items())])


@pytest.mark.parametrize("name", [name for name, mode in MODES.items() if mode.says != "untested"])
def test_mode(name: str) -> None:
    test = MODES[name].test
    assert test is not None
    test()


def test_the_page_has_the_rows_that_are_tested() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    assert shown == modes_table()
    assert {mode.says for mode in MODES.values()} == {"works", "refused", "untested"}


if __name__ == "__main__":
    print(modes_table())
