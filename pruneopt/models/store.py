"""Signals of the visual tokens that are still there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pruneopt.errors import SignalError
from pruneopt.models.capture.stream import Stream, signals_of
from pruneopt.models.columns import Columns, take
from pruneopt.models.prompt import Prompt
from pruneopt.signals import Place, Signals, signal_info
from pruneopt.spec.schema import StageSpec

Key = tuple[str, int | None]  # base name of a signal and the layer that it is of


class SignalStore(Mapping[Key, Tensor]):
    """Captured tensors by name and layer.  `crop` `[B',N]` says which crop each token came from, for signals
    that exist once per crop.
    """

    def __init__(self, prompt: Prompt):
        self._tensors: dict[Key, Tensor] = {(name, None): t for name, t in prompt.geometry.items()}
        self["size", None] = torch.ones(prompt.place.shape, device=prompt.place.device)
        self.several = prompt.groups > 1
        self.crop: Tensor | None = None

    def __getitem__(self, key: Key) -> Tensor:
        return self._tensors[key]

    def __setitem__(self, key: Key, tensor: Tensor) -> None:
        self._tensors[key] = tensor

    def __iter__(self) -> Iterator[Key]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def update(self, tensors: Mapping[Key, Tensor]) -> None:
        self._tensors.update(tensors)

    def carry(self, tokens: Tensor) -> None:
        """Keep the tokens numbered `[B',K]` of everything that is held."""
        if self.crop is not None:
            self.crop = take(self.crop, tokens)
        for key, tensor in self._tensors.items():
            for dim in signal_info(key[0]).token_dims:
                tensor = take(tensor, tokens, dim=dim)
            self._tensors[key] = tensor

    def signals(self, stage: StageSpec, columns: Columns, *, hidden: Tensor) -> Signals:
        """Everything that a stage reads; `hidden` `[B,W,D]` is the stream that it cuts.

        Raises SignalError for the importance of an earlier cut where none ranked tokens.
        """
        names = set(stage.needs)
        if self.several:
            names.add("group")
        if not any(signal_info(name).token_dims for name in names):
            names.add("xy")
        tensors = signals_of("now", names, stream=Stream(columns, hidden))
        for name in sorted(names - set(tensors)):
            base, _, at = name.partition("@")
            if signal_info(base).place is not Place.CROP:
                tensors[name] = self[self._key(base, at, cut=stage.insertion.layer_index)]
        return Signals(tensors, columns.mask if columns.ragged else None)

    def per_crop(self, name: str, crops: Tensor) -> Tensor:
        """A signal that exists once per crop, at the crops numbered `[P]`."""
        base, _, at = name.partition("@")
        return self[base, int(at) if at else None][crops]

    def _key(self, base: str, at: str, *, cut: int) -> Key:
        """Without a layer in its name a signal is that of no layer, or of the last one that ran."""
        if at:
            return base, int(at)
        if (base, None) in self:
            return base, None
        if base == "importance":
            raise SignalError("signal 'importance' needs an earlier cut that ranks tokens; there was none")
        return base, cut - 1
