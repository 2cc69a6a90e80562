"""Writes a joint checkpoint as a Hugging Face folder: fp16 weights, tokenizer, processor."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from train import LANGUAGE_PARTS, VISION_PARTS, Parts
from transformers import GenerationConfig, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from vocabulary import BOS, EOS, IMAGE, IMAGE_SIZE, PAD, PATCH_SIZE, UNK, WORD_ID

MODEL_PREFIXES = tuple(p for p in LANGUAGE_PARTS + VISION_PARTS if p.startswith("model."))
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}user: "
    "{% if message['content'] is string %}{{ message['content'] }} {% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image> {% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endif %}{% else %}assistant: {{ message['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-cased words and question marks; the start token is added to every text."""
    inner = Tokenizer(models.WordLevel(WORD_ID, unk_token=UNK))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[?.,]"), behavior="isolated"),
        ]
    )
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, WORD_ID[BOS])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    return tokenizer


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def export(checkpoint: Path, folder: Path) -> None:
    parts = Parts(seed=0)
    parts.load(checkpoint, MODEL_PREFIXES)
    model = parts.model.to(torch.float16)
    model.generation_config = GenerationConfig(
        bos_token_id=WORD_ID[BOS],
        eos_token_id=WORD_ID[EOS],
        pad_token_id=WORD_ID[PAD],
        do_sample=False,
        max_new_tokens=4,
    )
    model.save_pretrained(folder)
    build_processor(build_tokenizer()).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path("work/joint.safetensors"))
    parser.add_argument("--out", type=Path, default=Path("../../pruneopt/demo/model"))
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.out)
