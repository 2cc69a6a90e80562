"""Checks of parts that turn signals into numbers: cost terms, scores, kernels and marginals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pruneopt.errors import PruneoptError
from pruneopt.parts import CostTerm, Kernel, Marginal, Part
from pruneopt.signals import Signals, Values, signal_info
from pruneopt.testing import cases
from pruneopt.testing.calls import agree, call, layout, real_entries, token_axes
from pruneopt.testing.core import Check, CheckFailure, changed, checks_that, require
from pruneopt.testing.invariance_checks import (
    check_batch_invariance,
    check_padding_anywhere,
    check_padding_invariance,
    check_permutation,
)
from pruneopt.testing.part_checks import part_checks
from pruneopt.testing.purity import require_own_generator, require_pure

SIZES = (
    (1, 1, 4, 1, 1),
    (3, 2, 4, 4, 2),
    (2, 7, 64, 2, 5),
    (1, 576, 8, 2, 3),
)  # batch, tokens, width, heads, text


def _finite(part: Part, signals: Signals, *, out: Tensor) -> Tensor:
    """`[B]` bool: all entries at real tokens are finite (+inf marks an absent anchor)."""
    fine = out.isfinite() | ~real_entries(part, signals, out=out)
    if layout(part) == "[B,A,N]":
        fine = fine | (out == torch.inf).all(2, keepdim=True)
    return fine.flatten(1).all(1)


def check_reads_only_needs(part: Part) -> None:
    """Everything read is declared: an adapter computes the declared signals and no others."""
    call(part, cases.make_signals(part.needs))


def check_shapes(part: Part) -> None:
    """The declared shape comes out for one and many samples, tokens, channels, heads and text tokens."""
    wanted = layout(part)
    require(wanted in ("[B,N]", "[B,N,N]", "[B,A,N]"), f"shape {wanted!r} is not pairwise, unary or anchor")
    for batch, tokens, width, heads, text in SIZES:
        out = call(
            part,
            cases.make_signals(part.needs, batch=batch, tokens=tokens, width=width, heads=heads, text=text),
        )
        where = f"for B={batch}, N={tokens}, D={width}, H={heads}, T={text}"
        axes = wanted.count(",") + 1
        require(out.dim() == axes, f"returned shape {list(out.shape)} {where}, declared {wanted}")
        for axis in token_axes(part):
            fits = out.shape[0] == batch and out.shape[axis] == tokens
            require(fits, f"returned shape {list(out.shape)} {where}, declared {wanted}")


def check_output_dtype(part: Part) -> None:
    """float32 or better comes out whatever goes in, and half precision is promoted before arithmetic."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        out = call(part, cases.make_signals(part.needs, dtype=dtype))
        good = out.is_floating_point() and out.dtype.itemsize >= 4
        require(good, f"returned {out.dtype} for {dtype} input; start with signals[...].float()")


def check_half_precision_ranks_alike(part: Part) -> None:
    """Half-precision input gives what the same numbers give in float64, up to float32 rounding."""
    for dtype in (torch.float16, torch.bfloat16):
        half = cases.make_signals(part.needs, tokens=24, width=64, dtype=dtype)
        exact = cases.with_tensors(half, {n: half[n].double() for n in cases.floating(half)})
        difference = agree(call(part, half), call(part, exact))
        require(
            difference < 1e-4,
            f"{dtype} input is off by {difference:.2g} of the largest value from the same in float64; "
            "some arithmetic runs in half precision, so call .float() first",
        )


def check_finite_on_hard_input(part: Part) -> None:
    """Zero vectors, equal tokens, duplicates and values near the edge of float16 give finite results."""
    for style in cases.STYLES:
        for lengths in (None, (12, 7)):
            signals = cases.make_signals(part.needs, style=style, lengths=lengths)
            out = call(part, signals)
            require(
                _finite(part, signals, out=out).all(),
                f"not finite at real tokens for {style} input"
                + (" with padding" if lengths else "")
                + "; guard divisions (clamp_min) and square roots",
            )


def check_nan_is_flagged(part: Part) -> None:
    """NaN in a signal raises or stays visible in its sample; it is never silently ranked."""
    for name in cases.floating(cases.make_signals(part.needs)):
        if name not in part.needs:
            continue
        signals = cases.make_signals(part.needs)
        broken = signals[name].clone()
        broken[0] = torch.nan
        spoilt = cases.with_tensors(signals, {name: broken})
        try:
            out = call(part, spoilt)
        except (PruneoptError, ValueError):
            continue
        hidden = bool(_finite(part, spoilt, out=out)[0]) and "groups" not in part.tags
        require(
            not hidden or agree(out, call(part, signals)) == 0,
            f"NaN in {name!r} gives finite numbers; it was ranked or replaced (nan_to_num, argsort, clamp?)",
        )


def check_inputs_pure(part: Part) -> None:
    """Signals are unchanged and two calls agree bit for bit."""
    signals = cases.make_signals(part.needs)
    require_pure(lambda: call(part, signals), {f"signal {name!r}": signals[name] for name in signals})


def check_global_rng(part: Part) -> None:
    """The global random generators are neither used nor moved."""
    require_own_generator(lambda: call(part, cases.make_signals(part.needs)))


def check_seed_is_used(part: Part) -> None:
    """The same seed gives the same result and another seed another one."""
    signals = cases.make_signals(part.needs, tokens=24)
    seed = part.seed  # type: ignore[attr-defined]
    other = changed(part, seed=seed + 1)
    same = call(changed(part), signals)
    require(agree(call(part, signals), same) == 0, "the same seed gives two results")
    require(agree(call(other, signals), same) > 0, "another seed gives the same result; `seed` is not used")


class _Watch(TorchDispatchMode):
    """Notes every operation: its name, its arguments and what came out."""

    def __init__(self, note: Callable[..., None]):
        super().__init__()
        self.note = note

    def __torch_dispatch__(  # noqa: PLR0917 - called by torch
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.note(str(func).removeprefix("aten."), args, out=out)
        return out


_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "bincount",
          "repeat_interleave.Tensor")  # fmt: skip


def sync_operations(run: Callable[[], Any]) -> list[str]:
    """Names of the operations in `run` that would wait for a GPU, found while running on the CPU."""
    seen: list[str] = []

    def note(name: str, args: Any, *, out: Any) -> None:
        stem = name.split(".")[0]
        index = args[1] if stem == "index" and len(args) > 1 else ()
        picks = any(isinstance(i, Tensor) and i.dtype == torch.bool for i in index)
        if stem in _WAITS or name in _WAITS or stem.startswith("unique") or picks:
            seen.append("boolean indexing" if picks else stem)

    with _Watch(note):
        run()
    return seen


def check_no_host_sync(part: Part) -> None:
    """Nothing waits for the device: no `.item()`, `bool(tensor)`, `nonzero` or boolean indexing."""
    signals = cases.make_signals(part.needs)
    seen = sync_operations(lambda: call(part, signals))
    require(
        not seen,
        f"waits for the device ({', '.join(sorted(set(seen)))}); use torch.where and masks, or tag it `host`",
    )


def _largest_temporary(run: Callable[[], Any]) -> int:
    sizes = [0]

    def note(name: str, args: Any, *, out: Any) -> None:
        made = [t for t in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(t, Tensor)]
        sizes.extend(t.numel() for t in made if t.untyped_storage().nbytes() >= t.nbytes)

    with _Watch(note):
        run()
    return max(sizes)


def check_memory_order(part: Part) -> None:
    """No temporary is larger than the inputs or a few token-by-token matrices: never N x N x D."""
    signals = cases.make_signals(part.needs, batch=1, tokens=48, width=96, heads=2)
    allowed = 4 * max([48 * 48 * 2] + [signals[name].numel() for name in part.needs])
    largest = _largest_temporary(lambda: call(part, signals))
    require(
        largest <= allowed,
        f"a temporary holds {largest} numbers for N=48, D=96 (N x N = 2304); use matrix products instead of "
        "broadcasting features against each other",
    )


def check_declared_range(part: Part) -> None:
    """Tags about values hold, properties that say the same, and any kernel is symmetric."""
    declared = _declared(part)
    for style in ("random", "duplicates", "large"):
        signals = cases.make_signals(part.needs, tokens=16, width=24, style=style)
        out = call(part, signals).double()
        for tag in _RANGES:
            if tag in declared:
                require(
                    not _RANGES[tag](out, 1e-5 * float(out.abs().amax().clamp_min(1e-12))),
                    f"tagged {tag!r}, but {style} input says otherwise; remove the tag or fix the term",
                )


def _declared(part: Part) -> frozenset[str]:
    """The tags of a part with what its properties say in their place."""
    said = [name for name in ("symmetric", "negative_type") if getattr(part, name, False)]
    return part.all_tags.union(said if getattr(part, "shape", "pairwise") == "pairwise" else ())


def _centred(cost: Tensor) -> Tensor:
    cost = cost - cost.mean(1, keepdim=True)
    return cost - cost.mean(2, keepdim=True)


def _breaks_triangle(distance: Tensor, tolerance: float) -> bool:
    through = [distance[:, :, k, None] + distance[:, k, None, :] for k in range(distance.shape[1])]
    return bool((distance > torch.stack(through).amin(0) + tolerance).any())


_RANGES: dict[str, Callable[[Tensor, float], bool]] = {
    "symmetric": lambda o, t: float((o - o.transpose(1, 2)).abs().amax()) > t,
    "zero_diagonal": lambda o, t: float(o.diagonal(dim1=1, dim2=2).abs().amax()) > t,
    "nonnegative": lambda o, t: float(o.amin()) < -t,
    "unit_range": lambda o, t: float(o.amin()) < -1e-5 or float(o.amax()) > 1 + 1e-5,
    "psd": lambda o, t: float(torch.linalg.eigvalsh((o + o.mT) / 2).amin()) < -10 * t,
    "negative_type": lambda o, t: float(torch.linalg.eigvalsh(_centred((o + o.mT) / 2)).amax()) > 10 * t,
    "triangle": _breaks_triangle,
}


def check_declared_scale(part: Part) -> None:
    """Multiplying all features by c changes nothing (`scale_free`) or multiplies by c (`homogeneous`)."""
    signals = cases.make_signals(part.needs, tokens=16)
    features = [n for n in cases.floating(signals) if signal_info(n).values is not Values.SHARES]
    scaled = cases.with_tensors(signals, {n: 4.0 * signals[n] for n in features})
    wanted = call(part, signals) * (4.0 if "homogeneous" in part.tags else 1.0)
    tag = "homogeneous" if "homogeneous" in part.tags else "scale_free"
    difference = agree(call(part, scaled), wanted)
    require(
        difference < 1e-4,
        f"tagged {tag!r}, but features times 4 give something else (off by {difference:.2g})",
    )


def check_duplicates_are_alike(part: Part) -> None:
    """A copy of a token is nearest to it (distances) or most like it (kernels): the sign is right."""
    signals = cases.make_signals(part.needs, tokens=12, width=32, style="duplicates")
    out = call(part, signals).double()
    similar = isinstance(part, Kernel)
    to_copy = out[:, torch.arange(6), torch.arange(6, 12)]
    others = out[:, :6].clone()
    index = torch.arange(6)
    for j in (index, index + 6):
        others[:, index, j] = -torch.inf if similar else torch.inf
    best = others.amax(2) if similar else others.amin(2)
    wrong = (to_copy < best) if similar else (to_copy > best)
    word = "less alike than another token" if similar else "farther than another token"
    require(not wrong.any(), f"a copy of a token is {word}; the sign is reversed")


def check_sign_case(part: Part) -> None:
    """On the part's own obvious case the right token wins: `sign_case() -> (signals, better, worse)`."""
    signals, better, worse = part.sign_case()  # type: ignore[attr-defined]
    out = call(part, signals)[0].double()
    while out.dim() > 1:
        out = out.mean(1)
    cheaper = isinstance(part, CostTerm)
    good = out[better] < out[worse] if cheaper else out[better] > out[worse]
    rule = "costs less" if cheaper else "scores higher"
    require(good, f"token {better} should be kept before {worse}, which now {rule}; the sign is reversed")


def check_gradient(part: Part) -> None:
    """Gradients with respect to floating-point signals agree with finite differences."""
    signals = cases.make_signals(part.needs, tokens=4, width=3, heads=1, text=2, dtype=torch.float64)
    names = [n for n in cases.floating(signals) if n in part.needs]
    inputs = tuple(signals[n].clone().requires_grad_() for n in names)

    def run(*tensors: Tensor) -> Tensor:
        return call(part, cases.with_tensors(signals, dict(zip(names, tensors, strict=True))))

    try:
        # parts compute in float32, hence the coarse step
        fine = torch.autograd.gradcheck(run, inputs, eps=1e-2, atol=3e-2, rtol=3e-2, nondet_tol=1e-6)
    except RuntimeError as error:
        raise CheckFailure(
            f"tagged 'differentiable', but gradients disagree: {str(error).splitlines()[0]}"
        ) from error
    require(fine, "tagged 'differentiable', but gradients disagree with finite differences")


def check_marginal_sums_to_one(part: Part) -> None:
    """Masses are non-negative, zero at padding, and sum to one over the real tokens."""
    for style in ("random", "zeros", "large"):
        signals = cases.make_signals(part.needs, lengths=(12, 7), style=style)
        out = call(part, signals)
        require((out >= 0).all(), f"negative mass for {style} input")
        require((out[~signals.mask] == 0).all(), f"mass at padding for {style} input; multiply by the mask")
        total = out.double().sum(1)
        require(((total - 1).abs() < 1e-4).all(), f"masses sum to {total.tolist()} for {style} input")


def signal_checks(part: Part) -> Iterator[Check]:
    """Checks of a cost term, score, kernel or marginal, according to its tags."""
    tags = part.all_tags
    alike = isinstance(part, Kernel) or {"symmetric", "zero_diagonal"} <= tags
    yield from part_checks(part)
    applies = {
        check_reads_only_needs: True,
        check_shapes: True,
        check_output_dtype: True,
        check_half_precision_ranks_alike: True,
        check_finite_on_hard_input: True,
        check_nan_is_flagged: True,
        check_padding_invariance: True,
        check_inputs_pure: True,
        check_global_rng: True,
        check_memory_order: True,
        check_batch_invariance: "across_batch" not in tags,
        check_padding_anywhere: "stochastic" not in tags,
        check_permutation: not tags & {"stochastic", "uses_order"},
        check_seed_is_used: "stochastic" in part.tags,
        check_no_host_sync: "host" not in tags,
        check_declared_range: _declared(part) & set(_RANGES),
        check_declared_scale: tags & {"scale_free", "homogeneous"},
        check_duplicates_are_alike: alike and "uses_positions" not in tags,
        check_gradient: "differentiable" in tags,
        check_sign_case: hasattr(part, "sign_case"),
        check_marginal_sums_to_one: isinstance(part, Marginal),
    }
    yield from checks_that(applies)
