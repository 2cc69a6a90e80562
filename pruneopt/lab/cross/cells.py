"""Cross parts with each other: which combinations are legal, what they keep, and why the others are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any

import torch

from pruneopt.errors import CostBlindReadoutWarning, PruneoptError, RegistryError, nearest
from pruneopt.lab.clock import Stopwatch
from pruneopt.parts import CostTerm, Insertion, Part, Readout, SubsetSolver, TransportSolver
from pruneopt.problems.kinds import find_kind
from pruneopt.problems.selection import Selection
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.pruner import Pruner
from pruneopt.registry import registry
from pruneopt.signals import Signals
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec

DEFAULT_SCORE = "token_norm"


@dataclass(frozen=True)
class Cell:
    """One combination; `reason` says why it is illegal, and is empty for legal ones."""

    term: str
    problem: str
    solver: str
    readout: str
    insertion: str
    reason: str = ""
    spec: Spec | None = None

    @property
    def legal(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Outcome:
    """What running a legal cell gave: tokens kept per problem, tokens asked for, seconds, or an error."""

    cell: Cell
    kept: tuple[int, ...] = ()
    wanted: tuple[int, ...] = ()
    seconds: float = 0.0
    error: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.error and self.kept == self.wanted


def cross(
    terms: Sequence[str] | None = None,
    solvers: Sequence[str] | None = None,
    insertions: Sequence[str] | None = None,
    readouts: Sequence[str] | None = None,
    keep: float | int = 0.5,
    available: Iterable[str] | None = None,
    threshold: float = 0.9,
) -> list[Cell]:
    """Every combination of the named parts (all registered ones when None), legal or not.

    Parameters
    ----------
    terms: costs, kernels and scores.  A cost term meets transport solvers (with every readout) and dispersion
        problems, a kernel meets the problems over similarities, a score those that rank; problems and
        solvers that need a ranking beside their pairwise term take the norm of the token.  A term that is not
        symmetric enters a problem of unordered pairs with `symmetric: mean`, as its spec says.
    available: base names of the signals at hand; None takes what the insertion point provides.
    keep, threshold: budget of every cell, conflict bound of the kinds that need one.

    Raises RegistryError for an unknown name.
    """
    found = {name: _find(name, ("costs", "kernels", "scores")) for name in terms or _all_terms()}
    picked = {name: _load("solvers", name) for name in solvers or registry("solvers")}
    reads = {name: _load("readouts", name) for name in readouts or registry("readouts")}
    cells = []
    for where in insertions or registry("insertions"):
        insertion = _make(_load("insertions", where))
        assert isinstance(insertion, Insertion)
        given = insertion.provides if available is None else insertion.provides & frozenset(available)
        for solver_name, solver in picked.items():
            for name, (group, part) in found.items():
                for kind, readout, reason in _shapes(group, part, solver, reads):
                    row = (name, kind, solver_name, readout, where)
                    reason = reason or _missing(part, given, insertion, available is not None)
                    cells.append(_cell(row, group, reason, keep, threshold))
    return cells


def run_cells(cells: Iterable[Cell], select: Callable[[Spec], Selection]) -> Iterator[Outcome]:
    """Run every legal cell; a refusal of pruneopt becomes the outcome's error, other exceptions pass."""
    for cell in cells:
        if cell.spec is None:
            continue
        started = Stopwatch()
        try:
            with warnings.catch_warnings():  # the outcome's notes say it
                warnings.simplefilter("ignore", CostBlindReadoutWarning)
                chosen = select(cell.spec)
        except PruneoptError as error:
            yield Outcome(cell, error=str(error), seconds=started.wall)
            continue
        kept = tuple(chosen.keep.sum(1).tolist())
        wanted = _wanted(chosen, kept)
        yield Outcome(cell, kept, wanted, started.wall, notes=chosen.diagnostics)


def on_signals(signals: Signals) -> Callable[[Spec], Selection]:
    """Selections of a spec's first stage on saved signals."""
    return lambda spec: Pruner(spec.stages[0]).select(signals)


def _wanted(chosen: Selection, kept: tuple[int, ...]) -> tuple[int, ...]:
    problem = getattr(chosen.solution, "problem", None)
    k = getattr(problem, "k", None)
    return tuple(k.tolist()) if k is not None and len(k) == len(kept) else chosen.known_counts


def _all_terms() -> list[str]:
    return [name for group in ("costs", "kernels", "scores") for name in registry(group)]


def _find(name: str, groups: Sequence[str]) -> tuple[str, type]:
    for group in groups:
        if name in registry(group):
            return group, registry(group).get(name)
    known = [n for group in groups for n in registry(group)]
    raise RegistryError(f"no {', '.join(groups)} is called {name!r}{nearest(name, known)}")


def _load(group: str, name: str) -> type:
    return registry(group).get(name)


def _make(part: type) -> Part:
    return part.from_spec({})  # type: ignore[attr-defined, no-any-return]


def _lacks(part: type) -> str:
    """Parameters without a default, or the word of a part that needs a file."""
    needed = [f.name for f in fields(part) if f.default is MISSING and f.default_factory is MISSING]
    if needed:
        return f"needs a value for {', '.join(needed)}"
    return "needs a codebook file" if any(f.name == "codebook" for f in fields(part)) else ""


def _shapes(
    group: str, part: type, solver: type, readouts: dict[str, type]
) -> Iterator[tuple[str, str, str]]:
    """`(problem, readout, reason)` of every way that a term could meet a solver."""
    lacks = _lacks(part) or _lacks(solver)
    if issubclass(solver, TransportSolver):
        if group != "costs":
            yield "transport", "-", "transport takes cost terms; this is a " + group[:-1]
            return
        anchor = "an anchor term is no cost between tokens" if _shape(part) == "anchor" else ""
        for name, readout in readouts.items():
            assert issubclass(readout, Readout)
            yield "transport", name, lacks or _lacks(readout) or anchor or _reads(solver, readout)
        return
    assert issubclass(solver, SubsetSolver)
    met = False
    for kind in sorted(solver.kinds):
        rules = find_kind(kind)
        wants, ranks = rules.pairs, "unary" in rules.needs
        if wants == group and _shape(part) != "pairwise":
            met = True
            yield kind, "-", f"{kind} needs distances of pairs; this term is {_shape(part)}"
        elif wants == group or (group == "scores" and ranks and not wants):
            met = True
            groups = group == "scores" and "groups" in part.tags  # type: ignore[attr-defined]
            yield kind, "-", lacks or ("its values number groups, they rank nothing" if groups else "")
    if not met:
        kinds = ", ".join(sorted(solver.kinds))
        yield "-", "-", f"this solver solves {kinds}, none of which takes a {group[:-1]} alone"


@cache
def _reads(solver: type, readout: type) -> str:
    """Why `readout` cannot read what `solver` returns, asked of both on a problem of two tokens."""
    problem = TransportProblem.build(torch.tensor([[[0.0, 1.0], [1.0, 0.5]]]))
    try:
        _make(readout)(problem, _make(solver).solve(problem))  # type: ignore[operator, attr-defined]
    except PruneoptError as error:
        return str(error)
    return ""


@cache
def _needs_scores(solver: type, kind: str) -> bool:
    """Whether `solver` refuses three tokens of this kind without scores and takes them with scores."""
    pairwise = torch.tensor([[[1.0, 0.5, 0.2], [0.5, 1.0, 0.3], [0.2, 0.3, 1.0]]])
    part = _make(solver)
    for unary in (None, torch.tensor([[3.0, 2.0, 1.0]])):
        try:
            part.solve(SubsetProblem.build(kind, 2, unary=unary, pairwise=pairwise))  # type: ignore[attr-defined]
        except PruneoptError:
            continue
        return unary is not None
    return False


def _shape(part: type) -> str:
    return part.shape if issubclass(part, CostTerm) else "pairwise"


def _missing(part: type, given: frozenset[str], insertion: Insertion, saved: bool) -> str:
    needs = {name.split("@", 1)[0] for name in _make(part).needs} if not _lacks(part) else set()
    gone = sorted(needs - given)
    if not gone:
        return ""
    if saved and not set(gone) - insertion.provides:
        return f"signals not at hand: {', '.join(gone)}"
    return f"not provided at {insertion.name}: {', '.join(gone)}"


def _cell(row: tuple[str, str, str, str, str], group: str, reason: str, keep: Any, threshold: float) -> Cell:
    if reason:
        return Cell(*row, reason=reason)
    term, kind, solver, readout, where = row
    problem: dict[str, Any] = {"kind": kind}
    if kind == "transport":
        problem["cost"] = {term: {"kind": term}}
    elif group == "scores":
        problem["scores"] = {term: {"kind": term}}
    else:
        problem["pairwise"] = {term: {"kind": term}}
        if find_kind(kind).symmetric and not _make(_load(group, term)).symmetric:  # type: ignore[attr-defined]
            problem["symmetric"] = "mean"
    needs = frozenset() if kind == "transport" else find_kind(kind).needs
    alone = group != "scores" and kind != "transport"
    if alone and ("unary" in needs or _needs_scores(_load("solvers", solver), kind)):
        problem["scores"] = {"rank": {"kind": DEFAULT_SCORE}}
    if "threshold" in needs:
        problem["threshold"] = threshold
    data = {
        "name": "+".join(part for part in row if part != "-"),
        "insertion": {"kind": where},
        "positions": "keep",
        "budget": {"keep": keep, "scope": "sample"},
        "problem": problem,
        "solver": {"kind": solver},
    }
    if readout != "-":
        data["readout"] = {"kind": readout}
    try:
        return Cell(*row, spec=load_spec(data))
    except PruneoptError as error:
        return Cell(*row, reason=str(error))
