"""Several questions packed behind one picture, each unaware of the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scenes import Scene, SceneQuestion, all_questions, patch_labels
from vocabulary import (
    ASSISTANT,
    EOS,
    FRAME_COLOURS,
    GRID,
    OBJECTS,
    PREFIX_WORDS,
    WORD_ID,
    encode,
)

VISUAL_TOKENS = GRID * GRID
QUESTIONS = 9
BLOCK = 11
IGNORE = -100
SUBJECTS = {*OBJECTS, *FRAME_COLOURS}
# Looking up by object name is learned last: it has the most keys.
HARD_TYPES = {"position": 3.0, "frame_colour": 3.0, "object_presence": 3.0, "frame_presence": 2.0}


@dataclass
class TextBatch:
    """``ids``, ``targets`` and ``hints`` are [batch, QUESTIONS * BLOCK]; -100 is ignored.

    ``targets`` are the next words of the answer. ``hints`` ask for its first word as early as at
    the word asked about: a shorter path, without which looking up by object name is not found.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    hints: torch.Tensor


@dataclass
class LabelBatch:
    """Patch classes and attributes, each [batch, VISUAL_TOKENS]."""

    classes: torch.Tensor
    attributes: torch.Tensor


def pack_questions(questions: list[SceneQuestion]) -> np.ndarray:
    """Ids, targets and hints of up to QUESTIONS questions, [3, QUESTIONS * BLOCK]."""
    packed = np.full((3, QUESTIONS, BLOCK), IGNORE)
    packed[0] = WORD_ID[EOS]
    for row, item in enumerate(questions[:QUESTIONS]):
        words = item.question.split()
        answer = encode(item.answer)
        whole = [*encode(f"{item.question} {ASSISTANT}"), *answer, WORD_ID[EOS]]
        length, asked = len(whole) - 1, len(words)
        packed[0, row, :length] = whole[:-1]
        packed[1, row, asked:length] = whole[asked + 1 :]
        subject = [place for place, word in enumerate(words) if word in SUBJECTS]
        packed[2, row, subject[-1] if subject else asked - 1 : asked] = answer[0]
    return packed.reshape(3, -1)


def pack_texts(scenes: list[Scene], rng: np.random.Generator) -> TextBatch:
    """Random questions about each scene; the types that are slow to learn are asked more often."""
    packed = []
    for scene in scenes:
        pool = all_questions(scene, rng)
        weight = np.array([HARD_TYPES.get(question.type, 1.0) for question in pool])
        order = np.argsort(-(rng.random(len(pool)) ** (1 / weight)))
        packed.append(pack_questions([pool[i] for i in order]))
    return TextBatch(*torch.from_numpy(np.stack(packed, axis=1)))


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
