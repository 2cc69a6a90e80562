"""Pictures of what was kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

_KEPT = "#0072B2"  # colour-blind safe blue of Okabe and Ito
_DIM = 0.25


@dataclass(frozen=True)
class Panel:
    """One overlay: which cells of a grid survive.

    Parameters
    ----------
    title
        Written above it.
    kept
        Numbers of the cells, row by row.
    width, height
        Of the grid.
    """

    title: str
    kept: Sequence[int]
    width: int
    height: int


def overlay(image: Image, panel: Panel) -> np.ndarray:
    """A picture with dropped cells dimmed.

    Parameters
    ----------
    image
        The picture.
    panel
        Which cells survive.

    Returns
    -------
    numpy.ndarray
        `[h,w,3]` in [0,1].

    Raises
    ------
    ValueError
        For a cell outside the grid.
    """
    pixels = np.asarray(image, dtype=np.float32) / 255
    cells = np.zeros(panel.width * panel.height, dtype=bool)
    kept = np.asarray(list(panel.kept), dtype=int)
    if kept.size and (kept.min() < 0 or kept.max() >= cells.size):
        raise ValueError(f"kept cells must be in 0..{cells.size - 1}, got {kept.min()}..{kept.max()}")
    cells[kept] = True
    # A pixel belongs to the cell that its share of the side falls into, also where cells do not divide it.
    rows = np.minimum(np.arange(pixels.shape[0]) * panel.height // pixels.shape[0], panel.height - 1)
    cols = np.minimum(np.arange(pixels.shape[1]) * panel.width // pixels.shape[1], panel.width - 1)
    alive = cells.reshape(panel.height, panel.width)[rows][:, cols, None]
    grey = pixels.mean(2, keepdims=True) * _DIM + (1 - _DIM) * 0.9
    return np.where(alive, pixels, grey)


def save_overlay(
    image: Image,
    panels: Sequence[Panel],
    *,
    path: Path,
    heading: str = "",
    box: tuple[int, int, int, int] | None = None,
) -> Path:
    """Write the picture and one overlay per panel as a PNG, side by side.

    Parameters
    ----------
    image
        The picture.
    panels
        One overlay each.
    path
        Of the file; its folder is made.
    heading
        Written above all.
    box
        (left, top, right, bottom) in pixels, drawn on the first picture.

    Returns
    -------
    Path
        `path`.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(3.6 * (1 + len(panels)), 4.3), layout="constrained")
    axes = figure.subplots(1, 1 + len(panels), squeeze=False)[0]
    axes[0].imshow(image)
    axes[0].set_title("picture", fontsize=10)
    if box is not None:
        left, top, right, bottom = box
        axes[0].add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="#E69F00", linewidth=2)
        )
    for axis, panel in zip(axes[1:], panels, strict=True):
        axis.imshow(overlay(image, panel), extent=(0, panel.width, panel.height, 0), aspect="auto")
        axis.set_xticks(range(panel.width + 1), minor=True)
        axis.set_yticks(range(panel.height + 1), minor=True)
        axis.grid(which="minor", color=_KEPT, linewidth=0.15)
        axis.set_title(panel.title, fontsize=10)
        axis.set_box_aspect(image.size[1] / image.size[0])
    for axis in axes:
        axis.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    if heading:
        figure.suptitle(heading, fontsize=11)
    figure.savefig(path, dpi=110)
    return path
