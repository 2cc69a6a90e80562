"""Insertion checks of behaviour: generation modes, refusals, and that nothing stays behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import pruneopt
from pruneopt.errors import ModelError
from pruneopt.parts import BudgetRule
from pruneopt.signals import Signals
from pruneopt.testing.insertion_case import ENTRY, LAYER, InsertionCase
from pruneopt.testing.insertion_values import with_rule
from pruneopt.testing.masking import forward, generate, masked, real_columns


def check_modes(case: InsertionCase) -> Iterator[str]:
    """Every generation mode works like the masked model or is refused up front by name."""
    model = case.build(case.attention[0])
    name, inputs = next(iter(case.scenarios.items()))
    spec = case.specs[-1]
    working: dict[str, dict[str, Any]] = {
        "greedy": {},
        "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 0},
        "beam search": {"num_beams": 3},
        "return sequences": {"do_sample": True, "num_return_sequences": 2, "top_k": 0},
        "beams returned": {"num_beams": 3, "num_return_sequences": 2},
    }
    for mode, options in working.items():
        times = max(options.get("num_beams", 1), options.get("num_return_sequences", 1))
        with case.applied(model, spec) as handle:
            torch.manual_seed(5)
            found, _ = generate(model, inputs, **options)
            kept = handle.run.kept
        with masked(case.decoder(model), kept, real=real_columns(inputs, times)):
            torch.manual_seed(5)
            wanted, _ = generate(model, inputs, **options)
        if not torch.equal(found, wanted):
            yield f"{name}: {mode} gives other tokens than the masked model"
    refused: dict[str, dict[str, Any]] = {
        "use_cache": {"use_cache": False},
        "prefill_chunk_size": {"prefill_chunk_size": 4},
        "assistant_model": {"assistant_model": model},
        "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 2},
        "cache_implementation": {"cache_implementation": "static"},
    }
    for mode, options in refused.items():
        with case.applied(model, spec):
            error = _refusal(partial(generate, model, inputs, **options))
        if error is None:
            yield f"{mode} is neither refused nor known to work"
        elif mode not in error:
            yield f"{mode} is refused without naming it: {error}"
    yield from _refused_calls(case, model, inputs=inputs)


def _refused_calls(case: InsertionCase, model: Any, *, inputs: Mapping[str, Any]) -> Iterator[str]:
    from transformers import StaticCache

    text = model.config.get_text_config()
    static = StaticCache(config=text, max_cache_len=512)
    labels = inputs["input_ids"].clone()
    for what, options in (("static cache", {"past_key_values": static}), ("labels", {"labels": labels})):
        with case.applied(model, LAYER):
            if _refusal(partial(forward, model, inputs, **options)) is None:
                yield f"{what} is not refused"
    compiled = torch.compile(model, backend="eager")
    if _refusal(lambda: case.apply(compiled, LAYER).remove()) is None:
        yield "a compiled model is not refused"


def _refusal(call: Callable[[], Any]) -> str | None:
    """What the ModelError of a call says; None where it raises none."""
    try:
        call()
    except ModelError as error:
        return str(error)
    return None


def inventory(model: nn.Module) -> dict[str, Any]:
    """Everything that pruning could leave behind: hooks, attributes, buffers, state, global tables."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    out: dict[str, Any] = {
        "state": list(model.state_dict()),
        "functions": dict(ALL_ATTENTION_FUNCTIONS.items()),
    }
    for name, module in model.named_modules():
        own = {
            k: id(v) for k, v in module.__dict__.items() if not k.startswith("_") or k.startswith("_pruneopt")
        }
        hooks = {
            k: list(map(id, v.values()))
            for k, v in module.__dict__.items()
            if isinstance(v, dict) and "hooks" in k
        }
        buffers = {k: (tuple(v.shape), v.dtype) for k, v in module.named_buffers(recurse=False)}
        methods = {k: getattr(type(module), k, None) for k in ("forward", "__call__", "generate")}
        own.pop("rope_deltas", None)  # Qwen's own memory of its last prompt
        out[name] = (type(module), own, hooks, buffers, methods, module.training)
    return out


class _Boom(RuntimeError):
    pass


def _raise(*_: Any) -> None:
    raise _Boom


@dataclass(frozen=True)
class _FailingRule(BudgetRule):
    name: ClassVar[str] = "failing"

    def __call__(self, signals: Signals, k: Tensor, *, importance: Tensor | None) -> Tensor:
        raise _Boom


def check_restore(case: InsertionCase) -> Iterator[str]:
    """Every way out restores everything; nesting is refused; two models in two threads are independent."""
    model = case.build(case.attention[0])
    inputs = next(iter(case.scenarios.values()))
    generate(model, inputs)
    before, wanted = inventory(model), forward(model, inputs).logits

    def normally() -> None:
        with case.applied(model, case.specs[0]):
            generate(model, inputs)

    def by_exception() -> None:
        last = case.decoder(model)[-1]
        with case.applied(model, case.specs[0]), last.register_forward_pre_hook(_raise):
            forward(model, inputs)

    def by_abandoning() -> None:
        def produce() -> Iterator[Any]:
            with case.apply(model, case.specs[0]):
                yield forward(model, inputs)
                raise AssertionError("never resumed")

        next(produce())
        gc.collect()

    leaving = {
        "normal exit": normally, "exception in forward": by_exception, "abandoned generator": by_abandoning
    }  # fmt: skip
    for how, leave in leaving.items():
        with suppress(_Boom):
            leave()
        if inventory(model) != before:
            yield f"{how}: the model is not as it was before"
        elif not torch.equal(forward(model, inputs).logits, wanted):
            yield f"{how}: the model answers differently than before"
    try:
        with pruneopt.prune(model, with_rule(LAYER, _FailingRule())):
            forward(model, inputs)
    except _Boom:
        if inventory(model) != before:
            yield "exception in a part: the model is not as it was before"
    else:
        yield "an exception in a part was swallowed"
    yield from _nesting(case, model, inputs=inputs)
    yield from _threads(case, inputs)


def _nesting(case: InsertionCase, model: Any, *, inputs: Mapping[str, Any]) -> Iterator[str]:
    with case.applied(model, ENTRY):
        if _refusal(lambda: case.apply(model, LAYER).remove()) is None:
            yield "applying a second spec to a pruned model is not refused"
    case.apply(model, LAYER).remove()


def _threads(case: InsertionCase, inputs: Mapping[str, Any]) -> Iterator[str]:
    models = [case.build(case.attention[0]) for _ in range(2)]
    specs = [case.specs[0], case.specs[-1]]
    alone = []
    for model, spec in zip(models, specs, strict=True):
        with case.applied(model, spec):
            alone.append(generate(model, inputs)[1])
    found: list[Any] = [None, None]
    gate = threading.Barrier(2)

    def work(i: int) -> None:
        with case.applied(models[i], specs[i]):
            gate.wait(timeout=60)
            found[i] = generate(models[i], inputs)[1]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(f is not None and torch.equal(f, a) for f, a in zip(found, alone, strict=True)):
        yield "two models in two threads disturb each other"
