"""Is removal exact?  The checks of an adapter, for anyone's model family.

The reference of all of them is an untouched model: `masked` hides the removed keys from layer k on by
explicit 4-D masks, written without any code of the adapters.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import pruneopt
from pruneopt.errors import ModelError, PruneoptError
from pruneopt.parts import BudgetRule
from pruneopt.signals import Signals
from pruneopt.spec import Spec, load_spec

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-2}
STEPS = 8

_TOP = {
    "name": "check",
    "problem": {"kind": "top_k", "scores": {"chance": {"kind": "random", "seed": 3}}},
    "solver": "stable_top_k",
}


def _spec(insertion: Mapping[str, Any], keep: Any, positions: str = "keep") -> dict[str, Any]:
    return {**_TOP, "insertion": insertion, "budget": {"keep": keep}, "positions": positions}


ENTRY = _spec({"kind": "post_encoder"}, 0.4)
LAYER = _spec({"kind": "prefill_layer", "layer": 2}, 0.5)
SEVERAL = _spec({"kind": "prefill_layer", "layer": [1, 3]}, [0.7, 0.3])
KEEP_ALL = _spec({"kind": "prefill_layer", "layer": 1}, 1.0)


@dataclass(frozen=True)
class InsertionCase:
    """One model family under test.

    Parameters
    ----------
    name: for messages.  build: a fresh model in evaluation mode for an attention setting, always with the
    same weights; at least four decoder layers.  scenarios: name to a batch of model inputs (single, batch,
    left and right padding, two images, ...).  rows: for some scenarios, the rows of the batch as inputs of
    their own.  decoder: the decoder layers of a model; text: the module that holds them.
    apply: what is tested; planted bugs put something else here.
    """

    name: str
    build: Callable[[str], Any]
    scenarios: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    decoder: Callable[[Any], Sequence[nn.Module]] = lambda model: model.model.language_model.layers
    text: Callable[[Any], nn.Module] = lambda model: model.model.language_model
    specs: Sequence[Any] = (ENTRY, LAYER, SEVERAL)
    attention: Sequence[str] = ("sdpa", "eager")
    apply: Callable[..., Any] = pruneopt.apply


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check: `problem` is empty when it passed."""

    check: str
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem


# references


def hidden_keys(kept: Mapping[int, Sequence[Sequence[int]]], layer: int) -> Sequence[Sequence[int]] | None:
    """Survivors that `layer` may see; None before the first cut."""
    cuts = [cut for cut in sorted(kept) if cut <= layer]
    return kept[cuts[-1]] if cuts else None


@contextmanager
def masked(
    layers: Sequence[nn.Module], kept: Mapping[int, Sequence[Sequence[int]]], real: Tensor
) -> Iterator[None]:
    """Hide, in an untouched model, every prompt key that is not in `kept` from its layer on.

    `real` `[B,L]` bool marks the prompt's real columns; decoded columns are always visible.
    """
    handles = []
    batch, columns = real.shape

    def hook(index: int) -> Callable[..., Any]:
        rows = hidden_keys(kept, index)
        assert rows is not None
        visible = torch.zeros(batch, columns, dtype=torch.bool)
        for row, positions in enumerate(rows):
            visible[row, list(positions)] = True
        visible &= real.cpu()

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            cache = kwargs.get("past_key_values")
            past = 0 if cache is None else int(cache.get_seq_length(index))
            new = hidden.shape[1]
            keys = torch.cat([visible, torch.ones(batch, past + new - columns, dtype=torch.bool)], 1)
            causal = torch.arange(past + new)[None, :] <= torch.arange(past, past + new)[:, None]
            allowed = (keys[:, None, None, :] & causal).to(hidden.device)
            mask = torch.zeros(allowed.shape, dtype=hidden.dtype, device=hidden.device)
            mask = mask.masked_fill(~allowed, torch.finfo(hidden.dtype).min)
            return args, {**kwargs, "attention_mask": mask}

        return before

    try:
        for index, layer in enumerate(layers):
            if hidden_keys(kept, index) is not None:
                handles.append(layer.register_forward_pre_hook(hook(index), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def real_columns(inputs: Mapping[str, Any], times: int = 1) -> Tensor:
    """`[B,L]` bool from the padding mask of a batch, each row `times` over."""
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    return mask.bool().repeat_interleave(times, dim=0)


def generate(model: Any, inputs: Mapping[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    """Sequences, and the raw logits of each new token `[steps,B,V]`."""
    options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, **options}
    copied = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    with torch.no_grad():
        out = model.generate(**copied, output_logits=True, return_dict_in_generate=True, **options)
    return out.sequences, torch.stack(out.logits)


def forward(model: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
    with torch.no_grad():
        return model(**{k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}, **options)


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    gap = (found.float() - wanted.float()).abs()
    return float("inf") if gap.isnan().any() else float(gap.max())


def _tolerance(model: Any) -> float:
    return TOLERANCE[next(model.parameters()).dtype]


# checks: generators of problems


def check_oracle(case: InsertionCase) -> Iterator[str]:
    """Logits of prefill and of each decode step equal those with the same keys masked from layer k on."""
    for attention in case.attention:
        model = case.build(attention)
        for name, inputs in case.scenarios.items():
            real = real_columns(inputs)
            for spec in case.specs:
                where = f"{name}, {attention}, {_label(spec)}"
                handle = case.apply(model, spec)
                try:
                    logits = forward(model, inputs).logits
                    tokens, steps = generate(model, inputs)
                    kept = handle.run.kept
                finally:
                    handle.remove()
                with masked(case.decoder(model), kept, real):
                    wanted_logits = forward(model, inputs).logits
                    wanted_tokens, wanted = generate(model, inputs)
                yield from _compare_prefill(where, logits, wanted_logits, kept, real, _tolerance(model))
                gap = _difference(steps, wanted)
                if gap > _tolerance(model):
                    per_step = [f"{_difference(a, b):.1e}" for a, b in zip(steps, wanted, strict=True)]
                    yield f"{where}: decode logits differ by up to {gap:.2e}, per step {', '.join(per_step)}"
                elif not torch.equal(tokens, wanted_tokens):
                    yield f"{where}: other tokens were generated than with the keys masked"


def _compare_prefill(
    where: str, found: Tensor, wanted: Tensor, kept: Mapping[int, Any], real: Tensor, tolerance: float
) -> Iterator[str]:
    """Compare the logits of every surviving position; rows are aligned at their last column."""
    survivors = kept[max(kept)]
    for row, positions in enumerate(survivors):
        padding = (~real[row]).nonzero().squeeze(1).tolist()
        first = positions[0]
        columns = sorted([*positions, *(p for p in padding if p > first)])
        place = {p: i - len(columns) for i, p in enumerate(columns)}
        mine = found[row][[place[p] for p in positions]]
        gap = _difference(mine, wanted[row][positions])
        if gap > tolerance:
            yield f"{where}: prefill logits of row {row} differ by {gap:.2e}"


def check_keep_all(case: InsertionCase) -> Iterator[str]:
    """A budget of 1 gives bit-identical logits and cache."""
    model = case.build(case.attention[0])
    for name, inputs in case.scenarios.items():
        wanted, (tokens, steps) = forward(model, inputs, use_cache=True), generate(model, inputs)
        handle = case.apply(model, KEEP_ALL)
        try:
            found, (my_tokens, my_steps) = forward(model, inputs, use_cache=True), generate(model, inputs)
        finally:
            handle.remove()
        if not torch.equal(found.logits, wanted.logits) or not torch.equal(my_steps, steps):
            yield f"{name}: keep-all changes logits"
        if not torch.equal(tokens, my_tokens):
            yield f"{name}: keep-all changes the generated tokens"
        pairs = zip(found.past_key_values.layers, wanted.past_key_values.layers, strict=True)
        if not all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in pairs):
            yield f"{name}: keep-all changes the cache"


def check_rows_alone(case: InsertionCase) -> Iterator[str]:
    """Each row of a batch keeps the same tokens and gets the same logits as alone."""
    model = case.build(case.attention[0])
    for name, singles in case.rows.items():
        for spec in case.specs:
            handle = case.apply(model, spec)
            try:
                _, batch = generate(model, case.scenarios[name])
                kept, real = handle.run.kept, real_columns(case.scenarios[name])
                for row, single in enumerate(singles):
                    shift = int(real[row].nonzero().min())
                    if not handle.run.kept_visual[max(kept)][row]:
                        continue
                    _, alone = generate(model, single)
                    own = handle.run.kept
                    shifted = {k: [p + shift for p in rows[0]] for k, rows in own.items()}
                    if shifted != {k: rows[row] for k, rows in kept.items()}:
                        yield f"{name}, {_label(spec)}: row {row} keeps other tokens in a batch than alone"
                    gap = _difference(batch[:, row], alone[:, 0])
                    if gap > 5 * _tolerance(model):
                        yield f"{name}, {_label(spec)}: row {row} differs by {gap:.2e} from itself alone"
                    generate(model, case.scenarios[name])
            finally:
                handle.remove()


def check_deletion(case: InsertionCase) -> Iterator[str]:
    """`post_encoder` equals deleting the tokens and giving positions by hand, for both position policies.

    Run twice with the same model: a second `generate` must not see anything of the first.
    """
    model = case.build(case.attention[0])
    text = case.text(model)
    for name, inputs in case.scenarios.items():
        entry = _entry(model, text, inputs)
        for policy in ("keep", "compact"):
            for keep, layer in ((0.4, None), (0.6, 2)):
                insertion = (
                    {"kind": "post_encoder"} if layer is None else {"kind": "prefill_layer", "layer": layer}
                )
                if layer is not None and policy == "keep":
                    continue  # the oracle covers it
                where = f"{name}, positions={policy}, {insertion['kind']}"
                handle = case.apply(model, _spec(insertion, keep, policy))
                try:
                    first, second = generate(model, inputs), generate(model, inputs)
                    kept = handle.run.kept
                finally:
                    handle.remove()
                if not torch.equal(first[1], second[1]):
                    yield f"{where}: a second generate differs from the first"
                if layer is None:
                    gap = _deleted(model, text, entry, kept[0], first, policy, real_columns(inputs))
                    if gap > 5 * _tolerance(model):
                        yield f"{where}: differs by {gap:.2e} from deleting the same tokens by hand"


def _entry(model: Any, text: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the untouched text model is called with in `generate`'s prefill."""
    seen: dict[str, Any] = {}

    def see(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.setdefault("kwargs", dict(kwargs))

    def rotary(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.setdefault("positions", kwargs["position_ids"] if "position_ids" in kwargs else args[1])

    handles = [
        text.register_forward_pre_hook(see, with_kwargs=True),
        text.rotary_emb.register_forward_pre_hook(rotary, with_kwargs=True),  # type: ignore[union-attr]
    ]
    try:
        generate(model, inputs, max_new_tokens=1, min_new_tokens=1)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _deleted(
    model: Any,
    text: nn.Module,
    entry: Mapping[str, Any],
    kept: Sequence[Sequence[int]],
    run: tuple[Tensor, Tensor],
    policy: str,
    real: Tensor,
) -> float:
    """Largest difference of the decode logits to one pass over survivors and decoded tokens, row by row."""
    sequences, steps = run
    worst = 0.0
    embeds, positions = entry["kwargs"]["inputs_embeds"], entry["positions"]
    positions = positions if positions.dim() == 3 else positions[None]
    positions = positions.expand(-1, len(kept), -1)
    for row, survivors in enumerate(kept):
        index = torch.tensor(list(survivors))
        new = sequences[row, -STEPS:-1]
        tail = model.get_input_embeddings()(new)
        here = torch.cat([embeds[row][index], tail])[None]
        ids = positions[:, row][:, index]
        after = positions[:, row, -1].max() + 1  # generate counts on from the last column, padding or not
        if policy == "compact":
            _, ids = ids.flatten().unique(return_inverse=True)
            ids = ids.view(positions.shape[0], -1)
            after = ids.max() + 1
        ids = torch.cat([ids, (after + torch.arange(len(new))).expand(len(ids), -1)], 1)[:, None]
        extra = _deepstack(entry["kwargs"], row, index, len(new))
        with torch.no_grad():
            out = text(
                inputs_embeds=here,
                position_ids=ids if len(ids) > 1 else ids[0],
                attention_mask=torch.ones(here.shape[:2], dtype=torch.long),
                use_cache=False,
                **extra,
            )
            logits = model.lm_head(out.last_hidden_state)[0, -len(new) - 1 :]
        first = 0 if real[row, -1] else 1  # after right padding the first logits are those of padding
        worst = max(worst, _difference(steps[first:, row], logits[first:]))
    return worst


def _deepstack(kwargs: Mapping[str, Any], row: int, index: Tensor, new: int) -> dict[str, Any]:
    """Deepstack arguments of one row after deletion (Qwen3-VL)."""
    where = kwargs.get("visual_pos_masks")
    if where is None:
        return {}
    before = int(where[:row].sum())
    rank = where[row].cumsum(0) - 1
    chosen = rank[index][where[row][index]] + before
    features = [f[chosen] for f in kwargs["deepstack_visual_embeds"]]
    mask = torch.cat([where[row][index], torch.zeros(new, dtype=torch.bool)])[None]
    return {"visual_pos_masks": mask, "deepstack_visual_embeds": features}


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
        with masked(case.decoder(model), kept, real_columns(inputs, times)):
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
    yield from _refused_calls(case, model, inputs)


def _refused_calls(case: InsertionCase, model: Any, inputs: Mapping[str, Any]) -> Iterator[str]:
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
    yield from _nesting(case, model, inputs)
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


@dataclass(frozen=True)
class _FailingRule(BudgetRule):
    name: ClassVar[str] = "failing"

    def __call__(self, signals: Signals, k: Tensor, importance: Tensor | None) -> Tensor:
        raise _Boom


@dataclass(frozen=True)
class _RaggedRule(BudgetRule):
    """Keeps fewer tokens in later samples, so that counts differ within a batch."""

    name: ClassVar[str] = "ragged"

    def __call__(self, signals: Signals, k: Tensor, importance: Tensor | None) -> Tensor:
        return (k - signals.sample.to(k.dtype)).clamp_min(1)


def _with_rule(spec: Any, rule: BudgetRule) -> Spec:
    loaded = load_spec(spec)
    return replace(loaded, stages=tuple(replace(stage, rule=rule) for stage in loaded.stages))


def _failing() -> Spec:
    return _with_rule(LAYER, _FailingRule())


def _nesting(case: InsertionCase, model: Any, inputs: Mapping[str, Any]) -> Iterator[str]:
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


def check_ragged(case: InsertionCase) -> Iterator[str]:
    """Different kept counts in one batch equal the masked model."""
    model = case.build(case.attention[0])
    for name, inputs in case.scenarios.items():
        if inputs["input_ids"].shape[0] == 1:
            continue
        for base in case.specs:
            handle = case.apply(model, _with_rule(base, _RaggedRule()))
            try:
                _, found = generate(model, inputs)
                kept, visual = handle.run.kept, handle.run.kept_visual
            finally:
                handle.remove()
            if len({len(row) for row in visual[max(visual)]}) < 2:
                yield f"{name}, {_label(base)}: counts are not ragged, the check shows nothing"
            with masked(case.decoder(model), kept, real_columns(inputs)):
                _, wanted = generate(model, inputs)
            gap = _difference(found, wanted)
            if gap > _tolerance(model):
                yield f"{name}, {_label(base)}: ragged counts differ by {gap:.2e}"


def check_counts(case: InsertionCase) -> Iterator[str]:
    """Reported tokens, cache bytes and multiply-adds equal what really ran."""
    model = case.build(case.attention[0])
    for name, inputs in case.scenarios.items():
        for spec in case.specs:
            handle = case.apply(model, spec)
            try:
                with _counting(case.decoder(model)) as work:
                    out = forward(model, inputs, use_cache=True)
                report, kept = handle.run.report, handle.run.kept
            finally:
                handle.remove()
            where = f"{name}, {_label(spec)}"
            real = real_columns(inputs)
            for index, layer in enumerate(out.past_key_values.layers):
                size = 2 * layer.keys.numel() * layer.keys.element_size()
                if report.cache_expected[index] != size or report.cache_found[index] != size:
                    said = report.cache_expected[index]
                    yield f"{where}: layer {index} holds {size} bytes, reported {said}"
                rows = hidden_keys(kept, index)
                lengths = real.sum(1).tolist() if rows is None else [len(row) for row in rows]
                if report.tokens[index] != lengths:
                    yield f"{where}: layer {index} holds {lengths} tokens, reported {report.tokens[index]}"
            if real.shape[0] == 1 and bool(real.all()) and work[0] != round(report.flops_pruned):
                yield f"{where}: {work[0]} multiply-adds ran, reported {report.flops_pruned:.0f}"


@contextmanager
def _counting(layers: Sequence[nn.Module]) -> Iterator[list[int]]:
    """Multiply-adds of all linear maps in `layers`, and of attention from its query and key shapes."""
    total, handles = [0], []

    def linear(module: Any, args: Any, output: Tensor) -> None:
        total[0] += output.numel() * module.in_features

    def attention(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        total[0] += 2 * hidden.shape[0] * hidden.shape[1] ** 2 * module.o_proj.in_features

    for layer in layers:
        handles.append(layer.self_attn.register_forward_hook(attention, with_kwargs=True))  # type: ignore[union-attr]
        handles += [m.register_forward_hook(linear) for m in layer.modules() if isinstance(m, nn.Linear)]
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()


def _label(spec: Any) -> str:
    loaded = spec if isinstance(spec, Spec) else load_spec(spec)
    cuts = "+".join(str(stage.insertion.layer_index) for stage in loaded.stages)
    return f"cut before layer {cuts}"


CHECKS: dict[str, Callable[[InsertionCase], Iterator[str]]] = {
    "oracle": check_oracle,
    "keep_all": check_keep_all,
    "rows_alone": check_rows_alone,
    "deletion": check_deletion,
    "modes": check_modes,
    "restore": check_restore,
    "ragged": check_ragged,
    "counts": check_counts,
}


def check_insertion(case: InsertionCase, only: Sequence[str] | None = None) -> list[CheckResult]:
    """Run every check (or those named in `only`) and return one result each.

    Raises nothing for a failed check: read `problem`, or use `assert_insertion`.
    """
    results = []
    for name in only or CHECKS:
        try:
            problem = next(iter(CHECKS[name](case)), "")
        except PruneoptError as error:
            problem = f"refused: {error}"
        results.append(CheckResult(name, problem))
    return results


def assert_insertion(case: InsertionCase, only: Sequence[str] | None = None) -> None:
    """Raise AssertionError with every failed check of `check_insertion`."""
    failed = [f"{r.check}: {r.problem}" for r in check_insertion(case, only) if not r.ok]
    if failed:
        raise AssertionError(f"{case.name} fails {len(failed)} checks\n" + "\n".join(failed))


__all__ = [
    "CHECKS",
    "CheckResult",
    "InsertionCase",
    "assert_insertion",
    "check_insertion",
    "inventory",
    "masked",
]
