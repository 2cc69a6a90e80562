"""Record canonical signals of a running model, to select from them later without it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pruneopt.parts import BudgetRule
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec


@dataclass(frozen=True)
class _Recorder(BudgetRule):
    """A rule that leaves every count alone and keeps what it was shown."""

    name: ClassVar[str] = "recorder"
    names: tuple[str, ...] = ()
    seen: Any = field(default_factory=list, compare=False, repr=False)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.names)

    def to_spec(self) -> dict[str, Any]:
        return {"kind": self.name, "names": list(self.names)}

    def __call__(self, signals: Signals, k: Tensor, *, importance: Tensor | None) -> Tensor:
        tensors = {name: signals[name].detach().clone() for name in self.names}
        self.seen.append(Signals(tensors, signals.mask.clone() if signals.ragged else None))
        return k


def record_signals(
    model: Any, inputs: Any, *, names: Iterable[str], insertion: str | Mapping[str, Any]
) -> Signals:
    """The named signals of one prompt batch at an insertion point, said as in a spec; nothing is pruned.

    Raises ModelError where the model has no such signal there.
    """
    from pruneopt.models.apply import prune

    any_spec = load_spec("token_norm").to_spec()
    spec = load_spec(
        {
            "name": "record",
            "insertion": insertion,
            "budget": {"keep": 1.0, "scope": "sample"},
            **{key: any_spec[key] for key in ("problem", "solver")},
        }
    )
    recorder = _Recorder(tuple(sorted(names)))
    spec = replace(spec, stages=(replace(spec.stages[0], rule=recorder),))
    with torch.no_grad(), prune(model, spec):
        model(**inputs)
    return recorder.seen[0]
