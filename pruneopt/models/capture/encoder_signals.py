"""Encoder signals of the visual tokens: captured per crop, packed as the model packs its features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruneopt.errors import ModelError
from pruneopt.models.base import ModelAdapter
from pruneopt.models.prompt import Prompt
from pruneopt.signals import Place, signal_info


class EncoderCapture:
    """Signals `names` (base, block or None) of the vision encoder."""

    def __init__(self, adapter: ModelAdapter, names: set[tuple[str, int | None]]):
        self.adapter, self.names = adapter, names
        self.encoder = adapter.encoder()
        for base, layer in sorted(names, key=str):
            if base not in adapter.encoder_signals:
                raise ModelError(
                    f"{adapter.family} has no signal {base!r}; it has {', '.join(adapter.encoder_signals)}"
                )
            self.encoder.check(base)
            self.encoder.resolve(layer)

    def watch(self, add: Callable[[nn.Module, str, Callable[[Any], None]], None]) -> None:
        slots = {slot for base, layer in self.names for slot in self.encoder.slots(base, layer)}
        self.encoder.watch(slots, add)

    def clear(self) -> None:
        self.encoder.clear()

    def collect(self, inputs: Mapping[str, Any], prompt: Prompt) -> dict[tuple[str, int | None], Tensor]:
        """Every signal at the free visual tokens of the batch; those that exist once per crop as
        `[crops, ...]`.
        """
        out: dict[tuple[str, int | None], Tensor] = {}
        for base, layer in sorted(self.names, key=str):
            calls = self.encoder.calls(self.encoder.slots(base, layer)[0])
            if not calls:
                raise ModelError(
                    f"signal {base!r} needs the vision encoder to run in this pass, but the features came "
                    "ready made; pass pixel values"
                )
            values = [self.encoder.compute(base, layer, call=call) for call in range(calls)]
            dims = signal_info(base).token_dims
            if not dims:
                found = torch.cat(values)
            elif len(dims) == 2:
                found = self._pairs(values, inputs, prompt=prompt)
            else:
                found = self._packed(values, inputs)[prompt.source].movedim(1, dims[0])
            out[base, layer] = found
        return out

    def _packed(self, values: Sequence[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """`[crops,P,...]` of each call to `[tokens,...]`, as the model packs its features."""
        packs = {"pixel_values": self.adapter.pack, "pixel_values_videos": self.adapter.pack_video}
        given = [pack for name, pack in packs.items() if inputs.get(name) is not None]  # images come first
        if len(given) != len(values):
            raise ModelError(
                f"the vision encoder ran {len(values)} times for {len(given)} inputs; cannot tell which"
            )
        packed = [pack(value.flatten(2), inputs) for pack, value in zip(given, values, strict=True)]
        return torch.cat(packed).unflatten(1, values[0].shape[2:])

    def crops(self, inputs: Mapping[str, Any], prompt: Prompt) -> Tensor | None:
        """`[B',N]`: which crop of the encoder's output each token came from; None when nobody asks."""
        asked = [key for key in sorted(self.names, key=str) if signal_info(key[0]).place is Place.CROP]
        if not asked:
            return None
        calls = self.encoder.raw[self.encoder.slots(*asked[0])[0]]
        patches, sizes = calls[0].shape[1] - self.encoder.cls, [len(call) for call in calls]
        index = torch.arange(sum(sizes), device=prompt.source.device, dtype=torch.float64)
        whole = index[:, None, None].expand(-1, patches, 1)
        return self._numbers(whole.split(sizes), inputs)[prompt.source]

    def _numbers(self, values: Sequence[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        """`[tokens]` int64 of numbers `[crops,P,1]` that were packed like features."""
        return self._packed(values, inputs)[:, 0].round().long()

    def _pairs(self, values: Sequence[Tensor], inputs: Mapping[str, Any], *, prompt: Prompt) -> Tensor:
        """`[crops,P,H,P]` of each call to `[B',H,N,N]`; zero between different crops."""
        maps = torch.cat(list(values)).transpose(1, 2)
        crops, patches = maps.shape[0], maps.shape[2]
        index = torch.arange(crops * patches, device=maps.device, dtype=torch.float64)
        split = index.view(crops, patches, 1).split([len(value) for value in values])
        where = self._numbers(split, inputs)[prompt.source]
        owner, place = torch.div(where, patches, rounding_mode="floor"), where % patches
        taken = maps[owner[:, :, None], :, place[:, :, None], place[:, None, :]]
        same = owner[:, :, None] == owner[:, None, :]
        return taken.masked_fill(~same[..., None], 0).permute(0, 3, 1, 2)
