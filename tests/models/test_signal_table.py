"""A signal is one row of the table and one function, and nothing else is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import tiny_models
from signal_values import odd
from test_families import FAMILIES
from test_model_signals import collect
from tiny_models import llava_scenarios
from torch import Tensor

import pruneopt
from pruneopt.errors import ModelError
from pruneopt.lab.catalogue_pages import signals_page
from pruneopt.models.base import adapter_for
from pruneopt.models.capture import decoder as decoder_module
from pruneopt.models.capture.decoder import CAPTURES, DECODER_SIGNALS, DecoderCapture, Layer
from pruneopt.models.capture.encoder import ENCODER_SIGNALS, Encoder
from pruneopt.models.capture.encoder_signals import EncoderCapture
from pruneopt.models.capture.stream import STREAM_SIGNALS
from pruneopt.models.families.qwen2_vl import QwenEncoder
from pruneopt.models.prompt import read_prompt
from pruneopt.models.store import SignalStore
from pruneopt.signals import SIGNALS, Place, SignalInfo, signals_at
from pruneopt.testing.cases import make_signals
from pruneopt.testing.insertion import ENTRY, LAYER
from pruneopt.testing.masking import forward

TABLES = {
    Place.ENTRY: STREAM_SIGNALS,
    Place.ENCODER: ENCODER_SIGNALS,
    Place.CROP: ENCODER_SIGNALS,
    Place.DECODER: DECODER_SIGNALS,
}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_models.llava("sdpa")


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    return llava_scenarios()["left"]


def known_captures(info: SignalInfo) -> set[str]:
    if info.place is Place.DECODER:
        return {*CAPTURES, "in", "out"}
    return set(Encoder.captures) if info.place in (Place.ENCODER, Place.CROP) else {"prompt", "start", "now"}


def apart(given: set[str]) -> dict[str, str]:
    """What is wrong between rows and functions, by signal; `given`: those that a prompt brings by itself."""
    wrong = {}
    for name, info in SIGNALS.items():
        table: Mapping[str, Any] = TABLES.get(info.place, STREAM_SIGNALS)
        if bool(info.made_from) != (name in table or name in given):
            wrong[name] = (
                "no function" if info.made_from else "a function, but no capture that it is made from"
            )
        elif unknown := set(info.made_from) - known_captures(info):
            wrong[name] = f"made from {unknown}, which nothing captures"
    for name in given.union(*TABLES.values()) - set(SIGNALS):
        wrong[name] = "no row"
    return wrong


@pytest.fixture(scope="module")
def brought(model: Any, inputs: dict[str, Any]) -> set[str]:
    return {name for name, _ in SignalStore(read_prompt(adapter_for(model), inputs))}


def test_every_row_has_a_function_and_every_function_a_row(brought: set[str]) -> None:
    assert apart(brought) == {}
    assert brought == {name for name, info in SIGNALS.items() if info.made_from == ("prompt",)}


def test_a_row_without_function_and_a_function_without_row_are_found(
    brought: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIGNALS, "new", SignalInfo("[B,N]", "x", place=Place.DECODER, made_from=("out",)))
    assert apart(brought) == {"new": "no function"}
    monkeypatch.setitem(DECODER_SIGNALS, "new", lambda layer: layer.visual("out")[:, :, 0])
    assert apart(brought) == {}
    monkeypatch.delitem(SIGNALS, "new")
    assert apart(brought) == {"new": "no row"}
    monkeypatch.setitem(SIGNALS, "new", SignalInfo("[B,N]", "x", place=Place.DECODER))
    assert "no capture" in apart(brought)["new"]
    monkeypatch.setitem(SIGNALS, "new", SignalInfo("[B,N]", "x", place=Place.DECODER, made_from=("lungs",)))
    assert "lungs" in apart(brought)["new"]


class Reads(dict[Any, Any]):
    """A dictionary that remembers what was looked up."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.seen: set[Any] = set()

    def __getitem__(self, key: Any) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize("name", sorted(signals_at(Place.DECODER)))
def test_a_decoder_signal_reads_the_captures_of_its_row(
    name: str, model: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Reads] = []

    def layer(adapter: Any, index: int, view: Any, raw: Mapping[str, Tensor]) -> Layer:
        reads.append(Reads(raw))
        return Layer(adapter, index, view, reads[-1])

    monkeypatch.setattr(decoder_module, "Layer", layer)
    info = SIGNALS[name]
    found = collect(model, inputs, LAYER, name, "xy")
    assert found[name].dim() == len(info.axes) and odd(name, found[name], found["mask"]) == ""
    assert [read.seen for read in reads] == [set(info.made_from)]


@pytest.mark.parametrize("name", ENCODER_SIGNALS)
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_an_encoder_signal_reads_the_captures_of_its_row(
    name: str, family: str, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family == "llava":
        other, batch = model, llava_scenarios()["single"]
    else:
        build, make = FAMILIES[family]
        other, batch = build("sdpa"), make(build)["single"]
    if name not in adapter_for(other).encoder_signals:
        assert family == "qwen2_vl" and SIGNALS[name].place is Place.CROP
        return
    made: list[Encoder] = []
    real = EncoderCapture.__init__

    def init(self: EncoderCapture, *given: Any) -> None:
        real(self, *given)
        self.encoder.raw = Reads()
        made.append(self.encoder)

    monkeypatch.setattr(EncoderCapture, "__init__", init)
    found = collect(other, batch, ENTRY, name, "xy")
    assert found[name].dim() == len(SIGNALS[name].axes) and odd(name, found[name], found["mask"]) == ""
    stands_for = QwenEncoder.stands_for if family == "qwen2_vl" else {}
    allowed = {slot for capture in SIGNALS[name].made_from for slot in stands_for.get(capture, (capture,))}
    read = {capture for capture, _ in made[0].raw.seen}
    assert read <= allowed and (read == allowed or family == "qwen2_vl")


def test_what_is_known_before_a_layer_runs_is_what_its_row_says(model: Any, inputs: dict[str, Any]) -> None:
    names = signals_at(Place.GEOMETRY, Place.ENTRY) - {"importance"}
    found = collect(model, inputs, LAYER, *names)
    assert {name: odd(name, found[name], found["mask"]) for name in names} == dict.fromkeys(names, "")


def test_a_new_signal_is_a_row_and_a_function(
    model: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest entry of what leaves a layer: read at a cut, drawn at random, and on the page."""
    row = SignalInfo("[B,N,1]", "largest entry of hidden_out", place=Place.DECODER, made_from=("out",))
    monkeypatch.setitem(SIGNALS, "peak", row)
    monkeypatch.setitem(DECODER_SIGNALS, "peak", lambda layer: layer.visual("out").amax(2, keepdim=True))
    spec = {
        **LAYER,
        "problem": {"kind": "top_k", "scores": {"peak": {"kind": "token_norm", "signal": "peak@0"}}},
        "budget": {"keep": 5, "scope": "sample"},
    }
    with pruneopt.prune(model, spec) as run:
        forward(model, inputs)
        kept, first = run.kept_visual[2], run.last.prompt.place
    hidden = forward(model, inputs, output_hidden_states=True).hidden_states[1]
    for row_number, columns in zip(run.last.prompt.rows, first, strict=True):
        real = columns[columns >= 0]
        best = hidden[row_number, real].amax(1).abs().topk(5).indices
        assert kept[row_number] == sorted(real[best].tolist())
    assert make_signals({"peak@0"}, tokens=7)["peak@0"].shape == (2, 7, 1)
    assert "| `peak` | `[B,N,1]` | largest entry of hidden_out | out |" in signals_page()


def test_a_layer_is_named_only_for_signals_that_have_one(model: Any) -> None:
    def spec(signal: str) -> dict[str, Any]:
        return {
            **LAYER,
            "problem": {"kind": "top_k", "scores": {"s": {"kind": "token_norm", "signal": signal}}},
        }

    with pytest.raises(ModelError, match="signal 'features@1' is of no layer; write 'features'"):
        pruneopt.apply(model, spec("features@1"))
    with pytest.raises(ModelError, match="read before layer 2 but layer 2 has not run"):
        pruneopt.apply(model, spec("hidden_out@2"))


def test_a_module_that_is_not_there_is_refused_before_anything_runs(model: Any) -> None:
    adapter = adapter_for(model)
    monkey = pytest.MonkeyPatch()
    monkey.delitem(adapter.layers[1].self_attn._modules, "v_proj")
    with monkey.context(), pytest.raises(ModelError, match="has no v_proj"):
        DecoderCapture(adapter, {1: {"values"}}).watch(lambda *given: None, lambda *given: None)
    monkey.undo()
