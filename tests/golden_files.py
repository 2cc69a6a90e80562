"""Golden data: inputs with what released code computes on them.  See `--golden`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@dataclass(frozen=True)
class GoldenCase:
    """One `.npz`: `inputs` (floats as float64), `outputs` and flags under their own keys, parameters."""

    name: str
    arrays: dict[str, np.ndarray]

    @property
    def param(self) -> dict[str, Any]:
        return json.loads(str(self.arrays["param_json"])) if "param_json" in self.arrays else {}

    def __getitem__(self, key: str) -> np.ndarray:
        value = self.arrays[key]
        return value.astype(np.float64) if value.dtype.kind == "f" else value

    def __contains__(self, key: str) -> bool:
        return key in self.arrays


def golden_cases(config: pytest.Config, method: str) -> list[GoldenCase]:
    """All cases of one folder; skips the calling test, visibly, when the folder is absent."""
    folder = Path(config.getoption("--golden")) / method
    if not folder.is_dir():
        pytest.skip(f"no golden data in {folder}; give --golden")
    cases = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path, allow_pickle=False) as file:
            cases.append(GoldenCase(path.stem, {k: file[k] for k in file.files}))
    assert cases, f"{folder} holds no .npz"
    return cases
