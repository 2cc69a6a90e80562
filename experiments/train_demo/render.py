"""Draws scenes: a photograph as background, emoji sprites, frames and handwritten digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scenes import FRAME_RIM, Item, Scene
from vocabulary import FRAME_COLOURS, IMAGE_SIZE, OBJECTS, TONES

FRAME_WIDTH = 3
ROTATIONS = 8
MAX_ANGLE = 20.0
# MNIST centres 20 pixels of ink in 28; most of the empty rim is cut away.
DIGIT_MARGIN = 3
INNER_SIZES = range(32, 49)
CLASS_OF = {name: index for index, name in enumerate(OBJECTS)}


class Renderer:
    """Renders with the photographs and digit instances of one split, ``train`` or ``test``."""

    def __init__(self, material: Path, split: str, seed: int) -> None:
        with np.load(material) as data:
            self.photos = [Image.fromarray(photo) for photo in data[f"{split}_photos"]]
            images, labels = data[f"{split}_digits"], data[f"{split}_labels"]
            images = images[:, DIGIT_MARGIN:-DIGIT_MARGIN, DIGIT_MARGIN:-DIGIT_MARGIN]
            self.digits = {str(d): images[labels == d] for d in range(10)}
            sprites = [Image.fromarray(sprite) for sprite in data["sprites"]]
        rng = np.random.default_rng(seed)
        self.grain = rng.standard_normal((2 * IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32)
        self.sprites: dict[tuple[int, int], list[np.ndarray]] = {}
        for index, sprite in enumerate(sprites):
            for size in INNER_SIZES:
                self.sprites[index, size] = [
                    np.asarray(
                        sprite.rotate(rng.uniform(-MAX_ANGLE, MAX_ANGLE), Image.Resampling.BICUBIC).resize(
                            (size, size), Image.Resampling.BOX
                        ),
                        dtype=np.float32,
                    )
                    for _ in range(ROTATIONS)
                ]

    def background(self, tone: str, rng: np.random.Generator, photo: Image.Image | None = None) -> np.ndarray:
        """A washed and dimmed crop of a photograph, float32 [IMAGE_SIZE, IMAGE_SIZE, 3]."""
        if photo is None:
            photo = self.photos[int(rng.integers(len(self.photos)))]
        side = int(rng.uniform(0.6, 1.0) * min(photo.size))
        left = int(rng.integers(0, photo.width - side + 1))
        top = int(rng.integers(0, photo.height - side + 1))
        crop = photo.resize(
            (IMAGE_SIZE, IMAGE_SIZE),
            Image.Resampling.BILINEAR,
            box=(left, top, left + side, top + side),
        )
        image = np.asarray(crop, dtype=np.float32)
        if rng.random() < 0.5:
            image = image[:, ::-1]
        wash = TONES[tone]
        if wash is not None:
            grey = image @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
            image = grey[..., None] * np.array(wash, dtype=np.float32)
        return np.ascontiguousarray(image * np.float32(rng.uniform(0.55, 0.9)))

    def draw_item(self, image: np.ndarray, item: Item, rng: np.random.Generator) -> None:
        left, top, right, bottom = item.box
        region = image[top:bottom, left:right]
        inset = 0
        if item.attribute in FRAME_COLOURS:
            inset = FRAME_RIM
            colour = np.array(FRAME_COLOURS[item.attribute]) + rng.uniform(-12, 12, 3)
            inner = region[FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH].copy()
            region[:] = colour
            region[FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH] = inner
        height, width = region.shape[0] - 2 * inset, region.shape[1] - 2 * inset
        inside = region[inset : inset + height, inset : inset + width]
        if item.word in OBJECTS:
            sprite = self.sprites[CLASS_OF[item.word], width][int(rng.integers(ROTATIONS))]
            alpha = sprite[..., 3:] / 255
            gain = rng.uniform(0.8, 1.1) * rng.uniform(0.95, 1.05, 3).astype(np.float32)
            inside[:] = inside * (1 - alpha) + alpha * sprite[..., :3] * gain
        else:
            pool = self.digits[item.word]
            glyph = Image.fromarray(pool[int(rng.integers(len(pool)))])
            ink = np.asarray(glyph.resize((width, height), Image.Resampling.BILINEAR)) / 255.0
            inside[:] = inside * 0.25 + rng.uniform(0, 25)
            inside[:] = inside * (1 - ink[..., None]) + ink[..., None] * rng.uniform(200, 250)

    def draw(self, scene: Scene, rng: np.random.Generator, photo: Image.Image | None = None) -> np.ndarray:
        """The picture of ``scene``, uint8 [IMAGE_SIZE, IMAGE_SIZE, 3]."""
        image = self.background(scene.tone, rng, photo)
        for item in scene.items:
            self.draw_item(image, item, rng)
        start = int(rng.integers(IMAGE_SIZE))
        image += np.float32(rng.uniform(0, 5)) * self.grain[start : start + IMAGE_SIZE]
        return np.clip(image, 0, 255).astype(np.uint8)
