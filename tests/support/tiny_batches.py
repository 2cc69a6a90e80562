"""Batches for the tiny models: single, padded on either side, two images, sizes, a text-only row, video."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tiny_models import IMAGE, VIDEO, batch, pixels, text_ids
from torch import Tensor

Media = tuple[dict[str, Any], list[int], list[int]]  # inputs, tokens per image, tokens per video
Make = Callable[[Sequence[int], Sequence[int]], Media]


def features(model: Any, inputs: dict[str, Any]) -> Media:
    """Token counts as the model itself produces them."""
    counts: list[list[int]] = []
    for name, key in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if key not in inputs:
            counts.append([])
            continue
        encode = getattr(model.model, f"get_{name}_features")
        known = inspect.signature(encode).parameters
        others = {k: v for k, v in inputs.items() if k in known and not k.startswith("pixel_values")}
        with torch.no_grad():
            out = encode(inputs[key], **others, return_dict=True)
        counts.append([len(one) for one in out.pooler_output])
    return inputs, counts[0], counts[1]


def scenarios(
    rows: dict[str, list[tuple[str, ...]]],
    make: Callable[[list[str]], Media],
    frames: int = 1,
    around: tuple[list[int], list[int]] = ([], []),
) -> dict[str, Any]:
    """Name to rows, each a sequence of words: `t5` five text tokens, `i...` an image, `v...` a video.

    `make` turns the media words of the whole batch into inputs and token counts.  `frames`: parts of a video
    that text separates (Qwen3-VL).  `around`: ids before and after each image or video.
    """
    out = {}
    for name, found in rows.items():
        side = "right" if "right" in name else "left"
        media = [word for row in found for word in row if word[0] in "iv"]
        inputs, images, videos = make(media)
        left = {"i": list(images), "v": list(videos)}
        ids = []
        for number, row in enumerate(found):
            line = [1]
            for place, word in enumerate(row):
                if word[0] == "t":
                    line += text_ids(int(word[1:]), 31 * number + place)
                elif word[0] == "i":
                    line += [*around[0], *[IMAGE] * left["i"].pop(0), *around[1]]
                else:
                    one = [VIDEO] * (left["v"].pop(0) // frames)
                    line += [*around[0], *one, *(frames - 1) * [7, 8, *around[0], *one], *around[1]]
            ids.append(line)
        assert not left["i"] and not left["v"]
        out[name] = {**batch(ids, side), **inputs}
    return out


ROWS: dict[str, list[tuple[str, ...]]] = {
    "single": [("t3", "i0", "t5")],
    "left": [("t3", "i0", "t5"), ("t6", "i1", "t9"), ("t2", "i0", "t3", "i1", "t4")],
    "right": [("t3", "i1", "t5"), ("t2", "i0", "t3", "i1", "t4"), ("t6", "i0", "t9")],
    "text_row": [("t4", "i1", "t4"), ("t11",), ("t3", "i0", "t5")],
}
VIDEOS: dict[str, list[tuple[str, ...]]] = {
    "video": [("t3", "v0", "t5")],
    "image and video": [("t3", "i0", "t5"), ("t2", "v0", "t3", "i1", "t4")],
}


def words(media: list[str], kind: str) -> list[int]:
    return [int(word[1:]) for word in media if word[0] == kind]


def anyres(
    model: Any, sizes: Sequence[tuple[int, int]], side: int, video_tokens: int = 0
) -> Callable[..., Media]:
    """LLaVA-NeXT-like inputs; images are padded to the most crops of the batch, videos have three frames."""
    count = sys.modules[type(model.model).__module__].image_size_to_num_patches
    crops = [count(list(size), model.config.image_grid_pinpoints, side) for size in sizes]

    def make(media: list[str]) -> Media:
        images, videos = words(media, "i"), words(media, "v")
        inputs: dict[str, Any] = {}
        if images:
            most = max(crops[i] for i in images)
            values = torch.zeros(len(images), most, 3, side, side)
            for row, i in enumerate(images):
                values[row, : crops[i]] = pixels(crops[i], side, seed=10 + row)
            inputs["pixel_values"] = values
            inputs["image_sizes"] = torch.tensor([sizes[i] for i in images])
        if videos:
            frames = pixels(3 * len(videos), side, seed=50)
            inputs["pixel_values_videos"] = frames.view(len(videos), 3, 3, side, side)
        pictures = {k: v for k, v in inputs.items() if k != "pixel_values_videos"}
        return inputs, features(model, pictures)[1] if images else [], [video_tokens] * len(videos)

    return make


def qwen(
    model: Any, grids: Sequence[tuple[int, int, int]], video: tuple[int, int, int]
) -> Callable[..., Media]:
    def patches(sizes: list[tuple[int, int, int]], seed: int) -> tuple[Tensor, Tensor]:
        grid = torch.tensor(sizes)
        count = int(grid.prod(1).sum())
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, 3 * 2 * 4 * 4, generator=generator), grid

    def make(media: list[str]) -> Media:
        images, videos = words(media, "i"), words(media, "v")
        inputs: dict[str, Any] = {}
        if images:
            inputs["pixel_values"], inputs["image_grid_thw"] = patches([grids[i] for i in images], 3)
        if videos:
            inputs["pixel_values_videos"], inputs["video_grid_thw"] = patches([video] * len(videos), 4)
        return features(model, inputs)

    return make


def typed(found: dict[str, Any]) -> dict[str, Any]:
    """Token types of Qwen prompts: 1 at images, 2 at videos."""
    for inputs in found.values():
        ids = inputs["input_ids"]
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return found


def tiles(model: Any, counts: Sequence[int], side: int) -> Callable[..., Media]:
    """InternVL: every image is a run of tiles."""

    def make(media: list[str]) -> Media:
        images = words(media, "i")
        inputs, per_tile, _ = features(model, {"pixel_values": pixels(sum(counts[i] for i in images), side)})
        runs, start = [], 0
        for i in images:
            runs.append(sum(per_tile[start : start + counts[i]]))
            start += counts[i]
        return inputs, runs, []

    return make


def subimages(
    model: Any, counts: Sequence[int], side: int, tokens: int, rows: list[tuple[str, ...]]
) -> Media:
    """Idefics3: `[B, most sub-images, 3, H, W]`, missing ones all zero."""
    per_row = [[int(word[1:]) for word in row if word[0] == "i"] for row in rows]
    most = max(sum(counts[i] for i in row) for row in per_row)
    values = torch.zeros(len(rows), most, 3, side, side)
    runs = []
    for number, row in enumerate(per_row):
        total = sum(counts[i] for i in row)
        values[number, :total] = pixels(total, side, seed=20 + number)
        runs += [counts[i] * tokens for i in row]
    return {"pixel_values": values}, runs, []
