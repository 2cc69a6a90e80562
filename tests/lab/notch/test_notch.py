"""Does a smaller gap help: what is asked, one small run, and a table of planted runs."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from pruneopt.demo.assets import load_questions
from pruneopt.errors import InputError
from pruneopt.lab.notch.run import LEFT_OUT, METHODS, Plan, across
from pruneopt.lab.runs import read_run, run_folders, write_run
from pruneopt.lab.study import study
from pruneopt.spec.load import list_methods, load_spec


def test_every_method_with_a_heuristic_rule_is_asked_or_left_out_with_a_reason() -> None:
    asked = {str(method.source) for method in METHODS}
    for name in list_methods():
        stages = load_spec(name).stages
        # without pairs sorting is exact; transport is solved exactly, in closed form, or not for its optimum
        open_ = any(s.problem.pairwise for s in stages)
        assert open_ == (name in asked or name in LEFT_OUT), name
    assert not asked & LEFT_OUT.keys() and all(LEFT_OUT.values())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.label)
def test_only_the_solver_differs_between_the_two_sides(method) -> None:
    rule, search = (method.spec(36, solver).to_spec() for solver in ("", method.better))
    stage = method.stage
    for spec in (rule, search):
        holder = spec if stage is None or "stages" not in spec else spec["stages"][stage]
        holder.pop("solver")
    assert rule == search


def test_questions_come_from_as_many_pictures_and_types_as_there_are() -> None:
    questions = load_questions()
    asked = across(questions, 200)
    pictures = Counter(question.image for question in asked)
    assert len(pictures) == 160 and max(pictures.values()) == 2
    assert set(Counter(question.type for question in asked).values()) == {20}
    assert len({question.id for question in asked}) == 200
    assert sorted(q.id for q in across(questions, 10_000)) == sorted(q.id for q in questions)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"methods": ("nosuch",)}, "unknown methods nosuch; known: cdpruner"),
        ({"questions": 0}, "must be at least 1"),
        ({"budgets": ()}, "must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Plan(**settings)


def test_a_small_run_is_packed_resumed_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruneopt.lab.notch.run._controls", lambda keep: iter(()))
    plan = Plan(questions=4, budgets=(16,), methods=("divprune", "todre/diversity"), bounded=2, batch=2)
    console = Console(file=io.StringIO())
    notch = study("notch")
    notch.measure(plan, tmp_path, console=console)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    notch.measure(plan, tmp_path, console=console)  # nothing is left to do
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    runs = [read_run(folder) for folder in run_folders(tmp_path)]
    by_side = {(run.record["label"], run.record["side"]): run.samples for run in runs}
    assert len(by_side) == 5
    for name in ("divprune", "todre/diversity"):
        rule, search = by_side[name, "greedy"], by_side[name, "better"]
        assert [s["kept"] for s in rule + search] == [16] * 8
        assert all(b["value"] >= a["value"] - 1e-9 for a, b in zip(rule, search, strict=True))
        assert [s["bound"] is not None for s in rule] == [True, True, False, False]
        assert all(s["bound"] >= s["value"] for s in rule[:2])
    dense = by_side["dense", "dense"]
    assert all(s["agree"] == 1 and s["kl"] < 1e-6 for s in dense)
    text = notch.report(tmp_path, console=console)
    assert "| divprune | 16 |" in text and (tmp_path / "notch.png").stat().st_size > 10_000


def plant(folder: Path, side: str, *, right: list[int], kl: float, value: float, **record) -> None:
    samples = [
        {
            "id": f"q{i}", "picture": f"p{i}", "type": "t", "said": "", "right": bool(r), "kept": 16,
            "kl": kl, "kl_first": kl, "agree": 1.0 - kl, "value": value, "bound": 10.0, "magnitude": 1.0,
        }
        for i, r in enumerate(right)
    ]  # fmt: skip
    base = {"label": "divprune", "side": side, "keep": 16, "kind": "max_min", "question_hash": "x"}
    write_run(
        folder / f"{side}-{len(list(folder.iterdir()))}", "", record={**base, **record}, samples=samples
    )


def test_a_planted_gain_stands_and_says_so(tmp_path: Path) -> None:
    plant(tmp_path, "dense", right=[1] * 40, kl=0.0, value=0.0, label="dense", keep=0, kind=None)
    plant(tmp_path, "greedy", right=[0] * 40, kl=0.5, value=8.0)
    plant(tmp_path, "better", right=[1] * 20 + [0] * 20, kl=0.25, value=9.5)
    plant(
        tmp_path, "control", right=[1] * 10 + [0] * 30, kl=0.75, value=0.0, label="random seed 0", kind=None
    )
    plant(
        tmp_path, "control", right=[1] * 20 + [0] * 20, kl=0.25, value=0.0, label="random seed 1", kind=None
    )
    rows, words, pooled, controls, _ = study("notch").tables(tmp_path)
    cells = rows.rows[0]
    assert cells[:5] == ["divprune", "16", "20.00%", "5.00%", "0.0"]
    assert cells[5].startswith("+50.0 [+3") and cells[6] == "0.500"
    assert cells[7:] == ["-0.250 [-0.250, -0.250]", "+25.0 [+25.0, +25.0]"]
    assert "right answers: divprune 16 (better)" in words and "KL: divprune 16 (better)" in words
    assert "40 questions about 40 pictures" in words
    assert pooled.rows == [["16", "1", *cells[5:6], *cells[7:]]]
    assert controls.rows == [["dense", "all", "100.0", "0"], ["random", "16", "37.5 +- 17.7", "0.500"]]


def test_mixed_question_sets_are_refused_and_half_a_pair_is_left_out(tmp_path: Path) -> None:
    plant(tmp_path, "dense", right=[1], kl=0.0, value=0.0, label="dense", keep=0, kind=None)
    plant(tmp_path, "greedy", right=[1], kl=0.0, value=1.0)
    assert study("notch").holds(tmp_path) is False
    plant(tmp_path, "better", right=[1], kl=0.0, value=1.0, question_hash="y")
    with pytest.raises(InputError, match="mixes question sets"):
        study("notch").tables(tmp_path)
