"""What no part may do: change what it is given, remember a call, draw from a global generator."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruneopt.testing.calls import agree
from pruneopt.testing.core import require


def tensors_in(thing: Any) -> dict[str, Tensor]:
    """The tensors among the attributes of an object, by name."""
    return {name: value for name, value in vars(thing).items() if isinstance(value, Tensor)}


def require_pure(run: Callable[[], Tensor], given: Mapping[str, Tensor]) -> None:
    """Fail when a call changes something of `given` in place, or does not give the same bits twice."""
    before = {name: (tensor.clone(), tensor._version) for name, tensor in given.items()}
    first = run()
    for name, (copy, version) in before.items():
        kept = given[name]._version == version and torch.equal(given[name], copy)
        require(kept, f"{name} was changed in place; clone it first, and mind its views")
    once = first.clone()
    require(agree(run(), once) == 0, "two calls differ; keep no state")
    require(agree(first, once) == 0, "a second call changed the first result in place")


def require_own_generator(run: Callable[[], Tensor]) -> None:
    """Fail when a call moves a global random generator, or gives something else under another state of it."""
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()
    results = []
    try:
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            before = _states()
            results.append(run())
            cure = "draw from torch.Generator().manual_seed(seed)"
            require(_states() == before, f"a global random generator was used; {cure}")
    finally:
        torch.set_rng_state(saved[0])
        np.random.set_state(saved[1])
        random.setstate(saved[2])
    require(agree(*results) == 0, "the result depends on a global random generator")


def _states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr]
