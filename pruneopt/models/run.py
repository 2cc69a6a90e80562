"""What a run tells the user."""

from __future__ import annotations

from pruneopt.errors import InputError
from pruneopt.models.base import ModelAdapter
from pruneopt.models.outcome import Outcome
from pruneopt.models.report import Report
from pruneopt.problems.selection import Selection
from pruneopt.spec.schema import Spec


class Run:
    """Results of one application of a spec to a model.

    `kept`, `kept_visual`, `selections` and `report` describe the last prompt that was run, by any thread.
    `prompts` counts them.
    """

    def __init__(self, adapter: ModelAdapter, spec: Spec) -> None:
        self.adapter, self.spec, self.prompts = adapter, spec, 0
        self._last: tuple[Outcome, Report] | None = None

    def done(self, outcome: Outcome, report: Report) -> None:
        """Take the results of a prompt."""
        self._last, self.prompts = (outcome, report), self.prompts + 1

    def _results(self) -> tuple[Outcome, Report]:
        if self._last is None:
            raise InputError("nothing was run yet: call the model, or generate, inside the pruning context")
        return self._last

    @property
    def last(self) -> Outcome:
        """What happened in the last prompt, cut by cut."""
        return self._results()[0]

    @property
    def kept(self) -> dict[int, list[list[int]]]:
        """Decoder-layer index to one list per sample: the sorted positions of the unpruned prompt that
        survive from that layer on, text and visual.

        Positions are columns of the padded `input_ids` of that sample; padding is never listed.
        """
        prompt = self.last.prompt
        text = (prompt.real & ~prompt.free).cpu()
        out: dict[int, list[list[int]]] = {}
        for layer, rows in self.kept_visual.items():
            out[layer] = [
                sorted({*text[b].nonzero().squeeze(1).tolist(), *rows[b]}) for b in range(prompt.batch)
            ]
        return out

    @property
    def kept_visual(self) -> dict[int, list[list[int]]]:
        """Like `kept`, but only the prunable visual tokens; empty lists for samples without a picture."""
        prompt = self.last.prompt
        # What a cache lost ran through every layer, and `report.evicted` has it: where nothing else was cut,
        # all tokens survive from layer 0 on.
        left = {cut.layer: cut.kept for cut in self.last.cuts if cut.evicted is None} or {0: prompt.place}
        out: dict[int, list[list[int]]] = {}
        for layer, columns in left.items():
            out[layer] = [[] for _ in range(prompt.batch)]
            for row, kept in zip(prompt.rows, columns.tolist(), strict=True):
                out[layer][row] = sorted(column for column in kept if column >= 0)
        return out

    @property
    def selections(self) -> list[Selection]:
        """The selection of every stage, in order; rows are the samples with a picture."""
        return [cut.selection for cut in self.last.cuts]

    @property
    def report(self) -> Report:
        """What was kept, what it cost and what it saved."""
        return self._results()[1]
