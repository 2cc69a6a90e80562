"""What an adapter says about a model family.

A family is one file: a subclass of `ModelAdapter` with every `config.model_type` it serves in `model_types`.
It says where the decoder layers and the encoder are, which columns are visual and what picture they show;
everything else is shared.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from pruneopt.errors import InputError, ModelError
from pruneopt.registry import registry

if TYPE_CHECKING:
    from pruneopt.models.capture.encoder import Encoder


# what hooks and captures look for in a decoder layer
_LAYER_PARTS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "input_layernorm", "post_attention_layernorm",
    "mlp",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """Tokens of one image or video, in the order in which they stand in the prompt (CPU tensors).

    `xy`, `grid` `[n,2]`: place on and size of the grid of the token's own crop or frame; `crop` `[n]`: which
    crop or frame that is, from 0; `tile` `[n,2]`: column and row of that crop in the picture, -1 for a
    thumbnail; `time` `[n]`: frame number, 0 for images; `free` `[n]` bool: False for separators, which stay
    like text.
    """

    xy: Tensor
    grid: Tensor
    crop: Tensor
    tile: Tensor
    time: Tensor
    free: Tensor

    @classmethod
    def plain(cls, width: int, height: int, *, frames: int = 1) -> Picture:
        """Raster order over `frames` grids; each frame is a group of its own."""
        index = torch.arange(width * height * frames)
        cell, frame = index % (width * height), index // (width * height)
        xy = torch.stack([cell % width, cell // width], 1)
        grid = torch.tensor([width, height]).expand(len(index), 2)
        free = torch.ones(len(index), dtype=torch.bool)
        return cls(xy, grid, frame, torch.zeros_like(xy), frame, free)

    def __len__(self) -> int:
        return len(self.xy)

    def separated(self, place: Tensor) -> Picture:
        """Its tokens numbered `place` `[m]`; a number before the first or past the last is a separator."""
        inside = place.clamp(0, len(self) - 1)
        found = Picture(*(getattr(self, item.name)[inside] for item in fields(self)))
        return replace(found, free=found.free & (inside == place))


class ModelAdapter(ABC):
    """One supported model.

    Class attributes: `family` (for tables), `model_types` (values of `config.model_type`), `refuses` (modes
    of this family that are refused on top of the common ones, with the reason), `encoder_signals`.
    Raises ModelError on construction when the layout is not the one looked for.
    """

    family: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    encoder_signals: ClassVar[tuple[str, ...]] = ()
    refuses: ClassVar[Mapping[str, str]] = {}
    text_path: ClassVar[str] = "language_model"
    image_token: ClassVar[str] = "image_token_id"
    video_token: ClassVar[str | None] = None

    def __init__(self, model: nn.Module):
        self.model = model
        self.config: Any = model.config
        inner = getattr(model, "model", None)
        self.base: Any = inner if isinstance(inner, nn.Module) and hasattr(inner, self.text_path) else model
        self.text: Any = self._find(self.base, self.text_path)
        self.layers: Sequence[Any] = self._find(self.text, "layers")
        self.text_config: Any = self.text.config
        for part in _LAYER_PARTS:
            self._find(self.layers[0], part)
        for part in ("rotary_emb", "norm"):
            self._find(self.text, part)
        if not isinstance(self.layers[0].self_attn.k_proj.weight, Tensor):
            raise ModelError(
                "the linear layers of this model are quantised dynamically: activations are scaled by what "
                "else is in the batch, so removal would change every token; quantise weights only, or use "
                "the plain model"
            )
        self._signature = inspect.signature(type(self.base).forward)

    def _find(self, owner: Any, path: str) -> Any:
        found = owner
        for name in path.split("."):
            if not hasattr(found, name):
                raise ModelError(
                    f"{type(self.model).__name__} is not laid out as {self.family} is: looked for {path!r} "
                    f"in {type(owner).__name__}; supported transformers are 5.17 to 5.x, unmodified"
                )
            found = getattr(found, name)
        return found

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Named arguments of a call of the base model."""
        try:
            bound = self._signature.bind_partial(self.base, *args, **kwargs).arguments
        except TypeError as error:
            raise ModelError(f"{type(self.base).__name__} was called in an unknown way: {error}") from error
        named = {k: v for k, v in bound.items() if k not in ("self", "kwargs")}
        return {**named, **bound.get("kwargs", {})}

    def stream(self, inputs: Mapping[str, Any]) -> Tensor:
        """`[B,L]` int64 on the model's device: 1 at image, 2 at video placeholders, 0 elsewhere."""
        ids = inputs.get("input_ids")
        given = inputs.get("inputs_embeds") if ids is None else ids
        if given is None:
            raise InputError("the model was called without input_ids or inputs_embeds")
        out = torch.zeros(given.shape[:2], dtype=torch.int64, device=given.device)
        for number, name in ((1, self.image_token), (2, self.video_token)):
            token = getattr(self.config, name or "", None)
            if token is None:
                continue
            if ids is not None:
                here = ids == token
            else:
                table = self.base.get_input_embeddings()
                here = (given == table(torch.tensor(token, device=given.device))).all(-1)
            out += number * here
        return out

    @abstractmethod
    def pictures(self, inputs: Mapping[str, Any]) -> tuple[list[Picture], list[Picture]]:
        """Images and videos of the batch, each in the order in which their features are produced."""

    @property
    def side(self) -> int:
        """Patches along one side of a crop, in families whose crops are squares of one size."""
        vision = self.config.vision_config
        sizes = (vision.image_size, vision.patch_size)
        image, patch = (size[0] if isinstance(size, (list, tuple)) else size for size in sizes)
        return int(image) // int(patch)

    def encoder(self) -> Encoder:
        """The vision encoder, for signals of it.  Raises ModelError where the family exposes none."""
        raise ModelError(f"{self.family} exposes no encoder signals")

    def pack(self, signal: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Encoder patches `[crops,P,C]` of images to visual tokens `[tokens,C]`, as features are packed."""
        return signal.flatten(0, 1)

    def pack_video(self, signal: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """The same for patches of videos; as for images unless a family says otherwise."""
        return self.pack(signal, inputs)

    def take_deepstack(self, kwargs: dict[str, Any]) -> tuple[Tensor, list[Tensor]] | None:
        """Features that the text model adds after its first layers: visual columns `[B,L]`, and per layer
        `[visual columns,D]` in row order; None for families that add none.
        """
        return None

    def without_deepstack(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the text model without those features."""
        return kwargs

    @classmethod
    def towers(cls) -> str:
        """Encoder signals in words, for `pruneopt list models`."""
        return ", ".join(cls.encoder_signals) or "none"


def adapter_for(model: Any) -> ModelAdapter:
    """The adapter of a model.

    Raises ModelError for wrapped models, models without a language head, and unknown families.
    """
    from pruneopt.models.compat import check_transformers

    check_transformers()
    name = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise ModelError(
            "the model is wrapped by torch.compile, which ignores hooks added later; prune the plain model "
            "(model._orig_mod)"
        )
    if hasattr(model, "get_base_model"):
        raise ModelError(
            f"a {name} cannot be pruned, but the model inside it can, adapters included: prune "
            "model.get_base_model()"
        )
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise ModelError(f"a {name} cannot be pruned; give a transformers model")
    kind = str(getattr(model.config, "model_type", ""))
    families = registry("models")
    if kind not in families:
        raise unsupported(name, kind)
    if not hasattr(model, "generate"):
        raise ModelError(
            f"a {name} is the inside of a model: calls of the whole one, which has the language head, could "
            "not be checked; prune the model that has generate"
        )
    adapter: ModelAdapter = families.get(kind)(model)
    return adapter


def unsupported(what: str, kind: str) -> ModelError:
    """The error for something of a `model_type` that no adapter serves."""
    known = ", ".join(sorted(registry("models")))
    return ModelError(
        f"{what} is of model_type {kind!r}, which pruneopt has no adapter for; supported types: {known}. "
        'Another family takes one file: see "Adding a family" in docs/models.md'
    )
