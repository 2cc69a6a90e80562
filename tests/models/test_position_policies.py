"""Position policies that differ from cut to cut, against an untouched model that is told every position.

The reference masks the keys that went and gives each layer the positions that lists say: it shares no code
with the adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import tiny_models
import torch
from test_apply import Reversed
from test_families import FAMILIES
from tiny_models import llava_scenarios, precise, precisely
from torch import Tensor, nn

import pruneopt
from pruneopt.errors import ModelError
from pruneopt.models.sequence import CacheState, Segment
from pruneopt.spec.load import load_spec
from pruneopt.testing.insertion import SEVERAL
from pruneopt.testing.masking import difference, forward, generate, hidden_keys, masked, real_columns

Kept = Mapping[int, Sequence[Sequence[int]]]


def with_policies(*policies: str) -> Any:
    """Cuts before layers 1 and 3, each with its own policy."""
    first, second = (
        {
            "insertion": {"kind": "prefill_layer", "layer": layer},
            "budget": {"keep": keep},
            "positions": policy,
        }
        for layer, keep, policy in zip((1, 3), (0.7, 0.3), policies, strict=True)
    )
    rest = {key: SEVERAL[key] for key in ("name", "problem", "solver")}
    return load_spec({**rest, "stages": [first, second]})


def numbered(ids: list[list[int]], columns: Sequence[int]) -> tuple[list[list[int]], int]:
    """Ids of every axis once those of `columns` are closed up over all axes, and the one that follows."""
    used = sorted({axis[column] for axis in ids for column in columns})
    rank = {value: place for place, value in enumerate(used)}
    return [[rank.get(value, 0) for value in axis] for axis in ids], len(used)


@contextmanager
def told(text: Any, kept: Kept, policies: Mapping[int, str], real: Tensor) -> Iterator[None]:
    """Give each layer of an untouched model the positions that its last cut leaves."""
    rows, columns = real.shape
    entry: list[Tensor] = []
    at: dict[int, tuple[Tensor, Tensor]] = {}  # layer of a cut: ids [A,B,L] and the next one [B]

    def see(module: nn.Module, args: Any, kwargs: Any) -> None:
        if entry:
            return
        ids = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        entry.append((ids if ids.dim() == 3 else ids[None]).expand(-1, rows, -1))
        now = [entry[0][:, row].tolist() for row in range(rows)]
        following: list[int | None] = [None] * rows
        for layer in sorted(kept):
            for row in range(rows):
                if policies.get(layer) == "compact":
                    now[row], following[row] = numbered(now[row], kept[layer][row])
            if following[0] is not None:
                at[layer] = torch.tensor(now).transpose(0, 1), torch.tensor(following)

    def hook(index: int) -> Callable[..., Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            cuts = [layer for layer in at if layer <= index]
            if not cuts:
                return None
            ids, following = at[max(cuts)]
            hidden = args[0] if args else kwargs["hidden_states"]
            past = int(kwargs["past_key_values"].get_seq_length(index))
            if past:
                new = following[:, None] + past - columns + torch.arange(hidden.shape[1])
                ids = new.expand(len(ids), -1, -1)
            return args, {**kwargs, "position_embeddings": rotary(hidden, ids if len(ids) > 1 else ids[0])}

        return before

    rotary = text.rotary_emb.forward
    handles = [text.rotary_emb.register_forward_pre_hook(see, with_kwargs=True)]
    for index, layer in enumerate(text.layers):
        if hidden_keys(kept, index) is not None:
            handles.append(layer.register_forward_pre_hook(hook(index), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def llava_batches() -> Any:
    found = precisely(llava_scenarios())
    return precise(tiny_models.llava), {name: found[name] for name in ("left", "right", "text_row")}


def qwen_batches() -> Any:
    build, make = FAMILIES["qwen2_vl"]
    found = precisely(make(build))
    return precise(build), {name: found[name] for name in ("left", "right", "image and video")}


def gap(model: Any, spec: Any, inputs: Mapping[str, Any]) -> float:
    with pruneopt.prune(model, spec) as run:
        tokens, found = generate(model, inputs)
        kept = run.kept
    policies = {s.insertion.layer_index: spec.positions_at(s) for s in spec.stages}
    real, text = real_columns(inputs), model.model.language_model
    assert len(kept) == 2 and all(len(set(map(len, rows))) for rows in kept.values())
    with masked(text.layers, kept, real=real), told(text, kept, policies, real):
        _, wanted = generate(model, inputs, forced=tokens)
    first = [0 if real[row, -1] else 1 for row in range(len(real))]  # what padding says means nothing
    return max(difference(found[n:, row], wanted[n:, row]) for row, n in enumerate(first))


ORDERS = [("compact", "keep"), ("keep", "compact"), ("compact", "compact"), ("keep", "keep")]


@pytest.mark.parametrize("policies", ORDERS, ids="-".join)
@pytest.mark.parametrize("batches", [llava_batches, qwen_batches], ids=["llava", "qwen2_vl"])
def test_each_cut_follows_its_own_policy(batches: Any, policies: tuple[str, str]) -> None:
    build, scenarios = batches()
    model, spec = build("sdpa"), with_policies(*policies)
    for name, inputs in scenarios.items():
        assert gap(model, spec, inputs) < 1e-12, name


def test_the_reference_tells_one_policy_from_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding that forgets the numbers of the first cut is caught, and so is one policy for both cuts."""
    build, scenarios = llava_batches()
    model, spec = build("sdpa"), with_policies("compact", "keep")
    real = CacheState.cut

    def forgetful(self: CacheState, segment: Segment) -> None:
        real(self, replace(segment, following=None) if segment.layer == 3 else segment)

    with monkeypatch.context() as patch:
        patch.setattr(CacheState, "cut", forgetful)
        assert gap(model, spec, scenarios["left"]) > 1e-4
    for one in ("keep", "compact"):
        with monkeypatch.context() as patch:
            patch.setattr(type(spec), "positions_at", lambda self, stage, one=one: one)
            with pruneopt.prune(model, spec):
                other = generate(model, scenarios["left"])[1]
        with pruneopt.prune(model, spec):
            assert difference(other, generate(model, scenarios["left"])[1]) > 1e-4


@pytest.mark.parametrize(("policies", "fine"), [(p, p == ("compact", "compact")) for p in ORDERS])
def test_a_new_order_needs_compact_at_its_own_cut(policies: tuple[str, str], fine: bool) -> None:
    spec = with_policies(*policies)
    spec = replace(spec, stages=tuple(replace(stage, steps=(Reversed(),)) for stage in spec.stages))
    refused = nullcontext() if fine else pytest.raises(ModelError, match="positions=compact")
    model = tiny_models.llava()
    with pruneopt.prune(model, spec), refused:
        forward(model, llava_scenarios()["single"])
