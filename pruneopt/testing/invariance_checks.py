"""Checks of terms that order, batch mates and padding must not disturb."""

from __future__ import annotations

from pruneopt.parts import Part
from pruneopt.testing import cases
from pruneopt.testing.calls import agree, alone, call, real_entries, token_axes
from pruneopt.testing.core import require


def check_permutation(part: Part) -> None:
    """Permuting tokens together with their coordinates permutes the result and changes nothing else."""
    signals = cases.make_signals(part.needs, tokens=12)
    out = call(part, signals)
    order = cases.shuffle(12, 3)
    moved = call(part, cases.permuted(signals, order))
    for axis in token_axes(part):
        out = out.index_select(axis, order)
    require(
        agree(moved, out) < 1e-4,
        "permuting the tokens changes more than the order; something depends on the index. "
        "Read `xy` for places, or tag the part `uses_order`",
    )


def check_batch_invariance(part: Part) -> None:
    """A sample gives in a batch, ragged or not, what it gives alone."""
    for lengths in (None, (12, 7, 1)):
        signals = cases.make_signals(part.needs, batch=3, lengths=lengths)
        out = call(part, signals)
        for b in range(3):
            single = call(part, cases.sample_alone(signals, b))
            n = int(signals.mask[b].sum())
            require(
                agree(alone(part, out, b=b, n=n), single) < 1e-4,
                f"sample {b} of a {'ragged ' if lengths else ''}batch differs from itself alone; "
                "reduce over dim=1 and over signals.mask only, never over the batch",
            )


def check_padding_invariance(part: Part) -> None:
    """Other values at padded tokens change nothing at real ones, bit for bit."""
    signals = cases.make_signals(part.needs, lengths=(12, 7))
    out, other = call(part, signals), call(part, cases.garbage_in_padding(signals))
    real = real_entries(part, signals, out=out)
    same = (out == other) | (out.isnan() & other.isnan()) | ~real
    require(same.all(), "values at padded tokens leak into real ones; mask before any sum, mean or maximum")


def check_padding_anywhere(part: Part) -> None:
    """Padding may stand between tokens and hold numbers below, between or above all real ones."""
    signals = cases.make_signals(part.needs, tokens=14, lengths=(12, 7, 1))
    for fill in cases.FILLS:
        moved, old = cases.spread(signals, fill)
        out = call(part, moved)
        for b in range(3):
            got = out[b : b + 1]
            for axis in token_axes(part):
                got = got.index_select(axis, (old[b] >= 0).nonzero().squeeze(1))
            single = call(part, cases.sample_alone(signals, b))
            require(
                agree(got, single) < 1e-4,
                f"a sample with padding between its tokens, {fill} all real values, differs from itself "
                "alone; reduce over signals.mask, and never count slots instead of tokens",
            )
