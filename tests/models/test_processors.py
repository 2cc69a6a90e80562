"""Inputs from transformers' own processors, with real pictures of different size, built offline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_models
from PIL import Image
from test_families import _text
from tiny_models import IMAGE, PAD, VIDEO, VOCABULARY

from pruneopt.testing.insertion import ENTRY, SEVERAL, InsertionCase, check_insertion

SPECIAL = {
    "<pad>": PAD, "<s>": 1, "</s>": 2, "<vision_start>": 85, "<vision_end>": 86, "<video>": VIDEO,
    "<image>": IMAGE, "<fake_token_around_image>": 81, "<global-img>": 82, "<end_of_utterance>": 83,
}  # fmt: skip


def tokenizer(**special: str) -> Any:
    """A word-level tokenizer over the tiny vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {number: name for name, number in SPECIAL.items()}
    words = {names.get(i, f"w{i}"): i for i in range(VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token="w89"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
        extra_special_tokens=special,
    )  # fmt: skip


def picture(width: int, height: int, seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def llava() -> tuple[Callable[..., Any], Any]:
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    images = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    processor = LlavaProcessor(
        images, tokenizer(image_token="<image>"), patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return tiny_models.llava, processor


def llava_next() -> tuple[Callable[..., Any], Any]:
    from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=tiny_models.PINPOINTS,
    )  # fmt: skip
    processor = LlavaNextProcessor(
        images, tokenizer(image_token="<image>"), patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return tiny_models.llava_next, processor


def qwen2_vl() -> tuple[Callable[..., Any], Any]:
    from transformers import Qwen2VLImageProcessorPil, Qwen2VLProcessor

    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 40 * 64}
    )
    text = tokenizer(image_token="<image>", video_token="<video>")

    class ImagesOnly(Qwen2VLProcessor):
        """The video half of the processor needs torchvision."""

        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

        def __init__(self, image_processor: Any, tokenizer: Any) -> None:
            self.image_token, self.video_token = "<image>", "<video>"
            self.image_token_id, self.video_token_id = IMAGE, VIDEO
            super(Qwen2VLProcessor, self).__init__(image_processor, tokenizer)

    return tiny_models.qwen2_vl, ImagesOnly(images, text)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [llava, llava_next, qwen2_vl], ids=["llava", "llava_next", "qwen2_vl"])
def test_processor_inputs_are_pruned_exactly(make: Callable[[], Any]) -> None:
    build, processor = make()
    inputs = processor(
        images=[picture(40, 28, 1), picture(25, 60, 2), picture(33, 33, 3)],
        text=["w5 w6 <image> w7 w8 w9", "w5 <image> w11 <image> w12 w13 w14"],
        return_tensors="pt", padding=True,
    )  # fmt: skip
    inputs = dict(inputs)
    inputs.pop("token_type_ids", None)
    assert inputs["input_ids"].shape[0] == 2 and (inputs["attention_mask"] == 0).any()
    case = InsertionCase(
        make.__name__, build, {"batch": inputs}, decoder=lambda model: _text(model).layers,  # type: ignore[arg-type]
        specs=(ENTRY, SEVERAL), attention=("sdpa",),
    )  # fmt: skip
    [result] = check_insertion(case, ["oracle"])
    assert result.problem == ""
