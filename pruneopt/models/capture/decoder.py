"""Signals of a decoder layer: what to capture, and how a captured layer becomes visual-token tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.models.base import ModelAdapter
from pruneopt.models.capture.probe import attention_rows, rotate
from pruneopt.models.columns import Columns, take

# signal -> captures of its own layer that it is made from
_SLOTS: dict[str, tuple[str, ...]] = {
    "hidden_in": ("in",),
    "attn_out": ("attn_out",),
    "post_attention_norm": ("norm2",),
    "hidden_out": ("out",),
    "text_hidden_out": ("out",),
    "hidden_normed": ("out",),
    "text_hidden_normed": ("out",),
    "keys": ("k",),
    "text_keys": ("k",),
    "attention_last": ("q", "k"),
    "attention_text": ("q", "k"),
    "attention_visual": ("q", "k"),
    "attention_logits": ("q", "k"),
    "lookahead_last": ("out",),
    "lookahead_text": ("out",),
    "lookahead_visual": ("out",),
    "lookahead_keys": ("out",),
    "transition": ("norm1", "self_attn", "norm2", "mlp"),
    "transition_abs": ("norm1", "self_attn", "norm2", "mlp"),
}


@dataclass(frozen=True)
class View:
    """The columns of the batch as they stand, and their rotary embedding: cos and sin `[B or 1,W,d]`."""

    columns: Columns
    rotary: tuple[Tensor, Tensor]

    def rotary_at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin at the columns `places` `[B',n]`; padding (-1) repeats column 0."""
        cos, sin = (self.columns.pick(part) for part in self.rotary)
        return take(cos, places.clamp_min(0)), take(sin, places.clamp_min(0))


@dataclass
class Captured:
    """What was captured in one pass, `raw[layer][slot]`."""

    raw: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    listening: bool = True

    def keep(self, layer: int, slot: str, value: Tensor) -> None:
        if self.listening:
            self.raw.setdefault(layer, {})[slot] = value.detach()

    @contextmanager
    def closed(self, layer: int) -> Iterator[Mapping[str, Tensor]]:
        """Take out what was captured of a layer.  Its signals may run modules of a layer that has not run yet
        (`lookahead_*`); nothing is captured meanwhile.
        """
        self.listening = False
        try:
            yield self.raw.pop(layer)
        finally:
            self.listening = True


@dataclass(frozen=True)
class DecoderCapture:
    """What to capture in the layers named in `plan` (layer to signal names), and what is made of it."""

    adapter: ModelAdapter
    plan: dict[int, set[str]]

    def watch(
        self,
        add: Callable[[nn.Module, str, Callable[[Any], None]], None],
        keep: Callable[[int, str, Tensor], None],
    ) -> None:
        """Register captures through `add(module, what, callback)`; `keep(layer, slot, value)` gets them."""
        for layer, bases in sorted(self.plan.items()):
            module = self.adapter.layers[layer]
            attention = module.self_attn
            modules: dict[str, tuple[nn.Module, str]] = {
                "attn_out": (module.post_attention_layernorm, "input"),
                "norm1": (module.input_layernorm, "output"),
                "norm2": (module.post_attention_layernorm, "output"),
                "self_attn": (attention, "output"),
                "mlp": (module.mlp, "output"),
                "q": (getattr(attention, "q_norm", attention.q_proj), "output"),
                "k": (getattr(attention, "k_norm", attention.k_proj), "output"),
            }
            for slot in sorted({slot for base in bases for slot in _SLOTS[base]} - {"in", "out"}):

                def see(value: Any, layer: int = layer, slot: str = slot) -> None:
                    keep(layer, slot, value[0] if isinstance(value, tuple) else value)

                add(*modules[slot], see)

    def compute(self, layer: int, view: View, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every planned signal of `layer`, from its captures, its input `in` and its output `out`."""
        with torch.no_grad():
            return {base: self._signal(base, layer, view, raw) for base in sorted(self.plan[layer])}

    def _signal(self, base: str, layer: int, view: View, raw: Mapping[str, Tensor]) -> Tensor:
        slot = {
            "hidden_in": "in",
            "attn_out": "attn_out",
            "post_attention_norm": "norm2",
            "hidden_out": "out",
        }
        if base in slot:
            return view.columns.visual(raw[slot[base]])
        if base == "text_hidden_out":
            return view.columns.texts(raw["out"])
        if base == "hidden_normed":
            return self.adapter.text.norm(view.columns.visual(raw["out"]))
        if base == "text_hidden_normed":
            return self.adapter.text.norm(view.columns.texts(raw["out"]))
        if base.startswith("transition"):
            return view.columns.visual(
                _transition(raw, view.columns.valid, base.endswith("_abs"))[:, :, None]
            )[:, :, 0]
        attention = self.adapter.layers[layer].self_attn
        if base.startswith("lookahead"):
            following = self.adapter.layers[layer + 1]
            attention, normed = following.self_attn, following.input_layernorm(view.columns.pick(raw["out"]))
            query = self._heads(attention, attention.q_proj, "q_norm", normed)
            key = self._heads(attention, attention.k_proj, "k_norm", normed)
        else:
            key = self._split(attention, view.columns.pick(raw["k"]))
            query = self._split(attention, view.columns.pick(raw["q"])) if "q" in raw else key
        if base.endswith("keys"):
            columns = view.columns.text if base == "text_keys" else view.columns.place
            rows = take(key, columns.clamp_min(0)).transpose(1, 2)
            rows = rotate(attention, rows, view.rotary_at(columns)).to(key.dtype)
            return rows.masked_fill((columns < 0)[:, None, :, None], 0)
        return self._attention(base, attention, query, key, view)

    def _heads(self, attention: Any, projection: nn.Module, norm: str, hidden: Tensor) -> Tensor:
        """`[B,L,H,d]` of a layer that has not run yet."""
        states = self._split(attention, projection(hidden))
        return getattr(attention, norm)(states) if hasattr(attention, norm) else states

    def _split(self, attention: Any, states: Tensor) -> Tensor:
        """`[B,L,H*d]` or `[B,L,H,d]` to `[B,L,H,d]`."""
        return states.reshape(*states.shape[:2], -1, attention.head_dim)

    def _attention(self, base: str, attention: Any, query: Tensor, key: Tensor, view: View) -> Tensor:
        """Rows of the queries that `base` names, over all valid keys at or before them, `[B',H,R,...]`."""
        width = key.shape[1]
        every = torch.arange(width, device=key.device)
        if base.endswith("_last"):
            columns = view.columns.last[:, None]
        elif base.endswith("_text"):
            columns = view.columns.text
        elif base.endswith("_visual"):
            columns = view.columns.place
        else:
            columns = every.expand(key.shape[0], width)
        rows = rotate(
            attention,
            take(query, columns.clamp_min(0)).transpose(1, 2),
            view.rotary_at(columns),
        )
        keys = rotate(attention, key.transpose(1, 2), view.rotary_at(every.expand(key.shape[0], width)))
        here = columns.clamp_min(0)[:, :, None]
        valid = view.columns.pick(view.columns.valid)
        allowed = (every <= here) & valid[:, None, :]
        if base == "attention_logits":  # nothing in the rows and columns of padding, their diagonal included
            allowed = allowed & valid[:, :, None]
            found = attention_rows(rows, keys, allowed, attention.scaling, logits=True)
            return found.clamp_min(torch.finfo(found.dtype).min)
        allowed = allowed | (every == here)  # padding rows look at themselves instead of at nothing
        weights = attention_rows(rows, keys, allowed, attention.scaling)
        shape = (*weights.shape[:3], view.columns.place.shape[1])
        columns_of = view.columns.place.clamp_min(0)[:, None, None, :].expand(shape)
        weights = weights.gather(3, columns_of)
        if base.endswith("_last"):
            return weights[:, :, 0]
        return weights.masked_fill((columns < 0)[:, None, :, None], 0)


def _transition(raw: Mapping[str, Tensor], valid: Tensor, absolute: bool) -> Tensor:
    """`[B,W]` float32: |out|/|in| * softmax(1 - cos(in, out)) over the real tokens, both sublayers summed.

    Source: TransPrune (CVPR 2026), released code; `absolute` is the paper's 1 - |cos|.
    """
    total: Tensor | None = None
    for before, after in (("norm1", "self_attn"), ("norm2", "mlp")):
        x, y = raw[before].float(), raw[after].float()
        small = torch.finfo(x.dtype).tiny
        size = y.norm(dim=2) / x.norm(dim=2).clamp_min(small)
        cosine = torch.nn.functional.cosine_similarity(x, y, dim=2)
        turn = 1 - (cosine.abs() if absolute else cosine)
        share = turn.masked_fill(~valid, -torch.inf).softmax(dim=1)
        part = size * share.nan_to_num(0.0)
        total = part if total is None else total + part
    assert total is not None
    return total
