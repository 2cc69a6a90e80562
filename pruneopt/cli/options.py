"""Options that several commands share, and the words that their values are made of."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from pruneopt.errors import ModelError

if TYPE_CHECKING:
    from PIL.Image import Image

Overrides = Annotated[
    list[str] | None, typer.Argument(help="key.path=value, such as budget.keep=0.25", show_default=False)
]
Method = Annotated[str, typer.Option("--method", "-m", help="a method name or the path of a spec")]
Names = Annotated[str | None, typer.Option(help="names or patterns, separated by commas; all if left out")]
Threads = Annotated[int, typer.Option(min=0, help="torch threads; 0 is all cores")]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose groups of options stand side by side on the command line.

    A parameter that is annotated with a dataclass becomes one option for each of its fields, and gets the
    dataclass made of their values.
    """
    # typer reads options off the signature, where annotations are text until they are resolved.
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    inside = {name: inspect.signature(group).parameters for name, group in groups.items()}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            types = get_type_hints(groups[name], include_extras=True)
            flat += [p.replace(annotation=types[p.name], kind=p.KEYWORD_ONLY) for p in inside[name].values()]
        else:
            flat.append(parameter.replace(annotation=hints[name]))

    @wraps(command)
    def ungrouped(**options: Any) -> None:
        for name, group in groups.items():
            options[name] = group(**{option: options.pop(option) for option in inside[name]})
        command(**options)

    ungrouped.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    ungrouped.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return ungrouped


def split(text: str | None) -> list[str] | None:
    """Words separated by commas, or None when there is none."""
    return [word.strip() for word in (text or "").split(",") if word.strip()] or None


def counts(text: str) -> list[int]:
    """Whole numbers from 1, separated by commas. Raises BadParameter for anything else."""
    try:
        found = [int(word) for word in split(text) or []]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise typer.BadParameter(f"{text!r} is not a list of whole numbers from 1, such as 64,144")
    return found


def budgets(text: str) -> list[float | int]:
    """Ratios or counts separated by commas. Raises BadParameter, or SpecError for one out of range."""
    from pruneopt.problems.budget import Budget

    try:
        found = [float(word) for word in split(text) or []]
    except ValueError:
        found = []
    if not found:
        raise typer.BadParameter(f"{text!r} is not a list of ratios or counts, such as 0.5,64")
    kept = [int(value) if value > 1 and value.is_integer() else value for value in found]
    return [Budget(keep=value).keep for value in kept]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question about a picture, for a model."""

    model: Annotated[
        str, typer.Option(help="folder or hub id of a supported model; 'demo' is the embedded one")
    ]
    image: Annotated[str, typer.Option(help="picture file; 'demo' has its own")]
    prompt: Annotated[str, typer.Option(help="what to ask about it")]

    def read(self) -> tuple[Image, str]:
        """Picture and prompt, good for the model. Raises InputError for what cannot be asked."""
        from pruneopt.show.images import asked

        return asked(self.model, self.image, prompt=self.prompt)


@dataclass(frozen=True, kw_only=True)
class MaybeAsked(Asked):
    """The same where it can be left out: no model, no question."""

    model: Annotated[str, typer.Option(help="folder or hub id of a supported model, or 'demo'")] = ""
    image: Annotated[str, typer.Option(help="picture for --model; 'demo' has its own")] = ""
    prompt: Annotated[str, typer.Option(help="question for --model")] = "What is in the picture?"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how a model runs; checked when it is made, before any model is loaded.

    Raises ModelError for a device that is not there, an unknown dtype or attention setting.
    """

    device: Annotated[str, typer.Option(help="where the model runs: cpu, cuda, cuda:1, ...")] = "cpu"
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32"
    attention: Annotated[str, typer.Option(help="its own attention setting: eager, sdpa, ...")] = "sdpa"

    def __post_init__(self) -> None:
        from pruneopt.models.load import attention_of, device_of, dtype_of

        device_of(self.device), dtype_of(self.dtype), attention_of(self.attention)

    def load(self, source: str, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
        """Model on its device, and processor; `demo` is the embedded model.

        Raises ModelError for what cannot be loaded or does not fit on the device.
        """
        from pruneopt.models.load import load_model, quiet

        quiet()  # its bars would stand between our own lines
        if source == "demo":
            model, processor = self._demo()
        else:
            model, processor = load_model(
                source, self.dtype, attention=self.attention, trust_remote_code=trust_remote_code
            )
        try:
            return model.to(self.device), processor
        except Exception as error:
            raise ModelError(f"model {source!r} cannot be moved to {self.device}: {error}") from error

    def _demo(self) -> tuple[Any, Any]:
        from pruneopt.demo.assets import load_model
        from pruneopt.models.load import dtype_of

        try:
            return load_model(dtype_of(self.dtype), self.attention)
        except Exception as error:
            raise ModelError(f"the embedded model cannot be loaded: {error}") from error
