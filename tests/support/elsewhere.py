"""Insertion points from outside, registered as an installed package registers its own.

`cut_elsewhere` cuts inside a vision encoder; the cut in a cache is the example of docs/insertion-points.md.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pruneopt.registry import registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "insertion-points.md"
ENTRY_POINTS = """
[pruneopt.insertions]
encoder_block = cut_elsewhere.encoder_block:EncoderBlock
[pruneopt.sites]
encoder_block = cut_elsewhere.encoder_block_site:EncoderBlockSite
"""


def example() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The files of the page by name, and its entry points by group."""
    text = PAGE.read_text(encoding="utf-8")
    files = {name: code for code, name in re.findall(r'```python\n("""(\w+\.py):.*?)```', text, re.DOTALL)}
    (points,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    return files, tomllib.loads(points)["project"]["entry-points"]


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """As long as the block runs, distributions in `folder` have these entry points."""
    files, groups = example()
    for name, code in files.items():
        (folder / name).write_text(code, encoding="utf-8")
    own = [line for group, points in groups.items() for line in (
        f"[{group}]", *(f"{name} = {target}" for name, target in points.items()))]  # fmt: skip
    for package, lines in (("cut-elsewhere", ENTRY_POINTS), ("layer-cache", "\n".join(own))):
        info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        registry.cache_clear()
        try:
            yield
        finally:
            registry.cache_clear()
            for name in files:
                sys.modules.pop(name.removesuffix(".py"), None)
