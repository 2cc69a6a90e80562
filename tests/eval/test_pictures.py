"""Overlays dim exactly the dropped cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pruneopt.errors import InputError
from pruneopt.eval.images import open_image
from pruneopt.eval.picture import Panel, overlay, save_overlay


def test_kept_cells_keep_their_pixels_and_dropped_ones_do_not() -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[..., 0] = 200
    image = Image.fromarray(pixels)
    shown = overlay(image, Panel("x", kept=[0, 5], width=3, height=2))
    same = np.isclose(shown, pixels / 255).all(2)
    expected = np.zeros((40, 60), dtype=bool)
    expected[:20, :20] = True
    expected[20:, 40:] = True
    assert (same == expected).all()


def test_a_cell_outside_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.5"):
        overlay(Image.new("RGB", (6, 6)), Panel("x", [6], 3, 2))


def test_the_file_is_a_picture_with_one_panel_more_than_selections(tmp_path: Path) -> None:
    image = Image.new("RGB", (48, 48), (10, 120, 60))
    one = save_overlay(image, [Panel("a", [0], 4, 4)], tmp_path / "deep" / "a.png", "q", box=(4, 4, 9, 9))
    two = save_overlay(image, [Panel("a", [0], 4, 4)] * 2, tmp_path / "b.png")
    assert open_image(two).size[0] > open_image(one).size[0]


def test_unusable_pictures_name_the_file_and_the_cure(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        open_image(tmp_path / "no.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match="empty file"):
        open_image(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(InputError, match="PNG, JPEG or WebP"):
        open_image(tmp_path / "text.png")
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.png")
    assert open_image(tmp_path / "grey.png").mode == "RGB"
