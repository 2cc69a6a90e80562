"""Every legal cell of the cross on a live model: what it removes equals the same keys masked."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch
from tiny_models import IMAGE, batch, clip, finish, llama, pixels, text_ids

from pruneopt.errors import ModelError, SignalError
from pruneopt.lab.cross.cells import Cell, cross
from pruneopt.models.apply import prune
from pruneopt.testing.masking import difference, forward, masked, real_columns

KEEP = 5
TOLERANCE = 1e-5  # of float32 on any processor


@pytest.fixture(scope="module")
def live():
    """A LLaVA of 16 visual tokens (brute force reaches that far) and a left-padded batch of two."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config=clip(image_size=16), text_config=llama(), image_token_id=IMAGE, image_seq_length=16
    )
    rows = [[1, *text_ids(n, n), *[IMAGE] * 16, *text_ids(n + 2, 9 + n)] for n in (2, 5)]
    return finish(LlavaForConditionalGeneration(config)), {**batch(rows), "pixel_values": pixels(2, 16)}


def gap_to_masking(model, inputs, cell: Cell) -> tuple[float, list[int]]:
    """Largest difference of the last logits to those with the dropped keys masked, and the counts kept."""
    with prune(model, cell.spec) as run:
        found = forward(model, inputs).logits[:, -1]
        kept, visual = run.kept, run.kept_visual
    with masked(model.model.language_model.layers, kept, real=real_columns(inputs)):
        wanted = forward(model, inputs).logits[:, -1]
    return difference(found, wanted), [len(row) for row in visual[max(visual)]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pruneopt.errors.CostBlindReadoutWarning")
def test_every_legal_cell_removes_exactly_what_masking_hides(live) -> None:
    model, inputs = live
    legal = [cell for cell in cross(keep=KEEP) if cell.legal]
    turned = {(cell.via, cell.problem): cell for cell in legal if cell.via}  # one for each way and problem
    cells = [cell for cell in legal if not cell.via] + list(turned.values())
    wrong, refused = [], Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for cell in cells:
            try:
                gap, counts = gap_to_masking(model, inputs, cell)
            except (ModelError, SignalError) as error:
                refused[str(error).split("'")[1] if "'" in str(error) else str(error)] += 1
                continue
            if gap > TOLERANCE or counts != [KEEP, KEEP]:
                wrong.append((cell.spec.name, gap, counts))
    assert wrong == []
    assert len(cells) - sum(refused.values()) > 100
    # Refused: signals that need CLIP's text tower, and the ranking of an earlier cut where there is none.
    assert set(refused) <= {"clip_features", "clip_text", "importance"}, refused


def test_a_token_kept_too_many_is_seen(live) -> None:
    model, inputs = live
    cell = next(
        cell
        for cell in cross(["token_norm"], ["stable_top_k"], insertions=["prefill_layer"], keep=KEEP)
        if cell.legal
    )
    with prune(model, cell.spec) as run:
        found = forward(model, inputs).logits[:, -1]
        kept = {layer: [list(row) for row in rows] for layer, rows in run.kept.items()}
        spared = next(
            c for c in range(40) if inputs["input_ids"][0, c] == IMAGE and c not in kept[max(kept)][0]
        )
    kept[max(kept)][0].append(spared)
    with masked(model.model.language_model.layers, kept, real=real_columns(inputs)):
        wanted = forward(model, inputs).logits[:, -1]
    assert difference(found, wanted) > TOLERANCE
    assert torch.isfinite(wanted).all()
