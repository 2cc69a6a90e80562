"""Overlays dim exactly the dropped cells."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pruneopt.errors import InputError
from pruneopt.show.images import open_image
from pruneopt.show.picture import Panel, overlay, save_overlay
from pruneopt.show.survivors import survivor_panel


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


def test_cells_divide_a_picture_that_they_do_not_fit() -> None:
    """A pixel belongs to the cell that its share of the side falls into; dropped ones fade to grey."""
    pixels = np.random.default_rng(0).integers(0, 256, (47, 50, 3), dtype=np.uint8)
    shown = overlay(Image.fromarray(pixels), Panel("x", kept=[3, 7, 11], width=4, height=3))
    for y in range(47):
        for x in range(50):
            cell = int(y / 47 * 3) * 4 + int(x / 50 * 4)
            plain = pixels[y, x] / 255
            want = plain if cell in (3, 7, 11) else np.full(3, 0.25 * plain.mean() + 0.75 * 0.9)
            np.testing.assert_allclose(shown[y, x], want, atol=1e-6)


class TestSurvivors:
    """Rows of two samples: the first one is text, then two pictures of 3 x 2 and 2 x 2 cells."""

    @pytest.fixture
    def run(self) -> SimpleNamespace:
        place = torch.tensor([[4, 5, 6, 7, 8, 9, 11, 12, 13, 14, -1]] * 2)
        group = torch.tensor([[0] * 6 + [1] * 4 + [0]] * 2)
        xy = torch.tensor(
            [[[i % 3, i // 3] for i in range(6)] + [[i % 2, i // 2] for i in range(4)] + [[0, 0]]] * 2
        )
        grid = torch.tensor([[[3, 2]] * 6 + [[2, 2]] * 4 + [[0, 0]]] * 2)
        prompt = SimpleNamespace(rows=[5, 2], place=place, geometry={"xy": xy, "grid": grid, "group": group})
        first = SimpleNamespace(kept=[torch.arange(16), torch.arange(16)])
        last = SimpleNamespace(kept=[torch.tensor([0, 4, 7, 9, 11, 14]), torch.tensor([5, 12, 13])])
        return SimpleNamespace(last=SimpleNamespace(prompt=prompt, cuts=[first, last]))

    @pytest.mark.parametrize(
        ("sample", "group", "cells", "side"),
        [(5, 0, [0, 3, 5], (3, 2)), (5, 1, [0, 3], (2, 2)), (2, 0, [1], (3, 2)), (2, 1, [1, 2], (2, 2))],
    )
    def test_cells_are_those_of_the_last_cut_of_one_picture(
        self, run: SimpleNamespace, sample: int, group: int, cells: list[int], side: tuple[int, int]
    ) -> None:
        panel = survivor_panel(run, sample=sample, group=group)
        assert (panel.kept, (panel.width, panel.height)) == (cells, side)
        assert panel.title == f"{len(cells)} of {side[0] * side[1]} tokens kept"
        assert survivor_panel(run, "other", sample=sample, group=group).title == "other"


def test_a_cell_outside_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.5"):
        overlay(Image.new("RGB", (6, 6)), Panel("x", [6], 3, 2))


def test_the_file_is_a_picture_with_one_panel_more_than_selections(tmp_path: Path) -> None:
    image = Image.new("RGB", (48, 48), (10, 120, 60))
    one = save_overlay(
        image, [Panel("a", [0], 4, 4)], path=tmp_path / "deep" / "a.png", heading="q", box=(4, 4, 9, 9)
    )
    two = save_overlay(image, [Panel("a", [0], 4, 4)] * 2, path=tmp_path / "b.png")
    assert open_image(two).size[0] > 1.4 * open_image(one).size[0]
    plain = save_overlay(image, [Panel("a", [0], 4, 4)], path=tmp_path / "c.png", heading="q")
    orange = [bool((np.asarray(open_image(p)) == (230, 159, 0)).all(2).any()) for p in (one, plain)]
    assert orange == [True, False], "the box is drawn where one is given"


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
