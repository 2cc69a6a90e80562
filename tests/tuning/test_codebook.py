"""The codebook builder finds planted redundant tokens; the score reads what it wrote."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.special import rel_entr
from torch import Tensor

from pruneopt.errors import InputError, SpecError
from pruneopt.pruner import select
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.tuning.codebook import (
    Thresholds,
    build_codebook,
    divergence,
    in_small_clusters,
    live_probe,
    neighbourhoods,
    provenance,
    redundant,
    save_codebook,
)

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
    prototypes = build_codebook([t for t, _ in pictures], SIDE, probe=probe, pad=pad, settings=local_only)
    assert prototypes.shape[1] == WIDTH and float(prototypes[:, 1:].abs().max()) == 0
    path = tmp_path / "codebook.safetensors"
    digest = save_codebook(path, prototypes, provenance={"model": "planted"})
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
        build_codebook([loud], SIDE, probe=probe, pad=torch.zeros(WIDTH), settings=SETTINGS)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.safetensors"
    save_codebook(path, torch.randn(3, WIDTH), provenance={})
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


def test_divergence_against_its_definition() -> None:
    """Mean over the ten best entries of the reference of both halves of the Jensen-Shannon divergence."""
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(3, 40, generator=generator) for _ in range(2))
    want = []
    for reference, other in zip(a.double().numpy(), b.double().numpy(), strict=True):
        best = np.argsort(-reference)[:10]
        p, q = (np.exp(x[best]) / np.exp(x[best]).sum() for x in (reference, other))
        want.append((rel_entr(p, (p + q) / 2) + rel_entr(q, (p + q) / 2)).sum() / 2 / 10)
    np.testing.assert_allclose(divergence(a, b), want, rtol=1e-4)
    assert float(divergence(a, a).max()) < 1e-7


def island() -> tuple[Tensor, Tensor]:
    """Tokens that say a word each around a silent block of 4 x 4, and the silent ones as a grid."""
    tokens, _ = planted(3)
    tokens[:, 1:] = torch.randn(SIDE * SIDE, WIDTH - 1, generator=torch.Generator().manual_seed(4))
    silent = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    silent[1:5, 1:5] = True
    tokens[silent.flatten(), 1:] = 0
    return tokens, silent


def soft(sequences: list[Tensor]) -> Tensor:
    """The same model, less sure of itself, so that every word changes its answer."""
    return probe(sequences) / 20


def test_redundant_is_silent_alone_and_not_missed_with_its_neighbours() -> None:
    """Without the 3 x 3 block around it nothing is missed only in the middle of the silent block."""
    tokens, silent = island()
    pad = torch.zeros(WIDTH)
    inner = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inner[2:4, 2:4] = True

    def flags(**thresholds: float) -> Tensor:
        return redundant(tokens, SIDE, probe=soft, pad=pad, settings=Thresholds(**thresholds)).view(
            SIDE, SIDE
        )

    assert torch.equal(flags(alone=0.03, change=1e-7), inner)
    assert torch.equal(flags(alone=0.03, change=1e9), silent)
    assert not flags(alone=0.01, change=1e9).any()
    assert flags(alone=1.1, change=1e9).all()


def test_the_change_is_local_plus_sixteen_times_global() -> None:
    tokens, _ = island()
    pad, block = torch.zeros(WIDTH), neighbourhoods(SIDE * SIDE, SIDE)[0]
    near, whole = tokens[block], tokens
    without = torch.where((block == 0)[:, None], pad, near)
    hole = tokens.clone()
    hole[block] = pad
    change = divergence(soft([near]), soft([without])) + 16 * divergence(soft([whole]), soft([hole]))
    for factor, wanted in ((0.999, False), (1.001, True)):
        settings = Thresholds(alone=1.1, change=factor * float(change))
        assert bool(redundant(tokens, SIDE, probe=soft, pad=pad, settings=settings)[0]) is wanted


def test_a_crowd_is_no_redundancy_and_a_cluster_needs_enough_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.eye(3, 8)
    rows = torch.cat(
        [centres[i] + 0.01 * torch.randn(n, 8, generator=generator) for i, n in enumerate((3, 5, 8))]
    )
    for crowd, wanted in ((2, 0), (3, 3), (4, 3), (5, 8), (7, 8), (8, 16)):
        flags = in_small_clusters(rows, 3, crowd=crowd)
        assert flags.tolist() == [True] * wanted + [False] * (16 - wanted), crowd
    pictures = [planted(seed)[0] for seed in range(4)]
    for count, enough in ((3, True), (4, False)):
        settings = Thresholds(alone=0.1, change=1e9, crowd=36, clusters=1, pictures=count)
        if enough:
            assert (
                len(build_codebook(pictures, SIDE, probe=probe, pad=torch.zeros(WIDTH), settings=settings))
                == 16
            )
        else:
            with pytest.raises(InputError, match="more than 4 pictures"):
                build_codebook(pictures, SIDE, probe=probe, pad=torch.zeros(WIDTH), settings=settings)


def test_a_codebook_file_says_where_it_is_from_and_its_digest(tmp_path: Path) -> None:
    path, rows = tmp_path / "book.safetensors", torch.randn(3, WIDTH)
    digest = save_codebook(path, rows, provenance=provenance("planted", 7, settings=SETTINGS))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    with safe_open(path, "pt") as file:
        torch.testing.assert_close(file.get_tensor("prototypes"), rows)
        notes = file.metadata()
    assert (notes["model"], notes["calibration_pictures"]) == ("planted", "7")
    assert (notes["alone"], notes["change"], notes["crowd"]) == ("0.1", "0.0001", "36")


def test_the_live_probe_is_the_model_itself() -> None:
    """Feeding a picture's own tokens gives the logits of the ordinary forward pass."""
    from pruneopt.demo.assets import load_inputs, load_model, sample
    from pruneopt.lab.record_signals import record_signals

    model, processor = load_model()
    inputs = load_inputs([sample()], processor)
    tokens = record_signals(model, inputs, names=["features"], insertion="post_encoder")["features"][0]
    ids = inputs["input_ids"][0]
    found = live_probe(model, ids, image_token=model.config.image_token_id)([tokens])
    with torch.no_grad():
        wanted = model(**inputs).logits[:, -1]
    assert float((found - wanted).abs().max()) < 1e-3
