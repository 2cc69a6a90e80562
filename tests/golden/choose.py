"""Choose the golden cases that live beside the tests: `python tests/golden/choose.py FOLDER`.

FOLDER holds the full golden data, one folder a method.  The choice keeps every method that a test compares
and is made by difficulty: clusters on a grid as the ordinary case; near duplicates, exact duplicates and
white noise; outputs flagged unstable; odd token counts, several crops and padded crops; several keep ratios.
A case too large to keep whole is saved with some of its variants.  No array is changed.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "data"
LIMIT = 4_000_000  # bytes of all files together

ALL: tuple[str, ...] = ()
CHOICE: dict[str, dict[str, tuple[str, ...]]] = {
    "aim": {
        "importance0_L90_H2": ALL,
        "importance1_L170_H4": ALL,
        "merge_00_N64_D32_clustered": ALL,
        "merge_01_N64_D32_neardup": ALL,
        "merge_03_N144_D64_noise": ("eighth", "half"),
        "merge_05_N576_D128_neardup": ("half",),
        "merge_06_N64_D48_exactdup": ALL,
        "prune0_N64": ALL,
        "prune1_N196": ALL,
        "prune2_N576": ALL,
    },
    "cdpruner": {
        "00_N64_D64_clustered": ALL,
        "01_N64_D64_neardup": ALL,
        "03_N144_D96_noise": ALL,
        "rankdeficient_N144_D24": ALL,
    },
    "dart": {
        "00_N64_D32_clustered": ALL,
        "01_N64_D32_neardup": ALL,
        "03_N144_D64_noise": ALL,
        "06_N64_D48_exactdup": ALL,
    },
    "divprune": {
        "00_N64_D32_clustered": ALL,
        "01_N64_D32_neardup": ALL,
        "04_N576_D64_clustered": ALL,
        "05_N576_D128_neardup": ALL,
        "06_N64_D48_exactdup": ALL,
        "prompt0_N64_D32": ALL,
    },
    "fastervlm": {
        "00_N64_D32_clustered": ALL,
        "02_N144_D64_clustered": ALL,
        "05_N576_D128_neardup": ALL,
        "06_N64_D48_exactdup": ALL,
    },
    "fastv": {"00_N64_attn": ALL, "01_N144_attn": ALL, "03_N576_attn": ALL},
    "globalcom2": {
        "00_side8_grid2x2": ALL,
        "02_side12_grid1x3": ("k0.11", "k0.25_t1", "k0.5"),
        "05_side12_grid2x2": ("k0.05", "k0.25_t1"),
    },
    "ot_pot": {
        "grid10x14_to_10x14_p1": ALL,
        "grid8x8_to_4x4_p2": ALL,
        "random_20x20": ALL,
        "random_64x16": ALL,
        "topvlike_64x14_clustered": ALL,
        "topvlike_144x72_neardup": ALL,
    },
    "prumerge": {
        "00_N64_D32_clustered": ALL,
        "02_N144_D48_noise": ALL,
        "04_N576_D32_neardup": ALL,
    },
    "pyramiddrop": {
        "00_N64_D32_clustered": ALL,
        "02_N144_D64_noise": ("default_pyramid", "k0.11"),
    },
    "saint": {
        "00_N64_D32_clustered": ALL,
        "01_N64_D32_neardup": ALL,
        "03_N144_D32_noise": ALL,
        "04_N576_D48_clustered": ("clip_default", "llm_t0.82", "vit_t0.7"),
    },
    "sparsevlm": {
        "00_N64_D32_clustered": ALL,
        "01_N64_D32_neardup": ALL,
        "threestage_N144": ALL,
        "v2_N64_H16": ALL,
    },
    "tome": {
        "00_N64_D32_clustered": ("half", "kth4", "r0.22_second"),
        "01_N65_D32_clustered": ("half", "r0.22_second"),
        "02_N144_D32_neardup": ("half", "kth2", "r0.22_second"),
        "05_N64_D24_exactdup": ALL,
    },
    "transprune": {"00_N64_D32_clustered": ALL},
    "vflowopt": {
        "entropy0_4x4": ALL,
        "entropy1_6x8": ALL,
        "importance0_N64": ALL,
        "merge0_local10x12": ALL,
        "merge2_local20x40": ("m2.0_r0.5", "m6.5_r0.11"),
    },
    "visionzip": {
        "00_N64_D32_clustered": ALL,
        "01_N64_D32_neardup": ALL,
        "03_N144_D64_noise": ALL,
        "04_N576_D64_clustered": ("k0.05", "k0.22"),
    },
    "vispruner": {
        "00_N64_D32_clustered": ALL,
        "01_N64_D32_neardup": ALL,
        "03_N144_D64_noise": ALL,
        "04_N576_D64_clustered": ("k0.05", "k0.11"),
    },
}


def chosen(path: Path, variants: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Arrays of one case, with the outputs of some variants only; KeyError for one it does not have."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if not variants:
        return arrays
    param = json.loads(str(arrays["param_json"]))
    every = list(param["variants"])
    param["variants"] = {name: param["variants"][name] for name in variants}
    arrays["param_json"] = np.array(json.dumps(param))
    gone = tuple(
        f"{kind}.{name}." for name in every if name not in variants for kind in ("out", "stable", "f64diff")
    )
    return {name: array for name, array in arrays.items() if not name.startswith(gone)}


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A compressed `.npz` without the date of the day, so that a second run leaves the repository alone."""
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            file.writestr(
                zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9
            )


def main(source: Path) -> int:
    """Write the chosen cases; 1 when they are larger than `LIMIT`."""
    for method, cases in CHOICE.items():
        folder = DATA / method
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.npz"):
            old.unlink()
        for name, variants in cases.items():
            write(folder / f"{name}.npz", chosen(source / method / f"{name}.npz", variants))
        size = sum(path.stat().st_size for path in folder.glob("*.npz"))
        print(f"{method:12} {len(cases):3} cases {size / 1000:7.0f} kB")
    total = sum(path.stat().st_size for path in DATA.rglob("*.npz"))
    print(f"{'all':12} {sum(map(len, CHOICE.values())):3} cases {total / 1000:7.0f} kB")
    return int(total > LIMIT)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
