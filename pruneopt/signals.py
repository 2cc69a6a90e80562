"""Signals: the named tensors that a model exposes where tokens are pruned.

`B` counts samples (or groups, once a pruner has split samples into images, crops or frames), `N` visual
tokens, `T` text tokens after the first visual token, `H` heads, `D` the width of the language model, `C`
that of the encoder.  Padding is marked by `Signals.mask`.  A name may carry a layer, `keys@5`: without one
an encoder signal comes from the layer that the model itself reads features from, and a language-model
signal from the last layer that ran before the cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from pruneopt.brief import describe, want_tensor
from pruneopt.errors import SignalError, nearest


class Attention(IntEnum):
    """What a signal costs attention; the need of a spec is the maximum over its parts."""

    NONE = 0
    ROW = 1  # a few query rows, recomputed beside the fused kernel
    FULL = 2  # the whole map of a layer: incompatible with fused attention


@dataclass(frozen=True)
class SignalInfo:
    """Shape and price of one signal.

    `token_dims` lists the axes that run over visual tokens, so that padding, grouping and gathering need
    no knowledge of the name.
    """

    shape: str
    doc: str
    token_dims: tuple[int, ...] = (1,)
    attention: Attention = Attention.NONE


def _info(shape: str, doc: str, attention: Attention = Attention.NONE) -> SignalInfo:
    dims = tuple(i for i, axis in enumerate(shape.strip("[]").split(",")) if axis.strip() == "N")
    return SignalInfo(shape, doc, dims, attention)


_ROW, _FULL = Attention.ROW, Attention.FULL

SIGNALS: dict[str, SignalInfo] = {
    # geometry, known from shapes alone
    "xy": _info("[B,N,2]", "column and row of the token on the grid of its own image, crop or frame"),
    "grid": _info("[B,N,2]", "width and height of that grid"),
    "group": _info("[B,N]", "number of the image, crop or frame of the token within its sample (int64)"),
    "time": _info("[B,N]", "frame number of the token within its video, 0 for pictures (int64)"),
    "tile": _info(
        "[B,N,2]", "column and row of the token's crop among the crops of its picture; -1 for a thumbnail"
    ),
    "size": _info("[B,N]", "how many original tokens this one stands for; 1 before any merge"),
    "importance": _info("[B,N]", "importance that the previous cut gave to the tokens it kept"),
    "patches": _info("[B,N,3,P,P]", "pixels behind the token, as the encoder received them"),
    # the stream that is pruned
    "features": _info("[B,N,D]", "what is pruned: projected tokens at post_encoder, hidden_out in prefill"),
    "text_features": _info("[B,T,D]", "the same stream at the text tokens after the first visual token"),
    "text_mask": _info("[B,T]", "True where a row of any text_* signal is a real token"),
    "embeddings": _info("[B,N,D]", "language-model input embeddings of the visual tokens"),
    "text_embeddings": _info("[B,T,D]", "language-model input embeddings of the text tokens"),
    "text_index": _info("[B,T]", "place of the text token in the current sequence (int64)"),
    "start_embeddings": _info("[B,M,D]", "input embeddings of all M visual tokens of the unpruned prompt"),
    "start_mask": _info("[B,M]", "True where a row of start_embeddings is a real token"),
    # a text tower beside the encoder (CLIP)
    "clip_features": _info("[B,N,c]", "patches projected into the space shared with the text tower"),
    "clip_text": _info("[B,S,c]", "text segments in that space; segments are equally many in a batch"),
    # vision encoder
    "encoder_features": _info("[B,N,C]", "encoder output before the projector"),
    "encoder_keys": _info("[B,H,N,d]", "keys of an encoder layer, bias included, unscaled"),
    "encoder_queries": _info("[B,H,N,d]", "queries of an encoder layer, bias included, unscaled"),
    "cls_query": _info("[B,H,d]", "query of the CLS token of an encoder layer, unscaled"),
    "cls_key": _info("[B,H,d]", "key of the CLS token of an encoder layer"),
    "cls_feature": _info("[B,C]", "CLS token of the encoder output, before the projector"),
    "cls_attention": _info("[B,H,N]", "softmax attention of CLS to each patch, per head", _ROW),
    "received_attention": _info(
        "[B,H,N]", "mean attention a patch receives from all encoder queries, blockwise", _ROW
    ),
    "encoder_attention": _info("[B,H,N,N]", "patch-to-patch attention of an encoder layer", _FULL),
    # decoder layer
    "hidden_in": _info("[B,N,D]", "residual stream entering the layer, before its first norm"),
    "attn_out": _info("[B,N,D]", "residual stream after attention, before the second norm"),
    "post_attention_norm": _info("[B,N,D]", "output of the layer's second norm: what feeds its MLP"),
    "hidden_out": _info("[B,N,D]", "residual stream leaving the layer"),
    "hidden_normed": _info("[B,N,D]", "hidden_out through the model's final norm"),
    "text_hidden_normed": _info("[B,T,D]", "the same at the text tokens"),
    "keys": _info("[B,H,N,d]", "keys of the layer after rotary embedding, key-value heads"),
    "text_keys": _info("[B,H,T,d]", "the same at the text tokens"),
    "attention_last": _info("[B,H,N]", "attention of the last prompt token", _ROW),
    "attention_text": _info("[B,H,T,N]", "attention of every text token after the picture", _ROW),
    "attention_visual": _info("[B,H,N,N]", "attention among visual tokens of the layer", _FULL),
    "lookahead_last": _info("[B,H,N]", "attention_last of the next layer, from its own weights", _ROW),
    "lookahead_text": _info("[B,H,T,N]", "attention_text of the next layer", _ROW),
    "lookahead_visual": _info("[B,H,N,N]", "attention_visual of the next layer", _FULL),
    "lookahead_keys": _info("[B,H,N,d]", "keys of the next layer, from its own weights and rotary embedding"),
    "attention_logits": _info(
        "[B,H,L,L]",
        "scaled logits of the whole sequence; the lowest finite number where masked, padding included",
        _FULL,
    ),
    "visual_index": _info("[B,N]", "place of the token in the current sequence (int64)"),
    "transition": _info(
        "[B,N]", "token transition variation of a layer (1 - cos), attention and MLP sublayers summed"
    ),
    "transition_abs": _info("[B,N]", "the same with 1 - |cos|"),
}


def signal_info(name: str) -> SignalInfo:
    """Look a signal up by name; a layer after `@` is allowed.

    Raises SignalError for an unknown name, with the nearest known one.
    """
    base = name.split("@", 1)[0]
    if base not in SIGNALS:
        raise SignalError(f"unknown signal {name!r}{nearest(base, SIGNALS)}")
    return SIGNALS[base]


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
        self, tensors: Mapping[str, Tensor], mask: Tensor | None = None, sample: Tensor | None = None
    ):
        sizes = {}
        want_tensor("mask", mask, SignalError)
        want_tensor("sample", sample, SignalError)
        for name, tensor in tensors.items():
            want_tensor(f"signal {name!r}", tensor, SignalError)
            info = signal_info(name)
            rank = info.shape.count(",") + 1
            if tensor.dim() != rank:
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

    def view(self, needs: Iterable[str]) -> SignalView:
        """A guarded view for one part: reading anything outside `needs` raises."""
        return SignalView(self, frozenset(needs))

    def bad_values(self, names: Iterable[str]) -> Tensor:
        """`[B]` bool: samples in which one of the named signals is NaN or infinite at a real token."""
        bad = torch.zeros(self.batch, dtype=torch.bool, device=self.device)
        for name in names:
            tensor = self[name]
            if not tensor.is_floating_point():
                continue
            finite = tensor.isfinite()
            for dim in signal_info(name).token_dims:
                shape = [1] * tensor.dim()
                shape[0], shape[dim] = self.batch, self.tokens
                finite = finite | ~self.mask.view(shape)
            bad |= ~finite.flatten(1).all(1)
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
