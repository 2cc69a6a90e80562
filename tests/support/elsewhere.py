"""The insertion points of `cut_elsewhere`, registered as an installed package registers its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pruneopt.registry import registry

ENTRY_POINTS = """
[pruneopt.insertions]
encoder_block = cut_elsewhere.encoder_block:EncoderBlock
evicted_cache = cut_elsewhere.evicted_cache:EvictedCache
[pruneopt.sites]
encoder_block = cut_elsewhere.encoder_block_site:EncoderBlockSite
evicted_cache = cut_elsewhere.evicted_cache_site:EvictedCacheSite
"""


@contextmanager
def installed(folder: Path, entry_points: str = ENTRY_POINTS) -> Iterator[None]:
    """As long as the block runs, a distribution in `folder` has these entry points."""
    info = folder / "cut_elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cut-elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        registry.cache_clear()
        try:
            yield
        finally:
            registry.cache_clear()
