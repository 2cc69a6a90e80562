"""The demo model and the modules that exist during training only."""

from __future__ import annotations

import torch
from packing import TextBatch, block_layout
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from vocabulary import (
    ATTRIBUTES,
    BOS,
    CLASS_WORDS,
    EOS,
    FRAME_COLOURS,
    GRID,
    IMAGE,
    IMAGE_SIZE,
    PAD,
    PATCH_SIZE,
    PREFIX_WORDS,
    WORD_ID,
    WORDS,
)

TOKEN_SCALE = 0.5


def build_config() -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=192,
        initializer_factor=1.0,
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=10,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=WORD_ID[PAD],
        bos_token_id=WORD_ID[BOS],
        eos_token_id=WORD_ID[EOS],
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=WORD_ID[IMAGE],
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config())
    nn.init.normal_(model.get_input_embeddings().weight, std=TOKEN_SCALE)
    embeddings = model.model.vision_tower.embeddings
    with torch.no_grad():
        embeddings.patch_embedding.weight.copy_(cosine_filters(embeddings.embed_dim))
        embeddings.position_embedding.weight[1:] = grid_waves(embeddings.embed_dim)
        add_matching_heads(model)
    return model


def add_matching_heads(model: LlavaForConditionalGeneration, gain: float = 1.6) -> None:
    """Lets half the heads of the first two layers start with equal queries and keys.

    A word then attends to the visual tokens that hold its embedding, which is what every lookup
    by name needs and what training from random heads is slow to find. Only the slowly turning
    dimensions of the rotary embedding are used, so that distance hardly matters.
    """
    config = model.config.text_config
    size, heads = config.head_dim, config.num_attention_heads
    slow = [d for d in range(size) if d % (size // 2) >= 7]
    for layer in model.model.language_model.layers[:2]:
        for head in range(heads // 2, heads):
            shared = torch.zeros(size, config.hidden_size)
            rows = torch.randn(config.hidden_size, len(slow))
            shared[slow] = gain * torch.linalg.qr(rows).Q.T
            place = slice(head * size, (head + 1) * size)
            layer.self_attn.q_proj.weight[place] = shared
            layer.self_attn.k_proj.weight[place] = shared


def cosine_filters(width: int) -> torch.Tensor:
    """Patch filters [width, 3, PATCH_SIZE, PATCH_SIZE]: low cosine waves in three colour axes.

    Higher waves are amplified, against the falling spectrum of photographs. Starting here saves
    a from-scratch tower the many steps it takes to find such filters.
    """
    side = int((width // 3) ** 0.5)
    if 3 * side * side != width:
        raise ValueError(f"width {width} is not 3 times a square; choose 192 or 243")
    place = (torch.arange(PATCH_SIZE) + 0.5) / PATCH_SIZE
    waves = torch.cos(torch.pi * torch.arange(side)[:, None] * place) / PATCH_SIZE
    amplitude = 1 + torch.arange(side)[:, None] + torch.arange(side)
    flat = torch.einsum("uh,vw,uv->uvhw", waves, waves, amplitude).flatten(0, 1)
    colour = torch.tensor([[1.0, 1.0, 1.0], [2.5, 0.0, -2.5], [-1.25, 2.5, -1.25]])
    return torch.einsum("ac,khw->akchw", colour, flat).reshape(width, 3, PATCH_SIZE, PATCH_SIZE)


def grid_waves(width: int) -> torch.Tensor:
    """Two-dimensional sine and cosine position embeddings [GRID * GRID, width]."""
    rate = 1 / 40 ** (torch.arange(width // 4) / (width // 4))
    angle = torch.arange(GRID)[:, None] * rate
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = axis[:, None].expand(-1, GRID, -1)
    columns = axis[None].expand(GRID, -1, -1)
    return 0.3 * torch.cat([rows, columns], dim=-1).flatten(0, 1)


class OracleTokens(nn.Module):
    """Visual tokens made from the true content of each patch instead of its pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.special = nn.Parameter(torch.randn(3, width) * TOKEN_SCALE)
        self.row = nn.Parameter(torch.randn(GRID, width) * TOKEN_SCALE)
        self.column = nn.Parameter(torch.randn(GRID, width) * TOKEN_SCALE)
        colours = [WORD_ID[word] for word in FRAME_COLOURS]
        self.register_buffer("class_words", torch.tensor([WORD_ID[w] for w in CLASS_WORDS]))
        self.register_buffer("colour_words", torch.tensor(colours))

    def forward(self, words: torch.Tensor, classes: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
        """Tokens [batch, GRID * GRID, width] from word embeddings [vocabulary, width]."""
        colours = words[self.colour_words]
        table = torch.cat([self.special[:1], colours, self.special[1:]])
        assert len(table) == len(ATTRIBUTES)
        place = (self.row[:, None] + self.column[None, :]).flatten(0, 1)
        token = words[self.class_words][classes] + table[attributes] + place
        return TOKEN_SCALE * functional.layer_norm(token, token.shape[-1:])


class VisionHeads(nn.Module):
    """Dense heads per patch and presence heads on CLS; dropped after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.Linear(width, len(CLASS_WORDS))
        self.attributes = nn.Linear(width, len(ATTRIBUTES))
        self.presence = nn.Linear(width, len(CLASS_WORDS) + len(ATTRIBUTES))
        self.pooled_presence = nn.Linear(width, len(CLASS_WORDS) + len(ATTRIBUTES))


def answer_logits(
    model: LlavaForConditionalGeneration,
    visual: torch.Tensor,
    visual_positions: torch.Tensor,
    text: TextBatch,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the packed questions and final states of the visual tokens.

    ``visual`` [batch, kept, width] stands at ``visual_positions`` [batch, kept] of the grid.
    Returns [batch, QUESTIONS * BLOCK, vocabulary] and [batch, kept, width].
    """
    batch, kept = visual.shape[:2]
    device = visual.device
    embed = model.get_input_embeddings()
    prefix_ids = torch.tensor([WORD_ID[word] for word in PREFIX_WORDS], device=device)
    prefix = embed(prefix_ids).expand(batch, -1, -1)
    inputs = torch.cat([prefix, visual, embed(text.ids.to(device))], dim=1)
    mask, positions = block_layout(visual_positions)
    states = model.model.language_model(
        inputs_embeds=inputs,
        attention_mask=mask.to(device).expand(batch, 1, -1, -1),
        position_ids=positions.to(device),
        use_cache=False,
    ).last_hidden_state
    context = len(PREFIX_WORDS) + kept
    return model.lm_head(states[:, context:]), states[:, len(PREFIX_WORDS) : context]


def answer_loss(logits: torch.Tensor, text: TextBatch) -> torch.Tensor:
    """Cross entropy of the answers' words, and half as much of the early hints."""
    flat = logits.flatten(0, 1)
    answers, hints = (
        functional.cross_entropy(flat, words.to(flat.device).flatten(), ignore_index=-100)
        for words in (text.targets, text.hints)
    )
    return answers + 0.5 * hints
