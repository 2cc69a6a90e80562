"""The base class of everything that an insertion can name as its site."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from pruneopt.models.base import ModelAdapter
from pruneopt.models.hooks import Attachments
from pruneopt.spec.schema import Spec

if TYPE_CHECKING:
    from pruneopt.models.prefill import Prefill


class Site(ABC):
    """The stages of a spec that one mechanism carries out, on one model.

    A file of this folder is the site of its name; other packages register theirs in the entry-point group
    `pruneopt.sites`.  An object lives as long as the spec is applied.  What belongs to one pass over a prompt
    is in the `Prefill` that every call gets; the rest, such as what was seen of pictures that are encoded
    ahead of their prompt, is dropped by `forget`.

    In a pass `text_starts` comes first, then `before_layer` and `after_layer` for each decoder layer, then
    `finish`.  Where an earlier and a later site act at one layer, they do so in the order of their stages.

    Attributes
    ----------
    name
        The registered name.
    stages
        The stages whose insertion names this site, in order of depth.

    Raises
    ------
    ModelError
        On construction, for a stage that cannot be carried out on this model.  Nothing is attached yet.
    """

    name: ClassVar[str]

    def __init__(self, adapter: ModelAdapter, spec: Spec):
        self.adapter, self.spec = adapter, spec
        self.stages = tuple(stage for stage in spec.stages if stage.insertion.site == self.name)

    @classmethod
    def serves(cls, family: type[ModelAdapter]) -> bool:
        """Whether models of a family have what this site attaches to; for `pruneopt list models`."""
        return True

    @property
    @abstractmethod
    def layers(self) -> frozenset[int]:
        """Decoder layers that work on fewer columns, in the prompt or after it.

        A prompt that did not run through their hooks is an error, and a sliding window in one of them must
        hold everything.
        """

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the report of every prompt."""
        return ()

    def attach(self, attachments: Attachments) -> None:
        """Attach hooks of its own; removal restores the model."""
        return

    def forget(self) -> None:
        """Drop what was seen of pictures whose prompt is done, or never came."""
        return

    def text_starts(self, run: Prefill) -> None:
        """The language model is entered; encoder signals are there."""
        return

    def before_layer(self, run: Prefill, index: int, *, hidden: Tensor) -> Tensor:
        """Return the hidden states `[B,W',D]` with which decoder layer `index` goes on."""
        return hidden

    def after_layer(self, run: Prefill, index: int) -> None:
        """A decoder layer has run; the signals of it are there."""
        return

    def finish(self, run: Prefill) -> None:
        """All layers have run and the cache is full; nothing is reported yet."""
        return
