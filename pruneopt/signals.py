"""Signals: the named tensors that a model exposes where tokens are pruned.

`B` counts samples (or groups, once a pruner has split samples into images, crops or frames), `N` visual
tokens, `T` text tokens after the first visual token, `H` heads, `D` the width of the language model, `C`
that of the encoder.  Padding is marked by `Signals.mask`.  A name may carry a layer, `keys@5`: without one
an encoder signal comes from the layer that the model itself reads features from, and a language-model
signal from the last layer that ran before the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from enum import Enum, IntEnum
from functools import cached_property

import torch
from torch import Tensor

from pruneopt.brief import describe, want_tensor
from pruneopt.errors import SignalError, nearest
from pruneopt.tensors import across, not_finite


class Attention(IntEnum):
    """What a signal costs attention; the need of a spec is the maximum over its parts."""

    NONE = 0
    ROW = 1  # a few query rows, recomputed beside the fused kernel
    FULL = 2  # the whole map of a layer: incompatible with fused attention


class Place(Enum):
    """Where a signal exists; an insertion point names the places whose signals it provides."""

    GEOMETRY = "Geometry"  # known before any layer runs
    ENTRY = "Stream of the language model"
    ENCODER = "Vision encoder"
    CROP = "Vision encoder, once per crop"  # no axis of tokens: one problem per crop reads its own
    DECODER = "Decoder layers"  # of a layer that has run


class Values(Enum):
    """What numbers a signal holds: enough to draw some without a model (`pruneopt.testing.draw`)."""

    REAL = "any numbers"
    POSITIVE = "numbers from 0"
    SHARES = "shares of a softmax along the last axis, whose other keys are left out"
    LOGITS = "logits, the lowest finite number where masked"
    MASK = "True or False"
    CELL = "column and row of a cell of a grid"
    GRID = "width and height of a grid"
    NUMBER = "whole numbers (int64)"
    COUNT = "whole numbers from 1"
    INDEX = "columns of the sequence (int64)"


@dataclass(frozen=True)
class SignalInfo:
    """One row of the table of signals: all that is said about a signal, said once.

    Parameters
    ----------
    shape: its axes by letter, as in the text above.
    doc: what it is, in half a sentence.
    place: where it exists.
    made_from: the captures of a pass that its function reads (`pruneopt.models.capture`); empty for signals
        that no capture gives: they come from an earlier cut, or from whoever calls `pruneopt.select`.
    values: what numbers it holds.
    attention: what it asks of attention.
    """

    shape: str
    doc: str
    _: KW_ONLY
    place: Place
    made_from: tuple[str, ...] = ()
    values: Values = Values.REAL
    attention: Attention = Attention.NONE

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """Letters (or numbers) of the axes, the batch first."""
        return tuple(axis.strip() for axis in self.shape.strip("[]").split(","))

    @cached_property
    def token_dims(self) -> tuple[int, ...]:
        """The axes that run over visual tokens: padding, grouping and gathering need no other knowledge."""
        return tuple(dim for dim, axis in enumerate(self.axes) if axis == "N")


def _rows(
    place: Place, values: Values = Values.REAL, *, attention: Attention = Attention.NONE
) -> Callable[..., SignalInfo]:
    """A maker of like rows: called with shape, doc and the captures that the signal is made from."""

    def row(shape: str, doc: str, *made_from: str) -> SignalInfo:
        return SignalInfo(shape, doc, place=place, made_from=made_from, values=values, attention=attention)

    return row


_cell, _grid, _number, _count, _index, _rank = (
    _rows(Place.GEOMETRY, values)
    for values in (Values.CELL, Values.GRID, Values.NUMBER, Values.COUNT, Values.INDEX, Values.POSITIVE)
)
_stream, _mask = _rows(Place.ENTRY), _rows(Place.ENTRY, Values.MASK)
_crop, _encoder = _rows(Place.CROP), _rows(Place.ENCODER)
_encoder_row = _rows(Place.ENCODER, Values.SHARES, attention=Attention.ROW)
_encoder_map = _rows(Place.ENCODER, Values.SHARES, attention=Attention.FULL)
_layer, _change = _rows(Place.DECODER), _rows(Place.DECODER, Values.POSITIVE)
_layer_row = _rows(Place.DECODER, Values.SHARES, attention=Attention.ROW)
_layer_map = _rows(Place.DECODER, Values.SHARES, attention=Attention.FULL)
_logits = _rows(Place.DECODER, Values.LOGITS, attention=Attention.FULL)
_SUBLAYERS = ("norm1", "self_attn", "norm2", "mlp")

SIGNALS: dict[str, SignalInfo] = {
    # known before any layer runs, or at the cut
    "xy": _cell(
        "[B,N,2]", "column and row of the token on the grid of its own image, crop or frame", "prompt"
    ),
    "grid": _grid("[B,N,2]", "width and height of that grid", "prompt"),
    "group": _number("[B,N]", "number of the image, crop or frame of the token within its sample", "prompt"),
    "time": _number("[B,N]", "frame number of the token within its video, 0 for pictures", "prompt"),
    "tile": _number("[B,N,2]", "column and row of its crop in the picture; -1 for a thumbnail", "prompt"),
    "size": _count("[B,N]", "how many original tokens this one stands for; 1 before any merge", "prompt"),
    "importance": _rank("[B,N]", "importance that the previous cut gave to the tokens it kept"),
    "text_index": _index("[B,T]", "place of the text token in the current sequence", "now"),
    "visual_index": _index("[B,N]", "place of the token in the current sequence", "now"),
    # the stream that is cut, or that enters the first layer
    "features": _stream("[B,N,D]", "what is pruned: projected tokens, or hidden_out in prefill", "now"),
    "text_features": _stream("[B,T,D]", "the same at the text tokens after the first visual token", "now"),
    "text_mask": _mask("[B,T]", "True where a row of any text_* signal is a real token", "now"),
    "embeddings": _stream("[B,N,D]", "language-model input embeddings of the visual tokens", "start"),
    "text_embeddings": _stream("[B,T,D]", "language-model input embeddings of the text tokens", "start"),
    "start_embeddings": _stream("[B,M,D]", "the same of all M visual tokens of the unpruned prompt", "start"),
    "start_mask": _mask("[B,M]", "True where a row of start_embeddings is a real token", "start"),
    # a text tower beside the encoder (CLIP), which no adapter captures
    "clip_features": _encoder("[B,N,c]", "patches projected into the space shared with the text tower"),
    "clip_text": _encoder("[B,S,c]", "text segments in that space; segments are equally many in a batch"),
    # vision encoder
    "encoder_features": _encoder("[B,N,C]", "encoder output before the projector", "features"),
    "encoder_keys": _encoder("[B,H,N,d]", "keys of an encoder layer, bias included, unscaled", "k"),
    "encoder_queries": _encoder("[B,H,N,d]", "queries of an encoder layer, bias included, unscaled", "q"),
    "cls_query": _crop("[B,H,d]", "query of the CLS token of an encoder layer, unscaled", "q"),
    "cls_key": _crop("[B,H,d]", "key of the CLS token of an encoder layer", "k"),
    "cls_feature": _crop("[B,C]", "CLS token of the encoder output, before the projector", "output"),
    "cls_attention": _encoder_row("[B,H,N]", "softmax attention of CLS to each patch, per head", "q", "k"),
    "received_attention": _encoder_row(
        "[B,H,N]", "mean attention a patch receives from all tokens", "q", "k"
    ),
    "encoder_attention": _encoder_map("[B,H,N,N]", "patch-to-patch attention of an encoder layer", "q", "k"),
    "patches": _encoder("[B,N,3,P,P]", "pixels behind the token, as the encoder received them", "pixels"),
    # decoder layer
    "hidden_in": _layer("[B,N,D]", "residual stream entering the layer, before its first norm", "in"),
    "attn_out": _layer("[B,N,D]", "residual stream after attention, before the second norm", "attn_out"),
    "post_attention_norm": _layer("[B,N,D]", "output of the second norm: what feeds the MLP", "norm2"),
    "hidden_out": _layer("[B,N,D]", "residual stream leaving the layer", "out"),
    "hidden_normed": _layer("[B,N,D]", "hidden_out through the model's final norm", "out"),
    "text_hidden_normed": _layer("[B,T,D]", "the same at the text tokens", "out"),
    "keys": _layer("[B,H,N,d]", "keys of the layer after rotary embedding, key-value heads", "k"),
    "text_keys": _layer("[B,H,T,d]", "the same at the text tokens", "k"),
    "values": _layer("[B,H,N,d]", "values of the layer, key-value heads", "v"),
    "attention_last": _layer_row("[B,H,N]", "attention of the last prompt token", "q", "k"),
    "attention_text": _layer_row("[B,H,T,N]", "attention of every text token after the picture", "q", "k"),
    "attention_visual": _layer_map("[B,H,N,N]", "attention among visual tokens of the layer", "q", "k"),
    "lookahead_last": _layer_row("[B,H,N]", "attention_last of the next layer, from its own weights", "out"),
    "lookahead_text": _layer_row("[B,H,T,N]", "attention_text of the next layer", "out"),
    "lookahead_visual": _layer_map("[B,H,N,N]", "attention_visual of the next layer", "out"),
    "lookahead_keys": _layer("[B,H,N,d]", "keys of the next layer, rotated there", "out"),
    "attention_logits": _logits("[B,H,L,L]", "scaled logits of the whole sequence, padding masked", "q", "k"),
    "transition": _change("[B,N]", "token transition variation (1 - cos), both sublayers", *_SUBLAYERS),
    "transition_abs": _change("[B,N]", "the same with 1 - |cos|", *_SUBLAYERS),
}


def signal_info(name: str) -> SignalInfo:
    """Look a signal up by name; a layer after `@` is allowed.

    Raises SignalError for an unknown name, with the nearest known one.
    """
    base = name.split("@", 1)[0]
    if base not in SIGNALS:
        raise SignalError(f"unknown signal {name!r}{nearest(base, SIGNALS)}")
    return SIGNALS[base]


def signals_at(*places: Place) -> frozenset[str]:
    """Base names of all signals of these places."""
    return frozenset(name for name, info in SIGNALS.items() if info.place in places)


def attention_need(names: Iterable[str]) -> Attention:
    """The most expensive attention that any of these signals asks for."""
    return max((signal_info(name).attention for name in names), default=Attention.NONE)


class Signals(Mapping[str, Tensor]):
    """Read-only mapping from signal name to tensor, with the padding mask of its visual tokens.

    Parameters
    ----------
    tensors
        Canonical names (see `SIGNALS`) to tensors; the first axis of all is the same batch.
    mask
        `[B,N]` bool, True at real tokens; all True when None.
    sample
        `[B]` int64, the sample that each problem came from once samples are split into groups.

    Raises
    ------
    SignalError
        For unknown names and for shapes that disagree on B or N.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], mask: Tensor | None = None, *, sample: Tensor | None = None
    ):
        sizes = {}
        want_tensor("mask", mask, error=SignalError)
        want_tensor("sample", sample, error=SignalError)
        for name, tensor in tensors.items():
            want_tensor(f"signal {name!r}", tensor, error=SignalError)
            info = signal_info(name)
            if tensor.dim() != len(info.axes):
                raise SignalError(f"signal {name!r} must have shape {info.shape}, got {list(tensor.shape)}")
            for dim in info.token_dims:
                sizes[f"{name} (axis {dim})"] = tensor.shape[dim]
        if mask is not None:
            sizes["mask"] = mask.shape[1]
        batches = {name: tensor.shape[0] for name, tensor in tensors.items()}
        if mask is not None:
            batches["mask"] = mask.shape[0]
        for what, found in (("visual tokens N", sizes), ("batch B", batches)):
            if len(set(found.values())) > 1:
                raise SignalError(f"signals disagree on {what}: {found}")
        if not sizes:
            raise SignalError("no signal with visual tokens was given")
        self._tensors = dict(tensors)
        self.batch, self.tokens = next(iter(batches.values())), next(iter(sizes.values()))
        device = next(iter(tensors.values())).device if tensors else mask.device  # type: ignore[union-attr]
        self.mask = (
            torch.ones(self.batch, self.tokens, dtype=torch.bool, device=device) if mask is None else mask
        )
        self.ragged = mask is not None
        self.device = device
        self.sample = torch.arange(self.batch, device=device) if sample is None else sample

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise SignalError(f"signal {name!r} is not available here{nearest(name, self._tensors)}")
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {describe(self._tensors[name])}" for name in sorted(self._tensors))
        return f"{type(self).__name__}({found}{'; ragged' if self.ragged else ''})"

    @property
    def given_mask(self) -> Tensor | None:
        """`mask` where there is padding; None where all tokens are real, and nothing has to be masked."""
        return self.mask if self.ragged else None

    def view(self, needs: Iterable[str]) -> SignalView:
        """A guarded view for one part: reading anything outside `needs` raises."""
        return SignalView(self, frozenset(needs))

    def bad_values(self, names: Iterable[str]) -> Tensor:
        """`[B]` bool: samples in which one of the named signals is NaN or infinite at a real token."""
        bad = torch.zeros(self.batch, dtype=torch.bool, device=self.device)
        for name in names:
            tensor, real = self[name], None
            if self.ragged:
                real = across(self.mask, signal_info(name).token_dims, rank=tensor.dim())
            bad |= not_finite(tensor, real)
        return bad


class SignalView(Signals):
    """What one part sees: its declared signals and nothing else.  `reads` records what it looked at."""

    def __init__(self, signals: Signals, needs: frozenset[str]):
        self._signals, self._needs = signals, needs
        self.reads: set[str] = set()
        self.batch, self.tokens = signals.batch, signals.tokens
        self.mask, self.ragged, self.device = signals.mask, signals.ragged, signals.device
        self.sample = signals.sample

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._needs:
            raise SignalError(
                f"this part reads signal {name!r} without declaring it; declared: "
                f"{', '.join(sorted(self._needs)) or 'none'}"
            )
        self.reads.add(name)
        return self._signals[name]

    def __repr__(self) -> str:
        return f"SignalView(of {', '.join(sorted(self._needs)) or 'nothing'} in {self._signals!r})"

    def __contains__(self, name: object) -> bool:
        return name in self._needs and name in self._signals

    def __iter__(self) -> Iterator[str]:
        return iter(self._needs)

    def __len__(self) -> int:
        return len(self._needs)
