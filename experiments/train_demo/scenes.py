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
    box: tuple[int, int, int, int]

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
    box: tuple[int, int, int, int] | None


def _free_box(
    rng: np.random.Generator,
    taken: list[tuple[int, int, int, int]],
    width: int,
    height: int,
    midline: bool,
) -> tuple[int, int, int, int] | None:
    """A box inside the picture that touches none of ``taken``, or None after 60 tries."""
    for _ in range(60):
        left = int(rng.integers(1, IMAGE_SIZE - width))
        top = int(rng.integers(1, IMAGE_SIZE - height))
        right, bottom = left + width, top + height
        if midline and (
            abs(left + right - IMAGE_SIZE) < 2 * MIDLINE_GAP
            or abs(top + bottom - IMAGE_SIZE) < 2 * MIDLINE_GAP
        ):
            continue
        if all(
            right + 3 < other[0]
            or other[2] + 3 < left
            or bottom + 3 < other[1]
            or other[3] + 3 < top
            for other in taken
        ):
            return left, top, right, bottom
    return None


def sample_scene(rng: np.random.Generator) -> Scene:
    """A scene with one number, one framed digit, one bare object and one to three framed ones."""
    while True:
        colours = list(rng.permutation(COLOUR_NAMES))
        names = list(rng.permutation(OBJECT_NAMES))
        framed_objects = int(rng.integers(1, 4))
        taken: list[tuple[int, int, int, int]] = []
        height = int(rng.integers(36, 43))
        width = int(height * 0.86)
        number = _free_box(rng, taken, 2 * width, height, midline=False)
        assert number is not None
        taken.append(number)
        middle = number[0] + width
        items = [
            Item(str(rng.choice(DIGITS[1:])), "tens", (number[0], number[1], middle, number[3])),
            Item(str(rng.choice(DIGITS)), "units", (middle, number[1], number[2], number[3])),
        ]
        wanted = [(str(rng.choice(DIGITS)), colours[0]), (names[0], "none")]
        wanted += [(names[1 + i], colours[1 + i]) for i in range(framed_objects)]
        for word, attribute in wanted:
            size = int(rng.integers(40, 49))
            box = _free_box(rng, taken, size, size, midline=True)
            if box is None:
                break
            taken.append(box)
            items.append(Item(str(word), str(attribute), box))
        else:
            return Scene(str(rng.choice(TONE_NAMES)), items)


def sample_dense_scene(rng: np.random.Generator, count: int = 12) -> Scene:
    """A crowded scene for training the vision tower: up to ``count`` items, repeats allowed."""
    taken: list[tuple[int, int, int, int]] = []
    items: list[Item] = []
    for _ in range(count):
        kind = rng.random()
        if kind < 0.2:
            height = int(rng.integers(36, 43))
            width = int(height * 0.86)
            box = _free_box(rng, taken, 2 * width, height, midline=False)
            if box is None:
                continue
            middle = box[0] + width
            items.append(Item(str(rng.choice(DIGITS)), "tens", (box[0], box[1], middle, box[3])))
            items.append(Item(str(rng.choice(DIGITS)), "units", (middle, box[1], box[2], box[3])))
        else:
            size = int(rng.integers(40, 49))
            box = _free_box(rng, taken, size, size, midline=False)
            if box is None:
                continue
            if kind < 0.4:
                word, attribute = str(rng.choice(DIGITS)), str(rng.choice(COLOUR_NAMES))
            else:
                word = str(rng.choice(OBJECT_NAMES))
                attribute = "none" if rng.random() < 0.25 else str(rng.choice(COLOUR_NAMES))
            items.append(Item(word, attribute, box))
        taken.append(box)
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
    number = Item(
        f"{tens.word} {units.word}", "none", (tens.box[0], tens.box[1], units.box[2], units.box[3])
    )
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
