"""The codebook builder finds planted redundant tokens; the score reads what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pruneopt.errors import InputError, SpecError
from pruneopt.eval.codebook import (
    Thresholds,
    build_codebook,
    divergence,
    live_probe,
    neighbourhoods,
    save_codebook,
)
from pruneopt.pruner import select
from pruneopt.signals import Signals
from pruneopt.spec import load_spec

SIDE, WIDTH, WORDS = 6, 16, 60


def planted(seed: int) -> tuple[Tensor, Tensor]:
    """A picture whose rows say a word each, but for a few that say nothing: tokens and who is silent."""
    generator = torch.Generator().manual_seed(seed)
    silent = torch.zeros(SIDE * SIDE, dtype=torch.bool)
    silent[torch.randperm(SIDE * SIDE, generator=generator)[:4]] = True
    tokens = torch.zeros(SIDE * SIDE, WIDTH)
    tokens[:, 1:] = torch.randn(SIDE * SIDE, WIDTH - 1, generator=generator)
    tokens[silent, 1:] = 0
    tokens[:, 0] = 1 + 0.01 * torch.rand(SIDE * SIDE, generator=generator)
    return tokens, silent


def probe(sequences: list[Tensor]) -> Tensor:
    """A model that hears the sum of what tokens say; the first axis and padding say nothing."""
    words = torch.randn(WIDTH - 1, WORDS, generator=torch.Generator().manual_seed(9))
    return torch.stack([4 * sequence[:, 1:].sum(0) @ words for sequence in sequences])


SETTINGS = Thresholds(alone=0.1, change=1e-4, crowd=36, clusters=4, pictures=2)


def test_a_planted_codebook_is_found_and_prunes_the_silent_tokens(tmp_path: Path) -> None:
    pictures = [planted(seed) for seed in range(4)]
    pad = torch.zeros(WIDTH)
    local_only = Thresholds(alone=0.1, change=1e9, crowd=36, clusters=4, pictures=2)
    prototypes = build_codebook([t for t, _ in pictures], SIDE, probe, pad, local_only)
    assert prototypes.shape[1] == WIDTH and float(prototypes[:, 1:].abs().max()) == 0
    path = tmp_path / "codebook.safetensors"
    digest = save_codebook(path, prototypes, {"model": "planted"})
    tokens, silent = planted(11)
    overrides = [
        f"problem.scores.redundancy.codebook={path}",
        f"problem.scores.redundancy.sha256={digest[:12]}",
        f"budget.keep={SIDE * SIDE - 4}",
    ]
    chosen = select(load_spec("codebook", overrides), Signals({"features": tokens[None]}))
    assert not bool(chosen.keep[0, silent].any()) and int(chosen.keep.sum()) == SIDE * SIDE - 4
    double = select(load_spec("codebook/double_softmax", overrides), Signals({"features": tokens[None]}))
    assert int(double.keep.sum()) == SIDE * SIDE - 4


def test_what_changes_the_answer_is_not_redundant() -> None:
    tokens, _ = planted(0)
    loud = tokens.clone()
    loud[:, 1:] = torch.randn(SIDE * SIDE, WIDTH - 1, generator=torch.Generator().manual_seed(5))
    with pytest.raises(InputError, match="redundant"):
        build_codebook([loud], SIDE, probe, torch.zeros(WIDTH), SETTINGS)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.safetensors"
    save_codebook(path, torch.randn(3, WIDTH), {})
    signals = Signals({"features": torch.randn(1, 9, WIDTH + 1)})
    key = "problem.scores.redundancy"
    with pytest.raises(SpecError, match="another model"):
        select(load_spec("codebook", [f"{key}.codebook={path}"]), signals)
    with pytest.raises(InputError, match="SHA-256"):
        select(load_spec("codebook", [f"{key}.codebook={path}", f"{key}.sha256=abc"]), signals)
    with pytest.raises(InputError, match="does not exist"):
        select(load_spec("codebook", [f"{key}.codebook={tmp_path}/none"]), signals)
    with pytest.raises(SpecError, match="codebook is empty"):
        select("codebook", signals)


def test_neighbourhoods_shift_inwards_at_the_borders() -> None:
    blocks = neighbourhoods(12, 4)
    assert blocks[0].tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert blocks[11].tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert all(i in block.tolist() for i, block in enumerate(blocks))
    with pytest.raises(InputError):
        neighbourhoods(8, 4)


def test_divergence_is_zero_for_equals_and_grows() -> None:
    logits = torch.randn(3, 40)
    assert float(divergence(logits, logits).max()) < 1e-7
    assert float(divergence(logits, logits + 3 * torch.randn(3, 40)).min()) > 0


def test_the_live_probe_is_the_model_itself() -> None:
    """Feeding a picture's own tokens gives the logits of the ordinary forward pass."""
    from pruneopt.demo.assets import load_inputs, load_model, sample
    from pruneopt.eval.live_signals import record_signals

    model, processor = load_model()
    inputs = load_inputs([sample()], processor)
    tokens = record_signals(model, inputs, ["features"], "post_encoder")["features"][0]
    ids = inputs["input_ids"][0]
    found = live_probe(model, ids, model.config.image_token_id)([tokens])
    with torch.no_grad():
        wanted = model(**inputs).logits[:, -1]
    assert float((found - wanted).abs().max()) < 1e-3
