"""`pruneopt bench notch`: accuracy and fidelity of greedy rules and of better solvers of their problems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from pruneopt.demo.assets import Question, load_inputs, load_model, load_questions, score
from pruneopt.errors import InputError
from pruneopt.lab.accuracy.answer import deepest
from pruneopt.lab.accuracy.run import question_hash
from pruneopt.lab.clock import Stopwatch
from pruneopt.lab.environment import environment, setting
from pruneopt.lab.fidelity import Answer, answered, fidelity
from pruneopt.lab.progress import Step, progress
from pruneopt.lab.records import prepare_folder
from pruneopt.lab.runs import pack, run_each, write_run
from pruneopt.problems.kinds import find_kind
from pruneopt.spec.load import load_spec
from pruneopt.spec.schema import Spec


@dataclass(frozen=True)
class Method:
    """A spec whose rule is a heuristic for the problem that it states.

    overrides: what the embedded model needs, the same on both sides.  own: overrides of its own rule.
    stage: the one that states the problem, where there are several.  search: another better solver than that
    of the kind.
    """

    label: str
    source: str
    overrides: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    stage: int | None = None
    search: str = ""

    def spec(self, keep: int, solver: str = "") -> Spec:
        """At a budget, with its own rule or another solver."""
        where = "" if self.stage is None else f"stages.{self.stage}."
        rule = (f"{where}solver={solver}",) if solver else self.own
        return load_spec(self.source, [*self.overrides, f"{where}budget.keep={keep}", *rule])

    @property
    def kind(self) -> str:
        return self.spec(1).stages[self.stage or 0].problem.kind

    @property
    def better(self) -> str:
        """The solver that comes closer to the optimum."""
        return self.search or str(find_kind(self.kind).search["kind"])


_FACILITY = str(Path(__file__).with_name("facility.yaml"))  # ours: no published spec states this problem
# Saliency scaled to [0,1], so that no token is worth leaving out; the greedy order stays.  Filling up with
# tokens in conflict is no answer to the problem: both sides keep what fits, at most the budget.
_SALIENCY, _STOP = ("problem.scores.saliency.normalize=minmax",), ("solver.on_shortfall=stop",)
METHODS = (
    Method("cdpruner", "cdpruner"),
    Method("dart", "dart", ("problem.anchors.text.count=4",)),
    Method("divprune", "divprune"),
    Method("facility location", _FACILITY),
    Method("greedyprune", "greedyprune", _SALIENCY, _STOP),
    Method("greedyprune, exact", "greedyprune", _SALIENCY, _STOP, search="milp"),
    Method("saint/encoder", "saint/encoder", ("problem.pairwise.distance.signal=encoder_keys",)),
    Method("todre/diversity", "todre/diversity"),
    Method("trimtokenator", "trimtokenator", stage=1),
    Method("vispruner", "vispruner"),
    Method("zspaprune", "zspaprune"),
)
# Specs that state the same problems, and why they are not asked again.
LEFT_OUT = {
    "cdpruner/clip": "the problem of cdpruner with a relevance that the embedded tower does not have",
    "cdpruner/release": "the problem of cdpruner, rounded as in the release",
    "dart/release": "keeps four tokens more than asked, so counts cannot be matched",
    "divprune/exact": "divprune with an exact solver",
    "saint/encoder_release": "the problem of saint/encoder",
    "saint/hybrid": "the problem of saint/encoder, and a second cut",
    "todre": "todre/diversity with a gate that may drop all tokens",
    "todre/v1": "a gate at a layer that the embedded model does not have",
    "vispruner/received": "the problem of vispruner with another score",
}
_LAYER_2 = ("insertion={kind: prefill_layer, layer: 2}", "positions=keep")
SEEDS = 3
MOST = 115  # of 144 tokens; stage 1 of trimtokenator leaves no more


@dataclass(frozen=True)
class Entry:
    """One run: a spec, and which side of a comparison it is (`greedy`, `better`, `control`, or `dense`)."""

    label: str
    side: str
    keep: int = 0
    spec: Spec | None = None
    method: Method | None = None

    @property
    def name(self) -> str:
        key = "dense" if self.spec is None else self.spec.hash
        words = self.label.replace("/", "-").replace(" ", "-").replace(",", "")
        return f"{words}_{self.keep}_{self.side}_{key}"


@dataclass(frozen=True)
class Plan:
    """Embedded questions, evenly from every picture and type, and budgets in tokens of 144.

    bounded: how many of the first pictures get an upper bound, by their first question.
    """

    questions: int = 200
    budgets: tuple[int, ...] = (16, 36, 64)
    methods: tuple[str, ...] = ()
    bounded: int = 12
    batch: int = 20
    asked: list[Question] = field(init=False)
    chosen: list[Method] = field(init=False)

    def __post_init__(self) -> None:
        known = {method.label: method for method in METHODS}
        unknown = sorted(set(self.methods) - known.keys())
        if unknown:
            raise InputError(f"unknown methods {', '.join(unknown)}; known: {', '.join(known)}")
        if not self.budgets or self.questions < 1 or self.batch < 1:
            raise InputError("questions, batch and budgets must be at least 1")
        if not all(1 < keep <= MOST for keep in self.budgets):
            raise InputError(f"budgets are whole numbers from 2 to {MOST}, got {list(self.budgets)}")
        object.__setattr__(self, "asked", across(load_questions(), self.questions))
        object.__setattr__(self, "chosen", [known[name] for name in self.methods or known])

    def entries(self) -> list[Entry]:
        """The dense run first, then budget by budget both sides of every method, and the controls."""
        every = [Entry("dense", "dense")]
        for keep in self.budgets:
            for method in self.chosen:
                for side, solver in (("greedy", ""), ("better", method.better)):
                    every.append(Entry(method.label, side, keep, method.spec(keep, solver), method))
        return every + [control for keep in self.budgets for control in _controls(keep)]


def across(questions: Sequence[Question], count: int) -> list[Question]:
    """`count` questions, as many of one picture as of another, types in turn; all of them if fewer exist.

    Questions about one picture are not independent, so more pictures say more than more questions.
    """
    by_picture: dict[Path, list[Question]] = {}
    for question in questions:
        by_picture.setdefault(question.image, []).append(question)
    most = max(len(group) for group in by_picture.values())
    turns = (
        group[(place + turn) % len(group)]
        for turn in range(most)
        for place, group in enumerate(by_picture.values())
        if turn < len(group)
    )
    return list(islice(turns, count))


def _controls(keep: int) -> Iterator[Entry]:
    """Random and uniform grid, with the positions of cuts before the model and of cuts inside it."""
    for place, overrides in (("before the model", ()), ("layer 2", _LAYER_2)):
        for seed in range(SEEDS):
            spec = load_spec(
                "random", [*overrides, f"budget.keep={keep}", f"problem.scores.random.seed={seed}"]
            )
            yield Entry(f"random {place} seed {seed}", "control", keep, spec)
        spec = load_spec("uniform_grid", [*overrides, f"budget.keep={keep}"])
        yield Entry(f"uniform_grid {place}", "control", keep, spec)


def measure(plan: Plan, out: Path, *, console: Console) -> None:
    """Run what is not finished yet, one run folder an entry, then pack; processes may share the folder."""
    prepare_folder(out)
    asked = question_hash(plan.asked)
    jobs = {out / f"{entry.name}_{asked}": entry for entry in plan.entries()}
    bench = _Bench(plan)
    with progress(console, "questions", total=len(plan.asked) * len(jobs)) as step:
        run_each(
            jobs,
            lambda entry, folder: bench.run(entry, folder=folder, step=step),
            skip=lambda: step(len(plan.asked)),
        )
    pack(out)


class _Bench:
    """The embedded model, and what its dense form says to every batch, which is asked once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.model: Any
        self.processor: Any
        self.model, self.processor = load_model()
        self.batches = [plan.asked[i : i + plan.batch] for i in range(0, len(plan.asked), plan.batch)]
        self.dense: dict[int, Answer] = {}
        first: dict[Path, str] = {}
        for question in plan.asked:
            first.setdefault(question.image, question.id)
        self.bounded = set(list(first.values())[: plan.bounded])

    def run(self, entry: Entry, *, folder: Path, step: Step) -> None:
        from pruneopt.models.apply import prune

        where, started, samples = environment(str(self.model.device)), Stopwatch(), []
        for number, questions in enumerate(self.batches):
            inputs = load_inputs(questions, self.processor).to(self.model.device, self.model.dtype)
            with torch.inference_mode():
                if number not in self.dense:
                    self.dense[number] = answered(self.model, inputs)
                dense = self.dense[number]
                with nullcontext() if entry.spec is None else prune(self.model, entry.spec) as run:
                    close = fidelity(self.model, inputs, dense=dense)
                    kept = None if run is None else [len(row) for row in run.kept_visual[deepest(run)]]
                    found = self._gaps(entry, run, questions=questions)
                    said = self._said(inputs, dense, differs=close.agree < 1)
            for i, question in enumerate(questions):
                samples.append({
                    "id": question.id, "picture": question.image.name, "type": question.type, "said": said[i],
                    "right": score(said[i], question.answer), "kept": None if kept is None else kept[i],
                    "kl": float(close.kl[i]), "kl_first": float(close.first[i]),
                    "agree": float(close.agree[i]), **{name: each[i] for name, each in found.items()},
                })  # fmt: skip
            step(len(questions))
        record = {
            "label": entry.label, "side": entry.side, "keep": entry.keep,
            "kind": None if entry.method is None else entry.method.kind,
            "solver": None if entry.method is None else _stage(entry).solver.name,
            "policy": None if entry.spec is None else entry.spec.positions,
            "spec_hash": "dense" if entry.spec is None else entry.spec.hash,
            "questions": len(samples), "question_hash": question_hash(self.plan.asked),
            "pictures": len({sample["picture"] for sample in samples}), "seconds": started.wall,
            "processor_seconds": started.processor, "batch": self.plan.batch,
            "setting": setting(self.model), "environment": where,
        }  # fmt: skip
        write_run(folder, "name: dense\n" if entry.spec is None else entry.spec.yaml(),
                  record=record, samples=samples)  # fmt: skip

    def _said(self, inputs: Any, dense: Answer, *, differs: Tensor) -> list[str]:
        """Greedy answers; one that is nowhere of another mind than the dense model says what that said."""
        tokens = dense.tokens.clone()
        rows = differs.nonzero().squeeze(1)
        if len(rows):
            some = {name: tensor[rows] for name, tensor in inputs.items()}
            most = tokens.shape[1]
            new = self.model.generate(**some, do_sample=False, max_new_tokens=most)
            new = new[:, inputs["input_ids"].shape[1] :]
            tokens[rows] = self.model.generation_config.pad_token_id or 0
            tokens[rows, : new.shape[1]] = new
        words = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in words]

    def _gaps(
        self, entry: Entry, run: Any, *, questions: Sequence[Question]
    ) -> dict[str, list[float | None]]:
        """Value (larger is better), its size, and upper bounds of the stated problem; None elsewhere."""
        none: list[float | None] = [None] * len(questions)
        if entry.method is None:
            return {"value": none, "bound": none, "magnitude": none}
        solution = run.selections[entry.method.stage or 0].solution
        wanted = [entry.side == "greedy" and q.id in self.bounded for q in questions]
        problem, keep = solution.problem, solution.keep
        bounds = list(none)
        for i, want in enumerate(wanted):
            if want:
                bound, _ = problem.sample(i).bound(keep[i : i + 1])
                bounds[i] = None if bound is None else float(bound[0])
        return {
            "value": problem.value(keep).tolist(), "bound": bounds,
            "magnitude": problem.magnitude(keep).tolist(),
        }  # fmt: skip


def _stage(entry: Entry) -> Any:
    assert entry.spec is not None and entry.method is not None
    return entry.spec.stages[entry.method.stage or 0]
