"""Signals of a decoder layer: what to capture, and how a captured layer becomes visual-token tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.models.base import ModelAdapter
from pruneopt.models.capture.probe import attention_logits, rotate
from pruneopt.models.capture.watched import Watched
from pruneopt.models.columns import Columns, take
from pruneopt.parts.scores.transition import sublayer_transition
from pruneopt.signals import signal_info

# The stream that enters a layer, `in`, and the one that leaves it, `out`, are handed over by the pass itself.
CAPTURES = {
    "norm1": Watched("layer", "output", ("input_layernorm",)),
    "q": Watched("attention", "output", ("q_norm", "q_proj")),
    "k": Watched("attention", "output", ("k_norm", "k_proj")),
    "v": Watched("attention", "output", ("v_proj",)),
    "self_attn": Watched("attention", "output"),
    "attn_out": Watched("layer", "input", ("post_attention_layernorm",)),
    "norm2": Watched("layer", "output", ("post_attention_layernorm",)),
    "mlp": Watched("layer", "output", ("mlp",)),
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
    """What was captured in one pass, `raw[layer][capture]`."""

    raw: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    listening: bool = True

    def keep(self, layer: int, capture: str, *, value: Tensor) -> None:
        if self.listening:
            self.raw.setdefault(layer, {})[capture] = value.detach()

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
class Layer:
    """A layer that has run: its captures `raw`, and what several signals are made of, computed once."""

    adapter: ModelAdapter
    index: int
    view: View
    raw: Mapping[str, Tensor]

    @property
    def columns(self) -> Columns:
        return self.view.columns

    @property
    def attention(self) -> Any:
        return self.adapter.layers[self.index].self_attn

    def visual(self, capture: str) -> Tensor:
        return self.columns.visual(self.raw[capture])

    def texts(self, capture: str) -> Tensor:
        return self.columns.texts(self.raw[capture])

    def heads(self, capture: str) -> Tensor:
        """`[B',W,H,d]` of a capture `[B,W,H*d]` or `[B,W,H,d]`."""
        states = self.columns.pick(self.raw[capture])
        return states.reshape(*states.shape[:2], -1, self.attention.head_dim)

    def at(self, columns: Tensor, states: Tensor) -> Tensor:
        """`[B',H,n,d]`: `states` `[B',W,H,d]` at the columns `[B',n]`; padding (-1) repeats column 0."""
        return take(states, columns.clamp_min(0)).transpose(1, 2)

    def keys(self, columns: Tensor) -> Tensor:
        """`[B',G,n,d]` of the columns `[B',n]`, rotated, zero at padding."""
        key = self.heads("k")
        rows = rotate(self.attention, self.at(columns, key), rotary=self.view.rotary_at(columns))
        return rows.to(key.dtype).masked_fill((columns < 0)[:, None, :, None], 0)

    @cached_property
    def every(self) -> Tensor:
        """`[B',W]`: all columns."""
        rows, width = self.columns.place.shape[0], self.columns.width
        return torch.arange(width, device=self.columns.place.device).expand(rows, width)

    @cached_property
    def turned(self) -> Tensor:
        """`[B',G,W,d]` float32: rotated keys of all columns."""
        return rotate(self.attention, self.heads("k").transpose(1, 2), rotary=self.view.rotary_at(self.every))

    def seen(self, columns: Tensor) -> Tensor:
        """`[B',n,W]` bool: which real columns stand at or before the columns `[B',n]`."""
        earlier = self.every[:, None, :] <= columns.clamp_min(0)[:, :, None]
        return earlier & self.columns.pick(self.columns.valid)[:, None, :]

    def logits(self, columns: Tensor, allowed: Tensor) -> Tensor:
        """`[B',H,n,W]` float32 of the queries at `columns` `[B',n]`, -inf where not `allowed` `[B',n,W]`."""
        query = self.at(columns, self.heads("q"))
        rows = rotate(self.attention, query, rotary=self.view.rotary_at(columns))
        return attention_logits(rows, self.turned, allowed=allowed, scale=self.attention.scaling)

    def shares(self, columns: Tensor) -> Tensor:
        """`[B',H,n,N]` float32: what the queries at `columns` `[B',n]` give to each visual token."""
        own = self.every[:, None, :] == columns.clamp_min(0)[:, :, None]
        allowed = self.seen(columns) | own  # padding looks at itself instead of at nothing
        weights = self.logits(columns, allowed).softmax(3)
        place = self.columns.place.clamp_min(0)[:, None, None, :]
        found = weights.gather(3, place.expand(*weights.shape[:3], -1))
        return found.masked_fill((columns < 0)[:, None, :, None], 0)

    def whole(self) -> Tensor:
        """`[B',H,W,W]` float32: logits of all columns, the lowest finite number where nothing is seen."""
        valid = self.columns.pick(self.columns.valid)
        allowed = self.seen(self.every) & valid[:, :, None]  # nothing in rows of padding, their own included
        found = self.logits(self.every, allowed)
        return found.clamp_min(torch.finfo(found.dtype).min)

    def transition(self, *, absolute: bool) -> Tensor:
        """`[B',N]` float32, both sublayers summed."""
        valid, raw = self.columns.valid, self.raw
        attention = sublayer_transition(raw["norm1"], raw["self_attn"], mask=valid, absolute=absolute)
        return self.columns.visual(
            attention + sublayer_transition(raw["norm2"], raw["mlp"], mask=valid, absolute=absolute)
        )

    @cached_property
    def following(self) -> Layer:
        """The next layer, which has not run: its queries and keys come from the output of this one."""
        layer = self.adapter.layers[self.index + 1]
        attention, normed = layer.self_attn, layer.input_layernorm(self.raw["out"])

        def states(kind: str) -> Tensor:
            projected: Tensor = getattr(attention, f"{kind}_proj")(normed)
            norm = getattr(attention, f"{kind}_norm", lambda split: split)
            return norm(projected.unflatten(2, (-1, attention.head_dim)))  # type: ignore[no-any-return]

        return replace(self, index=self.index + 1, raw={"q": states("q"), "k": states("k")})


def _norm(layer: Layer, states: Tensor) -> Tensor:
    normed: Tensor = layer.adapter.text.norm(states)
    return normed


DECODER_SIGNALS: dict[str, Callable[[Layer], Tensor]] = {
    "hidden_in": lambda layer: layer.visual("in"),
    "attn_out": lambda layer: layer.visual("attn_out"),
    "post_attention_norm": lambda layer: layer.visual("norm2"),
    "hidden_out": lambda layer: layer.visual("out"),
    "hidden_normed": lambda layer: _norm(layer, layer.visual("out")),
    "text_hidden_normed": lambda layer: _norm(layer, layer.texts("out")),
    "keys": lambda layer: layer.keys(layer.columns.place),
    "text_keys": lambda layer: layer.keys(layer.columns.text),
    "values": lambda layer: layer.at(layer.columns.place, layer.heads("v")),
    "attention_last": lambda layer: layer.shares(layer.columns.last[:, None])[:, :, 0],
    "attention_text": lambda layer: layer.shares(layer.columns.text),
    "attention_visual": lambda layer: layer.shares(layer.columns.place),
    "attention_logits": Layer.whole,
    "lookahead_last": lambda layer: DECODER_SIGNALS["attention_last"](layer.following),
    "lookahead_text": lambda layer: DECODER_SIGNALS["attention_text"](layer.following),
    "lookahead_visual": lambda layer: DECODER_SIGNALS["attention_visual"](layer.following),
    "lookahead_keys": lambda layer: DECODER_SIGNALS["keys"](layer.following),
    "transition": lambda layer: layer.transition(absolute=False),
    "transition_abs": lambda layer: layer.transition(absolute=True),
}


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
        """Register captures through `add(module, what, callback)`; `keep(layer, capture, value)` gets it."""
        for layer, bases in sorted(self.plan.items()):
            module = self.adapter.layers[layer]
            owners = {"layer": module, "attention": module.self_attn}
            needed = {capture for base in bases for capture in signal_info(base).made_from}
            for capture in sorted(needed - {"in", "out"}):

                def see(value: Any, *, layer: int = layer, capture: str = capture) -> None:
                    keep(layer, capture, value[0] if isinstance(value, tuple) else value)

                watched = CAPTURES[capture]
                add(watched.module(owners[watched.owner]), watched.what, see)

    def compute(self, layer: int, view: View, *, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every planned signal of `layer`, from its captures, its input `in` and its output `out`."""
        source = Layer(self.adapter, layer, view, raw)
        with torch.no_grad():
            return {base: DECODER_SIGNALS[base](source) for base in sorted(self.plan[layer])}
