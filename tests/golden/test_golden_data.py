"""The golden data kept beside the tests: every method that is compared, within the size, as chosen."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from choose import CHOICE, LIMIT, chosen, main, write
from golden_files import DATA, GoldenCase, golden_paths

TESTS = Path(__file__).parents[1]


def test_every_compared_method_has_cases_here() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*golden*.py"))
    compared = set(re.findall(r'mark\.golden\("(\w+)"\)', source))
    assert len(compared) == 17
    assert compared == set(CHOICE) == {path.name for path in DATA.iterdir() if path.is_dir()}
    assert {m: {p.stem for p in golden_paths(DATA / m)} for m in CHOICE} == {
        m: set(CHOICE[m]) for m in CHOICE
    }
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| (\w+) \|", readme, flags=re.M)) - {"folder"} == compared


def test_the_choice_is_small_and_holds_hard_cases() -> None:
    assert sum(path.stat().st_size for path in DATA.rglob("*.npz")) <= LIMIT
    cases = [GoldenCase.load(path) for method in CHOICE for path in golden_paths(DATA / method)]
    flags = [not case[key] for case in cases for key in case.arrays if key.startswith("stable.")]
    assert sum(flags) > 50, "too few outputs that ties or rounding decide"
    for kind in ("clustered", "neardup", "exactdup", "noise"):
        assert sum(kind in case.name for case in cases) > 3, kind


def test_a_choice_of_variants_leaves_the_other_arrays_untouched(tmp_path: Path) -> None:
    path = tmp_path / "full.npz"
    arrays = {
        "param_json": np.array('{"variants": {"k0.2": {}, "k0.22": {}}}'),
        "in.x": np.arange(3, dtype=np.float16),
        "out.k0.2.idx": np.array([1]),
        "out.k0.22.idx": np.array([2]),
        "stable.k0.22.idx": np.array(True),
    }
    write(path, arrays)
    kept = chosen(path, ("k0.2",))
    assert sorted(kept) == ["in.x", "out.k0.2.idx", "param_json"]
    assert '"k0.22"' not in str(kept["param_json"])
    np.testing.assert_array_equal(kept["in.x"], arrays["in.x"])
    with pytest.raises(KeyError):
        chosen(path, ("k0.3",))


def test_choosing_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its own output: the choice is a fixed point, array by array."""
    monkeypatch.setattr("choose.DATA", tmp_path)
    assert main(DATA) == 0
    for method in CHOICE:
        for path in golden_paths(DATA / method):
            old, new = GoldenCase.load(path).arrays, GoldenCase.load(tmp_path / method / path.name).arrays
            assert list(old) == list(new), path
            for name in old:
                assert old[name].dtype == new[name].dtype
                np.testing.assert_array_equal(new[name], old[name], err_msg=f"{path} {name}")
