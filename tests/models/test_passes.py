"""Passes on one pruned model: several turns, several threads, interruptions.  None leaves anything behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any
from unittest import mock

import pytest
import torch
from test_families import FAMILIES
from tiny_models import llava, llava_scenarios, text_ids
from torch import Tensor, nn

import pruneopt
from pruneopt.errors import InputError, ModelError, PruneoptError
from pruneopt.models import cache as cache_module
from pruneopt.models import wiring
from pruneopt.testing.insertion import ENTRY, LAYER
from pruneopt.testing.insertion_values import _RaggedRule, with_rule
from pruneopt.testing.masking import difference, forward, generate, masked, real_columns

SPECS = {"post_encoder": ENTRY, "prefill_layer": LAYER}


@pytest.fixture(scope="module")
def model() -> Any:
    return llava()


@pytest.fixture(scope="module")
def left() -> dict[str, Any]:
    return llava_scenarios()["left"]


Turns = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def two_turns(model: Any, inputs: dict[str, Any], forced: Turns | None = None) -> Turns:
    """A prompt, then the whole text so far with more of it, on the cache that the first left."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config.get_text_config())
    steps = {"max_new_tokens": 4, "min_new_tokens": 4, "past_key_values": cache}
    first = generate(model, inputs, forced=forced and forced[0][0], **steps)
    more = torch.tensor([text_ids(5, 40 + row) for row in range(len(first[0]))])
    ids = torch.cat([first[0], more], 1)
    tail = torch.ones(len(ids), ids.shape[1] - inputs["attention_mask"].shape[1], dtype=torch.long)
    mask = torch.cat([inputs["attention_mask"], tail], 1)
    again = {"input_ids": ids, "attention_mask": mask}
    return first, generate(model, again, forced=forced and forced[1][0], **steps)


@pytest.mark.parametrize(
    "family, where",
    [
        ("llava", "post_encoder"),
        ("llava", "prefill_layer"),
        ("qwen3_vl", "post_encoder"),
        ("internvl", "post_encoder"),
    ],
)
def test_a_second_generate_with_the_whole_text_and_the_old_cache(family: str, where: str) -> None:
    """Positions and cuts of known text count what was pruned, in a ragged batch."""
    build, make = FAMILIES.get(family, (llava, lambda build: llava_scenarios()))
    model, inputs = build("sdpa"), make(build)["left"]
    with pruneopt.prune(model, with_rule(SPECS[where], _RaggedRule())) as run:
        found = two_turns(model, inputs)
        assert run.prompts == 1
        kept = run.kept
    with masked(model.model.language_model.layers, kept, real=real_columns(inputs)):
        wanted = two_turns(model, inputs, found)
    for turn in (0, 1):
        assert difference(found[turn][1], wanted[turn][1]) < 1e-5


def test_turns_with_compact_positions_equal_one_pass_by_hand(model: Any, left: dict[str, Any]) -> None:
    """The second turn as whole text through generate, and as its new tokens through the model."""
    for base in SPECS.values():
        with pruneopt.prune(model, {**base, "positions": "compact"}):
            (said, _), (_, wanted) = two_turns(model, left)
            out = forward(model, left, use_cache=True)
            more = torch.tensor([text_ids(5, 40 + row) for row in range(3)])
            new = torch.cat([said[:, -4:], more], 1)
            mask = torch.cat([left["attention_mask"], torch.ones_like(new)], 1)
            with torch.no_grad():
                out = model(input_ids=new, attention_mask=mask, past_key_values=out.past_key_values)
            assert difference(out.logits[:, -1], wanted[0]) < 5e-6


def test_the_cache_counts_what_was_pruned(model: Any, left: dict[str, Any]) -> None:
    """Its length is that of the whole text; its layers hold what is left of it; a crop takes answers back."""
    width = left["input_ids"].shape[1]
    for base, first in ((ENTRY, 0), (LAYER, 2)):
        with pruneopt.prune(model, base):
            out = forward(model, left, use_cache=True)
            cache = out.past_key_values
            held = cache_module.held(cache, 4)
            assert cache.get_seq_length() == width > held
            assert [cache_module.held(cache, i) < width for i in range(5)] == [i >= first for i in range(5)]
            before = [layer.keys.clone() for layer in cache.layers]
            with torch.no_grad():
                model(input_ids=torch.full((3, 4), 7), past_key_values=cache)
            assert cache.get_seq_length() == width + 4
            cache.crop(-3)
            assert cache.get_seq_length() == width + 1 and cache_module.held(cache, 4) == held + 1
            cache.crop(width)  # as older versions say it
            assert all(torch.equal(a, b.keys) for a, b in zip(before, cache.layers, strict=True))
            with pytest.raises(ModelError, match=r"pruned prompt of .* 1 cannot be cropped"):
                cache.crop(-1)
            assert cache.get_seq_length() == width


def answers(model: Any, inputs: dict[str, Any]) -> Tensor:
    return generate(model, inputs, max_new_tokens=3, min_new_tokens=3)[1]


def plainly(model: Any, inputs: dict[str, Any]) -> Tensor:
    logits: Tensor = forward(model, inputs).logits
    return logits


def in_two_threads(model: Any, prompts: list[dict[str, Any]]) -> list[Any]:
    """Answers of two threads that wait for each other inside the pass, where nothing keeps them apart."""
    meet, found = threading.Barrier(2), [None, None]

    def wait(*_: Any) -> None:
        with suppress(threading.BrokenBarrierError):  # the other one was kept out
            meet.wait(timeout=1.0)

    def work(i: int) -> None:
        try:
            found[i] = answers(model, prompts[i])
        except Exception as error:
            found[i] = error

    hook = model.model.language_model.layers[1].register_forward_pre_hook(wait)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    return found


def test_two_threads_on_one_pruned_model(model: Any) -> None:
    """Unlike prompts whose passes would meet inside the model: both answers are right."""
    for spec in SPECS.values():
        two_threads_get_what_they_get_alone(model, spec)


def two_threads_get_what_they_get_alone(model: Any, spec: Any) -> None:
    prompts = [llava_scenarios()["single"], llava_scenarios()["right"]]
    with pruneopt.prune(model, spec) as run:
        wanted = [answers(model, inputs) for inputs in prompts]
        found = in_two_threads(model, prompts)
        assert run.prompts == 4
    for mine, alone in zip(found, wanted, strict=True):
        assert isinstance(mine, Tensor) and torch.equal(mine, alone)


def test_pictures_of_another_thread_are_not_taken(model: Any, left: dict[str, Any]) -> None:
    """A thread that encodes ahead by hand while another one does: it is told to give its own pixels."""
    embeds = {k: v for k, v in left.items() if k != "pixel_values"}
    with pruneopt.prune(model, ENTRY):
        with torch.no_grad():
            model.model.get_image_features(pixel_values=left["pixel_values"])
        other = threading.Thread(target=model.model.get_image_features, args=(left["pixel_values"],))
        other.start()
        other.join()
        with pytest.raises(InputError, match="pass pixel_values"):
            forward(model, embeds)


def test_leaving_waits_for_a_pass_of_another_thread(model: Any, left: dict[str, Any]) -> None:
    """Hooks never vanish under a running generate."""
    inside, found = threading.Event(), []

    def slow(*_: Any) -> None:
        inside.set()
        threading.Event().wait(0.05)

    handle = pruneopt.apply(model, LAYER)
    wanted = answers(model, left)
    hook = model.model.language_model.layers[-1].register_forward_hook(slow)
    thread = threading.Thread(target=lambda: found.append(answers(model, left)))
    thread.start()
    inside.wait(60)
    handle.remove()
    hook.remove()
    thread.join()
    assert torch.equal(found[0], wanted)


def raising(module: nn.Module, error: type[BaseException]) -> Any:
    def stop(*_: Any) -> None:
        hook.remove()
        raise error

    hook = module.register_forward_pre_hook(stop)
    return hook


PLACES: dict[str, Callable[[Any], nn.Module]] = {
    "encoder": lambda model: model.model.vision_tower.encoder.layers[1],
    "after the cut": lambda model: model.model.language_model.layers[3].mlp,
    "head": lambda model: model.lm_head,
}


@pytest.mark.parametrize("place", list(PLACES))
def test_an_interruption_leaves_nothing_behind(place: str) -> None:
    """KeyboardInterrupt and an error, in generate and in a plain forward; then every call is right again."""
    model, left = llava(vision_feature_layer=-2), llava_scenarios()["left"]
    problem = {"kind": "top_k", "scores": {"cls": {"kind": "cls_attention"}}}
    spec = {**LAYER, "problem": problem, "budget": {"keep": 0.5, "scope": "sample"}}
    with pruneopt.prune(model, spec) as run:
        wanted, plain = answers(model, left), plainly(model, left)
        for error in (KeyboardInterrupt, RuntimeError):
            for call, again in ((answers, answers), (forward, answers), (answers, plainly)):
                count = run.prompts
                raising(PLACES[place](model), error)
                with pytest.raises(error):
                    call(model, left)
                assert run.prompts - count == (place == "head")  # the pass itself was over by then
                assert torch.equal(again(model, left), wanted if again is answers else plain)
        raising(PLACES[place](model), KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            answers(model, left)
        found: list[Tensor] = []
        thread = threading.Thread(target=lambda: found.append(answers(model, left)), daemon=True)
        thread.start()
        thread.join(60)
        assert torch.equal(found[0], wanted)


def test_layers_whose_hooks_run_again_in_the_backward_pass_are_refused(left: dict[str, Any]) -> None:
    """As older transformers checkpoint: the call of a layer, hooks included."""
    model = llava()
    layer = model.model.language_model.layers[3]

    class Replayed(type(layer)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    layer.__class__ = Replayed
    with pruneopt.prune(model, LAYER) as run:
        for checkpointing, training in ((True, False), (False, True)):
            layer.gradient_checkpointing, layer.training = checkpointing, training
            forward(model, left)
        layer.gradient_checkpointing = True
        with pytest.raises(ModelError, match="switch gradient checkpointing off"):
            forward(model, left)
    assert run.prompts == 2


# planted bugs


@contextmanager
def cache_counts_what_is_left() -> Iterator[None]:
    methods = {**cache_module._METHODS, "get_seq_length": lambda cache, plain, *rest: plain(*rest)}
    with mock.patch.object(cache_module, "_METHODS", methods):
        yield


@contextmanager
def nobody_waits() -> Iterator[None]:
    with mock.patch.object(threading, "RLock", nullcontext):
        yield


@contextmanager
def pass_is_dropped_on_success_only() -> Iterator[None]:
    def forward(self: Any, inner: Any, *args: Any, **kwargs: Any) -> Any:
        self.current = self.current or self._begin(self.adapter.bind(args, kwargs))
        output = inner(*args, **kwargs)
        results, self.current = self.current and self.current.finish(output), None
        if results:
            self.run.done(*results)
        return output

    with mock.patch.object(wiring.Wiring, "_forward", forward):
        yield


def test_planted_length_of_what_is_left_is_caught() -> None:
    with cache_counts_what_is_left(), pytest.raises((AssertionError, ModelError)):
        test_a_second_generate_with_the_whole_text_and_the_old_cache("llava", "post_encoder")


def test_planted_missing_lock_is_caught(model: Any) -> None:
    with nobody_waits(), pytest.raises(AssertionError):
        test_two_threads_on_one_pruned_model(model)


def test_planted_stale_pass_is_caught() -> None:
    with pass_is_dropped_on_success_only(), pytest.raises((AssertionError, PruneoptError, RuntimeError)):
        test_an_interruption_leaves_nothing_behind("after the cut")
