"""Stage A: the language model learns the questions on oracle visual tokens."""

from __future__ import annotations

import numpy as np
import torch
from model import OracleTokens, answer_logits, answer_loss
from packing import VISUAL_TOKENS, LabelBatch, TextBatch, label_batch, pack_texts
from scenes import sample_scene
from torch.nn import functional
from vocabulary import CLASS_WORDS, FRAME_COLOURS, WORD_ID

FIRST_TONE = len(CLASS_WORDS) - 5


def choose_tokens(labels: LabelBatch, kept: int, rng: torch.Generator) -> torch.Tensor:
    """Sorted grid indices [batch, kept]: every item patch, then random background patches."""
    score = torch.rand(labels.classes.shape, generator=rng)
    score += 10.0 * (labels.classes < FIRST_TONE)
    return score.topk(kept, dim=1).indices.sort(dim=1).values


def language_batch(rng: np.random.Generator, batch: int) -> tuple[LabelBatch, TextBatch]:
    scenes = [sample_scene(rng) for _ in range(batch)]
    return label_batch(scenes), pack_texts(scenes, rng)


def language_step(
    model: torch.nn.Module,
    oracle: OracleTokens,
    labels: LabelBatch,
    text: TextBatch,
    kept: int,
    copy_weight: float,
    noise: float,
    rng: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and logits of one batch on oracle tokens.

    While ``copy_weight`` is positive each visual token also has to name its own class, which
    ties visual tokens to words early.
    """
    words = model.get_input_embeddings().weight
    tokens = oracle(words, labels.classes, labels.attributes)
    tokens = tokens + noise * torch.randn(tokens.shape, generator=rng)
    if kept < VISUAL_TOKENS:
        positions = choose_tokens(labels, kept, rng)
    else:
        positions = torch.arange(VISUAL_TOKENS).expand(len(tokens), -1)
    visual = tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))
    logits, states = answer_logits(model, visual, positions, text)
    loss = answer_loss(logits, text)
    if copy_weight > 0:
        own = oracle.class_words[labels.classes].gather(1, positions)
        framed = labels.attributes.gather(1, positions)
        colour = torch.tensor([-100, *(WORD_ID[c] for c in FRAME_COLOURS), -100, -100])[framed]
        named = model.lm_head(states).flatten(0, 1)
        loss = loss + copy_weight * functional.cross_entropy(named, own.flatten())
        loss = loss + copy_weight * functional.cross_entropy(named, colour.flatten())
    return loss, logits
