"""Insertion checks of behaviour: generation modes, refusals, and that nothing stays behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import pruneopt
from pruneopt.errors import ModelError
from pruneopt.parts import BudgetRule
from pruneopt.signals import Signals
from pruneopt.spec.schema import Spec
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
        handle = case.apply(model, spec)
        try:
            torch.manual_seed(5)
            found, _ = generate(model, inputs, **options)
            kept = handle.run.kept
        finally:
            handle.remove()
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
        handle = case.apply(model, spec)
        try:
            generate(model, inputs, **options)
        except ModelError as error:
            if mode not in str(error):
                yield f"{mode} is refused without naming it: {error}"
        else:
            yield f"{mode} is neither refused nor known to work"
        finally:
            handle.remove()
    yield from _refused_calls(case, model, inputs=inputs)


def _refused_calls(case: InsertionCase, model: Any, *, inputs: Mapping[str, Any]) -> Iterator[str]:
    from transformers import StaticCache

    text = model.config.get_text_config()
    static = StaticCache(config=text, max_cache_len=512)
    labels = inputs["input_ids"].clone()
    for what, options in (("static cache", {"past_key_values": static}), ("labels", {"labels": labels})):
        handle = case.apply(model, LAYER)
        try:
            forward(model, inputs, **options)
        except ModelError:
            pass
        else:
            yield f"{what} is not refused"
        finally:
            handle.remove()
    compiled = torch.compile(model, backend="eager")
    try:
        case.apply(compiled, LAYER).remove()
    except ModelError:
        pass
    else:
        yield "a compiled model is not refused"


def inventory(model: nn.Module) -> dict[str, Any]:
    """Everything that pruning could leave behind: hooks, attributes, buffers, state-dict keys, global "
    "tables."""
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


@dataclass(frozen=True)
class _FailingRule(BudgetRule):
    name: ClassVar[str] = "failing"

    def __call__(self, signals: Signals, k: Tensor, *, importance: Tensor | None) -> Tensor:
        raise _Boom


def _failing() -> Spec:
    return with_rule(LAYER, _FailingRule())


def check_restore(case: InsertionCase) -> Iterator[str]:
    """Every way out restores everything; nesting is refused; two models in two threads are independent."""
    model = case.build(case.attention[0])
    inputs = next(iter(case.scenarios.values()))
    generate(model, inputs)
    before, wanted = inventory(model), forward(model, inputs).logits

    def leave(how: str) -> None:
        handle = case.apply(model, case.specs[0])
        try:
            if how == "exception in forward":
                with _raising(case.decoder(model)[-1]):
                    forward(model, inputs)
            elif how == "abandoned generator":

                def produce() -> Iterator[Any]:
                    with handle:
                        yield forward(model, inputs)
                        raise AssertionError("never resumed")

                generator = produce()
                next(generator)
                del generator
                gc.collect()
                return
            else:
                generate(model, inputs)
        finally:
            if how != "abandoned generator":
                handle.remove()

    for how in ("normal exit", "exception in forward", "abandoned generator"):
        with suppress(_Boom):
            leave(how)
        if inventory(model) != before:
            yield f"{how}: the model is not as it was before"
        elif not torch.equal(forward(model, inputs).logits, wanted):
            yield f"{how}: the model answers differently than before"
    try:
        with pruneopt.prune(model, _failing()):
            forward(model, inputs)
    except _Boom:
        if inventory(model) != before:
            yield "exception in a part: the model is not as it was before"
    else:
        yield "an exception in a part was swallowed"
    yield from _nesting(case, model, inputs=inputs)
    yield from _threads(case, inputs)


@contextmanager
def _raising(layer: nn.Module) -> Iterator[None]:
    def boom(*_: Any) -> None:
        raise _Boom

    handle = layer.register_forward_pre_hook(boom)
    try:
        yield
    finally:
        handle.remove()


def _nesting(case: InsertionCase, model: Any, *, inputs: Mapping[str, Any]) -> Iterator[str]:
    handle = case.apply(model, ENTRY)
    try:
        second = case.apply(model, LAYER)
    except ModelError:
        pass
    else:
        second.remove()
        yield "applying a second spec to a pruned model is not refused"
    finally:
        handle.remove()
    case.apply(model, LAYER).remove()


def _threads(case: InsertionCase, inputs: Mapping[str, Any]) -> Iterator[str]:
    models = [case.build(case.attention[0]) for _ in range(2)]
    specs = [case.specs[0], case.specs[-1]]
    alone = []
    for model, spec in zip(models, specs, strict=True):
        handle = case.apply(model, spec)
        alone.append(generate(model, inputs)[1])
        handle.remove()
    found: list[Any] = [None, None]
    gate = threading.Barrier(2)

    def work(i: int) -> None:
        handle = case.apply(models[i], specs[i])
        try:
            gate.wait(timeout=60)
            found[i] = generate(models[i], inputs)[1]
        finally:
            handle.remove()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(f is not None and torch.equal(f, a) for f, a in zip(found, alone, strict=True)):
        yield "two models in two threads disturb each other"
