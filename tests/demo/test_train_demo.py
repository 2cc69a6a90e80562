"""The training code's promises: labels match the scene, and packing changes no answer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

CODE = Path(__file__).resolve().parents[2] / "experiments" / "train_demo"


@pytest.fixture(scope="module", autouse=True)
def training_code():
    sys.path.insert(0, str(CODE))
    before = set(sys.modules)
    yield
    sys.path.remove(str(CODE))
    for name in set(sys.modules) - before:
        if str(CODE) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_every_item_of_a_scene_labels_patches():
    from scenes import patch_labels, sample_scene
    from vocabulary import ATTRIBUTES, CLASS_WORDS

    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = sample_scene(rng)
        classes, attributes = patch_labels(scene)
        for item in scene.items:
            mine = classes == CLASS_WORDS.index(item.word)
            mine &= attributes == ATTRIBUTES.index(item.attribute)
            assert mine.sum() >= 4


def test_presence_questions_are_balanced():
    from scenes import all_questions, sample_scene

    rng = np.random.default_rng(1)
    answers = [
        question.answer
        for _ in range(300)
        for question in all_questions(sample_scene(rng), rng)
        if question.type.endswith("presence")
    ]
    assert abs(answers.count("yes") / len(answers) - 0.5) < 0.08


def test_packed_questions_get_the_logits_of_questions_asked_alone():
    from model import answer_logits, build_model
    from packing import BLOCK, VISUAL_TOKENS, TextBatch, pack_texts
    from scenes import sample_scene
    from vocabulary import PREFIX_WORDS, WORD_ID

    rng = np.random.default_rng(2)
    model = build_model(0).eval()
    text: TextBatch = pack_texts([sample_scene(rng)], rng)
    visual = 0.5 * torch.randn(1, VISUAL_TOKENS, 128, generator=torch.Generator().manual_seed(0))
    places = torch.arange(VISUAL_TOKENS)[None]
    with torch.no_grad():
        packed, _ = answer_logits(model, visual, places, text)
        embed = model.get_input_embeddings()
        prefix = embed(torch.tensor([[WORD_ID[word] for word in PREFIX_WORDS]]))
        for row in (0, 5):
            question = embed(text.ids[:, row * BLOCK : (row + 1) * BLOCK])
            inputs = torch.cat([prefix, visual, question], dim=1)
            alone = model.lm_head(model.model.language_model(inputs_embeds=inputs)[0])
            shown = packed[:, row * BLOCK : (row + 1) * BLOCK]
            assert torch.allclose(shown, alone[:, -BLOCK:], atol=1e-5)


def test_unknown_words_are_named():
    from vocabulary import encode

    with pytest.raises(ValueError, match="zebra"):
        encode("where is the zebra ?")
