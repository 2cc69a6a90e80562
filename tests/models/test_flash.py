"""Attention backends that need a GPU: skipped visibly without one."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from test_families import FAMILIES
from tiny_models import llava_scenarios
from torch.nn.attention import SDPBackend, sdpa_kernel

import pruneopt
from pruneopt.testing.insertion import ENTRY, LAYER, InsertionCase, check_insertion
from pruneopt.testing.masking import forward, masked, real_columns

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.to("cuda", torch.bfloat16) if v.is_floating_point() else v.cuda() for k, v in inputs.items()}


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("spec", [ENTRY, LAYER], ids=["post_encoder", "prefill_layer"])
def test_flash_kernel_is_used_and_exact(spec: Any) -> None:
    """With only torch's flash kernel allowed the pruned pass runs, and equals the masked model."""
    model = tiny_models.llava("sdpa").to("cuda", torch.bfloat16)
    inputs = on_gpu(llava_scenarios()["single"])
    with pruneopt.prune(model, spec) as run, sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        found = forward(model, inputs).logits
        kept = run.kept
    with masked(model.model.language_model.layers, kept, real=real_columns(inputs)):
        wanted = forward(model, inputs).logits
    gap = (found[0] - wanted[0, kept[max(kept)][0]]).abs().max()
    assert float(gap) < 2e-2


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", ["flash_attention_2", "flex_attention"])
@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl"])
def test_backend_equals_masking(family: str, backend: str) -> None:
    if backend.startswith("flash"):
        pytest.importorskip("flash_attn", reason="needs the flash-attn package")
    build, make = FAMILIES[family]
    reference = build("sdpa").to("cuda", torch.bfloat16)
    model = build(backend).to("cuda", torch.bfloat16)
    inputs = on_gpu(make(build)["left"])
    with pruneopt.prune(model, LAYER) as run:
        found, kept = forward(model, inputs).logits, run.kept
    with masked(reference.model.language_model.layers, kept, real=real_columns(inputs)):
        wanted = forward(reference, inputs).logits
    gap = (found[:, -1] - wanted[:, -1]).abs().max()
    assert float(gap) < 5e-2


@pytest.mark.gpu
@needs_gpu
def test_no_wait_for_the_device_inside_the_layers() -> None:
    """After the prompt is read, the pruned prefill runs without a synchronisation until its end."""
    model = tiny_models.llava("sdpa").cuda()
    inputs = {k: v.cuda() for k, v in llava_scenarios()["single"].items()}
    text = model.model.language_model

    def strict(*_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def relaxed(*_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    with pruneopt.prune(model, LAYER):
        forward(model, inputs)
        hooks = [
            text.layers[0].register_forward_pre_hook(strict),
            text.layers[-1].register_forward_hook(relaxed),
        ]
        try:
            out = forward(model, inputs)
        finally:
            relaxed()
            for hook in hooks:
                hook.remove()
    assert out.logits.isfinite().all()


def test_sdpa_math_only_equals_default() -> None:
    """What runs here without a GPU: forcing one kernel changes nothing about the result."""
    case = InsertionCase(
        "math", tiny_models.llava, {"left": llava_scenarios()["left"]}, specs=(LAYER,), attention=("sdpa",)
    )
    with sdpa_kernel([SDPBackend.MATH]):
        [result] = check_insertion(case, ["oracle"])
    assert result.problem == ""
