"""Hooks of a pruned model: each hands over to the pass that is under way."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pruneopt.errors import ModelError
from pruneopt.models.base import ModelAdapter
from pruneopt.models.cache import held, recall
from pruneopt.models.capture.decoder import DecoderCapture
from pruneopt.models.capture.encoder_signals import EncoderCapture
from pruneopt.models.compat import replays_hooks
from pruneopt.models.decode import Decode
from pruneopt.models.hooks import Attachments
from pruneopt.models.plan import plan_captures
from pruneopt.models.prefill import Prefill, Sources, checks_each_cut
from pruneopt.models.prompt import has_pixels, read_prompt, refuse_without_text
from pruneopt.models.run import Run
from pruneopt.models.sites import Site
from pruneopt.pruner import Clock
from pruneopt.spec.schema import Spec


class Wiring:
    """What is attached to a model while a spec is applied to it.

    All state of a forward pass is one object, `current`, that is made when the model's forward is entered and
    dropped when it is left, by whatever road.  One thread at a time runs a `generate` or a forward: a model
    has one set of hooks, so the others wait.
    """

    def __init__(
        self, adapter: ModelAdapter, spec: Spec, *, sites: Sequence[Site], clock: Callable[[], Clock]
    ):
        plan, encoder = plan_captures(spec)
        self.adapter, self.spec, self.clock, self.run = adapter, spec, clock, Run(adapter, spec)
        self.sites = sites
        self.decoder = DecoderCapture(adapter, plan)
        self.encoder = EncoderCapture(adapter, encoder) if encoder else None
        self.lock = threading.RLock()
        self.current: Prefill | Decode | None = None
        self._ahead: dict[str, Any] = {}  # inputs of pictures that were encoded ahead of their prompt
        self._ahead_by = 0  # the thread that encoded them
        self._noting = False

    def attach(self, attachments: Attachments) -> None:
        """Attach everything; `attachments` undoes it."""
        adapter = self.adapter
        attachments.around(adapter.base, "forward", call=self._forward)
        for name in ("get_image_features", "get_video_features"):
            if hasattr(adapter.base, name):
                attachments.around(adapter.base, name, call=self._encode)
        attachments.before(adapter.text, self._text)
        attachments.before(adapter.text.rotary_emb, self._rotary)
        for site in self.sites:  # before the captures: what they see of the encoder is what a site made of it
            site.attach(attachments)
        if self.encoder is not None:
            self.encoder.watch(attachments.watch)
        self.decoder.watch(attachments.watch, self._captured)
        for index, layer in enumerate(adapter.layers):
            attachments.before(layer, self._before(index))
            attachments.after(layer, self._after(index))

    # what surrounds a pass

    def one_at_a_time(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A whole `generate`, from its first picture to its last token."""
        with self.lock:
            try:
                return generate(*args, **kwargs)
            finally:
                self.forget_pictures()

    def forget_pictures(self) -> None:
        """Drop what was captured of pictures whose prompt is done, or never came."""
        self._ahead = {}
        if self.encoder is not None:
            self.encoder.clear()
        for site in self.sites:
            site.forget()

    def _forward(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            outer = self.current
            try:
                self.current = self._begin(self.adapter.bind(args, kwargs))
                output = forward(*args, **kwargs)
                results = None if self.current is None else self.current.finish(output)
            finally:
                self.current = outer
                self.forget_pictures()
            if results is not None:
                self.run.done(*results)
            return output

    def _encode(self, encode: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`get_image_features` and its like, remembering what is encoded ahead of its prompt."""
        with self.lock:
            if self.current is not None or self._noting:
                return encode(*args, **kwargs)
            if self._ahead_by != threading.get_ident():
                self.forget_pictures()
            self._ahead_by, self._noting = threading.get_ident(), True
            bound = inspect.signature(encode).bind_partial(*args, **kwargs).arguments
            self._ahead |= {k: v for k, v in bound.items() if k != "kwargs"}
            try:
                return encode(*args, **kwargs)
            except BaseException:
                self.forget_pictures()
                raise
            finally:
                self._noting = False

    def _begin(self, inputs: dict[str, Any]) -> Prefill | Decode | None:
        """The pass that these inputs ask for; None for one on a cache that nothing was removed from."""
        if has_pixels(inputs) or not self._ahead or self._ahead_by != threading.get_ident():
            self.forget_pictures()
        else:
            inputs |= {k: v for k, v in self._ahead.items() if v is not None}
        cache = inputs.get("past_key_values")
        if cache is not None and getattr(cache, "is_compileable", False):
            raise ModelError(
                f"a {type(cache).__name__} has one length for all layers and cannot hold a pruned prompt; "
                "use the default dynamic cache (drop cache_implementation)"
            )
        if cache is None or not cache.get_seq_length():
            return self._prefill(inputs)
        state = recall(cache)
        if bool((self.adapter.stream(inputs) > 0).any()) and has_pixels(inputs):
            raise ModelError(
                "a picture that comes after a cached prompt cannot be pruned; give all pictures in the first "
                "prompt, or start with an empty cache"
            )
        if state is not None:
            return Decode(self.adapter, inputs, state=state, seen=int(cache.get_seq_length()))
        if len({held(cache, layer) for layer in range(len(cache.layers))}) > 1:
            raise ModelError(
                "the cache holds layers of different length but was not pruned by this library; start "
                "with an empty cache"
            )
        return None

    def _prefill(self, inputs: Mapping[str, Any]) -> Prefill:
        if any(map(replays_hooks, self.adapter.layers)):
            raise ModelError(
                "this version of transformers would cut again when the backward pass recomputes a layer; "
                "switch gradient checkpointing off, or update transformers"
            )
        prompt = read_prompt(self.adapter, inputs)
        refuse_without_text(prompt, self.spec.needs)
        return Prefill(
            self.adapter, self.spec, prompt=prompt, sources=Sources(self.decoder, self.encoder, inputs),
            sites=self.sites, clock=self.clock, check=checks_each_cut(prompt.place.device),
        )  # fmt: skip

    # what happens inside one

    def _captured(self, layer: int, slot: str, value: Tensor) -> None:  # noqa: PLR0917 - captures call it
        if isinstance(self.current, Prefill):
            self.current.sources.captured.keep(layer, slot, value=value)

    # Arguments by position: torch calls hooks so.

    def _text(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: PLR0917
        return None if self.current is None else self.current.text_starts(args, kwargs)

    def _rotary(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: PLR0917
        if self.current is not None:
            self.current.positions_are(kwargs["position_ids"] if "position_ids" in kwargs else args[1])

    def _before(self, index: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: PLR0917
            if self.current is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            found = self.current.before_layer(index, hidden, kwargs=kwargs)
            if found is None:
                return None
            hidden, changed = found
            if args:
                return (hidden, *args[1:]), {**kwargs, **changed}
            return args, {**kwargs, **changed, "hidden_states": hidden}

        return hook

    def _after(self, index: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:  # noqa: PLR0917
            return None if self.current is None else self.current.after_layer(index, output)

        return hook
