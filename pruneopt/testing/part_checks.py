"""What every part must do, whatever it computes: be data."""

from __future__ import annotations

import builtins
import copy
import dataclasses
import json
import math
import pickle
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from torch.overrides import TorchFunctionMode

from pruneopt.errors import PruneoptError, SpecError, nearest
from pruneopt.parts import Part, Weighted
from pruneopt.signals import signal_info
from pruneopt.testing.core import Check, CheckFailure, checks_that, require
from pruneopt.testing.tags import TAGS


def check_spec_round_trip(part: Part) -> None:
    """`from_spec(to_spec())` is an equal part with an equal hash, and the spec is plain data."""
    spec = part.to_spec()
    require(spec.get("kind") == part.name, f"to_spec() names kind {spec.get('kind')!r}, not {part.name!r}")
    try:
        plain = json.loads(json.dumps(spec))
    except TypeError as error:
        raise CheckFailure(
            f"to_spec() is not plain data ({error}); keep only numbers, text, lists"
        ) from error
    again = type(part).from_spec({k: v for k, v in plain.items() if k != "kind"})
    require(
        again == part,
        f"from_spec(to_spec()) gives {again!r}, not {part!r}: a parameter is changed on the way",
    )
    require(_hash(again) == _hash(part), "equal parts have different hashes: do not define __hash__")


def _hash(part: Part) -> object:
    try:
        return hash(part)
    except TypeError:  # a mapping among the parameters
        return json.dumps(part.to_spec(), sort_keys=True)


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(  # noqa: PLR0917 - called by torch
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.seen.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def check_init_stores_only(part: Part) -> None:
    """Constructing runs no torch operation, opens no file and changes no parameter."""
    given = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    opened: list[str] = []
    real_open = builtins.open

    def watched(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(file))
        return real_open(file, *args, **kwargs)

    with _Watch() as watch, patch.object(builtins, "open", watched):
        built = type(part)(**given)
    require(
        not watch.seen, f"constructing ran torch.{', '.join(watch.seen[:3])}; move the work into the call"
    )
    require(not opened, f"constructing opened {opened[:1]}; move the work into the call")
    kept = {f.name: getattr(built, f.name) for f in dataclasses.fields(built)}
    require(kept == given, f"constructing changed parameters from {given} to {kept}")
    extra = set(vars(built)) - set(given)
    require(not extra, f"constructing set attributes that are no parameters: {', '.join(sorted(extra))}")


def check_frozen(part: Part) -> None:
    """Assigning to a part raises: parts are shared between runs and hashed."""
    name = next(iter(dataclasses.fields(part)), None)
    try:
        setattr(part, name.name if name else "anything", 0)
    except dataclasses.FrozenInstanceError:
        return
    raise CheckFailure("attributes can be assigned; decorate the class with @dataclass(frozen=True)")


def check_copies(part: Part) -> None:
    """Pickle, deepcopy and `repr` all give the part back: sweeps send parts to other processes."""
    try:
        again = pickle.loads(pickle.dumps(part))
    except Exception as error:
        raise CheckFailure(f"cannot be pickled ({error}); define the class at module level") from error
    require(again == part, "pickle gives another part back")
    require(copy.deepcopy(part) == part, "deepcopy gives another part back")
    scope: dict[str, Any] = {type(p).__name__: type(p) for _, p in part.walk()}
    scope |= {"Weighted": Weighted, "nan": math.nan, "inf": math.inf}
    try:
        echoed = eval(repr(part), scope)
    except Exception as error:
        raise CheckFailure(f"repr does not read back: {part!r} ({error})") from error
    require(echoed == part, f"repr reads back as another part: {part!r}")


def _refuses(part: Part, changed: dict[str, Any], *, name: str) -> str | None:
    """None when a SpecError names the parameter, else what happened."""
    spec = {**{k: v for k, v in part.to_spec().items() if k != "kind"}, **changed}
    try:
        type(part).from_spec(spec)
    except SpecError as error:
        return None if name in str(error) else f"the SpecError does not name {name!r}: {error}"
    except PruneoptError as error:
        return f"raised {type(error).__name__}, not SpecError: {error}"
    except Exception as error:
        return f"raised {type(error).__name__} instead of SpecError: {error}"
    return f"{name}={changed[name]!r} was accepted"


def check_bad_parameters_refused(part: Part) -> None:
    """Unknown, ill-typed and out-of-range parameters raise SpecError naming the parameter."""
    wrong = _refuses(part, {"no_such_parameter": 1}, name="no_such_parameter")
    require(wrong is None, f"an unknown parameter: {wrong}")
    for item in dataclasses.fields(part):
        meta = item.metadata
        bad: list[Any] = [object()]
        if meta.get("low") is not None:
            bad.append(meta["low"] - 1)
        if meta.get("above") is not None:
            bad.append(meta["above"])
        if meta.get("high") is not None:
            bad.append(meta["high"] + 1)
        if meta.get("choices"):
            bad.append("no such choice")
        if isinstance(getattr(part, item.name), float):
            bad.append(math.nan)
        for value in bad:
            wrong = _refuses(part, {item.name: value}, name=item.name)
            require(wrong is None, f"{wrong}; declare it with param(low=, high=, above=, choices=)")


def check_declarations(part: Part) -> None:
    """Name, documentation, signals and tags are declared in terms that exist."""
    require(isinstance(part.name, str) and part.name.isidentifier(), f"name {part.name!r} is no identifier")
    doc = (type(part).__doc__ or "").strip()
    written = doc and not doc.startswith(type(part).__name__ + "(")  # dataclasses write a signature there
    require(written, "the class has no docstring; say what it computes, shapes, units, sign and source")
    require(isinstance(part.needs, frozenset), f"needs must be a frozenset of names, got {part.needs!r}")
    for name in part.needs:
        signal_info(name)
    require(isinstance(part.tags, frozenset), f"tags must be a frozenset, got {part.tags!r}")
    for tag in part.tags:
        require(tag in TAGS, f"unknown tag {tag!r}{nearest(tag, TAGS)}")
    if "stochastic" in part.tags:
        require(
            any(f.name == "seed" for f in dataclasses.fields(part)),
            "stochastic parts need a `seed` parameter",
        )


def part_checks(part: Part) -> Iterator[Check]:
    """Checks of any part."""
    applies = {
        check_spec_round_trip: True,
        check_init_stores_only: True,
        check_frozen: True,
        check_copies: True,
        check_bad_parameters_refused: True,
        check_declarations: True,
    }
    return checks_that(applies)
