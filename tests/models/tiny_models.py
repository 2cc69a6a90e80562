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
            if parameter.dim() > 1:
                std = (0.4 if "lm_head" in name else 1.2) / parameter.shape[-1] ** 0.5
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
