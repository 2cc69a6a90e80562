"""Draws `docs/pictures/architecture.svg` from the tree itself: parts, and layers of imports.

`python .ci/draw_architecture.py [FILE]`; the ending of FILE chooses the format.
"""

from __future__ import annotations

import configparser
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pruneopt"
INK, PALE, ROAD, SIDE, MODEL = "#22303c", "#f4f6f8", "#d9e8f5", "#fdeccb", "#dff0dc"
STEP = 1.66  # from one box of the road to the next


def names(folder: str) -> list[str]:
    """Files of a folder that are parts of that name."""
    return sorted(path.stem for path in (PACKAGE / folder).glob("*.py") if not path.stem.startswith("_"))


def layers() -> list[str]:
    """The layers of the import contract, from the top down."""
    contract = configparser.ConfigParser()
    contract.read(ROOT / ".importlinter")
    lines = contract["importlinter:contract:layers"]["layers"].split("\n")
    return [line.strip().replace("pruneopt.", "") for line in lines if line.strip()]


def road() -> list[tuple[str, str, str, str]]:
    """What a choice of tokens passes, in order: title, sentence, place, colour."""

    def count(kind: str) -> str:
        return f"{len(names(f'parts/{kind}'))} {kind}"

    terms = ", ".join(count(kind) for kind in ("scores", "costs", "kernels", "marginals"))
    kinds = f"{len(names('problems/kinds'))} kinds: needs, value, bound, swaps, linear program"
    kept = "kept tokens, importance, evidence of every problem solved"
    return [
        ("Model forward", "unmodified, fused attention on", "a transformers model", PALE),
        ("Site", "stops where the spec cuts, captures what parts read", "models/sites/", MODEL),
        ("Signals", "named tensors, each with a shape, a price and a place", "signals.py", ROAD),
        ("Terms", terms, "parts/", ROAD),
        ("Problem", kinds, "problems/kinds/", ROAD),
        ("Solver", f"{count('solvers')}; every answer has a bound, or says why not", "parts/solvers/", ROAD),
        ("Selection", kept, "problems/selection.py", ROAD),
        ("Steps", f"{count('steps')}: recover, merge, recycle", "parts/steps/", ROAD),
        ("Site", "removes columns: hidden states, positions, masks, caches", "models/sites/", MODEL),
        ("Report", "what was kept, tokens and bytes per layer, certificates", "models/report.py", MODEL),
    ]


def box(axes: Any, corner: tuple[float, float], *, size: tuple[float, float], colour: str) -> None:
    shape = FancyBboxPatch(
        corner, *size, boxstyle="round,pad=0,rounding_size=0.12", fc=colour, ec=INK, lw=0.8
    )
    axes.add_patch(shape)


def write(axes: Any, place: tuple[float, float], *, text: str, size: float, **how: Any) -> None:
    axes.text(*place, text, fontsize=size, color=INK, va="center", **how)


def arrow(axes: Any, start: tuple[float, float], *, end: tuple[float, float], style: str = "-|>") -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": style, "color": INK, "lw": 0.9})


def draw(path: Path) -> None:
    """Left the road, beside it the side road of transport, right the layers."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pruneopt", "font.family": "DejaVu Sans"})
    code = {"family": "DejaVu Sans Mono"}
    figure, axes = plt.subplots(figsize=(13, 9))
    axes.set(xlim=(0, 26), ylim=(0, 18))
    axes.axis("off")
    write(axes, (0.3, 17.5), text="One road", size=14, weight="bold")
    for i, (title, words, place, colour) in enumerate(road()):
        y = 16.0 - i * STEP
        box(axes, (0.3, y), size=(12.6, 1.16), colour=colour)
        write(axes, (0.6, y + 0.78), text=title, size=10.5, weight="bold")
        write(axes, (12.6, y + 0.78), text=place, size=8.5, ha="right", **code)
        write(axes, (0.6, y + 0.34), text=words, size=7.6)
        if i:
            arrow(axes, (6.6, y + STEP - 0.02), end=(6.6, y + 1.18))
    side_road(axes, 16.0 - 3 * STEP)
    write(axes, (19.3, 17.5), text="Who may import whom", size=14, weight="bold")
    write(axes, (19.3, 16.95), text="only downwards; make lint checks it", size=8.5)
    for i, layer in enumerate(layers()):
        y = 15.6 - i * 1.12
        box(axes, (19.3, y), size=(6.4, 0.8), colour=PALE)
        write(axes, (22.5, y + 0.4), text=layer.replace(" | ", "    "), size=9.5, ha="center", **code)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)


def side_road(axes: Any, y: float) -> None:
    """Transport is a way to score, so it stands beside the terms."""
    top, height = y + 1.16, 5.0
    box(axes, (14.1, top - height), size=(4.4, height), colour=SIDE)
    write(axes, (16.3, top - 0.5), text="scores/transport", size=8.6, ha="center", weight="bold")
    lines = ("costs, marginals", "TransportProblem", "solver: plan, potentials", "readout: importance")
    for i, line in enumerate(lines):
        here = top - 1.45 - i * 0.95
        write(axes, (16.3, here), text=line, size=8.6, ha="center")
        if i:
            arrow(axes, (16.3, here + 0.75), end=(16.3, here + 0.2))
    arrow(axes, (12.95, y + 0.58), end=(14.05, y + 0.58), style="<|-|>")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures" / "architecture.svg")
