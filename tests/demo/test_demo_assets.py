"""The embedded model and its evaluation set: what loads, what it holds, how it is scored."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from pruneopt import demo


@pytest.fixture(scope="module")
def loaded():
    return demo.load_model()


def test_importing_the_demo_does_not_import_transformers():
    code = "import sys, pruneopt.demo; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weights_are_safetensors_and_small():
    files = [path for path in demo.model_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 24e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja"}


def test_questions_are_complete_and_point_to_readable_pictures():
    questions = demo.load_questions()
    assert len({question.id for question in questions}) == len(questions)
    counts = Counter(question.type for question in questions)
    assert len(counts) >= 6
    assert min(counts.values()) >= 100
    for path in {question.image for question in questions}:
        with Image.open(path) as picture:
            assert picture.size == (192, 192)
    boxes = [question.box for question in questions if question.box is not None]
    assert len(boxes) > 100
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 192
        assert 0 <= top < bottom <= 192


def test_questions_can_be_chosen_by_type():
    assert {question.type for question in demo.load_questions(["number"])} == {"number"}
    with pytest.raises(ValueError, match=r"unknown question types \['nonsense'\]"):
        demo.load_questions(["nonsense"])


def test_yes_and_no_are_near_balance():
    answers = Counter(q.answer for q in demo.load_questions() if q.answer in {"yes", "no"})
    assert answers.total() > 20
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_sample_needs_a_small_object_off_the_centre():
    question = demo.sample()
    assert question.box is not None
    left, top, right, bottom = question.box
    assert (right - left) * (bottom - top) < 0.1 * 192 * 192
    assert abs(left + right - 192) > 40 or abs(top + bottom - 192) > 40


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("fox", "fox", True),
        (" Top  left", "top left", True),
        ("top", "top left", False),
        ("Fox", "fox", True),
        ("fox", "FOX", True),
        ("left top", "top left", False),
        ("fox.", "fox", False),
        ("the fox", "fox", False),
        ("", "fox", False),
    ],
)
def test_score_compares_words(prediction, answer, right):
    assert demo.score(prediction, answer) is right


def test_model_has_the_architecture_that_methods_expect(loaded):
    model, processor = loaded
    config = model.config
    assert config.vision_feature_layer == -2
    assert config.vision_feature_select_strategy == "default"
    assert (config.vision_config.image_size // config.vision_config.patch_size) ** 2 == 144
    assert model.dtype == torch.float32
    assert processor.tokenizer.padding_side == "left"


def test_vocabulary_covers_every_question_and_answer(loaded):
    _, processor = loaded
    tokenizer = processor.tokenizer
    texts = {f"{q.question} {q.answer}" for q in demo.load_questions()}
    for text in texts:
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids, text


def test_inputs_hold_one_placeholder_per_visual_token(loaded):
    model, processor = loaded
    inputs = demo.load_inputs(demo.load_questions()[:3], processor)
    placeholders = (inputs["input_ids"] == model.config.image_token_index).sum(1)
    assert placeholders.tolist() == [144] * 3
    assert inputs["pixel_values"].shape == (3, 3, 192, 192)
    assert inputs["attention_mask"][:, -1].all()


def test_batched_greedy_answers_are_mostly_right(loaded):
    model, processor = loaded
    questions = demo.load_questions()[:60]
    inputs = demo.load_inputs(questions, processor)
    words = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    answers = processor.batch_decode(words, skip_special_tokens=True)
    right = [demo.score(a, q.answer) for a, q in zip(answers, questions, strict=True)]
    assert sum(right) / len(right) > 0.7


def test_sample_is_answered_rightly(loaded):
    model, processor = loaded
    question = demo.sample()
    inputs = demo.load_inputs([question], processor)
    words = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    assert demo.score(processor.decode(words[0], skip_special_tokens=True), question.answer)


def test_hub_style_loading_works_from_the_folder():
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(demo.model_path())
    picture = Image.new("RGB", (300, 200))
    inputs = processor(
        images=[picture], text=[demo.format_prompt("what is the number?")], return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (1, 3, 192, 192)


def test_missing_assets_say_what_to_do(monkeypatch):
    from pruneopt.demo import assets

    monkeypatch.setattr(assets, "_HERE", Path("/nowhere"))
    with pytest.raises(FileNotFoundError, match="reinstall pruneopt"):
        demo.model_path()
