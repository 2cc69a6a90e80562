"""Loads the embedded LLaVA-architecture model and the questions it was never trained on.

The model was trained from scratch by ``experiments/train_demo``; ``eval/ATTRIBUTION.md`` names
the sources and licences of everything in the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import BatchFeature, LlavaForConditionalGeneration, LlavaProcessor

_HERE = Path(__file__).resolve().parent
_SAMPLE = "sample-coffee-object"


@dataclass(frozen=True)
class Question:
    """One question about one picture.

    Parameters
    ----------
    id
        Its name.
    image
        The picture file.
    type
        What is asked for: an object, a count, a tone, ...
    question, answer
        The words.
    box
        (left, top, right, bottom) in pixels of the picture around what the answer is read from; None where
        that is no single place (a count, the tone, something absent).
    """

    id: str
    image: Path
    type: str
    question: str
    answer: str
    box: tuple[int, int, int, int] | None


def model_path() -> Path:
    """The folder of the embedded model.

    Returns
    -------
    Path
        What ``from_pretrained`` loads.
    """
    return _asset("model")


def load_model(
    dtype: torch.dtype | None = None, attn_implementation: str = "sdpa"
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The embedded model in evaluation mode on the CPU; needs no network.

    Parameters
    ----------
    dtype
        float32 when None.
    attn_implementation
        The model's own attention setting.

    Returns
    -------
    tuple
        Model, and processor; that pads on the left, as generation in batches requires.
    """
    import torch
    from transformers import LlavaForConditionalGeneration

    folder = model_path()
    model = LlavaForConditionalGeneration.from_pretrained(
        folder,
        dtype=torch.float32 if dtype is None else dtype,
        attn_implementation=attn_implementation,
        local_files_only=True,
    )
    return model.eval(), load_processor(folder)


def load_processor(folder: Path | None = None) -> LlavaProcessor:
    """Tokenizer and image processor; the Pillow one, so that torchvision is never needed."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = model_path() if folder is None else folder
    processor = LlavaProcessor.from_pretrained(folder, local_files_only=True)
    processor.image_processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return processor


def load_questions(types: Sequence[str] | None = None) -> list[Question]:
    """The evaluation set in a fixed order, picture by picture.

    Parameters
    ----------
    types
        Only questions of these types; None takes all.

    Returns
    -------
    list of Question
        None of them was used in training.

    Raises
    ------
    ValueError
        For a type that there is not.
    """
    questions = _read("questions.jsonl")
    if types is None:
        return questions
    known = sorted({question.type for question in questions})
    unknown = sorted(set(types) - set(known))
    if unknown:
        raise ValueError(f"unknown question types {unknown}; the evaluation set has {known}")
    return [question for question in questions if question.type in types]


def samples() -> list[Question]:
    """Questions about the sample pictures.

    Returns
    -------
    list of Question
        They belong to no measured set.
    """
    return _read("samples.jsonl")


def sample() -> Question:
    """One sample question.

    Returns
    -------
    Question
        Its answer needs one small, off-centre object.
    """
    return next(question for question in samples() if question.id == _SAMPLE)


def format_prompt(question: str) -> str:
    """The prompt that the model was trained with.

    Parameters
    ----------
    question
        What is asked about the picture.

    Returns
    -------
    str
        With one ``<image>``, which the processor expands.
    """
    return f"user: <image> {question} assistant:"


def load_inputs(questions: Sequence[Question], processor: LlavaProcessor) -> BatchFeature:
    """Left-padded model inputs.

    Parameters
    ----------
    questions
        Each with its own picture.
    processor
        Of `load_model`.

    Returns
    -------
    BatchFeature
        ``input_ids`` and ``attention_mask`` [batch, length]; ``pixel_values`` [batch, 3, height, width].
    """
    from PIL import Image

    images = []
    for question in questions:
        with Image.open(question.image) as picture:
            images.append(picture.convert("RGB"))
    text = [format_prompt(question.question) for question in questions]
    return processor(images=images, text=text, padding=True, return_tensors="pt")


def score(prediction: str, answer: str) -> bool:
    """Whether an answer is right.

    Parameters
    ----------
    prediction
        What the model said.
    answer
        What is right.

    Returns
    -------
    bool
        The words are exactly the same, whatever their case.
    """
    return prediction.lower().split() == answer.lower().split()


def _asset(name: str) -> Path:
    path = _HERE / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing from the installation; reinstall pruneopt")
    return path


def _read(name: str) -> list[Question]:
    folder = _asset("eval")
    lines = _asset(f"eval/{name}").read_text(encoding="utf-8").splitlines()
    return [_parse(json.loads(line), folder) for line in lines if line]


def _parse(record: dict[str, Any], folder: Path) -> Question:
    return Question(
        id=record["id"],
        image=folder / record["image"],
        type=record["type"],
        question=record["question"],
        answer=record["answer"],
        box=tuple(record["box"]) if record["box"] else None,
    )
