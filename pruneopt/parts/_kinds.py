"""The kinds of part: what each is called with, what it returns, and which sign is good."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from pruneopt.parts._part import Part
from pruneopt.problems.rows import Rows, Stored
from pruneopt.problems.selection import Selection
from pruneopt.problems.solution import SubsetSolution, TransportSolution
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.transport import TransportProblem
from pruneopt.signals import Signals

if TYPE_CHECKING:
    from pruneopt.spec.schema import StageSpec


class CostTerm(Part):
    """A cost: lower is cheaper to keep.

    `__call__(signals)` returns `[B,N,M]` when `shape == "pairwise"` (source token by target token),
    `[B,N]` when `shape == "unary"` (broadcast over targets), or `[B,A,N]` when `shape == "anchor"`
    (external points by token).  float32 or better, finite at real tokens.
    """

    group: ClassVar[str] = "costs"
    shape: ClassVar[str] = "pairwise"

    @property
    def symmetric(self) -> bool:
        """Whether the cost of (i, j) is that of (j, i): the tag, or a property where parameters decide."""
        return "symmetric" in self.tags

    @property
    def negative_type(self) -> bool:
        """Whether `exp(-C / h)` is positive semi-definite for every h: the tag, or as above."""
        return "negative_type" in self.tags

    @abstractmethod
    def __call__(self, signals: Signals) -> Float[Tensor, "B N M"] | Float[Tensor, "B N"]: ...

    def by_rows(self, signals: Signals) -> Rows:
        """The term of shape `pairwise`, to be read a few rows at a time; a part that knows no better way
        computes its matrix.  Finite at padding."""
        return Stored(self(signals))

    def strength(self, signals: Signals) -> Float[Tensor, "B A"] | None:
        """How strong each external point is, `[B,A]`, for terms of shape `anchor`; None when alike."""
        return None


class Score(Part):
    """An importance `[B,N]`: higher is kept."""

    group: ClassVar[str] = "scores"

    @abstractmethod
    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]: ...


class Grouping(Score):
    """The groups of a quota problem: whole numbers `[B,N]` from 0, not a ranking."""

    def shares(
        self,
        group: Int[Tensor, "B N"],
        mask: Bool[Tensor, "B N"],
        *,
        k: Int[Tensor, " B"],
        importance: Float[Tensor, "B N"],
    ) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B G"]] | None:
        """Share the budget over the groups; None shares it in proportion to their size.

        Parameters
        ----------
        group
            The groups of all tokens.
        mask
            True at real tokens.
        k
            Tokens to keep.
        importance
            The scores of the problem, higher is kept.

        Returns
        -------
        tuple of Tensor, or None
            Groups, which may be fewer than before, and their quotas, which sum to `k`.
        """
        return None


class Kernel(Part):
    """A similarity `[B,N,N]`, symmetric, larger is more alike; positive semi-definite if tagged `psd`."""

    group: ClassVar[str] = "kernels"
    symmetric: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, signals: Signals) -> Float[Tensor, "B N N"]: ...

    def by_rows(self, signals: Signals) -> Rows:
        """The same to be read a few rows at a time, as for costs."""
        return Stored(self(signals))


class Marginal(Part):
    """Non-negative weights `[B,N]` that sum to one over the real tokens of each problem (float32)."""

    group: ClassVar[str] = "marginals"

    @abstractmethod
    def __call__(self, signals: Signals) -> Float[Tensor, "B N"]: ...


class Solver(Part):
    """Solves problems of one sort; which sort is said by the two classes below."""

    group: ClassVar[str] = "solvers"


class TransportSolver(Solver):
    """Solves balanced or semi-relaxed transport. Tag `exact` when it returns an optimum."""

    @abstractmethod
    def solve(self, problem: TransportProblem) -> TransportSolution:
        """Return plan and potentials per problem; never raises for non-convergence, see `Status`."""


class SubsetSolver(Solver):
    """Solves the subset problems named in `kinds`. Tag `exact` when it returns an optimum."""

    kinds: ClassVar[frozenset[str]]

    @abstractmethod
    def solve(self, problem: SubsetProblem) -> SubsetSolution:
        """Return the choice per problem; never raises for what has no answer, see `Status`."""


class Readout(Part):
    """Turns a transport solution into an importance `[B,N]`: higher is kept."""

    group: ClassVar[str] = "readouts"

    @abstractmethod
    def __call__(self, problem: TransportProblem, solution: TransportSolution) -> Float[Tensor, "B N"]: ...

    def ignores_cost(self, solver: Part) -> str | None:
        """Why this readout cannot depend on the cost after `solver`, or None when it can."""
        return None


class Step(Part):
    """Changes a selection after the solver: recover, merge, recycle."""

    group: ClassVar[str] = "steps"

    @property
    def asks(self) -> frozenset[str]:
        """What it asks an insertion for beside removal: `merge`, `reordering`, both or nothing."""
        return frozenset()

    @abstractmethod
    def __call__(self, selection: Selection, signals: Signals) -> Selection: ...

    def count(self, kept: int, tokens: int) -> int:
        """Count the tokens that are kept after this step.

        Parameters
        ----------
        kept
            Tokens that were kept before it.
        tokens
            Tokens that there are.

        Returns
        -------
        int
            From 0 to `tokens`.
        """
        return kept


class BudgetRule(Part):
    """Changes the counts that a budget asks for: allocation over groups, or a count chosen from scores.

    `__call__(signals, k, importance)` takes the counts `[B]` int64 of the plain budget, one per problem
    (`signals.sample` tells which problems belong together), and the importance `[B,N]` where the problem
    is `top_k`, else None; it returns the counts to use, each from 1 to the tokens of the problem.

    A rule that must see the answer first returns the most that a problem may get, and cuts back in `settle`.
    """

    group: ClassVar[str] = "budgets"

    @abstractmethod
    def __call__(
        self, signals: Signals, k: Int[Tensor, " B"], *, importance: Float[Tensor, "B N"] | None
    ) -> Int[Tensor, " B"]: ...

    def settle(
        self, answer: SubsetSolution, k: Int[Tensor, " B"], *, sample: Int[Tensor, " B"]
    ) -> SubsetSolution:
        """Say what stays of an answer.

        Parameters
        ----------
        answer
            The choice of the counts that the rule returned.
        k
            The counts of the plain budget.
        sample
            Which problems belong together.

        Returns
        -------
        SubsetSolution
            The answer itself, unless a rule says otherwise; its `problem` has the counts that it keeps.
        """
        return answer


class Insertion(Part):
    """A place in the forward pass where tokens are removed.

    Class attributes: `site` (what carries it out inside a model: a file of `pruneopt/models/sites/`, or one
    that another package registers), `applies` (what a selection may ask for here beside removal: `merge`,
    `reordering`).
    """

    site: ClassVar[str] = "prefill"
    applies: ClassVar[frozenset[str]] = frozenset({"removal", "merge", "reordering"})

    group: ClassVar[str] = "insertions"

    def misfit(self, stage: StageSpec) -> str | None:
        """Refuses steps that ask for more than can be applied here."""
        for step in stage.steps:
            beyond = step.asks - self.applies
            if beyond:
                return (
                    f"step {step.name} asks for a {' and a '.join(sorted(beyond))}, and {self.name} can "
                    f"apply only: {', '.join(sorted(self.applies))}; leave the step out, or cut elsewhere"
                )
        return None

    @property
    @abstractmethod
    def layer_index(self) -> int:
        """How many decoder layers have run when tokens are removed: the first that runs without them."""

    @property
    def depth(self) -> tuple[int, int]:
        """Where in the forward pass, to be sorted by: `(0, block)` inside the vision encoder, `(1, layer)` in
        the prompt's pass through the decoder, `(2, layer)` in the cache that it fills.
        """
        return 1, self.layer_index

    @property
    @abstractmethod
    def provides(self) -> frozenset[str]:
        """Base names of the signals that exist here."""
