"""Words, object classes and colours of the demo task.

Everything that the scenes, the tokenizer and the oracle tokens must agree on stands here once.
"""

from __future__ import annotations

IMAGE_SIZE = 192
PATCH_SIZE = 16
GRID = IMAGE_SIZE // PATCH_SIZE

# Class name -> Unicode code point of the Noto Color Emoji glyph that shows it.
OBJECTS: dict[str, int] = {
    "apple": 0x1F34E,
    "banana": 0x1F34C,
    "carrot": 0x1F955,
    "grape": 0x1F347,
    "mushroom": 0x1F344,
    "cactus": 0x1F335,
    "frog": 0x1F438,
    "pig": 0x1F437,
    "panda": 0x1F43C,
    "fox": 0x1F98A,
    "whale": 0x1F433,
    "octopus": 0x1F419,
    "penguin": 0x1F427,
    "bicycle": 0x1F6B2,
    "rocket": 0x1F680,
    "umbrella": 0x2602,
    "key": 0x1F511,
    "guitar": 0x1F3B8,
    "ball": 0x26BD,
    "clock": 0x23F0,
}
DIGITS = [str(digit) for digit in range(10)]

FRAME_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 30),
    "yellow": (245, 220, 20),
    "green": (20, 190, 50),
    "blue": (35, 80, 235),
    "purple": (180, 50, 215),
    "white": (250, 250, 250),
}
# Colour of the wash laid over the photograph; None leaves it as it is.
TONES: dict[str, tuple[float, float, float] | None] = {
    "natural": None,
    "grey": (1.0, 1.0, 1.0),
    "sepia": (1.25, 0.95, 0.6),
    "teal": (0.55, 1.1, 1.1),
    "rose": (1.3, 0.75, 0.95),
}
SIDES = ["top", "bottom", "left", "right"]

# Patch classes: an object, a digit, or background of a tone.
CLASS_WORDS = [*OBJECTS, *DIGITS, *TONES]
# Patch attributes: no frame, a frame of a colour, first or second digit of the number.
ATTRIBUTES = ["none", *FRAME_COLOURS, "tens", "units"]

PAD, BOS, EOS, UNK, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
USER, ASSISTANT = "user:", "assistant:"
QUESTION_WORDS = [
    *("what", "is", "in", "the", "frame", "?", "which", "digit", "colour", "of", "where"),
    *("number", "there", "a", "tone", "has", "photo", "no", "how", "many", "frames", "are", "yes"),
]


def _unique(words: list[str]) -> list[str]:
    return list(dict.fromkeys(words))


WORDS = _unique(
    [
        *(PAD, BOS, EOS, UNK, IMAGE, USER, ASSISTANT),
        *QUESTION_WORDS,
        *OBJECTS,
        *DIGITS,
        *FRAME_COLOURS,
        *TONES,
        *SIDES,
    ]
)
WORD_ID = {word: index for index, word in enumerate(WORDS)}

# The visual tokens stand between these two pieces of text.
PREFIX_WORDS = [BOS, USER]


def encode(text: str) -> list[int]:
    """Ids of the space-separated words of ``text``; every word must be in the vocabulary."""
    unknown = [word for word in text.split() if word not in WORD_ID]
    if unknown:
        raise ValueError(f"words not in the vocabulary: {unknown}; add them to vocabulary.py")
    return [WORD_ID[word] for word in text.split()]
