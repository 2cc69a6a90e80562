"""`prune` and `apply`: errors, merges, orders, signals, state between prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from tiny_models import IMAGE, batch, llava, llava_scenarios, pixels, text_ids
from torch import Tensor

import pruneopt
from pruneopt.errors import InputError, ModelError, PruneoptError, SignalError
from pruneopt.models.supported import supported_models
from pruneopt.parts import Step
from pruneopt.problems.selection import Selection
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec
from pruneopt.testing.insertion import ENTRY, LAYER, inventory
from pruneopt.testing.masking import forward, generate


@pytest.fixture(scope="module")
def model() -> Any:
    return llava()


@pytest.fixture
def single() -> dict[str, Any]:
    return llava_scenarios()["single"]


def with_steps(base: Any, *steps: Step, positions: str = "keep") -> Spec:
    spec = load_spec(base)
    return replace(spec, stages=tuple(replace(s, steps=steps) for s in spec.stages), positions=positions)


@dataclass(frozen=True)
class MeanOfDropped(Step):
    """Adds the mean of all dropped tokens to the first kept one."""

    name: ClassVar[str] = "mean_of_dropped"

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        keep = selection.keep
        merge = torch.eye(keep.shape[1]).expand(len(keep), -1, -1).clone()
        dropped = (~keep).float() / (~keep).sum(1, keepdim=True)
        first = keep.int().argmax(1)
        merge[torch.arange(len(keep)), first] += dropped
        size = torch.ones(keep.shape)
        size[torch.arange(len(keep)), first] += (~keep).sum(1)
        return replace(selection, merge=merge, size=size)


@dataclass(frozen=True)
class Reversed(Step):
    """Emits the kept tokens in reversed order."""

    name: ClassVar[str] = "reversed"

    def __call__(self, selection: Selection, signals: Signals) -> Selection:
        rank = -torch.arange(selection.keep.shape[1]).expand(selection.keep.shape).float()
        return replace(selection, rank=rank)


def test_merge_changes_exactly_the_weighted_token(model: Any, single: dict[str, Any]) -> None:
    seen: list[Tensor] = []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    forward(model, single)
    hook.remove()
    with pruneopt.prune(model, with_steps(ENTRY, MeanOfDropped())) as run:
        hook = model.model.language_model.layers[0].register_forward_pre_hook(lambda m, a: seen.append(a[0]))
        forward(model, single)
        hook.remove()
        kept, visual = run.kept[0][0], run.kept_visual[0][0]
    dense, pruned = seen[0][0], seen[1][0]
    dropped = [c for c in range(4, 40) if c not in visual]
    wanted = dense[kept].clone()
    wanted[kept.index(visual[0])] = dense[visual[0]] + dense[dropped].mean(0)
    torch.testing.assert_close(pruned, wanted, atol=1e-6, rtol=0)


def test_order_by_rank_needs_compact_positions(model: Any, single: dict[str, Any]) -> None:
    with pruneopt.prune(model, with_steps(ENTRY, Reversed())), pytest.raises(ModelError, match="compact"):
        forward(model, single)
    seen: list[Tensor] = []
    layer = model.model.language_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    forward(model, single)
    hook.remove()
    with pruneopt.prune(model, with_steps(ENTRY, Reversed(), positions="compact")) as run:
        hook = layer.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
        forward(model, single)
        hook.remove()
        visual = run.kept_visual[0][0]
    dense, pruned = seen[0][0], seen[1][0]
    assert torch.equal(pruned[4 : 4 + len(visual)], dense[visual[::-1]])
    assert torch.equal(pruned[4 + len(visual) :], dense[40:])


def test_sizes_are_carried_to_the_next_stage(model: Any, single: dict[str, Any]) -> None:
    first = with_steps({**ENTRY, "insertion": {"kind": "prefill_layer", "layer": 1}}, MeanOfDropped())
    second = load_spec(LAYER, ["budget.keep=0.3"])
    both = replace(first, stages=(*first.stages, *second.stages))
    with pruneopt.prune(model, both) as run:
        forward(model, single)
        first_kept, last_kept = run.kept_visual[1][0], run.kept_visual[2][0]
    wanted = [23.0 if column == first_kept[0] else 1.0 for column in last_kept]
    assert (len(first_kept), len(last_kept)) == (14, 11)
    assert run.last.size[0].tolist() == wanted


def test_model_without_pictures_is_refused() -> None:
    from tiny_models import llama
    from transformers import LlamaForCausalLM

    plain = LlamaForCausalLM(llama())
    before = inventory(plain)
    with pytest.raises(ModelError, match="llama"):
        pruneopt.apply(plain, "topv")
    assert inventory(plain) == before


def test_prompt_without_image_is_refused(model: Any) -> None:
    with pruneopt.prune(model, LAYER), pytest.raises(InputError, match="no image"):
        generate(model, batch([[1, *text_ids(6, 1)]]))


@pytest.mark.parametrize("layer", [5, 99])
def test_layer_that_does_not_exist(model: Any, layer: int) -> None:
    before = inventory(model)
    with pytest.raises(ModelError, match=f"{layer} does not exist.*5 decoder layers"):
        pruneopt.apply(model, load_spec("topv", [f"insertion.layer={layer}"]))
    assert inventory(model) == before


def test_nan_is_refused_and_nothing_stays(model: Any, single: dict[str, Any]) -> None:
    before = inventory(model)
    poisoned = {**single, "pixel_values": torch.full_like(single["pixel_values"], float("nan"))}
    with pytest.raises(SignalError, match="NaN"), pruneopt.prune(model, "topv"):
        forward(model, poisoned)
    assert inventory(model) == before


def test_errors_are_one_line(model: Any) -> None:
    for wrong in ("topv/none", {"name": "x"}):
        with pytest.raises(PruneoptError) as info:
            pruneopt.apply(model, wrong)
        assert "\n" not in str(info.value)


def test_decoding_by_hand_and_a_second_prompt(model: Any, single: dict[str, Any]) -> None:
    """Manual steps without position ids equal generate; a cache from one prompt does not disturb another."""
    for spec in (ENTRY, LAYER):
        with pruneopt.prune(model, spec):
            tokens, steps = generate(model, single)
            out = forward(model, single, use_cache=True)
            other = {**batch([[1, *text_ids(9, 9), *[IMAGE] * 36, 5]]), "pixel_values": pixels(1, 24, 7)}
            generate(model, other)
            logits = [out.logits[:, -1]]
            for token in tokens[0, -8:-1]:
                with torch.no_grad():
                    out = model(input_ids=token.view(1, 1), past_key_values=out.past_key_values)
                logits.append(out.logits[:, -1])
        torch.testing.assert_close(torch.stack(logits), steps, atol=2e-6, rtol=0)


def test_wrong_mask_after_a_pruned_prompt_is_refused(model: Any, single: dict[str, Any]) -> None:
    with pruneopt.prune(model, ENTRY):
        out = forward(model, single, use_cache=True)
        mask = torch.ones(1, 9, dtype=torch.long)
        with pytest.raises(ModelError, match="attention mask"), torch.no_grad():
            model(input_ids=torch.tensor([[5]]), attention_mask=mask, past_key_values=out.past_key_values)


def test_report_reads_well(model: Any, single: dict[str, Any]) -> None:
    with pruneopt.prune(model, "topv") as run:
        with pytest.raises(InputError, match="nothing was run"):
            str(run.report)
        generate(model, single)
    data = run.report.to_dict()
    assert data["cuts"] == [{"layer": 2, "kept": [len(run.kept_visual[2][0])]}]
    assert {"signals", "cost", "solve", "apply"} <= set(data["seconds"])
    assert all(gap >= 0 for gap in data["certificates"][0]["gap"])
    assert "KV cache" in str(run.report)


def test_supported_models_names_every_family() -> None:
    rows = {row["model_type"]: row for row in supported_models()}
    assert rows["llava"]["family"] == "LLaVA-1.5"
    assert "static cache" in rows["llava"]["refused"]
