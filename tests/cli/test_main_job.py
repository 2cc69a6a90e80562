"""The demonstration as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pruneopt.demo.assets import sample
from pruneopt.show.images import open_image


def pruneopt(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pruneopt.cli.main", *words]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


@pytest.mark.slow
def test_the_demo_shows_everything_it_promises(tmp_path: Path) -> None:
    done = pruneopt("demo", "--questions", "16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    for words in (
        "dense",
        "pruned",
        "KV cache",
        "multiply-adds",
        "prefill, ms",
        "selection took",
        "gap",
        "bound",
    ):
        assert words in out, words
    for words in ("random choice", "over 5 seeds", "uniform grid", "16 questions"):
        assert words in out, words
    saved = re.search(r"picture of the kept tokens: (\S+\.png)", out)
    assert saved is not None
    assert open_image(tmp_path / saved[1]).size[0] > 300


@pytest.mark.slow
def test_run_answers_about_any_picture_with_overrides(tmp_path: Path) -> None:
    question = sample()
    words = ["run", "--model", "demo", "--image", str(question.image), "--prompt", question.question]
    done = pruneopt(*words, "--method", "topv/dual", "budget.keep=0.25", "steps=[]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "topv/dual" in done.stdout and "25.0%" in done.stdout and "emd optimal" in done.stdout


@pytest.mark.slow
def test_a_folder_path_serves_as_well_as_the_name_demo(tmp_path: Path) -> None:
    from pruneopt.demo.assets import model_path

    question = sample()
    words = ["run", "--image", str(question.image), "--prompt", question.question, "budget.keep=0.25"]
    by_path = pruneopt(*words, "--model", str(model_path()), cwd=tmp_path)
    assert by_path.returncode == 0, by_path.stderr
    assert "visual tokens at the end" in by_path.stdout
