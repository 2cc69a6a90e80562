"""Cross parts with each other: which combinations are legal, what they keep, and why the others are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any

import torch

from pruneopt.errors import CostBlindReadoutWarning, PruneoptError, RegistryError, nearest
from pruneopt.lab.clock import Stopwatch
from pruneopt.parts import CostTerm, Insertion, Kernel, Part, Score, SubsetSolver, TransportSolver
from pruneopt.parts._nested import build_part
from pruneopt.problems.kinds import find_kind
from pruneopt.problems.selection import Selection
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.pruner import Pruner
from pruneopt.registry import registry
from pruneopt.signals import Signals
from pruneopt.spec.resolve import resolve
from pruneopt.spec.schema import Spec

DEFAULT_SCORE = "token_norm"
GROUPS = ("costs", "kernels", "scores")
_BASES: dict[str, type[Part]] = {"costs": CostTerm, "kernels": Kernel, "scores": Score}


@dataclass(frozen=True)
class Cell:
    """One combination; `reason` says why it is illegal, and is empty for legal ones.

    `via` names what makes it legal beyond the term itself: the part that turns the term into what the problem
    takes, or the problem that takes it in another way; empty where the term fits as it is.
    """

    term: str
    problem: str
    solver: str
    readout: str
    insertion: str
    via: str = ""
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
    *,
    insertions: Sequence[str] | None = None,
    readouts: Sequence[str] | None = None,
    keep: float | int = 0.5,
    available: Iterable[str] | None = None,
    threshold: float = 0.9,
) -> list[Cell]:
    """Every combination of the named parts (all registered ones when None), legal or not.

    A cell is a term, a solver with one of the problems that it solves, a readout (of transport solvers) and
    an insertion point.  A term of another kind than the problem takes enters through the part that turns it
    (`costs/from_kernel`, `scores/transport`, ...).  Problems and solvers that need a ranking beside their
    pairwise term take the norm of the token; a term that is not symmetric enters a problem of unordered pairs
    with `symmetric: mean`, and a kernel that is not proven to be one enters a log-determinant with a ridge.

    Parameters
    ----------
    terms
        Costs, kernels and scores; `group/name` where several groups have one of that name.
    available
        Base names of the signals at hand; None takes what the insertion point provides.
    keep, threshold
        Budget of every cell, conflict bound of the kinds that need one.

    Raises
    ------
    RegistryError
        For an unknown name.
    """
    found = [one for name in terms or _all_terms() for one in _find(name)]
    picked = [_load("solvers", name) for name in solvers or registry("solvers")]
    reads = [_load("readouts", name) for name in readouts or registry("readouts")]
    cells = []
    for where in insertions or registry("insertions"):
        insertion = _make(_load("insertions", where))
        assert isinstance(insertion, Insertion)
        given = insertion.provides if available is None else insertion.provides & frozenset(available)
        here = Place(insertion, given, available is not None, keep, threshold)
        for solver in picked:
            for group, term in found:
                if issubclass(solver, TransportSolver):
                    cells += [
                        _transport_cell(here, group, term=term, solver=solver, readout=readout)
                        for readout in reads
                    ]
                else:
                    assert issubclass(solver, SubsetSolver)
                    cells += [
                        _subset_cell(here, group, term=term, solver=solver, kind=kind)
                        for kind in sorted(solver.kinds)
                    ]
    return cells


def legal_shares(cells: Sequence[Cell]) -> tuple[float, float]:
    """Which share of the cells is legal with terms as they are, and with those that are turned as well."""
    legal = [cell for cell in cells if cell.legal]
    return sum(not cell.via for cell in legal) / len(cells), len(legal) / len(cells)


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
    """What was asked for; kinds whose budget is a maximum may keep fewer."""
    problem = getattr(chosen.solution, "problem", None)
    if not isinstance(problem, SubsetProblem) or len(problem.k) != len(kept):
        return chosen.known_counts
    most = tuple(problem.k.tolist())
    fewer = problem.rules.at_most and all(n <= k for n, k in zip(kept, most, strict=True))
    return kept if fewer else most


def _all_terms() -> list[str]:
    return [f"{group}/{name}" for group in GROUPS for name in registry(group)]


def _find(name: str) -> list[tuple[str, type[Part]]]:
    """The groups and classes of a name, or of `group/name`."""
    group, _, bare = name.rpartition("/")
    found = [(g, registry(g).get(bare)) for g in GROUPS if bare in registry(g) and group in ("", g)]
    if not found:
        known = [n for g in GROUPS for n in registry(g)]
        raise RegistryError(f"no {', '.join(GROUPS)} is called {name!r}{nearest(bare, known)}")
    return found


def _load(group: str, name: str) -> type:
    return registry(group).get(name)


@cache
def _make(part: type) -> Part:
    return part.from_spec({})  # type: ignore[attr-defined, no-any-return]


@cache
def _lacks(part: type) -> str:
    """Parameters without a default, or the word of a part that needs a file."""
    needed = [f.name for f in fields(part) if f.default is MISSING and f.default_factory is MISSING]
    if needed:
        return f"needs a value for {', '.join(needed)}"
    return "needs a codebook file" if any(f.name == "codebook" for f in fields(part)) else ""


@dataclass(frozen=True)
class Place:
    """An insertion point, the signals at hand there, and what all its cells share."""

    insertion: Insertion
    given: frozenset[str]
    saved: bool
    keep: float | int
    threshold: float

    def missing(self, part: Part) -> str:
        """Why the part cannot read its signals here, or empty."""
        gone = sorted({name.split("@", 1)[0] for name in part.needs} - self.given)
        if not gone:
            return ""
        if self.saved and not set(gone) - self.insertion.provides:
            return f"signals not at hand: {', '.join(gone)}"
        return f"not provided at {self.insertion.name}: {', '.join(gone)}"

    def cell(self, row: tuple[str, str, str, str], problem: dict[str, Any], *, via: str) -> Cell:
        """The cell of a problem as data; legal unless resolving it is refused."""
        _, kind, solver, readout = row
        data = {
            "name": "+".join(part for part in (*row, self.insertion.name) if part != "-"),
            "insertion": {"kind": self.insertion.name},
            "budget": {"keep": self.keep, "scope": "sample"},
            "problem": {"kind": kind, **problem},
            "solver": {"kind": solver},
            **({} if readout == "-" else {"readout": {"kind": readout}}),
        }
        try:
            return Cell(*row, self.insertion.name, via, spec=resolve(data))
        except PruneoptError as error:
            return Cell(*row, self.insertion.name, reason=str(error))


@dataclass(frozen=True)
class Form:
    """A term as a problem takes it: the part, the part as data, and what turned it, if anything did."""

    part: Part
    data: Mapping[str, Any]
    via: str = ""


@cache
def _form(group: str, term: type[Part], *, wanted: str, shapes: tuple[str, ...] = ()) -> Form | str:
    """The term as a part of the group `wanted` and of one of some shapes; or why there is none."""
    if "groups" in term.tags:
        return "its values number groups, they rank nothing"
    inside = {term.name: {"kind": term.name}}
    ways: list[tuple[dict[str, Any], str]] = []
    if group == wanted:
        ways.append(({"kind": term.name}, ""))
    bridge = f"from_{group.rstrip('s')}"
    if bridge in registry(wanted):
        slot = next(f.name for f in fields(_load(wanted, bridge)) if "slot" in f.metadata)
        ways.append(({"kind": bridge, slot: inside}, f"{wanted}/{bridge}"))
    if wanted == "scores" and group != "scores":
        cost = _form(group, term, wanted="costs")
        if isinstance(cost, Form):
            ways.append(({"kind": "transport", "cost": {term.name: cost.data}}, "scores/transport"))
    reason = f"no part turns a {group.rstrip('s')} into a {wanted.rstrip('s')}"
    for data, via in ways:
        try:
            part = build_part(_BASES[wanted], data, where=term.name)
        except PruneoptError as error:
            reason = str(error)
            continue
        shape = getattr(part, "shape", "pairwise")
        if not shapes or shape in shapes:
            return Form(part, data, via)
        reason = f"needs a term of shape {' or '.join(shapes)}; this one is {shape}"
    return reason


def _transport_cell(place: Place, group: str, *, term: type[Part], solver: type, readout: type) -> Cell:
    row = (term.name, "transport", solver.name, readout.name)  # type: ignore[attr-defined]
    reason = _lacks(term) or _lacks(solver) or _lacks(readout)
    form = reason or _form(group, term, wanted="costs")
    if isinstance(form, str):
        return Cell(*row, place.insertion.name, reason=form)
    outside = getattr(form.part, "shape", "") == "anchor"
    reason = _reads(solver, readout, targets=3 if outside else 2) or place.missing(form.part)
    if reason:
        return Cell(*row, place.insertion.name, reason=reason)
    return place.cell(row, {"cost": {term.name: form.data}}, via="external targets" if outside else form.via)


def _subset_cell(place: Place, group: str, *, term: type[Part], solver: type, kind: str) -> Cell:
    row = (term.name, kind, solver.name, "-")  # type: ignore[attr-defined]
    rules = find_kind(kind)
    problem: dict[str, Any] = {}
    reason = _lacks(term) or _lacks(solver)
    slot, wanted, shapes = (
        ("pairwise", rules.pairs, ("pairwise",)) if rules.pairs else ("scores", "scores", ())
    )
    if rules.serves and group == "costs":
        slot, wanted, shapes = "cost", "costs", ()
    if rules.pairs and group == "scores":
        reason = reason or f"{kind} needs pairs; a score can stand beside them, in problem.scores"
    form = reason or _form(group, term, wanted=wanted, shapes=shapes)
    if isinstance(form, str):
        return Cell(*row, place.insertion.name, reason=form)
    reason = place.missing(form.part)
    if reason:
        return Cell(*row, place.insertion.name, reason=reason)
    problem[slot] = {term.name: dict(form.data)}
    if rules.symmetric and not form.part.symmetric:  # type: ignore[attr-defined]
        problem["symmetric"] = "mean"
    if rules.definite and form.via:
        problem["pairwise"][term.name]["repair"] = "ridge"
    if slot != "scores" and ("unary" in rules.needs or _needs_scores(solver, kind)):
        problem["scores"] = {"rank": {"kind": DEFAULT_SCORE}}
    if "threshold" in rules.needs:
        problem["threshold"] = place.threshold
    return place.cell(row, problem, via=form.via or ("a cost is served" if slot == "cost" else ""))


@cache
def _reads(solver: type, readout: type, *, targets: int) -> str:
    """Why `readout` cannot read what `solver` returns, asked of both on a problem of two tokens."""
    problem = TransportProblem.build(torch.tensor([[[0.0, 1.0, 0.2], [1.0, 0.5, 0.7]]])[:, :, :targets])
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
