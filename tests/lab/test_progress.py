"""Progress without a terminal: lines now and then, and at once where there is something to say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from rich.console import Console

from pruneopt.lab import progress as module
from pruneopt.lab.progress import progress


def test_lines_every_ten_seconds_and_words_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with progress(Console(force_terminal=False), "cells", total=9) as step:
        for seconds, words in ((1, ""), (9, ""), (11, ""), (12, "[x] done"), (21, "")):
            now[0] = seconds
            step(2 if seconds == 1 else 1, words)
    assert capsys.readouterr().out.splitlines() == ["cells: 4 of 9", "cells: 5 of 9 [x] done"]
