"""What commands do with what they are given, and the exit codes of failures."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import pruneopt
from pruneopt.cli.main import main
from pruneopt.demo.assets import load_questions, sample


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return int(left.value.code or 0)


def test_the_version_is_one_fact(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out == f"pruneopt {pruneopt.__version__}\n"
    assert version("pruneopt") == pruneopt.__version__


def test_the_package_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "pruneopt", "show", "nosuch"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown method 'nosuch'")


def test_groups_without_a_command_show_their_help(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["bench"], ["records"]):
        assert call(*words) == 2
        assert "Usage" in capsys.readouterr().out


def test_an_interrupt_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pruneopt.lab.targets.run.measure", interrupted)
    assert call("bench", "targets") == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("values", "code"), [((1.0, 1.5), 0), ((1.0, 2.5), 1), ((2.5, 1.0), 1)])
def test_a_missed_target_is_exit_code_1(
    values: tuple[float, ...], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pruneopt.lab.targets import run as targets

    found = [targets.Target("t", value, "at most", 2.0, "x") for value in values]
    monkeypatch.setattr(targets, "sinkhorn_targets", lambda: found[:1])
    monkeypatch.setattr(targets, "emd_targets", lambda: found[1:])
    for others in ("sinkhorn_rivals", "exact_rivals", "subset_targets", "numpy_targets"):
        monkeypatch.setattr(targets, others, list)
    threads = torch.get_num_threads()
    assert call("bench", "targets", "--out", str(tmp_path), "--threads", str(threads)) == code
    record = json.loads((tmp_path / "targets.json").read_text())
    assert [t["met"] for t in record["targets"]] == [value <= 2 for value in values]


CROSS = ("cross", "--costs", "cosine_distance", "--solvers", "farthest_point", "--insertions", "post_encoder")


def test_cross_is_exit_code_1_when_a_cell_fails_or_misses_its_budget(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pruneopt.errors import ProblemError
    from pruneopt.parts.solvers.farthest_point import FarthestPoint

    assert call(*CROSS) == 0
    assert "1 legal" in capsys.readouterr().out
    solve = FarthestPoint.solve

    def one_short(self: Any, problem: Any) -> Any:
        solution = solve(self, problem)
        for row in solution.keep:
            row[row.nonzero()[0]] = False
        return solution

    def fails(self: Any, problem: Any) -> Any:
        raise ProblemError("planted failure")

    for planted, words in ((one_short, "asked for"), (fails, "planted failure")):
        monkeypatch.setattr(FarthestPoint, "solve", planted)
        assert call(*CROSS) == 1
        out = capsys.readouterr().out
        assert words in out and "1 run, 1 off budget" in out
    assert call(*CROSS, "--no-run") == 0, "nothing ran, so nothing failed"


def test_the_mask_of_a_signals_file_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of 12 tokens is 6; half of the 4 and 8 that are real is 2 and 4."""
    tokens = torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(12) < torch.tensor([[4], [8]])
    tokens[~mask] = 50.0
    save_file({"features": tokens, "mask": mask}, tmp_path / "masked.st")
    save_file({"features": tokens}, tmp_path / "plain.st")
    for name, kept in (("masked.st", "[2, 4]"), ("plain.st", "[6, 6]")):
        assert call(*CROSS, "--keep", "0.5", "--signals", str(tmp_path / name)) == 0
        assert kept in capsys.readouterr().out


@pytest.mark.slow
def test_prefill_runs_the_overrides_methods_budgets_and_batches_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / "prefill.json"
    overrides = ["insertion.layer=3", "positions=compact"]
    words = ["--preset", "tiny", "--method", "fastv,topv", "--keep", "0.5,8", "--batch", "1,2",
             "--repeats", "1", "--decode", "0", "--dtype", "bfloat16", "--attention", "eager", "--threads",
             str(torch.get_num_threads()), "--out", str(path)]  # fmt: skip
    assert call("bench", "prefill", *overrides, *words) == 0, capsys.readouterr().err
    record = json.loads(path.read_text())
    specs = [
        pruneopt.load_spec(method, [f"budget.keep={keep}", *overrides])
        for method in ("fastv", "topv")
        for keep in (0.5, 8)
    ]
    wanted = [(batch, spec.hash) for batch in (1, 2) for spec in specs]
    assert [(row["batch"], row["spec_hash"]) for row in record["rows"]] == wanted
    assert [row["kept"] for row in record["rows"][:2]] == [32, 8]
    assert record["dtype"] == "bfloat16" and record["attention"] == "eager"


def test_prefill_checks_the_last_spec_before_the_first_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("pruneopt.lab.prefill.run.measure_spec", work)
    threads = str(torch.get_num_threads())
    words = ["bench", "prefill", "insertion.layer=4", "--preset", "tiny", "--threads", threads]
    assert call(*words, "--method", "fastv") == 2
    assert "insertion.layer=4" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["sweep", "demo"])
def test_questions_are_spread_over_all_types(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Stop(Exception):
        pass

    def stand_in(*given: Any, questions: Any = None, **_: Any) -> None:
        asked.extend(questions or given[0].questions)
        raise Stop

    by_type = sorted(load_questions(), key=lambda question: question.type)
    monkeypatch.setattr("pruneopt.demo.assets.load_questions", lambda: by_type)
    monkeypatch.setattr("pruneopt.cli.options.Machine.load", lambda *_, **__: (SimpleNamespace(), None))
    if command == "sweep":
        monkeypatch.setattr("pruneopt.lab.accuracy.run.run_sweep", stand_in)
        (tmp_path / "sweep.yaml").write_text("entries: [{label: dense, method: dense}]")
        words = ["sweep", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "runs")]
    else:
        from pruneopt.cli import demo

        monkeypatch.setattr(demo, "_side_by_side", lambda *_, **__: None)
        monkeypatch.setattr("pruneopt.lab.accuracy.answer.answer", stand_in)
        words = ["demo", "--out", str(tmp_path)]
    with pytest.raises(Stop):
        main([*words, "--questions", "20"])
    types = {question.type for question in by_type}
    counts = [sum(question.type == kind for question in asked) for kind in types]
    assert len(asked) == 20 and max(counts) - min(counts) <= 1, "the first questions were taken"


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter


def test_side_by_side_times_are_medians_of_warm_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass of either side is planted to take 100 s, later ones 1 s (dense) and 2 s (pruned)."""
    from pruneopt.models import timing
    from pruneopt.show.compare import compare

    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    model, inputs, processor = demo_inputs()
    passes: dict[bool, int] = {True: 0, False: 0}
    order: list[bool] = []

    def slow(*_: object) -> None:
        pruned = "_pruneopt_handle" in model.model.__dict__ or "_pruneopt_handle" in model.__dict__
        passes[pruned] += 1
        order.append(pruned)
        odd = 30.0 if passes[pruned] == 3 else 0.0  # one hiccup among three timed passes
        clock.now += 100.0 if passes[pruned] == 1 else (2.0 if pruned else 1.0) + odd

    model.model.vision_tower.register_forward_hook(slow, prepend=True)
    found = compare(
        model, processor, inputs=inputs, spec=pruneopt.load_spec("fastv"), max_new_tokens=2, repeats=3
    )
    assert found.dense.encoder == 1.0 and found.pruned.encoder == 2.0
    assert order == [False, True] * 4, "the sides do not take turns"


def demo_inputs() -> tuple[Any, Any, Any]:
    from pruneopt.demo.assets import load_inputs, load_model

    model, processor = load_model()
    return model, load_inputs([sample()], processor), processor


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "demo", "sweep", "cross", "bench prefill"])
def test_device_dtype_and_attention_reach_the_model(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command that runs a model loads it as it was told; the model says what it is."""
    from pruneopt.cli.options import Machine

    class Stop(Exception):
        pass

    load = Machine.load

    def watched(self: Machine, source: str, **rest: Any) -> Any:
        model, _ = load(self, source, **rest)
        raise Stop(f"{model.device} {model.dtype} {model.config._attn_implementation}")

    monkeypatch.setattr(Machine, "load", watched)
    # the one device beside the CPU that every machine has; commands refuse it, because it computes nothing
    monkeypatch.setattr("pruneopt.models.load.device_of", torch.device)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text("entries: [{label: dense, method: dense}]")
    more = {
        "run": ["--model", "demo", "--image", str(sample().image), "--prompt", "what ?"],
        "sweep": ["sweep.yaml"],
        "cross": [*CROSS[1:], "--model", "demo"],
        "bench prefill": ["--model", "demo", "--threads", str(torch.get_num_threads())],
    }.get(command, [])
    with pytest.raises(Stop, match=r"meta torch\.bfloat16 eager"):
        main([*command.split(), *more, "--device", "meta", "--dtype", "bfloat16", "--attention", "eager"])


def test_devices_that_are_there_and_that_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from pruneopt.errors import ModelError
    from pruneopt.models.load import device_of

    assert device_of("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("cuda:1") == torch.device("cuda:1") and device_of("cuda") == torch.device("cuda")
    with pytest.raises(ModelError, match=r"'cuda:2' on this machine; it has: cpu, cuda:0, cuda:1"):
        device_of("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ModelError, match="no device 'cuda'"):
        device_of("cuda")


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [["budget.keep=1"], ["positions=compact"], ["budget.keep=1.0", "steps=[]"]]
)
def test_run_has_a_picture_whatever_is_kept(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "--model", "demo", "--image", str(sample().image), "--prompt", "what ?"]
    assert call(*words, "--max-new-tokens", "1", "--out", "deep/out", *overrides) == 0, (
        capsys.readouterr().err
    )
    assert len(list((tmp_path / "deep" / "out").glob("*.png"))) == 1
