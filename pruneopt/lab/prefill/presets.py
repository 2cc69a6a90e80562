"""Random-weight models in the shape of known ones, for timing without a download."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pruneopt.errors import ModelError, nearest

TEXT_BEFORE, TEXT_AFTER = 35, 29  # LLaVA-1.5's system prompt, and a short question


def _llava(text: str, sizes: dict[str, Any], *, vision: dict[str, Any]) -> Any:
    """A LLaVA of a CLIP tower and the language model whose configuration is called `text`."""
    import transformers

    make: Any = transformers.LlavaConfig
    config = make(
        vision_config=transformers.CLIPVisionConfig(patch_size=14, **vision),
        text_config=getattr(transformers, text)(**sizes),
        image_token_id=31999,
        image_seq_length=(vision["image_size"] // 14) ** 2,
        tie_word_embeddings=False,
    )
    return transformers.LlavaForConditionalGeneration(config)


def qwen2_5_vl_7b() -> Any:
    """Qwen2.5-VL-7B: windowed encoder, 28 layers, width 3584, 4 key heads; a picture of 1296 tokens."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
        "out_hidden_size": 3584, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=31999, video_token_id=31998,
        vision_start_token_id=31997, vision_end_token_id=31996, tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config)


PRESETS: dict[str, Callable[[], Any]] = {
    # a small CLIP tower and a language model in the shape of Qwen2-0.5B, 576 visual tokens
    "0.5b": partial(
        _llava, "Qwen2Config",
        {"vocab_size": 32000, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
         "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 4096},
        vision={"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12,
                "num_attention_heads": 6, "image_size": 336, "projection_dim": 384},
    ),
    # CLIP-L/336 and Llama-7B: 32 layers, width 4096, 576 visual tokens
    "llava-1.5-7b": partial(
        _llava, "LlamaConfig",
        {"vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "max_position_embeddings": 4096},
        vision={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                "num_attention_heads": 16, "image_size": 336, "projection_dim": 768},
    ),
    "qwen2.5-vl-7b": qwen2_5_vl_7b,
    # two heads and four layers, 64 visual tokens: for trying the benchmark itself
    "tiny": partial(
        _llava, "Qwen2Config",
        {"vocab_size": 32000, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
         "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512},
        vision={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": 112, "projection_dim": 32},
    ),
}  # fmt: skip


def known(preset: str) -> Callable[[], Any]:
    """What builds a preset. Raises ModelError for an unknown one."""
    if preset not in PRESETS:
        raise ModelError(f"unknown preset {preset!r}{nearest(preset, PRESETS)}")
    return PRESETS[preset]


@contextmanager
def _defaults(device: torch.device, dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def build(
    preset: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    seed: int = 0,
) -> Any:
    """A preset with random weights on its device, in evaluation mode.

    Raises ModelError for an unknown preset, or an attention setting that is not installed.
    """
    make = known(preset)
    torch.manual_seed(seed)
    with _defaults(torch.device(device), dtype):
        model = make()
    try:
        model.set_attn_implementation(attention)
    except Exception as error:
        raise ModelError(f"attention {attention!r} cannot be used: {str(error).splitlines()[0]}") from error
    for module in model.modules():  # rotary tables are kept in float32, as from_pretrained does
        if getattr(module, "inv_freq", None) is not None:
            module.inv_freq = module.inv_freq.float()
    return model.eval().requires_grad_(False)


def prompt(model: Any, batch: int, *, seed: int = 1) -> dict[str, Tensor]:
    """One picture and a short question per sample, all of one length."""
    device, dtype = model.device, model.dtype
    generator = torch.Generator().manual_seed(seed)
    kind = model.config.model_type
    inputs: dict[str, Tensor] = {}
    if kind == "qwen2_5_vl":
        side, tokens = 72, 36 * 36
        inputs["pixel_values"] = torch.randn(batch * side * side, 3 * 2 * 14 * 14, generator=generator)
        inputs["image_grid_thw"] = torch.tensor([[1, side, side]] * batch)
    else:
        size = model.config.vision_config.image_size
        tokens = (size // model.config.vision_config.patch_size) ** 2
        inputs["pixel_values"] = torch.randn(batch, 3, size, size, generator=generator)
    text = torch.randint(3, 30000, (batch, TEXT_BEFORE + TEXT_AFTER), generator=generator)
    image = torch.full((batch, tokens), model.config.image_token_id)
    ids = torch.cat([text[:, :TEXT_BEFORE], image, text[:, TEXT_BEFORE:]], 1)
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "qwen2_5_vl":
        inputs["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    return {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in inputs.items()}
