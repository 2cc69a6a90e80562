"""Which tokens survive, and what is merged into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from pruneopt.problems.certificate import Certificate, c_transform, certify, round_to_polytope  # noqa: F401
from pruneopt.problems.solution import Solution


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """Which visual tokens survive, and what is merged into them.

    Parameters
    ----------
    keep
        True at kept tokens.
    counts
        Kept tokens per sample where they are known without looking at the tensor.
    importance
        The scores behind the choice (higher was kept), if the problem has them.
    merge
        Row i holds the weights that build the new value of kept token i from all tokens (identity rows leave
        a token alone).  Rows of dropped tokens are never read.
    size
        How many original tokens each kept one stands for, carried by merging steps.
    rank
        Kept tokens are emitted by ascending rank, then index; by index alone when None.
    solution
        The answer of the problem that the spec states.
    diagnostics
        Sentences about how far the result can be trusted.
    seconds
        Host seconds per named step.
    evidence
        Every answer on the way by the key of what asked for it: `problem` is `solution`, and a score that
        solves one stands under its own, such as `problem.scores.LABEL`; `problem.top_k` is the ranking after
        `problem.kind: transport`.  Certificates are derived when read.  Rows are problems (images, crops or
        frames where the budget holds per group).
    """

    keep: Bool[Tensor, "B N"]
    counts: tuple[int, ...] | None = None
    importance: Num[Tensor, "B N"] | None = None
    merge: Float[Tensor, "B N N"] | None = None
    size: Num[Tensor, "B N"] | None = None
    rank: Num[Tensor, "B N"] | None = None
    solution: Solution | None = None
    diagnostics: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    evidence: Mapping[str, Solution] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line: counts, device, what is attached, how the solve ended, seconds; no tensor."""
        counts = list(self.known_counts)
        shown = f"{counts[:8]}".replace("]", ", ...]") if len(counts) > 8 else f"{counts}"
        words = [f"keeps {shown} of {self.keep.shape[1]} tokens on {self.keep.device}"]
        attached = ("importance", "merge", "size", "rank")
        words += [", ".join(name for name in attached if getattr(self, name) is not None)]
        ended = getattr(self.solution, "ended", ())
        words += [" ".join([getattr(self.solution, "solver", ""), *dict.fromkeys(s.name for s in ended)])]
        words += [f"{len(self.diagnostics)} diagnostics" if self.diagnostics else ""]
        words += [f"{1000 * sum(self.seconds.values()):.1f} ms" if self.seconds else ""]
        return f"Selection({'; '.join(word for word in words if word.strip())})"

    @property
    def known_counts(self) -> tuple[int, ...]:
        """Kept tokens per sample; waits for the device only when a method chose the count itself."""
        return self.counts if self.counts is not None else tuple(self.keep.sum(1).tolist())

    @property
    def indices(self) -> list[Int[Tensor, " K"]]:
        """Sorted kept positions per sample."""
        return [row.nonzero().squeeze(1) for row in self.keep]

    def index(self) -> Int[Tensor, "B K"]:
        """Kept positions in order of emission; rows shorter than K end in dropped ones."""
        width = max(self.known_counts)
        dropped = (~self.keep).to(torch.int8)
        if self.rank is None:
            return dropped.argsort(dim=1, stable=True)[:, :width]
        by_rank = self.rank.argsort(dim=1, stable=True)
        return by_rank.gather(1, dropped.gather(1, by_rank).argsort(dim=1, stable=True))[:, :width]

    def with_diagnostics(self, notes: Sequence[str]) -> Selection:
        """The same selection with more sentences about how far it can be trusted."""
        return replace(self, diagnostics=(*self.diagnostics, *notes))
