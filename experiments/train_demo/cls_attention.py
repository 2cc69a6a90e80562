"""Where CLS looks: its attention on the things in the picture against the area they cover."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image

from pruneopt.demo import load_model, load_questions

PATCH = 16


@torch.no_grad()
def measure(pictures: int) -> dict[str, float]:
    """Mean share of CLS attention per layer on patches half covered by a questioned thing."""
    model, processor = load_model(attn_implementation="eager")
    boxes = defaultdict(set)
    for question in load_questions():
        if question.box is not None:
            boxes[question.image].add(question.box)
    paths = sorted(boxes)[:pictures]
    images = [Image.open(path).convert("RGB") for path in paths]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    covered = torch.zeros(len(paths), *pixels.shape[-2:])
    for row, path in enumerate(paths):
        for left, top, right, bottom in boxes[path]:
            covered[row, top:bottom, left:right] = 1
    things = torch.nn.functional.avg_pool2d(covered, PATCH).flatten(1) > 0.5
    seen = model.model.vision_tower(pixels, output_attentions=True)
    result = {"area": round(float(things.float().mean()), 4)}
    for index, attention in enumerate(seen.attentions):
        from_cls = attention[:, :, 0, 1:].mean(1)
        share = (from_cls * things).sum(1) / from_cls.sum(1)
        result[f"layer_{index}"] = round(float(share.mean()), 4)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("records/cls_attention.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured = measure(arguments.pictures)
    arguments.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(measured)
