"""Bad input to `run`: one line that names the thing and the cure, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pruneopt.cli.main import main

ASK = ["--prompt", "what is in the red frame ?"]


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return int(left.value.code or 0)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (64, 64), (90, 120, 30)).save(tmp_path / "ok.png")
    return str(tmp_path / "ok.png")


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model that has no visual tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("text")
    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2)  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert call("run", *words) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    return lines[0]


def test_pictures_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    for name, words in (
        ("none.png", "does not exist"),
        ("empty.png", "empty file"),
        ("text.png", "PNG, JPEG"),
    ):
        assert words in refused(capsys, "--model", "demo", "--image", str(tmp_path / name), *ASK)


def test_models_that_cannot_be_used(
    picture: str, text_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, "--model", text_model, "--image", picture, *ASK)
    assert "'llama'" in message and "supported types" in message and "llava" in message
    message = refused(capsys, "--model", str(Path(text_model) / "nothing"), "--image", picture, *ASK)
    assert "cannot be loaded" in message and "config.json" in message
    assert "did you mean 'float32'" in refused(
        capsys, "--model", "demo", "--image", picture, "--dtype", "flaot32", *ASK
    )


@pytest.mark.slow
def test_prompts_and_layers_that_cannot_be_used(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "--model", "demo", "--image", picture, *ASK, "insertion.layer=99")
    assert "insertion.layer=99" in message and "decoder layers" in message
    message = refused(capsys, "--model", "demo", "--image", picture, "--prompt", " ")
    assert "prompt is empty" in message
    message = refused(capsys, "--model", "demo", "--image", picture, *ASK, "budget.keep=100000")
    assert "budget.keep=100000" in message


def inventory(model: torch.nn.Module) -> list[tuple[str, list[int], list[int], list[str]]]:
    return [
        (name, list(m._forward_hooks), list(m._forward_pre_hooks), sorted(m.__dict__))
        for name, m in model.named_modules()
    ]


@pytest.mark.slow
def test_bad_tensors_leave_the_model_untouched() -> None:
    import pruneopt
    from pruneopt.demo.assets import load_inputs, load_model, load_questions
    from pruneopt.errors import InputError, PruneoptError, SignalError

    model, processor = load_model()
    inputs = load_inputs(load_questions()[:1], processor)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        truth = model(**inputs).logits  # transformers installs hooks of its own on the first call
        hooks = inventory(model)
        broken = {**inputs, "pixel_values": inputs["pixel_values"] * float("nan")}
        with pytest.raises(SignalError, match="NaN or infinity"), pruneopt.prune(model, "topv"):
            model(**broken)
        text = {k: v for k, v in inputs.items() if k != "pixel_values"}
        text["input_ids"] = text["input_ids"].masked_fill(
            text["input_ids"] == model.config.image_token_id, int(text["input_ids"][0, -1])
        )
        with pytest.raises(InputError), pruneopt.prune(model, "topv"):
            model(**text)
        with (
            pytest.raises(PruneoptError, match="99"),
            pruneopt.prune(model, pruneopt.load_spec("topv", ["insertion.layer=99"])),
        ):
            model(**inputs)
        after = model(**inputs).logits
    assert torch.equal(truth, after)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert inventory(model) == hooks
