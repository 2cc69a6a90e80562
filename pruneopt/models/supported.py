"""What `pruneopt list models` shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import cast

from pruneopt.errors import RegistryError
from pruneopt.models.base import ModelAdapter
from pruneopt.models.sites import Site
from pruneopt.parts import Insertion
from pruneopt.registry import registry

COMMON_REFUSALS = (
    "static cache", "torch.compile", "assisted decoding", "chunked prefill", "continuous batching",
    "guidance_scale", "use_cache=False", "labels",
)  # fmt: skip


def supported_models() -> list[dict[str, str]]:
    """One row per `config.model_type`: family, insertion points, encoder signals, refused modes.

    A broken adapter is listed with its problem and hides no other.
    """
    rows = []
    for kind in registry("models"):
        row = {"model_type": kind, "family": "", "insertion points": "", "encoder signals": "", "refused": ""}
        try:
            adapter = cast("type[ModelAdapter]", registry("models").get(kind))
        except RegistryError as error:
            rows.append({**row, "family": f"broken: {error}"})
            continue
        row["family"] = adapter.family
        row["insertion points"] = ", ".join(_points(adapter))
        row["encoder signals"] = adapter.towers()
        row["refused"] = ", ".join((*COMMON_REFUSALS, *adapter.refuses))
        rows.append(row)
    return rows


def _points(adapter: type[ModelAdapter]) -> Iterator[str]:
    """The insertion points that a family serves; a broken one is what `pruneopt plugins` is for."""
    for name in registry("insertions"):
        with suppress(RegistryError):
            insertion = cast("type[Insertion]", registry("insertions").get(name))
            if cast("type[Site]", registry("sites").get(insertion.site)).serves(adapter):
                yield name
