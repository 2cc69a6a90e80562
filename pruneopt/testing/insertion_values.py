"""Insertion checks of values: logits, caches, positions and counts equal those of the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pruneopt.parts import BudgetRule
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec
from pruneopt.testing.insertion_case import KEEP_ALL, STEPS, InsertionCase, cut_spec, label, tolerance
from pruneopt.testing.masking import difference, forward, generate, hidden_keys, masked, real_columns


def check_oracle(case: InsertionCase) -> Iterator[str]:
    """Logits of prefill and of each decode step equal those with the same keys masked from layer k on."""
    for attention in case.attention:
        model = case.build(attention)
        for name, inputs in case.scenarios.items():
            real = real_columns(inputs)
            for spec in case.specs:
                where = f"{name}, {attention}, {label(spec)}"
                with case.applied(model, spec) as handle:
                    logits = forward(model, inputs).logits
                    tokens, steps = generate(model, inputs)
                    kept = handle.run.kept
                with masked(case.decoder(model), kept, real=real):
                    wanted_logits = forward(model, inputs).logits
                    _, wanted = generate(model, inputs, forced=tokens)
                yield from _compare_prefill(
                    where, logits, wanted=wanted_logits, kept=kept, real=real, tolerance=tolerance(model)
                )
                gap = difference(steps, wanted)
                if gap > tolerance(model):
                    per_step = [f"{difference(a, b):.1e}" for a, b in zip(steps, wanted, strict=True)]
                    yield f"{where}: decode logits differ by up to {gap:.2e}, per step {', '.join(per_step)}"


def _compare_prefill(
    where: str, found: Tensor, *, wanted: Tensor, kept: Mapping[int, Any], real: Tensor, tolerance: float
) -> Iterator[str]:
    """Compare the logits of every surviving position; rows are aligned at their last column."""
    survivors = kept[max(kept)]
    for row, positions in enumerate(survivors):
        padding = (~real[row]).nonzero().squeeze(1).tolist()
        first = positions[0]
        columns = sorted([*positions, *(p for p in padding if p > first)])
        place = {p: i - len(columns) for i, p in enumerate(columns)}
        mine = found[row][[place[p] for p in positions]]
        gap = difference(mine, wanted[row][positions])
        if gap > tolerance:
            yield f"{where}: prefill logits of row {row} differ by {gap:.2e}"


def check_keep_all(case: InsertionCase) -> Iterator[str]:
    """A budget of 1 gives bit-identical logits and cache."""
    model = case.build(case.attention[0])
    for name, inputs in case.scenarios.items():
        wanted, (tokens, steps) = forward(model, inputs, use_cache=True), generate(model, inputs)
        with case.applied(model, KEEP_ALL):
            found, (my_tokens, my_steps) = forward(model, inputs, use_cache=True), generate(model, inputs)
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
            with case.applied(model, spec) as handle:
                tokens, batch = generate(model, case.scenarios[name])
                kept, real = handle.run.kept, real_columns(case.scenarios[name])
                visual = handle.run.kept_visual[max(kept)]
                for row, single in enumerate(singles):
                    if not visual[row]:
                        continue
                    shift = int(real[row].nonzero().min())
                    said = torch.cat([single["input_ids"], tokens[row : row + 1, -STEPS:]], 1)
                    _, alone = generate(model, single, forced=said)
                    own = handle.run.kept
                    shifted = {k: [p + shift for p in rows[0]] for k, rows in own.items()}
                    if shifted != {k: rows[row] for k, rows in kept.items()}:
                        yield f"{name}, {label(spec)}: row {row} keeps other tokens in a batch than alone"
                    gap = difference(batch[:, row], alone[:, 0])
                    if gap > 5 * tolerance(model):
                        yield f"{name}, {label(spec)}: row {row} differs by {gap:.2e} from itself alone"


def check_deletion(case: InsertionCase) -> Iterator[str]:
    """`post_encoder` equals deleting the tokens and giving positions by hand, for both position policies.

    Run twice with the same model: a second `generate` must not see anything of the first.
    """
    model = case.build(case.attention[0])
    text = case.text(model)
    for name, inputs in case.scenarios.items():
        entry = _entry(model, text, inputs=inputs)
        for kind, policy in (
            ("post_encoder", "keep"),
            ("post_encoder", "compact"),
            ("prefill_layer", "compact"),
        ):
            where = f"{name}, positions={policy}, {kind}"
            with case.applied(model, cut_spec({"kind": kind}, 0.4, positions=policy)) as handle:
                first, second = generate(model, inputs), generate(model, inputs)
                kept = handle.run.kept
            if not torch.equal(first[1], second[1]):
                yield f"{where}: a second generate differs from the first"
            if kind == "post_encoder":
                gap = _deleted(model, text, entry=entry, kept=kept[0], run=first, policy=policy)
                if gap > 5 * tolerance(model):
                    yield f"{where}: differs by {gap:.2e} from deleting the same tokens by hand"


def _entry(model: Any, text: nn.Module, *, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the untouched text model is called with in `generate`'s prefill, and which columns are real."""
    seen: dict[str, Any] = {"real": real_columns(inputs)}

    def see(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: PLR0917 - a hook of torch
        seen.setdefault("kwargs", dict(kwargs))

    def rotary(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: PLR0917 - as well
        seen.setdefault("positions", kwargs["position_ids"] if "position_ids" in kwargs else args[1])

    with (
        text.register_forward_pre_hook(see, with_kwargs=True),
        text.rotary_emb.register_forward_pre_hook(rotary, with_kwargs=True),  # type: ignore[union-attr]
    ):
        generate(model, inputs, max_new_tokens=1, min_new_tokens=1)
    return seen


def _deleted(
    model: Any,
    text: nn.Module,
    *,
    entry: Mapping[str, Any],
    kept: Sequence[Sequence[int]],
    run: tuple[Tensor, Tensor],
    policy: str,
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
        extra = _deepstack(entry["kwargs"], row, index=index, new=len(new))
        with torch.no_grad():
            out = text(
                inputs_embeds=here,
                position_ids=ids if len(ids) > 1 else ids[0],
                attention_mask=torch.ones(here.shape[:2], dtype=torch.long),
                use_cache=False,
                **extra,
            )
            logits = model.lm_head(out.last_hidden_state)[0, -len(new) - 1 :]
        first = (
            0 if entry["real"][row, -1] else 1
        )  # after right padding the first logits are those of padding
        worst = max(worst, difference(steps[first:, row], logits[first:]))
    return worst


def _deepstack(kwargs: Mapping[str, Any], row: int, *, index: Tensor, new: int) -> dict[str, Any]:
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


@dataclass(frozen=True)
class _RaggedRule(BudgetRule):
    """Keeps fewer tokens in later samples, so that counts differ within a batch."""

    name: ClassVar[str] = "ragged"

    def __call__(self, signals: Signals, k: Tensor, *, importance: Tensor | None) -> Tensor:
        return (k - signals.sample.to(k.dtype)).clamp_min(1)


def with_rule(spec: Any, rule: BudgetRule) -> Spec:
    loaded = load_spec(spec)
    return replace(loaded, stages=tuple(replace(stage, rule=rule) for stage in loaded.stages))


def check_ragged(case: InsertionCase) -> Iterator[str]:
    """Different kept counts in one batch equal the masked model."""
    model = case.build(case.attention[0])
    for name, inputs in case.scenarios.items():
        if inputs["input_ids"].shape[0] == 1:
            continue
        for base in case.specs:
            with case.applied(model, with_rule(base, _RaggedRule())) as handle:
                tokens, found = generate(model, inputs)
                kept, visual = handle.run.kept, handle.run.kept_visual
            if len({len(row) for row in visual[max(visual)]}) < 2:
                yield f"{name}, {label(base)}: counts are not ragged, the check shows nothing"
            with masked(case.decoder(model), kept, real=real_columns(inputs)):
                _, wanted = generate(model, inputs, forced=tokens)
            gap = difference(found, wanted)
            if gap > tolerance(model):
                yield f"{name}, {label(base)}: ragged counts differ by {gap:.2e}"


def check_counts(case: InsertionCase) -> Iterator[str]:
    """Reported tokens, cache bytes and multiply-adds equal what really ran."""
    model = case.build(case.attention[0])
    for name, inputs in case.scenarios.items():
        for spec in case.specs:
            with case.applied(model, spec) as handle:
                with _counting(case.decoder(model)) as work:
                    out = forward(model, inputs, use_cache=True)
                report, kept = handle.run.report, handle.run.kept
            where = f"{name}, {label(spec)}"
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
    total = [0]

    def linear(module: Any, args: Any, output: Tensor) -> None:  # noqa: PLR0917 - a hook of torch
        total[0] += output.numel() * module.in_features

    def attention(  # noqa: PLR0917 - as well
        module: Any, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        total[0] += 2 * hidden.shape[0] * hidden.shape[1] ** 2 * module.o_proj.in_features

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.self_attn.register_forward_hook(attention, with_kwargs=True))  # type: ignore[union-attr]
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    hooks.enter_context(module.register_forward_hook(linear))
        yield total
