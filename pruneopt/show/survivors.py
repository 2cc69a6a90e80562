"""From a finished run to the cells of a picture that survived."""

from __future__ import annotations

from typing import Any

from pruneopt.show.picture import Panel


def survivor_panel(run: Any, title: str = "", *, sample: int = 0, group: int = 0) -> Panel:
    """Cells of one sample's picture that survive the last cut of a run.

    Parameters
    ----------
    run
        A finished one.
    title
        Of the panel; empty says how many tokens are kept.
    sample
        Row of the batch.
    group
        The image, crop or frame where a sample has several (0 is the first, the thumbnail in AnyRes models).

    Returns
    -------
    Panel
        For `save_overlay`.
    """
    prompt = run.last.prompt
    row = prompt.rows.index(sample)
    # Columns of the unpruned prompt at every cut, so cells keep their numbers whatever went before.
    kept = set(run.last.cuts[-1].kept[row].tolist())
    place = prompt.place[row].tolist()
    xy, grid = prompt.geometry["xy"][row].tolist(), prompt.geometry["grid"][row].tolist()
    groups = prompt.geometry["group"][row].tolist()
    members = [i for i, column in enumerate(place) if column >= 0 and groups[i] == group]
    width, height = (int(side) for side in grid[members[0]])
    cells = [int(xy[i][1]) * width + int(xy[i][0]) for i in members if place[i] in kept]
    return Panel(title or f"{len(cells)} of {len(members)} tokens kept", cells, width, height)
