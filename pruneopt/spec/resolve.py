"""From plain data to a Spec: every key known, every part found, every value in range."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pruneopt.errors import RegistryError, SpecError, blame, nearest
from pruneopt.parts import (
    BudgetRule,
    CostTerm,
    Insertion,
    Kernel,
    Marginal,
    Part,
    Readout,
    Score,
    Solver,
    Step,
    SubsetSolver,
    TransportSolver,
    Weighted,
)
from pruneopt.parts._nested import build_part, build_sum, known_keys
from pruneopt.problems.budget import Budget
from pruneopt.problems.kinds import Kind, all_kinds, find_kind
from pruneopt.registry import registry
from pruneopt.spec.schema import TRANSPORT, ProblemSpec, Protect, Spec, StageSpec

POSITIONS = ("keep", "compact")
STAGE_KEYS = ("insertion", "budget", "problem", "solver", "readout", "steps", "positions")
_TOP_KEYS = ("name", "stages", "meta", *STAGE_KEYS)
_PROBLEM_KEYS = (
    "kind", "cost", "scores", "pairwise", "anchors", "marginals", "threshold", "quota", "protect",
    "symmetric", "ridge",
)  # fmt: skip
_META_KEYS = (
    "title", "paper", "venue", "arxiv", "code", "licence", "certainty", "family", "differs",
    "deviations", "uncertain", "supports", "refuses", "equation", "note", "aliases",
)  # fmt: skip
_TRANSPORT_KEYS = (
    "kind",
    "cost",
    "marginals",
)  # of a problem that is a transport score, see `StageSpec.stated`
# Keys of a problem that not every kind takes, and which kinds do.
_OPTIONAL: dict[str, Callable[[Kind], bool]] = {
    "cost": lambda kind: kind.serves,
    "marginals": lambda kind: False,
    "pairwise": lambda kind: bool(kind.pairs),
    "anchors": lambda kind: kind.anchored,
    "threshold": lambda kind: "threshold" in kind.needs,
    "quota": lambda kind: "quota" in kind.needs,
    "symmetric": lambda kind: kind.symmetric,
    "ridge": lambda kind: kind.definite,
}
_AS_SCORE = (
    "problem.scores.LABEL: {kind: transport, cost: {...}, marginals: {...}, solver: ..., readout: ...}"
)
_PAIRS: dict[str, tuple[type[Part], str]] = {"costs": (CostTerm, "cost term"), "kernels": (Kernel, "kernel")}


def resolve(data: Mapping[str, Any]) -> Spec:
    """Turn plain data into a Spec. Raises SpecError for anything unknown or out of range."""
    known_keys(data, _TOP_KEYS, where="")
    positions = _positions(data, "")
    meta = data.get("meta") or {}
    known_keys(meta, _META_KEYS, where="meta.")
    _deviations(meta.get("deviations"))
    base = {key: data[key] for key in STAGE_KEYS if key in data}
    raw = data.get("stages") or [{}]
    if not isinstance(raw, list):
        raise _refused("stages", f"must be a list of mappings, got {raw!r}")
    stages: list[StageSpec] = []
    for i, part in enumerate(raw):
        where = f"stages.{i}." if data.get("stages") else ""
        with blame(where.rstrip(".")):
            known_keys(part, STAGE_KEYS, where=where)
            stages += [_stage(each, where) for each in _spread(mixed(base, part), where)]
    depth = [stage.insertion.depth for stage in stages]
    if depth != sorted(depth):
        got = ", ".join(f"{stage.insertion.name} {stage.insertion.depth[1]}" for stage in stages)
        raise _refused("stages", f"must be in order of depth, got {got}")
    if all(stage.positions == stages[0].positions for stage in stages):
        positions = str(stages[0].positions)  # one policy is said once, wherever it was written
    own = (replace(s, positions=None if s.positions == positions else s.positions) for s in stages)
    return Spec(str(data.get("name", "unnamed")), tuple(own), positions, meta)


def _positions(data: Mapping[str, Any], where: str) -> str:
    """What becomes of position ids, said for all stages or for one."""
    policy = data.get("positions", "keep")
    if policy not in POSITIONS:
        raise _refused(f"{where}positions", f"must be one of {', '.join(POSITIONS)}, got {policy!r}")
    return str(policy)


def _refused(key: str, words: str) -> SpecError:
    """The refusal of a dotted key, which the words go on from."""
    return SpecError(f"{key} {words}", key=key)


def _deviations(data: Any) -> None:
    """How a spec departs from its source: a mapping from a short name to a sentence."""
    good = data is None or isinstance(data, Mapping)
    for key, text in data.items() if good and data else ():
        good = good and str(key).isidentifier() and isinstance(text, str) and bool(text.strip())
    if not good:
        raise _refused("meta.deviations", f"must map short names to sentences, got {data!r}")


def mixed(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with what `new` says instead, for stages and overrides alike.

    Mappings mix key by key.  One of another `kind` replaces, so that no parameter of the old kind reaches the
    new one; only `weight` and `normalize`, which belong to the summand and not to its part, stay.
    """
    if new.get("kind", old.get("kind")) != old.get("kind"):
        return {**{key: old[key] for key in ("weight", "normalize") if key in old}, **new}
    out = dict(old)
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(old.get(key), Mapping)
        out[key] = mixed(old[key], value) if both else value
    return out


def _spread(data: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """`insertion.layer: [8, 16, 24]` with `budget.keep: [0.5, 0.25, 0.125]` is three stages."""
    insertion, budget = data.get("insertion"), data.get("budget") or {}
    layers = insertion.get("layer") if isinstance(insertion, Mapping) else None
    keeps = budget.get("keep") if isinstance(budget, Mapping) else None
    if not isinstance(layers, list):
        if isinstance(keeps, list):
            raise SpecError(f"{where}budget.keep is a list but insertion.layer is not; give both or neither")
        return [dict(data)]
    assert isinstance(insertion, Mapping)
    keeps = keeps if isinstance(keeps, list) else [keeps] * len(layers)
    if len(keeps) != len(layers) or not layers:
        raise SpecError(
            f"{where}insertion.layer has {len(layers)} entries and budget.keep {len(keeps)}; they must agree"
        )
    return [
        {
            **data,
            "insertion": {**insertion, "layer": layer},
            "budget": {**budget, **({} if keep is None else {"keep": keep})},
        }
        for layer, keep in zip(layers, keeps, strict=True)
    ]


def _problem(data: Any, where: str) -> ProblemSpec:
    known_keys(data, _PROBLEM_KEYS, where=where + ".")
    kind = data.get("kind")
    if kind == TRANSPORT:
        return _transport(data, where)
    if kind not in registry("kinds"):
        known = (TRANSPORT, *registry("kinds"))
        raise SpecError(f"{where}.kind {kind!r} is unknown{nearest(str(kind), known)}", key="kind")
    return _subset(data, find_kind(kind), where=where)


def _transport(data: Mapping[str, Any], where: str) -> ProblemSpec:
    for key in _PROBLEM_KEYS:
        if key not in _TRANSPORT_KEYS and data.get(key) is not None:
            raise SpecError(
                f"{where}.{key} belongs to subset problems; for {TRANSPORT} with it write another "
                f"{where}.kind, and {_AS_SCORE}",
                key=key,
            )
    cost = build_sum(CostTerm, data.get("cost"), where=f"{where}.cost")
    if not cost:
        raise SpecError(
            f"{where}.cost is empty; a {TRANSPORT} problem needs at least one cost term", key="cost"
        )
    marginals = data.get("marginals") or {}
    known_keys(marginals, ("source", "target"), where=f"{where}.marginals.")
    source, target = (
        build_part(Marginal, marginals.get(side, "uniform"), where=f"{where}.marginals.{side}")
        for side in ("source", "target")
    )
    return ProblemSpec(TRANSPORT, cost, source=source, target=target)


def _subset(data: Mapping[str, Any], rules: Kind, *, where: str) -> ProblemSpec:
    kind = rules.name
    for key, takes in _OPTIONAL.items():
        if data.get(key) not in (None, {}) and not takes(rules):
            takers = [other.name for other in all_kinds() if takes(other)]
            takers += [TRANSPORT] * (key in _TRANSPORT_KEYS)
            words = f"{', '.join(takers)} take{'s' * (len(takers) == 1)} it"
            words += f", also as a score: {_AS_SCORE}" if TRANSPORT in takers else ""
            raise SpecError(f"{where}.{key} has no meaning for {kind}; {words}", key=key)
    scores = build_sum(Score, data.get("scores"), where=f"{where}.scores")
    base, wanted = _PAIRS[rules.pairs or "costs"]
    pairwise = build_sum(base, data.get("pairwise"), where=f"{where}.pairwise")
    anchors = build_sum(base, data.get("anchors"), where=f"{where}.anchors")
    if "unary" in rules.needs and not scores:
        raise SpecError(f"{where}.scores is empty; {kind} needs at least one score")
    cost = build_sum(CostTerm, data.get("cost"), where=f"{where}.cost")
    if rules.pairs and not pairwise and not cost:
        also = f", or a cost in {where}.cost" if rules.serves else ""
        raise SpecError(f"{where}.pairwise is empty; {kind} needs at least one {wanted}{also}")
    if cost and pairwise:
        raise SpecError(f"{where} has a cost and pairwise terms; {kind} serves by one of them", key="cost")
    if cost and scores and all(s.external for s in cost):
        raise SpecError(f"{where}.scores weigh tokens that are served, and only external points are here")
    threshold = data.get("threshold")
    if "threshold" in rules.needs and not isinstance(threshold, (int, float)):
        raise SpecError(f"{where}.threshold must be a number for {kind}, got {threshold!r}", key="threshold")
    quota = data.get("quota") or None
    if isinstance(quota, Mapping):
        quota = build_part(Score, quota, where=f"{where}.quota")
    protect = _protect(data.get("protect"), scored=bool(scores), where=f"{where}.protect")
    ridge = data.get("ridge")
    if ridge is not None and (isinstance(ridge, bool) or not _above_zero(ridge)):
        raise SpecError(f"{where}.ridge must be a number above 0, got {ridge!r}", key="ridge")
    return ProblemSpec(
        kind, cost, scores, pairwise, anchors, threshold=threshold, quota=quota, protect=protect,
        symmetric=_symmetric(data.get("symmetric"), rules, pairwise=pairwise, where=where),
        ridge=None if ridge is None else float(ridge),
    )  # fmt: skip


def _above_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 < value < float("inf")


def _symmetric(how: Any, rules: Kind, *, pairwise: tuple[Weighted, ...], where: str) -> str | None:
    """How the two directions of a pair become one; refuses terms that need it where nothing is said."""
    if how not in (None, "mean"):
        raise SpecError(f"{where}.symmetric can be mean, got {how!r}", key="symmetric")
    for summand in pairwise:
        if summand.external:
            serving = ", ".join(kind.name for kind in all_kinds() if kind.serves)
            raise SpecError(
                f"{where}.pairwise.{summand.label}: {summand.part.name} reaches external points, not tokens; "
                f"write it under {where}.anchors, or under {where}.cost of {serving}"
            )
        if rules.symmetric and how is None and summand.weight and not summand.part.symmetric:  # type: ignore[attr-defined]
            raise SpecError(
                f"{where}.pairwise.{summand.label}: {summand.part.name} is not symmetric, and {rules.name} "
                f"knows unordered pairs only; set {where}.symmetric=mean to average both directions"
            )
    return str(how) if how else None


def _protect(data: Any, *, scored: bool, where: str) -> Protect | None:
    if not data:
        return None
    known_keys(data, tuple(Protect.__dataclass_fields__), where=f"{where}.")
    if data.get("where") is not None:
        extra = [key for key in data if key != "where" and data[key] is not None]
        if extra:
            raise SpecError(f"{where}.where names the tokens by itself; remove {', '.join(extra)}")
        return Protect(where=build_part(Score, data["where"], where=f"{where}.where"))
    share, count, rounding = data.get("share"), data.get("count"), data.get("rounding", "floor")
    if (share is None) == (count is None):
        raise SpecError(f"{where} needs either share (of the budget) or count, not both and not neither")
    good = isinstance(share, (int, float)) and not isinstance(share, bool) and 0 <= share <= 1
    if share is not None and not good:
        raise SpecError(f"{where}.share must be a number from 0 to 1, got {share!r}")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise SpecError(f"{where}.count must be a whole number from 1, got {count!r}")
    if rounding not in ("round", "floor", "ceil"):
        raise SpecError(f"{where}.rounding must be one of round, floor, ceil, got {rounding!r}")
    scores = build_sum(Score, data.get("scores"), where=f"{where}.scores")
    if not scores and not scored:
        raise SpecError(f"{where}.scores is empty and the problem has no scores either")
    return Protect(None if share is None else float(share), count, rounding, scores)


def _solvers(kind: str) -> list[str]:
    """The solvers of a kind of problem; one that cannot be loaded is not among them."""
    found = []
    for name in registry("solvers"):
        with suppress(RegistryError):
            found += [name] if _solves(registry("solvers").get(name), kind) else []
    return found


def _solves(solver: type[Part], kind: str) -> bool:
    if issubclass(solver, SubsetSolver):
        return kind in solver.kinds
    return kind == TRANSPORT and issubclass(solver, TransportSolver)


def _stage(data: Mapping[str, Any], where: str) -> StageSpec:
    for key in ("insertion", "problem", "solver"):
        if not data.get(key):
            raise _refused(f"{where}{key}", "is missing")
    insertion = build_part(Insertion, data["insertion"], where=f"{where}insertion")
    budget_data = data.get("budget") or {}
    known_keys(budget_data, (*Budget.__dataclass_fields__, "rule"), where=f"{where}budget.")
    rule_data = budget_data.get("rule")
    with blame(f"{where}budget"):
        budget = Budget(**{key: value for key, value in budget_data.items() if key != "rule"})
    rule = None if rule_data is None else build_part(BudgetRule, rule_data, where=f"{where}budget.rule")
    with blame(f"{where}problem"):
        problem = _problem(data["problem"], f"{where}problem")
    solver = build_part(Solver, data["solver"], where=f"{where}solver")
    if not _solves(type(solver), problem.kind):
        known = ", ".join(_solvers(problem.kind))
        words = f"{solver.name!r} does not solve {problem.kind}; its solvers are {known}"
        raise _refused(f"{where}solver", words)
    readout = data.get("readout")
    if problem.planned and not readout:
        words = f"is missing: a {problem.kind} plan does not rank tokens by itself"
        raise _refused(f"{where}readout", words)
    if readout and not problem.planned:
        raise _refused(f"{where}readout", f"has no meaning for {problem.kind}; remove it")
    steps = data.get("steps") or []
    if not isinstance(steps, list):
        raise _refused(f"{where}steps", f"must be a list, got {steps!r}")
    stage = StageSpec(
        insertion,
        budget,
        rule,
        problem,
        solver,
        build_part(Readout, readout, where=f"{where}readout") if readout else None,
        tuple(build_part(Step, step, where=f"{where}steps.{i}") for i, step in enumerate(steps)),
        _positions(data, where),
    )
    for key, part in {"insertion": insertion, **stage.keyed}.items():
        reason = part.misfit(stage)
        if reason is not None:
            raise SpecError(f"{where}{part.name}: {reason}", key=f"{where}{key}")
    return stage
