"""What a resolved spec is: frozen objects with every default filled in, and a hash that names runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf

from pruneopt.parts import BudgetRule, Insertion, Part, Readout, Score, Step, SubsetSolver, Weighted
from pruneopt.problems.budget import Budget
from pruneopt.problems.kinds import find_kind
from pruneopt.registry import registry
from pruneopt.signals import Attention, attention_need

TRANSPORT = "transport"  # what `problem.kind` says of a problem that is the score of this name
_SUMS = ("cost", "scores", "pairwise", "anchors")


@dataclass(frozen=True)
class Protect:
    """Tokens that are chosen before the problem is solved: the best of the budget by `scores`.

    Give `share` (of the budget, rounded) or `count`.  Without scores of its own it ranks by those of the
    problem.  Or give `where`, a part that is above zero at every token to protect.
    """

    share: float | None = None
    count: int | None = None
    rounding: str = "floor"
    scores: tuple[Weighted, ...] = ()
    where: Score | None = None

    @property
    def keyed(self) -> dict[str, Part]:
        """The parts by dotted key below the problem."""
        scores = {f"protect.scores.{s.label}": s.part for s in self.scores}
        return scores if self.where is None else {"protect.where": self.where, **scores}

    def to_spec(self) -> dict[str, Any]:
        if self.where is not None:
            return {"where": self.where.to_spec()}
        out: dict[str, Any] = {"share": self.share, "count": self.count, "rounding": self.rounding}
        return {**out, "scores": {s.label: s.to_spec() for s in self.scores}}


@dataclass(frozen=True)
class ProblemSpec:
    """What is optimised: `transport`, or one of the subset kinds of `SubsetProblem`.

    `symmetric="mean"` averages both directions of the pairwise term, `ridge` is added to its diagonal; both
    happen before anything reads it.
    """

    kind: str
    cost: tuple[Weighted, ...] = ()
    scores: tuple[Weighted, ...] = ()
    pairwise: tuple[Weighted, ...] = ()
    anchors: tuple[Weighted, ...] = ()
    source: Part | None = None
    target: Part | None = None
    threshold: float | None = None
    quota: str | Score | None = None
    protect: Protect | None = None
    symmetric: str | None = None
    ridge: float | None = None

    @property
    def keyed(self) -> dict[str, Part]:
        """The parts of this problem, and those inside them, by dotted key."""
        top = {f"{name}.{s.label}": s.part for name in _SUMS for s in getattr(self, name)}
        top |= {} if self.protect is None else self.protect.keyed
        sides = {"marginals.source": self.source, "marginals.target": self.target}
        top |= {key: part for key, part in sides.items() if part is not None}
        top |= {"quota": self.quota} if isinstance(self.quota, Part) else {}
        return {key: part for name, outer in top.items() for key, part in outer.walk(name)}

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(self.keyed.values())

    @property
    def planned(self) -> bool:
        """Whether what is solved for is a plan between two masses, which a readout turns into a ranking."""
        return self.source is not None

    @cached_property
    def groups(self) -> str | Score | None:
        """What numbers the groups of a kind with quotas, a part or a signal; None for other kinds."""
        if self.kind not in registry("kinds") or "quota" not in find_kind(self.kind).needs:
            return None
        return self.quota or "group"

    @property
    def needs(self) -> frozenset[str]:
        """Signals that the parts of this problem and its quota read."""
        signal = {self.groups} if isinstance(self.groups, str) else set()
        return frozenset(signal).union(*(part.needs for part in self.parts))

    def to_spec(self) -> dict[str, Any]:
        out: dict[str, Any] = {"kind": self.kind}
        for name in _SUMS:
            summands = getattr(self, name)
            if summands:
                out[name] = {s.label: s.to_spec() for s in summands}
        sides = {"source": self.source, "target": self.target}
        if self.planned:
            out["marginals"] = {side: part.to_spec() for side, part in sides.items() if part is not None}
        if self.threshold is not None:
            out["threshold"] = self.threshold
        if self.quota is not None:
            out["quota"] = self.quota.to_spec() if isinstance(self.quota, Part) else self.quota
        if self.protect is not None:
            out["protect"] = self.protect.to_spec()
        for name in ("symmetric", "ridge"):
            if getattr(self, name) is not None:
                out[name] = getattr(self, name)
        return out


@dataclass(frozen=True)
class StageSpec:
    """One cut: where, how many, by which problem, solved how, and what happens to the answer.

    positions: what becomes of position ids at this cut; None where it is what the spec says for all.
    """

    insertion: Insertion
    budget: Budget
    rule: BudgetRule | None
    problem: ProblemSpec
    solver: Part
    readout: Readout | None
    steps: tuple[Step, ...] = ()
    positions: str | None = None

    @cached_property
    def stated(self) -> ProblemSpec:
        """The subset problem behind what the spec says: `transport` is a score in a top-k problem."""
        problem = self.problem
        if not problem.planned:
            return problem
        from pruneopt.parts.scores.transport import Transport

        sides = {"source": problem.source, "target": problem.target}
        marginals = tuple(Weighted(side, part) for side, part in sides.items())  # type: ignore[arg-type]
        score = Transport(problem.cost, marginals, self.solver, self.readout)  # type: ignore[arg-type]
        return ProblemSpec("top_k", scores=(Weighted(Transport.name, score),))

    @cached_property
    def chooser(self) -> SubsetSolver:
        """What solves the problem that is `stated`."""
        if isinstance(self.solver, SubsetSolver):
            return self.solver
        from pruneopt.parts.solvers.stable_top_k import StableTopK

        return StableTopK()

    @cached_property
    def keyed(self) -> dict[str, Part]:
        """All parts of this stage, and those inside them, by dotted key."""
        top = {"solver": self.solver, "budget.rule": self.rule, "readout": self.readout}
        top |= {f"steps.{i}": step for i, step in enumerate(self.steps)}
        found = {} if self.stated is self.problem else {"problem": self.stated.scores[0].part}
        found |= {f"problem.{key}": part for key, part in self.problem.keyed.items()}
        for name, outer in top.items():
            found |= {} if outer is None else dict(outer.walk(name))
        return found

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(self.keyed.values())

    @cached_property
    def needs(self) -> frozenset[str]:
        """Signals that the parts of this stage read."""
        return self.problem.needs.union(*(part.needs for part in self.parts))

    @property
    def attention(self) -> Attention:
        return attention_need(self.needs)

    def to_spec(self) -> dict[str, Any]:
        budget = self.budget.to_spec()
        if self.rule is not None:
            budget["rule"] = self.rule.to_spec()
        return {
            "insertion": self.insertion.to_spec(),
            "budget": budget,
            "problem": self.problem.to_spec(),
            "solver": self.solver.to_spec(),
            "readout": None if self.readout is None else self.readout.to_spec(),
            "steps": [step.to_spec() for step in self.steps],
            **({} if self.positions is None else {"positions": self.positions}),
        }


@dataclass(frozen=True)
class Spec:
    """A resolved method, as `load_spec` returns it.

    Parameters
    ----------
    name
        What it is called.
    stages
        Its cuts in order of depth.
    positions
        What becomes of position ids, `keep` or `compact`, at every stage that names no policy of its own.
    meta
        What is known of its source.
    """

    name: str
    stages: tuple[StageSpec, ...]
    positions: str = "keep"
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        """Signals that the parts of all stages read."""
        return frozenset().union(*(stage.needs for stage in self.stages))

    @property
    def attention(self) -> Attention:
        """What this method asks of attention; only FULL is incompatible with fused kernels."""
        return attention_need(self.needs)

    def positions_at(self, stage: StageSpec) -> str:
        """The position policy of a stage: `keep` or `compact`."""
        return self.positions if stage.positions is None else stage.positions

    def to_spec(self) -> dict[str, Any]:
        """Everything that decides the result, with every default filled in; loads back to an equal spec."""
        stages = [stage.to_spec() for stage in self.stages]
        body = stages[0] if len(stages) == 1 else {"stages": stages}
        return {"name": self.name, "positions": self.positions, **body, "meta": dict(self.meta)}

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits over all that decides the result (not the name, not the metadata)."""
        body = self.to_spec()
        body.pop("name"), body.pop("meta")
        text = json.dumps(_numbers(body), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def yaml(self) -> str:
        """`to_spec` as the text of a file."""
        return OmegaConf.to_yaml(OmegaConf.create(self.to_spec()))


def _numbers(value: Any) -> Any:
    """Floats that are whole numbers hash like the integer: 1 and 1.0 are the same weight."""
    if isinstance(value, Mapping):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbers(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
