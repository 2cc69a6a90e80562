"""The report's numbers against numbers worked out by hand, and its words to the letter."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pruneopt.lab.prefill.table import everything
from pruneopt.models.report import FORMULA, Report, Shape, measure, mebibytes, shape_of
from pruneopt.problems.selection import Selection
from pruneopt.problems.solution import Solution, Status, SubsetSolution, TransportSolution
from pruneopt.signals import Attention

SHAPE = Shape(layers=3, width=8, queries=8, keys=4, mlp=16, bytes=2)


def fake(kind: type, **values: Any) -> Any:
    """A solution whose derived numbers are given."""
    return object.__new__(type("Fake", (kind,), values))


def selection(solution: Any = None, *notes: str) -> Selection:
    return Selection(torch.ones(1, 1, dtype=torch.bool), solution=solution, diagnostics=notes)


TRANSPORT = fake(
    TransportSolution,
    solver="walk",
    status=(Status.OPTIMAL, Status.HEURISTIC, Status.HEURISTIC, Status.HEURISTIC),
    value=torch.tensor([1.23456, 2.0, 3.0, 4.0]),
    lower_bound=torch.tensor([1.0, 1.5, 2.5, 3.5]),
    gap=torch.tensor([0.23456, 0.5, 0.5, 0.5]),
    row_error=torch.tensor([0.25, 0.0, 0.0, 0.0]),
    col_error=torch.tensor([0.125, 0.0, 0.0, 0.0]),
)
SUBSET = fake(
    SubsetSolution,
    solver="greedy",
    status=(Status.HEURISTIC,),
    value=torch.tensor([7.0]),
    upper_bound=torch.tensor([9.0]),
    gap=torch.tensor([2.0]),
)
UNBOUNDED = fake(
    SubsetSolution, solver="picks", status=(), value=torch.tensor([7.0]), upper_bound=None, gap=None
)


def report(**changes: Any) -> Report:
    """Three rows, the second without a picture; two cuts before layer 0 and one before layer 2 of 3."""
    values: dict[str, Any] = {
        "method": "some",
        "spec_hash": "abc",
        "family": "Family",
        "shape": SHAPE,
        "batch": 3,
        "prompt_tokens": [10, 6, 7],
        "visual_tokens": [5, 4],
        "cuts": [(0, [4, 4]), (0, [2, 3]), (2, [1, 2])],
        "tokens": [[7, 6, 6], [7, 6, 6], [6, 6, 5]],
        "columns": [8, 8, 7],
        "cache_found": [384, 384, 300],
        "seconds": {"cost": 0.001, "solve": 0.0025},
        "selections": [
            selection(TRANSPORT, "first", "second"),
            selection(SUBSET, "first"),
            selection(None, "third"),
        ],
        "notes": ["zeroth", "second"],
        "visual_by_sample": [5, 0, 4],
        "dense_columns": 11,
    }
    return Report(**{**values, **changes})


def test_flops_and_bytes_of_one_layer() -> None:
    """2*10*8*12 = 1920, 2*100*8 = 1600, 3*10*8*16 = 3840; keys and values of 5 columns: 2*5*4*2."""
    assert SHAPE.flops(10) == 1920 + 1600 + 3840
    assert SHAPE.flops(0) == 0
    assert SHAPE.cache_bytes(5) == 80


def test_shares_of_visual_tokens() -> None:
    """The last of two cuts before layer 0 counts at entry, the last of all at the end; 9 tokens before."""
    found = report()
    assert found.kept_at_entry == 5 / 9
    assert found.kept_at_end == 3 / 9
    assert report(cuts=[(0, [2, 3]), (2, [1, 2])]).kept_at_entry == 5 / 9
    assert report(cuts=[(0, [4, 4]), (0, [3, 4]), (0, [2, 3])]).kept_at_entry == 5 / 9
    late = report(cuts=[(2, [1, 2])])
    assert (late.kept_at_entry, late.kept_at_end) == (1.0, 3 / 9)


def test_layer_mean_is_per_sample_with_a_picture() -> None:
    """Text of 5 and 3 tokens: visual tokens 2, 2, 1 and 3, 3, 2."""
    assert report().layer_mean_tokens == [5 / 3, 8 / 3]


def test_flops_of_the_batch() -> None:
    """576n + 16n^2: 7360, 4032, 4816 for 10, 6, 7 tokens and 3280 for 5."""
    found = report()
    assert found.flops_dense == 3 * (7360 + 4032 + 4816)
    assert found.flops_pruned == 2 * (4816 + 4032 + 4032) + (4032 + 4032 + 3280)
    assert found.flops_share == 37104 / 48624


def test_cache_of_the_batch() -> None:
    """16 bytes a column and row: 3 rows of 8, 8, 7 columns; dense 3 layers of 3 rows of 11."""
    found = report()
    assert found.cache_expected == [384, 384, 336]
    assert found.cache_dense == 1584
    assert found.cache_share == 1068 / 1584
    assert report(cache_found=None).cache_share == 1104 / 1584


def test_certificates_say_value_and_bound_in_their_places() -> None:
    transport, subset, none = report().certificates
    value = [pytest.approx(1.23456), 2.0, 3.0, 4.0]
    assert transport == {
        "solver": "walk",
        "status": ["HEURISTIC", "OPTIMAL"],
        "value": value,
        "bound": [1.0, 1.5, 2.5, 3.5],
        "gap": [pytest.approx(0.23456), 0.5, 0.5, 0.5],
        "row_error": [0.25, 0.0, 0.0, 0.0],
        "col_error": [0.125, 0.0, 0.0, 0.0],
        "text": "walk heuristic/optimal, value [1.235, 2, 3, ...], bound [1, 1.5, 2.5, ...], "
        "gap [0.2346, 0.5, 0.5, ...]",
    }
    assert subset == {
        "solver": "greedy",
        "status": ["HEURISTIC"],
        "value": [7.0],
        "bound": [9.0],
        "gap": [2.0],
        "text": "greedy heuristic, value [7], bound [9], gap [2]",
    }
    assert none == {"text": "no solver"}


def test_certificates_without_a_bound_or_numbers() -> None:
    three = fake(
        SubsetSolution,
        solver="s",
        status=(Status.OPTIMAL,),
        value=torch.tensor([1.0, 2.0, 3.0]),
        upper_bound=None,
        gap=None,
    )
    other = fake(Solution, solver="mine", status=(Status.OPTIMAL,))
    unbounded, short, plain = report(
        selections=[selection(s) for s in (UNBOUNDED, three, other)]
    ).certificates
    assert unbounded["text"] == "picks , value [7], bound none, gap none"
    assert (unbounded["bound"], unbounded["gap"], unbounded["status"]) == (None, None, [])
    assert short["text"] == "s optimal, value [1, 2, 3], bound none, gap none"
    assert plain == {"solver": "mine", "status": ["OPTIMAL"], "text": "mine"}
    nameless = report(selections=[selection(SimpleNamespace())]).certificates  # type: ignore[arg-type]
    assert nameless == [{"solver": "", "status": [], "text": ""}]


def test_evidence_is_said_by_its_key_beside_the_certificate_of_the_stage() -> None:
    stated, other = (fake(Solution, solver=name, status=(Status.OPTIMAL,)) for name in ("mine", "on the way"))
    chosen = replace(selection(stated), evidence={"problem.scores.x": other, "problem": stated})
    found = report(selections=[selection(stated), chosen])
    assert found.evidence == [
        {},
        {"problem.scores.x": {"solver": "on the way", "status": ["OPTIMAL"], "text": "on the way"}},
    ]
    assert "stage 1: mine\nstage 1, problem.scores.x: on the way" in str(found)


def test_diagnostics_are_said_once_notes_first() -> None:
    assert report().diagnostics == ["zeroth", "second", "first", "third"]


def test_dictionary_holds_every_number_and_is_plain() -> None:
    found = report()
    data = found.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data == {
        "method": "some",
        "spec_hash": "abc",
        "family": "Family",
        "batch": 3,
        "prompt_tokens": [10, 6, 7],
        "visual_tokens": [5, 4],
        "cuts": [
            {"layer": 0, "kept": [4, 4]},
            {"layer": 0, "kept": [2, 3]},
            {"layer": 2, "kept": [1, 2]},
        ],
        "evicted": [],
        "tokens_per_layer": [[7, 6, 6], [7, 6, 6], [6, 6, 5]],
        "columns_per_layer": [8, 8, 7],
        "kept_at_entry": 5 / 9,
        "kept_at_end": 3 / 9,
        "layer_mean_tokens": [5 / 3, 8 / 3],
        "flops_formula": FORMULA,
        "flops_dense": 48624.0,
        "flops_pruned": 37104.0,
        "flops_share": 37104 / 48624,
        "kv_bytes_dense": 1584,
        "kv_bytes_expected": [384, 384, 336],
        "kv_bytes_found": [384, 384, 300],
        "kv_share": 1068 / 1584,
        "seconds": {"cost": 0.001, "solve": 0.0025},
        "certificates": found.certificates,
        "evidence": [{}, {}, {}],
        "diagnostics": ["zeroth", "second", "first", "third"],
    }
    assert FORMULA == (
        "per layer 2nd(q + kv) + 2n^2 q + 3ndm multiply-adds; n tokens, width d, q and kv head widths, MLP m"
    )


LARGE = Shape(layers=2, width=1024, queries=1024, keys=256, mlp=2048, bytes=4)


def large(**changes: Any) -> Report:
    """512 tokens, 448 of them visual, 64 left from layer 1 on.  8912896n + 2048n^2 multiply-adds a layer
    (5.100 and 1.174 G), 2048 bytes a column (1 and 0.25 MiB).
    """
    values = {
        "shape": LARGE, "batch": 1, "prompt_tokens": [512], "visual_tokens": [448], "cuts": [(1, [64])],
        "tokens": [[512], [128]], "columns": [512, 128], "cache_found": [2**20, 2**18],
        "seconds": {"cost": 1.25, "solve": 2.5}, "selections": [selection(SUBSET), selection()],
        "notes": ["look out"], "visual_by_sample": [448], "dense_columns": 512,
    }  # fmt: skip
    return report(**{**values, **changes})


PRINTED = """\
                      some on Family
┏━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━┓
┃                           ┃ dense     ┃ pruned    ┃ share ┃
┡━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━┩
│ visual tokens at the end  │ 448       │ 64        │ 14.3% │
│ visual tokens, layer mean │ 448       │ 256.0     │ 57.1% │
│ prefill multiply-adds     │ 10.201 G  │ 6.275 G   │ 61.5% │
│ KV cache                  │ 2.000 MiB │ 1.250 MiB │ 62.5% │
└───────────────────────────┴───────────┴───────────┴───────┘
visual tokens per sample [448]; before layer 1: [64] kept
selection took 3750.00 ms: cost 1250.00 ms, solve 2500.00 ms
stage 0: greedy heuristic, value [7], bound [9], gap [2]
stage 1: no solver
note: look out"""


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def test_printed_report() -> None:
    assert lines(str(large())) == lines(PRINTED)
    assert str(large()).endswith("look out")
    assert lines(str(large(cache_found=None))) == lines(PRINTED)
    found = str(large(cache_found=[2**20, 2**19], seconds={"cost": 0.5, "solve": 0.25}))
    assert "│ KV cache                  │ 2.000 MiB │ 1.500 MiB │ 75.0% │" in lines(found)
    assert "selection took 750.00 ms: cost 500.00 ms, solve 250.00 ms" in lines(found)


def test_printed_means_are_over_samples_with_a_picture() -> None:
    """Means of 4.5 tokens at the start, 1.5 at the end, (5/3 + 8/3)/2 over layers."""
    text = lines(str(report()))
    assert "│ visual tokens at the end  │ 4.5       │ 1.5       │ 33.3% │" in text
    assert "│ visual tokens, layer mean │ 4.5       │ 2.2       │ 48.1% │" in text
    cuts = "before layer 0: [4, 4] kept, before layer 0: [2, 3] kept, before layer 2: [1, 2] kept"
    assert f"visual tokens per sample [5, 4]; {cuts}" in text
    assert max(map(len, str(report(notes=["word " * 40])).splitlines())) in range(110, 121)


def test_memory_has_one_unit() -> None:
    assert mebibytes(3 * 2**19) == "1.500 MiB"
    times = {"median": 1.0}
    row = {
        "method": "m", "batch": 1, "kept": 1, "visual_tokens": 2, "selection_seconds": 1.0,
        "dense": {"encoder": times, "language_model": times}, "pruned": {"language_model": times},
        "selection_share_of_dense_language_model": 0.1, "rest_of_prefill": 1.0, "speedup": times,
        "ideal": 1.0, "efficiency": 1.0, "kv_bytes": {"pruned": 1, "dense": 2},
        "peak_bytes": {"dense": 3 * 2**20, "pruned": None},
    }  # fmt: skip
    (shown,) = everything({"rows": [row]}).rows
    assert shown[-2:] == ["3.000 MiB", ""]


# what is measured of a pass


def linear(dtype: torch.dtype, **more: Any) -> Any:
    return SimpleNamespace(weight=torch.zeros(1, dtype=dtype), **more)


def adapter(cls: int = 1) -> Any:
    """Four layers; heads of width 5: 6 for queries, 2 for keys; weights in int8, activations in bfloat16."""
    attention = SimpleNamespace(head_dim=5, k_proj=linear(torch.int8))
    layer = SimpleNamespace(self_attn=attention, input_layernorm=linear(torch.bfloat16))
    config = SimpleNamespace(
        hidden_size=32, intermediate_size=48, num_attention_heads=6, num_key_value_heads=2
    )
    return SimpleNamespace(
        layers=[layer, None, None, None],
        text_config=config,
        family="F",
        encoder=lambda: SimpleNamespace(cls=cls),
    )


def a_pass(attention: Attention = Attention.NONE, needs: tuple[str, ...] = ()) -> Any:
    """Two rows, the second without a picture; a cut before layer 1 and one before layer 3."""
    prompt = SimpleNamespace(batch=2, columns=12, lengths=[11, 9], rows=[0], started=[6])
    cuts = [
        SimpleNamespace(layer=1, lengths=[8, 9], width=10, visual=[3], selection="first", evicted=None),
        SimpleNamespace(layer=3, lengths=[6, 9], width=9, visual=[1], selection="second", evicted=None),
    ]
    spec = SimpleNamespace(name="n", hash="h", attention=attention, needs=needs)
    return SimpleNamespace(prompt=prompt, cuts=cuts, spec=spec, seconds={"solve": 1.0}, notes=())


def cache() -> Any:
    """Two bytes a number; more layers than the text model has, and a layer that holds nothing."""
    half = torch.zeros(2, 5, dtype=torch.bfloat16)
    full = SimpleNamespace(keys=half, values=torch.zeros(3, dtype=torch.float32))
    return SimpleNamespace(layers=[full, full, full, SimpleNamespace(keys=None, values=None), full])


def test_shape_is_read_off_the_model() -> None:
    """Queries 6*5, keys 2*5, and two bytes: norms keep the dtype of activations."""
    assert shape_of(adapter()) == Shape(4, 32, 30, 10, 48, 2)


def test_a_pass_is_measured_layer_by_layer() -> None:
    found = measure(adapter(), a_pass(), cache=cache())
    assert (found.method, found.spec_hash, found.family, found.batch) == ("n", "h", "F", 2)
    assert found.shape == shape_of(adapter())
    assert found.tokens == [[11, 9], [8, 9], [8, 9], [6, 9]]
    assert found.columns == [12, 10, 10, 9]
    assert found.cuts == [(1, [3]), (3, [1])]
    assert found.cache_found == [32, 32, 32, 0]
    assert (found.prompt_tokens, found.visual_tokens, found.visual_by_sample) == ([11, 9], [6], [6, 0])
    assert found.dense_columns == 12
    assert found.seconds == {"solve": 1.0}
    assert list(found.selections) == ["first", "second"]
    assert found.notes == []
    assert measure(adapter(), a_pass(), cache=None).cache_found is None


def test_a_report_does_not_change_with_the_pass() -> None:
    state = a_pass()
    found = measure(adapter(), state, cache=None)
    state.prompt.lengths[0] = state.cuts[0].lengths[0] = state.prompt.started[0] = 99
    state.seconds["solve"] = 99.0
    assert found.tokens == [[11, 9], [8, 9], [8, 9], [6, 9]]
    assert (found.prompt_tokens, found.visual_tokens, found.seconds) == ([11, 9], [6], {"solve": 1.0})


def test_what_only_caches_lost_ran_through_every_layer() -> None:
    state = a_pass()
    gone = SimpleNamespace(layer=3, lengths=[5, 9], width=6, visual=[1], selection="third", evicted=(0, 2))
    found = measure(adapter(), SimpleNamespace(**{**vars(state), "cuts": [*state.cuts, gone]}), cache=cache())
    assert found.tokens == [[11, 9], [8, 9], [8, 9], [6, 9]]
    assert found.columns == [6, 10, 6, 9]
    assert (found.cuts, found.evicted) == ([(1, [3]), (3, [1])], [([0, 2], [1])])
    assert list(found.selections) == ["first", "second", "third"]
    said = report(cuts=[], evicted=[([0, 2], [4, 4]), ([5], [1, 1])])
    assert (said.kept_at_entry, said.kept_at_end) == (1.0, 1.0)
    assert said.to_dict()["evicted"] == [{"layers": [0, 2], "kept": [4, 4]}, {"layers": [5], "kept": [1, 1]}]
    words = "[5, 4]; in the cache of [0, 2]: [4, 4] kept, in the cache of [5]: [1, 1] kept"
    assert words in " ".join(str(said).split())
    after = report(evicted=[([5], [1, 1])])
    assert "before layer 2: [1, 2] kept, in the cache of [5]: [1, 1] kept" in " ".join(str(after).split())


FULL = "this method reads full attention maps; they were recomputed beside the model's kernel"
NO_CLS = (
    "this vision encoder has no CLS token: cls_attention was answered by the mean attention that a patch "
    "receives (received_attention)"
)


def test_notes_of_a_pass() -> None:
    assert measure(adapter(), a_pass(Attention.FULL), cache=None).notes == [FULL]
    assert measure(adapter(), a_pass(Attention.ROW, ("keys",)), cache=None).notes == []
    assert measure(adapter(0), a_pass(needs=("xy", "cls_attention@-1")), cache=None).notes == [NO_CLS]
    assert measure(adapter(0), a_pass(needs=("cls_attention",)), cache=None).notes == [NO_CLS]
    assert measure(adapter(1), a_pass(needs=("cls_attention",)), cache=None).notes == []
    assert measure(adapter(0), a_pass(needs=("received_attention",)), cache=None).notes == []
    state = a_pass(Attention.FULL)
    state.notes = ("of a site", "of another")
    assert measure(adapter(), state, cache=None).notes == ["of a site", "of another", FULL]
