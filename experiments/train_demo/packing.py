"""Several questions packed behind one picture, each unaware of the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scenes import Scene, SceneQuestion, all_questions, patch_labels
from vocabulary import ASSISTANT, EOS, GRID, PREFIX_WORDS, WORD_ID, encode

VISUAL_TOKENS = GRID * GRID
QUESTIONS = 9
BLOCK = 11
IGNORE = -100
# Looking up by object name is learned last: it has the most keys.
HARD_TYPES = {"position": 3.0, "frame_colour": 3.0, "object_presence": 3.0, "frame_presence": 2.0}


@dataclass
class TextBatch:
    """``ids`` and ``targets`` are [batch, QUESTIONS * BLOCK]; ignored targets are -100."""

    ids: torch.Tensor
    targets: torch.Tensor


@dataclass
class LabelBatch:
    """Patch classes and attributes, each [batch, VISUAL_TOKENS]."""

    classes: torch.Tensor
    attributes: torch.Tensor


def pack_questions(questions: list[SceneQuestion]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and next-word targets of up to QUESTIONS questions: two [QUESTIONS, BLOCK] arrays."""
    ids = np.full((QUESTIONS, BLOCK), WORD_ID[EOS])
    targets = np.full((QUESTIONS, BLOCK), IGNORE)
    for row, item in enumerate(questions[:QUESTIONS]):
        asked = encode(f"{item.question} {ASSISTANT}")
        whole = [*asked, *encode(item.answer), WORD_ID[EOS]]
        length = len(whole) - 1
        ids[row, :length] = whole[:-1]
        targets[row, len(asked) - 1 : length] = whole[len(asked) :]
    return ids, targets


def pack_texts(scenes: list[Scene], rng: np.random.Generator) -> TextBatch:
    """Random questions about each scene; the types that are slow to learn are asked more often."""
    ids, targets = [], []
    for scene in scenes:
        pool = all_questions(scene, rng)
        weight = np.array([HARD_TYPES.get(question.type, 1.0) for question in pool])
        order = np.argsort(-(rng.random(len(pool)) ** (1 / weight)))
        one_ids, one_targets = pack_questions([pool[i] for i in order])
        ids.append(one_ids.reshape(-1))
        targets.append(one_targets.reshape(-1))
    return TextBatch(torch.from_numpy(np.stack(ids)), torch.from_numpy(np.stack(targets)))


def label_batch(scenes: list[Scene]) -> LabelBatch:
    pairs = [patch_labels(scene) for scene in scenes]
    return LabelBatch(
        torch.from_numpy(np.stack([p[0].reshape(-1) for p in pairs])),
        torch.from_numpy(np.stack([p[1].reshape(-1) for p in pairs])),
    )


def block_layout(visual_positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask and positions for a prefix, visual tokens and the packed questions.

    ``visual_positions`` [batch, kept] are the grid indices of the visual tokens that are present.
    Returns a boolean mask [1, 1, S, S] (True: may attend) and position ids [batch, S], the same
    for each question as if it were asked alone.
    """
    batch, kept = visual_positions.shape
    prefix = len(PREFIX_WORDS)
    context = prefix + kept
    size = context + QUESTIONS * BLOCK
    block = torch.full((size,), -1)
    block[context:] = torch.arange(QUESTIONS).repeat_interleave(BLOCK)
    causal = torch.ones(size, size, dtype=torch.bool).tril()
    mask = causal & ((block[None, :] == -1) | (block[None, :] == block[:, None]))
    text = prefix + VISUAL_TOKENS + torch.arange(BLOCK).repeat(QUESTIONS)
    positions = torch.cat(
        [
            torch.arange(prefix).expand(batch, -1),
            prefix + visual_positions.cpu(),
            text.expand(batch, -1),
        ],
        dim=1,
    )
    return mask[None, None], positions
