"""Scenes: what stands where on a photograph, the questions about it, and its patch labels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from vocabulary import (
    ATTRIBUTES,
    CLASS_WORDS,
    DIGITS,
    FRAME_COLOURS,
    GRID,
    IMAGE_SIZE,
    OBJECTS,
    PATCH_SIZE,
    TONES,
)

OBJECT_NAMES = list(OBJECTS)
COLOUR_NAMES = list(FRAME_COLOURS)
TONE_NAMES = list(TONES)
MIDLINE_GAP = 14
DIGIT_SIZE = 2 * PATCH_SIZE
# Width of a frame and the gap inside it.
FRAME_RIM = 4

Box = tuple[int, int, int, int]

QUESTION_TYPES = [
    "object",
    "digit",
    "frame_colour",
    "position",
    "number",
    "unframed",
    "frame_presence",
    "object_presence",
    "frame_count",
    "tone",
]


@dataclass(frozen=True)
class Item:
    """One thing on the photograph; ``box`` is (left, top, right, bottom) in pixels."""

    word: str
    attribute: str
    box: Box

    @property
    def quadrant(self) -> str:
        left, top, right, bottom = self.box
        vertical = "top" if top + bottom < IMAGE_SIZE else "bottom"
        horizontal = "left" if left + right < IMAGE_SIZE else "right"
        return f"{vertical} {horizontal}"


@dataclass(frozen=True)
class Scene:
    tone: str
    items: list[Item] = field(default_factory=list)


@dataclass(frozen=True)
class SceneQuestion:
    type: str
    question: str
    answer: str
    box: Box | None


def _first_free(corners: np.ndarray, width: int, height: int, taken: list[Box]) -> Box | None:
    """The first of ``corners`` [tries, 2] where a box fits the picture and touches none."""
    left, top = corners[:, 0], corners[:, 1]
    free = (left >= 0) & (top >= 0) & (left + width <= IMAGE_SIZE) & (top + height <= IMAGE_SIZE)
    for x0, y0, x1, y1 in taken:
        beside = (left > x1 + 3) | (left + width + 3 < x0)
        free &= beside | (top > y1 + 3) | (top + height + 3 < y0)
    if not free.any():
        return None
    x, y = (int(edge) for edge in corners[free.argmax()])
    return x, y, x + width, y + height


def _object_box(rng: np.random.Generator, taken: list[Box], midline: bool) -> Box | None:
    """A free square anywhere, clear of the midlines if ``midline``; None if none was found."""
    size = int(rng.integers(40, 49))
    corners = rng.integers(1, IMAGE_SIZE - size, (60, 2))
    if midline:
        off_centre = np.abs(2 * corners + size - IMAGE_SIZE).min(axis=1)
        corners = corners[off_centre >= 2 * MIDLINE_GAP]
    return _first_free(corners, size, size, taken) if len(corners) else None


def _digit_box(rng: np.random.Generator, taken: list[Box], digits: int, rim: int) -> Box | None:
    """A free box for ``digits`` digits inside a ``rim``; None if none was found.

    Digits stand within two pixels of the patch grid: reading handwriting at any offset takes a
    small tower many times longer to learn.
    """
    corners = rng.integers(0, GRID, (60, 2)) * PATCH_SIZE - rim + rng.integers(-2, 3, (60, 2))
    return _first_free(corners, digits * DIGIT_SIZE + 2 * rim, DIGIT_SIZE + 2 * rim, taken)


def _number_items(rng: np.random.Generator, box: Box) -> list[Item]:
    """Two digits side by side; the first is never zero."""
    left, top, right, bottom = box
    middle = (left + right) // 2
    return [
        Item(str(rng.choice(DIGITS[1:])), "tens", (left, top, middle, bottom)),
        Item(str(rng.choice(DIGITS)), "units", (middle, top, right, bottom)),
    ]


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene with one number, one framed digit, one bare object and one to three framed ones."""
    while True:
        colours = [str(colour) for colour in rng.permutation(COLOUR_NAMES)]
        names = [str(name) for name in rng.permutation(OBJECT_NAMES)]
        attributes = ["none", *colours[1 : 1 + int(rng.integers(1, 4))]]
        number = _digit_box(rng, [], 2, 0)
        digit = _digit_box(rng, [number], 1, FRAME_RIM) if number else None
        if number is None or digit is None:
            continue
        items = [*_number_items(rng, number), Item(str(rng.choice(DIGITS)), colours[0], digit)]
        taken = [number, digit]
        for name, attribute in zip(names, attributes, strict=False):
            box = _object_box(rng, taken, midline=True)
            if box is None:
                break
            taken.append(box)
            items.append(Item(name, attribute, box))
        else:
            return Scene(str(rng.choice(TONE_NAMES)), items)


def sample_dense_scene(rng: np.random.Generator, count: int = 12) -> Scene:
    """A crowded scene for training the vision tower: up to ``count`` items, repeats allowed."""
    taken: list[Box] = []
    items: list[Item] = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.25:
            box = _digit_box(rng, taken, 2, 0)
            new = _number_items(rng, box) if box else []
        elif kind < 0.5:
            box = _digit_box(rng, taken, 1, FRAME_RIM)
            colour = str(rng.choice(COLOUR_NAMES))
            new = [Item(str(rng.choice(DIGITS)), colour, box)] if box else []
        else:
            box = _object_box(rng, taken, midline=False)
            attribute = "none" if rng.random() < 0.25 else str(rng.choice(COLOUR_NAMES))
            new = [Item(str(rng.choice(OBJECT_NAMES)), attribute, box)] if box else []
        items += new
        taken += [box] if box else []
    return Scene(str(rng.choice(TONE_NAMES)), items)


def all_questions(scene: Scene, rng: np.random.Generator) -> list[SceneQuestion]:
    """Questions of every type about one scene; yes and no are equally frequent."""
    questions: list[SceneQuestion] = []

    def add(kind: str, question: str, answer: str, item: Item | None = None) -> None:
        questions.append(SceneQuestion(kind, question, answer, item.box if item else None))

    framed = [item for item in scene.items if item.attribute in FRAME_COLOURS]
    objects = [item for item in scene.items if item.word in OBJECTS]
    tens, units = scene.items[0], scene.items[1]
    for item in framed:
        if item.word in OBJECTS:
            add("object", f"what is in the {item.attribute} frame ?", item.word, item)
            add(
                "frame_colour",
                f"what colour is the frame of the {item.word} ?",
                item.attribute,
                item,
            )
        else:
            add("digit", f"which digit is in the {item.attribute} frame ?", item.word, item)
    for item in objects:
        add("position", f"where is the {item.word} ?", item.quadrant, item)
        if item.attribute == "none":
            add("unframed", "what has no frame ?", item.word, item)
    number = Item(f"{tens.word} {units.word}", "none", (tens.box[0], tens.box[1], units.box[2], units.box[3]))
    add("number", "what is the number ?", number.word, number)
    for kind, have, names, asked in (
        ("frame_presence", {i.attribute: i for i in framed}, COLOUR_NAMES, "is there a {} frame ?"),
        ("object_presence", {i.word: i for i in objects}, OBJECT_NAMES, "is the {} there ?"),
    ):
        yes = bool(rng.integers(2))
        name = str(rng.choice(list(have) if yes else [n for n in names if n not in have]))
        add(kind, asked.format(name), "yes" if yes else "no", have.get(name))
    add("frame_count", "how many frames are there ?", str(len(framed)))
    add("tone", "what tone has the photo ?", scene.tone)
    return questions


def patch_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Class and attribute of each patch: two int arrays [GRID, GRID].

    A patch belongs to the item that covers most of it, if that is more than a third.
    """
    classes = np.full((GRID, GRID), CLASS_WORDS.index(scene.tone), dtype=np.int64)
    attributes = np.zeros((GRID, GRID), dtype=np.int64)
    best = np.full((GRID, GRID), 0.34)
    edges = np.arange(GRID) * PATCH_SIZE
    for item in scene.items:
        left, top, right, bottom = item.box
        wide = np.clip(np.minimum(edges + PATCH_SIZE, right) - np.maximum(edges, left), 0, None)
        high = np.clip(np.minimum(edges + PATCH_SIZE, bottom) - np.maximum(edges, top), 0, None)
        cover = high[:, None] * wide[None, :] / PATCH_SIZE**2
        mine = cover > best
        best = np.where(mine, cover, best)
        classes[mine] = CLASS_WORDS.index(item.word)
        attributes[mine] = ATTRIBUTES.index(item.attribute)
    return classes, attributes
