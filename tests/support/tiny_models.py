"""Small random models of every family, and batches for them, built without any download."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

VOCABULARY, IMAGE, VIDEO, PAD = 90, 88, 87, 0


def text_ids(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 80, (count,), generator=generator).tolist()


def batch(rows: list[list[int]], side: str = "left") -> dict[str, Tensor]:
    """Pad rows of ids to a batch with its attention mask."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def pixels(count: int, side: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def precise(build: Any) -> Any:
    """The same models in float64, where equal means equal on any processor."""
    return lambda attention="sdpa": build(attention).double()


def precisely(scenarios: dict[str, Any]) -> dict[str, Any]:
    """Batches for those models."""
    return {
        name: {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
        for name, inputs in scenarios.items()
    }


def llama(**changes: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        **{
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
            "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2, **changes,
        }
    )  # fmt: skip


def clip(**changes: Any) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        **{
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 24, "patch_size": 4, "projection_dim": 16, **changes,
        }
    )  # fmt: skip


def finish(model: Any, seed: int = 0) -> Any:
    """Weights large enough that tokens differ, logits of order one, the same for every attention setting."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith(("class_embedding", "image_newline")):
                std = (0.2 if "lm_head" in name else 1.2) / parameter.shape[-1] ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


def llava(attention: str = "sdpa", **changes: Any) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=clip(), text_config=llama(), image_token_id=IMAGE, image_seq_length=36, **changes
    )
    config._attn_implementation = attention
    return finish(LlavaForConditionalGeneration(config))


def llava_scenarios() -> dict[str, dict[str, Any]]:
    one = [IMAGE] * 36
    short = [1, *text_ids(3, 1), *one, *text_ids(5, 2)]
    long = [1, *text_ids(6, 3), *one, *text_ids(9, 4)]
    double = [1, *text_ids(2, 5), *one, *text_ids(3, 6), *one, *text_ids(4, 7)]
    plain = [1, *text_ids(11, 8)]
    return {
        "single": {**batch([short]), "pixel_values": pixels(1, 24)},
        "left": {**batch([short, long, double]), "pixel_values": pixels(4, 24)},
        "right": {**batch([short, double, long], "right"), "pixel_values": pixels(4, 24)},
        "text_row": {**batch([long, plain, short]), "pixel_values": pixels(2, 24)},
    }


def llava_rows() -> dict[str, list[dict[str, Any]]]:
    scenarios = llava_scenarios()
    found = scenarios["left"]
    cuts, rows = [(0, 1), (1, 2), (2, 4)], []
    for i, (start, end) in enumerate(cuts):
        real = found["attention_mask"][i].bool()
        rows.append(
            {
                "input_ids": found["input_ids"][i][real][None],
                "attention_mask": torch.ones(1, int(real.sum()), dtype=torch.long),
                "pixel_values": found["pixel_values"][start:end],
            }
        )
    return {"left": rows}


def qwen2(**changes: Any) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(
        **{
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2, **changes,
        }
    )  # fmt: skip


def siglip(**changes: Any) -> Any:
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        **{
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 16, "patch_size": 4, "vision_use_head": False, **changes,
        }
    )  # fmt: skip


PINPOINTS = [[16, 32], [32, 16], [32, 32], [16, 48]]


def llava_next(attention: str = "sdpa") -> Any:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        vision_config=clip(image_size=16),
        text_config=llama(),
        image_token_id=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    config._attn_implementation = attention
    return finish(LlavaNextForConditionalGeneration(config))


def llava_next_video(attention: str = "sdpa") -> Any:
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    config = LlavaNextVideoConfig(
        vision_config=clip(image_size=16), text_config=llama(), image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS, spatial_pool_stride=2,
    )  # fmt: skip
    config._attn_implementation = attention
    return finish(LlavaNextVideoForConditionalGeneration(config))


def llava_onevision(attention: str = "sdpa") -> Any:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    config = LlavaOnevisionConfig(
        vision_config=siglip(), text_config=qwen2(), image_token_id=IMAGE, video_token_id=VIDEO,
        image_grid_pinpoints=[*PINPOINTS, [48, 48]], vision_aspect_ratio="anyres_max_4",
    )  # fmt: skip
    config._attn_implementation = attention
    return finish(LlavaOnevisionForConditionalGeneration(config))


def _mrope_text(kind: Any, **changes: Any) -> Any:
    return kind(
        **{
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            **changes,
        }
    )  # fmt: skip


def qwen2_vl(attention: str = "sdpa") -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig, Qwen2VLVisionConfig

    vision = Qwen2VLVisionConfig(
        depth=3, embed_dim=32, hidden_size=32, num_heads=4, mlp_ratio=2, patch_size=4, spatial_merge_size=2,
        temporal_patch_size=2,
    )  # fmt: skip
    config = Qwen2VLConfig(
        vision_config=vision.to_dict(), text_config=_mrope_text(Qwen2VLTextConfig).to_dict(),
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=85, vision_end_token_id=86,
    )  # fmt: skip
    config._attn_implementation = attention
    return finish(Qwen2VLForConditionalGeneration(config))


def qwen2_5_vl(attention: str = "sdpa") -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import (
        Qwen2_5_VLTextConfig,
        Qwen2_5_VLVisionConfig,
    )

    vision = Qwen2_5_VLVisionConfig(
        depth=3, hidden_size=32, intermediate_size=48, out_hidden_size=32, num_heads=4, patch_size=4,
        spatial_merge_size=2, temporal_patch_size=2, window_size=16, fullatt_block_indexes=[2],
    )  # fmt: skip
    config = Qwen2_5_VLConfig(
        vision_config=vision.to_dict(), text_config=_mrope_text(Qwen2_5_VLTextConfig).to_dict(),
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=85, vision_end_token_id=86,
    )  # fmt: skip
    config._attn_implementation = attention
    return finish(Qwen2_5_VLForConditionalGeneration(config))


def qwen3_vl(attention: str = "sdpa") -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig

    vision = Qwen3VLVisionConfig(
        depth=3, hidden_size=32, intermediate_size=48, out_hidden_size=32, num_heads=4, patch_size=4,
        spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=64,
        deepstack_visual_indexes=[0, 1, 2],
    )  # fmt: skip
    config = Qwen3VLConfig(
        vision_config=vision.to_dict(), text_config=_mrope_text(Qwen3VLTextConfig, head_dim=8).to_dict(),
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=85, vision_end_token_id=86,
    )  # fmt: skip
    config._attn_implementation = attention
    return finish(Qwen3VLForConditionalGeneration(config))


def internvl(attention: str = "sdpa") -> Any:
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig

    vision = InternVLVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=[24, 24],
        patch_size=[4, 4], use_qk_norm=True,
    )  # fmt: skip
    config = InternVLConfig(
        vision_config=vision.to_dict(),
        text_config=qwen2().to_dict(),
        image_token_id=IMAGE,
        image_seq_length=9,
        tie_word_embeddings=False,
    )
    config._attn_implementation = attention
    return finish(InternVLForConditionalGeneration(config))


def _idefics(config_class: Any, vision_class: Any, model_class: Any, attention: str) -> Any:
    vision = vision_class(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=24,
        patch_size=4,
    )  # fmt: skip
    config = config_class(
        vision_config=vision.to_dict(), text_config=llama().to_dict(), image_token_id=IMAGE, scale_factor=2,
        pad_token_id=PAD, use_cache=True,
    )  # fmt: skip
    config._attn_implementation = attention
    return finish(model_class(config))


def idefics3(attention: str = "sdpa") -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3VisionConfig

    return _idefics(Idefics3Config, Idefics3VisionConfig, Idefics3ForConditionalGeneration, attention)


def smolvlm(attention: str = "sdpa") -> Any:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMVisionConfig

    return _idefics(SmolVLMConfig, SmolVLMVisionConfig, SmolVLMForConditionalGeneration, attention)
