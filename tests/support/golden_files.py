"""Golden data: inputs with what released code computes on them; see `golden/data/README.md`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[1] / "golden" / "data"


@dataclass(frozen=True)
class GoldenCase:
    """One `.npz`: `inputs` (floats as float64), `outputs` and flags under their own keys, parameters."""

    name: str
    arrays: dict[str, np.ndarray]

    @classmethod
    def load(cls, path: Path) -> GoldenCase:
        with np.load(path, allow_pickle=False) as file:
            return cls(path.stem, {k: file[k] for k in file.files})

    @property
    def param(self) -> dict[str, Any]:
        return json.loads(str(self.arrays["param_json"])) if "param_json" in self.arrays else {}

    def __getitem__(self, key: str) -> np.ndarray:
        value = self.arrays[key]
        return value.astype(np.float64) if value.dtype.kind == "f" else value

    def __contains__(self, key: str) -> bool:
        return key in self.arrays


def golden_paths(folder: Path) -> list[Path]:
    """The cases of one method, in order of their names."""
    return sorted(folder.glob("*.npz"))
